"""The logged numbers: one row per name, read by all outputs.

A new number is a row here, its place in `METRICS`, and the line that computes it. Names are those of `docs/metrics.md`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

__all__ = [
    "CHARTS",
    "GROUPS",
    "MACS",
    "METRICS",
    "OLD_NAMES",
    "SECTION",
    "Metric",
    "by_column",
    "by_name",
    "card",
    "describes_run",
    "logged_name",
    "of_group",
    "placed",
    "today",
    "unsaid",
    "without_zeros",
]

Value = TypeVar("Value", int, float)

SECTION = "workload"
"""Section of everything that a dashboard shows of ours.

Dashboards order their sections by name. The user's own (`loss`, `train/…`, `val/…`) come before this one.
"""

When = Literal["count", "window", "log"]
"""Time of logging: once after the counted step, once when the measuring window closes, or repeatedly."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One logged number.

    Attributes:
        name: name under which it is logged, `group/name`. A dashboard's chart has a name of its own, `chart`.
        unit: unit, which also decides how it is written; empty for a count.
        when: time of logging.
        better: `"min"` if less is better, `"max"` if more is; empty if neither.
        column: name of its column in a comparison's table; empty if it has none.
        heading: heading of that column.
        compared: value that a comparison takes of a training, the last or the median; empty if it takes none.
        is_bound: True if it is a lower bound whenever it includes operators without a count.
        is_narrow: True if a phone has room for its column.
        place: where trackers show it: as a chart over the steps, or once, among what they keep of a run (W&B's summary,
            TensorBoard's hyperparameters, MLflow's tags).
        unless: name of the metric whose chart makes one of this needless, where both are known.
        says_zero: True if a 0 says something. Any other 0 is left out.
        text: phrase for a sentence, with `{}` for the value and its unit; empty if no sentence mentions it.
    """

    name: str
    unit: Literal["", "FLOPs", "ms", "%", "samples", "tokens", "samples/s", "tokens/s", "TFLOP/s"]
    when: When
    better: Literal["", "min", "max"] = ""
    column: str = ""
    heading: str = ""
    compared: Literal["", "last", "median"] = ""
    is_bound: bool = False
    is_narrow: bool = False
    place: Literal["chart", "summary"] = "summary"
    unless: str = ""
    says_zero: bool = False
    text: str = ""

    @property
    def group(self) -> str:
        """The part of the name before the slash."""
        return self.name.partition("/")[0]

    @property
    def chart(self) -> str:
        """Name of its chart in a dashboard; empty if it has none."""
        return card(self.name.partition("/")[2]) if self.place == "chart" else ""


def card(name: str) -> str:
    """Return the name of something that a dashboard shows, such as `workload/report`."""
    return f"{SECTION}/{name}"


# fmt: off
PARAMS = Metric("model/params", "", "count", "min", "params", "params", "last", says_zero=True)
PARAMS_TRAINABLE = Metric("model/params_trainable", "", "count")
ACTIVATIONS = Metric("model/activations", "", "count")
FORWARD = Metric("flops/forward", "FLOPs", "count", "min", "flops", "FLOPs", "last", is_bound=True, is_narrow=True,
                 says_zero=True)
FORWARD_PER_SAMPLE = Metric("flops/forward_per_sample", "FLOPs", "count", "min", compared="last")
UNKNOWN_CALLS = Metric("flops/unknown_calls", "", "count", "min")
TRAIN_STEP = Metric("flops/train_step", "FLOPs", "window", "min", compared="last")
# The step's own forward has no name: it is that of the counted call, times the calls in a step.
TRAIN_STEP_PHASES = {
    phase: Metric(f"flops/{phase}", "FLOPs", "window") for phase in ("backward", "recompute", "optimizer")
}
STEP_WITHOUT_GRAD = Metric("flops/without_grad", "FLOPs", "window")
FORWARD_MS = Metric("latency/forward_ms", "ms", "window", "min", "forward_ms", "fwd ms", "last")
STEP_MS = Metric("latency/step_ms", "ms", "window", "min", "step_ms", "step ms", "last")
# At most six have charts in one run.
MFU = Metric("perf/mfu_pct", "%", "log", "max", "mfu", "MFU %", "median", place="chart", text="MFU {}")
TFLOPS_PER_SEC = Metric("perf/tflops_per_sec", "TFLOP/s", "log", "max", compared="median", place="chart",
                        unless=MFU.name, text="{}")
TOKENS_PER_SEC = Metric("perf/tokens_per_sec", "tokens/s", "log", "max", place="chart", text="{}")
SAMPLES_PER_SEC = Metric("perf/samples_per_sec", "samples/s", "log", "max", compared="median", place="chart",
                         unless=TOKENS_PER_SEC.name, text="{}")
STEP_TIME_MS = Metric("perf/step_time_ms", "ms", "log", "min", compared="median", place="chart", text="{} a step")
DATA_WAIT = Metric("perf/data_wait_pct", "%", "log", "min", place="chart", text="{} of the time waiting for data")
# A lower bound in the same runs as `FORWARD`: both leave out operators without a count.
COMPUTE = Metric("compute/flops_total", "FLOPs", "log", "min", "compute", "compute", "last", is_bound=True,
                 is_narrow=True, place="chart")
HFU = Metric("perf/hfu_pct", "%", "log", "max", compared="median", text="HFU {}")
MBU = Metric("perf/mbu_pct", "%", "log", "max", compared="median", text="MBU {}")
PADDING = Metric("perf/padding_pct", "%", "log", "min", text="{} of the tokens are padding")
SAMPLES = Metric("compute/samples_total", "samples", "log", compared="last", text="{}")
TOKENS = Metric("compute/tokens_total", "tokens", "log", compared="last", text="{}")
ESTIMATED = Metric("compute/estimated_pct", "%", "log", "min", compared="last", says_zero=True)
ERROR = Metric("compute/error_pct", "%", "log", "min", compared="last")
WITHOUT_GRAD = Metric("compute/without_grad_pct", "%", "log", compared="last")
LOWER_BOUND = Metric("compute/lower_bound_pct", "%", "log", "min", compared="last")
UPPER_BOUND = Metric("compute/upper_bound_pct", "%", "log", "min", compared="last")
STEPS = Metric("compute/steps_total", "", "log", compared="last")
AUDITED = Metric("compute/audited_steps", "", "log", compared="last")
# fmt: on

METRICS: tuple[Metric, ...] = (
    *(PARAMS, PARAMS_TRAINABLE, ACTIVATIONS, FORWARD, FORWARD_PER_SAMPLE, UNKNOWN_CALLS, TRAIN_STEP),
    *(
        *TRAIN_STEP_PHASES.values(),
        STEP_WITHOUT_GRAD,
        FORWARD_MS,
        STEP_MS,
        STEP_TIME_MS,
        SAMPLES_PER_SEC,
        TOKENS_PER_SEC,
    ),
    *(TFLOPS_PER_SEC, MFU, HFU, MBU, DATA_WAIT, PADDING, COMPUTE, SAMPLES, TOKENS, ESTIMATED, ERROR),
    *(WITHOUT_GRAD, LOWER_BOUND, UPPER_BOUND, STEPS, AUDITED),
)
"""All metrics, in the order of a comparison's columns."""

