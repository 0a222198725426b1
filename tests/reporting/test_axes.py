"""Where things stand in the figures: worked out by hand from values and powers of ten."""

from __future__ import annotations

import dataclasses
import math

import pytest

from flopcallback.reporting.figures.axes import Axis, FlopsAndTime, Frame, heaviest_types, tick_label

NO_ROOM = (0.0, 0.0, 0.0, 0.0)


@pytest.fixture
def timed(layer):
    """A module of that many FLOPs and milliseconds."""
    return lambda flops, ms: dataclasses.replace(layer("m", "Linear", flops=flops), forward_ms=ms)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.05, "0.05"),
        (-3.5, "-3.5"),
        (100.2, "100.2"),
        (250, "250"),
        (1000, "1 k"),
        (2500, "2.5 k"),
        (1250.0, "1.25 k"),
        (-2500.0, "-2.5 k"),
        (10**5, "100 k"),
        (10.0**14, "100 T"),
        (10**33, "1e+33"),
        (10.0**40, "1e+40"),
        (3 * 10**40, "3e+40"),
    ],
)
def test_a_tick_has_the_digits_that_say_something(value, text):
    assert tick_label(value) == text


@pytest.mark.parametrize(("value", "text"), [(0.01, "0.01 FLOP/s"), (10, "10 FLOP/s"), (10**11, "100 GFLOP/s")])
def test_a_rate_has_its_unit_behind_a_space_or_a_prefix(value, text):
    assert tick_label(value, "FLOP/s") == text


def test_an_axis_is_logarithmic_where_the_largest_value_is_20_times_the_smallest():
    assert Axis.around([1, 20]).is_log
    assert not Axis.around([1, 19]).is_log
    assert not Axis.around([0, 10**9]).is_log
    assert not Axis.around([-1, 10**9]).is_log


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0.0, 1.0, ["1", "2", "5", "10"]),
        (0.0, 2.0, ["1", "3", "10", "30", "100"]),
        (2.0, 6.0, ["100", "1 k", "10 k", "100 k", "1 M"]),
        (0.0, 13.0, ["1", "100", "10 k", "1 M", "100 M", "10 G", "1 T"]),  # 14 decades, every second
    ],
)
def test_ticks_of_a_logarithmic_axis_are_the_closer_the_shorter_it_is(low, high, labels):
    ticks = Axis(low, high).ticks(7)
    assert [label for _, label in ticks] == labels
    assert ticks[0][0] == low


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0.0, 1.0, ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
        (-1.0, 13.0, ["0", "2", "4", "6", "8", "10", "12"]),
        (100.15, 100.75, ["100.2", "100.3", "100.4", "100.5", "100.6", "100.7"]),
    ],
)
def test_ticks_of_a_linear_axis_are_multiples_of_a_round_step(low, high, labels):
    assert [label for _, label in Axis(low, high, is_log=False).ticks(7)] == labels


def test_places_are_percent_from_the_left_and_from_the_top():
    frame = Frame(Axis(2, 6), Axis(-1, 1))
    assert frame.percent(3, 0.5) == (25.0, 25.0)
    assert frame.percent(2, -1) == (0.0, 100.0)
    assert repr(frame.percent(2, 1)) == "(0.0, 0.0)"
    assert frame.ticks_in_percent([(4, "10 k")], [(1, "10")]) == ([(50.0, "10 k")], [(0.0, "10")])


def test_flops_and_times_have_the_room_that_is_asked_for(timed):
    frame = FlopsAndTime.around([timed(10**6, 1.0), timed(10**8, 100.0)], (0.5, 0.25, 0.125, 1.0))
    assert (frame.x.low, frame.x.high, frame.y.low, frame.y.high) == pytest.approx((5.5, 8.25, -0.125, 3.0))
    assert frame.zero_band is None
    assert [label for _, label in frame.flops_ticks(6)] == ["1 M", "10 M", "100 M"]


def test_modules_without_flops_stand_in_a_band_left_of_all_others(timed):
    frame = FlopsAndTime.around([timed(0, 1.0), timed(10**6, 1.0)], NO_ROOM)
    assert frame.x.low == frame.zero < frame.zero_band < 6
    assert [label for _, label in frame.flops_ticks(6)] == ["0", "1 M"]


def test_the_first_tick_may_stand_at_half_the_fewest_flops(timed):
    assert [label for _, label in FlopsAndTime.around([timed(2000, 1.0)], (0.5, 0, 0, 0)).flops_ticks(6)] == ["1 k"]


def test_times_have_no_prefix(timed):
    frame = FlopsAndTime.around([timed(10, 0.5), timed(10, 5000.0)], NO_ROOM)
    assert [label for _, label in frame.time_ticks((1,))] == ["1", "10", "100", "1000"]


def test_a_line_of_equal_rate_has_flops_over_seconds_at_both_ends(timed):
    frame = FlopsAndTime.around([timed(10**6, 0.1), timed(10**9, 10.0)], NO_ROOM)
    assert list(frame.rates()) == [8, 9, 10, 11, 12, 13]  # from 10^6 FLOPs in 10 ms to 10^9 in 0.1 ms
    for rate in frame.rates():
        x1, y1, x2, y2 = frame.rate_line(rate, frame.x.low)
        for flops, ms in ((10.0**x1, 10.0**y1), (10.0**x2, 10.0**y2)):
            assert flops / (ms / 1000) == pytest.approx(10.0**rate)
    # 10^10 FLOP/s: 10^6 FLOPs take 0.1 ms, and 10^8 take the 10 ms at which the picture ends.
    assert frame.rate_line(10, frame.x.low) == pytest.approx((6, -1, 8, 1))
    assert frame.rate_line(10, 7.0) == pytest.approx((7, 0, 8, 1))


def test_without_flops_there_are_no_rates(timed):
    assert list(FlopsAndTime.around([timed(0, 1.0), timed(0, 9.0)], (1.0, 1.0, 1.0, 1.0)).rates()) == []


def test_integers_beyond_every_float_have_their_place(timed):
    frame = FlopsAndTime.around([timed(10**400, 1.0), timed(10**399, 1.0)], NO_ROOM)
    assert frame.x.high == pytest.approx(400)
    assert list(frame.flops_ticks(6))[-1][1] == "1e+400"


def test_types_are_ranked_by_what_they_weigh_together():
    weights = [("a", 3.0), ("b", 2.0), ("c", 1.0), ("b", 2.0), ("", 9.0), ("d", math.pi)]
    assert heaviest_types(weights, 3) == ["b", "d", "a"]
