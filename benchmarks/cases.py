"""Benchmark case: a model with its inputs and its multiply-adds on paper."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

__all__ = ["Case", "TensorsOnly"]


@dataclass(frozen=True)
class Case:
    """Model with inputs and its true count.

    Attributes:
        model: module with random weights, in evaluation mode.
        inputs: keyword arguments, in the order of the forward's parameters.
        multiply_adds: multiply-adds of one call, by the formulas of `truth`.
        grad: whether the call is made with autograd on.
    """

    model: nn.Module
    inputs: Mapping[str, Any]
    multiply_adds: int
    grad: bool = False

    def call(self) -> Any:
        """Make one forward."""
        with torch.set_grad_enabled(self.grad):
            return self.model(**self.inputs)


class TensorsOnly(nn.Module):
    """Model with positional tensors in and a tuple of tensors out.

    Counters on `torch.jit.trace` require this form.
    """

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.model, self.names = case.model, tuple(case.inputs)

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs = self.model(**dict(zip(self.names, tensors, strict=True)))
        leaves = torch.utils._pytree.tree_leaves(outputs)
        return tuple(leaf for leaf in leaves if isinstance(leaf, torch.Tensor))
