"""What Fabric, Accelerate and others wrap around a model or an optimizer is opened, and counted as without them."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn

from flopcallback import FlopHook

BATCH, WIDE, OUT, STEPS = 3, 5, 2, 6
FORWARD = 2 * BATCH * WIDE * OUT  # FLOPs; a step does no product for the input's gradient


@pytest.fixture
def model():
    torch.manual_seed(5)
    return nn.Linear(WIDE, OUT)


@pytest.fixture
def optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.01)


def watched(model, optimizer):
    return FlopHook(model, optimizer, warmup_steps=0, latency_steps=2, summary=False, strict=True)


def unwatched(*_):
    return contextlib.nullcontext()


def check_steps(hook, model, optimizer, steps=STEPS):
    """The hook saw every step, whole, and left nothing."""
    assert hook.profile.modules[0].type == "Linear"
    assert hook.profile.forward_flops == FORWARD
    assert hook.metrics()["compute/flops_total"] == steps * 2 * FORWARD
    assert hook.metrics()["compute/estimated_pct"] == 0
    assert "forward" not in vars(model)
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


# --- Fabric -----------------------------------------------------------------------------------------------------------


def with_fabric(hook, model, optimizer, compile_it=lambda model: model):
    from lightning.fabric import Fabric

    fabric = Fabric(accelerator="cpu", devices=1)
    fabric.launch()
    wrapped, stepping = fabric.setup(compile_it(model), optimizer)
    assert (wrapped, stepping) != (model, optimizer)
    with hook(wrapped, stepping) as hook:
        for _ in range(STEPS):
            fabric.backward(wrapped(torch.ones(BATCH, WIDE)).square().mean())
            stepping.step()
            stepping.zero_grad()
    return hook, [parameter.detach().clone() for parameter in model.parameters()]


@pytest.mark.lightning
def test_what_fabric_sets_up_is_opened(model, optimizer, differences):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    _, untouched = with_fabric(unwatched, model, optimizer)
    model.load_state_dict(before)
    hook, left = with_fabric(watched, model, optimizer)
    assert differences(left, untouched) == []
    check_steps(hook, model, optimizer)


@pytest.mark.lightning
def test_a_compiled_model_stays_the_one_that_fabric_calls(model, optimizer):
    hook, _ = with_fabric(watched, model, optimizer, lambda model: torch.compile(model, backend="eager"))
    assert hook.profile.modules[0].note == "compiled"
    assert hook.profile.forward_flops == FORWARD


@pytest.mark.lightning
def test_an_optimizer_that_fabric_wrapped_may_come_with_the_model_as_it_was(model, optimizer):
    from lightning.fabric import Fabric

    fabric = Fabric(accelerator="cpu", devices=1)
    fabric.launch()
    wrapped, stepping = fabric.setup(model, optimizer)
    with watched(model, [stepping, optimizer]) as hook:  # one optimizer, twice
        for _ in range(STEPS):
            fabric.backward(wrapped(torch.ones(BATCH, WIDE)).square().mean())
            stepping.step()
    check_steps(hook, model, optimizer)


# --- Accelerate -------------------------------------------------------------------------------------------------------


def with_accelerate(hook, model, optimizer, **options):
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, **options)
    wrapped, stepping = accelerator.prepare(model, optimizer)
    assert type(stepping).__name__ == "AcceleratedOptimizer"
    with hook(wrapped, stepping) as hook:
        for _ in range(STEPS):
            with accelerator.accumulate(wrapped):
                accelerator.backward(wrapped(torch.ones(BATCH, WIDE)).square().mean())
                stepping.step()
                stepping.zero_grad()
    return hook, [parameter.detach().clone() for parameter in model.parameters()]


@pytest.mark.accelerate
@pytest.mark.parametrize("accumulated", [1, 3])
def test_what_accelerate_prepares_is_opened(model, optimizer, differences, accumulated):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    options = {"gradient_accumulation_steps": accumulated}
    _, untouched = with_accelerate(unwatched, model, optimizer, **options)
    model.load_state_dict(before)
    hook, left = with_accelerate(watched, model, optimizer, **options)
    assert differences(left, untouched) == []
    check_steps(hook, model, optimizer)
    # An accumulated batch calls `step` of the wrapper, and none of the optimizer's.
    assert hook._watch._steps == STEPS // accumulated


@pytest.mark.accelerate
@pytest.mark.models
def test_what_a_trainer_of_transformers_hands_to_its_callbacks_is_opened(tmp_path):
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(WIDE, OUT)

        def forward(self, x, labels):
            return {"loss": (self.head(x) - labels).square().mean()}

    class Watching(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, optimizer=None, **rest):
            assert type(optimizer).__name__ == "AcceleratedOptimizer"
            self.hook = watched(model, optimizer)

        def on_train_end(self, *args, **rest):
            self.hook.close()

    batches = [{"x": torch.ones(WIDE), "labels": torch.zeros(OUT)}] * (BATCH * STEPS)
    options = {"per_device_train_batch_size": BATCH, "num_train_epochs": 1, "report_to": [], "use_cpu": True}
    options |= {"save_strategy": "no", "disable_tqdm": True, "logging_strategy": "no"}
    arguments = TrainingArguments(str(tmp_path), **options)
    watching = Watching()
    Trainer(Net(), arguments, train_dataset=batches, callbacks=[watching]).train()
    assert watching.hook.profile.forward_flops == FORWARD
    assert watching.hook.metrics()["compute/flops_total"] == STEPS * 2 * FORWARD


# --- Others -----------------------------------------------------------------------------------------------------------


class InNameAlone(torch.optim.Optimizer):
    """A wrapper that was not made by `Optimizer.__init__`, as those of Accelerate and DeepSpeed."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    def step(self, closure=None):
        return self.optimizer.step(closure)


