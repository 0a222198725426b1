"""The examples of sweeps: each configuration is trained at the same compute, and all doors have the same integers."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
BATCH, SIDE, DIGITS, TAPS = 64, 8, 10, 9
BUDGET = 8e8  # two steps of the largest

pytestmark = [pytest.mark.lightning, pytest.mark.models, pytest.mark.slow]


def step_of(width: int, depth: int) -> int:
    """Hardware FLOPs of a training step: the first convolution has no gradient for its input."""
    first = BATCH * SIDE * SIDE * TAPS * width
    inner = BATCH * SIDE * SIDE * TAPS * width * width * depth
    head = BATCH * width * DIGITS
    return 2 * (2 * first + 3 * inner + 3 * head)


def spent_by(name: str) -> int:
    """By whole steps, until the budget is spent."""
    width, depth = map(int, re.fullmatch(r"width-(\d+)-depth-(\d+)", name).groups())
    step = step_of(width, depth)
    return step * -(-int(BUDGET) // step)


def run(script: str, folder: Path) -> str:
    command = [sys.executable, EXAMPLES / script, "--budget", f"{BUDGET:g}", "--output", folder]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    ended = subprocess.run(command, capture_output=True, text=True, cwd=folder.parent, env=environment, timeout=300)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.parametrize(
    "script",
    [
        pytest.param("sweep.py", marks=pytest.mark.sweeps),
        pytest.param("sweep_wandb.py", marks=[pytest.mark.wandb, pytest.mark.sweeps]),
        pytest.param("sweep_mlflow.py", marks=[pytest.mark.mlflow, pytest.mark.sweeps]),
    ],
)
def test_six_trainings_spend_the_same_compute_and_are_compared(script, tmp_path):
    printed = run(script, tmp_path / "output")
    found = re.findall(r"^(width-\d+-depth-\d+):? +val/loss.* ([\d,]+) hardware FLOPs$", printed, re.MULTILINE)
    spent = {name: int(digits.replace(",", "")) for name, digits in found}
    names = {f"width-{width}-depth-{depth}" for width in (8, 16, 32) for depth in (1, 3)}
    assert spent == {name: spent_by(name) for name in names}
    page = (tmp_path / "output" / "compare.html").read_text(encoding="utf-8")
    assert all(name in page for name in names)
    if script == "sweep.py":
        for folder in (tmp_path / "output").glob("width-*"):
            assert (folder / "flopcallback_report" / "flopcallback.json").exists()
            with (folder / "metrics.csv").open(newline="") as file:
                assert any(row["val/loss"] for row in csv.DictReader(file))
