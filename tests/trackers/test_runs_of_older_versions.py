"""Runs that an older version logged: every reader gives them today's names, and no FLOPs of another unit."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import mlflow_stores as stores
import old_names
import pytest
from wandb_files import RunFiles

from flopcallback.reporting import ModelProfile, StepFlops
from flopcallback.reporting.comparison import compare_runs
from flopcallback.runs import RunRecord, find_runs
from flopcallback.trackers import LocalTracker, tracker_for

pytestmark = [
    # 2026-11, wandb 0.31: it leaves the temporary folder of a table's artifact to the garbage collector.
    pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning"),
    # 2026-11, mlflow 3.17 on SQLAlchemy 2.1: its own tables, when they are first imported.
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning"),
]

COMPUTE, STEP = "compute/flops_total", 1001
scalars, to_json = ModelProfile.scalars, ModelProfile.to_json


@contextlib.contextmanager
def folder(place, prefix):
    yield LocalTracker(place), place


@contextlib.contextmanager
def tensorboard(place, prefix):
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(place)) as writer:
        yield tracker_for(writer, prefix=prefix), place


@contextlib.contextmanager
def wandb(place, prefix):
    import wandb

    settings = wandb.Settings(silent=True, console="off", x_disable_stats=True, disable_git=True)
    run = wandb.init(dir=place, mode="offline", project="p", name="old", settings=settings)
    tracker = tracker_for(run, prefix=prefix)
    log = run.log
    yield tracker, place
    log({})
    tracker.close()
    run.finish()
    RunFiles(Path(run.dir).parent)  # waits for the process that writes it


@contextlib.contextmanager
def mlflow(place, prefix):
    from mlflow import MlflowClient

    uri = f"sqlite:///{place / 'mlflow.db'}"
    client = MlflowClient(uri)
    home = client.create_experiment("sweep", artifact_location=(place / "artifacts").as_uri())
    run_id = client.create_run(home, run_name="old").info.run_id
    yield tracker_for((client, run_id), prefix=prefix), uri
    client.set_terminated(run_id)


SOURCES = [
    folder,
    pytest.param(tensorboard, marks=pytest.mark.tensorboard),
    pytest.param(wandb, marks=pytest.mark.wandb),
    pytest.param(mlflow, marks=pytest.mark.mlflow),
]


@pytest.fixture
def place(tmp_path, monkeypatch, request):
    """A folder; MLflow and W&B write nowhere else."""
    monkeypatch.chdir(tmp_path)
    source = request.node.callspec.params["source"].__name__
    if source == "wandb":
        request.getfixturevalue("wandb_folders")
    if source == "mlflow":
        shutil.copy(request.getfixturevalue("empty_database"), tmp_path / "mlflow.db")
    with stores.fluent_state_put_back() if source == "mlflow" else contextlib.nullcontext():
        yield tmp_path


@pytest.fixture
def train(net, monkeypatch):
    """Logs what an older version logged of a training, or of one that was killed after its first step."""

    def trained(source, place, prefix, *, fma=1, is_killed=False):
        profile = net((14, 22), config={"flops.fma": fma, "flops.dtype": "float32"})
        rows = {row.path: StepFlops(row.flops, 2 * row.flops, 3, 4) for row in profile.modules}
        former = json.dumps(old_names.former_json(profile, fma=fma))
        with monkeypatch.context() as patch, source(place, prefix) as (tracker, address):
            patch.setattr(ModelProfile, "to_json", lambda each, **_: json.dumps(_former(each, to_json, fma)))
            patch.setattr(ModelProfile, "scalars", lambda each: _logged(each, fma))
            _chart_everything(patch, tracker)
            tracker.log_scalars({prefix + name: value for name, value in profile.scalars().items()}, 0)
            tracker.log_profile(profile, 0)
            if not is_killed:
                profile = profile.with_step(rows)
                values = profile.scalars()
                tracker.log_scalars({prefix + name: value for name, value in values.items()}, 1)
                tracker.log_profile(profile, 1)
                for step in (1, 2):
                    numbers = {"compute/hw_flops_total": STEP * step, "perf/hw_tflops_per_sec": 0.5 * step}
                    values = {prefix + name: value for name, value in numbers.items()}
                    tracker.log_scalars({**values, "val/loss": 1 / step}, step)
                    if source is wandb:
                        tracker.run.log({})
                tracker.log_training(replace(profile, training={"compute/hw_flops_total": 2 * STEP}))
        assert '"hw_flops"' in former
        return address

    return trained


def _chart_everything(patch, tracker):
    """Older versions charted all numbers, and W&B's summary had the integers beside the user's."""
    adapter = sys.modules[type(tracker).__module__]
    for name, then in (("placed", lambda values: (values, {})), ("note", lambda *_: None)):
        if hasattr(adapter, name):
            patch.setattr(adapter, name, then)
    if hasattr(tracker, "_keep"):
        patch.setattr(tracker, "_keep", lambda values, gone=(): tracker.run.summary.update(_integers(values)))


def _integers(values):
    return {name: value for name, value in values.items() if isinstance(value, int)}


def _former(profile, to_json, fma):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ModelProfile, "to_json", to_json)
        return old_names.former_json(profile, fma=fma)


def _logged(profile, fma):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ModelProfile, "scalars", scalars)
        return old_names.former_scalars(profile, fma=fma)


def read(address):
    """The one run there, and the texts of warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DeprecationWarning)
        (found,) = find_runs(address)
        run, _ = found.read(), found.read()
    return run, [str(each.message) for each in caught if "flopcallback" in str(each.message)]


