"""A traced run is the real run, whole, and its operators stand under the modules that did them."""

from __future__ import annotations

import functools
import threading
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from flopcallback import FlopCountAnalysis
from flopcallback.modules.names import ModuleNames
from flopcallback.tracing.run import observe
from flopcallback.tracing.torch_private import is_tracing

pytestmark = pytest.mark.usefixtures("no_tracing_state_left")


@dataclass
class Batch:
    x: torch.Tensor
    label: str


@dataclass
class Output:
    y: torch.Tensor


def run_in_flight(model: nn.Module, *args: Any) -> tuple[Any, FlopCountAnalysis]:
    result, run = observe(lambda: model(*args), ModuleNames({"": model}), args)
    return result, FlopCountAnalysis.of_run(run, model)


def test_the_reference_network_by_operator_and_by_module():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(1, 6, 3)
            self.conv2 = nn.Conv2d(6, 16, 3)
            self.fc1 = nn.Linear(576, 120)
            self.fc2 = nn.Linear(120, 84)
            self.fc3 = nn.Linear(84, 10)

        def forward(self, x):
            x = nn.functional.max_pool2d(self.conv1(x).relu(), 2)
            x = nn.functional.max_pool2d(self.conv2(x).relu(), 2).flatten(1)
            return self.fc3(self.fc2(self.fc1(x).relu()).relu())

    flops = FlopCountAnalysis(Net(), torch.zeros(1, 1, 32, 32))
    conv1, conv2 = 6 * 30 * 30 * 9, 16 * 13 * 13 * 6 * 9
    linear = {"fc1": 576 * 120, "fc2": 120 * 84, "fc3": 84 * 10}
    assert (conv1, conv2, linear["fc1"], linear["fc2"], linear["fc3"]) == (48600, 146016, 69120, 10080, 840)
    assert flops.total() == 274656
    assert flops.by_operator() == {"conv": 194616, "linear": 80040}
    assert flops.by_module() == {"": 274656, "conv1": conv1, "conv2": conv2, **linear}
    assert flops.engine == "trace"
    assert not flops.is_lower_bound
    assert type(flops.total()) is int


def test_the_traced_run_hands_on_live_results(model_of, x):
    model = model_of(lambda self, x: {"loss": self.fc(x).square().sum(), "n": 3}, fc=nn.Linear(3, 5))
    plain = model(x)
    plain["loss"].backward()
    expected = model.fc.weight.grad.clone()
    model.zero_grad()

    result, flops = run_in_flight(model, x)
    result["loss"].backward()
    assert result["n"] == 3
    assert torch.equal(result["loss"], plain["loss"])
    assert torch.equal(model.fc.weight.grad, expected)
    assert flops.total() == 2 * 3 * 5


def test_what_feeds_only_control_flow_or_an_attribute_is_counted(model_of, x):
    def forward(self, x):
        if self.gate(x).sum() > -1e9:
            self.stash = self.auxiliary(x)
            x = self.main(x)
        return x

    model = model_of(forward, gate=nn.Linear(3, 7), auxiliary=nn.Linear(3, 11), main=nn.Linear(3, 5))
    assert FlopCountAnalysis(model, x).by_module() == {
        "": 2 * 3 * (7 + 11 + 5),
        "gate": 2 * 3 * 7,
        "auxiliary": 2 * 3 * 11,
        "main": 2 * 3 * 5,
    }
    assert FlopCountAnalysis(model, x, prune=True).total() == 2 * 3 * 5


@pytest.mark.parametrize("wrap", [Output, lambda y: [Output({"a": y})], lambda y: SimpleNamespace(inner=(y,))])
def test_pruning_keeps_what_stands_in_any_object_that_is_returned(model_of, x, wrap):
    model = model_of(lambda self, x: wrap(self.a(x)), a=nn.Linear(3, 5))
    assert FlopCountAnalysis(model, x, prune=True).total() == 30


