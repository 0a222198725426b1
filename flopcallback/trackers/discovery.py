"""Finds the tracker for an object, by entry point."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TypeGuard

from flopcallback.trackers.local import LocalTracker
from flopcallback.trackers.protocol import Tracker

__all__ = ["GROUP", "NoTrackerError", "described", "folder_of", "new_name", "tracker_for"]

GROUP = "flopcallback.trackers"
"""The entry-point group. An entry is named after the package of the objects that it takes (`wandb`,
`torch.utils.tensorboard`) and loads to a callable: `factory(target, prefix=...) -> Tracker`."""


class NoTrackerError(TypeError):
    """No tracker takes this object."""


def tracker_for(target: object, *, prefix: str = "") -> Tracker:
    """The tracker that writes to `target`.

    Args:
        target: a `Tracker`, which is given back as it is; a folder, as a `Path` or a string with a separator in it
            (`"./runs"`); or what a tracker's package makes (a W&B run, a `SummaryWriter`, ...), a Lightning logger
            around it, the name of that package, or a pair of a client of that package's and the name of a run
            (`(MlflowClient(), run_id)`).
        prefix: stands in front of the names that the tracker itself chooses, those of tables and figures.

    Raises:
        NoTrackerError: nothing takes such an object.
        ImportError: something does, but a package that it needs is not installed.
    """
    if _is_tracker(target):
        return target
    entries = {entry.name: entry for entry in entry_points(group=GROUP)}
    decides = target[0] if _is_pair(target) else target
    entry = entries.get(decides) if isinstance(decides, str) else _entry_for(decides, entries)
    if entry is not None:
        tracker: Tracker = entry.load()(target, prefix=prefix)
        return tracker
    if isinstance(target, os.PathLike) or (isinstance(target, str) and not _is_bare_word(target)):
        return LocalTracker(target)
    known = ", ".join(sorted(entries)) or "none"
    kind = type(target)
    raise NoTrackerError(
        f"tracker_for: no tracker takes a {kind.__module__}.{kind.__qualname__} ({target!r:.80}). Known are objects of "
        f"these packages: {known}. Or give a folder (a Path, or a string such as './runs'), or an object with "
        "log_scalars(values, step), log_profile(profile, step) and close()."
    )


def described(target: object) -> str:
    """What a target of `tracker_for` is called in messages: its kind, and where it writes to."""
    if isinstance(target, (str, os.PathLike)):
        return str(target)
    if _is_pair(target):
        return f"{type(target[0]).__name__} ({target[1]})"
    where = folder_of(target) or getattr(target, "name", None)
    kind = type(target).__name__
    return f"{kind} ({where})" if isinstance(where, (str, os.PathLike)) and str(where) else kind


def new_name(target: object, taken: Collection[str]) -> str:
    """What a target is called, with a number behind where another one is called the same."""
    name = described(target)
    return name if name not in taken else f"{name} #{len(taken) + 1}"


def folder_of(target: object) -> str | os.PathLike[str] | None:
    """The folder that a writer, a run or a logger writes to; None where it says none.

    Not Lightning's `trainer.log_dir`, which all ranks would have to ask for together.
    """
    places = (getattr(target, name, None) for name in ("log_dir", "logdir", "save_dir", "dir"))
    return next((place for place in places if place and isinstance(place, (str, os.PathLike))), None)


def _is_pair(target: object) -> TypeGuard[tuple[object, str]]:
    return isinstance(target, tuple) and len(target) == 2 and isinstance(target[1], str)


def _is_bare_word(text: str) -> bool:
    """Meant as a name: a misspelt one would be made a folder, which Python then imports as an empty package."""
    return Path(text).name == text


def _is_tracker(target: object) -> TypeGuard[Tracker]:
    """By its class: Lightning's `DummyLogger` answers for any attribute, and `isinstance` asks the object (3.11)."""
    return issubclass(type(target), Tracker)


def _entry_for(target: object, entries: Mapping[str, EntryPoint]) -> EntryPoint | None:
    """The entry for the object's type or a base of it; failing that, for the `experiment` of a Lightning logger."""
    found = _by_type(type(target), entries)
    experiment = None if found else getattr(target, "experiment", None)
    return found or _by_type(type(experiment), entries)


def _by_type(kind: type, entries: Mapping[str, EntryPoint]) -> EntryPoint | None:
    """The entry whose name is a package that the nearest base is defined in; the innermost package wins."""
    packages = (package for base in kind.__mro__ for package in _packages(base.__module__))
    return next((entries[package] for package in packages if package in entries), None)


def _packages(module: str) -> Iterator[str]:
    """`a.b.c`, `a.b`, `a`."""
    while module:
        yield module
        module = module.rpartition(".")[0]
