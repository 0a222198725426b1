"""Trainings read back from the folders that `LocalTracker` and Lightning's `CSVLogger` write."""

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
"""The folder that keeps what no tracker takes, inside a run's own or beside a script."""

PROFILE, SCALARS, METRICS = "flopcallback.json", "scalars.jsonl", "metrics.csv"


_NO_METRICS = ("step", "epoch")
"""Columns of Lightning's `metrics.csv` that say where a row stands."""


def folder_name(folder: Path, root: Path) -> str:
    """What the run in a folder is called: the way to it from `root`, or its own name where it is the root."""
    run = folder.parent if folder.name == REPORT else folder
    relative = run.relative_to(root) if run.is_relative_to(root) else Path()
    return relative.as_posix() if relative.parts else run.resolve().name


def series_of(points: Iterable[tuple[str, int, int | float]]) -> dict[str, Series]:
    """Triples of name, step and value as series by name; those of one step keep their order."""
    series: defaultdict[str, list[tuple[int, int | float]]] = defaultdict(list)
    for name, step, value in points:
        series[name].append((step, value))
    return {name: tuple(sorted(values, key=lambda point: point[0])) for name, values in series.items()}


def runs_in_folders(place: str) -> Sequence[FoundRun]:
    """The folders at or below `place` that `LocalTracker` wrote; or a single profile, which any count may have left."""
    path = Path(place)
    if path.is_file():
        if path.name in (PROFILE, SCALARS):
            return [_found(path.parent, path.parent)]
        return [FoundRun(place, lambda: _of_profile(path))] if path.suffix == ".json" else []
    folders = {file.parent for name in (PROFILE, SCALARS) for file in path.rglob(name)} if path.is_dir() else ()
    return [_found(folder, path) for folder in sorted(folders)]


def _found(folder: Path, root: Path) -> FoundRun:
    def read() -> RunRecord:
        try:
            return _of_folder(folder, folder_name(folder, root))
        except RunsError:
            raise
        except (OSError, ValueError, TypeError, csv.Error) as error:
            raise RunsError(f"{folder}: its files cannot be read: {error}") from error

    return FoundRun(str(folder), read)


def _of_profile(path: Path) -> RunRecord:
    profile = _profile(path)
    return RunRecord(path.stem, str(path), figures=profile.scalars(), config=profile.config)


def _of_folder(folder: Path, name: str) -> RunRecord:
    """Our own numbers are exact where they stand in our own files, so these come last."""
    profile = _profile(folder / PROFILE) if (folder / PROFILE).is_file() else None
    beside = folder.parent if folder.name == REPORT else folder
    series = {**series_of(_csv_points(beside / METRICS)), **series_of(_scalar_points(folder / SCALARS))}
    logged_last = {name: values[-1][1] for name, values in series.items()}
    run = RunRecord(name, str(folder), figures=logged_last, series=series)
    if profile is None:
        return run
    # A user's prefix stands in front of what was logged, and not in the profile, which knows of none.
    front = next(iter(run.prefixes()), "")
    counted = {front + key: value for key, value in profile.scalars().items()}
    config = {front + key: value for key, value in profile.config.items()}
    return replace(run, figures={**counted, **logged_last}, config=config)


def _profile(path: Path) -> ModelProfile:
    try:
        return ModelProfile.from_json(path.read_bytes())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunsError(f"{path} is no profile of flopcallback's: {error}") from error


def _scalar_points(path: Path) -> Iterator[tuple[str, int, int | float]]:
    """What `LocalTracker` wrote; a last line that a killed training left unfinished is passed over."""
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
    """What Lightning's `CSVLogger` wrote: a row per step and kind of metric, empty where nothing was logged."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            step = _number(row.get("step"))
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
