"""FLOPs against time for the HTML page: points, ticks and lines.

All places are in percent of the plot.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flopcallback.reporting.figures.axes import FlopsAndTime, heaviest_types, thinned, tick_label
from flopcallback.reporting.measured import is_of_step, measured_points
from flopcallback.reporting.points import bound_of_point, memory_line
from flopcallback.reporting.units import si

if TYPE_CHECKING:
    from flopcallback.profile.model_profile import ModelProfile
    from flopcallback.reporting.points import Point as Measured

__all__ = ["Line", "Point", "Scatter", "scatter"]

# A browser could draw more, but readers could not tell them apart.
MOST_POINTS = 1500

MOST_TICKS, MOST_LINES = 6, 7

# Share of the width. A shorter line only cuts a corner off, and its label has no room.
SHORTEST_LINE = 0.1

# Share of the height. Labels of closer lines would overlap.
LABEL_HEIGHT = 0.08

# Decades left free to the left of the points, to the right, below and above.
ROOM = (0.35, 0.45, 0.25, 0.3)


@dataclass(frozen=True, slots=True)
class Point:
    """A module in the figure, or an operator of a module's own.

    Attributes:
        index: row of the module.
        x: percent from the left.
        y: percent from the top.
        colour: place of its type in the legend; None for `others`.
        is_above_peak: True if its FLOP/s exceed the device's peak.
        name: name to show; empty for the model itself.
        bound: what sets its pace: `compute`, `memory` or `launches`; empty if unknown.
        flops: FLOPs in its time.
        ms: milliseconds.
    """

    index: int
    x: float
    y: float
    colour: int | None
    is_above_peak: bool
    name: str = ""
    bound: str = ""
    flops: int = 0
    ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Line:
    """A line of equal FLOP/s, rising from left to right.

    Attributes:
        label: rate, or `peak`.
        x1: left end in percent, as are `y1`, `x2` and `y2`.
        leaves_above: True if it ends at the upper edge.
    """

    label: str
    x1: float
    y1: float
    x2: float
    y2: float
    leaves_above: bool


@dataclass(frozen=True, slots=True)
class Scatter:
    """Time against FLOPs of innermost modules and of the own operators of others, on logarithmic axes.

    All places are in percent, from the left and from the top.

    Attributes:
        modules: number of measured points.
        points: the slowest of them, in drawing order.
        x_ticks: places and labels, as are `y_ticks`.
        lines: lines of equal FLOP/s.
        peak: line of the device's peak; None if it is unknown or outside of the figure.
        zero_band: right edge of the band for modules without FLOPs; None if all have some.
        legend: types with a colour of their own, those with the most time first; operators are types of their own.
        has_others: True if there are points of other types.
        roof: line of the most FLOP/s that the memory allows at the FLOPs per byte of all points together; None if
            unknown, above the peak or outside of the figure.
        is_of_step: True if times and FLOPs are those of a training step, False if of the counted call.
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
    roof: Line | None = None
    is_of_step: bool = False


def scatter(profile: ModelProfile, colours: int) -> Scatter | None:
    """Lay out the figure of a profile; None without measured modules.

    Args:
        profile: profile to draw.
        colours: number of colours for types.
    """
    measured = measured_points(profile)
    if not measured:
        return None
    points = sorted(measured, key=lambda point: -point.ms)[:MOST_POINTS]
    frame = FlopsAndTime.around(points, ROOM)
    legend = heaviest_types(((point.type, point.ms) for point in points), colours)
    indices = {row.path: index for index, row in enumerate(profile.modules)}
    # Powers of ten alone would be few on a short axis.
    parts = (1, 2, 5) if frame.y.high - frame.y.low < 2 else (1,)
    x_ticks, y_ticks = frame.ticks_in_percent(frame.flops_ticks(MOST_TICKS), frame.time_ticks(parts))
    peak = math.log10(profile.peak_flops_per_s) if profile.peak_flops_per_s else None
    return Scatter(
        modules=len(measured),
        points=[_point(profile, point, indices.get(point.row.path, 0), frame, legend) for point in points],
        x_ticks=x_ticks,
        y_ticks=y_ticks,
        lines=list(_equal_rates(frame, peak)),
        peak=None if peak is None else _rate_line(frame, peak, "peak"),
        zero_band=None if frame.zero_band is None else frame.percent(frame.zero_band, 0.0)[0],
        legend=legend,
        has_others=any(point.type not in legend for point in points),
        roof=_roof(profile, measured, frame),
        is_of_step=is_of_step(profile),
    )


def _roof(profile: ModelProfile, points: Sequence[Measured], frame: FlopsAndTime) -> Line | None:
    roof = memory_line(profile, points)
    if roof is None:
        return None
    return _rate_line(frame, math.log10(roof.flops_per_s), f"memory at {si(roof.flops_per_byte)} FLOPs/byte")


def _point(profile: ModelProfile, point: Measured, index: int, frame: FlopsAndTime, legend: Sequence[str]) -> Point:
    x = math.log10(point.flops) if point.flops > 0 else frame.zero or 0.0
    x, y = frame.percent(x, math.log10(point.ms))
    colour = legend.index(point.type) if point.type in legend else None
    bound = bound_of_point(profile, point)
    return Point(index, x, y, colour, profile.is_above_peak(point), point.path, bound, point.flops, point.ms)


def _equal_rates(frame: FlopsAndTime, peak: float | None) -> Iterator[Line]:
    """Yield lines at powers of ten of FLOP/s.

    If there are too many, only every second or third is drawn. A line whose label would overlap the peak's is left out.

    Args:
        frame: axes.
        peak: power of ten of the device's peak; None if unknown.
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
