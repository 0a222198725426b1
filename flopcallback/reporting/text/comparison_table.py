"""A comparison of runs as a table for terminals and as CSV."""

from __future__ import annotations

import csv
import io
import math
from typing import TYPE_CHECKING

from flopcallback.profile import metrics
from flopcallback.profile.numbers import bound_sign
from flopcallback.reporting.caption import bound_of
from flopcallback.reporting.units import milliseconds, one_line, si, visible
from flopcallback.runs.comparison import Comparison, RunRow

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["MISSING", "comparison_csv", "footnotes", "heading", "rich_comparison", "run_cell"]

MISSING = "-"
"""The cell of a missing figure in the terminal and on the page; the CSV has an empty cell."""

# Marks that `footnotes` explains.
FRONT, ESTIMATED = "*", "~"

# Spreadsheets run a cell that begins so, in both widths (https://owasp.org/www-community/attacks/CSV_Injection).
FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")


def rich_comparison(comparison: Comparison) -> RenderableType:
    """Build the table and its footnotes for `rich.console.Console.print`.

    It fits 80 columns.
    """
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, header_style="bold")
    columns = comparison.columns
    if any(row.is_on_front for row in comparison.rows):
        table.add_column()
    for column in columns:
        # Names of runs and of the metric can be long, so only they may take several lines.
        is_text = column == "run"
        table.add_column(
            Text(one_line(heading(comparison, column))),
            justify="left" if is_text else "right",
            no_wrap=column not in ("run", "metric"),
            overflow="fold",
            min_width=9 if is_text else None,
        )
    for row in comparison.rows:
        cells = [one_line(run_cell(row, column)) for column in columns]
        # The first column, without a heading, marks the front.
        if len(table.columns) > len(columns):
            cells.insert(0, FRONT if row.is_on_front else "")
        table.add_row(*map(Text, cells), style="bold" if row.is_on_front else "")
    notes = [Text(one_line(note)) for note in footnotes(comparison)]
    notes += [Text(one_line(note), style="yellow") for note in comparison.notes]
    return Group(table, "", *notes)


def heading(comparison: Comparison, column: str) -> str:
    """Return the heading of a column."""
    if column == "metric":
        return comparison.metric
    return "run" if column == "run" else metrics.by_column()[column].heading


def run_cell(row: RunRow, column: str) -> str:
    """Write a run's cell in one of the columns, with its marks."""
    if column == "run":
        return row.name
    value = row.value(column)
    if value is None:
        return MISSING
    if not math.isfinite(value):
        return f"{value:g}"
    if column == "metric":
        return f"{value:.4g}"
    metric = metrics.by_column()[column]
    if metric.unit == "ms":
        return milliseconds(value)
    if metric.unit == "%":
        return f"{value:.1f}"
    bound = bound_sign(is_lower=row.is_lower_bound, is_upper=row.is_upper_bound) if metric.is_bound else ""
    if metric == metrics.COMPUTE:
        return f"{bound_of(row.figures) or bound}{ESTIMATED if row.estimated_pct > 0 else ''}{si(value)}"
    return f"{bound}{si(value)}"


def footnotes(comparison: Comparison, *, front_mark: str = FRONT) -> list[str]:
    """Explain the terms and marks that the table has."""
    rows, lines = comparison.rows, []
    if any(row.is_on_front for row in rows):
        better = "lower" if comparison.mode == "min" else "higher"
        as_good = f"as good a {comparison.metric} ({better} is better)"
        lines.append(f"{front_mark} no other run has {as_good} for as little compute")
    lines.append("compute: FLOPs that the training spent; MFU: median over the training")
    if estimated := [row.estimated_pct for row in rows if row.estimated_pct > 0]:
        errors = [row.figures.get(metrics.ERROR.name, 0.0) for row in rows]
        error = f", off by at most {max(errors):.3g} %" if any(errors) else ""
        lines.append(f"{ESTIMATED} partly estimated, up to {max(estimated):.3g} % of it{error}")
    bounds = {bound_of(row.figures) for row in rows}
    if any(row.is_lower_bound for row in rows) or ">= " in bounds:
        lines.append(">= a lower bound: operators without a count are in it")
    if any(row.is_upper_bound for row in rows) or "<= " in bounds:
        lines.append("<= an upper bound: operators whose work depends on data count as their maximum")
    if any(row.is_lower_bound and row.is_upper_bound for row in rows) or "<> " in bounds:
        lines.append("<> both: it may be too low or too high")
    figures = [column for column in comparison.columns if column != "run"]
    if any(row.value(column) is None for row in rows for column in figures):
        lines.append(f"{MISSING} not logged by that run")
    return lines


def comparison_csv(comparison: Comparison) -> str:
    """Write one line per run under the logged names.

    Integers are exact; a missing figure is an empty cell. A text that a spreadsheet would take for a formula has an
    apostrophe in front; control characters are written as escapes.
    """
    names = [metric.name for metric in metrics.METRICS if metric.compared]
    names += [comparison.metric] if comparison.metric else []
    out = io.StringIO()
    # The default of csv is \r\n.
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(map(_cell, ["run", "place", *names, "flops.is_lower_bound", "on_front"]))
    for row in comparison.rows:
        values = [row.metric if name == comparison.metric else row.figures.get(name) for name in names]
        marks = [row.is_lower_bound, row.is_on_front if comparison.metric else None]
        writer.writerow(
            [
                _cell(row.name),
                _cell(row.place),
                *values,
                *(None if mark is None else str(mark).lower() for mark in marks),
            ]
        )
    return out.getvalue()


def _cell(text: str) -> str:
    """Return a text that a spreadsheet shows and does not run."""
    # Control characters too: a spreadsheet passes over a tab or a carriage return in front, and Python's csv leaves the
    # latter unquoted (3.11), which splits the row.
    shown = visible(text)
    # Some pass over blanks in front.
    return f"'{shown}" if shown.lstrip().startswith(FORMULA) else shown
