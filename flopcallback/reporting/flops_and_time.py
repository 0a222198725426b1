"""How well FLOPs predict time, and where they do not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from flopcallback.reporting.measured import measured_points, points_of, timed_innermost

if TYPE_CHECKING:
    from flopcallback.profile.model_profile import ModelProfile
    from flopcallback.profile.rows import ModuleRow
    from flopcallback.reporting.points import Point

__all__ = [
    "Agreement",
    "agreement",
    "measured_leaves",
    "orderings",
    "rank_correlation",
    "slow_for_their_flops",
    "time_covered",
    "weighted_rank_correlation",
]

# Two points always correlate fully, one way or the other.
FEWEST = 3


def measured_leaves(profile: ModelProfile) -> list[ModuleRow]:
    """Return the innermost rows with a forward time above 0.

    A row is left out if a row inside it has a time: its own time includes that one. Infinite times are no times.
    """
    times = {row.path: row.forward_ms for row in profile.modules if row.forward_ms is not None}
    innermost = timed_innermost(profile, times)
    return [row for row in profile.modules if row.path in innermost]


class Agreement(NamedTuple):
    """How well FLOPs predict time.

    Attributes:
        correlation: rank correlation of FLOPs and time, -1 to 1, as of `rank_correlation`.
        orderings: the same for FLOPs, activations and bytes, as of `orderings`.
        points: number of points.
        covered: share of the time that they have, as of `time_covered`.
        ordered: number of points that `orderings` is over.
    """

    correlation: float | None
    orderings: Mapping[str, float]
    points: int
    covered: float
    ordered: int = 0

    @property
    def over(self) -> str:
        """Which points `orderings` is over, where these are not all: `"over the 3 of which all are known"`."""
        return f"over the {self.ordered:,} of which all are known" if self.ordered < self.points else ""


def agreement(profile: ModelProfile) -> Agreement:
    """Return how well FLOPs predict time, and what predicts it best."""
    points = measured_points(profile)
    correlation = _by_time([point.flops for point in points], points)
    ranked, ordered = _orderings(points)
    return Agreement(correlation, ranked, len(points), _covered(points), ordered)


def rank_correlation(profile: ModelProfile) -> float | None:
    """Return the rank correlation of FLOPs and time, -1 to 1, each point with the weight of its time.

    At 1, more FLOPs always meant more time; at 0, FLOPs said nothing about where the time goes. It is
    `weighted_rank_correlation` over the points of `measured_points`. None for fewer than three, or if all have the same
    FLOPs or the same time.
    """
    return agreement(profile).correlation


def orderings(profile: ModelProfile) -> Mapping[str, float]:
    """Return the rank correlations with time of FLOPs, activations and bytes, the highest first.

    All are over the same points: those of which all three are known. Bytes are those of the same time where they are
    known, else those of the counted call, as activations are. What has no correlation is left out.
    """
    return agreement(profile).orderings


def _orderings(points: Sequence[Point]) -> tuple[dict[str, float], int]:
    moved = [point.bytes for point in points]
    if None in moved:
        moved = [point.forward_bytes for point in points]
    known = [
        (point, {"FLOPs": point.flops, "activations": point.activations, "bytes": each})
        for point, each in zip(points, moved, strict=True)
        if point.activations is not None and each is not None
    ]
    chosen = [point for point, _ in known]
    found = {
        name: _by_time([figures[name] or 0 for _, figures in known], chosen)
        for name in ("FLOPs", "activations", "bytes")
    }
    ranked = sorted(((value, name) for name, value in found.items() if value is not None), key=lambda pair: -pair[0])
    return {name: value for value, name in ranked}, len(chosen)


def _by_time(figures: Sequence[float], points: Sequence[Point]) -> float | None:
    times = [point.ms for point in points]
    return weighted_rank_correlation(figures, times, times)


def weighted_rank_correlation(
    first: Sequence[float], second: Sequence[float], weights: Sequence[float]
) -> float | None:
    """Return Spearman's rank correlation, -1 to 1, of items that weigh differently.

    An item of weight 2 counts as two equal ones, so equal weights give Spearman's coefficient ("The Proof and
    Measurement of Association between Two Things", 1904). It is the weighted correlation of ranks, and the rank of an
    item is the weight of all smaller ones and half of the weight of those equal to it (Bross's ridits: "How to Use
    Ridit Analysis", 1958).

    Args:
        first: a figure per item.
        second: another figure per item.
        weights: weights above 0.

    Returns:
        None for fewer than three items, or if all are equal in one of the figures.
    """
    if len(weights) < FEWEST:
        return None
    one, other = _centred_ranks(first, weights), _centred_ranks(second, weights)

    def summed(left: Sequence[float], right: Sequence[float]) -> float:
        return math.fsum(w * a * b for w, a, b in zip(weights, left, right, strict=True))

    spread = math.sqrt(summed(one, one) * summed(other, other))
    return max(-1.0, min(1.0, summed(one, other) / spread)) if spread > 0 else None


def _centred_ranks(values: Sequence[float], weights: Sequence[float]) -> list[float]:
    """Return weighted ranks as a share of all weight, 0 in the middle; equal values have equal ranks."""
    total = math.fsum(weights)
    order = sorted(range(len(values)), key=values.__getitem__)
    if values[order[0]] == values[order[-1]]:
        return [0.0] * len(values)
    ranks = [0.0] * len(values)
    below, start = 0.0, 0
    while start < len(order):
        stop = start + 1
        while stop < len(order) and values[order[stop]] == values[order[start]]:
            stop += 1
        equal = math.fsum(weights[index] for index in order[start:stop]) / total
        # The weighted mean of all ranks is one half.
        for index in order[start:stop]:
            ranks[index] = below + equal / 2 - 0.5
        below, start = below + equal, stop
    return ranks


def time_covered(profile: ModelProfile) -> float:
    """Return the share of the time that points have, 0 to 1.

    The rest is Python and launches between modules, and time in which a device had nothing to do.
    """
    return _covered(measured_points(profile))


def _covered(points: Sequence[Point]) -> float:
    # Medians of parts can add up to more than the median of the whole.
    return min(1.0, math.fsum(point.time_share for point in points))


def slow_for_their_flops(profile: ModelProfile, limit: int = 5) -> list[Point]:
    """Return the points with more of the time than of the FLOPs, the widest gap first.

    FLOPs mislead there: the work is bound by memory or by launches, is not counted in FLOPs, or has shapes that are
    slow on the device. Identical modules are one point (`layers.0 … 23.dropout`).
    """
    points = [point for point in points_of(profile) if point.time_share > point.flops_share]
    return sorted(points, key=lambda point: point.flops_share - point.time_share)[:limit]
