"""What a reader is told first: each rule fires where it should and is silent where it should not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from flopcallback.profile.model_profile import ModelProfile
from flopcallback.profile.rows import LatencySummary, ModuleRow, StepFlops
from flopcallback.profile.times import IDLE, PYTHON, OperatorTime, StepTime
from flopcallback.reporting.findings import MOST, RULES, Finding, findings

CONV, NORM, SDPA = "aten::conv2d", "aten::batch_norm", "aten::scaled_dot_product_attention"
LATENCY = LatencySummary(40.0, 100.0, 20, "CPU clock", step_spread=(98.0, 103.0), cpu_share=0.97)


@pytest.fixture
def step(model_of, layer, container):
    """Build a net's profile from milliseconds by operator: `conv`, `norm`, `head`, and `attn` with a `proj` in it."""

    def build(*operators, config=None, training=None, flops=None, step=None, latency=LATENCY):
        proj = layer("attn.proj", "Linear")
        rows = [layer("conv", "Conv2d"), layer("norm", "BatchNorm2d"), container("attn", "Attention", [proj]), proj]
        rows.append(layer("head", "Linear"))
        profile = model_of("Net", rows, config=config or {}, training=training or {})
        times = {row.path: StepTime() for row in profile.modules}
        for each in operators:
            for path in {"", each.path or "", (each.path or "").partition(".")[0]}:
                times[path] += StepTime(**{each.phase: each.ms})
        return replace(profile.with_latency(latency).with_times(times, operators), step=step)

    return build


def conv(ms, flops=1000, phase="forward"):
    return OperatorTime("conv", CONV, phase, ms, 1, flops)


def norm(ms, phase="forward"):
    return OperatorTime("norm", NORM, phase, ms, 1)


def proj(ms, flops=1000):
    return OperatorTime("attn.proj", "aten::linear", "forward", ms, 1, flops)


def attention(ms, flops):
    return OperatorTime("attn", SDPA, "forward", ms, 1, flops)


def python(ms, path=None):
    return OperatorTime(path, PYTHON, "forward", ms)


def of_rule(profile, rule):
    """What a rule says, the first sentence included."""
    return [finding for finding in findings(profile) if finding.rule == rule]


def text_of(profile, rule):
    (finding,) = of_rule(profile, rule)
    return finding.text


# --- The first sentence -----------------------------------------------------------------------------------------------


def test_the_first_sentence_names_the_part_with_the_most_time_and_what_it_is_worth(step):
    first = findings(step(norm(51), conv(29), python(20)))[0]
    text = "norm (BatchNorm2d): no products, 51 % of the step; the machine computes for 80 % of the time"
    assert first == Finding(f"{text} (Python and launches 20 %)", 0.51, "no products", "norm")


def test_it_says_where_the_most_time_is_fairly_spent(step):
    text = findings(step(conv(60, 7000), norm(10), proj(30, 3000), config={"flops.peak_tflops": 1e-6}))[0].text
    # 7,000 FLOPs in 60 ms are 116,667 FLOP/s, and the peak is 1e6.
    said = "conv (Conv2d) takes 60 % of the step for 70 % of the FLOPs, not slow for them, at 12 % of the peak"
    assert text == f"{said}; the machine computes for nearly all of the time"


def test_it_says_that_the_machine_waits_where_no_part_takes_as_long(step):
    first, *_ = findings(step(conv(30), proj(29), python(41)))
    said = "41 % of the step is Python and launches: try torch.compile"
    assert first.text == f"{said}; conv (Conv2d) takes 30 % of the step for 50 % of the FLOPs, not slow for them"
    assert (first.rule, first.weight, first.path) == ("python", pytest.approx(0.41), None)


def test_it_has_the_time_between_steps_too(step):
    profile = step(conv(90), python(10), training={"perf/data_wait_pct": 20})
    # 80 % of the time is inside of steps, of which Python has a tenth.
    said = "the machine computes for 72 % of the time (Python and launches 8 %, waiting for data 20 %)"
    assert findings(profile)[0].text.endswith(said)


