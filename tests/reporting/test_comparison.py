"""Which runs are on the front, what compute stands behind a metric, which metric is meant: numbers made by hand."""

from __future__ import annotations

import math
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flopcallback.reporting.comparison import (
    compare_runs,
    direction_of,
    metric_against_compute,
    pareto_front,
    shared_metrics,
)
from flopcallback.runs.record import COMPUTE, RunRecord

NAN = math.nan


def run(name="a", *, figures=None, series=None, config=None):
    series = {key: tuple(points) for key, points in (series or {}).items()}
    last = {key: points[-1][1] for key, points in series.items()}
    return RunRecord(name, f"runs/{name}", {**(figures or {}), **last}, series, config or {})


@pytest.mark.parametrize(
    ("points", "mode", "front"),
    [
        ([(1, 9.0), (2, 5.0), (3, 7.0), (4, 4.0)], "min", {0, 1, 3}),
        ([(1, 9.0), (2, 5.0), (3, 7.0), (4, 4.0)], "max", {0}),
        ([(4, 0.9), (2, 0.7), (3, 0.6)], "max", {0, 1}),
        ([(2, 5.0), (2, 4.0)], "min", {1}),
        ([(2, 5.0), (3, 5.0)], "min", {0}),
        ([(2, 5.0), (2, 5.0)], "min", {0, 1}),
        ([(None, 1.0), (2, 5.0), (1, None)], "min", {1}),
        ([(1, NAN), (2, 5.0), (math.inf, 1.0)], "min", {1}),
        ([], "min", set()),
        ([(10**30 + 1, 3.0), (10**30, 3.0)], "min", {1}),
    ],
)
def test_the_front_is_what_nobody_beats(points, mode, front):
    assert pareto_front(points, mode) == front


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5))), st.sampled_from(["min", "max"]))
def test_the_front_is_what_the_definition_says(points, mode):
    sign = 1 if mode == "min" else -1

    def beats(one, other):
        pairs = list(zip((one[0], sign * one[1]), (other[0], sign * other[1]), strict=True))
        return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)

    expected = {place for place, point in enumerate(points) if not any(beats(other, point) for other in points)}
    assert pareto_front(points, mode) == expected


def test_a_metric_stands_at_the_compute_that_was_logged_last_at_its_step_or_before():
    spent = [(10, 100), (20, 200), (30, 300)]
    loss = [(5, 9.0), (10, 8.0), (19, 7.0), (20, 6.0), (35, 5.0)]
    record = run(series={COMPUTE: spent, "val/loss": loss})
    assert metric_against_compute(record, "val/loss") == [(100, 8.0), (100, 7.0), (200, 6.0), (300, 5.0)]


def test_of_two_computes_at_one_step_the_later_counts():
    record = run(series={COMPUTE: [(10, 100), (10, 150)], "val/loss": [(10, 8.0)]})
    assert metric_against_compute(record, "val/loss") == [(150, 8.0)]


def test_a_diverged_loss_leaves_a_gap_and_no_front():
    record = run(series={COMPUTE: [(1, 7), (2, 14), (3, 21)], "val/loss": [(1, 2.0), (2, NAN), (3, math.inf)]})
    (row,) = compare_runs([record], metric="val/loss").rows
    assert row.curve == ((7, 2.0),)
    assert row.metric == math.inf
    assert not row.is_on_front


def test_what_a_run_did_not_log_is_missing_and_never_0():
    loss = run("loss alone", series={"val/loss": [(1, 2.0)]})
    compute = run("compute alone", series={COMPUTE: [(1, 7)]})
    rows = {row.name: row for row in compare_runs([loss, compute], metric="val/loss").rows}
    assert (rows["loss alone"].compute, rows["loss alone"].metric) == (None, 2.0)
    assert (rows["compute alone"].compute, rows["compute alone"].metric) == (7, None)
    assert [rows[name].curve for name in rows] == [(), ()]
    assert not any(row.is_on_front for row in rows.values())


def test_throughput_is_the_median_over_the_training_and_not_the_last_window():
    record = run(series={"perf/mfu_pct": [(1, 31.0), (2, 37.0), (3, 5.0)]})
    assert compare_runs([record]).rows[0].figures["perf/mfu_pct"] == 31.0


