"""Updates of torch's elementwise optimizers leave no records; all that a user may have put into one does."""

from __future__ import annotations

import contextlib
import threading
import time

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.profiler import ProfilerActivity, profile

from flopcallback.modules.compiled import is_used
from flopcallback.modules.names import ModuleNames
from flopcallback.profiling.build import StepAnalysis
from flopcallback.tracing import observer, plain_updates, profiler_broker
from flopcallback.tracing.observer import StepRecorder

BATCH, WIDE, OUT = 3, 5, 7
PRODUCT = 2 * BATCH * WIDE * OUT
A, B = torch.ones(BATCH, WIDE), torch.ones(WIDE, OUT)

PLAIN = [
    *(torch.optim.Adadelta, torch.optim.Adagrad, torch.optim.Adam, torch.optim.Adamax, torch.optim.AdamW),
    *(torch.optim.ASGD, torch.optim.NAdam, torch.optim.RAdam, torch.optim.RMSprop, torch.optim.Rprop, torch.optim.SGD),
]


class Step:
    """An observed step: FLOPs by phase, why there are none, and names of records inside of optimizers' steps."""

    def __init__(self, monkeypatch, model, optimizer, step):
        self.of_update = []
        end = observer.end_recording

        def kept(recording):
            result = end(recording)
            self.of_update += [] if result is None else inside_steps(result.experimental_event_tree())
            return result

        monkeypatch.setattr(observer, "end_recording", kept)
        recorder = StepRecorder(ModuleNames({"": model}), [optimizer])
        before = set(vars(optimizer))
        with recorder.watching():
            step(recorder.on)
        monkeypatch.undo()
        self.failure = recorder.failure
        self.flops = {phase: StepAnalysis.of_run(run, model).total() for phase, run in recorder.runs().items()}
        assert set(vars(optimizer)) == before


def inside_steps(events, is_inside=False):
    names = [event.name for event in events if is_inside]
    for event in events:
        names += inside_steps(event.children, is_inside or event.name.startswith("Optimizer.step#"))
    return names


@pytest.fixture(autouse=True)
def no_compiler():
    if is_used():
        pytest.skip("once a process has compiled anything, as another test here has, updates are recorded")


def a_step(optimizer, model):
    def step(on):
        with on():
            loss = model(A).sum()
        loss.backward()
        optimizer.step()

    return step


@pytest.mark.parametrize("kind", PLAIN, ids=lambda kind: kind.__name__)
def test_an_elementwise_update_leaves_no_records_and_changes_as_ever(kind, monkeypatch):
    models = []
    for is_observed in (True, False):
        torch.manual_seed(0)
        model = nn.Linear(WIDE, OUT)
        optimizer = kind(model.parameters())
        assert plain_updates._is_plain(optimizer), vars(type(optimizer).step)
        for _ in range(2):
            if is_observed:
                seen = Step(monkeypatch, model, optimizer, a_step(optimizer, model))
                assert seen.failure is None
                assert seen.of_update == []
                assert {phase: flops for phase, flops in seen.flops.items() if flops} == {
                    "forward": PRODUCT,
                    "backward": PRODUCT,
                }
            else:
                a_step(optimizer, model)(contextlib.nullcontext)
            optimizer.zero_grad()
        models.append(model)
    assert all(map(torch.equal, models[0].parameters(), models[1].parameters()))


def multiplies(*_):
    A @ B


@pytest.mark.parametrize("where", ["before", "behind", "before all", "behind all"])
def test_hooks_of_an_optimizer_are_the_users_and_count(where, monkeypatch):
    model = nn.Linear(WIDE, OUT)
    optimizer = torch.optim.AdamW(model.parameters())
    register = {
        "before": optimizer.register_step_pre_hook,
        "behind": optimizer.register_step_post_hook,
        "before all": register_optimizer_step_pre_hook,
        "behind all": register_optimizer_step_post_hook,
    }[where]
    handle = register(multiplies)
    try:
        seen = Step(monkeypatch, model, optimizer, a_step(optimizer, model))
    finally:
        handle.remove()
    assert seen.of_update.count("aten::mm") == 1
    assert "aten::addcdiv_" not in seen.of_update
    assert seen.flops["optimizer"] == PRODUCT


def test_a_closure_is_forward_and_backward_and_the_update_behind_it_is_not_recorded(monkeypatch):
    model = nn.Linear(WIDE, OUT)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def step(on):
        def closure():
            optimizer.zero_grad()
            with on():
                loss = model(A).sum()
            loss.backward()
            return loss

        optimizer.step(closure)

    seen = Step(monkeypatch, model, optimizer, step)
    assert seen.of_update.count("aten::addmm") == 1
    assert seen.flops == {"forward": PRODUCT, "backward": PRODUCT, "recompute": 0, "optimizer": 0, "without_grad": 0}


