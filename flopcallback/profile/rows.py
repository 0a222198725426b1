"""The rows of a profile: modules, operators, phases of a step, times; and two quotients that all outputs use."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Protocol

__all__ = [
    "ABOVE_PEAK",
    "CPU_CLOCK",
    "LatencySummary",
    "ModuleRow",
    "OperatorRow",
    "StepFlops",
    "Timed",
    "achieved_flops_per_s",
    "share",
]

CPU_CLOCK = "CPU clock"
"""Begins `LatencySummary.how` of times that a CPU's clock took; every other text names a device's events."""

ABOVE_PEAK = "above peak"
"""Said of a row in place of FLOP/s that the device cannot do."""


@dataclass(frozen=True, slots=True)
class StepFlops:
    """Hardware FLOPs of a training step as it ran, by phase; `recompute` is what checkpointing does a second time."""

    forward: int = 0
    backward: int = 0
    recompute: int = 0
    optimizer: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.forward + self.backward + self.recompute + self.optimizer

    def __add__(self, other: StepFlops) -> StepFlops:
        return StepFlops(*(getattr(self, phase.name) + getattr(other, phase.name) for phase in fields(self)))


class Timed(Protocol):
    """What did so much work in so much time: a row, or several folded into one line."""

    @property
    def hw_flops(self) -> int:
        """Hardware FLOPs."""

    @property
    def forward_ms(self) -> float | None:
        """Milliseconds; None where it was not measured."""


@dataclass(frozen=True, slots=True)
class ModuleRow:
    """One module and everything below it.

    Attributes:
        path: canonical dotted name; the root is `""`.
        parent: path of the module that contains it; None for the root.
        type: class name.
        calls: how often it ran in the counted call.
        flops: FLOPs under the profile's convention; `own_flops` leaves out what runs in modules below.
        hw_flops: hardware FLOPs, 2 per multiply-add whatever the convention says.
        activations: elements put out by the operators that count as activations.
        bytes: read and written by its operators.
        forward_ms: measured time of its forward, median over steps; with what it contains, like every other number
            but `own_flops`. `forward_ms_spread` is a low and a high percentile of the same window.
        step: hardware FLOPs in a whole training step; None until one was observed.
        unknown_calls: operator calls in it that no formula counts; above 0, its FLOPs are a lower bound.
        output_shape: as text, such as `"(32, 10)"`.
        note: what a reader of the row should know, such as `"compiled"`.
    """

    path: str
    parent: str | None
    depth: int
    type: str
    calls: int = 0
    params: int = 0
    params_trainable: int = 0
    flops: int = 0
    own_flops: int = 0
    hw_flops: int = 0
    activations: int = 0
    bytes: int = 0
    forward_ms: float | None = None
    forward_ms_spread: tuple[float, float] | None = None
    step: StepFlops | None = None
    unknown_calls: int = 0
    output_shape: str | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class OperatorRow:
    """One operator, all its calls together; `status` is `"counted"` or `"unknown"`."""

    operator: str
    calls: int
    flops: int
    family: str = ""
    status: str = "counted"


@dataclass(frozen=True, slots=True)
class LatencySummary:
    """Medians over the measuring window of `steps` steps; `how` names the clock and the device in words."""

    forward_ms: float | None
    step_ms: float | None = None
    steps: int = 0
    how: str = ""


def share(part: float | None, whole: float | None) -> float | None:
    """`part / whole`, exact for integers of any size before the one division; None where that says nothing."""
    if part is None or whole is None or not whole > 0:
        return None
    return part / whole


def achieved_flops_per_s(hw_flops: int | None, forward_ms: float | None) -> float | None:
    """Hardware FLOPs per second from FLOPs and milliseconds; None where there is no time above 0."""
    if hw_flops is None or forward_ms is None or not forward_ms > 0:
        return None
    return hw_flops / forward_ms * 1e3