def test_pruning_keeps_what_is_written_into_a_part_of_the_result(model_of, x):
    def forward(self, x):
        result = torch.zeros(2, 5)
        result[0] = self.written(x)[0]
        result.view(-1)[7:] += self.added(x)[1, 2:]
        torch.zeros(2, 5)[0] = self.lost(x)[0]
        return result

    children = {name: nn.Linear(3, 5) for name in ("written", "added", "lost")}
    flops = FlopCountAnalysis(model_of(forward, **children), x, prune=True)
    assert flops.by_module() == {"": 2 * 30, "written": 30, "added": 30, "lost": 0}


def test_sizes_are_plain_integers_in_the_model(model_of, x):
    seen = []

    def forward(self, x):
        seen.extend([x.shape[0], x.size(1), x.numel(), x.dim(), len(x), x.sum().item()])
        return self.fc(x) if {2: True}[x.shape[0]] else x

    assert FlopCountAnalysis(model_of(forward, fc=nn.Linear(3, 5)), x).total() == 30
    assert seen == [2, 3, 6, 2, 2, 15.0]
    assert [type(value) for value in seen] == [int] * 5 + [float]


def test_models_do_not_notice_the_trace(model_of, x):
    answers = []

    def forward(self, x):
        answers.extend([torch.jit.is_tracing(), torch._C._is_tracing(), torch._C._get_tracing_state()])
        answers.append(is_tracing())
        return self.fc(x)

    FlopCountAnalysis(model_of(forward, fc=nn.Linear(3, 5)), x).total()
    assert answers == [False, False, None, True]  # the last shows that there was a trace


@pytest.mark.parametrize(
    ("inputs", "kwargs", "pick"),
    [
        ("tensor", {}, lambda x: x),
        ("tuple", {"scale": 2}, lambda x, scale: x * scale),
        ("none", {"x": "tensor"}, lambda *, x: x),
        ("dict", {}, lambda batch: batch["x"]),
        ("list", {}, lambda batch: batch[0][1]),
        ("dataclass", {}, lambda batch: batch.x),
    ],
)
@pytest.mark.parametrize("out", [lambda y: y, lambda y: Output(y), lambda y: {"y": [y]}, float, lambda y: None])
def test_any_structure_goes_in_and_out(model_of, x, inputs, kwargs, pick, out):
    def forward(self, *args, **kwargs):
        y = self.fc(pick(*args, **kwargs))
        return out(y.sum() if out is float else y)

    forms = {
        "tensor": x,
        "tuple": (x,),
        "none": (),
        "dict": {"x": x},
        "list": [(0, x)],
        "dataclass": Batch(x, "a"),
    }
    kwargs = {name: x if value == "tensor" else value for name, value in kwargs.items()}
    assert FlopCountAnalysis(model_of(forward, fc=nn.Linear(3, 5)), forms[inputs], kwargs).total() == 30


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 5)

    def forward(self, x):
        return self.encode(x).relu()

    def encode(self, x):
        return self.fc(x) + x @ torch.ones(3, 5)


def test_explicit_forward_and_other_methods_belong_to_their_module(model_of, x):
    model = model_of(
        lambda self, x: (self.a.forward(x), self.b.encode(x), self.c(x)), a=Encoder(), b=Encoder(), c=Encoder()
    )
    flops = FlopCountAnalysis(model, x)
    per_encoder = 2 * 3 * 5 + 2 * 3 * 5
    assert flops.by_module() == {
        "": 3 * per_encoder,
        **dict.fromkeys("abc", per_encoder),
        **{f"{name}.fc": 30 for name in "abc"},
    }
    assert flops.uncalled_modules() == set()
    flops.ancestor_mode("caller")
    called = {"": 3 * per_encoder, "a": 0, "b": 0, "c": per_encoder}
    assert flops.by_module() == {**called, **{f"{name}.fc": 30 for name in "abc"}}
    assert flops.uncalled_modules() == {"a", "b"}


