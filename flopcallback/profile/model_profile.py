"""ModelProfile: the tree of rows that every table, figure, page and tracker is drawn from. Plain data, no framework."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

from flopcallback.profile import columns, metrics
from flopcallback.profile.metrics import known
from flopcallback.profile.numbers import finite
from flopcallback.profile.rows import (
    LatencySummary,
    ModuleRow,
    OperatorRow,
    StepFlops,
    Timed,
    achieved_flops_per_s,
    share,
)
from flopcallback.profile.verdict import Verdict

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["JSON", "PHASES", "ModelProfile"]

JSON = None | bool | int | float | str | Sequence["JSON"] | Mapping[str, "JSON"]

PHASES = ("train", "validate", "test", "predict", "call")
"""What kind of call was counted; `call` is a count outside any loop."""

SCHEMA = 3
"""Goes up whenever an older reader could not read, or would misread, what `ModelProfile.to_json` writes."""

READABLE = (1, 2, SCHEMA)
"""Schemas that `ModelProfile.from_json` reads; 1 has no training step, and neither 1 nor 2 a verdict."""


@dataclass(frozen=True, slots=True)
class ModelProfile:
    """Where the compute of one counted call went, by module and by operator, next to measured times.

    Attributes:
        name: class name of the model.
        phase: one of `PHASES`.
        modules: depth first, the root (path `""`) first; empty where no module ran.
        operators: by FLOPs, the largest first, whatever the order they are given in.
        config: under which convention and conditions it was counted (`flops.fma`, `flops.engine`, ...): plain JSON;
            tuples become lists and numbers that are not finite become None when it is taken in.
        batch_size: samples in the counted call; None where it is not known.
        forward_flops: of the whole call under the convention, `forward_hw_flops` as hardware FLOPs.
        unknown: operator -> why it has no count.
        latency: None until it has been measured.
        step: hardware FLOPs of a whole training step; None until one was observed.
        step_note: what is to be known of that step: a forward other than the counted one, operators without a count, or
            why it was not observed.
        verdict: what came of counting the call with both engines; None where only one was asked.
        training: what the training around the call had come to when it ended: `compute/*`, `perf/*`.

    Raises:
        ValueError: an unknown phase, or a first module that is not the root.
    """

    name: str
    phase: str = "call"
    modules: tuple[ModuleRow, ...] = ()
    operators: tuple[OperatorRow, ...] = ()
    config: Mapping[str, JSON] = field(default_factory=dict)
    batch_size: int | None = None
    forward_flops: int = 0
    forward_hw_flops: int = 0
    unknown: Mapping[str, str] = field(default_factory=dict)
    latency: LatencySummary | None = None
    step: StepFlops | None = None
    step_note: str = ""
    verdict: Verdict | None = None
    training: Mapping[str, int | float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.phase not in PHASES:
            raise ValueError(f"ModelProfile: phase is {self.phase!r}; it must be one of {', '.join(PHASES)}")
        if self.modules and self.modules[0].path != "":
            raise ValueError(
                f"ModelProfile: the first module is {self.modules[0].path!r}; rows go depth first and start with the "
                'root, whose path is ""'
            )
        by_flops = sorted(self.operators, key=lambda row: -row.flops)
        for name, value in (
            ("modules", tuple(self.modules)),
            ("operators", tuple(by_flops)),
            ("config", _plain(self.config)),
            ("unknown", dict(self.unknown)),
            ("training", _plain(self.training)),
        ):
            object.__setattr__(self, name, value)

    @property
    def root(self) -> ModuleRow | None:
        """The row of the whole model; None where the profile has no modules."""
        return self.modules[0] if self.modules else None

    @property
    def is_lower_bound(self) -> bool:
        """Whether something that was not counted may have done work: totals are then shown with `>=`."""
        return bool(self.config.get("flops.is_lower_bound", bool(self.unknown)))

    @property
    def unknown_calls(self) -> int:
        """Operator calls that no formula counts, and modules that could not be seen; 0 is good."""
        if self.root is not None:
            return self.root.unknown_calls
        return sum(row.calls for row in self.operators if row.status == "unknown")

    @property
    def forward_ms(self) -> float | None:
        """Measured time of the counted call in milliseconds: the whole that shares of time refer to."""
        if self.latency is not None and self.latency.forward_ms is not None:
            return self.latency.forward_ms
        return self.root.forward_ms if self.root else None

    def params_share(self, row: ModuleRow) -> float | None:
        """Parameters of the row over those of the model, 0 to 1; None where the model has none."""
        return share(row.params, self.root.params if self.root else 0)

    def flops_share(self, row: ModuleRow | OperatorRow) -> float | None:
        """FLOPs of the row over those of the call, 0 to 1; None where the call has none."""
        return share(row.flops, self.forward_flops)

    def latency_share(self, row: ModuleRow) -> float | None:
        """Time of the row over that of the call; None where either was not measured."""
        return share(row.forward_ms, self.forward_ms)

    def achieved_flops_per_s(self, row: Timed) -> float | None:
        """Hardware FLOPs of the row per second of its measured forward; None where it was not measured.

        It is a quotient and no more than that; whether it can be true, `is_above_peak` says.
        """
        return achieved_flops_per_s(row.hw_flops, row.forward_ms)

    @property
    def peak_flops_per_s(self) -> float | None:
        """Dense peak of the device in the dtype of the call, from the config; None where it is not known."""
        peak = self.config.get("flops.peak_tflops")
        return peak * 1e12 if isinstance(peak, (int, float)) else None

    def is_above_peak(self, row: Timed) -> bool:
        """Whether the row's FLOP/s exceed what the device can do, so that its time or its FLOPs are not what they seem.

        Such a time may have ended before the work did, or some of the work may have been left out by the kernel.
        """
        achieved, peak = self.achieved_flops_per_s(row), self.peak_flops_per_s
        return achieved is not None and peak is not None and achieved > peak

    def hw_flops_per_byte(self, row: ModuleRow) -> float | None:
        """Arithmetic intensity: hardware FLOPs per byte that its operators read or wrote; None where there are none.

        Below the device's peak FLOP/s over its memory bandwidth, memory is what limits (Williams, Waterman, Patterson,
        "Roofline", 2009). A kernel that keeps data on the chip moves fewer bytes than its operators read and write.
        """
        return share(row.hw_flops, row.bytes)

    def fingerprint(self) -> str:
        """The same for two profiles of one count, of which one may have more: times, a whole step, a verdict, an end.

        Bytes are left out: what Lightning does to keep a logged value is another operator in a later fit.
        """
        config = {name: value for name, value in self.config.items() if not name.startswith("flops.peak")}
        counted = self.with_step({}).with_latency(LatencySummary(None))
        rows = tuple(replace(row, bytes=0) for row in counted.modules)
        text = replace(counted, modules=rows, config=config, verdict=None, training={}).to_json()
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def with_step(self, steps: Mapping[str, StepFlops], note: str = "") -> ModelProfile:
        """The same profile with the hardware FLOPs of a whole training step, by module path; the root's are all of it.

        A module without any in `steps` did nothing that hardware FLOPs count.
        """
        rows = tuple(replace(row, step=steps.get(row.path, StepFlops())) for row in self.modules)
        return replace(self, modules=rows, step=steps.get("", StepFlops()), step_note=note)

    def with_latency(
        self,
        latency: LatencySummary,
        forward_ms: Mapping[str, float] | None = None,
        forward_ms_spread: Mapping[str, tuple[float, float]] | None = None,
    ) -> ModelProfile:
        """The same profile with measured times: `latency` for the call, and times in milliseconds by module path.

        Rows without a time in `forward_ms` lose the one they had, so that no two windows mix. A path that has no row
        (a module that was added after the count) is passed over.
        """
        times, spreads = forward_ms or {}, forward_ms_spread or {}
        rows = tuple(
            replace(row, forward_ms=times.get(row.path), forward_ms_spread=spreads.get(row.path))
            for row in self.modules
        )
        return replace(self, modules=rows, latency=latency)

    def scalars(self) -> dict[str, int | float]:
        """The numbers that trackers chart, by the names of `docs/metrics.md`; only those that are known.

        Profiles of `validate`, `test` and `predict` have their phase in front (`validate/flops/forward`). A user's
        prefix is not in the names. Integers are exact.
        """
        root, latency, step = self.root, self.latency, self.step
        values = known(
            {
                metrics.FORWARD: self.forward_flops,
                metrics.FORWARD_PER_SAMPLE: _per_sample(self.forward_flops, self.batch_size),
                metrics.UNKNOWN_CALLS: self.unknown_calls,
                metrics.PARAMS: root.params if root else None,
                metrics.PARAMS_TRAINABLE: root.params_trainable if root else None,
                metrics.ACTIVATIONS: root.activations if root else None,
                metrics.TRAIN_STEP: step.total if step else None,
                **{row: getattr(step, phase, None) for phase, row in metrics.TRAIN_STEP_PHASES.items()},
                metrics.FORWARD_MS: self.forward_ms,
                metrics.STEP_MS: latency.step_ms if latency else None,
            }
        )
        return {self.phase_prefix + name: value for name, value in values.items()}

    @property
    def phase_prefix(self) -> str:
        """What stands in front of this profile's names: `""` for training and plain calls, else such as `"test/"`."""
        return "" if self.phase in ("train", "call") else f"{self.phase}/"

    @property
    def file_stem(self) -> str:
        """What this profile's files are called, before their suffix: `flopcallback`, or such as `flopcallback-test`."""
        return f"flopcallback-{self.phase}" if self.phase_prefix else "flopcallback"

    def module_records(self) -> list[dict[str, Any]]:
        """The table `flops/modules`: one dict per module, depth first, shares and achieved FLOP/s worked out."""
        return self._records(columns.COLUMNS, self.modules)

    def operator_records(self) -> list[dict[str, Any]]:
        """The table `flops/operators`: one dict per operator, the largest first, with its share of the FLOPs."""
        return self._records(columns.OPERATOR_COLUMNS, self.operators)

    def _records(
        self, table: Sequence[columns.Column], rows: Sequence[ModuleRow | OperatorRow]
    ) -> list[dict[str, Any]]:
        shown = [column for column in table if column.is_record]
        return [{column.key: column.value(self, row) for column in shown} for row in rows]

    def to_dataframe(self) -> pd.DataFrame:
        """`module_records()` as a pandas data frame, a row per module.

        Raises:
            ModuleNotFoundError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "ModelProfile.to_dataframe() needs pandas: pip install pandas. module_records() gives the same rows "
                "without it.",
                name="pandas",
            ) from error
        return pd.DataFrame(self.module_records())

    def to_json(self, *, indent: int | None = None) -> str:
        """The whole profile as strict JSON: integers of any size exactly, numbers that are not finite as null."""
        content = {"flopcallback_profile": SCHEMA, **_plain(self)}
        return json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> ModelProfile:
        """The profile that `to_json` wrote.

        Raises:
            ValueError: the text is not JSON, not a profile, or of a schema that this version does not know.
        """
        content = json.loads(text)
        schema = content.pop("flopcallback_profile", None) if isinstance(content, dict) else None
        if schema not in READABLE:
            raise ValueError(
                f"ModelProfile.from_json: flopcallback_profile is {schema!r}; this version reads schemas "
                f"{READABLE[0]} to {SCHEMA}. "
                "Read the file with the version of flopcallback that wrote it (config: flops.version)."
            )
        content["modules"] = [_module_row(row) for row in content["modules"]]
        content["operators"] = [OperatorRow(**row) for row in content["operators"]]
        if content["latency"] is not None:
            content["latency"] = LatencySummary(**content["latency"])
        content["step"] = _step_flops(content.get("step"))
        verdict = content.pop("verdict", None)
        content["verdict"] = None if verdict is None else Verdict.of_content(verdict)
        return cls(**content)


def _per_sample(flops: int, batch_size: int | None) -> int | float | None:
    """Exact where the batch divides evenly, as it does unless something in the model counts once per batch."""
    if not batch_size:
        return None
    quotient, remainder = divmod(flops, batch_size)
    return flops / batch_size if remainder else quotient


def _module_row(content: dict[str, Any]) -> ModuleRow:
    spread, step = content.pop("forward_ms_spread"), _step_flops(content.pop("step", None))
    return ModuleRow(**content, forward_ms_spread=None if spread is None else tuple(spread), step=step)


def _step_flops(content: dict[str, int] | None) -> StepFlops | None:
    return None if content is None else StepFlops(**content)


def _plain(value: Any) -> Any:
    """The value as what JSON can hold; `dataclasses.asdict` would keep NaN, for which strict JSON has no form."""
    if is_dataclass(value):
        return {item.name: _plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return finite(value) if isinstance(value, float) else value  # most are no floats, and need no call
