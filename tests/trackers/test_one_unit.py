"""`flops/forward` is what `FlopCountAnalysis(...).hardware_flops()` gives: in every door, tracker and net."""

from __future__ import annotations

import importlib
from pathlib import Path

import mlflow_stores as stores
import places
import pytest
import torch
from torch import nn

from flopcallback import FlopCountAnalysis, FlopHook, measure_latency
from flopcallback.profiling.on_demand import profile_call

pytestmark = [
    *(pytest.mark.wandb, pytest.mark.tensorboard, pytest.mark.mlflow, pytest.mark.slow),
    # 2026-11, mlflow 3.17 on SQLAlchemy 2.1: its own tables, when they are first imported.
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning"),
]

BATCH = 2
QUIET = {"summary": False, "strict": True, "latency_steps": 0}


class Images(nn.Module):
    """Convolutions, batch norm and upsampling: norms and resampling are in macs alone."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5)
        self.up, self.head = nn.Upsample(scale_factor=2, mode="bilinear"), nn.Linear(5, 7)

    def forward(self, x):
        return self.head(self.up(self.norm(self.stem(x)).relu()).mean((2, 3)))


class Sequences(nn.Module):
    """Attention and a recurrent layer."""

    def __init__(self):
        super().__init__()
        self.attention = nn.TransformerEncoderLayer(6, 2, 11, batch_first=True, dropout=0.0)
        self.memory = nn.LSTM(6, 5, batch_first=True)

    def forward(self, x):
        return self.memory(self.attention(x))[0]


class Nothing(nn.Module):
    """No product at all."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(5)

    def forward(self, x):
        return self.norm(x)


# FLOPs by hand: 2 for each multiply-add. An LSTM of 4 gates has `4 * 5 * (6 + 5)` weights.
HEADS = 2 * 7 * 7 * (3 + 3)
LAYER = 7 * (6 * 18 + 6 * 6 + 2 * 6 * 11) + HEADS
NETS = {
    "images": (Images, (BATCH, 3, 8, 6), 2 * BATCH * (5 * 6 * 4 * 27 + 5 * 7)),
    "sequences": (Sequences, (BATCH, 7, 6), 2 * BATCH * (LAYER + 7 * 4 * 5 * (6 + 5))),
    "nothing": (Nothing, (BATCH, 5), 0),
}


@pytest.fixture(params=NETS)
def case(request):
    make, shape, flops = NETS[request.param]
    torch.manual_seed(3)
    x = torch.rand(shape)
    analysis = FlopCountAnalysis(make(), x)
    assert analysis.hardware_flops()[""] == flops
    return make, x, flops, analysis.total()


@pytest.fixture(autouse=True)
def apart(wandb_folders, tmp_path, monkeypatch):
    """What trackers would write elsewhere stays in the test's folder."""
    monkeypatch.chdir(tmp_path)
    with stores.fluent_state_put_back():
        yield
    importlib.import_module("wandb").finish()


def test_of_one_call(case):
    make, x, flops, macs = case
    for take in (profile_call, measure_latency):
        profile = take(make(), x)
        assert (profile.forward_flops, profile.forward_macs) == (flops, macs)
        assert profile.scalars()["flops/forward"] == flops
        assert sum(row.flops for row in profile.operators) == flops
        assert sum(row.macs for row in profile.operators) == macs
        assert sum(row.own_flops for row in profile.modules) == flops


def test_of_a_loop_in_every_tracker(case, sqlite, tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    make, x, flops, _ = case
    run, kept = places.start_wandb(tmp_path), stores.Run(sqlite, tmp_path / "artifacts")
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    targets = [run, SummaryWriter(str(tmp_path / "events")), (kept.client, kept.id), tmp_path / "folder"]
    with targets[1], FlopHook(model, optimizer, to=targets, **QUIET) as hook:
        for _ in range(3):
            model(x).sum().backward()
            optimizer.step()
    assert hook.metrics()["flops/forward"] == hook.profile.forward_flops == flops
    folder = Path(run.dir).parent
    run.finish()
    for found in (
        places.in_wandb(folder),
        places.in_tensorboard(tmp_path / "events"),
        places.in_mlflow(kept.client, kept.id),
        places.in_folder(tmp_path / "folder"),
    ):
        assert found.kept["flops/forward"] == flops
        assert found.profiles["train"].forward_flops == flops


@pytest.mark.lightning
@pytest.mark.parametrize("name", ["lightning.pytorch", "pytorch_lightning"])
def test_of_a_trainer(case, name, tmp_path):
    from flopcallback import FlopCallback

    flavour, (make, x, flops, macs) = importlib.import_module(name), case

    class Module(flavour.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = make()

        def training_step(self, batch, _):
            return self.net(batch).sum()

        def train_dataloader(self):
            return torch.utils.data.DataLoader(x, batch_size=BATCH)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    logger = importlib.import_module(f"{name}.loggers").TensorBoardLogger(str(tmp_path))
    quiet = dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    callback = FlopCallback(**QUIET)
    options = {"accelerator": "cpu", "max_epochs": 2, "limit_val_batches": 0, "log_every_n_steps": 1}
    flavour.Trainer(logger=logger, callbacks=[callback], **options, **quiet).fit(Module())
    profile = callback.profiles["train"]
    assert (profile.forward_flops, profile.forward_macs) == (flops, macs)
    found = places.in_tensorboard(Path(logger.log_dir))
    assert found.kept["flops/forward"] == flops
