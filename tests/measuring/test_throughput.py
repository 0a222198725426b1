"""Throughput by a clock that the test sets: what is in it, what is left out, and what rates come of it."""

from __future__ import annotations

import contextlib
import functools
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from flopcallback.measuring.hardware import Peak
from flopcallback.modules.batches import samples_in
from flopcallback.training.batch_sizes import BatchSizes
from flopcallback.training.failures import Failures
from flopcallback.training.kinds import Kind, StepCost, Sums
from flopcallback.training.meter import ComputeMeter
from flopcallback.training.throughput import Throughput, Totals, Work, rates, sum_of, totals, work_of


class Clock:
    """Shows what it is set to, and knows when the device was waited for."""

    def __init__(self):
        self.now = 100.0
        self.waits = []

    def __call__(self):
        return self.now

    def wait(self):
        self.waits.append(self.now)

    def pass_(self, seconds):
        self.now += seconds


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def throughput(clock):
    return Throughput(clock, clock.wait)


KINDS = {nodes: Kind(str(nodes)) for nodes in (7, 9)}


def kind(nodes=7):
    return KINDS[nodes]


def step(throughput, clock, seconds=2.0, *, key=None, samples=3, tokens=None, has_stepped=True):
    throughput.begin_step()
    clock.pass_(seconds)
    key = kind() if key is None else key
    throughput.end_step(key, samples=samples, tokens=tokens, has_stepped=has_stepped)


def test_a_stretch_has_its_steps_and_what_lies_between_them(throughput, clock):
    for _ in range(3):
        step(throughput, clock, 2.0)
        clock.pass_(0.5)
    interval = throughput.read()
    assert (interval.seconds, interval.waited_s) == (3 * 2.5, 2 * 0.5)  # the last wait has no step behind it
    assert (interval.timed, interval.optimizer_steps, interval.samples, interval.tokens) == (3, 3, 9, None)
    assert interval.kinds == {kind(): 3}


def test_what_comes_after_a_stop_is_nobodys(throughput, clock):
    step(throughput, clock, 2.0)
    throughput.stop()
    clock.pass_(1000.0)
    throughput.stop()
    step(throughput, clock, 3.0)
    interval = throughput.read()
    assert (interval.seconds, interval.waited_s, interval.timed) == (5.0, 0.0, 2)


def test_behind_an_interruption_the_stretch_goes_on(throughput, clock):
    step(throughput, clock, 2.0)
    clock.pass_(0.25)
    with throughput.interrupted():
        clock.pass_(1000.0)
    clock.pass_(0.5)
    step(throughput, clock, 3.0)
    interval = throughput.read()
    assert (interval.seconds, interval.waited_s) == (2.0 + 0.25 + 0.5 + 3.0, 0.5)


def test_an_interruption_begins_no_stretch(throughput, clock):
    with throughput.interrupted():
        clock.pass_(1.0)
    clock.pass_(1000.0)
    step(throughput, clock, 2.0)
    assert throughput.read().seconds == 2.0


def test_a_stretch_goes_on_behind_an_interruption_that_raised(throughput, clock):
    step(throughput, clock, 2.0)
    with contextlib.suppress(KeyError), throughput.interrupted():
        clock.pass_(1000.0)
        raise KeyError
    step(throughput, clock, 3.0)
    assert throughput.read().seconds == 5.0


def test_every_reading_begins_anew(throughput, clock):
    step(throughput, clock, 2.0)
    assert throughput.read().seconds == 2.0
    clock.pass_(1000.0)
    interval = throughput.read()
    assert (interval.seconds, interval.timed, interval.samples, interval.kinds) == (0.0, 0, 0, {})


def test_the_device_is_waited_for_where_a_stretch_ends_and_nowhere_else(throughput, clock):
    for _ in range(10):
        step(throughput, clock, 1.0)
    assert clock.waits == []
    throughput.read()
    throughput.stop()
    with throughput.interrupted():
        pass
    assert clock.waits == [110.0]


