"""Times of modules: medians over a window, by a clock or by a device's events, and nothing left on the modules."""

from __future__ import annotations

import contextlib
import threading

import pytest
import torch
from torch import nn

from flopcallback.measuring import latency as measuring
from flopcallback.measuring.latency import LatencyWindow
from flopcallback.modules.names import ModuleNames

CPU = torch.device("cpu")


class Clock:
    """A clock that stands still until somebody works."""

    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        return self.now_s

    def pass_ms(self, ms):
        self.now_s += ms / 1e3


class Work(nn.Module):
    """Takes as many milliseconds as it is told, step by step."""

    def __init__(self, clock, *ms):
        super().__init__()
        self._clock, self._ms = clock, iter(ms)

    def forward(self, x=None):
        self._clock.pass_ms(next(self._ms))
        return x


class Outer(nn.Module):
    def __init__(self, clock, ms, **children):
        super().__init__()
        self._clock, self._ms = clock, ms
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, x=None):
        self._clock.pass_ms(self._ms)
        for child in self.children():
            for part in child if isinstance(child, nn.ModuleList) else [child]:
                x = part(x)
        return x


@pytest.fixture
def clock():
    return Clock()


def train(window, model, steps, *, clock=None, between_ms=0, is_forward=True):
    for _ in range(steps):
        window.begin_step()
        with window.timed_call(is_forward=is_forward):
            model()
        if clock is not None:
            clock.pass_ms(between_ms)
        window.end_step()


def test_a_module_has_its_share_of_the_median_call_with_what_it_contains(clock):
    model = Outer(clock, 1, a=Work(clock, 2, 30, 3), b=Work(clock, 5, 5, 7))
    window = LatencyWindow(ModuleNames({"": model}), CPU, warmup_steps=0, steps=3, clock=clock)
    train(window, model, 3, clock=clock, between_ms=100)
    latency = window.read()
    # Calls of 8, 36 and 11 ms: of the faster two, `a` has 2 + 3 and `b` 5 + 7.
    assert latency.modules == pytest.approx({"": 11, "a": 11 * 5 / 19, "b": 11 * 12 / 19})
    assert latency.forward_ms == pytest.approx(11)
    assert latency.step_spread == pytest.approx((109.5, 123.5))  # steps of 108, 136 and 111
    assert latency.step_ms == pytest.approx(111)
    assert (latency.steps, latency.how) == (3, "CPU clock")
    assert latency.spreads["a"] == pytest.approx((2.5, 16.5))  # half-way between 2 and 3, and between 3 and 30
    assert not window.is_open


def test_steps_without_clocks_on_modules_take_turns_and_say_what_call_and_step_take(clock):
    # Each look takes 1 ms. With clocks on modules, a call looks 2 * 3 times: 20 + 30 + 6 ms, and the call itself twice.
    class Looked(Clock):
        def __call__(self):
            self.pass_ms(1)
            return self.now_s

    slow = Looked()
    model = Outer(slow, 0, a=Work(slow, *[20] * 4), b=Work(slow, *[30] * 4))
    window = LatencyWindow(ModuleNames({"": model}), CPU, warmup_steps=0, steps=2, bare_steps=2, clock=slow)
    wrapped = []
    for _ in range(4):
        window.begin_step()
        with window.timed_call():
            wrapped.append("forward" in vars(model))
            model()
        window.end_step()
    latency = window.read()
    assert wrapped == [True, False, True, False]
    assert not window.is_open
    assert latency.steps == 4
    assert latency.forward_ms == pytest.approx(20 + 30 + 1)
    assert latency.step_ms == pytest.approx(20 + 30 + 3)
    # With clocks a call takes 20 + 30 ms and 7 looks, of which one is in each module's time.
    assert latency.modules == pytest.approx({"": 51, "a": 51 * 21 / 57, "b": 51 * 31 / 57})


def test_a_call_that_goes_on_is_one_call_and_what_raises_has_no_time(clock):
    model = Work(clock, 2, 3, 7, 11)
    window = LatencyWindow(ModuleNames({"": model}), CPU, warmup_steps=0, steps=1, clock=clock)
    window.begin_step()
    for continues in (False, True):
        with window.timed_call(continues=continues):
            model()
    with contextlib.suppress(KeyError), window.timed_call():
        model()
        raise KeyError
    window.end_step()
    assert window.read().forward_ms == pytest.approx(2 + 3)
    assert window.read().steps == 1


