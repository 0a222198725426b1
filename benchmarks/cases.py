"""What a benchmark counts: a model with its inputs and its multiply-adds on paper."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

__all__ = ["Case", "TensorsOnly"]


@dataclass(frozen=True)
class Case:
    """A model with inputs, and what counting it should give.

    Attributes:
        model: with random weights, in evaluation mode.
        inputs: by keyword, in the order of the forward's parameters.
        multiply_adds: of one call, by the formulas of `truth`.
        grad: whether the call is made with autograd on.
    """

    model: nn.Module
    inputs: Mapping[str, Any]
    multiply_adds: int
    grad: bool = False

    def call(self) -> Any:
        """One forward."""
        with torch.set_grad_enabled(self.grad):
            return self.model(**self.inputs)


class TensorsOnly(nn.Module):
    """Positional tensors in, a tuple of tensors out: what counters on `torch.jit.trace` ask for."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.model, self.names = case.model, tuple(case.inputs)

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs = self.model(**dict(zip(self.names, tensors, strict=True)))
        leaves = torch.utils._pytree.tree_leaves(outputs)
        return tuple(leaf for leaf in leaves if isinstance(leaf, torch.Tensor))
