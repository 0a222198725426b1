"""Matrix products: figures by hand, and the same figure from the tracer's one node and the dispatcher's parts."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from flopcallback import FlopCountAnalysis
from flopcallback.counting.verification import Difference
from flopcallback.formulas.cost import Cost
from flopcallback.formulas.op_call import Value
from flopcallback.formulas.registry import Family, lookup

ones = torch.ones
sizes = st.integers(0, 5)


def fma_of(call):
    entry = lookup(call.operator)
    assert entry.family is Family.MATMUL
    return entry.formula(call).fma


@pytest.mark.parametrize(
    ("operator", "inputs", "output", "multiply_adds"),
    [
        ("mm", [(3, 5), (5, 7)], (3, 7), 3 * 5 * 7),
        ("bmm", [(2, 3, 5), (2, 5, 7)], (2, 3, 7), 2 * 3 * 5 * 7),
        ("addmm", [(7,), (3, 5), (5, 7)], (3, 7), 3 * 5 * 7),
        ("baddbmm", [(7,), (2, 3, 5), (2, 5, 7)], (2, 3, 7), 2 * 3 * 5 * 7),
        ("addbmm", [(3, 7), (2, 3, 5), (2, 5, 7)], (3, 7), 2 * 3 * 5 * 7),
        ("mv", [(3, 5), (5,)], (3,), 3 * 5),
        ("addmv", [(3,), (3, 5), (5,)], (3,), 3 * 5),
        ("dot", [(11,), (11,)], (), 11),
        ("vdot", [(11,), (11,)], (), 11),
        ("inner", [(2, 3, 5), (7, 5)], (2, 3, 7), 2 * 3 * 7 * 5),
        ("addr", [(3, 5), (3,), (5,)], (3, 5), 3 * 5),
        ("linear", [(2, 3, 5), (7, 5)], (2, 3, 7), 2 * 3 * 5 * 7),
        ("linear", [(5,), (7, 5)], (7,), 5 * 7),
        ("linear", [(2, 5), (5,)], (2,), 2 * 5),
        ("matmul", [(3, 5), (5, 7)], (3, 7), 3 * 5 * 7),
        ("matmul", [(5,), (5,)], (), 5),
        ("matmul", [(5,), (2, 5, 7)], (2, 7), 2 * 5 * 7),
        ("matmul", [(2, 3, 5), (5,)], (2, 3), 2 * 3 * 5),
        ("matmul", [(1, 3, 5), (11, 5, 7)], (11, 3, 7), 11 * 3 * 5 * 7),
        ("matmul", [(2, 1, 3, 5), (11, 5, 7)], (2, 11, 3, 7), 2 * 11 * 3 * 5 * 7),
        ("cov", [(3, 5)], (3, 3), 3 * 5 * 3),
        ("cov", [(5,)], (), 5),
    ],
)
def test_a_product_counts_rows_by_contracted_by_columns(operator, inputs, output, multiply_adds, tensor, op_call):
    call = op_call(f"aten::{operator}", *(tensor(*shape) for shape in inputs), out=tensor(*output))
    cost = lookup(call.operator).formula(call)
    assert cost.flops(fma=1) == multiply_adds
    assert cost.flops(fma=2) == 2 * multiply_adds


@pytest.mark.parametrize(
    ("operator", "inputs", "output", "multiplications"),
    [
        ("inner", [(2, 3, 5), ()], (2, 3, 5), 2 * 3 * 5),
        ("outer", [(3,), (5,)], (3, 5), 3 * 5),
        ("ger", [(3,), (5,)], (3, 5), 3 * 5),
        ("kron", [(2, 3), (5, 7)], (10, 21), 2 * 3 * 5 * 7),
    ],
)
def test_a_product_that_sums_nothing_has_no_multiply_add(operator, inputs, output, multiplications, tensor, op_call):
    for dtype, operations in (torch.float32, 1), (torch.complex64, 6):
        factors = [tensor(*shape, dtype=dtype) for shape in inputs]
        call = op_call(f"aten::{operator}", *factors, out=tensor(*output, dtype=dtype))
        assert lookup(call.operator).formula(call) == Cost(other=operations * multiplications)


def test_a_bias_is_free_and_an_activation_is_elementwise(tensor, op_call):
    plain = op_call("aten::linear", tensor(3, 5), tensor(7, 5), Value(), out=tensor(3, 7))
    biased = op_call("aten::linear", tensor(3, 5), tensor(7, 5), tensor(7), out=tensor(3, 7))
    assert fma_of(plain) == fma_of(biased) == 3 * 5 * 7
    fused = op_call("aten::_addmm_activation", tensor(7), tensor(3, 5), tensor(5, 7), 1, 1, True, out=tensor(3, 7))
    assert lookup(fused.operator).formula(fused) == Cost(fma=3 * 5 * 7, elementwise=3 * 7)


@pytest.mark.parametrize(
    ("left", "right", "real_operations"),
    [
        (torch.float64, torch.float64, 1),
        (torch.complex64, torch.float32, 2),
        (torch.float32, torch.complex64, 2),
        (torch.complex64, torch.complex64, 4),
    ],
)
def test_a_complex_product_counts_its_real_multiply_adds(left, right, real_operations, tensor, op_call):
    call = op_call("aten::mm", tensor(3, 5, dtype=left), tensor(5, 7, dtype=right), out=tensor(3, 7, dtype=left))
    assert fma_of(call) == real_operations * 3 * 5 * 7


def test_integer_products_count_as_floating_point_ones(tensor, op_call):
    left, right = tensor(3, 5, dtype=torch.int8), tensor(5, 7, dtype=torch.int8)
    assert fma_of(op_call("aten::_int_mm", left, right, out=tensor(3, 7, dtype=torch.int32))) == 3 * 5 * 7


def test_two_four_bit_numbers_share_an_element_of_the_contracted_dimension(tensor, op_call):
    eight_bit = [tensor(3, 16, dtype=torch.float8_e4m3fn), tensor(16, 7, dtype=torch.float8_e4m3fn)]
    assert fma_of(op_call("aten::_scaled_mm", *eight_bit, tensor(), tensor(), out=tensor(3, 7))) == 3 * 16 * 7
    four_bit = [tensor(3, 16, dtype=torch.float4_e2m1fn_x2), tensor(16, 7, dtype=torch.float4_e2m1fn_x2)]
    assert fma_of(op_call("aten::_scaled_mm", *four_bit, tensor(), tensor(), out=tensor(3, 7))) == 3 * 32 * 7


@pytest.mark.parametrize(
    ("left", "right", "multiply_adds"),
    [
        ((11, 5), (2, 5, 7), 11 * 5 * 7),
        ((2, 3, 5), (5, 11), 3 * 5 * 11),
        ((3, 11), (11, 7), 3 * 11 * 7),
        ((2, 3, 5), (2, 5, 7), 2 * 3 * 5 * 7),
    ],
    ids=["groups of rows", "groups of columns", "groups of the contracted dimension", "a batch"],
)
def test_a_grouped_product_uses_each_row_with_its_group_alone(left, right, multiply_adds, tensor, op_call):
    assert fma_of(op_call("aten::_grouped_mm", tensor(*left), tensor(*right), tensor(2))) == multiply_adds


def test_a_packed_weight_is_read_off_the_result(tensor, op_call):
    call = op_call("aten::_weight_int8pack_mm", tensor(3, 5), tensor(7, 5), tensor(7), out=tensor(3, 7))
    assert fma_of(call) == 3 * 5 * 7
    call = op_call("quantized::linear", tensor(2, 3, 5), "packed", 1.0, 0, out=tensor(2, 3, 7))
    assert fma_of(call) == 2 * 3 * 5 * 7


def test_lists_of_products_add_up(tensor, op_call):
    call = op_call("aten::_foreach_mm", [tensor(2, 3), tensor(5, 7)], [tensor(3, 11), tensor(7, 13)])
    assert fma_of(call) == 2 * 3 * 11 + 5 * 7 * 13
    with pytest.raises(ValueError, match="expected a list of tensors"):
        fma_of(op_call("aten::_foreach_mm", Value(), Value()))


@pytest.mark.parametrize(
    ("mask", "products", "bias"),
    [((True, True, True), 2, 3 * 7), ((False, True, False), 1, 0), ((False, False, True), 0, 3 * 7)],
)
def test_the_backward_of_a_linear_layer_follows_its_mask(mask, products, bias, tensor, op_call):
    call = op_call("aten::linear_backward", tensor(3, 5), tensor(3, 7), tensor(7, 5), list(mask))
    assert lookup(call.operator).formula(call) == Cost(fma=products * 3 * 5 * 7, elementwise=bias)


def test_the_backward_of_a_product_counts_one_for_each_gradient(tensor, op_call):
    grad, source, weight = tensor(2, 3, 5), tensor(2, 3, 7), tensor(7, 5)
    product = 2 * 3 * 5 * 7
    for mask, products in ([True, True], 2), ([False, True], 1):
        call = op_call("aten::matmul_backward", grad, source, weight, mask, out=[source, weight])
        assert fma_of(call) == products * product


def test_a_factor_with_two_of_four_elements_stored_does_half_of_the_work(tensor, op_call):
    half, where = tensor(6, 4), tensor(6, 1, dtype=torch.int16)
    mm = op_call("aten::_sparse_semi_structured_mm", half, where, tensor(8, 5), out=tensor(6, 5))
    addmm = op_call("aten::_sparse_semi_structured_addmm", tensor(6, 5), half, where, tensor(8, 5), out=tensor(6, 5))
    assert fma_of(mm) == fma_of(addmm) == 6 * 8 * 5 // 2


def test_bilinear_multiplies_one_side_with_the_weight_and_then_with_the_other(tensor, op_call):
    call = op_call("aten::bilinear", tensor(2, 3, 5), tensor(2, 3, 7), tensor(11, 5, 7), Value(), out=tensor(2, 3, 11))
    assert fma_of(call) == 2 * 3 * 11 * (5 * 7 + 7)


def test_a_chain_takes_the_cheapest_order(tensor, op_call):
    chain = [tensor(10, 100), tensor(100, 5), tensor(5, 50)]
    assert fma_of(op_call("aten::linalg_multi_dot", chain)) == 10 * 100 * 5 + 10 * 5 * 50
    assert fma_of(op_call("aten::linalg_multi_dot", [tensor(3), tensor(3, 5), tensor(5)])) == 3 * 5 + 3
    assert fma_of(op_call("aten::chain_matmul", [tensor(3, 5), tensor(5, 7)])) == 3 * 5 * 7
    assert fma_of(op_call("aten::chain_matmul", [tensor(3, 5)])) == 0


def test_an_affine_grid_multiplies_homogeneous_points(tensor, op_call):
    call = op_call("aten::affine_grid_generator", tensor(2, 2, 3), [2, 1, 5, 7], False, out=tensor(2, 5, 7, 2))
    assert fma_of(call) == 2 * (5 * 7) * 3 * 2
    back = op_call("aten::affine_grid_generator_backward", tensor(2, 5, 7, 2), [2, 1, 5, 7], False, out=tensor(2, 2, 3))
    assert fma_of(back) == 2 * (5 * 7) * 3 * 2


def test_an_empty_batch_is_zero_and_an_absent_tensor_an_error(tensor, op_call):
    assert fma_of(op_call("aten::linear", tensor(0, 5), tensor(7, 5), Value(), out=tensor(0, 7))) == 0
    with pytest.raises(ValueError, match="expected a tensor"):
        fma_of(op_call("aten::matmul", tensor(3, 5), tensor(5, 7), out=Value()))


def test_a_sparse_matrix_which_the_tracer_gives_no_shape_is_unknown(traced_calls):
    *_, call = traced_calls(lambda dense: ones(3, 3).to_sparse() @ dense, ones(3, 5))
    assert call.operator == "aten::matmul"
    with pytest.raises(ValueError, match="expected a tensor"):
        fma_of(call)


# Outer products run as `mul`, which alone is elementwise: they are compared in test_einsum.
COMPOSITES = {
    "linear, 2 dimensions, bias": (F.linear, (2, 3), (5, 3), (5,)),
    "linear, 3 dimensions, bias": (F.linear, (7, 2, 3), (5, 3), (5,)),
    "linear, 4 dimensions": (F.linear, (2, 1, 2, 3), (5, 3)),
    "linear, a vector": (F.linear, (3,), (5, 3)),
    "linear, to a scalar": (F.linear, (2, 3), (3,)),
    "linear, out=": (lambda x, w: torch._C._nn.linear(x, w, out=torch.empty(2, 5)), (2, 3), (5, 3)),
    "mm, out=": (lambda a, b: torch.mm(a, b, out=torch.empty(2, 5)), (2, 3), (3, 5)),
    "addmm_": (lambda c, a, b: c.clone().addmm_(a, b), (2, 5), (2, 3), (3, 5)),
    "addmm, factors": (lambda c, a, b: torch.addmm(c, a, b, beta=2, alpha=3), (2, 5), (2, 3), (3, 5)),
    "addmm, activation": (torch._addmm_activation, (5,), (2, 3), (3, 5)),
    "addbmm": (torch.addbmm, (2, 5), (7, 2, 3), (7, 3, 5)),
    "baddbmm": (torch.baddbmm, (5,), (7, 2, 3), (7, 3, 5)),
    "mv": (torch.mv, (2, 3), (3,)),
    "addmv": (torch.addmv, (2,), (2, 3), (3,)),
    "dot": (torch.dot, (3,), (3,)),
    "inner": (torch.inner, (2, 7, 3), (5, 3)),
    "inner of vectors": (torch.inner, (3,), (3,)),
    "addr": (torch.addr, (3, 2), (3,), (2,)),
    "bilinear": (F.bilinear, (2, 3), (2, 5), (7, 3, 5)),
    "bilinear, 3 dimensions": (F.bilinear, (2, 4, 3), (2, 4, 5), (7, 3, 5)),
    "tensordot": (lambda a, b: torch.tensordot(a, b, dims=([1, 2], [1, 0])), (2, 3, 5), (5, 3, 7)),
    "tensordot without a sum": (lambda a, b: torch.tensordot(a, b, dims=0), (2, 3), (5, 7)),
    "multi_dot of two": (lambda *a: torch.linalg.multi_dot(a), (2, 3), (3, 5)),
    "multi_dot of vectors": (lambda *a: torch.linalg.multi_dot(a), (3,), (3, 5), (5, 7), (7,)),
    "chain_matmul": (torch.chain_matmul, (2, 3), (3, 5), (5, 7)),
    "linalg.matmul": (torch.linalg.matmul, (7, 2, 3), (3,)),
    "vecdot of vectors": (torch.linalg.vecdot, (3,), (3,)),
    "vecdot of a batch": (torch.linalg.vecdot, (2, 3), (7, 2, 3)),
    "affine_grid": (lambda theta: F.affine_grid(theta, [2, 1, 5, 7], align_corners=False), (2, 2, 3)),
}


@pytest.mark.filterwarnings("ignore:torch.chain_matmul is deprecated:UserWarning")
@pytest.mark.parametrize("name", COMPOSITES)
def test_one_traced_node_counts_what_its_dispatched_parts_do(name, traced_calls, dispatched_calls, total_cost):
    function, *shapes = COMPOSITES[name]
    inputs = [ones(shape) for shape in shapes]
    traced = total_cost(traced_calls(function, *inputs))
    assert traced.fma + traced.elementwise > 0
    assert traced == total_cost(dispatched_calls(function, *inputs))


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (lambda x, w, b: F.linear(x.transpose(0, 1), w, b), [(7, 2, 3), (5, 3), (5,)]),
        (F.bilinear, [(2, 3), (2, 5), (7, 3, 5), (7,)]),
        (torch.cov, [(3, 5)]),
    ],
    ids=["linear of a view", "bilinear", "cov"],
)
def test_what_runs_apart_from_the_product_is_elementwise(function, shapes, traced_calls, dispatched_calls, total_cost):
    inputs = [ones(shape) for shape in shapes]
    traced, dispatched = total_cost(traced_calls(function, *inputs)), total_cost(dispatched_calls(function, *inputs))
    assert 0 < traced.flops() == dispatched.flops()
    assert traced.elementwise < dispatched.elementwise


@given(batch=st.lists(sizes, max_size=2), shared=sizes, rows=sizes, columns=sizes, data=st.data())
def test_matmul_counts_the_same_in_both_engines(batch, shared, rows, columns, data, traced_calls, dispatched_calls):
    def operand(matrix, vector):
        if data.draw(st.booleans()):
            return ones(vector)
        kept = data.draw(st.integers(0, len(batch)))
        return ones([data.draw(st.sampled_from([1, size])) for size in batch[len(batch) - kept :]] + matrix)

    left, right = operand([rows, shared], [shared]), operand([shared, columns], [shared])
    (node,) = traced_calls(torch.matmul, left, right)
    parts = [call for call in dispatched_calls(torch.matmul, left, right) if _is_product(call)]
    assert fma_of(node) == sum(map(fma_of, parts))
    assert fma_of(node) == torch.matmul(left, right).numel() * shared


def _is_product(call):
    return getattr(lookup(call.operator), "family", None) is Family.MATMUL


@given(data=st.data(), links=st.lists(st.integers(1, 6), min_size=3, max_size=7))
def test_multi_dot_runs_in_the_order_that_is_counted(data, links, traced_calls, dispatched_calls):
    matrices = [ones(pair) for pair in itertools.pairwise(links)]
    if data.draw(st.booleans()):
        matrices[0] = ones(links[1])
    if data.draw(st.booleans()):
        matrices[-1] = ones(links[-2])
    (node,) = traced_calls(lambda *chain: torch.linalg.multi_dot(chain), *matrices)
    parts = dispatched_calls(torch.linalg.multi_dot, matrices)
    assert fma_of(node) == sum(fma_of(call) for call in parts if _is_product(call))


def products_of(power):
    """By squaring: a product for each binary digit after the first, and one more for each 1 after the first."""
    digits = f"{power:b}"[1:]
    return len(digits) + digits.count("1")


@pytest.mark.parametrize(
    ("power", "products"), [(0, 0), (1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (7, 4), (8, 3), (11, 5), (31, 8)]
)
@pytest.mark.parametrize("function", [torch.matrix_power, torch.linalg.matrix_power])
def test_a_power_of_matrices_runs_by_squaring(function, power, products, traced_calls, dispatched_calls):
    (node,) = traced_calls(lambda x: function(x, power), ones(3, 5, 5))
    assert fma_of(node) == products * 3 * 5 * 5 * 5
    assert sum(call.operator == "aten::bmm" for call in dispatched_calls(function, ones(3, 5, 5), power)) == products


@given(size=sizes, power=st.integers(0, 300), dtype=st.sampled_from([torch.float32, torch.cfloat]))
def test_a_power_of_a_matrix_counts_the_same_in_both_engines(size, power, dtype, traced_calls, dispatched_calls):
    matrix = ones(size, size, dtype=dtype)
    (node,) = traced_calls(lambda x: torch.matrix_power(x, power), matrix)
    calls = dispatched_calls(torch.matrix_power, matrix, power)
    one = size**3 * (4 if dtype.is_complex else 1)
    expected = products_of(power) * one if power else 0
    assert fma_of(node) == sum(fma_of(call) for call in calls if _is_product(call)) == expected


@pytest.mark.parametrize(("power", "products"), [(-1, 0), (-5, 3)])
def test_a_negative_power_takes_an_inverse_first(power, products):
    # Elimination of 3 rows subtracts 2 * 2 + 1 * 1 products; each of 3 right-hand sides takes 2 triangles of 1 + 2.
    inverse = 5 + 3 * 2 * 3
    for engine in "trace", "dispatch", "observer":
        flops = FlopCountAnalysis(lambda x: torch.linalg.matrix_power(x, power), torch.eye(3), engine=engine)
        assert flops.total() == inverse + products * 3**3
        assert not flops.is_lower_bound


@given(data=st.data(), kept_left=sizes, kept_right=sizes, contracted=st.lists(st.integers(1, 4), max_size=3))
def test_tensordot_runs_as_the_product_that_is_counted(
    data, kept_left, kept_right, contracted, traced_calls, dispatched_calls
):
    axes = range(1, len(contracted) + 1)
    swapped = data.draw(st.permutations(axes))
    left = ones([kept_left] + [data.draw(st.sampled_from([1, size])) for size in contracted])
    right = ones([kept_right] + [contracted[swapped.index(axis)] for axis in axes])

    def function(a, b):
        return torch.tensordot(a, b, dims=(list(axes), list(swapped)))

    (node,) = traced_calls(function, left, right)
    calls = dispatched_calls(function, left, right)
    products = [fma_of(call) for call in calls if _is_product(call)]
    if kept_left == kept_right == 1 and not products:
        # One number comes out: torch (2.13) may multiply elementwise and sum, the same multiply-adds under other names.
        products = [call.outputs[0].numel for call in calls if call.operator == "aten::mul"]
    assert fma_of(node) == sum(products)


def test_tensordot_to_one_number_is_a_dot_product(traced_calls):
    (node,) = traced_calls(lambda a, b: torch.tensordot(a, b, dims=([1, 2], [0, 1])), ones([1, 3, 5]), ones([3, 5, 1]))
    assert fma_of(node) == 3 * 5


def test_tensordot_to_one_number_over_dimensions_in_another_order_is_elementwise_to_the_dispatcher():
    """It runs as `mul` and `sum`, since a view of a tensor in another order is no vector for `dot`."""

    def function(a, b):
        return torch.tensordot(a, b, dims=([0, 1], [1, 0]))

    inputs = ones(3, 5), ones(5, 3)
    flops = FlopCountAnalysis(function, inputs)
    assert flops.total() == 3 * 5
    assert FlopCountAnalysis(function, inputs, engine="dispatch").total() == 0
    assert FlopCountAnalysis(function, inputs, engine="dispatch", elementwise=True).total() == 2 * 3 * 5
    assert flops.verify() == (Difference("", "matmul", 2 * 3 * 5, 0),)
    in_order = FlopCountAnalysis(lambda a, b: torch.tensordot(a, b.T, dims=([0, 1], [0, 1])), (inputs[0], inputs[0].T))
    assert in_order.verify() == ()


def test_the_backward_of_bilinear_runs_as_three_products_of_three(dispatched_calls, total_cost):
    left, right, weight = ones(2, 3), ones(2, 5), ones(7, 3, 5).requires_grad_()
    loss = F.bilinear(left, right, weight).sum()
    (gradient,) = [call for call in dispatched_calls(loss.backward) if call.operator == "aten::_trilinear"]
    # One slice per output: [2, 3] by the slice's gradient [2], which sums nothing; then the sum over 2 with [2, 5].
    assert lookup(gradient.operator).formula(gradient) == Cost(fma=7 * 2 * 3 * 5, other=7 * 2 * 3)


@pytest.mark.skipif(not hasattr(torch, "_grouped_mm"), reason="torch without _grouped_mm")
def test_a_grouped_product_is_one_operator_to_the_dispatcher(traced_calls, dispatched_calls):
    left, right = ones(16, 8, dtype=torch.bfloat16), ones(2, 8, 24, dtype=torch.bfloat16)
    offsets = torch.tensor([5, 16], dtype=torch.int32)

    def function(a, b):
        return torch._grouped_mm(a, b, offs=offsets)

    for calls in traced_calls(function, left, right), dispatched_calls(function, left, right):
        assert sum(map(fma_of, filter(_is_product, calls))) == 16 * 8 * 24
