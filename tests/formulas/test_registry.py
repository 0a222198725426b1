"""The table: three answers, users' formulas, and what must never be free."""

from __future__ import annotations

import re
import sys

import pytest
import torch
import torch.utils.flop_counter

from flopcallback.formulas.cost import Cost
from flopcallback.formulas.registry import (
    COUNTED,
    FREE,
    Counted,
    Family,
    Free,
    lookup,
    register_formula,
    unregister_formula,
)

ATEN = {schema.name for schema in torch._C._jit_get_all_schemas() if schema.name.startswith("aten::")}


def one_per_element(call):
    return Cost(other=call.inputs[0].numel)


@pytest.fixture
def registered():
    register_formula("mylib::op", one_per_element)
    yield "mylib::op"
    unregister_formula("mylib::op")


@pytest.mark.parametrize(
    ("operator", "family"),
    [
        ("aten::linear", Family.MATMUL),
        ("aten::einsum", Family.MATMUL),
        ("aten::_convolution_mode", Family.CONVOLUTION),
        ("aten::relu", Family.ELEMENTWISE),
    ],
)
def test_a_known_operator_has_a_formula_and_a_family(operator, family):
    assert lookup(operator).family is family


def test_a_free_operator_says_why():
    assert lookup("aten::view") == Free("a view")
    assert lookup("aten::bernoulli_") == Free("random numbers")


@pytest.mark.parametrize(
    "operator",
    [
        *("aten::linalg_matrix_exp", "aten::_sparse_mm", "aten::_sparse_sparse_matmul"),
        *("mylib::op", "prim::PythonOp"),
    ],
)
def test_what_no_one_knows_is_none_and_not_free(operator):
    assert lookup(operator) is None


# What multiplies and has no row, by reason.
WITHOUT_A_ROW = {
    "their work depends on data": """
        _sparse_mm _sparse_sparse_matmul smm hspmm sspaddmm _cslt_sparse_mm
        _cslt_sparse_mm_search
    """,
    "made of operators that the dispatcher sees": """
        _convolution_double_backward conv_tbc_backward _thnn_differentiable_gru_cell_backward
        _thnn_differentiable_lstm_cell_backward
    """,
    "quantized layers as a whole, of a backend that is going away": """
        quantized_gru quantized_gru_cell quantized_lstm quantized_lstm_cell quantized_rnn_relu_cell
        quantized_rnn_tanh_cell _wrapped_linear_prepack _wrapped_quantized_linear_prepacked
        fbgemm_linear_quantize_weight _sparse_semi_structured_linear
    """,
    "run inside of an operator that has a row, where no mode is": """
        convolution_backward_overrideable _slow_conv2d_backward mps_convolution_backward
        mps_convolution_transpose_backward mkldnn_linear_backward_input mkldnn_linear_backward_weights
    """,
    "experiments that no function of torch calls": "_triton_multi_head_attention _triton_scaled_dot_attention",
    "no products": """
        _compute_linear_combination gamma _use_miopen_ctc_loss miopen_ctc_loss
        mkldnn_adaptive_avg_pool2d_backward cudnn_grid_sampler_backward
    """,
}
MULTIPLIES = re.compile(
    r"mm|matmul|mv$|dot|conv|attention|rnn|lstm|gru|linear$|linear_|einsum|addr$|outer|kron|cudnn|mkldnn"
)


def test_whatever_multiplies_by_its_name_has_a_row_or_a_reason():
    """Those of other devices among them: cuDNN, MIOpen, oneDNN, MPS, flash and memory-efficient attention."""
    excepted = {f"aten::{name}" for names in WITHOUT_A_ROW.values() for name in names.split()}
    unknown = {name for name in ATEN if MULTIPLIES.search(name) and lookup(name) is None and "bilinear" not in name}
    assert unknown - excepted == set()
    assert {name for name in excepted if lookup(name) is not None} == set()


@pytest.mark.parametrize(
    ("in_place", "plain"),
    [
        ("aten::addmm_", "aten::addmm"),
        ("aten::relu_", "aten::relu"),
        ("aten::_foreach_add_", "aten::_foreach_add"),
        ("aten::_fused_adamw_", "aten::_fused_adamw"),
        ("aten::squeeze_", "aten::squeeze"),
    ],
)
def test_an_in_place_operator_has_the_row_of_the_plain_one(in_place, plain):
    assert lookup(in_place) is lookup(plain) is not None


def test_a_name_in_double_underscores_is_not_an_in_place_form():
    assert lookup("aten::__and__") == lookup("aten::__iand__") == Free("a comparison or a logical operator")
    assert lookup("aten::__nothing__") is None


def test_no_operator_stands_in_two_places():
    names = [name for rows in COUNTED.values() for name in rows] + list(FREE)
    assert len(names) == len(set(names))


@pytest.mark.skipif(not torch.__version__.startswith("2.13"), reason="names come and go with versions of torch")
def test_every_aten_name_of_the_table_exists():
    names = {name for rows in COUNTED.values() for name in rows} | set(FREE)
    aten = {name for name in names if name.startswith("aten::")}
    assert {name for name in aten if name not in ATEN and f"{name}_" not in ATEN} == set()


