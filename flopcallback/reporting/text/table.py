"""The module tree of a profile as a table: for terminals (rich), and in plain monospace for everything else."""

from __future__ import annotations

from dataclasses import dataclass
from textwrap import wrap
from typing import TYPE_CHECKING, Literal

from flopcallback.profile.rows import ABOVE_PEAK, share
from flopcallback.reporting.caption import at_least, footer, headline
from flopcallback.reporting.tree import lines
from flopcallback.reporting.units import bar, display_width, milliseconds, percent, si

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import RenderableType

    from flopcallback.profile.model_profile import ModelProfile
    from flopcallback.reporting.tree import Line, Node

__all__ = ["legend", "node_cells", "node_name", "one_line", "plain_table", "rich_table", "rich_text"]

BAR_WIDTH = 8
LONGEST_TYPE = 32
NARROWEST_NAME, NARROWEST_NOTES = 12, 80
ESSENTIAL = 3
"""For columns up to this rank a narrow terminal shortens long names; the others are there where names are whole."""


@dataclass(frozen=True, slots=True)
class _Column:
    """A key of `node_cells` and how it stands; a narrow terminal goes without columns of high `rank`."""

    key: str
    heading: str
    right: bool = True
    rank: int = 0
    style: str = ""


_COLUMNS = (
    _Column("module", "module", right=False),
    _Column("type", "type", right=False, rank=5, style="dim"),
    _Column("calls", "calls", rank=7),
    _Column("params", "params", rank=4),
    _Column("params %", "%", rank=8, style="dim"),
    _Column("FLOPs", "FLOPs", style="bold"),
    _Column("FLOPs %", "%"),
    _Column("FLOPs bar", "", right=False, rank=1, style="cyan"),
    _Column("forward ms", "forward ms", style="bold"),
    _Column("time %", "%", rank=2),
    _Column("time bar", "", right=False, rank=3, style="magenta"),
    _Column("hw FLOP/s", "hw FLOP/s", rank=6),
    _Column("output", "output", right=False, rank=9, style="dim"),
)


def node_cells(profile: ModelProfile, node: Node) -> dict[str, str]:
    """The texts of a node by column; empty where there is nothing to say."""
    flops_share = share(node.flops, profile.forward_flops)
    params_share = share(node.params, profile.root.params if profile.root else None)
    cells = {
        "type": _type(node),
        "calls": "" if node.calls is None else f"{node.calls:,}",
        "params": "" if node.params is None else si(node.params),
        "params %": percent(params_share) if node.params and params_share is not None else "",
        "FLOPs": at_least(node.unknown_calls > 0) + si(node.flops),
        "FLOPs %": percent(flops_share),
        "FLOPs bar": bar(flops_share, BAR_WIDTH),
        "output": one_line(node.output_shape or ""),
    }
    if node.forward_ms is None:
        return cells | dict.fromkeys(("forward ms", "time %", "time bar", "hw FLOP/s"), "")
    time_share = share(node.forward_ms, profile.forward_ms)
    return cells | {
        "forward ms": milliseconds(node.forward_ms),
        "time %": percent(time_share),
        "time bar": bar(time_share, BAR_WIDTH),
        "hw FLOP/s": _rate(profile, node),
    }


def _rate(profile: ModelProfile, node: Node) -> str:
    if not node.hw_flops:
        return ""
    return ABOVE_PEAK if profile.is_above_peak(node) else si(profile.achieved_flops_per_s(node))


def _type(node: Node) -> str:
    name = one_line(node.type)
    short = name if len(name) <= LONGEST_TYPE else f"{name[: LONGEST_TYPE - 1]}…"
    return f"{node.modules:,} × {short}" if node.modules > 1 and short else short


def node_name(name: str, node: Node, hidden: int = 0) -> str:
    """The name with the node's note, and with the number of modules below it that are not shown (`[+12]`)."""
    inside = f" [+{hidden:,}]" if hidden else ""
    note = f" ({node.note.strip('()')})" if node.note else ""
    return one_line(name + inside + note)


def legend(nodes: Iterable[Node], hidden: int = 0) -> list[str]:
    """What the marks in a table mean, in one line; none where it has none. `hidden` is a number that stands in it."""
    folded = (node.path.split(".") for node in nodes if node.modules > 1 and not node.label.startswith("…"))
    fold = next((part for parts in folded for part in parts if " … " in part), "")
    inside = f"[+{hidden:,}]: {hidden:,} modules inside are not shown" if hidden else ""
    marks = [inside, f"{fold}: identical modules, added up" if fold else ""]
    return ["; ".join(filter(None, marks))] if any(marks) else []


def one_line(text: str) -> str:
    """The text without line breaks, which would tear a table row apart."""
    return " ".join(text.splitlines())


def _table(profile: ModelProfile, shown: Sequence[Line]) -> tuple[list[_Column], list[dict[str, str]]]:
    """The columns that have something to say about the lines, and the texts of the lines."""
    rows = [
        {"module": line.guide + node_name(line.node.label, line.node, line.hidden), **node_cells(profile, line.node)}
        for line in shown
    ]
    return [column for column in _COLUMNS if any(row[column.key] for row in rows)], rows


def _width(column: _Column, rows: Iterable[dict[str, str]]) -> int:
    return max(display_width(text) for text in [column.heading, *(row[column.key] for row in rows)])


