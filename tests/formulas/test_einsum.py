"""Einstein sums: by hand, and against the products that `torch.einsum` really runs."""

from __future__ import annotations

import pytest
import torch
import torch.backends.opt_einsum
from hypothesis import given, settings
from hypothesis import strategies as st

from flopcallback.formulas.cost import Cost
from flopcallback.formulas.op_call import Value
from flopcallback.formulas.registry import lookup

ones = torch.ones
VIEWS = {"view", "permute", "unsqueeze", "squeeze", "diagonal", "clone", "_unsafe_view", "alias"}


def cost_of(call):
    return lookup("aten::einsum").formula(call)


def parts_that_run(calls):
    """Products of pairs (`bmm`, or `mul` where nothing is contracted) and the sums that are taken before."""
    products = multiplications = sums = 0
    for call in calls:
        name = call.operator.removeprefix("aten::")
        if name == "bmm":
            products += call.outputs[0].numel * call.inputs[0].shape[-1]
        elif name == "mul":
            multiplications += call.outputs[0].numel
        elif name == "sum":
            sums += call.inputs[0].numel
        else:
            assert name in VIEWS, name
    return Cost(fma=products, other=multiplications, elementwise=sums)


@pytest.mark.parametrize(
    ("equation", "shapes", "multiply_adds"),
    [
        ("ij,jk->ik", [(3, 5), (5, 7)], 3 * 5 * 7),
        ("bij,bjk", [(2, 3, 5), (2, 5, 7)], 2 * 3 * 5 * 7),
        ("bhqd,bhkd->bhqk", [(2, 3, 5, 7), (2, 3, 11, 7)], 2 * 3 * 5 * 11 * 7),
        ("i,i->", [(11,), (11,)], 11),
        ("nc,nchw->hw", [(2, 3), (2, 3, 5, 7)], 2 * 3 * 5 * 7),
        ("...ij,...jk->...ik", [(2, 1, 3, 5), (11, 5, 7)], 2 * 11 * 3 * 5 * 7),
        (" ij , jk -> ki ", [(3, 5), (5, 7)], 3 * 5 * 7),
        ("iij,jk->ik", [(3, 3, 5), (5, 7)], 3 * 5 * 7),
        ("ij,jk->ik", [(0, 5), (5, 7)], 0),
    ],
)
def test_a_pair_that_sums_counts_every_combination_of_its_indices_as_a_multiply_add(
    equation, shapes, multiply_adds, tensor, op_call
):
    call = op_call("aten::einsum", equation, [tensor(*shape) for shape in shapes], None)
    assert cost_of(call) == Cost(fma=multiply_adds)
    assert cost_of(call).flops(fma=2) == 2 * multiply_adds


@pytest.mark.parametrize(
    ("equation", "shapes", "multiplications"),
    [
        ("i,j->ij", [(3,), (5,)], 3 * 5),
        ("ij,ij->ij", [(3, 5), (3, 5)], 3 * 5),
        ("i...,...j", [(3, 2), (2, 5)], 3 * 2 * 5),
        ("ij,->ij", [(3, 5), ()], 3 * 5),
    ],
)
def test_a_pair_that_sums_nothing_is_one_flop_for_each_multiplication(
    equation, shapes, multiplications, tensor, op_call
):
    call = op_call("aten::einsum", equation, [tensor(*shape) for shape in shapes], None)
    assert cost_of(call) == Cost(other=multiplications)
    assert cost_of(call).flops(fma=2) == multiplications


@pytest.mark.parametrize(
    ("equation", "elementwise"),
    [("ij->ji", 0), ("ii->i", 0), ("...ij->...ji", 0), ("ij", 0), ("ij->", 3 * 3), ("ij->i", 3 * 3), ("ii", 3)],
)
def test_one_operand_is_moved_for_free_and_summed_as_a_reduction(equation, elementwise, tensor, op_call):
    call = op_call("aten::einsum", equation, [tensor(3, 3)], None)
    assert cost_of(call) == Cost(elementwise=elementwise)


def test_a_dimension_that_no_one_else_has_is_summed_before_the_product(tensor, op_call):
    call = op_call("aten::einsum", "ijx,jk->ik", [tensor(3, 5, 11), tensor(5, 7)], None)
    assert cost_of(call) == Cost(fma=3 * 5 * 7, elementwise=3 * 5 * 11)


def test_three_operands_follow_the_path_that_is_given(tensor, op_call):
    operands = [tensor(2, 3), tensor(3, 5), tensor(5, 7)]
    left_to_right, right_first = 2 * 3 * 5 + 2 * 5 * 7, 3 * 5 * 7 + 2 * 3 * 7
    assert cost_of(op_call("aten::einsum", "ij,jk,kl->il", operands, None)).fma == left_to_right
    assert cost_of(op_call("aten::einsum", "ij,jk,kl->il", operands, [0, 1, 0, 1])).fma == left_to_right
    assert cost_of(op_call("aten::einsum", "ij,jk,kl->il", operands, [1, 2, 0, 1])).fma == right_first


