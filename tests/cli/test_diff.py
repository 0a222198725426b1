"""`flopcallback diff`: two files compared, and exit codes that fail a build."""

from __future__ import annotations

import json
from dataclasses import replace

import old_names
import pytest

from flopcallback.reporting import LatencySummary, ModelProfile, OperatorRow

FLOPS = 100


def profile(flops=FLOPS, **config):
    shapes = {"flops.elementwise": False, "flops.input_shapes": [[2, 3]]}
    return ModelProfile("Net", forward_flops=flops, config={**shapes, **config})


@pytest.fixture
def diff(flopcallback, folder):
    """Writes two profiles and compares them."""

    def run(before, after, *options):
        (folder / "before.json").write_text(before.to_json(), encoding="utf-8")
        (folder / "after.json").write_text(after.to_json(), encoding="utf-8")
        return flopcallback("diff", "before.json", "after.json", *options)

    return run


def test_two_counts_are_compared_by_module(flopcallback):
    for width, name in ((5, "a.json"), (11, "b.json")):
        flopcallback("count", "some_net:make", "--arg", f"width={width}", "--input", "2,3", "--output", name)
    result = flopcallback("diff", "a.json", "b.json")
    before, after = 2 * 2 * (3 * 5 + 5 * 7), 2 * 2 * (3 * 11 + 11 * 7)
    first, *rest = result.stdout.splitlines()
    assert result.exit_code == 0
    assert first == f"Net: {before} → {after} FLOPs (+{after - before}, +120.0 %)"  # width 5 to 11
    rows = [line.split()[:5] for line in rest]
    assert rows.index(["last", "Linear", "140", "→", "308"]) < rows.index(["first", "Linear", "60", "→", "132"])


@pytest.mark.parametrize(
    ("flops", "limit", "code"),
    [(102, "2%", 0), (103, "2%", 1), (102, "0.02", 0), (103, "0.02", 1), (101, "0", 1), (100, "0%", 0), (50, "0", 0)],
)
def test_more_than_the_limit_is_exit_code_1(diff, flops, limit, code):
    result = diff(profile(), profile(flops), "--max-increase", limit)
    assert result.exit_code == code
    assert ("Failed: FLOPs rose from 100 to" in result.stderr) == (code == 1)


def test_without_a_limit_nothing_fails(diff):
    assert diff(profile(), profile(10**9)).exit_code == 0


def test_what_is_unknown_after_a_change_fails_a_limit(diff):
    operators = (OperatorRow("my::mix", 1, 0, status="unknown"),)
    after = replace(profile(), operators=operators, unknown={"my::mix": "no formula"})
    result = diff(profile(), after, "--max-increase", "99%")
    assert result.exit_code == 1
    assert "Failed: FLOPs are a lower bound that may hide any rise: there is no count for my::mix" in result.stderr
    assert diff(after, after, "--max-increase", "99%").exit_code == 0


def test_other_inputs_are_said_and_refused_where_a_limit_is_to_hold(diff):
    other = profile(**{"flops.input_shapes": [[4, 3]]})
    result = diff(profile(), other)
    assert result.exit_code == 0
    assert "input shapes differs: [[2, 3]] before, [[4, 3]] after" in result.stdout
    result = diff(profile(), other, "--max-increase", "2%")
    assert result.exit_code == 2
    assert "([[2, 3]] before, [[4, 3]] after)" in result.stderr


def test_a_profile_of_an_older_version_is_compared_and_said_in_one_line(flopcallback, folder):
    old = replace(profile(), forward_macs=FLOPS // 2)
    for name in ("before.json", "older.json"):
        (folder / name).write_text(json.dumps(old_names.former_json(old)), encoding="utf-8")
    (folder / "after.json").write_text(profile(103).to_json(), encoding="utf-8")
    result = flopcallback("diff", "before.json", "after.json")
    assert result.stdout.startswith("Net: 100 → 103 FLOPs (+3, +3.0 %)")
    assert result.stderr.startswith("What an older flopcallback wrote is read")
    assert result.stderr.count("\n") == 1
    assert flopcallback("diff", "before.json", "older.json").exit_code == 0


def test_times_have_a_limit_of_their_own(diff):
    fast, slow = (replace(profile(), latency=LatencySummary(forward_ms=time)) for time in (1.0, 1.5))
    assert diff(fast, slow, "--max-latency-increase", "60%").exit_code == 0
    result = diff(fast, slow, "--max-latency-increase", "40%")
    assert result.exit_code == 1
    assert "Failed: the forward takes longer, from 1.00 to 1.50 ms (+50.0 %); 40 % is allowed" in result.stderr
    result = diff(fast, profile(), "--max-latency-increase", "40%")
    assert result.exit_code == 2
    assert "needs two profiles with times" in result.stderr


def test_json_and_markdown_are_printed_in_place_of_the_table_and_limits_hold(diff):
    result = diff(profile(), profile(103), "--json", "--max-increase", "2%")
    assert json.loads(result.stdout)["after"]["flops"] == 103
    assert result.exit_code == 1
    result = diff(profile(), profile(103), "--markdown", "--max-increase", "2%")
    assert result.stdout.startswith("**Net: 100 → 103 FLOPs (+3, +3.0 %)**")
    assert result.exit_code == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "after.json is no profile, such as flopcallback count --json prints"),
        ("[]", "after.json is no profile"),
        ('{"flopcallback_profile": 99}', "this version reads schema"),
        ('{"flopcallback_profile": 1}', "after.json is no profile"),
        ('{"flopcallback_profile": 1, "modules": 3}', "after.json is no profile"),
    ],
)
def test_a_file_that_is_no_profile_is_named(flopcallback, folder, text, message):
    (folder / "before.json").write_text(profile().to_json(), encoding="utf-8")
    (folder / "after.json").write_text(text, encoding="utf-8")
    result = flopcallback("diff", "before.json", "after.json")
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--max-increase", "2"), "--max-increase: '2' could be a share or percent: write 2%"),
        (("--max-latency-increase", "x"), "--max-latency-increase: 'x' is no share"),
        (("--json", "--markdown"), "only one form can be printed"),
    ],
)
def test_a_wrong_option_is_exit_code_2(diff, options, message):
    result = diff(profile(), profile(), *options)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_file_that_is_not_there_is_named(flopcallback):
    result = flopcallback("diff", "gone.json", "gone.json")
    assert result.exit_code == 2
    assert "gone.json: No such file or directory" in result.stderr
