"""Runs that go on, or were killed: `compare` reads as much of them as was logged, exactly, wherever it is kept."""

from __future__ import annotations

from pathlib import Path

import mlflow_stores as stores
import places
import pytest

from flopcallback.runs import find_runs
from flopcallback.runs.comparison import compare_runs
from flopcallback.trackers import tracker_for

pytestmark = [
    # 2026-11, wandb 0.31: it leaves the temporary folder of a table's artifact to the garbage collector.
    pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning"),
    # 2026-11, mlflow 3.17 on SQLAlchemy 2.1: its own tables, when they are first imported.
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning"),
]

SPENT = 2**60 + 1
"""More than a float holds exactly."""


def in_wandb(folder, request, prefix):
    request.getfixturevalue("wandb_folders")
    run = places.start_wandb(folder)
    log(tracker_for(run, prefix=prefix), prefix, end_row=lambda: run.log({}))
    run.finish()  # as the process does when it is killed by anything but SIGKILL
    return str(Path(run.dir).parent)


def in_tensorboard(folder, request, prefix):
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        log(tracker_for(writer, prefix=prefix), prefix)
    return str(folder)


def in_tensorboardx(folder, request, prefix):
    from tensorboardX import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        log(tracker_for(writer, prefix=prefix), prefix)
    return str(folder)


def in_mlflow(folder, request, prefix):
    run = stores.Run(request.getfixturevalue("sqlite"), folder)
    log(tracker_for((run.client, run.id), prefix=prefix), prefix)
    return f"{run.uri}#{folder}"


def log(tracker, prefix, end_row=lambda: None):
    """What a training logs until its second log step; the tracker is never closed."""
    first = {"flops/forward": 2**70, "model/params": 7, "latency/step_ms": 2.5, "flops/unknown_calls": 0}
    spent = {"compute/flops_total": 5, "compute/estimated_pct": 0.0, "perf/mfu_pct": 20.0, "perf/tflops_per_sec": 0.5}
    later = {"compute/flops_total": SPENT, "compute/estimated_pct": 12.5, "perf/mfu_pct": 40.0}
    for step, values in enumerate([first, spent, later]):
        tracker.log_scalars({prefix + name: value for name, value in values.items()}, step)
        end_row()


PLACES = [
    pytest.param(in_wandb, marks=pytest.mark.wandb),
    pytest.param(in_tensorboard, marks=pytest.mark.tensorboard),
    pytest.param(in_tensorboardx, marks=pytest.mark.tensorboard),
    pytest.param(in_mlflow, marks=pytest.mark.mlflow),
]


@pytest.mark.parametrize("prefix", ["", "mine/", "a.b/c/"])
@pytest.mark.parametrize("place", PLACES)
def test_all_that_was_logged_is_read(place, prefix, tmp_path, request):
    (found,) = find_runs(place(tmp_path / "run", request, prefix))
    run = found.read()
    assert run.prefixes() == [prefix]
    run = run.without_prefix(prefix)
    is_float = place is in_mlflow  # of what is charted there, until the training ends
    assert run.figures["compute/flops_total"] == (float(SPENT) if is_float else SPENT)
    assert run.figures["flops/forward"] == 2**70
    assert {name: run.figures[name] for name in ("model/params", "latency/step_ms", "compute/estimated_pct")} == {
        "model/params": 7,
        "latency/step_ms": 2.5,
        "compute/estimated_pct": 12.5,
    }
    assert [value for _, value in run.series["perf/mfu_pct"]] == [20.0, 40.0]
    (row,) = compare_runs([run]).rows
    assert (row.value("mfu"), row.estimated_pct) == (30.0, 12.5)
    assert run.own_metrics() == set()
