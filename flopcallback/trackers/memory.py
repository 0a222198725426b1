"""MemoryTracker: a tracker for tests, notebooks and custom loops."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from flopcallback.reporting import ModelProfile

__all__ = ["MemoryTracker"]


@dataclass
class MemoryTracker:
    """A tracker that keeps pairs of step and content in lists.

    Attributes:
        scalars: numbers in the order of calls.
        profiles: profiles in the order of calls.
        closed: True after `close`.
    """

    scalars: list[tuple[int, dict[str, int | float]]] = field(default_factory=list)
    profiles: list[tuple[int, ModelProfile]] = field(default_factory=list)
    closed: bool = False

    def log_scalars(self, values: Mapping[str, int | float], step: int) -> None:
        """Keep a copy of the numbers."""
        self.scalars.append((step, dict(values)))  # the caller may change its own

    def log_profile(self, profile: ModelProfile, step: int) -> None:
        """Keep the profile."""
        self.profiles.append((step, profile))

    def close(self) -> None:
        """Set `closed`."""
        self.closed = True
