"""What passes from the engines to the formulas: one operator call, as plain data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch

__all__ = ["ROOT", "OpCall", "Scope", "Value"]


class Scope(NamedTuple):
    """Where in the model an operator ran.

    Attributes:
        module: canonical name of the innermost module that was at work, the root's is `""`; explicit `.forward()` calls
            and other methods count as work of their module.
        called: the modules that were being called, outermost first: only what went through `module(...)`.
    """

    module: str
    called: tuple[str, ...]


ROOT = Scope("", ("",))


@dataclass(frozen=True, slots=True)
class Value:
    """One argument or result of an operator.

    A tensor has `shape`, `dtype` and `device`. A list of tensors has `items` and nothing else. A nested tensor has a
    `dtype` and its components as `items`. A sparse tensor has a `dtype` and as `stored` the number of elements that it
    keeps, and no shape: that would not say how much work there is. Anything else (numbers, strings, booleans, `None`,
    lists of numbers, an absent optional tensor) is in `constant`.
    """

    shape: tuple[int, ...] | None = None
    dtype: torch.dtype | None = None
    device: torch.device | None = None
    constant: Any = None
    items: tuple[Value, ...] | None = None
    stored: int | None = None

    @property
    def is_tensor(self) -> bool:
        """Whether this is one tensor; False for an optional tensor that was not given."""
        return self.shape is not None

    @property
    def numel(self) -> int:
        """Number of elements, as an exact Python int; 0 where this is not a tensor."""
        return 0 if self.shape is None else math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the elements of a tensor (a sparse one: it stores), or of all tensors of a list; else 0."""
        if self.items is not None:
            return sum(item.nbytes for item in self.items)
        return 0 if self.dtype is None else (self.stored or self.numel) * self.dtype.itemsize

    @property
    def is_nested(self) -> bool:
        """Whether this is a nested tensor, and `items` are its components."""
        return self.items is not None and self.dtype is not None


@dataclass(frozen=True, slots=True)
class OpCall:
    """One call of one operator.

    Attributes:
        operator: the schema name without overload, such as `"aten::linear"`.
        inputs: the arguments in the order of the operator's schema, defaults filled in.
        outputs: the results, in order.
        scope: the modules that were running.
    """

    operator: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    scope: Scope = ROOT

    def components(self) -> tuple[OpCall, ...]:
        """The same call for each component of the nested tensors in it; itself where there are none.

        An operator does with each component by itself what it does with a tensor.
        """
        nested = [value for value in (*self.inputs, *self.outputs) if value.is_nested]
        if not nested:
            return (self,)
        numbers = {len(value.items or ()) for value in nested}
        if len(numbers) != 1:
            raise ValueError(f"nested tensors of different numbers of components: {sorted(numbers)}")
        return tuple(
            OpCall(self.operator, _component(self.inputs, index), _component(self.outputs, index), self.scope)
            for index in range(numbers.pop())
        )

    @property
    def module(self) -> str:
        """Canonical name of the innermost module at work."""
        return self.scope.module


def _component(values: tuple[Value, ...], index: int) -> tuple[Value, ...]:
    return tuple(value.items[index] if value.is_nested and value.items else value for value in values)
