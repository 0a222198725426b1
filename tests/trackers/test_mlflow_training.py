"""FlopCallback and FlopHook with MLflow: what a training leaves in the run that its owner made."""

from __future__ import annotations

import importlib

import mlflow_stores as stores
import pytest
import torch
from torch import nn

import flopcallback
from flopcallback import FlopCountAnalysis, FlopHook
from flopcallback.reporting import ModelProfile
from flopcallback.trackers import tracker_for

pytestmark = [
    pytest.mark.mlflow,
    pytest.mark.lightning,
    # 2026-11, mlflow 3.17 on SQLAlchemy 2.1: its own tables, when they are first imported.
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning"),
]


BATCH, WIDE, HIDDEN, OUT = 2, 7, 5, 3
FORWARD = 2 * (BATCH * WIDE * HIDDEN + BATCH * HIDDEN * OUT)


@pytest.fixture
def run(sqlite, tmp_path):
    return stores.Run(sqlite, tmp_path / "artifacts")


@pytest.fixture(autouse=True)
def apart(tmp_path, monkeypatch):
    """What MLflow would write to the working directory stays in the test's, and its global address is put back."""
    monkeypatch.chdir(tmp_path)
    with stores.fluent_state_put_back():
        yield


@pytest.fixture(params=["lightning.pytorch", "pytorch_lightning"])
def flavour(request):
    return importlib.import_module(request.param)


@pytest.fixture
def lightning():
    return importlib.import_module("lightning.pytorch")


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDE, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, OUT))


def make_model(flavour):
    class Regression(flavour.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, _):
            loss = self(batch).square().mean()
            self.log("train/loss", loss)
            return loss

        def validation_step(self, batch, _):
            self(batch)

        def train_dataloader(self):
            return torch.utils.data.DataLoader(torch.ones(6 * BATCH, WIDE), batch_size=BATCH)

        val_dataloader = train_dataloader

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    return Regression()


def logger_of(flavour, run):
    """Lightning's own, on the run that is there."""
    return importlib.import_module(f"{flavour.__name__}.loggers").MLFlowLogger(tracking_uri=run.uri, run_id=run.id)


def trainer_of(flavour, logger, **more):
    callback = flopcallback.FlopCallback(warmup_steps=1, latency_steps=2, summary=False, strict=True)
    settings = {"max_epochs": 1, "limit_val_batches": 0, "log_every_n_steps": 1, **more}
    quiet = dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return flavour.Trainer(accelerator="cpu", logger=logger, callbacks=[callback], **quiet, **settings)


def test_a_logger_of_either_name_is_written_to_by_its_client_and_run(flavour, run):
    tracker = tracker_for(logger_of(flavour, run))
    assert tracker.run_id == run.id
    tracker.log_scalars({"compute/flops_total": 3}, 2)
    assert run.points("workload/flops_total") == [(2, 3)]


def test_the_one_run_has_the_very_integers_of_an_analysis_times_and_the_users_own_metrics(flavour, run):
    model = make_model(flavour)
    trainer_of(flavour, logger_of(flavour, run)).fit(model)
    analysis = FlopCountAnalysis(model, torch.ones(BATCH, WIDE))
    assert FORWARD == 2 * (2 * 7 * 5 + 2 * 5 * 3) == analysis.hardware_flops()[""]
    assert run.tags()["flops.forward"] == str(FORWARD)
    rows = {row["path"]: row["flops"] for row in run.rows()}
    rows[""] = rows.pop("Regression")
    assert {path: flops for path, flops in rows.items() if path != "(training_step)"} == dict(analysis.hardware_flops())
    operators = {row["operator"]: row["flops"] for row in run.rows("operators")}
    assert operators == {"linear": FORWARD}
    assert {row["operator"]: row["macs"] for row in run.rows("operators")} == dict(analysis.by_operator())
    assert ModelProfile.from_json(run.file("flops/report.json")).forward_flops == FORWARD
    found = run.found().data
    assert found.params["flops.forward"] == str(FORWARD)
    assert found.tags["model.params"] == str(7 * 5 + 5 + 5 * 3 + 3)
    assert float(found.tags["latency.forward_ms"]) > 0
    ours = {name for name in found.metrics if name not in ("train/loss", "epoch")}
    assert all(name.startswith("workload/") for name in ours)
    assert len(ours) <= 6
    assert len(run.points("train/loss")) == 6
    assert run.rows()[1]["forward_ms"] > 0
    assert {"by_module.png", "latency.png", "report.html", "report.md"} <= run.files()
    assert run.number_in_experiment() == 1


def test_the_logger_makes_the_run_and_nobody_makes_another(lightning, sqlite, tmp_path):
    from mlflow import MlflowClient

    loggers = importlib.import_module(f"{lightning.__name__}.loggers")
    where = {"experiment_name": str(tmp_path), "artifact_location": (tmp_path / "artifacts").as_uri()}
    logger = loggers.MLFlowLogger(tracking_uri=sqlite, **where)
    trainer_of(lightning, logger).fit(make_model(lightning))
    (found,) = MlflowClient(sqlite).search_runs([logger.experiment_id])
    assert found.info.run_id == logger.run_id
    assert found.info.status == "FINISHED"
    assert found.data.tags["flops.forward"] == str(FORWARD)


def test_a_second_fit_and_a_resumed_run_leave_one_table_and_one_count(lightning, run):
    logger, model = logger_of(lightning, run), make_model(lightning)
    trainer = trainer_of(lightning, logger)
    trainer.fit(model)
    first = run.found().data.tags
    trainer.fit_loop.max_epochs = 2
    trainer.fit(model)
    trainer_of(lightning, logger_of(lightning, run)).fit(make_model(lightning))
    assert [row["path"] for row in run.rows()] == ["Regression", "net", "net.0", "net.1", "net.2", "(training_step)"]
    last = run.found().data.tags
    assert last.keys() == first.keys()
    assert {name: last[name] for name in last if name.startswith(("flops.", "model."))} == {
        name: first[name] for name in first if name.startswith(("flops.", "model."))
    }
    assert run.number_in_experiment() == 1


def test_validation_has_files_and_tags_of_its_own(lightning, run):
    trainer = trainer_of(lightning, logger_of(lightning, run), limit_val_batches=2)
    trainer.validate(make_model(lightning), verbose=False)
    assert run.rows(folder="validate/flops")[0]["flops"] == FORWARD
    assert run.tags()["validate.flops.forward"] == str(FORWARD)
    assert run.files() == set()


def train(to, **more):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with FlopHook(model, optimizer, to=to, warmup_steps=1, latency_steps=2, summary=False, strict=True, **more):
        for _ in range(5):
            model(torch.ones(BATCH, WIDE)).square().mean().backward()
            optimizer.step()


def test_a_plain_loop_writes_to_a_client_with_a_run(run):
    train((run.client, run.id), prefix="student/")
    assert run.rows(folder="student/flops")[0]["flops"] == FORWARD
    assert run.tags()["student.flops.forward"] == str(FORWARD)
    assert run.points("student/workload/flops_total")
    assert run.found().info.status == "RUNNING"


def test_a_plain_loop_writes_to_the_active_run_and_leaves_it_active(run):
    import mlflow

    mlflow.set_tracking_uri(run.uri)
    with mlflow.start_run(run_id=run.id):
        train("mlflow")
        assert mlflow.active_run().info.run_id == run.id
    assert run.rows()[0]["flops"] == FORWARD
    assert run.number_in_experiment() == 1
