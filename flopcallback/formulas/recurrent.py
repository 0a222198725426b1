"""Recurrent layers: every weight matrix meets every time step of every sequence once.

So a layer, of any number of levels and directions, with a projection or without, does as many multiply-adds as its
matrices have elements, times the rows of the input. A row is one time step of one sequence; a packed batch, which has
no padding, has as many as the sum of its batch sizes. Biases cost nothing, as in `nn.Linear`. Gates, per element of the
state:

| cell | elementwise operations |
|---|---|
| LSTM | 4 additions, 4 activations, 3 for the new cell state, 2 for the new hidden state: 13 |
| GRU | 3 additions, 3 activations, 1 for the reset, 3 for the mixture: 10 |
| RNN | 1 addition, 1 activation: 2 |

The backward of the gates takes twice that. Dropout between levels costs nothing.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from flopcallback.formulas.arithmetic import multiply_adds, shape_of
from flopcallback.formulas.cost import Cost

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flopcallback.formulas.op_call import OpCall, Value

__all__ = [
    "GRU_GATES",
    "LSTM_GATES",
    "cudnn_rnn",
    "cudnn_rnn_backward",
    "gru",
    "gru_cell",
    "lstm",
    "lstm_cell",
    "lstm_mps_backward",
    "miopen_rnn",
    "miopen_rnn_backward",
    "mkldnn_rnn_layer",
    "mkldnn_rnn_layer_backward",
    "rnn",
    "rnn_cell",
]

LSTM_GATES = 13
GRU_GATES = 10
RNN_GATES = 2

# What cuDNN, MIOpen and oneDNN call "mode": https://docs.nvidia.com/deeplearning/cudnn/ (cudnnRNNMode_t).
_GATES_OF_MODE = (RNN_GATES, RNN_GATES, LSTM_GATES, GRU_GATES)


def lstm(call: OpCall) -> Cost:
    """`(input, [h, c], weights, ...)`, or `(data, batch sizes, [h, c], weights, ...)` for a packed batch."""
    *_, (_, cell_state), weights = (value.items for value in call.inputs if value.items is not None)
    return _layers(call.inputs[0], weights, _state_width(cell_state), LSTM_GATES)


def gru(call: OpCall) -> Cost:
    """`(input, h, weights, ...)`, or `(data, batch sizes, h, weights, ...)` for a packed batch."""
    return _with_one_state(call, GRU_GATES)


def rnn(call: OpCall) -> Cost:
    """As `gru`, with `tanh` or `relu`."""
    return _with_one_state(call, RNN_GATES)


def lstm_cell(call: OpCall) -> Cost:
    """`(input, [h, c], w_ih, w_hh, ...)`: one time step."""
    state = (call.inputs[1].items or ())[1]
    return _layers(call.inputs[0], call.inputs[2:4], shape_of(state)[-1], LSTM_GATES)


def gru_cell(call: OpCall) -> Cost:
    """`(input, h, w_ih, w_hh, ...)`: one time step."""
    return _layers(call.inputs[0], call.inputs[2:4], shape_of(call.inputs[1])[-1], GRU_GATES)


def rnn_cell(call: OpCall) -> Cost:
    """As `gru_cell`, with `tanh` or `relu`."""
    return _layers(call.inputs[0], call.inputs[2:4], shape_of(call.inputs[1])[-1], RNN_GATES)


def mkldnn_rnn_layer(call: OpCall) -> Cost:
    """One level, one direction: `(input, w_ih, w_hh, biases, h, c, reverse, batch sizes, mode, hidden size, ...)`."""
    mode, width = (value.constant for value in call.inputs[9:11])
    return _layers(call.inputs[0], call.inputs[1:3], width, _GATES_OF_MODE[mode])


def mkldnn_rnn_layer_backward(call: OpCall) -> Cost:
    """The gradients of inputs and weights: twice the products, and twice the gates, of the forward."""
    mode, width = (value.constant for value in call.inputs[14:16])
    return _backward(_layers(call.inputs[0], call.inputs[1:3], width, _GATES_OF_MODE[mode]))


def cudnn_rnn(call: OpCall) -> Cost:
    """`(input, weights, stride, buffer, h, c, mode, hidden size, projection, levels, ..., bidirectional, ...)`."""
    return _library_call(call, mode=6, levels=9, bidirectional=13)


def miopen_rnn(call: OpCall) -> Cost:
    """`(input, weights, stride, h, c, mode, hidden size, levels, ..., bidirectional, ...)`."""
    return _library_call(call, mode=5, levels=7, bidirectional=11)


def cudnn_rnn_backward(call: OpCall) -> Cost:
    """Gradients of inputs, which are always computed, and of weights, if the last flag of the output mask says so.

    `(input, weights, stride, buffer, h, c, output, three gradients, mode, hidden size, projection, levels, ...)`.
    """
    forward = _library_call(call, mode=10, levels=13, bidirectional=17)
    return _backward(forward, weights=call.inputs[21].constant[3])


def miopen_rnn_backward(call: OpCall) -> Cost:
    """As `cudnn_rnn_backward`, without a projection."""
    forward = _library_call(call, mode=10, levels=12, bidirectional=16)
    return _backward(forward, weights=call.inputs[20].constant[3])


def lstm_mps_backward(call: OpCall) -> Cost:
    """`(three gradients, two saved tensors, input, outputs, [h, c], weights, ...)`."""
    (_, cell_state), weights = (value.items or () for value in call.inputs[7:9])
    return _backward(_layers(call.inputs[5], weights, _state_width(cell_state), LSTM_GATES))


def _layers(inputs: Value, weights: Sequence[Value], state_width: int, gates: int) -> Cost:
    """All levels and directions; `state_width` is the sum of their hidden sizes. Biases are what has 1 dimension."""
    rows = prod(shape_of(inputs)[:-1])
    matrices = [weight for weight in weights if len(shape_of(weight)) == 2]
    products = sum((multiply_adds(rows * matrix.numel, inputs, matrix) for matrix in matrices), Cost())
    return products + Cost(elementwise=rows * state_width * gates)


def _backward(forward: Cost, *, weights: bool = True) -> Cost:
    """A product for every gradient; the gates' derivatives take twice the gates."""
    return Cost(fma=(1 + weights) * forward.fma, elementwise=2 * forward.elementwise)


def _with_one_state(call: OpCall, gates: int) -> Cost:
    weights_at = next(position for position, value in enumerate(call.inputs) if value.items is not None)
    state, weights = call.inputs[weights_at - 1 : weights_at + 1]
    return _layers(call.inputs[0], weights.items or (), _state_width(state), gates)


def _state_width(state: Value) -> int:
    """Of `[levels * directions, batch, hidden size]`."""
    levels, _, width = shape_of(state)
    return levels * width


def _library_call(call: OpCall, *, mode: int, levels: int, bidirectional: int) -> Cost:
    """Positions of the constants; the hidden size always follows the mode."""
    inputs, weights = call.inputs[:2]
    width = call.inputs[mode + 1].constant * call.inputs[levels].constant * (1 + call.inputs[bidirectional].constant)
    return _layers(inputs, weights.items or (), width, _GATES_OF_MODE[call.inputs[mode].constant])
