"""Comparison of the FLOPs that two engines count for a call."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import cast

from flopcallback.counting.tally import Counting, Rule, display_name, tally
from flopcallback.formulas.cost import Formula, checked_cost
from flopcallback.formulas.op_call import OpCall
from flopcallback.formulas.registry import HARDWARE_FAMILIES, Counted, Family, Free, lookup
from flopcallback.profile.verdict import Difference
from flopcallback.tracing.run import DISPATCH, OBSERVER, TRACE, ObservedRun

__all__ = ["COMPARABLE", "Difference", "checked_engines", "differences", "hardware_measure"]

COMPARABLE = (TRACE, DISPATCH, OBSERVER)
_COMPARED = (*(family for family in Family if family in HARDWARE_FAMILIES), Family.SPECTRAL)
# Which of these an operator belongs to depends on the engine: below autograd all may be matrix products.
_PRODUCTS = frozenset({Family.MATMUL, Family.ATTENTION, Family.RECURRENT, Family.LINALG})


def checked_engines(function: str, engines: Sequence[str]) -> tuple[str, str]:
    """Check the names of two engines that are to be compared.

    Args:
        function: name of the public function, for the error.
        engines: the names.

    Raises:
        ValueError: they are not two different ones of `COMPARABLE`.
    """
    names = (engines,) if isinstance(engines, str) else tuple(engines)
    if len(names) != 2 or names[0] == names[1] or not set(names) <= set(COMPARABLE):
        raise ValueError(
            f"{function}: engines is {engines!r}, expected two different ones of {', '.join(map(repr, COMPARABLE))}"
        )
    return names[0], names[1]


def differences(
    runs: tuple[ObservedRun, ObservedRun], formulas: Mapping[str, Formula | None]
) -> tuple[Difference, ...]:
    """Return the differences between two runs of a call, outermost modules first.

    Args:
        runs: what two engines saw.
        formulas: an analysis's own, for operators that the registry does not have.
    """
    counting = Counting(functools.partial(_by_operator, formulas))
    first, second = (tally(run, counting)[0].counts for run in runs)
    engines = runs[0].engine, runs[1].engine
    return tuple(
        difference for module in first for difference in _of_module(module, engines, first[module], second[module])
    )


def _by_operator(own: Mapping[str, Formula | None], operators: Collection[str]) -> dict[str, Rule]:
    """Return how operators count in FLOPs, by family and operator: `"matmul:addmm"`."""
    rules = hardware_measure(_COMPARED, own, operators)
    return {operator: _named(display_name(operator), rule) for operator, rule in rules.items()}


def _named(name: str, rule: Rule) -> Rule:
    if not callable(rule):
        return rule
    count = cast("Callable[[OpCall], Mapping[Family, int]]", rule)
    return lambda call: {f"{family.value}:{name}": flops for family, flops in count(call).items()}


def _of_module(
    module: str, engines: tuple[str, str], first: Counter[str], second: Counter[str]
) -> Iterator[Difference]:
    differing = sorted(key.split(":", 1) for key in {*first, *second} if first[key] != second[key])
    sums = _by_family(first), _by_family(second)
    same_products = sum(sums[0][family] - sums[1][family] for family in _PRODUCTS) == 0
    for family in _COMPARED:
        counts = sums[0][family], sums[1][family]
        is_label = family in _PRODUCTS and same_products
        if counts[0] != counts[1] and not is_label:
            by_engine = dict(zip(engines, counts, strict=True))
            operators = tuple(operator for key, operator in differing if key == family)
            yield Difference(module, family.value, **by_engine, differing_operators=operators)


def _by_family(counts: Counter[str]) -> Counter[str]:
    sums: Counter[str] = Counter()
    for key, count in counts.items():
        sums[key.partition(":")[0]] += count
    return sums


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
