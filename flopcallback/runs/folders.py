"""Trainings read from the folders of `LocalTracker` and of Lightning's `CSVLogger`."""

from __future__ import annotations

import csv
import io
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from flopcallback.profile.model_profile import ModelProfile
from flopcallback.profile.old_profiles import old_convention
from flopcallback.profile.reading import loaded
from flopcallback.runs.record import FoundRun, RunRecord, RunsError, Series, number, reason_of, step_number

__all__ = ["PROFILE", "REPORT", "SCALARS", "folder_name", "read_profile", "runs_in_folders", "series_of"]

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

    Raises:
        ValueError: a step is no integer.
    """
    series: defaultdict[str, list[tuple[int, int | float]]] = defaultdict(list)
    for name, step, value in points:
        # Checked here, since steps that are no numbers cannot be sorted.
        series[name].append((step_number(step), value))
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
    files = (file for name in (PROFILE, SCALARS) for file in path.rglob(name)) if path.is_dir() else ()
    folders = {file.parent for file in files if file.is_file()}
    return [_found_run(folder, path) for folder in sorted(folders)]


def _found_run(folder: Path, root: Path) -> FoundRun:
    return FoundRun(str(folder), lambda: _folder_record(folder, folder_name(folder, root)))


def _profile_record(path: Path) -> RunRecord:
    profile, _ = read_profile(path)
    return RunRecord(path.stem, str(path), figures=profile.scalars(), config=profile.config)


def _folder_record(folder: Path, name: str) -> RunRecord:
    """Read the run of one folder.

    Our own files are merged last, since only they have exact integers.
    """
    profile, convention = read_profile(folder / PROFILE) if (folder / PROFILE).is_file() else (None, {})
    run_folder = folder.parent if folder.name == REPORT else folder
    series = {**series_of(_csv_points(run_folder / METRICS)), **series_of(_scalar_points(folder / SCALARS))}
    last_values = {name: values[-1][1] for name, values in series.items()}
    run = RunRecord(name, str(folder), figures=last_values, series=series, config=convention)
    if profile is None:
        return run
    # Logged names have the user's prefix; those in the profile never have one.
    prefix = next(iter(run.prefixes()), "")
    counted = {prefix + key: value for key, value in profile.scalars().items()}
    config = {prefix + key: value for key, value in profile.config.items()}
    return replace(run, figures={**counted, **run.figures}, config=config)


def read_profile(path: Path) -> tuple[ModelProfile, dict[str, Any]]:
    """Read the profile of a run.

    Returns:
        It, and what it said of a multiply-add if it is an older version's: the numbers beside it then have old names.

    Raises:
        RunsError: there is no profile in the file.
    """
    try:
        content = path.read_bytes()
        return ModelProfile.from_json(content), old_convention(content)
    except (OSError, ValueError) as error:
        raise RunsError(f"{path} is no profile of flopcallback's: {error}") from error


def _scalar_points(path: Path) -> Iterator[tuple[str, int, int | float]]:
    """Yield the points that `LocalTracker` wrote.

    A last line that a killed training left unfinished is skipped.
    """
    if not path.is_file():
        return
    # Not `str.splitlines`: JSON may have a line separator of Unicode's in a name.
    *lines, unfinished = _content(path).split(b"\n")
    for count, line in enumerate(lines, start=1):
        yield from _line_points(line, f"{path}, line {count}")
    # The end of a line is written with it: without one, the line may be whole all the same.
    with suppress(RunsError):
        yield from _line_points(unfinished, f"{path}, its last line")


def _line_points(line: bytes, place: str) -> list[tuple[str, int, int | float]]:
    """Return the points of one line.

    Raises:
        RunsError: the line is no JSON object of numbers with their step.
    """
    try:
        values = loaded(line)
        if not isinstance(values, dict) or "step" not in values:
            raise ValueError("it has no step")
        step = step_number(values.pop("step"))
        return [(name, step, math.nan if value is None else number(value, name)) for name, value in values.items()]
    except (ValueError, RecursionError) as error:
        text = line[:60].decode(errors="replace")
        raise RunsError(f"{place}: {text!r:.60} is no line of numbers with their step: {reason_of(error)}") from error


def _csv_points(path: Path) -> Iterator[tuple[str, int, int | float]]:
    """Yield the points that Lightning's `CSVLogger` wrote.

    A row has one step and one kind of metric; all other cells are empty. Texts that a user logged are left out.
    """
    if not path.is_file():
        return
    reader = csv.DictReader(io.StringIO(_text(path), newline=""))
    try:
        for row in reader:
            # Rows that were logged without a step have no place in a series.
            if not row.get("step"):
                continue
            step = _csv_step(row["step"])
            for name, cell in row.items():
                value = None if name in _NO_METRICS else _number(cell)
                if value is not None:
                    yield name, step, value
    except (csv.Error, ValueError) as error:
        # `csv` counts a line when it has read it.
        line = reader.line_num + isinstance(error, csv.Error)
        raise RunsError(f"{path}, line {line}: it is no row of numbers with their step: {error}") from error


def _csv_step(text: str) -> int:
    value = _number(text)
    if value is None or not value.is_integer():
        raise ValueError(f"the step is {text!r:.60}")
    return step_number(int(value))


def _text(path: Path) -> str:
    content = _content(path)
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise RunsError(f"{path}, line {line}: it is no text in UTF-8") from error


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RunsError(f"{path}: {reason_of(error)}") from error


def _number(text: object) -> float | None:
    try:
        return float(text) if isinstance(text, str) else None
    except ValueError:
        return None
