"""Sums of statistics over the operators of a run, by module and by operator, in one pass."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from numbers import Number
from typing import Any

import torch

from flopcallback.counting.fvcore_values import jit_values
from flopcallback.formulas.cost import AtMost
from flopcallback.formulas.op_call import UNSEEN, OpCall, Scope, Value
from flopcallback.formulas.registry import Free
from flopcallback.modules.compiled import COMPILED
from flopcallback.modules.names import ModuleNames
from flopcallback.tracing.record import Operation, leaves_memory_empty
from flopcallback.tracing.regions import META_CONVOLUTION
from flopcallback.tracing.run import ObservedRun

__all__ = ["Counting", "Handle", "Measure", "Rule", "Statistic", "Tally", "Unknown", "display_name", "tally"]

Statistic = int | Mapping[str, int]
"""Statistic of one call of an operator: a number, or numbers by name."""
Handle = Callable[[list[Any], list[Any]], Any]
Rule = Callable[[OpCall], Statistic | None] | Free | None
"""How an operator is counted: by a function of its call, as free, or not at all, since nobody knows."""
Measure = Callable[[Collection[str]], Mapping[str, Rule]]
"""Gives the rules of operators; it is asked once in a pass, for all that are in the run."""

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
        is_floating_point: True if a call took and returned tensors of numbers that products are made of: then work may
            be missing in the total.
    """

    reason: str
    calls: int = 0
    is_floating_point: bool = False


@dataclass(frozen=True, slots=True)
class Counting:
    """A statistic to be summed.

    Attributes:
        measure: gives the rules.
        handles: functions of `torch._C.Value`s that go before the rules; None: free.
        mode: `"owner"` or `"caller"`.
    """

    measure: Measure
    handles: Mapping[str, Handle | None] = field(default_factory=dict)
    mode: str = "owner"


@dataclass
class Tally:
    """Sums by canonical module name, descendants included.

    Attributes:
        counts: the statistic, by name of what was counted.
        unsupported: calls without a count that the original tool lists.
        unknown: operators without a count.
        calls: how many calls of an operator have a statistic that is not 0; one for each component of nested tensors.
        upper_bounds: operators of which the statistic is an upper bound.
    """

    counts: dict[str, Counter[str]]
    unsupported: dict[str, Counter[str]]
    unknown: dict[str, dict[str, Unknown]]
    calls: Counter[str] = field(default_factory=Counter)
    upper_bounds: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))


def display_name(operator: str) -> str:
    """Return a short name such as `"linear"`; every convolution is `"conv"`."""
    name = operator.partition("::")[2] or operator
    return _DISPLAY_NAMES.get(name, name)


def tally(run: ObservedRun, *countings: Counting, prune: bool = False) -> list[Tally]:
    """Sum statistics over a run, all of them operator by operator.

    Args:
        run: what was observed.
        countings: the statistics.
        prune: without operators whose results are not used.
    """
    operations = list(run.record.operations(prune=prune))
    operators = _operators_of(operations)
    sums = [_Summing(run, counting, operators) for counting in countings]
    for operation in operations:
        for summing in sums:
            summing.add(operation)
    return [summing.finished() for summing in sums]


def _operators_of(operations: Iterable[Operation]) -> set[str]:
    """Collect the operators, with those that ran inside others."""
    operators = set()
    for operation in operations:
        operators.add(operation.operator)
        if operation.body:
            operators |= _operators_of(operation.body)
    return operators


class _Summing:
    """One statistic in a pass over a run."""

    def __init__(self, run: ObservedRun, counting: Counting, operators: Collection[str]) -> None:
        self._strays = run.strays
        self._handles = counting.handles
        self._by_caller = counting.mode == "caller"
        self._rules = counting.measure(operators)
        modules = ("", *run.names.unique)
        self._tally = Tally(
            {name: Counter() for name in modules},
            {name: Counter() for name in modules},
            {name: {} for name in modules},
        )

    def finished(self) -> Tally:
        for name in self._strays:
            reason = f"module {name!r} was at work in another thread, which was not seen, or not to its end"
            self._miss("thread::" + name, Scope(name, ("",)), reason, True)
        return self._tally

    def add(self, operation: Operation) -> None:
        operator = operation.operator
        if operator in self._handles:
            if (handle := self._handles[operator]) is not None:
                self._evaluate(operation, lambda: [handle(*jit_values(operation))])
            return
        rule = self._rules[operator]
        if operation.body is not None and not callable(rule):
            self._add_body(operation, is_free=isinstance(rule, Free))
        elif rule is None and operator.startswith(COMPILED):
            self._miss(operator, operation.scope, "compiled code runs as it is: what it computes may be missing", True)
        elif rule is None:
            self._miss(operator, operation.scope, "no formula", _is_floating_point(operation.call()))
        elif isinstance(rule, Free):
            self._unsupported(operator, operation.scope)
        else:
            self._evaluate(operation, lambda: map(rule, operation.call().components()))

    def _evaluate(self, operation: Operation, statistics: Callable[[], Iterable[Statistic | None]]) -> None:
        operator = operation.operator
        try:
            parts = [_as_counts(operator, value) for value in statistics()]
        except Exception as error:  # noqa: BLE001
            # A formula that fails makes its operator unknown, and leaves the others alone.
            reason = f"its formula failed: {type(error).__name__}: {error}"
            self._miss(operator, operation.scope, reason, True)
            return
        is_upper_bound = any(isinstance(count, AtMost) for counts in parts for count in counts.values())
        for name in self._modules(operation.scope):
            if is_upper_bound:
                self._tally.upper_bounds[name].add(operator)
            total = self._tally.counts[name]
            for counts in parts:
                for key, count in counts.items():
                    if count:
                        total[key] += count
        self._tally.calls[operator] += sum([any(counts.values()) for counts in parts])

    def _add_body(self, operation: Operation, *, is_free: bool) -> None:
        """Add the operators inside an autograd function or a scripted module.

        Args:
            operation: the function, with its body.
            is_free: whether it is known to cost nothing itself, so that it may run nothing.
        """
        assert operation.body is not None
        self._unsupported(operation.operator, operation.scope)
        is_work = not is_free and _is_floating_point(operation.call()) and not _hands_on(operation.call())
        if is_work and leaves_memory_empty({inner.operator for inner in operation.body}):
            self._miss(operation.operator, operation.scope, "nothing that ran inside it could be seen", True)
        for inner in operation.body:
            self.add(inner)

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


def _as_counts(operator: str, value: Any) -> Mapping[str, int]:
    """Convert a formula's or a handle's result to counts by name."""
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
    return any(map(_has_factors, call.inputs)) and (call.outputs is UNSEEN or any(map(_has_factors, call.outputs)))


def _has_factors(value: Value) -> bool:
    """Return whether a value has numbers that products are made of.

    Quantized layers multiply integers, and their products count. Work on indices and masks does not
    (`docs/conventions.md`), so a total cannot lack it.
    """
    if value.items is not None:
        return any(map(_has_factors, value.items))
    return value.dtype is not None and value.dtype not in _INDICES_AND_MASKS


_INDICES_AND_MASKS = frozenset({torch.int64, torch.bool})


def _hands_on(call: OpCall) -> bool:
    """Return whether every result may be one of the arguments.

    So it is in an autograd function that is the identity with another gradient; shapes alone are compared.
    """
    shapes = {value.shape for value in call.inputs}
    return call.outputs is not UNSEEN and all(value.shape in shapes for value in call.outputs)
