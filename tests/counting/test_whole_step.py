"""A training step seen whole: FLOPs of forward, backward, recomputation and optimizer, worked out by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from dispatched_step import StepObserver
from torch import nn
from torch.utils.checkpoint import checkpoint

from flopcallback import Cost, register_formula, unregister_formula
from flopcallback.modules.names import ModuleNames
from flopcallback.profiling.build import StepAnalysis
from flopcallback.tracing.observer import StepRecorder
from flopcallback.tracing.phases import BACKWARD, FORWARD, OPTIMIZER, PHASES, RECOMPUTE

BATCH, WIDE, INNER, OUT = 3, 5, 7, 2
FIRST, SECOND = (
    2 * BATCH * WIDE * INNER,
    2 * BATCH * INNER * OUT,
)  # of the two layers' forwards; each gradient of one costs as much


@pytest.fixture(autouse=True, params=[StepObserver, StepRecorder], ids=["dispatch", "observer"])
def observer_class(request, monkeypatch):
    """What sees the step: a mode below autograd, or PyTorch's own records."""
    monkeypatch.setitem(globals(), "Observer", request.param)
    return request.param


Observer = StepObserver


def observed(model, step, optimizers=()):
    """Hardware FLOPs by phase and module of `step(observer)`; modules that did nothing are left out."""
    observer = Observer(ModuleNames({"": model}), optimizers)
    with observer.watching():
        step(observer)
    counts = {phase: StepAnalysis.of_run(run, model).by_module() for phase, run in observer.runs().items()}
    return {phase: {name: flops for name, flops in counts[phase].items() if flops} for phase in PHASES}


def simple(model, x=None):
    """Forward and backward of the sum of what a model returns."""
    x = torch.ones(BATCH, WIDE) if x is None else x

    def step(observer):
        with observer.on():
            y = model(x)
        y.sum().backward()

    return step


@pytest.fixture
def net():
    return nn.Sequential(nn.Linear(WIDE, INNER), nn.ReLU(), nn.Linear(INNER, OUT))


def test_backward_is_two_products_a_layer_and_one_for_the_first(net):
    seen = observed(net, simple(net))
    assert seen[FORWARD] == {"": FIRST + SECOND, "0": FIRST, "2": SECOND}
    assert seen[BACKWARD] == {"": FIRST + 2 * SECOND, "0": FIRST, "2": 2 * SECOND}
    assert seen[RECOMPUTE] == seen[OPTIMIZER] == {}


def test_an_input_that_wants_its_gradient_gets_it(net):
    seen = observed(net, simple(net, torch.ones(BATCH, WIDE, requires_grad=True)))
    assert seen[BACKWARD]["0"] == 2 * FIRST


def test_frozen_layers_only_hand_gradients_on(net):
    net[2].requires_grad_(False)
    seen = observed(net, simple(net))
    assert seen[BACKWARD] == {"": FIRST + SECOND, "0": FIRST, "2": SECOND}
    net.requires_grad_(True)
    net[0].requires_grad_(False)
    assert observed(net, simple(net))[BACKWARD] == {"": SECOND, "2": SECOND}


def test_an_adapter_beside_a_frozen_layer_pays_for_itself():
    class Adapted(nn.Module):
        def __init__(self):
            super().__init__()
            self.base = nn.Linear(WIDE, OUT).requires_grad_(False)
            self.down, self.up = nn.Linear(WIDE, 1, bias=False), nn.Linear(1, OUT, bias=False)

        def forward(self, x):
            return self.base(x) + self.up(self.down(x))

    model = Adapted()
    seen = observed(model, simple(model))
    base, down, up = 2 * BATCH * WIDE * OUT, 2 * BATCH * WIDE, 2 * BATCH * OUT
    assert seen[FORWARD] == {"": base + down + up, "base": base, "down": down, "up": up}
    # `down` has no gradient of its input to hand on, and the frozen layer none at all.
    assert seen[BACKWARD] == {"": down + 2 * up, "down": down, "up": 2 * up}


