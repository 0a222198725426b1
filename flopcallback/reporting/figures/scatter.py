"""FLOPs against time as the HTML page draws it: where each point, tick and line stands, in percent of the plot."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flopcallback.reporting.figures.axes import FlopsAndTime, heaviest_types, thinned, tick_label
from flopcallback.reporting.flops_and_time import measured_leaves

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
    measured = measured_leaves(profile)
    if not measured:
        return None
    rows = sorted(measured, key=lambda row: -(row.forward_ms or 0.0))[:MOST_POINTS]
    frame = FlopsAndTime.around(rows, ROOM)
    legend = heaviest_types(((row.type, row.forward_ms or 0.0) for row in rows), colours)
    places = {row.path: index for index, row in enumerate(profile.modules)}
    # 2 and 5 times the powers of ten, too, where few would be in the picture.
    parts = (1, 2, 5) if frame.y.high - frame.y.low < 2 else (1,)
    x_ticks, y_ticks = frame.ticks_in_percent(frame.flops_ticks(MOST_TICKS), frame.time_ticks(parts))
    peak = math.log10(profile.peak_flops_per_s) if profile.peak_flops_per_s else None
    return Scatter(
        modules=len(measured),
        points=[_point(profile, row, places[row.path], frame, legend) for row in rows],
        x_ticks=x_ticks,
        y_ticks=y_ticks,
        lines=list(_equal_rates(frame, peak)),
        peak=None if peak is None else _rate_line(frame, peak, "peak"),
        zero_band=None if frame.zero_band is None else frame.percent(frame.zero_band, 0.0)[0],
        legend=legend,
        has_others=any(row.type not in legend for row in rows),
    )


def _point(profile: ModelProfile, row: ModuleRow, index: int, frame: FlopsAndTime, legend: Sequence[str]) -> Point:
    x = math.log10(row.hw_flops) if row.hw_flops > 0 else frame.zero or 0.0
    colour = legend.index(row.type) if row.type in legend else None
    return Point(index, *frame.percent(x, math.log10(row.forward_ms or 1.0)), colour, profile.is_above_peak(row))


def _equal_rates(frame: FlopsAndTime, peak: float | None) -> Iterator[Line]:
    """Lines at powers of ten of FLOP/s, every second or third where there would be too many, none at the peak's label.

    `peak` is the power of ten of the device's peak; None where it is not known.
    """
    for rate in thinned(frame.rates(), MOST_LINES):
        line = _rate_line(frame, rate, tick_label(10**rate, "FLOP/s"))
        is_at_peak = peak is not None and abs(rate - peak) < LABEL_HEIGHT * (frame.y.high - frame.y.low)
        if line is not None and not is_at_peak:
            yield line


def _rate_line(frame: FlopsAndTime, rate: float, label: str) -> Line | None:
    left = frame.x.low if frame.zero_band is None else frame.zero_band
    x1, y1, x2, y2 = frame.rate_line(rate, left)
    if x2 - x1 < SHORTEST_LINE * (frame.x.high - frame.x.low):
        return None
    return Line(label, *frame.percent(x1, y1), *frame.percent(x2, y2), leaves_above=x2 < frame.x.high)
