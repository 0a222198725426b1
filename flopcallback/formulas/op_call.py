"""One operator call as plain data: the input of every formula."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch

__all__ = ["ROOT", "UNSEEN", "OpCall", "Scope", "Value"]


class Scope(NamedTuple):
    """Position in the model where an operator ran.

    Attributes:
        module: canonical name of the innermost module at work, `""` for the root; explicit `.forward()` calls and other
            methods count as work of their module.
        called: modules under call, outermost first: only those that went through `module(...)`.
    """

    module: str
    called: tuple[str, ...]


ROOT = Scope("", ("",))  # the root module, called by the user


@dataclass(frozen=True, slots=True)
class Value:
    """Argument or result of an operator.

    A tensor has `shape`, `dtype` and `device`. A list of tensors has `items` and nothing else. A nested tensor has a
    `dtype`, and its components as `items`. A sparse tensor has a `dtype`, the number of stored elements in `stored`,
    and no shape, which would not say how much work there is. Anything else (numbers, strings, booleans, `None`, lists
    of numbers, an absent optional tensor) is in `constant`. `needs_grad` says of a traced tensor that autograd follows
    it; it is no part of what a value is.
    """

    shape: tuple[int, ...] | None = None
    dtype: torch.dtype | None = None
    device: torch.device | None = None
    constant: Any = None
    items: tuple[Value, ...] | None = None
    stored: int | None = None
    needs_grad: bool = field(default=False, compare=False, repr=False)

    @property
    def is_tensor(self) -> bool:
        """True for one tensor; False for an absent optional tensor."""
        return self.shape is not None

    @property
    def numel(self) -> int:
        """Number of elements, an exact int; 0 without a tensor."""
        return 0 if self.shape is None else math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of a tensor's elements, or of all tensors of a list.

        A sparse tensor has the bytes of its stored elements. 0 for anything else.
        """
        if self.items is not None:
            return sum(item.nbytes for item in self.items)
        return 0 if self.dtype is None else (self.stored or self.numel) * self.dtype.itemsize

    @property
    def is_nested(self) -> bool:
        """True for a nested tensor, with its components in `items`."""
        return self.items is not None and self.dtype is not None


class _Unseen(tuple[Value, ...]):
    """Results that nobody saw: to ask for one is an error, never 0."""

    __slots__ = ()

    def _refuse(self, *_: object) -> Any:
        raise ValueError("its results were not seen, and do not follow from its arguments")

    __iter__ = __getitem__ = __len__ = __bool__ = _refuse


UNSEEN: tuple[Value, ...] = _Unseen()
"""The outputs of a call of which an engine saw the arguments alone."""


@dataclass(frozen=True, slots=True)
class OpCall:
    """Call of one operator.

    Attributes:
        operator: schema name without overload, such as `"aten::linear"`.
        inputs: arguments in the order of the operator's schema, defaults filled in.
        outputs: results, in order; `UNSEEN` if the engine could not see them.
        scope: modules at work.
    """

    operator: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    scope: Scope = ROOT

    def components(self) -> tuple[OpCall, ...]:
        """Split the call into one per component of its nested tensors.

        An operator does with each component what it does with a tensor. Without nested tensors, the call itself is
        returned.

        Raises:
            ValueError: nested tensors have different numbers of components.
        """
        # Without the outputs where they were not seen: what is nested then shows in the inputs.
        values = self.inputs if self.outputs is UNSEEN else (*self.inputs, *self.outputs)
        lengths = {len(value.items) for value in values if value.items is not None and value.dtype is not None}
        if not lengths:
            return (self,)
        if len(lengths) != 1:
            raise ValueError(f"nested tensors of different numbers of components: {sorted(lengths)}")
        return tuple(
            OpCall(
                self.operator,
                _component(self.inputs, index),
                UNSEEN if self.outputs is UNSEEN else _component(self.outputs, index),
                self.scope,
            )
            for index in range(lengths.pop())
        )

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors in and out."""
        return sum(value.nbytes for value in (*self.inputs, *self.outputs))

    @property
    def module(self) -> str:
        """Canonical name of the innermost module at work."""
        return self.scope.module


def _component(values: tuple[Value, ...], index: int) -> tuple[Value, ...]:
    # An argument that is not nested, such as a weight, takes part in every component's call.
    return tuple(value.items[index] if value.is_nested and value.items else value for value in values)
