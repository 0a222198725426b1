"""The rows of the page and their shares: folds, what modules do themselves, and that all of it adds up."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flopcallback.profile.model_profile import ModelProfile
from flopcallback.profile.rows import LatencySummary, ModuleRow, StepFlops
from flopcallback.profile.times import IDLE, PYTHON, OperatorTime, StepTime
from flopcallback.reporting.page.icicle import Icicle
from flopcallback.reporting.page.own_work import short_name
from flopcallback.reporting.page.page_rows import page_rows


def attention_profile() -> ModelProfile:
    """A model of one attention, whose own product takes half of a step of 100 ms, and whose `q` takes 20."""
    step = {"": StepFlops(90, 180), "attn": StepFlops(90, 180), "attn.q": StepFlops(40, 80)}
    rows = (
        ModuleRow("", None, 0, "Net", 1, flops=90),
        ModuleRow("attn", "", 1, "Attention", 1, flops=90, own_flops=50),
        ModuleRow("attn.q", "attn", 2, "Linear", 1, flops=40, own_flops=40),
    )
    times = {
        "": StepTime(forward=40, backward=45, optimizer=15),
        "attn": StepTime(forward=35, backward=45),
        "attn.q": StepTime(forward=10, backward=10),
    }
    operators = (
        OperatorTime("attn.q", "aten::linear", "forward", 10, 1, 40),
        OperatorTime("attn.q", "AddmmBackward0", "backward", 10, 1, 80),
        OperatorTime("attn", "aten::scaled_dot_product_attention", "forward", 20, 1, 50),
        OperatorTime("attn", "aten::scaled_dot_product_attention", "backward", 30, 1, 100),
        OperatorTime("attn", PYTHON, "forward", 5),
        OperatorTime("attn", "aten::view", "backward", 5 - 0.04, 3),
        OperatorTime("attn", "aten::size", "backward", 0.04, 1),
        OperatorTime("", PYTHON, "forward", 1),
        OperatorTime(None, "aten::cross_entropy_loss", "forward", 4, 1),
        OperatorTime(None, "AdamW.step", "optimizer", 15, 1),
    )
    latency = LatencySummary(34.0, 100.0, 20)
    profile = ModelProfile("Net", "train", rows, forward_flops=90)
    return profile.with_step(step).with_latency(latency).with_times(times, operators)


def inside(page, name):
    """Name, time and FLOPs of a step of each row inside one."""
    at = next(index for index, row in enumerate(page.rows) if row.name == name)
    rows = [page.rows[child] for child in page.tree[at]]
    return [(row.name, pytest.approx(row.row.time.total), row.row.step.total) for row in rows]


def test_a_modules_own_operators_are_rows_with_their_times_and_flops():
    page = page_rows(attention_profile())
    assert inside(page, "attn") == [
        ("q", 20, 120),
        ("scaled_dot_product_attention", 50, 150),
        (PYTHON, 5, 0),
        ("view", 4.96, 0),
        ("other operators", 0.04, 0),  # less than 0.05 % of the step
    ]


def test_what_runs_outside_of_the_model_stands_by_phase():
    page = page_rows(attention_profile())
    assert inside(page, "Net") == [("attn", 80, 270), (PYTHON, 1, 0), ("outside of the model", 19, 0)]
    assert inside(page, "outside of the model") == [("optimizer", 15, 0), ("loss and other forward work", 4, 0)]
    assert inside(page, "optimizer") == [("AdamW.step", 15, 0)]


def test_in_the_forward_nothing_outside_of_the_model_counts():
    icicle = Icicle(profile := attention_profile(), page_rows(profile))
    totals = {key: figure.total for key, figure in icicle.figures.items()}
    assert totals == {"forward flops": 90, "forward time": 36, "step flops": 270, "step time": 100}


def test_types_are_shares_of_the_whole_step():
    icicle = Icicle(profile := attention_profile(), page_rows(profile))
    assert [(row.type, row.modules, row.flops, row.time) for row in icicle.types(9)] == [
        ("Attention: scaled_dot_product_attention", None, "55.6 %", "50.0 %"),
        ("Linear", 1, "44.4 %", "20.0 %"),
        ("outside of the model", None, "0.0 %", "19.0 %"),
        ("Python and launches, between modules", None, "0.0 %", "6.0 %"),
        ("Attention: view", None, "0.0 %", "5.0 %"),
        ("Attention: other operators", None, "0.0 %", "<0.1 %"),
    ]


def test_in_lightning_the_work_of_the_step_is_the_rows_that_stands_for_it():
    profile = attention_profile()
    step = ModuleRow("(training_step)", "", 1, "", 1, step=StepFlops(), time=StepTime(forward=5, optimizer=15), flops=0)
    page = page_rows(dataclasses.replace(profile, modules=(*profile.modules, step)))
    assert inside(page, "Net") == [("attn", 80, 270), ("(training_step)", 20, 0)]
    assert inside(page, "(training_step)") == [(PYTHON, 1, 0), ("outside of the model", 19, 0)]


def test_operators_that_exceed_their_module_are_not_shown():
    profile = attention_profile()
    more = OperatorTime("attn", "aten::mul", "forward", 7)
    page = page_rows(dataclasses.replace(profile, operator_times=(*profile.operator_times, more)))
    assert inside(page, "attn") == [("q", 20, 120), ("own operators", 60, 150)]


def test_without_operators_what_is_left_of_a_module_is_one_row():
    page = page_rows(dataclasses.replace(attention_profile(), operator_times=()))
    assert inside(page, "attn") == [("q", 20, 120), ("own operators", 60, 150)]
    assert inside(page, "Net") == [("attn", 80, 270), ("own operators", 20, 0)]


def test_waiting_is_told_from_operators_without_flops():
    profile = attention_profile()
    operators = [
        dataclasses.replace(each, operator=IDLE) if each.operator == "aten::view" else each
        for each in profile.operator_times
    ]
    page = page_rows(dataclasses.replace(profile, operator_times=tuple(operators)))
    waiting = Icicle(profile, page).data()["waiting"]
    assert {(page.rows[at].name, word) for at, word in waiting.items()} == {(PYTHON, "python"), (IDLE, "idle")}


def test_times_of_parts_that_exceed_the_whole_add_up_all_the_same(lenet):
    """As of older versions, whose medians came from different steps."""
    times = {row.path: 1.0 for row in lenet.modules}
    profile = lenet.with_latency(LatencySummary(1.0), times)
    icicle = Icicle(profile, page_rows(profile))
    assert icicle.figures["forward time"].total == 7
    assert [row.time for row in icicle.types(9)] == ["42.9 %", "28.6 %", "28.6 %"]  # of three, two and two layers


@pytest.mark.parametrize(
    ("operator", "name"),
    [
        ("aten::conv2d", "conv2d"),
        ("aten::convolution_backward", "convolution_backward"),
        ("AddmmBackward0", "addmm backward"),
        ("ScaledDotProductFlashAttentionForCpuBackward0", "scaled_dot_product_flash_attention_for_cpu backward"),
        ("NLLLossBackward0", "nll_loss backward"),
        ("CompiledFunctionBackward", "compiled_function backward"),
        ("mylib::op", "mylib::op"),
        (PYTHON, PYTHON),
    ],
)
def test_operators_have_the_names_that_readers_know(operator, name):
    assert short_name(operator) == name


# --- Anything adds up -------------------------------------------------------------------------------------------------


@st.composite
def profiles(draw) -> ModelProfile:
    """Random nets with random work in each module, some of them runs of equal layers."""
    own, kinds = {"": draw(st.integers(0, 50))}, {"": "Net"}

    def add(parent, depth):
        for index in range(draw(st.integers(0, 3 if depth else 4))):
            path = f"{parent}.m{index}".lstrip(".")
            for copy in range(draw(st.sampled_from([1, 1, 3]))):
                name = f"{path}_{copy}"
                own[name], kinds[name] = draw(st.integers(0, 2)), "Layer"
                if depth < 2:
                    add(name, depth + 1)

    add("", 0)
    operators, times, steps, flops = [], {}, {}, {}
    for path, work in reversed(own.items()):
        parts = [OperatorTime(path, "aten::mm", "forward", 3.0 * work + 0.5, 1, 7 * work)]
        parts.append(OperatorTime(path, PYTHON, "backward", 0.25))
        if not path:
            parts.append(OperatorTime(None, "aten::mm", "optimizer", 2.0, 1, 11))
        operators += parts
        flops[path] = flops.get(path, 0) + 7 * work
        for part in parts:
            times[path] = times.get(path, StepTime()) + StepTime(**{part.phase: part.ms})
            steps[path] = steps.get(path, StepFlops()) + StepFlops(**{part.phase: part.flops})
        if path:
            parent = path.rpartition(".")[0]
            times[parent] = times.get(parent, StepTime()) + times[path]
            steps[parent] = steps.get(parent, StepFlops()) + steps[path]
            flops[parent] = flops.get(parent, 0) + flops[path]
    rows = tuple(
        ModuleRow(
            path, path.rpartition(".")[0] if path else None, path.count(".") + bool(path), kinds[path], 1,
            flops=flops[path], own_flops=7 * work,
        )
        for path, work in own.items()
    )  # fmt: skip
    profile = ModelProfile("Net", "train", rows, forward_flops=flops[""]).with_step(steps)
    step_ms = times[""].total
    return profile.with_latency(LatencySummary(times[""].forward, step_ms, 20)).with_times(times, operators)


@settings(max_examples=60, deadline=None)
@given(profiles())
def test_whatever_a_row_contains_adds_up_to_it_folded_or_not(profile):
    page = page_rows(profile)
    for at, below in enumerate(page.tree):
        if below:
            row, parts = page.rows[at].row, [page.rows[child].row for child in below]
            assert math.isclose(row.time.total, sum(part.time.total for part in parts), rel_tol=1e-5)
            assert row.step.total == sum(part.step.total for part in parts)
            assert row.flops == sum(part.flops for part in parts)
    icicle = Icicle(profile, page)
    assert math.isclose(icicle.figures["step time"].total, profile.root.time.total, rel_tol=1e-5)
    assert icicle.figures["step flops"].total == profile.step.total
    for figure in icicle.figures.values():
        single = [share for share, row in zip(figure.shares(), page.rows, strict=True) if not row.is_in_fold]
        # Each share is rounded once.
        assert abs(sum(single) - 10_000_000) <= len(single)
