"""Steps of equal batches that cost something else, in trainings by both doors, against closed forms."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from flopcallback import FlopHook
from flopcallback.measuring import hardware
from flopcallback.reporting.caption import footer

WIDE, INNER = 4, 6
STEPS = 40
FIRST, SECOND = 2 * WIDE * INNER, 2 * INNER  # forward of one row, by layer
FORWARD = FIRST + SECOND
STEP = 2 * FIRST + 3 * SECOND  # of a training step: the input needs no gradient

pytestmark = pytest.mark.lightning


class Net(nn.Module):
    """Two layers; a row is `FORWARD`."""

    def __init__(self, inner=INNER):
        super().__init__()
        self.a, self.b = nn.Linear(WIDE, inner), nn.Linear(inner, 1)

    def forward(self, x):
        return self.b(torch.relu(self.a(x)))


def loop(model, step, steps=STEPS, **options):
    """Train in a plain loop: `step` gives the loss of a step by its number."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with FlopHook(model, optimizer, summary=False, strict=True, **options) as hook:
        for number in range(steps):
            step(model, number).backward()
            optimizer.step()
            optimizer.zero_grad()
    return hook.metrics(), hook


def fit(model, step, steps=STEPS, *, batches=None, callbacks=1, tmp_path, **options):
    """Train under a Trainer: `step` gets the module, the batch and its number."""
    from lightning.pytorch import LightningModule, Trainer

    from flopcallback import FlopCallback

    class Module(LightningModule):
        def __init__(self):
            super().__init__()
            self.net = model

        def training_step(self, batch, number):
            return step(self.net, batch, number)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.01)

    ours = [
        FlopCallback(summary=False, strict=True, report_dir=tmp_path / str(n), prefix=f"{n}/" if n else "", **options)
        for n in range(callbacks)
    ]
    loader = DataLoader(batches or [torch.ones(2, WIDE)] * steps, batch_size=None, collate_fn=lambda batch: batch)
    Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        callbacks=ours,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    ).fit(Module(), loader)
    return [callback.profiles["train"].training for callback in ours], ours


def exact(numbers):
    assert numbers["compute/estimated_pct"] == 0
    assert "compute/error_pct" not in numbers
    return numbers["compute/flops_total"]


# --- Work without autograd --------------------------------------------------------------------------------------------

TEACHES = {"never": lambda number: False, "every third step": lambda number: number % 3 == 1, "always": lambda _: True}


def taught(net, x, teaches):
    target = torch.zeros(len(x), 1)
    if teaches:
        with torch.no_grad():
            target = net(x)
    return (net(x) - target).square().mean()


@pytest.mark.parametrize("when", TEACHES)
def test_work_without_autograd_counts_the_same_by_hook_and_callback(when, tmp_path):
    teaches = TEACHES[when]
    lessons = sum(map(teaches, range(STEPS)))
    total = 2 * (STEPS * STEP + lessons * FORWARD)
    looped, _ = loop(Net(), lambda net, number: taught(net, torch.ones(2, WIDE), teaches(number)))
    (fitted,), (callback,) = fit(Net(), lambda net, x, number: taught(net, x, teaches(number)), tmp_path=tmp_path)
    for numbers in (looped, fitted):
        assert exact(numbers) == total
        assert numbers.get("compute/without_grad_pct", 0) == pytest.approx(100 * 2 * lessons * FORWARD / total)
        assert numbers["compute/samples_total"] == 2 * STEPS
    if when == "always":
        assert callback.profiles["train"].step.without_grad == 2 * FORWARD
        assert callback.profiles["train"].step.forward == 2 * FORWARD
        assert callback.profiles["train"].step_note == ""


def test_a_loop_shows_work_without_autograd_apart_from_the_counted_call():
    numbers, hook = loop(Net(), lambda net, number: taught(net, torch.ones(2, WIDE), True), latency_steps=0)
    assert numbers["flops/forward"] == 2 * FORWARD
    assert (hook.profile.step.forward, hook.profile.step.without_grad) == (2 * FORWARD, 2 * FORWARD)
    assert numbers["flops/without_grad"] == 2 * FORWARD
    assert hook.profile.step_note == ""


def test_inference_mode_is_work_without_autograd_and_a_checkpoint_is_not():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.teacher, self.net = Net(), Net()

        def forward(self, x):
            with torch.inference_mode():
                self.teacher(x)
            return torch.utils.checkpoint.checkpoint(self.net, x.requires_grad_(), use_reentrant=True)

    numbers, hook = loop(Both(), lambda model, number: model(torch.ones(2, WIDE)).sum(), latency_steps=0)
    assert hook.profile.step.without_grad == 2 * FORWARD
    assert hook.profile.step.recompute == 2 * FORWARD
    row = {row.path: row.step.without_grad for row in hook.profile.modules}
    assert (row["teacher"], row["net"]) == (2 * FORWARD, 0)
    # The teacher's forward; forward, again, and backward to weights and inputs.
    assert exact(numbers) == STEPS * 2 * (1 + 1 + 1 + 2) * FORWARD


