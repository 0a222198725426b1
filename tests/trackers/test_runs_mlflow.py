"""Runs read back from MLflow's stores: a real SQLite file, a real server."""

from __future__ import annotations

import shutil
import socket
import sqlite3
from contextlib import closing
from pathlib import Path

import mlflow_stores as stores
import pytest

from flopcallback.runs import RunsError, find_runs
from flopcallback.trackers import tracker_for

pytestmark = [
    pytest.mark.mlflow,
    # 2026-11, mlflow 3.17 on SQLAlchemy 2.1: its own tables, when they are first imported.
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning"),
]


COMPUTE = "compute/flops_total"
LARGE = 2**60 + 1
"""FLOPs that MLflow's float64 rounds."""


@pytest.fixture(autouse=True)
def apart(tmp_path, monkeypatch):
    """What MLflow would write to the working directory stays in the test's, and its global address is put back."""
    monkeypatch.chdir(tmp_path)
    with stores.fluent_state_put_back():
        yield


@pytest.fixture
def database(empty_database, tmp_path):
    return Path(shutil.copy(empty_database, tmp_path / "mlflow.db"))


@pytest.fixture
def train(net, tmp_path):
    """Makes a run in an experiment of the store."""
    from mlflow import MlflowClient

    def trained(uri, name="width 8", experiment="sweep", *, prefix=""):
        client = MlflowClient(uri)
        found = client.get_experiment_by_name(experiment)
        where = None if uri.startswith("http") else (tmp_path / "artifacts").as_uri()
        home = found.experiment_id if found else client.create_experiment(experiment, artifact_location=where)
        run_id = client.create_run(home, run_name=name).info.run_id
        client.log_param(run_id, "lr", 0.1)
        tracker = tracker_for((client, run_id), prefix=prefix)
        profile = net((LARGE, 11), phase="train", config={"flops.peak_tflops": 2, "flops.is_lower_bound": False})
        tracker.log_scalars({prefix + key: value for key, value in profile.scalars().items()}, 0)
        tracker.log_profile(profile, 0)
        for step in (10, 20):
            tracker.log_scalars({f"{prefix}{COMPUTE}": 2**50 * step, "compute/samples_total": 7 * step}, step)
            client.log_metric(run_id, "val/loss", 1 / step, step=step)
        client.set_terminated(run_id)
        return run_id

    return trained


@pytest.mark.parametrize("store", ["sqlite", "server"])
def test_a_run_is_read_with_histories_and_the_exact_integers_of_its_tags(train, request, store):
    uri = request.getfixturevalue(store)
    run_id = train(uri, experiment=f"read back from {store}")
    (found,) = find_runs(f"{uri}#read back from {store}")
    run = found.read()
    assert run.name == "width 8"
    assert found.place.endswith(run_id)
    assert run.figures["flops/forward"] == LARGE + 11
    assert (run.figures["compute/samples_total"], type(run.figures["compute/samples_total"])) == (7 * 20, int)
    assert isinstance(run.figures[COMPUTE], float)  # 20 * 2**50 is beyond what a float64 tells apart
    assert run.series[COMPUTE] == ((10, 2**50 * 10), (20, 2**50 * 20))
    assert run.series["val/loss"] == ((10, 1 / 10), (20, 1 / 20))
    assert run.config["flops.peak_tflops"] == 2
    assert run.config["flops.is_lower_bound"] is False
    assert run.own_metrics() == {"val/loss"}


@pytest.mark.parametrize("place", ["sqlite:///{file}", "{file}", "{folder}", "{folder}/mlruns"])
def test_a_store_is_named_by_address_file_or_folder(train, database, place):
    train(f"sqlite:///{database}", "one", "first")
    train(f"sqlite:///{database}", "two", "second")
    (database.parent / "mlruns").mkdir(exist_ok=True)
    place = place.format(file=database, folder=database.parent)
    assert [found.read().name for found in find_runs(place)] == ["one", "two"]
    assert [found.read().name for found in find_runs(f"{place}#second")] == ["two"]


def test_a_deleted_run_is_not_compared(train, database):
    from mlflow import MlflowClient

    run_id = train(f"sqlite:///{database}", "one")
    train(f"sqlite:///{database}", "two")
    MlflowClient(f"sqlite:///{database}").delete_run(run_id)
    assert [found.read().name for found in find_runs(database)] == ["two"]


def test_a_prefix_is_found_in_metrics_and_tags(train, database):
    train(f"sqlite:///{database}", prefix="mine/")
    (found,) = find_runs(database)
    run = found.read()
    assert run.prefixes() == ["mine/"]
    bare = run.without_prefix("mine/")
    assert (bare.figures["flops/forward"], bare.config["flops.peak_tflops"]) == (LARGE + 11, 2)


def test_a_store_that_is_not_there_is_said_and_not_made(tmp_path):
    with pytest.raises(RunsError, match=r"there is no file nowhere\.db; an absolute path has four slashes"):
        find_runs("sqlite:///nowhere.db")
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_does_not_answer_is_said_at_once():
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(RunsError, match=rf"http://127\.0\.0\.1:{port}: no server answers there"):
        find_runs(f"http://127.0.0.1:{port}#digits")


def test_the_files_of_an_older_mlflow_are_found_and_what_it_says_to_them_is_said(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    (tmp_path / "mlruns" / "0").mkdir(parents=True)
    (tmp_path / "mlruns" / "0" / "meta.yaml").touch()
    with pytest.raises(RunsError, match=r"mlruns: MLflow could not read it: .*maintenance mode"):
        find_runs(tmp_path / "mlruns")


def test_an_experiment_that_is_not_there_is_said_with_those_that_are(train, database):
    train(f"sqlite:///{database}", experiment="sweep")
    with pytest.raises(RunsError, match=r"there is no active experiment 'swep'; there are: .*sweep"):
        find_runs(f"{database}#swep")


def test_a_database_of_something_else_is_said_and_left_alone(tmp_path):
    (tmp_path / "text.db").write_text("not a database at all, but long enough to be looked at")
    with pytest.raises(RunsError, match=r"text\.db is no database that MLflow could read: file is not a database"):
        find_runs(tmp_path / "text.db")
    with closing(sqlite3.connect(tmp_path / "other.db")) as connection:
        connection.execute("CREATE TABLE recipes (name)")
    before = (tmp_path / "other.db").read_bytes()
    with pytest.raises(RunsError, match=r"other\.db is no database of MLflow's: it has no table of experiments"):
        find_runs(f"sqlite:///{tmp_path}/other.db")
    assert (tmp_path / "other.db").read_bytes() == before
