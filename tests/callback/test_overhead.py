"""What a step of training still costs after the measuring window, without a clock: calls into our code."""

from __future__ import annotations

import importlib
import os
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import flopcallback

CORE = Path(flopcallback.__file__).parent
ADAPTERS = ("flopcallback_tensorboard", "flopcallback_wandb", "flopcallback_mlflow")

WARMUP, TIMED = 2, 3
WINDOW = 1 + WARMUP + TIMED
LOG_EVERY = 50
LATE = 1000
MOST_CALLS = 25  # of a Trainer; those of PyTorch and of the interpreter come on top
MOST_AUDITS = 8  # in fifty steps: while a training is young, there are more than later


def our_folders():
    found = [find_spec(name) for name in ADAPTERS]
    folders = [CORE, *(Path(spec.origin).parent for spec in found if spec is not None and spec.origin)]
    return tuple(f"{folder}{os.sep}" for folder in folders)


class CallsIntoOurs:
    """Counts Python calls into our files in this thread, step by step; a step ends with `end_step()`."""

    def __init__(self):
        self.by_step = []
        self._folders = our_folders()
        self._now = Counter()

    def _seen(self, frame, event, _):
        if event == "call" and frame.f_code.co_filename.startswith(self._folders):
            self._now[frame.f_code.co_qualname if sys.version_info >= (3, 11) else frame.f_code.co_name] += 1

    def start(self):
        self._now.clear()
        sys.setprofile(self._seen)

    def end_step(self):
        self.by_step.append(self._now.copy())
        self._now.clear()

    def stop(self):
        sys.setprofile(None)


def totals(by_step):
    return [calls.total() for calls in by_step]


@pytest.fixture
def calls():
    counted = CallsIntoOurs()
    yield counted
    counted.stop()


class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))


def make_model(flavour):
    class Model(flavour.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = Net()

        def training_step(self, batch, batch_idx):
            loss = F.cross_entropy(self.net(batch[0]), batch[1])
            self.log("train/loss", loss)
            return loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Model()


def batches(steps):
    rows = torch.utils.data.TensorDataset(torch.randn(2 * steps, 5), torch.randint(3, (2 * steps,)))
    return torch.utils.data.DataLoader(rows, 2)


def watch(flavour, calls, steps):
    """A callback that counts in those of the steps that are asked for; it has to stand before ours."""

    class Watch(flavour.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx:
                calls.end_step()  # the one before: what we do in its `on_train_batch_end` comes after ours
            if batch_idx in steps:
                calls.start()
            else:
                calls.stop()

    return Watch()


def train(flavour, calls, counted_steps, *, folder, callback, logger):
    steps = max(counted_steps) + 2
    trainer = flavour.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=logger,
        callbacks=[watch(flavour, calls, counted_steps), callback],
        log_every_n_steps=LOG_EVERY,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=str(folder),
    )
    trainer.fit(make_model(flavour), batches(steps))
    assert len(calls.by_step) == steps - 1


def off_log_steps(steps):
    return [step for step in steps if (step + 1) % LOG_EVERY]


def check_few_calls(periods):
    """Nearly all steps make the same few calls, early and late; the others are audits, and those that wait for one."""
    usual = [min(period, key=Counter.total) for period in periods]
    assert usual[0] == usual[1]
    assert usual[0].total() <= MOST_CALLS, usual[0]
    for period in periods:
        waiting = [calls for calls in period if calls != usual[0]]
        assert len([calls for calls in waiting if calls.total() > MOST_CALLS + 10]) <= MOST_AUDITS
        assert len(waiting) <= len(period) // 2


@pytest.mark.lightning
@pytest.mark.tensorboard
@pytest.mark.slow
def test_a_step_under_a_trainer_makes_few_calls_into_our_code_and_never_more(flavour, calls, tmp_path):
    from flopcallback import FlopCallback

    logger = importlib.import_module(f"{flavour.__name__}.loggers").TensorBoardLogger(tmp_path)
    callback = FlopCallback(warmup_steps=WARMUP, latency_steps=TIMED, summary=False, strict=True)
    early, late = range(WINDOW, WINDOW + LOG_EVERY), range(LATE, LATE + LOG_EVERY)
    train(flavour, calls, {*early, *late}, folder=tmp_path, callback=callback, logger=logger)
    assert callback.profiles["train"].latency.steps == TIMED
    check_few_calls([[calls.by_step[step] for step in off_log_steps(steps)] for steps in (early, late)])


@pytest.mark.lightning
def test_in_the_window_more_calls_than_that_are_seen(lightning, calls, tmp_path):
    from flopcallback import FlopCallback

    callback = FlopCallback(warmup_steps=WARMUP, latency_steps=TIMED, summary=False, strict=True)
    train(lightning, calls, set(range(WINDOW)), folder=tmp_path, callback=callback, logger=False)
    assert min(totals(calls.by_step)) > MOST_CALLS


def train_in_a_loop(calls, counted_steps, **options):
    """A plain loop; a step is what lies between two ends of `optimizer.step()`, `zero_grad()` included."""
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with flopcallback.FlopHook(model, optimizer, summary=False, strict=True, **options) as hook:
        for step in range(max(counted_steps) + 1):
            if step in counted_steps:
                calls.start()
            F.cross_entropy(model(torch.ones(2, 5)), torch.zeros(2, dtype=torch.long)).backward()
            optimizer.step()
            optimizer.zero_grad()
            calls.end_step()
            calls.stop()
    return hook


@pytest.mark.slow
def test_a_step_of_a_plain_loop_makes_few_calls_into_our_code_and_never_more(calls, tmp_path):
    early, late = range(WINDOW, WINDOW + LOG_EVERY), range(LATE, LATE + LOG_EVERY)
    hook = train_in_a_loop(calls, {*early, *late}, to=tmp_path, warmup_steps=WARMUP, latency_steps=TIMED)
    assert hook.profile.latency.steps == TIMED
    check_few_calls([[calls.by_step[step] for step in off_log_steps(steps)] for steps in (early, late)])


def test_in_the_window_of_a_plain_loop_more_calls_than_that_are_seen(calls):
    train_in_a_loop(calls, set(range(WINDOW)), warmup_steps=WARMUP, latency_steps=TIMED)
    assert min(totals(calls.by_step)) > MOST_CALLS