def test_an_evaluation_between_steps_is_none_of_it():
    def step(net, number):
        net.eval()
        with torch.no_grad():
            net(torch.ones(50, WIDE))
        net.train()
        return net(torch.ones(2, WIDE)).sum()

    numbers, _ = loop(Net(), step)
    assert exact(numbers) == STEPS * 2 * STEP


# --- Batches of any kind ----------------------------------------------------------------------------------------------

ROWS = [2, 3, 5, 7, 11, 2, 3, 50] * 3


class Graph:
    def __init__(self, rows):
        self.x = torch.ones(rows, WIDE)


@dataclasses.dataclass
class Slotted:
    __slots__ = ("x",)
    x: torch.Tensor


class OnObjects(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = Net()

    def forward(self, batch):
        return self.net(batch.x)


@pytest.mark.parametrize("wrap", [Graph, lambda rows: Slotted(torch.ones(rows, WIDE))], ids=["object", "slots"])
def test_objects_are_told_apart_by_the_tensors_in_them(wrap, tmp_path):
    looped, _ = loop(OnObjects(), lambda model, number: model(wrap(ROWS[number])).sum(), len(ROWS))
    (fitted,), _ = fit(
        OnObjects(), lambda m, batch, _: m(batch).sum(), batches=list(map(wrap, ROWS)), tmp_path=tmp_path
    )
    assert exact(looped) == exact(fitted) == sum(ROWS) * STEP


@pytest.mark.parametrize(
    ("batch_of", "read"),
    [
        (lambda rows: np.ones((rows, WIDE), "float32"), torch.from_numpy),
        (lambda rows: ["a" * rows], lambda batch: torch.ones(len(batch[0]), WIDE)),
        (lambda rows: rows, lambda batch: torch.ones(batch, WIDE)),
    ],
    ids=["NumPy", "texts", "a number"],
)
def test_batches_without_tensors_are_told_apart_by_the_calls_in_the_step(batch_of, read, tmp_path):
    batches = list(map(batch_of, ROWS))
    (numbers,), _ = fit(Net(), lambda net, batch, _: net(read(batch)).sum(), batches=batches, tmp_path=tmp_path)
    assert exact(numbers) == sum(ROWS) * STEP


# --- Equal batches, other work ----------------------------------------------------------------------------------------


def test_a_head_by_task_is_told_apart_by_the_module_that_is_called(tmp_path):
    def heads():
        return nn.ModuleDict({"small": Net(), "large": Net(600)})

    large = 2 * 2 * WIDE * 600 + 3 * 2 * 600
    total = STEPS // 2 * 2 * (STEP + large)

    def by_turns(model, x, number):
        return model["large" if number % 2 else "small"](x).square().mean()

    looped, _ = loop(heads(), lambda model, number: by_turns(model, torch.ones(2, WIDE), number))
    (fitted,), _ = fit(heads(), by_turns, tmp_path=tmp_path)
    assert exact(looped) == exact(fitted) == total


class TakesTurns(nn.Module):
    """Both heads are computed; only the size of what is trained differs."""

    def __init__(self):
        super().__init__()
        self.body, self.small, self.large = nn.Linear(WIDE, INNER), nn.Linear(INNER, 1), nn.Linear(INNER, 500)

    def loss(self, x, number):
        hidden = self.body(x).relu()
        return (self.small(hidden).square().mean(), self.large(hidden).square().mean())[number % 2]


def cost_of_turns(number):
    outputs = 500 if number % 2 else 1
    return 2 * (2 * FIRST + 2 * INNER * 501 + 2 * 2 * INNER * outputs)


def test_losses_that_take_turns_are_an_estimate_with_a_bound_and_exact_on_demand(tmp_path):
    total = sum(map(cost_of_turns, range(STEPS)))
    (numbers,), _ = fit(TakesTurns(), lambda model, x, number: model.loss(x, number), tmp_path=tmp_path)
    error = abs(numbers["compute/flops_total"] - total) / numbers["compute/flops_total"]
    assert 0 < numbers["compute/estimated_pct"] < 100
    assert 100 * error <= numbers["compute/error_pct"]
    (numbers,), _ = fit(
        TakesTurns(), lambda model, x, number: model.loss(x, number), tmp_path=tmp_path, observe="always"
    )
    assert exact(numbers) == total
    assert numbers["compute/audited_steps"] == numbers["compute/steps_total"] == STEPS


def test_a_memory_that_fills_is_booked_between_audits(tmp_path):
    class Memory(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.queue = nn.Linear(WIDE, 8), torch.zeros(0, 8)

        def loss(self, x):
            e = self.layer(x)
            self.queue = torch.cat([self.queue, e.detach()])[-100:]
            return (e @ self.queue.T).square().mean()

    total = sum(2 * 2 * 2 * WIDE * 8 + 2 * 2 * 2 * 8 * min(100, 2 * (n + 1)) for n in range(STEPS))
    (numbers,), _ = fit(Memory(), lambda model, x, _: model.loss(x), tmp_path=tmp_path)
    error = abs(numbers["compute/flops_total"] - total) / total
    assert error < 0.1
    assert 100 * error <= numbers["compute/error_pct"]


def test_never_observed_is_three_forwards_and_said(tmp_path):
    (numbers,), (callback,) = fit(Net(), lambda net, x, _: net(x).sum(), tmp_path=tmp_path, observe="never")
    assert numbers["compute/flops_total"] == STEPS * 3 * 2 * FORWARD
    assert (numbers["compute/estimated_pct"], numbers["compute/error_pct"]) == (100, 100)
    assert callback.profiles["train"].step is None
    looped, _ = loop(Net(), lambda net, number: net(torch.ones(2, WIDE)).sum(), observe="never")
    assert looped["compute/flops_total"] == STEPS * 3 * 2 * FORWARD


@pytest.mark.parametrize("value", ["sometimes", True, None, 3])
def test_another_value_is_refused_with_those_that_there_are(value):
    with pytest.raises(ValueError, match=r'FlopHook: observe is .*, expected "auto", "always" or "never"'):
        FlopHook(Net(), observe=value)


# --- Bounds -----------------------------------------------------------------------------------------------------------


def test_an_operator_without_a_count_makes_compute_a_lower_bound(tmp_path):
    library = torch.library.Library("kinds_of_steps", "DEF")
    library.define("in_numpy(Tensor a) -> Tensor")
    library.impl("in_numpy", lambda a: torch.from_numpy(a.numpy() @ a.numpy()), "CPU")
    library.impl("in_numpy", lambda a: torch.empty_like(a), "Meta")

    class Unknown(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = Net()

        def forward(self, x):
            with torch.no_grad():
                torch.ops.kinds_of_steps.in_numpy(torch.eye(3))
            return self.net(x)

    (numbers,), (callback,) = fit(Unknown(), lambda model, x, _: model(x).sum(), tmp_path=tmp_path)
    assert numbers["compute/flops_total"] == STEPS * 2 * STEP
    assert numbers["compute/estimated_pct"] == 0
    assert numbers["compute/lower_bound_pct"] == 100
    assert "compute/upper_bound_pct" not in numbers
    profile = callback.profiles["train"]
    assert profile.step_bound == ">= "
    text = "\n".join(footer(profile))
    assert "the whole training: >= " in text
    assert f"training step: >= {2 * STEP:,} FLOPs" in text


# --- Work of ours in the step ---


def test_what_we_do_in_the_counted_step_is_no_work_of_it(tmp_path):
    def ones(_):
        torch.ones(64, 64) @ torch.ones(64, 64)
        return 2

    options = {"peak_flops": "measure", "batch_size_fn": ones}
    hardware._measured_once.cache_clear()
    (fitted,), _ = fit(Net(), lambda net, x, _: net(x).sum(), 1, tmp_path=tmp_path, **options)
    hardware._measured_once.cache_clear()
    looped, _ = loop(Net(), lambda net, number: net(torch.ones(2, WIDE)).sum(), 1, **options)
    assert exact(fitted) == exact(looped) == 2 * STEP


# --- Two at once ------------------------------------------------------------------------------------------------------


def test_two_callbacks_in_one_trainer_are_both_exact(tmp_path):
    both, _ = fit(Net(), lambda net, x, _: net(x).sum(), callbacks=2, tmp_path=tmp_path)
    assert [exact(numbers) for numbers in both] == [STEPS * 2 * STEP] * 2


def test_a_budget_in_a_curriculum_is_kept_to_the_step():
    lengths = [length for length in range(1, 41) for _ in range(5)]
    spent = [STEP * sum(lengths[: n + 1]) for n in range(len(lengths))]
    stop_at = 130
    model, steps = Net(), 0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with FlopHook(model, optimizer, summary=False, strict=True, max_flops=spent[stop_at]) as hook:
        for length in lengths:
            if hook.should_stop:
                break
            model(torch.ones(length, WIDE)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            steps += 1
    assert steps == stop_at + 1
    assert exact(hook.metrics()) == spent[stop_at]
