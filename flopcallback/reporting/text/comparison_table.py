"""Runs held against each other, as a table for terminals and as CSV."""

from __future__ import annotations

import csv
import io
import math
from typing import TYPE_CHECKING

from flopcallback.reporting.caption import at_least
from flopcallback.reporting.text.table import one_line
from flopcallback.reporting.units import milliseconds, si
from flopcallback.runs.comparison import COLUMNS, Comparison, RunRow

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["MISSING", "comparison_csv", "footnotes", "heading", "rich_comparison", "shown"]

MISSING = "-"
"""What stands in the terminal and on the page where a run has no figure; the CSV has nothing there."""

FRONT, ESTIMATED = "*", "~"

_HEADINGS = {
    "params": "params",
    "flops": "FLOPs",
    "forward_ms": "fwd ms",
    "step_ms": "step ms",
    "mfu": "MFU %",
    "compute": "compute",
}

_CSV = (
    *("model/params", "flops/forward", "flops/forward_per_sample", "flops/train_step_hw"),
    *("latency/forward_ms", "latency/step_ms", "perf/step_time_ms", "perf/samples_per_sec", "perf/hw_tflops_per_sec"),
    *("perf/mfu_pct", "perf/hfu_pct", "compute/hw_flops_total", "compute/samples_total", "compute/tokens_total"),
    "compute/estimated_pct",
)


def rich_comparison(comparison: Comparison) -> RenderableType:
    """The table and what its marks mean, for `rich.console.Console.print`; it fits 80 columns."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, header_style="bold")
    columns = [column for column in COLUMNS if column != "metric" or comparison.metric]
    if any(row.is_on_front for row in comparison.rows):
        table.add_column()
    for column in columns:
        is_text = column == "run"
        table.add_column(
            Text(heading(comparison, column)),
            justify="left" if is_text else "right",
            no_wrap=column not in ("run", "metric"),
            overflow="fold",
            min_width=9 if is_text else None,
        )
    for row in comparison.rows:
        cells = [one_line(shown(row, column)) for column in columns]
        if len(table.columns) > len(columns):
            cells.insert(0, FRONT if row.is_on_front else "")
        table.add_row(*map(Text, cells), style="bold" if row.is_on_front else "")
    notes = [*map(Text, footnotes(comparison)), *(Text(note, style="yellow") for note in comparison.notes)]
    return Group(table, "", *notes)


def heading(comparison: Comparison, column: str) -> str:
    """What stands above a column of the table."""
    return comparison.metric if column == "metric" else _HEADINGS.get(column, column)


def shown(row: RunRow, column: str) -> str:
    """What the table says of a run in one of its columns, with the marks that `footnotes` explains."""
    if column == "run":
        return row.name
    value = row.value(column)
    if value is None:
        return MISSING
    if not math.isfinite(value):
        return f"{value:g}"
    if column in ("forward_ms", "step_ms"):
        return milliseconds(value)
    if column == "mfu":
        return f"{value:.1f}"
    if column == "metric":
        return f"{value:.4g}"
    bound = at_least(row.is_lower_bound and column in ("flops", "compute"))
    return f"{bound}{ESTIMATED if column == 'compute' and row.estimated_pct > 0 else ''}{si(value)}"


def footnotes(comparison: Comparison, *, front_mark: str = FRONT) -> list[str]:
    """What the words and marks in the table mean, as far as there are any."""
    rows, lines = comparison.rows, []
    if any(row.is_on_front for row in rows):
        better = "lower" if comparison.mode == "min" else "higher"
        reached = f"as good a {comparison.metric} ({better} is better)"
        lines.append(f"{front_mark} no other run has {reached} for as little compute")
    lines.append("compute: hardware FLOPs that the training spent; MFU: median over the training")
    if estimated := [row.estimated_pct for row in rows if row.estimated_pct > 0]:
        lines.append(f"{ESTIMATED} partly estimated from the size of the input, up to {max(estimated):.3g} % of it")
    if any(row.is_lower_bound for row in rows):
        lines.append(">= a lower bound: operators without a count are in it")
    columns = [column for column in COLUMNS if column != "run" and (column != "metric" or comparison.metric)]
    if any(row.value(column) is None for row in rows for column in columns):
        lines.append(f"{MISSING} not logged by that run")
    return lines


def comparison_csv(comparison: Comparison) -> str:
    """A line per run under the names that were logged: integers exact, and nothing where something is missing."""
    names = [*_CSV, comparison.metric] if comparison.metric else list(_CSV)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["run", "place", *names, "flops.is_lower_bound", "on_front"])
    for row in comparison.rows:
        values = [row.metric if name == comparison.metric else row.figures.get(name) for name in names]
        marks = [row.is_lower_bound, row.is_on_front if comparison.metric else None]
        writer.writerow(
            [row.name, row.place, *values, *(None if mark is None else str(mark).lower() for mark in marks)]
        )
    return out.getvalue()
