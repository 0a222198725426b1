"""FLOPs against time, as a figure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from flopcallback.reporting.caption import headline
from flopcallback.reporting.figures.axes import PALETTE, FlopsAndTime, heaviest_types, thinned, tick_label
from flopcallback.reporting.figures.canvas import (
    GREY,
    GRID,
    INK,
    PALE,
    SMALL,
    WIDTH,
    canvas,
    drawable,
    shortened,
    style,
    write_title,
)
from flopcallback.reporting.measured import is_of_step, measured_points
from flopcallback.reporting.points import memory_line
from flopcallback.reporting.tree import end_of
from flopcallback.reporting.units import si

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation

    from flopcallback.profile.model_profile import ModelProfile
    from flopcallback.reporting.points import Point

__all__ = ["latency_chart"]

# Characters of a name.
LONGEST_LABEL = 26
# Characters of an own operator's name, which has its module in front if that fits.
LONGEST_OPERATOR = 30
# Points of the scatter that have a name.
LABELLED = 6
MOST_TICKS, MOST_LINES = 6, 5

# Decades left free around the points of the scatter: to the left, to the right, below and above.
ROOM = (0.4, 0.78, 0.3, 0.4)

# Height of a line of text in the scatter, in points.
LINE = 13


def latency_chart(profile: ModelProfile) -> Figure:
    """Draw the time of each innermost module, and of the own operators of others, against its FLOPs.

    Both axes are logarithmic; what has no FLOPs is at the left edge. Pale lines are equal FLOP/s, darker ones the
    device's peak, and what its memory allows. What has the most time, and the most time for its FLOPs, is named.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        ValueError: no module of the profile was measured.
    """
    points = measured_points(profile)
    if not points:
        raise ValueError("latency_chart: no module of this profile has a time; draw it from with_latency(...)")
    kinds = [point.type for point in points]
    times = [point.ms for point in points]
    colours = _colours(zip(kinds, times, strict=True))
    frame = FlopsAndTime.around(points, ROOM)
    places = [float(point.flops) if point.flops > 0 else 10 ** (frame.zero or 0.0) for point in points]
    with style():
        figure, axes = canvas(WIDTH * 0.95)
        write_title(axes, "FLOPs against time, module by module", headline(profile))
        drawn = [colours.get(kind, GREY) for kind in kinds]
        # Large points would cover each other.
        size = 46 if len(points) < 200 else 24
        _draw_axes(axes, frame)
        axes.scatter(places, times, s=size, c=drawn, alpha=0.75, edgecolors="white", linewidths=0.6, zorder=3)
        _draw_equal_rates(axes, frame)
        _draw_roofs(axes, frame, profile, points)
        _name_outliers(axes, points, places)
        axes.set_xlabel("FLOPs (2 per multiply-add)", color=PALE, fontsize=SMALL)
        time = "training step, ms" if is_of_step(profile) else "forward, ms (median)"
        axes.set_ylabel(time, color=PALE, fontsize=SMALL)
        _legend(axes, colours, kinds, loc="upper center", bbox_to_anchor=(0.45, -0.14), ncols=3)
    return figure


def _draw_axes(axes: Axes, frame: FlopsAndTime) -> None:
    """Set limits and round ticks, with `0` for modules without FLOPs."""
    axes.set(xscale="log", xlim=(10**frame.x.low, 10**frame.x.high))
    axes.set(yscale="log", ylim=(10**frame.y.low, 10**frame.y.high))
    x_ticks, y_ticks = list(frame.flops_ticks(MOST_TICKS)), frame.time_ticks((1, 2, 5))
    axes.set_xticks([10.0**place for place, _ in x_ticks], labels=[label for _, label in x_ticks])
    axes.set_yticks([10.0**place for place, _ in y_ticks], labels=[label for _, label in y_ticks])
    # A logarithmic axis of matplotlib has minor ticks with labels of its own.
    axes.minorticks_off()
    axes.tick_params(colors=PALE, length=0, labelsize=SMALL)
    if frame.zero_band is not None:
        axes.axvspan(10**frame.x.low, 10**frame.zero_band, color="#f5f7fa", zorder=0)


def _draw_equal_rates(axes: Axes, frame: FlopsAndTime) -> None:
    """Draw labelled lines at powers of ten of FLOP/s."""
    for rate in thinned(frame.rates(), MOST_LINES):
        _draw_rate(axes, frame, rate, tick_label(10**rate, "FLOP/s"), GRID)


def _draw_roofs(axes: Axes, frame: FlopsAndTime, profile: ModelProfile, points: Sequence[Point]) -> None:
    """Draw the device's peak, and what its memory allows, where they cross the figure."""
    peak, roof = profile.peak_flops_per_s, memory_line(profile, points)
    rates = [(peak, "peak")] if peak else []
    if roof is not None:
        rates.append((roof.flops_per_s, f"memory, {si(roof.flops_per_byte)}\nFLOPs/byte"))
    for rate, text in rates:
        _draw_rate(axes, frame, math.log10(rate), text, PALE, frame.zero_band)


