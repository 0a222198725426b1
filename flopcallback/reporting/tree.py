"""The rows of a profile as a tree with identical modules folded.

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
from flopcallback.profile.times import StepTime

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from flopcallback.profile.model_profile import ModelProfile

__all__ = [
    "Folds",
    "Line",
    "Node",
    "end_of",
    "leaf_name",
    "leaves",
    "lines",
    "merge_smallest",
    "module_tree",
    "run_name",
    "summed",
    "walk",
    "widest_work",
]

_DIGITS = re.compile(r"\d+")

# Shares of all FLOPs in `widest_work`: from the first on a module is shown, from the second on it is opened if its
# children fit, from the third on it is opened even if they do not.
WORTH_SHOWING, WORTH_OPENING, MUST_OPEN = 0.003, 0.05, 0.5

# Two equal siblings read faster than a fold of two.
SHORTEST_RUN = 3

OWN = "(own operators)"
"""Label of the line for a module's own operators. Without this line, the children would not add up to the module."""


@dataclass(frozen=True, slots=True)
class Node:
    """One line of a tree: one module, or several added up.

    Attributes:
        label: last part of the name (`conv1`); first and last for a fold (`0 … 23`).
        path: whole name, with the folds in it (`layers.0 … 23.mlp`).
        row: sums of the modules' figures; path and everything else is that of the first module. The time is None if any
            of the modules was not measured. On a line of own operators it is the module's time without the modules
            inside.
        modules: number of modules in this line.
        is_whole: False if own operators are included: only columns with `is_own` are known of them.
        children: lines one level below.
        paths: paths of the modules.
    """

    label: str
    path: str
    row: ModuleRow
    modules: int = 1
    is_whole: bool = True
    children: tuple[Node, ...] = ()
    paths: tuple[str, ...] = ()

    @property
    def type(self) -> str:
        """Class name; empty if modules of several classes share the line."""
        return self.row.type

    @property
    def flops(self) -> int:
        """FLOPs."""
        return self.row.flops

    @property
    def forward_ms(self) -> float | None:
        """Milliseconds; None if unknown."""
        return self.row.forward_ms

    @property
    def unknown_calls(self) -> int:
        """Number of operator calls without a count."""
        return self.row.unknown_calls

    @property
    def inside(self) -> int:
        """Number of modules below this node, folded ones included."""
        return sum(child.modules + child.inside for child in self.children)


@dataclass(frozen=True, slots=True)
class Line:
    """A node with its place in the drawn tree.

    Attributes:
        guide: characters of the tree to the left of the name.
        node: modules of this line.
        depth: number of levels above it.
        hidden: number of modules below it that are not shown.
    """

    guide: str
    node: Node
    depth: int
    hidden: int = 0


def module_tree(profile: ModelProfile) -> Node | None:
    """Build the tree of a profile's modules; None without modules.

    Three or more identical siblings in a row are folded into one node. Identical siblings have the same type, numbers
    and notes, down to the last descendant, and names that differ only in a number. Their times may differ.
    """
    if not profile.modules:
        return None
    return Folds(profile.modules).node((profile.modules[0],), label=profile.name, path="")


def lines(profile: ModelProfile, *, max_depth: int | None = None, max_rows: int = 60) -> list[Line]:
    """Return the tree from top to bottom.

    Args:
        profile: profile to show.
        max_depth: levels to show below the model, each in full. With None, as many as fit into `max_rows`, but at least
            one; if even that is too long, the modules with the fewest FLOPs share a line.
        max_rows: limit of lines if `max_depth` is None.
    """
    root = module_tree(profile)
    if root is None:
        return []
    if max_depth is not None:
        return list(walk(root, max_depth))
    # One line is the root's.
    root = merge_smallest(root, max_rows - 1)
    shown = list(walk(root, 1))
    for depth in range(2, _height(root) + 1):
        deeper = list(walk(root, depth))
        if len(deeper) > max_rows:
            break
        shown = deeper
    return shown


def leaves(profile: ModelProfile) -> list[Node]:
    """Return the innermost nodes of the tree.

    Lines of own operators are among them, so together they are all the work.
    """
    root = module_tree(profile)
    return [] if root is None else [line.node for line in walk(root) if not line.node.children]


