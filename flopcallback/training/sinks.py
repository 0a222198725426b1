"""Where a training shows what it has: all of its trackers, and what is printed. One that fails stops no other."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager

from flopcallback.reporting import ModelProfile, milliseconds, rich_text, si
from flopcallback.trackers import DrawsByCompute, KeepsTraining, LocalTracker, Tracker
from flopcallback.training.failures import Failures

__all__ = ["Sinks"]

FLOPS_PER_STEP = 10**6
"""Of a metric that is drawn by compute: a step is an int64 in trackers, which FLOPs themselves outgrow."""


class Sinks:
    """The trackers of a training; what one of them fails at is reported, and kept in files.

    Args:
        trackers: by a name that says to the user where things go; none on ranks that do not log.
        prefix: stands in front of the names of numbers.
        by_compute: the user's metrics that are to be drawn by compute.
        show: prints a text; None prints nothing.
        fallback: a folder for what a tracker that failed did not take.
        failures: where failures go.
    """

    def __init__(
        self,
        trackers: Mapping[str, Tracker],
        *,
        prefix: str = "",
        by_compute: Sequence[str] = (),
        show: Callable[[str], None] | None = None,
        fallback: str | os.PathLike[str] | None = None,
        failures: Failures,
    ) -> None:
        self._trackers = dict(trackers)
        self._prefix = prefix
        self._show = show
        self._fallback = fallback
        self._failures = failures
        self._logged: set[str] = set()  # numbers of profiles
        self._failed: set[str] = set()  # trackers that get no more numbers of a training
        for name, tracker in self._trackers.items():
            if by_compute and isinstance(tracker, DrawsByCompute):
                with self._failures_of(name):
                    tracker.use_compute_axis(by_compute)

    def log_profile(self, profile: ModelProfile, step: int) -> None:
        """Hands a profile to all, with those of its numbers that are new."""
        scalars = {self._prefix + name: value for name, value in profile.scalars().items()}
        scalars = {name: value for name, value in scalars.items() if name not in self._logged}
        self._logged.update(scalars)
        for name, tracker in list(self._trackers.items()):
            self._give(name, tracker, scalars, profile, step)

    def log_scalars(self, numbers: Mapping[str, int | float], step: int) -> None:
        """Hands numbers of a training to all; one that fails gets no more of them, since each time may take minutes."""
        scalars = {self._prefix + name: value for name, value in numbers.items()}
        for name, tracker in list(self._trackers.items()):
            self._give_scalars(name, tracker, scalars, step)

    @property
    def takes_copies(self) -> bool:
        """Whether any tracker cannot draw by compute itself."""
        return any(not isinstance(tracker, DrawsByCompute) for tracker in self._trackers.values())

    def log_by_compute(self, metrics: Mapping[str, float], hw_flops: int) -> None:
        """Hands copies of the user's metrics to those that cannot draw by compute, at `hw_flops` in millions."""
        copies = {f"{self._prefix}{name}_by_compute": value for name, value in metrics.items()}
        for name, tracker in list(self._trackers.items()):
            if not isinstance(tracker, DrawsByCompute):
                self._give_scalars(name, tracker, copies, hw_flops // FLOPS_PER_STEP)

    def log_training(self, profile: ModelProfile) -> None:
        """Hands on what the training came to, to those that keep it."""
        for name, tracker in self._trackers.items():
            if isinstance(tracker, KeepsTraining) and name not in self._failed:
                with self._failures_of(name):
                    tracker.log_training(profile)

    def show(self, text: str) -> None:
        """Prints a text, where anything is printed."""
        if self._show is not None:
            self._show(text)

    def show_profile(self, profile: ModelProfile, note: str = "") -> None:
        """Prints the profile: a line for those who have a tracker to look at, else the whole table; and a note."""
        if self._show is None:
            return
        is_in_files_alone = all(isinstance(tracker, LocalTracker) for tracker in self._trackers.values())
        line = ", ".join(filter(None, (_line(profile), note)))
        if not self._trackers:
            self._show(line)
            return
        text = "\n".join(filter(None, (_table(profile), note))) + "\n" if is_in_files_alone else line + "; "
        self._show(f"{text}report: {', '.join(self._trackers)}")

    def close(self) -> None:
        """Lets all write what they hold."""
        for name, tracker in self._trackers.items():
            with self._failures_of(name):
                tracker.close()

    def _give_scalars(self, name: str, tracker: Tracker, scalars: Mapping[str, int | float], step: int) -> None:
        if name not in self._failed and not self._give(name, tracker, scalars, None, step):
            self._failed.add(name)

    def _give(
        self,
        name: str,
        tracker: Tracker,
        scalars: Mapping[str, int | float],
        profile: ModelProfile | None,
        step: int,
    ) -> bool:
        """Whether the tracker took it. Otherwise it is kept in files, unless there is one that gets it anyway."""
        with self._failures_of(name):
            try:
                _log(tracker, scalars, profile, step)
            except Exception:
                if self._fallback is not None and not self._has_files:
                    folder = LocalTracker(self._fallback)
                    self._trackers[str(folder.folder)] = folder
                    _log(folder, scalars, profile, step)
                raise
            return True
        return False

    @property
    def _has_files(self) -> bool:
        return any(isinstance(tracker, LocalTracker) for tracker in self._trackers.values())

    def _failures_of(self, name: str) -> AbstractContextManager[None]:
        return self._failures.as_warning(f"the tracker {name} failed")


def _log(tracker: Tracker, scalars: Mapping[str, int | float], profile: ModelProfile | None, step: int) -> None:
    if scalars:
        tracker.log_scalars(scalars, step)
    if profile is not None:
        tracker.log_profile(profile, step)


def _line(profile: ModelProfile) -> str:
    """The profile in a line, for those who have a tracker to look at."""
    bound = ">= " if profile.is_lower_bound else ""
    fma = profile.config["flops.fma"]
    parts = [f"{profile.phase_prefix}forward {bound}{si(profile.forward_flops, 'FLOPs')} ({fma} per multiply-add)"]
    if profile.forward_ms is not None:
        parts.append(f"{milliseconds(profile.forward_ms)} ms")
    if profile.step is not None:
        parts.append(f"train step {si(profile.step.total, 'FLOPs')} (hardware)")
    elif profile.step_note:
        parts.append(f"train step {profile.step_note}")
    if profile.latency is not None and profile.latency.step_ms is not None:
        parts.append(f"step {milliseconds(profile.latency.step_ms)} ms")
    if profile.phase == "train" and profile.peak_flops_per_s is None:
        parts.append("no MFU: peak not known (peak_flops=)")
    parts.append(f"unknown: {', '.join(profile.unknown)}" if profile.unknown else "nothing unknown")
    return f"flopcallback: {', '.join(parts)}"


def _table(profile: ModelProfile) -> str:
    """The whole tree, for those who have none."""
    return rich_text(profile, width=shutil.get_terminal_size((120, 24)).columns)
