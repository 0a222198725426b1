"""Do FLOPs say where the time goes? The modules that were timed, how well the two agree, and where they do not."""

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

FEWEST = 3
"""Two modules are always in order, one way or the other."""


def measured_leaves(profile: ModelProfile) -> list[ModuleRow]:
    """Rows with a finite time above 0 that contain no other such row: the time of the others is in these already."""
    rows = {row.path: row for row in profile.modules}
    timed = [row for row in profile.modules if row.forward_ms is not None and 0 < row.forward_ms < math.inf]
    contain: set[str | None] = set()
    for row in timed:
        above = row.parent
        while above is not None and above not in contain:
            contain.add(above)
            above = rows[above].parent if above in rows else None
    return [row for row in timed if row.path not in contain]


def rank_correlation(profile: ModelProfile) -> float | None:
    """Spearman's rank correlation of hardware FLOPs and forward time over the measured innermost modules, -1 to 1.

    At 1, more FLOPs always meant more time; at 0, FLOPs said nothing about time. Ties get the mean of their ranks
    (Spearman, "The Proof and Measurement of Association between Two Things", 1904). None for fewer than three modules,
    or where all are alike in one of the two.
    """
    rows = measured_leaves(profile)
    if len(rows) < FEWEST:
        return None
    flops, times = _ranks([row.hw_flops for row in rows]), _ranks([row.forward_ms or 0.0 for row in rows])
    middle = (len(rows) - 1) / 2
    together = math.fsum((a - middle) * (b - middle) for a, b in zip(flops, times, strict=True))
    apart = math.sqrt(math.fsum((a - middle) ** 2 for a in flops) * math.fsum((b - middle) ** 2 for b in times))
    return together / apart if apart > 0 else None


def _ranks(values: Sequence[float]) -> list[float]:
    """The place of each value in order, from 0; equal values share the mean of their places."""
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
    """The measured innermost modules whose share of the time exceeds their share of the FLOPs most, the first most.

    Where FLOPs mislead: work bound by memory or by launches, work that is no FLOPs at all, and shapes that the device
    does slowly. A run of identical modules is one (`layers.0 … 23.dropout`). A module that takes no more than its share
    of the FLOPs is not in the list.
    """
    excess = [(_excess(profile, node), node) for node in timed_leaves(profile)]
    ranked = sorted(excess, key=lambda pair: -pair[0])
    return [node for more, node in ranked[:limit] if more > 0]


def _excess(profile: ModelProfile, node: Node) -> float:
    return (share(node.forward_ms, profile.forward_ms) or 0.0) - (share(node.flops, profile.forward_flops) or 0.0)
