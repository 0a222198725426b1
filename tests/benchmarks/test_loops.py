"""The examples for Accelerate and Fabric: the figures and the weights of the plain loop."""

from __future__ import annotations

import contextlib
import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

from flopcallback import FlopHook

EXAMPLES = Path(__file__).parents[2] / "examples"

BATCHES, BATCH, PIXELS, HIDDEN, CLASSES = 24, 10, 64, 96, 10
FORWARD = 2 * BATCH * (PIXELS * HIDDEN + HIDDEN * CLASSES)
STEP = 2 * BATCH * (2 * PIXELS * HIDDEN + 3 * HIDDEN * CLASSES)  # nobody asks for the gradient of the images


@pytest.fixture(params=[pytest.param(name, marks=[mark]) for name, mark in [
    ("accelerate_loop", pytest.mark.accelerate), ("fabric_loop", pytest.mark.lightning)
]])  # fmt: skip
def example(request):
    spec = importlib.util.spec_from_file_location(request.param, EXAMPLES / f"{request.param}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    if request.param == "accelerate_loop":
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)  # it remembers the precision for the whole process


def plain_loop(example, model, precision, accumulate, *, is_watched=True):
    """The loop of the examples, in PyTorch alone."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with FlopHook(model, optimizer, summary=False) if is_watched else contextlib.nullcontext() as hook:
        for number, (images, labels) in enumerate(example.data(), 1):
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                output = model(images)
            loss = nn.functional.cross_entropy(output.float(), labels)
            (loss / accumulate if example.__name__ == "accelerate_loop" else loss).backward()
            if number % accumulate == 0:
                optimizer.step()
                optimizer.zero_grad()
    return hook


def exact(hook):
    """All that is no time."""
    return {name: value for name, value in hook.metrics().items() if not name.startswith(("latency/", "perf/"))}


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_loop_of_a_framework_has_the_figures_of_the_plain_loop(example, precision, accumulate):
    models = []
    for _ in range(3):
        torch.manual_seed(0)
        models.append(example.net())
    hook = example.train(models[0], precision, accumulate)
    plain = plain_loop(example, models[1], precision, accumulate)
    plain_loop(example, models[2], precision, accumulate, is_watched=False)
    assert exact(hook) == exact(plain)
    assert hook.metrics()["flops/forward"] == FORWARD
    assert hook.metrics()["flops/train_step"] == accumulate * STEP
    assert hook.metrics()["compute/flops_total"] == BATCHES * STEP
    assert hook.metrics()["compute/estimated_pct"] == 0
    rows = [[(row.path, row.type, row.flops, row.step) for row in each.profile.modules] for each in (hook, plain)]
    assert rows[0] == rows[1]
    assert [row[:2] for row in rows[0]] == [("", "Sequential"), ("0", "Linear"), ("1", "ReLU"), ("2", "Linear")]
    assert all(map(torch.equal, models[0].parameters(), models[2].parameters()))
