"""MLflow's stores are only read: whatever is in them, they are the same afterwards, and nothing is made beside them."""

from __future__ import annotations

import gc
import hashlib
import os
import re
import shlex
import shutil
import socket
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import mlflow_stores as stores
import pytest

from flopcallback.runs import RunsError, find_runs, without_password

pytestmark = [
    pytest.mark.mlflow,
    # 2026-11, mlflow 3.17 on SQLAlchemy 2.1: its own tables, when they are first imported.
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning"),
]

BIN = Path(sys.executable).parent


@pytest.fixture(autouse=True)
def apart(tmp_path, monkeypatch):
    """The working directory is an empty one, where it would show if something was made."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with stores.fluent_state_put_back():
        yield


def state(folder):
    """Every path below a folder, with a digest of each file."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in folder.rglob("*")
    }


@pytest.fixture
def database(empty_database, tmp_path):
    """A store with one run, `net`, whose loss was logged at three steps, and one number that is none."""
    from mlflow import MlflowClient

    (tmp_path / "store").mkdir()
    file = Path(shutil.copy(empty_database, tmp_path / "store" / "mlflow.db"))
    client = MlflowClient(f"sqlite:///{file}")
    run = client.create_run("0", run_name="net").info.run_id
    client.log_param(run, "lr", 0.1)
    for step in (1, 2, 3):
        client.log_metric(run, "val/loss", 1 / step, step=step)
    client.log_metric(run, "val/acc", float("nan"), step=3)
    return file


def execute(file, *statements):
    with closing(sqlite3.connect(file)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


def loss(place):
    (found,) = find_runs(place)
    return found.read().series["val/loss"]


# --- Of the installed version -----------------------------------------------------------------------------------------


def test_a_store_that_is_read_is_the_same_afterwards(database, tmp_path):
    before = state(tmp_path)
    for place in (database, database.parent, f"sqlite:///{database}", f"sqlite+pysqlite:///{database}"):
        (found,) = find_runs(place)
        run = found.read()
        assert (run.name, run.config["lr"]) == ("net", "0.1")
        assert run.series["val/loss"] == ((1, 1.0), (2, 0.5), (3, 1 / 3))
        assert run.figures["val/acc"] != run.figures["val/acc"]
    assert state(tmp_path) == before


def test_no_default_experiment_is_made(database, tmp_path):
    execute(database, "DELETE FROM latest_metrics", "DELETE FROM metrics", "DELETE FROM params", "DELETE FROM tags")
    execute(database, "DELETE FROM runs", "DELETE FROM experiments")
    before = state(tmp_path)
    with pytest.raises(RunsError, match="no runs are here"):
        find_runs(database)
    assert state(tmp_path) == before


def test_a_file_that_nobody_may_write_is_read(database, tmp_path):
    database.chmod(0o444)
    database.parent.chmod(0o555)
    try:
        assert len(loss(database)) == 3
    finally:
        database.parent.chmod(0o755)


def test_a_store_with_a_write_ahead_log_is_read_and_left_without_one(database, tmp_path):
    execute(database, "PRAGMA journal_mode = WAL")
    before = state(tmp_path)
    assert [path.name for path in database.parent.iterdir()] == ["mlflow.db"]
    assert len(loss(database)) == 3
    assert state(tmp_path) == before


@pytest.mark.parametrize("is_open", [True, False], ids=["while it is written", "as it was copied"])
def test_what_is_still_in_the_write_ahead_log_is_read(database, tmp_path, is_open):
    with closing(sqlite3.connect(database)) as writer:
        writer.execute("PRAGMA journal_mode = WAL")
        writer.execute("PRAGMA wal_autocheckpoint = 0")
        writer.execute("UPDATE runs SET name = 'later'")
        writer.commit()
        place = database
        if not is_open:
            (tmp_path / "copy").mkdir()
            for suffix in ("", "-wal"):
                shutil.copy(f"{database}{suffix}", tmp_path / "copy")
            place = tmp_path / "copy" / "mlflow.db"
        before = state(place.parent)
        (found,) = find_runs(place)
        assert found.read().name == "later"
        assert state(place.parent) == before
        assert ("mlflow.db-shm" in before) == is_open


@pytest.mark.parametrize("index", ["as it was", b"", bytes(32768), None], ids=["whole", "empty", "zeros", "missing"])
@pytest.mark.parametrize("log", ["as it was", b"", None], ids=["log", "empty log", "no log"])
def test_what_a_crash_left_of_a_write_ahead_log_is_read_and_left_as_it_is(database, tmp_path, log, index):
    (tmp_path / "crashed").mkdir()
    with closing(sqlite3.connect(database)) as writer:
        writer.execute("PRAGMA journal_mode = WAL")
        writer.execute("PRAGMA wal_autocheckpoint = 0")
        writer.execute("UPDATE runs SET name = 'later'")
        writer.commit()
        for suffix in ("", "-wal", "-shm"):
            shutil.copy(f"{database}{suffix}", tmp_path / "crashed")
    place = tmp_path / "crashed" / "mlflow.db"
    for suffix, content in (("-wal", log), ("-shm", index)):
        if content is None:
            Path(f"{place}{suffix}").unlink()
        elif isinstance(content, bytes):
            Path(f"{place}{suffix}").write_bytes(content)
    before = state(place.parent)
    (found,) = find_runs(place)
    assert found.read().name == ("later" if log == "as it was" else "net")
    assert state(place.parent) == before


def test_the_copies_of_a_database_are_removed_with_what_reads_them(database, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "here"))
    with closing(sqlite3.connect(database)) as writer:
        writer.execute("PRAGMA journal_mode = WAL")
        writer.execute("UPDATE runs SET name = 'later'")
        writer.commit()
        (found,) = find_runs(database)
        assert len(os.listdir()) == 1  # for the list and for all runs
        assert (found.read().name, found.read().name) == ("later", "later")
        assert len(os.listdir()) == 1
    del found
    gc.collect()
    assert os.listdir() == []


