"""The methods of a tracker: three required, three optional."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from flopcallback.reporting import ModelProfile

__all__ = ["DrawsByCompute", "HasPage", "KeepsTraining", "Tracker"]


@runtime_checkable
class Tracker(Protocol):
    """A destination of numbers and profiles.

    Whoever made the target of a tracker closes the target.
    """

    def log_scalars(self, values: Mapping[str, int | float], step: int) -> None:
        """Write numbers at a step.

        The names are final: they include prefix and phase.
        """

    def log_profile(self, profile: ModelProfile, step: int) -> None:
        """Write tables, figures and files of a profile.

        It is called again for the same profile when times have been measured.
        """

    def close(self) -> None:
        """Write everything that is pending; leave open what the caller owns."""


@runtime_checkable
class KeepsTraining(Protocol):
    """A tracker that also keeps the exact totals of a training.

    Other trackers have the numbers that were logged during the training.
    """

    def log_training(self, profile: ModelProfile) -> None:
        """Write `profile.training` of a profile that was logged before.

        It is called once, when the training is over.
        """


@runtime_checkable
class HasPage(Protocol):
    """A tracker that knows where a person finds the report.

    Others are named by what they write to.
    """

    def page_of(self, profile: ModelProfile) -> str | None:
        """Return the path or address of a profile's page, without asking any server; None if there is none."""


@runtime_checkable
class DrawsByCompute(Protocol):
    """A tracker that can plot the user's own metrics against compute.

    Other trackers are given copies of these metrics with compute as their step.
    """

    def use_compute_axis(self, names: Sequence[str]) -> None:
        """Make compute so far the x-axis of these metrics.

        It is called once, before any number is logged.
        """
