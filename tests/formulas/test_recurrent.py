"""Recurrent layers and cells: every matrix once per time step, by hand, in both engines."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from flopcallback.formulas import recurrent

# The tracer sees `nn.LSTM` and its kin compare the sizes of their inputs.
pytestmark = pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")

GATES = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}
ELEMENTWISE = {nn.LSTM: 13, nn.GRU: 10, nn.RNN: 2}


@pytest.fixture(scope="module")
def both_engines(traced_calls, dispatched_calls, total_cost):
    """The cost as traced, after a check that what really runs adds up to the same, elementwise work included."""

    def count(module, *inputs):
        module.requires_grad_(False)
        traced, dispatched = total_cost(traced_calls(module, *inputs)), total_cost(dispatched_calls(module, *inputs))
        assert traced == dispatched
        return traced

    return count


class OnPackedBatch(nn.Module):
    """A layer on a packed batch of the rows given; the tracer cannot follow the packing itself."""

    def __init__(self, layer, lengths):
        super().__init__()
        self.layer = layer
        self.sizes = pack_padded_sequence(torch.rand(max(lengths), len(lengths), 1), torch.tensor(lengths)).batch_sizes

    def forward(self, rows):
        return self.layer(PackedSequence(rows, self.sizes))[0].data


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU, nn.RNN])
class TestLayers:
    def test_take_inputs_and_hidden_state_through_every_gate(self, both_engines, layer):
        cost = both_engines(layer(5, 7), torch.rand(11, 3, 5))
        assert cost.flops() == 11 * 3 * GATES[layer] * 7 * (5 + 7)
        assert cost.flops(fma=2) == 2 * 11 * 3 * GATES[layer] * 7 * (5 + 7)
        assert cost.elementwise == 11 * 3 * 7 * ELEMENTWISE[layer]

    def test_feed_both_directions_into_the_next_level(self, both_engines, layer):
        cost = both_engines(layer(5, 7, num_layers=2, bidirectional=True), torch.rand(11, 3, 5))
        assert cost.fma == 11 * 3 * GATES[layer] * 7 * (2 * (5 + 7) + 2 * (2 * 7 + 7))
        assert cost.elementwise == 11 * 3 * 4 * 7 * ELEMENTWISE[layer]

    def test_cost_the_same_with_the_batch_first_and_without_biases(self, both_engines, layer):
        cost = both_engines(layer(5, 7, batch_first=True, bias=False), torch.rand(3, 11, 5))
        assert cost.fma == 11 * 3 * GATES[layer] * 7 * (5 + 7)

    def test_take_one_sequence_without_a_batch(self, both_engines, layer):
        assert both_engines(layer(5, 7), torch.rand(11, 5)).fma == 11 * GATES[layer] * 7 * (5 + 7)

    def test_count_no_padding_of_a_packed_batch(self, both_engines, layer):
        module = OnPackedBatch(layer(5, 7, num_layers=2, bidirectional=True), lengths=[11, 4, 2])
        cost = both_engines(module, torch.rand(11 + 4 + 2, 5))
        assert cost.fma == (11 + 4 + 2) * GATES[layer] * 7 * (2 * (5 + 7) + 2 * (2 * 7 + 7))
        assert cost.elementwise == (11 + 4 + 2) * 4 * 7 * ELEMENTWISE[layer]

    def test_are_nothing_for_an_empty_batch(self, both_engines, layer):
        assert both_engines(layer(5, 7), torch.rand(11, 0, 5)).flops(elementwise=True) == 0


class TestVariants:
    @pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
    def test_a_projection_narrows_the_hidden_state(self, both_engines):
        cost = both_engines(nn.LSTM(5, 7, num_layers=2, bidirectional=True, proj_size=2), torch.rand(11, 3, 5))
        first, second = 4 * 7 * (5 + 2) + 7 * 2, 4 * 7 * (2 * 2 + 2) + 7 * 2
        assert cost.fma == 11 * 3 * 2 * (first + second)
        assert cost.elementwise == 11 * 3 * 4 * 7 * 13

    def test_relu_costs_what_tanh_does(self, both_engines):
        cost = both_engines(nn.RNN(5, 7, nonlinearity="relu"), torch.rand(11, 3, 5))
        assert (cost.fma, cost.elementwise) == (11 * 3 * 7 * (5 + 7), 11 * 3 * 7 * 2)

    def test_dropout_between_levels_changes_nothing(self, traced_calls, total_cost):
        module = nn.LSTM(5, 7, num_layers=2, dropout=0.5).requires_grad_(False)
        cost = total_cost(traced_calls(module, torch.rand(11, 3, 5)))
        assert cost.fma == 11 * 3 * 4 * 7 * ((5 + 7) + (7 + 7))
        assert cost.elementwise == 11 * 3 * 2 * 7 * 13

    @pytest.mark.parametrize(
        ("cell", "gates", "elementwise"), [(nn.LSTMCell, 4, 13), (nn.GRUCell, 3, 10), (nn.RNNCell, 1, 2)]
    )
    @pytest.mark.parametrize("batch", [(3,), ()])
    def test_a_cell_is_one_step_of_its_layer(self, both_engines, cell, gates, elementwise, batch):
        cost = both_engines(cell(5, 7), torch.rand(*batch, 5))
        rows = torch.Size(batch).numel()
        assert (cost.fma, cost.elementwise) == (rows * gates * 7 * (5 + 7), rows * 7 * elementwise)

    @pytest.mark.parametrize(
        ("formula", "gates", "elementwise"),
        [(recurrent.lstm_cell, 4, 13), (recurrent.gru_cell, 3, 10), (recurrent.rnn_cell, 1, 2)],
    )
    def test_a_cell_recorded_whole_costs_the_same(self, op_call, tensor, formula, gates, elementwise):
        state = [tensor(3, 7), tensor(3, 7)] if formula is recurrent.lstm_cell else tensor(3, 7)
        weights = tensor(gates * 7, 5), tensor(gates * 7, 7), tensor(gates * 7), tensor(gates * 7)
        cost = formula(op_call("aten::cell", tensor(3, 5), state, *weights, out=tensor(3, 7)))
        assert (cost.fma, cost.elementwise) == (3 * gates * 7 * (5 + 7), 3 * 7 * elementwise)

    @settings(max_examples=15, deadline=None)
    @given(
        lengths=st.lists(st.integers(1, 4), min_size=1, max_size=3).map(lambda lengths: sorted(lengths, reverse=True)),
        levels=st.integers(1, 2),
        directions=st.integers(1, 2),
        projection=st.integers(0, 2),
        layer=st.sampled_from([nn.LSTM, nn.GRU, nn.RNN]),
    )
    @pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
    def test_any_packed_batch_does_its_sequences_steps(
        self, both_engines, lengths, levels, directions, projection, layer
    ):
        options = {"proj_size": projection} if layer is nn.LSTM else {}
        state = options.get("proj_size") or 7
        module = layer(5, 7, num_layers=levels, bidirectional=directions == 2, **options)
        cost = both_engines(OnPackedBatch(module, lengths), torch.rand(sum(lengths), 5))
        gates = GATES[layer] * 7 * (5 + state) + (levels - 1) * GATES[layer] * 7 * (directions * state + state)
        projections = levels * 7 * options.get("proj_size", 0)
        assert cost.fma == sum(lengths) * directions * (gates + projections)


class TestBackward:
    def test_of_a_fused_level_is_two_products_for_every_one(self, dispatched_calls, total_cost):
        module = nn.LSTM(5, 7, num_layers=2, bidirectional=True)
        calls = dispatched_calls(lambda x: module(x)[0].sum().backward(), torch.rand(11, 3, 5))
        backward = [call for call in calls if call.operator == "aten::mkldnn_rnn_layer_backward"]
        assert len(backward) == 4
        forward = 11 * 3 * 4 * 7 * (2 * (5 + 7) + 2 * (2 * 7 + 7))
        assert total_cost(backward).fma == 2 * forward
        assert total_cost(backward).elementwise == 2 * 11 * 3 * 4 * 7 * 13

    def test_of_an_unfused_layer_is_two_products_for_every_one(self, dispatched_calls, total_cost):
        module = nn.GRU(5, 7)
        calls = dispatched_calls(lambda x: module(x)[0].sum().backward(), torch.rand(11, 3, 5, requires_grad=True))
        # Of the 11 gradients of the hidden state, the one for the initial state is not asked for.
        hidden = 3 * 3 * 7 * 7
        assert total_cost(calls).fma == 3 * 11 * 3 * 3 * 7 * (5 + 7) - hidden


def weights(tensor, gates, levels=2, directions=2, hidden=7, inputs=5):
    """Of a bidirectional layer: `w_ih, w_hh, b_ih, b_hh` for each level and direction."""
    found = []
    for level in range(levels):
        width = inputs if level == 0 else directions * hidden
        for _ in range(directions):
            gate = gates * hidden
            found += [tensor(gate, width), tensor(gate, hidden), tensor(gate), tensor(gate)]
    return found


@pytest.mark.parametrize(
    ("mode", "gates", "elementwise"),
    [(0, 1, 2), (1, 1, 2), (2, 4, 13), (3, 3, 10)],
    ids=["relu", "tanh", "lstm", "gru"],
)
class TestLibrariesOfOtherDevices:
    def products(self, rows, gates):
        return rows * gates * 7 * (2 * (5 + 7) + 2 * (2 * 7 + 7))

    def test_cudnn(self, op_call, tensor, total_cost, mode, gates, elementwise):
        state = tensor(4, 3, 7)
        head = tensor(11, 3, 5), weights(tensor, gates), 4, tensor(999), state, state
        call = op_call("aten::_cudnn_rnn", *head, mode, 7, 0, 2, False, 0.0, True, True, [], None)
        cost = total_cost([call])
        assert cost.flops() == self.products(11 * 3, gates)
        assert cost.flops(fma=2) == 2 * self.products(11 * 3, gates)
        assert cost.elementwise == 11 * 3 * 4 * 7 * elementwise

    def test_cudnn_with_a_packed_batch(self, op_call, tensor, total_cost, mode, gates, elementwise):
        state = tensor(4, 3, 7)
        head = tensor(17, 5), weights(tensor, gates), 4, tensor(999), state, state
        call = op_call("aten::_cudnn_rnn", *head, mode, 7, 0, 2, False, 0.0, True, True, [3, 3, 2], None)
        assert total_cost([call]).fma == self.products(17, gates)

    @pytest.mark.parametrize(("wants_weights", "factor"), [(True, 2), (False, 1)])
    def test_cudnn_backward(self, op_call, tensor, total_cost, mode, gates, elementwise, wants_weights, factor):
        state, out, mask = tensor(4, 3, 7), tensor(11, 3, 14), [True, False, False, wants_weights]
        head = tensor(11, 3, 5), weights(tensor, gates), 4, tensor(999), state, state, out, out, None, None
        rest = mode, 7, 0, 2, False, 0.0, True, True, [], None, tensor(99), mask
        cost = total_cost([op_call("aten::_cudnn_rnn_backward", *head, *rest)])
        assert cost.fma == factor * self.products(11 * 3, gates)
        assert cost.elementwise == 2 * 11 * 3 * 4 * 7 * elementwise

    def test_miopen(self, op_call, tensor, total_cost, mode, gates, elementwise):
        state = tensor(4, 3, 7)
        head = tensor(11, 3, 5), weights(tensor, gates), 4, state, state
        cost = total_cost([op_call("aten::miopen_rnn", *head, mode, 7, 2, False, 0.0, True, True, [], None)])
        assert (cost.fma, cost.elementwise) == (self.products(11 * 3, gates), 11 * 3 * 4 * 7 * elementwise)

    def test_miopen_backward(self, op_call, tensor, total_cost, mode, gates, elementwise):
        state, out = tensor(4, 3, 7), tensor(11, 3, 14)
        head = tensor(11, 3, 5), weights(tensor, gates), 4, tensor(999), state, state, out, out, None, None
        rest = mode, 7, 2, False, 0.0, True, True, [], None, tensor(99), [True] * 4
        cost = total_cost([op_call("aten::miopen_rnn_backward", *head, *rest)])
        assert (cost.fma, cost.elementwise) == (2 * self.products(11 * 3, gates), 2 * 11 * 3 * 4 * 7 * elementwise)


class TestMetal:
    def test_forward_and_backward(self, op_call, tensor, total_cost):
        states, rest = [tensor(4, 3, 7), tensor(4, 3, 7)], (True, 2, 0.0, True, True, False)
        inputs, out = tensor(11, 3, 5), tensor(11, 3, 14)
        forward = op_call("aten::_lstm_mps", inputs, states, weights(tensor, 4), *rest, out=out)
        gradients = out, None, None, tensor(1), tensor(1), inputs, tensor(1), states, weights(tensor, 4)
        backward = op_call("aten::lstm_mps_backward", *gradients, *rest, out=inputs)
        products = 11 * 3 * 4 * 7 * (2 * (5 + 7) + 2 * (2 * 7 + 7))
        assert [total_cost([call]).fma for call in (forward, backward)] == [products, 2 * products]


def test_fused_cells_are_gates_alone(op_call, tensor, total_cost):
    gates, cell = tensor(3, 28), tensor(3, 7)
    fused = [
        op_call("aten::_thnn_fused_lstm_cell", gates, gates, cell, None, None, out=[cell, cell, gates]),
        op_call("aten::_thnn_fused_gru_cell", tensor(3, 21), tensor(3, 21), cell, None, None, out=[cell, gates]),
        op_call("aten::_thnn_fused_lstm_cell_backward_impl", cell, None, cell, cell, gates, True, out=[gates]),
        op_call("aten::_thnn_fused_gru_cell_backward", cell, gates, True, out=[gates]),
    ]
    costs = [total_cost([call]) for call in fused]
    assert [cost.flops() for cost in costs] == [0, 0, 0, 0]
    assert [cost.elementwise for cost in costs] == [3 * 7 * 13, 3 * 7 * 10, 2 * 3 * 7 * 13, 2 * 3 * 7 * 10]
