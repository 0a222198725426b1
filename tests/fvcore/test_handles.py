"""Handles of the original's form: those that come with it, and a user's own."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from flopcallback.fvcore import FlopCountAnalysis, JitModelAnalysis, flop_count_table
from flopcallback.fvcore import jit_handles as handles
from flopcallback.fvcore.activation_count import _DEFAULT_SUPPORTED_OPS as ACTIVATION_HANDLES
from flopcallback.fvcore.flop_count import _DEFAULT_SUPPORTED_OPS as FLOP_HANDLES


@pytest.fixture
def counted(model_of):
    """`counted(handle, "aten::bmm", torch.bmm, x, y)`: what the handle says of that one operator."""

    def count(handle, operator, function, *inputs):
        analysis = JitModelAnalysis(model_of(function), inputs).set_op_handle(operator, handle)
        assert not analysis.unknown_ops()
        return analysis.by_operator()

    return count


def test_addmm(counted):
    inputs = torch.ones(3, 7), torch.ones(3, 5), torch.ones(5, 7)
    assert counted(handles.addmm_flop_jit, "aten::addmm", torch.addmm, *inputs) == {"addmm": 3 * 5 * 7}


def test_linear_of_any_rank(counted):
    inputs = torch.ones(2, 3, 5), torch.ones(7, 5)
    assert counted(handles.linear_flop_jit, "aten::linear", F.linear, *inputs) == {"linear": 2 * 3 * 5 * 7}


def test_bmm(counted):
    inputs = torch.ones(2, 3, 5), torch.ones(2, 5, 7)
    assert counted(handles.bmm_flop_jit, "aten::bmm", torch.bmm, *inputs) == {"bmm": 2 * 3 * 5 * 7}


def test_matmul_with_broadcasting(counted):
    inputs = torch.ones(2, 1, 3, 5), torch.ones(11, 5, 7)
    assert counted(handles.matmul_flop_jit, "aten::matmul", torch.matmul, *inputs) == {"matmul": 2 * 11 * 3 * 5 * 7}


def test_einsum(counted):
    def contract(x, y):
        return torch.einsum("bij, bjk -> bik", x, y)

    inputs = torch.ones(2, 3, 5), torch.ones(2, 5, 7)
    assert counted(handles.einsum_flop_jit, "aten::einsum", contract, *inputs) == {"einsum": 2 * 3 * 5 * 7}


def test_convolution_is_named_conv(counted):
    inputs = torch.ones(2, 6, 11), torch.ones(9, 2, 5)
    expected = {"conv": 2 * 9 * 2 * 5 * (11 - 5 + 1)}
    assert (
        counted(handles.conv_flop_jit, "aten::_convolution", lambda x, w: F.conv1d(x, w, groups=3), *inputs) == expected
    )


def test_transposed_convolution(counted):
    inputs = torch.ones(2, 6, 11), torch.ones(6, 3, 5)
    expected = {"conv": 2 * 6 * 3 * 5 * 11}
    assert counted(handles.conv_flop_jit, "aten::_convolution", F.conv_transpose1d, *inputs) == expected


def test_convolution_by_shapes():
    assert handles.conv_flop_count([2, 6, 11], [9, 2, 5], [2, 9, 7]) == 2 * (9 * 2 * 5) * 7
    assert handles.conv_flop_count([2, 6, 11], [6, 3, 5], [2, 3, 15], transposed=True) == 2 * (6 * 3 * 5) * 11


@pytest.mark.parametrize(("training", "per_element"), [(False, 1), (True, 4)])
def test_batch_norm_costs_one_more_with_a_weight(counted, training, per_element):
    mean, variance = torch.zeros(3), torch.ones(3)

    def plain(x):
        return F.batch_norm(x, mean, variance, training=training)

    def weighted(x, weight):
        return F.batch_norm(x, mean, variance, weight, training=training)

    x, weight = torch.rand(5, 3, 7), torch.ones(3)
    numel = 5 * 3 * 7
    assert counted(handles.batchnorm_flop_jit, "aten::batch_norm", plain, x) == {"batch_norm": per_element * numel}
    with_weight = counted(handles.batchnorm_flop_jit, "aten::batch_norm", weighted, x, weight)
    assert with_weight == {"batch_norm": (per_element + 1) * numel}


def test_norms_by_the_position_of_their_weight(counted):
    layer_norm = handles.norm_flop_counter(2)
    assert counted(layer_norm, "aten::layer_norm", lambda x: F.layer_norm(x, (7,)), torch.ones(7)) == {
        "layer_norm": 4 * 7
    }
    inputs = torch.ones(2, 3, 7), torch.ones(7)
    weighted = counted(layer_norm, "aten::layer_norm", lambda x, w: F.layer_norm(x, (7,), w), *inputs)
    assert weighted == {"layer_norm": 5 * 2 * 3 * 7}


def test_elementwise_by_input_and_output(counted):
    handle = handles.elementwise_flop_counter(2, 3)
    assert counted(handle, "aten::sum", lambda x: x.sum(0), torch.ones(5, 7)) == {"sum": 2 * 5 * 7 + 3 * 7}
    assert counted(handles.elementwise_flop_counter(), "aten::relu", F.relu, torch.ones(5)) == {"relu": 5}


def test_activations_under_the_operators_own_name_or_another(counted):
    inputs = torch.ones(3, 5), torch.ones(5, 7)
    assert counted(handles.generic_activation_jit(), "aten::mm", torch.mm, *inputs) == {"mm": 3 * 7}
    assert counted(handles.generic_activation_jit("product"), "aten::mm", torch.mm, *inputs) == {"product": 3 * 7}


def test_the_shape_of_what_is_no_tensor_is_none(counted):
    def shapes(inputs, outputs):
        # layer_norm(input, normalized_shape, weight, bias, eps, cudnn_enable)
        assert [handles.get_shape(value) for value in inputs] == [[3, 7], None, [7], None, None, None]
        assert handles.get_shape(outputs[0]) == [3, 7]
        return 1

    def norm(x, weight):
        return F.layer_norm(x, (7,), weight)

    assert counted(shapes, "aten::layer_norm", norm, torch.ones(3, 7), torch.ones(7)) == {"layer_norm": 1}


def test_an_activation_of_what_is_no_tensor_says_what_it_is(model_of):
    analysis = JitModelAnalysis(model_of(F.relu), torch.ones(3)).set_op_handle(
        "aten::relu", lambda inputs, outputs: handles.generic_activation_jit()(outputs, [None])
    )
    assert analysis.total() == 0
    assert set(analysis.unknown_ops()) == {"aten::relu"}


def test_the_default_handles_on_a_bare_analysis_count_as_the_flop_count_does():
    model = nn.Sequential(
        nn.Conv2d(3, 5, 3, padding="same"), nn.GroupNorm(5, 5), nn.Flatten(), nn.Linear(5 * 7 * 7, 11)
    )
    inputs = torch.ones(2, 3, 7, 7)
    by_handles = JitModelAnalysis(model, inputs).set_op_handle(**FLOP_HANDLES)
    assert by_handles.by_module_and_operator() == FlopCountAnalysis(model, inputs).by_module_and_operator()
    expected = {"conv": 2 * 5 * 3 * 3 * 3 * 7 * 7, "group_norm": 5 * 2 * 5 * 7 * 7, "linear": 2 * 5 * 7 * 7 * 11}
    assert by_handles.by_operator() == expected


def test_the_default_activation_handles_on_a_bare_analysis():
    analysis = JitModelAnalysis(nn.LSTM(3, 5), torch.ones(7, 2, 3)).set_op_handle(**ACTIVATION_HANDLES)
    assert analysis.by_operator() == {"lstm": 7 * 2 * 5}


def test_a_subclass_with_handles_of_its_own_is_an_analysis_like_the_two():
    class OutputCount(JitModelAnalysis):
        def __init__(self, model, inputs):
            super().__init__(model=model, inputs=inputs)
            self.set_op_handle("aten::linear", handles.generic_activation_jit())

    outputs = OutputCount(nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 11)), torch.ones(3, 5))
    assert outputs.by_module() == {"": 3 * 7 + 3 * 11, "0": 3 * 7, "1": 3 * 11}
    assert type(outputs.copy()) is OutputCount
    assert "54" in flop_count_table(outputs)


def test_handles_hold_where_the_tracer_cannot_work():
    # Fake tensors go to the dispatcher, which has no graph whose values could be handed on.
    with FakeTensorMode():
        analysis = JitModelAnalysis(nn.Linear(5, 7), torch.ones(3, 5))
        analysis.set_op_handle("aten::addmm", handles.addmm_flop_jit)
        assert analysis.engine == "dispatch"
        assert analysis.by_operator() == {"addmm": 3 * 5 * 7}


def test_a_handle_may_count_under_several_names(counted):
    def both(inputs, outputs):
        return Counter(products=105, sums=21)

    inputs = torch.ones(3, 5), torch.ones(5, 7)
    assert counted(both, "aten::mm", torch.mm, *inputs) == {"products": 105, "sums": 21}


@pytest.mark.parametrize("kind", ["float", "int64", "float64"])
def test_whole_numbers_of_any_type_become_exact_ints(counted, kind):
    number = 21.0 if kind == "float" else getattr(pytest.importorskip("numpy"), kind)(21)
    total = counted(lambda inputs, outputs: number, "aten::mm", torch.mm, torch.ones(3, 5), torch.ones(5, 7))["mm"]
    assert (total, type(total)) == (21, int)


def test_a_handle_for_an_autograd_function_goes_before_what_runs_inside():
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x @ x

        @staticmethod
        def backward(ctx, grad):
            return grad

    class Model(nn.Module):
        def forward(self, x):
            return Double.apply(x)

    analysis = FlopCountAnalysis(Model(), torch.ones(5, 5))
    assert analysis.by_operator() == {"mm": 5 * 5 * 5}
    analysis.set_op_handle("prim::PythonOp.Double", lambda inputs, outputs: 42)
    assert analysis.by_operator() == {"PythonOp.Double": 42}


def test_new_handles_change_results_that_were_asked_for_before():
    analysis = FlopCountAnalysis(nn.Linear(5, 7), torch.ones(3, 5))
    assert analysis.total() == 3 * 5 * 7
    assert analysis.set_op_handle("aten::linear", lambda inputs, outputs: 11).total() == 11
    assert analysis.clear_op_handles().total() == 0


def test_a_name_without_a_handle_is_an_error():
    with pytest.raises(TypeError, match="'aten::bmm' is a name without function"):
        FlopCountAnalysis(nn.Identity(), ()).set_op_handle("aten::mm", None, "aten::bmm")


def test_a_handle_that_raises_leaves_the_others_standing():
    model = nn.Sequential(nn.Linear(5, 7), nn.Sigmoid())
    analysis = FlopCountAnalysis(model, torch.ones(3, 5)).set_op_handle("aten::sigmoid", lambda inputs, outputs: 1 / 0)
    assert analysis.total() == 3 * 5 * 7
    assert "division by zero" in analysis.unknown_reasons()["aten::sigmoid"]
    assert "105" in flop_count_table(analysis)