def test_a_profile_of_a_forward_has_one_as_well(lenet, measured):
    # Times are 0.1 ms and 0.1 us per thousand FLOPs: linear 0.3 + 0.01599 + ..., pools 0.1 each, of 0.755.
    first = findings(measured(lenet))[0]
    assert "of the forward" in first.text
    assert first.weight == pytest.approx((0.3 + 1e-7 * (138_240 + 20_160 + 1_680)) / (0.7 + 1e-7 * 549_312))


def test_without_times_it_says_where_the_flops_are(lenet):
    (only,) = findings(lenet)
    # Convolutions have 97,200 and 292,032 of 549,312.
    assert only == Finding(
        "Conv2d has 71 % of the FLOPs, conv2 alone 53 %; no times were measured", 0.0, "most flops", "conv2"
    )


def test_a_profile_of_nothing_says_that(model_of):
    assert [finding.text for finding in findings(model_of("Net", []))] == [
        "no FLOPs were counted, and no times were measured"
    ]


def test_what_the_first_sentence_says_is_not_said_twice(step):
    paths = [finding.path for finding in findings(step(norm(51), conv(49)))]
    assert paths.count("norm") == 1


def test_there_are_at_most_five_and_the_first_is_followed_by_the_weightiest(step):
    profile = step(
        *(norm(20), conv(20, 9000), attention(12, 9), python(25), OperatorTime(None, "AdamW.step", "optimizer", 11)),
        *(norm(6, "recompute"), norm(6, "without_grad")),
        training={"perf/data_wait_pct": 15},
        latency=replace(LATENCY, step_spread=(60.0, 140.0)),
    )
    found = findings(profile)
    assert len(found) == MOST
    assert all(0 <= finding.weight <= 1 and finding.text for finding in found)
    weights = [finding.weight for finding in found[1:]]
    assert weights == sorted(weights, reverse=True)
    assert found[1].text == "noisy machine: times ±40 %"


# --- Rules ------------------------------------------------------------------------------------------------------------


def test_work_without_products_is_named_by_its_type(step, layer, model_of):
    rows = [layer(f"norm{index}", "BatchNorm2d") for index in range(3)] + [layer("conv", "Conv2d", flops=100)]
    times = {"": 10.0, "norm0": 1.0, "norm1": 2.0, "norm2": 2.1, "conv": 4.9}
    profile = model_of("Net", rows).with_latency(LatencySummary(10.0), times)
    (finding,) = of_rule(profile, "no products")
    # Its path is that of the first of the slowest, which are folded.
    text = "BatchNorm2d: no products, 51 % of the forward"
    assert finding == Finding(text, pytest.approx(0.51), "no products", "norm0")
    assert not of_rule(step(norm(9), conv(91)), "no products")


def test_work_that_could_not_be_counted_is_not_called_without_products(step):
    profile = step(norm(60), conv(40))
    rows = tuple(replace(row, unknown_calls=1) if row.path == "norm" else row for row in profile.modules)
    assert not of_rule(replace(profile, modules=rows), "no products")
    assert "no products" in findings(profile)[0].text


def test_attention_that_is_slow_for_its_flops_is_named_with_its_operator(step):
    # 100 FLOPs in 50 ms against 2,000 in 25: a fortieth of the rate.
    profile = step(attention(50, 100), proj(5), conv(20, 1000), norm(25))
    assert findings(profile)[0].text.startswith(
        "attn: scaled_dot_product_attention runs at 1/40 of the rate of the rest, 50 % of the step"
    )
    # 2,000 FLOP/s of a peak of 1e6.
    at_peak = step(attention(50, 100), proj(5), conv(20, 1000), norm(25), config={"flops.peak_tflops": 1e-6})
    assert "scaled_dot_product_attention runs at 0.2 % of the peak, 50 % of the step" in findings(at_peak)[0].text


@pytest.mark.parametrize(
    ("attention_", "config"),
    [
        (attention(50, 1000), {}),  # half of the rate of the rest
        (attention(4, 1), {}),  # 4 % of the time
        (attention(50, 100), {"flops.peak_tflops": 5e-9}),  # 2,000 FLOP/s are near a peak of 5,000
    ],
)
def test_what_is_not_slow_is_not_called_so(step, attention_, config):
    rest = 100 - attention_.ms
    assert not of_rule(step(attention_, conv(rest / 2, 1000), norm(rest / 2), config=config), "slow")


