"""The module tree as a table, with rich or in plain monospace."""

from __future__ import annotations

from textwrap import wrap
from typing import TYPE_CHECKING, Literal

from flopcallback.profile.columns import shown_in
from flopcallback.reporting.caption import footer, headline
from flopcallback.reporting.cells import cell_texts
from flopcallback.reporting.tree import lines
from flopcallback.reporting.units import display_width, one_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import RenderableType

    from flopcallback.profile.columns import Shown
    from flopcallback.profile.model_profile import ModelProfile
    from flopcallback.reporting.tree import Line, Node

__all__ = ["legend", "node_cells", "node_name", "plain_table", "rich_table", "rich_text"]

# Characters of a class name.
LONGEST_TYPE = 32
# Columns that names and notes keep in a narrow terminal.
NARROWEST_NAME, NARROWEST_NOTES = 12, 80
# Names are shortened to make room for columns up to this rank. Higher ranks are shown only beside whole names.
ESSENTIAL = 3

# Forms of columns that are aligned to the left. Numbers are aligned to the right.
TO_THE_LEFT = ("text", "bar")


def node_cells(
    profile: ModelProfile, nodes: Sequence[Node], names: Sequence[str], columns: Sequence[Shown]
) -> list[dict[str, str]]:
    """Return the texts of the nodes' cells, by key of the column.

    A cell is empty if there is nothing to say.

    Args:
        profile: profile of the nodes.
        nodes: one per line.
        names: one per node, as the table has them.
        columns: columns of the table.
    """
    rows = [node.row for node in nodes]
    cells: list[dict[str, str]] = [{} for _ in nodes]
    for shown in columns:
        texts = cell_texts(profile, rows, shown, shown.column.values(profile, rows))
        for cell, node, text in zip(cells, nodes, texts, strict=True):
            # Of own operators only some columns are known; the others would show a wrong 0.
            cell[shown.key] = text if node.is_whole or shown.column.is_own else ""
    return [{**cell, "path": name, "type": _type(node)} for cell, node, name in zip(cells, nodes, names, strict=True)]


def _type(node: Node) -> str:
    name = one_line(node.type)
    short = name if len(name) <= LONGEST_TYPE else f"{name[: LONGEST_TYPE - 1]}…"
    return f"{node.modules:,} × {short}" if node.modules > 1 and short else short


def node_name(name: str, node: Node, hidden: int = 0) -> str:
    """Return the name with the node's note and hidden modules.

    The number of modules below that are not shown is written as `[+12]`.
    """
    inside = f" [+{hidden:,}]" if hidden else ""
    note = f" ({node.row.note.strip('()')})" if node.row.note else ""
    return one_line(name + inside + note)


def legend(nodes: Iterable[Node], hidden: int = 0) -> list[str]:
    """Explain the marks of a table in one line; empty without marks.

    Args:
        nodes: nodes of the table.
        hidden: number of hidden modules of one line, as an example.
    """
    folded = (node.path.split(".") for node in nodes if node.modules > 1 and not node.label.startswith("…"))
    fold = next((part for parts in folded for part in parts if " … " in part), "")
    inside = f"[+{hidden:,}]: {hidden:,} modules inside are not shown" if hidden else ""
    marks = [inside, f"{fold}: identical modules, added up" if fold else ""]
    return ["; ".join(filter(None, marks))] if any(marks) else []


def _table(profile: ModelProfile, tree: Sequence[Line]) -> tuple[list[Shown], list[dict[str, str]]]:
    """Return the columns that are not empty, and all rows."""
    columns = shown_in("terminal")
    names = [line.guide + node_name(line.node.label, line.node, line.hidden) for line in tree]
    rows = node_cells(profile, [line.node for line in tree], names, columns)
    return [column for column in columns if any(row[column.key] for row in rows)], rows


def _width(column: Shown, rows: Iterable[dict[str, str]]) -> int:
    return max(display_width(text) for text in [column.heading, *(row[column.key] for row in rows)])


