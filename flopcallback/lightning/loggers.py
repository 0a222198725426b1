"""Trackers and report folders for the loggers of a trainer."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flopcallback.runs.folders import REPORT
from flopcallback.trackers import LocalTracker, NoTrackerError, Tracker, folder_of, new_name, takes_name, tracker_for
from flopcallback.training.failures import Failures
from flopcallback.training.options import Options

__all__ = ["Destinations", "is_dev_run", "report_folder", "trackers_of"]


class Destinations:
    """What the user gave as `to`, next to the trainer's loggers.

    A deep copy of the callback shares them, as runs and writers cannot be copied. A pickle has only names and folders.
    """

    def __init__(self, to: Any) -> None:
        self.targets: list[Any] = list(to) if isinstance(to, list) else [] if to is None else [to]

    def __deepcopy__(self, memo: Any) -> Destinations:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {"targets": [target for target in self.targets if isinstance(target, (str, os.PathLike))]}


def trackers_of(
    trainer: Any,
    options: Options,
    failures: Failures,
    files: dict[Path | str, Tracker],
    to: Destinations,
) -> dict[str, Tracker]:
    """Return a tracker for each logger of the trainer and each destination, by name.

    Loggers without a tracker share a report folder. On ranks other than 0, and in a `fast_dev_run`, which is to write
    nothing, the dict is empty.

    Args:
        trainer: trainer, of either package.
        options: arguments of the user.
        failures: reports loggers and destinations that failed.
        files: report folders of this training, by path, and trackers that made their own folder, by name; a new one is
            added.
        to: further destinations. A name such as `"wandb"` adds nothing if a logger has that tracker already.
    """
    trackers: dict[str, Tracker] = {}
    if not trainer.is_global_zero or is_dev_run(trainer):
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
    for target in to.targets:
        with failures.as_warning(f"{new_name(target, trackers)} gets nothing"):
            if not any(takes_name(type(tracker), target) for tracker in trackers.values()):
                tracker = _tracker_in(files, target, options.prefix)
                trackers[new_name(target, trackers, tracker)] = tracker
    if options.report_dir is not None or not trackers or without:
        folder = report_folder(trainer, options, without)
        trackers[str(folder)] = files.setdefault(folder, LocalTracker(folder))
    return trackers


def is_dev_run(trainer: Any) -> bool:
    """Return whether a run is a `fast_dev_run`: a few batches that leave nothing behind."""
    return bool(trainer.fast_dev_run)


def _tracker_in(files: dict[Path | str, Tracker], target: Any, prefix: str) -> Tracker:
    """Return the tracker of a target, the same in all runs of a training if it writes to a folder of its own."""
    if isinstance(target, str) and target in files:
        return files[target]
    tracker = tracker_for(target, prefix=prefix)
    if isinstance(tracker, LocalTracker):
        return files.setdefault(tracker.folder, tracker)
    if isinstance(target, str) and folder_of(tracker) is not None:
        files[target] = tracker
    return tracker


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
