"""The figures of a comparison as its page draws them: where points, lines and ticks stand, in percent of the plot."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from flopcallback.reporting.units import si
from flopcallback.runs.comparison import Comparison, RunRow

__all__ = ["Plot", "PlotLine", "PlotPoint", "curves", "flops_against_latency", "metric_and_compute"]

MOST_TICKS = 7

LOG_FROM = 20
"""An axis is logarithmic where its largest value is so many times the smallest."""

ROOM = 0.06
"""Of an axis, left free at either end."""

MOST_PLACES = 20_000
"""Of all curves together; each keeps at least `FEWEST` and its last."""

FEWEST = 20


@dataclass(frozen=True, slots=True)
class PlotPoint:
    """The run in row `index`; percent from the left and from the top."""

    index: int
    x: float
    y: float


@dataclass(frozen=True, slots=True)
class PlotLine:
    """The run in row `index`, as SVG has the places of a line: `"0,100 50,20"`."""

    index: int
    places: str


@dataclass(frozen=True, slots=True)
class Plot:
    """One figure.

    Attributes:
        front: the Pareto front as a stair, as SVG has the places of a line; empty where there is none.
        missing: names of the runs that have not the figures for it.
    """

    points: Sequence[PlotPoint]
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]
    lines: Sequence[PlotLine] = ()
    front: str = ""
    missing: Sequence[str] = ()


def metric_and_compute(comparison: Comparison) -> Plot | None:
    """The metric over the compute spent, a point per run, and the front; None where no run has both."""
    pairs = [(row.compute, row.metric) for row in comparison.rows]
    return _scatter(comparison.rows, pairs, with_front=True)


def flops_against_latency(comparison: Comparison) -> Plot | None:
    """The time of the counted call over its FLOPs, a point per run; None where no run has both."""
    pairs = [(row.value("flops"), row.value("forward_ms")) for row in comparison.rows]
    return _scatter(comparison.rows, pairs, with_front=False)


def curves(comparison: Comparison) -> Plot | None:
    """The metric over the compute spent until then, a line per run that ends in a point; None where there is none."""
    drawn = {index: _thinned(row.curve, len(comparison.rows)) for index, row in enumerate(comparison.rows) if row.curve}
    if not drawn:
        return None
    places = [place for curve in drawn.values() for place in curve]
    x, y = _Axis.around([place[0] for place in places]), _Axis.around([place[1] for place in places])
    return Plot(
        points=[PlotPoint(index, x.percent(curve[-1][0]), y.down(curve[-1][1])) for index, curve in drawn.items()],
        x_ticks=list(x.ticks()),
        y_ticks=[(100 - place, label) for place, label in y.ticks()],
        lines=[PlotLine(index, _places(curve, x, y)) for index, curve in drawn.items()],
        missing=[row.name for index, row in enumerate(comparison.rows) if index not in drawn],
    )


def _scatter(
    rows: Sequence[RunRow], pairs: Sequence[tuple[float | None, float | None]], *, with_front: bool
) -> Plot | None:
    known = {
        index: (first, second)
        for index, (first, second) in enumerate(pairs)
        if first is not None and second is not None and math.isfinite(first) and math.isfinite(second)
    }
    if not known:
        return None
    x, y = _Axis.around([pair[0] for pair in known.values()]), _Axis.around([pair[1] for pair in known.values()])
    front = sorted(known[index] for index in known if rows[index].is_on_front) if with_front else []
    return Plot(
        points=[PlotPoint(index, x.percent(first), y.down(second)) for index, (first, second) in known.items()],
        x_ticks=list(x.ticks()),
        y_ticks=[(100 - place, label) for place, label in y.ticks()],
        front=_places(_stair(front), x, y),
        missing=[row.name for index, row in enumerate(rows) if index not in known],
    )


def _stair(front: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """What can be had for so much compute: it stays as it is until the next run is paid for."""
    corners = [corner for (_, before), (cost, after) in pairwise(front) for corner in ((cost, before), (cost, after))]
    return [*front[:1], *corners]


def _places(pairs: Sequence[tuple[float, float]], x: _Axis, y: _Axis) -> str:
    return " ".join(f"{x.percent(first):g},{y.down(second):g}" for first, second in pairs)


def _thinned(curve: Sequence[tuple[float, float]], runs: int) -> list[tuple[float, float]]:
    """Every so many-th place of a curve, and its last."""
    most = max(FEWEST, MOST_PLACES // runs)
    stride = math.ceil(len(curve) / most)
    return [*curve[:-1:stride], curve[-1]]


@dataclass(frozen=True, slots=True)
class _Axis:
    """The values at both ends; of a logarithmic axis, their powers of ten."""

    low: float
    high: float
    is_log: bool

    @classmethod
    def around(cls, values: Sequence[float]) -> _Axis:
        least, most = min(values), max(values)
        is_log = least > 0 and most >= LOG_FROM * least
        low, high = (math.log10(least), math.log10(most)) if is_log else (float(least), float(most))
        room = ROOM * (high - low) or abs(low) / 2 or 1.0  # where all values are one, it stands in the middle
        return cls(low - room, high + room, is_log)

    def percent(self, value: float) -> float:
        place = math.log10(value) if self.is_log else float(value)
        return round(100 * (place - self.low) / (self.high - self.low), 2)

    def down(self, value: float) -> float:
        return round(100 - self.percent(value), 2)

    def ticks(self) -> Iterator[tuple[float, str]]:
        values = self._powers() if self.is_log else self._even()
        yield from ((self.percent(value), _label(value)) for value in values)

    def _powers(self) -> list[float]:
        decades = self.high - self.low
        parts = (1, 2, 5) if decades < 1.8 else (1, 3) if decades < 3.2 else (1,)
        tens = range(math.floor(self.low), math.ceil(self.high) + 1)
        values = [part * 10.0**ten for ten in tens for part in parts]
        inside = [value for value in values if self.low <= math.log10(value) <= self.high]
        return inside[:: max(1, math.ceil(len(inside) / MOST_TICKS))]

    def _even(self) -> list[float]:
        """Multiples of 1, 2 or 5 times a power of ten."""
        ten = 10.0 ** math.floor(math.log10((self.high - self.low) / MOST_TICKS))
        step = next(part * ten for part in (1, 2, 5, 10) if (self.high - self.low) / (part * ten) <= MOST_TICKS)
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        return [multiple * step for multiple in range(first, last + 1)]


def _label(value: float) -> str:
    """Three digits are enough: ticks are round."""
    if abs(value) < 1000:
        return f"{value:.4g}"
    number, _, prefix = si(value).partition(" ")
    return f"{number.rstrip('0').rstrip('.') if '.' in number else number} {prefix}".rstrip()
