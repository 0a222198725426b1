"""Arguments and results of operators, from the profiler's records."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import DispatchKey

from flopcallback.formulas.op_call import UNSEEN, Value
from flopcallback.tracing.dispatch import value_of
from flopcallback.tracing.torch_private import disable_current_modes, schemas_of, tree_leaves

__all__ = ["has_lists", "inputs_of", "outputs_of"]

Values = tuple[Value, ...]

_NOTHING = Value()  # an absent optional tensor, or a string, which no record has
_MOST = 4096  # results that are kept; a model has some hundred


def inputs_of(recorded: Sequence[Any], constants: Sequence[Any] = ()) -> Values:
    """Return the arguments of a recorded operator.

    Args:
        recorded: arguments in the tree of records; lists of numbers are None there.
        constants: arguments in the list of records, which has those, and no lists of tensors.
    """
    if not constants:
        return tuple(map(_value, recorded))
    return tuple(
        Value(constant=list(constant)) if argument is None and isinstance(constant, (list, tuple)) else _value(argument)
        for argument, constant in zip(recorded, constants, strict=False)
    )


def _value(argument: Any) -> Value:
    if argument is None:
        return _NOTHING
    if isinstance(argument, list):
        return Value(items=tuple(map(_value, argument)))
    if (layout := getattr(argument, "layout", None)) is None:
        return Value(constant=argument)
    if layout is not torch.strided:  # how much work it is does not follow from its shape
        return Value(dtype=argument.dtype)
    return Value(tuple(argument.sizes), argument.dtype, argument.device)


@functools.cache
def has_lists(operator: str) -> bool:
    """Return whether an operator takes lists of numbers."""
    arguments = (schema.partition("->")[0] for schema in schemas_of(operator))
    return any(f"{kind}[" in text for text in arguments for kind in ("int", "SymInt", "bool", "float"))


def outputs_of(operator: str, inputs: Values) -> Values:
    """Return the results of an operator by its arguments, or `UNSEEN`.

    They follow by hand for the products that every model has. Else the operator runs on tensors without memory.
    """
    key = (operator, *map(_key, inputs))
    if (known := _results.get(key)) is None:
        known = _results[key] = _by_hand(operator, inputs) or _by_running(operator, inputs)
        if len(_results) > _MOST:
            _results.popitem(last=False)
    return known


_results: OrderedDict[Any, Values] = OrderedDict()


def _key(value: Value) -> Any:
    if value.items is not None:
        return tuple(map(_key, value.items))
    constant = value.constant
    if isinstance(constant, list):
        return (list, *constant)
    # The type, since True and 1 are different constants.
    return (value.shape, value.dtype) if value.shape is not None else (type(constant), constant, value.dtype)


# --- By hand ----------------------------------------------------------------------------------------------------------


def _by_hand(operator: str, inputs: Values) -> Values | None:
    rule = _BY_HAND.get(operator)
    try:
        shape = None if rule is None else rule(inputs)
    except (TypeError, ValueError, IndexError):  # other arguments than the rule knows: the operator itself decides
        return None
    return None if shape is None else (Value(tuple(shape), inputs[0].dtype, inputs[0].device),)


def _shape(value: Value) -> tuple[int, ...]:
    if value.shape is None:
        raise ValueError("no tensor")
    return value.shape


def _mm(inputs: Values) -> Iterable[int]:
    (m, _), (_, n) = map(_shape, inputs[:2])
    return m, n


def _bmm(inputs: Values) -> Iterable[int]:
    (batch, m, _), (_, _, n) = map(_shape, inputs[:2])
    return batch, m, n


def _mv(inputs: Values) -> Iterable[int]:
    m, _ = _shape(inputs[0])
    return (m,)


def _dot(_: Values) -> Iterable[int]:
    return ()


def _attention(inputs: Values) -> Iterable[int]:
    # The kernels, unlike `scaled_dot_product_attention`, get batch and heads that are the same in all three.
    *before, _ = _shape(inputs[0])
    return (*before, _shape(inputs[2])[-1])


def _convolution(inputs: Values) -> Iterable[int]:
    """Read `convolution(input, weight, bias, stride, padding, dilation, transposed, output_padding, groups)`."""
    source, weight = map(_shape, inputs[:2])
    dims = len(weight) - 2
    stride, padding, dilation = (_per_dim(value.constant, dims) for value in inputs[3:6])
    *batch, _ = source[: len(source) - dims]
    sizes = zip(source[len(source) - dims :], weight[2:], stride, padding, dilation, strict=True)
    if not inputs[6].constant:
        return (*batch, weight[0], *((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes))
    extra, groups = _per_dim(inputs[7].constant, dims), inputs[8].constant
    grown = ((n - 1) * s - 2 * p + d * (k - 1) + e + 1 for (n, k, s, p, d), e in zip(sizes, extra, strict=True))
    return (*batch, weight[1] * groups, *grown)


def _mkldnn_convolution(inputs: Values) -> Iterable[int]:
    """Read `mkldnn_convolution(input, weight, bias, padding, stride, dilation, groups)`."""
    source, weight, bias, padding, stride, dilation = inputs[:6]
    return _convolution((source, weight, bias, stride, padding, dilation, Value(constant=False)))


def _per_dim(constant: Any, dims: int) -> Sequence[int]:
    sizes = constant if isinstance(constant, (list, tuple)) else [constant]
    return sizes if len(sizes) == dims else [*sizes] * dims  # one number stands for all dimensions


_BY_HAND: Mapping[str, Callable[[Values], Iterable[int]]] = {
    "aten::mm": _mm,
    "aten::_int_mm": _mm,
    "aten::bmm": _bmm,
    "aten::mv": _mv,
    "aten::dot": _dot,
    "aten::vdot": _dot,
    "aten::convolution": _convolution,
    "aten::_convolution": _convolution,
    "aten::convolution_overrideable": _convolution,
    "aten::mkldnn_convolution": _mkldnn_convolution,
    "aten::_scaled_dot_product_flash_attention_for_cpu": _attention,
    "aten::_scaled_dot_product_flash_attention": _attention,
    "aten::_scaled_dot_product_efficient_attention": _attention,
    "aten::_scaled_dot_product_cudnn_attention": _attention,
}


# --- By running the operator on tensors without memory ----------------------------------------------------------------


def _by_running(operator: str, inputs: Values) -> Values:
    namespace, _, name = operator.partition("::")
    packet = getattr(getattr(torch.ops, namespace, None), name, None)
    if packet is None or any(value.dtype is not None and value.shape is None for value in inputs):
        return UNSEEN  # unknown to Python, or on sparse tensors
    with disable_current_modes(), torch.no_grad():
        for overload in packet.overloads():
            schema = getattr(packet, overload)._schema
            if len(schema.arguments) != len(inputs) or any(argument.is_out for argument in schema.arguments):
                continue
            if namespace != "aten" and not getattr(packet, overload).has_kernel_for_dispatch_key(DispatchKey.Meta):
                continue  # it would be the user's own code that runs once more
            pairs = [(argument, _stand_in(value)) for argument, value in zip(schema.arguments, inputs, strict=True)]
            positional = [value for argument, value in pairs if not argument.kwarg_only]
            named = {argument.name: value for argument, value in pairs if argument.kwarg_only}
            named.update({key: torch.device("meta") for key in named if key == "device"})
            try:
                result = getattr(packet, overload)(*positional, **named)
            except Exception:  # noqa: BLE001 - another overload, or no rule for tensors without memory
                continue
            return tuple(map(value_of, tree_leaves(result))) if schema.returns else ()
    return UNSEEN


def _stand_in(value: Value) -> Any:
    if value.items is not None:
        return [_stand_in(item) for item in value.items]
    return value.constant if value.shape is None else torch.empty(value.shape, dtype=value.dtype, device="meta")
