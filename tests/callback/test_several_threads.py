"""Trainings in two threads: while the first call of one is traced, the other waits for a step of its own to count."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from flopcallback import FlopCallbackWarning, FlopHook

BATCH, WIDE, INNER, OUT, STEPS = 5, 7, 11, 3, 6
STEP = 2 * (2 * BATCH * WIDE * INNER) + 3 * (2 * BATCH * INNER * OUT)
WAIT_S = 60


def make_net():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(WIDE, INNER), nn.Tanh(), nn.Linear(INNER, OUT))


class Holding(nn.Module):
    """A model whose first call lasts until another thread lets it go on."""

    def __init__(self):
        super().__init__()
        self.layers = make_net()
        self.is_inside, self.may_go_on = threading.Event(), threading.Event()

    def forward(self, x):
        self.is_inside.set()
        assert self.may_go_on.wait(WAIT_S)
        return self.layers(x)


def steps_of(net, optimizer):
    for step in range(STEPS):
        net(torch.ones(BATCH, WIDE)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        yield step


def train(net, after_step=lambda step: None):
    """The hook of a training, its numbers after each step, and the weights."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    seen = []
    with FlopHook(net, optimizer, summary=False, warmup_steps=0, latency_steps=2) as hook:
        for step in steps_of(net, optimizer):
            seen.append(hook.metrics())
            after_step(step)
    return hook, seen, [each.detach().clone() for each in net.parameters()]


def train_beside(steps):
    """Of two trainings, the second makes so many steps while the first one's first call is under way."""
    first = Holding()

    def after_step(step):
        if step + 1 == steps:
            first.may_go_on.set()
            of_first.result(WAIT_S)

    with ThreadPoolExecutor(1) as pool:
        of_first = pool.submit(train, first)
        try:
            assert first.is_inside.wait(WAIT_S)
            of_second = train(make_net(), after_step)
        finally:
            first.may_go_on.set()
        return of_first.result(WAIT_S), of_second


@pytest.mark.parametrize("steps", [1, 3])
def test_the_second_counts_a_later_step_and_nothing_warns(steps):
    (first, _, _), (second, seen, weights) = train_beside(steps)
    assert first.metrics()["compute/flops_total"] == STEPS * STEP
    assert second.metrics()["compute/flops_total"] == STEPS * STEP
    assert second.metrics()["compute/estimated_pct"] == 0
    assert second.profile.step.total == STEP
    assert all("compute/flops_total" not in numbers for numbers in seen[:steps])  # not known yet is not zero
    plain = make_net()
    assert len([*steps_of(plain, torch.optim.SGD(plain.parameters(), lr=0.01))]) == STEPS
    assert all(map(torch.equal, weights, plain.parameters()))


def test_a_training_that_never_had_its_turn_says_so_once_and_has_no_numbers():
    with pytest.warns(FlopCallbackWarning, match="no training step could be counted: .*in another thread") as caught:
        _, (second, _, _) = train_beside(STEPS)
    assert len(caught) == 1
    assert second.profile is None
    assert second.metrics() == {}
