"""Arguments and results of operators, from the profiler's records."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import DispatchKey

from flopcallback.formulas.op_call import UNSEEN, Value
from flopcallback.tracing.dispatch import value_of
from flopcallback.tracing.torch_private import DENSE, disable_current_modes, schema_of, tree_leaves

__all__ = [
    "are_real",
    "has_lists",
    "inputs_of",
    "lacks_tensor",
    "outputs_of",
    "own_inputs",
    "refuses",
    "without_shadows",
]

Values = tuple[Value, ...]

_NOTHING = Value()  # an absent optional tensor, or a string, which no record has
_NOBODY: Mapping[int | None, int] = MappingProxyType({})
_MOST = 4096  # results that are kept; a model has some hundred


def own_inputs(operator: str, recorded: Sequence[Any]) -> Sequence[Any]:
    """Return the arguments of a recorded operator alone.

    Inside a transform of torch.func, those of the call around it come before them.
    """
    if are_real(recorded):
        return recorded
    # Mostly as many as of the call around it; another overload may take more, and would swallow some of those.
    half = len(recorded) // 2
    for count in sorted(_numbers_of_arguments(operator), key=lambda count: count != half):
        if count < len(recorded) and are_real(recorded[-count:]):
            return recorded[-count:]
    return recorded


def are_real(recorded: Sequence[Any]) -> bool:
    """Return whether tensors have memory, or are sparse: then the operator's kernel works on them itself.

    Else they stand for others, as a transform's, and those of most tensor subclasses do. The operators on these are
    inside.
    """
    return all(_is_real(argument) for argument in recorded)


def _is_real(argument: Any) -> bool:
    if isinstance(argument, list):
        return all(map(_is_real, argument))
    if not hasattr(argument, "storage_data_ptr"):
        return True
    return argument.storage_data_ptr is not None or argument.layout is not torch.strided or 0 in argument.sizes


def without_shadows(events: Sequence[Any]) -> Sequence[Any]:
    """Leave out records of work on shapes alone, beside records of work on tensors with memory.

    A distributed tensor finds out the shape of a result by an operator on fake tensors, before the operator works on
    this process' part. Where nothing has memory, the training itself is on tensors without.
    """
    if not any(map(_has_meta, events)):
        return events
    levels = [event.children if event.name in _PYTHON else [event] for event in events]
    inner = [event for level in levels for event in level]
    if any(event.name in _PYTHON for event in inner):
        return without_shadows(inner)
    return (
        [event for event in inner if _has_memory(event) or not _has_meta(event)]
        if any(map(_has_memory, inner))
        else events
    )


def _has_memory(event: Any) -> bool:
    """Return whether an operator in a record has a tensor with memory that is more than a number."""
    tensors = _recorded_tensors(event)
    return any(each.storage_data_ptr is not None and each.sizes for each in tensors) or any(
        map(_has_memory, event.children)
    )


def _has_meta(event: Any) -> bool:
    return any(each.device.type == "meta" for each in _recorded_tensors(event)) or any(map(_has_meta, event.children))


def _recorded_tensors(event: Any) -> Iterator[Any]:
    inputs = getattr(event.extra_fields, "inputs", ())
    return (each for each in inputs if hasattr(each, "storage_data_ptr"))


# Records around what Python does for operators of tensor subclasses, and in modes of the dispatcher.
_PYTHON = frozenset({"PythonSubclass", "PythonDispatchMode"})


def lacks_tensor(operator: str, inputs: Sequence[Any]) -> bool:
    """Return whether a tensor among the arguments has no record, as a nested one has none.

    Then the operators on what it holds may be inside.
    """
    return any(inputs[position] is None for position in _tensors_of(operator, len(inputs)))


@functools.cache
def _tensors_of(operator: str, count: int) -> tuple[int, ...]:
    """Return the positions at which all overloads of so many arguments take a tensor that may not be absent."""
    schemas = [schema.arguments for schema in _schemas(operator) if len(schema.arguments) == count]
    at = range(count if schemas else 0)
    return tuple(position for position in at if all(str(each[position].type) == "Tensor" for each in schemas))


@functools.cache
def _numbers_of_arguments(operator: str) -> tuple[int, ...]:
    """Return the numbers of arguments of an operator's overloads, descending."""
    return tuple(sorted({len(schema.arguments) for schema in _schemas(operator)}, reverse=True))


