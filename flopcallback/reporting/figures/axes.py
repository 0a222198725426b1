"""Axes, ticks, lines of equal rates and colours, shared by all figures.

The figures of matplotlib and the SVGs of both pages use them. A place on a logarithmic axis is a power of ten, so that
integers of any size have one.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from flopcallback.reporting.units import si

if TYPE_CHECKING:
    from flopcallback.profile.rows import Timed

__all__ = ["PALETTE", "Axis", "FlopsAndTime", "Frame", "Tick", "heaviest_types", "thinned", "tick_label"]

Tick = tuple[float, str]
"""Place and label of a tick."""

Item = TypeVar("Item")

PALETTE = ("#2f6fde", "#e8833a", "#2a9d6f", "#8a5cd1", "#d64550", "#17a2b8", "#b5892d")

# An axis is logarithmic if its largest value is at least this many times the smallest.
LOG_FROM = 20

# Share of an axis that is left free at each end.
ROOM = 0.06

# Decades between the smallest module with FLOPs and the place of modules without any.
ZERO_BAND = 0.9

# A second has 10^3 milliseconds.
MS = 3


def tick_label(value: float, unit: str = "") -> str:
    """Write a round value with its prefix, without trailing zeros.

    For example `2.5 k` or `100 GFLOP/s`.
    """
    if abs(value) < 1000:
        return f"{value:.4g} {unit}".rstrip()
    return re.sub(r"\.0+(?!\d)|(?<=\.\d)0+(?!\d)", "", si(value, unit))


@dataclass(frozen=True, slots=True)
class Axis:
    """An axis from `low` to `high`, powers of ten if logarithmic."""

    low: float
    high: float
    is_log: bool = True

    @classmethod
    def around(cls, values: Sequence[float]) -> Axis:
        """Choose the axis for finite values."""
        smallest, largest = min(values), max(values)
        is_log = smallest > 0 and largest >= LOG_FROM * smallest
        low, high = (math.log10(smallest), math.log10(largest)) if is_log else (float(smallest), float(largest))
        room = ROOM * (high - low) or abs(low) / 2 or 1.0  # equal values are placed in the middle
        return cls(low - room, high + room, is_log)

    def place(self, value: float) -> float:
        """Return the place of a value between `low` and `high`."""
        return math.log10(value) if self.is_log else float(value)

    def ticks(self, most: int) -> list[Tick]:
        """Return at most `most` ticks at round values.

        They are 1, 2, 3 or 5 times a power of ten, or multiples of such a step.
        """
        length = self.high - self.low
        if self.is_log:
            # The shorter the axis, the more ticks per decade.
            parts = (1, 2, 5) if length < 1.8 else (1, 3) if length < 3.2 else (1,)
            return list(thinned(self.log_ticks(parts), most))
        ten = 10.0 ** math.floor(math.log10(length / most))
        step = next(factor * ten for factor in (1, 2, 5, 10) if length / (factor * ten) <= most)
        multiples = range(math.ceil(self.low / step), math.floor(self.high / step) + 1)
        return [(multiple * step, tick_label(multiple * step)) for multiple in multiples]

    def log_ticks(self, parts: Sequence[int], label: Callable[[float], str] = tick_label) -> list[Tick]:
        """Return ticks at `parts` times powers of ten on a logarithmic axis."""
        tens = range(math.floor(self.low), math.ceil(self.high) + 1)
        ticks = [(ten + math.log10(part), label(part * 10.0**ten)) for ten in tens for part in parts]
        return [tick for tick in ticks if self.low <= tick[0] <= self.high]


@dataclass(frozen=True, slots=True)
class Frame:
    """Two axes: `x` to the right, `y` upwards.

    An SVG has its places in percent, from the left and from the top.
    """

    x: Axis
    y: Axis

    def percent(self, x: float, y: float) -> tuple[float, float]:
        """Convert places to percent from the left and the top."""
        return _percent(x, self.x.low, self.x.high), _percent(y, self.y.high, self.y.low)

    def ticks_in_percent(self, x: Iterable[Tick], y: Iterable[Tick]) -> tuple[list[Tick], list[Tick]]:
        """Convert ticks to places in percent from the left and the top."""
        across = [(_percent(place, self.x.low, self.x.high), label) for place, label in x]
        return across, [(_percent(place, self.y.high, self.y.low), label) for place, label in y]


@dataclass(frozen=True, slots=True)
class FlopsAndTime(Frame):
    """Logarithmic axes for timed modules: FLOPs and milliseconds.

    Attributes:
        least: place of the fewest FLOPs above 0; None if no module has any.
        zero: place of modules without FLOPs; None if all have some.
    """

    least: float | None
    zero: float | None

    @classmethod
    def around(cls, rows: Sequence[Timed], room: tuple[float, float, float, float]) -> FlopsAndTime:
        """Choose the axes for modules or points with times above 0.

        Args:
            rows: what to show.
            room: decades to leave free to the left of the points, to the right, below and above.
        """
        powers = [math.log10(row.flops) for row in rows if row.flops > 0]
        times = [math.log10(row.forward_ms or 1.0) for row in rows]
        least = min(powers, default=None)
        zero = (least or 0.0) - ZERO_BAND if len(powers) < len(rows) else None
        # Where no module has FLOPs, the axis still needs a place for 0 and some length.
        low = zero if zero is not None else least or 0.0
        left, right, below, above = room
        x = Axis(low - left, max(powers, default=low + 2) + right)
        return cls(x, Axis(min(times) - below, max(times) + above), least, zero)

    @property
    def zero_band(self) -> float | None:
        """Right edge of the band for modules without FLOPs, if any."""
        return None if self.zero is None else self.zero + ZERO_BAND / 2

    def flops_ticks(self, most: int) -> Iterator[Tick]:
        """Yield `0` for modules without FLOPs, then powers of ten.

        There are at most `most` powers.
        """
        if self.zero is not None:
            yield self.zero, "0"
        if self.least is not None:
            # The first tick is at no less than half of the fewest FLOPs.
            powers = range(math.ceil(self.least - 0.302), math.floor(self.x.high) + 1)
            yield from ((power, tick_label(10**power)) for power in thinned(powers, most))

    def time_ticks(self, parts: Sequence[int]) -> list[Tick]:
        """Return ticks at `parts` times powers of ten.

        Their labels are plain numbers, since milliseconds take no prefix.
        """
        return self.y.log_ticks(parts, "{:g}".format)

    def rates(self) -> range:
        """Return the powers of ten of FLOP/s that have a line.

        Their lines cross the figure. There are none if no module has FLOPs.
        """
        # FLOP/s are FLOPs over milliseconds, times 10^3: on logarithmic axes, equal rates are a line of slope 1.
        slowest, fastest = self.x.low - self.y.high + MS, self.x.high - self.y.low + MS
        return range(0) if self.least is None else range(math.ceil(slowest), math.floor(fastest) + 1)

    def rate_line(self, rate: float, left: float) -> tuple[float, float, float, float]:
        """Return the ends of the line of 10^rate FLOP/s.

        The four places are x1, y1, x2, y2. The line begins at the lower left, at or to the right of `left`.
        """
        start, end = max(left, self.y.low + rate - MS), min(self.x.high, self.y.high + rate - MS)
        return start, start - rate + MS, end, end - rate + MS


def heaviest_types(weights: Iterable[tuple[str, float]], most: int = len(PALETTE)) -> list[str]:
    """Return the types with the largest total weights, in decreasing order.

    They get colours of their own.
    """
    total: Counter[str] = Counter()
    for kind, weight in weights:
        total[kind] += weight  # type: ignore[assignment]  # a Counter adds up floats just as well
    return [kind for kind, _ in total.most_common() if kind][:most]


def thinned(items: Sequence[Item], most: int) -> Sequence[Item]:
    """Return every nth item, so that at most `most` remain."""
    return items[:: max(1, math.ceil(len(items) / most))]


def _percent(place: float, start: float, end: float) -> float:
    # -0.0 would be written with its sign.
    return round(100 * (place - start) / (end - start), 2) + 0.0
