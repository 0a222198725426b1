"""Compiled code in an observed step: what ran in it, held against what it is written to do.

A compiler may write a product with a dimension of 1 as a loop, of which no record is left.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, MutableMapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from flopcallback.formulas.cost import HARDWARE_FAMILIES
from flopcallback.formulas.op_call import OpCall, Scope, Value
from flopcallback.formulas.registry import Counted, lookup
from flopcallback.modules.compiled import After, CompiledCall, Return
from flopcallback.modules.names import ModuleNames
from flopcallback.modules.structures import tensors_in
from flopcallback.tracing.beside import Written, count_as_written
from flopcallback.tracing.marked_scopes import MarkedScopes
from flopcallback.tracing.marks import COMPILING, Marks
from flopcallback.tracing.phases import BACKWARD, FORWARD, RECOMPUTE
from flopcallback.tracing.record import Region
from flopcallback.tracing.records import Placed
from flopcallback.tracing.torch_private import is_backward_running

__all__ = ["CompiledRegions", "Known", "is_thin"]

Known = MutableMapping[tuple[Any, ...], Written | None]
"""Compiled calls as they are written, by what they were given; None for those that could not be counted."""

MOST_KNOWN = 64
"""Compiled calls that are remembered."""

# Products of matrices, by the position of the first: a matrix that is added to one comes before.
_FIRST_MATRIX = {"aten::mm": 0, "aten::bmm": 0, "aten::addmm": 1, "aten::baddbmm": 1}


def is_thin(call: OpCall) -> bool:
    """Return whether an operator is a product of matrices with a dimension of 1."""
    first = _FIRST_MATRIX.get(call.operator)
    return first is not None and any(map(_has_one, call.inputs[first : first + 2]))


def _has_one(matrix: Value) -> bool:
    return matrix.shape is not None and 1 in matrix.shape[-2:]


class _Compiled(NamedTuple):
    """A call of compiled code.

    Attributes:
        scope: its own, by whose identity its operators are told from others of the same module.
        written: what it is written to do; None if that is not known.
    """

    scope: Scope
    written: Written | None


class _Product(NamedTuple):
    """What tells a product among those of compiled code: it may be transposed, or add a bias or not."""

    multiply_adds: int
    is_thin: bool


class CompiledRegions:
    """Calls of compiled code in a step, each with the operators that ran in it.

    Args:
        names: the modules.
        scopes: the observer's.
        marks: the observer's.
        known: the calls of earlier steps as they are written; None to count none.
    """

    def __init__(self, names: ModuleNames, scopes: MarkedScopes, marks: Marks, known: Known | None) -> None:
        self._names = names
        self._scopes = scopes
        self._marks = marks
        self._known = known
        self._calls: list[_Compiled] = []

    def enter(self, call: CompiledCall) -> Return | None:
        """Begin a call, and return what ends it; None where calls are not told apart."""
        if self._known is None:
            return None
        compiled = _Compiled(Scope(*self._scopes.here), self._as_written(call, self._known))
        self._calls.append(compiled)
        mark = self._scopes.over_compiled(compiled.scope)
        mark.__enter__()

        def end(_: Any) -> After | None:
            mark.__exit__(None, None, None)
            return None

        return end

    def revealed(self, placed: Sequence[Placed]) -> list[Placed] | None:
        """Add the products that compiled code ran without a record.

        Args:
            placed: all operators of the step that have records.

        Returns:
            All operators; None if it is not certain that nothing else is missing, and that all of these products ran.
        """
        if (hidden := self._hidden(placed)) is None:
            return None
        own = {id(compiled.scope) for compiled in self._calls}
        # What ran in a function of the compiler's is known now, also where it has left no record.
        return [*itertools.chain.from_iterable(_opened(each, own) for each in placed), *hidden]

    def _hidden(self, placed: Iterable[Placed]) -> list[Placed] | None:
        ran = _by_compiled_call(placed)
        found: list[Placed] = []
        for scope, written in self._calls:
            if written is None:
                return None
            for phase, run in ((FORWARD, written.forward), (BACKWARD, written.backward)):
                seen = ran.get((id(scope), phase))
                calls = () if run is None else getattr(run.record, "calls", ())
                missing = _missing(calls, seen or Counter(), written)
                # Of a backward that has left nothing nobody can say whether there was one.
                if missing is None or (missing and phase == BACKWARD and seen is None):
                    return None
                found += [Placed(phase, dataclasses.replace(call, scope=scope)) for call in missing]
        return found if self._calls else None

    def _as_written(self, call: CompiledCall, known: Known) -> Written | None:
        """Count a call beside the step, unless one like it was counted before.

        Only code of the observed modules: another function may do more than compute, as an optimizer's step does.
        """
        module, function = _module_of(call.function)
        if module is None or self._names.of(module) is None or is_backward_running():
            return None
        key = _key_of(module, call)
        if key not in known:
            if len(known) >= MOST_KNOWN:
                known.clear()
            known[key] = None
            with self._marks.over(COMPILING):
                try:
                    known[key] = count_as_written(function, self._names, call.args, call.kwargs)
                except Exception:  # noqa: BLE001 - the call is the step's, and is made; what it hides stays unknown
                    return None
        return known[key]


def _module_of(function: Any) -> tuple[nn.Module | None, Callable[..., Any]]:
    """Return the module whose code a compiled function is, and what runs that code as it is written."""
    wrapped = getattr(function, "__wrapped__", function)
    if isinstance(wrapped, nn.Module):
        return wrapped, wrapped
    owner = getattr(function, "__self__", None)
    if not isinstance(owner, nn.Module):
        return None, function
    return owner, owner if function.__name__ in ("__call__", "_wrapped_call_impl", "_call_impl") else function


def _key_of(module: nn.Module, call: CompiledCall) -> tuple[Any, ...]:
    """Return what a call's operators depend on, as far as it can be seen."""
    inputs = tuple((tuple(each.shape), each.dtype, each.requires_grad) for each in tensors_in((call.args, call.kwargs)))
    plain = tuple(each for each in (*call.args, *call.kwargs.values()) if isinstance(each, (bool, int, float, str)))
    modules = tuple(each.training for each in module.modules())
    weights = tuple(each.requires_grad for each in module.parameters())
    modes = torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")
    return id(module), call.name, inputs, plain, modules, weights, modes


