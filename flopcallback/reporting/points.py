"""A point: work that is timed as one, such as a module, or an operator of a module's own."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from flopcallback.profile.roofline import bound_by, memory_roof
from flopcallback.profile.rows import ModuleRow
from flopcallback.reporting.tree import OWN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flopcallback.profile.model_profile import ModelProfile
    from flopcallback.profile.roofline import Bound

__all__ = ["OPTIMIZER", "OTHERS", "Point", "Roof", "bound_of_point", "memory_line"]

OPTIMIZER = "optimizer"
"""`Point.operator` of all that the optimizers do."""

OTHERS = "other operators"
"""`Point.operator` of a module's own operators that take too little time to be told apart."""

# Such as `norm`, or `layers.0 … 23`.
_LAST_NAME = re.compile(r"(?:[^.]*\.)?\d[\d …]*$|[^.]*$")


@dataclass(frozen=True, slots=True)
class Point:
    """Work that is timed as one.

    Attributes:
        row: row of its module; the root's for work outside of the model.
        place: path of the module, with folds in it (`layers.0 … 23.self_attn`); empty for the model itself.
        operator: name of the module's own operator; empty for a whole module.
        ms: milliseconds: of a training step if `is_of_step`, else of the counted call.
        flops: FLOPs in that time.
        bytes: bytes that are read and written in that time; None if unknown.
        forward_bytes: bytes in the counted call; None if unknown.
        activations: activations of the counted call; None if unknown.
        calls: calls of operators in that time; 0 if unknown.
        overhead_ms: part of `ms` in Python and launches, or in which the device was idle.
        modules: number of modules in it.
        is_outside: True for work outside of the model, such as its loss.
        time_share: share of all the time, 0 to 1.
        flops_share: share of the FLOPs in that time, 0 to 1.
    """

    row: ModuleRow
    place: str
    operator: str
    ms: float
    flops: int
    bytes: int | None = None
    forward_bytes: int | None = None
    activations: int | None = None
    calls: int = 0
    overhead_ms: float = 0.0
    modules: int = 1
    is_outside: bool = False
    time_share: float = 0.0
    flops_share: float = 0.0

    @property
    def path(self) -> str:
        """Name to show, such as `self_attn: scaled_dot_product_attention`; empty for the model itself."""
        if self.operator == OWN:
            return f"{self.place or self.row.type} {OWN}"
        if self.is_outside:
            return f"outside of the model: {OTHERS}" if self.operator == OTHERS else self.operator
        return f"{self.place or self.row.type}: {self.operator}" if self.operator else self.place

    @property
    def short_path(self) -> str:
        """The end of `path`: the module's own name, with the one before where it is only a number."""
        if self.is_outside or not self.place:
            return self.path
        end = _LAST_NAME.search(self.place)
        return self.path.removeprefix(self.place[: end.start()] if end else "")

    @property
    def type(self) -> str:
        """Class of the module, or name of the operator."""
        return self.operator or self.row.type

    @property
    def forward_ms(self) -> float:
        """The milliseconds, under the name that rows have for them."""
        return self.ms


class Roof(NamedTuple):
    """The most FLOP/s that memory allows at so many FLOPs per byte."""

    flops_per_s: float
    flops_per_byte: float


def memory_line(profile: ModelProfile, points: Sequence[Point]) -> Roof | None:
    """Return the roof of memory at the FLOPs per byte of all points together.

    None if it is unknown, or if the device's peak allows no more.
    """
    known = [(flops, moved) for flops, moved in map(_flops_and_bytes, points) if flops and moved]
    flops, moved = sum(flops for flops, _ in known), sum(moved for _, moved in known)
    roof = memory_roof(flops, moved, peak=profile.peak_flops_per_s, bandwidth=profile.peak_bytes_per_s)
    return None if roof is None else Roof(roof, flops / moved)


def bound_of_point(profile: ModelProfile, point: Point) -> Bound:
    """Return what sets the pace of a point.

    Where the bytes of its time are not known, the FLOPs per byte are those of the counted call.
    """
    flops, moved = _flops_and_bytes(point)
    return bound_by(
        flops,
        moved,
        point.ms,
        peak=profile.peak_flops_per_s,
        bandwidth=profile.peak_bytes_per_s,
        overhead_ms=point.overhead_ms,
        calls=point.calls,
    )


def _flops_and_bytes(point: Point) -> tuple[int, int | None]:
    """Return FLOPs, and the bytes that go with them."""
    if point.bytes is None and not point.operator:
        return point.row.flops, point.row.bytes
    return point.flops, point.bytes
