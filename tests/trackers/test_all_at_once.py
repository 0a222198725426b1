"""W&B, TensorBoard, MLflow and CSV side by side in one training: each gets everything, once, and the same integers."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import known_net
import mlflow_stores as stores
import places
import pytest
import torch

import flopcallback
from flopcallback import FlopHook
from flopcallback.reporting import html_page

pytestmark = [
    *(pytest.mark.wandb, pytest.mark.tensorboard, pytest.mark.mlflow, pytest.mark.lightning, pytest.mark.slow),
    # 2026-11, mlflow 3.17 on SQLAlchemy 2.1: its own tables, when they are first imported.
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning"),
]


BATCH, WIDE, HIDDEN, OUT = 2, 7, 5, 3
FIRST, SECOND = 2 * BATCH * WIDE * HIDDEN, 2 * BATCH * HIDDEN * OUT
CHARTS = {"compute/flops_total", "perf/tflops_per_sec", "perf/samples_per_sec", "perf/step_time_ms"}
MODULES = {
    "": FIRST + SECOND,
    "net": FIRST + SECOND,
    "net.a/b": FIRST,
    "net.__relu__": 0,
    "net.卷积": SECOND,
}
SHORT = {"warmup_steps": 1, "latency_steps": 2, "summary": False, "strict": True}


@pytest.fixture(autouse=True)
def apart(wandb_folders):
    """What trackers would write elsewhere stays in the test's folder, and MLflow's global address is put back."""
    import wandb

    with stores.fluent_state_put_back():
        yield
    wandb.finish()


@pytest.fixture(scope="module")
def analysis():
    """What a process that has seen no training makes of the same net and batch."""
    return printed_by("known_net.py")


def printed_by(script, *arguments):
    command = [sys.executable, "-W", "ignore", str(Path(known_net.__file__).with_name(script)), *map(str, arguments)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def make_model(flavour):
    class Regression(flavour.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = known_net.make_net()

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, _):
            loss = self(batch).square().mean()
            self.log("train/loss", loss)
            return loss

        def train_dataloader(self):
            return torch.utils.data.DataLoader(torch.ones(6 * BATCH, WIDE), batch_size=BATCH)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    return Regression()


@pytest.fixture
def flavour():
    return importlib.import_module("lightning.pytorch")


@pytest.fixture
def loggers(flavour, server, tmp_path):
    kinds = importlib.import_module(f"{flavour.__name__}.loggers")
    return [
        kinds.WandbLogger(save_dir=tmp_path, settings=places.wandb_settings()),
        kinds.TensorBoardLogger(tmp_path / "tensorboard"),
        kinds.MLFlowLogger(experiment_name=str(tmp_path), tracking_uri=server),
        kinds.CSVLogger(tmp_path / "csv"),
    ]


def trainer_of(flavour, loggers, callback):
    quiet = dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    settings = {"accelerator": "cpu", "max_epochs": 1, "limit_val_batches": 0, "log_every_n_steps": 1}
    return flavour.Trainer(logger=loggers, callbacks=[callback], **settings, **quiet)


def read_all(loggers):
    """What W&B, TensorBoard and MLflow have, and where that is for another process to read."""
    run, writer, mlflow, _ = loggers
    folder = Path(run.experiment.dir).parent
    run.experiment.finish()
    where = (folder, writer.log_dir, mlflow._tracking_uri, mlflow.run_id)
    found = {
        "wandb": places.in_wandb(folder),
        "tensorboard": places.in_tensorboard(Path(writer.log_dir)),
        "mlflow": places.in_mlflow(mlflow.experiment, mlflow.run_id),
    }
    return found, where


def same(values):
    """Numbers as they come back: TensorBoard's are float32."""
    return {name: pytest.approx(value, rel=1e-6) for name, value in values.items()}


