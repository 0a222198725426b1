"""The rows that the page shows: modules, runs of identical ones as a fold, and what modules do themselves.

Rows of the profile come first, in their order. Behind them stand the folds with all that is inside them, and rows of
own work. Whatever a module contains, folded or not, adds up to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from flopcallback.profile.rows import ModuleRow
from flopcallback.reporting.page.own_work import OwnWork, short_name
from flopcallback.reporting.tree import Folds, leaf_name, run_name, summed

if TYPE_CHECKING:
    from flopcallback.profile.model_profile import ModelProfile

__all__ = ["OUTSIDE", "PageRow", "PageRows", "page_rows"]

OUTSIDE = "outside of the model"

PHASES = {
    "forward": "loss and other forward work",
    "backward": "backward",
    "recompute": "recomputation",
    "optimizer": "optimizer",
    "without_grad": "without grad",
}
"""Names of the rows of what runs outside of the model."""

WORTH_SPLITTING = 0.02
"""Share of the step from which a module without modules inside has its operators as rows."""


class PageRow(NamedTuple):
    """A row of the page.

    Attributes:
        row: its figures; those of several modules are their sum.
        name: name within its parent.
        parent: place of the row that contains it; of the root, itself.
        modules: number of modules in it; 0 for own work.
        run: of a fold, the place of the first of its modules among those of the parent, and their number there.
        is_in_fold: whether its figures are also those of other rows, one by one.
        is_outside: whether it runs outside of the model.
    """

    row: ModuleRow
    name: str
    parent: int
    modules: int = 1
    run: tuple[int, int] | None = None
    is_in_fold: bool = False
    is_outside: bool = False


class PageRows(NamedTuple):
    """All rows of the page.

    Attributes:
        rows: modules of the profile in its order, then folds and own work.
        tree: places of the rows inside each row, runs of identical modules as one.
    """

    rows: list[PageRow]
    tree: list[list[int]]


def page_rows(profile: ModelProfile) -> PageRows:
    """Build the rows of a profile's page."""
    if not profile.modules:
        return PageRows([], [])
    builder = _Builder(profile)
    return PageRows(builder.rows, builder.tree)


class _Builder:
    """Builder of the rows.

    Attributes:
        rows: rows so far.
        tree: places inside each of them.
    """

    def __init__(self, profile: ModelProfile) -> None:
        self._modules, parents = profile.modules, _parents(profile)
        self._children: list[list[int]] = [[] for _ in parents]
        for index, parent in enumerate(parents[1:], start=1):
            self._children[parent].append(index)
        self._folds, self._own = Folds(profile.modules), OwnWork(profile, self._children)
        self.rows = [
            PageRow(row, self._name(row, parent) if index else profile.name, parent)
            for index, (row, parent) in enumerate(zip(profile.modules, parents, strict=True))
        ]
        self.tree: list[list[int]] = [[] for _ in self.rows]
        for index, inside in enumerate(self._children):
            self._add_children(index, inside)
            self._add_own(index, [index])
        self._add_outside()

    def _name(self, row: ModuleRow, parent: int) -> str:
        return leaf_name(row) if self._modules[parent].path == row.parent else row.path

    def _runs(self, siblings: Sequence[int]) -> list[range]:
        return self._folds.runs([self._modules[index] for index in siblings])

    def _add(self, row: PageRow) -> int:
        """Add a row that is no module's, inside its parent."""
        self.rows.append(row)
        self.tree.append([])
        self.tree[row.parent].append(len(self.rows) - 1)
        return len(self.rows) - 1

    def _add_children(self, index: int, inside: Sequence[int]) -> None:
        for run in self._runs(inside):
            if len(run) == 1:
                self.tree[index].append(inside[run.start])
            else:
                self._add_group(index, [[inside[at] for at in run]], (run.start, len(run)))

    def _add_group(self, parent: int, groups: Sequence[Sequence[int]], run: tuple[int, int] | None = None) -> None:
        """Add identical modules as one row, with what is in them.

        Args:
            parent: place of the row that they are in.
            groups: places of the modules, those of one parent together.
            run: as in `PageRow`.
        """
        indices = [index for group in groups for index in group]
        name = run_name([self._modules[index] for index in groups[0]])
        row = summed([self._modules[index] for index in indices])
        at = self._add(PageRow(row, name, parent, len(indices), run, is_in_fold=True))
        below = [self._children[index] for index in indices]
        for places in self._runs(below[0]):
            self._add_group(at, [[siblings[place] for place in places] for siblings in below])
        self._add_own(at, indices)

    def _add_own(self, at: int, indices: Sequence[int]) -> None:
        has_children = bool(self._children[indices[0]]) or self._own.step_row in indices
        if not has_children and sum(map(self._own.share_of_step, indices)) < WORTH_SPLITTING:
            return
        rows = self._own.of(indices)
        # One row would only repeat the module.
        if has_children or len(rows) > 1:
            for row in rows:
                self._add(PageRow(row, short_name(row.path), at, 0, is_in_fold=self.rows[at].is_in_fold))

    def _add_outside(self) -> None:
        by_phase = self._own.outside()
        if not by_phase:
            return
        everything = [row for rows in by_phase.values() for row in rows]
        outside = self._add(PageRow(_whole(everything), OUTSIDE, self._own.step_row, 0, is_outside=True))
        for phase, rows in by_phase.items():
            at = self._add(PageRow(_whole(rows), PHASES[phase], outside, 0, is_outside=True))
            for row in rows:
                self._add(PageRow(row, short_name(row.path), at, 0, is_outside=True))


def _whole(rows: Sequence[ModuleRow]) -> ModuleRow:
    """Return the time and the FLOPs of rows together."""
    whole = summed(rows)
    return ModuleRow("", None, 0, "", step=whole.step, time=whole.time)


def _parents(profile: ModelProfile) -> list[int]:
    """Return for each row the place of the row that contains it.

    That is an earlier row; of rows that none contains, the root, and of the root, itself.
    """
    places: dict[str | None, int] = {}
    parents = []
    for index, row in enumerate(profile.modules):
        continues = not row.parent or row.path.startswith(f"{row.parent}.")
        parents.append(places.get(row.parent, 0) if continues else 0)
        places[row.path] = index
    return parents
