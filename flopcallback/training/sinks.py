"""Sinks: the trackers and the console that a training logs to."""

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
"""Unit of the step of a metric that is plotted against compute: FLOPs themselves outgrow the int64 step of trackers."""


class Sinks:
    """Trackers of a training, each independent of failures of the others.

    Args:
        trackers: trackers by a name that tells the user where they log to; empty on ranks that do not log.
        prefix: prefix of the names of all numbers.
        by_compute: names of the user's metrics to plot against compute.
        show: prints a text; None prints nothing.
        fallback: folder for profiles and numbers that a tracker failed to log; None drops them.
        failures: reports failures.
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
        self._trackers = dict(trackers)  # by name; the fallback folder is added on the first failure
        self._prefix = prefix
        self._show = show
        self._fallback = fallback
        self._failures = failures
        self._logged_scalars: set[str] = set()  # names of the profiles' numbers, each of which is logged once
        self._failed_trackers: set[str] = set()  # names of trackers that get no more numbers of the training
        for name, tracker in self._trackers.items():
            if by_compute and isinstance(tracker, DrawsByCompute):
                with self._as_warning(name):
                    tracker.use_compute_axis(by_compute)

    def log_profile(self, profile: ModelProfile, step: int) -> None:
        """Log a profile and its new numbers to all trackers."""
        scalars = {self._prefix + name: value for name, value in profile.scalars().items()}
        scalars = {name: value for name, value in scalars.items() if name not in self._logged_scalars}
        self._logged_scalars.update(scalars)
        for name, tracker in list(self._trackers.items()):  # a copy: `_log_to` may add the fallback folder
            self._log_to(name, tracker, scalars, profile, step)

    def log_scalars(self, numbers: Mapping[str, int | float], step: int) -> None:
        """Log numbers of a training to all trackers.

        A tracker that fails gets no more of them: each attempt may take minutes.
        """
        scalars = {self._prefix + name: value for name, value in numbers.items()}
        for name, tracker in list(self._trackers.items()):
            self._log_scalars_to(name, tracker, scalars, step)

    @property
    def takes_copies(self) -> bool:
        """True if any tracker cannot plot against compute itself."""
        return any(not isinstance(tracker, DrawsByCompute) for tracker in self._trackers.values())

    def log_by_compute(self, metrics: Mapping[str, float], hw_flops: int) -> None:
        """Log copies of metrics to trackers that cannot plot against compute.

        Args:
            metrics: values by name.
            hw_flops: compute so far; the step of the copies is this in millions.
        """
        copies = {f"{self._prefix}{name}_by_compute": value for name, value in metrics.items()}
        for name, tracker in list(self._trackers.items()):
            if not isinstance(tracker, DrawsByCompute):
                self._log_scalars_to(name, tracker, copies, hw_flops // FLOPS_PER_STEP)

    def log_training(self, profile: ModelProfile) -> None:
        """Log the final numbers of a training to trackers that keep them."""
        for name, tracker in self._trackers.items():
            if isinstance(tracker, KeepsTraining) and name not in self._failed_trackers:
                with self._as_warning(name):
                    tracker.log_training(profile)

    def show(self, text: str) -> None:
        """Print a text, unless nothing is to be printed."""
        if self._show is not None:
            self._show(text)

    def show_profile(self, profile: ModelProfile, note: str = "") -> None:
        """Print a profile and a note.

        The profile is a line if a tracker shows it, else the whole table.
        """
        if self._show is None:
            return
        is_in_files_only = all(isinstance(tracker, LocalTracker) for tracker in self._trackers.values())
        line = ", ".join(filter(None, (_line(profile), note)))
        if not self._trackers:
            self._show(line)
            return
        text = "\n".join(filter(None, (_table(profile), note))) + "\n" if is_in_files_only else line + "; "
        self._show(f"{text}report: {', '.join(self._trackers)}")

    def close(self) -> None:
        """Close all trackers, which then write what they have buffered."""
        for name, tracker in self._trackers.items():
            with self._as_warning(name):
                tracker.close()

    def _log_scalars_to(self, name: str, tracker: Tracker, scalars: Mapping[str, int | float], step: int) -> None:
        if name not in self._failed_trackers and not self._log_to(name, tracker, scalars, None, step):
            self._failed_trackers.add(name)

    def _log_to(
        self,
        name: str,
        tracker: Tracker,
        scalars: Mapping[str, int | float],
        profile: ModelProfile | None,
        step: int,
    ) -> bool:
        """Log to one tracker; return whether that succeeded.

        On a failure, the fallback folder becomes another tracker, unless there is a folder already.
        """
        with self._as_warning(name):
            try:
                _write(tracker, scalars, profile, step)
            except Exception:
                if self._fallback is not None and not self._has_files:
                    folder = LocalTracker(self._fallback)
                    self._trackers[str(folder.folder)] = folder
                    _write(folder, scalars, profile, step)
                raise  # to be reported as a warning
            return True
        return False

    @property
    def _has_files(self) -> bool:
        return any(isinstance(tracker, LocalTracker) for tracker in self._trackers.values())

    def _as_warning(self, name: str) -> AbstractContextManager[None]:
        return self._failures.as_warning(f"the tracker {name} failed")


def _write(tracker: Tracker, scalars: Mapping[str, int | float], profile: ModelProfile | None, step: int) -> None:
    if scalars:
        tracker.log_scalars(scalars, step)
    if profile is not None:
        tracker.log_profile(profile, step)


def _line(profile: ModelProfile) -> str:
    """Return the profile as one line of text."""
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
    """Return the profile as a table as wide as the terminal."""
    return rich_text(profile, width=shutil.get_terminal_size((120, 24)).columns)
