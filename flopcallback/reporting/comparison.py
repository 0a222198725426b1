"""The comparison of runs under its documented path."""

from flopcallback.runs.comparison import (
    COLUMNS,
    Comparison,
    RunRow,
    compare_runs,
    direction_of,
    metric_against_compute,
    pareto_front,
    shared_metrics,
)

__all__ = [
    "COLUMNS",
    "Comparison",
    "RunRow",
    "compare_runs",
    "direction_of",
    "metric_against_compute",
    "pareto_front",
    "shared_metrics",
]
