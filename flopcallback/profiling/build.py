"""From what was observed to a profile: the one place where the engine's counts become rows."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from flopcallback._version import __version__
from flopcallback.counting.analysis import (
    ActivationCountAnalysis,
    BytesCountAnalysis,
    FlopCountAnalysis,
    OperatorAnalysis,
)
from flopcallback.counting.tally import display_name
from flopcallback.counting.verification import hardware_measure
from flopcallback.formulas.cost import Formula
from flopcallback.formulas.op_call import OpCall
from flopcallback.formulas.registry import HARDWARE_FAMILIES, Counted, lookup
from flopcallback.modules.names import ModuleNames
from flopcallback.modules.outermost import is_compiled
from flopcallback.profile.model_profile import ModelProfile
from flopcallback.profile.rows import ModuleRow, OperatorRow, StepFlops
from flopcallback.profiling.conditions import Conditions, Convention
from flopcallback.tracing.observed import Observed
from flopcallback.tracing.run import TRACE, ObservedRun

__all__ = ["profile_of", "step_counts", "with_step"]


def profile_of(
    observed: Observed, model: nn.Module, conditions: Conditions, convention: Convention | None = None
) -> ModelProfile:
    """The profile of one call, of which at least something was seen.

    A row's parameters are those that stand under its name or below, each one once, under the first of its names.
    """
    convention = convention or Convention()
    counts, runs = _Counts(), observed.runs
    for run in runs:
        counts.add(run, model, convention)
    for module, reason in observed.unseen.items():
        counts.miss(module, reason)
    names = runs[0].names
    flops = counts.statistics["flops"]
    return ModelProfile(
        name=type(model).__name__,
        phase=conditions.phase,
        modules=tuple(_module_rows(names, counts, conditions)),
        operators=tuple(_operator_rows(counts)),
        config=_config(runs, counts, conditions, convention),
        batch_size=conditions.batch_size,
        forward_flops=flops[""],
        forward_hw_flops=counts.statistics["hw_flops"][""],
        unknown=counts.unknown,
    )


def step_counts(runs: Mapping[str, ObservedRun], model: nn.Module) -> dict[str, OperatorAnalysis]:
    """Hardware FLOPs of a step that was observed, by phase.

    Args:
        runs: what was done in each phase of the step.
        model: the root of the modules.
    """
    return {phase: _HardwareFlops.of_run(run, model) for phase, run in runs.items()}


def with_step(profile: ModelProfile, counts: Mapping[str, OperatorAnalysis], calls: int) -> ModelProfile:
    """The profile with the hardware FLOPs of a whole training step.

    Args:
        profile: of one call of the model in training.
        counts: of each phase of the step, as `step_counts` gives them.
        calls: how many calls like the counted one were in the step: its forward is held against as many.
    """
    by_module = {phase: analysis.by_module() for phase, analysis in counts.items()}
    steps = {
        row.path: StepFlops(**{phase: _of_row(profile, row, flops) for phase, flops in by_module.items()})
        for row in profile.modules
    }
    incomplete = [analysis for analysis in counts.values() if analysis.is_lower_bound]
    unknown = {name: reason for analysis in incomplete for name, reason in analysis.unknown_reasons().items()}
    missing = [f"{name} ({unknown[name]})" for name in sorted(unknown)]
    notes = [f"without a count: {', '.join(missing)}"] if missing else []
    other = [row.path or profile.name for row in profile.modules if steps[row.path].forward != calls * row.hw_flops]
    if other:
        notes.append(
            f"its forward has {steps[''].forward:,} hardware FLOPs, {calls} counted call{'s' * (calls > 1)} would have "
            f"{calls * profile.forward_hw_flops:,}: {', '.join(other[:_NAMED])}{', ...' * (len(other) > _NAMED)} differ"
        )
    return profile.with_step(steps, "; ".join(notes))


_NAMED = 4


def _of_row(profile: ModelProfile, row: ModuleRow, flops: Mapping[str, int]) -> int:
    """FLOPs of a row; one that is no module (the step's own) has what is the root's and none of its children's."""
    if row.type or row.parent is None:
        return flops.get(row.path, 0)
    siblings = [other.path for other in profile.modules if other.parent == row.parent and other is not row]
    return flops.get("", 0) - sum(flops.get(path, 0) for path in siblings)


class _HardwareFlops(OperatorAnalysis):
    """Hardware FLOPs, and which operators have no count of them."""

    def _by_default(self, operator: str) -> Any:
        return hardware_measure(HARDWARE_FAMILIES, {}, operator)


# Beside FLOPs; each becomes the field of `ModuleRow` with its name.
_STATISTICS: Mapping[str, type[OperatorAnalysis]] = {
    "activations": ActivationCountAnalysis,
    "bytes": BytesCountAnalysis,
}


@dataclass
class _Counts:
    """Sums over the runs of one call, by module and by operator."""

    statistics: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    calls: Counter[str] = field(default_factory=Counter)
    unknown_calls: Counter[str] = field(default_factory=Counter)
    unknown_operators: Counter[str] = field(default_factory=Counter)
    unknown: dict[str, str] = field(default_factory=dict)
    operators: Counter[str] = field(default_factory=Counter)
    operator_calls: Counter[str] = field(default_factory=Counter)
    families: dict[str, str] = field(default_factory=dict)
    output_shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    is_lower_bound: bool = False

    def add(self, run: ObservedRun, model: nn.Module, convention: Convention) -> None:
        flops = convention.analysis(run, model)
        self.statistics["flops"].update(flops.by_module())
        self.statistics["hw_flops"].update(flops.hardware_flops())
        self.calls.update(flops.module_calls())
        self.operators.update(flops.by_operator())
        self.unknown_operators.update(flops.unknown_ops())
        self.unknown.update(flops.unknown_reasons())
        self.unknown_calls.update({name: flops.unknown_ops(name).total() for name in run.names.unique})
        self.is_lower_bound |= flops.is_lower_bound
        self.output_shapes.update(run.output_shapes)
        counter = _OperatorCalls.of_run(run, model, elementwise=convention.elementwise)
        self.operator_calls.update(counter.by_operator())
        self.families.update(counter.families)
        for name, kind in _STATISTICS.items():
            analysis = kind.of_run(run, model)
            self.statistics[name].update(analysis.by_module())
            for operator, reason in analysis.unknown_reasons().items():
                if operator not in self.unknown_operators:
                    self.unknown[f"{name} of {operator}"] = reason

    def miss(self, module: str, reason: str) -> None:
        self.unknown[f"module {module}"] = reason
        self.unknown_calls.update(ModuleNames.owners(module))
        self.is_lower_bound = True


class _OperatorCalls(FlopCountAnalysis):
    """How often each operator that FLOPs are counted for was called, and which family it is of."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.families: dict[str, str] = {}

    def _measure(self, operator: str) -> Any:
        row = lookup(operator)
        if isinstance(row, Counted):
            self.families[display_name(operator)] = row.family.value
        return super()._measure(operator)

    def _from_cost(self, formula: Formula) -> Callable[[OpCall], int]:
        return lambda call: 1 if formula(call).flops(elementwise=self._elementwise) else 0


def _module_rows(names: ModuleNames, counts: _Counts, conditions: Conditions) -> Iterator[ModuleRow]:
    params, trainable = _parameters_by_module(names.unique[""])
    flops = counts.statistics["flops"]
    below: Counter[str] = Counter()
    for name in names.unique:
        if name:
            below[_parent(name)] += flops[name]
    for name, module in names.unique.items():
        is_split = not name and conditions.step_row is not None
        shape = counts.output_shapes.get(name)
        yield ModuleRow(
            path=name,
            parent=_parent(name) if name else None,
            depth=name.count(".") + 1 if name else 0,
            type=type(module).__name__,
            calls=counts.calls[name] if name else 1,
            params=params[name],
            params_trainable=trainable[name],
            own_flops=0 if is_split else flops[name] - below[name],
            unknown_calls=counts.unknown_calls[name],
            output_shape=None if shape is None or is_split else str(shape),
            note="compiled" if is_compiled(module) else "",
            **_of_module(counts, name),
        )
    if conditions.step_row is not None:
        yield _step_row(names, counts, conditions.step_row)


def _step_row(names: ModuleNames, counts: _Counts, path: str) -> ModuleRow:
    """What the call did outside of any submodule: what is the root's and none of its children's."""
    children = [name for name in names.unique if name and "." not in name]
    rest = _of_module(counts, "")
    for name in children:
        rest = {key: count - counts.statistics[key][name] for key, count in rest.items()}
    unknown = counts.unknown_calls[""] - sum(counts.unknown_calls[name] for name in children)
    return ModuleRow(
        path=path, parent="", depth=1, type="", calls=1, own_flops=rest["flops"], unknown_calls=unknown, **rest
    )


def _of_module(counts: _Counts, name: str) -> dict[str, Any]:
    return {key: statistic[name] for key, statistic in counts.statistics.items()}


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _parameters_by_module(model: nn.Module) -> tuple[Counter[str], Counter[str]]:
    params: Counter[str] = Counter()
    trainable: Counter[str] = Counter()
    named: list[tuple[str, Any]] = list(model.named_parameters())
    for name, parameter in named:
        if is_lazy(parameter):  # the call did not come to it: it has no size yet
            continue
        for owner in ModuleNames.owners(_parent(name)):
            params[owner] += parameter.numel()
            trainable[owner] += parameter.numel() if parameter.requires_grad else 0
    return params, trainable


def _operator_rows(counts: _Counts) -> Iterator[OperatorRow]:
    for operator, flops in counts.operators.items():
        yield OperatorRow(operator, counts.operator_calls[operator], flops, counts.families.get(operator, ""))
    for operator, calls in counts.unknown_operators.items():
        yield OperatorRow(operator, calls, 0, status="unknown")


def _config(
    runs: Sequence[ObservedRun], counts: _Counts, conditions: Conditions, convention: Convention
) -> dict[str, Any]:
    engines = {run.engine for run in runs}
    return {
        "flops.fma": convention.fma,
        "flops.elementwise": convention.elementwise,
        "flops.engine": next((engine for engine in engines if engine != TRACE), TRACE),
        "flops.engine_reason": "; ".join(dict.fromkeys(run.engine_reason for run in runs if run.engine_reason)),
        "flops.is_lower_bound": counts.is_lower_bound,
        "flops.device": _device_text(conditions.device),
        "flops.dtype": str(conditions.dtype).removeprefix("torch."),
        "flops.peak_tflops": None if conditions.peak is None else conditions.peak.flops_per_s / 1e12,
        "flops.peak_source": None if conditions.peak is None else conditions.peak.source,
        "flops.input_shapes": conditions.input_shapes,
        "flops.unknown_operators": sorted(counts.unknown_operators),
        "flops.version": __version__,
    }


def _device_text(device: torch.device) -> str:
    has_name = device.type not in ("cpu", "meta")
    name = getattr(torch.get_device_module(device), "get_device_name", None) if has_name else None
    return f"{device} ({name(device)})" if name is not None else str(device)
