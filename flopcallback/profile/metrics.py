"""The logged numbers: one row per name, read by all outputs.

A new number is a row here, its place in `METRICS`, and the line that computes it. Names are those of `docs/metrics.md`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

__all__ = ["GROUPS", "MACS", "METRICS", "OLD_NAMES", "Metric", "by_column", "by_name", "of_group", "today"]

Value = TypeVar("Value")

When = Literal["count", "window", "log"]
"""Time of logging: once after the counted step, once when the measuring window closes, or repeatedly."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One logged number.

    Attributes:
        name: name under which it is logged, `group/name`.
        unit: unit, which also decides how it is written; empty for a count.
        when: time of logging.
        better: `"min"` if less is better, `"max"` if more is; empty if neither.
        column: name of its column in a comparison's table; empty if it has none.
        heading: heading of that column.
        compared: value that a comparison takes of a training, the last or the median; empty if it takes none.
        is_bound: True if it is a lower bound whenever it includes operators without a count.
        is_narrow: True if a phone has room for its column.
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
    text: str = ""

    @property
    def group(self) -> str:
        """The part of the name before the slash."""
        return self.name.partition("/")[0]


# fmt: off
PARAMS = Metric("model/params", "", "count", "min", "params", "params", "last")
PARAMS_TRAINABLE = Metric("model/params_trainable", "", "count")
ACTIVATIONS = Metric("model/activations", "", "count")
FORWARD = Metric("flops/forward", "FLOPs", "count", "min", "flops", "FLOPs", "last", is_bound=True, is_narrow=True)
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
STEP_TIME_MS = Metric("perf/step_time_ms", "ms", "log", "min", compared="median", text="{} a step")
SAMPLES_PER_SEC = Metric("perf/samples_per_sec", "samples/s", "log", "max", compared="median", text="{}")
TOKENS_PER_SEC = Metric("perf/tokens_per_sec", "tokens/s", "log", "max", text="{}")
TFLOPS_PER_SEC = Metric("perf/tflops_per_sec", "TFLOP/s", "log", "max", compared="median", text="{}")
MFU = Metric("perf/mfu_pct", "%", "log", "max", "mfu", "MFU %", "median", text="MFU {}")
HFU = Metric("perf/hfu_pct", "%", "log", "max", compared="median", text="HFU {}")
MBU = Metric("perf/mbu_pct", "%", "log", "max", compared="median", text="MBU {}")
DATA_WAIT = Metric("perf/data_wait_pct", "%", "log", "min", text="{} of the time waiting for data")
PADDING = Metric("perf/padding_pct", "%", "log", "min", text="{} of the tokens are padding")
# A lower bound in the same runs as `FORWARD`: both leave out operators without a count.
COMPUTE = Metric("compute/flops_total", "FLOPs", "log", "min", "compute", "compute", "last", is_bound=True,
                 is_narrow=True)
SAMPLES = Metric("compute/samples_total", "samples", "log", compared="last", text="{}")
TOKENS = Metric("compute/tokens_total", "tokens", "log", compared="last", text="{}")
ESTIMATED = Metric("compute/estimated_pct", "%", "log", "min", compared="last")
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
