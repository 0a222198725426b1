"""Construction of profiles: the counts of observed runs become rows."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

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
from flopcallback.counting.tally import Rule, Statistic, display_name
from flopcallback.counting.verification import hardware_measure
from flopcallback.formulas.op_call import OpCall
from flopcallback.formulas.registry import HARDWARE_FAMILIES, Counted, lookup
from flopcallback.modules.names import ModuleNames, innermost
from flopcallback.modules.outermost import is_compiled
from flopcallback.profile.model_profile import ModelProfile
from flopcallback.profile.rows import ModuleRow, OperatorRow, StepFlops
from flopcallback.profile.times import StepTime
from flopcallback.profiling.conditions import Conditions
from flopcallback.tracing.observed import Observed
from flopcallback.tracing.run import TRACE, ObservedRun

__all__ = ["StepAnalysis", "backward_as_written", "is_step_alike", "of_row", "profile_of", "step_counts", "with_step"]

Part = TypeVar("Part", int, StepTime)


def profile_of(
    observed: Observed,
    model: nn.Module,
    conditions: Conditions,
    *,
    elementwise: bool = False,
    beside: Mapping[str, nn.Module] | None = None,
) -> ModelProfile:
    """Build the profile of a call, observed at least in part.

    A row's parameters are those of its module and the modules inside. A shared parameter counts once, under the first
    of its names.

    Args:
        observed: the call, with at least one run.
        model: the model that was called.
        conditions: the inputs and settings of the call.
        elementwise: whether elementwise operators count as `macs`.
        beside: modules that the call does not reach and the step may, by name: their rows have no part in the call.
    """
    counts, runs = _Counts(), observed.runs
    for run in runs:
        counts.add(run, model, elementwise=elementwise)
    names = runs[0].names
    for module, reason in observed.unseen.items():
        counts.miss(names.shown.get(module, module), reason)
    flops, macs = (counts.statistics[name][""] for name in ("flops", "macs"))
    return ModelProfile(
        name=type(innermost(model)).__name__,
        phase=conditions.phase,
        modules=(*_module_rows(names, counts, conditions), *_rows_beside(ModuleNames(beside or {}))),
        operators=tuple(_operator_rows(counts)),
        config=_config(runs, counts, conditions, elementwise=elementwise),
        batch_size=conditions.batch_size,
        forward_flops=flops,
        forward_macs=macs,
        unknown=counts.unknown,
    )


def step_counts(runs: Mapping[str, ObservedRun], model: nn.Module) -> dict[str, StepAnalysis]:
    """Count the FLOPs of an observed step, by phase.

    Args:
        runs: the observed run of each phase.
        model: the root of the modules.
    """
    return {phase: StepAnalysis.of_run(run, model) for phase, run in runs.items()}


def backward_as_written(observed: Observed, model: nn.Module) -> Counter[str] | None:
    """Count the FLOPs of the backwards that were counted beside a training, by module.

    None if one of them is not known.

    Args:
        observed: the counted call.
        model: the root of the modules.
    """
    if observed.backwards is None:
        return None
    flops: Counter[str] = Counter()
    for run in observed.backwards:
        flops.update(StepAnalysis.of_run(run, model).by_row())
    return flops


def with_step(
    profile: ModelProfile,
    counts: Mapping[str, StepAnalysis],
    calls: int,
    as_written: Mapping[str, int] | None = None,
) -> ModelProfile:
    """Return a profile with the FLOPs of a whole training step.

    Of the modules inside compiled code nothing was observed: they get what they are written to do. So a row of compiled
    code is what ran, and the rows inside it add up to that, or the profile says by how much they do not.

    Args:
        profile: the profile of one call of the model in training.
        counts: the counts of each phase, from `step_counts`.
        calls: number of calls in the step that should equal the counted one. If the step's forward has other FLOPs than
            so many calls, the profile says so.
        as_written: FLOPs of the backward of one call by module, from `backward_as_written`.
    """
    by_row = {phase: analysis.by_row() for phase, analysis in counts.items()}
    steps = {
        row.path: StepFlops(**{phase: of_row(profile, row, flops, 0) for phase, flops in by_row.items()})
        for row in profile.modules
    }
    steps.update(_inside_compiled(profile, steps, calls, as_written))
    incomplete = [analysis for analysis in counts.values() if analysis.is_lower_bound]
    unknown = {name: reason for analysis in incomplete for name, reason in analysis.unknown_reasons().items()}
    missing = [f"{name} ({unknown[name]})" for name in sorted(unknown)]
    notes = [f"without a count: {', '.join(missing)}"] if missing else []
    if at_most := sorted(set().union(*(analysis.upper_bounds().get("", set()) for analysis in counts.values()))):
        notes.append(f"at most, as the work depends on data: {', '.join(at_most)}")
    forwards = _forwards_like(profile, steps, calls)
    differing = [row.path or profile.name for row in profile.modules if forwards[row.path] != calls * row.flops]
    if differing:
        names = f"{', '.join(differing[:_NAMED])}{', ...' * (len(differing) > _NAMED)}"
        notes.append(
            f"its forward has {forwards['']:,} FLOPs, {calls} counted call{'s' * (calls > 1)} would have "
            f"{calls * profile.forward_flops:,}: {names} differ"
        )
    notes += _differences_in_backward(profile, steps, calls, as_written)
    return profile.with_step(steps, "; ".join(notes))


def _forwards_like(profile: ModelProfile, steps: Mapping[str, StepFlops], calls: int) -> dict[str, int]:
    """Return the forward of each module, to be compared with that of so many counted calls.

    Work without autograd is part of it where the counted calls have it inside, as a `training_step` has.
    """
    forwards = {row.path: steps[row.path].forward for row in profile.modules}
    if forwards[""] == calls * profile.forward_flops:
        return forwards
    return {path: flops + steps[path].without_grad for path, flops in forwards.items()}


def is_step_alike(profile: ModelProfile, calls: int) -> bool:
    """Return whether a profile's step has a forward of the FLOPs of so many counted calls, module by module."""
    steps = {row.path: row.step or StepFlops() for row in profile.modules}
    forwards = _forwards_like(profile, steps, calls)
    return all(forwards[row.path] == calls * row.flops for row in profile.modules)


