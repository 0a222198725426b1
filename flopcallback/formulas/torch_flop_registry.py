"""Formulas that users registered with PyTorch's own counter.

`torch.utils.flop_counter.register_flop_formula` takes them; here they become formulas of this package.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from flopcallback.formulas.cost import Cost

if TYPE_CHECKING:
    from flopcallback.formulas.op_call import OpCall, Value

__all__ = ["pytorch_formula"]


def pytorch_formula(operator: str) -> Callable[[OpCall], Cost] | None:
    """Return the formula of `torch.utils.flop_counter` for an operator, or None.

    PyTorch's formulas give 2 FLOPs per multiply-add.
    """
    # Not imported for this: where nobody imported it, nobody registered anything.
    counter = sys.modules.get("torch.utils.flop_counter")
    namespace, _, name = operator.partition("::")
    packet = getattr(getattr(torch.ops, namespace), name, None) if counter and namespace and name else None
    flops_of = counter.flop_registry.get(packet) if counter and packet is not None else None
    if flops_of is None:
        return None

    def formula(call: OpCall) -> Cost:
        args, kwargs = _arguments(packet, call)
        results = tuple(_stand_in(value) for value in call.outputs)
        flops = int(flops_of(*args, **kwargs, out_val=results[0] if len(results) == 1 else results))
        # An odd number is no sum of multiply-adds: the remainder keeps the total exact.
        return Cost(fma=flops // 2, other=flops % 2)

    return formula


def _arguments(packet: Any, call: OpCall) -> tuple[list[Any], dict[str, Any]]:
    """Split a call's arguments into positional and keyword ones by the schema."""
    # An `OpCall` does not name its overload: the number of arguments tells it.
    schemas = (getattr(packet, overload)._schema for overload in packet.overloads())
    schema = next(schema for schema in schemas if len(schema.arguments) == len(call.inputs))
    pairs = list(zip(schema.arguments, map(_stand_in, call.inputs), strict=True))
    return (
        [value for argument, value in pairs if not argument.kwarg_only],
        {argument.name: value for argument, value in pairs if argument.kwarg_only},
    )


def _stand_in(value: Value) -> Any:
    """Return the argument that a formula for live tensors expects.

    Tensors become meta tensors, constants stay as they are.
    """
    if value.items is not None:
        return [_stand_in(item) for item in value.items]
    return value.constant if value.shape is None else torch.empty(value.shape, dtype=value.dtype, device="meta")
