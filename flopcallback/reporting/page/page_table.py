"""The module table of the HTML page as data: its texts are made here, so that no script does arithmetic on counts.

A browser's integers are exact up to 2^53 only. So each column lists its distinct cells once, in order, and a row says
which of them is its own: the place in that list is what the page sorts by, exact for integers of any size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any

from flopcallback.profile.columns import share_of, shown_in
from flopcallback.profile.rows import ABOVE_PEAK
from flopcallback.reporting.cells import bound_of, cell_text
from flopcallback.reporting.tree import leaf_name
from flopcallback.reporting.units import percent, si

if TYPE_CHECKING:
    from flopcallback.profile.columns import Column, Shown
    from flopcallback.profile.model_profile import ModelProfile
    from flopcallback.profile.rows import ModuleRow

__all__ = ["table_data"]

ROWS_AT_FIRST, WORTH_OPENING = 40, 0.15
"""How long the table may be before the reader opens anything, and the share of FLOPs from which a row stands open."""


@dataclass(frozen=True, slots=True)
class _Cell:
    """What stands in a cell; `exact` is the whole of it, for who opens the row.

    Attributes:
        order: what rows are sorted by; None stands last, whichever way.
        share: 0 to 1, the length of the cell's bar.
    """

    text: str = ""
    order: int | float | str | None = None
    exact: str = ""
    share: float | None = None


def table_data(profile: ModelProfile) -> dict[str, Any]:
    """What the page's script draws the table from, as plain JSON; columns that have nothing to say are left out."""
    parents = _parents(profile)
    columns = [_column_data(profile, shown) for shown in shown_in("page")]
    return {
        "names": _names(profile, parents),
        "parents": parents,
        "notes": {index: row.note.strip("()") for index, row in enumerate(profile.modules) if row.note},
        "columns": [column for column in columns if any(text for text, *_ in column["cells"])],
        "open": _opened_at_first(profile, parents),
    }


def _parents(profile: ModelProfile) -> list[int]:
    """For each row the place of the one that contains it, an earlier one; the root, its own, where no other does."""
    places: dict[str | None, int] = {}
    parents = []
    for index, row in enumerate(profile.modules):
        continues = not row.parent or row.path.startswith(f"{row.parent}.")
        parents.append(places.get(row.parent, 0) if continues else 0)
        places[row.path] = index
    return parents


def _names(profile: ModelProfile, parents: Sequence[int]) -> list[str]:
    """Names within the rows that contain them; the page puts the whole ones together again."""
    rows = profile.modules
    below = zip(rows[1:], parents[1:], strict=True)
    return [profile.name, *(leaf_name(row) if rows[parent].path == row.parent else row.path for row, parent in below)]


def _opened_at_first(profile: ModelProfile, parents: Sequence[int]) -> list[int]:
    """The root, and what has most of the FLOPs, as long as the table stays short."""
    children: list[list[int]] = [[] for _ in parents]
    for index, parent in enumerate(parents[1:], start=1):
        children[parent].append(index)
    opened, room = [], ROWS_AT_FIRST
    closed = [(0, 0)] if children else []
    while closed:
        _, index = heappop(closed)
        inside, part = children[index], profile.flops_share(profile.modules[index]) or 0.0
        if inside and (index == 0 or (len(inside) <= room and part >= WORTH_OPENING)):
            opened.append(index)
            room -= len(inside)
            for child in inside:
                heappush(closed, (-profile.modules[child].flops, child))
    return sorted(opened)


def _column_data(profile: ModelProfile, shown: Shown) -> dict[str, Any]:
    """A column: its cells as `[text, exact, bar in percent]`, without empty ends, and for each row which one it has.

    Cells before `unsortable` have nothing to sort by.
    """
    share = share_of(shown.column)
    cells = [_cell(profile, row, shown, share) for row in profile.modules]
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
    """The cell as `[text, exact, bar in percent, share as text]`, without empty ends."""
    share = "" if cell.share is None else percent(cell.share)
    return _shortest([cell.text, cell.exact, _bar_length(cell.share), share])


def _bar_length(share: float | None) -> float | None:
    """In percent; a share may be above 1 where two clocks disagree."""
    return None if share is None else round(100 * min(max(share, 0.0), 1.0), 2)


def _shortest(cell: list[Any]) -> list[Any]:
    while len(cell) > 1 and cell[-1] in ("", None):
        cell.pop()
    return cell


def _cell(profile: ModelProfile, row: ModuleRow, shown: Shown, share: Column | None) -> _Cell:
    """A cell; `share` is the column that says what part of the whole it is, where there is one."""
    if shown.form == "rate":
        return _rate(profile, row)
    value = shown.column.value(profile, row)
    if value in (None, "") or (isinstance(value, float) and not math.isfinite(value)):
        return _Cell()
    if shown.form == "text":
        return _Cell(value, value.casefold())
    if shown.place.hides_zero and not value:
        return _Cell("", 0, "0") if isinstance(value, int) else _Cell()
    text = cell_text(profile, row, shown)
    if shown.form == "spread":
        return _Cell(text, value[0])
    exact = f"{text} ms" if shown.form == "ms" else ""
    if shown.form == "amount":
        exact = f"{bound_of(row, shown.column)}{value:,}"
    if share is None:
        return _Cell(text, value, exact)
    part = share.value(profile, row)
    return _Cell(text, value, f"{exact} · {percent(part)}", part if shown.place.style else None)


def _rate(profile: ModelProfile, row: ModuleRow) -> _Cell:
    rate = profile.achieved_flops_per_s(row)
    if rate is None or not row.hw_flops:
        return _Cell()
    if profile.is_above_peak(row):
        peak = si(profile.peak_flops_per_s, "FLOP/s")
        return _Cell(ABOVE_PEAK, None, f"above the device's peak of {peak}: not believable")
    return _Cell(si(rate), rate, si(rate, "FLOP/s") + _of_peak(profile, rate))


def _of_peak(profile: ModelProfile, rate: float) -> str:
    peak = profile.peak_flops_per_s
    return f" · {percent(rate / peak)} of peak" if peak else ""
