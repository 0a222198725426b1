"""Base of the two counters, for any statistic by handles."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from flopcallback.counting.analysis import OperatorAnalysis

__all__ = ["JitModelAnalysis", "Statistics"]

# One class under both names, so that `isinstance` and subclasses work with either import.
JitModelAnalysis = OperatorAnalysis


@dataclass
class Statistics:
    """Results of one analysis as one object.

    Attributes:
        counts: figure by operator, by module.
        unsupported_ops: calls of each unsupported operator, by module.
        uncalled_mods: modules that were not called.
    """

    counts: dict[str, Counter[str]]
    unsupported_ops: dict[str, Counter[str]]
    uncalled_mods: set[str]
