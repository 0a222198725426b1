"""Recurrent layers: every matrix meets every time step once.

So the multiply-adds of a layer are the elements of its matrices, times the rows of the input, for any number of levels
and directions, with a projection or without. A row is one time step of one sequence; a packed batch, which has no
padding, has as many rows as its batch sizes sum up to. Biases cost nothing, as in `nn.Linear`. Gates, per element of
the state:

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
_GATES_OF_MODE = (RNN_GATES, RNN_GATES, LSTM_GATES, GRU_GATES)  # relu, tanh, LSTM, GRU


def lstm(call: OpCall) -> Cost:
    """Count an LSTM, `(input, [h, c], weights, ...)`, packed or not.

    A packed batch is `(data, batch sizes, [h, c], weights, ...)`.
    """
    # The two lists among the arguments. `c` is taken, since a projection narrows `h`.
    *_, (_, cell_state), weights = (value.items for value in call.inputs if value.items is not None)
    return _layers(call.inputs[0], weights, _state_width(cell_state), LSTM_GATES)


def gru(call: OpCall) -> Cost:
    """Count a GRU, `(input, h, weights, ...)`, packed or not.

    A packed batch is `(data, batch sizes, h, weights, ...)`.
    """
    return _with_one_state(call, GRU_GATES)


def rnn(call: OpCall) -> Cost:
    """Count an Elman network as a GRU, with `tanh` or `relu`."""
    return _with_one_state(call, RNN_GATES)


def lstm_cell(call: OpCall) -> Cost:
    """Count a step of `lstm_cell`, `(input, [h, c], w_ih, w_hh, ...)`."""
    state = (call.inputs[1].items or ())[1]  # `c`
    return _layers(call.inputs[0], call.inputs[2:4], shape_of(state)[-1], LSTM_GATES)


def gru_cell(call: OpCall) -> Cost:
    """Count a step of `gru_cell`, `(input, h, w_ih, w_hh, ...)`."""
    return _layers(call.inputs[0], call.inputs[2:4], shape_of(call.inputs[1])[-1], GRU_GATES)


def rnn_cell(call: OpCall) -> Cost:
    """Count an Elman cell as a GRU cell, with `tanh` or `relu`."""
    return _layers(call.inputs[0], call.inputs[2:4], shape_of(call.inputs[1])[-1], RNN_GATES)


def mkldnn_rnn_layer(call: OpCall) -> Cost:
    """Count one level of a oneDNN layer in one direction.

    `(input, w_ih, w_hh, biases, h, c, reverse, batch sizes, mode, hidden size, ...)`.
    """
    mode, width = (value.constant for value in call.inputs[9:11])
    # Weights 1 and 2 are the matrices, 3 and 4 the biases.
    return _layers(call.inputs[0], call.inputs[1:3], width, _GATES_OF_MODE[mode])


def mkldnn_rnn_layer_backward(call: OpCall) -> Cost:
    """Count the gradients of inputs and weights of a oneDNN layer.

    They take twice the products, and twice the gates, of the forward.
    """
    mode, width = (value.constant for value in call.inputs[14:16])
    return _backward(_layers(call.inputs[0], call.inputs[1:3], width, _GATES_OF_MODE[mode]))


def cudnn_rnn(call: OpCall) -> Cost:
    """Count a recurrent layer of cuDNN.

    `(input, weights, stride, buffer, h, c, mode, hidden size, projection, levels, ..., bidirectional, ...)`.
    """
    return _library_call(call, mode=6, levels=9, bidirectional=13)


def miopen_rnn(call: OpCall) -> Cost:
    """Count a recurrent layer of MIOpen.

    `(input, weights, stride, h, c, mode, hidden size, levels, ..., bidirectional, ...)`.
    """
    return _library_call(call, mode=5, levels=7, bidirectional=11)


def cudnn_rnn_backward(call: OpCall) -> Cost:
    """Count the gradients of inputs, and of weights if asked for.

    `(input, weights, stride, buffer, h, c, output, three gradients, mode, hidden size, projection, levels, ...)`.
    """
    forward = _library_call(call, mode=10, levels=13, bidirectional=17)
    # Gradients of inputs are always computed; the last flag of the output mask asks for those of weights.
    return _backward(forward, weights=call.inputs[21].constant[3])


def miopen_rnn_backward(call: OpCall) -> Cost:
    """Count the gradients as `cudnn_rnn_backward`, without a projection."""
    forward = _library_call(call, mode=10, levels=12, bidirectional=16)
    return _backward(forward, weights=call.inputs[20].constant[3])


def lstm_mps_backward(call: OpCall) -> Cost:
    """Count the gradients of an LSTM on MPS.

    `(three gradients, two saved tensors, input, outputs, [h, c], weights, ...)`.
    """
    (_, cell_state), weights = (value.items or () for value in call.inputs[7:9])
    return _backward(_layers(call.inputs[5], weights, _state_width(cell_state), LSTM_GATES))


def _layers(inputs: Value, weights: Sequence[Value], state_width: int, gates: int) -> Cost:
    """Count all levels and directions.

    Args:
        inputs: `[..., features]`; all dimensions but the last are rows.
        weights: matrices and biases.
        state_width: sum of the hidden sizes of all levels and directions.
        gates: elementwise operations per element of the state.
    """
    rows = prod(shape_of(inputs)[:-1])
    # Biases have 1 dimension.
    matrices = [weight for weight in weights if len(shape_of(weight)) == 2]
    products = sum((multiply_adds(rows * matrix.numel, inputs, matrix) for matrix in matrices), Cost())
    return products + Cost(elementwise=rows * state_width * gates)


def _backward(forward: Cost, *, weights: bool = True) -> Cost:
    """Count a product per gradient, and twice the gates."""
    return Cost(fma=(1 + weights) * forward.fma, elementwise=2 * forward.elementwise)


def _with_one_state(call: OpCall, gates: int) -> Cost:
    # The weights are the only list; the state is before them, in either form of the call.
    weights_at = next(position for position, value in enumerate(call.inputs) if value.items is not None)
    state, weights = call.inputs[weights_at - 1 : weights_at + 1]
    return _layers(call.inputs[0], weights.items or (), _state_width(state), gates)


def _state_width(state: Value) -> int:
    """Return the width of a state, all levels and directions together.

    The state is `[levels * directions, batch, hidden size]`.
    """
    levels, _, width = shape_of(state)
    return levels * width


def _library_call(call: OpCall, *, mode: int, levels: int, bidirectional: int) -> Cost:
    """Count the forward of a cuDNN or MIOpen layer.

    Args:
        call: the operator call.
        mode: position of the kind of cell; the hidden size always follows it.
        levels: position of the number of levels.
        bidirectional: position of the flag.
    """
    inputs, weights = call.inputs[:2]
    width = call.inputs[mode + 1].constant * call.inputs[levels].constant * (1 + call.inputs[bidirectional].constant)
    return _layers(inputs, weights.items or (), width, _GATES_OF_MODE[call.inputs[mode].constant])
