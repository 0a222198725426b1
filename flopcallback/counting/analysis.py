"""Analyses of FLOPs, activations and bytes moved."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from operator import attrgetter
from typing import Any, TypeVar

from torch import nn

from flopcallback.counting.operator_analysis import OperatorAnalysis
from flopcallback.counting.tally import Counting, Rule, Statistic, tally
from flopcallback.counting.verification import Difference, checked_engines, differences, hardware_measure
from flopcallback.formulas.cost import LAYER_FAMILIES, Formula, checked_cost
from flopcallback.formulas.op_call import OpCall
from flopcallback.formulas.registry import HARDWARE_FAMILIES, Counted, Family, Free, lookup
from flopcallback.tracing.run import AUTO, DISPATCH, TRACE, ObservedRun
from flopcallback.tracing.torch_private import schemas_of

__all__ = ["ActivationCountAnalysis", "BytesCountAnalysis", "FlopCountAnalysis", "OperatorAnalysis"]


class FlopCountAnalysis(OperatorAnalysis):
    """FLOPs of one call of a model, by module and by operator.

    Counts are exact Python ints. Counted by default are convolutions, matrix products, attention, recurrent layers,
    normalization, interpolation, grid sampling, adaptive average pooling and Fourier transforms. See
    `docs/conventions.md`. Profiles call this count `macs`; `hardware_flops` has their FLOPs.

    Args:
        model: a module, a method of one, or any callable on modules.
        inputs: a tensor, or a tuple of positional arguments of any structure.
        kwargs: keyword arguments of the call.
        fma: FLOPs of a fused multiply-add: 1 (as fvcore and most papers count) or 2.
        elementwise: count elementwise operators and reductions too.
        prune: leave out operators that no result of the call depends on.
        engine: `"auto"`, `"trace"`, `"dispatch"` or `"observer"`, as for `OperatorAnalysis`.

    Raises:
        ValueError: `fma` is neither 1 nor 2, there is no such engine, or `prune` is used with the dispatcher.

    Example:
        >>> import torch
        >>> from flopcallback import FlopCountAnalysis
        >>> flops = FlopCountAnalysis(torch.nn.Linear(3, 5), torch.ones(2, 3))
        >>> flops.total(), flops.by_operator()
        (30, Counter({'linear': 30}))
    """

    def __init__(
        self,
        model: nn.Module | Callable[..., Any],
        inputs: Any = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        fma: int = 1,
        elementwise: bool = False,
        prune: bool = False,
        engine: str = AUTO,
    ) -> None:
        if fma not in (1, 2) or isinstance(fma, bool):
            raise ValueError(
                f"FlopCountAnalysis: fma is {fma!r}, expected 1 (a multiply-add is one FLOP) or 2 (it is two)"
            )
        super().__init__(model, inputs, kwargs, prune=prune, engine=engine)
        self._fma = fma
        self._elementwise = elementwise
        self._use_registry = True  # False once the built-in table was cleared

    def clear_op_handles(self: _FlopSelf) -> _FlopSelf:
        """Remove all handles and formulas, also the built-in table.

        Nothing is counted until new ones are set.
        """
        self._use_registry = False
        return super().clear_op_handles()

    def hardware_flops(self) -> Counter[str]:
        """Return the FLOPs of every module at 2 per multiply-add, to compare with a peak.

        They are those of matrix products, convolutions, attention, recurrent layers, factorizations and operators of
        the user's own, whatever `fma` and `elementwise` are; profiles and trackers have them.
        """
        measure = functools.partial(hardware_measure, HARDWARE_FAMILIES, self._op_formulas)
        (summed,) = tally(self._run(), Counting(measure, mode=self._ancestor_mode), prune=self._prune)
        return Counter({name: sum(by_family.values()) for name, by_family in summed.counts.items()})

    def verify(self, *, engines: Sequence[str] = (TRACE, DISPATCH)) -> tuple[Difference, ...]:
        """Count with two engines, and return the differences in FLOPs.

        They are compared by module and by family of operators (convolution, matmul, attention, recurrent, linear
        algebra, custom); a difference names the operators. Fourier transforms, which are no FLOPs otherwise, are
        compared by their operations. Below autograd, attention, recurrent layers and powers of a matrix may arrive as
        what they are made of. So it is no difference if matmul, attention, recurrent and linear algebra together have
        the same FLOPs in a module. Nothing is pruned.

        The model runs once or twice more, and is left as it was. Operators without a formula are not compared: see
        `unknown_ops()`.

        Args:
            engines: two of `"trace"`, `"dispatch"` and `"observer"`.

        Raises:
            ValueError: these are not two different engines.
            RuntimeError: one of the engines cannot count this call; the text says why.
        """
        first, second = checked_engines(f"{type(self).__name__}.verify", engines)
        return differences((self._run_by(first), self._run_by(second)), self._op_formulas)

    def _run_by(self, engine: str) -> ObservedRun:
        """Return an engine's run of the call; the one that was already made serves."""
        if self._stats is not None and self._stats.engine == engine:
            return self._stats
        return self._observe(engine)

    def _by_default(self, operators: Collection[str]) -> dict[str, Rule]:
        if not self._use_registry:
            return super()._by_default(operators)
        rows = {operator: lookup(operator) for operator in operators}
        return {operator: self._by_row(row) for operator, row in rows.items()}

    def _by_row(self, row: Counted | Free | None) -> Rule:
        if not isinstance(row, Counted):
            return row
        if row.family is Family.ELEMENTWISE and not self._elementwise:
            return Free("elementwise: counted with elementwise=True")
        return self._from_cost(row.formula)

    def _from_cost(self, formula: Formula) -> Callable[[OpCall], Statistic | None]:
        return lambda call: checked_cost(formula(call)).flops(fma=self._fma, elementwise=self._elementwise)


