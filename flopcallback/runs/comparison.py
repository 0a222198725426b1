"""Comparison of runs, and the Pareto front of metric against compute."""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

from flopcallback.profile import metrics
from flopcallback.runs.record import COMPUTE, RunRecord

__all__ = [
    "COLUMNS",
    "Comparison",
    "RunRow",
    "columns",
    "compare_runs",
    "direction_of",
    "metric_against_compute",
    "pareto_front",
    "shared_metrics",
]


def columns() -> dict[str, str]:
    """Return the columns of a table of runs, with their logged names."""
    return {"run": "", **{column: metric.name for column, metric in metrics.by_column().items()}, "metric": ""}


COLUMNS = columns()

# Direction by a word of the metric's name.
_BETTER = {
    **dict.fromkeys(("loss", "error", "err", "perplexity", "ppl", "nll", "bce", "mse", "mae", "rmse", "mape"), "min"),
    **dict.fromkeys(("wer", "cer", "fid", "kl", "regret", "bpb", "bpc"), "min"),
    **dict.fromkeys(
        ("acc", "accuracy", "f1", "auc", "auroc", "ap", "map", "precision", "recall", "iou", "miou"), "max"
    ),
    **dict.fromkeys(("dice", "bleu", "rouge", "psnr", "ssim", "score", "reward", "return", "r2"), "max"),
}


@dataclass(frozen=True, slots=True)
class RunRow:
    """A run in a comparison; None for what it did not log.

    Attributes:
        name: name that no other run of the comparison has.
        place: folder or address.
        figures: numbers by the names of `docs/metrics.md`; exact ints if the run has them.
        metric: last value of the compared metric.
        curve: pairs of FLOPs spent and metric, one per logged value.
        is_lower_bound: True if work is missing from its FLOPs.
        is_upper_bound: True if work that depends on data counts as its maximum.
        estimated_pct: percentage of its compute that was interpolated instead of counted.
        is_on_front: True if no other run has as good a metric for as little compute.
    """

    name: str
    place: str
    figures: Mapping[str, int | float]
    metric: float | None = None
    curve: Sequence[tuple[float, float]] = ()
    is_lower_bound: bool = False
    is_upper_bound: bool = False
    estimated_pct: float = 0.0
    is_on_front: bool = False

    @property
    def compute(self) -> int | float | None:
        """FLOPs that the training spent."""
        return self.figures.get(COMPUTE)

    def value(self, column: str) -> int | float | None:
        """Return the figure in one of `columns`, except the name."""
        return self.metric if column == "metric" else self.figures.get(columns()[column])


@dataclass(frozen=True, slots=True)
class Comparison:
    """Compared runs, in the order of the table.

    Attributes:
        rows: the runs.
        metric: name of the compared metric; empty if none was chosen.
        mode: `"min"` if a smaller metric is better, else `"max"`.
        notes: reasons why figures are not comparable.
    """

    rows: tuple[RunRow, ...]
    metric: str = ""
    mode: str = "min"
    notes: tuple[str, ...] = ()

    @property
    def columns(self) -> list[str]:
        """Columns of the table."""
        return [column for column in columns() if column != "metric" or self.metric]


def compare_runs(runs: Sequence[RunRecord], *, metric: str = "", mode: str = "", sort: str = "") -> Comparison:
    """Compare runs by compute and a metric.

    Args:
        runs: records whose names have no prefix.
        metric: metric to compare; without one, the table has none and no run is on a front.
        mode: `"min"` or `"max"`; by default the direction that the metric's name implies.
        sort: one of `COLUMNS`, the best run first; by default the metric, or compute without a metric.

    Raises:
        ValueError: no run has the metric; the mode is unknown, or the name implies none; there is no such column.
    """
    if metric and not any(metric in run.figures for run in runs):
        known = ", ".join(sorted(set().union(*(run.own_metrics() for run in runs)))) or "none at all"
        raise ValueError(f"no run has a metric {metric!r}; there are: {known}")
    mode = mode or (direction_of(metric) if metric else "min") or ""  # without a metric, no front depends on it
    if mode not in ("min", "max"):
        said = f"is {mode!r}; it is min or max" if mode else f"is not clear from the name {metric!r}; give min or max"
        raise ValueError(f"mode {said}")
    rows = [_row(run, metric, name) for run, name in zip(runs, _names(runs), strict=True)]
    front = pareto_front([(row.compute, row.metric) for row in rows], mode)
    rows = [replace(row, is_on_front=place in front) for place, row in enumerate(rows)]
    return Comparison(
        tuple(_sorted(rows, sort or ("metric" if metric else "compute"), mode)), metric, mode, _notes(runs)
    )


def pareto_front(points: Sequence[tuple[float | None, float | None]], mode: str) -> set[int]:
    """Return the positions of the pairs on the Pareto front.

    A pair has a cost and a value. A pair is on the front if no other is at least as good in both and better in one.
    Less cost is better. Less value is better for `"min"`, more for `"max"`. A pair with a part that is missing or not
    finite is not on the front and beats no other. Equal pairs are on the front together.
    """
    sign = 1 if mode == "min" else -1
    finite = [
        (cost, sign * value, place)
        for place, (cost, value) in enumerate(points)
        if cost is not None and value is not None and math.isfinite(cost) and math.isfinite(value)
    ]
    front: set[int] = set()
    best, best_cost = math.inf, math.inf
    # By increasing cost, so only the best value so far has to be compared.
    for cost, value, place in sorted(finite):
        if value < best or (value == best and cost == best_cost):
            front.add(place)
            best, best_cost = value, cost
    return front


