"""Compute goes on where a checkpoint ended: a run that was killed ends with the integers of one that was not."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import os
import signal
import subprocess
import sys
import time
import warnings

import forked
import pytest
import torch
from torch import nn

from flopcallback import FlopCallbackWarning, FlopHook
from flopcallback.modules.structures import CallKey
from flopcallback.training.kinds import StepCost, StepKey
from flopcallback.training.ledger import ComputeLedger
from flopcallback.training.saved_state import checked_state

WIDE, HIDDEN, OUT = 5, 7, 3
FIRST, SECOND = 2 * WIDE * HIDDEN, 2 * HIDDEN * OUT
"""FLOPs of each layer's forward, for each row of the batch."""

ROW = 2 * FIRST + 3 * SECOND
"""Of a training step: the first layer's input needs no gradient."""

PENALTY = 4 * FIRST + 9 * SECOND
"""With a penalty on gradients: forward 1 and 1; gradients 1 and 2; their backward 1 and 4; the forward's 1 and 2."""

CRITIC = 2 * OUT * HIDDEN + 2 * HIDDEN * 2, 2 * OUT * HIDDEN
"""Forward of a GAN's second network, and what the gradient of its input takes."""

GAN = ROW + (3 * CRITIC[0] - CRITIC[1]) + 3 * CRITIC[0]

QUIET = {"summary": False, "warmup_steps": 0, "latency_steps": 2}
TIMEOUT_S = 600

LENGTHS = [3, 2, 4, 2, 3, 5, 2, 2, 4, 3, 6, 1, 3, 2]
"""Rows in the batches; those of a Trainer's epochs are the first six."""

COMMON = """
import json, os, sys, time, warnings
from pathlib import Path

import torch
from torch import nn

folder, kill_at = Path(sys.argv[1]), int(sys.argv[2])
LENGTHS = [3, 2, 4, 2, 3, 5, 2, 2, 4, 3, 6, 1, 3, 2]


def die(step):
    if step == kill_at:
        (folder / "kill me").touch()
        time.sleep(100)


def make_net(wide=5, out=3):
    return nn.Sequential(nn.Linear(wide, 7), nn.ReLU(), nn.Linear(7, out))
"""

LOOPS = """
from flopcallback import FlopHook


def train_lengths(nets, optimizers, step):
    nets[0](torch.ones(LENGTHS[step], 5)).square().mean().backward()
    optimizers[0].step()


def train_accumulating(nets, optimizers, step):
    for part in range(3):
        nets[0](torch.ones(2 + part % 2, 5)).square().mean().backward()
    optimizers[0].step()


def train_penalty(nets, optimizers, step):
    loss = nets[0](torch.ones(3, 5)).square().mean()
    if step % 4 == 0:
        grads = torch.autograd.grad(loss, list(nets[0].parameters()), create_graph=True)
        loss = loss + sum(grad.square().sum() for grad in grads)
    loss.backward()
    optimizers[0].step()


def train_gan(nets, optimizers, step):
    fake = nets[0](torch.ones(4, 5))
    nets[1](fake.detach()).sum().backward()
    optimizers[1].step()
    nets[1](fake).sum().backward()
    optimizers[0].step()


file, begin = folder / "checkpoint.pt", 0
saved = torch.load(file, weights_only=True) if file.exists() else None
trainings = {}
for train in (train_lengths, train_accumulating, train_penalty, train_gan):
    model = nn.ModuleList([make_net(), make_net(3, 2)] if train is train_gan else [make_net()])
    optimizers = [torch.optim.Adam(net.parameters()) for net in model]
    hook = FlopHook(model, optimizers, summary=False, warmup_steps=0, latency_steps=2)
    if saved:
        begin, state = saved["step"], saved[train.__name__]
        model.load_state_dict(state["model"])
        for each, of_each in zip(optimizers, state["optimizers"]):
            each.load_state_dict(of_each)
        hook.load_state_dict(state["flops"])
    trainings[train] = model, optimizers, hook

for step in range(begin, len(LENGTHS)):
    for train, (model, optimizers, _) in trainings.items():
        for each in optimizers:
            each.zero_grad()
        train(model, optimizers, step)
    if step % 4 == 3:
        state = {"step": step + 1}
        for train, (model, optimizers, hook) in trainings.items():
            kept = [each.state_dict() for each in optimizers]
            state[train.__name__] = {"model": model.state_dict(), "optimizers": kept, "flops": hook.state_dict()}
        torch.save(state, folder / "new.pt")
        (folder / "new.pt").replace(file)
    die(step)
found = {"begin": begin}
for train, (_, _, hook) in trainings.items():
    hook.close()
    found[train.__name__] = hook.metrics()
(folder / "found.json").write_text(json.dumps(found))
"""

