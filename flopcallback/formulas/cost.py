"""Cost of one operator call, and the families of work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from flopcallback.formulas.op_call import OpCall

__all__ = ["HARDWARE_FAMILIES", "LAYER_FAMILIES", "AtMost", "Cost", "Family", "Formula", "checked_cost"]


class Family(str, Enum):
    """Kind of work of an operator; `HARDWARE_FAMILIES` make up FLOPs."""

    CONVOLUTION = "convolution"
    MATMUL = "matmul"
    ATTENTION = "attention"
    RECURRENT = "recurrent"
    LINALG = "linear algebra"
    NORMALIZATION = "normalization"
    RESAMPLING = "resampling"
    SPECTRAL = "spectral"
    ELEMENTWISE = "elementwise"
    CUSTOM = "custom"


# Matrix products in any form; a custom operator takes part by its multiply-adds.
HARDWARE_FAMILIES = frozenset(
    {Family.CONVOLUTION, Family.MATMUL, Family.ATTENTION, Family.RECURRENT, Family.LINALG, Family.CUSTOM}
)


# Their outputs are activations; a solver or a norm is no layer.
LAYER_FAMILIES = HARDWARE_FAMILIES - {Family.LINALG}


class AtMost(int):
    """Upper bound of a count. Arithmetic makes plain integers of it: whoever adds has to ask first."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Cost:
    """Exact floating-point work of one operator call, in real operations.

    Attributes:
        fma: multiply-adds of matrix products, convolutions, attention, recurrent layers and factorizations, 1 or 2
            FLOPs each by the chosen convention.
        other: other operations of the default total (normalization, interpolation, transforms), 1 FLOP each in both
            conventions.
        elementwise: work that an elementwise operator or a reduction would do on its own (the softmax inside attention,
            the gates of an LSTM, a ReLU), counted only with `elementwise=True`.
        is_upper_bound: True if the work depends on data that nobody saw, and is this at most.
    """

    fma: int = 0
    other: int = 0
    elementwise: int = 0
    is_upper_bound: bool = False

    def flops(self, *, fma: int = 1, elementwise: bool = False) -> int:
        """Return the FLOPs under a convention.

        Args:
            fma: FLOPs per multiply-add, 1 or 2.
            elementwise: whether elementwise work counts.
        """
        return self.bounded(fma * self.fma + self.other + (self.elementwise if elementwise else 0))

    def bounded(self, work: int) -> int:
        """Return a part of the work, as `AtMost` if the cost is an upper bound."""
        return AtMost(work) if self.is_upper_bound else work

    def __add__(self, other: Cost) -> Cost:
        is_upper_bound = self.is_upper_bound or other.is_upper_bound
        return Cost(
            self.fma + other.fma, self.other + other.other, self.elementwise + other.elementwise, is_upper_bound
        )


Formula = Callable[[OpCall], Cost]
"""Pure function from an operator call to its cost, by shapes, dtypes and constants."""


def checked_cost(cost: Any) -> Cost:
    """Return what a formula returned, if it is what a formula has to return.

    Raises:
        TypeError: it is no `Cost` of exact integers.
    """
    if not isinstance(cost, Cost):
        raise TypeError(f"a formula returns a Cost, such as Cost(fma=30); this one returned {cost!r}")
    if not all(isinstance(part, int) for part in (cost.fma, cost.other, cost.elementwise)):
        raise TypeError(f"the parts of a Cost are exact integers; this formula returned {cost!r}")
    return cost
