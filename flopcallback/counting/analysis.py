"""The statistics that every run is asked for: FLOPs, activations, bytes moved; each an `OperatorAnalysis`."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any, TypeVar

from torch import nn

from flopcallback.counting.operator_analysis import OperatorAnalysis
from flopcallback.counting.tally import Statistic, tally
from flopcallback.counting.verification import Difference, checked_cost, differences, hardware_measure
from flopcallback.formulas.cost import Formula
from flopcallback.formulas.op_call import OpCall
from flopcallback.formulas.registry import HARDWARE_FAMILIES, Counted, Family, Free, lookup
from flopcallback.tracing.run import AUTO, DISPATCH, TRACE
from flopcallback.tracing.torch_private import schemas_of

__all__ = ["ActivationCountAnalysis", "BytesCountAnalysis", "FlopCountAnalysis", "OperatorAnalysis"]


class FlopCountAnalysis(OperatorAnalysis):
    """FLOPs of one call of a model, by module and by operator: exact Python ints.

    Counted by default are convolutions, matrix products, attention, recurrent layers, normalization, interpolation,
    grid sampling, adaptive average pooling and Fourier transforms. See `docs/conventions.md`.

    Args:
        model: a module, a method of one, or any callable on modules.
        inputs: a tensor, or a tuple of positional arguments of any structure.
        kwargs: keyword arguments of the call.
        fma: how many FLOPs a fused multiply-add is: 1 (as the original tool and most papers count) or 2.
        elementwise: count elementwise operators and reductions too.
        prune: leave out operators whose results do not reach what the call returns.
        engine: `"auto"`, `"trace"` or `"dispatch"`, as for `OperatorAnalysis`.

    Raises:
        ValueError: `fma` is neither 1 nor 2; there is no such engine; `prune` with the dispatcher.

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
        self._use_registry = True

    def clear_op_handles(self: _FlopSelf) -> _FlopSelf:
        """Forgets every handle and formula, the built-in table too: nothing is counted until new ones are set."""
        self._use_registry = False
        return super().clear_op_handles()

    def hardware_flops(self) -> Counter[str]:
        """Hardware FLOPs of every module: 2 per multiply-add of products, convolutions, attention and recurrent layers.

        The figure that is held against a clock or a peak; `fma` and `elementwise` do not change it.
        """
        measure = functools.partial(hardware_measure, HARDWARE_FAMILIES, self._op_formulas)
        counts = tally(self._run(), measure, handles={}, mode=self._ancestor_mode, prune=self._prune).counts
        return Counter({name: sum(by_family.values()) for name, by_family in counts.items()})

    def verify(self) -> tuple[Difference, ...]:
        """Counts with both engines, and gives the differences in hardware FLOPs; none when they agree.

        They are compared by module and by family of operators (convolution, matmul, attention, recurrent, custom), and
        Fourier transforms, which are no hardware FLOPs otherwise, by their operations. Below autograd, attention and
        recurrent layers may arrive as the matrix products that they are made of: a difference in label alone, where
        matmul, attention and recurrent add up to the same in a module, is none. Nothing is pruned.

        The model runs once or twice more, isolated. What neither engine knows a formula for is not compared: see
        `unknown_ops()`.

        Raises:
            RuntimeError: only one of the engines can count this call; the text says why.
        """
        trace, dispatch = (
            self._stats if self._stats is not None and self._stats.engine == engine else self._observe(engine)
            for engine in (TRACE, DISPATCH)
        )
        return differences(trace, dispatch, self._op_formulas)

    def _by_default(self, operator: str) -> Callable[[OpCall], Statistic | None] | Free | None:
        if not self._use_registry:
            return super()._by_default(operator)
        row = lookup(operator)
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
    """Counts `_statistic` of every call, and nothing else."""

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
    """Activations: elements of the first output of every convolution, matrix product, attention and recurrent layer."""

    _statistic = staticmethod(_activations)

    def _by_default(self, operator: str) -> Callable[[OpCall], Statistic | None] | Free | None:
        row = lookup(operator)
        if self._formula is not None and not (isinstance(row, Counted) and row.family in HARDWARE_FAMILIES):
            return Free("its outputs are not counted as activations") if row is not None else None
        return super()._by_default(operator)


class BytesCountAnalysis(_OneStatistic):
    """Bytes that operators read and write: the sizes of all tensors in and out, as if nothing stayed in a cache.

    Views, and what nobody executes (sizes, constants), move nothing. FLOPs over bytes is the arithmetic intensity
    (Williams et al., Roofline, 2009, https://doi.org/10.1145/1498765.1498785).
    """

    _statistic = attrgetter("nbytes")

    def _by_default(self, operator: str) -> Callable[[OpCall], Statistic | None] | Free | None:
        if self._formula is not None and returns_view(operator):
            return Free("a view")
        return super()._by_default(operator)


@functools.cache
def returns_view(operator: str) -> bool:
    """Whether what an operator returns shares its argument's memory, unless it was written to on the way."""
    if operator == "aten::_unsafe_view":  # a view that autograd is not told of: its schema does not say so
        return True
    return any("Tensor(a)" in schema.partition("->")[2] for schema in schemas_of(operator))