@pytest.mark.parametrize("kind", ["reentrant", "to the end", "as far as it must"])
def test_checkpointing_adds_the_forward_once_more_and_nothing_else(net, kind):
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = net

        def forward(self, x):
            with torch.utils.checkpoint.set_checkpoint_early_stop(kind == "as far as it must"):
                return checkpoint(self.inner, x, use_reentrant=kind == "reentrant")

    model = Checkpointed()
    x = torch.ones(BATCH, WIDE, requires_grad=True)
    plain, seen = observed(net, simple(net, x)), observed(model, simple(model, x))
    # What the last layer saved is there before it runs again: PyTorch stops there by default.
    again = {"inner.0": FIRST} | ({} if kind == "as far as it must" else {"inner.2": SECOND})
    assert seen[RECOMPUTE] == {"": sum(again.values()), "inner": sum(again.values()), **again}
    assert seen[FORWARD]["inner"] == plain[FORWARD][""]
    assert {name.removeprefix("inner").lstrip("."): flops for name, flops in seen[BACKWARD].items()} == plain[BACKWARD]


def test_a_checkpointed_function_is_recomputed_for_the_module_that_called_it():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(OUT, WIDE))

        def forward(self, x):
            return checkpoint(lambda x: F.linear(x, self.weight).relu(), x, use_reentrant=False)

    model = nn.Sequential(Model())
    product = 2 * BATCH * WIDE * OUT
    seen = observed(model, simple(model))
    # The first product is made again for the ReLU that follows it.
    assert (seen[FORWARD]["0"], seen[RECOMPUTE]["0"], seen[BACKWARD]["0"]) == (product, product, product)


def test_a_convolution_costs_its_forward_for_each_gradient():
    model = nn.Sequential(nn.Conv2d(3, 5, 3, groups=1), nn.ReLU(), nn.Conv2d(5, 10, 3, groups=5))
    first = 2 * (5 * 6 * 6) * (3 * 3 * 3)
    second = 2 * (10 * 4 * 4) * (1 * 3 * 3)
    seen = observed(model, simple(model, torch.ones(1, 3, 8, 8)))
    assert seen[FORWARD] == {"": first + second, "0": first, "2": second}
    assert seen[BACKWARD] == {"": first + 2 * second, "0": first, "2": 2 * second}


def test_a_penalty_on_gradients_is_the_forwards_and_its_own_backward_is_the_backwards():
    """y = (x W)², g = dy/dx = 2 x W Wᵀ, loss = sum(g)."""
    layer = nn.Linear(WIDE, OUT, bias=False)
    model = nn.Sequential(layer)
    product = 2 * BATCH * WIDE * OUT

    def step(observer):
        x = torch.ones(BATCH, WIDE, requires_grad=True)
        with observer.on():
            y = model(x).square()
            (g,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        g.sum().backward()

    seen = observed(model, step)
    # x W, and the gradient at x: (2 x W) Wᵀ.
    assert seen[FORWARD] == {"": 2 * product, "0": 2 * product}
    # Through (2 x W) Wᵀ: towards 2 x W and towards W; then through x W: towards W, and towards x, which requires grad.
    assert seen[BACKWARD] == {"": 4 * product, "0": 4 * product}
    assert seen[RECOMPUTE] == {}


@pytest.mark.filterwarnings("ignore:.*create_graph=True")  # PyTorch's own, once in a process
def test_backward_with_a_graph_is_backward_and_no_recomputation(net):
    def step(observer):
        with observer.on():
            y = net(torch.ones(BATCH, WIDE))
        y.sum().backward(create_graph=True)
        net.zero_grad()

    seen = observed(net, step)
    assert seen[BACKWARD] == {"": FIRST + 2 * SECOND, "0": FIRST, "2": 2 * SECOND}
    assert seen[RECOMPUTE] == {}


def test_what_runs_outside_of_modules_is_the_roots_with_its_backward():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(WIDE, INNER, bias=False)

        def forward(self, x):
            y = self.layer(x)
            return y @ y.T

    model = Net()
    layer, own = 2 * BATCH * WIDE * INNER, 2 * BATCH * INNER * BATCH
    seen = observed(model, simple(model))
    assert seen[FORWARD] == {"": layer + own, "layer": layer}
    assert seen[BACKWARD] == {"": layer + 2 * own, "layer": layer}


def test_a_function_of_ones_own_has_the_backward_that_it_runs():
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x @ x

        @staticmethod
        def backward(ctx, gradient):
            (x,) = ctx.saved_tensors
            return gradient @ x.T + x.T @ gradient

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(WIDE, WIDE))

        def forward(self):
            return Square.apply(self.weight)

    model = nn.Sequential()
    model.add_module("square", Model())

    def step(observer):
        with observer.on():
            y = model.square()
        y.sum().backward()

    seen = observed(model, step)
    assert seen[FORWARD]["square"] == 2 * WIDE**3
    assert seen[BACKWARD]["square"] == 2 * 2 * WIDE**3


