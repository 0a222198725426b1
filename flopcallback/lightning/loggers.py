"""Trackers and report folders for the loggers of a trainer."""

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
    """Return a tracker for each logger of the trainer, by name.

    Loggers without a tracker share a report folder. On ranks other than 0 the dict is empty.

    Args:
        trainer: trainer, of either package.
        options: arguments of the user.
        failures: reports loggers that failed.
        files: report folders of this training, by path; a new one is added.
    """
    trackers: dict[str, Tracker] = {}
    if not trainer.is_global_zero:
        return trackers
    without = []  # loggers without a tracker
    for logger in trainer.loggers:
        name = new_name(logger, trackers)
        try:
            trackers[name] = tracker_for(logger, prefix=options.prefix)
        except NoTrackerError:
            without.append(logger)
        except Exception as error:  # noqa: BLE001 - other loggers still get their trackers
            without.append(logger)
            failures.report(f"the logger {name} gets nothing", error)
    if options.report_dir is not None or not trackers or without:
        folder = report_folder(trainer, options, without)
        trackers[str(folder)] = files.setdefault(folder, LocalTracker(folder))
    return trackers


def report_folder(trainer: Any, options: Options, first: Sequence[Any] = ()) -> Path:
    """Return the folder for report files, if possible a logger's.

    Args:
        trainer: trainer, of either package.
        options: arguments of the user; `report_dir` takes precedence.
        first: loggers to look at before all others.
    """
    if options.report_dir is not None:
        return Path(options.report_dir)
    folders = [folder for logger in [*first, *trainer.loggers] if (folder := folder_of(logger)) is not None]
    return Path((folders or [trainer.default_root_dir])[0]) / REPORT
