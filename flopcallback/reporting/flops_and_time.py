"""How well FLOPs predict time, and the modules where they do not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from flopcallback.profile.rows import share
from flopcallback.reporting.tree import timed_leaves

if TYPE_CHECKING:
    from flopcallback.profile.model_profile import ModelProfile
    from flopcallback.profile.rows import ModuleRow
    from flopcallback.reporting.tree import Node

__all__ = ["measured_leaves", "rank_correlation", "slow_for_their_flops"]

# Two modules always correlate fully, one way or the other.
FEWEST = 3


def measured_leaves(profile: ModelProfile) -> list[ModuleRow]:
    """Return the innermost rows with a time above 0.

    A row is left out if a row inside it has a time: its own time includes that one. Infinite times are no times.
    """
    rows = {row.path: row for row in profile.modules}
    timed = [row for row in profile.modules if row.forward_ms is not None and 0 < row.forward_ms < math.inf]
    containers: set[str | None] = set()
    for row in timed:
        ancestor = row.parent
        # Ancestors of one that was seen have been seen too.
        while ancestor is not None and ancestor not in containers:
            containers.add(ancestor)
            ancestor = rows[ancestor].parent if ancestor in rows else None
    return [row for row in timed if row.path not in containers]


def rank_correlation(profile: ModelProfile) -> float | None:
    """Return the rank correlation of FLOPs and time, -1 to 1.

    It is Spearman's coefficient over the rows of `measured_leaves`: at 1, more FLOPs always meant more time; at 0,
    FLOPs said nothing about time. Ties get the mean of their ranks (Spearman, "The Proof and Measurement of Association
    between Two Things", 1904). None for fewer than three modules, or if all have the same FLOPs or the same time.
    """
    rows = measured_leaves(profile)
    if len(rows) < FEWEST:
        return None
    flops, times = _ranks([row.flops for row in rows]), _ranks([row.forward_ms or 0.0 for row in rows])
    mean = (len(rows) - 1) / 2
    covariance = math.fsum((a - mean) * (b - mean) for a, b in zip(flops, times, strict=True))
    spread = math.sqrt(math.fsum((a - mean) ** 2 for a in flops) * math.fsum((b - mean) ** 2 for b in times))
    return covariance / spread if spread > 0 else None


def _ranks(values: Sequence[float]) -> list[float]:
    """Return the ranks of values, from 0; ties share their mean."""
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks = [0.0] * len(values)
    start = 0
    while start < len(order):
        stop = start + 1
        while stop < len(order) and values[order[stop]] == values[order[start]]:
            stop += 1
        for index in order[start:stop]:
            ranks[index] = (start + stop - 1) / 2
        start = stop
    return ranks


def slow_for_their_flops(profile: ModelProfile, limit: int = 5) -> list[Node]:
    """Return the modules with more of the time than of the FLOPs.

    They are innermost measured modules, the largest difference of the two shares first. FLOPs mislead there: the work
    is bound by memory or by launches, is not counted in FLOPs, or has shapes that are slow on the device. Identical
    modules are one node (`layers.0 … 23.dropout`).
    """
    excess = [(_excess(profile, node), node) for node in timed_leaves(profile)]
    ranked = sorted(excess, key=lambda pair: -pair[0])
    return [node for difference, node in ranked[:limit] if difference > 0]


def _excess(profile: ModelProfile, node: Node) -> float:
    return (share(node.forward_ms, profile.forward_ms) or 0.0) - (share(node.flops, profile.forward_flops) or 0.0)
