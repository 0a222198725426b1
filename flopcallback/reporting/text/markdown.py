"""A profile as Markdown tables, for trackers and files: any name may stand in them."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

from flopcallback.profile.model_profile import ModelProfile
from flopcallback.reporting.caption import footer, headline
from flopcallback.reporting.text.table import legend, node_cells, node_name, one_line
from flopcallback.reporting.tree import Node, end_of, leaves, lines
from flopcallback.reporting.units import percent

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["escaped", "markdown_modules", "markdown_operators", "markdown_table", "markdown_top"]

_HEADINGS = {
    "module": "module",
    "type": "type",
    "calls": "calls",
    "params": "params",
    "FLOPs": "FLOPs",
    "FLOPs %": "%",
    "forward ms": "forward ms",
    "time %": "% of time",
    "hw FLOP/s": "hw FLOP/s",
    "output": "output",
}
_TOP = ("module", "FLOPs", "FLOPs %", "forward ms", "time %", "hw FLOP/s")
LONGEST_NAME = 58
"""More than this, in columns or in characters of a name, and TensorBoard's page breaks figures apart."""

_TEXTS = {"module", "type", "output", "operator", "family", "status"}


def escaped(text: str) -> str:
    """The text on one line with what Markdown would read as markup escaped, so that a table keeps its columns."""
    flat = one_line(text).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", flat)


def markdown_modules(profile: ModelProfile) -> str:
    """The whole module tree, runs of identical modules folded, with whole names, between headline and footer."""
    nodes = [line.node for line in lines(profile, max_depth=sys.maxsize)]
    return _report(profile, nodes, [_cells(profile, node) for node in nodes], tuple(_HEADINGS))


def markdown_top(profile: ModelProfile, *, limit: int = 20) -> str:
    """The modules that do the most work, innermost ones only, the largest first, between headline and footer.

    No FLOP stands in two rows, so the shares may be added up. Long names have their last parts alone; the type stands
    behind the name where there is room.
    """
    ranked = sorted(leaves(profile), key=lambda node: -node.flops)
    nodes = [node for node in ranked[:limit] if node.flops > 0 or node.unknown_calls > 0]
    rows = [_cells(profile, node) for node in nodes]
    return _report(profile, nodes, [{**row, "module": _brief(row)} for row in rows], _TOP)


def _brief(row: Mapping[str, str]) -> str:
    with_type = ": ".join(filter(None, (row["module"], row["type"])))
    return with_type if len(with_type) <= LONGEST_NAME else end_of(row["module"], LONGEST_NAME)


def _cells(profile: ModelProfile, node: Node) -> dict[str, str]:
    return {"module": node_name(node.path or profile.name, node), **node_cells(profile, node)}


def _report(
    profile: ModelProfile, nodes: Sequence[Node], rows: Sequence[Mapping[str, str]], columns: Sequence[str]
) -> str:
    keys = [key for key in columns if any(row[key] for row in rows)]
    heads, cells = [_HEADINGS[key] for key in keys], [[row[key] for key in keys] for row in rows]
    table = [markdown_table(heads, cells)] if rows else []
    notes = "\n".join(f"- {escaped(line)}" for line in [*legend(nodes), *footer(profile)])
    return "\n\n".join([f"**{escaped(headline(profile))}**", *table, notes])


def markdown_operators(profile: ModelProfile) -> str:
    """The operators that were counted, with exact FLOPs, and those that are unknown, with the reason."""
    heads = ["operator", "family", "calls", "FLOPs", "%", "status"]
    rows = [
        [
            row.operator,
            row.family,
            f"{row.calls:,}",
            "?" if row.status == "unknown" else f"{row.flops:,}",
            "?" if row.status == "unknown" else percent(profile.flops_share(row)),
            f"{row.status}: {profile.unknown[row.operator]}" if row.operator in profile.unknown else row.status,
        ]
        for row in profile.operators
    ]
    return markdown_table(heads, rows) if rows else "no operators"


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with its cells escaped; figures to the right."""
    rule = ["---" if head in _TEXTS else "---:" for head in heads]
    body = [[_cell(head, cell) for head, cell in zip(heads, row, strict=True)] for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [heads, rule, *body])


def _cell(head: str, cell: str) -> str:
    """A figure and its unit stay on one line, however narrow the page makes the column."""
    return escaped(cell) if head in _TEXTS else escaped(cell).replace(" ", "\N{NO-BREAK SPACE}")