def plain_table(
    profile: ModelProfile, *, width: int | None = None, max_depth: int | None = None, max_rows: int = 60
) -> str:
    """Write the module tree in monospace.

    Numbers are aligned to the right; `>=` marks FLOPs that are a lower bound.

    Args:
        profile: profile to show.
        width: characters that columns have to fit into; None for all columns.
        max_depth: levels to show below the model; None for as many as fit into `max_rows`.
        max_rows: limit of rows if `max_depth` is None. If even the first level is too long, its modules with the fewest
            FLOPs share one row.
    """
    tree = lines(profile, max_depth=max_depth, max_rows=max_rows)
    columns, rows = _table(profile, tree)
    if not rows:
        return "\n".join(map(one_line, [headline(profile), *footer(profile)]))
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
    return "\n".join([one_line(headline(profile)), "", head, rule, *body, rule, *notes])


def _notes(profile: ModelProfile, tree: Sequence[Line]) -> list[str]:
    hidden = next((line.hidden for line in tree if line.hidden), 0)
    return [one_line(note) for note in (*legend((line.node for line in tree), hidden), *footer(profile))]


def _wrapped(notes: Iterable[str], width: int) -> list[str]:
    """Break notes into lines of at most `width`.

    All lines of a note except its first are indented. A word is never cut.
    """
    form = {"subsequent_indent": "  ", "break_long_words": False, "break_on_hyphens": False}
    return [line for note in notes for line in wrap(note, width, **form)]  # type: ignore[arg-type]


def _padded(cell: str, width: int, column: Shown) -> str:
    blank = " " * (width - display_width(cell))
    return cell + blank if column.form in TO_THE_LEFT else blank + cell


def rich_table(
    profile: ModelProfile, *, width: int = 100, max_depth: int | None = None, max_rows: int = 60
) -> RenderableType:
    """Build the module tree for `rich.console.Console.print`.

    Args:
        profile: profile to show.
        width: characters that columns have to fit into.
        max_depth: levels, as in `plain_table`.
        max_rows: limit of rows, as in `plain_table`.
    """
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
    parts: list[RenderableType] = [Text(one_line(headline(profile)), style="bold"), ""]
    parts += [table, ""] if rows else []
    for note in _notes(profile, tree):
        parts.append(Text("\n".join(_wrapped([note], width)), style="yellow" if note.startswith("unknown") else "dim"))
    return Group(*parts)


def _fitting(columns: list[Shown], rows: Sequence[dict[str, str]], width: int) -> list[Shown]:
    """Return the columns that fit into `width`.

    Columns of rank 0 always stay; the others are added by rank as long as there is room. For those up to `ESSENTIAL`,
    names may be cut down to a third of the width.
    """
    names, others = columns[:1], columns[1:]
    whole_name = max((_width(column, rows) for column in names), default=0)
    room = {column.key: 2 + _width(column, rows) for column in others}  # 2 for the gap between columns
    chosen = {column.key for column in others if column.place.rank == 0}
    for column in sorted(others, key=lambda column: column.place.rank):
        name = whole_name if column.place.rank > ESSENTIAL else min(whole_name, max(NARROWEST_NAME, width // 3))
        if name + sum(room[key] for key in {*chosen, column.key}) <= width:
            chosen.add(column.key)
    return names + [column for column in others if column.key in chosen]


def _name_width(columns: Sequence[Shown], rows: Sequence[dict[str, str]], width: int) -> int:
    """Return the width that the other columns leave to names."""
    return max(NARROWEST_NAME, width - sum(_width(column, rows) + 2 for column in columns if column.key != "path"))


def _cut(text: str, width: int) -> str:
    """Cut the end of a text that is wider than `width`."""
    if display_width(text) <= width:
        return text
    # One column is for the ellipsis. A wide character takes two, so slicing by length would not do.
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
    """Write `rich_table` as a string.

    It has no escape sequences unless `color_system` asks for colours.
    """
    from rich.console import Console

    console = Console(width=width, color_system=color_system, force_terminal=color_system is not None)
    with console.capture() as capture:
        console.print(rich_table(profile, width=width, max_depth=max_depth, max_rows=max_rows))
    return "\n".join(line.rstrip() for line in capture.get().splitlines())
