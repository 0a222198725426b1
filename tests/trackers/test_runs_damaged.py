"""Files of every kind that runs are read from, damaged anywhere: read, or refused with a sentence."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import damage
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner
from wandb_files import RunFiles

from flopcallback.cli.app import app
from flopcallback.runs import RunsError, find_runs
from flopcallback.trackers import LocalTracker, tracker_for

pytestmark = pytest.mark.slow

COMPUTE = "compute/flops_total"

# A folder of the test's is written anew for each example.
EXAMPLES = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def good(net, tmp_path_factory):
    """A run that nothing is the matter with."""
    tracker = LocalTracker(tmp_path_factory.mktemp("good") / "good")
    tracker.log_profile(net((7, 11)), 0)
    tracker.log_scalars({COMPUTE: 36, "val/loss": 0.5}, 1)
    return tracker.folder


def is_read(place):
    """Whether all runs at a place can be read; nothing but `RunsError` may be raised."""
    try:
        for found in find_runs(place):
            found.read()
    except RunsError as error:
        assert str(error)  # noqa: PT017 - whatever the damage, there is a sentence
        return False
    return True


def compare(good, place):
    """The command on a good and on a damaged run: it compares what it can, and says what it leaves out."""
    result = CliRunner().invoke(app, ["compare", str(good), str(place)], prog_name="flopcallback")
    assert result.exit_code in (0, 2), result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    assert "itself failed" not in result.output
    assert ("Left out: " in result.stderr) or ("Error: " in result.stderr) or is_read(place)
    return result


# --- Our own files, and Lightning's -----------------------------------------------------------------------------------

LINES = [{"step": 1, COMPUTE: 10**21, "val/loss": 0.5}, {"step": 2, COMPUTE: 2 * 10**21, "val/loss": None}]

CSV = b"step,epoch,val/loss,train/loss\n1,0,0.5,\n2,0,,0.25\n3,1,0.125,\n"


@EXAMPLES
@given(text=damage.damaged_json(LINES))
def test_lines_of_other_json_are_read_or_refused(good, tmp_path, text):
    (tmp_path / "run").mkdir(exist_ok=True)
    try:
        lines = json.loads(text)
    except ValueError:
        lines = text
    texts = [json.dumps(line) for line in lines] if isinstance(lines, list) else [str(lines)]
    (tmp_path / "run" / "scalars.jsonl").write_text("\n".join(texts) + "\n", encoding="utf-8", errors="surrogatepass")
    compare(good, tmp_path / "run")


@EXAMPLES
@given(content=damage.damaged_bytes("".join(f"{json.dumps(line)}\n" for line in LINES).encode()))
def test_damaged_lines_are_read_or_refused(good, tmp_path, content):
    (tmp_path / "run").mkdir(exist_ok=True)
    (tmp_path / "run" / "scalars.jsonl").write_bytes(content)
    compare(good, tmp_path / "run")


@EXAMPLES
@given(content=damage.damaged_bytes(CSV))
def test_a_damaged_csv_is_read_or_refused(good, tmp_path, content):
    shutil.copytree(good, tmp_path / "run", dirs_exist_ok=True)
    (tmp_path / "run" / "metrics.csv").write_bytes(content)
    compare(good, tmp_path / "run")


@EXAMPLES
@given(data=st.data())
def test_a_damaged_profile_is_read_or_refused(good, tmp_path, data):
    content = json.loads((good / "flopcallback.json").read_bytes())
    (tmp_path / "net.json").write_text(data.draw(damage.damaged_json(content)))
    compare(good, tmp_path / "net.json")
    arguments = ["diff", str(good / "flopcallback.json"), str(tmp_path / "net.json"), "--json"]
    result = CliRunner().invoke(app, arguments, prog_name="flopcallback")
    assert result.exit_code in (0, 2), result.output
    assert "itself failed" not in result.output


# --- Those of trackers ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def events(tmp_path_factory):
    """The bytes of a file of events."""
    from torch.utils.tensorboard import SummaryWriter

    folder = tmp_path_factory.mktemp("events")
    with SummaryWriter(str(folder)) as writer:
        for step in range(20):
            writer.add_scalar(COMPUTE, 7.0 * step, step)
            writer.add_scalar("val/loss", 0.5, step, new_style=True)
    (file,) = folder.iterdir()
    return file.read_bytes()


@pytest.mark.tensorboard
@EXAMPLES
@given(data=st.data())
def test_damaged_events_are_read_or_refused(good, events, tmp_path, data):
    (tmp_path / "run").mkdir(exist_ok=True)
    (tmp_path / "run" / "events.out.tfevents.1").write_bytes(data.draw(damage.damaged_bytes(events)))
    compare(good, tmp_path / "run")


@pytest.fixture(scope="module")
def wandb_log(tmp_path_factory):
    """The bytes of W&B's log, longer than a block of it."""
    import wandb

    folder = tmp_path_factory.mktemp("wandb")
    quiet = {"silent": True, "console": "off", "x_disable_stats": True, "disable_git": True}
    patch = pytest.MonkeyPatch()
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_ARTIFACT_DIR"):
        patch.setenv(name, str(folder / name))
    run = wandb.init(
        dir=folder, mode="offline", project="p", settings=wandb.Settings(**quiet, disable_job_creation=True)
    )
    for step in range(20):
        run.log({COMPUTE: 7 * step, "val/loss": 0.5, "text": "x" * 3000})
    run.finish()
    patch.undo()
    read = RunFiles(Path(run.dir).parent)
    (log,) = read.folder.glob("run-*.wandb")
    return log.read_bytes()


