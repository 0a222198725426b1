"""Models beside the one that trains, as a teacher: each has rows, and evaluation is none of a step."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flopcallback import FlopHook
from flopcallback.profile.rows import StepFlops

BATCH, WIDE, INNER, OUT, STEPS = 3, 5, 7, 2, 6
FIRST, SECOND = 2 * BATCH * WIDE * INNER, 2 * BATCH * INNER * OUT  # FLOPs of the layers
FORWARD = FIRST + SECOND
BACKWARD = FIRST + 2 * SECOND  # nobody asks for the gradient of the batch


def net():
    return nn.Sequential(nn.Linear(WIDE, INNER), nn.ReLU(), nn.Linear(INNER, OUT))


def watched(model, optimizer):
    return FlopHook(model, optimizer, warmup_steps=0, latency_steps=2, summary=False, strict=True)


def distil(student, teacher, hook_of):
    """A student learns from a teacher, which follows it; after each step it is evaluated."""
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    x = torch.linspace(-1, 1, BATCH * WIDE).view(BATCH, WIDE)
    with hook_of(optimizer) as hook:
        for _ in range(STEPS):
            with torch.no_grad():
                wanted = teacher(x)
            F.mse_loss(student(x), wanted).backward()
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():
                for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
                    slow.lerp_(fast, 0.01)
            student.eval()
            with torch.no_grad():
                student(x)
            student.train()
    return hook


def models():
    torch.manual_seed(1)
    student = net()
    return student, copy.deepcopy(student).eval()


def test_a_teacher_has_rows_of_its_own_and_its_work_is_without_grad():
    student, teacher = models()
    hook = distil(student, teacher, lambda optimizer: watched({"student": student, "teacher": teacher}, optimizer))
    rows = {row.path: row for row in hook.profile.modules}
    assert [row.path for row in hook.profile.modules if "." not in row.path] == ["", "student", "teacher"]
    assert rows["student"].step == StepFlops(forward=FORWARD, backward=BACKWARD)
    assert rows["teacher"].step == StepFlops(without_grad=FORWARD)
    assert rows["teacher.0"].step == StepFlops(without_grad=FIRST)
    assert rows[""].step == StepFlops(forward=FORWARD, backward=BACKWARD, without_grad=FORWARD)
    assert hook.metrics()["compute/flops_total"] == STEPS * (2 * FORWARD + BACKWARD)
    assert hook.metrics()["compute/estimated_pct"] == 0


def test_the_training_is_as_without_a_hook_and_nothing_is_left(leftovers, differences):
    import contextlib

    plain, watched_ones = models(), models()
    distil(*plain, lambda _: contextlib.nullcontext())
    distil(*watched_ones, lambda optimizer: watched(dict(zip("st", watched_ones, strict=True)), optimizer))
    for untouched, left in zip(plain, watched_ones, strict=True):
        assert differences(untouched.state_dict(), left.state_dict()) == []
        assert leftovers(left) == []


def test_each_is_opened(leftovers):
    student, teacher = models()
    wrapped = nn.DataParallel(student)
    named = {"student": wrapped, "teacher": torch.compile(teacher, backend="eager")}
    hook = distil(wrapped, named["teacher"], lambda optimizer: watched(named, optimizer))
    rows = {row.path: row.type for row in hook.profile.modules}
    assert (rows["student.0"], rows["teacher"], rows["teacher.0"]) == ("Linear", "Sequential", "Linear")


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({}, ValueError, "model is an empty dict"),
        ({"a.b": nn.Linear(1, 1)}, ValueError, "model has the name 'a.b', expected a text without dots"),
        ({0: nn.Linear(1, 1)}, ValueError, "model has the name 0, expected a text without dots"),
        ({"student": "net"}, TypeError, "model is 'net', expected a torch.nn.Module"),
    ],
)
def test_what_are_no_models_is_refused(given, error, message):
    with pytest.raises(error, match=message):
        FlopHook(given)
