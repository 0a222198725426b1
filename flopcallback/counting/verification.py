"""Comparison of the FLOPs that two engines count for a call."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Collection, Iterator, Mapping

from flopcallback.counting.tally import Counting, Rule, tally
from flopcallback.formulas.cost import Formula, checked_cost
from flopcallback.formulas.op_call import OpCall
from flopcallback.formulas.registry import HARDWARE_FAMILIES, Counted, Family, Free, lookup
from flopcallback.profile.verdict import Difference
from flopcallback.tracing.run import ObservedRun

__all__ = ["Difference", "differences", "hardware_measure"]

_COMPARED = (*(family for family in Family if family in HARDWARE_FAMILIES), Family.SPECTRAL)
# Which of these an operator belongs to depends on the engine: below autograd all may be matrix products.
_PRODUCTS = frozenset({Family.MATMUL, Family.ATTENTION, Family.RECURRENT, Family.LINALG})


def differences(
    trace: ObservedRun, dispatch: ObservedRun, formulas: Mapping[str, Formula | None]
) -> tuple[Difference, ...]:
    """Return the differences between two runs of a call, outermost modules first.

    Args:
        trace: the run that the tracer saw.
        dispatch: the run that the dispatcher saw.
        formulas: an analysis's own, for operators that the registry does not have.
    """
    counting = Counting(functools.partial(hardware_measure, _COMPARED, formulas))
    traced, dispatched = (tally(run, counting)[0].counts for run in (trace, dispatch))
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
    families: Collection[Family], own: Mapping[str, Formula | None], operators: Collection[str]
) -> dict[str, Rule]:
    """Return how operators count in FLOPs, by family.

    A multiply-add is 2; a Fourier transform counts by its operations.

    Args:
        families: those that count; the others are free.
        own: formulas of one analysis for operators that nobody else knows.
        operators: schema names without overload.
    """
    rows = {operator: lookup(operator) for operator in operators}
    return {operator: _hardware_rule(families, row, own.get(operator)) for operator, row in rows.items()}


def _hardware_rule(families: Collection[Family], row: Counted | Free | None, own: Formula | None) -> Rule:
    if row is None and own is not None:
        row = Counted(own, Family.CUSTOM)
    if not isinstance(row, Counted):
        return row
    if row.family not in families:
        return Free("no multiply-adds")
    formula, family = row.formula, row.family
    if family is Family.SPECTRAL:
        return lambda call: {family: checked_cost(formula(call)).other}

    def products(call: OpCall) -> dict[str, int]:
        cost = checked_cost(formula(call))
        return {family: cost.bounded(2 * cost.fma)}

    return products
