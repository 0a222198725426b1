"""Observed: a call that was made, and what was seen of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flopcallback.tracing.run import ObservedRun

__all__ = ["Observed"]


@dataclass(frozen=True, slots=True)
class Observed:
    """A call that was made.

    Attributes:
        result: what it returned.
        runs: what was seen of it; empty where nothing could be.
        failure: what kept us from seeing it, or from seeing it by the tracer.
        unseen: modules whose calls in it could not be seen, and why.
    """

    result: Any
    runs: tuple[ObservedRun, ...] = ()
    failure: Exception | None = None
    unseen: Mapping[str, str] = field(default_factory=dict)
