"""The texts of cells: how the value of a column is written in every table of modules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flopcallback.profile.rows import ABOVE_PEAK
from flopcallback.reporting.caption import at_least
from flopcallback.reporting.units import NOTHING, bar, milliseconds, one_line, percent, si

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from flopcallback.profile.columns import Column, Form, Shown
    from flopcallback.profile.model_profile import ModelProfile
    from flopcallback.profile.rows import ModuleRow

__all__ = ["bounds_of", "cell_texts"]

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


def cell_texts(profile: ModelProfile, rows: Sequence[ModuleRow], shown: Shown, values: Sequence[Any]) -> list[str]:
    """Write the values of a column, empty where there is nothing to say."""
    if shown.form == "rate":
        return [_rate(profile, row, value) for row, value in zip(rows, values, strict=True)]
    column, write, hides_zero = shown.column, _WRITTEN[shown.form], shown.place.hides_zero
    texts = []
    for row, value, bound in zip(rows, values, bounds_of(rows, column), strict=True):
        if value is not None and (value or not hides_zero):
            texts.append(bound + write(value))
        else:
            is_partial = column.of and getattr(row, column.of, None) is not None
            texts.append(NOTHING if is_partial and not hides_zero else "")
    return texts


def _rate(profile: ModelProfile, row: ModuleRow, rate: float | None) -> str:
    if profile.is_above_peak(row):
        return ABOVE_PEAK
    # No number, and not nothing, where a time is no number above 0.
    return si(rate) if rate or (row.flops and row.forward_ms is not None) else ""


def bounds_of(rows: Sequence[ModuleRow], column: Column) -> list[str]:
    """Write `">= "` for rows whose figure is a lower bound, else nothing."""
    return [at_least(row.unknown_calls > 0) for row in rows] if column.is_bound else [""] * len(rows)
