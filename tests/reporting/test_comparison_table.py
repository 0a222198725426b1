"""What a terminal and a spreadsheet get of a comparison."""

from __future__ import annotations

import csv
import io
import math

import pytest

from flopcallback.reporting.comparison import compare_runs
from flopcallback.reporting.text.comparison_table import comparison_csv, rich_comparison
from flopcallback.runs.record import COMPUTE, RunRecord

LARGE = 10**21 + 7
"""More than a float keeps exactly."""


def run(name, figures, **config):
    return RunRecord(name, f"runs/{name}", figures, config={f"flops.{key}": value for key, value in config.items()})


def text_of(comparison, width=80):
    from rich.console import Console

    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(rich_comparison(comparison))
    return capture.get()


def cells(text, name):
    line = next(line for line in text.splitlines() if f" {name} " in f"{line} ")
    return line.replace(name, "").split()


FULL = {
    "model/params": 7_000,
    "flops/forward": 11_000_000,
    "latency/forward_ms": 1.5,
    "latency/step_ms": 4.25,
    "perf/mfu_pct": 37.25,
    COMPUTE: 13_000_000_000,
    "val/loss": 0.5,
}


def test_a_row_has_the_figures_in_their_units():
    text = text_of(compare_runs([run("net", FULL)], metric="val/loss"))
    heads = text.splitlines()[0]
    assert heads.split() == ["run", "params", "FLOPs", "fwd", "ms", "step", "ms", "MFU", "%", "compute", "val/loss"]
    figures = ["*", "7.00", "k", "11.0", "M", "1.50", "4.25", "37.2", "13.0", "G", "0.5"]
    assert cells(text, "net") == figures


@pytest.mark.parametrize("missing", sorted(FULL))
def test_what_is_missing_is_a_dash_and_an_empty_cell(missing):
    figures = {name: value for name, value in FULL.items() if name != missing}
    comparison = compare_runs([run("whole", FULL), run("less", figures)], metric="val/loss")
    shown = cells(text_of(comparison), "less")
    assert shown.count("-") == 1
    assert "0" not in shown
    assert "- not logged by that run" in text_of(comparison)
    row = next(row for row in csv.DictReader(io.StringIO(comparison_csv(comparison))) if row["run"] == "less")
    assert row[missing] == ""
    assert all(row[name] for name in figures)


def test_where_nothing_is_missing_no_footnote_says_so():
    assert "not logged" not in text_of(compare_runs([run("net", FULL)], metric="val/loss"))


def test_marks_say_what_is_a_lower_bound_or_estimated_or_on_the_front():
    low = run("low", {**FULL, "val/loss": 0.4}, is_lower_bound=True)
    guess = run("guess", {**FULL, "compute/estimated_pct": 3.5})
    text = text_of(compare_runs([low, guess], metric="val/loss"))
    assert cells(text, "low")[3:6] == [">=", "11.0", "M"]
    assert cells(text, "low")[9:12] == [">=", "13.0", "G"]
    assert cells(text, "guess")[7:9] == ["~13.0", "G"]
    assert "~ partly estimated, up to 3.5 % of it" in text
    assert ">= a lower bound" in text
    assert "* no other run has as good a val/loss (lower is better) for as little compute" in text
    assert [line.split()[0] for line in text.splitlines()[2:4]] == ["*", "guess"]


def test_without_a_metric_there_is_no_column_for_it_and_no_front():
    text = text_of(compare_runs([run("net", FULL)]))
    assert "val/loss" not in text
    assert "*" not in text
    assert comparison_csv(compare_runs([run("net", FULL)])).splitlines()[1].endswith(",false,")


def test_the_csv_has_exact_integers_under_the_names_that_were_logged():
    figures = {COMPUTE: LARGE, "compute/samples_total": 12, "val/loss": math.nan}
    (row,) = csv.DictReader(io.StringIO(comparison_csv(compare_runs([run('a, "b"', figures)], metric="val/loss"))))
    assert row["run"] == 'a, "b"'
    assert row["place"] == 'runs/a, "b"'
    assert row[COMPUTE] == str(LARGE)
    assert row["compute/samples_total"] == "12"
    assert row["val/loss"] == "nan"
    assert row["flops/forward"] == ""
    assert row["on_front"] == "false"


@pytest.mark.parametrize("name", ["net", "a-sweep/with-long-names/width-128-depth-12-lr-0.001", "很长的名字" * 8])
def test_the_table_fits_80_columns(name):
    from rich.cells import cell_len

    widest = {**FULL, COMPUTE: 999_400_000, "latency/step_ms": 12_345.6, "compute/estimated_pct": 1.0}
    comparison = compare_runs([run(name, widest, is_lower_bound=True)], metric="val/loss")
    assert max(map(cell_len, text_of(comparison).splitlines())) <= 80
    assert ">= ~999 M" in text_of(comparison)


def test_a_long_metric_is_folded_and_not_cut():
    metric = "validation_of_the_second_data_set/balanced_accuracy"
    text = text_of(compare_runs([run("net", {**FULL, metric: 0.25})], metric=metric))
    assert max(map(len, text.splitlines())) <= 80
    column = "".join(line[-30:].split()[-1] for line in text.splitlines()[:8] if line.strip() and "─" not in line)
    assert "accuracy" in column.replace(" ", "")


def test_a_name_with_markup_stands_as_it_is():
    assert "[red]net[/red]" in text_of(compare_runs([run("[red]net[/red]", FULL)]))
