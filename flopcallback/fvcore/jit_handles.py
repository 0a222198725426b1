"""Handles: functions from the inputs and outputs of one traced operator to its FLOPs or activations.

A handle takes two lists of `torch._C.Value` and returns a number, or a `Counter` under names of its own. An operator
gets it by `set_op_handle`. The FLOPs are those of this package's formulas, 1 per multiply-add: exact Python ints.
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
    """The shape of a traced value; None for anything but a tensor of known shape."""
    sizes: list[int] | None = val.type().sizes() if val.isCompleteTensor() else None
    return sizes


def generic_activation_jit(op_name: str | None = None) -> Handle:
    """A handle that gives the number of elements of the first output.

    Args:
        op_name: the name to count under; the operator's own where not given.
    """

    def activations(inputs: Values, outputs: Values) -> Counter[str] | int:
        count = prod(_shape(outputs[0]))
        return count if op_name is None else Counter({op_name: count})

    return activations


def addmm_flop_jit(inputs: Values, outputs: Values) -> int:
    """FLOPs of `addmm(input, mat1, mat2)`."""
    return _flops("aten::addmm", inputs, outputs)


def linear_flop_jit(inputs: Values, outputs: Values) -> int:
    """FLOPs of `linear(input, weight, bias)`, the input of any rank."""
    return _flops("aten::linear", inputs, outputs)


def bmm_flop_jit(inputs: Values, outputs: Values) -> int:
    """FLOPs of `bmm(input, mat2)`."""
    return _flops("aten::bmm", inputs, outputs)


def matmul_flop_jit(inputs: Values, outputs: Values) -> int:
    """FLOPs of `matmul(input, other)` or `mm`: all broadcasting, vectors included."""
    return _flops("aten::matmul", inputs, outputs)


def einsum_flop_jit(inputs: Values, outputs: Values) -> int:
    """FLOPs of `einsum(equation, operands)` on the contraction path that PyTorch takes."""
    return _flops("aten::einsum", inputs, outputs)


def conv_flop_jit(inputs: Values, outputs: Values) -> Counter[str]:
    """FLOPs of `_convolution`, transposed or not, under the name `conv`."""
    return Counter({"conv": _flops("aten::_convolution", inputs, outputs)})


def conv_flop_count(
    x_shape: Sequence[int], w_shape: Sequence[int], out_shape: Sequence[int], transposed: bool = False
) -> int:
    """FLOPs of a convolution from its shapes: every weight meets every position once.

    Args:
        x_shape: `[batch, channels, *spatial]`.
        w_shape: `[out, in / groups, *kernel]`; transposed `[in, out / groups, *kernel]`.
        out_shape: `[batch, channels, *spatial]`.
        transposed: whether the weights slide over the input (True) or the output.
    """
    positions = (x_shape if transposed else out_shape)[2:]
    return x_shape[0] * prod(w_shape) * prod(positions)


def norm_flop_counter(affine_arg_index: int) -> Handle:
    """A handle for a normalization that computes its statistics: 4 FLOPs an element, 5 with a weight.

    Args:
        affine_arg_index: position of the weight among the operator's inputs.
    """

    def norm_flops(inputs: Values, outputs: Values) -> int:
        has_weight = get_shape(inputs[affine_arg_index]) is not None
        return prod(_shape(inputs[0])) * (5 if has_weight else 4)

    return norm_flops


def batchnorm_flop_jit(inputs: Values, outputs: Values) -> int:
    """FLOPs of `batch_norm`: 4 an element in training and 1 in evaluation, and 1 more with a weight."""
    return _flops("aten::batch_norm", inputs, outputs)


def elementwise_flop_counter(input_scale: float = 1, output_scale: float = 0) -> Handle:
    """A handle that gives so many FLOPs per element of the first input, and so many per element of the output."""

    def elementwise_flops(inputs: Values, outputs: Values) -> float:
        # A scale of 0 is for arguments that are no tensors: their shapes must not be asked for.
        from_input = input_scale * prod(_shape(inputs[0])) if input_scale else 0
        return from_input + (output_scale * prod(_shape(outputs[0])) if output_scale else 0)

    return elementwise_flops


def handle_by_formula(operator: str) -> Handle:
    """A handle that counts as the built-in formula of an operator does."""

    def flops_by_formula(inputs: Values, outputs: Values) -> int:
        return _flops(operator, inputs, outputs)

    return flops_by_formula


def _flops(operator: str, inputs: Values, outputs: Values) -> int:
    row = lookup(operator)
    assert isinstance(row, Counted)
    return row.formula(OpCall(operator, tuple(map(_read, inputs)), tuple(map(_read, outputs)))).flops()


def _read(value: Any) -> Value:
    return value.value if isinstance(value, RecordedValue) else read_value(value)


def _shape(value: Any) -> list[int]:
    shape = get_shape(value)
    if shape is None:
        raise ValueError(f"expected a tensor of known shape, got {value.type()}")
    return shape