_NAMED = 4  # rows that a note names

COMPILED = "compiled"
"""Note of a row of compiled code."""

AS_WRITTEN = "as written"
"""Note of a row inside compiled code, which is counted beside the training: what ran belongs to the row around it."""


def _inside_compiled(
    profile: ModelProfile, steps: Mapping[str, StepFlops], calls: int, as_written: Mapping[str, int] | None
) -> Iterator[tuple[str, StepFlops]]:
    backward = as_written or {}
    for row in profile.modules:
        # What the loop calls past the compiled code was observed.
        if row.note == AS_WRITTEN and steps[row.path] == StepFlops():
            yield row.path, StepFlops(calls * row.flops, calls * backward.get(row.path, 0))


def _differences_in_backward(
    profile: ModelProfile, steps: Mapping[str, StepFlops], calls: int, as_written: Mapping[str, int] | None
) -> Iterator[str]:
    """Say where the rows inside compiled code do not add up to what its backward ran."""
    is_inside = {row.path: row.note in (COMPILED, AS_WRITTEN) for row in profile.modules}
    for row in profile.modules:
        if row.note != COMPILED or (row.parent is not None and is_inside[row.parent]):
            continue
        name = row.path or profile.name
        if as_written is None:
            yield f"{name} is compiled: its backward is not known by module, as its code asks for values of tensors"
        elif (ran := steps[row.path].backward) != (written := calls * as_written.get(row.path, 0)):
            yield f"{name} is compiled: its backward has {ran:,} FLOPs, that of its code as written {written:,}"


def of_row(profile: ModelProfile, row: ModuleRow, values: Mapping[str, Part], nothing: Part) -> Part:
    """Return what a row has of values by module, those of modules inside included.

    The row of the step itself is no module: it has the work of the root outside of the root's children.

    Args:
        profile: the profile.
        row: one of its rows.
        values: FLOPs or times by path.
        nothing: what a module has that did no work.
    """
    if row.type or row.parent is None:
        return values.get(row.path, nothing)
    own = values.get("", nothing)
    for other in profile.modules:
        if other.parent == row.parent and other is not row:
            own -= values.get(other.path, nothing)
    return own


class StepAnalysis(OperatorAnalysis):
    """Analysis of FLOPs, 2 per multiply-add."""

    def by_row(self) -> dict[str, int]:
        """Return the FLOPs of each row of modules."""
        return self._names().as_shown(self.by_module())

    def _by_default(self, operators: Collection[str]) -> dict[str, Rule]:
        rules = hardware_measure(HARDWARE_FAMILIES, {}, operators)
        return {operator: _by_operator(rule) if callable(rule) else rule for operator, rule in rules.items()}


def _by_operator(by_family: Callable[[OpCall], Statistic | None]) -> Callable[[OpCall], Statistic | None]:
    def rule(call: OpCall) -> Statistic:
        (flops,) = by_family(call).values()  # type: ignore[union-attr]  # one family, as every operator has
        return flops

    return rule


