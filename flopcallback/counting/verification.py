"""Comparison of the hardware FLOPs that two engines count for a call."""

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
# Which of these an operator belongs to depends on the engine: below autograd all may be matrix products.
_PRODUCTS = frozenset({Family.MATMUL, Family.ATTENTION, Family.RECURRENT})


def differences(
    trace: ObservedRun, dispatch: ObservedRun, formulas: Mapping[str, Formula | None]
) -> tuple[Difference, ...]:
    """Return the differences between two runs of a call, outermost modules first.

    Args:
        trace: the run that the tracer saw.
        dispatch: the run that the dispatcher saw.
        formulas: an analysis's own, for operators that the registry does not have.
    """
    measure = functools.partial(hardware_measure, _COMPARED, formulas)
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
    families: Collection[Family], formulas: Mapping[str, Formula | None], operator: str
) -> Callable[[OpCall], Statistic | None] | Free | None:
    """Return the rule that counts an operator's hardware FLOPs by family.

    A multiply-add is 2; a Fourier transform counts by its operations.

    Args:
        families: the families that count; operators of others are free.
        formulas: an analysis's own, for operators that the registry does not have.
        operator: schema name without overload.

    Returns:
        A function of the operator's call, `Free`, or None for an unknown operator.
    """
    row = lookup(operator)
    if row is None and (formula := formulas.get(operator)) is not None:
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
    """Return a formula's result if it is a `Cost` of exact integers.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(cost, Cost):
        raise TypeError(f"a formula returns a Cost, such as Cost(fma=30); this one returned {cost!r}")
    if not all(isinstance(part, int) for part in (cost.fma, cost.other, cost.elementwise)):
        raise TypeError(f"the parts of a Cost are exact integers; this formula returned {cost!r}")
    return cost
