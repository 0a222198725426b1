"""The differences between two profiles by module, and limits on their growth."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from flopcallback.profile.columns import shown_in
from flopcallback.profile.model_profile import ModelProfile
from flopcallback.profile.rows import ModuleRow

__all__ = ["Change", "Figures", "ProfileDiff", "diff_profiles", "parse_share"]

Status = Literal["added", "removed", "changed"]

Figures = Mapping[str, Any]
"""Sums over some modules by column key, for the columns of a diff; None for what is unknown of any module."""

TIME = "forward_ms"
"""Key of the only measured figure: it differs between equal modules, and parts do not add up to the whole."""

# They explain a difference.
_CONDITIONS = {
    "flops.input_shapes": "input shapes",
    "flops.device": "device",
    "flops.dtype": "dtype",
    "flops.engine": "engine",
    "flops.version": "version of flopcallback",
}


@dataclass(frozen=True, slots=True)
class Change:
    """A module that is missing in one profile or differs.

    One change can stand for several modules that changed alike. No FLOP is in two changes, so together they are the
    change of the total: an added module includes everything inside it, while a module of both profiles has only the
    change in its own operators.

    Attributes:
        path: dotted name, with `*` for a number that differs between the modules.
        type: class name; `"Linear → Conv2d"` if it changed.
        before: figures in the first profile; None for an added module.
        after: figures in the second profile; None for a removed module.
        is_own: True if the figures leave out modules inside.
        modules: number of modules that changed alike.
    """

    path: str
    type: str
    before: Figures | None
    after: Figures | None
    is_own: bool = False
    modules: int = 1

    @property
    def status(self) -> Status:
        """`"added"`, `"removed"`, or `"changed"` for a module of both profiles."""
        return "added" if self.before is None else "removed" if self.after is None else "changed"

    @property
    def flops(self) -> int:
        """FLOPs after minus FLOPs before."""
        before, after = (0 if side is None else int(side["flops"]) for side in (self.before, self.after))
        return after - before


@dataclass(frozen=True, slots=True)
class ProfileDiff:
    """Two profiles and their differences.

    Attributes:
        before: reference profile.
        after: profile compared with it.
        changes: changed modules, the largest change in FLOPs first.
        notes: differing conditions of the two counts, in words.
    """

    before: ModelProfile
    after: ModelProfile
    changes: tuple[Change, ...]
    notes: tuple[str, ...]

    @property
    def has_same_inputs(self) -> bool:
        """True if both calls had inputs of the same shapes.

        Otherwise the totals are not comparable.
        """
        return self.before.config.get("flops.input_shapes") == self.after.config.get("flops.input_shapes")

    @property
    def new_unknown(self) -> tuple[str, ...]:
        """Operators and modules with more unknown calls in the second profile.

        They may hide FLOPs. Empty if the second profile is no lower bound.
        """
        if not self.after.is_lower_bound:
            return ()
        # Not only new names: an operator can be called more often than before.
        calls = {row.operator: row.calls for row in self.before.operators if row.status == "unknown"}
        more = [
            r.operator for r in self.after.operators if r.status == "unknown" and r.calls > calls.get(r.operator, 0)
        ]
        return tuple(dict.fromkeys((*more, *(name for name in self.after.unknown if name not in self.before.unknown))))

    def flops_exceed(self, limit: Fraction) -> bool:
        """Return whether FLOPs grew by more than this share.

        The comparison is exact.
        """
        return self.after.forward_flops - self.before.forward_flops > limit * self.before.forward_flops

    def latency_exceeds(self, limit: Fraction) -> bool:
        """Return whether the measured forward time grew by more than this share.

        Raises:
            ValueError: either profile has no measured time.
        """
        before, after = self.before.forward_ms, self.after.forward_ms
        if before is None or after is None:
            raise ValueError("a limit for latency needs two profiles with measured times")
        # Python compares a float with a Fraction exactly.
        return after - before > limit * Fraction(before)


def diff_profiles(before: ModelProfile, after: ModelProfile) -> ProfileDiff:
    """Compare two profiles of a model, matching modules by name.

    A difference in time alone is a change only if the spreads of the two windows do not overlap.
    """
    # Additions and removals count by size, too.
    changes = sorted(_folded(_changes(before, after)), key=lambda change: -abs(change.flops))
    return ProfileDiff(before, after, tuple(changes), tuple(_notes(before, after)))


def parse_share(text: str | float) -> Fraction:
    """Read a share exactly as written: `"2%"`, `"0.02"` or `0.02`.

    Raises:
        ValueError: not a number, below 0, or at least 1 without `%`, which might be meant as percent.
    """
    written = str(text).strip()
    percent = written.removesuffix("%")
    try:
        # Exact: as a float, 0.02 is a little more than two hundredths.
        value = Fraction(percent.strip())
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"{written!r} is no share, such as 2% or 0.02") from None
    if value < 0:
        raise ValueError(f"{written!r} is below 0; a share is such as 2% or 0.02")
    if percent != written:
        return value / 100
    if value >= 1:
        raise ValueError(f"{written!r} could be a share or percent: write {written}%, or a number below 1")
    return value


def _notes(before: ModelProfile, after: ModelProfile) -> Iterator[str]:
    """Yield the conditions that differ, in words."""
    pairs = {name: (before.config.get(key), after.config.get(key)) for key, name in _CONDITIONS.items()}
    pairs = {"model": (before.name, after.name), "phase": (before.phase, after.phase), **pairs}
    for name, (first, second) in pairs.items():
        if first != second:
            yield f"{name} differs: {first} before, {second} after"


# --- Modules ----------------------------------------------------------------------------------------------------------


def _changes(before: ModelProfile, after: ModelProfile) -> Iterator[Change]:
    """Yield one change per module that differs between the profiles.

    They are in the order of the second profile; removed modules come last.
    """
    old, new = ({row.path: row for row in profile.modules} for profile in (before, after))
    old_whole, new_whole = _figures(before), _figures(after)
    old_own, new_own = _own_figures(before, old_whole), _own_figures(after, new_whole)
    containers = {row.parent for row in (*before.modules, *after.modules)}
    for path, row in new.items():
        if path not in old:
            # Modules inside an added one are part of its change.
            if row.parent is None or row.parent in old:
                yield Change(path, row.type, None, new_whole[path])
        elif _differ(old[path], row, old_own[path], new_own[path]):
            kinds = dict.fromkeys((old[path].type, row.type))
            yield Change(path, " → ".join(kinds), old_own[path], new_own[path], is_own=path in containers)
    for path, row in old.items():
        if path not in new and (row.parent is None or row.parent in new):
            yield Change(path, row.type, old_whole[path], None)


def _differ(old: ModuleRow, new: ModuleRow, before: Figures, after: Figures) -> bool:
    if old.type != new.type:
        return True
    # Counts are exact, so any difference is a change. Times vary: only spreads that do not overlap are one.
    if _counts(before) != _counts(after):
        return True
    # Own figures of a container have no time, and those of an unmeasured module neither.
    if before[TIME] is None or after[TIME] is None:
        return False
    spreads = old.forward_ms_spread, new.forward_ms_spread
    # A single measured call has no spread, so nothing can be said.
    if spreads[0] is None or spreads[1] is None:
        return False
    return spreads[0][1] < spreads[1][0] or spreads[1][1] < spreads[0][0]


def _figures(profile: ModelProfile) -> dict[str, Figures]:
    """Each module's figures, with those of the modules in it."""
    rows = profile.modules
    values = {shown.key: shown.column.values(profile, rows) for shown in shown_in("diff")}
    figures = zip(*values.values(), strict=True)
    return {row.path: dict(zip(values, of_row, strict=True)) for row, of_row in zip(rows, figures, strict=True)}


