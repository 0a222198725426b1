"""Two figures of a profile: FLOPs by module, and FLOPs against time.

They are matplotlib's, drawn without pyplot, so that no backend is chosen and no global state changes. matplotlib is
imported when a figure is asked for.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Any

from flopcallback.profile.rows import share
from flopcallback.reporting.caption import at_least, headline
from flopcallback.reporting.figures.axes import PALETTE, FlopsAndTime, heaviest_types, tick_label
from flopcallback.reporting.measured import is_of_step, measured_points
from flopcallback.reporting.points import memory_line
from flopcallback.reporting.tree import OWN, end_of, widest_work
from flopcallback.reporting.units import milliseconds, percent, si

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from contextlib import AbstractContextManager

    import numpy as np
    import numpy.typing as npt
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation

    from flopcallback.profile.model_profile import ModelProfile
    from flopcallback.reporting.points import Point
    from flopcallback.reporting.tree import Node

__all__ = ["latency_chart", "module_chart", "pixels"]

INK, PALE, GRID, GREY = "#1f2933", "#7b8794", "#e4e7eb", "#a3adb8"

# Nine inches are then 954 pixels: TensorBoard has room for 973 in a window of 1400.
DPI = 106

# Characters of a name beside a bar, and of one inside the scatter.
LONGEST_NAME, LONGEST_LABEL = 48, 32
# Points of the scatter that have a name.
LABELLED = 6
BAR, THIN_BAR = 0.72, 0.16
# Shares of the width of the bar chart: of one character, and of the longest bar at least, however long the texts are.
CHARACTER, LEAST_BAR = 0.0083, 0.12

MOST_TICKS = 15

# Decades left free around the points of the scatter: to the left, to the right, below and above.
ROOM = (0.4, 0.78, 0.3, 0.4)

# Height of a line of text in the scatter, in points.
LINE = 13


def module_chart(profile: ModelProfile, *, limit: int = 20) -> Figure:
    """Draw the modules with the most FLOPs as bars, coloured by type.

    They are the nodes of `widest_work`, the largest on top. If there are times, a thin bar below each shows the share
    of the time, on the same scale as the share of the FLOPs.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    nodes = widest_work(profile, limit)
    types = [_kind(node) for node in nodes]
    colours = _colours(zip(types, (node.flops for node in nodes), strict=True))
    is_timed = any(share(node.forward_ms, profile.forward_ms) is not None for node in nodes)
    # The node of all small modules has no type. Its bar is cut if it is longer than all others.
    longest = max((max(_shares(profile, node)) for node, kind in zip(nodes, types, strict=True) if kind), default=0.0)
    with _style():
        figure, axes = _canvas(width=9, height=1.4 + (0.4 if is_timed else 0.33) * max(len(nodes), 3))
        _title(axes, "Where the compute goes", headline(profile))
        texts = []
        for place, (node, kind) in enumerate(zip(nodes, types, strict=True)):
            lengths = [part / (longest or 1.0) for part in _shares(profile, node)]
            _draw_bars(axes, place, lengths, colours.get(kind, GREY), alpha=1 if kind else 0.4, is_timed=is_timed)
            texts.append(_amount(profile, node) + ("   (bar cut)" if max(lengths) > 1 else ""))
            axes.text(min(1.0, max(lengths)) + 0.008, place, texts[-1], va="center", color=INK, fontsize=10.5)
        names = [drawable(_shortened(node.path or profile.name)) for node in nodes]
        axes.set_yticks(range(len(nodes)), labels=names, fontsize=10.5, color=INK)
        axes.set_ylim(max(len(nodes), 3) - 0.4, -0.6)
        # The x-axis extends beyond the longest bar, far enough for the text beside it.
        left, right = (0.01 + CHARACTER * max(map(len, texts_at_side), default=0) for texts_at_side in (names, texts))
        axes.set_xlim(0, (1 - left) / max(1 - left - right, LEAST_BAR))
        axes.set_xticks([])
        axes.tick_params(axis="y", length=0)
        extra = {"share of the time": INK} if is_timed else {}
        _legend(axes, colours, types, extra=extra, loc="upper right", bbox_to_anchor=(1, 0), ncols=3)
        if not nodes:
            axes.text(0.5, 0.5, "no FLOPs were counted", transform=axes.transAxes, ha="center", color=PALE)
    return figure


