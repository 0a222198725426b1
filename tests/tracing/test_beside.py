"""Counts on fake tensors: those of the eager run, forward and backward, and nothing of the model is touched."""

from __future__ import annotations

import random

import pytest
import torch
import torch.utils.checkpoint
from torch import nn

from flopcallback.modules.names import ModuleNames
from flopcallback.profiling.build import StepAnalysis
from flopcallback.tracing.beside import NotOnFakes, count_as_written

BATCH, WIDE, INNER, OUT = 5, 3, 7, 2
FIRST, SECOND = 2 * BATCH * WIDE * INNER, 2 * BATCH * INNER * OUT


def counted(model, *args, **kwargs):
    """FLOPs by module of the forward and of the backward."""
    written = count_as_written(model, ModuleNames({"": model}), args, kwargs)
    runs = (written.forward, written.backward)
    return [None if run is None else dict(+StepAnalysis.of_run(run, model).by_module()) for run in runs]


def layers():
    return nn.Sequential(nn.Linear(WIDE, INNER), nn.ReLU(), nn.Linear(INNER, OUT))


def x(*, requires_grad=False):
    return torch.ones(BATCH, WIDE, requires_grad=requires_grad)


# --- What is counted --------------------------------------------------------------------------------------------------


def test_each_module_has_its_forward_and_its_backward():
    forward, backward = counted(layers(), x())
    assert forward == {"": FIRST + SECOND, "0": FIRST, "2": SECOND}
    assert backward == {"": FIRST + 2 * SECOND, "0": FIRST, "2": 2 * SECOND}  # no gradient of the inputs


def test_inputs_that_require_grad_get_one():
    assert counted(layers(), x(requires_grad=True))[1] == {"": 2 * (FIRST + SECOND), "0": 2 * FIRST, "2": 2 * SECOND}
    inside = x(requires_grad=True) * 2  # no leaf
    assert counted(layers(), inside)[1] == {"": 2 * (FIRST + SECOND), "0": 2 * FIRST, "2": 2 * SECOND}


def test_frozen_weights_get_none():
    model = layers()
    model[0].requires_grad_(False)
    assert counted(model, x())[1] == {"": SECOND, "2": SECOND}
    assert counted(model.requires_grad_(False), x())[1] is None


def test_without_grad_there_is_no_backward():
    with torch.no_grad():
        assert counted(layers(), x())[1] is None


def test_what_checkpointing_computes_again_is_in_the_backward():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = layers()

        def forward(self, x):
            return torch.utils.checkpoint.checkpoint(self.layers, x, use_reentrant=False)

    # The second product is not made again: the recomputation ends where the backward has what it needs.
    assert counted(Net(), x())[1] == {
        "": 2 * FIRST + 2 * SECOND,
        "layers": 2 * FIRST + 2 * SECOND,
        "layers.0": 2 * FIRST,
        "layers.2": 2 * SECOND,
    }


def test_a_module_that_is_called_twice_has_both():
    shared = nn.Linear(WIDE, WIDE)
    once = 2 * BATCH * WIDE * WIDE
    forward, backward = counted(nn.Sequential(shared, nn.Tanh(), shared), x())
    assert forward == {"": 2 * once, "0": 2 * once}
    assert backward == {"": 3 * once, "0": 3 * once}


def test_a_recurrent_layer_which_keeps_its_weights_in_a_list():
    forward, backward = counted(nn.LSTM(WIDE, INNER), torch.ones(4, BATCH, WIDE))
    inputs, states = 2 * 4 * BATCH * WIDE * 4 * INNER, 2 * 4 * BATCH * INNER * 4 * INNER
    assert forward == {"": inputs + states}
    assert backward == {"": 2 * (inputs + states)}  # the kernel makes the gradient of the inputs, too


def test_an_autograd_function_of_the_models():
    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight):
            ctx.save_for_backward(x)
            return x @ weight

        @staticmethod
        def backward(ctx, grad):
            (x,) = ctx.saved_tensors
            return None, x.t() @ grad

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(WIDE, INNER))

        def forward(self, x):
            return Product.apply(x, self.weight)

    assert counted(Net(), x()) == [{"": FIRST}, {"": FIRST}]