@pytest.mark.wandb
@EXAMPLES
@given(data=st.data())
def test_a_damaged_log_is_read_or_refused(good, wandb_log, tmp_path, data):
    (tmp_path / "run").mkdir(exist_ok=True)
    (tmp_path / "run" / "run-1.wandb").write_bytes(data.draw(damage.damaged_bytes(wandb_log)))
    compare(good, tmp_path / "run")


@pytest.fixture(scope="module")
def database(empty_database, tmp_path_factory):
    """The bytes of a store with a run in it, and nothing of MLflow's beside it."""
    from mlflow import MlflowClient

    file = Path(shutil.copy(empty_database, tmp_path_factory.mktemp("database") / "mlflow.db"))
    client = MlflowClient(f"sqlite:///{file}")
    run = client.create_run("0", run_name="net").info.run_id
    for step in range(20):
        client.log_metric(run, COMPUTE, 7 * step, step=step)
        client.log_metric(run, "val/loss", 0.5, step=step)
    tracker_for((client, run)).log_scalars({"flops/forward": 7}, 0)
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("VACUUM")
    return file.read_bytes()


@pytest.mark.mlflow
@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning")
@settings(EXAMPLES, max_examples=25)
@given(data=st.data())
def test_a_damaged_database_is_read_or_refused_and_left_as_it_is(good, database, tmp_path, data):
    content = bytearray(database)
    # Of the many pages, those at the front say what all others are.
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, 200) | st.integers(0, len(content) - 200))
        piece = data.draw(st.binary(min_size=1, max_size=100))
        content[at : at + len(piece)] = piece
    file = tmp_path / "mlflow.db"
    file.write_bytes(content)
    compare(good, file)
    assert file.read_bytes() == content
    assert [each.name for each in tmp_path.iterdir()] == ["mlflow.db"]


@pytest.mark.mlflow
@pytest.mark.tensorboard
@pytest.mark.wandb
@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning")
def test_whole_files_are_read(good, events, wandb_log, database, tmp_path):
    """The tests above would hold for readers that refuse everything."""
    for name, content in (("events.out.tfevents.1", events), ("run-1.wandb", wandb_log), ("mlflow.db", database)):
        (tmp_path / name).write_bytes(content)
    result = compare(good, tmp_path)
    assert "Left out" not in result.stderr
    assert result.exit_code == 0