# Statistics beside FLOPs and macs, by the name of their field in `ModuleRow`.
_STATISTICS: Mapping[str, type[OperatorAnalysis]] = {
    "activations": ActivationCountAnalysis,
    "bytes": BytesCountAnalysis,
}


@dataclass
class _Counts:
    """Sums over the runs of one call, by row of modules and by operator.

    Attributes:
        statistics: by field of `ModuleRow`, then by row.
        calls: how often the module of each row was entered.
        unknown_calls: calls of operators without a count, by row.
        unknown_operators: calls of operators without a count, by operator.
        unknown: why something has no count, by what it is.
        operators: FLOPs by operator; `operator_macs` likewise.
        operator_calls: calls by operator.
        families: family by operator.
        output_shapes: shape of the last tensor that each module returned.
        is_lower_bound: True once a run, or a module that was not seen, makes the total a lower bound.
        upper_bounds: operators that count as their maximum.
    """

    statistics: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    calls: Counter[str] = field(default_factory=Counter)
    unknown_calls: Counter[str] = field(default_factory=Counter)
    unknown_operators: Counter[str] = field(default_factory=Counter)
    unknown: dict[str, str] = field(default_factory=dict)
    operators: Counter[str] = field(default_factory=Counter)
    operator_macs: Counter[str] = field(default_factory=Counter)
    operator_calls: Counter[str] = field(default_factory=Counter)
    families: dict[str, str] = field(default_factory=dict)
    output_shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    is_lower_bound: bool = False
    upper_bounds: set[str] = field(default_factory=set)

    def add(self, run: ObservedRun, model: nn.Module, *, elementwise: bool) -> None:
        flops, macs = StepAnalysis.of_run(run, model), FlopCountAnalysis.of_run(run, model, elementwise=elementwise)
        beside = {name: kind.of_run(run, model) for name, kind in _STATISTICS.items()}
        statistics = {"flops": flops, "macs": macs, **beside}
        OperatorAnalysis.sum_together(run, list(statistics.values()))
        shown = run.names.as_shown
        self.calls.update(shown(macs.module_calls()))
        self.operators.update(flops.by_operator())
        self.operator_macs.update(macs.by_operator())
        # Those of `macs`, which has more formulas that can fail.
        self.unknown_operators.update(macs.unknown_ops())
        self.unknown.update(macs.unknown_reasons())
        self.unknown_calls.update(shown({name: macs.unknown_ops(name).total() for name in run.names.unique}))
        self.is_lower_bound |= macs.is_lower_bound
        self.upper_bounds |= macs.upper_bounds().get("", set())
        self.output_shapes.update(shown(run.output_shapes))
        self._add_calls(macs.counted_calls())
        for name, analysis in statistics.items():
            self.statistics[name].update(shown(analysis.by_module()))
        for name, analysis in beside.items():
            for operator, reason in analysis.unknown_reasons().items():
                if operator not in self.unknown_operators:
                    self.unknown[f"{name} of {operator}"] = reason

    def _add_calls(self, calls: Mapping[str, int]) -> None:
        rows = {operator: lookup(operator) for operator in calls}
        for operator, row in rows.items():
            name = display_name(operator)
            self.operator_calls[name] += calls[operator]
            if isinstance(row, Counted):
                self.families[name] = row.family.value

    def miss(self, module: str, reason: str) -> None:
        self.unknown[f"module {module}"] = reason
        self.unknown_calls.update(ModuleNames.owners(module))
        self.is_lower_bound = True


def _module_rows(names: ModuleNames, counts: _Counts, conditions: Conditions) -> Iterator[ModuleRow]:
    params, trainable = map(names.as_shown, _parameters_by_module(names.unique[""]))
    flops, notes = counts.statistics["flops"], _notes_of_compiled(names)
    types = {names.shown[name]: type(module).__name__ for name, module in names.unique.items()}  # the innermost
    shown = _with_owners(
        names.shown[name]
        for name, module in names.unique.items()
        if names.shown[name] in notes or _has_a_part(counts, module, names.shown[name])
    )
    children_flops: Counter[str] = Counter()
    for path in filter(None, types):
        children_flops[_parent(path)] += flops[path]
    for path, kind in types.items():
        if path not in shown:  # nobody called it, or anything inside, and it holds nothing: metrics of a validation
            continue
        # The root's own work has a row of its own then: the step's.
        is_split = not path and conditions.step_row is not None
        shape = counts.output_shapes.get(path)
        yield ModuleRow(
            path=path,
            parent=_parent(path) if path else None,
            depth=path.count(".") + 1 if path else 0,
            type=kind,
            calls=counts.calls[path] if path else 1,
            params=params.get(path, 0),
            params_trainable=trainable.get(path, 0),
            own_flops=0 if is_split else flops[path] - children_flops[path],
            unknown_calls=counts.unknown_calls[path],
            output_shape=None if shape is None or is_split else str(shape),
            note=notes.get(path, ""),
            **_of_module(counts, path),
        )
    if conditions.step_row is not None:
        yield _step_row(types, counts, conditions.step_row)