def test_results_in_a_structure_all_have_a_backward():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(WIDE, INNER), nn.Linear(INNER, OUT)

        def forward(self, x, scale):
            inside = self.first(x["features"])
            return {"inside": [inside], "scores": self.second(inside) * scale, "name": "scores"}

    forward, backward = counted(Net(), {"features": x()}, scale=2)
    assert forward == {"": FIRST + SECOND, "first": FIRST, "second": SECOND}
    assert backward == {"": FIRST + 2 * SECOND, "first": FIRST, "second": 2 * SECOND}


# --- What is left as it was -------------------------------------------------------------------------------------------


class Stateful(nn.Module):
    """It draws numbers, and changes all that a module has."""

    def __init__(self):
        super().__init__()
        self.norm, self.dropout, self.last = nn.BatchNorm1d(WIDE), nn.Dropout(0.5), nn.Linear(WIDE, OUT)
        self.register_buffer("seen", torch.zeros(WIDE))
        self.average, self.calls, self.history = torch.zeros(WIDE), 0, []

    def forward(self, x):
        self.calls += 1
        self.history.append(x)
        self.seen.add_(x.sum(0).detach())
        self.average.mul_(0.9)
        self.last_input = x * random.random()
        return self.last(self.dropout(self.norm(x)))


def test_nothing_of_the_model_and_no_random_number():
    model = Stateful()
    model(x()).sum().backward()
    history, last_input = list(model.history), model.last_input
    tensors = dict(model.state_dict(keep_vars=True))
    before = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    grads = {name: (each.grad, each.grad.clone()) for name, each in model.named_parameters()}
    versions = {name: tensor._version for name, tensor in tensors.items()}
    states = random.getstate(), torch.get_rng_state()
    average = model.average.clone()
    counted(model, x())
    assert {name: id(each) for name, each in model.state_dict(keep_vars=True).items()} == {
        name: id(each) for name, each in tensors.items()
    }
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert {name: tensor._version for name, tensor in tensors.items()} == versions
    assert all(each.grad is grads[name][0] for name, each in model.named_parameters())
    assert all(torch.equal(*pair) for pair in grads.values())
    assert (model.calls, model.last_input is last_input) == (1, True)
    assert [id(each) for each in model.history] == [id(each) for each in history]
    assert torch.equal(model.average, average)
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])


def test_it_is_all_put_back_where_the_model_asks_for_values():
    class Asking(Stateful):
        def forward(self, x):
            out = super().forward(x)
            return out if out.sum() > 0 else -out

    model = Asking()
    parameters = [id(each) for each in model.parameters()]
    with pytest.raises(NotOnFakes, match="_local_scalar_dense"):
        counted(model, x())
    assert [id(each) for each in model.parameters()] == parameters
    assert (model.calls, model.history, hasattr(model, "last_input")) == (0, [], False)
    assert model(x()).shape == (BATCH, OUT)


def test_a_leaf_that_the_model_hides_gets_no_gradient():
    hidden = torch.ones(WIDE, OUT, requires_grad=True)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(WIDE, WIDE)

        def forward(self, x):
            return self.first(x) @ hidden

    counted(Net(), x())
    assert hidden.grad is None


def test_autocast_remembers_no_weights_of_it():
    model = layers()
    with torch.autocast("cpu", torch.bfloat16):
        forward, _ = counted(model, x())
        assert torch.is_autocast_cache_enabled()
        out = model(x())
    assert forward[""] == FIRST + SECOND
    assert out.dtype is torch.bfloat16
    out.sum().backward()
    assert type(model[0].weight.grad) is torch.Tensor


def test_hooks_on_parameters_are_not_called():
    model, called = layers(), []
    model[0].weight.register_hook(called.append)
    model[2].weight.register_post_accumulate_grad_hook(called.append)
    counted(model, x())
    assert called == []
