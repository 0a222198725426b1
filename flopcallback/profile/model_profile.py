"""ModelProfile: the plain data behind all tables, figures and pages."""

from __future__ import annotations

import hashlib
import json
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from flopcallback.profile import columns, metrics
from flopcallback.profile.metrics import without_zeros
from flopcallback.profile.numbers import bound_sign, finite, is_whole
from flopcallback.profile.old_profiles import OLD_SCHEMAS, renewed
from flopcallback.profile.reading import parsed, read
from flopcallback.profile.rows import (
    LatencySummary,
    ModuleRow,
    OperatorRow,
    StepFlops,
    Timed,
    achieved_flops_per_s,
    check_tree,
    share,
)
from flopcallback.profile.times import LATER_TIMES, OperatorTime, StepTime, bytes_of
from flopcallback.profile.verdict import LATER_FIELDS, Verdict

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["JSON", "PHASES", "ModelProfile"]

JSON = None | bool | int | float | str | Sequence["JSON"] | Mapping[str, "JSON"]

PHASES = ("train", "validate", "test", "predict", "call")
"""Kinds of counted calls; `call` is a count outside of any loop."""

SCHEMA = 4
"""Version of the JSON that `ModelProfile.to_json` writes. It rises when older readers would fail or misread."""

_CONFIG_TYPES: dict[str, Any] = {
    **dict.fromkeys(("flops.elementwise", "flops.is_lower_bound"), bool),
    **dict.fromkeys(("flops.engine", "flops.engine_reason", "flops.device", "flops.dtype", "flops.version"), str),
    "flops.peak_tflops": float | None,
    "flops.peak_gb_per_s": float | None,
    "flops.peak_source": str | None,
    "flops.input_shapes": tuple[tuple[int, ...], ...],
    "flops.unknown_operators": tuple[str, ...],
    "flops.upper_bounds": tuple[str, ...],
}
"""Types of the entries of a config that texts and comparisons read. Any may be missing, and there may be others."""


