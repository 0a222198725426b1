"""What is timed as one: of operators of a whole step, of rows of a step, and of rows of a forward."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from flopcallback import FlopHook
from flopcallback.profile.rows import LatencySummary, ModuleRow, StepFlops
from flopcallback.profile.times import IDLE, PYTHON, OperatorTime, StepTime
from flopcallback.reporting.findings import findings
from flopcallback.reporting.flops_and_time import slow_for_their_flops, time_covered
from flopcallback.reporting.measured import measured_points, points_of, whole_ms
from flopcallback.reporting.points import bound_of_point, memory_line

SDPA = "aten::scaled_dot_product_attention"


def attention_step(profile, *, attention_ms):
    """Give a decoder's step times: 1 ms a leaf and phase, and attention that much in forward and backward."""
    leaves = {row.path for row in profile.modules} - {row.parent for row in profile.modules}
    blocks = [row.path for row in profile.modules if row.type == "Attention"]
    operators = [
        OperatorTime(path, "aten::linear", phase, 1.0, 1, 1000) for path in leaves for phase in ("forward", "backward")
    ]
    backward = "ScaledDotProductFlashAttentionForCpuBackward0"
    for path in blocks:
        operators += [
            OperatorTime(path, SDPA, "forward", attention_ms / len(blocks) / 4, 1, 17),
            OperatorTime(path, backward, "backward", 3 * attention_ms / len(blocks) / 4, 1, 19),
            OperatorTime(path, PYTHON, "forward", 0.25),
        ]
    return profile.with_latency(LatencySummary(None, 1.0)).with_times({}, operators)


def test_attention_that_takes_half_of_the_time_is_the_first_candidate(decoder):
    profile = decoder(6)
    leaves = len({row.path for row in profile.modules} - {row.parent for row in profile.modules})
    profile = attention_step(profile, attention_ms=2.0 * leaves)
    half = (2 * leaves) / (4 * leaves + 6 * 0.25)
    slowest = points_of(profile)[0]
    assert slowest.path == "model.layers.0 … 5.self_attn: scaled_dot_product_attention"
    assert (slowest.modules, slowest.calls, slowest.flops) == (6, 12, 6 * (17 + 19))
    assert slowest.time_share == pytest.approx(half)
    assert slow_for_their_flops(profile)[0] == slowest
    # What passes between modules is no point.
    assert time_covered(profile) == pytest.approx(1 - 6 * 0.25 / (4 * leaves + 6 * 0.25))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x):
        query, key, value = self.qkv(x).unflatten(-1, (3, 1, 8)).permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.out(attended.squeeze(1))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.self_attn, self.head = Attention(), nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.self_attn(x))


def test_attention_of_a_real_step_is_the_finding_when_it_takes_half_of_the_time():
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with FlopHook(model, optimizer, summary=False, warmup_steps=1, latency_steps=8, strict=True) as hook:
        for _ in range(20):
            model(torch.ones(2, 5, 8)).sum().backward()
            optimizer.step()
    profile = hook.profile
    # What a step takes is not the same twice: times that add up to a known share take their place.
    names = {each: "scaled" in each.operator.lower() for each in profile.operator_times}
    attention, others = sum(names.values()), len(names) - sum(names.values())
    assert attention >= 2  # forward and backward
    times = [replace(each, ms=1 / attention if is_attention else 1 / others) for each, is_attention in names.items()]
    timed = replace(profile, operator_times=tuple(times))
    slowest = points_of(timed)[0]
    assert slowest.path == "self_attn: scaled_dot_product_attention"
    assert slowest.time_share == pytest.approx(0.5)
    # Two products of 5 by 5 by 8 for each of 2 samples, and their backward.
    assert slowest.flops >= 3 * 2 * (2 * 2 * 5 * 5 * 8)
    assert findings(timed)[0].text.startswith("self_attn: scaled_dot_product_attention")


def net(layer, container, model_of, **more):
    inside = [layer("body.fc", "Linear", flops=30), layer("body.act", "ReLU")]
    body = container("body", "Body", inside, own_flops=10)
    return model_of("Net", [body, *inside], **more)


