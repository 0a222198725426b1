"""The rows of a profile as a reader wants to see them: runs of identical modules folded, depth and length bounded.

A fold is a sum, never a sample: the children of a node add up to it, and the numbers of a folded `0 … 23` are those of
all 24 modules together.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from flopcallback.profile.columns import counts
from flopcallback.profile.rows import ModuleRow, StepFlops, share

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from flopcallback.profile.model_profile import ModelProfile

__all__ = ["Line", "Node", "crowd", "end_of", "leaves", "lines", "module_tree", "timed_leaves", "widest_work"]

_DIGITS = re.compile(r"\d+")

WORTH_SHOWING, WORTH_OPENING, MUST_OPEN = 0.003, 0.05, 0.5
"""Shares of all FLOPs from which `widest_work` shows a module, opens one that fits, and opens one that does not."""

SHORTEST_RUN = 3
"""Two alike are shorter to read than a fold of two."""

OWN = "(own operators)"
"""The line for what runs directly in a module that contains others: without it, its parts would not add up to it."""


@dataclass(frozen=True, slots=True)
class Node:
    """One line's worth of modules, their numbers added up.

    Attributes:
        label: last part of the name (`conv1`), of a fold the first and the last (`0 … 23`).
        path: the whole name, with the fold in it (`layers.0 … 23.mlp`).
        row: the figures of its modules together; path and what else is no figure are the first one's. Its time is None
            where any of the modules was not measured. On a line of own operators, it is what the times of the modules
            inside leave of the module's.
        modules: how many modules this stands for.
        is_whole: False where own operators are in it, of which only the columns with `is_own` are known.
    """

    label: str
    path: str
    row: ModuleRow
    modules: int = 1
    is_whole: bool = True
    children: tuple[Node, ...] = ()

    @property
    def type(self) -> str:
        """Class name; empty where modules of several classes share the line."""
        return self.row.type

    @property
    def flops(self) -> int:
        """FLOPs under the profile's convention."""
        return self.row.flops

    @property
    def forward_ms(self) -> float | None:
        """Milliseconds; None where they are not known."""
        return self.row.forward_ms

    @property
    def unknown_calls(self) -> int:
        """Operator calls without a count."""
        return self.row.unknown_calls

    @property
    def inside(self) -> int:
        """Modules below this node, folded ones included."""
        return sum(child.modules + child.inside for child in self.children)


@dataclass(frozen=True, slots=True)
class Line:
    """A node with the tree drawn in front of it; `hidden` modules below it are not shown."""

    guide: str
    node: Node
    depth: int
    hidden: int = 0


def module_tree(profile: ModelProfile) -> Node | None:
    """The profile's modules as a tree with runs of three or more identical siblings folded; None without modules.

    Identical means: names that differ only in a number, and the same type, numbers and notes, down to the last
    descendant. Times may differ.
    """
    if not profile.modules:
        return None
    return _Folder(profile.modules).node((profile.modules[0],), label=profile.name, path="")


def lines(profile: ModelProfile, *, max_depth: int | None = None, max_rows: int = 60) -> list[Line]:
    """The tree from top to bottom.

    Without `max_depth` it goes as deep as `max_rows` lines allow, one level at least; there, the modules with the
    fewest FLOPs share one line if there are still too many. With it, every module down to that depth has its line.
    """
    root = module_tree(profile)
    if root is None:
        return []
    if max_depth is not None:
        return list(_walk(root, max_depth))
    root = crowd(root, max_rows - 1)
    shown = list(_walk(root, 1))
    for depth in range(2, _height(root) + 1):
        deeper = list(_walk(root, depth))
        if len(deeper) > max_rows:
            break
        shown = deeper
    return shown


def leaves(profile: ModelProfile) -> list[Node]:
    """The innermost nodes of the tree, lines of own operators among them: together they are all the work there is."""
    root = module_tree(profile)
    return [] if root is None else [line.node for line in _walk(root, sys.maxsize) if not line.node.children]


def timed_leaves(profile: ModelProfile) -> list[Node]:
    """The innermost nodes of the tree that have a time above 0: none of them contains another."""
    root = module_tree(profile)
    return [] if root is None else list(_timed_leaves(root))