TRAINER = """
warnings.filterwarnings("ignore")
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from flopcallback import FlopCallback


class Batches:
    # It knows where it is, so that an epoch goes on in its middle.
    begun = at = 0

    def __len__(self):
        return 6

    def __iter__(self):
        self.at, self.begun = self.begun, 0
        while self.at < 6:
            self.at += 1
            yield torch.ones(LENGTHS[self.at - 1], 5)

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.begun = state["at"]


class Module(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = make_net()

    def training_step(self, batch, batch_idx):
        return self.net(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())

    def on_train_batch_end(self, *_):
        die(self.trainer.fit_loop.epoch_loop.total_batch_idx)


flops = FlopCallback(summary=False, warmup_steps=0, latency_steps=2, report_dir=folder / "report", strict=True)
checkpoints = ModelCheckpoint(folder, every_n_train_steps=1, save_top_k=-1, filename="{step}")
trainer = Trainer(
    accelerator="cpu", devices=1, max_epochs=2, logger=False, enable_progress_bar=False, enable_model_summary=False,
    default_root_dir=folder, callbacks=[flops, checkpoints],
)
files = sorted(folder.glob("*.ckpt"), key=lambda file: file.stat().st_mtime_ns)
trainer.fit(Module(), Batches(), ckpt_path=files[-1] if files else None)
found = {"begin": len(files), "trainer": dict(flops.profiles["train"].training)}
(folder / "found.json").write_text(json.dumps(found))
"""


def run(folder, script, kill_at, *, is_forked):
    file = folder / "script.py"
    file.write_text(COMMON + script, encoding="utf-8")
    if is_forked:
        return forked.start(file, folder, kill_at)
    return subprocess.Popen([sys.executable, file, folder, str(kill_at)], stderr=subprocess.DEVNULL)


def exit_code(process, timeout_s):
    """None of a process that goes on."""
    if not isinstance(process, subprocess.Popen):
        process.join(timeout_s)
        return process.exitcode
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout_s)
    return process.returncode


def kill_and_resume(folder, script, kill_at, *, is_forked=True):
    """Kills a run at a step, begins it anew where it saved itself, and gives what it found."""
    process = run(folder, script, kill_at, is_forked=is_forked)
    until = time.monotonic() + TIMEOUT_S
    try:
        while not (folder / "kill me").exists():
            assert exit_code(process, 0.02) is None
            assert time.monotonic() < until
    finally:
        os.kill(process.pid, signal.SIGKILL)
    assert exit_code(process, TIMEOUT_S) == -signal.SIGKILL
    process = run(folder, script, -1, is_forked=is_forked)
    try:
        assert exit_code(process, TIMEOUT_S) == 0
    finally:
        process.kill()
    return json.loads((folder / "found.json").read_text())


STEPS = len(LENGTHS)
TOTALS = {  # FLOPs and samples; the penalty is in steps 0, 4, 8 and 12
    "train_lengths": (sum(LENGTHS) * ROW, sum(LENGTHS)),
    "train_accumulating": (STEPS * (2 + 3 + 2) * ROW, STEPS * (2 + 3 + 2)),
    "train_penalty": (3 * (4 * PENALTY + (STEPS - 4) * ROW), 3 * STEPS),
    "train_gan": (4 * STEPS * GAN, 4 * STEPS),
}


def numbers(found):
    assert found["compute/estimated_pct"] == 0
    return found["compute/flops_total"], found["compute/samples_total"]


