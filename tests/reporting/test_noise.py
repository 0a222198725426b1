"""How far times can be relied on: what is said of the same steps on quiet and on busy machines."""

from __future__ import annotations

from dataclasses import replace

import pytest

from flopcallback.profile.rows import LatencySummary
from flopcallback.reporting.caption import footer
from flopcallback.reporting.noise import lost_share, noise_in_words, observed_in_words

QUIET = LatencySummary(
    40.0, 100.0, 20, "CPU clock", forward_spread=(39.0, 41.0), step_spread=(98.0, 103.0), cpu_share=0.97
)


@pytest.mark.parametrize(
    ("changes", "text", "lost"),
    [
        ({}, "", 0),
        ({"step_spread": (80.0, 160.0)}, "noisy machine: times ±40 %", 0.4),
        ({"cpu_share": 0.6}, "noisy machine: a processor for 60 % of the steps' time", 0.4),
        (
            {"step_spread": (80.0, 160.0), "cpu_share": 0.25},
            "noisy machine: times ±40 %, a processor for 25 % of the steps' time",
            0.75,
        ),
        # A thread that feeds a device waits for it.
        ({"cpu_share": 0.6, "how": "events on cuda:0"}, "", 0),
        ({"step_spread": None, "cpu_share": None}, "", 0),
        # Where steps were not timed, forwards tell.
        ({"step_ms": None, "forward_spread": (36.0, 44.0)}, "noisy machine: times ±10 %", 0.1),
    ],
)
def test_noise_is_said_where_quartiles_or_processors_say_so(changes, text, lost):
    latency = replace(QUIET, **changes)
    assert noise_in_words(latency) == text
    assert lost_share(latency) == pytest.approx(lost)


def test_without_times_there_is_no_noise():
    assert (noise_in_words(None), lost_share(None), observed_in_words(None)) == ("", 0, "")


def test_the_footer_has_quartiles_and_processors(lenet):
    lines = footer(lenet.with_latency(QUIET))
    times = "latency: forward 40.0 ms (39.0 to 41.0), step 100 ms (98.0 to 103), medians (quartiles) of 20 steps"
    assert f"{times}, CPU clock, a processor for 97.0 % of the time" in lines
    assert not any("noisy" in line for line in lines)
    assert "noisy machine: times ±40 %" in footer(lenet.with_latency(replace(QUIET, step_spread=(80.0, 160.0))))


@pytest.mark.parametrize(
    ("ms", "steps", "text"),
    [
        (
            125.0,
            5,
            "5 steps whose operators were recorded, 125 ms, 25.0 ms (25.0 %) more than the 100 ms of steps",
        ),
        (
            90.0,
            1,
            "one step whose operators were recorded, 90.0 ms, 10.0 ms (10.0 %) less than the 100 ms of steps",
        ),
        (101.0, 2, "from 2 steps whose operators were recorded, 101 ms, as long as the 100 ms of steps"),
    ],
)
def test_recorded_steps_are_compared_with_those_that_nothing_stood_in(lenet, ms, steps, text):
    latency = replace(QUIET, observed_ms=ms, observed_steps=steps)
    assert any(f"{text} that nothing stood in" in line for line in footer(lenet.with_latency(latency)))
