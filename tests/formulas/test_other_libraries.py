"""Operators of torchvision, bitsandbytes and torchao: by schema, and by the libraries where installed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from flopcallback import FlopCountAnalysis
from flopcallback.formulas.cost import Cost
from flopcallback.formulas.op_call import Value
from flopcallback.formulas.registry import Free, lookup

NONE = Value()


def cost_of(call):
    return lookup(call.operator).formula(call)


# --- torchvision ---


def test_a_deformable_convolution_is_one_and_interpolates_what_it_reads(tensor, op_call):
    positions, taps = 2 * 6 * 5, 4 * 3 * 3
    arguments = (tensor(2, 4, 8, 7), tensor(6, 4, 3, 3), tensor(2, 18, 6, 5), tensor(2, 9, 6, 5), tensor(6))
    options = (1, 1, 0, 0, 1, 1, 1, 1)
    plain = op_call("torchvision::deform_conv2d", *arguments, *options, False, out=tensor(2, 6, 6, 5))
    masked = op_call("torchvision::deform_conv2d", *arguments, *options, True, out=tensor(2, 6, 6, 5))
    assert cost_of(plain) == Cost(fma=positions * 6 * taps, other=4 * positions * taps)
    assert cost_of(masked) == Cost(fma=positions * 6 * taps, other=4 * positions * taps, elementwise=positions * taps)
    backward = op_call("torchvision::_deform_conv2d_backward", tensor(2, 6, 6, 5), *arguments, *options, True)
    assert cost_of(backward).fma == 2 * positions * 6 * taps


def test_groups_of_a_deformable_convolution_read_all_channels_and_multiply_their_own(tensor, op_call):
    arguments = (tensor(2, 4, 8, 7), tensor(6, 2, 3, 3), tensor(2, 18, 6, 5), tensor(2, 9, 6, 5), tensor(6))
    call = op_call("torchvision::deform_conv2d", *arguments, 1, 1, 0, 0, 1, 1, 2, 1, False, out=tensor(2, 6, 6, 5))
    assert cost_of(call) == Cost(fma=(2 * 6 * 5) * 6 * (2 * 9), other=4 * (2 * 6 * 5) * (4 * 9))


def test_a_region_of_interest_is_a_mean_of_interpolated_samples(tensor, op_call):
    features, regions, result = tensor(2, 3, 16, 16), tensor(5, 5), tensor(5, 3, 7, 7)
    outputs = 5 * 3 * 7 * 7
    call = op_call("torchvision::roi_align", features, regions, 0.25, 7, 7, 2, False, out=result)
    assert cost_of(call) == Cost(other=outputs * 4 * 2 * 2)
    call = op_call("torchvision::ps_roi_align", features, regions, 0.25, 7, 7, 2, out=[result, result])
    assert cost_of(call) == Cost(other=outputs * 4 * 2 * 2)
    sizes = (2, 3, 16, 16)
    call = op_call("torchvision::_roi_align_backward", result, regions, 0.25, 7, 7, *sizes, 2, False, out=features)
    assert cost_of(call) == Cost(elementwise=outputs * 4 * 2 * 2)
    call = op_call("torchvision::_ps_roi_align_backward", result, regions, result, 0.25, 7, 7, 2, *sizes, out=features)
    assert cost_of(call) == Cost(elementwise=outputs * 4 * 2 * 2)


def test_what_depends_on_the_sizes_of_regions_is_unknown(tensor, op_call):
    features, regions, result = tensor(2, 3, 16, 16), tensor(5, 5), tensor(5, 3, 7, 7)
    for operator, options in ("roi_align", (-1, False)), ("roi_pool", ()), ("ps_roi_pool", ()):
        call = op_call(f"torchvision::{operator}", features, regions, 0.25, 7, 7, *options, out=result)
        with pytest.raises(ValueError, match="data"):
            cost_of(call)
    assert isinstance(lookup("torchvision::nms"), Free)


# --- bitsandbytes ---


@pytest.mark.parametrize(
    ("operator", "inputs", "multiply_adds"),
    [
        # (input, packed weight, [out, in], ...)
        ("gemm_4bit", [(2, 7, 6), (15, 1), [5, 6], (1,), 64, "nf4"], 2 * 7 * 6 * 5),
        ("gemv_4bit", [(1, 6), (15, 1), [5, 6], (1,), (16,), 64], 6 * 5),
        ("int8_linear_matmul", [(2, 7, 6), (5, 6)], 2 * 7 * 6 * 5),
        ("int8_scaled_mm", [(7, 6), (5, 6), (7,), (5,), None, None], 7 * 6 * 5),
        ("int8_mixed_scaled_mm", [(7, 6), (7, 6), (5, 6), (7,), (5,), None, None], 7 * 6 * 5),
        # The two columns of outliers once more.
        ("int8_mixed_scaled_mm", [(7, 6), (7, 6), (5, 6), (7,), (5,), (2,), None], 7 * 6 * 5 + 7 * 2 * 5),
    ],
)
def test_a_product_of_few_bits_counts_as_any_other(operator, inputs, multiply_adds, tensor, op_call):
    values = [NONE if each is None else tensor(*each) if isinstance(each, tuple) else each for each in inputs]
    assert cost_of(op_call(f"bitsandbytes::{operator}", *values)) == Cost(fma=multiply_adds)


@pytest.mark.parametrize("name", ["quantize_4bit", "quantize_blockwise", "int8_vectorwise_quant", "int8_double_quant"])
def test_quantization_is_elementwise(name, tensor, op_call):
    call = op_call(f"bitsandbytes::{name}", tensor(2, 3), out=[tensor(2, 3, dtype=torch.int8), tensor(2)])
    assert cost_of(call) == Cost(elementwise=4 * 6)


@pytest.mark.parametrize("engine", ["auto", "trace", "dispatch", "observer"])
def test_layers_of_bitsandbytes_count(engine):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    layer = bitsandbytes.nn.Linear4bit(64, 32, bias=False, compute_dtype=torch.float32, quant_type="nf4")
    layer.load_state_dict({"weight": torch.randn(32, 64)})
    model = nn.Sequential(layer.to("cpu"))
    for rows in (1, 3):
        flops = FlopCountAnalysis(model, torch.randn(rows, 64), engine=engine)
        assert flops.total() == rows * 64 * 32
        assert not flops.is_lower_bound


# --- torchao ---


@pytest.mark.parametrize("name", ["quantize_affine", "choose_qparams_affine", "dequantize_affine"])
def test_numbers_of_few_bits_are_elementwise_work(name, tensor, op_call):
    per_element = {"quantize_affine": 4, "choose_qparams_affine": 2, "dequantize_affine": 2}[name]
    assert cost_of(op_call(f"torchao::{name}", tensor(2, 3), out=tensor(2, 3))) == Cost(elementwise=per_element * 6)


@pytest.mark.parametrize("engine", ["auto", "dispatch", "observer"])
def test_quantized_weights_of_torchao_count(engine):
    quantization = pytest.importorskip("torchao.quantization")
    model = nn.Sequential(nn.Linear(64, 32, bias=False))
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    flops = FlopCountAnalysis(model, torch.randn(3, 64), engine=engine)
    assert flops.total() == 3 * 64 * 32
    assert not flops.is_lower_bound


# --- Copies and communication ---


@pytest.mark.parametrize(
    "operator",
    """
    fsdp::all_gather_copy_in fsdp::split_with_sizes_copy fsdp::chunk_cat fsdp::copy_ aten::_coalesce
    aten::_convert_indices_from_coo_to_csr aten::_convert_indices_from_csr_to_coo c10d_functional::all_reduce
    mkldnn::_reorder_linear_weight prim::PythonOp.Redistribute
    """.split(),  # noqa: SIM905 - easier read without quotes
)
def test_a_copy_is_free_whoever_makes_it(operator):
    assert isinstance(lookup(operator), Free)


def test_all_collectives_that_this_torch_has_are_known():
    import torch.distributed._functional_collectives

    names = {schema.name for schema in torch._C._jit_get_all_schemas()}
    collectives = {name for name in names if name.startswith(("_c10d_functional::", "_c10d_functional_autograd::"))}
    assert collectives
    assert {name for name in collectives if lookup(name) is None} == set()
