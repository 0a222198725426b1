"""FLOP/s in a few classes, by which figures are coloured: of the device's peak, or against the rest of the model."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flopcallback.reporting.units import si

if TYPE_CHECKING:
    from flopcallback.profile.model_profile import ModelProfile

__all__ = ["RATE_COLOURS", "RateScale", "weighted_median"]

RATE_COLOURS = ("#b8400e", "#f0954f", "#f4d79b", "#9dc5ee", "#2f6fde")
"""Colours of the classes, slowest first: told apart by readers who do not see red and green apart."""

OF_PEAK = (0.01, 0.05, 0.2, 0.5)
OF_MEDIAN = (0.1, 0.4, 2.5, 10.0)

_OF_PEAK = ("under 1 %", "1 to 5 %", "5 to 20 %", "20 to 50 %", "over 50 %")
_OF_MEDIAN = ("under 1/10", "1/10 to 2/5", "about the median", "2.5 to 10 times", "over 10 times")


@dataclass(frozen=True, slots=True)
class RateScale:
    """Classes of FLOP/s.

    Attributes:
        reference: FLOP/s that all are divided by.
        is_peak: whether that is the device's peak; else it is the median of the model.
    """

    reference: float
    is_peak: bool

    @classmethod
    def of(cls, profile: ModelProfile, rates: Iterable[tuple[float, float]]) -> RateScale | None:
        """Choose the scale of a profile; None if nothing is known to divide by.

        Args:
            profile: profile with or without a peak.
            rates: FLOP/s of the model's parts, each with its weight.
        """
        # A file may hold any number.
        peak = profile.peak_flops_per_s
        if peak and 0 < peak < math.inf:
            return cls(peak, is_peak=True)
        median = weighted_median(rates)
        return cls(median, is_peak=False) if median and median < math.inf else None

    @property
    def limits(self) -> Sequence[float]:
        """Upper ends of all classes but the last, as multiples of the reference."""
        return OF_PEAK if self.is_peak else OF_MEDIAN

    @property
    def labels(self) -> Sequence[str]:
        """The classes in words."""
        return _OF_PEAK if self.is_peak else _OF_MEDIAN

    @property
    def title(self) -> str:
        """What the classes are of, in words."""
        rate = si(self.reference, "FLOP/s")
        return f"FLOP/s, of the device's peak of {rate}" if self.is_peak else f"FLOP/s, against the median, {rate}"

    def place(self, rate: float | None) -> int | None:
        """Return the class of a rate; None for one of 0, or none."""
        return bisect_right(self.limits, rate / self.reference) if rate else None


def weighted_median(values: Iterable[tuple[float, float]]) -> float | None:
    """Return the value that half of the weight is at or below; None without any weight.

    Args:
        values: each with its weight.
    """
    ranked = sorted(pair for pair in values if pair[1] > 0)
    half = sum(weight for _, weight in ranked) / 2
    for value, weight in ranked:
        half -= weight
        if half <= 0:
            return value
    return None