def test_steps_that_warm_up_are_not_timed(clock):
    model = Work(clock, 900, 800, 7, 9)
    window = LatencyWindow(ModuleNames({"": model}), CPU, warmup_steps=2, steps=2, clock=clock)
    train(window, model, 2)
    assert window.is_open
    assert window.read() is None
    train(window, model, 2)
    assert window.read().forward_ms == pytest.approx(8)


def test_a_step_that_never_began_does_not_count_as_one(clock):
    model = Work(clock, 1, 2)
    window = LatencyWindow(ModuleNames({"": model}), CPU, warmup_steps=1, steps=1, clock=clock)
    window.end_step()
    train(window, model, 2)
    assert window.read().forward_ms == pytest.approx(2)


def test_several_calls_in_a_step_are_each_a_time_of_the_forward(clock):
    model = Work(clock, 1, 2, 9)
    window = LatencyWindow(ModuleNames({"": model}), CPU, warmup_steps=0, steps=1, clock=clock)
    window.begin_step()
    for _ in range(3):
        with window.timed_call():
            model()
    window.end_step()
    assert (window.read().forward_ms, window.read().step_ms) == (pytest.approx(2), pytest.approx(12))


def test_calls_of_one_module_in_one_forward_add_up(clock):
    shared = Work(clock, 2, 3)
    model = Outer(clock, 0, a=shared, inner=Outer(clock, 1, again=shared))
    window = LatencyWindow(ModuleNames({"": model}), CPU, warmup_steps=0, steps=1, clock=clock)
    train(window, model, 1)
    # As its FLOPs, the time of a shared module belongs to its first name alone, so that all parts add up.
    assert window.read().modules == pytest.approx({"": 6, "a": 5, "inner": 1})


def test_a_module_that_calls_itself_is_not_timed_twice(clock):
    class Recursive(nn.Module):
        def forward(self, depth=2):
            clock.pass_ms(1)
            return self(depth - 1) if depth else None

    model = Outer(clock, 0, a=Recursive())
    window = LatencyWindow(ModuleNames({"": model}), CPU, warmup_steps=0, steps=1, clock=clock)
    window.begin_step()
    with window.timed_call():
        model.a()
    window.end_step()
    assert window.read().modules["a"] == pytest.approx(3)


def test_a_list_of_modules_has_the_sum_over_its_modules(clock):
    model = Outer(clock, 0, layers=nn.ModuleList([Work(clock, 2), Work(clock, 3)]))
    window = LatencyWindow(ModuleNames({"": model}), CPU, warmup_steps=0, steps=1, clock=clock)
    train(window, model, 1)
    assert window.read().modules == pytest.approx({"": 5, "layers": 5, "layers.0": 2, "layers.1": 3})


def test_calls_by_other_methods_are_timed_like_those_of_forward(clock):
    class Encoder(Outer):
        def encode(self):
            clock.pass_ms(10)
            self.a()

    model = Outer(clock, 0, encoder=Encoder(clock, 0, a=Work(clock, 2, 3)))
    methods = {"encoder": {"encode"}}
    window = LatencyWindow(ModuleNames({"": model}), CPU, warmup_steps=0, steps=1, clock=clock, methods=methods)
    window.begin_step()
    with window.timed_call():
        model.encoder.encode()
        model()
    window.end_step()
    assert window.read().modules == pytest.approx({"": 15, "encoder": 15, "encoder.a": 5})
    assert "encode" not in vars(model.encoder)


def test_what_is_outside_of_submodules_can_have_a_name_of_its_own(clock):
    model = Outer(clock, 4, a=Outer(clock, 1, b=Work(clock, 2)))
    window = LatencyWindow(ModuleNames({"": model}), CPU, warmup_steps=0, steps=1, clock=clock, rest="(step)")
    window.begin_step()
    with window.timed_call():
        clock.pass_ms(10)
        model()
    window.end_step()
    assert window.read().modules == pytest.approx({"": 17, "a": 3, "a.b": 2, "(step)": 14})


def test_where_a_call_is_more_than_a_forward_the_outermost_forwards_add_up(clock):
    model = Outer(clock, 0, a=Outer(clock, 1, b=Work(clock, 2)), c=Work(clock, 5))
    window = LatencyWindow(ModuleNames({"": model}), CPU, warmup_steps=0, steps=1, clock=clock, rest="(step)")
    window.begin_step()
    with window.timed_call(is_forward=False):
        model.a()
        clock.pass_ms(1000)  # a backward, an optimizer
        model.c()
    window.end_step()
    assert window.read().modules == pytest.approx({"": 8, "a": 3, "a.b": 2, "c": 5})


