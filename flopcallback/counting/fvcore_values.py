"""The arguments of handles with fvcore's signature: `torch._C.Value`s, or what looks like them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from flopcallback.formulas.op_call import Value
from flopcallback.tracing.record import Operation

__all__ = ["jit_values"]


def jit_values(operation: Operation) -> tuple[list[Any], list[Any]]:
    """Inputs and outputs of an operator: the traced graph's own values, or stand-ins where no graph was made."""
    if operation.node is not None:
        return list(operation.node.inputs()), list(operation.node.outputs())
    call = operation.call()
    return [RecordedValue(value) for value in call.inputs], [RecordedValue(value) for value in call.outputs]


@dataclass(frozen=True, slots=True)
class RecordedValue:
    """Answers what handles ask of a `torch._C.Value`, for an operator that the dispatcher saw."""

    value: Value

    def isCompleteTensor(self) -> bool:  # noqa: N802
        return self.value.is_tensor

    def type(self) -> RecordedType:
        return RecordedType(self.value)

    def toIValue(self) -> Any:  # noqa: N802
        return self.value.constant

    def node(self) -> RecordedValue:
        return self

    def inputs(self) -> Iterator[RecordedValue]:
        """The elements of a list of tensors; a graph has a node that constructs the list."""
        return map(RecordedValue, self.value.items or ())


@dataclass(frozen=True, slots=True)
class RecordedType:
    """Answers what handles ask of the type of a `torch._C.Value`."""

    value: Value

    def sizes(self) -> list[int] | None:
        return None if self.value.shape is None else list(self.value.shape)

    def dim(self) -> int | None:
        return None if self.value.shape is None else len(self.value.shape)

    def dtype(self) -> torch.dtype | None:
        return self.value.dtype

    def scalarType(self) -> str | None:  # noqa: N802
        return None if self.value.dtype is None else str(self.value.dtype).removeprefix("torch.")
