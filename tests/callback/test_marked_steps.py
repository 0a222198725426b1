"""Marked steps that work before the first call of the model: all of it belongs to the step."""

from __future__ import annotations

import warnings
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from flopcallback import FlopCallbackWarning, FlopHook

ROWS, WIDE, HIDDEN, OUT, INNER = 3, 5, 7, 2, 11

# A multiply-add is two FLOPs. The backward of the first layer has no gradient of the input to make.
STEP = ROWS * ((2 + 2) * WIDE * HIDDEN + (2 + 2 + 2) * HIDDEN * OUT)
TEACHER = 2 * ROWS * WIDE * INNER
PRODUCT = 2 * WIDE * WIDE * INNER


def watched(**options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDE, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, OUT))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = {"warmup_steps": 1, "latency_steps": 2, "summary": False, "strict": True, **options}
    return model, optimizer, FlopHook(model, optimizer, **options)


def trained(model, optimizer, rows=ROWS):
    model(torch.ones(rows, WIDE)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def spent(hook):
    numbers = hook.metrics()
    return numbers["compute/flops_total"], numbers["compute/estimated_pct"]


teacher = nn.Linear(WIDE, INNER)


@torch.no_grad()
def ask_teacher():
    teacher(torch.ones(ROWS, WIDE))


def ask_teacher_with_grad():
    teacher(torch.ones(ROWS, WIDE))


def multiply():
    torch.ones(WIDE, WIDE) @ torch.ones(WIDE, INNER)


EARLY = {
    "a module without grad": (ask_teacher, TEACHER),
    "a module with grad": (ask_teacher_with_grad, TEACHER),
    "a product": (multiply, PRODUCT),
    "nothing that multiplies": (lambda: torch.ones(3).sum(), 0),
}


@pytest.mark.parametrize(("work", "flops"), EARLY.values(), ids=EARLY.keys())
def test_work_before_the_first_call_belongs_to_the_step(work, flops):
    model, optimizer, hook = watched()
    with hook:
        for _ in range(20):
            work()  # in no step
            with hook.step():
                work()
                trained(model, optimizer)
    assert spent(hook) == (20 * (flops + STEP), 0)
    assert hook.metrics()["flops/train_step"] == flops + STEP


def test_it_belongs_to_steps_that_begin_and_end_in_callbacks():
    model, optimizer, hook = watched()
    with hook:
        for _ in range(20):
            hook.begin_step()
            multiply()
            trained(model, optimizer)
            hook.end_step()
    assert spent(hook) == (20 * (PRODUCT + STEP), 0)


def test_batches_of_two_sizes_are_told_apart():
    model, optimizer, hook = watched()
    with hook:
        for number in range(40):
            with hook.step():
                multiply()
                trained(model, optimizer, rows=(1 + number % 2) * ROWS)
    assert spent(hook) == (40 * PRODUCT + 20 * (STEP + 2 * STEP), 0)


def test_without_audits_every_step_is_observed_from_its_begin():
    model, optimizer, hook = watched(observe="always")
    with hook:
        for number in range(20):
            with hook.step():
                if number >= 10:
                    multiply()
                trained(model, optimizer)
    assert spent(hook) == (20 * STEP + 10 * PRODUCT, 0)


def test_work_that_begins_later_is_found_by_an_audit():
    model, optimizer, hook = watched()
    with hook:
        for number in range(200):
            with hook.step():
                if number >= 100:
                    multiply()
                trained(model, optimizer)
    numbers, right = hook.metrics(), 200 * STEP + 100 * PRODUCT
    total = numbers["compute/flops_total"]
    assert total != 200 * STEP
    assert numbers["compute/estimated_pct"] > 0
    assert abs(total - right) <= numbers["compute/error_pct"] / 100 * total


def test_a_step_without_a_call_of_the_model_is_not_booked():
    model, optimizer, hook = watched()
    with hook:
        for number in range(20):
            with hook.step():
                multiply()
                if number % 2 == 0:
                    trained(model, optimizer)
    assert spent(hook) == (10 * (PRODUCT + STEP), 0)


def test_a_training_has_the_same_digits():
    weights = []
    for is_watched in (False, True):
        model, optimizer, hook = watched()
        with warnings.catch_warnings(), hook if is_watched else nullcontext():
            if not is_watched:
                warnings.simplefilter("ignore", FlopCallbackWarning)  # that it has seen nothing
                hook.close()
            for _ in range(12):
                with hook.step():
                    target = torch.rand(OUT)
                    ask_teacher()
                    (model(torch.rand(ROWS, WIDE)) - target).square().mean().backward()
                    optimizer.step()
        weights.append([each.tolist() for each in model.parameters()])
    assert weights[0] == weights[1]
