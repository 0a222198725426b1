"""The numbers that are logged: one row for each name, which everything that computes, shows or compares them reads.

A new number is a row here, its place in `METRICS`, and the line that computes it. Names are those of `docs/metrics.md`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

__all__ = ["GROUPS", "METRICS", "Metric", "by_column", "known", "of_group"]

Value = TypeVar("Value")

When = Literal["count", "window", "log"]
"""Once after the counted step, once when the measuring window closes, or again and again as the training goes on."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One number.

    Attributes:
        name: what it is logged under, `group/name`.
        unit: what it is a number of, and so how it is written; empty for a count.
        when: when it is logged.
        better: whether less or more of it is better, where one is.
        column: its name among the columns of a comparison's table; empty where it is none of them.
        heading: what stands above that column.
        compared: what a comparison takes of a training, the last value or the median; empty where it takes none.
        is_bound: whether it is a lower bound where operators without a count are in it.
        is_narrow: whether a phone has room for its column.
        text: how a sentence has it, `{}` being the value with its unit; empty where none does.
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
        """What stands before the slash."""
        return self.name.partition("/")[0]


# fmt: off
PARAMS = Metric("model/params", "", "count", "min", "params", "params", "last")
PARAMS_TRAINABLE = Metric("model/params_trainable", "", "count")
ACTIVATIONS = Metric("model/activations", "", "count")
FORWARD = Metric("flops/forward", "FLOPs", "count", "min", "flops", "FLOPs", "last", is_bound=True, is_narrow=True)
FORWARD_PER_SAMPLE = Metric("flops/forward_per_sample", "FLOPs", "count", "min", compared="last")
UNKNOWN_CALLS = Metric("flops/unknown_calls", "", "count", "min")
TRAIN_STEP = Metric("flops/train_step_hw", "FLOPs", "window", "min", compared="last")
TRAIN_STEP_PHASES = {
    phase: Metric(f"flops/train_step_{phase}_hw", "FLOPs", "window")
    for phase in ("forward", "backward", "recompute", "optimizer")
}
FORWARD_MS = Metric("latency/forward_ms", "ms", "window", "min", "forward_ms", "fwd ms", "last")
STEP_MS = Metric("latency/step_ms", "ms", "window", "min", "step_ms", "step ms", "last")
STEP_TIME_MS = Metric("perf/step_time_ms", "ms", "log", "min", compared="median", text="{} a step")
SAMPLES_PER_SEC = Metric("perf/samples_per_sec", "samples/s", "log", "max", compared="median", text="{}")
TOKENS_PER_SEC = Metric("perf/tokens_per_sec", "tokens/s", "log", "max", text="{}")
HW_TFLOPS_PER_SEC = Metric("perf/hw_tflops_per_sec", "TFLOP/s", "log", "max", compared="median", text="{}")
MFU = Metric("perf/mfu_pct", "%", "log", "max", "mfu", "MFU %", "median", text="MFU {}")
HFU = Metric("perf/hfu_pct", "%", "log", "max", compared="median", text="HFU {}")
DATA_WAIT = Metric("perf/data_wait_pct", "%", "log", "min", text="{} of the time waiting for data")
COMPUTE = Metric("compute/hw_flops_total", "FLOPs", "log", "min", "compute", "compute", "last", is_bound=True,
                 is_narrow=True)
SAMPLES = Metric("compute/samples_total", "samples", "log", compared="last", text="{}")
TOKENS = Metric("compute/tokens_total", "tokens", "log", compared="last", text="{}")
ESTIMATED = Metric("compute/estimated_pct", "%", "log", "min", compared="last")
# fmt: on

METRICS: tuple[Metric, ...] = (
    *(PARAMS, PARAMS_TRAINABLE, ACTIVATIONS, FORWARD, FORWARD_PER_SAMPLE, UNKNOWN_CALLS, TRAIN_STEP),
    *(*TRAIN_STEP_PHASES.values(), FORWARD_MS, STEP_MS, STEP_TIME_MS, SAMPLES_PER_SEC, TOKENS_PER_SEC),
    *(HW_TFLOPS_PER_SEC, MFU, HFU, DATA_WAIT, COMPUTE, SAMPLES, TOKENS, ESTIMATED),
)
"""In the order in which a comparison has them."""

GROUPS = tuple(dict.fromkeys(f"{metric.group}/" for metric in METRICS))
"""What the names begin with."""


def known(values: Mapping[Metric, Value | None]) -> dict[str, Value]:
    """Give the values that are known by the names under which they are logged."""
    return {metric.name: value for metric, value in values.items() if value is not None}


def of_group(group: str) -> list[Metric]:
    """List the metrics whose names begin with the group."""
    return [metric for metric in METRICS if metric.group == group]


def by_column() -> dict[str, Metric]:
    """Find the metrics that a comparison's table shows, by the names of its columns."""
    return {metric.column: metric for metric in METRICS if metric.column}
