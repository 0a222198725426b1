"""README's table of what each counter reports: every cell comes out of the counter as it stands there."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention.flex_attention import flex_attention
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from flopcallback import FlopCountAnalysis

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]

README = Path(__file__).parents[2] / "README.md"
# What fvcore counts as products, by its own names: norms are left out, PyTorch's counter has none.
PRODUCTS = {"conv", "linear", "matmul", "addmm", "mm", "bmm", "einsum"}


class Model(nn.Module):
    """A function as the forward of a module that has the given children."""

    def __init__(self, function: Callable, **children: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, child in children.items():
            setattr(self, name, child)

    def forward(self, *inputs):
        return self.function(self, *inputs)


class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        return x @ weight

    @staticmethod
    def backward(ctx, grad):
        raise NotImplementedError


def linear() -> nn.Linear:
    return nn.Linear(3, 5)


def encoder_layer() -> nn.Module:
    return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)


def attention() -> nn.Module:
    return nn.MultiheadAttention(8, 2, batch_first=True)


x, x_with_grad, tokens = torch.rand(2, 3), torch.rand(2, 3, requires_grad=True), torch.rand(2, 3, 8)
ATTENTION = 4 * 2 * 3 * 8 * 8 + 2 * 2 * 3 * 3 * 8  # four projections; scores and their application
ENCODER = ATTENTION + 2 * 2 * 3 * 8 * 16

# What stands in the first column -> model, inputs, multiply-adds on paper, module.
CASES = {
    "scaled dot product attention": (
        Model(lambda self, *qkv: F.scaled_dot_product_attention(*qkv)),
        [torch.rand(2, 3, 5, 7)] * 3,
        2 * (2 * 3) * 5 * 5 * 7,
    ),
    "`nn.MultiheadAttention`, `need_weights=False`": (
        Model(lambda self, x: self.inner(x, x, x, need_weights=False)[0], inner=attention()),
        [tokens],
        ATTENTION,
    ),
    "`nn.TransformerEncoderLayer` in evaluation": (encoder_layer().eval(), [tokens], ENCODER),
    "`nn.TransformerEncoderLayer` in evaluation, `no_grad` (fast path)": (
        Model(torch.no_grad()(lambda self, x: self.inner(x)), inner=encoder_layer()).eval(),
        [tokens],
        ENCODER,
    ),
    "`nn.LSTM`": (nn.LSTM(3, 5), [torch.rand(7, 2, 3)], 7 * 2 * 4 * 5 * (3 + 5)),
    "`nn.GRU`": (nn.GRU(3, 5), [torch.rand(7, 2, 3)], 7 * 2 * 3 * 5 * (3 + 5)),
    "`nn.Bilinear`": (nn.Bilinear(3, 5, 7), [torch.rand(2, 3), torch.rand(2, 5)], 2 * 7 * (3 * 5 + 5)),
    "matrix by vector": (Model(lambda self, a, b: a @ b), [torch.rand(3, 5), torch.rand(5)], 3 * 5),
    "`matmul` with broadcasting": (
        Model(lambda self, a, b: a @ b),
        [torch.rand(1, 4, 5), torch.rand(6, 5, 3)],
        6 * 4 * 5 * 3,
    ),
    '`nn.Conv2d(padding="same")`': (
        nn.Conv2d(2, 3, 3, padding="same"),
        [torch.rand(1, 2, 5, 7)],
        5 * 7 * 3 * 2 * 3 * 3,
    ),
    "a layer whose result only decides an `if`": (
        Model(lambda self, x: self.a(x if self.gate(x).sum() > 0 else -x), a=linear(), gate=nn.Linear(3, 1)),
        [x],
        2 * 3 * 1 + 2 * 3 * 5,
    ),
    "a child called as `self.block.forward(x)`: work of the child": (
        Model(lambda self, x: self.block.forward(x), block=linear()),
        [x],
        2 * 3 * 5,
    ),
    "`autograd.Function`": (
        Model(lambda self, x: Product.apply(x, self.layer.weight.T), layer=linear()),
        [x],
        2 * 3 * 5,
    ),
    "`autograd.grad` inside the forward": (
        Model(lambda self, x: torch.autograd.grad(self.a(x).sum(), x, create_graph=True)[0], a=linear()),
        [x_with_grad],
        2 * 3 * 5 + 2 * 5 * 3,
    ),
    "reentrant checkpointing": (
        Model(lambda self, x: checkpoint(self.a, x, use_reentrant=True), a=linear()),
        [x_with_grad],
        2 * 3 * 5,
    ),
    "flex attention": (
        Model(lambda self, *qkv: flex_attention(*qkv)),
        [torch.rand(1, 1, 128, 16)] * 3,
        2 * 128 * 128 * 16,
    ),
    "a compiled child": (
        lambda: nn.Sequential(torch.compile(linear(), backend="eager")),
        [x],
        2 * 3 * 5,
    ),
    "`x.shape[0]` as the key of a dict": (
        Model(lambda self, x: self.a(x) * {2: 7}[x.shape[0]], a=linear()),
        [x],
        2 * 3 * 5,
    ),
    "an output that is no tensor": (Model(lambda self, x: SimpleNamespace(y=self.a(x)), a=linear()), [x], 2 * 3 * 5),
}


def counted_by_us(model: nn.Module, inputs: list[torch.Tensor], module: str) -> int:
    return FlopCountAnalysis(model, tuple(inputs)).hardware_flops()[module] // 2


def counted_by_fvcore(model: nn.Module, inputs: list[torch.Tensor], module: str) -> int:
    from fvcore.nn import FlopCountAnalysis as Original

    analysis = Original(model, tuple(inputs)).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    return sum(round(count) for name, count in analysis.by_operator(module).items() if name in PRODUCTS)


def counted_by_torch(model: nn.Module, inputs: list[torch.Tensor], module: str) -> int:
    with FlopCounterMode(display=False) as counter:
        model(*inputs)
    if not module:
        return counter.get_total_flops() // 2
    of_module = counter.get_flop_counts().get(f"{type(model).__name__}.{module}", {})
    return sum(of_module.values()) // 2


COUNTERS = [counted_by_us, counted_by_fvcore, counted_by_torch]


def rows() -> dict[str, list[str]]:
    section = (
        README.read_text(encoding="utf-8").partition("## What it counts that others do not")[2].partition("\n## ")[0]
    )
    cells = [re.split(r" \| ", line.strip("| ")) for line in section.splitlines() if line.startswith("| ")]
    return {name: counts for name, *counts in cells[1:]}


def test_the_table_has_a_row_for_each_case():
    assert list(rows()) == list(CASES)


@pytest.mark.parametrize("what", CASES)
def test_a_row_says_what_the_counters_report(what):
    model, inputs, on_paper = CASES[what]
    model = model if isinstance(model, nn.Module) else model()
    module = "block" if "work of the child" in what else ""
    reported = []
    for counter in COUNTERS:
        try:
            reported.append(str(counter(model, inputs, module)))
        except Exception as error:  # noqa: BLE001 - a counter that raises is what the row says
            reported.append(type(error).__name__)
    assert reported == rows()[what]
    assert reported[0] == str(on_paper)


@pytest.fixture(autouse=True)
def _quiet():
    logging.getLogger("fvcore").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        yield