class Past(torch.autograd.Function):
    """What a kernel of one's own looks like: forward and backward past PyTorch's operators, on empty memory."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(weight)
        return torch.empty(x.shape[0], weight.shape[1])

    @staticmethod
    def backward(ctx, gradient):
        (weight,) = ctx.saved_tensors
        return gradient @ weight.T, None


class InTwoSteps(torch.autograd.Function):
    """A body with a product of its own, and a module's."""

    @staticmethod
    def forward(ctx, x, weight, layer):
        ctx.save_for_backward(weight)
        return layer(x @ weight)

    @staticmethod
    def backward(ctx, gradient):
        (weight,) = ctx.saved_tensors
        return gradient @ weight.new_ones(OUT, INNER) @ weight.T, None, None


@pytest.fixture
def formula_for():
    names = []

    def register(name, formula):
        register_formula(name, formula)
        names.append(name)

    yield register
    for name in names:
        unregister_formula(name)


class Kernels(nn.Module):
    """A layer, and a function of one's own on what it gives."""

    def __init__(self, function, *arguments):
        super().__init__()
        self.first = nn.Linear(WIDE, WIDE)
        self.kernel = nn.Module()
        self.kernel.forward = lambda x: function.apply(x, torch.ones(WIDE, INNER), *arguments)

    def forward(self, x):
        return self.kernel(self.first(x))


OWN_LAYER, OWN_PRODUCT = 2 * BATCH * WIDE * WIDE, 2 * BATCH * WIDE * INNER


def test_a_registered_formula_counts_in_the_forward_of_a_step_and_what_ran_in_its_backward(formula_for):
    formula_for("prim::PythonOp.Past", lambda call: Cost(fma=call.inputs[0].numel * call.outputs[0].shape[1]))
    model = Kernels(Past)
    seen = observed(model, simple(model))
    assert seen[FORWARD] == {"": OWN_LAYER + OWN_PRODUCT, "first": OWN_LAYER, "kernel": OWN_PRODUCT}
    assert seen[BACKWARD] == {"": OWN_LAYER + OWN_PRODUCT, "first": OWN_LAYER, "kernel": OWN_PRODUCT}


def test_a_registered_formula_counts_in_place_of_the_body_not_beside_it(formula_for):
    model = Kernels(InTwoSteps, nn.Linear(INNER, OUT))
    body = OWN_PRODUCT + SECOND
    back = 2 * BATCH * OUT * INNER + OWN_PRODUCT
    for forward in (body, 2 * 1009):
        if forward != body:
            formula_for("prim::PythonOp.InTwoSteps", lambda call: Cost(fma=1009))
        seen = observed(model, simple(model))
        assert seen[FORWARD] == {"": OWN_LAYER + forward, "first": OWN_LAYER, "kernel": forward}
        assert seen[BACKWARD]["kernel"] == back


@pytest.mark.parametrize("is_reentrant", [True, False])
def test_a_registered_formula_counts_where_a_function_is_recomputed(formula_for, is_reentrant):
    formula_for("prim::PythonOp.Past", lambda call: Cost(fma=1009))
    model = Kernels(Past)
    again = nn.Module()
    again.inner = model
    with torch.utils.checkpoint.set_checkpoint_early_stop(False):
        again.forward = lambda x: checkpoint(model, x, use_reentrant=is_reentrant)
        seen = observed(again, simple(again, torch.ones(BATCH, WIDE, requires_grad=True)))
    assert seen[FORWARD]["inner"] == OWN_LAYER + 2 * 1009
    assert seen[RECOMPUTE] == {
        "": OWN_LAYER + 2 * 1009, "inner": OWN_LAYER + 2 * 1009, "inner.first": OWN_LAYER, "inner.kernel": 2 * 1009
    }  # fmt: skip
    assert seen[BACKWARD]["inner"] == 2 * OWN_LAYER + OWN_PRODUCT


def test_a_function_past_pytorch_without_a_formula_is_unknown_in_the_step_too():
    model = Kernels(Past)
    observer = StepObserver(ModuleNames({"": model}))
    with observer.watching():
        simple(model)(observer)
    forward = StepAnalysis.of_run(observer.runs()[FORWARD], model)
    assert "nothing that ran inside it could be seen" in forward.unknown_reasons()["prim::PythonOp.Past"]
    assert forward.lower_bounds() == {"", "kernel"}
    assert "__getattribute__" not in vars(type(torch.autograd.Function))


