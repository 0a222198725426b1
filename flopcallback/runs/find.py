"""Where finished and running trainings are read back from: readers found by entry point, and the one for folders."""

from __future__ import annotations

import os
from importlib.metadata import entry_points
from pathlib import Path

from flopcallback.runs.folders import PROFILE, REPORT, SCALARS, runs_in_folders
from flopcallback.runs.record import FoundRun, RunsError

__all__ = ["GROUP", "find_runs"]

GROUP = "flopcallback.runs"
"""The entry-point group. An entry loads to `find_runs(place) -> Sequence[FoundRun]`, and imports its tracker only for
places that are its own; a sequence without runs says that the place, a path or an address, is not."""


def find_runs(place: str | os.PathLike[str]) -> list[FoundRun]:
    """The runs at a place: a folder with one run or with several at any depth, a file of a store, an address.

    Raises:
        RunsError: there are none, or what they are in cannot be opened.
    """
    place = os.fspath(place)
    missing: list[str] = []
    found: list[FoundRun] = []
    for entry in sorted(entry_points(group=GROUP)):
        try:
            found += entry.load()(place)
        except ModuleNotFoundError as error:  # what its runs are read with
            missing.append(str(error))
    taken = {Path(run.place) for run in found}
    found += [run for run in runs_in_folders(place) if not _belongs_to(Path(run.place), taken)]
    if found:
        return found
    if missing:
        raise RunsError(f"{place}: {'; '.join(missing)}")
    if "://" not in place and not Path(place).exists():
        raise RunsError(f"{place}: there is no such file or folder")
    raise RunsError(
        f"{place}: no runs are here. A run is a folder with {PROFILE} or {SCALARS}, TensorBoard's event files, a W&B "
        "folder offline-run-…, or a run in an MLflow store (mlflow.db, sqlite:///mlflow.db, http://…)."
    )


def _belongs_to(folder: Path, taken: set[Path]) -> bool:
    """Whether one of those runs has this folder's files: beside its own, in a report, or in a W&B run's folder."""
    at_or_above = {folder, folder.parent} if folder.name == REPORT else {folder}
    return bool(at_or_above & taken) or any("run-" in each.name and each in taken for each in folder.parents)
