"""What differs between two profiles, module by module, and whether the second does more than it may."""

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
"""Figures of some modules, added up, by the keys of the columns that a diff has; None for what is not known of all."""

TIME = "forward_ms"
"""The one figure that is measured: two equal modules differ in it, and parts do not add up to the whole."""

_CONVENTION = {"flops.fma": "fma", "flops.elementwise": "elementwise"}
_CONDITIONS = {
    "flops.input_shapes": "input shapes",
    "flops.device": "device",
    "flops.dtype": "dtype",
    "flops.engine": "engine",
    "flops.version": "version of flopcallback",
}


@dataclass(frozen=True, slots=True)
class Change:
    """A module that is not in both profiles, or not the same in both; or several with the same change.

    The FLOPs of all changes together are the change of the total: none stands in two of them. So an added module comes
    with all that is in it, and in a module of both profiles it is its own operators that changed.

    Attributes:
        path: dotted name, with `*` where the names of several modules differ by a number.
        type: class name; `"Linear → Conv2d"` where it changed.
        before: figures in the first profile; None for an added module.
        after: figures in the second one; None for a removed module.
        is_own: whether the figures leave out modules inside, which there are.
        modules: how many modules this stands for.
    """

    path: str
    type: str
    before: Figures | None
    after: Figures | None
    is_own: bool = False
    modules: int = 1

    @property
    def status(self) -> Status:
        """Whether it is in both profiles, or in which one."""
        return "added" if self.before is None else "removed" if self.after is None else "changed"

    @property
    def flops(self) -> int:
        """FLOPs that came with the change; below 0 for those that went."""
        before, after = (0 if side is None else int(side["flops"]) for side in (self.before, self.after))
        return after - before


@dataclass(frozen=True, slots=True)
class ProfileDiff:
    """Two profiles and what differs between them.

    Attributes:
        before: the profile that is compared with.
        after: the profile that is compared.
        changes: by the size of their change in FLOPs, the largest first.
        notes: conditions under which the two were not counted alike, in words.
    """

    before: ModelProfile
    after: ModelProfile
    changes: tuple[Change, ...]
    notes: tuple[str, ...]

    @property
    def has_same_inputs(self) -> bool:
        """Whether both calls were given tensors of the same shapes, so that totals can be held against each other."""
        return self.before.config.get("flops.input_shapes") == self.after.config.get("flops.input_shapes")

    @property
    def new_unknown(self) -> tuple[str, ...]:
        """Operators and modules of which more is unknown in the second profile: FLOPs may hide there; else empty."""
        if not self.after.is_lower_bound:
            return ()
        calls = {row.operator: row.calls for row in self.before.operators if row.status == "unknown"}
        more = [
            r.operator for r in self.after.operators if r.status == "unknown" and r.calls > calls.get(r.operator, 0)
        ]
        return tuple(dict.fromkeys((*more, *(name for name in self.after.unknown if name not in self.before.unknown))))

    def flops_exceed(self, limit: Fraction) -> bool:
        """Whether FLOPs rose by more than this share of what they were, to the last FLOP."""
        return self.after.forward_flops - self.before.forward_flops > limit * self.before.forward_flops

    def latency_exceeds(self, limit: Fraction) -> bool:
        """Whether the measured forward takes longer by more than this share.

        Raises:
            ValueError: either was not measured.
        """
        before, after = self.before.forward_ms, self.after.forward_ms
        if before is None or after is None:
            raise ValueError("a limit for latency needs two profiles with measured times")
        return after - before > limit * Fraction(before)


def diff_profiles(before: ModelProfile, after: ModelProfile) -> ProfileDiff:
    """What differs between two profiles of a model; modules are the same where their names are.

    A time alone is a change where the spreads of the two windows do not meet.

    Raises:
        ValueError: the two do not count the same (`fma`, `elementwise`), so that no figure can be compared.
    """
    for key, name in _CONVENTION.items():
        values = before.config.get(key), after.config.get(key)
        if values[0] != values[1]:
            raise ValueError(
                f"the profiles follow different conventions: {name} is {values[0]!r} in the first and {values[1]!r} in "
                "the second. Count both with the same."
            )
    changes = sorted(_folded(_changes(before, after)), key=lambda change: -abs(change.flops))
    return ProfileDiff(before, after, tuple(changes), tuple(_notes(before, after)))


