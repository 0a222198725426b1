"""The runs at a place, found by readers from entry points."""

from __future__ import annotations

import os
from importlib.metadata import entry_points
from pathlib import Path

from flopcallback.runs.folders import PROFILE, REPORT, SCALARS, runs_in_folders
from flopcallback.runs.record import FoundRun, RunRecord, RunsError, reason_of, without_password

__all__ = ["GROUP", "find_runs"]

GROUP = "flopcallback.runs"
"""The entry-point group of readers.

An entry loads to `find_runs(place) -> Sequence[FoundRun]`. `place` is a path or an address. A reader imports its
tracker only for places that are its own, and returns an empty sequence for all others.
"""


def find_runs(place: str | os.PathLike[str]) -> list[FoundRun]:
    """Return the runs at a place.

    Args:
        place: a folder with runs at any depth, a file of a store, or an address.

    Raises:
        RunsError: there are no runs, or their store cannot be opened.
    """
    place = os.fspath(place)
    shown = without_password(place)
    missing: list[str] = []
    failed: list[FoundRun] = []
    found: list[FoundRun] = []
    for entry in sorted(entry_points(group=GROUP)):
        try:
            found += entry.load()(place)
        except ImportError as error:
            # Other readers may find runs; without any, this is the reason.
            missing.append(str(error))
        except RunsError as error:
            failed.append(_unreadable(f"{shown} ({entry.name})", error))
        except Exception as error:  # noqa: BLE001 - the place is anybody's, and other readers may find runs there
            said = RunsError(f"{shown}: {entry.name}: {reason_of(error)}")
            failed.append(_unreadable(f"{shown} ({entry.name})", said))
    # Our files beside those of a tracker belong to the same run, which is found once.
    taken = {Path(run.place) for run in found}
    try:
        found += [run for run in runs_in_folders(place) if not _belongs_to(Path(run.place), taken)]
        is_missing = "://" not in place and not Path(place).exists()
    except (OSError, ValueError) as error:  # a name that no file can have
        raise RunsError(f"{place!r:.200} cannot be looked at: {reason_of(error)}") from error
    if found:
        # A store that cannot be opened, among other runs, is one of those that cannot be read.
        return found + failed
    for run in failed:
        run.read()
    if missing:
        raise RunsError(f"{shown}: {'; '.join(missing)}")
    if is_missing:
        raise RunsError(f"{place}: there is no such file or folder")
    raise RunsError(
        f"{shown}: no runs are here. A run is a folder with {PROFILE} or {SCALARS}, TensorBoard's event files, a W&B "
        "folder offline-run-…, or a run in an MLflow store (mlflow.db, sqlite:///mlflow.db, http://…)."
    )


def _unreadable(place: str, error: RunsError) -> FoundRun:
    def read() -> RunRecord:
        raise error

    return FoundRun(place, read)


def _belongs_to(folder: Path, taken: set[Path]) -> bool:
    """Return whether a folder's files belong to a run that was found.

    They are beside its own files, in a report folder, or in the folder of a W&B run.
    """
    at_or_above = {folder, folder.parent} if folder.name == REPORT else {folder}
    return bool(at_or_above & taken) or any("run-" in parent.name and parent in taken for parent in folder.parents)
