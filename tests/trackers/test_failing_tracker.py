"""A tracker that raises in the middle of others: one warning, the others complete, files, and the same weights."""

from __future__ import annotations

import importlib
import socket
import warnings
from pathlib import Path

import known_net
import mlflow_stores as stores
import places
import pytest
import torch

import flopcallback
from flopcallback import FlopHook
from flopcallback.reporting import html_page
from flopcallback.training.failures import FlopCallbackWarning

pytestmark = [
    *(pytest.mark.wandb, pytest.mark.tensorboard, pytest.mark.mlflow, pytest.mark.lightning),
    # 2026-11, mlflow 3.17 on SQLAlchemy 2.1: its own tables, when they are first imported.
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning"),
]


SHORT = {"warmup_steps": 1, "latency_steps": 2, "summary": False}


@pytest.fixture(autouse=True)
def apart(wandb_folders):
    with stores.fluent_state_put_back():
        yield


@pytest.fixture
def nobody(monkeypatch):
    """An address that no server listens at; a client would go on asking for four minutes."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture
def kept(sqlite, tmp_path):
    return stores.Run(sqlite, tmp_path / "artifacts")


@pytest.fixture
def writer(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path / "events")) as made:
        yield made


def finished_run(folder):
    run = places.start_wandb(folder)
    run.finish()
    return run


def loop(hook_options=None):
    """A plain loop; the hook, if there is one, and the weights."""
    model = known_net.Whole()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    hook = None if hook_options is None else FlopHook(model, optimizer, **hook_options, **SHORT)
    for _ in range(6):
        model(known_net.batch()).square().mean().backward()
        optimizer.step()
    if hook is not None:
        hook.close()
    return hook, weights(model)


def weights(model):
    return {name: value.tolist() for name, value in model.state_dict().items()}


def our_warnings(caught):
    return [str(each.message) for each in caught if issubclass(each.category, FlopCallbackWarning)]


def assert_complete(found, profile):
    assert found.profiles == {"train": profile}
    assert found.pages == {"train": html_page(profile)}
    once = profile.scalars()
    assert {name: found.kept.get(name) for name in once} == places.in_six_digits(once)
    assert found.scalars["compute/flops_total"][-1][1] == profile.training["compute/flops_total"]


def assert_complete_in_tensorboard(folder, profile):
    assert_complete(places.in_tensorboard(folder), profile)
    # What is no chart is shown there, written by `close`: neither may another tracker's failure prevent.
    (shown,) = places.hyperparameters_in_tensorboard(folder)
    assert shown == {**profile.scalars(), "compute/estimated_pct": 0.0}


def test_a_server_that_is_gone_stops_neither_a_plain_loop_nor_the_other_targets(nobody, kept, writer, tmp_path):
    from mlflow import MlflowClient

    to = [writer, (MlflowClient(nobody), "the-run"), (kept.client, kept.id)]
    with pytest.warns(FlopCallbackWarning) as caught:
        hook, trained = loop({"to": to})
    (warning,) = our_warnings(caught)
    assert warning.startswith("the tracker MlflowClient (the-run) failed: MlflowException: API request to http://127.")
    assert trained == loop()[1]
    assert_complete_in_tensorboard(tmp_path / "events", hook.profile)
    assert_complete(places.in_mlflow(kept.client, kept.id), hook.profile)
    assert_complete(places.in_folder(tmp_path / "flopcallback_report"), hook.profile)


def test_a_run_that_is_over_stops_neither_a_plain_loop_nor_the_other_targets(writer, kept, tmp_path):
    to = [finished_run(tmp_path), writer, (kept.client, kept.id)]
    with pytest.warns(FlopCallbackWarning) as caught:
        hook, trained = loop({"to": to})
    (warning,) = our_warnings(caught)
    assert "the tracker Run (" in warning
    assert trained == loop()[1]
    assert_complete_in_tensorboard(tmp_path / "events", hook.profile)
    assert_complete(places.in_folder(tmp_path / "flopcallback_report"), hook.profile)


def test_a_run_that_is_deleted_meanwhile_keeps_the_times_in_files(writer, kept, tmp_path):
    model = known_net.Whole()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with FlopHook(model, optimizer, to=[(kept.client, kept.id), writer], **SHORT) as hook:
            for step in range(6):
                model(known_net.batch()).square().mean().backward()
                optimizer.step()
                if step == 1:
                    kept.client.delete_run(kept.id)
    (warning,) = our_warnings(caught)
    assert f"the tracker MlflowClient ({kept.id}) failed: MlflowException: " in warning
    assert hook.profile.latency is not None
    assert_complete_in_tensorboard(tmp_path / "events", hook.profile)
    found = places.in_folder(tmp_path / "flopcallback_report")
    assert found.profiles == {"train": hook.profile}
    numbers = {**hook.profile.scalars(), **hook.profile.training}
    later = {name for name in numbers if name.startswith(("latency/", "compute/", "perf/"))}
    assert {name: found.kept.get(name) for name in later} == {name: numbers[name] for name in later}


def make_model(flavour):
    class Regression(flavour.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = known_net.make_net()

        def training_step(self, batch, _):
            return self.net(batch).square().mean()

        def train_dataloader(self):
            return torch.utils.data.DataLoader(torch.ones(12, 7), batch_size=2)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    return Regression()


def fit(flavour, loggers, *callbacks):
    model = make_model(flavour)
    quiet = dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = flavour.Trainer(
        accelerator="cpu", max_epochs=1, log_every_n_steps=1, logger=loggers, callbacks=list(callbacks), **quiet
    )
    trainer.fit(model)
    return weights(model)


def test_a_run_that_is_over_stops_neither_a_trainer_nor_its_other_loggers(sqlite, tmp_path):
    flavour = importlib.import_module("lightning.pytorch")
    kinds = importlib.import_module("lightning.pytorch.loggers")
    board = kinds.TensorBoardLogger(tmp_path / "tensorboard")
    over = kinds.WandbLogger(save_dir=tmp_path, settings=places.wandb_settings())
    where = {"experiment_name": str(tmp_path), "artifact_location": (tmp_path / "artifacts").as_uri()}
    mlflow = kinds.MLFlowLogger(tracking_uri=sqlite, **where)
    over.experiment.finish()
    callback = flopcallback.FlopCallback(**SHORT)
    with pytest.warns(FlopCallbackWarning) as caught:
        trained = fit(flavour, [board, over, mlflow], callback)
    (warning,) = our_warnings(caught)
    assert warning.startswith("the tracker WandbLogger (")
    assert trained == fit(flavour, False)
    profile = callback.profiles["train"]
    assert_complete_in_tensorboard(Path(board.log_dir), profile)
    assert_complete(places.in_mlflow(mlflow.experiment, mlflow.run_id), profile)
    assert_complete(places.in_folder(Path(board.log_dir) / "flopcallback_report"), profile)
