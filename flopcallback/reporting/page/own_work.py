"""What modules do themselves, by operator: what is left of a module without the modules inside it."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING

from flopcallback.profile.rows import ModuleRow, StepFlops
from flopcallback.profile.times import IDLE, PYTHON, StepTime

if TYPE_CHECKING:
    from flopcallback.profile.model_profile import ModelProfile
    from flopcallback.profile.times import OperatorTime

__all__ = ["OPERATOR", "OTHER", "OWN", "WAITING", "OwnWork", "short_name"]

OPERATOR = "operator"
"""`ModuleRow.type` of a row of one operator."""

OWN, OTHER = "own operators", "other operators"
"""Names of the rows for what no operator has: all that a module does itself, or the rest of it."""

WAITING = {PYTHON: "python", IDLE: "idle"}
"""Time in which no operator ran, with the word for it in styles."""

SMALLEST = 0.0005
"""Share of the step from which an operator has a row of its own. Shorter ones without FLOPs share a row."""

# How autograd calls its nodes: `ScaledDotProductFlashAttentionBackward0`.
_NODE = re.compile(r"([A-Z]\w*?)Backward\d*")
_WORDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")

ROUNDING = 1e-6
"""Share of the whole up to which a rest of time is rounding."""


@dataclass(slots=True)
class _Work:
    """FLOPs and time of one operator in some modules.

    Attributes:
        time: milliseconds of a step.
        step: FLOPs of a step.
        calls: number of calls in a step.
    """

    time: StepTime = field(default_factory=StepTime)
    step: StepFlops = field(default_factory=StepFlops)
    calls: int = 0

    def add(self, record: OperatorTime) -> None:
        self.time += StepTime(**{record.phase: record.ms})
        self.step += StepFlops(**{record.phase: record.flops})
        self.calls += record.calls

    def row(self, operator: str) -> ModuleRow:
        return ModuleRow(
            operator,
            None,
            0,
            "" if operator in WAITING else OPERATOR,
            calls=self.calls,
            step=self.step,
            time=self.time,
            forward_ms=self.time.forward or None,
        )


def short_name(operator: str) -> str:
    """Write an operator's name as readers know it, such as `addmm backward` for `AddmmBackward0`."""
    node = _NODE.fullmatch(operator)
    return f"{_WORDS.sub('_', node[1]).lower()} backward" if node else operator.removeprefix("aten::")


