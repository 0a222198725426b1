"""Numbers that JSON and a float64 can hold."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from typing import Any

__all__ = ["LARGEST", "LARGEST_EXACT", "bound_sign", "finite", "is_whole", "plain_number", "sum_of"]

LARGEST_EXACT = 2**53
"""Largest integer up to which a float64 is exact for every integer. Browsers and trackers keep numbers as float64."""

LARGEST = int(1e300)
"""Largest number that is read from a file. A float64 ends at 1.8e308, so the sum of a million such numbers fits."""


def bound_sign(*, is_lower: bool, is_upper: bool) -> str:
    """Return `">= "` for a lower bound, `"<= "` for an upper one, `"<> "` for neither, else nothing."""
    return {(True, False): ">= ", (False, True): "<= ", (True, True): "<> "}.get((is_lower, is_upper), "")


def finite(value: Any) -> Any:
    """Return a value as strict JSON can hold it.

    A float that is not finite becomes None; everything else is returned as it is.
    """
    return None if isinstance(value, float) and not math.isfinite(value) else value


def plain_number(value: Any) -> int | float:
    """Return a number as Python's own: an int if it is a whole number by type, else a float.

    Raises:
        TypeError: it is no number, such as a text.
    """
    if type(value) in (int, float):  # most are
        return value  # type: ignore[no-any-return]
    try:
        return operator.index(value)
    except TypeError:
        if isinstance(value, (str, bytes)):  # `float` would parse them
            raise
        return float(value)


def is_whole(value: object) -> bool:
    """Return whether a value is an integer that a float64 can hold.

    True and False are not.
    """
    return isinstance(value, int) and not isinstance(value, bool) and -LARGEST <= value <= LARGEST


def sum_of(numbers: Iterable[int | None]) -> int | None:
    """Return the sum, or None if any number is None."""
    total = 0
    for number in numbers:
        if number is None:
            return None
        total += number
    return total
