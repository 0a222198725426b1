"""assert_flops: passes within its limit, and shows where the work is when it does not."""

from __future__ import annotations

import json
import subprocess
import sys

import old_names
import pytest
import torch
from torch import nn

from flopcallback.reporting import ModelProfile
from flopcallback.testing import UPDATE_VARIABLE, assert_flops

BATCH, IN, WIDTH, OUT = 2, 3, 5, 7
FLOPS = 2 * BATCH * (IN * WIDTH + WIDTH * OUT)
x = torch.ones(BATCH, IN)


def net(width=WIDTH):
    return nn.Sequential(nn.Linear(IN, width), nn.ReLU(), nn.Linear(width, OUT))


@pytest.fixture(autouse=True)
def no_updates(monkeypatch):
    monkeypatch.delenv(UPDATE_VARIABLE, raising=False)


@pytest.fixture
def baseline(tmp_path, monkeypatch):
    """A baseline of `net()`, in a folder that was not there before."""
    path = tmp_path / "baselines" / "net.json"
    with monkeypatch.context() as patch:
        patch.setenv(UPDATE_VARIABLE, "1")
        assert_flops(net(), x, baseline=path)
    return path


# --- A number ---------------------------------------------------------------------------------------------------------


def test_as_many_as_allowed_are_fine():
    assert_flops(net(), x, at_most=FLOPS)
    assert_flops(net(), x, at_most=1.5 * FLOPS)


def test_one_more_fails_and_shows_the_modules():
    with pytest.raises(AssertionError) as failure:
        assert_flops(net(), x, at_most=FLOPS - 1)
    first, *rest = str(failure.value).splitlines()
    assert first == "Sequential has 200 FLOPs, at_most=199 (+0.5 %)"
    assert any(line.split()[:4] == ["└─", "2", "Linear", "1"] and " 140 " in line for line in rest)


def test_keyword_arguments_are_those_of_a_count_and_elementwise_work_is_no_flops():
    assert_flops(net(), kwargs={"input": x}, at_most=FLOPS)
    assert_flops(net(), kwargs={"input": x}, at_most=FLOPS, elementwise=True)


def test_a_lower_bound_fails_whatever_the_limit():
    with pytest.raises(AssertionError, match=r"linalg_matrix_exp are a lower bound, .*no formula.*register_form"):
        assert_flops(torch.linalg.matrix_exp, torch.eye(3), at_most=10**9)


def test_it_takes_at_least_one_limit():
    with pytest.raises(ValueError, match=r"assert_flops: give at_most=, a number of FLOPs, or baseline="):
        assert_flops(net(), x)


# --- A baseline -------------------------------------------------------------------------------------------------------


def test_what_equals_its_baseline_is_fine(baseline):
    assert_flops(net(), x, baseline=baseline)
    assert_flops(net(), x, baseline=str(baseline))


def test_less_than_the_baseline_is_fine(baseline):
    assert_flops(net(WIDTH - 1), x, baseline=baseline)


def test_more_fails_and_shows_the_difference_by_module(baseline):
    with pytest.raises(AssertionError) as failure:
        assert_flops(net(11), x, baseline=baseline)
    text = str(failure.value)
    assert "Sequential has more FLOPs than" in text
    assert f"{UPDATE_VARIABLE}=1 writes the baseline anew" in text
    assert f"200 → {2 * BATCH * (IN * 11 + 11 * OUT)} FLOPs (+240, +120.0 %)" in text
    assert ["2", "Linear", "140", "→", "308"] in [line.split()[:5] for line in text.splitlines()]


@pytest.mark.parametrize("share", [0.2, "20%"])
def test_an_increase_within_the_share_is_fine(baseline, share):
    assert_flops(net(WIDTH + 1), x, baseline=baseline, max_increase=share)  # 6 / 5
    with pytest.raises(AssertionError, match=r"max_increase=0\.2"):
        assert_flops(net(WIDTH + 2), x, baseline=baseline, max_increase=share)


def test_a_baseline_that_is_missing_fails_and_is_not_written(tmp_path):
    path = tmp_path / "net.json"
    with pytest.raises(AssertionError, match=rf"there is no baseline .*net\.json\. {UPDATE_VARIABLE}=1 writes it"):
        assert_flops(net(), x, baseline=path)
    assert not path.exists()


def test_a_baseline_is_written_anew_only_when_asked_for(baseline, monkeypatch):
    before = baseline.read_text(encoding="utf-8")
    assert_flops(net(WIDTH - 1), x, baseline=baseline)
    assert baseline.read_text(encoding="utf-8") == before
    monkeypatch.setenv(UPDATE_VARIABLE, "1")
    assert_flops(net(11), x, baseline=baseline)
    written = ModelProfile.from_json(baseline.read_text(encoding="utf-8"))
    assert written.forward_flops == 2 * BATCH * (IN * 11 + 11 * OUT)


def test_what_is_above_at_most_does_not_become_the_baseline(baseline, monkeypatch):
    before = baseline.read_text(encoding="utf-8")
    monkeypatch.setenv(UPDATE_VARIABLE, "1")
    with pytest.raises(AssertionError, match=f"at_most={FLOPS}"):
        assert_flops(net(11), x, at_most=FLOPS, baseline=baseline)
    assert baseline.read_text(encoding="utf-8") == before


def test_above_at_most_the_difference_is_shown_where_there_is_a_baseline(baseline):
    with pytest.raises(AssertionError, match=r"at_most=200 \(\+120\.0 %\)\n\nSequential: 200 → 440 FLOPs"):
        assert_flops(net(11), x, at_most=FLOPS, baseline=baseline)


def test_a_baseline_of_other_inputs_fails_and_says_so(baseline):
    with pytest.raises(AssertionError, match=r"input shapes differs: \[\[2, 3\]\] before, \[\[1, 3\]\] after"):
        assert_flops(net(), x[:1], baseline=baseline)


def test_a_baseline_of_an_older_version_still_holds(baseline):
    content = old_names.former_json(ModelProfile.from_json(baseline.read_text(encoding="utf-8")))
    assert content["forward_flops"] == FLOPS // 2
    baseline.write_text(json.dumps(content), encoding="utf-8")
    with pytest.warns(DeprecationWarning, match="an older flopcallback wrote"):
        assert_flops(net(), x, baseline=baseline)
    with pytest.raises(AssertionError, match=r"200 → 240 FLOPs"):  # said once
        assert_flops(net(WIDTH + 1), x, baseline=baseline)


def test_a_share_that_could_be_percent_is_refused(baseline):
    with pytest.raises(ValueError, match=r"'2' could be a share or percent"):
        assert_flops(net(), x, baseline=baseline, max_increase=2)


# --- In a test --------------------------------------------------------------------------------------------------------


def test_a_failing_test_shows_its_own_line_last(pytester_run):
    lines = pytester_run("assert_flops(torch.nn.Linear(3, 5), torch.ones(2, 3), at_most=29)")
    assert "1 failed" in lines[-1]
    assert any(">" in line and "at_most=29" in line for line in lines)
    assert not any("flopcallback/testing.py" in line for line in lines)


@pytest.fixture
def pytester_run(tmp_path):
    """Runs one statement as a test of another pytest; gives the lines that it prints."""

    def run(statement):
        code = f"import torch\nfrom flopcallback.testing import assert_flops\n\n\ndef test_it():\n    {statement}\n"
        (tmp_path / "test_it.py").write_text(code, encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", tmp_path, tmp_path]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False).stdout.splitlines()

    return run