def test_each_of_a_trainers_loggers_gets_everything_once(flavour, loggers, analysis):
    callback = flopcallback.FlopCallback(**SHORT)
    trainer_of(flavour, loggers, callback).fit(make_model(flavour))
    profile, (found, where) = callback.profiles["train"], read_all(loggers)
    for each in found.values():
        numbers = {**profile.scalars(), **profile.training}
        charts = {name for name in numbers if each.scalars.get(name)}
        assert charts - {"perf/data_wait_pct"} == CHARTS  # the wait may be 0
        assert {name: each.scalars[name][-1][1] for name in CHARTS} == same({name: numbers[name] for name in CHARTS})
        kept = {name: value for name, value in numbers.items() if name not in {*CHARTS, "perf/data_wait_pct"}}
        assert {name: each.kept[name] for name in kept} == places.in_six_digits(kept)
        assert len(each.scalars["train/loss"]) == 6
        assert each.tables == {"train": 1}
        assert each.profiles == {"train": profile}
        assert each.charts["train"] == {"by_module", "latency"}
    before_the_end = html_page(replace(profile, training={}))  # what is in a history of W&B's stays as it is
    pages = {name: each.pages["train"] for name, each in found.items()}
    assert pages == {"wandb": before_the_end, "tensorboard": html_page(profile), "mlflow": html_page(profile)}
    files = places.in_folder(Path(loggers[3].log_dir) / "flopcallback_report")
    assert files.profiles == {"train": profile}
    logged = {name: points[-1][1] for name, points in files.scalars.items()}
    assert logged == {**profile.scalars(), **profile.training}
    read = printed_by("read_back.py", *where)
    for each in read.values():
        assert each["modules"].pop("(training_step)") == 0
        assert each == analysis == {"forward": FIRST + SECOND, "modules": MODULES}
    assert read.keys() == {"wandb", "tensorboard", "mlflow"}


def test_a_second_fit_of_the_same_trainer_leaves_one_table_in_each(flavour, loggers):
    callback, model = flopcallback.FlopCallback(**SHORT), make_model(flavour)
    trainer = trainer_of(flavour, loggers, callback)
    profiles = []
    for epochs in (1, 2):
        trainer.fit_loop.max_epochs = epochs
        trainer.fit(model)
        profiles.append(callback.profiles["train"])
    found, _ = read_all(loggers)
    for each in found.values():
        assert each.tables == {"train": 1}
        assert each.profiles["train"] in profiles
        assert each.kept["flops/forward"] == FIRST + SECOND
        assert each.kept["latency/step_ms"] in [pytest.approx(profile.latency.step_ms, 1e-5) for profile in profiles]
        assert len(each.scalars["train/loss"]) == 12
    folder = Path(loggers[3].log_dir) / "flopcallback_report"
    assert [file.name for file in folder.glob("*.json")] == ["flopcallback.json"]
    assert places.in_folder(folder).profiles == {"train": profiles[1]}


def test_each_target_of_a_plain_loop_gets_everything_once(sqlite, tmp_path, analysis):
    from torch.utils.tensorboard import SummaryWriter

    run, kept = places.start_wandb(tmp_path), stores.Run(sqlite, tmp_path / "artifacts")
    model = known_net.Whole()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with SummaryWriter(str(tmp_path / "events")) as writer:
        with FlopHook(model, optimizer, to=[run, writer, (kept.client, kept.id)], **SHORT) as hook:
            for _ in range(6):
                model(known_net.batch()).square().mean().backward()
                optimizer.step()
        assert run.id == importlib.import_module("wandb").run.id  # still the caller's, as the others are
        writer.add_scalar("train/loss", 0.5, 6)
    folder = Path(run.dir).parent
    run.finish()
    for each in (
        places.in_wandb(folder),
        places.in_tensorboard(tmp_path / "events"),
        places.in_mlflow(kept.client, kept.id),
    ):
        charts = {name: points[-1][1] for name, points in each.scalars.items()}
        assert {name: {**charts, **each.kept}[name] for name in hook.metrics()} == same(hook.metrics())
        assert each.tables == {"train": 1}
        assert each.profiles == {"train": hook.profile}
    read = printed_by("read_back.py", folder, tmp_path / "events", kept.uri, kept.id)
    assert list(read.values()) == [analysis] * 3
    assert analysis == {"forward": FIRST + SECOND, "modules": MODULES}