def test_all_of_the_operators_time_is_in_a_point_or_between_modules(layer, container, model_of):
    times = [
        OperatorTime("body.fc", "aten::linear", "forward", 2.0, 3, 7, bytes=11),
        OperatorTime("body.fc", "AddmmBackward0", "backward", 3.0, 1, 13, bytes=17),
        OperatorTime("body.fc", PYTHON, "forward", 0.5),
        OperatorTime("body.fc", "TBackward0", "backward", 0.5, 1),  # less than a tenth of its time
        OperatorTime("body.act", "aten::relu", "forward", 1.0),
        OperatorTime("body", "aten::matmul", "forward", 1.5, 2, 5),
        OperatorTime("body", "MmBackward0", "backward", 2.5, 2, 10),
        OperatorTime("body", "aten::add", "forward", 0.001),  # less than 0.002 of the whole
        OperatorTime("body", "aten::view", "forward", 0.002),
        OperatorTime("body", PYTHON, "forward", 0.25),
        OperatorTime(None, "aten::cross_entropy_loss", "forward", 0.75),
        OperatorTime(None, "aten::_foreach_mul_", "optimizer", 1.25),
        OperatorTime(None, PYTHON, "optimizer", 0.125),
        OperatorTime(None, PYTHON, "forward", 4.0),
        OperatorTime(None, IDLE, "forward", 8.0),
    ]
    profile = net(layer, container, model_of, operator_times=tuple(times))
    points = {point.path: point for point in measured_points(profile)}
    assert {path: point.ms for path, point in points.items()} == {
        "body.fc": 6.0,
        "body.act": 1.0,
        "body: matmul": 4.0,
        "body: other operators": pytest.approx(0.003),
        "cross_entropy_loss": 0.75,
        "optimizer": 1.375,
    }
    assert whole_ms(profile) == pytest.approx(sum(each.ms for each in times))
    linear = points["body.fc"]
    assert (linear.flops, linear.bytes, linear.calls, linear.overhead_ms) == (20, 28, 5, 0.5)
    assert (points["body: matmul"].flops, points["body: matmul"].bytes) == (15, None)
    assert points["optimizer"].overhead_ms == 0.125
    assert sum(point.flops_share for point in points.values()) == pytest.approx(1)
    assert {path for path, point in points.items() if point.is_outside} == {"cross_entropy_loss", "optimizer"}


def test_a_module_that_does_products_of_several_kinds_has_a_point_for_each(layer, model_of):
    times = (
        OperatorTime("attn", "aten::linear", "forward", 1.0, 2, 7),
        OperatorTime("attn", "AddmmBackward0", "backward", 2.0, 2, 14),
        OperatorTime("attn", SDPA, "forward", 4.0, 1, 5),
        OperatorTime("attn", PYTHON, "forward", 8.0),
        OperatorTime("fc", "aten::linear", "forward", 1.0, 1, 11),
        OperatorTime("fc", "MmBackward0", "backward", 1.0, 1, 22),
    )
    rows = [layer("attn", "MultiheadAttention"), layer("fc", "Linear")]
    points = {point.path: point.flops for point in measured_points(model_of("Net", rows, operator_times=times))}
    assert points == {"attn: linear": 21, "attn: scaled_dot_product_attention": 5, "fc": 33}


def test_attention_without_a_kernel_is_several_operators_in_backward_and_one_point(layer, container, model_of):
    proj = layer("attn.proj", "Linear")
    times = [OperatorTime("attn.proj", "aten::linear", "forward", 1.0)]
    times += [OperatorTime("attn", name, "backward", 1.0, 2, 7) for name in ("BmmBackward0", "SoftmaxBackward0")]
    rows = [container("attn", "Attention", [proj]), proj]

    def points(*forward):
        profile = model_of("Net", rows, operator_times=(*times, *forward))
        return {point.path: (point.ms, point.flops) for point in measured_points(profile) if point.operator}

    attention = OperatorTime("attn", SDPA, "forward", 2.0, 1, 7)
    assert points(attention) == {"attn: scaled_dot_product_attention": (4.0, 21)}
    # By hand, its products are its own; with both, nobody knows whose backward a product is.
    apart = {"attn: matmul": (1.0, 7), "attn: softmax": (1.0, 7)}
    assert points() == apart
    matmul = OperatorTime("attn", "aten::matmul", "forward", 3.0, 1, 7)
    assert points(matmul, attention) == {
        "attn: matmul": (4.0, 14),
        "attn: scaled_dot_product_attention": (3.0, 14),
    }


def test_a_modules_flops_are_those_of_its_row_where_the_step_was_counted(layer, container, model_of):
    profile = net(
        layer, container, model_of, operator_times=(OperatorTime("body.fc", "CompiledFunction", "forward", 1),)
    )
    counted = profile.with_step({"": StepFlops(30, 60), "body.fc": StepFlops(30, 60)})
    (point,) = measured_points(counted)
    assert (point.flops, point.flops_share) == (90, 1)


