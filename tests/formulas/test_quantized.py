"""Quantized layers: integers multiply as floats do, and a packed weight that nobody can read is unknown."""

from __future__ import annotations

import pytest
import torch
import torch.ao.nn.quantized as nnq
import torch.ao.nn.quantized.dynamic as nnqd
from torch import nn
from torch.ao.nn.intrinsic.quantized import ConvReLU2d
from torch.utils.mkldnn import to_mkldnn

from flopcallback import FlopCountAnalysis
from flopcallback.formulas.cost import Cost
from flopcallback.formulas.op_call import Value
from flopcallback.formulas.registry import lookup

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")

FLOAT, QUANTIZED = "float", "quantized"
LAYERS = [
    (lambda: nnq.Conv1d(4, 6, 3, groups=2), (2, 4, 11), QUANTIZED, 2 * 6 * 9 * (2 * 3)),
    (lambda: nnq.Conv2d(3, 7, (3, 2), stride=2, padding=1), (2, 3, 11, 7), QUANTIZED, 2 * 7 * (6 * 4) * (3 * 3 * 2)),
    (lambda: ConvReLU2d(3, 7, 3), (1, 3, 8, 8), QUANTIZED, 7 * (6 * 6) * (3 * 3 * 3)),
    (lambda: nnq.Conv3d(2, 3, 2), (1, 2, 5, 4, 3), QUANTIZED, 3 * (4 * 3 * 2) * (2 * 2 * 2 * 2)),
    (lambda: nnq.ConvTranspose1d(4, 6, 3, groups=2, stride=2), (2, 4, 11), QUANTIZED, 2 * 4 * 11 * (3 * 3)),
    (lambda: nnq.ConvTranspose2d(4, 6, (3, 5), groups=2), (2, 4, 7, 5), QUANTIZED, 2 * 4 * (7 * 5) * (3 * 3 * 5)),
    (lambda: nnqd.Conv2d(3, 7, 3), (1, 3, 8, 8), FLOAT, 7 * (6 * 6) * (3 * 3 * 3)),
    (lambda: nnqd.ConvTranspose2d(3, 7, 3), (1, 3, 8, 8), FLOAT, 3 * (8 * 8) * (7 * 3 * 3)),
    (lambda: nnq.Linear(3, 5), (2, 3), QUANTIZED, 2 * 3 * 5),
    (lambda: nnqd.Linear(3, 5), (2, 3), FLOAT, 2 * 3 * 5),
    (lambda: nnqd.LSTMCell(3, 5), (2, 3), FLOAT, 2 * (4 * 5) * (3 + 5)),
    (lambda: nnqd.GRUCell(3, 5), (2, 3), FLOAT, 2 * (3 * 5) * (3 + 5)),
    (lambda: nnqd.RNNCell(3, 5), (2, 3), FLOAT, 2 * 5 * (3 + 5)),
]
IDS = ["conv1d", "conv2d", "conv_relu", "conv3d", "transposed1d", "transposed2d", "dynamic", "dynamic_transposed"]
IDS += ["linear", "dynamic_linear", "lstm_cell", "gru_cell", "rnn_cell"]


@pytest.mark.parametrize(("layer", "size", "kind", "multiply_adds"), LAYERS, ids=IDS)
@pytest.mark.parametrize("engine", ["auto", "dispatch"])
def test_a_quantized_layer_counts_as_one_that_is_not(engine, layer, size, kind, multiply_adds):
    model = layer() if kind == FLOAT else nn.Sequential(nnq.Quantize(0.1, 0, torch.quint8), layer())
    flops = FlopCountAnalysis(model, torch.rand(size), engine=engine)
    assert flops.total() == multiply_adds
    assert flops.hardware_flops()[""] == 2 * multiply_adds
    assert not flops.is_lower_bound


@pytest.mark.parametrize(("layer", "size", "kind", "multiply_adds"), LAYERS[:8], ids=IDS[:8])
def test_records_do_not_have_a_packed_weight_and_say_so(layer, size, kind, multiply_adds):
    model = layer() if kind == FLOAT else nn.Sequential(nnq.Quantize(0.1, 0, torch.quint8), layer())
    flops = FlopCountAnalysis(model, torch.rand(size), engine="observer")
    assert flops.is_lower_bound
    assert any("conv" in operator for operator in flops.unknown_ops())


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32], ids=str)
def test_an_unknown_operator_on_integers_is_no_silent_zero(dtype):
    flops = FlopCountAnalysis(_of_integers, torch.ones(2, 3, dtype=dtype))
    assert flops.is_lower_bound
    assert not FlopCountAnalysis(_of_integers, torch.ones(2, 3, dtype=torch.int64)).is_lower_bound


@torch.library.custom_op("flopcallback_quantized::of_integers", mutates_args=())
def _of_integers(x: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(x.numpy() * 2)


@pytest.mark.parametrize(
    ("operator", "inputs", "result", "multiply_adds"),
    [
        # (input, added, weight, ...) of quantized operators; the packed weight is described as a tensor.
        ("quantized::conv2d_add", [(1, 3, 8, 8), (1, 7, 6, 6), (7, 3, 3, 3), 1.0, 0], (1, 7, 6, 6), 7 * 36 * 27),
        ("onednn::qconv_pointwise", [(1, 3, 8, 8), 1.0, 0, (7, 3, 3, 3), (7,), (7,)], (1, 7, 6, 6), 7 * 36 * 27),
        ("mkldnn::_convolution_pointwise", [(1, 3, 8, 8), (7, 3, 3, 3), (7,)], (1, 7, 6, 6), 7 * 36 * 27),
        ("mkldnn::_convolution_pointwise", [(1, 3, 8, 8), (7, 3, 3, 3), None], (1, 7, 6, 6), 7 * 36 * 27),
        (
            "mkldnn::_convolution_pointwise_",
            [(1, 7, 6, 6), (1, 3, 8, 8), (7, 3, 3, 3), None],
            (1, 7, 6, 6),
            7 * 36 * 27,
        ),
        ("mkldnn::_convolution_transpose_pointwise", [(2, 4, 7, 5), (6, 2, 3, 5), None], (2, 6, 9, 9), 8 * 35 * 45),
        ("mkldnn::_linear_pointwise", [(2, 3), (5, 3), None], (2, 5), 2 * 3 * 5),
        ("onednn::qlinear_pointwise", [(2, 3), 1.0, 0, (3, 5)], (2, 5), 2 * 3 * 5),
        ("quantized::matmul", [(2, 3), (3, 5), 1.0, 0], (2, 5), 2 * 3 * 5),
    ],
)
def test_operators_of_one_backend_count_the_same(operator, inputs, result, multiply_adds, tensor, op_call):
    values = [Value() if each is None else tensor(*each) if isinstance(each, tuple) else each for each in inputs]
    call = op_call(operator, *values, out=tensor(*result))
    assert lookup(operator).formula(call) == Cost(fma=multiply_adds)


def test_a_tensor_in_onednns_layout_has_its_shape():
    layer = to_mkldnn(nn.Linear(3, 5).eval())
    flops = FlopCountAnalysis(lambda x: layer(x.to_mkldnn()).to_dense(), torch.rand(2, 3), engine="dispatch")
    assert flops.total() == 2 * 3 * 5