def test_time_that_the_device_is_waited_for_belongs_to_the_stretch(clock):
    throughput = Throughput(clock, lambda: clock.pass_(4.0))
    step(throughput, clock, 1.0)
    assert throughput.read().seconds == 5.0


def test_under_accumulation_a_step_is_an_optimizers(throughput, clock):
    for batch in range(8):
        step(throughput, clock, 2.0, has_stepped=batch % 4 == 3)
    work = work_of(throughput.read(), lambda key: StepCost(10))
    assert rates([work], None)["perf/step_time_ms"] == 4 * 2.0 * 1e3
    assert rates([work], None)["perf/samples_per_sec"] == 8 * 3 / (8 * 2.0)


@pytest.mark.parametrize("left_out", [0, 3])
def test_a_batch_that_was_left_out_of_its_window_makes_no_step_shorter(throughput, clock, left_out):
    for batch in range(8):
        has_stepped = batch % 4 == 3
        if batch == left_out:
            throughput.stop()
            clock.pass_(1000.0)
            throughput.end_left_out(has_stepped=has_stepped)
        else:
            step(throughput, clock, 2.0, has_stepped=has_stepped)
    work = work_of(throughput.read(), lambda key: StepCost(10))
    assert work.seconds == 7 * 2.0
    assert rates([work], None)["perf/step_time_ms"] == pytest.approx(4 * 2.0 * 1e3)


def test_a_number_that_is_not_known_once_is_not_known_of_the_interval(throughput, clock):
    step(throughput, clock, samples=3, tokens=7)
    step(throughput, clock, samples=None, tokens=7)
    step(throughput, clock, samples=3, tokens=None)
    interval = throughput.read()
    assert (interval.samples, interval.tokens) == (None, None)
    step(throughput, clock, samples=3, tokens=7)
    interval = throughput.read()
    assert (interval.samples, interval.tokens) == (3, 7)


def test_costs_are_those_that_are_known_when_it_is_read(throughput, clock):
    step(throughput, clock, key=kind(7))
    step(throughput, clock, key=kind(7))
    step(throughput, clock, key=kind(9))
    step(throughput, clock, key=1_000)  # what the user's function says
    costs = {kind(7): StepCost(10, 3, 1), kind(9): StepCost(100, 30, 20)}
    work = work_of(throughput.read(), costs.__getitem__)
    assert (work.flops, work.recompute) == (2 * 10 + 100 + 1_000, 2 * 1 + 20)


# --- Rates and totals -------------------------------------------------------------------------------------------------


def work(seconds=4.0, waited_s=1.0, steps=2, flops=12_000, recompute=0, samples=6, tokens=None):
    return Work(seconds, waited_s, steps, flops, recompute, samples, tokens)


def test_rates_of_one_device_by_hand():
    values = rates([work(tokens=60)], 6_000.0, measures_waiting=True)
    assert values == {
        "perf/step_time_ms": 2_000.0,
        "perf/samples_per_sec": 1.5,
        "perf/tokens_per_sec": 15.0,
        "perf/tflops_per_sec": 3e-9,
        "perf/mfu_pct": 50.0,
        "perf/data_wait_pct": 25.0,
    }


def test_mfu_leaves_recomputation_out_and_hfu_counts_it():
    values = rates([work(recompute=3_000)], 6_000.0)
    assert (values["perf/mfu_pct"], values["perf/hfu_pct"]) == (37.5, 50.0)


def test_without_a_peak_there_is_neither():
    assert not {"perf/mfu_pct", "perf/hfu_pct"} & set(rates([work(recompute=3_000)], None))


def test_samples_are_those_of_all_ranks_and_flops_the_mean_of_devices():
    values = rates([work(samples=6, flops=12_000), work(samples=2, flops=4_000, seconds=2.0)], 6_000.0)
    assert values["perf/samples_per_sec"] == (6 + 2) / 4.0
    assert values["perf/tflops_per_sec"] * 1e12 == pytest.approx((12_000 / 4.0 + 4_000 / 2.0) / 2)
    assert values["perf/mfu_pct"] == pytest.approx(100 * 2_500 / 6_000)


