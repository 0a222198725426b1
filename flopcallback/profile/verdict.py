"""What came of holding both engines against each other, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Difference", "EngineDifference", "Verdict"]


@dataclass(frozen=True, slots=True)
class Difference:
    """A family of operators in a module for which the two engines have different counts.

    Attributes:
        module: canonical name, `""` for the model; what it owns is counted with it.
        family: `"convolution"`, `"matmul"`, `"attention"`, `"recurrent"`, `"custom"` or `"spectral"`.
        trace: hardware FLOPs that the tracer saw.
        dispatch: those that the dispatcher saw.
    """

    module: str
    family: str
    trace: int
    dispatch: int

    def __str__(self) -> str:
        return f"{self.module or '(model)'}, {self.family}: {self.trace:,} traced, {self.dispatch:,} dispatched"


EngineDifference = Difference
"""The name under which `flopcallback.reporting` offers it."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of counting a call with both engines: without differences and without a reason, they agree.

    Attributes:
        differences: in hardware FLOPs, outermost modules first.
        reason: why only one of the engines could count the call; empty where both did.
    """

    differences: tuple[Difference, ...] = ()
    reason: str = ""

    @classmethod
    def of_content(cls, content: Mapping[str, Any]) -> Verdict:
        """The verdict that JSON has as `content`."""
        return cls(tuple(Difference(**each) for each in content["differences"]), content["reason"])
