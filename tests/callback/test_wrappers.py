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


class Learner:
    """What frameworks give in place of a model and an optimizer."""

    def __init__(self, model, optimizer):
        self.net, self.opt = model, optimizer


def test_of_what_holds_an_optimizer_elsewhere_the_error_names_the_attribute(model, optimizer):
    with pytest.raises(TypeError, match=r"Give its \.opt; or give none, and mark each step"):
        FlopHook(model, Learner(model, optimizer))


def test_of_what_holds_a_model_the_error_names_the_attribute(model, optimizer):
    with pytest.raises(TypeError, match=r"model is <.*Learner.*>, expected a torch\.nn\.Module\. Give its \.net$"):
        FlopHook(Learner(model, optimizer), optimizer)


# --- Names of rows ----------------------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(nn.Linear(WIDE, WIDE), nn.Tanh())
        self.head = nn.Linear(WIDE, OUT)

    def forward(self, x):
        return self.head(self.block(x))


INNER = 2 * BATCH * WIDE * WIDE  # FLOPs of `block`; its input needs no gradient
ROWS = {
    "": ("Net", INNER + FORWARD, 2 * INNER + 3 * FORWARD),
    "block": ("Sequential", INNER, 2 * INNER),
    "block.0": ("Linear", INNER, 2 * INNER),
    "block.1": ("Tanh", 0, 0),
    "head": ("Linear", FORWARD, 3 * FORWARD),
}
PARAMETERS = {"": 6 * WIDE + WIDE * OUT + OUT, "block": 6 * WIDE, "block.0": 6 * WIDE, "block.1": 0, "head": 6 * OUT}


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    store = tmp_path_factory.mktemp("group") / "store"
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def compiled(module):
    return torch.compile(module, backend="eager")


def data_parallel(module):
    return nn.parallel.DistributedDataParallel(module)


def fully_sharded(module):
    from torch.distributed.fsdp import FullyShardedDataParallel

    return FullyShardedDataParallel(module, device_id=torch.device("cpu"), use_orig_params=True)


def checkpointed(module):
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    return checkpoint_wrapper(module)


def of_fabric(module):
    from lightning.fabric import Fabric

    fabric = Fabric(accelerator="cpu", devices=1)
    fabric.launch()
    return fabric.setup_module(module)


def child(wrap):
    def wrap_child(net):
        net.block = wrap(net.block)
        return net

    return wrap_child


def grandchild(wrap):
    def wrap_grandchild(net):
        net.block[0] = wrap(net.block[0])
        return net

    return wrap_grandchild


WRAPPERS = {
    "compiled": compiled,
    "a compiled child": child(compiled),
    "a compiled grandchild": grandchild(compiled),
    "data parallel": data_parallel,
    "data parallel, compiled": lambda net: compiled(data_parallel(net)),
    "compiled, data parallel": lambda net: data_parallel(compiled(net)),
    "fully sharded": fully_sharded,
    "fully sharded, in parts": lambda net: fully_sharded(child(fully_sharded)(net)),
    "fabric": pytest.param(of_fabric, marks=pytest.mark.lightning),
    "fabric, compiled": pytest.param(lambda net: compiled(of_fabric(net)), marks=pytest.mark.lightning),
    "a child of fabric": pytest.param(child(of_fabric), marks=pytest.mark.lightning),
}


# 2026-11, torch 2.13: FSDP1 on one rank, Dynamo at a `record_function`, and at inputs of a compiled child.
@pytest.mark.filterwarnings("ignore:FSDP:UserWarning", "ignore:The .grad attribute:UserWarning")
@pytest.mark.filterwarnings("ignore:FSDP is switching to use:UserWarning")
@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS.keys())
@pytest.mark.usefixtures("group")
def test_rows_have_the_names_that_modules_have_without_wrappers(wrap):
    torch._dynamo.reset()
    net = wrap(Net())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    with watched(net, optimizer) as hook:
        for _ in range(STEPS):
            net(torch.ones(BATCH, WIDE)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    rows = hook.profile.modules
    assert hook.profile.name == "Net"
    assert {row.path: (row.type, row.flops, row.step.total) for row in rows} == ROWS
    assert {row.path: row.params for row in rows} == PARAMETERS
    assert {row.path: row.own_flops for row in rows} == dict.fromkeys(ROWS, 0) | {"block.0": INNER, "head": FORWARD}
    assert [(row.depth, row.parent) for row in rows[1:]] == [(1, ""), (2, "block"), (2, "block"), (1, "")]
    assert all(row.calls == 1 for row in rows)
    assert rows[0].forward_ms > 0
    assert hook.metrics()["compute/flops_total"] == STEPS * ROWS[""][2]


def test_a_checkpoint_wrapper_is_no_row_and_what_it_repeats_is_recomputation():
    net = child(checkpointed)(Net())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    with watched(net, optimizer) as hook:
        for _ in range(STEPS):
            net(torch.ones(BATCH, WIDE)).square().mean().backward()
            optimizer.step()
    rows = {row.path: row for row in hook.profile.modules}
    assert {path: (row.type, row.flops) for path, row in rows.items()} == {
        path: (kind, flops) for path, (kind, flops, _) in ROWS.items()
    }
    assert rows["block.0"].step.recompute == INNER


def test_a_module_of_the_users_that_is_called_module_keeps_its_name():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = nn.Linear(WIDE, OUT)

        def forward(self, x):
            return self.module(x)

    model = nn.DataParallel(Named())
    with watched(model, torch.optim.SGD(model.parameters(), lr=0.01)) as hook:
        model(torch.ones(BATCH, WIDE)).sum().backward()
    assert [(row.path, row.type) for row in hook.profile.modules] == [("", "Named"), ("module", "Linear")]


@pytest.mark.lightning
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
def test_the_callback_names_rows_likewise(tmp_path):
    import lightning.pytorch as pl

    from flopcallback import FlopCallback

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = compiled(child(checkpointed)(Net()))

        def training_step(self, batch, _):
            return self.net(batch[0]).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.01)

    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(BATCH * STEPS, WIDE)), BATCH)
    callback = FlopCallback(summary=False, strict=True)
    options = {"accelerator": "cpu", "max_epochs": 1, "logger": False, "enable_checkpointing": False}
    options |= {"enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": tmp_path}
    pl.Trainer(callbacks=[callback], **options).fit(Module(), loader)
    rows = [row for row in callback.profiles["train"].modules if row.path.startswith("net")]
    assert {row.path: row.type for row in rows} == {
        "net": "Net", "net.block": "Sequential", "net.block.0": "Linear", "net.block.1": "Tanh", "net.head": "Linear"
    }  # fmt: skip
    assert {row.path: row.flops for row in rows}["net.block.0"] == INNER
