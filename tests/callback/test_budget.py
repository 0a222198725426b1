"""A budget of compute: training stops after the very step that spends it, and says so once."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from flopcallback import FlopCallbackWarning, FlopHook

WIDE, HIDDEN, OUT, ROWS = 5, 7, 3, 4
STEP = ROWS * ((2 + 2) * WIDE * HIDDEN + (2 + 2 + 2) * HIDDEN * OUT)
"""FLOPs of a training step: the first layer's input needs no gradient."""

FORWARD = ROWS * 2 * (WIDE * HIDDEN + HIDDEN * OUT)
QUIET = {"warmup_steps": 0, "latency_steps": 2}
MANY = 30


def make_net():
    return nn.Sequential(nn.Linear(WIDE, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, OUT))


def steps_of(hook, net, optimizer, *, rows=(ROWS,) * MANY, accumulate=1, state=None):
    """Steps that the loop took."""
    if state is not None:
        hook.load_state_dict(state)
    for step, number in enumerate(rows):
        if hook.should_stop:
            return step
        for _ in range(accumulate):
            net(torch.ones(number, WIDE)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return len(rows)


def train(max_flops, *, net=None, summary=False, **options):
    net = net or make_net()
    optimizer = torch.optim.SGD([each for each in net.parameters() if each.requires_grad], lr=0.1)
    loop = {name: options.pop(name) for name in ("rows", "accumulate", "state") if name in options}
    with FlopHook(net, optimizer, max_flops=max_flops, summary=summary, **QUIET, **options) as hook:
        steps = steps_of(hook, net, optimizer, **loop)
    return steps, hook


@pytest.mark.parametrize(
    ("budget", "steps"),
    [
        (1, 1),
        (STEP, 1),
        (STEP + 1, 2),
        (2 * STEP, 2),
        (9 * STEP - 1, 9),
        (9 * STEP, 9),
        (9 * STEP + 1, 10),
        (1e15, MANY),
        (9.5 * STEP, 10),
    ],
)
def test_a_loop_stops_after_the_step_that_spends_it(budget, steps):
    taken, hook = train(budget)
    assert taken == steps
    assert hook.metrics()["compute/flops_total"] == steps * STEP


def test_accumulation_is_stopped_at_the_end_of_a_step():
    """Three batches each: the budget is spent in the middle of the second step."""
    assert train(4 * STEP, accumulate=3)[0] == 2


def test_steps_of_different_lengths():
    """1 + 2 + 3 + 4 + 5 + 6 rows reach 21, those before 15."""
    assert train(16 * STEP // ROWS, rows=range(1, MANY))[0] == 6
    assert train(15 * STEP // ROWS, rows=range(1, MANY))[0] == 5


def test_flops_of_the_users_own():
    assert train(1000, flops_fn=lambda batch: 300)[0] == 4


def test_a_loop_without_a_budget_goes_on():
    assert train(None)[0] == MANY


def test_a_resumed_loop_stops_at_the_same_step():
    whole, _ = train(9 * STEP)
    for cut in (1, 2, 5, 8):
        _, hook = train(9 * STEP, rows=[ROWS] * cut)
        assert cut + train(9 * STEP, state=hook.state_dict())[0] == whole == 9


@pytest.mark.filterwarnings("ignore:FlopHook. no training call:UserWarning")
def test_a_loop_with_nothing_left_makes_no_step():
    _, hook = train(9 * STEP)
    assert train(9 * STEP, state=hook.state_dict())[0] == 0
    assert train(9 * STEP + 1, state=hook.state_dict())[0] == 1


def test_an_estimate_that_may_settle_is_waited_for():
    """Of the counted step the forward alone is known, and three times that is what a step takes as a rule.

    Here the first layer, the larger one, is frozen: 112 FLOPs of forward and 42 of backward for each row.
    """
    net = make_net()
    net[0].requires_grad_(False)
    step = FORWARD + ROWS * 2 * HIDDEN * OUT
    assert step < 2 * FORWARD
    taken, hook = train(2 * FORWARD, net=net)
    assert taken == 2
    assert hook.metrics()["compute/flops_total"] == 2 * step


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_model_stops_where_it_would_uncompiled():
    net = make_net()
    compiled = torch.compile(net, backend="eager")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with FlopHook(compiled, optimizer, max_flops=4 * STEP, summary=False, **QUIET) as hook:
        assert steps_of(hook, compiled, optimizer) == 4


def test_the_user_is_told_once(capsys):
    train(3 * STEP, summary=True)
    assert capsys.readouterr().out.count("flopcallback: max_flops is spent at step 2: training stops") == 1
    train(3 * STEP)
    assert capsys.readouterr().out == ""


def test_who_goes_on_is_still_counted():
    net = make_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with FlopHook(net, optimizer, max_flops=2 * STEP, summary=False, **QUIET) as hook:
        for _ in range(5):
            net(torch.ones(ROWS, WIDE)).square().mean().backward()
            optimizer.step()
        assert hook.should_stop
    assert hook.metrics()["compute/flops_total"] == 5 * STEP


@pytest.mark.parametrize("budget", [0, -1, float("nan"), float("inf"), "1e15", True, 1j])
def test_what_is_no_budget_is_refused(budget):
    net = make_net()
    with pytest.raises(ValueError, match=r"FlopHook: max_flops is .*, expected FLOPs above 0, or None"):
        FlopHook(net, max_flops=budget)


# --- Under a Trainer --------------------------------------------------------------------------------------------------


@pytest.fixture
def fit(tmp_path):
    """Trains on batches of four rows, and gives the steps, the FLOPs that were booked, and the trainer."""
    from lightning.pytorch import LightningModule, Trainer

    from flopcallback import FlopCallback

    class Module(LightningModule):
        def __init__(self):
            super().__init__()
            self.net = make_net()

        def training_step(self, batch, batch_idx):
            return self.net(batch).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    def fit(budget, *, summary=False, ckpt_path=None, **options):
        callback = FlopCallback(max_flops=budget, summary=summary, report_dir=tmp_path / "report", **QUIET)
        trainer = Trainer(
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[callback],
            **{"max_epochs": 5, **options},
        )
        data = torch.utils.data.DataLoader([torch.ones(ROWS, WIDE)] * 6, batch_size=None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", FlopCallbackWarning)
            trainer.fit(Module(), data, ckpt_path=ckpt_path)
        profile = callback.profiles.get("train")
        return trainer.global_step, profile and profile.training["compute/flops_total"], trainer

    return fit


@pytest.mark.lightning
@pytest.mark.models
@pytest.mark.parametrize(
    ("budget", "steps"), [(STEP, 1), (2 * STEP, 2), (2 * STEP + 1, 3), (9 * STEP, 9), (9 * STEP + 1, 10), (1e15, 30)]
)
def test_a_trainer_stops_after_the_step_that_spends_it(fit, budget, steps):
    assert fit(budget)[:2] == (steps, steps * STEP)


@pytest.mark.lightning
@pytest.mark.models
def test_a_trainer_that_accumulates_stops_at_the_end_of_a_step(fit):
    """Of three batches each; the budget is spent by the first batch of the third."""
    assert fit(7 * STEP, accumulate_grad_batches=3)[:2] == (3, 9 * STEP)


@pytest.mark.lightning
@pytest.mark.models
def test_a_resumed_trainer_stops_at_the_same_step(fit, tmp_path):
    *_, trainer = fit(15 * STEP, max_epochs=2)
    assert trainer.global_step == 12
    trainer.save_checkpoint(tmp_path / "part.ckpt")
    assert fit(15 * STEP, ckpt_path=tmp_path / "part.ckpt")[:2] == (15, 15 * STEP)


@pytest.mark.lightning
@pytest.mark.models
def test_a_trainer_with_nothing_left_makes_no_step(fit, tmp_path, capsys):
    *_, trainer = fit(12 * STEP, max_epochs=2)
    trainer.save_checkpoint(tmp_path / "whole.ckpt")
    capsys.readouterr()
    assert fit(12 * STEP, summary=True, ckpt_path=tmp_path / "whole.ckpt")[:2] == (12, None)
    assert capsys.readouterr().out.count("flopcallback: max_flops is spent at step 12: training stops") == 1


@pytest.mark.lightning
@pytest.mark.models
@pytest.mark.parametrize(
    ("least", "steps"), [({"min_steps": 8}, 8), ({"min_epochs": 2}, 12)], ids=["min_steps", "min_epochs"]
)
def test_a_trainers_own_least_is_kept_and_said(fit, capsys, least, steps):
    assert fit(3 * STEP, summary=True, **least)[:2] == (steps, steps * STEP)
    said = "flopcallback: max_flops is spent at step 2: training goes on to min_epochs or min_steps, and stops"
    assert capsys.readouterr().out.count(said) == 1


@pytest.mark.lightning
@pytest.mark.models
def test_a_trainer_says_once_why_it_stops(fit, capsys):
    fit(3 * STEP, summary=True)
    assert capsys.readouterr().out.count("max_flops") == 1


@pytest.mark.lightning
@pytest.mark.models
@pytest.mark.parametrize("budget", [0, -1, float("nan"), "1e15"])
def test_what_is_no_budget_is_refused_by_the_callback(budget):
    from flopcallback import FlopCallback

    with pytest.raises(ValueError, match=r"FlopCallback: max_flops is .*, expected FLOPs above 0, or None"):
        FlopCallback(max_flops=budget)