def widest_work(profile: ModelProfile, limit: int = 20) -> list[Node]:
    """Return the nodes that show best where the FLOPs are.

    They are in decreasing order of FLOPs, and each FLOP is in one of them. From the model on, the node with the most
    FLOPs is opened again and again, as long as it has a twentieth of all FLOPs and its children fit. A node with half
    of them is opened even if they do not fit; its smaller children then share a node. What is too small to show comes
    last, as one node without a type.

    Args:
        profile: profile to show.
        limit: number of nodes at most.
    """
    root = module_tree(profile)
    open_nodes, chosen, small = ([] if root is None else [root]), list[Node](), list[Node]()
    while open_nodes:
        node = max(open_nodes, key=lambda node: node.flops)
        open_nodes.remove(node)
        share_of_all = share(node.flops, profile.forward_flops) or 0.0
        # One place is kept for the node of small modules.
        room = limit - 1 - len(open_nodes) - len(chosen)
        children = [child for child in node.children if child.flops > 0]
        visible = [child for child in children if (share(child.flops, profile.forward_flops) or 0.0) >= WORTH_SHOWING]
        if len(visible) > room > 1 and share_of_all >= MUST_OPEN:
            visible = sorted(visible, key=lambda child: -child.flops)[:room]
        if children and len(visible) <= room and share_of_all >= WORTH_OPENING:
            open_nodes += visible
            small += [child for child in children if child not in visible]
        elif node.flops > 0:
            chosen.append(node)
    small.sort(key=lambda node: -node.flops)
    # One small module is shown as itself. Without any chosen node, the largest of the small ones are shown.
    kept = 1 if len(small) == 1 else 0 if chosen else limit - 1
    chosen, small = chosen + small[:kept], small[kept:]
    chosen.sort(key=lambda node: -node.flops)
    return chosen + ([_merged_node(small, "")] if small else [])


def merge_smallest(node: Node, limit: int) -> Node:
    """Return the node with at most `limit` children at every depth.

    The children with the fewest FLOPs become one node, `… 1,941 more`.
    """
    children = tuple(merge_smallest(child, limit) for child in node.children)
    if len(children) > limit:
        ranked = sorted(range(len(children)), key=lambda index: -children[index].flops)
        largest = set(ranked[: limit - 1])
        smallest = [child for index, child in enumerate(children) if index not in largest]
        children = (*(children[index] for index in sorted(largest)), _merged_node(smallest, node.path))
    return replace(node, children=children)


def _merged_node(nodes: Sequence[Node], parent: str) -> Node:
    count = sum(node.modules for node in nodes)
    label = f"… {count:,} more"
    row = replace(summed([node.row for node in nodes]), type="", output_shape=None)
    return Node(label, f"{parent} {label}".strip(), row, count, all(node.is_whole for node in nodes))


def walk(root: Node, max_depth: int = sys.maxsize) -> Iterator[Line]:
    """Yield the lines of a tree, depth first."""

    def below(node: Node, lead: str, depth: int) -> Iterator[Line]:
        for child in node.children:
            # The guide of a line continues the bars of the levels above it.
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


def summed(rows: Sequence[ModuleRow]) -> ModuleRow:
    """Add up the figures of several rows.

    Everything else is that of the first row.
    """
    if len(rows) == 1:
        return rows[0]
    sums = {name: sum(getattr(row, name) for row in rows) for name in counts()}
    times = [row.forward_ms for row in rows if row.forward_ms is not None]
    steps = [row.step for row in rows if row.step is not None]
    step_times = [row.time for row in rows if row.time is not None]
    return replace(
        rows[0],
        **sums,
        # A sum with a time missing would pass for the whole.
        forward_ms=sum(times) if len(times) == len(rows) else None,
        forward_ms_spread=None,
        step=sum(steps, StepFlops()) if len(steps) == len(rows) else None,
        time=sum(step_times, StepTime()) if len(step_times) == len(rows) else None,
    )


