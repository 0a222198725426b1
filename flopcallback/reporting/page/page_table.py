"""The module table of the HTML page as data: its texts are made here, so that no script does arithmetic on counts.

A browser's integers are exact up to 2^53 only. So each column lists its distinct cells once, in order, and a row says
which of them is its own: the place in that list is what the page sorts by, exact for integers of any size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any, NamedTuple

from flopcallback.profile.columns import shares, shown_in
from flopcallback.profile.rows import ABOVE_PEAK, achieved_flops_per_s, share
from flopcallback.reporting.cells import bounds_of, cell_texts
from flopcallback.reporting.page.page_rows import page_rows
from flopcallback.reporting.units import percent, si

if TYPE_CHECKING:
    from flopcallback.profile.columns import Column, Shown
    from flopcallback.profile.model_profile import ModelProfile
    from flopcallback.profile.rows import ModuleRow
    from flopcallback.reporting.page.page_rows import PageRows

__all__ = ["table_data"]

ROWS_AT_FIRST, WORTH_OPENING = 40, 0.15
"""How long the table may be before the reader opens anything, and the share from which a row stands open."""


class _Cell(NamedTuple):
    """What stands in a cell; `exact` is the whole of it, for who opens the row.

    Attributes:
        order: what rows are sorted by; None stands last, whichever way.
        share: 0 to 1, the length of the cell's bar.
        percent: the same as text.
    """

    text: str = ""
    order: int | float | str | None = None
    exact: str = ""
    share: float | None = None
    percent: str = ""


def table_data(profile: ModelProfile, page: PageRows | None = None) -> dict[str, Any]:
    """Build the plain JSON that the page's script draws the table from.

    Columns that have nothing to say are left out.
    """
    page = page_rows(profile) if page is None else page
    rows, share_of = [each.row for each in page.rows], shares()
    columns = [_column_data(profile, rows, shown, share_of.get(shown.column.key)) for shown in shown_in("page")]
    columns = [column for column in columns if any(text for text, *_ in column["cells"])]
    return {
        "names": [each.name for each in page.rows],
        "parents": [each.parent for each in page.rows],
        "modules": len(profile.modules),
        "counts": {at: each.modules for at, each in enumerate(page.rows) if each.modules > 1},
        "runs": {at: each.run for at, each in enumerate(page.rows) if each.run},
        "notes": {index: row.note.strip("()") for index, row in enumerate(profile.modules) if row.note},
        "columns": columns,
        "sort": _sorted_by(columns),
        "open": _opened_at_first(profile, page),
    }


def _sorted_by(columns: Sequence[dict[str, Any]]) -> str | None:
    """Choose the column that the table is sorted by at first: time, or else FLOPs."""
    keys = {column["key"] for column in columns}
    return next((key for key in ("step_ms", "time", "flops") if key in keys), None)


def _opened_at_first(profile: ModelProfile, page: PageRows) -> list[int]:
    """Choose the rows that are open at first.

    They are the root, and what has most of the time, or of the FLOPs, as long as the table stays short.
    """
    weights = _weights(profile, page)
    opened, room = [], ROWS_AT_FIRST
    closed = [(0.0, 0)] if page.rows else []
    while closed:
        _, index = heappop(closed)
        inside = page.tree[index]
        if inside and (index == 0 or (len(inside) <= room and weights[index] >= WORTH_OPENING)):
            opened.append(index)
            room -= len(inside)
            for child in inside:
                heappush(closed, (-weights[child], child))
    return sorted(opened)


def _weights(profile: ModelProfile, page: PageRows) -> list[float]:
    """Return each row's share of the step's time, or else of the FLOPs."""
    rows = [each.row for each in page.rows]
    root = profile.root
    if root is not None and root.time is not None and root.time.total > 0:
        return [share(row.time.total if row.time else 0.0, root.time.total) or 0.0 for row in rows]
    return [part or 0.0 for part in profile.shares("flops", rows)]


def _column_data(
    profile: ModelProfile, rows: Sequence[ModuleRow], shown: Shown, share: Column | None
) -> dict[str, Any]:
    """Build a column: its cells, and the index of each row's cell.

    A cell is `[text, exact, bar in percent, share as text]`. Cells before `unsortable` have nothing to sort by.
    `share` is the column that says what part of the whole a cell is, where there is one.
    """
    cells = _rates(profile, rows) if shown.form == "rate" else _cells(profile, rows, shown, share)
    distinct = dict.fromkeys(cells)
    unsortable = [cell for cell in distinct if cell.order is None]
    # The orders of one column are all numbers or all texts.
    ordered: list[Any] = sorted(set(distinct).difference(unsortable), key=lambda cell: (cell.order, cell.text))
    places = {cell: place for place, cell in enumerate(unsortable + ordered)}
    return {
        "key": shown.key,
        "heading": shown.heading,
        "tip": shown.column.help,
        "rank": shown.place.rank,
        "bar": shown.place.style,
        "isText": shown.form == "text",
        "unsortable": len(unsortable),
        "cells": [_packed(cell) for cell in places],
        "of": [places[cell] for cell in cells],
    }


def _packed(cell: _Cell) -> list[Any]:
    """Write the cell as JSON, without empty ends.

    A share may be above 1 where two clocks disagree.
    """
    bar = None if cell.share is None else round(100 * min(max(cell.share, 0.0), 1.0), 2)
    packed = [cell.text, cell.exact, bar, cell.percent]
    while len(packed) > 1 and packed[-1] in ("", None):
        packed.pop()
    return packed


def _cells(profile: ModelProfile, rows: Sequence[ModuleRow], shown: Shown, share: Column | None) -> list[_Cell]:
    values = shown.column.values(profile, rows)
    if shown.form == "text":
        return [_Cell(value, value.casefold()) if value else _Cell() for value in values]
    texts = cell_texts(profile, rows, shown, values)
    exact = _exact(rows, shown, values, texts)
    parts = [None] * len(rows) if share is None else share.values(profile, rows)
    percents = [""] * len(rows) if share is None else list(map(percent, parts))
    cells = []
    for value, text, whole, part, of_call in zip(values, texts, exact, parts, percents, strict=True):
        if value is None or (isinstance(value, float) and not math.isfinite(value)):
            cells.append(_Cell())
        elif shown.place.hides_zero and not value:
            cells.append(_Cell("", 0, "0") if isinstance(value, int) else _Cell())
        elif share is None:
            cells.append(_Cell(text, value[0] if shown.form == "spread" else value, whole))
        else:
            bar = (part, of_call) if shown.place.style and part is not None else ()
            cells.append(_Cell(text, value, f"{whole} · {of_call}", *bar))
    return cells


def _exact(rows: Sequence[ModuleRow], shown: Shown, values: Sequence[Any], texts: Sequence[str]) -> list[str]:
    """Write what each cell says of its value in an open row."""
    if shown.form != "amount":
        return [f"{text} ms" if shown.form == "ms" else "" for text in texts]
    bounds = bounds_of(rows, shown.column)
    return ["" if value is None else f"{bound}{value:,}" for bound, value in zip(bounds, values, strict=True)]


def _rates(profile: ModelProfile, rows: Sequence[ModuleRow]) -> list[_Cell]:
    peak = profile.peak_flops_per_s
    done = [(row.flops or None, row.forward_ms) for row in rows]
    rates = [achieved_flops_per_s(flops, forward_ms) for flops, forward_ms in done]
    return [_Cell() if rate is None else _rate(rate, peak) for rate in rates]


def _rate(rate: float, peak: float | None) -> _Cell:
    if peak is not None and rate > peak:
        return _Cell(ABOVE_PEAK, None, f"above the device's peak of {si(peak, 'FLOP/s')}: not believable")
    of_peak = f" · {percent(rate / peak)} of peak" if peak else ""
    return _Cell(si(rate), rate, si(rate, "FLOP/s") + of_peak)
