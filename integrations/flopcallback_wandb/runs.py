"""Runs of W&B's, offline or not, read back from the logs in their folders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flopcallback.runs import FoundRun, RunRecord, series_of
from flopcallback_wandb.log import records, values

__all__ = ["find_runs"]

LOG = "run-*.wandb"

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
        _expect_wandb()
    return [_found(log) for log in sorted(logs)]


def _found(log: Path) -> FoundRun:
    return FoundRun(str(log.parent), lambda: _read(log))


def _expect_wandb() -> None:
    try:
        from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]  # noqa: F401
    except ImportError as error:  # a folder of runs called `wandb` is imported as an empty package
        raise ModuleNotFoundError("W&B's runs are read with W&B: pip install wandb", name="wandb") from error


def _read(log: Path) -> RunRecord:
    rows: list[dict[str, Any]] = []
    summary: dict[str, Any] = {}
    config: dict[str, Any] = {}
    name = ""
    for record in records(log):
        kind = record.WhichOneof("record_type")
        if kind == "history":
            rows.append(values(record.history.item))
        elif kind == "summary":
            summary |= values(record.summary.update)
        elif kind == "config":
            config |= values(record.config.update)
        elif kind == "run":
            name = record.run.display_name or record.run.run_id
            config |= values(record.run.config.update)
    series = series_of(point for place, row in enumerate(rows) for point in _points(row, place))
    # A value that was only ever logged is in the summary too, but for what the user keeps out of it.
    last = {metric: points[-1][1] for metric, points in series.items()}
    digits = {key.removesuffix(_EXACT): int(text) for key, text in summary.items() if _is_exact(key, text)}
    return RunRecord(
        name or log.parent.name,
        str(log.parent),
        figures={**last, **dict(_numbers(summary)), **digits},
        series=series,
        config=config,
    )


def _points(row: Mapping[str, Any], place: int) -> Iterator[tuple[str, int, int | float]]:
    """The row's numbers at W&B's own step, by which what stands in one row stands together."""
    step = int(row.get("_step", place))
    return ((name, step, value) for name, value in _numbers(row))


def _numbers(values: Mapping[str, Any]) -> Iterator[tuple[str, int | float]]:
    """What is a number of the user's or ours: neither W&B's own (`_step`) nor part of a table or an image."""
    media = tuple(name.removesuffix("_type") for name in values if name.endswith("._type"))
    for name, value in values.items():
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if is_number and not name.startswith(("_", *media)):
            yield name, value


def _is_exact(name: str, text: object) -> bool:
    """The digits of an integer that a browser would round, as `WandbTracker` keeps them."""
    return name.endswith(_EXACT) and isinstance(text, str) and text.lstrip("-").isdecimal()
