"""Comparisons of runs whose numbers are as large, as small or as odd as a record may have them."""

from __future__ import annotations

import io
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flopcallback.profile.numbers import LARGEST
from flopcallback.reporting.comparison import compare_runs
from flopcallback.reporting.figures.comparison_plot import curves, metric_and_compute
from flopcallback.reporting.page.comparison_page import comparison_page
from flopcallback.reporting.text.comparison_table import comparison_csv, rich_comparison
from flopcallback.runs.record import COMPUTE, RunRecord

NAMES = ["flops/forward", "flops/forward_per_sample", "latency/forward_ms", "perf/mfu_pct", "model/params"]
NAMES += ["compute/estimated_pct", "val/loss", COMPUTE]

NUMBERS = st.sampled_from(
    [
        0,
        1,
        -1,
        0.5,
        -0.5,
        1.7e308,
        -1.7e308,
        5e-324,
        1e-300,
        LARGEST,
        -LARGEST,
        math.nan,
        math.inf,
        -math.inf,
        2**53 + 1,
    ]
)


def may_be(name, number):
    """The number, or its magnitude for a total, which is never below 0."""
    return abs(number) if name.endswith("_total") and number < 0 else number


RUNS = st.builds(
    lambda figures, points: RunRecord(
        "net",
        "net",
        {name: may_be(name, number) for name, number in figures.items()},
        {name: tuple(enumerate(may_be(name, number) for number in each)) for name, each in points.items()},
    ),
    st.dictionaries(st.sampled_from(NAMES), NUMBERS),
    st.dictionaries(st.sampled_from(NAMES), st.lists(NUMBERS, max_size=4)),
)


@settings(max_examples=150)
@given(st.lists(RUNS, min_size=1, max_size=4))
def test_any_numbers_can_be_shown(runs):
    from rich.console import Console

    has_metric = any("val/loss" in run.figures for run in runs)
    comparison = compare_runs(runs, metric="val/loss" if has_metric else "")
    assert comparison_page(comparison).startswith("<!doctype html>")
    assert len(comparison_csv(comparison).splitlines()) == 1 + len(runs)
    Console(file=io.StringIO()).print(rich_comparison(comparison))


@pytest.mark.parametrize("value", [1e201, -1e201, 1e-201, math.inf, math.nan, LARGEST])
def test_what_is_out_of_all_proportion_is_missing_in_the_figures(value):
    def run(name, loss):
        return RunRecord(name, name, {COMPUTE: 7, "val/loss": loss}, {COMPUTE: ((1, 7),), "val/loss": ((1, loss),)})

    comparison = compare_runs([run("good", 0.5), run("odd", value)], metric="val/loss")
    for plot in (metric_and_compute(comparison), curves(comparison)):
        assert plot.missing == ["odd"]
        assert len(plot.points) == 1