def parse_share(text: str | float) -> Fraction:
    """A share, exactly as it is written: `"2%"`, `"0.02"` or `0.02` are two hundredths.

    Raises:
        ValueError: not a number, below 0, or a number from 1 on without `%`, which might be meant as percent.
    """
    written = str(text).strip()
    percent = written.removesuffix("%")
    try:
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
    """Where the conditions differ, in words."""
    pairs = {name: (before.config.get(key), after.config.get(key)) for key, name in _CONDITIONS.items()}
    pairs = {"model": (before.name, after.name), "phase": (before.phase, after.phase), **pairs}
    for name, (first, second) in pairs.items():
        if first != second:
            yield f"{name} differs: {first} before, {second} after"


# --- Modules ----------------------------------------------------------------------------------------------------------


def _changes(before: ModelProfile, after: ModelProfile) -> Iterator[Change]:
    """A change for each module that is not the same in both, in the order of the second profile, removed ones last."""
    old, new = {row.path: row for row in before.modules}, {row.path: row for row in after.modules}
    old_own, new_own = _own_figures(before), _own_figures(after)
    parents = {row.parent for row in (*before.modules, *after.modules)}
    for path, row in new.items():
        if path not in old:
            if row.parent is None or row.parent in old:
                yield Change(path, row.type, None, _figures(after, row))
        elif _differ(old[path], row, old_own[path], new_own[path]):
            kinds = dict.fromkeys((old[path].type, row.type))
            yield Change(path, " → ".join(kinds), old_own[path], new_own[path], is_own=path in parents)
    for path, row in old.items():
        if path not in new and (row.parent is None or row.parent in new):
            yield Change(path, row.type, _figures(before, row), None)


def _differ(old: ModuleRow, new: ModuleRow, before: Figures, after: Figures) -> bool:
    if old.type != new.type:
        return True
    if _counts(before) != _counts(after):
        return True
    if before[TIME] is None or after[TIME] is None:
        return False
    spreads = old.forward_ms_spread, new.forward_ms_spread
    if spreads[0] is None or spreads[1] is None:
        return False
    return spreads[0][1] < spreads[1][0] or spreads[1][1] < spreads[0][0]


def _figures(profile: ModelProfile, row: ModuleRow) -> Figures:
    return {shown.key: shown.column.value(profile, row) for shown in shown_in("diff")}


def _counts(figures: Figures | None) -> tuple[Any, ...] | None:
    """What has to be equal in modules that are alike: all but the time."""
    return None if figures is None else tuple(value for key, value in figures.items() if key != TIME)


def _own_figures(profile: ModelProfile) -> dict[str, Figures]:
    """Each module's figures without those of the modules in it, and then without a time, since times do not add up."""
    own = {row.path: _figures(profile, row) for row in profile.modules}
    for row in profile.modules:
        if row.parent is not None and row.parent in own:
            whole, part = own[row.parent], _figures(profile, row)
            own[row.parent] = {key: None if key == TIME else whole[key] - part[key] for key in whole}
    return own


# --- Folds ------------------------------------------------------------------------------------------------------------

_DIGITS = re.compile(r"\d+")


def _folded(changes: Iterator[Change]) -> Iterator[Change]:
    """The changes with those made one that differ by a number in the name alone, as in a stack of layers."""
    alike: dict[object, list[Change]] = {}
    for change in changes:
        sides = _counts(change.before), _counts(change.after)
        key = (_DIGITS.sub("*", change.path), change.type, change.is_own, *sides)
        alike.setdefault(key, []).append(change)
    for group in alike.values():
        first, *others = group
        for other in others:
            first = _together(first, other)
        yield first


def _together(first: Change, second: Change) -> Change:
    parts = zip(re.split(r"(\d+|\*)", first.path), re.split(r"(\d+|\*)", second.path), strict=True)
    path = "".join(a if a == b else "*" for a, b in parts)
    before, after = _sum(first.before, second.before), _sum(first.after, second.after)
    return dataclasses.replace(first, path=path, before=before, after=after, modules=first.modules + second.modules)


def _sum(one: Figures | None, other: Figures | None) -> Figures | None:
    if one is None or other is None:
        return None
    return {key: None if None in (one[key], other[key]) else one[key] + other[key] for key in one}