def metric_against_compute(run: RunRecord, metric: str) -> list[tuple[float, float]]:
    """Return pairs of FLOPs spent and metric.

    Each value is paired with the last compute logged at its step or before. Values before any compute, and those that
    are not finite, are left out.
    """
    spent = run.series.get(COMPUTE, ())
    steps = [step for step, _ in spent]
    pairs = []
    for step, value in run.series.get(metric, ()):
        place = bisect_right(steps, step)
        if place and math.isfinite(value) and math.isfinite(spent[place - 1][1]):
            pairs.append((spent[place - 1][1], value))
    return pairs


def shared_metrics(runs: Iterable[RunRecord]) -> list[str]:
    """Return the users' metrics with a known direction that all runs share.

    Runs that have no metric of the user's at all do not matter.
    """
    names = [metrics for run in runs if (metrics := run.own_metrics())]
    shared = set.intersection(*names) if names else set()
    return sorted(name for name in shared if direction_of(name))


def direction_of(metric: str) -> str | None:
    """Return `"min"` or `"max"` by a metric's name; None if unclear.

    For example `"min"` for `val/loss`, `"max"` for `val_acc5`.
    """
    apart = re.sub(r"([a-z])([A-Z])", r"\1_\2", metric).lower()
    # The last word decides: `loss` in `accuracy_loss`. Each is also tried without a number at its end.
    words = (form for word in re.split(r"[^a-z0-9]+", apart)[::-1] for form in (word, word.rstrip("0123456789")))
    return next((_BETTER[word] for word in words if word in _BETTER), None)


def _row(run: RunRecord, metric: str, name: str) -> RunRow:
    rates = [metric.name for metric in metrics.METRICS if metric.compared == "median"]
    medians = {rate: median(value for _, value in run.series[rate]) for rate in rates if run.series.get(rate)}
    estimated = run.figures.get(metrics.ESTIMATED.name, 0.0)
    return RunRow(
        name=name,
        place=run.place,
        figures={**run.figures, **medians},
        metric=run.figures.get(metric) if metric else None,
        curve=tuple(metric_against_compute(run, metric)) if metric else (),
        is_lower_bound=run.config.get("flops.is_lower_bound") is True,
        is_upper_bound=bool(run.config.get("flops.upper_bounds")),
        estimated_pct=estimated if math.isfinite(estimated) else 0.0,
    )


def _names(runs: Sequence[RunRecord]) -> list[str]:
    """Return a distinct name for each run.

    Equal names get as many parts of the place in front as tell them apart.
    """
    counts = Counter(run.name for run in runs)
    return [run.name if counts[run.name] == 1 else _qualified_name(run, runs) for run in runs]


def _qualified_name(run: RunRecord, runs: Sequence[RunRecord]) -> str:
    others = [other.place.split("/") for other in runs if other is not run and other.name == run.name]
    parts = run.place.split("/")
    # The fewest last parts of the place that no other run of this name has.
    length = next((n for n in range(1, len(parts)) if all(parts[-n:] != other[-n:] for other in others)), len(parts))
    tail = "/".join(parts[-length:])
    return tail if tail.endswith(run.name) else f"{run.name} ({tail})"


def _sorted(rows: list[RunRow], column: str, mode: str) -> list[RunRow]:
    """Sort the rows by a column, the best first.

    Rows without a figure come last, in the given order.
    """
    if column not in columns():
        raise ValueError(f"sort is {column!r}; it is one of {', '.join(columns())}")
    if column == "run":
        return sorted(rows, key=lambda row: row.name)
    is_more_better = (mode if column == "metric" else metrics.by_column()[column].better) == "max"

    def rank(row: RunRow) -> tuple[bool, float]:
        value = row.value(column)
        # Such rows come last in both directions.
        is_missing = value is None or math.isnan(value)
        return is_missing, 0.0 if is_missing or value is None else -value if is_more_better else value

    return sorted(rows, key=rank)


def _notes(runs: Sequence[RunRecord]) -> tuple[str, ...]:
    notes = []
    # Different batches are no mistake, but FLOPs and times depend on them.
    batches = sorted({batch for run in runs if (batch := _batch_size(run))})
    if len(batches) > 1:
        sizes = ", ".join(f"{batch:g}" for batch in batches)
        notes.append(f"FLOPs and times are of the counted batch, whose size differs: {sizes} samples")
    return tuple(notes)


def _batch_size(run: RunRecord) -> float | None:
    figures = [run.figures.get(metric.name) for metric in (metrics.FORWARD, metrics.FORWARD_PER_SAMPLE)]
    macs = [run.figures.get(name) for name in metrics.MACS.values()]  # of an older version's run
    whole, sample = figures if all(figures) else macs
    return round(whole / sample, 3) if whole and sample else None
