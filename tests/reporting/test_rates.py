"""FLOP/s in classes."""

from __future__ import annotations

import dataclasses

import pytest

from flopcallback.reporting.figures.rates import RATE_COLOURS, RateScale, weighted_median


@pytest.mark.parametrize(
    ("values", "median"),
    [
        ([], None),
        ([(5.0, 0.0)], None),
        ([(5.0, 2.0)], 5.0),
        ([(1.0, 1.0), (2.0, 1.0), (3.0, 1.0)], 2.0),
        ([(3.0, 1.0), (1.0, 7.0), (2.0, 2.0)], 1.0),
        ([(3.0, 7.0), (1.0, 1.0), (2.0, 2.0)], 3.0),
    ],
)
def test_the_median_is_of_the_weight(values, median):
    assert weighted_median(values) == median


def test_a_known_peak_is_what_rates_are_divided_by(lenet):
    known = dataclasses.replace(lenet, config={**lenet.config, "flops.peak_tflops": 0.002})
    scale = RateScale.of(known, [(5.0, 1.0)])
    assert (scale.reference, scale.is_peak) == (2e9, True)
    assert [scale.place(part * 2e9) for part in (0.005, 0.01, 0.04, 0.1, 0.3, 0.5, 2)] == [0, 1, 1, 2, 3, 4, 4]
    assert scale.title == "FLOP/s, of the device's peak of 2.00 GFLOP/s"


def test_else_it_is_the_models_median(lenet):
    scale = RateScale.of(lenet, [(7e6, 1.0), (3e6, 5.0)])
    assert (scale.reference, scale.is_peak) == (3e6, False)
    assert [scale.place(part * 3e6) for part in (0.05, 0.2, 1, 3, 20)] == [0, 1, 2, 3, 4]
    assert scale.place(0.0) is scale.place(None) is None
    assert RateScale.of(lenet, []) is None


@pytest.mark.parametrize("is_peak", [True, False])
def test_every_class_has_its_colour_and_its_words(is_peak):
    scale = RateScale(1.0, is_peak)
    assert len(scale.labels) == len(RATE_COLOURS) == len(scale.limits) + 1
    assert len(set(scale.labels)) == len(scale.labels)


@pytest.mark.parametrize("colour", RATE_COLOURS)
def test_text_on_a_class_can_be_read(colour):
    """WCAG 2.1, 1.4.3: a contrast of at least 4.5 to the dark or the white that the style sheet puts on it."""

    def luminance(code):
        parts = [int(code[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        red, green, blue = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    own = luminance(colour)
    on_white, on_dark = 1.05 / (own + 0.05), (own + 0.05) / (luminance("#1f2933") + 0.05)
    is_first_or_last = colour in (RATE_COLOURS[0], RATE_COLOURS[-1])
    assert (on_white if is_first_or_last else on_dark) >= 4.5
