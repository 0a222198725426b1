"""The HTML page of a comparison of runs, in one file."""

from __future__ import annotations

import math
from typing import Any

from flopcallback.profile import metrics
from flopcallback.reporting.figures.axes import PALETTE
from flopcallback.reporting.figures.comparison_plot import curves, flops_against_latency, metric_and_compute
from flopcallback.reporting.page.environment import template
from flopcallback.reporting.text.comparison_table import footnotes, heading, run_cell
from flopcallback.runs.comparison import Comparison, RunRow

__all__ = ["comparison_page"]

# With more runs than this, points are small and have no number of their run: they would cover each other.
MOST_NUMBERED = 40

MEANINGS = {
    "FLOPs": "Of one forward of the counted batch, 2 per multiply-add.",
    "compute": "FLOPs of all training steps together: forward, backward, recomputation, "
    "optimizer; validation is not in it.",
    "MFU": "FLOPs per second without recomputation, over the device's peak; the median of what was logged.",
    "front": "The Pareto front of the metric against compute: whoever wants a better one has to spend more.",
    "fwd ms, step ms": "Medians over the measured window at the beginning of the training, on the device.",
}


def comparison_page(comparison: Comparison) -> str:
    """Render a comparison as one HTML file that needs no network.

    It has the table of runs, which sorts; the metric against compute with its Pareto front; the course of the metric;
    and FLOPs against latency. Each figure names the runs that are missing in it because they did not log its numbers.
    All names are escaped.
    """
    return template("comparison.html.jinja").render(
        comparison=comparison,
        palette=PALETTE,
        columns=[(heading(comparison, column), _is_wide(column)) for column in comparison.columns],
        rows=[_row(comparison, row, place) for place, row in enumerate(comparison.rows)],
        front=[row.name for row in comparison.rows if row.is_on_front],
        front_plot=metric_and_compute(comparison),
        curve_plot=curves(comparison),
        latency_plot=flops_against_latency(comparison),
        footnotes=footnotes(comparison, front_mark="front:"),
        meanings=MEANINGS,
        is_numbered=len(comparison.rows) <= MOST_NUMBERED,
    )


def _is_wide(column: str) -> bool:
    """Return whether a phone has no room for the column.

    There, a tap on the run shows it.
    """
    metric = metrics.by_column().get(column)
    return metric is not None and not metric.is_narrow


def _row(comparison: Comparison, row: RunRow, place: int) -> dict[str, Any]:
    return {
        "name": row.name,
        "place": row.place,
        "is_on_front": row.is_on_front,
        # Colours go to the first runs of the table; the others are grey and have their number.
        "colour": place if place < len(PALETTE) else None,
        "cells": [_cell(row, column) for column in comparison.columns if column != "run"],
    }


def _cell(row: RunRow, column: str) -> dict[str, Any]:
    """Return a cell's text, exact figure and sort key."""
    value = row.value(column)
    is_number = value is not None and math.isfinite(value)
    return {
        "text": run_cell(row, column),
        "exact": f"{value:,}" if value is not None else "",
        "is_wide": _is_wide(column),
        "sort": repr(float(value)) if value is not None and is_number else "",
    }
