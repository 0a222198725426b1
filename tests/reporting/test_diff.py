"""The difference of two profiles: module by module, adding up to the change of the total, and held against limits."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction

import pytest

from flopcallback.profile.diff import diff_profiles, parse_share
from flopcallback.profile.model_profile import ModelProfile
from flopcallback.profile.rows import OperatorRow, StepFlops
from flopcallback.reporting.text.diff_table import diff_record, diff_text, markdown_diff, signed_percent


def with_config(profile, **values):
    return replace(profile, config={**profile.config, **{f"flops.{key}": value for key, value in values.items()}})


def with_unknown(profile, **calls):
    """The profile with calls of operators that no formula counts."""
    rows = tuple(OperatorRow(name, count, 0, status="unknown") for name, count in calls.items())
    return replace(
        with_config(profile, is_lower_bound=True),
        operators=profile.operators + rows,
        unknown={**profile.unknown, **dict.fromkeys(calls, "no formula")},
    )


def paths(diff):
    return [(change.status, change.path) for change in diff.changes]


# --- Modules ----------------------------------------------------------------------------------------------------------


def test_a_profile_does_not_differ_from_itself(lenet):
    diff = diff_profiles(lenet, lenet)
    assert (diff.changes, diff.notes, diff.new_unknown) == ((), (), ())
    assert "no module changed" in diff_text(diff)


def test_changes_are_listed_by_their_size_and_unchanged_modules_are_not(model_of, layer):
    before = model_of("Net", [layer("a", "Linear", flops=30), layer("b", "Linear", flops=70), layer("c", "Linear")])
    after = model_of("Net", [layer("a", "Linear", flops=37), layer("b", "Linear", flops=17), layer("c", "Linear")])
    diff = diff_profiles(before, after)
    assert paths(diff) == [("changed", "b"), ("changed", "a")]
    assert [change.flops for change in diff.changes] == [17 - 70, 37 - 30]


def test_an_added_or_removed_module_comes_with_all_that_is_in_it(model_of, layer, container):
    inside = [layer("block.up", "Linear", flops=11), layer("block.down", "Linear", flops=13)]
    with_block = model_of("Net", [container("block", "MLP", inside), *inside])
    without = model_of("Net", [])
    added, removed = diff_profiles(without, with_block), diff_profiles(with_block, without)
    assert paths(added) == [("added", "block")]
    assert added.changes[0].after["flops"] == added.changes[0].flops == 11 + 13
    assert paths(removed) == [("removed", "block")]
    assert removed.changes[0].flops == -(11 + 13)


def test_of_a_container_only_its_own_operators_are_a_change(model_of, layer, container):
    inside = [layer("attention.q", "Linear", flops=11)]
    before = model_of("Net", [container("attention", "Attention", inside, own_flops=5), *inside])
    after = model_of("Net", [container("attention", "Attention", inside, own_flops=2), *inside])
    (change,) = diff_profiles(before, after).changes
    assert (change.path, change.is_own, change.before["flops"], change.after["flops"]) == ("attention", True, 5, 2)


def test_all_changes_together_are_the_change_of_the_total(decoder, model_of, layer):
    profiles = [decoder(layers=2), decoder(layers=5), model_of("Net", [layer("lm_head", "Linear", flops=7)])]
    for before in profiles:
        for after in profiles:
            diff = diff_profiles(before, after)
            assert sum(change.flops for change in diff.changes) == after.forward_flops - before.forward_flops


def test_alike_changes_of_a_stack_are_one_with_their_sum(model_of, layer, container):
    def stack(width, count):
        heads = [layer(f"layers.{index}.mlp2", "Linear", params=width, flops=3 * width) for index in range(count)]
        blocks = [container(f"layers.{index}", "Block", heads) for index in range(count)]
        rows = [row for pair in zip(blocks, heads, strict=True) for row in pair]
        return model_of("Net", [container("layers", "ModuleList", rows), *rows])

    wider, longer = diff_profiles(stack(5, 11), stack(7, 11)), diff_profiles(stack(5, 11), stack(5, 13))
    (change,) = wider.changes
    assert (change.path, change.modules, change.flops) == ("layers.*.mlp2", 11, 11 * 3 * (7 - 5))
    assert (change.before["params"], change.after["params"]) == (11 * 5, 11 * 7)
    (change,) = longer.changes
    assert (change.status, change.path, change.modules, change.flops) == ("added", "layers.*", 2, 2 * 3 * 5)


def test_a_module_of_another_class_is_a_change_even_with_the_same_figures(model_of, layer):
    before, after = model_of("Net", [layer("a", "ReLU")]), model_of("Net", [layer("a", "GELU")])
    (change,) = diff_profiles(before, after).changes
    assert (change.type, change.flops) == ("ReLU → GELU", 0)


def test_a_time_is_a_change_where_the_spreads_do_not_meet(lenet):
    def timed(ms, spread):
        times = {row.path: 1.0 for row in lenet.modules} | {"fc1": ms}
        spreads = {row.path: (0.9, 1.1) for row in lenet.modules} | {"fc1": spread}
        return replace(lenet, modules=lenet.with_latency(lenet.latency, times, spreads).modules)

    usual = timed(1.0, (0.9, 1.1))
    assert diff_profiles(usual, timed(1.05, (1.0, 1.2))).changes == ()
    (change,) = diff_profiles(usual, timed(1.3, (1.2, 1.5))).changes
    assert (change.path, change.before["forward_ms"], change.after["forward_ms"]) == ("fc1", 1.0, 1.3)
    assert paths(diff_profiles(timed(1.3, (1.2, 1.5)), usual)) == [("changed", "fc1")]


# --- Conditions -------------------------------------------------------------------------------------------------------


def test_elementwise_work_which_is_in_macs_alone_makes_no_difference(lenet):
    other = replace(with_config(lenet, elementwise=True), forward_macs=lenet.forward_macs + 7)
    diff = diff_profiles(lenet, other)
    assert (diff.changes, diff.notes) == ((), ())


@pytest.mark.parametrize(
    ("key", "value", "note"),
    [
        ("input_shapes", [[2, 1, 32, 32]], "input shapes differs: [[1, 1, 32, 32]] before, [[2, 1, 32, 32]] after"),
        ("device", "cuda:0", "device differs: cpu before, cuda:0 after"),
        ("engine", "dispatch", "engine differs: trace before, dispatch after"),
    ],
)
def test_what_else_was_not_alike_is_said(lenet, key, value, note):
    diff = diff_profiles(lenet, with_config(lenet, **{key: value}))
    assert diff.notes == (note,)
    assert note in diff_text(diff, width=200)
    assert diff.has_same_inputs == (key != "input_shapes")


def test_another_model_and_another_phase_are_said(lenet):
    notes = diff_profiles(lenet, replace(lenet, name="Other", phase="call")).notes
    assert notes == ("model differs: LeNet before, Other after", "phase differs: train before, call after")


# --- Limits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "share"),
    [("2%", Fraction(2, 100)), (" 2.5 % ", Fraction(25, 1000)), ("0.02", Fraction(2, 100)), (0.3, Fraction(3, 10))],
)
def test_a_share_is_read_exactly_as_it_is_written(text, share):
    assert parse_share(text) == share


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2", r"'2' could be a share or percent: write 2%, or a number below 1"),
        ("two", r"'two' is no share, such as 2% or 0\.02"),
        ("1/0", r"'1/0' is no share"),
        ("nan", r"'nan' is no share"),
        ("-1%", r"'-1%' is below 0"),
    ],
)
def test_what_could_be_misread_as_a_share_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_share(text)


def test_a_limit_holds_to_the_last_flop():
    before = ModelProfile("Net", forward_flops=10**30)
    at_limit = replace(before, forward_flops=10**30 + 3 * 10**29)
    beyond = replace(before, forward_flops=10**30 + 3 * 10**29 + 1)
    assert not diff_profiles(before, at_limit).flops_exceed(parse_share(0.3))
    assert diff_profiles(before, beyond).flops_exceed(parse_share(0.3))


def test_fewer_flops_never_exceed_a_limit_and_the_first_flop_exceeds_any():
    nothing, some = ModelProfile("Net"), ModelProfile("Net", forward_flops=7)
    assert not diff_profiles(some, nothing).flops_exceed(Fraction(0))
    assert diff_profiles(nothing, some).flops_exceed(parse_share("99%"))


def test_times_have_a_limit_where_both_were_measured(lenet, measured):
    once = measured(lenet)
    slower = replace(once, latency=replace(once.latency, forward_ms=1.5 * once.forward_ms))
    assert diff_profiles(once, slower).latency_exceeds(parse_share("49%"))
    assert not diff_profiles(once, slower).latency_exceeds(parse_share("51%"))
    with pytest.raises(ValueError, match="needs two profiles with measured times"):
        diff_profiles(once, lenet).latency_exceeds(Fraction(0))


def test_what_is_unknown_in_the_second_alone_or_more_often_there_is_named(lenet):
    once, twice = with_unknown(lenet, solve=1), with_unknown(lenet, solve=2)
    assert diff_profiles(lenet, once).new_unknown == ("solve",)
    assert diff_profiles(once, twice).new_unknown == ("solve",)
    assert diff_profiles(once, once).new_unknown == ()
    assert diff_profiles(twice, once).new_unknown == ()
    assert "unknown now, so counted as 0: solve" in diff_text(diff_profiles(lenet, once))


# --- Texts ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def wider(model_of, layer):
    """`a_1` with 3 parameters and 400 FLOPs more, `b` gone, `c|d` new."""
    before = model_of("Net", [layer("a_1", "Linear", params=5, flops=600), layer("b", "ReLU", flops=50)])
    after = model_of("Net", [layer("a_1", "Linear", params=8, flops=1000), layer("c|d", "ReLU", flops=60)])
    return diff_profiles(before, after)


def test_totals_come_first_with_their_change(wider):
    first, params, *_ = diff_text(wider).splitlines()
    assert first == "Net: 650 → 1,060 FLOPs (+410, +63.1 %)"  # 410 / 650
    assert params == "parameters: 5 → 8 (+3, +60.0 %)"


def test_rows_have_both_figures_and_the_change(wider):
    rows = [line.split() for line in diff_text(wider).splitlines()]
    assert ["a_1", "Linear", "600", "→", "1.00", "k", "+400", "+66.7", "%", "+3"] in rows
    assert ["+", "c|d", "ReLU", "–", "→", "60", "+60"] in rows
    assert ["-", "b", "ReLU", "50", "→", "–", "-50"] in rows


def test_markdown_keeps_its_columns_whatever_the_names(wider):
    text = markdown_diff(wider)
    rows = [line.replace("\\|", "") for line in text.splitlines() if line.startswith("|")]
    assert len({row.count("|") for row in rows}) == 1
    assert text.startswith("**Net: 650 → 1,060 FLOPs (+410, +63.1 %)**\n\n- parameters: 5 → 8")
    assert "| a\\_1 |" in text


def test_a_long_list_is_cut_and_the_rest_added_up(flat):
    before, after = flat(7), flat(0)
    diff = diff_profiles(before, after)  # 7 layers of 1,000 to 7,000 FLOPs that nothing folds
    text = diff_text(diff, max_rows=2)
    assert "layer6" in text
    assert "layer4" not in text
    assert "and 5 more modules, -15.0 k FLOPs together" in text  # 1 + 2 + 3 + 4 + 5 thousand
    assert "and 5 more" in markdown_diff(diff, max_rows=2)


def test_lower_bounds_are_marked(lenet):
    first, *_ = diff_text(diff_profiles(lenet, with_unknown(lenet, solve=1))).splitlines()
    assert f"{lenet.forward_flops:,} → >= {lenet.forward_flops:,} FLOPs" in first


def test_times_stand_in_the_text_where_both_were_measured(lenet, measured):
    once = measured(lenet)
    assert "forward ms:" in diff_text(diff_profiles(once, once))
    assert "forward ms:" not in diff_text(diff_profiles(lenet, once))


def test_training_steps_are_compared_where_both_were_observed(lenet):
    once = lenet.with_step({"": StepFlops(forward=30, backward=60)})
    more = lenet.with_step({"": StepFlops(forward=30, backward=60, recompute=45)})
    assert "train step: 90 → 135 FLOPs (+45, +50.0 %)" in diff_text(diff_profiles(once, more))
    assert "train step" not in diff_text(diff_profiles(lenet, more))


def test_the_record_is_strict_json_with_exact_integers():
    before, after = ModelProfile("Net", forward_flops=2**70), ModelProfile("Net", forward_flops=2**70 + 1)
    record = json.loads(json.dumps(diff_record(diff_profiles(before, after)), allow_nan=False))
    assert record["after"]["flops"] - record["before"]["flops"] == 1


def test_the_record_has_every_change_with_both_sides(wider):
    changes = {change["path"]: change for change in diff_record(wider)["changes"]}
    assert changes["a_1"]["before"]["flops"] == 600
    assert changes["a_1"]["flops_change"] == 1000 - 600
    assert (changes["b"]["status"], changes["b"]["after"]) == ("removed", None)


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [(100, 103, "+3.0 %"), (100, 97, "-3.0 %"), (0, 7, "new"), (7, 7, "0 %"), (10**6, 10**6 + 1, "+<0.1 %")],
)
def test_percentages_have_their_sign(before, after, text):
    assert signed_percent(before, after) == text
