"""Where the time of a recorded step goes: parts that add up to it, by phase, module and operator."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from flopcallback import FlopCallbackWarning, FlopHook
from flopcallback.modules.names import ModuleNames
from flopcallback.profile.model_profile import ModelProfile
from flopcallback.profile.rows import LatencySummary, ModuleRow
from flopcallback.profile.times import IDLE, PYTHON, StepTime
from flopcallback.profiling.build import step_counts
from flopcallback.profiling.times import with_times
from flopcallback.tracing import observer as observing
from flopcallback.tracing.observer import StepRecorder
from flopcallback.tracing.record_times import Amount, Part, RecordedTimes
from flopcallback.training.recorder import MOST_RECORDED

BATCH, WIDE = 3, 5


def recorded(model, loss, optimizer=None, inputs=None, timed_on="cpu", **options):
    """A recorder after a step of a training."""
    x = torch.ones(BATCH, WIDE) if inputs is None else inputs
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1)
    recorder = StepRecorder(ModuleNames({"": model}), [optimizer], **options)
    recorder.timed_on = timed_on
    with recorder.watching():
        with recorder.on():
            y = model(x)
        loss(y).backward()
        optimizer.step()
    assert recorder.failure is None
    return recorder


def by(times, *fields):
    """The names that parts with some time have, of each part so many of its fields."""
    return {tuple(getattr(part, field) for field in fields) for part in times.parts}


class Branches(nn.Module):
    """Modules one after the other, each of which may have a residual connection, run twice or be checkpointed."""

    def __init__(self, kinds, inner):
        super().__init__()
        self.kinds = kinds
        self.parts = nn.ModuleList(inner)

    def forward(self, x):
        for kind, part in zip(self.kinds, self.parts, strict=True):
            y = checkpoint(part, x, use_reentrant=kind == "reentrant") if "entrant" in kind else part(x)
            x = {"residual": lambda y=y, x=x: x + y, "twice": lambda y=y, part=part: part(y)}.get(kind, lambda y=y: y)()
        return x


LAYERS = {"linear": lambda: nn.Linear(WIDE, WIDE), "norm": lambda: nn.LayerNorm(WIDE), "act": nn.GELU}
KINDS = ("plain", "residual", "twice", "reentrant", "non-reentrant")
layers = st.sampled_from(sorted(LAYERS)).map(lambda name: LAYERS[name]())
nets = st.recursive(
    layers,
    lambda inner: st.lists(st.tuples(st.sampled_from(KINDS), inner), min_size=1, max_size=3).map(
        lambda pairs: Branches([kind for kind, _ in pairs], [part for _, part in pairs])
    ),
    max_leaves=8,
)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # of nested checkpoints without parameters
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(inner=nets)
def test_the_parts_of_any_step_add_up_to_it_and_their_flops_to_its(inner):
    model = nn.Sequential(nn.Linear(WIDE, WIDE), inner)
    recorder = recorded(model, lambda y: y.square().mean())
    times = recorder.times
    assert sum(part.ns for part in times.parts.values()) == times.ns > 0
    assert all(part.ns >= 0 for part in times.parts.values())
    assert sum(times.shares().values()) == pytest.approx(1)
    flops = {phase: analysis.total() for phase, analysis in step_counts(recorder.runs(), model).items()}
    for phase, counted in flops.items():
        assert sum(part.flops for key, part in times.parts.items() if key.phase == phase) == counted


def test_an_operator_s_backward_belongs_to_its_module_also_without_products():
    model = nn.Sequential(nn.Linear(WIDE, WIDE), nn.LayerNorm(WIDE), nn.Linear(WIDE, WIDE))
    times = recorded(model, lambda y: y.square().mean()).times
    parts = by(times, "phase", "module", "operator")
    assert {("forward", "0", "aten::linear"), ("forward", "1", "aten::layer_norm")} <= parts
    assert {("backward", "1", "NativeLayerNormBackward0"), ("backward", "2", "AddmmBackward0")} <= parts
    assert {("forward", None, "aten::square"), ("backward", None, "PowBackward0")} <= parts  # of the loss
    assert ("optimizer", None, "SGD.step") in parts
    linear = times.parts[Part("backward", "2", "AddmmBackward0")]
    assert (linear.calls, linear.flops) == (1, 2 * 2 * BATCH * WIDE * WIDE)


def test_the_root_s_own_work_is_told_from_that_of_no_module():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(WIDE, WIDE))

        def forward(self, x):
            return x @ self.weight

    times = recorded(Net(), lambda y: (y @ torch.ones(WIDE, WIDE)).sum()).times
    for operator in ("aten::matmul", "MmBackward0"):
        assert {("", operator), (None, operator)} <= by(times, "module", "operator")


@pytest.mark.parametrize("reentrant", [False, True])
def test_what_runs_again_is_recomputation_of_its_module(reentrant):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(WIDE, WIDE), nn.Sequential(nn.LayerNorm(WIDE), nn.Linear(WIDE, WIDE))

        def forward(self, x):
            return checkpoint(self.b, self.a(x), use_reentrant=reentrant)

    times = recorded(Net(), lambda y: y.square().mean()).times
    assert ("recompute", "b.0", "aten::layer_norm") in by(times, "phase", "module", "operator")


def test_without_autograd_a_module_s_work_is_apart():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.teacher, self.student = nn.Linear(WIDE, WIDE), nn.Linear(WIDE, WIDE)

        def forward(self, x):
            with torch.no_grad():
                aim = self.teacher(x)
            return self.student(x) - aim

    times = recorded(Net(), lambda y: y.square().mean()).times
    assert ("without_grad", "teacher", "aten::linear") in by(times, "phase", "module", "operator")
    assert ("forward", "student", "aten::linear") in by(times, "phase", "module", "operator")


def test_what_a_custom_function_does_in_python_is_its_own():
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x + x

        @staticmethod
        def backward(ctx, grad):
            return grad + grad

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(WIDE, WIDE)

        def forward(self, x):
            return Double.apply(self.inner(x))

    times = recorded(Net(), lambda y: y.sum()).times
    assert sum(part.ns for part in times.parts.values()) == times.ns
    assert {("forward", "Double"), ("backward", "DoubleBackward")} <= by(times, "phase", "operator")


def test_where_no_record_has_the_results_their_part_has_no_bytes():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.at = nn.Linear(WIDE, WIDE), torch.tensor([0, 2])

        def forward(self, x):
            return self.inner(x)[:, self.at]

    times = recorded(Net(), lambda y: y.sum(), reads_all=True).times
    assert sum(part.ns for part in times.parts.values()) == times.ns
    by_part = {(part.phase, part.operator): amount.nbytes for part, amount in times.parts.items()}
    assert by_part["forward", "aten::linear"] == 4 * (BATCH * WIDE + WIDE * WIDE + WIDE + BATCH * WIDE)
    assert by_part["forward", "aten::index"] is None


def test_other_threads_work_beside_the_step():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(WIDE, WIDE)

        def forward(self, x):
            thread = threading.Thread(target=torch.randn, args=(64, 64))
            thread.start()
            thread.join()
            return self.inner(x)

    times = recorded(Net(), lambda y: y.sum()).times
    assert sum(part.ns for part in times.parts.values()) == times.ns
    assert ("forward", "", PYTHON) in by(times, "phase", "module", "operator")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_code_has_its_time(backend):
    torch._dynamo.reset()
    model = nn.Sequential(nn.Linear(WIDE, WIDE), nn.GELU(), nn.Linear(WIDE, WIDE))
    compiled = torch.compile(model, backend=backend)
    for _ in range(2):
        times = recorded(compiled, lambda y: y.square().mean()).times
    assert sum(part.ns for part in times.parts.values()) == times.ns
    assert {("forward", "CompiledFunction"), ("backward", "CompiledFunctionBackward")} <= by(times, "phase", "operator")
    torch._dynamo.reset()


def test_a_user_s_range_is_no_operator_whatever_its_name():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(WIDE, WIDE)

        def forward(self, x):
            with torch.profiler.record_function("net::inner"):
                return self.inner(x)

    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorder = StepRecorder(ModuleNames({"": model}), [optimizer])
    recorder.timed_on = "cpu"
    with recorder.watching():
        with recorder.on():
            y = model(torch.ones(BATCH, WIDE))
        with torch.profiler.record_function("train::backward"):
            y.sum().backward()
        with torch.profiler.record_function("Optimizer.mine"):
            optimizer.step()
    times = recorder.times
    assert sum(part.ns for part in times.parts.values()) == times.ns
    parts = by(times, "phase", "module", "operator")
    assert {("forward", "inner", "aten::linear"), ("backward", "inner", "AddmmBackward0")} <= parts
    assert ("optimizer", None, "SGD.step") in parts
    assert not any("::" in name and not name.startswith("aten::") for _, _, name in parts)


# --- Devices, by records of kernels that nothing here can run ---------------------------------------------------------


def kernel(linked, start, duration):
    return SimpleNamespace(linked_correlation_id=lambda: linked, start_ns=lambda: start, duration_ns=lambda: duration)


def test_kernels_belong_to_the_operator_that_launched_them(monkeypatch):
    seen = {}

    def kernels_of(result, timed_on):
        # Each product launches two kernels at the same time, 100 ns each, and the device goes on after the step.
        events = [event for event in result.events() if event.name() in ("aten::addmm", "aten::mm")]
        begin = min(event.start_ns() for event in result.events() if ":begin:" in event.name())
        kernels = [kernel(-1, begin - 1000, 50)]  # launched before the step
        for number, event in enumerate(events):
            start = begin + 10**9 + 1000 * number
            kernels += [kernel(event.correlation_id(), start, 100), kernel(event.correlation_id(), start, 100)]
        seen.update(products=len(events), last=10**9 + 1000 * (len(events) - 1) + 100)
        return kernels

    monkeypatch.setattr(observing, "device_records", kernels_of)
    model = nn.Sequential(nn.Linear(WIDE, WIDE), nn.Linear(WIDE, WIDE))
    times = recorded(model, lambda y: y.sum()).times
    products = seen["products"]
    assert products == 2 + 3  # of the first layer's backward there is no gradient of the inputs
    assert times.busy_ns == 100 * products
    assert abs(times.device_ns - seen["last"]) < 10**6  # begin is that of the mark, which has a length itself
    assert times.parts[Part("backward", "1", "AddmmBackward0")].device_ns == 2 * 200
    shares = times.shares()
    assert sum(shares.values()) == pytest.approx(1)
    assert shares[Part("forward", None, IDLE)] == pytest.approx(1 - 100 * products / times.device_ns)
    assert shares[Part("forward", "0", "aten::linear")] == pytest.approx(100 / times.device_ns)


def test_where_nothing_was_recorded_of_a_device_its_times_are_not_known(monkeypatch):
    waits = []
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda: waits.append(1))
    monkeypatch.setattr(observing, "device_records", lambda result, timed_on: [])
    recorder = recorded(nn.Linear(WIDE, WIDE), lambda y: y.sum(), timed_on="mps")
    assert (recorder.times, recorder.untimed, len(waits)) == (None, None, 1)
    assert recorder.runs()["forward"].record.calls  # the count stands


# --- As a profile -----------------------------------------------------------------------------------------------------


def test_milliseconds_are_the_clean_step_s_shared_out():
    def times(ns, *, a, rest):
        return RecordedTimes(
            ns,
            {
                Part("forward", "a.b", "aten::linear"): Amount(a, calls=1, flops=7),
                Part("backward", None, PYTHON): Amount(rest),
            },
            parallel_ns=3_000_000,
        )

    rows = [ModuleRow("", None, 0, "Net"), ModuleRow("a", "", 1, "A"), ModuleRow("a.b", "a", 2, "B")]
    profile = ModelProfile("Net", "train", rows, latency=LatencySummary(1.0, 10.0, 4, "CPU clock"))
    model = nn.ModuleDict({"a": nn.ModuleDict({"b": nn.Identity()})})
    slow = times(90_000_000, a=0, rest=90_000_000)  # something else was going on
    done = with_times(profile, [times(4, a=3, rest=1), slow, times(8, a=2, rest=6)], ModuleNames({"": model}))
    assert done.modules[2].time == done.modules[1].time == StepTime(forward=10 * (3 / 4 + 2 / 8) / 2)
    assert done.root.time == StepTime(forward=5.0, backward=5.0)
    assert done.own_times() == {"": StepTime(backward=5.0), "a": StepTime(), "a.b": StepTime(forward=5.0)}
    assert [(each.path, each.ms, each.calls, each.flops) for each in done.operator_times] == [
        ("a.b", 5.0, 1, 7),
        (None, 5.0, 0, 0),
    ]
    assert (done.latency.observed_ms, done.latency.observed_steps, done.latency.parallel_ms) == (8e-6, 3, 3.0)
    assert ModelProfile.from_json(done.to_json()) == done


def test_a_training_s_profile_has_times_that_add_up_to_its_step():
    model = nn.Sequential(nn.Linear(WIDE, WIDE), nn.Sequential(nn.LayerNorm(WIDE), nn.Linear(WIDE, WIDE)))
    optimizer = torch.optim.AdamW(model.parameters())
    with FlopHook(model, optimizer, summary=False, strict=True) as hook:
        for _ in range(40):
            model(torch.ones(BATCH, WIDE)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    profile = hook.profile
    step_ms = profile.latency.step_ms
    assert profile.latency.observed_steps >= 4  # and a step that was read for its bytes; audits add to them
    assert profile.root.time.total == pytest.approx(step_ms)
    assert sum(each.ms for each in profile.operator_times) == pytest.approx(step_ms)
    assert sum(own.total for own in profile.own_times().values()) == pytest.approx(step_ms)
    assert min(own.total for own in profile.own_times().values()) > -1e-9
    assert sum(each.flops for each in profile.operator_times) == profile.step.total
    (first,) = (each for each in profile.operator_times if (each.path, each.operator) == ("0", "aten::linear"))
    assert first.bytes == 4 * (BATCH * WIDE + WIDE * WIDE + WIDE + BATCH * WIDE)  # inputs, weight, bias; outputs
    forwards = {row.path: row.forward_ms for row in profile.modules}
    assert forwards["1.0"] + forwards["1.1"] <= forwards["1"] * (1 + 1e-9)
    assert forwards["0"] + forwards["1"] <= forwards[""] * (1 + 1e-9)
    assert forwards[""] == profile.latency.forward_ms


def looped(step, *, steps=60, **options):
    """The profile of a loop of steps, of which each is told its number."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDE, WIDE), nn.ReLU(), nn.Linear(WIDE, WIDE))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with FlopHook(model, optimizer, summary=False, strict=True, **options) as hook:
        for number in range(steps):
            step(number, model, optimizer)
    return hook.profile


