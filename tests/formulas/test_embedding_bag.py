"""Embedding bags: elementwise, by the rows looked up; a plain embedding is free."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from flopcallback.formulas.registry import Free, lookup

INDICES, OFFSETS = torch.tensor([1, 2, 3, 0, 4]), torch.tensor([0, 2])


@pytest.fixture(scope="module")
def both_engines(traced_calls, dispatched_calls, total_cost):
    """The cost as traced, after a check that what really runs adds up to the same, elementwise work included."""

    def count(fn, *inputs):
        traced, dispatched = total_cost(traced_calls(fn, *inputs)), total_cost(dispatched_calls(fn, *inputs))
        assert traced == dispatched
        assert traced.flops() == traced.flops(fma=2) == 0
        return traced.elementwise

    return count


@pytest.mark.parametrize(("mode", "division"), [("sum", 0), ("mean", 2 * 7), ("max", 0)])
def test_every_row_looked_up_is_added_or_compared(both_engines, mode, division):
    bags = both_engines(lambda i, o: F.embedding_bag(i, torch.rand(11, 7), o, mode=mode), INDICES, OFFSETS)
    assert bags == 5 * 7 + division


def test_weights_of_rows_are_one_more_operation(both_engines):
    def weighted(indices, offsets, row_weights):
        return F.embedding_bag(indices, torch.rand(11, 7), offsets, mode="sum", per_sample_weights=row_weights)

    assert both_engines(weighted, INDICES, OFFSETS, torch.rand(5)) == 2 * 5 * 7


def test_a_module_with_the_last_offset_has_one_bag_less(both_engines):
    module = nn.EmbeddingBag(11, 7, mode="mean", include_last_offset=True).requires_grad_(False)
    assert both_engines(module, INDICES, torch.tensor([0, 2, 5])) == 5 * 7 + 2 * 7


def test_no_indices_are_nothing(both_engines):
    bags = both_engines(lambda i, o: F.embedding_bag(i, torch.rand(11, 7), o, mode="sum"), INDICES[:0], OFFSETS[:1])
    assert bags == 0


def test_the_backward_adds_every_bags_gradient_to_its_rows(dispatched_calls, total_cost):
    table, row_weights = torch.rand(11, 7, requires_grad=True), torch.rand(5, requires_grad=True)

    def step(indices, offsets):
        F.embedding_bag(indices, table, offsets, mode="sum", per_sample_weights=row_weights).sum().backward()

    calls = [call for call in dispatched_calls(step, INDICES, OFFSETS) if call.operator.endswith("backward")]
    costs = {call.operator: total_cost([call]).elementwise for call in calls}
    assert costs == {
        "aten::_embedding_bag_backward": 5 * 7,
        "aten::_embedding_bag_per_sample_weights_backward": 2 * 5 * 7,
    }


def test_a_plain_embedding_is_free():
    assert isinstance(lookup("aten::embedding"), Free)