def test_bytes_are_held_against_the_bandwidth_of_a_device():
    moved = replace(work(), bytes=8_000), replace(work(seconds=2.0), bytes=2_000)
    values = rates(moved, None, bandwidth=5_000.0)
    assert values["perf/mbu_pct"] == pytest.approx(100 * (8_000 / 4.0 + 2_000 / 2.0) / 2 / 5_000)


@pytest.mark.parametrize(
    ("ranks", "bandwidth"), [([replace(work(), bytes=8_000), work()], 5_000.0), ([replace(work(), bytes=8_000)], None)]
)
def test_without_the_bytes_of_every_rank_or_a_bandwidth_there_is_no_mbu(ranks, bandwidth):
    assert "perf/mbu_pct" not in rates(ranks, 6_000.0, bandwidth=bandwidth)


@pytest.mark.parametrize(
    ("keys", "recorded", "moved"),
    [
        ((7, 7, 7), (10, 11), 33),
        ((7, 9), (10, 11), None),  # 9 has other FLOPs than the recorded step
        ((7, 9), (100, 11), None),
        ((7,), None, None),
        ((), (10, 11), None),
    ],
)
def test_bytes_are_known_where_all_steps_have_the_flops_of_the_recorded_one(throughput, clock, keys, recorded, moved):
    for key in keys:
        step(throughput, clock, key=kind(key))
    costs = {kind(7): StepCost(10), kind(9): StepCost(100)}
    assert work_of(throughput.read(), costs.__getitem__, recorded).bytes == moved


def test_steps_of_which_the_user_gives_the_flops_have_no_known_bytes(throughput, clock):
    step(throughput, clock, key=10)
    step(throughput, clock, key=kind(7))
    assert work_of(throughput.read(), {kind(7): StepCost(10)}.__getitem__, (10, 11)).bytes is None


@pytest.mark.parametrize("nothing", [work(seconds=0.0), work(steps=0)])
def test_where_nothing_was_timed_there_is_no_rate(nothing):
    assert rates([nothing], 6_000.0) == {}
    assert rates([work(), work(seconds=0.0)], 6_000.0) == {}


def test_numbers_that_are_not_known_have_no_rate():
    assert set(rates([work(samples=None)], None)) == {"perf/step_time_ms", "perf/tflops_per_sec"}


def test_totals_leave_out_what_is_not_known_and_shares_of_nothing():
    assert totals(Totals(Sums(2**63, 2**63), 7, 3, 18, 180)) == {
        "compute/flops_total": 2**64,
        "compute/samples_total": 18,
        "compute/tokens_total": 180,
        "compute/estimated_pct": 50.0,
        "compute/steps_total": 7,
        "compute/audited_steps": 3,
    }
    assert totals(Totals(Sums(), 0, 0, None, None)) == {
        "compute/flops_total": 0,
        "compute/estimated_pct": 0.0,
        "compute/steps_total": 0,
        "compute/audited_steps": 0,
    }


def test_totals_have_the_shares_of_what_is_no_exact_work_with_autograd():
    sums = Sums(exact=60, estimated=40, error=3, unjudged=2, without_grad=20, lower=10, upper=30)
    numbers = totals(Totals(sums, 1, 1, None, None))
    assert numbers["compute/estimated_pct"] == 40
    assert numbers["compute/error_pct"] == 5  # nothing bounds the error of the unjudged: it counts as all of it
    assert numbers["compute/without_grad_pct"] == 20
    assert (numbers["compute/lower_bound_pct"], numbers["compute/upper_bound_pct"]) == (10, 30)


def test_a_sum_with_something_unknown_is_unknown():
    assert (sum_of([3, 4]), sum_of([3, None, 4]), sum_of([])) == (7, None, 0)


# --- A training -------------------------------------------------------------------------------------------------------

