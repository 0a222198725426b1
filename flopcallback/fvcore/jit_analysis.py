"""The base of the two counters: any statistic by handles."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from flopcallback.counting.analysis import OperatorAnalysis

__all__ = ["JitModelAnalysis", "Statistics"]

# One class under both names, so that `isinstance` and subclasses hold whichever of the two a user's code imports.
JitModelAnalysis = OperatorAnalysis


@dataclass
class Statistics:
    """The results of one analysis, for code that passes them around as one object."""

    counts: dict[str, Counter[str]]
    unsupported_ops: dict[str, Counter[str]]
    uncalled_mods: set[str]
