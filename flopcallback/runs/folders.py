"""Trainings read from the folders of `LocalTracker` and of Lightning's `CSVLogger`."""

from __future__ import annotations

import csv
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from flopcallback.profile.model_profile import ModelProfile
from flopcallback.runs.record import FoundRun, RunRecord, RunsError, Series

__all__ = ["PROFILE", "REPORT", "SCALARS", "folder_name", "runs_in_folders", "series_of"]

REPORT = "flopcallback_report"
"""Name of the folder for what no tracker takes, inside a run's folder or beside a script."""

# Files of `LocalTracker`, and the file of `CSVLogger`.
PROFILE, SCALARS, METRICS = "flopcallback.json", "scalars.jsonl", "metrics.csv"
# Columns of Lightning's `metrics.csv` that are not metrics.
_NO_METRICS = ("step", "epoch")


def folder_name(folder: Path, root: Path) -> str:
    """Return the name of the run in a folder.

    It is the path from `root`, or the folder's own name if it is the root.
    """
    run = folder.parent if folder.name == REPORT else folder
    relative = run.relative_to(root) if run.is_relative_to(root) else Path()
    return relative.as_posix() if relative.parts else run.resolve().name


def series_of(points: Iterable[tuple[str, int, int | float]]) -> dict[str, Series]:
    """Group triples of name, step and value into series by name.

    Values of one step keep their order.
    """
    series: defaultdict[str, list[tuple[int, int | float]]] = defaultdict(list)
    for name, step, value in points:
        series[name].append((step, value))
    return {name: tuple(sorted(values, key=lambda point: point[0])) for name, values in series.items()}


def runs_in_folders(place: str) -> Sequence[FoundRun]:
    """Return the runs that `LocalTracker` wrote at or below a place.

    A single JSON file is a run with its profile only, which any count may have left.
    """
    path = Path(place)
    if path.is_file():
        if path.name in (PROFILE, SCALARS):
            return [_found_run(path.parent, path.parent)]
        return [FoundRun(place, lambda: _profile_record(path))] if path.suffix == ".json" else []
    folders = {file.parent for name in (PROFILE, SCALARS) for file in path.rglob(name)} if path.is_dir() else ()
    return [_found_run(folder, path) for folder in sorted(folders)]


def _found_run(folder: Path, root: Path) -> FoundRun:
    def read() -> RunRecord:
        try:
            return _folder_record(folder, folder_name(folder, root))
        # It names the file already.
        except RunsError:
            raise
        except (OSError, ValueError, TypeError, csv.Error) as error:
            raise RunsError(f"{folder}: its files cannot be read: {error}") from error

    return FoundRun(str(folder), read)


def _profile_record(path: Path) -> RunRecord:
    profile = _read_profile(path)
    return RunRecord(path.stem, str(path), figures=profile.scalars(), config=profile.config)


def _folder_record(folder: Path, name: str) -> RunRecord:
    """Read the run of one folder.

    Our own files are merged last, since only they have exact integers.
    """
    profile = _read_profile(folder / PROFILE) if (folder / PROFILE).is_file() else None
    run_folder = folder.parent if folder.name == REPORT else folder
    series = {**series_of(_csv_points(run_folder / METRICS)), **series_of(_scalar_points(folder / SCALARS))}
    last_values = {name: values[-1][1] for name, values in series.items()}
    run = RunRecord(name, str(folder), figures=last_values, series=series)
    if profile is None:
        return run
    # Logged names have the user's prefix; those in the profile never have one.
    prefix = next(iter(run.prefixes()), "")
    counted = {prefix + key: value for key, value in profile.scalars().items()}
    config = {prefix + key: value for key, value in profile.config.items()}
    return replace(run, figures={**counted, **last_values}, config=config)


def _read_profile(path: Path) -> ModelProfile:
    try:
        return ModelProfile.from_json(path.read_bytes())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunsError(f"{path} is no profile of flopcallback's: {error}") from error


def _scalar_points(path: Path) -> Iterator[tuple[str, int, int | float]]:
    """Yield the points that `LocalTracker` wrote.

    A last line that a killed training left unfinished is skipped.
    """
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            values = json.loads(line)
            step = values.pop("step")
        except (ValueError, KeyError, AttributeError) as error:
            if number == len(lines):
                return
            raise RunsError(f"{path}, line {number}: {line!r:.60} is no line of numbers with their step") from error
        for name, value in values.items():
            yield name, step, math.nan if value is None else value


def _csv_points(path: Path) -> Iterator[tuple[str, int, int | float]]:
    """Yield the points that Lightning's `CSVLogger` wrote.

    A row has one step and one kind of metric; all other cells are empty.
    """
    if not path.is_file():
        return
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            step = _number(row.get("step"))
            # Rows that were logged without a step have no place in a series.
            if step is None or not math.isfinite(step):
                continue
            for name, text in row.items():
                value = None if name in _NO_METRICS else _number(text)
                if value is not None:
                    yield name, int(step), value


def _number(text: object) -> float | None:
    try:
        return float(text) if isinstance(text, str) else None
    except ValueError:
        return None