def test_complex_operands_count_real_multiply_adds(tensor, op_call):
    whole, half = tensor(3, 5, dtype=torch.complex64), tensor(5, 7)
    assert cost_of(op_call("aten::einsum", "ij,jk->ik", [whole, half], None)).fma == 2 * 3 * 5 * 7
    # The first product is complex, so the second multiplies complex by complex.
    operands = [whole, half, tensor(7, 11, dtype=torch.complex64)]
    assert cost_of(op_call("aten::einsum", "ij,jk,kl->il", operands, None)).fma == 2 * 3 * 5 * 7 + 4 * 3 * 7 * 11


def test_complex_operands_of_an_outer_product_count_products_and_sums(tensor, op_call):
    whole, half = tensor(3, dtype=torch.complex64), tensor(5)
    assert cost_of(op_call("aten::einsum", "i,j->ij", [whole, whole], None)) == Cost(other=6 * 3 * 3)
    assert cost_of(op_call("aten::einsum", "i,j->ij", [whole, half], None)) == Cost(other=2 * 3 * 5)


def test_an_equation_that_does_not_fit_is_an_error_and_not_a_zero(tensor, op_call):
    with pytest.raises(ValueError, match=r"shorter|longer"):
        cost_of(op_call("aten::einsum", "ijk,jk->i", [tensor(3, 5), tensor(5, 7)], None))
    with pytest.raises(ValueError, match="expected a tensor"):
        cost_of(op_call("aten::einsum", "ij,jk->i", [tensor(3, 5), Value()], None))


def test_the_sublist_form_is_the_same_operator(traced_calls):
    def function(a, b):
        return torch.einsum(a, [..., 0, 1], b, [..., 1, 2], [..., 0, 2])

    (call,) = traced_calls(function, ones(2, 3, 5), ones(2, 5, 7))
    assert cost_of(call) == Cost(fma=2 * 3 * 5 * 7)


@pytest.mark.skipif(not torch.backends.opt_einsum.is_available(), reason="opt_einsum is not installed")
def test_with_opt_einsum_torch_takes_the_cheaper_path(traced_calls, monkeypatch):
    operands = ones(2, 50), ones(50, 3), ones(3, 1)

    def chain(*tensors):
        return torch.einsum("ij,jk,kl->il", *tensors)

    def count():
        *_, call = traced_calls(chain, *operands)
        return cost_of(call).fma

    left_to_right, right_first = 2 * 50 * 3 + 2 * 3, 50 * 3 + 2 * 50
    monkeypatch.setattr(torch.backends.opt_einsum, "enabled", False)
    assert count() == left_to_right
    monkeypatch.setattr(torch.backends.opt_einsum, "enabled", True)
    assert count() == right_first


@st.composite
def einsums(draw):
    """An equation and operands: repeated indices, broadcasting, an ellipsis, sizes 0 and 1, with and without output."""
    size_of = {letter: draw(st.sampled_from([0, 1, 2, 3, 5])) for letter in "abcde"}
    hidden_sizes = draw(st.lists(st.integers(1, 3), max_size=2))
    terms, operands = [], []
    for _ in range(draw(st.integers(1, 4))):
        letters = draw(st.lists(st.sampled_from("abcde"), max_size=4))
        shrunk = {letter for letter in letters if size_of[letter] and draw(st.integers(0, 6)) == 0}
        shape = [1 if letter in shrunk else size_of[letter] for letter in letters]
        if draw(st.booleans()):
            place = draw(st.integers(0, len(letters)))
            kept = draw(st.integers(0, len(hidden_sizes)))
            shape[place:place] = [draw(st.sampled_from([1, size])) for size in hidden_sizes[len(hidden_sizes) - kept :]]
            letters.insert(place, "...")
        terms.append("".join(letters))
        operands.append(ones(shape))
    equation = ",".join(terms)
    if draw(st.booleans()):
        used = sorted({letter for letter in equation if letter.isalpha()})
        output = draw(st.permutations(used))[: draw(st.integers(0, len(used)))]
        equation += "->" + "".join(output) + ("..." if "..." in equation and draw(st.booleans()) else "")
    return equation, operands


@settings(max_examples=200, deadline=None)
@given(drawn=einsums(), optimized=st.booleans())
def test_what_is_counted_is_what_runs(drawn, optimized, traced_calls, dispatched_calls):
    equation, operands = drawn
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.backends.opt_einsum, "enabled", optimized and torch.backends.opt_einsum.is_available())

        def function(*tensors):
            return torch.einsum(equation, *tensors)

        *_, call = traced_calls(function, *operands)
        assert cost_of(call) == parts_that_run(dispatched_calls(function, *operands))


@pytest.mark.parametrize(
    ("function", "shapes"),
    [(torch.outer, [(3,), (5,)]), (torch.ger, [(3,), (5,)]), (torch.kron, [(2, 3), (5, 7)]), (torch.inner, [(3,), ()])],
)
def test_an_outer_product_runs_as_many_multiplications_as_are_counted(
    function, shapes, traced_calls, dispatched_calls, total_cost
):
    inputs = [ones(shape) for shape in shapes]
    traced = total_cost(call for call in traced_calls(function, *inputs))
    multiplications = [call for call in dispatched_calls(function, *inputs) if call.operator == "aten::mul"]
    assert traced == Cost(other=sum(call.outputs[0].numel for call in multiplications))
