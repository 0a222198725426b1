"""Runs read back from W&B's own offline folders."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from wandb_files import RunFiles

from flopcallback.runs import RunsError, find_runs
from flopcallback.trackers import tracker_for

pytestmark = [
    pytest.mark.wandb,
    # 2026-11, wandb 0.31: it leaves the temporary folder of a table's artifact to the garbage collector.
    pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning"),
]


COMPUTE = "compute/hw_flops_total"
STEP = 2**53 + 1
"""Hardware FLOPs of a step: more than a browser keeps exactly."""


@pytest.fixture
def start(wandb_folders, tmp_path):
    """Starts a run, as a user would."""
    import wandb

    def started(name=None):
        quiet = {"silent": True, "console": "off", "x_disable_stats": True, "disable_git": True}
        settings = wandb.Settings(**quiet, disable_job_creation=True)
        return wandb.init(dir=tmp_path, mode="offline", project="p", name=name, config={"lr": 0.1}, settings=settings)

    yield started
    wandb.finish()


@pytest.fixture
def train(start, net):
    """Makes a run, as a user's loop would, and gives its folder."""

    def trained(name=None, *, prefix=""):
        run = start(name)
        tracker = tracker_for(run, prefix=prefix)
        profile = net((7, 11), phase="train", config={"flops.fma": 2})
        tracker.log_scalars({prefix + key: value for key, value in profile.scalars().items()}, 0)
        tracker.log_profile(profile, 0)
        for step in (1, 2, 3):
            if step < 3:
                tracker.log_scalars({f"{prefix}{COMPUTE}": STEP * step}, step)
            run.log({"val/loss": 1 / step if step < 3 else math.nan, "kind": "text"})
        tracker.close()
        run.finish()
        folder = Path(run.dir).parent
        RunFiles(folder)  # another process writes it, and waits for nobody; this waits for that
        return folder

    return trained


def test_an_offline_run_is_read_with_history_summary_and_config(train):
    (found,) = find_runs(train("width 8"))
    run = found.read()
    assert run.name == "width 8"
    assert run.figures["flops/forward"] == 7 + 11
    assert run.figures[COMPUTE] == STEP * 2
    assert run.series[COMPUTE] == ((0, STEP), (1, STEP * 2))
    assert [value for _, value in run.series["val/loss"][:2]] == [1.0, 0.5]
    assert math.isnan(run.figures["val/loss"])
    assert (run.config["flops.fma"], run.config["lr"]) == (2, 0.1)
    assert run.own_metrics() == {"val/loss"}


def test_a_metric_stands_at_the_compute_of_its_own_row(train):
    from flopcallback.reporting.comparison import metric_against_compute

    (found,) = find_runs(train())
    assert metric_against_compute(found.read(), "val/loss") == [(STEP, 1.0), (STEP * 2, 0.5)]


def test_a_folder_of_runs_has_each_of_them_once(train, tmp_path):
    for name in ("one", "two"):
        train(name)
    assert (tmp_path / "wandb" / "latest-run").is_symlink()
    for place in (tmp_path, tmp_path / "wandb"):
        assert sorted(found.read().name for found in find_runs(place)) == ["one", "two"]


def test_a_prefix_is_found(train):
    (found,) = find_runs(train(prefix="mine/"))
    run = found.read()
    assert run.prefixes() == ["mine/"]
    bare = run.without_prefix("mine/")
    assert (bare.figures["flops/forward"], bare.config["flops.fma"]) == (7 + 11, 2)
    assert bare.figures[COMPUTE] == STEP * 2


def test_a_log_of_many_blocks_is_read_as_wandb_itself_reads_it(start):
    import wandb
    from flopcallback_wandb.log import records, values

    run = start()
    for step in range(700):
        run.log({"a": step / 7, "b": {"c": step, "d": 2**60 + step}, "text": "x" * (step % 311), "flag": True})
    run.log({"table": wandb.Table(columns=["x"], data=[["y" * 70_000]]), "inf": -math.inf})
    run.log({"long": "z" * 100_000})
    run.finish()
    read = RunFiles(Path(run.dir).parent)
    (log,) = read.folder.glob("run-*.wandb")
    rows = [values(record.history.item) for record in records(log) if record.WhichOneof("record_type") == "history"]
    assert log.stat().st_size > 5 * 32768
    assert len(rows) == 702
    assert [{**row, "inf": str(row["inf"])} if "inf" in row else row for row in rows] == [
        {**row, "inf": "-inf"} if "inf" in row else row for row in read.rows
    ]


def test_a_run_that_was_cut_off_is_read_as_far_as_it_goes(train):
    folder = train()
    (log,) = folder.glob("run-*.wandb")
    log.write_bytes(log.read_bytes()[:-40])
    (found,) = find_runs(folder)
    assert found.read().figures["flops/forward"] == 7 + 11


def test_a_log_that_is_none_is_said(tmp_path, wandb_folders):
    folder = tmp_path / "offline-run-1"
    folder.mkdir()
    (folder / "run-1.wandb").write_text("nothing of the kind, at some length")
    (found,) = find_runs(folder)
    with pytest.raises(RunsError, match=r"run-1\.wandb is no log of W&B's"):
        found.read()
