"""MLflow runs, read from a database, a server or a folder without changing any of them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from flopcallback.profile.metrics import METRICS, SECTION, logged_name
from flopcallback.profile.numbers import LARGEST_EXACT, is_whole
from flopcallback.runs import FoundRun, RunRecord, RunsError, series_of, without_password
from flopcallback_mlflow.client import Files, Server, require_answer
from flopcallback_mlflow.content import Content, Store
from flopcallback_mlflow.database import Database

__all__ = ["find_runs"]

# Default name of MLflow's store.
DATABASE = "mlflow.db"

# A float64 holds 309 digits, and Python reads 4,300.
MOST_DIGITS = 1000

# Logged names by the names of their tags.
_LOGGED = {metric.name.replace("/", "."): metric.name for metric in METRICS}
_NUMBER = re.compile(f"(.*?)({'|'.join(map(re.escape, _LOGGED))})")

# What stands before `://` in an address, by what reads it.
DIALECTS, SERVERS = ("sqlite", "postgresql", "mysql", "mssql"), ("http", "https", "databricks")


def find_runs(place: str) -> list[FoundRun]:
    """Return the active runs of a store.

    The store is left as it is.

    Args:
        place: `sqlite:///…`, `http://…`, a file `….db`, a folder with `mlflow.db`, or `mlruns`. With `#name` behind it,
            only the runs of that experiment are returned.

    Raises:
        RunsError: the store cannot be opened, is of another version of MLflow's, or has no such experiment.
        ModuleNotFoundError: the place is a store, and MLflow is not installed.
    """
    address, _, experiment = (place, "", "") if Path(place).exists() else place.partition("#")
    make = _maker(address)
    if make is None:
        return []
    try:
        from mlflow import MlflowClient  # noqa: F401
    except ImportError as error:  # a folder of that name is imported as an empty package
        raise ModuleNotFoundError("MLflow's runs are read with MLflow: pip install mlflow", name="mlflow") from error
    store, shown = make(), without_password(address)
    return [_found_run(f"{shown}/{id_}", read) for id_, read in store.runs(_experiments(store, experiment, shown))]


def _maker(address: str) -> Callable[[], Store] | None:
    """Return what makes the store of an address; None for a place that is no store."""
    scheme, separator, rest = address.partition("://")
    if separator:
        scheme = scheme.partition("+")[0]
        if scheme in SERVERS:
            if scheme != "databricks":
                require_answer(address)
            return lambda: Server(address)
        if scheme == "file":
            return lambda: Files(Path(unquote(rest)))
        return (lambda: Database(address)) if scheme in DIALECTS else None
    path = Path(address)
    if path.is_file():
        return (lambda: Database(f"sqlite:///{path}")) if path.suffix in (".db", ".sqlite") else None
    # `mlruns` has the files of runs whose numbers are in the database beside it; in MLflow 2 it had the numbers too.
    candidates = [path / DATABASE, *([path.with_name(DATABASE)] if path.name == "mlruns" else [])]
    database = next((file for file in candidates if file.is_file()), None)
    if database is not None:
        return lambda: Database(f"sqlite:///{database}")
    return (lambda: Files(path)) if any(path.glob("*/meta.yaml")) else None


def _experiments(store: Store, name: str, shown: str) -> list[str]:
    """Return the ids of all experiments, or of the one with the name."""
    experiments = store.experiments()
    chosen = [id_ for id_, each in experiments if name in ("", each)]
    if name and not chosen:
        names = ", ".join(each for _, each in experiments) or "none"
        raise RunsError(f"{shown}#{name}: there is no active experiment {name!r}; there are: {names}")
    return chosen


def _found_run(place: str, read: Callable[[], Content]) -> FoundRun:
    return FoundRun(place, lambda: _record(place, read()))


def _record(place: str, content: Content) -> RunRecord:
    return RunRecord(
        content.name,
        place,
        figures={
            **dict(_kept(content.tags, content.metrics)),
            **{
                logged_name(name): _exact(logged_name(name), value, content.tags)
                for name, value in content.metrics.items()
            },
        },
        series=series_of(content.points),
        config={**content.params, **dict(_conditions(content.tags))},
    )


def _charted(content: Content) -> Iterator[tuple[str, int | float]]:
    for chart, value in content.metrics.items():
        name = logged_name(chart)
        yield name, _exact(name, value, content.tags)


def _kept(tags: Mapping[str, str], charts: Iterable[str]) -> Iterator[tuple[str, int | float]]:
    """Yield the numbers that `MLflowTracker` wrote as tags.

    A tag has dots for slashes. A prefix that charts have is known; in any other, each dot was a slash.
    """
    prefixes = {prefix.replace("/", "."): prefix for prefix in (name[: name.find(SECTION)] for name in charts)}
    for tag, text in tags.items():
        match = _NUMBER.fullmatch(tag)
        value = _number(text) if match else None
        if match and value is not None:
            prefix = prefixes.get(match[1], match[1].replace(".", "/"))
            yield prefix + _LOGGED[match[2]], value


def _number(text: str) -> int | float | None:
    if text.removeprefix("-").isdecimal():
        number = int(text) if len(text) < MOST_DIGITS else None
        return number if number is None or is_whole(number) else None
    try:
        return float(text)
    except ValueError:
        return None


def _exact(name: str, value: float, tags: Mapping[str, str]) -> int | float:
    """Return the exact integer that was logged as a metric, if known.

    A tag has the digits; its name is that of the metric with dots for slashes. Totals have no tag: below 2**53 their
    float64 is the integer itself.
    """
    text = tags.get(name.replace("/", "."), "")
    exact = int(text) if text.removeprefix("-").isdecimal() and len(text) < MOST_DIGITS else None
    # A metric that was logged again since is no longer the integer of the tag.
    if exact is not None and is_whole(exact) and float(exact) == value:
        return exact
    is_total = name.endswith("_total") and value.is_integer() and abs(value) < LARGEST_EXACT
    return int(value) if is_total else value


def _conditions(tags: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    """Yield the conditions that `MLflowTracker` wrote as tags, with their JSON read.

    A prefix `mine/` is `mine.` in a tag.
    """
    for name, text in tags.items():
        prefix, found, key = f".{name}".partition(".flops.")
        if found:
            yield f"{prefix[1:]}/flops.{key}".lstrip("/"), _value(text)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