@pytest.mark.parametrize(
    ("sort", "order"),
    [("metric", "cab"), ("compute", "bca"), ("mfu", "acb"), ("run", "abc"), ("params", "abc"), ("flops", "cab")],
)
def test_rows_are_sorted_with_the_best_first_and_what_is_missing_last(sort, order):
    figures = {
        "a": {"acc": 0.7, COMPUTE: 30, "perf/mfu_pct": 50.0, "flops/forward": 5},
        "b": {"acc": NAN, COMPUTE: 10, "flops/forward": 7},
        "c": {"acc": 0.9, COMPUTE: 20, "perf/mfu_pct": 40.0, "flops/forward": 3},
    }
    rows = compare_runs([run(name, figures=each) for name, each in figures.items()], metric="acc", sort=sort).rows
    assert "".join(row.name for row in rows) == order


@pytest.mark.parametrize(
    ("metric", "direction"),
    [
        ("val/loss", "min"),
        ("val_acc", "max"),
        ("valAccuracy", "max"),
        ("test/top1_acc5", "max"),
        ("loss/total", "min"),
        ("f1", "max"),
        ("val/r2", "max"),
        ("eval-perplexity", "min"),
        ("lr", None),
        ("epoch", None),
        ("glossary", None),
        ("", None),
    ],
)
def test_a_name_says_what_is_better(metric, direction):
    assert direction_of(metric) == direction


def test_the_metrics_that_runs_share_are_the_users_and_those_that_can_be_better():
    one = run(series={"val/loss": [(1, 1.0)], "val/acc": [(1, 1.0)], "epoch": [(1, 1)], "perf/mfu_pct": [(1, 1.0)]})
    other = run(series={"val/loss": [(1, 1.0)], "train/loss": [(1, 1.0)], "epoch": [(1, 1)]})
    without = run(series={COMPUTE: [(1, 1)]})
    assert shared_metrics([one, other, without]) == ["val/loss"]
    assert shared_metrics([without]) == []


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"metric": "val/los"}, "no run has a metric 'val/los'; there are: odd, val/loss"),
        ({"metric": "odd"}, "mode is not clear from the name 'odd'; give min or max"),
        ({"metric": "val/loss", "mode": "best"}, "mode is 'best'; it is min or max"),
        ({"sort": "size"}, "sort is 'size'; it is one of run, params, flops, "),
    ],
)
def test_what_cannot_be_compared_is_said(arguments, complaint):
    record = run(series={"val/loss": [(1, 1.0)], "odd": [(1, 1.0)], "flops/forward": [(1, 1)]})
    with pytest.raises(ValueError, match=complaint):
        compare_runs([record], **arguments)


def test_a_mode_that_is_given_counts_more_than_the_name():
    runs = [run(str(loss), figures={"loss": loss, COMPUTE: 1}) for loss in (1.0, 2.0)]
    assert [row.name for row in compare_runs(runs, metric="loss", mode="max").rows if row.is_on_front] == ["2.0"]


def test_batches_that_differ_are_said():
    one = run(figures={"flops/forward": 8 * 7, "flops/forward_per_sample": 7}, config={"flops.elementwise": True})
    other = run(figures={"flops/forward": 4 * 14, "flops/forward_per_sample": 14}, config={"flops.elementwise": False})
    assert compare_runs([one, other]).notes == (
        "FLOPs and times are of the counted batch, whose size differs: 4, 8 samples",
    )
    assert compare_runs([one, one]).notes == ()


def test_runs_of_one_name_are_told_apart_by_where_they_are():
    places = ["x/first/net", "x/second/net", "store.db/abc123", "y/first/other"]
    runs = [RunRecord(name, place) for name, place in zip(("net", "net", "net", "other"), places, strict=True)]
    names = {row.place: row.name for row in compare_runs(runs).rows}
    assert names == dict(zip(places, ["first/net", "second/net", "net (abc123)", "other"], strict=True))


@pytest.mark.parametrize(("phase", "prefix"), [*product(["", "validate/"], ["", "mine/", "val"])])
def test_a_prefix_is_found_and_taken_off_what_is_ours_alone(phase, prefix):
    ours = f"{prefix}{phase}flops/forward"
    record = run(
        figures={ours: 7, f"{prefix}loss": 1.0}, config={f"{prefix}{phase}flops.dtype": "half", f"{prefix}lr": 0.1}
    )
    assert record.prefixes() == [prefix]
    bare = record.without_prefix(prefix)
    assert bare.figures == {f"{phase}flops/forward": 7, f"{prefix}loss": 1.0}
    assert bare.own_metrics() == set()
    if not phase:
        assert bare.config == {"flops.dtype": "half", f"{prefix}lr": 0.1}
