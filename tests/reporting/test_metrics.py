"""A metric is one row of `profile/metrics.py`: comparison, CSV and caption have it; no other file spells its name."""

from __future__ import annotations

import ast
import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest

from flopcallback.profile import metrics
from flopcallback.profile.metrics import METRICS
from flopcallback.reporting.caption import footer
from flopcallback.reporting.text.comparison_table import comparison_csv, heading, run_cell
from flopcallback.runs.comparison import compare_runs
from flopcallback.runs.record import RunRecord

ROOT = Path(__file__).parents[2]


def run(name, *values):
    logged = {"perf/samples_per_joule": values} if values else {}
    figures = {key: numbers[-1] for key, numbers in logged.items()}
    return RunRecord(name, name, figures, {key: tuple(enumerate(numbers)) for key, numbers in logged.items()})


def test_a_new_metric_is_in_the_comparison_and_its_csv(joules_metric):
    comparison = compare_runs([run("less", 2, 3, 17), run("none"), run("more", 7, 11, 5)], sort="efficiency")
    assert [row.name for row in comparison.rows] == ["more", "less", "none"]  # of this more is better
    assert heading(comparison, "efficiency") == "per joule"
    assert [run_cell(row, "efficiency") for row in comparison.rows] == ["7", "3", "-"]  # medians
    rows = csv.DictReader(io.StringIO(comparison_csv(comparison)))
    assert [row["perf/samples_per_joule"] for row in rows] == ["7", "3", ""]


def test_a_new_metric_is_in_the_caption(joules_metric, lenet):
    trained = replace(lenet, training={"perf/samples_per_joule": 23})
    assert "at its end: 23 samples/s for each watt" in footer(trained)


def test_every_metric_has_one_row():
    declared = {value for value in vars(metrics).values() if isinstance(value, metrics.Metric)}
    assert declared | set(metrics.TRAIN_STEP_PHASES.values()) == set(METRICS)
    assert len({metric.name for metric in METRICS}) == len(METRICS)


def strings(file):
    """The strings that a file's code uses: all but docstrings."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    said = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in said
    }


@pytest.mark.parametrize("folder", ["flopcallback", "integrations"])
def test_no_other_file_spells_the_name_of_a_metric(folder):
    names = {metric.name for metric in METRICS}
    found = {
        (file.name, name)
        for file in (ROOT / folder).rglob("*.py")
        if file != ROOT / "flopcallback" / "profile" / "metrics.py"
        for text in strings(file)
        for name in names
        if name in text
    }
    assert found == set()


def test_the_search_for_names_finds_one(tmp_path):
    (tmp_path / "a.py").write_text('"""Not perf/mfu_pct."""\nprint(f"{1}perf/hfu_pct")\n')
    assert strings(tmp_path / "a.py") == {"perf/hfu_pct"}
