"""Sinks: the trackers and the console that a training logs to."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

from flopcallback.reporting import ModelProfile, counts_line, profile_line, rich_text
from flopcallback.trackers import DrawsByCompute, HasPage, LocalTracker, TooSlowError, Tracker
from flopcallback.training.failures import Failures
from flopcallback.training.outlet import Entry, Outlet, described

__all__ = ["Sinks"]

FLOPS_PER_STEP = 10**6
"""Unit of the step of a metric that is plotted against compute: FLOPs themselves outgrow the int64 step of trackers."""

END_S = 10.0
"""Seconds that the end of a training waits for what is being sent, for all trackers together.

The end of the process waits as long for all trainings together that were not closed.
"""

# Fallback folders of this process, each of one training.
_taken: set[Path] = set()


class Sinks:
    """Trackers of a training, each independent of failures of the others.

    A tracker that fails is reported once, and not asked again; what it did not get is written to the fallback folder.

    Args:
        trackers: trackers by a name that tells the user where they log to; empty on ranks that do not log.
        prefix: prefix of the names of all numbers.
        by_compute: names of the user's metrics to plot against compute.
        show: prints a text; None prints nothing.
        fallback: folder for what a tracker failed to log; None drops it. If another training of this process has it
            already, its name gets a number.
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
        self._prefix = prefix
        self._show = show
        self._fallback = fallback
        self._failures = failures
        self._logged_scalars: set[str] = set()  # names of the profiles' numbers, each of which is logged once
        self._last_profile_step = 0  # step of the last profile, for its final copy
        # The fallback folder is added on the first failure.
        self._outlets = [Outlet(name, tracker, self._at_exit) for name, tracker in trackers.items()]
        for outlet in self._outlets:
            if by_compute and isinstance(outlet.tracker, DrawsByCompute):
                with failures.as_warning(f"the tracker {outlet.name} failed"):
                    outlet.tracker.use_compute_axis(by_compute)

    def log_profile(self, profile: ModelProfile, step: int) -> None:
        """Log a profile and its new numbers to all trackers."""
        scalars = {self._prefix + name: value for name, value in profile.scalars().items()}
        scalars = {name: value for name, value in scalars.items() if name not in self._logged_scalars}
        self._logged_scalars.update(scalars)
        self._last_profile_step = step
        self._log(Entry(step, scalars, profile))

    def log_scalars(self, numbers: Mapping[str, int | float], step: int) -> None:
        """Log numbers of a training to all trackers."""
        self._log(Entry(step, {self._prefix + name: value for name, value in numbers.items()}))

    @property
    def takes_copies(self) -> bool:
        """True if any tracker cannot plot against compute itself."""
        return any(not isinstance(outlet.tracker, DrawsByCompute) for outlet in self._outlets)

    def log_by_compute(self, metrics: Mapping[str, float], flops: int) -> None:
        """Log copies of metrics to trackers that cannot plot against compute.

        Args:
            metrics: values by name.
            flops: compute so far; the step of the copies is this in millions.
        """
        copies = {f"{self._prefix}{name}_by_compute": value for name, value in metrics.items()}
        outlets = [outlet for outlet in self._outlets if not isinstance(outlet.tracker, DrawsByCompute)]
        self._log(Entry(flops // FLOPS_PER_STEP, copies), outlets)

    def log_training(self, profile: ModelProfile) -> None:
        """Log the final numbers of a training to trackers that keep them."""
        self._log(Entry(self._last_profile_step, profile=profile, is_final=True))

    def show(self, text: str) -> None:
        """Print a text, unless nothing is to be printed."""
        if self._show is not None:
            self._show(text)

    def show_counts(self, profile: ModelProfile) -> None:
        """Print the counts of a profile whose steps are about to be timed, and where the report will be."""
        if self._show is not None:
            self._show(counts_line(profile) + self._places(profile))

    def show_profile(self, profile: ModelProfile, note: str = "") -> None:
        """Print a profile and a note.

        The profile is a line if a tracker shows it, else the whole table.
        """
        if self._show is None:
            return
        line = ", ".join(filter(None, (profile_line(profile), note)))
        if self._outlets and all(outlet.is_folder for outlet in self._outlets):
            line = "\n".join(filter(None, (_table(profile), note, line)))
        self._show(line + self._places(profile))

    def _places(self, profile: ModelProfile) -> str:
        """Return where the report of a profile is, in words; an empty string without any tracker."""
        places = [self._place(outlet, profile) for outlet in self._outlets]
        return f"; report: {', '.join(places)}" if places else ""

    def _place(self, outlet: Outlet, profile: ModelProfile) -> str:
        with self._failures.as_warning(f"the tracker {outlet.name} does not say where its report is"):
            if isinstance(outlet.tracker, HasPage) and (page := outlet.tracker.page_of(profile)):
                return _near(page)
        return outlet.name

    def close(self) -> None:
        """Close all trackers, which then write what they have buffered.

        What is being sent over a network is waited for, but no longer than `END_S`.

        Raises:
            Exception: the first failure, if failures are raised; all trackers are closed nevertheless.
        """
        with self._failures.raised_last():
            for outlet in list(self._outlets):
                try:
                    outlet.close()
                except TooSlowError:
                    pass  # what waits is told below
                except Exception as error:  # noqa: BLE001 - the promise: no failure of ours ends training
                    self._failed(outlet, error)
            self._finish(time.monotonic() + END_S)

    def _at_exit(self) -> None:
        """Do what nobody did by `close`, at the end of the process."""
        self._failures.only_warn()
        self._finish(_end_of_process())

    def _finish(self, end: float) -> None:
        """Wait for what is being sent, and keep what was not.

        Args:
            end: longest time to wait until, of `time.monotonic`.
        """
        try:
            for outlet in list(self._outlets):
                self._wait(outlet, end, f"it was not sent within {END_S:.3g} s")
        except BaseException:  # Ctrl-C
            for outlet in list(self._outlets):
                self._wait(outlet, 0.0, "it was not sent when the wait was interrupted")
            raise

    def _wait(self, outlet: Outlet, end: float, late: str) -> None:
        if not outlet.is_over:
            try:
                outlet.wait(max(0.0, end - time.monotonic()), late)
            except Exception as error:  # noqa: BLE001 - the promise: no failure of ours ends training
                self._failed(outlet, error)

    def _log(self, entry: Entry, outlets: Iterable[Outlet] | None = None) -> None:
        with self._failures.raised_last():
            for outlet in list(self._outlets if outlets is None else outlets):  # a copy: `_failed` may add a folder
                if not outlet.is_over:
                    try:
                        outlet.write(entry)
                    except Exception as error:  # noqa: BLE001 - the promise: no failure of ours ends training
                        self._failed(outlet, error, entry)

    def _failed(self, outlet: Outlet, error: Exception, entry: Entry | None = None) -> None:
        """Report a failure of a tracker, and keep what it did not get.

        The tracker is not asked again, unless it has got everything that it can show, or is only slow.
        """
        unsent = [] if entry is None else [entry]
        what, note, loss = f"the tracker {outlet.name} failed", "", ""
        if isinstance(error, TooSlowError):
            what = f"the tracker {outlet.name} is slow"
        elif not isinstance(error, ImportError):
            outlet.is_over = True
            unsent = list(dict.fromkeys([*outlet.take(), *unsent]))  # it may be among those that were taken
            if outlet.is_sending and unsent:
                loss = f"Not sent: {described(unsent)}."
            else:
                note = "It is not asked again."
        with self._failures.raised_last():
            if folder := self._keep(unsent):
                kept = f"What it did not get is in {folder}."
                loss, note = (f"{loss} {kept}", note) if loss else ("", f"{note} {kept}".lstrip())
            self._failures.report(what, error, note, loss=loss)

    def _keep(self, entries: Sequence[Entry]) -> str:
        """Write entries to the report folder; return its name, or nothing without one."""
        if not entries:
            return ""
        folder = next((outlet for outlet in self._outlets if outlet.is_folder), None)
        if folder is None and self._fallback is not None:
            tracker = LocalTracker(_free(self._fallback))
            folder = Outlet(str(tracker.folder), tracker, self._at_exit)
            self._outlets.append(folder)
        if folder is None or folder.is_over:
            return ""
        try:
            folder.keep(entries)
        except Exception as error:  # noqa: BLE001 - the promise: no failure of ours ends training
            folder.is_over = True
            self._failures.report(f"the tracker {folder.name} failed", error, "It is not asked again.")
            return ""
        return folder.name


@cache
def _end_of_process() -> float:
    """Return the time until which the end of the process waits."""
    return time.monotonic() + END_S


def _free(fallback: str | os.PathLike[str]) -> Path:
    """Take a fallback folder that no other training here has."""
    first = Path(fallback).expanduser()
    names = (first, *(first.with_name(f"{first.name}-{number}") for number in range(2, len(_taken) + 2)))
    free = next(name for name in names if name.resolve() not in _taken or not name.exists())
    _taken.add(free.resolve())
    return free


def _near(page: str) -> str:
    """Return a path as it is from the working directory, if it is inside; anything else as it is."""
    path, here = Path(page), Path.cwd()
    return str(path.relative_to(here)) if path.is_absolute() and path.is_relative_to(here) else page


def _table(profile: ModelProfile) -> str:
    """Return the profile as a table as wide as the terminal."""
    return rich_text(profile, width=shutil.get_terminal_size((120, 24)).columns)