def test_a_database_that_is_written_to_at_each_copy_is_refused(database, monkeypatch):
    with closing(sqlite3.connect(database)) as writer:
        writer.execute("PRAGMA journal_mode = WAL")
        writer.execute("UPDATE runs SET name = 'later'")
        writer.commit()
        states = iter(range(1000))
        monkeypatch.setattr("flopcallback_mlflow.database._state", lambda *_: next(states))
        with pytest.raises(RunsError, match=r"mlflow\.db is written to all the time; try again later"):
            find_runs(database)


def test_a_write_that_was_interrupted_is_said_and_not_undone(database, tmp_path):
    (tmp_path / "crashed").mkdir()
    with closing(sqlite3.connect(database, isolation_level=None)) as writer:
        writer.execute("PRAGMA cache_size = 2")  # so that pages are written before the end
        writer.execute("BEGIN")
        writer.execute("CREATE TABLE q (a)")
        writer.executemany("INSERT INTO q VALUES (?)", [("x" * 3000,)] * 300)
        for suffix in ("", "-journal"):
            shutil.copy(f"{database}{suffix}", tmp_path / "crashed")
        writer.execute("ROLLBACK")
    before = state(tmp_path)
    with pytest.raises(RunsError, match=r"a write to it was interrupted, .*; open it once with MLflow"):
        find_runs(tmp_path / "crashed" / "mlflow.db")
    assert state(tmp_path) == before


