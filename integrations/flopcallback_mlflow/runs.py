"""MLflow runs, read from their store through an MlflowClient."""

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

# Default name of MLflow's store.
DATABASE = "mlflow.db"

# Seconds that a server may take to answer.
ANSWER_S = 20

SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "file", "databricks")

# Groups that are logged at one step. The run itself has their values, while a history costs one query per metric.
_LOGGED_ONCE = ("flops/", "model/", "latency/")


def find_runs(place: str) -> list[FoundRun]:
    """Return the active runs of a store.

    Args:
        place: `sqlite:///…`, `http://…`, a file `….db`, a folder with `mlflow.db`, or `mlruns`. With `#name` behind it,
            only the runs of that experiment are returned.

    Raises:
        RunsError: the store cannot be opened, or has no such experiment.
        ModuleNotFoundError: the place is a store, and MLflow is not installed.
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
        return [_found_run(client, run, store) for run in _runs(client, _experiments(client, experiment, store))]
    except MlflowException as error:
        raise RunsError(f"{store}: MLflow could not read it: {str(error).strip()}") from error


def _uri(store: str) -> str | None:
    """Return the store's address; None for any other place."""
    scheme, separator, rest = store.partition("://")
    if separator:
        if scheme == "sqlite":
            return _database(Path(rest[1:]))
        if scheme in ("http", "https"):
            _require_answer(store)
        return store if scheme.partition("+")[0] in SCHEMES else None
    path = Path(store)
    if path.is_file():
        return _database(path) if path.suffix in (".db", ".sqlite") else None
    # `mlruns` has the files of runs whose numbers are in the database beside it; in MLflow 2 it had the numbers too.
    candidates = [path / DATABASE, *([path.with_name(DATABASE)] if path.name == "mlruns" else [])]
    database = next((file for file in candidates if file.is_file()), None)
    if database is not None:
        return _database(database)
    return path.resolve().as_uri() if any(path.glob("*/meta.yaml")) else None


def _require_answer(address: str) -> None:
    """Check that a server answers, with any status.

    MLflow would retry for minutes if there is none.

    Raises:
        RunsError: no server answers.
    """
    try:
        with urllib.request.urlopen(f"{address.rstrip('/')}/health", timeout=ANSWER_S):
            pass
    except urllib.error.HTTPError:
        pass
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise RunsError(f"{address}: no server answers there ({error})") from error


def _database(file: Path) -> str:
    """Return the address of a database that is MLflow's.

    MLflow itself would make its tables in any other database, and make a missing file.

    Raises:
        RunsError: there is no such file, or the database is not MLflow's.
    """
    if not file.is_file():
        raise RunsError(f"sqlite:///{file}: there is no file {file}; an absolute path has four slashes, sqlite:////…")
    try:
        # Read-only, so that looking at a database never changes it.
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
    """Yield the runs of experiments, oldest first."""
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


def _found_run(client: MlflowClient, run: Run, store: str) -> FoundRun:
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
        if not any(f"/{group}" in f"/{name}" for group in _LOGGED_ONCE):
            for point in client.get_metric_history(run.info.run_id, name):
                yield name, point.step, point.value


def _exact(name: str, value: float, tags: Mapping[str, str]) -> int | float:
    """Return the exact integer that was logged as a metric, if known.

    A tag has the digits; its name is that of the metric with dots for slashes. Totals have no tag: below 2**53 their
    float64 is the integer itself.
    """
    text = tags.get(name.replace("/", "."), "")
    exact = int(text) if text.lstrip("-").isdecimal() else None
    # A metric that was logged again since is no longer the integer of the tag.
    if exact is not None and float(exact) == value:
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
    except ValueError:
        return text