def test_a_slow_part_explains_what_it_would_save_at_the_rate_of_the_rest(step):
    profile = step(norm(50), attention(20, 10), conv(30, 150))  # 0.5 against 5 FLOPs in a millisecond
    (finding,) = of_rule(profile, "slow")
    assert finding.weight == pytest.approx(0.2 * (1 - 0.1))


def test_one_module_with_most_of_the_time_is_named(step):
    head = OperatorTime("head", "aten::linear", "forward", 70, 1, 2000)
    profile = step(head, conv(20, 4000), norm(10))
    assert any(finding.path == "head" and "70 % of the step" in finding.text for finding in findings(profile))
    inner = step(attention(30, 9000), proj(40, 9000), conv(30, 9000))
    assert text_of(inner, "one module") == "one module, attn, has 70 % of the step"


def test_a_module_that_is_most_of_the_model_is_no_finding(layer, container, model_of):
    inside = [layer(f"body.{index}", "Linear", flops=10 + index) for index in range(6)]
    profile = model_of("Net", [container("body", "Sequential", inside), *inside, layer("head", "Linear", flops=9)])
    times = {"": 7.0, "body": 6.0, "head": 1.0, **{row.path: 1.0 for row in inside}}
    assert not of_rule(profile.with_latency(LatencySummary(7.0), times), "one module")


def test_python_and_launches_are_said_with_what_helps(step):
    profile = step(conv(60), python(25), python(15, "attn"))
    assert text_of(profile, "python") == "40 % of the step is Python and launches: try torch.compile"
    compiled = replace(profile, modules=tuple(replace(row, note="compiled") for row in profile.modules))
    assert "a larger batch" in text_of(compiled, "python")
    assert not of_rule(step(conv(85), python(15)), "python")


def test_a_device_without_work_is_said(step):
    idle = OperatorTime(None, IDLE, "forward", 30)
    assert text_of(step(conv(70), idle), "idle").startswith("the device is idle for 30 % of the step")
    assert not of_rule(step(conv(270), idle), "idle")


def test_waiting_for_data_is_said(step):
    profile = step(conv(70), training={"perf/data_wait_pct": 15.2})
    assert text_of(profile, "data") == "15 % of the time waits for data: try more workers (num_workers=)"
    assert not of_rule(step(conv(70), training={"perf/data_wait_pct": 4.9}), "data")


@pytest.mark.parametrize(
    ("backward", "flops", "text"),
    [
        (62, StepFlops(1000, 2000), "backward takes 3.1 times the forward, for 2.0 times its FLOPs"),
        (62, None, "backward takes 3.1 times the forward, for 2.0 times its FLOPs"),  # that of every product
        (58, StepFlops(1000, 2000), ""),
        (62, StepFlops(1000, 3000), ""),
        (34, StepFlops(1000, 1000), "backward takes 1.7 times the forward, for 1.0 times its FLOPs"),
    ],
)
def test_a_backward_that_is_longer_than_its_flops_is_said(step, backward, flops, text):
    profile = step(conv(20), conv(backward, 2000, "backward"), step=flops)
    assert [finding.text for finding in of_rule(profile, "backward")] == [text] * bool(text)


def test_a_long_backward_explains_its_excess(step):
    profile = step(conv(20), conv(80, 2000, "backward"))
    (finding,) = of_rule(profile, "backward")
    assert finding.weight == pytest.approx((80 - 2 * 20) / 100)


@pytest.mark.parametrize(
    ("operator", "text"),
    [
        ("AdamW.step", "optimizer (AdamW): 22 % of the step: try fused=True, if it is not on"),
        ("Lion.step", "optimizer (Lion): 22 % of the step: a larger batch makes it a smaller part"),
        ("aten::_fused_adamw_", "optimizer: 22 % of the step: a larger batch makes it a smaller part"),
    ],
)
def test_a_slow_optimizer_is_said(step, operator, text):
    profile = step(conv(78), OperatorTime(None, operator, "optimizer", 22))
    assert text_of(profile, "optimizer") == text
    assert not of_rule(step(conv(92), OperatorTime(None, operator, "optimizer", 8)), "optimizer")


