"""What a formula returns: the work of one operator call, kinds of work apart; and what families of work there are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from flopcallback.formulas.op_call import OpCall

__all__ = ["HARDWARE_FAMILIES", "Cost", "Family", "Formula"]


class Family(str, Enum):
    """What kind of work an operator does; `HARDWARE_FAMILIES` make up hardware FLOPs."""

    CONVOLUTION = "convolution"
    MATMUL = "matmul"
    ATTENTION = "attention"
    RECURRENT = "recurrent"
    NORMALIZATION = "normalization"
    RESAMPLING = "resampling"
    SPECTRAL = "spectral"
    ELEMENTWISE = "elementwise"
    CUSTOM = "custom"


HARDWARE_FAMILIES = frozenset({Family.CONVOLUTION, Family.MATMUL, Family.ATTENTION, Family.RECURRENT, Family.CUSTOM})


@dataclass(frozen=True, slots=True)
class Cost:
    """Exact floating-point work of one operator call, in real (not complex) operations.

    Attributes:
        fma: multiply-adds of matrix products, convolutions, attention and recurrent layers: 1 or 2 FLOPs each,
            as the convention says.
        other: other operations that belong to the default total (normalization, interpolation, transforms), each 1
            FLOP in both conventions.
        elementwise: work that would be an elementwise operator or a reduction if it stood alone (the softmax inside
            attention, the gates of an LSTM, a ReLU): counted only with `elementwise=True`.
    """

    fma: int = 0
    other: int = 0
    elementwise: int = 0

    def flops(self, *, fma: int = 1, elementwise: bool = False) -> int:
        """FLOPs under a convention: `fma` per multiply-add, elementwise work only when asked for."""
        return fma * self.fma + self.other + (self.elementwise if elementwise else 0)

    def __add__(self, more: Cost) -> Cost:
        return Cost(self.fma + more.fma, self.other + more.other, self.elementwise + more.elementwise)


Formula = Callable[[OpCall], Cost]
"""What an operator call costs: a pure function of shapes, dtypes and constants."""
