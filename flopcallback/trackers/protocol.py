"""What a tracker is: three methods, and two that are optional."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from flopcallback.reporting import ModelProfile

__all__ = ["DrawsByCompute", "KeepsTraining", "Tracker"]


@runtime_checkable
class Tracker(Protocol):
    """What takes numbers and profiles to where the user looks at them. Whoever made the target closes the target."""

    def log_scalars(self, values: Mapping[str, int | float], step: int) -> None:
        """Writes numbers at a step. The names are final: prefix and phase are in them already."""

    def log_profile(self, profile: ModelProfile, step: int) -> None:
        """Writes tables, figures and files of a profile; called again for it once times have been measured."""

    def close(self) -> None:
        """Makes sure that all is written; what the caller owns stays open."""


@runtime_checkable
class KeepsTraining(Protocol):
    """A tracker that also keeps what a training came to, exactly; others have what was logged on the way."""

    def log_training(self, profile: ModelProfile) -> None:
        """Writes `profile.training`, of a profile that was logged before; called once, when the training is over."""


@runtime_checkable
class DrawsByCompute(Protocol):
    """A tracker that can draw the user's own metrics by compute; others are given copies, whose step is compute."""

    def use_compute_axis(self, names: Sequence[str]) -> None:
        """Makes compute so far the x-axis of metrics of these names; called once, before any number is logged."""
