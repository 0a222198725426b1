from __future__ import annotations

import dataclasses
import json
import math
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flopcallback.reporting import LatencySummary, ModelProfile, ModuleRow, OperatorRow, StepFlops

BEYOND_64_BITS = 2**80 + 1


def row(profile, path):
    return next(each for each in profile.modules if each.path == path)


def test_the_reference_net_adds_up(lenet):
    assert (lenet.forward_flops, lenet.forward_macs) == (2 * 274_656, 274_656)
    assert {each.path: each.flops for each in lenet.modules if each.flops} == {
        "": 2 * 274_656,
        "conv1": 2 * 48_600,
        "conv2": 2 * 146_016,
        "fc1": 2 * 69_120,
        "fc2": 2 * 10_080,
        "fc3": 2 * 840,
    }


def test_shares_are_of_the_whole_call(lenet, measured):
    profile = measured(lenet)
    assert profile.flops_share(row(profile, "conv2")) == 146_016 / 274_656
    assert profile.params_share(row(profile, "conv1")) == 60 / (60 + 880 + 69_240 + 10_164 + 850)
    assert profile.latency_share(row(profile, "pool1")) == pytest.approx(0.1 / profile.forward_ms)


def test_achieved_flops_are_those_of_the_forward_over_its_time(lenet):
    profile = lenet.with_latency(LatencySummary(forward_ms=4.0), {"fc1": 0.5})
    assert profile.achieved_flops_per_s(row(profile, "fc1")) == 2 * 576 * 120 / 0.5e-3
    assert profile.achieved_flops_per_s(row(profile, "fc2")) is None


def test_a_profile_of_nothing_has_no_shares():
    empty = ModelProfile("Identity", modules=(ModuleRow("", None, 0, "Identity"),))
    assert empty.flops_share(empty.modules[0]) is None
    assert empty.params_share(empty.modules[0]) is None
    assert empty.latency_share(empty.modules[0]) is None


def test_operators_stand_by_flops():
    profile = ModelProfile("Net", operators=(OperatorRow("a", 1, 3), OperatorRow("b", 1, 7), OperatorRow("c", 1, 5)))
    assert [each.operator for each in profile.operators] == ["b", "c", "a"]


def test_latency_fills_in_times_by_path_and_leaves_the_counts_alone(lenet):
    summary = LatencySummary(forward_ms=1.5, step_ms=4.5, steps=20, how="CPU clock")
    profile = lenet.with_latency(summary, {"": 1.5, "fc1": 0.25, "gone": 9.0}, {"fc1": (0.2, 0.4)})
    assert row(profile, "fc1").forward_ms == 0.25
    assert row(profile, "fc1").forward_ms_spread == (0.2, 0.4)
    assert row(profile, "conv1").forward_ms is None
    assert profile.latency == summary
    assert dataclasses.replace(row(profile, "fc1"), forward_ms=None, forward_ms_spread=None) == row(lenet, "fc1")
    assert row(lenet, "fc1").forward_ms is None


def test_a_second_measurement_does_not_mix_with_the_first(lenet):
    first = lenet.with_latency(LatencySummary(1.0), {"fc1": 0.25})
    second = first.with_latency(LatencySummary(2.0), {"fc2": 0.5})
    assert row(second, "fc1").forward_ms is None


def test_scalars_have_the_names_of_the_metrics_page_and_only_what_is_known(lenet):
    assert lenet.scalars() == {
        "flops/forward": 2 * 274_656,
        "flops/forward_per_sample": 2 * 274_656,
        "model/params": 60 + 880 + 69_240 + 10_164 + 850,
        "model/params_trainable": 60 + 880 + 69_240 + 10_164 + 850,
        "model/activations": 6 * 30 * 30 + 16 * 13 * 13 + 120 + 84 + 10,
    }


def test_parts_of_which_there_is_nothing_have_no_number(lenet):
    step = {"": StepFlops(forward=7, backward=14)}
    assert {name for name in lenet.with_step(step).scalars() if name.startswith("flops/")} == {
        "flops/forward",
        "flops/forward_per_sample",
        "flops/train_step",
        "flops/backward",
    }
    empty = ModelProfile("Nothing", modules=(ModuleRow("", None, 0, "Nothing"),)).scalars()
    assert (empty["flops/forward"], empty["model/params"]) == (0, 0)  # these say something


def test_scalars_gain_times_once_they_are_measured(lenet):
    values = lenet.with_latency(LatencySummary(forward_ms=1.5, step_ms=4.5, steps=20)).scalars()
    assert (values["latency/forward_ms"], values["latency/step_ms"]) == (1.5, 4.5)


@pytest.mark.parametrize("phase", ["validate", "test", "predict"])
def test_other_phases_stand_in_front_of_their_names(lenet, phase):
    profile = dataclasses.replace(lenet, phase=phase)
    assert profile.scalars()[f"{phase}/flops/forward"] == 2 * 274_656
    assert all(name.startswith(f"{phase}/") for name in profile.scalars())


def test_flops_per_sample_stay_exact_where_they_divide():
    exact = ModelProfile("Net", batch_size=3, forward_flops=3 * BEYOND_64_BITS)
    assert exact.scalars()["flops/forward_per_sample"] == BEYOND_64_BITS
    assert ModelProfile("Net", batch_size=2, forward_flops=7).scalars()["flops/forward_per_sample"] == 3.5
    assert "flops/forward_per_sample" not in ModelProfile("Net", batch_size=0, forward_flops=7).scalars()


