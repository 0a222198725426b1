"""Arguments of handles with fvcore's signature: `torch._C.Value`s or stand-ins."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from flopcallback.formulas.op_call import Value
from flopcallback.tracing.record import Operation

__all__ = ["jit_values"]


def jit_values(operation: Operation) -> tuple[list[Any], list[Any]]:
    """Return an operator's inputs and outputs as handles take them.

    They are the values of the traced graph, or stand-ins if the dispatcher saw the operator.
    """
    if operation.node is not None:
        return list(operation.node.inputs()), list(operation.node.outputs())
    call = operation.call()
    return [RecordedValue(value) for value in call.inputs], [RecordedValue(value) for value in call.outputs]


@dataclass(frozen=True, slots=True)
class RecordedValue:
    """Stand-in for a `torch._C.Value`, with the methods that handles use."""

    value: Value

    def isCompleteTensor(self) -> bool:  # noqa: N802
        return self.value.is_tensor

    def type(self) -> RecordedType:
        return RecordedType(self.value)

    def toIValue(self) -> Any:  # noqa: N802
        return self.value.constant

    def node(self) -> RecordedValue:
        return self  # in a graph, the node that constructs a list; its inputs are the elements

    def inputs(self) -> Iterator[RecordedValue]:
        """Yield the elements of a list of tensors."""
        return map(RecordedValue, self.value.items or ())


@dataclass(frozen=True, slots=True)
class RecordedType:
    """Stand-in for the type of a `torch._C.Value`."""

    value: Value

    def sizes(self) -> list[int] | None:
        return None if self.value.shape is None else list(self.value.shape)

    def dim(self) -> int | None:
        return None if self.value.shape is None else len(self.value.shape)

    def dtype(self) -> torch.dtype | None:
        return self.value.dtype

    def scalarType(self) -> str | None:  # noqa: N802
        return None if self.value.dtype is None else str(self.value.dtype).removeprefix("torch.")
