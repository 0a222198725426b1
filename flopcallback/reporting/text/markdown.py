"""A profile as Markdown tables, for trackers and files."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

from flopcallback.profile.columns import shown_in, text_columns
from flopcallback.profile.model_profile import ModelProfile
from flopcallback.reporting.caption import footer, headline
from flopcallback.reporting.text.table import legend, node_cells, node_name
from flopcallback.reporting.tree import Node, end_of, leaves, lines
from flopcallback.reporting.units import one_line, percent

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from flopcallback.profile.columns import Shown

__all__ = ["escaped", "markdown_modules", "markdown_operators", "markdown_table", "markdown_top"]

# Characters of a name. Longer ones make TensorBoard's page break figures across lines.
LONGEST_NAME = 58


def escaped(text: str) -> str:
    """Put a text on one line and escape Markdown's markup.

    Any name then stays in its cell.
    """
    flat = one_line(text).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", flat)


def markdown_modules(profile: ModelProfile) -> str:
    """Write the whole module tree between headline and footer.

    Runs of identical modules are folded; names are whole.
    """
    nodes = [line.node for line in lines(profile, max_depth=sys.maxsize)]
    columns = shown_in("markdown")
    return _report(profile, nodes, _cells(profile, nodes, columns), columns)


def markdown_top(profile: ModelProfile, *, limit: int = 20) -> str:
    """Write the innermost modules with the most FLOPs, the largest first.

    No FLOP is in two rows, so shares can be added up. Of long names only the last parts are shown; the type follows the
    name if there is room.
    """
    ranked = sorted(leaves(profile), key=lambda node: -node.flops)
    # A node without FLOPs but with unknown calls may be the largest of all.
    nodes = [node for node in ranked[:limit] if node.flops > 0 or node.unknown_calls > 0]
    columns = shown_in("markdown")
    rows = _cells(profile, nodes, columns)
    # The type is part of the name's cell.
    short = [column for column in columns if column.place.rank == 0]
    return _report(profile, nodes, [{**row, "path": _short_name(row)} for row in rows], short)


def _short_name(row: Mapping[str, str]) -> str:
    with_type = ": ".join(filter(None, (row["path"], row["type"])))
    return with_type if len(with_type) <= LONGEST_NAME else end_of(row["path"], LONGEST_NAME)


def _cells(profile: ModelProfile, nodes: Sequence[Node], columns: Sequence[Shown]) -> list[dict[str, str]]:
    names = [node_name(node.path or profile.name, node) for node in nodes]
    return node_cells(profile, nodes, names, columns)


def _report(
    profile: ModelProfile, nodes: Sequence[Node], rows: Sequence[Mapping[str, str]], columns: Sequence[Shown]
) -> str:
    used = [column for column in columns if any(row[column.key] for row in rows)]
    cells = [[row[column.key] for column in used] for row in rows]
    table = [markdown_table([column.heading for column in used], cells)] if rows else []
    notes = "\n".join(f"- {escaped(line)}" for line in [*legend(nodes), *footer(profile)])
    return "\n\n".join([f"**{escaped(headline(profile))}**", *table, notes])


def markdown_operators(profile: ModelProfile) -> str:
    """Write the operators with exact FLOPs or the reason for none."""
    heads = ["operator", "family", "calls", "FLOPs", "%", "status"]
    rows = [
        [
            row.operator,
            row.family,
            f"{row.calls:,}",
            "?" if row.status == "unknown" or row.flops is None else f"{row.flops:,}",
            "?" if row.status == "unknown" or row.flops is None else percent(profile.flops_share(row)),
            f"{row.status}: {profile.unknown[row.operator]}" if row.operator in profile.unknown else row.status,
        ]
        for row in profile.operators
    ]
    return markdown_table(heads, rows) if rows else "no operators"


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table with escaped cells; figures are aligned to the right."""
    texts = {column.heading for column in text_columns()}
    rule = ["---" if head in texts else "---:" for head in heads]
    # A figure keeps its unit on its line, however narrow the page makes the column.
    spaces = [" " if head in texts else "\N{NO-BREAK SPACE}" for head in heads]
    body = [[escaped(cell).replace(" ", space) for cell, space in zip(row, spaces, strict=True)] for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [heads, rule, *body])