@pytest.mark.slow
@pytest.mark.parametrize(("kill_at", "is_forked"), [(4, False), (10, True)], ids=["early", "late"])
def test_loops_that_were_killed_end_with_the_integers_of_their_whole(tmp_path, kill_at, is_forked):
    found = kill_and_resume(tmp_path, LOOPS, kill_at, is_forked=is_forked)
    assert found["begin"] == kill_at // 4 * 4
    assert {name: numbers(found[name]) for name in TOTALS} == TOTALS


@pytest.mark.slow
@pytest.mark.lightning
@pytest.mark.models
def test_a_trainer_that_was_killed_ends_with_the_integers_of_its_whole(tmp_path):
    found = kill_and_resume(tmp_path, TRAINER, kill_at=8)  # in the middle of the second epoch
    assert found["begin"] > 0
    rows = 2 * sum(LENGTHS[:6])
    assert numbers(found["trainer"]) == (rows * ROW, rows)


# --- In this process --------------------------------------------------------------------------------------------------


def make_net():
    return nn.Sequential(nn.Linear(WIDE, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, OUT))


def train(lengths, state=None, **options):
    net = make_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with FlopHook(net, optimizer, **QUIET, **options) as hook:
        if state is not None:
            hook.load_state_dict(state)
        for rows in lengths:
            net(torch.ones(rows, WIDE)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    return hook


def test_a_state_is_read_with_weights_only(tmp_path):
    torch.save(train([3, 2, 3]).state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert numbers(train([4, 4], state).metrics()) == (16 * ROW, 16)


def test_a_state_goes_through_json():
    state = json.loads(json.dumps(train([3, 2, 3]).state_dict()))
    assert numbers(train([4, 4], state).metrics()) == (16 * ROW, 16)


@pytest.mark.filterwarnings("ignore:FlopHook. no training call:UserWarning")
def test_a_state_that_was_loaded_is_in_the_next_before_any_step():
    state = train([3, 2, 3]).state_dict()
    net = make_net()
    with FlopHook(net, torch.optim.SGD(net.parameters()), **QUIET) as hook:
        hook.load_state_dict(state)
        assert hook.state_dict() == state


def test_a_kind_that_was_never_observed_is_booked_when_it_is():
    """The only step before is the counted one, which no later one is like in its nodes."""
    state = train([3]).state_dict()
    assert state["compute"]["ledger"]["sums"][0] == 3 * ROW
    assert numbers(train([3, 3], state).metrics()) == (9 * ROW, 9)


@pytest.mark.parametrize("cut", range(1, 7))
def test_every_cut_gives_the_same_integers(cut):
    lengths = [3, 2, 3, 3, 2, 4, 4, 4]
    state = train(lengths[:cut]).state_dict()
    assert numbers(train(lengths[cut:], state).metrics()) == (sum(lengths) * ROW, sum(lengths))


def test_a_state_of_two_ranks_goes_on_with_one():
    """As rank 0 of two has it: with a kind that only the other one had, and never observed."""
    ledgers = [train(lengths).state_dict()["compute"]["ledger"] for lengths in ([3, 3], [4])]
    state = {"version": 2, "step": 2, "ledger": ComputeLedger.merged(ledgers).state(), "samples": 10, "tokens": None}
    assert numbers(train([4, 4], {"compute": state}).metrics()) == (18 * ROW, 18)


@pytest.mark.parametrize("state", [{}, {"compute": {}}], ids=["nothing", "of another rank"])
def test_a_checkpoint_without_our_state_begins_at_zero(state):
    assert numbers(train([3, 3], state).metrics()) == (6 * ROW, 6)


@pytest.mark.parametrize("state", ["x", 5, [1], {"compute": None}, {"compute": "abc"}, {"compute": {"version": 99}}])
def test_a_state_that_is_none_is_one_warning(state):
    with pytest.warns(FlopCallbackWarning) as caught:
        hook = train([3, 3], state)
    (text,) = [str(each.message) for each in caught]
    assert text.startswith("compute so far begins anew: ValueError: state")
    assert numbers(hook.metrics()) == (6 * ROW, 6)


def paths(value, path=()):
    """The places of all values in nested lists and dicts."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from paths(item, (*path, key))


def changed(state, path, change):
    state = copy.deepcopy(state)
    around = state
    for key in path[:-1]:
        around = around[key]
    change(around, path[-1])
    return state


def replacing(value):
    def replace(around, key):
        around[key] = value

    return replace


def kind(rows):
    return StepKey(CallKey(((rows, WIDE),)), "4 of 4", (), 1, (0,), 7)


def a_state():
    """With a kind that varies, one that was counted only and waits, and one that is unseen."""
    ledger = ComputeLedger()
    ledger.add_counted(kind(5), 5 * (FIRST + SECOND), 2)
    ledger.add_observed(kind(3), StepCost(3 * ROW, 3 * (FIRST + SECOND), 0, 1), 2)
    ledger.add(kind(3))
    ledger.add_observed(kind(3), StepCost(2 * ROW, 3 * (FIRST + SECOND), 0, 1), 2)
    ledger.add(kind(4))
    state = {"version": 2, "step": 5, "ledger": ledger.state(), "samples": 18, "tokens": None}
    return json.loads(json.dumps(state))


def any_whole_number(path):
    """Whether a part may be below 0 or as large as one likes: -1 is "not known"."""
    is_outside = path[1:2] == ("kinds",) and path[3:] == (3, 2)
    is_error = path[1:2] == ("kinds",) and path[3:] == (5, 1)
    return is_outside or is_error or (path[1:2] == ("counted",) and path[3:] == (3,))


def any_text(path):
    return (path[1:2] == ("kinds",) and path[3:] == (0,)) or (path[1:2] == ("counted",) and path[3:] in ((0,), (1,)))


def test_of_a_state_every_part_is_checked():
    state = a_state()
    assert {bool(row[2]) for row in state["ledger"]["kinds"]} == {True, False}
    assert any(row[6] for row in state["ledger"]["kinds"])
    assert state["ledger"]["counted"]
    checked_state(state, 2)
    tried = 0
    for path in filter(None, paths(state)):
        for value in (None, "x", -7, 1.5, math.nan, {}, [["x"]], 10**400):
            is_unknown = value is None and path in (("samples",), ("tokens",))
            if is_unknown or (any_text(path) and value == "x"):
                continue
            if any_whole_number(path) and value in (-7, 10**400):
                continue
            tried += 1
            with pytest.raises(ValueError, match="state"):
                checked_state(changed(state, path, replacing(value)), 2)
        if isinstance(path[-1], str):
            with pytest.raises(ValueError, match="state"):
                checked_state(changed(state, path, lambda around, key: around.pop(key)), 2)
    assert tried > 300


def test_totals_that_cannot_be_are_refused():
    alone = a_state()
    alone["ledger"] |= {"kinds": [], "counted": [], "audited": 0}
    for state, said in ((a_state(), "steps of kinds cannot be among 0"), (alone, "FLOPs cannot come from 0 steps")):
        checked_state(state, 2)
        state["ledger"]["steps"] = 0
        with pytest.raises(ValueError, match=said):
            checked_state(state, 2)


# --- Under a Trainer --------------------------------------------------------------------------------------------------


@pytest.fixture
def fit(tmp_path):
    """Trains on the first six lengths, and gives the callback and the trainer."""
    from lightning.pytorch import LightningModule, Trainer

    from flopcallback import FlopCallback

    class Module(LightningModule):
        def __init__(self, fail_at):
            super().__init__()
            self.net = make_net()
            self.fail_at = fail_at

        def training_step(self, batch, batch_idx):
            if self.fail_at is not None and batch_idx == self.fail_at[0]:
                raise self.fail_at[1]
            return self.net(batch).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    def fit(*, epochs=1, callbacks=(), ours=True, ckpt_path=None, fail_at=None):
        callback = ours if isinstance(ours, FlopCallback) else FlopCallback(report_dir=tmp_path / "report", **QUIET)
        batches = [torch.ones(rows, WIDE) for rows in LENGTHS[:6]]
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            logger=False,
            enable_checkpointing=bool(callbacks),
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
            callbacks=[*([callback] if ours else []), *callbacks],
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", FlopCallbackWarning)
            loader = torch.utils.data.DataLoader(batches, batch_size=None)
            trainer.fit(Module(fail_at), loader, ckpt_path=ckpt_path)
        return callback, trainer

    return fit


def samples_in(file):
    return torch.load(file, weights_only=True)["callbacks"]["FlopCallback"]["compute"]["samples"]


EPOCH = sum(LENGTHS[:6])


@pytest.mark.lightning
@pytest.mark.models
def test_epochs_that_are_resumed_add_up(fit, tmp_path):
    _, trainer = fit()
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    assert samples_in(tmp_path / "after.ckpt") == EPOCH
    callback, _ = fit(epochs=3, ckpt_path=tmp_path / "after.ckpt")
    assert numbers(callback.profiles["train"].training) == (3 * EPOCH * ROW, 3 * EPOCH)


@pytest.mark.lightning
@pytest.mark.models
@pytest.mark.filterwarnings("ignore:.*does not have a.*batch:UserWarning")
def test_a_training_that_goes_on_without_a_checkpoint_adds_up(fit):
    callback, trainer = fit()
    trainer.fit_loop.max_epochs = 2
    trainer.fit(trainer.lightning_module, trainer.train_dataloader)
    assert numbers(callback.profiles["train"].training) == (2 * EPOCH * ROW, 2 * EPOCH)


@pytest.mark.lightning
@pytest.mark.models
def test_a_new_training_of_a_callback_begins_at_zero(fit):
    callback, _ = fit()
    fit(ours=callback)
    assert numbers(callback.profiles["train"].training) == (EPOCH * ROW, EPOCH)


@pytest.mark.lightning
@pytest.mark.models
@pytest.mark.parametrize("is_used", [False, True], ids=["a new callback", "one that has trained before"])
def test_a_checkpoint_of_a_training_without_us_begins_at_zero(fit, tmp_path, is_used):
    _, trainer = fit(ours=False)
    trainer.save_checkpoint(tmp_path / "without.ckpt")
    earlier = fit()[0] if is_used else True
    callback, _ = fit(epochs=2, ours=earlier, ckpt_path=tmp_path / "without.ckpt")
    assert numbers(callback.profiles["train"].training) == (EPOCH * ROW, EPOCH)


@pytest.mark.lightning
@pytest.mark.models
def test_our_state_is_no_hindrance_to_a_training_without_us(fit, tmp_path):
    _, trainer = fit()
    trainer.save_checkpoint(tmp_path / "with.ckpt")
    _, trainer = fit(epochs=2, ours=False, ckpt_path=tmp_path / "with.ckpt")
    assert trainer.global_step == 2 * 6


@pytest.mark.lightning
@pytest.mark.models
@pytest.mark.parametrize("error", [ZeroDivisionError(), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_a_checkpoint_that_an_exception_leaves_has_our_state(fit, tmp_path, error):
    from lightning.pytorch.callbacks import OnExceptionCheckpoint

    class Kept(OnExceptionCheckpoint):
        def teardown(self, *_, **__):
            """Keeps the file."""

    with pytest.raises((ZeroDivisionError, SystemExit)):
        fit(callbacks=[Kept(tmp_path)], fail_at=(4, error))
    assert samples_in(tmp_path / "on_exception.ckpt") == sum(LENGTHS[:4])


@pytest.mark.lightning
@pytest.mark.models
def test_callbacks_of_different_prefixes_keep_their_states_apart(fit, tmp_path):
    from flopcallback import FlopCallback

    pair = [FlopCallback(prefix=prefix, report_dir=tmp_path / prefix, **QUIET) for prefix in ("a/", "b/")]
    _, trainer = fit(ours=False, callbacks=pair)
    trainer.save_checkpoint(tmp_path / "both.ckpt")
    states = torch.load(tmp_path / "both.ckpt", weights_only=True)["callbacks"]
    kept = [state["compute"]["samples"] for key, state in states.items() if key.startswith("FlopCallback")]
    assert kept == [EPOCH] * 2
