"""The examples of sweeps: each configuration is trained at the same compute, and all doors have the same integers."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import forked
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
BATCH, SIDE, DIGITS, TAPS = 64, 8, 10, 9
BUDGET = 8e8  # two steps of the largest

pytestmark = [pytest.mark.lightning, pytest.mark.models, pytest.mark.slow]


def step_of(width: int, depth: int) -> int:
    """FLOPs of a training step: the first convolution has no gradient for its input."""
    first = BATCH * SIDE * SIDE * TAPS * width
    inner = BATCH * SIDE * SIDE * TAPS * width * width * depth
    head = BATCH * width * DIGITS
    return 2 * (2 * first + 3 * inner + 3 * head)


def spent_by(name: str) -> int:
    """By whole steps, until the budget is spent."""
    width, depth = map(int, re.fullmatch(r"width-(\d+)-depth-(\d+)", name).groups())
    step = step_of(width, depth)
    return step * -(-int(BUDGET) // step)


# A script as it is, with a grid of these sizes.
SCRIPT = """
import runpy, sys

sys.path.insert(0, {folder!r})

import sweep

sweep.GRID = {{"width": {widths}, "depth": {depths}}}
runpy.run_path({script!r}, run_name="__main__")
"""


def run(script: str, folder: Path, widths: list[int], depths: list[int]) -> str:
    file = folder.with_name("script.py")
    text = SCRIPT.format(folder=str(EXAMPLES), script=str(EXAMPLES / script), widths=widths, depths=depths)
    file.write_text(text, encoding="utf-8")
    arguments = ("--budget", f"{BUDGET:g}", "--output", folder)
    ended = forked.run(file, *arguments, folder=folder.parent, OMP_NUM_THREADS="1", COLUMNS="100")
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def check(script: str, folder: Path, widths: list[int], depths: list[int]) -> None:
    """Each training spends the same compute, to the integer of whole steps, and is on the page."""
    printed = run(script, folder, widths, depths)
    found = re.findall(r"^(width-\d+-depth-\d+):? +val/loss.* ([\d,]+) FLOPs$", printed, re.MULTILINE)
    spent = {name: int(digits.replace(",", "")) for name, digits in found}
    names = {f"width-{width}-depth-{depth}" for width in widths for depth in depths}
    assert spent == {name: spent_by(name) for name in names}
    page = (folder / "compare.html").read_text(encoding="utf-8")
    assert all(name in page for name in names)


@pytest.mark.sweeps
def test_six_trainings_spend_the_same_compute_and_are_compared(tmp_path):
    folder = tmp_path / "output"
    check("sweep.py", folder, [8, 16, 32], [1, 3])
    trained = [file.parent for file in folder.glob("*/metrics.csv")]
    assert len(trained) == 6
    for each in trained:
        assert (each / "flopcallback_report" / "flopcallback.json").exists()
        with (each / "metrics.csv").open(newline="") as file:
            assert any(row["val/loss"] for row in csv.DictReader(file))


@pytest.mark.sweeps
@pytest.mark.parametrize(
    "script",
    [
        pytest.param("sweep_wandb.py", marks=pytest.mark.wandb),
        pytest.param("sweep_mlflow.py", marks=pytest.mark.mlflow),
    ],
)
def test_trainings_that_a_tracker_keeps_are_compared_by_the_same_integers(script, tmp_path):
    check(script, tmp_path / "output", [8], [1, 3])
