from __future__ import annotations

import math

import pytest

from flopcallback.reporting.units import NOTHING, bar, display_width, milliseconds, percent, si


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (840, "840"),
        (999, "999"),
        (1000, "1.00 k"),
        (10_080, "10.1 k"),
        (274_656, "275 k"),
        (4_089_184_256, "4.09 G"),
        (2**63, "9.22 E"),
        (10**30, "1.00 Q"),
    ],
)
def test_a_count_has_three_digits_and_its_prefix(count, text):
    assert si(count) == text


def test_rounding_up_reaches_the_next_prefix():
    assert si(999_499) == "999 k"
    assert si(999_500) == "1.00 M"
    assert si(9_995) == "10.0 k"


def test_a_unit_stands_right_behind_its_prefix():
    assert si(4_089_184_256, "FLOPs") == "4.09 GFLOPs"
    assert si(840, "FLOPs") == "840 FLOPs"


def test_a_count_too_large_for_a_float_is_still_written():
    assert si(1234 * 10**400) == "1.23e+403"


@pytest.mark.parametrize("nothing", [None, math.nan])
def test_what_is_not_known_is_a_dash_everywhere(nothing):
    assert si(nothing) == milliseconds(nothing) == percent(nothing) == NOTHING
    assert bar(nothing, 8) == ""


@pytest.mark.parametrize(
    ("time", "text"), [(0.4117, "0.412"), (3.071, "3.07"), (38.06, "38.1"), (99.96, "100"), (1240.4, "1,240")]
)
def test_milliseconds_keep_about_three_digits(time, text):
    assert milliseconds(time) == text


def test_a_small_share_is_not_shown_as_none():
    assert percent(0.0) == "0.0 %"
    assert percent(0.0004) == "<0.1 %"
    assert percent(0.0006) == "0.1 %"
    assert percent(1.0) == "100.0 %"


def test_a_bar_is_as_long_as_its_share():
    assert bar(1.0, 8) == "█" * 8
    assert bar(0.5, 8) == "█" * 4
    assert bar(9 / 64, 8) == "█▏"
    assert bar(0.0, 8) == ""
    assert bar(1e-9, 8) == "▏"
    assert bar(1.7, 8) == "█" * 8


def test_wide_and_combining_characters_count_as_they_are_shown():
    assert display_width("conv") == 4
    assert display_width("卷积") == 4
    assert display_width("e\u0301") == 1
