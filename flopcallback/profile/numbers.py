"""Knows which numbers JSON and a float64 can hold."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["LARGEST_EXACT", "finite"]

LARGEST_EXACT = 2**53
"""Up to here a float64, which browsers and trackers have for numbers, is exact for every integer."""


def finite(value: Any) -> Any:
    """Return a value as strict JSON can hold it: None for a float that is not finite, all else as it is."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