def _timed_leaves(node: Node) -> Iterator[Node]:
    inside = [leaf for child in node.children if child.label != OWN for leaf in _timed_leaves(child)]
    if inside:
        yield from inside
    elif node.forward_ms is not None and node.forward_ms > 0:
        yield node


def widest_work(profile: ModelProfile, limit: int = 20) -> list[Node]:
    """The nodes, at most `limit`, that say best where the FLOPs are, the largest first; each FLOP is in one of them.

    Starting from the model, the node with the most FLOPs is opened again and again, as long as it holds a twentieth of
    all FLOPs and what is in it fits. One that holds half of them is opened in any case, its smaller parts in one node.
    What is too small to be seen comes last, as one node, which has no type.
    """
    root = module_tree(profile)
    opened, whole, small = ([] if root is None else [root]), list[Node](), list[Node]()
    while opened:
        node = max(opened, key=lambda each: each.flops)
        opened.remove(node)
        part = share(node.flops, profile.forward_flops) or 0.0
        room = limit - 1 - len(opened) - len(whole)
        parts = [child for child in node.children if child.flops > 0]
        visible = [child for child in parts if (share(child.flops, profile.forward_flops) or 0.0) >= WORTH_SHOWING]
        if len(visible) > room > 1 and part >= MUST_OPEN:
            visible = sorted(visible, key=lambda child: -child.flops)[:room]
        if parts and len(visible) <= room and part >= WORTH_OPENING:
            opened += visible
            small += [child for child in parts if child not in visible]
        elif node.flops > 0:
            whole.append(node)
    small.sort(key=lambda node: -node.flops)
    shown = 1 if len(small) == 1 else 0 if whole else limit - 1
    whole, small = whole + small[:shown], small[shown:]
    whole.sort(key=lambda node: -node.flops)
    return whole + ([_rest(small, "")] if small else [])


def crowd(node: Node, limit: int) -> Node:
    """The node with at most `limit` children, at every depth: the smallest by FLOPs become one, `… 1,941 more`."""
    children = tuple(crowd(child, limit) for child in node.children)
    if len(children) > limit:
        ranked = sorted(range(len(children)), key=lambda index: -children[index].flops)
        kept = set(ranked[: limit - 1])
        rest = [child for index, child in enumerate(children) if index not in kept]
        children = (*(children[index] for index in sorted(kept)), _rest(rest, node.path))
    return replace(node, children=children)


def _rest(nodes: Sequence[Node], parent: str) -> Node:
    count = sum(node.modules for node in nodes)
    label = f"… {count:,} more"
    row = replace(_added([node.row for node in nodes]), type="", output_shape=None)
    return Node(label, f"{parent} {label}".strip(), row, count, all(node.is_whole for node in nodes))


def _walk(root: Node, max_depth: int) -> Iterator[Line]:
    """Depth first; `guide` continues the bars of the levels above it."""

    def below(node: Node, lead: str, depth: int) -> Iterator[Line]:
        for child in node.children:
            last = child is node.children[-1]
            hidden = child.inside if depth == max_depth else 0
            yield Line(lead + ("└─ " if last else "├─ "), child, depth, hidden)
            if depth < max_depth:
                yield from below(child, lead + ("   " if last else "│  "), depth + 1)

    yield Line("", root, 0, root.inside if max_depth == 0 else 0)
    if max_depth > 0:
        yield from below(root, "", 1)


def _height(node: Node) -> int:
    return 1 + max(map(_height, node.children)) if node.children else 0


def _added(rows: Sequence[ModuleRow]) -> ModuleRow:
    """Add up the figures of several rows; what is no figure is the first one's."""
    if len(rows) == 1:
        return rows[0]
    sums = {name: sum(getattr(row, name) for row in rows) for name in counts()}
    times = [row.forward_ms for row in rows if row.forward_ms is not None]
    steps = [row.step for row in rows if row.step is not None]
    return replace(
        rows[0],
        **sums,
        forward_ms=sum(times) if len(times) == len(rows) else None,
        forward_ms_spread=None,
        step=sum(steps, StepFlops()) if len(steps) == len(rows) else None,
    )