class Folds:
    """Find identical siblings, and build nodes from groups of identical rows.

    The nth child of the first row stands for the nth children of all rows of the group.
    """

    def __init__(self, rows: Sequence[ModuleRow]) -> None:
        paths = {row.path for row in rows}
        self.children: dict[str, list[ModuleRow]] = {row.path: [] for row in rows}  # by path of the parent
        for row in rows[1:]:
            # No row is lost: one whose parent has no row, or that names itself as its parent, is put below the root.
            self.children[row.parent if row.parent in paths and row.parent != row.path else ""].append(row)
        self.counts = counts()
        self._ids_by_content: dict[tuple[object, ...], int] = {}
        self._content_ids: dict[str, int] = {}  # by path
        for row in reversed(rows):  # children before their parents
            self._content_ids[row.path] = self._content_id(row)

    def _content_id(self, row: ModuleRow) -> int:
        """Return a number that only identical rows share.

        Identical rows have identical rows below them.
        """
        below = tuple((leaf_name(child), self._content_ids[child.path]) for child in self.children[row.path])
        numbers = tuple(getattr(row, name) for name in self.counts)
        # Numbers instead of nested tuples: a comparison then costs the same at every depth.
        return self._ids_by_content.setdefault((numbers, row.note, row.type, below), len(self._ids_by_content))

    def node(self, rows: tuple[ModuleRow, ...], label: str, path: str) -> Node:
        """Build one node from identical rows."""
        below = [self.children[row.path] for row in rows]
        children = [
            self._run(rows=tuple(siblings[index] for siblings in below for index in run), parent=path, length=len(run))
            for run in self.runs(below[0])
        ]
        node = Node(label, path, summed(rows), len(rows), paths=tuple(row.path for row in rows))
        # A module without children is all own operators, and needs no line for them.
        if children and node.row.own_flops > 0:
            children.append(_own_operators(node, children))
        return replace(node, children=tuple(children))

    def _run(self, rows: tuple[ModuleRow, ...], parent: str, length: int) -> Node:
        label = run_name(rows[:length])
        return self.node(rows, label, f"{parent}.{label}" if parent else label)

    def runs(self, siblings: Sequence[ModuleRow]) -> list[range]:
        """Return positions of siblings, one range per node.

        Runs that fold are one range; all other siblings have a range each.
        """
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

    def _alike(self, first: ModuleRow, second: ModuleRow) -> bool:
        same_name = _DIGITS.sub("#", leaf_name(first)) == _DIGITS.sub("#", leaf_name(second))
        return same_name and self._content_ids[first.path] == self._content_ids[second.path]


def _own_operators(node: Node, children: Sequence[Node]) -> Node:
    macs = max(0, node.row.macs - sum(child.row.macs for child in children))
    rest_ms = _remaining_ms(node, children)
    row = ModuleRow("", None, 0, type="", flops=node.row.own_flops, macs=macs, forward_ms=rest_ms)
    return Node(OWN, f"{node.path} {OWN}".strip(), row, modules=0, is_whole=False)


def _remaining_ms(node: Node, children: Sequence[Node]) -> float | None:
    """Return the node's time without its children.

    None if a child that ran was not measured, or if nothing remains.
    """
    if node.forward_ms is None or any(child.forward_ms is None and child.row.calls for child in children):
        return None
    # Medians of parts can add up to more than the median of the whole.
    rest_ms = node.forward_ms - sum(child.forward_ms or 0.0 for child in children)
    return rest_ms if rest_ms > 0 else None


def run_name(rows: Sequence[ModuleRow]) -> str:
    """Name a run of siblings by its first and last, such as `0 … 23`."""
    first, last = leaf_name(rows[0]), leaf_name(rows[-1])
    return first if len(rows) == 1 else f"{first} … {last}"


def leaf_name(row: ModuleRow) -> str:
    """Return the row's name within its parent."""
    return row.path.removeprefix(f"{row.parent}.") if row.parent else row.path


def end_of(path: str, longest: int) -> str:
    """Return the last parts of a dotted name that fit.

    At least one part is returned.

    Args:
        path: dotted name.
        longest: characters that the result may have, apart from the leading `…`.
    """
    end, parts = path, path.split(".")
    while len(parts) > 1 and len(end) >= longest:
        parts = parts[1:]
        end = ".".join(parts)
    return end if end == path else f"…{end}"
