"""MemoryTracker: for tests, notebooks and loops of one's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from flopcallback.reporting import ModelProfile

__all__ = ["MemoryTracker"]


@dataclass
class MemoryTracker:
    """Keeps what it is given, in order, as pairs of step and content: for tests, notebooks and loops of one's own."""

    scalars: list[tuple[int, dict[str, int | float]]] = field(default_factory=list)
    profiles: list[tuple[int, ModelProfile]] = field(default_factory=list)
    closed: bool = False

    def log_scalars(self, values: Mapping[str, int | float], step: int) -> None:
        """Keeps a copy of the numbers."""
        self.scalars.append((step, dict(values)))

    def log_profile(self, profile: ModelProfile, step: int) -> None:
        """Keeps the profile."""
        self.profiles.append((step, profile))

    def close(self) -> None:
        """Notes that it was called."""
        self.closed = True
