"""Options as users give them: numbers of NumPy's and of tensors, folders with `~`; what is none is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from flopcallback import FlopHook, measure_latency
from flopcallback.profiling.checks import checked_options
from flopcallback.profiling.on_demand import profile_call
from flopcallback.testing import assert_flops
from flopcallback.trackers import LocalTracker

NUMBERS = {
    "warmup_steps": (np.uint8(0), 0),
    "latency_steps": (torch.tensor(3), 3),
    "log_every_n_steps": (np.int32(7), 7),
    "max_flops": (np.float32(0.5), 0.5),
    "peak_flops": (np.float64(1e12), 1e12),
}


FLAGS = ("elementwise", "summary", "strict")


@pytest.mark.parametrize("name", FLAGS)
@pytest.mark.parametrize("value", [np.True_, np.bool_(False), torch.tensor(True)])
def test_a_flag_of_numpys_or_a_tensors_is_pythons_own(name, value):
    assert checked_options("FlopHook", **{name: value})[name] is bool(value)


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_of_numpys_or_a_tensors_is_pythons_own(name):
    given, plain = NUMBERS[name]
    options = checked_options("FlopHook", **{name: given})
    assert options == {name: plain}
    assert type(options[name]) is type(plain)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("fma", value) for value in (True, np.True_, np.int64(3), "2", 1.0)),
        *(("latency_steps", value) for value in (-1, np.int64(-1), torch.ones(3), torch.tensor(1.5), np.float32(3))),
        *(("max_flops", value) for value in (0, np.float32("nan"), np.inf, "1e9", [1], True)),
        *(("peak_flops", value) for value in ("fast", -1, np.float64(0))),
        *(("report_dir", value) for value in ("", 3, b"folder"[:0], "~no-such-user/x", Path("~no-such-user"), "a\0b")),
        *((name, value) for name in FLAGS for value in (1, "yes", None, np.int64(1), torch.ones(2), np.ones(2) > 0)),
    ],
)
def test_what_is_no_such_number_is_named(name, value):
    with pytest.raises(ValueError, match=rf"^FlopHook: {name} is .*, expected "):
        checked_options("FlopHook", **{name: value})


def test_numbers_of_numpys_count_as_pythons_do():
    model, inputs = torch.nn.Linear(3, 5), torch.ones(2, 3)
    assert measure_latency(model, inputs, latency_steps=np.int64(1), max_s=np.float32(5)).latency.steps == 1


LINEAR = torch.nn.Linear(3, 5)


def hook_of(**options):
    hook = FlopHook(LINEAR, torch.optim.SGD(LINEAR.parameters(), 0.1), summary=False, **options)
    LINEAR(torch.ones(2, 3)).sum().backward()  # a hook that saw nothing warns when it goes
    hook.close()
    return hook


def callback_of(**options):
    from flopcallback import FlopCallback

    return FlopCallback(**options)


CLASSES = [hook_of, pytest.param(callback_of, marks=pytest.mark.lightning)]


@pytest.mark.parametrize("make", CLASSES)
def test_the_former_name_of_the_budget_is_taken_with_one_warning(make):
    with pytest.warns(DeprecationWarning, match=r"max_hw_flops is called max_flops now") as warned:
        made = make(max_hw_flops=1e9)
    assert [each.filename for each in warned] == [__file__]
    assert made._options == make(max_flops=1e9)._options
    with pytest.raises(ValueError, match="max_flops and max_hw_flops are both given"):
        make(max_flops=1e9, max_hw_flops=1e9)


@pytest.mark.parametrize("fma", [1, 2, np.int64(2)])
@pytest.mark.parametrize("make", CLASSES)
def test_fma_is_taken_with_one_warning_and_changes_nothing(make, fma):
    with pytest.warns(DeprecationWarning, match=r"FLOPs are 2 per multiply-add.*macs.*FlopCountAnalysis") as warned:
        made = make(fma=fma)
    assert [each.filename for each in warned] == [__file__]
    assert made._options == make()._options


@pytest.mark.parametrize("fma", [1, 2])
@pytest.mark.parametrize("take", [profile_call, measure_latency])
def test_so_it_is_where_one_call_is_counted(take, fma):
    x = torch.ones(2, 3)
    with pytest.warns(DeprecationWarning, match="FLOPs are 2 per multiply-add") as warned:
        profile = take(LINEAR, x, fma=fma)
    assert [each.filename for each in warned] == [__file__]
    assert (profile.forward_flops, profile.forward_macs) == (2 * (2 * 3 * 5), 2 * 3 * 5)
    assert profile.fingerprint() == take(LINEAR, x).fingerprint()


def test_so_it_is_in_a_test_of_flops():
    with pytest.warns(DeprecationWarning, match="FLOPs are 2 per multiply-add") as warned:
        assert_flops(LINEAR, torch.ones(2, 3), at_most=60, fma=1)
    assert [each.filename for each in warned] == [__file__]


def test_the_home_folder_is_where_reports_go(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    model = torch.nn.Linear(3, 5)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with FlopHook(model, optimizer, to="~/to", report_dir="~/reports", summary=False, latency_steps=0):
        model(torch.ones(2, 3)).sum().backward()
        optimizer.step()
    assert not (tmp_path / "~").exists()
    for folder in ("to", "reports"):
        assert (tmp_path / "home" / folder / "flopcallback.json").is_file()


@pytest.mark.lightning
def test_the_callback_takes_the_home_folder_too(tmp_path, monkeypatch):
    from flopcallback import FlopCallback
    from flopcallback.lightning.loggers import report_folder

    monkeypatch.setenv("HOME", str(tmp_path))
    assert report_folder(None, FlopCallback(report_dir="~/reports")._options) == tmp_path / "reports"


def test_no_folder_is_an_error_that_says_what_to_give():
    with pytest.raises(ValueError, match=r"LocalTracker: folder is '', expected a folder; '\.' is the working"):
        LocalTracker("")


def test_numbers_of_numpys_are_logged_as_numbers(tmp_path):
    LocalTracker(tmp_path).log_scalars({"a": np.float32(0.5), "b": np.int64(2**60), "c": torch.tensor(3)}, np.int64(4))
    assert (tmp_path / "scalars.jsonl").read_text() == '{"step": 4, "a": 0.5, "b": 1152921504606846976, "c": 3}\n'