def plain_table(
    profile: ModelProfile, *, width: int | None = None, max_depth: int | None = None, max_rows: int = 60
) -> str:
    """The module tree in monospace: numbers to the right, bars, `>=` where the FLOPs are a lower bound.

    Args:
        profile: what to show.
        width: columns as they fit into so many characters; None for all.
        max_depth: levels below the model; None for as many as fit into `max_rows`.
        max_rows: how many modules to show at most, where `max_depth` is None. Where even the first level is too
            long, its modules with the fewest FLOPs share one row.
    """
    tree = lines(profile, max_depth=max_depth, max_rows=max_rows)
    columns, rows = _table(profile, tree)
    if not rows:
        return "\n".join([headline(profile), *footer(profile)])
    if width is not None:
        columns = _fitting(columns, rows, width)
        longest = _name_width(columns, rows, width)
        rows = [{**row, "module": _cut(row["module"], longest)} for row in rows]
    widths = {column.key: _width(column, rows) for column in columns}
    texts = [{column.key: column.heading for column in columns}, *rows]
    written = ["  ".join(_padded(row[column.key], widths[column.key], column) for column in columns) for row in texts]
    rule = "─" * max(map(display_width, written))
    head, *body = (line.rstrip() for line in written)
    notes = _wrapped(_notes(profile, tree), max(NARROWEST_NOTES, width or len(rule)))
    return "\n".join([headline(profile), "", head, rule, *body, rule, *notes])


def _notes(profile: ModelProfile, tree: Sequence[Line]) -> list[str]:
    hidden = next((line.hidden for line in tree if line.hidden), 0)
    return [*legend((line.node for line in tree), hidden), *footer(profile)]


def _wrapped(notes: Iterable[str], width: int) -> list[str]:
    """Each note in as many lines as it needs, all but its first set in; what has no space in it is never cut."""
    form = {"subsequent_indent": "  ", "break_long_words": False, "break_on_hyphens": False}
    return [line for note in notes for line in wrap(note, width, **form)]  # type: ignore[arg-type]


def _padded(cell: str, width: int, column: _Column) -> str:
    blank = " " * (width - display_width(cell))
    return blank + cell if column.right else cell + blank


def rich_table(
    profile: ModelProfile, *, width: int = 100, max_depth: int | None = None, max_rows: int = 60
) -> RenderableType:
    """The module tree for `rich.console.Console.print`: columns as they fit into `width`, rows as in `plain_table`."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    tree = lines(profile, max_depth=max_depth, max_rows=max_rows)
    columns, rows = _table(profile, tree)
    columns = _fitting(columns, rows, width)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False, header_style="bold")
    longest = _name_width(columns, rows, width)
    for column in columns:
        table.add_column(
            Text(column.heading),
            justify="right" if column.right else "left",
            style=column.style,
            max_width=longest if column.key == "module" else None,
            no_wrap=True,
            overflow="ellipsis",
        )
    for row in rows:
        table.add_row(*(Text(row[column.key]) for column in columns))
    shown: list[RenderableType] = [Text(headline(profile), style="bold"), ""]
    shown += [table, ""] if rows else []
    for note in _notes(profile, tree):
        shown.append(Text("\n".join(_wrapped([note], width)), style="yellow" if note.startswith("unknown") else "dim"))
    return Group(*shown)


def _fitting(columns: list[_Column], rows: Sequence[dict[str, str]], width: int) -> list[_Column]:
    """Those of rank 0, and of the others, the lowest ranks first, what there is room for.

    For the essential ones a name may be cut down to a third of the width.
    """
    names, others = columns[:1], columns[1:]
    whole = max((_width(column, rows) for column in names), default=0)
    room = {column.key: 2 + _width(column, rows) for column in others}
    kept = {column.key for column in others if column.rank == 0}
    for column in sorted(others, key=lambda column: column.rank):
        name = whole if column.rank > ESSENTIAL else min(whole, max(NARROWEST_NAME, width // 3))
        if name + sum(room[key] for key in {*kept, column.key}) <= width:
            kept.add(column.key)
    return names + [column for column in others if column.key in kept]


def _name_width(columns: Sequence[_Column], rows: Sequence[dict[str, str]], width: int) -> int:
    """What the other columns leave to the names."""
    return max(NARROWEST_NAME, width - sum(_width(column, rows) + 2 for column in columns if column.key != "module"))


def _cut(text: str, width: int) -> str:
    """The text, its end cut off where it is wider than that."""
    if display_width(text) <= width:
        return text
    while display_width(text) > width - 1:
        text = text[:-1]
    return f"{text}…"


def rich_text(
    profile: ModelProfile,
    *,
    width: int = 100,
    color_system: Literal["standard", "256", "truecolor"] | None = None,
    max_depth: int | None = None,
    max_rows: int = 60,
) -> str:
    """`rich_table` as a string, without escape sequences unless `color_system` asks for colours."""
    from rich.console import Console

    console = Console(width=width, color_system=color_system, force_terminal=color_system is not None)
    with console.capture() as capture:
        console.print(rich_table(profile, width=width, max_depth=max_depth, max_rows=max_rows))
    return "\n".join(line.rstrip() for line in capture.get().splitlines())
