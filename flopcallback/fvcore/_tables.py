"""What the two tables have in common."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

__all__ = ["children_by_parent", "pipe_table"]


def children_by_parent(names: Iterable[str]) -> defaultdict[str, list[str]]:
    """The direct children of each dotted name, in the order given; the root `""` is nobody's child."""
    children: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        if name:
            children[name.rpartition(".")[0]].append(name)
    return children


def pipe_table(rows: Sequence[Sequence[str]], headers: Sequence[str]) -> str:
    """A Markdown table whose cells keep their indentation."""
    from tabulate import tabulate

    # From tabulate 0.10 on an argument; the module's flag of that name has no effect there:
    # https://github.com/astanin/python-tabulate/pull/342
    text: str = tabulate(rows, headers=headers, tablefmt="pipe", preserve_whitespace=True)
    return text
