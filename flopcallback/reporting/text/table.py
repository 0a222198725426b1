"""The module tree of a profile as a table: for terminals (rich), and in plain monospace for everything else."""

from __future__ import annotations

from textwrap import wrap
from typing import TYPE_CHECKING, Literal

from flopcallback.profile.columns import shown_in
from flopcallback.reporting.caption import footer, headline
from flopcallback.reporting.cells import cell_text
from flopcallback.reporting.tree import lines
from flopcallback.reporting.units import display_width, one_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import RenderableType

    from flopcallback.profile.columns import Shown
    from flopcallback.profile.model_profile import ModelProfile
    from flopcallback.reporting.tree import Line, Node

__all__ = ["legend", "node_cells", "node_name", "plain_table", "rich_table", "rich_text"]

LONGEST_TYPE = 32
NARROWEST_NAME, NARROWEST_NOTES = 12, 80
ESSENTIAL = 3
"""For columns up to this rank a narrow terminal shortens long names; the others are there where names are whole."""

TO_THE_LEFT = ("text", "bar")
"""Forms of columns that stand to the left; numbers stand to the right."""


def node_cells(profile: ModelProfile, node: Node, name: str, columns: Iterable[Shown]) -> dict[str, str]:
    """Write a node's cells by the keys of the columns, under the name given; empty where there is nothing to say."""
    cells = {
        shown.key: cell_text(profile, node.row, shown) if node.is_whole or shown.column.is_own else ""
        for shown in columns
    }
    return {**cells, "path": name, "type": _type(node)}


def _type(node: Node) -> str:
    name = one_line(node.type)
    short = name if len(name) <= LONGEST_TYPE else f"{name[: LONGEST_TYPE - 1]}…"
    return f"{node.modules:,} × {short}" if node.modules > 1 and short else short


def node_name(name: str, node: Node, hidden: int = 0) -> str:
    """The name with the node's note, and with the number of modules below it that are not shown (`[+12]`)."""
    inside = f" [+{hidden:,}]" if hidden else ""
    note = f" ({node.row.note.strip('()')})" if node.row.note else ""
    return one_line(name + inside + note)


def legend(nodes: Iterable[Node], hidden: int = 0) -> list[str]:
    """What the marks in a table mean, in one line; none where it has none. `hidden` is a number that stands in it."""
    folded = (node.path.split(".") for node in nodes if node.modules > 1 and not node.label.startswith("…"))
    fold = next((part for parts in folded for part in parts if " … " in part), "")
    inside = f"[+{hidden:,}]: {hidden:,} modules inside are not shown" if hidden else ""
    marks = [inside, f"{fold}: identical modules, added up" if fold else ""]
    return ["; ".join(filter(None, marks))] if any(marks) else []


def _table(profile: ModelProfile, tree: Sequence[Line]) -> tuple[list[Shown], list[dict[str, str]]]:
    """The columns that have something to say about the lines, and the texts of the lines."""
    columns = shown_in("terminal")
    rows = []
    for line in tree:
        name = line.guide + node_name(line.node.label, line.node, line.hidden)
        rows.append(node_cells(profile, line.node, name, columns))
    return [column for column in columns if any(row[column.key] for row in rows)], rows


def _width(column: Shown, rows: Iterable[dict[str, str]]) -> int:
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
        rows = [{**row, "path": _cut(row["path"], longest)} for row in rows]
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


def _padded(cell: str, width: int, column: Shown) -> str:
    blank = " " * (width - display_width(cell))
    return cell + blank if column.form in TO_THE_LEFT else blank + cell


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
            justify="left" if column.form in TO_THE_LEFT else "right",
            style=column.place.style,
            max_width=longest if column.key == "path" else None,
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


def _fitting(columns: list[Shown], rows: Sequence[dict[str, str]], width: int) -> list[Shown]:
    """Those of rank 0, and of the others, the lowest ranks first, what there is room for.

    For the essential ones a name may be cut down to a third of the width.
    """
    names, others = columns[:1], columns[1:]
    whole = max((_width(column, rows) for column in names), default=0)
    room = {column.key: 2 + _width(column, rows) for column in others}
    kept = {column.key for column in others if column.place.rank == 0}
    for column in sorted(others, key=lambda column: column.place.rank):
        name = whole if column.place.rank > ESSENTIAL else min(whole, max(NARROWEST_NAME, width // 3))
        if name + sum(room[key] for key in {*kept, column.key}) <= width:
            kept.add(column.key)
    return names + [column for column in others if column.key in kept]


def _name_width(columns: Sequence[Shown], rows: Sequence[dict[str, str]], width: int) -> int:
    """What the other columns leave to the names."""
    return max(NARROWEST_NAME, width - sum(_width(column, rows) + 2 for column in columns if column.key != "path"))


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