@dataclass(frozen=True, slots=True)
class ModelProfile:
    """FLOPs of one counted call by module and operator, and measured times.

    Attributes:
        name: class name of the model.
        phase: one of `PHASES`.
        modules: rows depth first, beginning with the root (path `""`); empty if no module ran.
        operators: rows in decreasing order of FLOPs; they may be given in any order.
        config: conditions of the count (`flops.engine`, `flops.device`, ...) as plain JSON. Tuples are turned into
            lists, and numbers that are not finite into None.
        batch_size: samples in the counted call; None if unknown.
        forward_flops: FLOPs of the whole call, 2 per multiply-add.
        forward_macs: the count of fvcore, 1 per multiply-add, norms and resampling included.
        unknown: reason why an operator has no count, by operator.
        latency: medians of the window; None until it was measured.
        step: FLOPs of a whole training step; None until a step was observed.
        step_note: remark on that step: its forward differs from the counted one, it has operators without a count, or
            why no step was observed.
        step_bound: sign between that step's true FLOPs and its count, as in `bound`; empty if it is exact.
        verdict: result of counting the call with both engines; None if only one was asked.
        training: final totals and rates of the training around the call, `compute/*` and `perf/*`.
        operator_times: where the time of a whole training step goes, in decreasing order; they add up to it. Empty
            until its steps were recorded.

    Raises:
        ValueError: the phase is unknown, or the first module is not the root.
    """

    name: str
    phase: str = "call"
    modules: tuple[ModuleRow, ...] = ()
    operators: tuple[OperatorRow, ...] = ()
    config: Mapping[str, JSON] = field(default_factory=dict)
    batch_size: int | None = None
    forward_flops: int = 0
    forward_macs: int = 0
    unknown: Mapping[str, str] = field(default_factory=dict)
    latency: LatencySummary | None = None
    step: StepFlops | None = None
    step_note: str = ""
    step_bound: str = ""
    verdict: Verdict | None = None
    training: Mapping[str, int | float] = field(default_factory=dict)
    operator_times: tuple[OperatorTime, ...] = ()

    def __post_init__(self) -> None:
        if self.phase not in PHASES:
            raise ValueError(f"ModelProfile: phase is {self.phase!r}; it must be one of {', '.join(PHASES)}")
        if self.modules and self.modules[0].path != "":
            raise ValueError(
                f"ModelProfile: the first module is {self.modules[0].path!r}; rows go depth first and start with the "
                'root, whose path is ""'
            )
        by_flops = sorted(self.operators, key=lambda row: (-(row.flops or 0), -(row.macs or 0)))
        # The dataclass is frozen, so `object.__setattr__` is the only way to store what was made plain.
        for name, value in (
            ("modules", tuple(self.modules)),
            ("operators", tuple(by_flops)),
            ("operator_times", tuple(sorted(self.operator_times, key=lambda row: -row.ms))),
            ("config", _plain(self.config)),
            ("unknown", dict(self.unknown)),
            ("training", _plain(self.training)),
        ):
            object.__setattr__(self, name, value)

    @property
    def root(self) -> ModuleRow | None:
        """Row of the whole model; None if the profile has no modules."""
        return self.modules[0] if self.modules else None

    @property
    def is_lower_bound(self) -> bool:
        """True if uncounted parts may have done work.

        Totals are then shown with `>=`.
        """
        # A profile that was made without this key is a lower bound if it has unknown operators.
        return bool(self.config.get("flops.is_lower_bound", bool(self.unknown)))

    @property
    def upper_bounds(self) -> tuple[str, ...]:
        """Operators whose work depends on data that nobody saw, and counts as its maximum."""
        return tuple(self.config.get("flops.upper_bounds") or ())  # type: ignore[arg-type]

    @property
    def bound(self) -> str:
        """Sign before totals: `">= "`, `"<= "`, `"<> "` where it may be too low or too high, or nothing."""
        return bound_sign(is_lower=self.is_lower_bound, is_upper=bool(self.upper_bounds))

    @property
    def unknown_calls(self) -> int:
        """Number of operator calls without a formula and of modules not observed."""
        if self.root is not None:
            return self.root.unknown_calls
        return sum(row.calls for row in self.operators if row.status == "unknown")

    @property
    def forward_ms(self) -> float | None:
        """Measured milliseconds of the counted call, the whole for all shares."""
        if self.latency is not None and self.latency.forward_ms is not None:
            return self.latency.forward_ms
        return self.root.forward_ms if self.root else None

    def params_share(self, row: ModuleRow) -> float | None:
        """Return the row's share of the parameters, 0 to 1.

        None if the model has no parameters.
        """
        return self.shares("params", [row])[0]

    def flops_share(self, row: ModuleRow | OperatorRow) -> float | None:
        """Return the row's share of the FLOPs, 0 to 1.

        None if the call has no FLOPs.
        """
        return self.shares("flops", [row])[0]

    def latency_share(self, row: ModuleRow) -> float | None:
        """Return the row's share of the time; None if not measured."""
        return self.shares("forward_ms", [row])[0]

    def shares(
        self, figure: Literal["params", "flops", "forward_ms"], rows: Sequence[ModuleRow | OperatorRow]
    ) -> list[float | None]:
        """Return the rows' shares of the whole call's figure, 0 to 1.

        A share is None if the whole is 0, or if either was not measured.
        """
        if figure == "params":
            whole: float | None = self.root.params if self.root else 0
        else:
            whole = self.forward_flops if figure == "flops" else self.forward_ms
        return [share(getattr(row, figure), whole) for row in rows]

    def achieved_flops_per_s(self, row: Timed) -> float | None:
        """Return the row's FLOPs per second; None if not measured.

        It is the plain quotient, which may exceed what the device can do: see `is_above_peak`.
        """
        return achieved_flops_per_s(row.flops, row.forward_ms)

    @property
    def peak_flops_per_s(self) -> float | None:
        """Dense peak of the device in FLOP/s; None if unknown.

        It is the peak in the dtype of the counted call.
        """
        return _scaled(self.config.get("flops.peak_tflops"), 1e12)

    @property
    def peak_bytes_per_s(self) -> float | None:
        """Bandwidth of the device's memory in bytes/s; None if unknown."""
        return _scaled(self.config.get("flops.peak_gb_per_s"), 1e9)

    @property
    def step_bytes(self) -> int | None:
        """Bytes that the operators of a whole training step read and write; None if unknown, as in `bytes_of`."""
        return bytes_of(self.operator_times)

    def is_above_peak(self, row: Timed) -> bool:
        """Return whether the row's FLOP/s exceed the peak of the device.

        Then its time or its FLOPs are wrong: the clock stopped before the work ended, or the kernel left out some of
        the work.
        """
        achieved, peak = self.achieved_flops_per_s(row), self.peak_flops_per_s
        return achieved is not None and peak is not None and achieved > peak

    def flops_per_byte(self, row: ModuleRow) -> float | None:
        """Return the arithmetic intensity in FLOPs per byte.

        The bytes are those that operators read and write; None if there are none. Below the device's peak FLOP/s over
        its memory bandwidth, memory is the limit (Williams, Waterman, Patterson, "Roofline", 2009). A kernel that keeps
        data on the chip moves fewer bytes than its operators read and write.
        """
        return row.flops_per_byte

    def fingerprint(self) -> str:
        """Return a hash of the count.

        It leaves out everything that is added later: times, a whole step, a verdict, the peak and the end of the
        training. It also leaves out bytes, because Lightning, in a later fit, runs one more operator to keep a logged
        value.
        """
        # The peak may be given or measured later than the count.
        config = {name: value for name, value in self.config.items() if not name.startswith("flops.peak")}
        # Copies without times and without a step, whatever this profile has by now.
        counted = self.with_step({}).with_latency(LatencySummary(None))
        rows = tuple(replace(row, bytes=0) for row in counted.modules)
        text = replace(counted, modules=rows, config=config, verdict=None, training={}).to_json()
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def with_step(self, steps: Mapping[str, StepFlops], note: str = "") -> ModelProfile:
        """Return a copy with the FLOPs of a whole training step.

        Args:
            steps: FLOPs by module path, those of the whole model under `""`. A module that is missing did no work that
                counts.
            note: remark on the step.
        """
        rows = tuple(replace(row, step=steps.get(row.path, StepFlops())) for row in self.modules)
        return replace(self, modules=rows, step=steps.get("", StepFlops()), step_note=note)

    def with_latency(
        self,
        latency: LatencySummary,
        forward_ms: Mapping[str, float] | None = None,
        forward_ms_spread: Mapping[str, tuple[float, float]] | None = None,
    ) -> ModelProfile:
        """Return a copy with measured times.

        Rows that are missing in `forward_ms` lose the time they had, so that two windows never mix. A path without a
        row is skipped: its module was added after the count.

        Args:
            latency: times of the whole call.
            forward_ms: milliseconds by module path.
            forward_ms_spread: low and high percentiles in milliseconds by module path.
        """
        times, spreads = forward_ms or {}, forward_ms_spread or {}
        rows = tuple(
            replace(row, forward_ms=times.get(row.path), forward_ms_spread=spreads.get(row.path), time=None)
            for row in self.modules
        )
        return replace(self, modules=rows, latency=latency, operator_times=())

    def with_times(self, modules: Mapping[str, StepTime], operators: Sequence[OperatorTime]) -> ModelProfile:
        """Return a copy with the times of a whole training step.

        Args:
            modules: milliseconds by module path, those of the whole step under `""`. A module that is missing took no
                time.
            operators: the same time by operator.
        """
        rows = tuple(replace(row, time=modules.get(row.path, StepTime())) for row in self.modules)
        return replace(self, modules=rows, operator_times=tuple(operators))

    def own_times(self) -> dict[str, StepTime]:
        """Return each module's time in a training step without the modules inside, by path; empty if not measured.

        All of them add up to the step.
        """
        own = {row.path: row.time for row in self.modules if row.time is not None}
        for row in self.modules:
            if row.time is not None and row.parent in own:
                own[row.parent] -= row.time
        return own

    def scalars(self) -> dict[str, int | float]:
        """Return the known numbers of the count and its times, by the names in `docs/metrics.md`.

        Profiles of `validate`, `test` and `predict` have their phase in front (`validate/flops/forward`). The names are
        without a user's prefix. Integers are exact. Parts of which there is nothing, such as recomputation, are left
        out.
        """
        root, latency, step = self.root, self.latency, self.step
        values = without_zeros(
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
                metrics.STEP_WITHOUT_GRAD: step.without_grad if step else None,
                metrics.STEP_MS: latency.step_ms if latency else None,
            }
        )
        return {self.phase_prefix + name: value for name, value in values.items()}

    @property
    def phase_prefix(self) -> str:
        """Prefix of logged names: empty, or a phase such as `"test/"`."""
        return "" if self.phase in ("train", "call") else f"{self.phase}/"

    @property
    def file_stem(self) -> str:
        """Name of this profile's files without suffix: `flopcallback`, or such as `flopcallback-test`."""
        return f"flopcallback-{self.phase}" if self.phase_prefix else "flopcallback"

    def module_records(self) -> list[dict[str, Any]]:
        """Return the rows of the table of modules, one dict per module.

        They are depth first and include shares and achieved FLOP/s.
        """
        return self._records(columns.COLUMNS, self.modules)

    def operator_records(self) -> list[dict[str, Any]]:
        """Return the rows of the table of operators, one dict per operator.

        They are in decreasing order of FLOPs and include the share of the FLOPs.
        """
        return self._records(columns.OPERATOR_COLUMNS, self.operators)

    def _records(
        self, table: Sequence[columns.Column], rows: Sequence[ModuleRow | OperatorRow]
    ) -> list[dict[str, Any]]:
        values = {column.key: column.values(self, rows) for column in table if column.is_record}
        return [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]

    def to_dataframe(self) -> pd.DataFrame:
        """Return `module_records()` as a pandas data frame.

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
        """Write the whole profile as strict JSON.

        Integers of any size are exact; numbers that are not finite are null.
        """
        content = {"flopcallback_profile": SCHEMA, **_plain(self)}
        return json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> ModelProfile:
        """Read a profile that `to_json` wrote, in this version or an older one.

        Raises:
            ValueError: the text is not JSON, not a profile, or has a schema that this version does not read. The
                message names the field that is wrong.
        """
        content = parsed(text)
        if not isinstance(content, dict) or "flopcallback_profile" not in content:
            raise ValueError("ModelProfile.from_json: flopcallback_profile is missing, which every profile has")
        schema = content.pop("flopcallback_profile")
        # True would pass for 1.
        if not is_whole(schema) or schema not in (*OLD_SCHEMAS, SCHEMA):
            raise ValueError(
                f"ModelProfile.from_json: flopcallback_profile is {reprlib.repr(schema)}; this version reads schemas "
                f"{min(OLD_SCHEMAS)} to {SCHEMA}. "
                "Read the file with the version of flopcallback that wrote it (config: flops.version)."
            )
        profile: ModelProfile = (
            cls(**renewed(content, schema))
            if schema in OLD_SCHEMAS
            else read(cls, content, optional=("training", "step_bound", "without_grad", *LATER_TIMES, *LATER_FIELDS))
        )
        for name, kind in _CONFIG_TYPES.items():
            if name in profile.config:
                read(kind, profile.config[name], f"config[{name!r}]")
        check_tree(profile.modules)
        return profile


def _scaled(figure: JSON, unit: float) -> float | None:
    """Return a figure of the config times its unit; None if there is none, or if no float can hold it."""
    return finite(figure * unit) if isinstance(figure, (int, float)) else None


def _per_sample(flops: int, batch_size: int | None) -> int | float | None:
    """Return FLOPs per sample, an exact int if possible.

    The batch divides evenly unless something in the model counts once per batch.
    """
    if not batch_size:
        return None
    quotient, remainder = divmod(flops, batch_size)
    return flops / batch_size if remainder else quotient


def _plain(value: Any) -> Any:
    """Convert a value to what strict JSON can hold.

    Not `dataclasses.asdict`, which would keep NaN.
    """
    if is_dataclass(value):
        return {item.name: _plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return finite(value) if isinstance(value, float) else value  # most are no floats, and need no call
