"""The page for those who come from fvcore: its examples run, its figures hold."""

from __future__ import annotations

import doctest
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import flopcallback
from flopcallback.fvcore import FlopCountAnalysis

PAGE = Path(__file__).parents[2] / "docs" / "from-fvcore.md"


def test_the_examples_run():
    try:
        with warnings.catch_warnings():
            # Custom operators warn where NumPy is not installed, and with what they find out about a kernel.
            warnings.simplefilter("ignore")
            result = doctest.testfile(str(PAGE), module_relative=False)
        assert result.attempted > 10
        assert result.failed == 0
    finally:
        flopcallback.unregister_formula("mylib::outer_sum")


def encoder_layer():
    return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)


FIGURES = {
    "`scaled_dot_product_attention`": (
        F.scaled_dot_product_attention,
        [(2, 3, 5, 7), (2, 3, 11, 7), (2, 3, 11, 13)],
    ),
    "`nn.LSTM(3, 5)`": (nn.LSTM(3, 5), [(11, 2, 3)]),
    "`nn.TransformerEncoderLayer(8, 2, 16)`": (encoder_layer(), [(3, 5, 8)]),
    "the same in evaluation": (encoder_layer().eval(), [(3, 5, 8)]),
    "`nn.Conv1d(3, 5, 7": (nn.Conv1d(3, 5, 7, padding="same"), [(2, 3, 11)]),
    "`matmul`": (torch.matmul, [(1, 4, 5), (6, 5, 3)]),
    '`einsum("ij,jk->ik")`': (lambda x, y: torch.einsum("ij,jk->ik", x, y), [(37, 43), (43, 61)]),
    '`einsum("i,j->ij")`': (lambda x, y: torch.einsum("i,j->ij", x, y), [(6,), (7,)]),
    '`einsum("ij->ji")`': (lambda x: torch.einsum("ij->ji", x), [(6, 7)]),
}


@pytest.mark.peers
@pytest.mark.parametrize("row", FIGURES)
def test_the_figures_hold(original, model_of, row):
    function, shapes = FIGURES[row]
    model = function if isinstance(function, nn.Module) else model_of(function)
    inputs = tuple(map(torch.ones, shapes))
    with torch.set_grad_enabled("evaluation" not in row):
        theirs = original.package.FlopCountAnalysis(model, inputs).total()
        ours = FlopCountAnalysis(model, inputs).total()
    (line,) = (line for line in PAGE.read_text().splitlines() if line.startswith(f"| {row}"))
    assert line.endswith(f"| {theirs} | {ours} |")