BAD = [
    ("UPDATE runs SET start_time = 'abc' WHERE name = 'bad'", "start_time is 'abc', which is no number"),
    ("UPDATE runs SET name = x'ff00' WHERE name = 'bad'", r"the name of a run is b'\xff\x00', no text"),
    ("UPDATE latest_metrics SET value = 'abc' WHERE run_uuid = {}", "val/loss is 'abc', which is no number"),
    ("UPDATE metrics SET value = 'abc' WHERE run_uuid = {}", "val/loss is 'abc', which is no number"),
    (
        "UPDATE metrics SET timestamp = 'abc' WHERE run_uuid = {} AND step = 1",
        "a timestamp is 'abc', which is no number",
    ),
    ("UPDATE metrics SET step = 'abc' WHERE run_uuid = {} AND step = 1", "a step is 'abc', which is no whole number"),
    ("UPDATE latest_metrics SET key = x'ff' WHERE run_uuid = {}", r"a name is b'\xff', which is no text"),
    ("UPDATE params SET value = x'ff' WHERE run_uuid = {}", r"lr is b'\xff', which is no text"),
    ("UPDATE tags SET value = x'ff' WHERE run_uuid = {}", r"is b'\xff', which is no text"),
    (
        "INSERT INTO latest_metrics (key, value, timestamp, step, is_nan, run_uuid) "
        "VALUES ('compute/flops_total', -7, 1, 1, 0, {})",
        "compute/flops_total is -7, and a total is 0 or more",
    ),
]


@pytest.mark.parametrize(("statement", "said"), BAD)
def test_a_row_that_is_none_leaves_out_its_run_and_no_other(database, statement, said):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{database}")
    bad = client.create_run("0", run_name="bad").info.run_id
    client.log_param(bad, "lr", 0.1)
    for step in (1, 2):
        client.log_metric(bad, "val/loss", 1 / step, step=step)
    execute(database, statement.format(f"'{bad}'"))
    found = {each.place.rpartition("/")[2]: each for each in find_runs(database)}
    with pytest.raises(RunsError) as raised:
        found.pop(bad).read()
    assert said in str(raised.value)
    assert bad in str(raised.value)
    (other,) = found.values()
    assert other.read().name == "net"


def test_a_tag_without_a_value_is_empty(database):
    execute(database, "UPDATE tags SET value = NULL")
    (found,) = find_runs(database)
    assert found.read().name == "net"


def test_a_folder_of_files_is_read_and_left_as_it_is(tmp_path, monkeypatch):
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    folder = tmp_path / "my runs" / "mlruns"
    client = MlflowClient(folder.as_uri())
    run = client.create_run(client.create_experiment("sweep"), run_name="net").info.run_id
    for step in (1, 2):
        client.log_metric(run, "val/loss", 1 / step, step=step)
    shutil.rmtree(folder / ".trash")
    before = state(tmp_path)
    for place in (folder, f"{folder.as_uri()}#sweep"):
        assert loss(place) == ((1, 1.0), (2, 0.5))
    assert state(tmp_path) == before


# --- Of another version, or of another program ------------------------------------------------------------------------


