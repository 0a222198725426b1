"""The text of a cell: how the value of a column is written in every table of modules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flopcallback.profile.rows import ABOVE_PEAK
from flopcallback.reporting.caption import at_least
from flopcallback.reporting.units import NOTHING, bar, milliseconds, one_line, percent, si

if TYPE_CHECKING:
    from collections.abc import Callable

    from flopcallback.profile.columns import Column, Form, Shown
    from flopcallback.profile.model_profile import ModelProfile
    from flopcallback.profile.rows import ModuleRow

__all__ = ["bound_of", "cell_text"]

BAR_WIDTH = 8

_WRITTEN: dict[Form, Callable[[Any], str]] = {
    "text": one_line,
    "count": "{:,}".format,
    "amount": si,
    "ms": milliseconds,
    "spread": lambda ends: f"{milliseconds(ends[0])} – {milliseconds(ends[1])} ms",
    "share": percent,
    "bar": lambda share: bar(share, BAR_WIDTH),
    "rate": si,
    "ratio": si,
}


def cell_text(profile: ModelProfile, row: ModuleRow, shown: Shown) -> str:
    """Write a row's value in a column; empty where there is nothing to say."""
    column, value = shown.column, shown.column.value(profile, row)
    if column.form == "rate" and profile.is_above_peak(row):
        return ABOVE_PEAK
    if column.form == "rate" and row.hw_flops and row.forward_ms is not None:
        return si(value)  # No number, and not nothing, where a time is no number above 0.
    if not value and (shown.place.hides_zero or column.form == "rate"):
        return ""
    if value is None:
        return NOTHING if column.of and getattr(row, column.of) is not None else ""
    return bound_of(row, column) + _WRITTEN[column.form](value)


def bound_of(row: ModuleRow, column: Column) -> str:
    """Write `">= "` where the column's figure of the row is a lower bound, else nothing."""
    return at_least(column.is_bound and row.unknown_calls > 0)