def _draw_bars(axes: Axes, place: int, lengths: Sequence[float], colour: str, *, alpha: float, is_timed: bool) -> None:
    """Draw the bar of the FLOPs and that of the time.

    A bar longer than the axis ends at its edge.
    """
    flops, time = (min(length, 1.0) for length in lengths)
    thin = THIN_BAR if is_timed else 0.0
    axes.barh(place - thin / 2, flops, height=BAR - thin, color=colour, alpha=alpha, zorder=2)
    if is_timed:
        axes.barh(place + (BAR - thin) / 2, time, height=thin, color=INK, zorder=2)


def _shares(profile: ModelProfile, node: Node) -> tuple[float, float]:
    """Return the node's shares of FLOPs and time; 0 if unknown."""
    return share(node.flops, profile.forward_flops) or 0.0, share(node.forward_ms, profile.forward_ms) or 0.0


def _amount(profile: ModelProfile, node: Node) -> str:
    bound = at_least(node.unknown_calls > 0)
    flops = f"{bound}{si(node.flops)}   {percent(share(node.flops, profile.forward_flops))}"
    time = share(node.forward_ms, profile.forward_ms)
    return flops if time is None else f"{flops}   {milliseconds(node.forward_ms)} ms   {percent(time)}"


def _kind(node: Node) -> str:
    return "own operators" if node.label == OWN else node.type


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
    with _style():
        figure, axes = _canvas(width=9, height=6.2)
        _title(axes, "FLOPs against time, module by module", headline(profile))
        drawn = [colours.get(kind, GREY) for kind in kinds]
        # Large points would cover each other.
        size = 46 if len(points) < 200 else 24
        _draw_axes(axes, frame)
        axes.scatter(places, times, s=size, c=drawn, alpha=0.75, edgecolors="white", linewidths=0.6, zorder=3)
        _draw_equal_rates(axes, frame)
        _draw_roofs(axes, frame, profile, points)
        _name_outliers(axes, points, places)
        axes.set_xlabel("FLOPs (2 per multiply-add)", color=PALE)
        axes.set_ylabel("training step, ms" if is_of_step(profile) else "forward, ms (median)", color=PALE)
        _legend(axes, colours, kinds, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=4)
    return figure


