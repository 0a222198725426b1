"""Compute of loops that change their ways, of odd inputs, and of what gave up."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from flopcallback import FlopCallbackWarning, FlopHook
from flopcallback.modules.structures import shapes_of

BATCH, WIDE, INNER, OUT = 3, 5, 7, 2
SHORT = {"warmup_steps": 0, "latency_steps": 1, "summary": False}
HEAD = 2 * BATCH * INNER * OUT
BODY = 2 * BATCH * WIDE * INNER


class TwoParts(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(WIDE, INNER), nn.Linear(INNER, OUT)

    def forward(self, x):
        return self.head(self.body(x))


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.01)


def step(result, optimizer):
    result.sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_a_part_that_is_called_alone_after_the_window_is_booked():
    model = TwoParts()
    optimizer = sgd(model)
    with FlopHook(model, optimizer, strict=True, **SHORT) as hook:
        for _ in range(9):
            step(model(torch.ones(BATCH, WIDE)), optimizer)
        for _ in range(9):
            step(model.head(torch.ones(BATCH, INNER)), optimizer)
    whole = 2 * BODY + 3 * HEAD  # the body's input and the head's alone need no gradient
    assert hook.metrics()["compute/flops_total"] == 9 * whole + 9 * 2 * HEAD
    assert hook.metrics()["compute/samples_total"] == 18 * BATCH


def test_metrics_that_are_asked_for_in_every_step_end_none_of_them():
    model = nn.Linear(WIDE, OUT)
    with FlopHook(model, strict=True, **SHORT) as hook:
        for _ in range(9):
            model(torch.ones(BATCH, WIDE)).sum().backward()
            hook.metrics()
    assert hook.metrics()["compute/samples_total"] == 9 * BATCH


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_nested_inputs_are_kinds_by_all_their_values():
    model = nn.Linear(WIDE, OUT)
    optimizer = sgd(model)
    with FlopHook(model, optimizer, strict=True, **SHORT) as hook:
        for _ in range(4):
            nested = torch.nested.nested_tensor([torch.ones(2, WIDE), torch.ones(4, WIDE)], layout=torch.jagged)
            step(model(nested).values(), optimizer)
        assert hook.state_dict()["compute"]["ledger"]["steps"] == 4
    strided = torch.nested.nested_tensor([torch.ones(2, WIDE), torch.ones(4, WIDE)])
    assert shapes_of(strided) == ((2, (2 + 4) * WIDE),)


def test_a_loop_that_was_given_up_says_that_its_budget_is_not_kept_and_saves_no_compute(monkeypatch):
    from flopcallback.training.meter import ComputeMeter

    def fails(*_, **__):
        raise LookupError("injected")

    model = nn.Linear(WIDE, OUT)
    optimizer = sgd(model)
    with FlopHook(model, optimizer, max_flops=1e9, **SHORT) as hook:
        for _ in range(4):
            step(model(torch.ones(BATCH, WIDE)), optimizer)
        monkeypatch.setattr(ComputeMeter, "end_step", fails)
        with pytest.warns(FlopCallbackWarning) as told:
            step(model(torch.ones(BATCH, WIDE)), optimizer)
        assert any("max_flops is not kept" in str(each.message) for each in told)
        assert not hook.state_dict().get("compute")
