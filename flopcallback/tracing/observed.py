"""Result and observations of a call that was made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flopcallback.tracing.run import ObservedRun

__all__ = ["Observed"]


@dataclass(frozen=True, slots=True)
class Observed:
    """The result of a call, and its observed runs.

    Attributes:
        result: the value that the call returned.
        runs: the observed runs; empty if the call could not be observed.
        failure: the error that kept us from observing it, or from observing it by the tracer.
        unseen: why calls of modules in it could not be observed, by module name.
    """

    result: Any
    runs: tuple[ObservedRun, ...] = ()
    failure: Exception | None = None
    unseen: Mapping[str, str] = field(default_factory=dict)
