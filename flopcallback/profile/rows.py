"""The rows of a profile (modules, operators, phases, times), and two quotients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Protocol

from flopcallback.profile.times import StepTime

__all__ = [
    "ABOVE_PEAK",
    "CPU_CLOCK",
    "LatencySummary",
    "ModuleRow",
    "OperatorRow",
    "StepFlops",
    "Timed",
    "achieved_flops_per_s",
    "check_tree",
    "share",
]

CPU_CLOCK = "CPU clock"
"""First words of `LatencySummary.how` for times from a CPU's clock. Any other text names a device's events."""

ABOVE_PEAK = "above peak"
"""Note of a row whose FLOP/s exceed what the device can do; it replaces the figure."""


DEEPEST_TREE = 100
"""Levels of modules in a file that is read. PyTorch's own calls reach Python's limit at some 300."""


@dataclass(frozen=True, slots=True)
class StepFlops:
    """FLOPs of a training step by phase, as it ran.

    Attributes:
        forward: forward with autograd.
        backward: backward.
        recompute: forward work that activation checkpointing repeats.
        optimizer: optimizers' steps.
        without_grad: forward without autograd, as of a teacher.
    """

    forward: int = 0
    backward: int = 0
    recompute: int = 0
    optimizer: int = 0
    without_grad: int = 0

    @property
    def total(self) -> int:
        """FLOPs of all phases."""
        return self.forward + self.backward + self.recompute + self.optimizer + self.without_grad

    def __add__(self, other: StepFlops) -> StepFlops:
        return StepFlops(*(getattr(self, phase.name) + getattr(other, phase.name) for phase in fields(self)))

    def __sub__(self, other: StepFlops) -> StepFlops:
        return StepFlops(*(getattr(self, phase.name) - getattr(other, phase.name) for phase in fields(self)))


class Timed(Protocol):
    """Anything with FLOPs and a time, such as a row."""

    @property
    def flops(self) -> int:
        """FLOPs."""

    @property
    def forward_ms(self) -> float | None:
        """Milliseconds of the forward; None if not measured."""


@dataclass(frozen=True, slots=True)
class ModuleRow:
    """One module, including the modules inside it.

    Attributes:
        path: canonical dotted name; the root is `""`.
        parent: path of the module that contains it; None for the root.
        depth: number of modules around it; 0 for the root.
        type: class name.
        calls: number of calls in the counted call.
        params: number of parameters; `params_trainable` is the number of those that require grad.
        flops: FLOPs, 2 per multiply-add; `own_flops` leaves out the modules inside.
        macs: the count of fvcore, 1 per multiply-add, norms and resampling included.
        activations: elements in the outputs of the operators that count as activations.
        bytes: bytes that its operators read and write.
        forward_ms: median milliseconds of its forward over the measured steps. Like every number except `own_flops`, it
            includes the modules inside.
        forward_ms_spread: first and third quartile of the same times.
        step: FLOPs in a whole training step; None until a step was observed.
        unknown_calls: number of operator calls without a formula; above 0, the FLOPs are a lower bound.
        output_shape: text such as `"(32, 10)"`.
        note: remark for readers of the row, such as `"compiled"`.
        time: milliseconds in a whole training step; None until its steps were recorded. What the modules inside have
            and what is its own add up to it.
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
    macs: int = 0
    activations: int = 0
    bytes: int = 0
    forward_ms: float | None = None
    forward_ms_spread: tuple[float, float] | None = None
    step: StepFlops | None = None
    unknown_calls: int = 0
    output_shape: str | None = None
    note: str = ""
    time: StepTime | None = None

    @property
    def flops_per_byte(self) -> float | None:
        """Arithmetic intensity; None where nothing was read or written."""
        return share(self.flops, self.bytes)


@dataclass(frozen=True, slots=True)
class OperatorRow:
    """All calls of one operator.

    Attributes:
        operator: name, as the engine gives it.
        calls: number of calls.
        flops: FLOPs, 2 per multiply-add; None where an older version does not say.
        family: family of the work; empty if unknown.
        status: `"counted"` or `"unknown"`.
        macs: the count of fvcore; None where an older version does not say.
    """

    operator: str
    calls: int
    flops: int | None
    family: str = ""
    status: str = "counted"
    macs: int | None = 0


@dataclass(frozen=True, slots=True)
class LatencySummary:
    """Medians over a measuring window.

    Attributes:
        forward_ms: milliseconds of the model's forward; None if not measured.
        step_ms: milliseconds of a whole step; None if not measured. Both are of steps that nothing stood in.
        steps: number of measured steps.
        how: clock and device in words.
        forward_spread: first and third quartile of the forward's times.
        step_spread: first and third quartile of the steps' times.
        cpu_share: share of the steps' time in which their thread did not wait for a processor, 0 to 1; None if not
            known.
        observed_ms: milliseconds of a step while its operators were recorded, by which the time of the others is
            shared out; None if none was.
        observed_steps: number of such steps.
        parallel_ms: milliseconds of such a step that other threads worked beside it; no part of the step.
    """

    forward_ms: float | None
    step_ms: float | None = None
    steps: int = 0
    how: str = ""
    forward_spread: tuple[float, float] | None = None
    step_spread: tuple[float, float] | None = None
    cpu_share: float | None = None
    observed_ms: float | None = None
    observed_steps: int = 0
    parallel_ms: float = 0.0

    @property
    def noise(self) -> float | None:
        """Half of the quartiles' distance over the median: of steps, or of forwards where only these are timed."""
        whole, spread = (
            (self.forward_ms, self.forward_spread) if self.step_ms is None else (self.step_ms, self.step_spread)
        )
        return None if spread is None else share((spread[1] - spread[0]) / 2, whole)


def share(part: float | None, whole: float | None) -> float | None:
    """Return `part / whole`; None if unknown or `whole` is not positive."""
    if part is None or whole is None or not whole > 0:
        return None
    # Not `float(part) / float(whole)`: Python divides two ints of any size exactly and rounds once.
    return part / whole


def achieved_flops_per_s(flops: int | None, forward_ms: float | None) -> float | None:
    """Return FLOPs per second; None without a time above 0."""
    if flops is None or forward_ms is None or not forward_ms > 0:
        return None
    return flops / forward_ms * 1e3


def check_tree(rows: Sequence[ModuleRow]) -> None:
    """Check that rows are one tree, each parent before its children.

    Raises:
        ValueError: a path is there twice, a parent is missing or comes later, or the tree is too deep to be drawn.
    """
    depths: dict[str, int] = {}
    for index, row in enumerate(rows):
        place = f"modules[{index}]"
        if row.path in depths:
            raise ValueError(f"{place}.path is {row.path!r:.80}, the path of an earlier module")
        if index == 0:
            if row.path or row.parent is not None:
                raise ValueError(f'{place} must be the root, whose path is "" and whose parent is null')
            depths[""] = 0
            continue
        if row.parent not in depths:
            raise ValueError(f"{place}.parent is {row.parent!r:.80}; it must be the path of an earlier module")
        depths[row.path] = depths[row.parent] + 1
        if depths[row.path] > DEEPEST_TREE:
            raise ValueError(f"{place} is more than {DEEPEST_TREE} levels deep")
