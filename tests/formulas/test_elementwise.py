"""Elementwise work: figures by hand; integers are none, and nothing of it is in the default total."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from flopcallback.formulas.cost import Cost
from flopcallback.formulas.registry import lookup

ones = torch.ones
N = 3 * 5  # elements of the tensors below


@pytest.mark.parametrize(
    ("function", "elementwise"),
    [
        (lambda a: a + a, N),
        (lambda a: a + ones(2, 3, 5), 2 * N),
        (lambda a: torch.add(a, a, out=ones(3, 5)), N),
        (lambda a: a.clone().add_(a), N),
        (lambda a: a.clone().relu_(), N),
        (F.gelu, N),
        (F.relu6, N),
        (F.selu, N),
        (lambda a: F.glu(a[:, :4]), 2 * 3 * 2),
        (lambda a: a.lerp(a, 0.25), 3 * N),
        (lambda a: torch.addcmul(a, a, a), 2 * N),
        (lambda a: a.sum(), N),
        (lambda a: a.max(), N),
        (lambda a: a.max(dim=0), N),
        (lambda a: torch.max(a, a), N),
        (lambda a: a.norm(), 2 * N),
        (torch.linalg.norm, 2 * N),
        (lambda a: a.std(), 4 * N),
        (lambda a: a.cumsum(0), N),
        (lambda a: a.softmax(-1), 5 * N),
        (lambda a: a.log_softmax(-1), 5 * N),
        (lambda a: a.logsumexp(0), 4 * N),
        (lambda a: F.dropout(a, 0.5, training=True), 2 * N),
        (lambda a: F.dropout(a, 0.5, training=False), 0),
        (lambda a: F.alpha_dropout(a, 0.5, training=True), 6 * N),
        (lambda a: F.mse_loss(a, a), 3 * N),
        (lambda a: F.l1_loss(a, a), 3 * N),
        (lambda a: F.cross_entropy(a, torch.tensor([0, 2, 4])), 5 * N + 3),
        (lambda a: F.binary_cross_entropy_with_logits(a, a), 7 * N),
        (lambda a: F.kl_div(a, a, reduction="sum"), 4 * N),
        (lambda a: torch.cdist(a, a), 3 * 3 * 3 * 5),
        (lambda a: a.clone().scatter_add_(0, torch.zeros(2, 5, dtype=torch.long), a), 2 * 5),
        (lambda a: a.clone().index_add_(0, torch.tensor([0, 1]), a[:2]), 2 * 5),
        (lambda a: a.clone().index_put_((torch.tensor([0, 1]),), a[:2], accumulate=True), 2 * 5),
        (lambda a: a.clone().index_put_((torch.tensor([0, 1]),), a[:2]), 0),
        (lambda a: torch._foreach_add([a, a], a.sum()), N + 2 * N),
        (lambda a: torch._foreach_mul_([a.clone(), a.clone()], 2), 2 * N),
        (lambda a: a.view(5, 3).t()[1:].contiguous(), 0),
        (lambda a: (a > 0).any(), 0),
        (lambda a: torch.where(a > 0, a, 0.0), 0),
        (lambda a: a.topk(2), 0),
        (lambda a: F.embedding(torch.tensor([0, 2]), a), 0),
        (lambda a: torch.rand_like(a), 0),
        (lambda a: torch.arange(7) + torch.arange(7), 0),
        (lambda a: torch.arange(7).sum(), 0),
        (lambda a: torch.arange(7) / 2, 7),
    ],
)
def test_an_operator_has_the_same_documented_figure_in_both_engines(
    function, elementwise, traced_calls, dispatched_calls, total_cost
):
    values = ones(3, 5)
    assert total_cost(traced_calls(function, values)).elementwise == elementwise
    assert total_cost(dispatched_calls(function, values)) == Cost(elementwise=elementwise)


def test_elementwise_work_stays_out_of_the_default_total(tensor, op_call):
    call = op_call("aten::relu", tensor(3, 5), out=tensor(3, 5))
    cost = lookup("aten::relu").formula(call)
    assert (cost.flops(), cost.flops(elementwise=True), cost.flops(fma=2, elementwise=True)) == (0, N, N)


@pytest.mark.parametrize(
    ("operator", "other", "operations"),
    [
        ("add", torch.complex64, 2),
        ("mul", torch.complex64, 6),
        ("mul", torch.float32, 2),
        ("div", torch.complex64, 11),
        ("div", torch.float32, 2),
    ],
)
def test_complex_numbers_count_real_operations(operator, other, operations, tensor, op_call):
    whole = tensor(3, 5, dtype=torch.complex64)
    call = op_call(f"aten::{operator}", whole, tensor(3, 5, dtype=other), out=whole)
    assert lookup(call.operator).formula(call) == Cost(elementwise=operations * N)


def test_an_in_place_list_operator_without_a_result_counts_its_first_list(tensor, op_call):
    call = op_call("aten::_foreach_addcdiv_", [tensor(2), tensor(3, 5)], [tensor(2), tensor(3, 5)], [tensor(2)], 1)
    assert lookup(call.operator).formula(call) == Cost(elementwise=2 * (2 + N))


def test_a_fused_optimizer_counts_per_parameter(dispatched_calls, total_cost):
    parameter = torch.nn.Parameter(ones(3, 5))
    parameter.grad = ones(3, 5)
    optimizer = torch.optim.AdamW([parameter], fused=True)
    calls = [call for call in dispatched_calls(optimizer.step) if call.operator == "aten::_fused_adamw_"]
    assert total_cost(calls) == Cost(elementwise=12 * N)


def test_the_gradient_of_an_embedding_adds_up_rows(dispatched_calls, total_cost):
    table = ones(11, 5, requires_grad=True)
    loss = F.embedding(torch.tensor([1, 7, 7]), table).sum()
    scatter = [call for call in dispatched_calls(loss.backward) if call.operator == "aten::embedding_dense_backward"]
    assert total_cost(scatter) == Cost(elementwise=3 * 5)


def test_label_smoothing_adds_a_sum_over_the_classes(tensor, op_call):
    target = tensor(3, dtype=torch.int64)
    plain = op_call("aten::cross_entropy_loss", tensor(3, 5), target, None, 1, -100, 0.0, out=tensor())
    smooth = op_call("aten::cross_entropy_loss", tensor(3, 5), target, None, 1, -100, 0.1, out=tensor())
    formula = lookup("aten::cross_entropy_loss").formula
    assert formula(plain) == Cost(elementwise=5 * N + 3)
    assert formula(smooth) == Cost(elementwise=5 * N + 3 + N)


def test_ctc_visits_every_state_at_every_time(tensor, op_call):
    targets = tensor(2, 3, dtype=torch.int64)
    call = op_call("aten::ctc_loss", tensor(11, 2, 5), targets, [11, 11], [3, 3], 0, 1, False, out=tensor())
    assert lookup(call.operator).formula(call) == Cost(elementwise=6 * 11 * 2 * (2 * 3 + 1))
