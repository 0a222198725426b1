"""A hook of every kind that `FlopHook` places fails: that is one warning, and the loop goes on as it would."""

from __future__ import annotations

import contextlib
import warnings

import pytest
import torch
from torch import nn

from flopcallback import FlopCallbackWarning, FlopHook
from flopcallback.loop.watch import LoopWatch
from flopcallback.measuring import latency
from flopcallback.tracing import marks, observer, profiler_broker, record_kinds, scopes
from flopcallback.training.meter import ComputeMeter
from flopcallback.training.recorder import ProfileRecorder
from flopcallback.training.training import Training

BATCH, WIDE, STEPS = 4, 5, 6


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.dropout, self.last = nn.Linear(WIDE, 7), nn.Dropout(0.5), nn.Linear(7, 3)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.last(Doubled.apply(self.dropout(self.first(x))))


def train(hook, before_step=lambda step: None):
    """What `STEPS` steps leave, and the model."""
    torch.manual_seed(3)
    model = Net()
    optimizer = torch.optim.Adam(model.parameters())
    with hook(model, optimizer):
        for step in range(STEPS):
            before_step(step)
            model(torch.randn(BATCH, WIDE)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    left = {
        "weights": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "optimizer": optimizer.state_dict(),
        "random": torch.get_rng_state(),
        "calls": model.calls,
        "hooks": [len(optimizer._optimizer_step_pre_hooks), len(optimizer._optimizer_step_post_hooks)],
    }
    return left, model


# The kind of hook: what fails inside it, from which step on. The first step is counted, the second one observed whole,
# the third and fourth are timed, the rest is booked.
KINDS = {
    "optimizer, behind its step": (Training, "note_optimizer", 0),
    "optimizer, behind a step that is booked": (ComputeMeter, "end_step", 4),
    "module, in the counted call": (LoopWatch, "_on_call", 0),
    "module, in the observed step": (LoopWatch, "_on_call", 1),
    "module, in a timed step": (LoopWatch, "_on_call", 2),
    "module, in a step that is booked": (LoopWatch, "_book_only", 4),
    "module, that follows which one runs": (scopes.ModuleScopes, "_enter", 1),
    "module, with a clock": (latency._TimedCall, "_keep", 2),
    "backward, around it": (observer.StepRecorder, "_see_backward", 1),
    "a mark": (marks.Marks, "over", 1),
    "a mark, as it ends": (profiler_broker.Mark, "__exit__", 1),
    "the end of a recording": (observer, "end_recording", 1),
    "the reading of records": (observer, "Reading", 1),
    "what is known of a record": (record_kinds.Kinds, "of", 1),
    "autograd, where a backward begins": (LoopWatch, "_watch_backward", 2),
    "module, at what it returned": (ProfileRecorder, "timed_call", 2),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_hook_that_fails_is_one_warning_and_the_loop_goes_on(kind, differences, leftovers, monkeypatch):
    owner, name, first = KINDS[kind]
    untouched, _ = train(lambda *_: contextlib.nullcontext())
    works, raised, steps = getattr(owner, name), [], []

    def broken(*args, **kwargs):
        if steps[-1] < first:
            return works(*args, **kwargs)
        raised.append(kind)
        raise LookupError("injected")

    monkeypatch.setattr(owner, name, broken)

    def hook(model, optimizer):
        return FlopHook(model, optimizer, warmup_steps=0, latency_steps=2, summary=False)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", FlopCallbackWarning)
        left, model = train(hook, steps.append)
    assert raised
    assert differences(left, untouched) == []
    assert leftovers(model) == []
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == 1, messages
    assert "injected" in messages[0]