_FlopSelf = TypeVar("_FlopSelf", bound=FlopCountAnalysis)


def _activations(call: OpCall) -> int:
    return call.outputs[0].numel


class _OneStatistic(OperatorAnalysis):
    """Analysis of one fixed statistic, `_statistic`."""

    _statistic: Callable[[OpCall], int]

    def __init__(
        self,
        model: nn.Module | Callable[..., Any],
        inputs: Any = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        prune: bool = False,
        engine: str = AUTO,
    ) -> None:
        super().__init__(model, inputs, kwargs, formula=self._statistic, prune=prune, engine=engine)


class ActivationCountAnalysis(_OneStatistic):
    """Activations: elements of the first output of each multiplying operator.

    These are convolutions, matrix products, attention and recurrent layers.
    """

    _statistic = staticmethod(_activations)

    def _by_default(self, operators: Collection[str]) -> dict[str, Rule]:
        rules = super()._by_default(operators)
        if self._formula is None:
            return rules
        for operator, row in [(operator, lookup(operator)) for operator in operators]:
            if row is None:
                rules[operator] = None
            elif not (isinstance(row, Counted) and row.family in LAYER_FAMILIES):
                rules[operator] = Free("its outputs are not counted as activations")
        return rules


class BytesCountAnalysis(_OneStatistic):
    """Bytes that operators read and write, without any cache.

    They are the sizes of all input and output tensors. Views, and operators that are not executed (sizes, constants),
    move nothing. FLOPs over bytes is the arithmetic intensity (Williams et al., Roofline, 2009,
    https://doi.org/10.1145/1498765.1498785).
    """

    _statistic = attrgetter("nbytes")

    def _by_default(self, operators: Collection[str]) -> dict[str, Rule]:
        rules = super()._by_default(operators)
        views = [] if self._formula is None else [operator for operator in operators if returns_view(operator)]
        return {**rules, **dict.fromkeys(views, Free("a view"))}


@functools.cache
def returns_view(operator: str) -> bool:
    """Return whether an operator returns a view, and writes nothing to it."""
    # A view that autograd does not know of, so its schema does not say so.
    if operator == "aten::_unsafe_view":
        return True
    return any("Tensor(a)" in schema.partition("->")[2] for schema in schemas_of(operator))
