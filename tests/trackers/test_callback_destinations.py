"""`FlopCallback(to=...)`: an active run that the trainer has no logger for, read back."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn
from wandb_files import RunFiles

from flopcallback.runs.folders import REPORT
from flopcallback.trackers import MemoryTracker
from flopcallback.training.failures import FlopCallbackWarning

pytestmark = [
    pytest.mark.lightning,
    pytest.mark.slow,
    # 2026-11, mlflow 3.17 on SQLAlchemy 2.1: its own tables, when they are first imported.
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning"),
]

BATCH, WIDE, OUT, STEPS = 3, 5, 2, 4
FORWARD = 2 * BATCH * WIDE * OUT
TOTAL = STEPS * 2 * FORWARD  # nobody asks for the gradient of the input


@pytest.fixture
def fit(tmp_path, monkeypatch):
    """A function that trains with a callback and gives back the trainer and the module."""
    import lightning.pytorch as pl

    monkeypatch.chdir(tmp_path)

    class Regression(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(WIDE, OUT)

        def training_step(self, batch, _):
            return self.net(batch).square().mean()

        def test_step(self, batch):
            self.net(batch)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    def fit(callback, logger=False):
        options = {"accelerator": "cpu", "max_epochs": 1, "default_root_dir": tmp_path, "log_every_n_steps": 1}
        options |= {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
        trainer, module = pl.Trainer(logger=logger, callbacks=[callback], **options), Regression()
        trainer.fit(module, loader())
        return trainer, module

    return fit


def loader():
    return torch.utils.data.DataLoader(torch.ones(BATCH * STEPS, WIDE), BATCH)


def counted(to, **options):
    from flopcallback import FlopCallback

    return FlopCallback(to=to, **{"strict": True, "summary": False, "latency_steps": 2, "warmup_steps": 0, **options})


@pytest.mark.wandb
@pytest.mark.usefixtures("wandb_folders")
def test_an_active_run_of_wandb_is_found(fit, tmp_path):
    import wandb

    with wandb.init(dir=tmp_path, project="p", settings=wandb.Settings(silent=True)) as run:
        fit(counted("wandb"))
        folder = Path(run.dir).parent
    assert RunFiles(folder).kept["compute/flops_total"] == TOTAL
    assert not (tmp_path / REPORT).exists()


@pytest.mark.wandb
@pytest.mark.usefixtures("wandb_folders")
def test_a_logger_of_the_trainers_is_not_joined_by_the_same_tracker(fit, tmp_path):
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    logger = WandbLogger(save_dir=tmp_path, project="p", offline=True, settings=wandb.Settings(silent=True))
    callback = counted("wandb")
    seen = []
    callback.on_train_end = lambda *_: seen.extend(callback._training._sinks._outlets)
    fit(callback, logger)
    wandb.finish()
    assert [outlet.name for outlet in seen] == [f"WandbLogger ({tmp_path})"]


@pytest.mark.mlflow
def test_an_active_run_of_mlflow_is_found(fit, sqlite):
    import mlflow

    mlflow.set_tracking_uri(sqlite)
    with mlflow.start_run() as run:
        fit(counted("mlflow"))
        assert mlflow.active_run().info.run_id == run.info.run_id
    assert mlflow.MlflowClient().get_run(run.info.run_id).data.metrics["workload/flops_total"] == TOTAL


@pytest.mark.tensorboard
def test_tensorboard_is_a_run_in_the_folder_that_its_users_look_in_and_a_test_adds_to_it(fit, tmp_path, capsys):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    callback = counted("tensorboard", summary=True)
    trainer, module = fit(callback)
    trainer.test(module, loader(), verbose=False)
    (folder,) = (tmp_path / "runs").iterdir()
    assert f"report: runs/{folder.name}/flopcallback.html" in capsys.readouterr().out
    events = EventAccumulator(str(folder)).Reload()
    assert [event.value for event in events.Scalars("workload/flops_total")][-1] == TOTAL
    notes = [json.loads(event.tensor_proto.string_val[0]) for event in events.Tensors("flopcallback")]
    assert notes[-1]["test/flops/forward"] == FORWARD


def test_without_an_active_run_one_warning_says_so_and_the_report_is_written(fit, tmp_path):
    with pytest.warns(FlopCallbackWarning, match="mlflow gets nothing: RuntimeError: .* none is active") as told:
        fit(counted("mlflow", strict=False))
    assert len([each for each in told if each.category is FlopCallbackWarning]) == 1
    assert (tmp_path / REPORT / "flopcallback.json").exists()


def test_folders_and_trackers_are_destinations_too(fit, tmp_path):
    tracker = MemoryTracker()
    fit(counted([tracker, "./mine"]))
    assert tracker.scalars[-1][1]["compute/flops_total"] == TOTAL
    assert (tmp_path / "mine" / "flopcallback.json").exists()
    assert not (tmp_path / REPORT).exists()


class Uncopied(MemoryTracker):
    def __reduce_ex__(self, protocol):
        raise TypeError("a writer has threads and locks")


def test_a_deep_copy_of_the_callback_shares_them_and_a_pickle_has_those_that_have_names(fit):
    tracker = Uncopied()
    callback = counted([tracker, "./mine"])
    fit(copy.deepcopy(callback))
    assert tracker.scalars[-1][1]["compute/flops_total"] == TOTAL
    assert pickle.loads(pickle.dumps(callback))._to.targets == ["./mine"]
