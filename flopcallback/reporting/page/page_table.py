"""The module table of the HTML page as data: its texts are made here, so that no script does arithmetic on counts.

A browser's integers are exact up to 2^53 only. So each column lists its distinct cells once, in order, and a row says
which of them is its own: the place in that list is what the page sorts by, exact for integers of any size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any

from flopcallback.profile.rows import ABOVE_PEAK
from flopcallback.reporting.caption import at_least
from flopcallback.reporting.tree import leaf_name
from flopcallback.reporting.units import milliseconds, percent, si

if TYPE_CHECKING:
    from flopcallback.profile.model_profile import ModelProfile
    from flopcallback.profile.rows import ModuleRow

__all__ = ["table_data"]

IN_DETAILS = 9
"""The rank of columns that have no place in the table, however wide the page: they show when a row is opened."""

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


@dataclass(frozen=True, slots=True)
class _Column:
    """A narrow page goes without the columns of the highest `rank`; `bar` names what a bar's colour stands for."""

    key: str
    heading: str
    cell: Callable[[ModelProfile, ModuleRow], _Cell]
    rank: int = IN_DETAILS
    tip: str = ""
    bar: str = ""
    is_text: bool = False


def table_data(profile: ModelProfile) -> dict[str, Any]:
    """What the page's script draws the table from, as plain JSON; columns that have nothing to say are left out."""
    parents = _parents(profile)
    columns = [_column_data(profile, column) for column in _COLUMNS]
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


def _column_data(profile: ModelProfile, column: _Column) -> dict[str, Any]:
    """A column: its cells as `[text, exact, bar in percent]`, without empty ends, and for each row which one it has.

    Cells before `unsortable` have nothing to sort by.
    """
    cells = [column.cell(profile, row) for row in profile.modules]
    distinct = dict.fromkeys(cells)
    unsortable = [cell for cell in distinct if cell.order is None]
    # The orders of one column are all numbers or all texts.
    ordered: list[Any] = sorted(set(distinct).difference(unsortable), key=lambda cell: (cell.order, cell.text))
    places = {cell: place for place, cell in enumerate(unsortable + ordered)}
    return {
        "key": column.key,
        "heading": column.heading,
        "tip": column.tip,
        "rank": column.rank,
        "bar": column.bar,
        "isText": column.is_text,
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


def _text(text: str | None) -> _Cell:
    return _Cell(text, text.casefold()) if text else _Cell()


def _count(value: int) -> _Cell:
    return _Cell(f"{value:,}", value)


def _amount(value: int, unit: str = "") -> _Cell:
    return _Cell(si(value), value, f"{value:,} {unit}".rstrip())


def _params(profile: ModelProfile, row: ModuleRow) -> _Cell:
    exact = f"{row.params:,} · {percent(profile.params_share(row))}"
    return _Cell(si(row.params), row.params, exact) if row.params else _Cell("", 0, "0")


def _flops(profile: ModelProfile, row: ModuleRow) -> _Cell:
    part, bound = profile.flops_share(row), at_least(row.unknown_calls > 0)
    exact = f"{bound}{row.flops:,} · {percent(part)}"
    return _Cell(bound + si(row.flops), row.flops, exact, part)


def _own_flops(profile: ModelProfile, row: ModuleRow) -> _Cell:
    return _amount(row.own_flops)


def _time(profile: ModelProfile, row: ModuleRow) -> _Cell:
    if row.forward_ms is None or not math.isfinite(row.forward_ms):
        return _Cell()
    part = profile.latency_share(row)
    text = milliseconds(row.forward_ms)
    return _Cell(text, row.forward_ms, f"{text} ms · {percent(part)}", part)


def _quartiles(profile: ModelProfile, row: ModuleRow) -> _Cell:
    if row.forward_ms_spread is None:
        return _Cell()
    low, high = row.forward_ms_spread
    return _Cell(f"{milliseconds(low)} – {milliseconds(high)} ms", low)


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


def _intensity(profile: ModelProfile, row: ModuleRow) -> _Cell:
    value = profile.hw_flops_per_byte(row)
    return _Cell() if value is None or not row.hw_flops else _Cell(si(value), value)


def _unknown(profile: ModelProfile, row: ModuleRow) -> _Cell:
    return _count(row.unknown_calls) if row.unknown_calls else _Cell("", 0, "0")


_COLUMNS = (
    _Column("type", "type", lambda _, row: _text(row.type), 3, is_text=True),
    _Column("calls", "calls", lambda _, row: _count(row.calls), 4, "how often it ran in the counted call"),
    _Column("params", "params", _params, 2),
    _Column("flops", "FLOPs", _flops, 0, "under the convention below; the bar is the share of the call's", "flops"),
    _Column("own_flops", "own FLOPs", _own_flops, 6, "without those of modules inside"),
    _Column("hw_flops", "hardware FLOPs", lambda _, row: _amount(row.hw_flops), tip="2 per multiply-add"),
    _Column("time", "forward ms", _time, 0, "median; the bar is the share of the call's", "time"),
    _Column("quartiles", "quartiles", _quartiles, tip="of its time over the window"),
    _Column("rate", "FLOP/s", _rate, 1, "hardware FLOPs over the time of the forward"),
    _Column("intensity", "FLOPs/byte", _intensity, 4, "hardware FLOPs per byte that its operators read or write"),
    _Column("bytes", "bytes", lambda _, row: _amount(row.bytes), 7, "read and written by its operators"),
    _Column("activations", "activations", lambda _, row: _amount(row.activations), 7),
    _Column("trainable", "trainable", lambda _, row: _count(row.params_trainable), tip="parameters that require grad"),
    _Column("unknown", "unknown calls", _unknown, tip="of operators without a count"),
    _Column("output", "output", lambda _, row: _text(row.output_shape), 5, is_text=True),
)
