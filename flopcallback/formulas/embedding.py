"""Embedding bags: rows of a table, summed, averaged or compared per bag.

They are elementwise work, and not in the default total. A plain embedding is a look-up, and free.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flopcallback.formulas.arithmetic import elements, shape_of
from flopcallback.formulas.cost import Cost

if TYPE_CHECKING:
    from flopcallback.formulas.op_call import OpCall

__all__ = ["embedding_bag", "embedding_bag_backward", "per_sample_weights_backward"]

_MEAN = 1  # modes of `embedding_bag`: sum, mean, max


def embedding_bag(call: OpCall) -> Cost:
    """Count an embedding bag.

    `(weight, indices, offsets, _, mode, _, per-sample weights, ...)`. One operation per element of every row looked up,
    one more where rows have weights, and one per element of the result for the division of a mean. Padding counts,
    since only the data says what is padding.
    """
    weight, indices, _, _, mode, _, row_weights = call.inputs[:7]
    _, width = shape_of(weight)
    looked_up = indices.numel * width
    return Cost(
        elementwise=looked_up * (1 + row_weights.is_tensor)
        + (elements(call.outputs[0]) if mode.constant == _MEAN else 0)
    )


def embedding_bag_backward(call: OpCall) -> Cost:
    """Count the gradient of the table: one addition per element looked up.

    `(gradient, indices, ...)`. Every row looked up gets the gradient of its bag added.
    """
    gradient, indices = call.inputs[:2]
    return Cost(elementwise=indices.numel * shape_of(gradient)[-1])


def per_sample_weights_backward(call: OpCall) -> Cost:
    """Count the gradient of row weights: two operations per element.

    `(gradient, weight, indices, ...)`. The gradient of a weight is the dot product of its row and the gradient of its
    bag.
    """
    gradient, _, indices = call.inputs[:3]
    return Cost(elementwise=2 * indices.numel * shape_of(gradient)[-1])