def test_containers_aggregate_and_shared_modules_have_one_name(model_of, x):
    shared = nn.Linear(3, 3)
    model = model_of(
        lambda self, x: self.second(self.first(self.blocks[1](self.blocks[0](x)))),
        blocks=nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)]),
        first=shared,
        second=shared,
    )
    flops = FlopCountAnalysis(model, x)
    for mode in ("owner", "caller"):
        by_module = flops.ancestor_mode(mode).by_module()
        assert by_module["first"] == 2 * (2 * 3 * 3)
        assert "second" not in by_module
        assert flops.total("second") == flops.total("first")
    assert flops.ancestor_mode("owner").total("blocks") == 2 * (2 * 3 * 3)
    assert flops.uncalled_modules() == set()
    assert flops.module_calls()["first"] == 2


def test_methods_functions_and_partials_are_models_too(model_of, x):
    a, b = nn.Linear(3, 5), nn.Linear(5, 7)

    def step(x, scale=1):
        return b(a(x)) * scale

    expected = {"": 30 + 70, "a": 30, "b": 70}
    assert FlopCountAnalysis(step, x).by_module() == expected
    assert FlopCountAnalysis(functools.partial(step, scale=2), x).by_module() == expected
    assert FlopCountAnalysis(lambda net, x: net(x), (a, x)).by_module() == {"": 30, "net": 30}

    class Trainer:
        def __init__(self):
            self.net = a

        def step(self, x):
            return self.net(x)

    assert FlopCountAnalysis(Trainer().step, x).by_module() == {"": 30, "net": 30}
    encoder = Encoder()
    assert FlopCountAnalysis(encoder.encode, x).by_module() == {"": 60, "fc": 30}


def test_tensors_that_require_grad_need_not_be_registered(model_of, x):
    loose = torch.ones(3, 5, requires_grad=True)
    history = (torch.ones(5, 7, requires_grad=True) * 2).tanh()  # not a leaf
    model = model_of(lambda self, x: nn.functional.linear(x @ self.loose[0], history.t()))
    model.loose = [loose]
    assert FlopCountAnalysis(model, x).total() == 2 * 3 * 5 + 2 * 5 * 7
    fc = nn.Linear(3, 5)
    call = lambda x: torch.func.functional_call(fc, {"weight": loose.t() * 1}, (x,))  # noqa: E731
    assert FlopCountAnalysis(call, x).total() == 30


def test_an_operator_that_raises_inside_the_model_is_not_counted_and_stops_nothing(model_of, x):
    def forward(self, x):
        try:
            x @ torch.ones(7, 7)
        except RuntimeError:
            x = self.fc(x)
        return self.fc2(x)

    flops = FlopCountAnalysis(model_of(forward, fc=nn.Linear(3, 5), fc2=nn.Linear(5, 7)), x)
    assert flops.by_operator() == {"linear": 30 + 70}
    assert flops.engine == "trace"


def test_a_count_inside_a_count_is_left_to_the_dispatcher(model_of, x):
    inner = []

    def forward(self, x):
        inner.append(FlopCountAnalysis(nn.Linear(3, 7), x))
        inner[0].total()
        return self.fc(x)

    outer = FlopCountAnalysis(model_of(forward, fc=nn.Linear(3, 5)), x)
    assert outer.total() >= 30
    assert inner[0].total() == 42
    assert inner[0].engine == "dispatch"
    assert "nested" in inner[0].engine_reason


def test_two_counts_at_the_same_time_leave_nothing_replaced(model_of, x):
    first_is_in, second_is_done = threading.Event(), threading.Event()
    before = torch.autograd.Function.__dict__["apply"], torch.autograd._engine_run_backward, torch.jit.is_tracing

    def slow(self, x):
        first_is_in.set()
        assert second_is_done.wait(60)
        return self.fc(x)

    first = FlopCountAnalysis(model_of(slow, fc=nn.Linear(3, 5)), x)
    thread = threading.Thread(target=first.total)
    thread.start()
    assert first_is_in.wait(60)
    second = FlopCountAnalysis(nn.Linear(3, 7), x)
    assert second.total() == 2 * 3 * 7
    assert second.engine == "dispatch"
    assert "another thread" in second.engine_reason
    second_is_done.set()
    thread.join()
    assert first.total() == 2 * 3 * 5
    after = torch.autograd.Function.__dict__["apply"], torch.autograd._engine_run_backward, torch.jit.is_tracing
    assert after == before