def half_upgraded(file):
    """A database as MLflow made them when half of its migrations were written."""
    from alembic import command
    from alembic.script import ScriptDirectory
    from mlflow.store.db.utils import _get_alembic_config
    from mlflow.store.tracking.dbmodels.initial_models import Base
    from sqlalchemy import create_engine

    config = _get_alembic_config(f"sqlite:///{file}")
    revisions = [each.revision for each in ScriptDirectory.from_config(config).walk_revisions()][::-1]
    engine = create_engine(f"sqlite:///{file}")
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revisions[len(revisions) // 2])
    engine.dispose()


def test_an_older_store_is_left_as_it_is_and_the_command_that_is_named_makes_it_readable(tmp_path):
    folder = tmp_path / "my runs"
    folder.mkdir()
    half_upgraded(folder / "mlflow.db")
    before = state(tmp_path)
    with pytest.raises(RunsError, match="has the tables of an older MLflow, and is left as it is") as raised:
        find_runs(folder / "mlflow.db")
    assert state(tmp_path) == before
    told = str(raised.value).partition("then run: ")[2]
    assert told == f"mlflow db upgrade 'sqlite:///{folder}/mlflow.db'"
    program, *arguments = shlex.split(told)
    subprocess.run([BIN / program, *arguments], check=True, capture_output=True)
    with pytest.raises(RunsError, match="no runs are here"):
        find_runs(folder / "mlflow.db")


def test_a_newer_store_is_left_as_it_is(database, tmp_path):
    execute(database, "UPDATE alembic_version SET version_num = 'f00000000000'")
    before = state(tmp_path)
    with pytest.raises(RunsError, match=r"does not know, .* A newer one made them: pip install --upgrade mlflow"):
        find_runs(database)
    assert state(tmp_path) == before


def test_a_store_that_does_not_say_its_version_is_said(database, tmp_path):
    execute(database, "DELETE FROM alembic_version")
    before = state(tmp_path)
    with pytest.raises(RunsError, match=r"does not say which MLflow made its tables \(alembic_version is empty\)"):
        find_runs(database)
    assert state(tmp_path) == before


INITIAL = ("experiments", "runs", "metrics", "params", "tags", "experiment_tags", "latest_metrics", "alembic_version")


@pytest.mark.parametrize(
    ("statements", "complaint"),
    [
        (["CREATE TABLE recipes (name)"], "it has no table of experiments"),
        (["CREATE TABLE experiments (name)"], "it has no table of"),
        (
            ["CREATE TABLE alembic_version (version_num)", "INSERT INTO alembic_version VALUES ('f00000000000')"],
            "it has no table of experiments",
        ),
        (
            [f"CREATE TABLE {name} (version_num)" for name in INITIAL]
            + ["INSERT INTO alembic_version VALUES ('f00000000000')"],
            "has other columns",
        ),
        ([f"CREATE TABLE {name} (version_num)" for name in INITIAL], "has other columns"),
        (["PRAGMA user_version = 7"], "it has no table of experiments"),
    ],
)
def test_a_database_of_another_program_is_left_as_it_is(tmp_path, statements, complaint):
    execute(tmp_path / "mlflow.db", *statements)
    before = state(tmp_path)
    with pytest.raises(RunsError, match=rf"mlflow\.db is no database of MLflow's: .*{complaint}"):
        find_runs(tmp_path / "mlflow.db")
    assert state(tmp_path) == before


def test_a_store_that_cannot_be_opened_is_left_out_beside_runs_that_can(net, database, tmp_path):
    from flopcallback.trackers import LocalTracker

    LocalTracker(tmp_path / "store" / "report").log_profile(net((5, 3)), 0)
    execute(database, "UPDATE alembic_version SET version_num = 'f00000000000'")
    report, store = find_runs(tmp_path / "store")
    assert report.read().figures["flops/forward"] == 5 + 3
    with pytest.raises(RunsError, match="A newer one made them"):
        store.read()


# --- Addresses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("postgresql+psycopg2://me:secret@host:5432/db", "postgresql+psycopg2://me:***@host:5432/db"),
        ("mysql://me:se:cr%40et@host/db", "mysql://me:***@host/db"),
        ("https://me@host/a:b@c", "https://me@host/a:b@c"),
        ("sqlite:////tmp/a:b@c.db", "sqlite:////tmp/a:b@c.db"),
    ],
)
def test_no_password_is_shown(address, shown):
    assert without_password(address) == shown


def test_a_server_that_does_not_answer_is_said_without_the_password():
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(RunsError, match=rf"^http://me:\*\*\*@127\.0\.0\.1:{port}: no server answers") as raised:
        find_runs(f"http://me:secret@127.0.0.1:{port}")
    assert "secret" not in str(raised.value)


def test_a_database_whose_driver_is_not_installed_is_said():
    with pytest.raises(RunsError, match=r"^postgresql://me:\*\*\*@127\.0\.0\.1:9/db: No module named 'psycopg"):
        find_runs("postgresql://me:secret@127.0.0.1:9/db")


@pytest.mark.parametrize("address", ["sqlite://", "sqlite:///:memory:", "sqlite+pysqlite://"])
def test_an_address_of_no_file_is_said(address):
    with pytest.raises(RunsError, match=rf"^{re.escape(address)} names no file; sqlite:///mlflow.db is one in the"):
        find_runs(address)


def test_an_address_that_is_none_is_said():
    with pytest.raises(RunsError, match=r"^sqlite://:::/x is no address of a database"):
        find_runs("sqlite://:::/x")


def test_the_working_directory_of_a_reader_stays_empty(database):
    assert len(loss(database)) == 3
    assert os.listdir() == []
