"""A count outside training leaves model, inputs and random states as found, also when the forward raises half-way."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from flopcallback import FlopCountAnalysis

WIDTH = 4


class CountsItsCalls(nn.Module):
    """Attributes of every kind that a forward may change."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.history: list[torch.Tensor] = []
        self.seen = {"last": 0}
        self.metric = torch.zeros(())
        self.register_buffer("running", torch.zeros(WIDTH))

    def forward(self, x):
        self.calls += 1
        self.history.append(x.detach())
        self.seen["last"] += 1
        self.metric += x.detach().sum()
        self.running = self.running * 0.9 + x.detach().mean(0)
        self.fresh = x
        self.training = not self.training
        return x


class DrawsRandomNumbers(nn.Module):
    def forward(self, x):
        return x + random.random() + torch.rand(WIDTH)


class WritesToItsInput(nn.Module):
    def forward(self, x):
        return x.detach().mul_(2) + x


class WritesToItsWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x):
        with torch.no_grad():
            self.weight.clamp_(max=0.5)
            self.weight.data = self.weight.data * 2
        return x * self.weight


class StepsBackward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        self.fc(x.detach()).sum().backward()
        self.fc.weight.requires_grad_(False)
        return x


class AddsAHook(nn.Module):
    def forward(self, x):
        self.register_forward_hook(lambda *_: None)
        return x


class Raises(nn.Module):
    def forward(self, x):
        raise ZeroDivisionError("half-way")


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(WIDTH, WIDTH),
    "batch norm": lambda: nn.BatchNorm1d(WIDTH),
    "cumulative batch norm": lambda: nn.BatchNorm1d(WIDTH, momentum=None),
    "dropout": lambda: nn.Dropout(0.5),
    "in-place relu": lambda: nn.ReLU(inplace=True),
    "spectral norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(WIDTH, WIDTH)),
    "old spectral norm": lambda: nn.utils.spectral_norm(nn.Linear(WIDTH, WIDTH)),
    "frozen": lambda: nn.Linear(WIDTH, WIDTH).requires_grad_(False),
    "attributes": CountsItsCalls,
    "random": DrawsRandomNumbers,
    "writes input": WritesToItsInput,
    "writes weight": WritesToItsWeight,
    "backward": StepsBackward,
    "hook": AddsAHook,
}


def describe(value: Any) -> Any:
    """Any state as something that compares: tensors by their bytes, objects by identity."""
    if isinstance(value, torch.Tensor):
        grad = value.grad if value.is_leaf else None
        return (id(value), value._version, value.requires_grad, value.detach().clone().tolist(), describe(grad))
    if isinstance(value, dict):
        return [(key, describe(item)) for key, item in value.items()]
    if isinstance(value, (list, tuple, set)):
        return [describe(item) for item in value]
    return value if isinstance(value, (int, float, str, bool, type(None))) else id(value)


def state_of(model: nn.Module, inputs: Any) -> Any:
    own = [(name, describe(vars(module))) for name, module in model.named_modules()]
    modes = (torch.is_grad_enabled(), torch.get_default_dtype(), torch._C._len_torch_dispatch_stack())
    return own, describe(inputs), random.getstate(), torch.get_rng_state().tolist(), modes


def build(layers: list[str], training: bool) -> tuple[nn.Module, torch.Tensor]:
    model = nn.Sequential(*(LAYERS[layer]() for layer in layers)).train(training)
    for index, parameter in enumerate(model.parameters()):
        if index % 2:
            parameter.grad = torch.ones_like(parameter)
    return model, torch.linspace(-1, 1, 3 * WIDTH).reshape(3, WIDTH)


@settings(max_examples=60)
@given(st.lists(st.sampled_from(sorted(LAYERS)), max_size=5), st.booleans(), st.booleans())
@pytest.mark.filterwarnings("ignore:.*torch.nn.utils.spectral_norm.*:FutureWarning")
def test_a_count_leaves_everything_as_it_was(layers, training, raises):
    model, x = build(layers, training)
    if raises:
        model.append(Raises())
    before = state_of(model, x)
    if raises:
        with pytest.raises(ZeroDivisionError, match="half-way"):
            FlopCountAnalysis(model, x).total()
    else:
        FlopCountAnalysis(model, x).total()
    assert state_of(model, x) == before


CHANGES_SOMETHING = sorted(set(LAYERS) - {"linear", "frozen"})


@pytest.mark.parametrize("layer", CHANGES_SOMETHING)
@pytest.mark.filterwarnings("ignore:.*torch.nn.utils.spectral_norm.*:FutureWarning")
def test_the_check_can_fail(layer):
    """Each of these layers, simply run, changes what the check looks at."""
    model, x = build([layer], training=True)
    before = state_of(model, x)
    model(x)
    assert state_of(model, x) != before


def test_a_cache_that_is_passed_in_is_not_filled():
    class Cache:
        def __init__(self):
            self.keys = []

    class Net(nn.Module):
        def forward(self, x, cache):
            cache.keys.append(x)
            return x @ x.t()

    cache = Cache()
    assert FlopCountAnalysis(Net(), (torch.ones(3, 5), cache)).total() == 3 * 3 * 5
    assert cache.keys == []


def test_a_lazy_module_stays_lazy():
    model = nn.Sequential(nn.LazyLinear(5), nn.LazyLinear(7))
    assert FlopCountAnalysis(model, torch.ones(2, 3)).total() == 2 * 3 * 5 + 2 * 5 * 7
    assert all(nn.parameter.is_lazy(parameter) for parameter in model.parameters())