def test_rows_with_times_of_a_step_have_points_of_modules_and_of_what_is_left(layer, container, model_of):
    profile = net(layer, container, model_of)
    times = {
        "": StepTime(5.0, 4.0),
        "body": StepTime(4.0, 3.0),
        "body.fc": StepTime(1.0, 2.0),
        "body.act": StepTime(0.5),
    }
    flops = {"": StepFlops(40, 80), "body": StepFlops(40, 80), "body.fc": StepFlops(30, 60)}
    points = {point.path: point for point in measured_points(profile.with_step(flops).with_times(times, ()))}
    assert {path: (point.ms, point.flops) for path, point in points.items()} == {
        "body.fc": (3.0, 90),
        "body.act": (0.5, 0),
        "body (own operators)": (3.5, 30),
        "Net (own operators)": (2.0, 0),
    }
    assert sum(point.time_share for point in points.values()) == pytest.approx(1)


def test_rows_with_times_of_a_forward_have_them_too(layer, container, model_of):
    profile = net(layer, container, model_of)
    times = {"": 5.0, "body": 5.0, "body.fc": 2.0, "body.act": 1.0}
    points = {point.path: point for point in measured_points(profile.with_latency(LatencySummary(5.0), times))}
    assert {path: (point.ms, point.flops) for path, point in points.items()} == {
        "body.fc": (2.0, 30),
        "body.act": (1.0, 0),
        "body (own operators)": (2.0, 10),
    }


def test_nothing_is_left_of_a_module_of_which_a_part_was_not_timed(layer, container, model_of):
    profile = net(layer, container, model_of).with_latency(LatencySummary(5.0), {"": 5.0, "body": 5.0, "body.fc": 2.0})
    assert [point.path for point in measured_points(profile)] == ["body.fc"]


def test_operators_of_a_module_that_was_added_later_are_a_point(layer, container, model_of):
    profile = net(layer, container, model_of, operator_times=(OperatorTime("late", "aten::add", "forward", 1.0),))
    assert [point.path for point in measured_points(profile)] == ["late"]


@pytest.mark.parametrize(
    ("row", "time", "bound"),
    [
        # 1e9 FLOP/s and 1e8 bytes/s: 10 FLOPs per byte make both as long.
        ({"flops": 11_000, "bytes": 1_000}, {"calls": 1}, "compute"),
        ({"flops": 9_000, "bytes": 1_000}, {"calls": 1}, "memory"),
        ({"flops": 0, "bytes": 1_000}, {"calls": 1}, "memory"),
        ({"flops": 11_000, "bytes": 1_000}, {"calls": 201}, "launches"),  # less than 10 us each
        ({"flops": 0, "bytes": 0}, {"calls": 1}, ""),
    ],
)
def test_a_point_is_bound_by_what_takes_longest(model_of, row, time, bound):
    rows = [replace(ModuleRow("a", "", 1, "A"), **row)]
    config = {"flops.peak_tflops": 1e-3, "flops.peak_gb_per_s": 0.1}
    operators = (OperatorTime("a", "aten::a", "forward", 2.0, **time),)
    profile = model_of("Net", rows, config=config, operator_times=operators)
    (point,) = measured_points(profile)
    assert bound_of_point(profile, point) == bound


def test_a_point_is_bound_by_launches_where_python_takes_half_of_its_time(model_of, layer):
    operators = (OperatorTime("a", "aten::a", "forward", 2.0), OperatorTime("a", PYTHON, "forward", 2.0))
    profile = model_of("Net", [layer("a", "A", flops=7)], operator_times=operators)
    (point,) = measured_points(profile)
    assert bound_of_point(profile, point) == "launches"
    assert bound_of_point(profile, replace(point, overhead_ms=1.9)) == ""  # without a peak


def test_the_roof_of_memory_is_bandwidth_times_flops_per_byte_where_the_peak_is_higher(model_of):
    rows = [ModuleRow("a", "", 1, "A", flops=600, bytes=100), ModuleRow("b", "", 1, "B", flops=200, bytes=100)]

    def roof_at(tflops):
        config = {"flops.peak_tflops": tflops, "flops.peak_gb_per_s": 3.0}
        profile = model_of("Net", rows, config=config).with_latency(LatencySummary(2.0), {"a": 1.0, "b": 1.0})
        return memory_line(profile, measured_points(profile))

    assert roof_at(1.0) == (3e9 * 4, 4)
    assert roof_at(0.011) is None