def _counts(figures: Figures | None) -> tuple[Any, ...] | None:
    """Return the figures that decide whether modules are equal.

    These are all but the time.
    """
    return None if figures is None else tuple(value for key, value in figures.items() if key != TIME)


def _own_figures(profile: ModelProfile, figures: Mapping[str, Figures]) -> dict[str, Figures]:
    """Return each module's figures without the modules inside it, by path.

    A container has no time of its own: the times inside it do not add up.
    """
    own = dict(figures)
    for row in profile.modules:
        if row.parent is not None and row.parent in own:
            whole, part = own[row.parent], figures[row.path]
            own[row.parent] = {key: None if key == TIME else whole[key] - part[key] for key in whole}
    return own


# --- Folds ------------------------------------------------------------------------------------------------------------

_DIGITS = re.compile(r"\d+")


def _folded(changes: Iterator[Change]) -> Iterator[Change]:
    """Yield changes, merging those with paths that differ only in numbers."""
    similar: dict[object, list[Change]] = {}
    for change in changes:
        # Figures are part of the key: layers that changed differently keep rows of their own.
        sides = _counts(change.before), _counts(change.after)
        key = (_DIGITS.sub("*", change.path), change.type, change.is_own, *sides)
        similar.setdefault(key, []).append(change)
    for group in similar.values():
        merged, *others = group
        for change in others:
            merged = _merged(merged, change)
        yield merged


def _merged(first: Change, second: Change) -> Change:
    # Both names match the same pattern, so they split into the same number of parts.
    parts = zip(re.split(r"(\d+|\*)", first.path), re.split(r"(\d+|\*)", second.path), strict=True)
    path = "".join(a if a == b else "*" for a, b in parts)
    before, after = _sum(first.before, second.before), _sum(first.after, second.after)
    return dataclasses.replace(first, path=path, before=before, after=after, modules=first.modules + second.modules)


def _sum(first: Figures | None, second: Figures | None) -> Figures | None:
    if first is None or second is None:
        return None
    return {key: None if None in (first[key], second[key]) else first[key] + second[key] for key in first}
