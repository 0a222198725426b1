"""Runs of MLflow's, read back from their store through an MlflowClient."""

from __future__ import annotations

import json
import sqlite3
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flopcallback.profile.numbers import LARGEST_EXACT
from flopcallback.runs import FoundRun, RunRecord, RunsError, series_of

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Run

__all__ = ["find_runs"]

DATABASE = "mlflow.db"
"""What MLflow calls its store where nobody says otherwise."""

ANSWER_S = 20

SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "file", "databricks")

_ONCE = ("flops/", "model/", "latency/")
"""Logged at one step: the run itself has their values, and their history costs a query each."""


def find_runs(place: str) -> list[FoundRun]:
    """The active runs of a store: `sqlite:///…`, `http://…`, a file `….db`, a folder with `mlflow.db`, or `mlruns`.

    `#name` behind it takes the runs of one experiment alone.

    Raises:
        RunsError: the store cannot be opened, or has no such experiment.
        ModuleNotFoundError: it is a store, and MLflow is not installed.
    """
    store, _, experiment = (place, "", "") if Path(place).exists() else place.partition("#")
    uri = _uri(store)
    if uri is None:
        return []
    try:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
    except ImportError as error:  # a folder of that name is imported as an empty package
        raise ModuleNotFoundError("MLflow's runs are read with MLflow: pip install mlflow", name="mlflow") from error
    try:
        client = MlflowClient(uri)
        return [_found(client, run, store) for run in _runs(client, _experiments(client, experiment, store))]
    except MlflowException as error:
        raise RunsError(f"{store}: MLflow could not read it: {str(error).strip()}") from error


def _uri(store: str) -> str | None:
    """The store's address; None where the place is something else."""
    scheme, separator, rest = store.partition("://")
    if separator:
        if scheme == "sqlite":
            return _database(Path(rest[1:]))
        if scheme in ("http", "https"):
            _expect_answer(store)
        return store if scheme.partition("+")[0] in SCHEMES else None
    path = Path(store)
    if path.is_file():
        return _database(path) if path.suffix in (".db", ".sqlite") else None
    # `mlruns` has the files of runs whose numbers are in the database beside it; in MLflow 2 it had the numbers too.
    beside = [path / DATABASE, *([path.with_name(DATABASE)] if path.name == "mlruns" else [])]
    database = next((file for file in beside if file.is_file()), None)
    if database is not None:
        return _database(database)
    return path.resolve().as_uri() if any(path.glob("*/meta.yaml")) else None


def _expect_answer(address: str) -> None:
    """Passes where a server answers, whatever it says: MLflow would ask one that does not for minutes.

    Raises:
        RunsError: nobody answers.
    """
    try:
        with urllib.request.urlopen(f"{address.rstrip('/')}/health", timeout=ANSWER_S):
            pass
    except urllib.error.HTTPError:
        pass
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise RunsError(f"{address}: no server answers there ({error})") from error


def _database(file: Path) -> str:
    """The address of a database that is MLflow's: of a missing one and in any other, MLflow would make its tables.

    Raises:
        RunsError: it is neither there nor MLflow's.
    """
    if not file.is_file():
        raise RunsError(f"sqlite:///{file}: there is no file {file}; an absolute path has four slashes, sqlite:////…")
    try:
        with closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            is_store = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'experiments'").fetchone()
    except sqlite3.DatabaseError as error:
        raise RunsError(f"{file} is no database that MLflow could read: {error}") from error
    if not is_store:
        raise RunsError(f"{file} is no database of MLflow's: it has no table of experiments")
    return f"sqlite:///{file}"


def _experiments(client: MlflowClient, name: str, store: str) -> list[Experiment]:
    experiments = list(_pages(client.search_experiments))
    if not name:
        return experiments
    chosen = [experiment for experiment in experiments if experiment.name == name]
    if not chosen:
        names = ", ".join(experiment.name for experiment in experiments) or "none"
        raise RunsError(f"{store}#{name}: there is no active experiment {name!r}; there are: {names}")
    return chosen


def _runs(client: MlflowClient, experiments: list[Experiment]) -> Iterator[Run]:
    """Oldest first."""
    ids = [experiment.experiment_id for experiment in experiments]
    return _pages(client.search_runs, experiment_ids=ids, order_by=["attributes.start_time ASC"])


def _pages(search: Any, **arguments: Any) -> Iterator[Any]:
    token = None
    while True:
        page = search(**arguments, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _found(client: MlflowClient, run: Run, store: str) -> FoundRun:
    place = f"{store}/{run.info.run_id}"
    return FoundRun(place, lambda: _read(client, run, place))


def _read(client: MlflowClient, run: Run, place: str) -> RunRecord:
    from mlflow.exceptions import MlflowException

    try:
        series = series_of(_points(client, run))
    except MlflowException as error:
        raise RunsError(f"{place}: MLflow could not read it: {str(error).strip()}") from error
    metrics, tags = dict(run.data.metrics), run.data.tags
    return RunRecord(
        run.info.run_name or run.info.run_id,
        place,
        figures={name: _exact(name, value, tags) for name, value in metrics.items()},
        series=series,
        config={**run.data.params, **dict(_conditions(tags))},
    )


def _points(client: MlflowClient, run: Run) -> Iterator[tuple[str, int, float]]:
    for name in run.data.metrics:
        if not any(f"/{group}" in f"/{name}" for group in _ONCE):
            for point in client.get_metric_history(run.info.run_id, name):
                yield name, point.step, point.value


def _exact(name: str, value: float, tags: Mapping[str, str]) -> int | float:
    """The integer that a metric is the float64 of: the one in the tag of the same name, where dots stand for slashes.

    Totals have no tag, and are the integer that was logged as far as a float64 tells integers apart.
    """
    text = tags.get(name.replace("/", "."), "")
    exact = int(text) if text.lstrip("-").isdecimal() else None
    if exact is not None and float(exact) == value:
        return exact
    is_total = name.endswith("_total") and value.is_integer() and abs(value) < LARGEST_EXACT
    return int(value) if is_total else value


def _conditions(tags: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    """What `MLflowTracker` wrote as `flops.fma`, its JSON read; a prefix `mine/` is `mine.` in a tag."""
    for name, text in tags.items():
        front, found, key = f".{name}".partition(".flops.")
        if found:
            yield f"{front[1:]}/flops.{key}".lstrip("/"), _value(text)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
