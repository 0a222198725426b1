"""What bounds the rate of some work, at 1e9 FLOP/s and 1e8 bytes/s: 10 FLOPs per byte take as long either way."""

from __future__ import annotations

import pytest

from flopcallback.profile.roofline import bound_by, memory_roof

RATES = {"peak": 1e9, "bandwidth": 1e8}


@pytest.mark.parametrize(
    ("flops", "moved", "ms", "more", "bound"),
    [
        (11_000, 1_000, 2.0, {}, "compute"),
        (9_000, 1_000, 2.0, {}, "memory"),
        (9_000, None, 2.0, {}, ""),
        (0, 0, 2.0, {}, ""),
        (9_000, 1_000, 2.0, {"overhead_ms": 1.0}, "launches"),
        (9_000, 1_000, 2.0, {"overhead_ms": 0.9}, "memory"),
        (9_000, 1_000, 2.0, {"calls": 201}, "launches"),  # less than 10 us each
        (9_000, 1_000, 2.0, {"calls": 199}, "memory"),
        (9_000, 1_000, 0.0, {}, ""),
        (9_000, 1_000, float("nan"), {}, ""),
    ],
)
def test_work_is_bound_by_what_takes_longest(flops, moved, ms, more, bound):
    assert bound_by(flops, moved, ms, **RATES, **more) == bound


@pytest.mark.parametrize("unknown", ["peak", "bandwidth"])
def test_without_a_rate_only_launches_can_be_told(unknown):
    rates = {**RATES, unknown: None}
    assert bound_by(9_000, 1_000, 2.0, **rates) == ""
    assert bound_by(9_000, 1_000, 2.0, **rates, calls=201) == "launches"


@pytest.mark.parametrize(
    ("flops", "moved", "rates", "roof"),
    [
        (5_000, 1_000, RATES, 5e8),
        (10_000, 1_000, RATES, None),  # the peak allows no more
        (20_000, 1_000, {"peak": None, "bandwidth": 1e8}, 2e9),
        (5_000, 1_000, {"peak": 1e9, "bandwidth": None}, None),
        (0, 1_000, RATES, None),
        (5_000, 0, RATES, None),
    ],
)
def test_the_roof_of_memory_is_its_bandwidth_times_flops_per_byte(flops, moved, rates, roof):
    assert memory_roof(flops, moved, **rates) == roof
