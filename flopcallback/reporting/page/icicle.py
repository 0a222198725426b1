"""The icicle of the page as data: shares of FLOPs and time that add up, of the forward and of a whole step.

A script draws it. What contains others has no share of its own here: it is as wide as what is inside.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from flopcallback.profile.rows import achieved_flops_per_s
from flopcallback.reporting.figures.rates import RateScale
from flopcallback.reporting.page.own_work import WAITING
from flopcallback.reporting.units import NOTHING, milliseconds, percent, si

if TYPE_CHECKING:
    from flopcallback.profile.model_profile import ModelProfile
    from flopcallback.profile.rows import ModuleRow
    from flopcallback.reporting.page.page_rows import PageRow, PageRows

__all__ = ["Icicle", "TypeShare"]

WHOLE = 10**7
"""What the shares of a figure add up to, so that the smallest that anyone can see are whole numbers."""


class TypeShare(NamedTuple):
    """Shares of all modules of a type, without the modules inside them.

    Attributes:
        type: class name, or what other work it is.
        modules: number of modules; None for other work.
        flops: share of the FLOPs as text.
        time: share of the time as text.
    """

    type: str
    modules: int | None
    flops: str
    time: str


@dataclass(frozen=True, slots=True)
class _Figure:
    """A figure that widths can show.

    Attributes:
        scope: `"forward"` or `"step"`.
        of: `"flops"` or `"time"`.
        values: by row, those of containers and of unknowns 0.
        total: what the rows that are in no fold add up to.
    """

    scope: str
    of: str
    values: list[float]
    total: float

    @property
    def key(self) -> str:
        return f"{self.scope} {self.of}"

    def shares(self) -> list[int]:
        """Divide by the total, in parts of `WHOLE`."""
        # Integers of any size divide exactly, and floats may have no quotient that is one.
        return [round(WHOLE * (value / self.total)) for value in self.values]


class Icicle:
    """Shares of the rows of a page.

    Attributes:
        figures: what widths can show, by name, such as `"step time"`; those that are 0 or unknown are left out.
        scale: classes of FLOP/s; None without any.
    """

    def __init__(self, profile: ModelProfile, rows: PageRows) -> None:
        self._profile, self._rows = profile, rows
        figures = [
            self._figure("forward", "flops", lambda row: row.flops),
            self._figure("forward", "time", _forward_time(profile)),
            self._figure("step", "flops", lambda row: row.step.total if row.step else 0),
            self._figure("step", "time", lambda row: row.time.total if row.time else 0.0),
        ]
        self.figures = {each.key: each for each in figures if 0 < each.total < math.inf}
        self.scale = RateScale.of(profile, self._rates())

    def _figure(self, scope: str, of: str, value: Callable[[ModuleRow], float | None]) -> _Figure:
        is_forward = scope == "forward"
        rows = zip(self._rows.rows, self._rows.tree, strict=True)
        values = [0 if inside or (is_forward and each.is_outside) else _plain(value(each.row)) for each, inside in rows]
        counted = [value for value, each in zip(values, self._rows.rows, strict=True) if not each.is_in_fold]
        return _Figure(scope, of, values, sum(counted))

    def leaves(self) -> Iterator[tuple[int, PageRow]]:
        """Yield the rows that add up to everything, with their places."""
        for index, (each, inside) in enumerate(zip(self._rows.rows, self._rows.tree, strict=True)):
            if not inside and not each.is_in_fold:
                yield index, each

    def _scope(self) -> str:
        """Return which scope has times, the whole step where there are any of it."""
        return "step" if "step time" in self.figures else "forward"

    def _rates(self) -> Iterator[tuple[float, float]]:
        """Yield FLOP/s and time of each leaf that has FLOPs."""
        flops, time = (self.figures.get(f"{self._scope()} {of}") for of in ("flops", "time"))
        if flops is None or time is None:
            return
        for index, _ in self.leaves():
            rate = achieved_flops_per_s(int(flops.values[index]), time.values[index])
            if rate:
                yield rate, time.values[index]

    def data(self) -> dict[str, Any] | None:
        """Build the plain JSON that the page's script draws; None if there is nothing to divide."""
        if not self.figures:
            return None
        return {
            "whole": WHOLE,
            "figures": {key: {"shares": each.shares(), **self._total(each)} for key, each in self.figures.items()},
            "scale": self.scale and {"reference": self.scale.reference, "limits": self.scale.limits},
            "isPeak": self.scale is not None and self.scale.is_peak,
            "waiting": {
                index: WAITING[each.row.path]
                for index, each in enumerate(self._rows.rows)
                if not each.modules and each.row.path in WAITING
            },
        }

    def _total(self, figure: _Figure) -> dict[str, Any]:
        text = si(figure.total, "FLOPs") if figure.of == "flops" else f"{milliseconds(figure.total)} ms"
        # Beyond the largest float there is no rate either.
        return {"total": float(figure.total) if figure.total < 1e300 else None, "text": text}

    def types(self, limit: int) -> list[TypeShare]:
        """Return FLOPs and time by type, the one with the most time first; they add up to everything.

        Args:
            limit: number of types at most; the others share a row.
        """
        flops, time = (self.figures.get(f"{self._scope()} {of}") for of in ("flops", "time"))
        if time is None:
            return []
        shares: dict[str, list[float]] = {}
        modules: dict[str, set[int]] = {}
        for index, each in self.leaves():
            kind, module = self._type_of(index, each)
            part = shares.setdefault(kind, [0.0, 0.0])
            part[0] += flops.values[index] / flops.total if flops else 0.0
            part[1] += time.values[index] / time.total
            modules.setdefault(kind, set()).update(() if module is None else (module,))
        ranked = sorted(shares, key=lambda kind: -shares[kind][1])
        if len(ranked) > limit:
            others = ranked[limit - 1 :]
            together = f"{len(others):,} others"
            shares[together] = [sum(shares[kind][place] for kind in others) for place in (0, 1)]
            ranked = [*ranked[: limit - 1], together]
        return [
            TypeShare(
                kind,
                len(modules.get(kind, ())) or None,
                percent(shares[kind][0]) if flops else NOTHING,
                percent(shares[kind][1]),
            )
            for kind in ranked
        ]

    def _type_of(self, index: int, each: PageRow) -> tuple[str, int | None]:
        """Return what kind of work a leaf is, and the place of its module if it is all of one."""
        if each.modules:
            return (each.row.type, index) if each.row.type else (each.row.path, None)
        if each.is_outside:
            return "outside of the model", None
        above = self._rows.rows[each.parent]
        # A module without others inside is all its operators'.
        if each.parent and all(not self._rows.rows[child].modules for child in self._rows.tree[each.parent]):
            return above.row.type or above.row.path, each.parent
        if each.row.path in WAITING:
            return f"{each.row.path}, between modules", None
        return f"{above.row.type or above.row.path}: {each.name}", None


def _forward_time(profile: ModelProfile) -> Callable[[ModuleRow], float | None]:
    """Choose the time of the forward: of the step's own records, where there are any, so that operators are in it."""
    if profile.root is not None and profile.root.time is not None:
        return lambda row: row.time.forward if row.time else 0.0
    return lambda row: row.forward_ms


def _plain(value: float | None) -> float:
    """Return a number that can be added up: what is unknown, no number or below 0 is 0."""
    return value if value is not None and math.isfinite(value) and value > 0 else 0