@pytest.mark.parametrize("prefix", ["", "mine/"])
@pytest.mark.parametrize("source", SOURCES)
def test_numbers_have_todays_names(source, place, train, prefix):
    run, told = read(train(source, place, prefix))
    assert len(told) == 1
    assert run.prefixes() == [prefix]
    bare = run.without_prefix(prefix)
    assert bare.figures[COMPUTE] == 2 * STEP
    assert [value for _, value in bare.series[COMPUTE]] == [STEP, 2 * STEP]
    assert bare.figures["perf/tflops_per_sec"] == 1.0
    assert {name: bare.figures[f"flops/{name}"] for name in ("train_step", "backward", "recompute", "optimizer")} == {
        "train_step": 3 * (14 + 22) + 3 + 4,
        "backward": 2 * (14 + 22),
        "recompute": 3,
        "optimizer": 4,
    }
    assert not [name for name in (*run.figures, *run.series) if "hw" in name]
    assert not [key for key in run.config if key.endswith("fma")]
    assert bare.config["flops.dtype"] == "float32"
    assert bare.own_metrics() == {"val/loss"}


@pytest.mark.parametrize("fma", [1, 2])
@pytest.mark.parametrize("is_killed", [False, True])
@pytest.mark.parametrize("source", SOURCES)
def test_flops_of_the_forward_are_those_of_the_profile_or_left_out(source, place, train, is_killed, fma):
    run, _ = read(train(source, place, "", fma=fma, is_killed=is_killed))
    # Beside a folder's numbers and TensorBoard's events stands the profile, which has both counts.
    expected = 14 + 22 if source in (folder, tensorboard) else None
    assert run.figures.get("flops/forward") == expected
    assert "flops/forward" not in run.series
    if fma == 1:
        assert run.figures["macs/forward"] == 7 + 11
    assert compare_runs([run]).rows[0].value("flops") == expected


@pytest.mark.tensorboard
def test_tensorboard_shows_a_profile_anew_where_an_older_version_showed_it_in_its_unit(tmp_path, train, net):
    from torch.utils.tensorboard import SummaryWriter

    train(tensorboard, tmp_path, "")
    assert json.loads((tmp_path / "flopcallback.json").read_bytes())["flopcallback_profile"] == 3
    with SummaryWriter(str(tmp_path)) as writer:
        tracker_for(writer).log_profile(net((14, 22)), 100)
    assert json.loads((tmp_path / "flopcallback.json").read_bytes())["flopcallback_profile"] == 4


def test_batches_of_older_and_newer_runs_are_compared():
    old = {"flops/forward": 8 * 7, "flops/forward_per_sample": 7}
    new = {"flops/forward": 4 * 14, "flops/forward_per_sample": 14}
    with pytest.warns(DeprecationWarning, match="an older flopcallback wrote"):
        runs = [RunRecord("old", "old", figures=old, config={"flops.fma": 1}), RunRecord("new", "new", figures=new)]
    assert compare_runs(runs).notes == ("FLOPs and times are of the counted batch, whose size differs: 4, 8 samples",)


def test_a_training_that_went_on_with_this_version_is_one_run():
    series = {
        "mine/compute/hw_flops_total": ((1, 10), (2, 20)),
        "mine/compute/flops_total": ((3, 30), (2, 21)),
        "hw/loss": ((1, 0.5),),
    }
    figures = {name: points[-1][1] for name, points in series.items()}
    with pytest.warns(DeprecationWarning, match="an older flopcallback wrote"):
        run = RunRecord("r", "r", figures={**figures, "mine/compute/flops_total": 30}, series=series)
    assert run.series == {"mine/compute/flops_total": ((1, 10), (2, 20), (2, 21), (3, 30)), "hw/loss": ((1, 0.5),)}
    assert run.figures == {"mine/compute/flops_total": 30, "hw/loss": 0.5}


@pytest.mark.parametrize("names", [["loss_hw"], ["hw/flops"], ["hw_flops_total"], ["flops/forward"]])
def test_a_users_own_names_make_no_run_an_older_one(names):
    run = RunRecord("r", "r", figures=dict.fromkeys(names, 1))
    assert list(run.figures) == names