BATCH, WIDE, INNER, OUT = 3, 5, 7, 2
FORWARD = 2 * BATCH * (WIDE * INNER + INNER * OUT)
AGAIN = 2 * BATCH * (WIDE * INNER)
BACKWARD = 2 * BATCH * (2 * WIDE * INNER + 2 * INNER * OUT)


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        # Sigmoid keeps what it returned: what leads to that is made again.
        self.first, self.second = nn.Sequential(nn.Linear(WIDE, INNER), nn.Sigmoid()), nn.Linear(INNER, OUT)

    def forward(self, x):
        return self.second(checkpoint(self.first, x, use_reentrant=False))


def numbers_of_a_training(monkeypatch, clock, *, steps, peak_flops):
    """What a plain loop logs at its end, on a clock that goes on by 0.5 s within each step and 0.25 s behind it."""
    from flopcallback import FlopHook
    from flopcallback.training import training

    monkeypatch.setattr(training, "ComputeMeter", functools.partial(ComputeMeter, clock=clock))
    model = Checkpointed()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with FlopHook(model, optimizer, peak_flops=peak_flops, latency_steps=2, summary=False, strict=True) as hook:
        for _ in range(steps):
            loss = model(torch.ones(BATCH, WIDE, requires_grad=True)).sum()
            clock.pass_(0.5)
            loss.backward()
            optimizer.step()
            clock.pass_(0.25)
    return hook.metrics()


def test_flops_a_second_times_the_time_of_a_step_are_the_steps(monkeypatch, clock):
    numbers = numbers_of_a_training(monkeypatch, clock, steps=30, peak_flops=2_000.0)
    cost = FORWARD + AGAIN + BACKWARD
    assert numbers["flops/train_step"] == cost
    assert numbers["flops/recompute"] == AGAIN
    assert numbers["compute/flops_total"] == 30 * cost
    flops_per_s = numbers["perf/tflops_per_sec"] * 1e12
    assert flops_per_s * numbers["perf/step_time_ms"] / 1e3 == pytest.approx(cost)
    assert numbers["perf/hfu_pct"] == pytest.approx(100 * flops_per_s / 2_000)
    assert numbers["perf/mfu_pct"] / numbers["perf/hfu_pct"] == pytest.approx((FORWARD + BACKWARD) / cost)


def test_the_time_of_a_step_holds_what_lies_between_steps_and_no_step_that_was_observed(monkeypatch, clock):
    # The first step is counted and the second observed; one stretch has the other 28, and 27 times what is between.
    numbers = numbers_of_a_training(monkeypatch, clock, steps=30, peak_flops=None)
    assert numbers["perf/step_time_ms"] == pytest.approx((28 * 0.5 + 27 * 0.25) / 28 * 1e3, rel=0.02)


def test_a_meter_without_steps_has_no_numbers(clock):
    model = nn.Linear(3, 2)
    meter = ComputeMeter(model, BatchSizes(None, None, samples_in, Failures()), clock=clock)
    assert meter.live_totals() == {}
    assert not meter.is_in_use
    meter.end_step()  # of a step that never began
    meter.leave_out()
    meter.pause()
    assert meter.numbers("log")["compute/flops_total"] == 0


def test_a_training_whose_steps_were_recorded_has_the_utilisation_of_its_memory(clock):
    model = nn.Linear(3, 2)
    meter = ComputeMeter(model, BatchSizes(None, None, samples_in, Failures()), clock=clock)

    def train(steps, *, is_counted=False):
        for _ in range(steps):
            meter.begin_step(torch.ones(4, 3), torch.ones(4, 3))
            clock.pass_(0.5)
            if is_counted:
                meter.set_counted_forward(10, torch.device("cpu"), Peak(1e3, "given", 400.0))
                meter.set_observed_cost(StepCost(30))
            meter.end_step()

    train(1, is_counted=True)
    train(4)
    assert "perf/mbu_pct" not in meter.numbers("before it is recorded")
    meter.recorded_step = 30, 50
    train(4)
    # 50 bytes in half a second are 100 of 400 a second.
    assert meter.numbers("log")["perf/mbu_pct"] == pytest.approx(25)
