"""Normalization: a fixed number of operations per element of the input.

| step | per element |
|---|---|
| mean and variance of the input (batch norm in training, layer, group and instance norm) | 3 |
| mean square of the input (RMS norm) | 2 |
| subtract the mean, divide by the deviation: one multiply-add | 1 |
| weight and bias: one multiply-add, counted where there is a weight | 1 |

Thus 5 with a weight and 4 without; 2 and 1 where running statistics are used; 4 and 3 for RMS norm. The first four
figures are those of fvcore. A backward takes twice the five, as elementwise work.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flopcallback.formulas.arithmetic import numel_of
from flopcallback.formulas.cost import Cost

if TYPE_CHECKING:
    from flopcallback.formulas.op_call import OpCall

__all__ = [
    "BACKWARD",
    "MEAN_AND_VARIANCE",
    "NORMALIZE",
    "SCALE",
    "batch_norm",
    "batch_norm_apply",
    "batch_norm_combine",
    "batch_norm_evaluation",
    "batch_norm_statistics",
    "batch_norm_training",
    "layer_norm",
    "rms_norm",
]

MEAN_AND_VARIANCE = 3
MEAN_SQUARE = 2
NORMALIZE = 1
SCALE = 1
BACKWARD = 2 * (MEAN_AND_VARIANCE + NORMALIZE + SCALE)


def batch_norm(call: OpCall) -> Cost:
    """Count batch or instance norm, `(input, weight, bias, ...)`, training or not."""
    # The flag is the first boolean, in sixth place, or in fourth where there are no running statistics.
    training = next(value.constant for value in call.inputs if isinstance(value.constant, bool))
    return batch_norm_training(call) if training else batch_norm_evaluation(call)


def batch_norm_training(call: OpCall) -> Cost:
    """Count batch norm in training, `(input, weight, ...)`.

    Its statistics are those of the input. Group norm below autograd has the same arguments.
    """
    return _per_element(call, MEAN_AND_VARIANCE + NORMALIZE, weight=1)


def batch_norm_evaluation(call: OpCall) -> Cost:
    """Count batch norm with running statistics, `(input, weight, ...)`."""
    return _per_element(call, NORMALIZE, weight=1)


def layer_norm(call: OpCall) -> Cost:
    """Count layer norm, `(input, normalized shape, weight, ...)`.

    Group norm, as `nn.GroupNorm` calls it, has the number of groups in second place.
    """
    return _per_element(call, MEAN_AND_VARIANCE + NORMALIZE, weight=2)


def rms_norm(call: OpCall) -> Cost:
    """Count RMS norm, `(input, normalized shape, weight, ...)`."""
    return _per_element(call, MEAN_SQUARE + NORMALIZE, weight=2)


def batch_norm_statistics(call: OpCall) -> Cost:
    """Count the statistics of one device, the first part of `nn.SyncBatchNorm`."""
    return Cost(other=MEAN_AND_VARIANCE * numel_of(call.inputs[0]))


def batch_norm_combine(call: OpCall) -> Cost:
    """Count the combination of statistics, the second part of `nn.SyncBatchNorm`.

    It computes one mean and variance per channel from those of all devices.
    """
    # Position 1 has the means, `[devices, channels]`.
    return Cost(other=MEAN_AND_VARIANCE * numel_of(call.inputs[1]))


def batch_norm_apply(call: OpCall) -> Cost:
    """Count the application of statistics, the last part of `nn.SyncBatchNorm`."""
    return _per_element(call, NORMALIZE, weight=1)


def _per_element(call: OpCall, operations: int, *, weight: int) -> Cost:
    # An optional weight that was not given is no tensor. A bias adds nothing to its multiply-add.
    scale = SCALE if call.inputs[weight].is_tensor else 0
    return Cost(other=(operations + scale) * numel_of(call.inputs[0]))
