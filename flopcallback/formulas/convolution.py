"""Convolutions: every weight meets every position once, zeros of the padding included.

A weight is `[out, in / groups, *kernel]`, or `[in, out / groups, *kernel]` when transposed. So one element of the
result (transposed: of the input) takes `prod(weight.shape[1:])` multiply-adds, whatever stride, padding and dilation;
these only decide the number of elements. The batch dimension may be missing.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from flopcallback.formulas.arithmetic import elements, is_complex, multiply_adds, numel_of, shape_of
from flopcallback.formulas.cost import Cost

if TYPE_CHECKING:
    from flopcallback.formulas.op_call import OpCall, Value

__all__ = [
    "backward",
    "deformable",
    "deformable_backward",
    "forward",
    "forward_activation",
    "forward_add_activation",
    "forward_or_transposed",
    "onednn_pointwise",
    "onednn_quantized",
    "onednn_transposed",
    "time_major",
    "transposed",
    "weight_third",
]


def forward(call: OpCall) -> Cost:
    """Count a convolution `(input, weight, ...)` that is not transposed."""
    source, weight = call.inputs[:2]
    return _taps(call.outputs[0], source, weight)


def transposed(call: OpCall) -> Cost:
    """Count a transposed convolution `(input, weight, ...)`."""
    source, weight = call.inputs[:2]
    return _taps(source, source, weight)  # each input element is spread over the kernel


def forward_or_transposed(call: OpCall) -> Cost:
    """Count `convolution(input, weight, bias, stride, padding, dilation, transposed, ...)`."""
    # 6 is the flag `transposed`, in `_convolution` as well
    return transposed(call) if call.inputs[6].constant else forward(call)


def forward_activation(call: OpCall) -> Cost:
    """Count a convolution with a ReLU: one elementwise operation per output."""
    return forward(call) + Cost(elementwise=elements(call.outputs[0]))


def forward_add_activation(call: OpCall) -> Cost:
    """Count a convolution with residual and ReLU: two elementwise operations per output."""
    return forward(call) + Cost(elementwise=2 * elements(call.outputs[0]))


def backward(call: OpCall) -> Cost:
    """Count the gradients of a convolution.

    `convolution_backward(grad, input, weight, bias_sizes, stride, padding, dilation, transposed, ..., mask)`, where
    `mask` says which of the gradients of input, weight and bias are computed.
    """
    grad, source, weight = call.inputs[:3]
    return _gradients(grad, source, weight, transposed=call.inputs[7].constant, mask=call.inputs[10].constant)


def time_major(call: OpCall) -> Cost:
    """Count `conv_tbc([time, batch, in], [kernel, in, out])`."""
    source, weight = call.inputs[:2]
    kernel, ins, _ = shape_of(weight)
    return multiply_adds(numel_of(call.outputs[0]) * kernel * ins, source, weight)


def weight_third(call: OpCall) -> Cost:
    """Count a convolution `(input, added, weight, ...)` with a residual."""
    return _taps(call.outputs[0], call.inputs[0], call.inputs[2])


def onednn_quantized(call: OpCall) -> Cost:
    """Count oneDNN's `qconv_pointwise(input, scale, zero point, weight, ...)`."""
    return _taps(call.outputs[0], call.inputs[0], call.inputs[3])


def onednn_pointwise(call: OpCall) -> Cost:
    """Count oneDNN's `_convolution_pointwise(input, [other,] weight, bias, ...)`."""
    # A bias is a vector or absent: a matrix in its place says that a tensor is added first.
    has_other = len(call.inputs[2].shape or ()) > 1
    return weight_third(call) if has_other else forward(call)


def onednn_transposed(call: OpCall) -> Cost:
    """Count oneDNN's `_convolution_transpose_pointwise(input, weight, ...)`."""
    source, weight = call.inputs[:2]
    # oneDNN may have exchanged the first two dimensions of the weight: its elements are `in * out / groups * kernel`.
    _, channels, *_ = shape_of(source)
    return Cost(fma=numel_of(source) * numel_of(weight) // channels)


def deformable(call: OpCall) -> Cost:
    """Count torchvision's `deform_conv2d(input, weight, offset, mask, bias, ..., use_mask)`.

    Each tap reads the input between four of its elements, which is interpolation, and may scale what it has read.
    """
    source, weight = call.inputs[:2]
    taps = _read_taps(call.outputs[0], source, weight)
    has_mask = call.inputs[-1].constant
    return forward(call) + Cost(other=_BILINEAR * taps, elementwise=taps if has_mask else 0)


def deformable_backward(call: OpCall) -> Cost:
    """Count the gradients of `deform_conv2d`, `(gradient, input, weight, ...)`.

    All of them are computed. Those of input and weight take a product each; to read the input again, and the gradients
    of input and offset through the interpolation, are elementwise.
    """
    grad, source, weight = call.inputs[:3]
    products = _gradients(grad, source, weight, transposed=False, mask=(True, True, True))
    return products + Cost(elementwise=3 * _BILINEAR * _read_taps(grad, source, weight))


_BILINEAR = 4  # operations per value read, as in grid sampling


def _read_taps(result: Value, source: Value, weight: Value) -> int:
    """Return how many values of the input are read: all channels and taps at every position."""
    channels, positions = shape_of(source)[1], numel_of(result) // shape_of(result)[1]
    return positions * channels * prod(shape_of(weight)[2:])


def _gradients(grad: Value, source: Value, weight: Value, *, transposed: bool, mask: tuple[bool, bool, bool]) -> Cost:
    """Count the gradients that `mask` asks for."""
    wants_source, wants_weight, wants_bias = mask
    # Gradients of input and weight pair the same elements as the forward did.
    product = _taps(source if transposed else grad, source, weight)
    # The gradient of the bias is a sum over `grad`, a reduction.
    return Cost(fma=(wants_source + wants_weight) * product.fma, elementwise=wants_bias * elements(grad))


def _taps(positions: Value, source: Value, weight: Value) -> Cost:
    """Count one multiply-add per kernel element at every position."""
    multiply_adds_per_position = prod(shape_of(weight)[1:])
    # A complex convolution runs as three real ones (`complex_convolution` in ATen's native/Convolution.cpp).
    return Cost(fma=(3 if is_complex(source) else 1) * numel_of(positions) * multiply_adds_per_position)
