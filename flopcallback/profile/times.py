"""Times of a whole training step, in parts that add up to it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

__all__ = ["IDLE", "KNOWN_BYTES", "LATER_TIMES", "PYTHON", "OperatorTime", "StepTime", "bytes_of"]

KNOWN_BYTES = 0.9
"""Share of the operators' time from which the bytes of those that are known stand for all."""

PYTHON = "Python and launches"
"""`OperatorTime.operator` of the time outside of operators: Python, autograd's own work, and waiting."""

IDLE = "device idle"
"""`OperatorTime.operator` of the time in which the device had nothing to do."""

LATER_TIMES = (
    *("time", "operator_times", "forward_spread", "step_spread", "cpu_share"),
    *("observed_ms", "observed_steps", "parallel_ms"),
)
"""Fields that profiles of older versions lack."""


@dataclass(frozen=True, slots=True)
class StepTime:
    """Milliseconds of a training step by phase, as `StepFlops` has its FLOPs.

    Attributes:
        forward: forward with autograd, and what the step does outside of modules, such as its loss.
        backward: backward.
        recompute: forward work that activation checkpointing repeats.
        optimizer: optimizers' steps.
        without_grad: forward without autograd, as of a teacher.
    """

    forward: float = 0.0
    backward: float = 0.0
    recompute: float = 0.0
    optimizer: float = 0.0
    without_grad: float = 0.0

    @property
    def total(self) -> float:
        """Milliseconds of all phases."""
        return self.forward + self.backward + self.recompute + self.optimizer + self.without_grad

    def __add__(self, other: StepTime) -> StepTime:
        return StepTime(*(getattr(self, phase.name) + getattr(other, phase.name) for phase in fields(self)))

    def __sub__(self, other: StepTime) -> StepTime:
        return StepTime(*(getattr(self, phase.name) - getattr(other, phase.name) for phase in fields(self)))


@dataclass(frozen=True, slots=True)
class OperatorTime:
    """What the calls of one operator take in a training step, in one module and phase.

    All of a profile's add up to its step.

    Attributes:
        path: the innermost module at work; None outside of the model.
        operator: name of the outermost operator, such as `"aten::scaled_dot_product_attention"`; of compiled code the
            name of its function; `PYTHON` or `IDLE` for the rest.
        phase: `"forward"`, `"backward"`, `"recompute"`, `"optimizer"` or `"without_grad"`.
        ms: milliseconds in a step: of the thread that makes it, or of the device where the work is done on one.
        calls: number of calls in a step.
        flops: their FLOPs, 2 per multiply-add.
        bytes: bytes that they read and write; None where that is not known.
    """

    path: str | None
    operator: str
    phase: str
    ms: float
    calls: int = 0
    flops: int = 0
    bytes: int | None = None


def bytes_of(operators: Iterable[OperatorTime]) -> int | None:
    """Return the bytes that operators read and write together; None if unknown.

    Those whose bytes are not known, such as views, are left out. Where they take more than a tenth of the time, the sum
    is unknown.
    """
    work = [each for each in operators if each.operator not in (PYTHON, IDLE)]
    known = [each for each in work if each.bytes is not None]
    if not known or sum(each.ms for each in known) < KNOWN_BYTES * sum(each.ms for each in work):
        return None
    return sum(each.bytes or 0 for each in known)
