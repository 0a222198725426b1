"""Handles: functions from a traced operator's inputs and outputs to its count.

A handle takes two lists of `torch._C.Value` and returns a number, or a `Counter` under names of its own.
`set_op_handle` assigns it to an operator. FLOPs are those of this package's formulas, 1 per multiply-add: exact Python
ints.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import prod
from typing import Any

from flopcallback.counting.fvcore_values import RecordedValue
from flopcallback.counting.tally import Handle
from flopcallback.formulas.op_call import OpCall, Value
from flopcallback.formulas.registry import Counted, lookup
from flopcallback.tracing.record import read_value

__all__ = [
    "Handle",
    "addmm_flop_jit",
    "batchnorm_flop_jit",
    "bmm_flop_jit",
    "conv_flop_count",
    "conv_flop_jit",
    "einsum_flop_jit",
    "elementwise_flop_counter",
    "generic_activation_jit",
    "get_shape",
    "linear_flop_jit",
    "matmul_flop_jit",
    "norm_flop_counter",
]

Values = list[Any]


def get_shape(val: Any) -> list[int] | None:
    """Return the shape of a traced value, None if it is unknown."""
    sizes: list[int] | None = val.type().sizes() if val.isCompleteTensor() else None
    return sizes


def generic_activation_jit(op_name: str | None = None) -> Handle:
    """Return a handle that counts the elements of the first output.

    Args:
        op_name: name to count under; by default the operator's own.
    """

    def activations(inputs: Values, outputs: Values) -> Counter[str] | int:
        count = prod(_shape(outputs[0]))
        # A bare number is booked under the operator's own name.
        return count if op_name is None else Counter({op_name: count})

    return activations


def addmm_flop_jit(inputs: Values, outputs: Values) -> int:
    """Count FLOPs of `addmm(input, mat1, mat2)`."""
    return _flops("aten::addmm", inputs, outputs)


def linear_flop_jit(inputs: Values, outputs: Values) -> int:
    """Count FLOPs of `linear(input, weight, bias)`, for inputs of any rank."""
    return _flops("aten::linear", inputs, outputs)


def bmm_flop_jit(inputs: Values, outputs: Values) -> int:
    """Count FLOPs of `bmm(input, mat2)`."""
    return _flops("aten::bmm", inputs, outputs)


def matmul_flop_jit(inputs: Values, outputs: Values) -> int:
    """Count FLOPs of `matmul(input, other)` or `mm`, with broadcasting and vectors."""
    return _flops("aten::matmul", inputs, outputs)


def einsum_flop_jit(inputs: Values, outputs: Values) -> int:
    """Count FLOPs of `einsum(equation, operands)` on the path that PyTorch takes."""
    return _flops("aten::einsum", inputs, outputs)


def conv_flop_jit(inputs: Values, outputs: Values) -> Counter[str]:
    """Count FLOPs of `_convolution`, transposed or not, as `conv`."""
    return Counter({"conv": _flops("aten::_convolution", inputs, outputs)})


def conv_flop_count(
    x_shape: Sequence[int], w_shape: Sequence[int], out_shape: Sequence[int], transposed: bool = False
) -> int:
    """Count FLOPs of a convolution from its shapes.

    Every weight meets every position once.

    Args:
        x_shape: `[batch, channels, *spatial]`.
        w_shape: `[out, in / groups, *kernel]`; transposed `[in, out / groups, *kernel]`.
        out_shape: `[batch, channels, *spatial]`.
        transposed: whether positions are those of the input (True) or of the output.
    """
    # One multiply-add per weight and position, so stride and padding need not be known.
    positions = (x_shape if transposed else out_shape)[2:]
    return x_shape[0] * prod(w_shape) * prod(positions)


def norm_flop_counter(affine_arg_index: int) -> Handle:
    """Return a handle for a normalization that computes its statistics.

    It counts 4 FLOPs per element, 5 with a weight.

    Args:
        affine_arg_index: position of the weight among the operator's inputs.
    """

    def norm_flops(inputs: Values, outputs: Values) -> int:
        has_weight = get_shape(inputs[affine_arg_index]) is not None
        return prod(_shape(inputs[0])) * (5 if has_weight else 4)

    return norm_flops


def batchnorm_flop_jit(inputs: Values, outputs: Values) -> int:
    """Count FLOPs of `batch_norm`.

    They are 4 per element in training and 1 in evaluation, and 1 more with a weight.
    """
    return _flops("aten::batch_norm", inputs, outputs)


def elementwise_flop_counter(input_scale: float = 1, output_scale: float = 0) -> Handle:
    """Return a handle that counts FLOPs per element of input and output.

    Args:
        input_scale: FLOPs per element of the first input.
        output_scale: FLOPs per element of the first output.
    """

    def elementwise_flops(inputs: Values, outputs: Values) -> float:
        # With a scale of 0 the argument may be no tensor: its shape must not be read.
        from_input = input_scale * prod(_shape(inputs[0])) if input_scale else 0
        return from_input + (output_scale * prod(_shape(outputs[0])) if output_scale else 0)

    return elementwise_flops


def handle_by_formula(operator: str) -> Handle:
    """Return a handle that counts by an operator's built-in formula."""

    def flops_by_formula(inputs: Values, outputs: Values) -> int:
        return _flops(operator, inputs, outputs)

    return flops_by_formula


def _flops(operator: str, inputs: Values, outputs: Values) -> int:
    row = lookup(operator)
    # Only called with names from the table of counted operators, which `register_formula` cannot replace.
    assert isinstance(row, Counted)
    return row.formula(OpCall(operator, tuple(map(_read, inputs)), tuple(map(_read, outputs)))).flops()


def _read(value: Any) -> Value:
    # Handles get a `RecordedValue` from this package's analyses, and may get a real `torch._C.Value` from a user.
    return value.value if isinstance(value, RecordedValue) else read_value(value)


def _shape(value: Any) -> list[int]:
    shape = get_shape(value)
    if shape is None:
        raise ValueError(f"expected a tensor of known shape, got {value.type()}")
    return shape
