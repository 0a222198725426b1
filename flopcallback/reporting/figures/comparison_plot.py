"""The figures of a comparison's page: places of points, lines and ticks.

All places are in percent of the plot.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from flopcallback.reporting.figures.axes import Axis, Frame
from flopcallback.runs.comparison import Comparison, RunRow

__all__ = ["Plot", "PlotLine", "PlotPoint", "curves", "flops_against_latency", "metric_and_compute"]

MOST_TICKS = 7

# For all curves together. Each curve keeps at least `FEWEST` places, and its last one.
MOST_PLACES = 20_000

FEWEST = 20

# Magnitudes beyond these are not drawn: the ends of an axis around them would leave what a float64 can hold.
SMALLEST, LARGEST = 1e-200, 1e200


@dataclass(frozen=True, slots=True)
class PlotPoint:
    """A point for a run.

    Attributes:
        index: row of the run.
        x: percent from the left.
        y: percent from the top.
    """

    index: int
    x: float
    y: float


@dataclass(frozen=True, slots=True)
class PlotLine:
    """A line for a run.

    Attributes:
        index: row of the run.
        places: the points as SVG writes them, such as `"0,100 50,20"`.
    """

    index: int
    places: str


@dataclass(frozen=True, slots=True)
class Plot:
    """One figure.

    Attributes:
        points: one point per run.
        x_ticks: places and labels, as are `y_ticks`.
        lines: one line per run; empty in a scatter plot.
        front: steps of the Pareto front as SVG writes them; empty if there is no front.
        missing: names of the runs without the numbers for this figure.
    """

    points: Sequence[PlotPoint]
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]
    lines: Sequence[PlotLine] = ()
    front: str = ""
    missing: Sequence[str] = ()


def metric_and_compute(comparison: Comparison) -> Plot | None:
    """Lay out the metric against the compute spent, with the Pareto front.

    There is one point per run; None if no run has both numbers.
    """
    pairs = [(row.compute, row.metric) for row in comparison.rows]
    return _scatter(comparison.rows, pairs, with_front=True)


def flops_against_latency(comparison: Comparison) -> Plot | None:
    """Lay out the time of the counted call against its FLOPs.

    There is one point per run; None if no run has both numbers.
    """
    pairs = [(row.value("flops"), row.value("forward_ms")) for row in comparison.rows]
    return _scatter(comparison.rows, pairs, with_front=False)


def curves(comparison: Comparison) -> Plot | None:
    """Lay out the metric against the compute spent so far.

    There is one line per run, which ends in a point; None if no run has any.
    """
    whole = [[pair for pair in row.curve if all(map(_can_be_drawn, pair))] for row in comparison.rows]
    drawn = {index: _thinned(curve, len(whole)) for index, curve in enumerate(whole) if curve}
    if not drawn:
        return None
    frame = _frame([pair for curve in drawn.values() for pair in curve])
    x_ticks, y_ticks = frame.ticks_in_percent(frame.x.ticks(MOST_TICKS), frame.y.ticks(MOST_TICKS))
    return Plot(
        points=[PlotPoint(index, *_percent(frame, curve[-1])) for index, curve in drawn.items()],
        x_ticks=x_ticks,
        y_ticks=y_ticks,
        lines=[PlotLine(index, _path(frame, curve)) for index, curve in drawn.items()],
        missing=[row.name for index, row in enumerate(comparison.rows) if index not in drawn],
    )


def _scatter(
    rows: Sequence[RunRow], pairs: Sequence[tuple[float | None, float | None]], *, with_front: bool
) -> Plot | None:
    drawn = {
        index: (first, second)
        for index, (first, second) in enumerate(pairs)
        if first is not None and second is not None and _can_be_drawn(first) and _can_be_drawn(second)
    }
    if not drawn:
        return None
    frame = _frame(list(drawn.values()))
    x_ticks, y_ticks = frame.ticks_in_percent(frame.x.ticks(MOST_TICKS), frame.y.ticks(MOST_TICKS))
    front = sorted(drawn[index] for index in drawn if rows[index].is_on_front) if with_front else []
    return Plot(
        points=[PlotPoint(index, *_percent(frame, pair)) for index, pair in drawn.items()],
        x_ticks=x_ticks,
        y_ticks=y_ticks,
        front=_path(frame, _stair(front)),
        missing=[row.name for index, row in enumerate(rows) if index not in drawn],
    )


def _can_be_drawn(value: float) -> bool:
    return value == 0 or SMALLEST <= abs(value) <= LARGEST


def _frame(pairs: Sequence[tuple[float, float]]) -> Frame:
    return Frame(Axis.around([pair[0] for pair in pairs]), Axis.around([pair[1] for pair in pairs]))


def _percent(frame: Frame, pair: tuple[float, float]) -> tuple[float, float]:
    return frame.percent(frame.x.place(pair[0]), frame.y.place(pair[1]))


def _path(frame: Frame, pairs: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in (_percent(frame, pair) for pair in pairs))


def _stair(front: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the corners of the Pareto front.

    The best metric stays the same until there is compute for the next run.
    """
    corners = [corner for (_, worse), (cost, better) in pairwise(front) for corner in ((cost, worse), (cost, better))]
    return [*front[:1], *corners]


def _thinned(curve: Sequence[tuple[float, float]], runs: int) -> list[tuple[float, float]]:
    """Return every nth place of a curve, and its last."""
    most = max(FEWEST, MOST_PLACES // runs)
    stride = math.ceil(len(curve) / most)
    return [*curve[:-1:stride], curve[-1]]
