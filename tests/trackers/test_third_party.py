"""The adapter of docs/write-a-tracker.md, installed from the page, and found in a process through its entry point."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from flopcallback.reporting import ModelProfile

PAGE = Path(__file__).parents[2] / "docs" / "write-a-tracker.md"

TRAINING = """
import sys

def refuse(event, args):
    if event in ("socket.connect", "socket.getaddrinfo"):
        raise ConnectionRefusedError(args)

sys.addaudithook(refuse)

import json
from pathlib import Path
from types import SimpleNamespace

import comet_ml
import torch
from torch import nn

from flopcallback import FlopCountAnalysis, FlopHook

for target in sys.argv[1:]:
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    experiment = comet_ml.OfflineExperiment(offline_directory=target)
    to = experiment if target == "experiment" else SimpleNamespace(experiment=experiment)
    with FlopHook(model, optimizer, to=to, prefix="mine/", warmup_steps=0, latency_steps=2, summary=False):
        for _ in range(3):
            model(torch.ones(2, 5)).sum().backward()
            optimizer.step()
    is_still_the_callers = experiment.alive
    experiment.end()
    counted = FlopCountAnalysis(model, torch.ones(2, 5))
    flops = counted.hardware_flops()
    found = {"total": flops[""], "by_module": flops, "alive": is_still_the_callers}
    Path(target, "counted.json").write_text(json.dumps(found), encoding="utf-8")
"""


def block_of(language: str, text: str) -> str:
    """The page's block in this language that has `text` in it."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    (found,) = (block for block in blocks if text in block)
    return found


def train(folder: Path, *targets: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Trainings in a process of their own, each with a real experiment of Comet's and no network.

    Args:
        folder: each leaves its files in a folder there, of the name of its target.
        targets: `experiment`, or `logger` for a logger that has one.
        environment: added to this process's.
    """
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", TRAINING, *targets],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def metrics_in(archive: Path) -> dict[str, str]:
    """Name and value of the metrics, as Comet's own reader prints them."""
    reader = [sys.executable, "-m", "comet_ml.scripts.comet_offline", "--csv", "--no-header"]
    only = ["--section", "metric", "--level", "detail"]
    ran = subprocess.run([*reader, *only, archive], capture_output=True, text=True, check=True)
    return {name: value for *_, name, value in csv.reader(ran.stdout.splitlines())}


def files_in(archive: Path) -> list[tuple[str, bool, str]]:
    """Name, whether it replaces one of that name, and content of each file that was logged, in order."""
    with zipfile.ZipFile(archive) as content:
        messages = [json.loads(line) for line in content.read("messages.json").decode().splitlines()]
        uploads = [message["payload"] for message in messages if message["type"] == "file_upload"]
        return [
            (
                upload["additional_params"]["fileName"],
                upload["additional_params"]["overwrite"],
                content.read(upload["file_path"]).decode(),
            )
            for upload in uploads
            if upload["upload_type"] == "asset"
        ]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the page's module and its `pyproject.toml`, installed by pip."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    (source / "pyproject.toml").write_text(block_of("toml", "[project.entry-points"), encoding="utf-8")
    (source / "flopcallback_comet.py").write_text(block_of("python", "class CometTracker"), encoding="utf-8")
    alone = ["--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check"]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", *alone, "--target", folder, source]
    subprocess.run(pip, check=True, capture_output=True, text=True)
    return folder


@pytest.fixture(scope="module")
def trained(installed, tmp_path_factory):
    """A folder with what trainings of both targets left."""
    folder = tmp_path_factory.mktemp("trained")
    ran = train(folder, "experiment", "logger", PYTHONPATH=str(installed))
    assert ran.returncode == 0, ran.stderr
    return folder


@pytest.mark.comet
@pytest.mark.slow
@pytest.mark.parametrize("target", ["experiment", "logger"])
def test_the_adapter_of_the_page_is_found_and_writes_the_very_integers(trained, target):
    counted = json.loads((trained / target / "counted.json").read_text(encoding="utf-8"))
    assert counted["total"] == 2 * (2 * 5 * 7 + 2 * 7 * 3)
    assert counted["alive"]

    (archive,) = (trained / target).glob("*.zip")
    metrics = metrics_in(archive)
    assert metrics["mine/flops/forward"] == str(counted["total"])
    assert metrics["mine/model/params"] == str(5 * 7 + 7 + 7 * 3 + 3)
    assert float(metrics["mine/latency/step_ms"]) > 0

    files = files_in(archive)
    names = [f"mine/flops/{name}" for name in ("tree.txt", "modules.csv", "report.html", "report.json")]
    assert [name for name, *_ in files] == names + names
    assert all(replaces for _, replaces, _ in files)
    without_times, with_times = (ModelProfile.from_json(text) for name, _, text in files if name == names[-1])
    assert without_times.latency is None
    assert with_times.latency is not None
    assert {row.path: row.flops for row in with_times.modules} == counted["by_module"]
    table = csv.DictReader(files[len(names) + 1][2].splitlines())
    assert {row["path"]: int(row["flops"]) for row in table} == counted["by_module"]


@pytest.mark.comet
@pytest.mark.slow
def test_without_its_entry_point_nothing_takes_such_an_experiment(tmp_path):
    ran = train(tmp_path, "experiment")
    assert ran.returncode == 1
    assert "NoTrackerError: tracker_for: no tracker takes a comet_ml.offline.OfflineExperiment" in ran.stderr


def test_the_adapter_of_the_page_is_about_thirty_lines():
    code = block_of("python", "class CometTracker")
    assert len([line for line in code.splitlines() if line.strip()]) <= 35