def _rows_beside(names: ModuleNames) -> Iterator[ModuleRow]:
    by_path = {names.shown[name]: module for name, module in names.unique.items()}  # the innermost
    for path, module in by_path.items():
        parameters: Iterable[Any] = module.parameters()
        with_size = [each for each in parameters if not is_lazy(each)]
        yield ModuleRow(
            path=path,
            parent=_parent(path),
            depth=path.count(".") + 1,
            type=type(module).__name__,
            calls=0,
            params=sum(each.numel() for each in with_size),
            params_trainable=sum(each.numel() for each in with_size if each.requires_grad),
        )


def _notes_of_compiled(names: ModuleNames) -> dict[str, str]:
    """Return the notes of the rows of compiled modules, and of all modules inside them."""
    notes: dict[str, str] = {}
    for name, module in names.unique.items():  # a module comes before those inside
        path = names.shown[name]
        if is_compiled(module):
            notes[path] = COMPILED
        elif path and _parent(path) in notes:
            notes.setdefault(path, AS_WRITTEN)
    return notes


def _has_a_part(counts: _Counts, module: nn.Module, path: str) -> bool:
    """Return whether a module was called, holds parameters of its own, or could not be seen."""
    return not path or bool(counts.calls[path] or counts.unknown_calls[path] or [*module.parameters(recurse=False)])


def _with_owners(paths: Iterable[str]) -> set[str]:
    return {owner for path in paths for owner in ModuleNames.owners(path)}


def _step_row(paths: Iterable[str], counts: _Counts, path: str) -> ModuleRow:
    """Return the row of the work outside of the root's children."""
    children = [path for path in paths if path and "." not in path]
    own = _of_module(counts, "")
    for name in children:
        own = {key: count - counts.statistics[key][name] for key, count in own.items()}
    unknown = counts.unknown_calls[""] - sum(counts.unknown_calls[name] for name in children)
    return ModuleRow(
        path=path, parent="", depth=1, type="", calls=1, own_flops=own["flops"], unknown_calls=unknown, **own
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
        if is_lazy(parameter):  # the call did not reach its module: it has no size yet
            continue
        for owner in ModuleNames.owners(_parent(name)):
            params[owner] += parameter.numel()
            trainable[owner] += parameter.numel() if parameter.requires_grad else 0
    return params, trainable


def _operator_rows(counts: _Counts) -> Iterator[OperatorRow]:
    for operator, macs in counts.operator_macs.items():
        calls, flops = counts.operator_calls[operator], counts.operators[operator]
        yield OperatorRow(operator, calls, flops, counts.families.get(operator, ""), macs=macs)
    for operator, calls in counts.unknown_operators.items():
        yield OperatorRow(operator, calls, 0, status="unknown")


def _config(
    runs: Sequence[ObservedRun], counts: _Counts, conditions: Conditions, *, elementwise: bool
) -> dict[str, Any]:
    engines = {run.engine for run in runs}
    # `flops.engine` is the dispatcher if any run needed it.
    return {
        "flops.elementwise": elementwise,
        "flops.engine": next((engine for engine in engines if engine != TRACE), TRACE),
        "flops.engine_reason": "; ".join(dict.fromkeys(run.engine_reason for run in runs if run.engine_reason)),
        "flops.is_lower_bound": counts.is_lower_bound,
        "flops.upper_bounds": sorted(counts.upper_bounds),
        "flops.device": _device_text(conditions.device),
        "flops.dtype": str(conditions.dtype).removeprefix("torch."),
        "flops.peak_tflops": None if conditions.peak is None else conditions.peak.flops_per_s / 1e12,
        "flops.peak_gb_per_s": None if conditions.peak is None else conditions.peak.gb_per_s,
        "flops.peak_source": None if conditions.peak is None else conditions.peak.source,
        "flops.input_shapes": conditions.input_shapes,
        "flops.unknown_operators": sorted(counts.unknown_operators),
        "flops.version": __version__,
    }


def _device_text(device: torch.device) -> str:
    has_name = device.type not in ("cpu", "meta")
    name = getattr(torch.get_device_module(device), "get_device_name", None) if has_name else None
    return f"{device} ({name(device)})" if name is not None else str(device)