class OwnWork:
    """What the modules of a profile do themselves, as rows."""

    def __init__(self, profile: ModelProfile, children: Sequence[Sequence[int]]) -> None:
        self.rows, self.children = profile.modules, children
        self.times = profile.own_times()
        root_time = profile.root.time if profile.root else None
        self.step_ms = root_time.total if root_time else 0.0
        self.forward_ms = profile.forward_ms or 0.0
        self.by_path: defaultdict[str | None, list[OperatorTime]] = defaultdict(list)
        for record in profile.operator_times if root_time else ():
            self.by_path[record.path].append(record)

    def share_of_step(self, index: int) -> float:
        """Return a module's own share of the step's time, 0 to 1; 0 if not measured."""
        time = self.times.get(self.rows[index].path)
        return time.total / self.step_ms if time and self.step_ms else 0.0

    @cached_property
    def step_row(self) -> int:
        """Place of the row that has the work of no module: that of Lightning's step itself, or else the root."""
        return next((index for index, row in enumerate(self.rows) if index and not row.type), 0)

    def of(self, indices: Sequence[int]) -> list[ModuleRow]:
        """Return rows that add up to what identical modules do themselves, the longest first.

        Args:
            indices: places of the modules' rows.
        """
        paths = [self.rows[index].path for index in indices]
        total = self._total(indices)
        if self.step_row in indices:
            paths = [*paths, ""] if self.step_row else paths
            outside = _sum(self._outside().values())
            total = replace(
                total,
                time=None if total.time is None else total.time - outside.time,
                step=None if total.step is None else total.step - outside.step,
            )
        elif 0 in indices:
            paths = []
        return self._rows(self._by_operator(self.by_path[path] for path in paths), total)

    def outside(self) -> dict[str, list[ModuleRow]]:
        """Return the rows of what runs outside of the model, by phase."""
        by_phase: defaultdict[str, list[OperatorTime]] = defaultdict(list)
        for record in self.by_path[None] if self._outside() else ():
            by_phase[record.phase].append(record)
        rows = {}
        for phase, records in by_phase.items():
            work = self._by_operator([records])
            whole = _sum(work.values())
            total = ModuleRow("", None, 0, "", step=whole.step, time=whole.time)
            rows[phase] = self._rows(work, total, is_forward=False)
        return rows

    def _outside(self) -> dict[str, _Work]:
        """Return the work outside of the model; none if the row that contains it has less time."""
        work = self._by_operator([self.by_path[None]])
        own = self.times.get(self.rows[self.step_row].path)
        return work if own is not None and self._fits(work, own) else {}

    def _fits(self, work: Mapping[str, _Work], time: StepTime) -> bool:
        return _sum(work.values()).time.total <= time.total + ROUNDING * self.step_ms

    def _by_operator(self, groups: Iterable[Iterable[OperatorTime]]) -> dict[str, _Work]:
        work: defaultdict[str, _Work] = defaultdict(_Work)
        for records in groups:
            for record in records:
                work[record.operator].add(record)
        return dict(work)

    def _total(self, indices: Sequence[int]) -> ModuleRow:
        """Return what the modules do without those inside them."""
        parts = [self._own(index) for index in indices]
        return ModuleRow(
            "",
            None,
            0,
            "",
            flops=sum(part.flops for part in parts),
            macs=sum(part.macs for part in parts),
            forward_ms=_sum_of_known([part.forward_ms for part in parts]),
            step=None if any(part.step is None for part in parts) else _steps(part.step for part in parts),
            time=None if any(part.time is None for part in parts) else _times(part.time for part in parts),
        )

    def _own(self, index: int) -> ModuleRow:
        row, inside = self.rows[index], [self.rows[child] for child in self.children[index]]
        forward_ms = row.forward_ms
        if forward_ms is not None:
            # A module inside that ran untimed is in what would be left.
            is_known = all(child.forward_ms is not None or not child.calls for child in inside)
            left = forward_ms - sum(child.forward_ms or 0.0 for child in inside)
            forward_ms = left if is_known and left > ROUNDING * self.forward_ms else 0.0
        return replace(
            row,
            flops=row.own_flops,
            macs=max(0, row.macs - sum(child.macs for child in inside)),
            forward_ms=forward_ms,
            step=row.step and row.step - _steps(child.step for child in inside),
            time=self.times.get(row.path),
        )

    def _rows(self, work: Mapping[str, _Work], total: ModuleRow, *, is_forward: bool = True) -> list[ModuleRow]:
        """Split a total by operator.

        What they leave of it is a row as well. FLOPs of the operators that exceed it are not shown.
        """
        if total.time is not None and not self._fits(work, total.time):
            work = {}  # of another step than the total
        whole = _sum(work.values())
        steps = None if total.step is None else total.step - whole.step
        has_step = steps is not None and min(steps.forward, steps.backward, steps.recompute, steps.without_grad) >= 0
        has_flops = is_forward and whole.step.forward <= total.flops
        named, small = [], _Work()
        for operator, each in work.items():
            if operator in WAITING or each.step.total or each.time.total >= SMALLEST * self.step_ms:
                row = each.row(operator)
                named.append(
                    replace(
                        row, flops=each.step.forward if has_flops else 0, step=row.step if has_step else StepFlops()
                    )
                )
            else:
                small.time, small.calls = small.time + each.time, small.calls + each.calls
        rest_ms = None if total.time is None else total.time - whole.time
        left = _positive(rest_ms, ROUNDING * self.step_ms) + small.time
        rest = ModuleRow(
            OTHER if named else OWN,
            None,
            0,
            "",
            calls=small.calls,
            flops=total.flops - whole.step.forward if has_flops else total.flops,
            macs=total.macs,
            step=steps if has_step else total.step,
            time=None if total.time is None else left,
            forward_ms=total.forward_ms if total.time is None else left.forward or None,
        )
        is_something = rest.flops or (rest.step and rest.step.total) or left.total or rest.forward_ms
        rows = [*named, rest] if is_something else named
        return sorted(rows, key=lambda row: -(row.time.total if row.time else 0.0))


def _sum(parts: Iterable[_Work]) -> _Work:
    whole = _Work()
    for part in parts:
        whole.time, whole.step, whole.calls = whole.time + part.time, whole.step + part.step, whole.calls + part.calls
    return whole


def _steps(steps: Iterable[StepFlops | None]) -> StepFlops:
    return sum((step for step in steps if step is not None), StepFlops())


def _times(times: Iterable[StepTime | None]) -> StepTime:
    return sum((time for time in times if time is not None), StepTime())


def _sum_of_known(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _positive(time: StepTime | None, least: float) -> StepTime:
    """Return the phases that are more than rounding."""
    if time is None:
        return StepTime()
    phases = {phase.name: getattr(time, phase.name) for phase in fields(time)}
    return StepTime(**{name: ms for name, ms in phases.items() if ms > least})
