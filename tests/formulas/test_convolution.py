"""Convolutions: figures by hand with prime sizes, and the same figure from both engines, backward included."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from flopcallback.formulas.cost import Cost
from flopcallback.formulas.op_call import Value
from flopcallback.formulas.registry import Counted, Family, lookup

ones = torch.ones
CONVOLUTIONS = {1: (F.conv1d, F.conv_transpose1d), 2: (F.conv2d, F.conv_transpose2d), 3: (F.conv3d, F.conv_transpose3d)}


def convolution_cost(calls):
    """The sum over convolutions; what stands beside them (`unsqueeze`, `pad`) is left out."""
    found = [call for call in calls if getattr(lookup(call.operator), "family", None) is Family.CONVOLUTION]
    assert found
    return sum((lookup(call.operator).formula(call) for call in found), Cost())


@pytest.mark.parametrize(
    ("function", "inputs", "weight", "options", "multiply_adds"),
    [
        (F.conv1d, (2, 3, 11), (5, 3, 4), {}, 2 * 5 * 8 * (3 * 4)),
        (F.conv1d, (2, 3, 11), (5, 3, 4), {"stride": 2, "padding": 1}, 2 * 5 * 5 * (3 * 4)),
        (F.conv2d, (2, 3, 11, 7), (5, 3, 3, 2), {}, 2 * 5 * (9 * 6) * (3 * 3 * 2)),
        (F.conv2d, (3, 11, 7), (5, 3, 3, 2), {}, 5 * (9 * 6) * (3 * 3 * 2)),
        (F.conv2d, (2, 3, 11, 7), (5, 3, 3, 2), {"dilation": 2}, 2 * 5 * (7 * 5) * (3 * 3 * 2)),
        (F.conv2d, (2, 6, 11, 7), (9, 2, 3, 2), {"groups": 3}, 2 * 9 * (9 * 6) * (2 * 3 * 2)),
        (F.conv2d, (2, 5, 11, 7), (5, 1, 3, 2), {"groups": 5}, 2 * 5 * (9 * 6) * (3 * 2)),
        (F.conv2d, (2, 3, 11, 7), (5, 3, 3, 2), {"padding": "valid"}, 2 * 5 * (9 * 6) * (3 * 3 * 2)),
        (F.conv2d, (2, 3, 11, 7), (5, 3, 3, 1), {"padding": "same"}, 2 * 5 * (11 * 7) * (3 * 3 * 1)),
        (F.conv1d, (3, 11), (5, 3, 3), {"padding": "same", "dilation": 2}, 5 * 11 * (3 * 3)),
        (F.conv3d, (2, 3, 5, 7, 11), (13, 3, 2, 3, 4), {}, 2 * 13 * (4 * 5 * 8) * (3 * 2 * 3 * 4)),
        (F.conv_transpose1d, (2, 3, 11), (3, 5, 4), {"stride": 2}, 2 * 3 * 11 * (5 * 4)),
        (F.conv_transpose1d, (3, 11), (3, 5, 4), {}, 3 * 11 * (5 * 4)),
        (
            F.conv_transpose2d,
            (2, 6, 11, 7),
            (6, 5, 3, 2),
            {"stride": 3, "padding": 1, "output_padding": 2, "groups": 2},
            2 * 6 * (11 * 7) * (5 * 3 * 2),
        ),
        (F.conv_transpose3d, (2, 3, 5, 7, 11), (3, 13, 2, 3, 4), {}, 2 * 3 * (5 * 7 * 11) * (13 * 2 * 3 * 4)),
        (F.conv2d, (0, 3, 11, 7), (5, 3, 3, 2), {}, 0),
    ],
)
def test_a_convolution_counts_its_taps_at_every_position_in_both_engines(
    function, inputs, weight, options, multiply_adds, traced_calls, dispatched_calls
):
    tensors = ones(inputs), ones(weight)
    for engine in traced_calls, dispatched_calls:
        cost = convolution_cost(engine(lambda x, w: function(x, w, **options), *tensors))
        assert cost.flops(fma=1) == multiply_adds
        assert cost.flops(fma=2, elementwise=True) == 2 * multiply_adds


def test_a_bias_is_free(traced_calls):
    tensors = ones(2, 3, 11), ones(5, 3, 4), ones(5)
    assert convolution_cost(traced_calls(F.conv1d, *tensors)) == convolution_cost(traced_calls(F.conv1d, *tensors[:2]))


def test_a_complex_convolution_counts_as_the_three_real_ones_that_run(traced_calls, dispatched_calls):
    tensors = ones(2, 3, 11, dtype=torch.complex64), ones(5, 3, 4, dtype=torch.complex64)
    three = 3 * (2 * 5 * 8 * 3 * 4)
    assert convolution_cost(traced_calls(F.conv1d, *tensors)).fma == three
    assert convolution_cost(dispatched_calls(F.conv1d, *tensors)).fma == three
    with torch.inference_mode():
        assert convolution_cost(dispatched_calls(F.conv1d, *tensors)).fma == three


@pytest.mark.parametrize(
    ("mask", "gradients", "bias"),
    [
        ([True, True, True], 2, 2 * 6 * 8),
        ([False, True, False], 1, 0),
        ([True, False, True], 1, 2 * 6 * 8),
        ([False, False, False], 0, 0),
    ],
)
@pytest.mark.parametrize("transposed", [False, True])
def test_the_backward_counts_the_gradients_that_are_asked_for(mask, gradients, bias, transposed, tensor, op_call):
    source = tensor(2, 3, 11) if not transposed else tensor(2, 3, 5)
    weight = tensor(6, 3, 4) if not transposed else tensor(3, 6, 4)
    call = op_call(
        "aten::convolution_backward",
        *(tensor(2, 6, 8), source, weight),
        *([6], [1], [0], [1], transposed, [0], 1, mask),
    )
    forward = 2 * 6 * 8 * (3 * 4) if not transposed else 2 * 3 * 5 * (6 * 4)
    assert lookup(call.operator).formula(call) == Cost(fma=gradients * forward, elementwise=bias)


@given(data=st.data(), dims=st.integers(1, 3), groups=st.integers(1, 3), transposed=st.booleans())
def test_backward_is_twice_forward_for_any_groups_and_strides(data, dims, groups, transposed, dispatched_calls):
    small = st.integers(1, 3)
    stride, kernel, ins, outs = (data.draw(small) for _ in range(4))
    weight_shape = [groups * ins, outs] if transposed else [groups * outs, ins]
    source = ones([data.draw(small), groups * ins] + [4] * dims, requires_grad=True)
    weight = ones(weight_shape + [kernel] * dims, requires_grad=True)
    function = CONVOLUTIONS[dims][transposed]

    forward = convolution_cost(dispatched_calls(lambda: function(source, weight, stride=stride, groups=groups)))
    loss = function(source, weight, stride=stride, groups=groups).sum()
    assert convolution_cost(dispatched_calls(loss.backward)) == Cost(fma=2 * forward.fma)


def test_a_first_layer_has_no_gradient_of_its_input(dispatched_calls):
    weight = ones(5, 3, 4, requires_grad=True)
    loss = F.conv1d(ones(2, 3, 11), weight).sum()
    assert convolution_cost(dispatched_calls(loss.backward)) == Cost(fma=2 * 5 * 8 * (3 * 4))


def test_a_time_major_convolution_is_one_too(traced_calls, dispatched_calls):
    tensors = ones(11, 2, 3), ones(4, 3, 5), ones(5)
    for engine in traced_calls, dispatched_calls:
        assert convolution_cost(engine(torch.conv_tbc, *tensors)) == Cost(fma=8 * 2 * 5 * (4 * 3))


def test_the_backward_of_a_time_major_convolution_runs_as_two_products_per_tap(dispatched_calls, total_cost):
    tensors = [ones(shape, requires_grad=True) for shape in ((11, 2, 3), (4, 3, 5), (5,))]
    loss = torch.conv_tbc(*tensors).sum()
    assert total_cost(dispatched_calls(loss.backward)).fma == 2 * (8 * 2 * 5 * 4 * 3)


def test_fused_activations_are_elementwise(tensor, op_call):
    operands = tensor(2, 3, 11, 7), tensor(5, 3, 3, 2)
    fused = op_call("aten::cudnn_convolution_relu", *operands, Value(), out=tensor(2, 5, 9, 6))
    outputs = 2 * 5 * 9 * 6
    assert lookup(fused.operator).formula(fused) == Cost(fma=outputs * 3 * 3 * 2, elementwise=outputs)
    fused = op_call("aten::cudnn_convolution_add_relu", *operands, tensor(2, 5, 9, 6), 1, out=tensor(2, 5, 9, 6))
    assert lookup(fused.operator).formula(fused) == Cost(fma=outputs * 3 * 3 * 2, elementwise=2 * outputs)


def test_an_operator_of_one_backend_counts_what_the_general_one_does(traced_calls, dispatched_calls):
    source, weight = ones(2, 3, 11, 7), ones(5, 3, 3, 2)

    def by_backend(x, w):
        return torch.mkldnn_convolution(x, w, None, (0, 0), (1, 1), (1, 1), 1)

    expected = convolution_cost(traced_calls(F.conv2d, source, weight))
    assert convolution_cost(dispatched_calls(by_backend, source, weight)) == expected


def test_under_inference_mode_the_dispatcher_sees_the_function_itself(dispatched_calls):
    source, weight = ones(2, 3, 11), ones(3, 5, 4)
    with torch.inference_mode():
        calls = dispatched_calls(F.conv_transpose1d, source, weight)
    assert isinstance(lookup(calls[-1].operator), Counted)
    assert convolution_cost(calls) == Cost(fma=2 * 3 * 11 * (5 * 4))


def test_a_weight_that_is_not_there_is_an_error_and_not_a_zero(tensor, op_call):
    call = op_call("aten::conv2d", tensor(2, 3, 11, 7), Value(), out=tensor(2, 5, 9, 6))
    with pytest.raises(ValueError, match="expected a tensor"):
        lookup(call.operator).formula(call)
