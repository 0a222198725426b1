"""Profiles from JSON that is not as it was written: refused by the name of the field, or readable by everything."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace

import damage
import old_names
import pytest
from hypothesis import given, settings

from flopcallback.profile.diff import diff_profiles
from flopcallback.profile.numbers import LARGEST
from flopcallback.profile.verdict import Difference, Verdict
from flopcallback.reporting import (
    LatencySummary,
    ModelProfile,
    ModuleRow,
    OperatorRow,
    StepFlops,
    html_page,
    markdown_modules,
    markdown_operators,
    plain_table,
    rich_text,
)
from flopcallback.reporting.comparison import compare_runs
from flopcallback.reporting.page.comparison_page import comparison_page
from flopcallback.reporting.text.comparison_table import comparison_csv
from flopcallback.reporting.text.diff_table import diff_record, diff_text, markdown_diff
from flopcallback.runs import RunRecord

STEP = StepFlops(10, 20, 5, 7)

ROWS = (
    ModuleRow("", None, 0, "Net", 1, 7, 7, 70, 0, 35, 5, 11, 1.5, (1.25, 1.75), STEP, 1, "(5, 7)"),
    ModuleRow("a", "", 1, "Block", 1, 7, 7, 70, 0, 35, 5, 11, 1.25, (1.0, 1.5), STEP),
    ModuleRow("a.b", "a", 2, "Linear", 1, 7, 7, 70, 70, 35, 5, 11, 1.0, None, None, 0, None, "compiled"),
)

WHOLE = ModelProfile(
    "Net",
    phase="train",
    modules=ROWS,
    operators=(OperatorRow("aten::linear", 1, 70, "matmul", macs=35), OperatorRow("my::op", 1, 0, status="unknown")),
    config={
        "flops.elementwise": False,
        "flops.engine": "trace",
        "flops.engine_reason": "",
        "flops.is_lower_bound": True,
        "flops.device": "cpu",
        "flops.dtype": "float32",
        "flops.peak_tflops": 0.5,
        "flops.peak_source": "measured",
        "flops.input_shapes": [[5, 1]],
        "flops.unknown_operators": ["my::op"],
        "flops.version": "0.1.0",
        "mine": {"lr": 0.1},
    },
    batch_size=5,
    forward_flops=70,
    forward_macs=35,
    unknown={"my::op": "no formula"},
    latency=LatencySummary(1.5, 4.5, 20, "CPU clock"),
    step=STEP,
    step_note="its forward differs",
    verdict=Verdict((Difference("a", "matmul", 70, 60, differing_operators=("mm",)),), ""),
    training={"compute/flops_total": 4200, "perf/mfu_pct": 12.5},
)

CONTENT = json.loads(WHOLE.to_json())


def changed(path, value):
    """The content with another value at a path such as `("modules", 1, "flops")`."""
    content = json.loads(WHOLE.to_json())
    *way, last = path
    holder = content
    for key in way:
        holder = holder[key]
    holder[last] = value
    return json.dumps(content)


def test_the_profile_of_these_tests_comes_back_as_it_was():
    assert ModelProfile.from_json(WHOLE.to_json()) == WHOLE


# --- What is refused, and by which name -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        (("name",), 3, "name is 3; it must be a text"),
        (("name",), "\ud800", "name is '\\ud800'; it must be a text that UTF-8 can hold"),
        (("phase",), "warmup", "phase is 'warmup'"),
        (("modules",), "abc", "modules is 'abc'; it must be a list"),
        (("modules",), None, "modules is None; it must be a list"),
        (("modules", 1), [], "modules[1] is []; it must be an object"),
        (("modules", 1, "flops"), "7", "modules[1].flops is '7'; it must be a whole number of 0 or more"),
        (("modules", 1, "flops"), -1, "modules[1].flops is -1"),
        (("modules", 1, "flops"), True, "modules[1].flops is True"),
        (("modules", 1, "flops"), 7.0, "modules[1].flops is 7.0"),
        (("modules", 1, "flops"), 10**400, "modules[1].flops is 1000"),
        (("modules", 1, "step", "backward"), None, "modules[1].step.backward is None"),
        (("modules", 1, "forward_ms"), "1.5", "modules[1].forward_ms is '1.5'; it must be a number"),
        (("modules", 1, "forward_ms"), -0.5, "modules[1].forward_ms is -0.5; it must be a number of 0 or more"),
        (("modules", 1, "forward_ms"), 1e301, "modules[1].forward_ms is 1e+301"),
        (("modules", 1, "forward_ms_spread"), [1.0], "modules[1].forward_ms_spread is [1.0]; it must be a list of 2"),
        (("modules", 1, "parent"), 3, "modules[1].parent is 3; it must be a text"),
        (("modules", 1, "more"), 3, "modules[1].more is no field that this version knows"),
        (("mo re",), 3, "'mo re' is no field that this version knows"),
        (("operators", 0, "calls"), 1.5, "operators[0].calls is 1.5"),
        (("config",), None, "config is None; it must be an object"),
        (("config", "mine"), [1, {"a": 10**400}], "config['mine'] is 1000"),
        (("config", "flops.elementwise"), 0, "config['flops.elementwise'] is 0; it must be true or false"),
        (("config", "flops.engine"), ["trace"], "config['flops.engine'] is ['trace']; it must be a text"),
        (("config", "flops.peak_tflops"), "fast", "config['flops.peak_tflops'] is 'fast'; it must be a number"),
        (("config", "flops.input_shapes"), [[2, "3"]], "config['flops.input_shapes'][0][1] is '3'"),
        (("batch_size",), "2", "batch_size is '2'; it must be a whole number"),
        (("unknown",), ["my::op"], "unknown is ['my::op']; it must be an object"),
        (("unknown", "my::op"), None, "unknown['my::op'] is None; it must be a text"),
        (("latency", "steps"), None, "latency.steps is None"),
        (("verdict", "differences", 0, "trace"), "x", "verdict.differences[0].trace is 'x'"),
        (("training", "perf/mfu_pct"), "x", "training['perf/mfu_pct'] is 'x'; it must be a number"),
        (("modules", 0, "path"), "a", "the first module is 'a'"),
        (("modules", 0, "parent"), "", "modules[0] must be the root"),
        (("modules", 1, "path"), "", "modules[1].path is '', the path of an earlier module"),
        (("modules", 2, "path"), "a", "modules[2].path is 'a', the path of an earlier module"),
        (("modules", 1, "parent"), "a", "modules[1].parent is 'a'; it must be the path of an earlier module"),
        (("modules", 1, "parent"), "a.b", "modules[1].parent is 'a.b'; it must be the path of an earlier module"),
        (("modules", 1, "parent"), None, "modules[1].parent is None; it must be the path of an earlier module"),
    ],
)
def test_a_field_that_is_not_as_it_must_be_is_named(path, value, complaint):
    with pytest.raises(ValueError, match=re.escape(complaint)):
        ModelProfile.from_json(changed(path, value))


def test_a_verdict_of_an_older_version_is_of_tracer_and_dispatcher():
    content = json.loads(WHOLE.to_json())
    del content["verdict"]["engines"]
    for name in ("observer", "differing_operators"):
        del content["verdict"]["differences"][0][name]
    read = ModelProfile.from_json(json.dumps(content))
    assert read.verdict == Verdict((Difference("a", "matmul", 70, 60),), "", ("trace", "dispatch"))


def test_the_operators_of_a_difference_are_kept():
    (difference,) = ModelProfile.from_json(WHOLE.to_json()).verdict.differences
    assert difference.differing_operators == ("mm",)


@pytest.mark.parametrize("path", [("modules",), ("modules", 1, "flops"), ("config",), ("latency", "how"), ("verdict",)])
def test_a_field_that_is_missing_is_named(path):
    content = json.loads(WHOLE.to_json())
    *way, last = path
    holder = content
    for key in way:
        holder = holder[key]
    del holder[last]
    named = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).removeprefix(".")
    with pytest.raises(ValueError, match=rf"^{re.escape(named)} is missing$"):
        ModelProfile.from_json(json.dumps(content))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[" * 5000, "nested too deeply"),
        ('{"flopcallback_profile": 3, "a": ' + "[" * 5000, "nested too deeply"),
        ('{"flopcallback_profile": true}', "flopcallback_profile is True"),
        ('{"flopcallback_profile": [3]}', "flopcallback_profile is [3]"),
        ('{"flopcallback_profile": NaN}', "NaN is no JSON"),
        (b"\xff\xfe\xfa", "codec can't decode"),
        (b"\x00", "Expecting value"),
        ("1" * 5000, "an integer has too many digits to be a number of a training"),
        ("", "Expecting value"),
    ],
)
def test_what_is_no_json_object_of_a_profile_is_refused(text, complaint):
    with pytest.raises(ValueError, match=re.escape(complaint)):
        ModelProfile.from_json(text)


@pytest.mark.parametrize(("levels", "is_read"), [(64, True), (65, False)])
def test_a_value_of_a_config_may_be_nested_as_deep_as_can_be_written_again(levels, is_read):
    value = 7
    for _ in range(levels):
        value = [value]
    text = changed(("config", "mine"), value)
    if is_read:
        assert ModelProfile.from_json(text).config["mine"] == value
    else:
        with pytest.raises(ValueError, match=r"config\['mine'\] is nested more than 64 levels deep"):
            ModelProfile.from_json(text)


def chain(levels):
    """A module in a module in a module."""
    paths = ["", *(".".join(["m"] * depth) for depth in range(1, levels + 1))]
    parents = [None, *paths]
    rows = [ModuleRow(path, parents[depth], depth, "M", 1, flops=7) for depth, path in enumerate(paths)]
    return ModelProfile("M", modules=tuple(rows), forward_flops=7)


def test_the_deepest_tree_that_is_read_can_be_drawn():
    profile = ModelProfile.from_json(chain(100).to_json())
    assert plain_table(profile, max_depth=200).count("─ m ") == 100
    with pytest.raises(ValueError, match=r"modules\[101\] is more than 100 levels deep"):
        ModelProfile.from_json(chain(101).to_json())


def test_the_largest_count_that_is_read_can_be_written():
    profile = ModelProfile.from_json(ModelProfile("Net", batch_size=1, forward_flops=LARGEST).to_json())
    assert "e+300 FLOPs" in plain_table(profile).splitlines()[0]
    with pytest.raises(ValueError, match="forward_flops is 110000"):
        ModelProfile.from_json(ModelProfile("Net", forward_flops=11 * 10**299).to_json())


def test_half_a_spread_that_was_not_finite_is_none():
    text = changed(("modules", 1, "forward_ms_spread"), [0.5, None])
    assert ModelProfile.from_json(text).modules[1].forward_ms_spread is None


# --- Older files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schema", [1, 2, 3])
def test_files_of_older_schemas_have_what_they_had(schema):
    content = old_names.former_json(WHOLE, schema)
    assert (content["forward_flops"], content["forward_hw_flops"]) == (35, 70)
    with pytest.warns(DeprecationWarning, match="an older flopcallback wrote") as warned:
        profile, _ = (ModelProfile.from_json(json.dumps(content)) for _ in range(2))
    assert len(warned) == 1
    missing = old_names.MISSING[schema]
    assert profile.modules == tuple(replace(row, step=None if schema == 1 else row.step) for row in WHOLE.modules)
    assert profile.verdict == (None if "verdict" in missing else WHOLE.verdict)
    assert profile.training == ({} if "training" in missing else WHOLE.training)
    assert (profile.operators, profile.config) == (WHOLE.operators, WHOLE.config)
    assert (profile.forward_flops, profile.forward_macs) == (70, 35)
    if missing:
        with pytest.raises(ValueError, match="is missing"):
            ModelProfile.from_json(json.dumps({**content, "flopcallback_profile": schema + 1}))


def test_figures_at_2_per_multiply_add_are_read_as_well():
    norm = ModuleRow("norm", "", 1, "BatchNorm2d", 1, macs=2 * 3 * 11)
    rows = (replace(WHOLE.modules[0], macs=35 + 66), *WHOLE.modules[1:], norm)
    operators = (*WHOLE.operators, OperatorRow("aten::batch_norm", 1, 0, "normalization", macs=66))
    profile = replace(WHOLE, modules=rows, operators=operators, forward_macs=35 + 66)
    content = old_names.former_json(profile, fma=2)
    assert (content["forward_flops"], content["operators"][0]["flops"]) == (70 + 66, 70)
    with pytest.warns(DeprecationWarning, match="an older flopcallback wrote"):
        assert ModelProfile.from_json(json.dumps(content)) == profile


@pytest.mark.parametrize("fma", [1, 2])
def test_operators_have_no_flops_where_not_all_of_their_work_was_multiply_adds(fma):
    # Of the 35, 3 are multiplications of an outer product.
    operators = (OperatorRow("aten::outer", 1, 64, "matmul", macs=35), WHOLE.operators[-1])
    profile = replace(WHOLE, operators=operators, forward_flops=64)
    content = old_names.former_json(profile, fma=fma)
    with pytest.warns(DeprecationWarning, match="an older flopcallback wrote"):
        read = ModelProfile.from_json(json.dumps(content))
    assert (read.operators[0].flops, read.operators[0].macs) == (None, 35 if fma == 1 else None)
    assert read.operators[1] == WHOLE.operators[-1]
    assert "| ? |" in markdown_operators(read)
    consume(read)


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        (("modules", 1, "hw_flops"), "7", "modules[1].hw_flops is '7'; it must be a whole number of 0 or more"),
        (("modules", 1, "macs"), 7, "modules[1].macs is no field that this version knows"),
        (("forward_hw_flops",), None, "forward_hw_flops is None"),
        (("config", "flops.fma"), "1", "config['flops.fma'] is '1'; it must be a whole number"),
        (("config",), None, "config is None; it must be an object"),
    ],
)
def test_a_field_of_an_older_file_is_named_as_it_is_called_there(path, value, complaint):
    content = old_names.former_json(WHOLE)
    *way, last = path
    holder = content
    for key in way:
        holder = holder[key]
    holder[last] = value
    with pytest.raises(ValueError, match=re.escape(complaint)):
        ModelProfile.from_json(json.dumps(content))


# --- Anything ---------------------------------------------------------------------------------------------------------


def consume(profile):
    """Everything that is made from a profile without a tracker and without a figure."""
    ModelProfile.from_json(profile.to_json(indent=1))
    difference = diff_profiles(profile, profile)
    texts = [plain_table(profile), rich_text(profile), markdown_modules(profile), markdown_operators(profile)]
    texts += [html_page(profile), diff_text(difference), markdown_diff(difference), json.dumps(diff_record(difference))]
    runs = [RunRecord(name, name, figures=profile.scalars(), config=profile.config) for name in "ab"]
    comparison = compare_runs(runs)
    texts += [comparison_page(comparison), comparison_csv(comparison)]
    for text in texts:
        text.encode()
    profile.fingerprint()


@settings(max_examples=250)
@given(damage.damaged_json(CONTENT))
def test_damaged_json_is_refused_with_a_value_error_or_can_be_shown(text):
    try:
        profile = ModelProfile.from_json(text)
    except ValueError:
        return
    diff_text(diff_profiles(WHOLE, profile))
    consume(profile)


@pytest.mark.filterwarnings("ignore:What an older")
@settings(max_examples=120)
@given(damage.damaged_json(old_names.former_json(WHOLE)) | damage.extreme_json(old_names.former_json(WHOLE)))
def test_so_it_is_with_older_files(text):
    try:
        profile = ModelProfile.from_json(text)
    except ValueError:
        return
    consume(profile)


@settings(max_examples=120)
@given(damage.extreme_json(CONTENT))
def test_whatever_is_read_can_be_shown(text):
    try:
        profile = ModelProfile.from_json(text)
    except ValueError:
        return
    consume(profile)


@settings(max_examples=200)
@given(damage.damaged_bytes(WHOLE.to_json().encode()))
def test_damaged_bytes_raise_a_value_error_at_most(content):
    try:
        profile = ModelProfile.from_json(content)
    except ValueError:
        return
    profile.to_json().encode()


def test_damage_is_found_and_what_is_whole_is_read():
    """The two tests above would hold for a reader that refuses everything, or nothing."""
    read = refused = 0
    for value in damage.JUNK:
        for path in (("name",), ("modules", 1, "forward_ms"), ("config", "mine"), ("batch_size",)):
            try:
                ModelProfile.from_json(changed(path, value))
            except ValueError:
                refused += 1
            else:
                read += 1
    assert read > 20
    assert refused > 20


def test_a_profile_of_5000_modules_is_read_in_no_time():
    rows = (
        ModuleRow("", None, 0, "Net"),
        *(ModuleRow(f"m.{index}", "", 1, "Linear", step=STEP) for index in range(5000)),
    )
    text = ModelProfile("Net", modules=rows).to_json()
    begin = time.process_time()
    assert len(ModelProfile.from_json(text).modules) == 5001
    # 0.05 s where it was written; parsing alone takes 0.02 s.
    assert time.process_time() - begin < 1