def _opened(placed: Placed, scopes: Collection[int]) -> Iterator[Placed]:
    """Yield an operator, or what ran inside of it if it is a function in compiled code."""
    if isinstance(placed.call, Region) and id(placed.call.call.scope) in scopes:
        yield from (Placed(placed.phase, each) for each in placed.call.body or ())
    else:
        yield placed


def _products(calls: Iterable[OpCall | Region]) -> Iterator[tuple[_Product, OpCall]]:
    """Yield the operators with multiply-adds, also those inside regions."""
    for each in calls:
        if isinstance(each, Region):
            yield from _products(each.body or ())
            continue
        row = lookup(each.operator)
        if isinstance(row, Counted) and row.family in HARDWARE_FAMILIES and (fma := row.formula(each).fma):
            yield _Product(fma, is_thin(each)), each


def _by_compiled_call(placed: Iterable[Placed]) -> dict[tuple[int, str], Counter[_Product]]:
    """Return the products that ran, by the id of their scope and by phase; what is computed again is backward."""
    ran: dict[tuple[int, str], Counter[_Product]] = {}
    for each in placed:
        phase = BACKWARD if each.phase == RECOMPUTE else each.phase
        scope = each.call.call.scope if isinstance(each.call, Region) else each.call.scope
        ran.setdefault((id(scope), phase), Counter())
        for product, operation in _products([each.call]):
            ran.setdefault((id(operation.scope), phase), Counter())[product] += 1
    return ran


def _missing(calls: Iterable[OpCall | Region], seen: Counter[_Product], written: Written) -> list[OpCall] | None:
    """Return the products of a run as it is written that were not seen.

    None if others were seen, or if the compiler may have left one of them out rather than written it as a loop.
    """
    products = list(_products(calls))
    missing = Counter(product for product, _ in products)
    missing.subtract(seen)
    if any(count < 0 for count in missing.values()):
        return None
    found = []
    for product, call in products:
        if missing[product] > 0:
            if not (product.is_thin and written.has_run(call)):
                return None
            missing[product] -= 1
            found.append(call)
    return found
