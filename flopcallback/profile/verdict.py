"""The result of comparing the two counting engines, as plain data."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Difference", "EngineDifference", "Verdict"]


@dataclass(frozen=True, slots=True)
class Difference:
    """A family of operators in a module, counted differently by the engines.

    Attributes:
        module: canonical name, `""` for the model. Modules inside it are counted with it.
        family: `"convolution"`, `"matmul"`, `"attention"`, `"recurrent"`, `"linear algebra"`, `"custom"` or
            `"spectral"`.
        trace: FLOPs counted by the tracer.
        dispatch: FLOPs counted by the dispatcher.
    """

    module: str
    family: str
    trace: int
    dispatch: int

    def __str__(self) -> str:
        return f"{self.module or '(model)'}, {self.family}: {self.trace:,} traced, {self.dispatch:,} dispatched"


EngineDifference = Difference
"""The same class under the name that `flopcallback.reporting` exports."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of counting one call with both engines.

    They agree if there are no differences and no reason.

    Attributes:
        differences: in FLOPs, outermost modules first.
        reason: why only one of the engines could count the call; empty if both could.
    """

    differences: tuple[Difference, ...] = ()
    reason: str = ""