def test_calls_that_a_backward_makes_are_left_out(clock):
    layer = nn.Linear(3, 5)
    names = ModuleNames({"": Outer(clock, 0, layer=layer)})
    window = LatencyWindow(names, CPU, warmup_steps=0, steps=1, clock=lambda: clock.pass_ms(1) or clock.now_s)
    window.begin_step()
    with window.timed_call(is_forward=False):
        inputs = torch.ones(2, 3, requires_grad=True)
        torch.utils.checkpoint.checkpoint(layer, inputs, use_reentrant=False).sum().backward()
    window.end_step()
    assert window.read().modules["layer"] == pytest.approx(1)  # the clock goes on by 1 ms whenever it is looked at


def test_calls_in_other_threads_are_left_out(clock):
    model = Outer(clock, 0, a=Work(clock, 1))
    window = LatencyWindow(ModuleNames({"": model}), CPU, warmup_steps=0, steps=1, clock=clock)
    window.begin_step()
    with window.timed_call():
        thread = threading.Thread(target=model.a)
        thread.start()
        thread.join()
    window.end_step()
    assert "a" not in window.read().modules


def test_modules_carry_a_wrapper_only_while_they_are_timed(clock):
    model = Outer(clock, 0, a=Work(clock, 1, 1))
    window = LatencyWindow(ModuleNames({"": model}), CPU, warmup_steps=0, steps=1, clock=clock)

    def wrapped():
        return [name for name, module in model.named_modules() if "forward" in vars(module)]

    window.begin_step()
    assert wrapped() == []
    with window.timed_call():
        assert wrapped() == ["", "a"]
    assert wrapped() == []
    with pytest.raises(KeyError), window.timed_call():
        raise KeyError
    assert wrapped() == []
    window.end_step()
    with window.timed_call():
        assert wrapped() == []


def test_a_clock_that_fails_does_not_stop_a_forward(clock):
    looks = iter(range(100))

    def failing():
        if next(looks) == 2:  # after the begin of the step and of the call: at the begin of the module
            raise OSError("no clock")
        return clock()

    model = Outer(clock, 0, a=Work(clock, 1))
    window = LatencyWindow(ModuleNames({"": model}), CPU, warmup_steps=0, steps=1, clock=failing)
    results = []

    def step():
        with window.timed_call():
            results.append(model("through"))

    window.begin_step()
    with pytest.raises(OSError, match="no clock"):
        step()
    assert results == ["through"]


# --- By events --------------------------------------------------------------------------------------------------------


class Device:
    """A queue of work: events are marks in it; `done_ms` of the work is done, and all of it once somebody waits."""

    def __init__(self):
        self.queued_ms = self.done_ms = 0.0
        self.waits = 0
        self.asked_too_early = 0
        self.is_dead = False
        self.made_for = set()

    def event(self, device, *, enable_timing):
        assert enable_timing
        self.made_for.add(device)
        return Event(self)


class Event:
    def __init__(self, device):
        self._device, self._at = device, None

    def record(self):
        self._at = self._device.queued_ms

    def synchronize(self):
        self._device.waits += 1
        self._device.done_ms = self._device.queued_ms

    def query(self):
        if self._device.is_dead:
            raise RuntimeError("device-side assert triggered")
        return self._at <= self._device.done_ms

    def elapsed_time(self, end):
        self._device.asked_too_early += end._at > self._device.done_ms
        return end._at - self._at


class Queued(nn.Module):
    """Queues as many milliseconds of work as it is told, step by step."""

    def __init__(self, device, *ms):
        super().__init__()
        self._device, self._ms = device, iter(ms)

    def forward(self, x=None):
        self._device.queued_ms += next(self._ms)
        return x


CUDA = torch.device("cuda", 1)


@pytest.fixture
def device():
    return Device()


def train_on(device, window, model, steps):
    """Each step queues 11 ms of backward after its forward."""
    for _ in range(steps):
        window.begin_step()
        with window.timed_call():
            model(None)
        device.queued_ms += 11
        window.end_step()


