"""Interpolation, grid sampling and pooling.

In the default total, as operations of their own:

| operator | figure |
|---|---|
| interpolation, grid sampling | per output, 1 for each input value in it: nearest 1, linear 2, bilinear 4, cubic 16 |
| the same in three dimensions | nearest 1, linear 8 |
| adaptive average pooling, `mode="area"` | 1 per input element |
| `roi_align` of torchvision | per output, 4 for each of its samples, if their number is given |

The figures for nearest, bilinear and average pooling are those of fvcore. An antialiased filter that shrinks the image
is wider, in proportion. Weights, which depend on the position alone, cost nothing.

Elementwise: other pools take 1 per input value in the window of each output; adaptive maximum pooling, whose windows
tile the input, 1 per input element; backward passes the forward's figure, per element of the gradient.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from flopcallback.formulas.arithmetic import elements, numel_of, shape_of
from flopcallback.formulas.cost import Cost

if TYPE_CHECKING:
    from collections.abc import Callable

    from flopcallback.formulas.op_call import OpCall

__all__ = [
    "adaptive_average_pool",
    "antialiased",
    "global_average_pool_or_mean",
    "grid_sampler",
    "grid_sampler_backward",
    "interpolation",
    "pool",
    "pool_backward",
    "region_pool",
    "roi_align",
    "roi_align_backward",
]

# Modes of `grid_sampler`, in ATen's order.
_BILINEAR, _NEAREST, _BICUBIC = range(3)
_TAPS_PER_DIMENSION = {_BILINEAR: 2, _NEAREST: 1, _BICUBIC: 4}
# Dimensions of `mean` as `adaptive_avg_pool2d` and `3d` to one value pass them.
_GLOBAL_POOL = ([-1, -2], [-1, -2, -3])


def interpolation(taps: int) -> Callable[[OpCall], Cost]:
    """Return a formula of `taps` operations per output value.

    `taps` is the number of input values that an output value is made of.
    """

    def formula(call: OpCall) -> Cost:
        return Cost(other=taps * numel_of(call.outputs[0]))

    return formula


def antialiased(taps: int) -> Callable[[OpCall], Cost]:
    """Return a formula of an antialiased interpolation.

    An output value is made of `taps` input values per dimension, and of more where the image shrinks.
    """

    def formula(call: OpCall) -> Cost:
        before, after = (shape_of(value) for value in (call.inputs[0], call.outputs[0]))
        window = prod(_window(taps, *sizes) for sizes in zip(before[2:], after[2:], strict=True))
        return Cost(other=window * prod(after))

    return formula


def grid_sampler(call: OpCall) -> Cost:
    """Count grid sampling, `(input: [batch, channels, ...], grid, mode, ...)`.

    The image has 2 or 3 dimensions.
    """
    # `cudnn_grid_sampler` has no mode.
    mode = call.inputs[2].constant if len(call.inputs) > 2 else _BILINEAR
    return Cost(other=_taps(call, mode) * numel_of(call.outputs[0]))


def grid_sampler_backward(call: OpCall) -> Cost:
    """Count the requested gradients of grid sampling.

    `(gradient, input, grid, mode, ..., [gradient of input wanted, gradient of grid wanted])`.
    """
    gradient, _, _, mode, _, _, wanted = call.inputs[:7]
    return Cost(elementwise=sum(wanted.constant) * _taps(call, mode.constant) * elements(gradient))


def roi_align(samples: int) -> Callable[[OpCall], Cost]:
    """Return a formula of torchvision's `roi_align` and `ps_roi_align`: a mean of bilinear samples per output.

    Args:
        samples: position of the argument that says how many samples there are in each dimension.
    """

    def formula(call: OpCall) -> Cost:
        return Cost(other=_bilinear_samples(call, samples) * numel_of(call.outputs[0]))

    return formula


def roi_align_backward(samples: int) -> Callable[[OpCall], Cost]:
    """Return a formula of the gradient of `roi_align`, `(gradient, regions, ...)`."""

    def formula(call: OpCall) -> Cost:
        return Cost(elementwise=_bilinear_samples(call, samples) * elements(call.inputs[0]))

    return formula


def region_pool(call: OpCall) -> Cost:
    """Refuse to count a pool over regions, whose sizes are data.

    Raises:
        ValueError: always.
    """
    raise ValueError("how many values a region has depends on data")


def _bilinear_samples(call: OpCall, position: int) -> int:
    if (ratio := call.inputs[position].constant) <= 0:
        raise ValueError("without a sampling ratio, the number of samples depends on the regions, which are data")
    return int(_TAPS_PER_DIMENSION[_BILINEAR] ** 2 * ratio**2)


def adaptive_average_pool(call: OpCall) -> Cost:
    """Count adaptive average pooling: one operation per input element.

    The pool may have any number of dimensions, with or without a batch.
    """
    return Cost(other=numel_of(call.inputs[0]))


def global_average_pool_or_mean(call: OpCall) -> Cost:
    """Count `mean(input, dim, keepdim, ...)`: a reduction, or global average pooling.

    Below autograd, adaptive average pooling to one value runs as a mean over the last dimensions, last first, kept. A
    mean that a user writes in the same form does the same work and counts the same.
    """
    if [value.constant for value in call.inputs[1:3]] in [[dims, True] for dims in _GLOBAL_POOL]:
        return adaptive_average_pool(call)
    return Cost(elementwise=elements(call.inputs[0]))


def pool(call: OpCall) -> Cost:
    """Count average, maximum or fractional pooling, `(input, kernel size, ...)`.

    Padding counts as if it were data.
    """
    window = prod(call.inputs[1].constant)
    return Cost(elementwise=window * elements(call.outputs[0]))


def pool_backward(call: OpCall) -> Cost:
    """Count the gradient of average pooling, `(gradient, input, kernel size, ...)`."""
    window = prod(call.inputs[2].constant)
    return Cost(elementwise=window * elements(call.inputs[0]))


def _taps(call: OpCall, mode: int) -> int:
    dimensions = len(shape_of(call.inputs[0])) - 2  # without batch and channels
    return int(_TAPS_PER_DIMENSION[mode] ** dimensions)


def _window(taps: int, before: int, after: int) -> int:
    """Return `taps`, stretched where the image shrinks."""
    # `taps * before / after`, rounded up in integers.
    return max(taps, -(-taps * before // after))
