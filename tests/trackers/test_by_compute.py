"""Compute as the x-axis of the user's own metrics, read back from what W&B, TensorBoard, MLflow and a folder keep."""

from __future__ import annotations

import importlib
import json
import math
import os
import subprocess
import sys
import warnings
from pathlib import Path

import mlflow_stores as stores
import places
import pytest
import torch
from torch import nn

import flopcallback
from flopcallback import FlopCallbackWarning, FlopHook
from flopcallback.trackers import DrawsByCompute, MemoryTracker, tracker_for

pytestmark = [
    # 2026-11, mlflow 3.17 on SQLAlchemy 2.1: its own tables, when they are first imported.
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning"),
    # 2026-11, wandb 0.31: it leaves the temporary folder of a table's artifact to the garbage collector.
    pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning"),
]


FLOPS = 7_654_321_013
"""Of a step, as the tests' `flops_fn` has it."""

BATCHES, EPOCHS, EVERY = 5, 2, 2

AFTER_STEPS = {steps: steps * FLOPS // 10**6 for steps in range(1, BATCHES * EPOCHS + 1)}
"""The step of a copy, in millions of FLOPs."""

VALIDATION = [(AFTER_STEPS[5], 1.0), (AFTER_STEPS[10], 0.5)]
TRAINING = [(AFTER_STEPS[steps], float(steps)) for steps in (2, 4, 5, 6, 8, 10)]
"""At every second step, and at step 5, where validation ends and whatever is new is logged."""
EPOCH_MEANS = [(AFTER_STEPS[5], (1 + 2 + 3 + 4 + 5) / 5), (AFTER_STEPS[10], (6 + 7 + 8 + 9 + 10) / 5)]


@pytest.fixture(autouse=True)
def apart(wandb_folders):
    """What trackers would write elsewhere stays in the test's folder."""


def points(folder, name):
    """Those of a name in `scalars.jsonl`."""
    lines = [json.loads(line) for line in (folder / "scalars.jsonl").read_text(encoding="utf-8").splitlines()]
    return [(line["step"], line[name]) for line in lines if name in line]


def in_events(folder, name):
    return places.in_tensorboard(Path(folder)).scalars[name]


# Under Lightning


def make_model(flavour):
    class Net(flavour.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(7, 3)
            self.seen = 0

        def training_step(self, batch, _):
            self.seen += 1
            self.log("train/step", float(self.seen), on_step=True, on_epoch=False)
            self.log("train/mean", float(self.seen), on_step=False, on_epoch=True, batch_size=2)
            return self.net(batch).square().mean()

        def validation_step(self, batch, _):
            self.log("val/loss", 1.0 / (self.current_epoch + 1), batch_size=2)
            self.log("val/same", 0.25, batch_size=2)

        def train_dataloader(self):
            return torch.utils.data.DataLoader(torch.ones(2 * BATCHES, 7), batch_size=2)

        val_dataloader = train_dataloader

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    return Net()


@pytest.fixture(params=["lightning.pytorch", "pytorch_lightning"])
def flavour(request):
    return importlib.import_module(request.param)


@pytest.fixture
def fit(flavour, tmp_path):
    """Trains, with the callback of a user who names these metrics."""

    def trained(logger, *by_compute, flops=FLOPS, epochs=EPOCHS, **options):
        callback = flopcallback.FlopCallback(
            by_compute=by_compute,
            **{"flops_fn": lambda batch: flops, "summary": False, "strict": True, "latency_steps": 0, **options},
        )
        quiet = dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
        trainer = flavour.Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            log_every_n_steps=EVERY,
            logger=logger,
            callbacks=[callback],
            default_root_dir=tmp_path,
            **quiet,
        )
        trainer.fit(make_model(flavour))
        return trainer

    return trained


def logger_of(flavour, name, **options):
    return getattr(importlib.import_module(f"{flavour.__name__}.loggers"), name)(**options)


METRICS = ("val/loss", "train/step", "train/mean")


@pytest.mark.lightning
def test_a_folder_has_copies_whose_step_is_compute_so_far(fit, tmp_path):
    fit(False, *METRICS, report_dir=tmp_path / "report")
    assert points(tmp_path / "report", "val/loss_by_compute") == VALIDATION
    assert points(tmp_path / "report", "train/step_by_compute") == TRAINING
    assert points(tmp_path / "report", "train/mean_by_compute") == EPOCH_MEANS


@pytest.mark.lightning
@pytest.mark.tensorboard
def test_tensorboard_has_copies_beside_what_its_logger_wrote(fit, flavour, tmp_path):
    logger = logger_of(flavour, "TensorBoardLogger", save_dir=tmp_path)
    fit(logger, *METRICS)
    assert in_events(logger.log_dir, "val/loss_by_compute") == VALIDATION
    assert in_events(logger.log_dir, "train/step_by_compute") == TRAINING
    assert in_events(logger.log_dir, "val/loss") == [(4, 1.0), (9, 0.5)]


@pytest.mark.lightning
@pytest.mark.mlflow
def test_mlflow_has_copies_beside_what_its_logger_wrote(fit, flavour, sqlite, tmp_path):
    run = stores.Run(sqlite, tmp_path / "artifacts")
    with stores.fluent_state_put_back():
        fit(logger_of(flavour, "MLFlowLogger", tracking_uri=run.uri, run_id=run.id), *METRICS)
    assert run.points("val/loss_by_compute") == VALIDATION
    assert run.points("train/step_by_compute") == TRAINING
    assert run.points("val/loss") == [(4, 1.0), (9, 0.5)]


@pytest.mark.lightning
@pytest.mark.wandb
def test_wandb_draws_the_metric_itself_by_compute_and_gets_no_copy(fit, flavour, tmp_path):
    logger = logger_of(
        flavour, "WandbLogger", save_dir=tmp_path, settings=places.wandb_settings(), offline=True, project="p"
    )
    fit(logger, "val/loss", "train/mean")
    folder = Path(logger.experiment.dir).parent
    logger.experiment.finish()
    read = places.RunFiles(folder)
    assert {
        name: metric.get("step_metric") for name, metric in read.metrics.items() if name != "trainer/global_step"
    } == {
        "*": "trainer/global_step",
        "val/loss": "workload/flops_total",
        "train/mean": "workload/flops_total",
    }
    rows = [row for row in read.rows if "val/loss" in row]
    assert [(row["workload/flops_total"], row["val/loss"]) for row in rows] == [(5 * FLOPS, 1.0), (10 * FLOPS, 0.5)]
    assert not any(name.endswith("_by_compute") for row in read.rows for name in row)


@pytest.mark.lightning
def test_a_value_that_did_not_change_makes_no_point(fit, tmp_path):
    fit(False, "val/same", report_dir=tmp_path / "report")
    assert points(tmp_path / "report", "val/same_by_compute") == [(AFTER_STEPS[5], 0.25)]


@pytest.mark.lightning
def test_the_prefix_stands_in_front_of_copies(fit, tmp_path):
    fit(False, "val/loss", report_dir=tmp_path / "report", prefix="mine/")
    assert points(tmp_path / "report", "mine/val/loss_by_compute") == VALIDATION


@pytest.mark.lightning
@pytest.mark.tensorboard
def test_compute_that_an_int64_cannot_hold_is_a_step_that_it_can(fit, flavour, tmp_path):
    large = 3 * 10**18 + 10**6
    assert 10 * large > 2**63
    logger = logger_of(flavour, "TensorBoardLogger", save_dir=tmp_path)
    fit(logger, "val/loss", flops=large)
    assert in_events(logger.log_dir, "val/loss_by_compute") == [(5 * (3 * 10**12 + 1), 1), (10 * (3 * 10**12 + 1), 0.5)]


@pytest.mark.lightning
def test_a_name_that_the_training_never_logged_is_one_warning_with_those_that_it_did(fit, tmp_path):
    with pytest.warns(FlopCallbackWarning, match=r"by_compute names \['val/los'\], .* train/mean, .*val/loss") as told:
        fit(False, "val/los", "val/loss", report_dir=tmp_path / "report", strict=False)
    assert len([warning for warning in told if warning.category is FlopCallbackWarning]) == 1
    assert points(tmp_path / "report", "val/loss_by_compute") == VALIDATION


@pytest.mark.lightning
def test_a_tracker_that_fails_gets_no_more_copies_and_the_others_do(fit, tmp_path, flavour, monkeypatch):
    class Failing(MemoryTracker):
        def log_scalars(self, values, step):
            if any(name.endswith("_by_compute") for name in values):
                raise ConnectionError("no route to the tracker")
            super().log_scalars(values, step)

    broken = Failing()
    logger = logger_of(flavour, "CSVLogger", save_dir=tmp_path)
    monkeypatch.setattr("flopcallback.lightning.loggers.tracker_for", lambda *_, **__: broken)
    with pytest.warns(FlopCallbackWarning, match="no route to the tracker"):
        fit(logger, "val/loss", strict=False, report_dir=tmp_path / "report")
    assert points(tmp_path / "report", "val/loss_by_compute") == VALIDATION


@pytest.mark.lightning
def test_validation_alone_draws_nothing(flavour, tmp_path):
    callback = flopcallback.FlopCallback(
        by_compute=["val/loss"], report_dir=tmp_path / "report", summary=False, strict=True
    )
    quiet = dict.fromkeys(("enable_progress_bar", "enable_model_summary"), False)
    flavour.Trainer(accelerator="cpu", logger=False, callbacks=[callback], **quiet).validate(
        make_model(flavour), verbose=False
    )
    assert "by_compute" not in (tmp_path / "report" / "scalars.jsonl").read_text(encoding="utf-8")


RANKS = """
import json, sys, warnings
from pathlib import Path

import torch
import torch.distributed as dist

warnings.filterwarnings("ignore")
from lightning.pytorch import LightningModule, Trainer

from flopcallback import FlopCallback


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(7, 3)
        self.seen = 0

    def training_step(self, batch, _):
        self.seen += 1
        self.log("step", self.seen + 100.0 * self.global_rank, on_step=True, on_epoch=True, sync_dist=True)
        return self.net(batch).square().mean()

    def validation_step(self, batch, _):
        self.log("val", (1.0 + self.global_rank) / (self.current_epoch + 1), sync_dist=True)

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.ones(20, 7), batch_size=2)

    val_dataloader = train_dataloader

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


if __name__ == "__main__":
    reductions, all_reduce = 0, dist.all_reduce

    def counted(*args, **options):
        global reductions
        reductions += 1
        return all_reduce(*args, **options)

    dist.all_reduce, folder = counted, Path(sys.argv[1])
    options = {"flops_fn": lambda batch: 10**6 + 1, "latency_steps": 0, "summary": False, "strict": True}
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    settings = {"max_epochs": 2, "accelerator": "cpu", "devices": 2, "strategy": "ddp", "log_every_n_steps": 2, **quiet}
    for name, metrics in {"named": ["val", "step_step", "step_epoch"], "bare": []}.items():
        reductions = 0
        callback = FlopCallback(by_compute=metrics, report_dir=folder / name, **options)
        trainer = Trainer(callbacks=[callback], **settings)
        trainer.fit(Net())
        (folder / f"reductions-{name}-{trainer.global_rank}.json").write_text(json.dumps(reductions))
"""


@pytest.mark.lightning
@pytest.mark.slow
def test_of_two_ranks_one_draws_by_the_compute_of_both_and_none_waits_for_it(tmp_path):
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    # The first starts its second process itself.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, script, tmp_path], check=True, timeout=600, env=environment)
    # Of 10 batches each rank has 5 an epoch: after step n they have done 2 * n * (10**6 + 1). Rank 1 logs 100 more.
    assert points(tmp_path / "named", "val_by_compute") == [(10, (1 + 2) / 2), (20, (1 + 2) / 2 / 2)]
    assert points(tmp_path / "named", "step_step_by_compute") == [(2 * n, n + 50.0) for n in (2, 4, 5, 6, 8, 10)]
    assert points(tmp_path / "named", "step_epoch_by_compute") == [(10, 3 + 50.0), (20, 8 + 50.0)]
    reductions = [
        json.loads((tmp_path / f"reductions-{folder}-{rank}.json").read_text())
        for folder in ("named", "bare")
        for rank in (0, 1)
    ]
    assert len(set(reductions)) == 1
    assert reductions[0] > 0


# In a plain loop


def loop(to, *, by_compute=("val/loss",), log=lambda hook, step: None, **options):
    """Ten steps; the user validates after each fifth."""
    model = nn.Linear(7, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    settings = {"flops_fn": lambda x: FLOPS, "latency_steps": 0, "log_every_n_steps": EVERY, "strict": True, **options}
    with FlopHook(model, optimizer, to=to, by_compute=by_compute, summary=False, **settings) as hook:
        for step in range(BATCHES * EPOCHS):
            model(torch.ones(2, 7)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            if (step + 1) % BATCHES == 0:
                log(hook, step)


def validated(hook, step):
    hook.log_by_compute({"val/loss": torch.tensor(BATCHES / (step + 1))})


def test_what_a_loop_logs_by_compute_stands_at_compute_so_far(tmp_path):
    memory = MemoryTracker()
    loop([tmp_path / "report", memory], log=validated)
    assert points(tmp_path / "report", "val/loss_by_compute") == VALIDATION
    assert [(step, values) for step, values in memory.scalars if "val/loss_by_compute" in values] == [
        (step, {"val/loss_by_compute": value}) for step, value in VALIDATION
    ]


def test_the_same_value_again_is_a_point_of_a_loop(tmp_path):
    loop(tmp_path / "report", log=lambda hook, step: hook.log_by_compute({"val/loss": 0.25}))
    assert points(tmp_path / "report", "val/loss_by_compute") == [(AFTER_STEPS[5], 0.25), (AFTER_STEPS[10], 0.25)]


@pytest.mark.tensorboard
def test_a_writer_has_copies(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        loop(writer, log=validated)
    assert in_events(tmp_path, "val/loss_by_compute") == VALIDATION


@pytest.mark.mlflow
def test_a_run_of_mlflows_has_copies(sqlite, tmp_path):
    run = stores.Run(sqlite, tmp_path / "artifacts")
    loop((run.client, run.id), log=validated)
    assert run.points("val/loss_by_compute") == VALIDATION


@pytest.mark.wandb
def test_a_run_of_wandbs_has_the_axis_and_compute_beside_the_loss(tmp_path):
    def log(hook, step):
        validated(hook, step)
        run.log({"val/v1.2\\loss": BATCHES / (step + 1), **hook.charts()})

    run = places.start_wandb(tmp_path)
    run.define_metric("val/*", step_metric="epoch")
    loop(run, by_compute=["val/v1.2\\loss", "val/loss"], log=log, prefix="mine/")
    run.finish()
    read = places.RunFiles(Path(run.dir).parent)
    assert read.metrics[r"val/v1\.2\\loss"]["step_metric"] == "mine/workload/flops_total"
    assert read.metrics["val/*"]["step_metric"] == "epoch"
    rows = [row for row in read.rows if "val/v1.2\\loss" in row]
    drawn = [(row["mine/workload/flops_total"], row["val/v1.2\\loss"]) for row in rows]
    assert drawn == [(5 * FLOPS, 1.0), (10 * FLOPS, 0.5)]
    assert not any(name.endswith("_by_compute") for row in read.rows for name in row)


@pytest.mark.wandb
def test_only_wandb_draws_by_compute_itself(tmp_path):
    run = places.start_wandb(tmp_path)
    assert isinstance(tracker_for(run), DrawsByCompute)
    assert not isinstance(tracker_for(tmp_path), DrawsByCompute)
    run.finish()


@pytest.mark.wandb
def test_wandb_adds_compute_to_a_row_of_the_named_metric_alone(tmp_path):
    """What W&B does with the definition: each row of the metric gets the last compute."""
    run = places.start_wandb(tmp_path)
    loop(run, log=lambda hook, step: run.log({"val/loss": 1.0}))
    run.finish()
    rows = [row for row in places.RunFiles(Path(run.dir).parent).rows if "val/loss" in row]
    assert [row["workload/flops_total"] for row in rows] == [4 * FLOPS, 10 * FLOPS]


def test_a_tracker_of_ones_own_is_asked_for_the_axis_once_and_gets_no_copy():
    class Own(MemoryTracker):
        def use_compute_axis(self, names):
            asked.append(tuple(names))

    asked, own = [], Own()
    loop(own, by_compute=["val/loss", "val/accuracy"], log=validated)
    assert asked == [("val/loss", "val/accuracy")]
    assert not any("val/loss_by_compute" in values for _, values in own.scalars)
    loop(Own(), by_compute=())
    assert len(asked) == 1


def test_a_tracker_that_cannot_make_the_axis_is_one_warning():
    class Own(MemoryTracker):
        def use_compute_axis(self, names):
            raise ConnectionError("no route to the tracker")

    own = Own()
    with pytest.warns(FlopCallbackWarning, match="no route to the tracker"):
        loop(own, log=validated, strict=False)
    assert own.scalars[-1][1]["compute/flops_total"] == 10 * FLOPS


@pytest.mark.parametrize("name", ["val/los", "val/loss_by_compute"])
def test_a_name_that_the_option_does_not_have_is_refused_with_the_way_out(name):
    message = rf"by_compute is \['val/loss'\], and does not name \['{name}'\]: add it there"
    with pytest.raises(ValueError, match=message):
        loop(None, log=lambda hook, step: hook.log_by_compute({name: 1.0}))
    memory = MemoryTracker()
    with pytest.warns(FlopCallbackWarning, match=message):
        loop(memory, strict=False, log=lambda hook, step: hook.log_by_compute({name: 1.0}))
    assert memory.scalars[-1][1]["compute/flops_total"] == 10 * FLOPS


def test_before_the_first_step_there_is_no_compute_to_log_at():
    memory = MemoryTracker()
    with (
        warnings.catch_warnings(),
        FlopHook(nn.Linear(7, 3), to=memory, by_compute=["val/loss"], summary=False, strict=True) as hook,
    ):
        warnings.simplefilter("ignore", FlopCallbackWarning)  # no call is seen
        hook.log_by_compute({"val/loss": 1.0})
    assert memory.scalars == []


def test_a_loss_that_is_no_number_any_more_is_a_point(tmp_path):
    memory = MemoryTracker()
    loop(memory, log=lambda hook, step: hook.log_by_compute({"val/loss": math.nan}))
    drawn = [step for step, values in memory.scalars if math.isnan(values.get("val/loss_by_compute", 0.0))]
    assert drawn == [AFTER_STEPS[5], AFTER_STEPS[10]]
