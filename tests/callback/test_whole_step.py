"""The whole training step through both doors: which step, what it is, and that it is held against the counted call."""

from __future__ import annotations

import contextlib

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from flopcallback import FlopHook
from flopcallback.reporting import StepFlops
from flopcallback.trackers import MemoryTracker

BATCH, WIDE, INNER, OUT = 3, 5, 7, 2
FIRST, SECOND = 2 * BATCH * WIDE * INNER, 2 * BATCH * INNER * OUT


@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(WIDE, INNER), nn.ReLU(), nn.Linear(INNER, OUT))


def train(model, batches, *, micro=1, optimizers=None, **options):
    """A hook after a plain loop over batches of the sizes given."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    options = {"latency_steps": 0, "summary": False, "strict": True, **options}
    with FlopHook(model, optimizer, **options) as hook:
        for size in batches:
            for _ in range(micro):
                model(torch.ones(size, WIDE)).sum().backward()
            optimizer.step()
    return hook


def test_the_step_after_the_counted_one_is_seen_whole(model):
    profile = train(model, [BATCH] * 3).profile
    assert profile.step == StepFlops(forward=FIRST + SECOND, backward=FIRST + 2 * SECOND)
    assert profile.modules[1].step == StepFlops(forward=FIRST, backward=FIRST)
    assert profile.modules[3].step == StepFlops(forward=SECOND, backward=2 * SECOND)
    assert profile.step_note == ""


def test_a_training_of_one_step_has_the_whole_of_it(model):
    profile = train(model, [BATCH]).profile
    assert profile.step == StepFlops(forward=FIRST + SECOND, backward=FIRST + 2 * SECOND)
    assert profile.forward_flops == FIRST + SECOND
    assert profile.step_note == ""


def test_it_is_the_counted_step_itself(model):
    tracker = MemoryTracker()
    hook = train(model, [BATCH, 11, 13, BATCH, BATCH], to=tracker)
    assert hook.profile.step.forward == FIRST + SECOND
    assert [step for step, _ in tracker.profiles] == [0]


def test_accumulated_micro_batches_are_one_step(model):
    profile = train(model, [BATCH] * 2, micro=3).profile
    assert profile.forward_flops == FIRST + SECOND
    assert profile.step == StepFlops(forward=3 * (FIRST + SECOND), backward=3 * (FIRST + 2 * SECOND))
    assert profile.step_note == ""


def test_a_step_that_raised_while_it_was_watched_is_forgotten(model):
    with FlopHook(model, latency_steps=0, summary=False, strict=True) as hook:
        for fails in (False, True, False):
            with contextlib.suppress(KeyError), hook.step():
                loss = model(torch.ones(BATCH, WIDE)).sum()
                if fails:
                    raise KeyError
                loss.backward()
    assert hook.profile.step == StepFlops(forward=FIRST + SECOND, backward=FIRST + 2 * SECOND)
    assert hook.profile.step_note == ""


def test_checkpointing_shows_as_recomputation():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(WIDE, INNER), nn.Linear(INNER, OUT)

        def forward(self, x):
            inner = checkpoint(lambda x: self.first(x).tanh(), x, use_reentrant=False)
            return self.last(inner)

    profile = train(Model(), [BATCH] * 2).profile
    assert profile.step == StepFlops(forward=FIRST + SECOND, backward=FIRST + 2 * SECOND, recompute=FIRST)
    assert {row.path: row.step.recompute for row in profile.modules} == {"": FIRST, "first": FIRST, "last": 0}


def test_the_closures_of_a_line_search_are_all_in_the_step(model):
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=2, lr=1e-3, tolerance_change=0, tolerance_grad=0)
    calls = [0]

    def closure():
        calls[0] += 1
        optimizer.zero_grad()
        loss = F.mse_loss(model(torch.ones(BATCH, WIDE)), torch.zeros(BATCH, OUT))
        loss.backward()
        return loss

    with FlopHook(model, optimizer, latency_steps=0, summary=False, strict=True) as hook:
        optimizer.step(closure)
        calls[0] = 0
        optimizer.step(closure)
    assert calls[0] > 1
    assert hook.profile.step.forward == calls[0] * (FIRST + SECOND)
    assert hook.profile.step.backward == calls[0] * (FIRST + 2 * SECOND)
    assert hook.profile.step_note == ""


def test_a_step_whose_forward_is_not_the_counted_one_is_booked_as_it_ran():
    class Moody(nn.Linear):
        calls = 0

        def forward(self, x):
            self.calls += 1
            y = super().forward(x)
            return y + super().forward(x) if self.calls == 2 else y

    hook = train(Moody(WIDE, OUT), [BATCH] * 3)
    once = 2 * BATCH * WIDE * OUT
    assert hook.profile.step == StepFlops(forward=once, backward=once)
    assert hook.metrics()["compute/flops_total"] == (1 + 2 + 1) * 2 * once
    assert hook.metrics()["compute/estimated_pct"] == 0


def test_a_step_of_a_compiled_model_is_seen_as_it_ran(model):
    torch._dynamo.reset()
    fast = torch.compile(model, backend="eager")
    profile = train(fast, [BATCH] * 3).profile
    assert profile.step == StepFlops(forward=FIRST + SECOND, backward=FIRST + 2 * SECOND)
    assert profile.forward_flops == FIRST + SECOND


def test_a_step_whose_digits_a_mode_would_change_is_seen_and_stays_as_it_is():
    """Below a mode, autocast does not reach the products that `bilinear` is made of."""

    def weights(steps_are_watched):
        torch.manual_seed(3)
        model = nn.Bilinear(5, 7, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        hook = FlopHook(model, optimizer, latency_steps=0, summary=False, strict=True) if steps_are_watched else None
        for _ in range(3):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                y = model(torch.randn(3, 5), torch.randn(3, 7))
            y.float().sum().backward()
            optimizer.step()
        if hook is not None:
            hook.close()
            assert hook.profile.step is not None
        return model.weight.detach().clone()

    assert torch.equal(weights(True), weights(False))


def test_the_line_that_is_printed_says_it(model, capsys):
    train(model, [BATCH] * 8, summary=True, warmup_steps=1, latency_steps=2)
    step = 2 * FIRST + 3 * SECOND
    assert f"train step {step} FLOPs" in capsys.readouterr().out


@pytest.mark.lightning
@pytest.mark.models
@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2}, {"precision": "bf16-mixed"}])
def test_under_a_trainer_the_steps_forward_is_the_counted_one(lightning, run, options):
    from flopcallback import FlopCallback

    callback = FlopCallback(latency_steps=0, summary=False, strict=True)
    run(lightning, [callback], max_epochs=1, **options)
    profile = callback.profiles["train"]
    assert profile.step_note == ""
    assert profile.step.forward == profile.forward_flops > 0
    assert profile.forward_flops < profile.step.backward <= 2 * profile.forward_flops


@pytest.mark.lightning
@pytest.mark.models
def test_under_a_trainer_manual_optimisation_is_told_apart(lightning, run, gan):
    from flopcallback import FlopCallback

    callback = FlopCallback(latency_steps=0, summary=False, strict=True)
    run(lightning, [callback], make=gan, max_epochs=1)
    profile = callback.profiles["train"]
    assert profile.step_note == ""
    assert profile.step.forward == profile.forward_flops > 0
    assert profile.step.backward > 0
    assert profile.step.recompute == 0