def pixels(figure: Figure) -> npt.NDArray[np.uint8]:
    """Draw the figure as height × width × 3 bytes.

    The bytes are red, green and blue.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from numpy import asarray

    canvas: Any = FigureCanvasAgg(figure)  # its methods have no types
    canvas.draw()
    image: npt.NDArray[np.uint8] = asarray(canvas.buffer_rgba())[:, :, :3].copy()
    return image


def _draw_axes(axes: Axes, frame: FlopsAndTime) -> None:
    """Set limits and round ticks, with `0` for modules without FLOPs."""
    axes.set(xscale="log", xlim=(10**frame.x.low, 10**frame.x.high))
    axes.set(yscale="log", ylim=(10**frame.y.low, 10**frame.y.high))
    x_ticks, y_ticks = list(frame.flops_ticks(MOST_TICKS)), frame.time_ticks((1, 2, 5))
    axes.set_xticks([10.0**place for place, _ in x_ticks], labels=[label for _, label in x_ticks])
    axes.set_yticks([10.0**place for place, _ in y_ticks], labels=[label for _, label in y_ticks])
    # A logarithmic axis of matplotlib has minor ticks with labels of its own.
    axes.minorticks_off()
    axes.tick_params(colors=PALE, length=0)
    if frame.zero_band is not None:
        axes.axvspan(10**frame.x.low, 10**frame.zero_band, color="#f5f7fa", zorder=0)


def _draw_equal_rates(axes: Axes, frame: FlopsAndTime) -> None:
    """Draw a labelled line for each power of ten of FLOP/s."""
    for rate in frame.rates():
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
    axes.annotate(text, (10**x2, 10**y2), (5, 0), textcoords="offset points", color=ink, fontsize=8.5, va=va)


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
            fontsize=9.5,
            color=INK,
            zorder=4,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )
        names.append(name)
    _move_apart(axes, names)


def _label(point: Point) -> str:
    name = point.short_path if point.operator else end_of(point.path or point.type, LONGEST_LABEL)
    return _shortened(name, LONGEST_LABEL + 10 if point.operator else LONGEST_LABEL)


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


def _style() -> AbstractContextManager[None]:
    """Return a context that overrides the user's settings of matplotlib.

    Names are no TeX, and the font is the one that matplotlib brings along.
    """
    try:
        from matplotlib import rc_context
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("figures need matplotlib: pip install matplotlib", name="matplotlib") from error
    return rc_context({"text.usetex": False, "text.parse_math": False, "font.family": ["DejaVu Sans"]})


def _canvas(*, width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    # Without pyplot, nothing else gives the figure a canvas.
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(facecolor="white")
    axes.spines[:].set_visible(False)
    return figure, axes


def _title(axes: Axes, title: str, subtitle: str) -> None:
    """Write title and subtitle from the left edge of the figure.

    Long names of modules may leave the axes little of the width.
    """
    axes.set_title(" \n ", fontsize=16)  # only for the room: a title cannot start left of its axes
    _write_above(axes, title, 27, fontsize=14, fontweight="bold", color=INK)
    _write_above(axes, drawable(_shortened(subtitle, 96)), 9, fontsize=10, color=PALE)


def _write_above(axes: Axes, text: str, points: int, **form: Any) -> None:
    where = ("figure fraction", "axes fraction")
    note = axes.annotate(text, (0, 1), xytext=(6, points), xycoords=where, textcoords="offset points", **form)
    note.set_in_layout(False)


def _colours(weights: Iterable[tuple[str, float]]) -> dict[str, str]:
    """Return colours for the types with the largest weights.

    All others are grey.
    """
    return dict(zip(heaviest_types(weights), PALETTE, strict=False))


def _legend(
    axes: Axes, colours: dict[str, str], kinds: Sequence[str], extra: Mapping[str, str] | None = None, **where: Any
) -> None:
    from matplotlib.patches import Patch

    patches = [Patch(color=colour, label=drawable(_shortened(kind, 28))) for kind, colour in colours.items()]
    if set(kinds) - {*colours, ""}:
        patches.append(Patch(color=GREY, label="others"))
    patches += [Patch(color=colour, label=label) for label, colour in (extra or {}).items()]
    # A single colour needs no explanation.
    if len(patches) > 1:
        axes.legend(handles=patches, frameon=False, labelcolor=INK, fontsize=10.5, handlelength=0.9, **where)


def _shortened(text: str, longest: int = LONGEST_NAME) -> str:
    """Cut the middle out of a long name; its ends tell most."""
    if len(text) <= longest:
        return text
    head = longest // 3
    return f"{text[:head]}…{text[head + 1 - longest :]}"


def drawable(text: str) -> str:
    """Replace characters that the font cannot draw by a box.

    matplotlib would warn about them at each drawing.
    """
    glyphs = _glyphs()
    return "".join(character if ord(character) in glyphs else "\u25a1" for character in " ".join(text.splitlines()))


@cache
def _glyphs() -> frozenset[int]:
    from matplotlib.font_manager import findfont, get_font

    return frozenset(get_font(findfont("DejaVu Sans")).get_charmap())