class Multiplies(torch.optim.SGD):
    def step(self, closure=None):
        A @ B
        return super().step(closure)


def test_a_kind_of_optimizer_of_the_users_counts(monkeypatch):
    model = nn.Linear(WIDE, OUT)
    optimizer = Multiplies(model.parameters(), 0.1)
    assert Step(monkeypatch, model, optimizer, a_step(optimizer, model)).flops["optimizer"] == PRODUCT


def test_a_step_that_the_user_has_put_in_the_place_of_torchs_counts(monkeypatch):
    original = torch.optim.SGD.step

    @torch.optim.Optimizer.profile_hook_step
    def step(self, closure=None):
        A @ B
        return original(self, closure)

    torch.optim.SGD.step = step
    try:
        model = nn.Linear(WIDE, OUT)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        seen = Step(monkeypatch, model, optimizer, a_step(optimizer, model))
    finally:
        torch.optim.SGD.step = original
    assert seen.flops["optimizer"] == PRODUCT


class Product(nn.Parameter):
    """A parameter of which an elementwise operator is a product."""

    @classmethod
    def __torch_function__(cls, function, kinds, args=(), kwargs=None):
        if getattr(function, "__name__", "") == "add_":
            A @ B
        return super().__torch_function__(function, kinds, args, kwargs or {})


def test_an_update_of_tensors_of_the_users_own_counts(monkeypatch):
    model = nn.Linear(WIDE, OUT, bias=False)
    model.weight = Product(model.weight.detach())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    assert Step(monkeypatch, model, optimizer, a_step(optimizer, model)).flops["optimizer"] == PRODUCT


def test_after_an_update_that_failed_all_is_recorded_again(monkeypatch):
    model = nn.Linear(WIDE, OUT)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    optimizer.state[model.weight]["momentum_buffer"] = torch.ones(WIDE + OUT)

    def step(on):
        with on():
            model(A).sum().backward()
        with pytest.raises(RuntimeError, match="size"):
            optimizer.step()
        A @ B

    assert Step(monkeypatch, model, optimizer, step).flops["forward"] == 2 * PRODUCT + PRODUCT


def test_a_profiler_of_the_users_that_begins_in_a_closure_has_the_update(monkeypatch):
    model = nn.Linear(WIDE, OUT)
    optimizer = torch.optim.AdamW(model.parameters())
    profiler = profile(activities=[ProfilerActivity.CPU])

    def step(on):
        def closure():
            loss = model(A).sum()
            loss.backward()
            profiler.start()
            return loss

        optimizer.step(closure)
        profiler.stop()

    assert profiler_broker.THEIRS in str(Step(monkeypatch, model, optimizer, step).failure)
    assert "aten::addcdiv_" in [event.name for event in profiler.events()]


# --- A recording looks at each mark -----------------------------------------------------------------------------------


def test_a_step_of_too_many_records_is_abandoned_and_the_next_one_is_observed():
    layers = profiler_broker.MAX_RECORDS // (2 * profiler_broker.RECORDS_PER_NODE) + 100  # of two nodes each
    long, short = nn.Sequential(*[nn.Linear(2, 2) for _ in range(layers)]), nn.Linear(WIDE, OUT)
    recorder = StepRecorder(ModuleNames({"": long}))
    with recorder.watching(), recorder.on():
        long(torch.ones(1, 2)).sum().backward()
        assert not torch.autograd._profiler_enabled()
    assert f"more than {profiler_broker.MAX_RECORDS} records" in str(recorder.failure)
    recorder = StepRecorder(ModuleNames({"": short}))
    with recorder.watching(), recorder.on():
        short(A)
    assert recorder.failure is None
    assert StepAnalysis.of_run(recorder.runs()["forward"], short).total() == PRODUCT


def test_a_profiler_of_the_users_in_another_thread_begins_at_the_next_call_of_a_module(monkeypatch):
    monkeypatch.setattr(profiler_broker, "PATIENCE_S", 1000)
    layer, seen = nn.Linear(WIDE, OUT), []

    def profiled():
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            A @ B
        seen.extend(event.name for event in profiler.events())

    recorder = StepRecorder(ModuleNames({"": layer}))
    thread = threading.Thread(target=profiled, daemon=True)
    with recorder.watching():
        thread.start()
        for _ in range(10_000):
            with recorder.on():
                layer(A)
            if not thread.is_alive():
                break
            time.sleep(0.001)
        is_over = not thread.is_alive()
    assert is_over
    assert seen.count("aten::mm") == 1
    assert profiler_broker.THEIRS in str(recorder.failure)