def inputs_of(
    operator: str, recorded: Sequence[Any], constants: Sequence[Any] = (), stored: Mapping[int | None, int] = _NOBODY
) -> Values:
    """Return the arguments of a recorded operator.

    Args:
        operator: its name.
        recorded: arguments in the tree of records; lists of numbers are None there.
        constants: arguments in the list of records, which has those, and no lists of tensors.
        stored: stored elements of sparse tensors, by what records call them.
    """
    own = own_inputs(operator, recorded)
    if not constants:
        return tuple(_value(argument, stored) for argument in own)
    return tuple(
        Value(constant=list(constant))
        if argument is None and isinstance(constant, (list, tuple))
        else _value(argument, stored)
        for argument, constant in zip(own, constants[len(constants) - len(own) :], strict=True)
    )


def _value(argument: Any, stored: Mapping[int | None, int]) -> Value:
    if argument is None:
        return _NOTHING
    if isinstance(argument, list):
        return Value(items=tuple(_value(item, stored) for item in argument))
    if (layout := getattr(argument, "layout", None)) is None:
        return Value(constant=argument)
    if layout not in DENSE:  # how much work it is does not follow from its shape
        return Value(dtype=argument.dtype, stored=stored.get(argument.impl_ptr))
    return Value(tuple(argument.sizes), argument.dtype, argument.device)


@functools.cache
def has_lists(operator: str) -> bool:
    """Return whether an operator takes lists of numbers."""
    types = (str(argument.type) for schema in _schemas(operator) for argument in schema.arguments)
    return any(f"List[{kind}]" in text for text in types for kind in ("int", "bool", "float"))


def _schemas(operator: str) -> Iterator[Any]:
    if (packet := _packet(operator)) is not None:
        yield from (schema_of(getattr(packet, overload)) for overload in packet.overloads())


def _packet(operator: str) -> Any:
    namespace, _, name = operator.partition("::")
    return getattr(getattr(torch.ops, namespace, None), name, None)


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
    return _try(operator, inputs)[0]


def refuses(operator: str, inputs: Values) -> bool:
    """Return whether an operator raises an error for its arguments, so that a record of it shows no work."""
    key = (operator, *map(_key, inputs))
    if (known := _refused.get(key)) is None:
        known = _refused[key] = _try(operator, inputs)[1]
        if len(_refused) > _MOST:
            _refused.popitem(last=False)
    return known


_refused: OrderedDict[Any, bool] = OrderedDict()


def _try(operator: str, inputs: Values) -> tuple[Values, bool]:
    """Return an operator's results, and whether it refuses its arguments."""
    packet = _packet(operator)
    if packet is None or any(value.dtype is not None and value.shape is None for value in inputs):
        return UNSEEN, False  # unknown to Python, or on sparse tensors
    is_refused = False
    with disable_current_modes(), torch.no_grad():
        for overload in packet.overloads():
            function = getattr(packet, overload)
            arguments = schema_of(function).arguments
            if len(arguments) != len(inputs) or any(argument.is_out for argument in arguments):
                continue
            if not operator.startswith("aten::") and not function.has_kernel_for_dispatch_key(DispatchKey.Meta):
                continue  # it would be the user's own code that runs once more
            try:
                result = _run(function, arguments, inputs)
            except (TypeError, NotImplementedError):  # another overload, or no rule for tensors without memory
                continue
            except Exception:  # noqa: BLE001 - the operator's own error
                is_refused = True
                continue
            return tuple(map(value_of, tree_leaves(result))) if schema_of(function).returns else (), False
    return UNSEEN, is_refused


def _run(function: Any, arguments: Sequence[Any], inputs: Values) -> Any:
    positional: list[Any] = []
    named: dict[str, Any] = {}
    for argument, value in zip(arguments, inputs, strict=True):
        kind, given = str(argument.real_type), _stand_in(value)
        if "Device" in kind:
            given = torch.device("meta")
        elif "ScalarType" in kind and given is not None:
            given = _DTYPES[given]
        elif given is None and value == _NOTHING and argument.has_default_value():  # a string, which no record has
            given = argument.default_value
        if argument.kwarg_only:
            named[argument.name] = given
        else:
            positional.append(given)
    return function(*positional, **named)


# By the numbers that records give for them: `ScalarType` in c10/core/ScalarType.h.
_DTYPES = (
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.float32, torch.float64),
    *(torch.complex32, torch.complex64, torch.complex128, torch.bool, torch.qint8, torch.quint8, torch.qint32),
    torch.bfloat16,
)


def _stand_in(value: Value) -> Any:
    if value.items is not None:
        return [_stand_in(item) for item in value.items]
    return value.constant if value.shape is None else torch.empty(value.shape, dtype=value.dtype, device="meta")