class _Folder:
    """Builds nodes from sets of rows that are alike: the nth child of one stands for the nth child of all."""

    def __init__(self, rows: Sequence[ModuleRow]) -> None:
        known = {row.path for row in rows}
        self.children: dict[str, list[ModuleRow]] = {row.path: [] for row in rows}
        for row in rows[1:]:
            self.children[row.parent if row.parent in known and row.parent != row.path else ""].append(row)
        self.counts = counts()
        self.kinds: dict[tuple[object, ...], int] = {}
        self.kind: dict[str, int] = {}
        for row in reversed(rows):  # Children before their parents.
            self.kind[row.path] = self._kind_of(row)

    def _kind_of(self, row: ModuleRow) -> int:
        """A number that two rows share if and only if they and all below them are alike."""
        below = tuple((leaf_name(child), self.kind[child.path]) for child in self.children[row.path])
        numbers = tuple(getattr(row, name) for name in self.counts)
        return self.kinds.setdefault((numbers, row.note, row.type, below), len(self.kinds))

    def node(self, rows: tuple[ModuleRow, ...], label: str, path: str) -> Node:
        """The rows, which are alike, as one node."""
        below = [self.children[row.path] for row in rows]
        children = [
            self._run(rows=tuple(siblings[index] for siblings in below for index in run), parent=path, length=len(run))
            for run in self._runs(below[0])
        ]
        node = Node(label, path, _added(rows), len(rows))
        if children and node.row.own_flops > 0:
            children.append(_own_line(node, children))
        return replace(node, children=tuple(children))

    def _run(self, rows: tuple[ModuleRow, ...], parent: str, length: int) -> Node:
        first, last = leaf_name(rows[0]), leaf_name(rows[length - 1])
        label = first if length == 1 else f"{first} … {last}"
        return self.node(rows, label, f"{parent}.{label}" if parent else label)

    def _runs(self, siblings: Sequence[ModuleRow]) -> list[range]:
        """Positions of the siblings, a range for each run that folds and for each that stands alone."""
        runs: list[range] = []
        start = 0
        while start < len(siblings):
            stop = start + 1
            while stop < len(siblings) and self._alike(siblings[start], siblings[stop]):
                stop += 1
            folded = stop - start >= SHORTEST_RUN
            runs += [range(start, stop)] if folded else [range(at, at + 1) for at in range(start, stop)]
            start = stop
        return runs

    def _alike(self, one: ModuleRow, other: ModuleRow) -> bool:
        same_name = _DIGITS.sub("#", leaf_name(one)) == _DIGITS.sub("#", leaf_name(other))
        return same_name and self.kind[one.path] == self.kind[other.path]


def _own_line(node: Node, children: Sequence[Node]) -> Node:
    hw_flops = max(0, node.row.hw_flops - sum(child.row.hw_flops for child in children))
    rest_ms = _remaining_ms(node, children)
    row = ModuleRow("", None, 0, type="", flops=node.row.own_flops, hw_flops=hw_flops, forward_ms=rest_ms)
    return Node(OWN, f"{node.path} {OWN}".strip(), row, modules=0, is_whole=False)


def _remaining_ms(node: Node, children: Sequence[Node]) -> float | None:
    """The node's time without its children's; None where one that ran was not measured, or nothing is left."""
    if node.forward_ms is None or any(child.forward_ms is None and child.row.calls for child in children):
        return None
    rest_ms = node.forward_ms - sum(child.forward_ms or 0.0 for child in children)
    return rest_ms if rest_ms > 0 else None


def leaf_name(row: ModuleRow) -> str:
    """The row's name within its parent."""
    return row.path.removeprefix(f"{row.parent}.") if row.parent else row.path


def end_of(path: str, longest: int) -> str:
    """As many of the last parts of a dotted name as that many characters hold, one at least."""
    end, parts = path, path.split(".")
    while len(parts) > 1 and len(end) >= longest:
        parts = parts[1:]
        end = ".".join(parts)
    return end if end == path else f"…{end}"
