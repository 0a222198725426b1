"""Runs of W&B's, offline or not, read back from their folders by the program that `wandb leet inspect` runs."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flopcallback.runs import FoundRun, RunRecord, RunsError, series_of

__all__ = ["find_runs"]

LOG = "run-*.wandb"

_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_EXACT = "_exact"


def find_runs(place: str) -> list[FoundRun]:
    """The runs whose log, `run-*.wandb`, is at or below a folder: `offline-run-…` itself, or `wandb` with all of them.

    Raises:
        ModuleNotFoundError: there are some, and W&B is not installed.
    """
    path = Path(place)
    if path.is_file():
        logs = {path.resolve()} if path.match(LOG) else set()
    else:
        logs = {log.resolve() for log in path.rglob(LOG)}  # `latest-run` is a link to one of them
    if logs:
        _core()
    return [_found(log) for log in sorted(logs)]


def _found(log: Path) -> FoundRun:
    return FoundRun(str(log.parent), lambda: _read(log))


def _core() -> str:
    try:
        from wandb.util import get_core_path
    except ImportError as error:  # a folder of runs called `wandb` is imported as an empty package
        raise ModuleNotFoundError("W&B's runs are read with W&B: pip install wandb", name="wandb") from error
    return str(get_core_path())


def _read(log: Path) -> RunRecord:
    records = list(_records(log))
    rows = [record["history"]["item"] for record in records if record["type"] == "history"]
    run: dict[str, Any] = next((record["run"] for record in records if record["type"] == "run"), {})
    summary = _updates(records, "summary")
    digits = {name.removesuffix(_EXACT): int(text) for name, text in summary.items() if _is_exact(name, text)}
    series = series_of(point for place, row in enumerate(rows) for point in _points(row, place))
    # A value that was only ever logged is in the summary too, but for what the user keeps out of it.
    last = {name: values[-1][1] for name, values in series.items()}
    return RunRecord(
        run.get("display_name") or run.get("run_id") or log.parent.name,
        str(log.parent),
        figures={**last, **dict(_numbers(summary)), **digits},
        series=series,
        config={**run.get("config", {}).get("update", {}), **_updates(records, "config")},
    )


def _records(log: Path) -> Iterator[dict[str, Any]]:
    """The log's records, as far as they go in that of a run that is not finished."""
    command = [_core(), "leet", "inspect", "--no-observability", "--json", "--run-file", str(log), str(log.parent)]
    ran = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    if ran.returncode:
        reason = next(iter(ran.stderr.strip().splitlines()), "no reason given")
        raise RunsError(
            f"{log}: W&B could not read it ({reason}). If it does not know `leet inspect`, a newer version does: pip "
            "install --upgrade wandb."
        )
    yield from map(json.loads, ran.stdout.splitlines())


def _updates(records: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    """All updates of a kind, one after the other."""
    content: dict[str, Any] = {}
    for record in records:
        if record["type"] == kind:
            content.update(record[kind].get("update", {}))
    return content


def _points(row: Mapping[str, Any], place: int) -> Iterator[tuple[str, int, int | float]]:
    """The row's numbers at W&B's own step, by which what stands in one row stands together."""
    step = int(row.get("_step", place))
    return ((name, step, value) for name, value in _numbers(row))


def _numbers(values: Mapping[str, Any]) -> Iterator[tuple[str, int | float]]:
    """What is a number of the user's or ours: neither W&B's own (`_step`) nor part of a table or an image."""
    media = tuple(name.removesuffix("_type") for name in values if name.endswith("._type"))
    for name, value in values.items():
        number = _NOT_FINITE.get(value) if isinstance(value, str) else value
        if isinstance(number, bool) or name.startswith(("_", *media)):
            continue
        if isinstance(number, (int, float)):
            yield name, number


def _is_exact(name: str, text: object) -> bool:
    """The digits of an integer that a browser would round, as `WandbTracker` keeps them."""
    return name.endswith(_EXACT) and isinstance(text, str) and text.lstrip("-").isdecimal()
