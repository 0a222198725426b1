"""The figures of a comparison as its page draws them: where points, lines and ticks stand, in percent of the plot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from flopcallback.reporting.figures.axes import Axis, Frame
from flopcallback.runs.comparison import Comparison, RunRow

__all__ = ["Plot", "PlotLine", "PlotPoint", "curves", "flops_against_latency", "metric_and_compute"]

MOST_TICKS = 7

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
    known = {
        index: (first, second)
        for index, (first, second) in enumerate(pairs)
        if first is not None and second is not None and math.isfinite(first) and math.isfinite(second)
    }
    if not known:
        return None
    frame = _frame(list(known.values()))
    x_ticks, y_ticks = frame.ticks_in_percent(frame.x.ticks(MOST_TICKS), frame.y.ticks(MOST_TICKS))
    front = sorted(known[index] for index in known if rows[index].is_on_front) if with_front else []
    return Plot(
        points=[PlotPoint(index, *_percent(frame, pair)) for index, pair in known.items()],
        x_ticks=x_ticks,
        y_ticks=y_ticks,
        front=_path(frame, _stair(front)),
        missing=[row.name for index, row in enumerate(rows) if index not in known],
    )


def _frame(pairs: Sequence[tuple[float, float]]) -> Frame:
    return Frame(Axis.around([pair[0] for pair in pairs]), Axis.around([pair[1] for pair in pairs]))


def _percent(frame: Frame, pair: tuple[float, float]) -> tuple[float, float]:
    return frame.percent(frame.x.place(pair[0]), frame.y.place(pair[1]))


def _path(frame: Frame, pairs: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in (_percent(frame, pair) for pair in pairs))


def _stair(front: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """What can be had for so much compute: it stays as it is until the next run is paid for."""
    corners = [corner for (_, before), (cost, after) in pairwise(front) for corner in ((cost, before), (cost, after))]
    return [*front[:1], *corners]


def _thinned(curve: Sequence[tuple[float, float]], runs: int) -> list[tuple[float, float]]:
    """Every so many-th place of a curve, and its last."""
    most = max(FEWEST, MOST_PLACES // runs)
    stride = math.ceil(len(curve) / most)
    return [*curve[:-1:stride], curve[-1]]
