"""The recorder on its own: a loop's events in, profiles and numbers out."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from flopcallback import FlopCallbackWarning
from flopcallback.modules.names import ModuleNames
from flopcallback.profiling.build import profile_of
from flopcallback.profiling.conditions import Conditions, conditions_of
from flopcallback.tracing.in_flight import observe_in_flight
from flopcallback.tracing.observed import Observed
from flopcallback.trackers import MemoryTracker
from flopcallback.training.failures import Failures
from flopcallback.training.recorder import ProfileRecorder
from flopcallback.training.sinks import Sinks

BATCH = 3
FORWARD = 2 * BATCH * (5 * 7 + 7 * 2)
NO_PEAK = "no MFU: peak not known (peak_flops=)"


@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 2))


class Clock:
    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        self.now_s += 1e-3
        return self.now_s


def recorder_of(trackers, *, prefix="", show=None, fallback=None, failures=None, **options):
    failures = failures or Failures()
    sinks = Sinks(trackers, prefix=prefix, show=show, fallback=fallback, failures=failures)
    return ProfileRecorder(sinks, failures=failures, **options)


def end_step(recorder, step):
    recorder.end_step()
    recorder.log(step)


def close(recorder, step, *, wait=True):
    recorder.close_window(wait=wait)
    recorder.log(step)
    recorder.sinks.close()


def loop(recorder, model, steps):
    """A plain loop that counts its first step and lets the recorder time the others."""
    x = torch.ones(BATCH, 5)
    for step in range(steps):
        recorder.begin_step()
        if recorder.profiles:
            with recorder.timed_call():
                model(x)
        else:
            observed = observe_in_flight(lambda: model(x), ModuleNames({"": model}), x)
            recorder.record(observed, model, conditions_of("train", model, x), is_timed=True)
        end_step(recorder, step)


def warnings_of(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", FlopCallbackWarning)
        call()
    return [str(warning.message) for warning in caught]


def test_a_plain_loop_gets_a_profile_at_once_and_times_when_the_window_closes(model):
    tracker = MemoryTracker()
    recorder = recorder_of({"memory": tracker}, warmup_steps=1, latency_steps=2, prefix="net/", clock=Clock())
    loop(recorder, model, 6)
    flops = 2 * BATCH * (5 * 7 + 7 * 2)
    assert tracker.scalars[0] == (
        0,
        {
            "net/flops/forward": flops,
            "net/flops/forward_per_sample": 2 * (5 * 7 + 7 * 2),
            "net/model/params": 5 * 7 + 7 + 7 * 2 + 2,
            "net/model/params_trainable": 5 * 7 + 7 + 7 * 2 + 2,
            "net/model/activations": BATCH * (7 + 2),
        },
    )
    (step, times) = tracker.scalars[1]
    assert step == 3
    assert set(times) == {"net/latency/forward_ms", "net/latency/step_ms"}
    assert [step for step, _ in tracker.profiles] == [0, 3]
    # The clock goes on by a millisecond with each look. The first step that is timed looks around each module, the
    # second around the call alone, and around the step: that is what the call and the step take. With clocks a call has
    # 9 looks, of which one is in the time of each module.
    by_path = {row.path: row.forward_ms for row in recorder.profiles["train"].modules}
    assert by_path == pytest.approx({"": 1, "0": 1 / 9, "1": 1 / 9, "2": 1 / 9})
    assert times == pytest.approx({"net/latency/forward_ms": 1, "net/latency/step_ms": 3})
    close(recorder, 6)
    assert tracker.closed
    assert len(tracker.profiles) == 2


def test_close_logs_the_times_of_a_window_that_was_not_filled(model):
    tracker = MemoryTracker()
    recorder = recorder_of({"memory": tracker}, warmup_steps=0, latency_steps=20, clock=Clock())
    loop(recorder, model, 3)
    assert len(tracker.profiles) == 1
    close(recorder, 2)
    assert tracker.profiles[1][0] == 2
    assert tracker.profiles[1][1].latency.steps == 2


class DeadEvent:
    """An event of a device that never comes to its marks."""

    def __init__(self, device, enable_timing):
        pass

    def record(self):
        pass

    def synchronize(self):
        pytest.fail("waited for the device")

    def elapsed_time(self, end):
        pytest.fail("asked the device for a time")


def test_close_without_waiting_gives_up_the_times_of_a_device_alone(model):
    tracker, shown = MemoryTracker(), []
    trackers = {"memory": tracker}
    recorder = recorder_of(trackers, warmup_steps=0, latency_steps=20, event=DeadEvent, show=shown.append)
    loop(recorder, model, 3)
    close(recorder, 2, wait=False)
    assert recorder.profiles["train"].latency is None
    assert len(tracker.profiles) == 1
    assert [text.partition(": ")[2] for text in shown] == [
        f"forward {FORWARD} FLOPs, times to come; report: memory",
        f"forward {FORWARD} FLOPs, {NO_PEAK}, too few steps for times; report: memory",
    ]
    assert tracker.closed


def test_close_without_waiting_logs_what_a_device_has_come_through(model):
    marks = iter(range(1000))

    class Event(DeadEvent):
        def record(self):
            self.at_ms = next(marks)

        def query(self):
            return True

        def elapsed_time(self, end):
            return float(end.at_ms - self.at_ms)

    tracker = MemoryTracker()
    recorder = recorder_of({"memory": tracker}, warmup_steps=0, latency_steps=20, event=Event)
    loop(recorder, model, 3)
    close(recorder, 2, wait=False)
    latency = recorder.profiles["train"].latency
    assert (latency.steps, latency.how) == (2, "events on cpu")
    assert [profile.latency for _, profile in tracker.profiles] == [None, latency]


def test_close_without_waiting_logs_the_times_of_a_cpu(model):
    tracker = MemoryTracker()
    recorder = recorder_of({"memory": tracker}, warmup_steps=0, latency_steps=20, clock=Clock())
    loop(recorder, model, 3)
    close(recorder, 2, wait=False)
    assert tracker.profiles[1][1].latency.steps == 2


def test_a_tracker_that_fails_is_named_once_and_the_others_go_on(model):
    class Broken(MemoryTracker):
        def log_scalars(self, values, step):
            raise OSError("disk full")

    good = MemoryTracker()
    recorder = recorder_of({"bad": Broken(), "good": good}, warmup_steps=0, latency_steps=1)
    told = warnings_of(lambda: (loop(recorder, model, 3), close(recorder, 3)))
    assert [text.partition(".")[0] for text in told] == ["the tracker bad failed: OSError: disk full"]
    assert len(good.scalars) == len(good.profiles) == 2


def test_a_clock_that_fails_costs_the_times_alone(model):
    def broken():
        raise OSError("no clock")

    shown = []
    recorder = recorder_of({}, latency_steps=2, warmup_steps=0, clock=broken, show=shown.append)
    told = warnings_of(lambda: loop(recorder, model, 4))
    assert [text.partition(".")[0] for text in told] == ["steps could not be timed: OSError: no clock"]
    assert recorder.profiles["train"].latency is None
    assert shown[1:] == [f"flopcallback: forward {FORWARD} FLOPs, {NO_PEAK}"]


def test_counts_are_said_at_the_first_step_and_times_when_they_are_in(model):
    shown = []
    recorder = recorder_of({"memory": MemoryTracker()}, warmup_steps=0, latency_steps=1, show=shown.append)
    loop(recorder, model, 1)
    assert shown == [f"flopcallback: forward {FORWARD} FLOPs, times to come; report: memory"]
    loop(recorder, model, 3)
    close(recorder, 4)
    (_, line) = shown
    assert line.startswith(f"flopcallback: forward {FORWARD} FLOPs, ")
    assert " of the forward), " in line
    assert line.endswith(f"{NO_PEAK}; report: memory")


def test_a_profile_that_gets_no_times_is_said_once(model):
    shown = []
    recorder = recorder_of({"memory": MemoryTracker()}, latency_steps=0, show=shown.append)
    loop(recorder, model, 3)
    close(recorder, 3)
    assert shown == [f"flopcallback: forward {FORWARD} FLOPs, {NO_PEAK}; report: memory"]


def test_a_line_says_what_is_unknown(model):
    from flopcallback.formulas import registry

    class Odd(nn.Module):
        def forward(self, x):
            return torch.linalg.matrix_exp(x @ x.T)

    assert registry.lookup("aten::linalg_matrix_exp") is None
    shown = []
    recorder = recorder_of({"memory": MemoryTracker()}, latency_steps=0, show=shown.append)
    loop(recorder, Odd(), 1)
    assert f"forward >= {2 * BATCH * 5 * BATCH} FLOPs" in shown[0]
    assert "unknown: aten::linalg_matrix_exp; " in shown[0]


def test_strict_troubles_are_raised():
    with pytest.raises(LookupError, match="absent"):
        Failures(strict=True).report("it failed", LookupError("absent"))


def test_the_log_has_the_traceback_of_what_failed(caplog):
    def fails_in_here():
        raise LookupError("absent")

    at_debug = caplog.at_level("DEBUG", logger="flopcallback")
    with at_debug, pytest.warns(FlopCallbackWarning) as told, Failures().as_warning("it failed"):
        fails_in_here()
    assert "the logger 'flopcallback' has the traceback at DEBUG" in str(told[0].message)
    (record,) = caplog.records
    assert (record.name, record.levelname, record.getMessage()) == ("flopcallback", "DEBUG", "it failed")
    assert "in fails_in_here" in caplog.text


def test_one_cause_is_told_once_wherever_it_shows():
    failures = Failures()
    causes = [("here", "absent"), ("there", "absent"), ("here", "another"), ("elsewhere", "a third")]
    told = warnings_of(lambda: [failures.report(what, LookupError(why)) for what, why in causes])
    assert [text.partition(".")[0] for text in told] == [
        "here: LookupError: absent",
        "elsewhere: LookupError: a third",
    ]


# --- Conditions -------------------------------------------------------------------------------------------------------


def test_the_batch_size_is_what_all_tensors_agree_on(model):
    agreed = {"tokens": torch.ones(4, 9), "mask": [torch.ones(4)], "scale": torch.tensor(2.0)}
    assert conditions_of("train", model, agreed).batch_size == 4
    assert conditions_of("train", model, (torch.ones(4, 9), torch.ones(3))).batch_size is None
    assert conditions_of("train", model, None).batch_size is None
    assert conditions_of("train", model, agreed, batch_size=11).batch_size == 11


def test_tensors_are_found_in_mappings_and_dataclasses_that_pytorch_does_not_open(model):
    from collections import UserDict
    from dataclasses import dataclass

    @dataclass
    class Batch:
        images: torch.Tensor
        labels: UserDict

    batch = Batch(torch.ones(4, 9), UserDict(ids=torch.ones(4)))
    assert conditions_of("train", model, batch).input_shapes == ((4, 9), (4,))


def test_the_dtype_is_autocasts_where_it_is_on(model):
    assert conditions_of("train", model, ()).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert conditions_of("train", model, ()).dtype == torch.bfloat16
    assert conditions_of("train", model.double(), ()).dtype == torch.float64
    assert conditions_of("train", nn.ReLU(), ()).dtype == torch.get_default_dtype()


def test_several_runs_make_one_profile(model):
    names = ModuleNames({"": model})
    x = torch.ones(BATCH, 5)
    runs = [observe_in_flight(lambda: model(x), names, x).runs[0] for _ in range(2)]
    profile = profile_of(Observed(None, tuple(runs)), model, conditions_of("train", model, x))
    assert profile.forward_flops == 2 * (2 * BATCH * (5 * 7 + 7 * 2))
    assert profile.forward_macs == 2 * (BATCH * (5 * 7 + 7 * 2))
    by_path = {row.path: row for row in profile.modules}
    assert (by_path["0"].calls, by_path[""].calls) == (2, 1)
    assert by_path["1"].bytes == 2 * 2 * 4 * BATCH * 7  # read and written, four bytes each, twice


def test_a_module_that_could_not_be_seen_is_an_unknown_call_in_the_chart(model):
    x = torch.ones(BATCH, 5)
    seen = observe_in_flight(lambda: model(x), ModuleNames({"": model}), x)
    observed = Observed(None, seen.runs, unseen={"1": "it is scripted"})
    profile = profile_of(observed, model, conditions_of("train", model, x))
    assert profile.is_lower_bound
    assert profile.scalars()["flops/unknown_calls"] == 1


def test_a_row_of_its_own_takes_what_is_outside_of_submodules():
    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.part = nn.Linear(5, 7)
            self.weight = nn.Parameter(torch.ones(7, 11))

        def forward(self, x):
            return self.part(x) @ self.weight

    model, x = Root(), torch.ones(BATCH, 5)
    observed = observe_in_flight(lambda: model(x), ModuleNames({"": model}), x)
    conditions = conditions_of("train", model, x)
    (root, part) = profile_of(observed, model, conditions).modules
    assert (root.own_flops, part.flops) == (2 * BATCH * 7 * 11, 2 * BATCH * 5 * 7)
    with_row = Conditions("train", conditions.device, conditions.dtype, step_row="(step)")
    (root, part, rest) = profile_of(observed, model, with_row).modules
    assert (root.own_flops, rest.own_flops, rest.flops, rest.macs) == (0, *[2 * BATCH * 7 * 11] * 2, BATCH * 7 * 11)
    assert root.flops == part.flops + rest.flops
    assert (rest.bytes, rest.activations) == (root.bytes - part.bytes, BATCH * 11)
