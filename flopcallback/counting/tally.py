"""Sums of a statistic over the operators of a run."""

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
"""Statistic of one call of an operator: a number, or numbers by name."""
Handle = Callable[[list[Any], list[Any]], Any]
"""Function of an operator's inputs and outputs, with fvcore's signature."""
Measure = Callable[[str], Callable[[OpCall], Statistic | None] | Free | None]
"""Function of an operator's name; returns the rule that counts it, `Free`, or None if it is unknown."""

# Operators that fvcore ignores without a warning, so that `unsupported_ops()` has fvcore's meaning. A list of facts,
# from fvcore 0.1.5, https://github.com/facebookresearch/fvcore/blob/main/fvcore/nn/jit_analysis.py
_SILENT = frozenset(
    "aten::" + name
    for name in """
    Int ScalarImplicit __and__ arange bitwise_not cat chunk clamp clamp_ constant_pad_nd contiguous copy_ detach dropout
    empty eq expand flatten floor floor_divide full full_like gather ge gt index index_put_ masked_fill max narrow
    new_empty new_full new_zeros nonzero ones permute relu relu_ remainder reshape roll select size slice split
    split_with_sizes squeeze stack t to transpose type_as unbind unsqueeze unsqueeze_ view zeros zeros_like
    """.split()  # noqa: SIM905 - fifty-eight names are easier read without quotes
) | {META_CONVOLUTION}  # ours; the operators inside are counted

_DISPLAY_NAMES = {"_convolution": "conv", "_convolution_mode": "conv", "convolution": "conv"}


@dataclass
class Unknown:
    """Calls of an operator without a count in one module.

    Attributes:
        reason: why it has no count.
        calls: number of calls.
        is_floating_point: True if a call took and returned floating-point tensors: then work is missing in the total.
    """

    reason: str
    calls: int = 0
    is_floating_point: bool = False


@dataclass
class Tally:
    """Sums by canonical module name, descendants included.

    Attributes:
        counts: the statistic by operator.
        unsupported: calls of operators that are not counted, in fvcore's sense.
        unknown: operators without a count, by name.
    """

    counts: dict[str, Counter[str]]
    unsupported: dict[str, Counter[str]]
    unknown: dict[str, dict[str, Unknown]] = field(default_factory=dict)


def display_name(operator: str) -> str:
    """Return a short name such as `"linear"`; every convolution is `"conv"`."""
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
    """Sum a statistic over a run.

    Args:
        run: the observed run.
        measure: returns the rule that counts an operator, by its name.
        handles: functions of `torch._C.Value`s, which take precedence over `measure`; None makes an operator free.
        mode: `"owner"` or `"caller"`, as for `OperatorAnalysis.ancestor_mode`.
        prune: leave out operators whose results are not used.
    """
    return _Summing(run, measure, handles, mode).over(list(run.record.operations(prune=prune)))


class _Summing:
    """One pass over the operators of a run."""

    def __init__(self, run: ObservedRun, measure: Measure, handles: Mapping[str, Handle | None], mode: str) -> None:
        self._run = run
        self._measure = measure
        self._handles = handles
        self._by_caller = mode == "caller"
        self._rules: dict[str, Any] = {}  # by operator: a run has few operators and many calls
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
        rule = self._rules.get(operator, self)  # `self` stands for a missing rule: None is one, of an unknown operator
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
            # A formula that fails makes its operator unknown, and leaves the others alone.
            reason = f"its formula failed: {type(error).__name__}: {error}"
            self._miss(operation.operator, operation.scope, reason, True)
            return
        for name in self._modules(operation.scope):
            total = self._tally.counts[name]
            for key, count in counts.items():
                if count:
                    total[key] += count

    def _add_body(self, operation: Operation) -> None:
        """Add the operators inside an autograd function or a scripted module."""
        assert operation.body is not None
        self._unsupported(operation.operator, operation.scope)
        is_work = _is_floating_point(operation.call()) and not _hands_on(operation.call())
        if is_work and _leaves_memory_empty(operation.body):
            self._miss(operation.operator, operation.scope, "nothing that ran inside it could be seen", True)
        for inner in operation.body:
            self._add(inner)

    def _unsupported(self, operator: str, scope: Scope) -> None:
        # A profiler's marks have no result, so fvcore, which prunes, never lists them.
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
    """Apply a rule to a call, or to each component if nested."""
    call = operation.call()
    if not call.has_nested:
        return rule(call)
    summed: Counter[str] = Counter()
    for component in call.components():
        summed.update(_as_counts(call.operator, rule(component)))
    return summed


def _as_counts(operator: str, value: Any) -> Mapping[str, int]:
    """Convert the result of a formula or a handle to counts by name."""
    if value is None:
        return {}
    if isinstance(value, Number):
        return {display_name(operator): _exact(value)}
    return {name: _exact(count) for name, count in value.items()}


def _exact(count: Any) -> Any:
    """Convert a whole number such as 96.0 to a Python int."""
    if isinstance(count, int):
        return count
    return int(count) if count == int(count) else count


def _is_floating_point(call: OpCall) -> bool:
    # Work on integers and masks is not counted (`docs/conventions.md`), so a total cannot lack it.
    return any(map(_has_floats, call.inputs)) and any(map(_has_floats, call.outputs))


def _has_floats(value: Value) -> bool:
    if value.items is not None:
        return any(map(_has_floats, value.items))
    return value.dtype is not None and (value.dtype.is_floating_point or value.dtype.is_complex)


# Operators that allocate memory and write nothing to it.
_EMPTY = frozenset(
    f"aten::{name}"
    for name in ("empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided")
)


def _leaves_memory_empty(body: tuple[Operation, ...]) -> bool:
    """Return whether no operator of a body can have computed its result.

    Then a kernel did the work, unseen by PyTorch. It is so if nothing ran at all, or if memory was allocated and every
    operator is free and writes nothing.
    """
    names = {inner.operator for inner in body}
    makes = not names or bool(names & _EMPTY)
    return makes and not any(name.endswith("_") or not isinstance(lookup(name), Free) for name in names)


def _hands_on(call: OpCall) -> bool:
    """Return whether every result may be one of the arguments.

    So it is in an autograd function that is the identity with another gradient; shapes alone are compared.
    """
    shapes = {value.shape for value in call.inputs}
    return all(value.shape in shapes for value in call.outputs)
