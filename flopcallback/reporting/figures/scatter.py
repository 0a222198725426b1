"""FLOPs against time as the HTML page draws it: where each point, tick and line stands, in percent of the plot."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flopcallback.reporting.flops_and_time import measured_leaves
from flopcallback.reporting.units import si

if TYPE_CHECKING:
    from flopcallback.profile.model_profile import ModelProfile
    from flopcallback.profile.rows import ModuleRow

__all__ = ["Line", "Point", "Scatter", "scatter"]

MOST_POINTS = 1500
"""A browser draws more without complaint, and nobody tells them apart."""

MOST_TICKS, MOST_LINES = 6, 7

SHORTEST_LINE = 0.1
"""Of the width: what is shorter cuts a corner off, and its label would have no place."""

LABEL_HEIGHT = 0.08
"""Of the height: lines whose labels are nearer to each other would write one over the other."""

ROOM = (0.35, 0.45, 0.25, 0.3)
"""Decades left free to the left of the points, to the right, below and above."""

ZERO_BAND = 0.9
"""Decades between the smallest module that has FLOPs and the place of those that have none."""


@dataclass(frozen=True, slots=True)
class Point:
    """The module in row `index`; `colour` is a place in the legend, or None for `others`."""

    index: int
    x: float
    y: float
    colour: int | None
    is_above_peak: bool


@dataclass(frozen=True, slots=True)
class Line:
    """Equal FLOP/s, from the lower left to the upper right; `leaves_above` where it meets the upper edge."""

    label: str
    x1: float
    y1: float
    x2: float
    y2: float
    leaves_above: bool


@dataclass(frozen=True, slots=True)
class Scatter:
    """Measured time over hardware FLOPs of the innermost modules, both logarithmic; all places are percent, y down.

    Attributes:
        modules: how many were measured; `points` are the slowest of them, in the order they are drawn in.
        zero_band: right edge of the band in which modules without FLOPs stand; None where all have some.
        legend: types with a colour of their own, those that take the most time first.
        has_others: whether types without one are among the points.
        peak: the device's peak, where it crosses the picture.
    """

    modules: int
    points: Sequence[Point]
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]
    lines: Sequence[Line]
    peak: Line | None
    zero_band: float | None
    legend: Sequence[str]
    has_others: bool


def scatter(profile: ModelProfile, colours: int) -> Scatter | None:
    """The picture of a profile, with that many colours for types; None where no module was measured."""
    measured = [row for row in measured_leaves(profile) if math.isfinite(row.forward_ms or 0.0)]
    if not measured:
        return None
    rows = sorted(measured, key=lambda row: -(row.forward_ms or 0.0))[:MOST_POINTS]
    frame = _Frame.around(rows)
    legend = _legend(rows, colours)
    places = {row.path: index for index, row in enumerate(profile.modules)}
    peak = math.log10(profile.peak_flops_per_s) if profile.peak_flops_per_s else None
    return Scatter(
        modules=len(measured),
        points=[_point(profile, row, places[row.path], frame, legend) for row in rows],
        x_ticks=list(_flops_ticks(frame)),
        y_ticks=list(_time_ticks(frame)),
        lines=list(_equal_rates(frame, peak)),
        peak=None if peak is None else _rate_line(frame, peak, "peak"),
        zero_band=None if frame.zero is None else frame.x(frame.zero + ZERO_BAND / 2),
        legend=list(legend),
        has_others=any(row.type not in legend for row in rows),
    )


@dataclass(frozen=True, slots=True)
class _Frame:
    """The powers of ten at the edges: of FLOPs from left to right, of milliseconds from bottom to top.

    Attributes:
        least: the smallest FLOPs above 0; None where there are none.
        zero: where modules without FLOPs stand; None where there are none.
    """

    left: float
    right: float
    bottom: float
    top: float
    least: float | None
    zero: float | None

    @classmethod
    def around(cls, rows: Sequence[ModuleRow]) -> _Frame:
        powers = [math.log10(row.hw_flops) for row in rows if row.hw_flops > 0]
        times = [math.log10(row.forward_ms or 1.0) for row in rows]
        least = min(powers, default=None)
        has_zero = len(powers) < len(rows)
        zero = (least or 0.0) - ZERO_BAND if has_zero else None
        low = zero if zero is not None else least or 0.0
        left, right, below, above = ROOM
        high = max(powers, default=low + 2)
        return cls(low - left, high + right, min(times) - below, max(times) + above, least, zero)

    def x(self, power: float) -> float:
        return _percent(power, self.left, self.right)

    def y(self, power: float) -> float:
        return _percent(power, self.top, self.bottom)


def _percent(value: float, start: float, end: float) -> float:
    return round(100 * (value - start) / (end - start), 2)


def _point(profile: ModelProfile, row: ModuleRow, index: int, frame: _Frame, legend: Mapping[str, int]) -> Point:
    power = math.log10(row.hw_flops) if row.hw_flops > 0 else frame.zero or 0.0
    height = math.log10(row.forward_ms or 1.0)
    return Point(index, frame.x(power), frame.y(height), legend.get(row.type), profile.is_above_peak(row))


def _legend(rows: Sequence[ModuleRow], colours: int) -> dict[str, int]:
    """A colour for each of the types that take the most time."""
    times: Counter[str] = Counter()
    for row in rows:
        times[row.type] += row.forward_ms or 0.0  # type: ignore[assignment]  # a Counter adds up floats just as well
    kinds = [kind for kind, _ in times.most_common() if kind]
    return {kind: place for place, kind in enumerate(kinds[:colours])}


def _flops_ticks(frame: _Frame) -> Iterator[tuple[float, str]]:
    if frame.zero is not None:
        yield frame.x(frame.zero), "0"
    if frame.least is not None:
        powers = range(math.ceil(frame.least - 0.3), math.floor(frame.right) + 1)
        step = max(1, math.ceil(len(powers) / MOST_TICKS))
        yield from ((frame.x(power), _power(power)) for power in powers[::step])


def _time_ticks(frame: _Frame) -> Iterator[tuple[float, str]]:
    """Powers of ten, and 2 and 5 times these where few would be in the picture."""
    parts = (1, 2, 5) if frame.top - frame.bottom < 2 else (1,)
    for ten in range(math.floor(frame.bottom), math.ceil(frame.top) + 1):
        for part in parts:
            height = ten + math.log10(part)
            if frame.bottom <= height <= frame.top:
                yield frame.y(height), f"{part * 10.0**ten:g}"


def _power(power: int, unit: str = "") -> str:
    """A power of ten with its prefix: `1 M`, `100 G`."""
    return si(10**power if power >= 0 else 10.0**power, unit).replace(".00", "").replace(".0", "")


def _equal_rates(frame: _Frame, peak: float | None) -> Iterator[Line]:
    """Lines at powers of ten of FLOP/s, every second or third where there would be too many, none at the peak's label.

    `peak` is the power of ten of the device's peak; None where it is not known.
    """
    if frame.least is None:
        return
    slowest, fastest = math.ceil(frame.left - frame.top + 3), math.floor(frame.right - frame.bottom + 3)
    powers = range(slowest, fastest + 1)
    for power in powers[:: max(1, math.ceil(len(powers) / MOST_LINES))]:
        line = _rate_line(frame, power, _power(power, "FLOP/s"))
        is_at_peak = peak is not None and abs(power - peak) < LABEL_HEIGHT * (frame.top - frame.bottom)
        if line is not None and not is_at_peak:
            yield line


def _rate_line(frame: _Frame, rate: float, label: str) -> Line | None:
    """Where time in ms is FLOPs over 10^rate, within the frame: one decade to the right is one decade up."""
    left = frame.left if frame.zero is None else frame.zero + ZERO_BAND / 2
    start, end = max(left, frame.bottom + rate - 3), min(frame.right, frame.top + rate - 3)
    if end - start < SHORTEST_LINE * (frame.right - frame.left):
        return None
    x1, y1, x2, y2 = frame.x(start), frame.y(start - rate + 3), frame.x(end), frame.y(end - rate + 3)
    return Line(label, x1, y1, x2, y2, leaves_above=end < frame.right)
