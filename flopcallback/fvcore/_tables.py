"""Shared part of the two tables."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

__all__ = ["children_by_parent", "pipe_table"]


def children_by_parent(names: Iterable[str]) -> defaultdict[str, list[str]]:
    """Group dotted names by their parent, in the order given.

    The root `""` is a parent and never a child.
    """
    children: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        if name:
            children[name.rpartition(".")[0]].append(name)
    return children


def pipe_table(rows: Sequence[Sequence[str]], headers: Sequence[str]) -> str:
    """Format rows as a Markdown table with cells that keep their indentation."""
    from tabulate import tabulate

    # An argument since tabulate 0.10, where the module's flag of that name has no effect:
    # https://github.com/astanin/python-tabulate/pull/342
    text: str = tabulate(rows, headers=headers, tablefmt="pipe", preserve_whitespace=True)
    return text