def test_unknown_calls_are_the_calls_of_unknown_operators():
    operators = (OperatorRow("aten::linear", 5, 10), OperatorRow("my::op", 3, 0, status="unknown"))
    profile = ModelProfile("Net", operators=operators, unknown={"my::op": "no formula"})
    assert profile.scalars()["flops/unknown_calls"] == 3
    assert profile.is_lower_bound


def test_modules_that_could_not_be_seen_are_unknown_calls_too():
    root = ModuleRow("", None, 0, "Net", calls=1, unknown_calls=3 + 1)
    operators = (OperatorRow("my::op", 3, 0, status="unknown"),)
    unknown = {"my::op": "no formula", "module part": "could not be traced"}
    profile = ModelProfile("Net", modules=(root,), operators=operators, unknown=unknown)
    assert profile.scalars()["flops/unknown_calls"] == 3 + 1


def test_the_config_says_whether_the_total_is_a_lower_bound():
    harmless = ModelProfile("Net", unknown={"my::shuffle": "no formula"}, config={"flops.is_lower_bound": False})
    assert not harmless.is_lower_bound


def test_json_gives_back_the_same_profile(lenet, measured, decoder):
    for profile in (lenet, measured(lenet), measured(decoder()), ModelProfile("Empty")):
        assert ModelProfile.from_json(profile.to_json()) == profile
        assert ModelProfile.from_json(profile.to_json(indent=1)) == profile


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@given(
    path=st.text(min_size=1),
    flops=st.integers(0, 2**200),
    # Those of ours have types of their own; hypothesis takes their names from the source.
    config=st.dictionaries(st.text().filter(lambda name: not name.startswith("flops.")), json_values),
    time=st.none() | st.floats(0, 1e300),
)
def test_json_keeps_any_name_any_integer_and_any_config(path, flops, config, time):
    rows = (ModuleRow("", None, 0, "Net"), ModuleRow(path, "", 1, path, flops=flops, forward_ms=time))
    profile = ModelProfile("Net", modules=rows, forward_flops=flops, config=config)
    assert ModelProfile.from_json(profile.to_json()) == profile


def test_integers_beyond_64_bits_stand_in_the_json_digit_by_digit():
    profile = ModelProfile("Huge", forward_flops=BEYOND_64_BITS)
    assert str(BEYOND_64_BITS) in profile.to_json()
    assert ModelProfile.from_json(profile.to_json()).forward_flops == BEYOND_64_BITS


def test_json_is_strict_where_times_are_not_finite():
    rows = (ModuleRow("", None, 0, "Net", forward_ms=math.nan, forward_ms_spread=(0.5, math.inf)),)
    text = ModelProfile("Net", modules=rows, config={"flops.peak": math.inf}).to_json()

    def refuse(constant):
        raise AssertionError(constant)

    content = json.loads(text, parse_constant=refuse)
    assert content["modules"][0]["forward_ms"] is None
    assert content["config"] == {"flops.peak": None}


@pytest.mark.parametrize("schema", [0, 5, None])
def test_another_schema_is_refused_by_name(schema):
    content = json.loads(ModelProfile("Net").to_json())
    content["flopcallback_profile"] = schema
    with pytest.raises(ValueError, match=rf"flopcallback_profile is {schema}; this version reads schemas 1 to 4"):
        ModelProfile.from_json(json.dumps(content))


@pytest.mark.parametrize("text", ["[1, 2]", "null", "1e999", "{}", '{"epochs": 3}'])
def test_json_that_is_no_profile_is_refused_without_talk_of_versions(text):
    with pytest.raises(ValueError, match=r"flopcallback_profile is missing, which every profile has$"):
        ModelProfile.from_json(text)


def test_an_unknown_phase_and_a_missing_root_are_refused():
    with pytest.raises(ValueError, match="phase is 'warmup'; it must be one of train, validate"):
        ModelProfile("Net", phase="warmup")
    with pytest.raises(ValueError, match="the first module is 'fc'"):
        ModelProfile("Net", modules=(ModuleRow("fc", "", 1, "Linear"),))


def test_records_carry_what_is_worked_out_beside_what_is_counted(lenet):
    profile = lenet.with_latency(LatencySummary(forward_ms=2.0), {"fc1": 0.5}, {"fc1": (0.4, 0.7)})
    record = next(each for each in profile.module_records() if each["path"] == "fc1")
    assert (record["flops"], record["macs"]) == (2 * 576 * 120, 576 * 120)
    assert record["latency_share"] == 0.25
    assert (record["forward_ms_low"], record["forward_ms_high"]) == (0.4, 0.7)
    assert record["achieved_flops_per_s"] == 2 * 576 * 120 / 0.5e-3
    assert profile.operator_records()[0]["operator"] == "aten::_convolution"
    assert profile.operator_records()[0]["flops_share"] == 194_616 / 274_656
    assert profile.operator_records()[0]["macs"] == 194_616


def test_a_data_frame_without_pandas_says_what_to_install(lenet, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ModuleNotFoundError, match="pip install pandas"):
        lenet.to_dataframe()


@pytest.mark.models
def test_a_data_frame_has_a_row_per_module(model_of, layer):
    profile = model_of("Net", [layer("fc", "Linear", flops=BEYOND_64_BITS)])
    frame = profile.to_dataframe()
    assert list(frame["path"]) == ["", "fc"]
    assert list(frame["flops"]) == [BEYOND_64_BITS, BEYOND_64_BITS]


def test_the_profile_cannot_be_changed_from_outside(lenet):
    config = {"flops.version": 1}
    profile = ModelProfile("Net", config=config)
    config["flops.version"] = 2
    assert profile.config == {"flops.version": 1}
    with pytest.raises(dataclasses.FrozenInstanceError):
        lenet.name = "other"