def _draw_rate(axes: Axes, frame: FlopsAndTime, rate: float, text: str, colour: str, left: float | None = None) -> None:
    x1, y1, x2, y2 = frame.rate_line(rate, frame.x.low if left is None else left)
    if x1 >= x2:
        return
    axes.plot([10**x1, 10**x2], [10**y1, 10**y2], color=colour, linewidth=1, zorder=1)
    va, ink = "top" if x2 < frame.x.high else "center", GREY if colour == GRID else colour
    axes.annotate(text, (10**x2, 10**y2), (5, 0), textcoords="offset points", color=ink, fontsize=7, va=va)


def _name_outliers(axes: Axes, points: Sequence[Point], places: Sequence[float]) -> None:
    """Name the slowest points, and those furthest above the median rate.

    The median rate gives a time for a point's FLOPs; the latter take longest beyond that time.
    """
    from matplotlib.patheffects import withStroke

    timed = [(point.ms, point, place) for point, place in zip(points, places, strict=True)]
    rates = sorted(time / point.flops for time, point, _ in timed if point.flops > 0)
    ms_per_flop = rates[len(rates) // 2] if rates else 0.0
    slowest = sorted(timed, key=lambda point: -point[0])
    slowest_for_flops = sorted(timed, key=lambda point: ms_per_flop * point[1].flops - point[0])
    chosen: dict[tuple[str, int], tuple[float, Point, float]] = {}
    for ranking in (slowest, slowest_for_flops):
        new = [point for point in ranking if (point[1].type, point[1].flops) not in chosen]
        for point in new:
            if len(chosen) >= (LABELLED // 2 if ranking is slowest else LABELLED):
                break
            # One name for equal modules, whose points are close together.
            chosen.setdefault((point[1].type, point[1].flops), point)
    middle = math.sqrt(math.prod(axes.get_xlim()))
    names = []
    for time, named, place in chosen.values():
        left_half = place < middle
        name = axes.annotate(
            drawable(_label(named)),
            (place, time),
            xytext=(10 if left_half else -10, 0),
            textcoords="offset points",
            ha="left" if left_half else "right",
            va="center",
            fontsize=SMALL,
            color=INK,
            zorder=4,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )
        names.append(name)
    _move_apart(axes, names)


def _label(point: Point) -> str:
    if not point.operator:
        return shortened(end_of(point.path or point.type, LONGEST_LABEL), LONGEST_LABEL)
    name = point.short_path
    return shortened(name if len(name) <= LONGEST_OPERATOR else point.operator, LONGEST_OPERATOR)


def _move_apart(axes: Axes, names: Iterable[Annotation]) -> None:
    """Move names down, just as far as needed, so that none overlap."""
    # Texts have no extent before a layout.
    axes.figure.draw_without_rendering()  # type: ignore[union-attr]
    to_points = 72 / axes.figure.dpi
    placed: list[tuple[float, float, float]] = []  # left, right, height
    boxes = [(name, name.get_window_extent()) for name in names]
    for name, box in sorted(boxes, key=lambda pair: -pair[1].y0):
        height = box.y0
        for left, right, taken in sorted(placed, key=lambda extent: -extent[2]):
            if box.x0 < right and left < box.x1 and abs(height - taken) < LINE / to_points:
                height = taken - LINE / to_points
        placed.append((box.x0, box.x1, height))
        name.set_position((name.get_position()[0], (height - box.y0) * to_points))


def _colours(weights: Iterable[tuple[str, float]]) -> dict[str, str]:
    """Return colours for the types with the largest weights.

    All others are grey.
    """
    return dict(zip(heaviest_types(weights), PALETTE, strict=False))


def _legend(axes: Axes, colours: dict[str, str], kinds: Sequence[str], **where: Any) -> None:
    from matplotlib.patches import Patch

    patches = [Patch(color=colour, label=drawable(shortened(kind, 20))) for kind, colour in colours.items()]
    if set(kinds) - {*colours, ""}:
        patches.append(Patch(color=GREY, label="others"))
    # A single colour needs no explanation.
    if len(patches) > 1:
        axes.legend(handles=patches, frameon=False, labelcolor=INK, fontsize=SMALL, handlelength=0.9, **where)
