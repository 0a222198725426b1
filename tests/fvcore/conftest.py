"""The original counter to compare with, and modules that make a model of a function."""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from torch import nn

SUBMODULES = (
    "jit_analysis",
    "jit_handles",
    "flop_count",
    "activation_count",
    "parameter_count",
    "print_model_statistics",
)


@pytest.fixture(scope="session")
def original() -> SimpleNamespace:
    """`fvcore.nn` and its submodules by name; its own import warns about what it scripts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        package = importlib.import_module("fvcore.nn")
        modules = {name: importlib.import_module(f"fvcore.nn.{name}") for name in SUBMODULES}
    logging.getLogger("fvcore").setLevel(logging.ERROR)
    return SimpleNamespace(package=package, **modules)


class OfFunction(nn.Module):
    """A model without modules."""

    def __init__(self, function: Callable) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args):
        return self.function(*args)


@pytest.fixture
def model_of() -> Callable[[Callable], nn.Module]:
    """`model_of(torch.bmm)` is a module that calls it."""
    return OfFunction
