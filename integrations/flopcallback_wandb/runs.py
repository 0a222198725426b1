"""W&B runs, offline or online, read from the logs in their folders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flopcallback.runs import FoundRun, RunRecord, RunsError, series_of
from flopcallback_wandb.log import records, values
from flopcallback_wandb.tracker import KEPT

__all__ = ["find_runs"]

LOG = "run-*.wandb"

# Suffix of the digits of large integers in the summary.
_EXACT = "_exact"

# Prefix of the names of what is kept in one entry of the summary.
_KEPT = f"{KEPT}."

# A float64 holds 309 digits, and Python reads 4,300.
MOST_DIGITS = 1000


def find_runs(place: str) -> list[FoundRun]:
    """Return the runs with a log, `run-*.wandb`, at or below a folder.

    The folder is `offline-run-…` itself, or `wandb` with all of them.

    Raises:
        ModuleNotFoundError: there are logs, and W&B is not installed.
    """
    path = Path(place)
    if path.is_file():
        logs = {path.resolve()} if path.match(LOG) else set()
    else:
        logs = {log.resolve() for log in path.rglob(LOG) if log.is_file()}  # `latest-run` is a link to one of them
    if logs:
        _require_wandb()
    return [_found_run(log) for log in sorted(logs)]


def _found_run(log: Path) -> FoundRun:
    return FoundRun(str(log.parent), lambda: _read(log))


def _require_wandb() -> None:
    try:
        from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]  # noqa: F401
    except ImportError as error:  # a folder of runs called `wandb` is imported as an empty package
        raise ModuleNotFoundError("W&B's runs are read with W&B: pip install wandb", name="wandb") from error


def _read(log: Path) -> RunRecord:
    rows: list[dict[str, Any]] = []
    summary: dict[str, Any] = {}
    config: dict[str, Any] = {}
    name, count = "", 0
    for count, record in enumerate(records(log), start=1):
        kind = record.WhichOneof("record_type")
        try:
            if kind == "history":
                rows.append(values(record.history.item))
            elif kind == "summary":
                summary |= values(record.summary.update)
            elif kind == "config":
                config |= values(record.config.update)
            elif kind == "run":
                name = record.run.display_name or record.run.run_id
                config |= values(record.run.config.update)
        except (ValueError, RecursionError) as error:
            raise RunsError(f"{log}, record {count}: a value is no JSON: {error}") from error
    if not count:
        raise RunsError(f"{log}: nothing is in it yet")
    series = series_of(point for place, row in enumerate(rows) for point in _points(row, place))
    # The summary has the last logged values, too, unless the user keeps one out of it.
    last = {metric: points[-1][1] for metric, points in series.items()}
    # What `WandbTracker` keeps there stands last, since it has the exact integers.
    ours = {key.removeprefix(_KEPT): value for key, value in summary.items() if key.startswith(_KEPT)}
    summary = {**{key: value for key, value in summary.items() if not key.startswith(_KEPT)}, **ours}
    digits = {key.removesuffix(_EXACT): _whole(key, text) for key, text in summary.items() if _is_exact(key, text)}
    return RunRecord(
        name or log.parent.name,
        str(log.parent),
        figures={**last, **dict(_numbers(summary)), **digits},
        series=series,
        config=config,
    )


def _points(row: Mapping[str, Any], place: int) -> Iterator[tuple[str, int, int | float]]:
    """Return the row's numbers at W&B's own step.

    Numbers that were logged together stay together by it.
    """
    # RunRecord checks it; W&B writes it as a whole number in all of its formats.
    step = row.get("_step", place)
    return ((name, step, value) for name, value in _numbers(row))


def _numbers(values: Mapping[str, Any]) -> Iterator[tuple[str, int | float]]:
    """Yield the numbers that were logged by the user or by us.

    W&B's own (`_step`) and parts of tables and images are left out.
    """
    # An entry `name._type` marks `name` as a table or an image.
    media = tuple(name.removesuffix("_type") for name in values if name.endswith("._type"))
    for name, value in values.items():
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if is_number and not name.startswith(("_", *media)):
            yield name, value


def _is_exact(name: str, text: object) -> bool:
    """Return whether an entry is the digits of an integer.

    `WandbTracker` writes them for integers that a browser would round.
    """
    return name.endswith(_EXACT) and isinstance(text, str) and text.removeprefix("-").isdecimal()


def _whole(name: str, digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"{name} has {len(digits):,} digits, too many to be a number of a training")
    return int(digits)
