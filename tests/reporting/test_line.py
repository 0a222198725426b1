"""The line that a training prints: what it is made of, worked out by hand."""

from __future__ import annotations

import dataclasses

import pytest

from flopcallback.profile.times import PYTHON, OperatorTime, StepTime
from flopcallback.reporting import LatencySummary, ModelProfile, StepFlops, counts_line, profile_line
from flopcallback.reporting.line import slowest


@pytest.fixture
def counted(model_of, layer):
    """A net of two layers with 10 FLOPs in the forward, and 30 in a step, of which 4 are recomputed."""
    profile = model_of("Net", [layer("conv", "Conv2d", flops=7), layer("fc", "Linear", flops=3)])
    return profile.with_step({"": StepFlops(forward=10, backward=16, recompute=4)})


@pytest.fixture
def timed(counted):
    latency = LatencySummary(forward_ms=4.0, step_ms=20.0, steps=10)
    return counted.with_latency(latency, {"": 4.0, "conv": 1.0, "fc": 3.0})


def with_peak(profile, tflops):
    return dataclasses.replace(profile, config={"flops.peak_tflops": tflops})


def test_the_first_line_has_the_counts(counted):
    assert counts_line(counted) == "flopcallback: forward 10 FLOPs, train step 30 FLOPs, times to come"


def test_the_second_line_has_the_mfu_without_recomputation_and_what_is_slowest(timed):
    # 26 FLOPs in 20 ms are 1300 FLOP/s, a quarter of 5200.
    assert profile_line(with_peak(timed, 5.2e-9)) == (
        "flopcallback: forward 10 FLOPs, 4.00 ms, train step 30 FLOPs, 20.0 ms, MFU 25.0 %, "
        "slowest: fc (75.0 % of the forward)"
    )


def test_without_a_peak_it_has_the_rate_and_says_why_there_is_no_mfu(timed):
    assert profile_line(timed).endswith(
        "20.0 ms, 1.30 kFLOP/s, slowest: fc (75.0 % of the forward), no MFU: peak not known (peak_flops=)"
    )


def test_a_step_without_times_has_neither_rate_nor_slowest(counted):
    assert profile_line(with_peak(counted, 1.0)) == "flopcallback: forward 10 FLOPs, train step 30 FLOPs"


def test_a_step_that_was_not_observed_says_why(timed):
    unseen = dataclasses.replace(with_peak(timed, 1.0), step=None, step_note="not observed: no records")
    assert "train step not observed: no records, step 20.0 ms, slowest" in profile_line(unseen)


def test_what_is_unknown_is_named_and_makes_a_bound(counted):
    odd = dataclasses.replace(counted, unknown={"aten::odd": "no formula"}, config={"flops.peak_tflops": 1.0})
    assert counts_line(odd) == (
        "flopcallback: forward >= 10 FLOPs, train step 30 FLOPs, unknown: aten::odd, times to come"
    )


def test_the_slowest_operator_of_equal_modules_is_one(counted):
    times = [
        OperatorTime("layers.0.attn", "aten::scaled_dot_product_attention", "forward", 3.0),
        OperatorTime("layers.1.attn", "aten::scaled_dot_product_attention", "forward", 3.0),
        OperatorTime("layers.0.mlp", "aten::addmm", "forward", 5.0),
        OperatorTime(None, PYTHON, "forward", 1.0),
    ]
    profile = counted.with_times({"": StepTime(12.0)}, times)
    assert slowest(profile) == "slowest: layers.*.attn: scaled_dot_product_attention (50.0 % of the step)"


def test_the_slowest_may_be_outside_of_all_operators(counted):
    times = [OperatorTime(path, PYTHON, "forward", 1.5) for path in ("conv", None)]
    times.append(OperatorTime("conv", "aten::conv2d", "forward", 2.0))
    profile = counted.with_times({"": StepTime(5.0)}, times)
    assert slowest(profile) == "slowest: Python and launches (60.0 % of the step)"


def test_nothing_is_slowest_without_times():
    assert slowest(ModelProfile("Nothing")) == ""
