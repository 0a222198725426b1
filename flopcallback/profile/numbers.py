"""Numbers that JSON and a float64 can hold."""

from __future__ import annotations

import math
import operator
from typing import Any

__all__ = ["LARGEST_EXACT", "finite", "plain_number"]

LARGEST_EXACT = 2**53
"""Largest integer up to which a float64 is exact for every integer. Browsers and trackers keep numbers as float64."""


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
