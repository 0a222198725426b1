"""Where a trainer's loggers lead: a tracker for each that has one, files where one has none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flopcallback.runs.folders import REPORT
from flopcallback.trackers import LocalTracker, NoTrackerError, Tracker, folder_of, new_name, tracker_for
from flopcallback.training.failures import Failures
from flopcallback.training.options import Options

__all__ = ["report_folder", "trackers_of"]


def trackers_of(
    trainer: Any, options: Options, failures: Failures, files: dict[Path, LocalTracker]
) -> dict[str, Tracker]:
    """A tracker for each of the trainer's loggers that has one; files, where one has none. None on other ranks.

    Args:
        trainer: of either flavour.
        options: their prefix and report folder.
        failures: where loggers go that could not be used.
        files: those that this training has begun, by folder; a new one is added.
    """
    trackers: dict[str, Tracker] = {}
    if not trainer.is_global_zero:
        return trackers
    without = []  # loggers that can show nothing
    for logger in trainer.loggers:
        name = new_name(logger, trackers)
        try:
            trackers[name] = tracker_for(logger, prefix=options.prefix)
        except NoTrackerError:
            without.append(logger)
        except Exception as error:  # noqa: BLE001 - the other loggers get theirs
            without.append(logger)
            failures.report(f"the logger {name} gets nothing", error)
    if options.report_dir is not None or not trackers or without:
        folder = report_folder(trainer, options, without)
        trackers[str(folder)] = files.setdefault(folder, LocalTracker(folder))
    return trackers


def report_folder(trainer: Any, options: Options, first: Sequence[Any] = ()) -> Path:
    """Where files go: beside what a logger writes, by preference one of those that stand `first`."""
    if options.report_dir is not None:
        return Path(options.report_dir)
    folders = [folder for logger in [*first, *trainer.loggers] if (folder := folder_of(logger)) is not None]
    return Path((folders or [trainer.default_root_dir])[0]) / REPORT