class NoOptimizer:
    """A wrapper that is no optimizer at all."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    def step(self, closure=None):
        self.optimizer.step(closure)


class Lookahead(torch.optim.Optimizer):
    """An optimizer in its own right, that has another one in it, and steps more than that one."""

    def __init__(self, optimizer):
        super().__init__(optimizer.param_groups, {})
        self.optimizer = optimizer

    def step(self, closure=None):
        self.optimizer.step()
        self.optimizer.step()


@pytest.mark.parametrize(
    "wrap",
    [InNameAlone, NoOptimizer, lambda optimizer: InNameAlone(NoOptimizer(InNameAlone(optimizer)))],
    ids=["an optimizer in name alone", "no optimizer", "wrappers of wrappers"],
)
def test_the_optimizer_that_steps_is_found(model, optimizer, wrap):
    stepping = wrap(optimizer)
    with watched(model, stepping) as hook:
        for _ in range(STEPS):
            model(torch.ones(BATCH, WIDE)).square().mean().backward()
            stepping.step()
    check_steps(hook, model, optimizer)


def test_an_optimizer_with_hooks_of_its_own_is_no_wrapper(model, optimizer):
    stepping = Lookahead(optimizer)
    with watched(model, stepping) as hook:
        for _ in range(STEPS):
            model(torch.ones(BATCH, WIDE)).square().mean().backward()
            stepping.step()
    check_steps(hook, model, stepping)
    assert hook._watch._steps == STEPS


class Endless(NoOptimizer):
    def __init__(self):
        super().__init__(self)


@pytest.mark.parametrize("given", [Endless(), NoOptimizer(None), NoOptimizer(nn.Linear(1, 1)), nn.Linear(1, 1)])
def test_what_leads_to_no_optimizer_is_refused(model, given):
    with pytest.raises(TypeError, match="Give what a wrapper wraps"):
        FlopHook(model, given)
    assert "forward" not in vars(model)
