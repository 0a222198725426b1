"""Numbers that JSON and a float64 can hold."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["LARGEST_EXACT", "finite"]

LARGEST_EXACT = 2**53
"""Largest integer up to which a float64 is exact for every integer. Browsers and trackers keep numbers as float64."""


def finite(value: Any) -> Any:
    """Return a value as strict JSON can hold it.

    A float that is not finite becomes None; everything else is returned as it is.
    """
    return None if isinstance(value, float) and not math.isfinite(value) else value
