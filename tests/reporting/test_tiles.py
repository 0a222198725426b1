"""The four tiles: what they say of any profile."""

from __future__ import annotations

import dataclasses

import pytest

from flopcallback.profile.rows import LatencySummary, StepFlops
from flopcallback.reporting.page.tiles import tiles
from flopcallback.reporting.units import NOTHING


def timed(profile, **more):
    given = {"forward_ms": 30.0, "step_ms": 100.0, "steps": 20, "how": "CPU clock", **more}
    return profile.with_latency(LatencySummary(**given))


def with_peak(profile, tflops):
    return dataclasses.replace(profile, config={**profile.config, "flops.peak_tflops": tflops})


def test_there_are_four_whatever_is_known(lenet):
    for profile in (lenet, timed(lenet), with_peak(timed(lenet), 1.0)):
        assert len(tiles(profile)) == 4
    assert [tile.value for tile in tiles(lenet)] == [NOTHING, "549 k", NOTHING, "0"]


def test_the_steps_time_has_its_quartiles(lenet):
    time, *_ = tiles(timed(lenet, step_spread=(98.0, 103.0)))
    assert (time.label, time.value) == ("Step time", "100 ms")
    assert time.note == "median of 20 steps, quartiles 98.0 to 103 ms"
    assert time.badge == ""


def test_noise_is_said(lenet):
    time, *_ = tiles(timed(lenet, step_spread=(70.0, 150.0)))
    assert time.badge == "noisy machine: times ±40 %"  # half of 80, of 100


@pytest.mark.parametrize(("how", "is_said"), [("CPU clock", True), ("CUDA events", False)])
def test_a_step_that_waits_for_a_processor_is_said_where_it_computes_on_one(lenet, how, is_said):
    time, *_ = tiles(timed(lenet, cpu_share=0.55, how=how))
    assert ("55 %" in time.badge) == is_said


def test_the_rate_is_of_the_whole_step_without_recomputation(lenet):
    profile = timed(lenet.with_step({"": StepFlops(forward=10**9, backward=2 * 10**9, recompute=10**9)}))
    assert tiles(profile)[1].value == "4.00 G"
    assert tiles(profile)[2].value == "30.0 G"  # 3 GFLOPs in 0.1 s
    rate = tiles(with_peak(profile, 0.12))[2]
    assert (rate.label, rate.value) == ("MFU", "25.0 %")
    assert tiles(with_peak(profile, 0.02))[2].value == "above peak"


def test_the_mfu_is_that_of_the_training_where_it_has_one(lenet):
    profile = dataclasses.replace(with_peak(timed(lenet), 1.0), training={"perf/mfu_pct": 41.5})
    assert tiles(profile)[2].value == "41.5 %"


def test_without_a_step_it_is_the_forward(lenet):
    profile = timed(lenet, step_ms=None, forward_spread=(29.0, 31.0))
    labels = [tile.label for tile in tiles(profile)]
    assert labels == ["Forward time", "FLOPs, forward", "Achieved FLOP/s", "Unknown calls"]
    assert tiles(profile)[0].note == "median of 20 steps, quartiles 29.0 to 31.0 ms"