def test_on_a_device_events_are_read_once_the_window_is_closed(device):
    model = nn.Sequential(Queued(device, 3, 3, 3), Queued(device, 5, 5, 5))
    window = LatencyWindow(ModuleNames({"": model}), CUDA, warmup_steps=1, steps=2, event=device.event)
    train_on(device, window, model, 3)
    assert (device.waits, device.asked_too_early) == (0, 0)
    latency = window.read()
    assert (device.waits, device.asked_too_early) == (1, 0)
    assert latency.modules == {"": 8, "0": 3, "1": 5}
    assert (latency.forward_ms, latency.step_ms, latency.steps) == (8, 19, 2)
    assert latency.how == "events on cuda:1"
    assert device.made_for == {CUDA}


def test_without_waiting_the_calls_that_the_device_has_come_through_are_read(device):
    model = nn.Sequential(Queued(device, 3, 7, 100), Queued(device, 5, 9, 100))
    window = LatencyWindow(ModuleNames({"": model}), CUDA, warmup_steps=0, steps=20, event=device.event)
    train_on(device, window, model, 3)
    device.done_ms = (3 + 5 + 11) + (7 + 9 + 11) + 100  # the third call is half done
    latency = window.read(wait=False)
    assert (device.waits, device.asked_too_early) == (0, 0)
    assert latency.modules == {"": 12, "0": 12 * 3 / 8, "1": 12 * 5 / 8}  # as in the faster one of two
    assert (latency.steps, latency.step_ms) == (2, (19 + 27) / 2)


def test_without_waiting_a_forward_that_is_done_counts_though_its_step_is_not(device):
    model = Queued(device, 3)
    window = LatencyWindow(ModuleNames({"": model}), CUDA, warmup_steps=0, steps=20, event=device.event)
    train_on(device, window, model, 1)
    device.done_ms = 3
    latency = window.read(wait=False)
    assert (latency.forward_ms, latency.step_ms) == (3, None)


@pytest.mark.parametrize("is_dead", [False, True])
def test_without_waiting_a_device_that_has_come_through_nothing_or_died_has_no_times(device, is_dead):
    model = Queued(device, 3)
    window = LatencyWindow(ModuleNames({"": model}), CUDA, warmup_steps=0, steps=20, event=device.event)
    train_on(device, window, model, 1)
    device.is_dead = is_dead
    assert window.read(wait=False) is None
    assert device.waits == 0


def test_a_step_that_goes_into_a_cuda_graph_has_no_times_and_is_not_waited_for(device, monkeypatch):
    """Marks in a graph have no times, and to wait for one there would end the user's capture with an error."""
    is_capturing = iter([False, True, False])
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: next(is_capturing))
    model = Queued(device, 3, 100, 5)
    window = LatencyWindow(ModuleNames({"": model}), CUDA, warmup_steps=0, steps=2, event=device.event)
    train_on(device, window, model, 2)
    assert window.is_open
    train_on(device, window, model, 1)
    assert not window.is_open
    assert device.waits == 0
    latency = window.read()
    assert (latency.forward_ms, latency.step_ms, latency.steps) == (4, (3 + 11 + 5 + 11) / 2, 2)


def test_a_device_other_than_a_cpu_has_events_by_itself():
    window = LatencyWindow(ModuleNames({"": nn.Linear(2, 2)}), torch.device("cuda"), warmup_steps=0, steps=1)
    assert window._timer._event is torch.Event


def test_the_share_of_a_processor_is_the_time_outside_of_the_queue_for_one(monkeypatch):
    # A second and two in the queue, by a stand-in for what the system says, in two steps of 4 s.
    model, clock, queued = nn.Identity(), Clock(), iter([1.0, 2.0, 5.0, 7.0])
    monkeypatch.setattr(measuring, "seconds_queued", lambda: next(queued))
    window = LatencyWindow(ModuleNames({"": model}), CPU, warmup_steps=0, steps=1, bare_steps=2, clock=clock)
    window._measures_queue = True  # although the clock is not the system's
    for _ in range(3):
        window.begin_step()
        with window.timed_call():
            clock.pass_ms(1000)
            model(torch.ones(1))
        clock.pass_ms(3000)
        window.end_step()
    assert window.read().cpu_share == pytest.approx(1 - (1 + 2) / (2 * 4))


def test_what_the_system_says_of_the_queue_only_grows():
    if (first := measuring.seconds_queued()) is None:
        pytest.skip("the system does not say")
    assert 0 <= first <= measuring.seconds_queued()
