"""Figures as text in every output: SI prefixes, milliseconds, shares, bars."""

from __future__ import annotations

import math
import re
import unicodedata

__all__ = [
    "NOTHING",
    "bar",
    "display_width",
    "milliseconds",
    "one_line",
    "percent",
    "si",
    "visible",
    "visible_json",
]

NOTHING = "–"
"""The cell of an unknown figure."""

_PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z", "Y", "R", "Q")
_EIGHTHS = ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")

# What a terminal obeys in place of showing it: control characters but the line feed, marks that turn the direction of
# writing, separators of lines; and halves of pairs of code units, which cannot be written at all.
_CONTROLS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def si(value: float | None, unit: str = "") -> str:
    """Write a number in three digits with its SI prefix.

    For example `"4.09 G"`, `"275 kFLOPs"`, and `"840"` as it is. Integers of any size are exact before rounding, and
    rounding carries over into the next prefix (999,999 is `"1.00 M"`).
    """
    # Only NaN is not equal to itself.
    if value is None or value != value:
        return NOTHING
    if value < 0:
        return f"-{si(-value, unit)}"
    # Larger values round to 1000, which has the next prefix.
    if value < 999.5:
        number = str(value) if isinstance(value, int) else _three_digits(value)
        return f"{number} {unit}".rstrip()
    if value >= 999 * 1000 ** (len(_PREFIXES) - 1):
        return f"{_scientific(value)} {unit}".rstrip()
    power = next(power for power in range(1, len(_PREFIXES)) if value / 1000**power < 999.5)
    return f"{_three_digits(value / 1000**power)} {_PREFIXES[power]}{unit}"


def _three_digits(value: float) -> str:
    if value == 0:
        return "0"
    decimals = 0 if value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{decimals}f}" if value >= 0.995 else f"{value:.3g}"


def _scientific(value: float) -> str:
    """Write a number beyond the largest prefix."""
    # It may be too large for a float.
    if isinstance(value, int):
        exponent = len(str(value)) - 1
        return f"{value // 10 ** (exponent - 2) / 100:.2f}e+{exponent}"
    return f"{value:.2e}"


def milliseconds(value: float | None) -> str:
    """Write milliseconds without their unit, which the heading has.

    For example `"0.412"`, `"3.07"`, `"38.1"`, `"1,240"`.
    """
    if value is None or not math.isfinite(value):
        return NOTHING
    decimals = 0 if value >= 99.95 else 1 if value >= 9.995 else 2 if value >= 0.995 else 3
    return f"{value:,.{decimals}f}"


def percent(share: float | None) -> str:
    """Write a share of 0 to 1 in percent with one decimal.

    A share above 0 that rounds to nothing is `"<0.1 %"`.
    """
    if share is None or not math.isfinite(share):
        return NOTHING
    return "<0.1 %" if 0 < share < 0.0005 else f"{100 * share:.1f} %"


def bar(share: float | None, width: int) -> str:
    """Draw a bar of block characters, `width` of them for 1."""
    if share is None or not share > 0:
        return ""
    # A share above 0 always shows, and one above 1 does not leave the column.
    eighths = max(1, round(8 * width * min(share, 1.0)))
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8]


def display_width(text: str) -> int:
    """Return the columns that a text takes in monospace.

    A wide character takes two, a combining one none.
    """
    return sum(
        0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1
        for character in text
    )


def one_line(text: str) -> str:
    """Join the lines of a text, and make its control characters visible.

    A line break would split a table row.
    """
    return visible(" ".join(text.splitlines()))


def visible(text: str) -> str:
    r"""Write control characters as escapes, such as `\x1b`.

    Names come from models, files and trackers, and none may command a terminal. Line feeds stay.
    """
    return _CONTROLS.sub(lambda match: f"\\{_code(match)}", text)


def visible_json(text: str) -> str:
    r"""Write control characters in JSON as escapes of JSON's, such as `\u009b`."""
    return _CONTROLS.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _code(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"x{code:02x}" if code < 0x100 else f"u{code:04x}"
