"""Re-exports the comparison of runs, under the path that the documentation gives."""

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