def test_recursion_counts_every_operator_once(model_of, x):
    def forward(self, x, depth=3):
        return x if depth == 0 else self(self.fc(x), depth - 1)

    flops = FlopCountAnalysis(model_of(forward, fc=nn.Linear(3, 3)), x)
    assert flops.by_module() == {"": 3 * 18, "fc": 3 * 18}


def test_nothing_stays_on_the_modules_and_user_wrappers_are_kept(model_of, x):
    model = model_of(lambda self, x: self.fc(x), fc=nn.Linear(3, 5))
    original = model.fc.forward
    model.fc.forward = lambda x: original(x) * 2  # as model libraries do
    mine = model.fc.forward
    FlopCountAnalysis(model, x).total()
    assert model.fc.forward is mine
    assert "forward" not in vars(model)


def test_a_large_count_is_exact():
    layer = nn.Linear(2**20 + 1, 2**20 - 1, bias=False, device="meta")
    inputs = torch.empty(2**30 + 3, 2**20 + 1, device="meta")
    assert FlopCountAnalysis(layer, inputs).total() == (2**30 + 3) * (2**20 + 1) * (2**20 - 1) > 2**63


def test_the_modules_of_a_decorated_function_are_found(x):
    fc = nn.Linear(3, 5)

    @torch.no_grad()
    def step(x):
        return fc(x)

    assert FlopCountAnalysis(step, x).by_module() == {"": 30, "fc": 30}


def test_what_a_modules_hooks_do_is_work_of_the_module(model_of, x):
    fc = nn.Linear(3, 5)
    fc.register_forward_hook(lambda module, inputs, output: output @ torch.ones(5, 7))
    fc.register_forward_pre_hook(lambda module, inputs: (inputs[0] @ torch.ones(3, 3),))
    flops = FlopCountAnalysis(model_of(lambda self, x: self.fc(x), fc=fc), x)
    for mode in ("owner", "caller"):
        assert flops.ancestor_mode(mode).by_module() == dict.fromkeys(["", "fc"], 2 * 3 * 3 + 2 * 3 * 5 + 2 * 5 * 7)
    assert flops.module_calls() == {"": 1, "fc": 1}


def test_a_parameter_that_is_given_other_data_has_its_new_shape(model_of, x):
    """As sharded training does, which gathers a weight before its layer runs."""

    def forward(self, x):
        self.fc.weight.data = torch.zeros(7, 3)
        return self.fc(x)

    fc = nn.Linear(3, 5, bias=False)
    assert FlopCountAnalysis(model_of(forward, fc=fc), x).total() == 2 * 3 * 7
    assert fc.weight.shape == (5, 3)


def test_a_large_unregistered_leaf_is_not_printed(monkeypatch, x):
    """The tracer's complaint about it would print every element."""
    from flopcallback.tracing import function_mode

    monkeypatch.setattr(function_mode, "_UNSEEN", "a text that no complaint contains")
    weights = {"a": torch.ones(3, 5, requires_grad=True), "b": [torch.ones(1, 5, requires_grad=True)]}
    flops = FlopCountAnalysis(lambda x: torch.cat([x @ weights["a"], weights["b"][0]]), x)
    assert flops.total() == 30
    assert flops.engine == "trace", flops.engine_reason


def test_a_model_may_be_nested_as_deep_as_it_runs_by_itself(model_of, x):
    model = nn.Linear(3, 5)
    for _ in range(200):
        model = nn.Sequential(model)
    model(x)
    flops = FlopCountAnalysis(model, x)
    assert flops.total() == 30
    assert flops.engine == "trace", flops.engine_reason