def test_a_model_counts_the_same_twice_and_trains_on():
    model, x = build(["batch norm", "dropout", "linear"], training=True)
    twin = copy.deepcopy(model)
    assert FlopCountAnalysis(model, x).total() == FlopCountAnalysis(model, x).total()
    torch.manual_seed(0)
    expected = twin(x)
    torch.manual_seed(0)
    assert torch.equal(model(x), expected)


def test_the_grad_of_an_input_is_left_alone():
    x = torch.ones(2, WIDTH, requires_grad=True)
    fc = nn.Linear(WIDTH, WIDTH)
    FlopCountAnalysis(lambda x: fc(x).sum().backward(), x).total()
    assert x.grad is None
    x.grad = kept = torch.ones(2, WIDTH)
    FlopCountAnalysis(lambda x: fc(x).sum().backward(), x).total()
    assert x.grad is kept
    assert torch.equal(kept, torch.ones(2, WIDTH))


def test_a_lazy_module_with_lazy_buffers():
    model = nn.Sequential(nn.LazyConv2d(5, 3), nn.LazyBatchNorm2d())
    flops = FlopCountAnalysis(model, torch.ones(2, 3, 5, 5))
    assert flops.by_operator() == {"conv": 2 * 5 * 9 * 27, "batch_norm": 5 * (2 * 5 * 9)}
    assert nn.parameter.is_lazy(model[1].running_mean)


def test_a_model_made_under_inference_mode():
    with torch.inference_mode():
        fc = nn.Linear(WIDTH, 5)

    def forward(x):
        with torch.inference_mode():
            return fc(x)

    assert FlopCountAnalysis(forward, torch.ones(2, WIDTH)).total() == 2 * WIDTH * 5


def test_what_cannot_be_put_back_keeps_nothing_else_from_it(monkeypatch):
    def fails(*_):
        raise RuntimeError("cannot be written")

    model, x = build(["attributes", "batch norm"], training=True)
    random_state = torch.get_rng_state()
    monkeypatch.setattr("flopcallback.modules.snapshot._restore_values", fails)
    with pytest.raises(RuntimeError, match="cannot be written"):
        FlopCountAnalysis(model, x).total()
    assert model[0].calls == 0
    assert model[0].training
    assert torch.equal(torch.get_rng_state(), random_state)


def test_inputs_and_buffers_that_are_expanded():
    fc = nn.Linear(WIDTH, 5)
    fc.register_buffer("mask", torch.ones(1, 5).expand(2, 5))
    x = torch.ones(1, WIDTH).expand(2, WIDTH)
    assert FlopCountAnalysis(fc, x).total() == 2 * WIDTH * 5


@torch.jit.script
def scripted_relu(x):
    return torch.relu_(x)


@pytest.mark.parametrize(
    "write",
    [
        lambda weight: weight.__setitem__(0, 5.0),
        lambda weight: weight.data.__setitem__(0, 5.0),
        lambda weight: weight.__iadd__(1),
        lambda weight: torch._foreach_add_([weight], 1),
        lambda weight: torch.add(weight, 1, out=weight),
        lambda weight: nn.init.zeros_(weight),
        lambda weight: setattr(weight, "data", weight.data + 1),
        lambda weight: torch.relu_(weight.data),
        lambda weight: scripted_relu(weight.data),
    ],
)
def test_a_weight_that_is_written_to_is_put_back(write):
    fc = nn.Linear(WIDTH, 5)
    before = fc.weight.detach().clone()

    @torch.no_grad()
    def forward(x):
        write(fc.weight)
        assert not torch.equal(fc.weight, before)
        return fc(x)

    FlopCountAnalysis(forward, torch.ones(2, WIDTH)).total()
    assert torch.equal(fc.weight, before)


def test_an_optimizer_stepped_inside_moves_nothing():
    fc = nn.Linear(WIDTH, 5)
    before = [parameter.detach().clone() for parameter in fc.parameters()]
    for options in ({"fused": True}, {"foreach": True}, {"foreach": False}):
        optimizer = torch.optim.Adam(fc.parameters(), **options)

        def step(x, optimizer=optimizer):
            fc(x).sum().backward()
            optimizer.step()

        FlopCountAnalysis(step, torch.ones(2, WIDTH)).total()
        assert all(map(torch.equal, fc.parameters(), before))


def test_generators_of_random_numbers_are_put_back():
    generator = torch.Generator().manual_seed(0)

    class Sampler(nn.Module):
        def __init__(self):
            super().__init__()
            self.generator = torch.Generator().manual_seed(0)

        def forward(self, generator):
            return torch.rand(3, generator=generator) + torch.rand(3, generator=self.generator)

    model = Sampler()
    before = generator.get_state()
    FlopCountAnalysis(model, (generator,)).total()
    assert torch.equal(generator.get_state(), before)
    assert torch.equal(model.generator.get_state(), before)


def test_an_input_that_becomes_part_of_a_graph_is_a_leaf_again():
    fc = nn.Linear(WIDTH, WIDTH)

    def forward(x):
        x[0] = fc(x)[0]
        x.unsqueeze_(0)
        return x

    x = torch.ones(2, WIDTH)
    before = state_of(fc, x)
    flops = FlopCountAnalysis(forward, x)
    assert flops.total() == 2 * WIDTH * WIDTH
    assert flops.engine == "trace", flops.engine_reason
    assert state_of(fc, x) == before
    assert x.is_leaf


def test_an_input_that_is_written_to_through_numpy():
    pytest.importorskip("numpy")

    def forward(x):
        x.numpy()[1] = 7
        return x

    x = torch.ones(2, WIDTH)
    FlopCountAnalysis(forward, x).total()
    assert torch.equal(x, torch.ones(2, WIDTH))