def test_an_optimizer_that_takes_the_most_time_is_the_first_sentence(step):
    first = findings(step(conv(40), OperatorTime(None, "SGD.step", "optimizer", 60)))[0]
    assert first.text.startswith("optimizer (SGD): 60 % of the step")
    assert first.rule == "optimizer"


@pytest.mark.parametrize(
    ("phase", "rule", "text"),
    [
        ("recompute", "recomputation", "recomputation: 24 % of the step, the price of activation checkpointing"),
        ("without_grad", "without grad", "forward without autograd, as of a teacher: 24 % of the step"),
    ],
)
def test_further_phases_are_said(step, phase, rule, text):
    assert text_of(step(conv(76), conv(24, 10, phase)), rule) == text
    assert not of_rule(step(conv(92), conv(8, 10, phase)), rule)


def test_bytes_that_need_much_of_the_time_are_said_where_the_bandwidth_is_known(step):
    def told(bandwidth, moved=40_000_000, compiled=""):
        config = {"flops.peak_tflops": 1.0, "flops.peak_gb_per_s": bandwidth}
        work = OperatorTime("conv", CONV, "forward", 50, 1, 1000, moved), replace(norm(50), bytes=0)
        profile = step(*work, config=config)
        rows = tuple(replace(row, note=compiled) for row in profile.modules)
        return [(each.text, each.weight) for each in of_rule(replace(profile, modules=rows), "memory")]

    # 40 MB at 1 GB/s take 40 ms of 100.
    said = "bytes take 40 % of the step at the memory's full bandwidth"
    assert told(1.0) == [(f"{said}: torch.compile may move fewer", pytest.approx(0.4))]
    assert told(1.0, compiled="compiled") == [(f"{said}: a lower precision moves fewer", pytest.approx(0.4))]
    # More than its time cannot be explained.
    assert told(0.5) == [(f"{said}: torch.compile may move fewer".replace("40", "50"), pytest.approx(0.5))]
    assert told(1.0, moved=20_000_000) == told(1.0, moved=None) == told(None) == []


def test_noise_is_said(step):
    noisy = step(conv(100), latency=replace(LATENCY, step_spread=(60.0, 140.0)))
    assert of_rule(noisy, "noise") == [Finding("noisy machine: times ±40 %", pytest.approx(0.4), "noise", None)]
    assert not of_rule(step(conv(100)), "noise")


def test_a_model_without_products_and_without_a_peak_has_findings(step):
    softmax = OperatorTime("attn", "aten::softmax", "forward", 39)
    found = findings(step(norm(60), softmax, OperatorTime("attn.proj", "aten::add", "forward", 1)))
    assert [finding.text.partition(";")[0] for finding in found[:2]] == [
        "norm (BatchNorm2d): no products, 60 % of the step",
        "attn: softmax: no products, 39 % of the step",
    ]


def test_work_outside_of_the_model_is_told_from_that_of_its_modules(step):
    found = findings(step(conv(80), OperatorTime(None, "NllLossBackward0", "backward", 20)))
    assert "nll_loss, outside of the model: no products, 20 % of the step" in [finding.text for finding in found]


def test_times_of_rows_without_operators_are_enough(model_of, layer):
    profile = model_of("Net", [layer("conv", "Conv2d", flops=100), layer("norm", "BatchNorm2d")])
    times = {"": StepTime(6.0, 4.0), "conv": StepTime(1.0, 2.0), "norm": StepTime(4.0, 2.0)}
    first = findings(profile.with_latency(LATENCY).with_times(times, ()))[0]
    assert first.text == "norm (BatchNorm2d): no products, 60 % of the step"


def test_every_rule_is_in_the_table_once():
    assert len(set(RULES)) == len(RULES)


def test_a_model_that_is_one_module_has_its_class_for_a_name():
    rows = (ModuleRow("", None, 0, "Net", flops=5, own_flops=5),)
    (only,) = findings(ModelProfile("Net", modules=rows, forward_flops=5))
    assert only.text == "Net has 100 % of the FLOPs; no times were measured"