def test_nothing_that_multiplies_matrices_is_free():
    products = re.compile(r"(::|_)(b?mm|mv|v?dot|matmul|gemm|linear|conv|einsum|attention|lstm|gru|rnn|bilinear)")
    assert {name for name in FREE if products.search(name)} == {
        "prims::convert_element_type",  # a cast
        # These only rearrange weights.
        "aten::_convert_weight_to_int4pack",
        "aten::_convert_weight_to_int4pack_for_cpu",
        "aten::mkldnn_reorder_conv2d_weight",
        "aten::mkldnn_reorder_conv3d_weight",
        "aten::fbgemm_pack_gemm_matrix_fp16",
        "aten::_cudnn_rnn_flatten_weight",
        "aten::_use_cudnn_rnn_flatten_weight",
        "mkldnn::_reorder_convolution_transpose_weight",
        "mkldnn::_reorder_convolution_weight",
        "mkldnn::_reorder_linear_weight",
        "mkldnn::_reorder_mkldnn_rnn_layer_weight",
        "mkl::_mkl_reorder_linear_weight",
        # No products: "convert", "convolution".
        "aten::_convert_indices_from_coo_to_csr",
        "aten::_convert_indices_from_csr_to_coo",
    }


def test_a_registered_formula_is_found_until_it_is_forgotten(registered):
    assert lookup(registered) == Counted(one_per_element, Family.CUSTOM)
    unregister_formula(registered)
    assert lookup(registered) is None
    register_formula(registered, one_per_element, family=Family.ATTENTION)
    assert lookup(registered).family is Family.ATTENTION


def test_a_second_registration_names_the_operator_and_the_way_out(registered):
    with pytest.raises(ValueError, match=r"'mylib::op' is registered; unregister_formula\('mylib::op'\) first"):
        register_formula("mylib::op", one_per_element)


@pytest.mark.parametrize("operator", ["aten::linear", "aten::view", "aten::relu_"])
def test_a_built_in_row_cannot_be_registered_over(operator):
    with pytest.raises(ValueError, match=rf"'{operator}' has a built-in row; .*set_formula\('{operator}', formula\)"):
        register_formula(operator, one_per_element)


@pytest.mark.parametrize("operator", ["mylib.op", "op", "mylib::op.default", "::op", "mylib::", ""])
def test_a_name_must_be_a_schema_name(operator):
    with pytest.raises(ValueError, match='expected "namespace::name" without overload'):
        register_formula(operator, one_per_element)


def test_a_formula_must_be_callable():
    with pytest.raises(TypeError, match="formula of 'mylib::op' is 7, expected a function of one OpCall"):
        register_formula("mylib::op", 7)


def test_only_what_was_registered_can_be_forgotten():
    with pytest.raises(ValueError, match=r"'aten::linear' is not registered; registered: \[\]"):
        unregister_formula("aten::linear")


@pytest.fixture
def custom_operator():
    library = torch.library.Library("flopcallback_registry_test", "DEF")
    library.define("scaled(Tensor x, Tensor[] weights, *, int times=1) -> Tensor")
    yield torch.ops.flopcallback_registry_test.scaled
    torch.utils.flop_counter.flop_registry.pop(torch.ops.flopcallback_registry_test.scaled, None)
    library._destroy()


def test_what_pytorchs_own_counter_was_told_counts_here_too(custom_operator, tensor, op_call):
    @torch.utils.flop_counter.register_flop_formula(custom_operator)
    def flops(x_shape, weight_shapes, *, times, out_shape, **_):
        (m, k), (n,) = x_shape, out_shape
        return times * 2 * m * k * len(weight_shapes) * n

    name = "flopcallback_registry_test::scaled"
    call = op_call(name, tensor(3, 5), [tensor(2), tensor(2)], 11, out=tensor(7))
    # 2 FLOPs per multiply-add there.
    assert lookup(name).formula(call) == Cost(fma=11 * 3 * 5 * 2 * 7)


def test_an_odd_figure_of_pytorchs_counter_stays_exact(custom_operator, tensor, op_call):
    @torch.utils.flop_counter.register_flop_formula(custom_operator, get_raw=True)
    def flops(x, weights, *, times, out_val, **_):
        return x.numel() + out_val.numel()

    name = "flopcallback_registry_test::scaled"
    cost = lookup(name).formula(op_call(name, tensor(3, 5), [tensor(2)], 1, out=tensor(2)))
    assert cost.flops(fma=2) == 3 * 5 + 2


def test_pytorchs_counter_is_not_asked_where_no_one_has_imported_it(custom_operator, monkeypatch):
    torch.utils.flop_counter.register_flop_formula(custom_operator)(lambda *args, **kwargs: 2)
    assert lookup("flopcallback_registry_test::scaled") is not None
    monkeypatch.delitem(sys.modules, "torch.utils.flop_counter")
    assert lookup("flopcallback_registry_test::scaled") is None
