"""The columns of the tables of modules and of operators: one row for each, read by everything that shows a table.

A new column is a row here and the line that computes it: `compute`, or an attribute of `ModuleRow` with the column's
name. A column is computed as a whole, for all rows at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from flopcallback.profile.roofline import bound_by
from flopcallback.profile.rows import ABOVE_PEAK, ModuleRow, OperatorRow, share

__all__ = ["COLUMNS", "OPERATOR_COLUMNS", "Column", "Place", "Shown", "counts", "shares", "shown_in", "text_columns"]

Form = Literal["text", "count", "amount", "ms", "spread", "share", "bar", "rate", "ratio"]
"""What a value is, and so how it is written: an `amount` has an SI prefix, a `spread` is two times, a `rate` FLOP/s."""


@dataclass(frozen=True, slots=True)
class Place:
    """How a column stands in one output.

    Attributes:
        rank: a narrow output leaves out the columns of the highest rank. On the page, 9 is shown only when a row is
            opened; in Markdown, 1 is left out of the short table; of a diff, 1 stands only in the JSON.
        key: the output's name for the column, where it has one of its own.
        heading: likewise.
        order: columns stand by their order, and those of one order as in `COLUMNS`.
        style: rich's style in the terminal; on the page, the colour of the bar that shows the column's share.
        hides_zero: whether the cell of a zero is empty.
    """

    rank: int = 0
    key: str = ""
    heading: str = ""
    order: int = 0
    style: str = ""
    hides_zero: bool = False


@dataclass(frozen=True, slots=True)
class Column:
    """One column.

    Attributes:
        key: its name in records.
        heading: what stands above it.
        form: what its values are.
        compute: gives the values, from the profile and the rows; None where a row has an attribute named `key`.
        adds_up: whether it is a count that is summed over modules in one line; what is computed follows from sums.
        of: for a share, the key of the column that it is a share of.
        help: what the heading does not say.
        is_record: whether it is a column of records, data frames and trackers' tables.
        is_own: whether it is known of a module's own operators, without the modules inside.
        is_bound: whether it is shown with `>=` where operators without a count are in the row.
        lead: its place among the first columns of a table that has room for a few; 0 where it is none of them.
        terminal: how it stands there; a number is a place of that rank, and None is no place. So are `markdown`, `page`
            and `diff`.
    """

    key: str
    heading: str
    form: Form
    compute: Callable[[Any, Any], Sequence[Any]] | None = None
    adds_up: bool = False
    of: str = ""
    help: str = ""
    is_record: bool = True
    is_own: bool = False
    is_bound: bool = False
    lead: int = 0
    terminal: Place | int | None = None
    markdown: Place | int | None = None
    page: Place | int | None = None
    diff: Place | int | None = None

    def values(self, profile: Any, rows: Sequence[ModuleRow | OperatorRow]) -> Sequence[Any]:
        """Give the values of rows of a `ModelProfile`, whose file imports this one."""
        return [getattr(row, self.key) for row in rows] if self.compute is None else self.compute(profile, rows)


class Shown(NamedTuple):
    """A column as it stands in one output.

    Attributes:
        column: the column.
        place: how it stands there.
        key: the output's name for it.
        heading: what stands above it there.
        form: what its values are.
    """

    column: Column
    place: Place
    key: str
    heading: str
    form: Form


def shown_in(output: Literal["terminal", "markdown", "page", "diff"]) -> list[Shown]:
    """Find the columns that an output shows, in its order."""
    shown = []
    for column in COLUMNS:
        place = getattr(column, output)
        if place is not None:
            place = Place(place) if isinstance(place, int) else place
            shown.append(Shown(column, place, place.key or column.key, place.heading or column.heading, column.form))
    return sorted(shown, key=lambda each: each.place.order)


def shares() -> dict[str, Column]:
    """Find the columns of shares, by the key of the column they divide."""
    return {column.of: column for column in COLUMNS if column.of}


def counts() -> list[str]:
    """List the fields of a row that are summed over modules in one line."""
    return [column.key for column in COLUMNS if column.adds_up]


def text_columns() -> list[Column]:
    """List the columns of both tables that hold text; all others hold numbers."""
    return [column for column in (*COLUMNS, *OPERATOR_COLUMNS) if column.form == "text"]


def _shares(figure: str) -> Callable[[Any, Any], Sequence[Any]]:
    return lambda profile, rows: profile.shares(figure, rows)


def _achieved(profile: Any, rows: Sequence[ModuleRow]) -> list[Any]:
    return [None if profile.is_above_peak(row) else profile.achieved_flops_per_s(row) for row in rows]


def _notes(profile: Any, rows: Sequence[ModuleRow]) -> list[str]:
    containers = {row.parent for row in profile.modules}
    bounds = ["" if row.path in containers else _bound(profile, row) for row in rows]
    peaks = [ABOVE_PEAK if profile.is_above_peak(row) else bound for row, bound in zip(rows, bounds, strict=True)]
    return [", ".join(filter(None, (row.note, peak))) for row, peak in zip(rows, peaks, strict=True)]


def _bound(profile: Any, row: ModuleRow) -> str:
    """Say what bounds the rate of a module that was timed; empty if that is not known."""
    if row.forward_ms is None:
        return ""
    rates = {"peak": profile.peak_flops_per_s, "bandwidth": profile.peak_bytes_per_s}
    bound = bound_by(row.flops, row.bytes, row.forward_ms, **rates)
    return f"bound by {bound}" if bound else ""


def _ends(rows: Sequence[ModuleRow], which: int) -> list[float | None]:
    return [row.forward_ms_spread and row.forward_ms_spread[which] for row in rows]


def _of_step(rows: Sequence[ModuleRow], phase: str) -> list[Any]:
    return [row.step and getattr(row.step, phase) for row in rows]


def _of_time(rows: Sequence[ModuleRow], phase: str) -> list[float | None]:
    return [None if row.time is None else getattr(row.time, phase) for row in rows]


def _own_times(profile: Any, rows: Sequence[ModuleRow]) -> list[float | None]:
    own = profile.own_times()
    return [own[row.path].total if row.path in own else None for row in rows]


def _time_shares(profile: Any, rows: Sequence[ModuleRow]) -> list[float | None]:
    whole = None if profile.root is None or profile.root.time is None else profile.root.time.total
    return [None if row.time is None else share(row.time.total, whole) for row in rows]


# fmt: off
COLUMNS: tuple[Column, ...] = (
    Column("path", "module", "text", lead=1, terminal=0, markdown=0),
    Column("parent", "parent", "text"),
    Column("depth", "depth", "count"),
    Column("type", "type", "text", lead=8, terminal=Place(5, style="dim"), markdown=1, page=4),
    Column("calls", "calls", "count", adds_up=True, lead=9, help="how often it ran in the counted call",
           terminal=7, markdown=1, page=Place(7, order=4)),
    Column("params", "params", "amount", adds_up=True, lead=10,
           terminal=4, markdown=1, page=Place(6, order=4, hides_zero=True), diff=Place(order=1)),
    Column("params_trainable", "trainable", "count", adds_up=True, help="parameters that require grad",
           page=Place(9, key="trainable", order=5)),
    Column("params_share", "%", "share", _shares("params"), of="params",
           terminal=Place(8, style="dim", hides_zero=True)),
    Column("flops", "FLOPs", "amount", adds_up=True, is_own=True, is_bound=True, lead=4,
           help="of the forward, 2 per multiply-add; the bar is the share of the call's",
           terminal=Place(style="bold"), markdown=0, page=Place(style="flops"), diff=0),
    Column("own_flops", "own FLOPs", "amount", adds_up=True, help="without those of modules inside", page=9),
    Column("macs", "MACs", "amount", adds_up=True, is_own=True, is_bound=True,
           help="fvcore's count: 1 per multiply-add, norms and resampling included", page=9),
    Column("flops_share", "%", "share", _shares("flops"), of="flops", is_own=True, lead=5,
           terminal=0, markdown=0),
    Column("flops_bar", "", "bar", _shares("flops"), is_own=True, is_record=False,
           terminal=Place(1, style="cyan")),
    Column("step_flops", "step FLOPs", "amount", lambda _, rows: _of_step(rows, "total"),
           help="of a whole training step", page=7),
    Column("step_backward_flops", "backward FLOPs", "amount", lambda _, rows: _of_step(rows, "backward"),
           page=8),
    Column("step_recompute_flops", "recomputed FLOPs", "amount", lambda _, rows: _of_step(rows, "recompute")),
    Column("step_without_grad_flops", "FLOPs without grad", "amount", lambda _, rows: _of_step(rows, "without_grad")),
    Column("activations", "activations", "amount", adds_up=True, page=Place(9, order=4), diff=Place(1, order=1)),
    Column("bytes", "bytes", "amount", adds_up=True, help="read and written by its operators",
           page=Place(8, order=4), diff=Place(order=1)),
    Column("forward_ms", "forward ms", "ms", is_own=True, lead=6, help="median; the bar is the share of the call's",
           terminal=Place(style="bold"), markdown=0, page=Place(2, key="time", order=2, style="time"),
           diff=Place(order=3)),
    Column("forward_ms_low", "low ms", "ms", lambda _, rows: _ends(rows, 0)),
    Column("forward_ms_high", "high ms", "ms", lambda _, rows: _ends(rows, 1)),
    Column("forward_ms_spread", "quartiles", "spread", is_record=False, help="of its time over the window",
           page=Place(9, key="quartiles", order=2)),
    Column("latency_share", "%", "share", _shares("forward_ms"), of="forward_ms",
           is_own=True, lead=7, terminal=2, markdown=Place(heading="% of time")),
    Column("latency_bar", "", "bar", _shares("forward_ms"), is_own=True, is_record=False,
           terminal=Place(3, style="magenta")),
    Column("step_ms", "step ms", "ms", lambda _, rows: _of_time(rows, "total"), lead=2,
           help="of a whole training step, with the modules inside; the bar is the share of the step's",
           page=Place(order=1, style="time")),
    Column("step_own_ms", "own ms", "ms", _own_times, help="of a whole training step, without the modules inside",
           page=Place(6, order=2)),
    Column("step_time_share", "%", "share", _time_shares, of="step_ms", lead=3),
    Column("step_backward_ms", "backward ms", "ms", lambda _, rows: _of_time(rows, "backward"),
           help="of its backward in a training step", page=Place(3, order=2, hides_zero=True)),
    Column("step_recompute_ms", "recomputed ms", "ms", lambda _, rows: _of_time(rows, "recompute"),
           page=Place(9, order=2, hides_zero=True)),
    Column("achieved_flops_per_s", "FLOP/s", "rate", _achieved, is_own=True,
           help="over the time of the forward",
           terminal=6, markdown=0, page=Place(1, key="rate", order=3)),
    Column("flops_per_byte", "FLOPs/byte", "ratio", help="per byte that its operators read or write",
           page=Place(8, key="intensity", order=4, hides_zero=True)),
    Column("unknown_calls", "unknown calls", "count", adds_up=True, help="of operators without a count",
           page=Place(9, key="unknown", order=5, hides_zero=True), diff=Place(1, order=2)),
    Column("output_shape", "output", "text",
           terminal=Place(9, style="dim"), markdown=1, page=Place(8, key="output", order=5)),
    Column("note", "note", "text", _notes),
)
# fmt: on
"""Of the table of modules, in the order of records."""

OPERATOR_COLUMNS: tuple[Column, ...] = (
    Column("operator", "operator", "text", lead=1),
    Column("family", "family", "text"),
    Column("calls", "calls", "count", lead=7),
    Column("flops", "FLOPs", "amount", lead=3),
    Column("macs", "MACs", "amount"),
    Column("flops_share", "%", "share", _shares("flops"), of="flops", lead=4),
    Column("status", "status", "text"),
    Column("reason", "reason", "text", lambda profile, rows: [profile.unknown.get(row.operator) for row in rows]),
)
"""Of the table of operators, in the order of records."""
