"""Where the compute goes, as a figure: FLOPs and time of modules, as bars in the colours of the page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flopcallback.profile.rows import share
from flopcallback.reporting.caption import at_least, headline
from flopcallback.reporting.figures.axes import PALETTE
from flopcallback.reporting.figures.canvas import (
    INK,
    PALE,
    SMALL,
    canvas,
    drawable,
    shortened,
    style,
    write_title,
)
from flopcallback.reporting.tree import OWN, end_of, widest_work
from flopcallback.reporting.units import milliseconds, percent, si

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from flopcallback.profile.model_profile import ModelProfile
    from flopcallback.reporting.tree import Node

__all__ = ["FLOPS", "TIME", "module_chart"]

# Colours, as on the page.
FLOPS, TIME = PALETTE[5], PALETTE[3]

# Inches: one module, and everything else.
ROW, REST = 0.5, 0.85
# Share of a module's height that one bar has, and the middles of both bars, from its text down.
BAR, PLACES = 0.2, (0.36, 0.6)

# Characters of a name above its bars, beside up to 36 of figures.
LONGEST_NAME = 25

LEVEL: dict[str, Any] = {"va": "center", "fontsize": SMALL}


def module_chart(profile: ModelProfile, *, limit: int = 10) -> Figure:
    """Draw the modules with the most FLOPs, each with a bar for its FLOPs and, if there are times, one for its time.

    They are the nodes of `widest_work`, the largest on top. All bars are shares of the whole, on one scale.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    nodes = widest_work(profile, limit)
    # The bar of all small modules is cut if it is longer than all others.
    longest = max((max(_shares(profile, node)) for node in nodes if not _is_rest(node)), default=0.0) or 1.0
    with style():
        figure, axes = canvas(REST + ROW * max(len(nodes), 2))
        write_title(axes, "Where the compute goes", headline(profile))
        for place, node in enumerate(nodes):
            lengths = [part / longest for part in _shares(profile, node)]
            _draw_node(axes, place, node, lengths)
            _write_figures(axes, place, profile, node, is_cut=max(lengths) > 1)
        axes.set(xlim=(0, 1), ylim=(max(len(nodes), 2) - 0.2, -0.25), xticks=[], yticks=[])
        if not nodes:
            axes.text(0.5, 0.5, "no FLOPs were counted", transform=axes.transAxes, ha="center", color=PALE)
    return figure


def _draw_node(axes: Axes, place: int, node: Node, lengths: list[float]) -> None:
    """Draw name and bars of a node; a bar longer than the axis ends at its edge."""
    name = node.path or node.type
    axes.text(0, place, drawable(shortened(end_of(name, LONGEST_NAME), LONGEST_NAME)), **LEVEL, color=INK)
    for length, colour, middle in zip(lengths, (FLOPS, TIME), PLACES, strict=False):
        axes.barh(place + middle, min(length, 1.0), height=BAR, color=colour, alpha=0.4 if _is_rest(node) else 1)


def _write_figures(axes: Axes, place: int, profile: ModelProfile, node: Node, *, is_cut: bool) -> None:
    """Write FLOPs and time of a node at the right, each in the colour of its bar."""
    time = share(node.forward_ms, profile.forward_ms)
    texts = [
        (FLOPS, f"{at_least(node.unknown_calls > 0)}{si(node.flops, 'FLOPs')} {percent(_shares(profile, node)[0])}")
    ]
    if time is not None:
        texts.append((TIME, f"{milliseconds(node.forward_ms)} ms {percent(time)}"))
    if is_cut:
        texts.append((PALE, "(bar cut)"))
    end, points = (1.0, place), 0.0
    for colour, text in reversed(texts):
        # On white, as a name of wide letters may reach as far.
        ground: dict[str, Any] = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        axes.annotate(
            text, end, (-points, 0), textcoords="offset points", ha="right", color=colour, bbox=ground, **LEVEL
        ).set_in_layout(False)
        points += 0.62 * SMALL * (len(text) + 1.5)


def _is_rest(node: Node) -> bool:
    """Return whether a node is all small modules together."""
    return not node.type and node.label != OWN


def _shares(profile: ModelProfile, node: Node) -> tuple[float, ...]:
    """Return the node's share of the FLOPs and, if it is known, of the time."""
    parts = (share(node.flops, profile.forward_flops) or 0.0, share(node.forward_ms, profile.forward_ms))
    return tuple(part for part in parts if part is not None)
