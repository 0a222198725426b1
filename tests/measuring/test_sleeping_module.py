"""A module that sleeps 20 ms and computes nothing reads as that, and is what FLOPs say least about. By a real clock."""

from __future__ import annotations

import time

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from flopcallback import FlopHook, measure_latency
from flopcallback.reporting import slow_for_their_flops

pytestmark = pytest.mark.slow

BATCH, FEATURES, HIDDEN, CLASSES = 4, 31, 37, 3
STEPS = 5
ATTEMPTS = 3  # a machine under load sleeps longer


class Sleep(nn.Module):
    def forward(self, x):
        time.sleep(0.020)
        return x


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(FEATURES, HIDDEN), Sleep(), nn.ReLU())
        self.head = nn.Linear(HIDDEN, CLASSES)

    def forward(self, x):
        return self.head(self.inner(x))


def on_demand(folder):
    return measure_latency(Net(), torch.ones(BATCH, FEATURES), warmup_steps=1, latency_steps=STEPS)


def in_a_loop(folder):
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with FlopHook(model, optimizer, warmup_steps=1, latency_steps=STEPS, summary=False, strict=True) as hook:
        for _ in range(STEPS + 2):
            model(torch.ones(BATCH, FEATURES)).sum().backward()
            optimizer.step()
    return hook.profile


def under_a_trainer(folder):
    from lightning.pytorch import LightningModule, Trainer

    from flopcallback import FlopCallback

    class Classifier(LightningModule):
        def __init__(self):
            super().__init__()
            self.net = Net()

        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    rows = torch.utils.data.TensorDataset(torch.ones(64, FEATURES), torch.zeros(64, dtype=torch.long))
    callback = FlopCallback(warmup_steps=1, latency_steps=STEPS, summary=False, strict=True)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=STEPS + 2,
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(Classifier(), torch.utils.data.DataLoader(rows, BATCH))
    return callback.profiles["train"]


@pytest.mark.parametrize("measure", [on_demand, in_a_loop, pytest.param(under_a_trainer, marks=pytest.mark.lightning)])
def test_a_module_that_sleeps_has_its_time_and_tops_the_list(measure, tmp_path):
    for _ in range(ATTEMPTS):
        profile = measure(tmp_path)
        row = next(row for row in profile.modules if row.type == "Sleep")
        assert (row.flops, profile.latency.steps) == (0, STEPS)
        assert slow_for_their_flops(profile)[0].path == row.path
        if 20 <= row.forward_ms <= 25:
            break
    else:
        pytest.fail(f"it slept {row.forward_ms} ms, {ATTEMPTS} times")
