"""Sums a statistic over the operators of a run, by module and by operator."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Number
from typing import Any

from flopcallback.counting.fvcore_values import jit_values
from flopcallback.formulas.op_call import OpCall, Scope, Value
from flopcallback.formulas.registry import Free, lookup
from flopcallback.modules.compiled import COMPILED
from flopcallback.modules.names import ModuleNames
from flopcallback.tracing.record import Operation
from flopcallback.tracing.regions import META_CONVOLUTION
from flopcallback.tracing.run import ObservedRun

__all__ = ["Handle", "Measure", "Statistic", "Tally", "Unknown", "display_name", "tally"]

Statistic = int | Mapping[str, int]
Handle = Callable[[list[Any], list[Any]], Any]
Measure = Callable[[str], Callable[[OpCall], Statistic | None] | Free | None]

# Operators that the original tool passes over in silence: `unsupported_ops()` keeps its meaning. A list of facts, from
# fvcore 0.1.5, https://github.com/facebookresearch/fvcore/blob/main/fvcore/nn/jit_analysis.py
_SILENT = frozenset(
    "aten::" + name
    for name in """
    Int ScalarImplicit __and__ arange bitwise_not cat chunk clamp clamp_ constant_pad_nd contiguous copy_ detach dropout
    empty eq expand flatten floor floor_divide full full_like gather ge gt index index_put_ masked_fill max narrow
    new_empty new_full new_zeros nonzero ones permute relu relu_ remainder reshape roll select size slice split
    split_with_sizes squeeze stack t to transpose type_as unbind unsqueeze unsqueeze_ view zeros zeros_like
    """.split()  # noqa: SIM905 - fifty-eight names are easier read without quotes
) | {META_CONVOLUTION}  # ours, and counted by what is in it

_DISPLAY_NAMES = {"_convolution": "conv", "_convolution_mode": "conv", "convolution": "conv"}


@dataclass
class Unknown:
    """An operator without a count in one module."""

    reason: str
    calls: int = 0
    is_floating_point: bool = False


@dataclass
class Tally:
    """Sums by canonical module name, descendants included."""

    counts: dict[str, Counter[str]]
    unsupported: dict[str, Counter[str]]
    unknown: dict[str, dict[str, Unknown]] = field(default_factory=dict)


def display_name(operator: str) -> str:
    """`"linear"` for `"aten::linear"`; every form of convolution is `"conv"`."""
    name = operator.partition("::")[2] or operator
    return _DISPLAY_NAMES.get(name, name)


def tally(
    run: ObservedRun,
    measure: Measure,
    *,
    handles: Mapping[str, Handle | None],
    mode: str = "owner",
    prune: bool = False,
) -> Tally:
    """Sums a statistic over a run.

    Args:
        run: what was observed.
        measure: from an operator's name to how it is counted.
        handles: functions of `torch._C.Value`s that go before `measure`; None: free.
        mode: `"owner"` or `"caller"`.
        prune: without operators whose results are not used.
    """
    return _Summing(run, measure, handles, mode).over(list(run.record.operations(prune=prune)))


class _Summing:
    """One pass over a run."""

    def __init__(self, run: ObservedRun, measure: Measure, handles: Mapping[str, Handle | None], mode: str) -> None:
        self._run = run
        self._measure = measure
        self._handles = handles
        self._by_caller = mode == "caller"
        self._rules: dict[str, Any] = {}
        modules = {"": None, **run.names.unique}
        self._tally = Tally(
            {name: Counter() for name in modules},
            {name: Counter() for name in modules},
            {name: {} for name in modules},
        )

    def over(self, operations: Sequence[Operation]) -> Tally:
        for operation in operations:
            self._add(operation)
        for name in self._run.strays:
            reason = f"module {name!r} was at work in another thread, which was not seen, or not to its end"
            self._miss("thread::" + name, Scope(name, ("",)), reason, True)
        return self._tally

    def _add(self, operation: Operation) -> None:
        operator = operation.operator
        if operator in self._handles:
            self._add_by_handle(operation, self._handles[operator])
            return
        rule = self._rules.get(operator, self)
        if rule is self:
            rule = self._rules[operator] = self._measure(operator)
        if operation.body is not None and not callable(rule):
            self._add_body(operation)
        elif rule is None and operator.startswith(COMPILED):
            self._miss(operator, operation.scope, "compiled code is run as it is, and not looked into", True)
        elif rule is None:
            self._miss(operator, operation.scope, "no formula", _is_floating_point(operation.call()))
        elif isinstance(rule, Free):
            self._unsupported(operator, operation.scope)
        else:
            self._evaluate(operation, lambda: _statistic(operation, rule))

    def _add_by_handle(self, operation: Operation, handle: Handle | None) -> None:
        if handle is not None:
            self._evaluate(operation, lambda: handle(*jit_values(operation)))

    def _evaluate(self, operation: Operation, statistic: Callable[[], Statistic | None]) -> None:
        try:
            value = statistic()
            counts = _as_counts(operation.operator, value)
        except Exception as error:  # noqa: BLE001
            # A formula that fails is one operator less, said so; it must not take the others with it.
            reason = f"its formula failed: {type(error).__name__}: {error}"
            self._miss(operation.operator, operation.scope, reason, True)
            return
        for name in self._modules(operation.scope):
            total = self._tally.counts[name]
            for key, count in counts.items():
                if count:
                    total[key] += count

    def _add_body(self, operation: Operation) -> None:
        """What ran inside an autograd function or a scripted module, in place of the whole."""
        assert operation.body is not None
        self._unsupported(operation.operator, operation.scope)
        is_work = _is_floating_point(operation.call()) and not _hands_on(operation.call())
        if is_work and _leaves_memory_empty(operation.body):
            self._miss(operation.operator, operation.scope, "nothing that ran inside it could be seen", True)
        for inner in operation.body:
            self._add(inner)

    def _unsupported(self, operator: str, scope: Scope) -> None:
        # A profiler's marks have no result, so the original, which prunes, never lists them.
        if operator not in _SILENT and not operator.startswith("profiler::"):
            for name in self._modules(scope):
                self._tally.unsupported[name][operator] += 1

    def _miss(self, operator: str, scope: Scope, reason: str, is_floating_point: bool) -> None:
        self._unsupported(operator, scope)
        for name in self._modules(scope):
            unknown = self._tally.unknown[name].setdefault(operator, Unknown(reason))
            unknown.calls += 1
            unknown.is_floating_point |= is_floating_point

    def _modules(self, scope: Scope) -> set[str] | tuple[str, ...]:
        return set(scope.called) if self._by_caller else ModuleNames.owners(scope.module)


def _statistic(operation: Operation, rule: Callable[[OpCall], Statistic | None]) -> Statistic | None:
    """The statistic of a call; of each component of nested tensors, summed."""
    call = operation.call()
    if not call.has_nested:
        return rule(call)
    summed: Counter[str] = Counter()
    for component in call.components():
        summed.update(_as_counts(call.operator, rule(component)))
    return summed


def _as_counts(operator: str, value: Any) -> Mapping[str, int]:
    if value is None:
        return {}
    if isinstance(value, Number):
        return {display_name(operator): _exact(value)}
    return {name: _exact(count) for name, count in value.items()}


def _exact(count: Any) -> Any:
    """A Python int for anything integral, NumPy's integers and floats such as 96.0 included."""
    if isinstance(count, int):
        return count
    return int(count) if count == int(count) else count


def _is_floating_point(call: OpCall) -> bool:
    return any(map(_has_floats, call.inputs)) and any(map(_has_floats, call.outputs))


def _has_floats(value: Value) -> bool:
    if value.items is not None:
        return any(map(_has_floats, value.items))
    return value.dtype is not None and (value.dtype.is_floating_point or value.dtype.is_complex)


_EMPTY = frozenset(
    f"aten::{name}"
    for name in ("empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided")
)


def _leaves_memory_empty(body: tuple[Operation, ...]) -> bool:
    """Whether nothing that ran can have computed a result: the work was done past PyTorch's operators, by a kernel.

    That is so where nothing ran at all, or where memory was made and no operator that ran counts or writes.
    """
    names = {inner.operator for inner in body}
    makes = not names or bool(names & _EMPTY)
    return makes and not any(name.endswith("_") or not isinstance(lookup(name), Free) for name in names)


def _hands_on(call: OpCall) -> bool:
    """Whether every result may just be an argument handed on, as an identity with a gradient of its own does."""
    shapes = {value.shape for value in call.inputs}
    return all(value.shape in shapes for value in call.outputs)