GROUPS = tuple(dict.fromkeys(f"{metric.group}/" for metric in METRICS))
"""Beginnings of the names, such as `"flops/"`."""

CHARTS: Mapping[str, Metric] = {metric.chart: metric for metric in METRICS if metric.chart}
"""Metrics that have a chart, by the chart's name."""

OLD_NAMES: Mapping[str, str] = {
    "flops/train_step_hw": TRAIN_STEP.name,
    **{f"flops/train_step_{phase}_hw": metric.name for phase, metric in TRAIN_STEP_PHASES.items()},
    "flops/train_step_forward_hw": "",  # it was that of the counted call, times the calls in a step
    "compute/hw_flops_total": COMPUTE.name,
    "perf/hw_tflops_per_sec": TFLOPS_PER_SEC.name,
}
"""Names of older versions, with today's; empty for what is not logged any more."""

MACS: Mapping[str, str] = {
    FORWARD.name: "macs/forward",
    FORWARD_PER_SAMPLE.name: "macs/forward_per_sample",
}
"""Names that older versions used for the count at 1 per multiply-add, with what it is called where it is still read."""


def by_name(values: Mapping[Metric, Value | None]) -> dict[str, Value]:
    """Return the values that are known, by logged name."""
    return {metric.name: value for metric, value in values.items() if value is not None}


_METRICS = {metric.name: metric for metric in METRICS}
_NAME = re.compile(f"(.*?)({'|'.join(map(re.escape, _METRICS))})")
_CHART = re.compile(f"(.*?)({'|'.join(map(re.escape, CHARTS))})")


def without_zeros(values: Mapping[Metric, Value | None]) -> dict[str, Value]:
    """Return the values that are known and say something, by logged name."""
    return {name: value for name, value in by_name(values).items() if value or _METRICS[name].says_zero}


def placed(values: Mapping[str, Value]) -> tuple[dict[str, Value], dict[str, Value]]:
    """Split numbers into those that a dashboard charts and those that it keeps once.

    Args:
        values: numbers by logged name, with whatever prefix.

    Returns:
        Those of charts, by the charts' names; all others by their own. Numbers that are not ours are charted as they
        are. A 0 that says nothing is in neither.
    """
    charts: dict[str, Value] = {}
    kept: dict[str, Value] = {}
    for name, value in values.items():
        prefix, metric = _metric_of(name)
        if metric is None:
            charts[name] = value
        elif not value and not metric.says_zero:
            continue
        elif metric.chart and not (metric.unless and prefix + metric.unless in values):
            charts[prefix + metric.chart] = value
        else:
            kept[name] = value
    return charts, kept


def describes_run(name: str) -> bool:
    """Return whether a logged name is one of the count and its times, or says how exact the compute is."""
    _, metric = _metric_of(name)
    return metric is not None and (metric.when != "log" or metric.says_zero)


def unsaid(values: Mapping[str, Value], *whens: When) -> list[str]:
    """List the numbers of these times of logging that have no value, as what was kept of them before is not true."""
    return [metric.name for metric in METRICS if metric.when in whens and metric.name not in values]


def _metric_of(name: str) -> tuple[str, Metric | None]:
    """Return the prefix of a logged name, and the metric; None for a name that is not ours."""
    match = _NAME.fullmatch(name)
    return (match[1], _METRICS[match[2]]) if match else ("", None)


def logged_name(chart: str) -> str:
    """Return the name of the number in a dashboard's chart; that of any other chart is its own."""
    match = _CHART.fullmatch(chart)
    return match[1] + CHARTS[match[2]].name if match else chart


def of_group(group: str) -> list[Metric]:
    """Return the metrics of a group, such as `"perf"`."""
    return [metric for metric in METRICS if metric.group == group]


def by_column() -> dict[str, Metric]:
    """Return the metrics shown in a comparison's table, by name of column."""
    return {metric.column: metric for metric in METRICS if metric.column}


def today(values: Mapping[str, Value]) -> dict[str, Value]:
    """Return values under today's names, without those that have none."""
    renamed = {OLD_NAMES.get(name, name): value for name, value in values.items()}
    return {name: value for name, value in renamed.items() if name}
