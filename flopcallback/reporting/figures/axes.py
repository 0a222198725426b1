"""Places things in figures: axes with round ticks, FLOPs against time with lines of equal rates, colours of types.

Matplotlib's figures and the SVGs of both pages draw by it. A place on a logarithmic axis is a power of ten, so that
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
    from flopcallback.profile.rows import ModuleRow

__all__ = ["PALETTE", "Axis", "FlopsAndTime", "Frame", "Tick", "heaviest_types", "thinned", "tick_label"]

Tick = tuple[float, str]
"""Place and label."""

Item = TypeVar("Item")

PALETTE = ("#2f6fde", "#e8833a", "#2a9d6f", "#8a5cd1", "#d64550", "#17a2b8", "#b5892d")

LOG_FROM = 20
"""An axis is logarithmic where its largest value is so many times the smallest."""

ROOM = 0.06
"""Of an axis, left free at either end."""

ZERO_BAND = 0.9
"""Decades between the smallest module that has FLOPs and the place of those that have none."""

MS = 3
"""A second has 10^3 milliseconds."""


def tick_label(value: float, unit: str = "") -> str:
    """Write a round value with its prefix, without zeros behind the point: `2.5 k`, `100 GFLOP/s`."""
    if abs(value) < 1000:
        return f"{value:.4g} {unit}".rstrip()
    return re.sub(r"\.0+(?!\d)|(?<=\.\d)0+(?!\d)", "", si(value, unit))


@dataclass(frozen=True, slots=True)
class Axis:
    """An axis from `low` to `high`, both powers of ten where it is logarithmic."""

    low: float
    high: float
    is_log: bool = True

    @classmethod
    def around(cls, values: Sequence[float]) -> Axis:
        """Choose the axis for these values, which are finite."""
        least, most = min(values), max(values)
        is_log = least > 0 and most >= LOG_FROM * least
        low, high = (math.log10(least), math.log10(most)) if is_log else (float(least), float(most))
        room = ROOM * (high - low) or abs(low) / 2 or 1.0  # where all values are one, it stands in the middle
        return cls(low - room, high + room, is_log)

    def place(self, value: float) -> float:
        """Return where a value stands between `low` and `high`."""
        return math.log10(value) if self.is_log else float(value)

    def ticks(self, most: int) -> list[Tick]:
        """Return at most so many round values: 1, 2, 3 or 5 times a power of ten, or multiples of such a step."""
        length = self.high - self.low
        if self.is_log:
            return list(thinned(self.log_ticks((1, 2, 5) if length < 1.8 else (1, 3) if length < 3.2 else (1,)), most))
        ten = 10.0 ** math.floor(math.log10(length / most))
        step = next(part * ten for part in (1, 2, 5, 10) if length / (part * ten) <= most)
        multiples = range(math.ceil(self.low / step), math.floor(self.high / step) + 1)
        return [(multiple * step, tick_label(multiple * step)) for multiple in multiples]

    def log_ticks(self, parts: Sequence[int], label: Callable[[float], str] = tick_label) -> list[Tick]:
        """Return `parts` times the powers of ten of a logarithmic axis."""
        tens = range(math.floor(self.low), math.ceil(self.high) + 1)
        ticks = [(ten + math.log10(part), label(part * 10.0**ten)) for ten in tens for part in parts]
        return [tick for tick in ticks if self.low <= tick[0] <= self.high]


@dataclass(frozen=True, slots=True)
class Frame:
    """Two axes: `x` to the right, `y` upwards. An SVG has places in percent, downwards."""

    x: Axis
    y: Axis

    def percent(self, x: float, y: float) -> tuple[float, float]:
        """Return places on both axes in percent from the left and from the top."""
        return _percent(x, self.x.low, self.x.high), _percent(y, self.y.high, self.y.low)

    def ticks_in_percent(self, x: Iterable[Tick], y: Iterable[Tick]) -> tuple[list[Tick], list[Tick]]:
        """Return ticks of both axes at their places in percent from the left and from the top."""
        across = [(_percent(place, self.x.low, self.x.high), label) for place, label in x]
        return across, [(_percent(place, self.y.high, self.y.low), label) for place, label in y]


@dataclass(frozen=True, slots=True)
class FlopsAndTime(Frame):
    """Logarithmic axes around timed modules: hardware FLOPs to the right, milliseconds upwards.

    Attributes:
        least: place of the fewest FLOPs above 0; None where no module has any.
        zero: where modules without FLOPs stand; None where all have some.
    """

    least: float | None
    zero: float | None

    @classmethod
    def around(cls, rows: Sequence[ModuleRow], room: tuple[float, float, float, float]) -> FlopsAndTime:
        """Choose the axes for modules whose times are above 0.

        Args:
            rows: the modules.
            room: decades left free to the left of the points, to the right, below and above.
        """
        powers = [math.log10(row.hw_flops) for row in rows if row.hw_flops > 0]
        times = [math.log10(row.forward_ms or 1.0) for row in rows]
        least = min(powers, default=None)
        zero = (least or 0.0) - ZERO_BAND if len(powers) < len(rows) else None
        low = zero if zero is not None else least or 0.0
        left, right, below, above = room
        x = Axis(low - left, max(powers, default=low + 2) + right)
        return cls(x, Axis(min(times) - below, max(times) + above), least, zero)

    @property
    def zero_band(self) -> float | None:
        """Right edge of the band in which modules without FLOPs stand; None where all have some."""
        return None if self.zero is None else self.zero + ZERO_BAND / 2

    def flops_ticks(self, most: int) -> Iterator[Tick]:
        """Give `0` where modules without FLOPs stand, and at most so many powers of ten."""
        if self.zero is not None:
            yield self.zero, "0"
        if self.least is not None:
            powers = range(math.ceil(self.least - 0.302), math.floor(self.x.high) + 1)
            yield from ((power, tick_label(10**power)) for power in thinned(powers, most))

    def time_ticks(self, parts: Sequence[int]) -> list[Tick]:
        """Return `parts` times the powers of ten, as plain numbers: milliseconds take no prefix."""
        return self.y.log_ticks(parts, "{:g}".format)

    def rates(self) -> range:
        """Return the powers of ten of FLOP/s whose lines cross the picture; none where no module has FLOPs."""
        slowest, fastest = self.x.low - self.y.high + MS, self.x.high - self.y.low + MS
        return range(0) if self.least is None else range(math.ceil(slowest), math.floor(fastest) + 1)

    def rate_line(self, rate: float, left: float) -> tuple[float, float, float, float]:
        """Return the ends x1, y1, x2, y2 of the line of 10^rate FLOP/s: from the lower left, no further than `left`."""
        start, end = max(left, self.y.low + rate - MS), min(self.x.high, self.y.high + rate - MS)
        return start, start - rate + MS, end, end - rate + MS


def heaviest_types(weights: Iterable[tuple[str, float]], most: int = len(PALETTE)) -> list[str]:
    """Return the types that weigh most in all, the heaviest first; they have colours of their own."""
    total: Counter[str] = Counter()
    for kind, weight in weights:
        total[kind] += weight  # type: ignore[assignment]  # a Counter adds up floats just as well
    return [kind for kind, _ in total.most_common() if kind][:most]


def thinned(items: Sequence[Item], most: int) -> Sequence[Item]:
    """Return every second, third, ... item where there are too many."""
    return items[:: max(1, math.ceil(len(items) / most))]


def _percent(place: float, start: float, end: float) -> float:
    return round(100 * (place - start) / (end - start), 2) + 0.0  # no -0.0, which would be written with its sign
