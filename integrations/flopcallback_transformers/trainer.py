"""What a Trainer calls, and what it reports to."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from flopcallback.runs.folders import REPORT
from flopcallback.trackers import LocalTracker, NoTrackerError, Tracker, new_name, tracker_for
from flopcallback.training.failures import Failures
from flopcallback.training.options import Options

__all__ = ["Reporter", "is_first_of_its_kind", "modules_beside", "report_folder", "trackers_of", "trainer_around"]

MOST_FRAMES = 12
"""Frames between an event of a callback and the Trainer's own; subclasses add some."""


def trainer_around() -> Any:
    """Return the Trainer that calls this callback, or None if there is none.

    It hands its callbacks the model, but not what it wraps it in and calls, nor the other callbacks.
    """
    from transformers import Trainer

    frame = sys._getframe(1)
    for _ in range(MOST_FRAMES):
        owner = frame.f_locals.get("self")
        if isinstance(owner, Trainer):
            return owner
        if frame.f_back is None:
            break
        frame = frame.f_back
    return None


def is_first_of_its_kind(trainer: Any, callback: Any) -> bool:
    """Return whether no callback of the same class comes before this one in a Trainer's list."""
    callbacks = [] if trainer is None else trainer.callback_handler.callbacks
    return next((each for each in callbacks if isinstance(each, type(callback))), callback) is callback


def modules_beside(trainer: Any, model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules of a Trainer that are no part of its model, by name, such as a teacher or a reference."""
    own, found = set(map(id, model.modules())), dict[str, nn.Module]()
    children = dict(model.named_children())
    for attribute, value in ({} if trainer is None else vars(trainer)).items():
        name = f"trainer_{attribute}" if attribute in children else attribute
        for number, module in enumerate(value if isinstance(value, list) else [value]):
            # Losses without parameters are part of every step as it is.
            if not isinstance(module, nn.Module) or next(module.parameters(), None) is None:
                continue
            if own.isdisjoint(map(id, module.modules())):
                found[name if module is value else f"{name}[{number}]"] = module
                own.update(map(id, module.modules()))
    return found


class Reporter:
    """A tracker that writes numbers through a callback of `report_to`, such as Comet's.

    Args:
        callback: the callback.
        event: what an event is handed: the arguments of the training, its state, its control and more by name.
    """

    def __init__(self, callback: Any, args: Any, state: Any, control: Any, **event: Any) -> None:
        self._callback = callback
        self._given = args, state, control
        self._event = event

    def log_scalars(self, values: Mapping[str, int | float], step: int) -> None:
        """Have the callback log numbers; it takes the step from the training's state."""
        self._callback.on_log(*self._given, logs=dict(values), **self._event)

    def log_profile(self, profile: Any, step: int) -> None:
        """Write nothing: a callback takes numbers alone."""

    def close(self) -> None:
        """Leave the callback to the Trainer."""


def trackers_of(
    to: Any, options: Options, failures: Failures, args: Any, state: Any, control: Any, **event: Any
) -> dict[str, Tracker]:
    """Return a tracker for each target and each callback of `report_to`, by name.

    Where nothing takes a profile, there is a report folder, too.

    Args:
        to: further targets of the user.
        options: arguments of the user.
        failures: reports targets that failed.
        args: arguments of the training.
        state: state of the training.
        control: control of the training.
        event: what else an event is handed; `trainer` is the Trainer, or None.
    """
    trainer = event.pop("trainer")
    targets = list(to) if isinstance(to, list) else [] if to is None else [to]
    targets += [_target_of(callback) or callback for callback in _reporters_of(trainer)]
    trackers: dict[str, Tracker] = {}
    for target in targets:
        name = new_name(target, trackers)
        try:
            trackers[name] = tracker_for(target, prefix=options.prefix)
        except NoTrackerError as error:
            if not hasattr(target, "on_log"):
                failures.report(f"{name} gets nothing", error)
            else:
                trackers[name] = Reporter(target, args, state, control, **event)
        except Exception as error:  # noqa: BLE001 - other targets still get their trackers
            failures.report(f"{name} gets nothing", error)
    if options.report_dir is not None or all(isinstance(tracker, Reporter) for tracker in trackers.values()):
        folder = report_folder(options, args)
        trackers[str(folder)] = LocalTracker(folder)
    return trackers


def report_folder(options: Options, args: Any) -> Path:
    """Return the folder for report files.

    Args:
        options: arguments of the user; `report_dir` takes precedence.
        args: arguments of the training.
    """
    return Path(options.report_dir or Path(args.output_dir or ".") / REPORT)


def _reporters_of(trainer: Any) -> list[Any]:
    """Return the callbacks of a Trainer that log numbers somewhere."""
    from transformers import TrainerCallback
    from transformers.integrations import INTEGRATION_TO_CALLBACK

    kinds = tuple(INTEGRATION_TO_CALLBACK.values())
    callbacks = [] if trainer is None else trainer.callback_handler.callbacks
    return [each for each in callbacks if isinstance(each, kinds) and type(each).on_log is not TrainerCallback.on_log]


def _target_of(callback: Any) -> Any:
    """Return the target of a tracker in place of a callback; None if no tracker takes what it logs to."""
    from transformers.integrations import MLflowCallback, TensorBoardCallback, WandbCallback

    if isinstance(callback, TensorBoardCallback):
        return callback.tb_writer
    if isinstance(callback, WandbCallback):
        return "wandb"
    return "mlflow" if isinstance(callback, MLflowCallback) else None