def penalized(number, model, optimizer):
    loss = model(torch.ones(BATCH, WIDE)).square().mean()
    if number % 4 == 3:
        loss = loss + (model[0].weight @ model[2].weight).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def skipped(number, model, optimizer):
    model(torch.ones(BATCH, WIDE)).square().mean().backward()
    if number % 4 != 3:
        optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("step", [penalized, skipped])
def test_only_steps_of_the_profile_s_kind_have_its_times(step):
    profile = looped(step)
    assert profile.operator_times
    assert sum(each.flops for each in profile.operator_times) == profile.step.total
    assert sum(each.ms for each in profile.operator_times) == pytest.approx(profile.latency.step_ms)
    assert [each.calls for each in profile.operator_times if each.operator == "SGD.step"] == [1]


def test_a_step_that_the_end_of_the_hook_cuts_off_has_no_times():
    def step(number, model, optimizer):
        loss = model(torch.ones(BATCH, WIDE)).square().mean()
        if number < 8:
            loss.backward()
            optimizer.step()

    profile = looped(step, steps=9)
    assert sum(each.flops for each in profile.operator_times) in (0, profile.step.total)


def test_where_every_step_is_observed_few_are_kept():
    model = nn.Linear(WIDE, WIDE)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with FlopHook(model, optimizer, summary=False, observe="always") as hook:
        for _ in range(MOST_RECORDED + 30):
            model(torch.ones(BATCH, WIDE)).sum().backward()
            optimizer.step()
        assert len(hook._training._recorder._recorded) == MOST_RECORDED


def test_where_times_cannot_be_read_the_count_stands_and_the_window_ends(monkeypatch):
    def fail(*_):
        raise RuntimeError("no such record")

    monkeypatch.setattr(observing, "times_of", fail)
    model = nn.Sequential(nn.Linear(WIDE, WIDE))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def train():
        with FlopHook(model, optimizer, summary=False, warmup_steps=1, latency_steps=12) as hook:
            for _ in range(40):
                model(torch.ones(BATCH, WIDE)).sum().backward()
                optimizer.step()
        return hook.profile

    with pytest.warns(FlopCallbackWarning, match="could not be timed.*no such record") as told:
        profile = train()
    assert len(told) == 1
    assert profile.step.total == 2 * 2 * BATCH * WIDE * WIDE
    assert profile.latency.step_ms is not None
    assert profile.operator_times == ()
    assert profile.root.time is None