def test_what_the_record_of_a_function_fails_at_does_not_reach_the_step(monkeypatch, observer_class):
    def fail(*_, **__):
        raise ZeroDivisionError

    if observer_class is StepRecorder:
        monkeypatch.setattr("flopcallback.tracing.observer.Reading", fail)
    else:
        monkeypatch.setattr(StepObserver, "_place", fail)
    model = Kernels(Past)
    observer = Observer(ModuleNames({"": model}))
    with observer.watching():
        simple(model)(observer)
    assert model.first.weight.grad is not None
    assert isinstance(observer.failure, ZeroDivisionError)


def test_an_lstm_goes_back_through_time():
    model = nn.LSTM(WIDE, INNER, batch_first=True)
    steps = 4
    x = torch.ones(BATCH, steps, WIDE)

    def step(observer):
        with observer.on():
            y, _ = model(x)
        y.sum().backward()

    seen = observed(model, step)
    of_input, of_state = 2 * BATCH * steps * WIDE * 4 * INNER, 2 * BATCH * steps * INNER * 4 * INNER
    assert seen[FORWARD] == {"": of_input + of_state}
    # The input wants no gradient; the first state is zeros, which want none either, but one kernel for all of it may
    # make it nevertheless.
    least = of_input + 2 * of_state - of_state // steps
    assert seen[BACKWARD][""] in (least, least + of_state // steps, 2 * of_input + 2 * of_state)


def test_an_optimizer_that_multiplies_matrices_is_seen_and_its_closure_is_not_its_work(net):
    class Multiplying(torch.optim.SGD):
        def step(self, closure=None):
            loss = closure() if closure is not None else None
            for parameter in self.param_groups[0]["params"]:
                if parameter.dim() == 2:
                    parameter.grad @ parameter.grad.T
            super().step()
            return loss

    optimizer = Multiplying(net.parameters(), lr=0.1)

    def step(observer):
        def closure():
            optimizer.zero_grad()
            with observer.on():
                loss = net(torch.ones(BATCH, WIDE)).sum()
            loss.backward()
            return loss

        optimizer.step(closure)

    seen = observed(net, step, [optimizer])
    assert seen[OPTIMIZER] == {"": 2 * INNER * WIDE * INNER + 2 * OUT * INNER * OUT}
    assert seen[FORWARD][""] == FIRST + SECOND
    assert seen[BACKWARD][""] == FIRST + 2 * SECOND


def test_a_backward_inside_a_modules_call_is_the_forwards_and_one_of_the_steps_own_is_not(net):
    def step(observer):
        with observer.on(is_forward=False):  # manual optimisation: the step calls backward itself
            net(torch.ones(BATCH, WIDE)).sum().backward()

    seen = observed(net, step)
    assert seen[FORWARD][""] == FIRST + SECOND
    assert seen[BACKWARD] == {"": FIRST + 2 * SECOND, "0": FIRST, "2": 2 * SECOND}


@pytest.mark.parametrize("where", ["forward", "backward", "optimizer", "between"])
def test_whatever_stops_a_step_leaves_nothing(net, where):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    own_step = optimizer.step

    def stop(*_):
        raise KeyboardInterrupt

    def step(observer):
        with observer.on():
            handle = net[2].register_forward_hook(stop) if where == "forward" else None
            try:
                y = net(torch.ones(BATCH, WIDE))
            finally:
                if handle is not None:
                    handle.remove()
        if where == "backward":
            y.register_hook(stop)
        y.sum().backward()
        if where == "between":
            stop()
        if where == "optimizer":
            optimizer.register_step_pre_hook(stop)
        optimizer.step()

    engine = torch.autograd._engine_run_backward
    with pytest.raises(KeyboardInterrupt):
        observed(net, step, [optimizer])
    assert not any("forward" in vars(module) for module in net.modules())
    assert torch.autograd._engine_run_backward is engine
    assert optimizer.step == own_step
    assert torch._C._len_torch_dispatch_stack() == 0


def test_no_mode_is_active_in_the_code_between(net):
    active = []

    def step(observer):
        with observer.on():
            y = net(torch.ones(BATCH, WIDE))
        active.append(torch._C._len_torch_dispatch_stack())
        y.sum().backward()
        active.append(torch._C._len_torch_dispatch_stack())

    observed(net, step)
    assert active == [0, 0]
