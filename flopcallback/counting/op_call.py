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

    A tensor has `shape`, `dtype` and `device`. A list of tensors has `items` and nothing else. Anything else
    (numbers, strings, booleans, `None`, lists of numbers, an absent optional tensor) is in `constant`.
    """

    shape: tuple[int, ...] | None = None
    dtype: torch.dtype | None = None
    device: torch.device | None = None
    constant: Any = None
    items: tuple[Value, ...] | None = None

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
        """Bytes of the elements of a tensor, or of all tensors of a list; 0 for anything else."""
        if self.items is not None:
            return sum(item.nbytes for item in self.items)
        return 0 if self.dtype is None else self.numel * self.dtype.itemsize


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

    @property
    def module(self) -> str:
        """Canonical name of the innermost module at work."""
        return self.scope.module
