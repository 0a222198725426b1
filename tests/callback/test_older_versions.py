"""Checkpoints of older versions: compute goes on from the very integers that they hold."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import nn

from flopcallback import FlopHook

BATCH, WIDE, OUT = 2, 5, 3
FORWARD = 2 * BATCH * WIDE * OUT
STEP = 2 * FORWARD  # the gradient of the input is nobody's

QUIET = {"summary": False, "strict": True, "latency_steps": 0}


def net():
    """The net that the states below are of."""
    return nn.Sequential(nn.Linear(WIDE, OUT))


def train(model, optimizer, steps):
    for _ in range(steps):
        model(torch.ones(BATCH, WIDE)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()


# As commit c7e9a42 wrote it after seven steps.
STATE = {
    "version": 1,
    "ledger": {
        "steps": 7,
        "booked": 7 * STEP,
        "guessed": 0,
        "costs": [[[[[[2, 5]]], "2 of 2, 18 elements: 36de2b6f", 1, [0], 7], [STEP, FORWARD, 0], 7]],
        "counted": [],
        "unseen": [],
    },
    "samples": 7 * BATCH,
    "tokens": None,
}


@pytest.fixture
def state():
    return {"compute": STATE}


def test_a_loop_goes_on_from_an_older_state(state):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with FlopHook(model, optimizer, max_flops=12 * STEP, **QUIET) as hook:
        hook.load_state_dict(state)
        train(model, optimizer, 4)
        assert not hook.should_stop
        train(model, optimizer, 1)
        assert hook.should_stop
    assert hook.metrics()["compute/flops_total"] == 12 * STEP
    assert hook.metrics()["compute/samples_total"] == 12 * BATCH
    assert hook.metrics()["compute/estimated_pct"] == 0


@pytest.mark.lightning
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")  # Lightning's, of the other key
@pytest.mark.parametrize("key", ["FlopCallback", "FlopCallback{'fma': 2, 'elementwise': False, 'prefix': ''}"])
def test_a_trainer_goes_on_from_an_older_checkpoint_whatever_its_fma_was(state, key, tmp_path):
    flavour = importlib.import_module("lightning.pytorch")
    from flopcallback import FlopCallback

    class Line(flavour.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = net()

        def training_step(self, batch, _):
            return self.net(batch).sum()

        def train_dataloader(self):
            return torch.utils.data.DataLoader(torch.ones(5 * BATCH, WIDE), batch_size=BATCH)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    def trainer(steps, callback):
        quiet = dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary", "logger"), False)
        return flavour.Trainer(
            accelerator="cpu", max_steps=steps, callbacks=[callback], default_root_dir=tmp_path, **quiet
        )

    before = trainer(5, FlopCallback(**QUIET))
    before.fit(Line())
    before.save_checkpoint(tmp_path / "before.ckpt")
    checkpoint = torch.load(tmp_path / "before.ckpt", weights_only=False)
    assert [state.pop("compute") for state in checkpoint["callbacks"].values() if "compute" in state]
    checkpoint["callbacks"] = {key: state}
    torch.save(checkpoint, tmp_path / "older.ckpt")

    callback = FlopCallback(**QUIET)
    trainer(8, callback).fit(Line(), ckpt_path=tmp_path / "older.ckpt", weights_only=False)
    # Seven steps of the older state, and the three that were left to do.
    assert callback.profiles["train"].training["compute/flops_total"] == (7 + 3) * STEP
    assert callback.profiles["train"].training["compute/samples_total"] == (7 + 3) * BATCH


def test_kinds_that_an_older_state_waits_for_stay_estimates():
    unseen = [[[[[3, 5]]], "2 of 2, 18 elements: 36de2b6f", 1, [0], 7], 2, 1, 1]
    costs = STATE["ledger"]["costs"]
    older = {**STATE, "ledger": {**STATE["ledger"], "steps": 9, "costs": costs, "unseen": [unseen]}}
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with FlopHook(model, optimizer, **QUIET) as hook:
        hook.load_state_dict({"compute": older})
        train(model, optimizer, 1)
    waiting = 2 * STEP * 3 // 2  # three rows instead of two
    assert hook.metrics()["compute/flops_total"] == 8 * STEP + waiting
    assert hook.metrics()["compute/estimated_pct"] == pytest.approx(100 * waiting / (8 * STEP + waiting))
