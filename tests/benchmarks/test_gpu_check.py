"""The check of a GPU, where there is none: skipped, and tried with a CPU in its place."""

from __future__ import annotations

import dataclasses
import functools
import json

import gpu_cases
import gpu_check
import pytest
import torch

CPU = gpu_check.Machine(torch.device("cpu"), is_quick=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_without_a_device_it_is_skipped_and_no_failure(capsys, tmp_path):
    assert gpu_check.main(["--json", str(tmp_path / "none.json")]) == 0
    assert capsys.readouterr().out == "no CUDA device: skipped\n"
    assert not (tmp_path / "none.json").exists()


# 2026-11, torch 2.13: said once by an LSTM with a projection.
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("only", "skipped"),
    [("count", 5), ("eager", 0), ("profiler", 0), ("add up", 0), ("rate", 0), ("MBU", 0), ("booking", 0), ("c", None)],
)
def test_what_a_cpu_can_run_is_right(only, skipped, tmp_path, monkeypatch, capsys):
    if skipped is None:  # all that no CPU has
        names = ("a step captured", "no step waits", "peak", "memory")
        chosen = [(name, check) for name, check in gpu_check.checks(CPU) if name.startswith(names)]
        monkeypatch.setattr(gpu_check, "checks", lambda _: chosen)
        only, skipped = "", len(chosen)
    file = tmp_path / "seen.json"
    assert gpu_check.main(["--device", "cpu", "--quick", "--only", only, "--json", str(file)]) == 0
    lines = json.loads(file.read_text())["lines"]
    statuses = [line["status"] for line in lines]
    assert statuses.count("skipped") == skipped
    assert {line["text"] for line in lines if line["status"] == "skipped"} <= {"needs a CUDA device"}
    assert len(statuses) > skipped or only == ""
    assert f"| {lines[0]['name']} " in capsys.readouterr().out


def test_a_check_that_fails_is_one_line():
    def fails():
        raise ValueError("not so\nmore")

    assert gpu_check.line_of("one", fails).status == "WRONG"
    assert gpu_check.line_of("one", fails).text == "ValueError: not so"
    assert gpu_check.line_of("late", fails, is_late=True).text == "no time left"


def test_a_wrong_count_is_wrong(monkeypatch, tmp_path):
    case = next(gpu_cases.operator_cases(torch.device("cpu"), torch.bfloat16))
    off = dataclasses.replace(case, forward=case.forward + 1)
    check = functools.partial(gpu_check.check_operator, CPU, off)
    monkeypatch.setattr(gpu_check, "checks", lambda _: [("off", check), ("on", lambda: gpu_check.Seen(True, "so"))])
    file = tmp_path / "seen.json"
    assert gpu_check.main(["--device", "cpu", "--quick", "--json", str(file)]) == 1
    assert [line["status"] for line in json.loads(file.read_text())["lines"]] == ["WRONG", "right"]


def test_training_is_held_against_the_figure_on_paper(monkeypatch):
    monkeypatch.setattr(gpu_cases.Perceptron, "step_flops", lambda self, rows: 1)
    assert gpu_check.check_training(CPU, "eager", "float32").is_right is False


def test_the_step_of_the_perceptron_by_hand():
    net = gpu_cases.Perceptron(3, 5, 2, 7)
    layers = [(3, 5), (5, 20), (20, 5), (5, 20), (20, 5), (5, 7)]
    forward = sum(2 * 11 * one * other for one, other in layers)
    assert net.forward_flops(11) == forward
    assert net.step_flops(11) == 3 * forward - 2 * 11 * 3 * 5
