"""The search for the tracker of an object, by entry point."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TypeGuard

from flopcallback.trackers.local import LocalTracker
from flopcallback.trackers.protocol import Tracker

__all__ = ["GROUP", "NoTrackerError", "described", "folder_of", "new_name", "takes_name", "tracker_for"]

GROUP = "flopcallback.trackers"
"""The entry-point group of trackers.

An entry has the name of the package of the objects that it takes (`wandb`, `torch.utils.tensorboard`), and loads to a
callable: `factory(target, prefix=...) -> Tracker`.
"""


class NoTrackerError(TypeError):
    """Error for an object that no tracker takes."""


def tracker_for(target: object, *, prefix: str = "") -> Tracker:
    """Return the tracker that writes to `target`.

    Args:
        target: a `Tracker`, which is returned as it is; a folder, as a `Path` or a string with a separator
            (`"./runs"`); an object of a tracker's package (a W&B run, a `SummaryWriter`, ...), a Lightning logger
            around one, the name of such a package, or a pair of a client and the name of a run (`(MlflowClient(),
            run_id)`).
        prefix: prefix of the names that the tracker chooses itself, those of tables and figures.

    Raises:
        NoTrackerError: no tracker takes such an object.
        ImportError: a tracker takes it, but a package that it needs is not installed.
    """
    if _is_tracker(target):
        return target
    entries = {entry.name: entry for entry in entry_points(group=GROUP)}
    key = target[0] if _is_pair(target) else target
    entry = entries.get(key) if isinstance(key, str) else _entry_for(key, entries)
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


def takes_name(kind: type, name: object) -> bool:
    """Return whether `name` is a name such as `"wandb"` that trackers of this type are found by."""
    entries = entry_points(group=GROUP, name=name) if isinstance(name, str) else ()
    return any(entry.load() is kind for entry in entries)


def described(target: object) -> str:
    """Return the name of a target for messages.

    It has the kind of the target and the place to which it writes.
    """
    if isinstance(target, (str, os.PathLike)):
        return str(target)
    if _is_pair(target):
        return f"{type(target[0]).__name__} ({target[1]})"
    place = folder_of(target) or getattr(target, "name", None)
    kind = type(target).__name__
    return f"{kind} ({place})" if isinstance(place, (str, os.PathLike)) and str(place) else kind


def new_name(target: object, taken: Collection[str], tracker: object = None) -> str:
    """Return a name for a target, numbered if it is taken.

    A tracker that chose its folder itself, as that of `"tensorboard"` does, adds it.
    """
    name, place = described(target), folder_of(tracker) if isinstance(target, str) else None
    if place is not None:
        name = f"{name} ({place})"
    return name if name not in taken else f"{name} #{len(taken) + 1}"


def folder_of(target: object) -> str | os.PathLike[str] | None:
    """Return the folder of a writer, run or logger, if any."""
    # Not Lightning's `trainer.log_dir`, which all ranks would have to ask for together.
    places = (getattr(target, name, None) for name in ("log_dir", "logdir", "save_dir", "dir"))
    return next((place for place in places if place and isinstance(place, (str, os.PathLike))), None)


def _is_pair(target: object) -> TypeGuard[tuple[object, str]]:
    return isinstance(target, tuple) and len(target) == 2 and isinstance(target[1], str)


def _is_bare_word(text: str) -> bool:
    """Return whether a text is meant as the name of a package.

    A misspelt name must not become a folder, which Python would then import as an empty package.
    """
    return Path(text).name == text


def _is_tracker(target: object) -> TypeGuard[Tracker]:
    """Return whether the object's class is a tracker."""
    # Not `isinstance`, which asks the object on Python 3.11: Lightning's `DummyLogger` answers for any attribute.
    return issubclass(type(target), Tracker)


def _entry_for(target: object, entries: Mapping[str, EntryPoint]) -> EntryPoint | None:
    """Return the entry for an object or its `experiment`.

    The object's type and bases come first, then those of the `experiment` of a Lightning logger.
    """
    entry = _by_type(type(target), entries)
    # Asked only if needed: a logger makes its run at the first access.
    experiment = None if entry else getattr(target, "experiment", None)
    return entry or _by_type(type(experiment), entries)


def _by_type(kind: type, entries: Mapping[str, EntryPoint]) -> EntryPoint | None:
    """Return the entry of the package that defines a type.

    If there is none, that of the nearest base is returned. Of nested packages the innermost wins.
    """
    packages = (package for base in kind.__mro__ for package in _packages(base.__module__))
    return next((entries[package] for package in packages if package in entries), None)


def _packages(module: str) -> Iterator[str]:
    """Yield the packages around a module: `a.b.c`, `a.b`, `a`."""
    while module:
        yield module
        module = module.rpartition(".")[0]
