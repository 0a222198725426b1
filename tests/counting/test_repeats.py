"""A repeated call is recorded as if the tracer had seen it, by a copy of what it made of the first."""

import pytest
import torch
from torch import nn

from flopcallback import FlopCountAnalysis, OperatorAnalysis


def calls_of(function, *inputs, **settings):
    """The operators that a function runs, with shapes and constants."""
    seen = []

    def keep(call):
        seen.append((call.operator, tuple(map(plain, call.inputs)), tuple(map(plain, call.outputs))))
        return 0

    OperatorAnalysis(function, inputs, formula=keep, **settings).total()
    return seen


def plain(value):
    return value.shape if value.is_tensor else value.constant


def node_count(function, *inputs):
    analysis = OperatorAnalysis(function, inputs)
    analysis.total()
    assert analysis.engine == "trace"
    return sum(1 for _ in analysis._run().record.graph.nodes())


def test_a_repeated_layer_has_its_own_shapes():
    convolutions = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 7, 3, padding=1))
    flops = FlopCountAnalysis(convolutions, torch.ones(1, 3, 11, 13))
    assert flops.by_module() == {
        "": 11 * 13 * 9 * (3 * 5 + 5 * 7),
        "0": 11 * 13 * 9 * 3 * 5,
        "1": 11 * 13 * 9 * 5 * 7,
    }


def test_a_repeated_call_adds_one_node():
    def layers(count):
        return lambda x: [torch.nn.functional.layer_norm(x, (5,)) for _ in range(count)][-1]

    x = torch.ones(3, 5)
    assert node_count(layers(9), x) - node_count(layers(2), x) == 7


def test_constants_tell_calls_apart():
    def reduced(x):
        return x.sum(0), x.sum(1), x.sum(dim=1)

    seen = calls_of(reduced, torch.ones(3, 5))
    assert [(inputs[1], outputs) for operator, inputs, outputs in seen if operator == "aten::sum"] == [
        ([0], ((5,),)),
        ([1], ((3,),)),
        ([1], ((3,),)),
    ]


def test_the_type_of_a_constant_tells_calls_apart():
    def clamped(x):
        return x.clamp(1), x.clamp(1.0), x.clamp(True)

    seen = calls_of(clamped, torch.ones(3))
    assert [type(inputs[1]) for operator, inputs, _ in seen if operator == "aten::clamp"] == [int, float, bool]


def test_ranks_tell_calls_apart():
    weight = torch.ones(5, 3, 2, 2)

    def both(batch, image):
        return torch.conv2d(batch, weight), torch.conv2d(image, weight)

    seen = calls_of(both, torch.ones(2, 3, 7, 11), torch.ones(3, 7, 11))
    results = [outputs for operator, _, outputs in seen if operator == "aten::_convolution"]
    # An image without a batch is given one of 1, and that is taken away again.
    assert results == [((2, 5, 6, 10),), ((1, 5, 6, 10),)]


def test_one_tensor_twice_is_not_two_tensors():
    def products(x, y):
        first = torch.mul(x, x)
        return torch.mul(first, y), torch.mul(y, y)

    def used(operation):
        return [value.unique() for value in operation.node.inputs()]

    analysis = OperatorAnalysis(products, (torch.ones(3), torch.ones(3)))
    analysis.total()
    squares_and_product = [used(operation) for operation in analysis._run().record.operations()]
    assert [len(set(values)) for values in squares_and_product] == [1, 2, 1]


def test_several_results_are_taken_up():
    def extremes(x):
        for _ in range(3):
            x = torch.topk(x, x.shape[-1] - 1).values
        largest = [torch.max(x, dim=1) for _ in range(2)]
        return largest[1].values + largest[0].values

    seen = calls_of(extremes, torch.ones(3, 7), prune=True)
    assert [outputs for operator, _, outputs in seen if operator == "aten::max"] == [((3,), (3,))] * 2


def test_writing_in_place_is_followed():
    def accumulate(x, weight):
        total = torch.zeros(3, 5)
        for _ in range(3):
            total.add_(x @ weight)
        return total

    flops = FlopCountAnalysis(accumulate, (torch.ones(3, 7), torch.ones(7, 5)), prune=True)
    assert flops.total() == 3 * (3 * 7 * 5)


def test_what_is_not_used_is_pruned_among_copies():
    def half_used(x, weight):
        products = [x @ weight for _ in range(4)]
        return products[0] + products[3]

    inputs = (torch.ones(3, 7), torch.ones(7, 5))
    assert FlopCountAnalysis(half_used, inputs).total() == 4 * (3 * 7 * 5)
    assert FlopCountAnalysis(half_used, inputs, prune=True).total() == 2 * (3 * 7 * 5)


def test_under_autocast_every_call_is_traced():
    layer = nn.Linear(5, 5)

    def twice(x):
        x = layer(x)
        with torch.autocast("cpu", torch.bfloat16):
            return layer(x)

    casts = [inputs[0] for operator, inputs, _ in calls_of(twice, torch.ones(3, 5)) if operator == "aten::to"]
    assert sorted(casts) == [(3, 5), (5,), (5, 5)]  # input, bias, weight


@pytest.mark.parametrize("grad", [True, False])
def test_tensors_that_the_tracer_has_not_seen_are_taken_up(grad):
    def fresh(x):
        for _ in range(3):
            x = x @ torch.ones(5, 5, requires_grad=grad)
        return x

    assert FlopCountAnalysis(fresh, torch.ones(3, 5)).total() == 3 * (3 * 5 * 5)


def test_results_are_those_of_the_plain_call():
    torch.manual_seed(0)
    model = nn.Sequential(*(layer for _ in range(3) for layer in (nn.Linear(5, 5), nn.BatchNorm1d(5), nn.ReLU())))
    x = torch.randn(7, 5)
    expected = model(x)
    results = []
    FlopCountAnalysis(lambda x: results.append(model(x)) or results[0], x).total()
    assert torch.equal(results[0], expected)
