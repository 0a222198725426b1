"""One count held against another: hardware FLOPs of two runs by module and by family of operators."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from flopcallback.counting.tally import Statistic, tally
from flopcallback.formulas.cost import Cost, Formula
from flopcallback.formulas.op_call import OpCall
from flopcallback.formulas.registry import HARDWARE_FAMILIES, Counted, Family, Free, lookup
from flopcallback.profile.verdict import Difference
from flopcallback.tracing.run import ObservedRun

__all__ = ["Difference", "checked_cost", "differences", "hardware_measure"]

_COMPARED = (*(family for family in Family if family in HARDWARE_FAMILIES), Family.SPECTRAL)
# What these are called depends on where one looks: below autograd they may all be matrix products.
_PRODUCTS = frozenset({Family.MATMUL, Family.ATTENTION, Family.RECURRENT})


def differences(trace: ObservedRun, dispatch: ObservedRun, own: Mapping[str, Formula | None]) -> tuple[Difference, ...]:
    """Where two runs of the same call differ, outermost modules first.

    Args:
        trace: what the tracer saw.
        dispatch: what the dispatcher saw.
        own: formulas of one analysis for operators that nobody else knows.
    """
    measure = functools.partial(hardware_measure, _COMPARED, own)
    traced, dispatched = (tally(run, measure, handles={}).counts for run in (trace, dispatch))
    return tuple(
        difference for module in traced for difference in _of_module(module, traced[module], dispatched[module])
    )


def _of_module(module: str, traced: Counter[str], dispatched: Counter[str]) -> Iterator[Difference]:
    same_products = sum(traced[family] - dispatched[family] for family in _PRODUCTS) == 0
    for family in _COMPARED:
        is_label = family in _PRODUCTS and same_products
        if traced[family] != dispatched[family] and not is_label:
            yield Difference(module, family.value, traced[family], dispatched[family])


def hardware_measure(
    families: Collection[Family], own: Mapping[str, Formula | None], operator: str
) -> Callable[[OpCall], Statistic | None] | Free | None:
    """How an operator counts in hardware FLOPs, by family: 2 per multiply-add; a Fourier transform by its operations.

    Args:
        families: those that count; the others are free.
        own: formulas of one analysis for operators that nobody else knows.
        operator: schema name without overload.
    """
    row = lookup(operator)
    if row is None and (formula := own.get(operator)) is not None:
        row = Counted(formula, Family.CUSTOM)
    if not isinstance(row, Counted):
        return row
    if row.family not in families:
        return Free("not part of hardware FLOPs")
    formula, family = row.formula, row.family
    if family is Family.SPECTRAL:
        return lambda call: {family: checked_cost(formula(call)).other}
    return lambda call: {family: 2 * checked_cost(formula(call)).fma}


def checked_cost(cost: Any) -> Cost:
    """What a formula returned, if it is what a formula has to return.

    Raises:
        TypeError: it is no `Cost` of exact integers.
    """
    if not isinstance(cost, Cost):
        raise TypeError(f"a formula returns a Cost, such as Cost(fma=30); this one returned {cost!r}")
    if not all(isinstance(part, int) for part in (cost.fma, cost.other, cost.elementwise)):
        raise TypeError(f"the parts of a Cost are exact integers; this formula returned {cost!r}")
    return cost
