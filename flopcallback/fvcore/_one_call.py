"""Shared part of `flop_count` and `activation_count`."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping

from flopcallback.counting.tally import Handle
from flopcallback.fvcore.jit_analysis import JitModelAnalysis

__all__ = ["counts_in"]


def counts_in(
    unit: float, analysis: JitModelAnalysis, supported_ops: Mapping[str, Handle | None] | None
) -> tuple[defaultdict[str, float], Counter[str]]:
    """Return an analysis' figures by operator in units, and its unsupported operators.

    Args:
        unit: divisor of the figures, such as `1e9`.
        analysis: an analysis that has not run yet; it gets the handles.
        supported_ops: handles by operator, in addition to those of the analysis or in their place.
    """
    analysis.set_op_handle(**(supported_ops or {}))
    counts = defaultdict(float, {operator: count / unit for operator, count in analysis.by_operator().items()})
    return counts, analysis.unsupported_ops()
