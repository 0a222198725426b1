"""What the figures have in common: size, font, title, and how a figure becomes an image.

They are matplotlib's, drawn without pyplot, so that no backend is chosen and no global state changes. matplotlib is
imported when a figure is asked for.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    import numpy as np
    import numpy.typing as npt
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "GREY",
    "GRID",
    "INK",
    "PALE",
    "SMALL",
    "WIDTH",
    "canvas",
    "drawable",
    "pixels",
    "shortened",
    "style",
    "write_title",
]

INK, PALE, GRID, GREY = "#1f2933", "#7b8794", "#e4e7eb", "#a3adb8"

# Inches. A dashboard draws a figure in a card some 350 pixels wide.
WIDTH = 4.4
# Points, of most of the text; in such a card it is then 9 pixels high.
SMALL = 8.5
# A figure is then 950 pixels wide, and sharp where it is drawn in its full size.
DPI = 216

# Characters of a title, and of any other text.
LONGEST_TITLE, LONGEST_TEXT = 72, 48


def canvas(height: float) -> tuple[Figure, Axes]:
    """Make a figure of the common width and a height in inches, with its axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained", facecolor="white")
    # Without pyplot, nothing else gives the figure a canvas.
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(facecolor="white")
    axes.spines[:].set_visible(False)
    return figure, axes


def write_title(axes: Axes, title: str, subtitle: str) -> None:
    """Write title and subtitle from the left edge of the figure.

    Long names of modules may leave the axes little of the width.
    """
    axes.set_title(" \n ", fontsize=11)  # only for the room: a title cannot start left of its axes
    _write_above(axes, title, 19, fontsize=11, fontweight="bold", color=INK)
    _write_above(axes, drawable(shortened(subtitle, LONGEST_TITLE)), 7, fontsize=7, color=PALE)


def _write_above(axes: Axes, text: str, points: int, **form: Any) -> None:
    where = ("figure fraction", "axes fraction")
    note = axes.annotate(text, (0, 1), xytext=(6, points), xycoords=where, textcoords="offset points", **form)
    note.set_in_layout(False)


def style() -> AbstractContextManager[None]:
    """Return a context that overrides the user's settings of matplotlib.

    Names are no TeX, and the font is the one that matplotlib brings along.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    try:
        from matplotlib import rc_context
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("figures need matplotlib: pip install matplotlib", name="matplotlib") from error
    return rc_context({"text.usetex": False, "text.parse_math": False, "font.family": ["DejaVu Sans"]})


def pixels(figure: Figure) -> npt.NDArray[np.uint8]:
    """Draw the figure as height × width × 3 bytes.

    The bytes are red, green and blue.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from numpy import asarray

    drawn: Any = FigureCanvasAgg(figure)  # its methods have no types
    drawn.draw()
    image: npt.NDArray[np.uint8] = asarray(drawn.buffer_rgba())[:, :, :3].copy()
    return image


def shortened(text: str, longest: int = LONGEST_TEXT) -> str:
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
