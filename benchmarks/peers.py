"""The other counters, in an environment of their own: some replace parts of torch, and their pins are not ours.

Usage: python benchmarks/peers.py, which makes `.venv-peers` anew and says what was installed; `accuracy.py --peers`
does so by itself where there is none. Each count is a process of its own, ended when it takes too long.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["PACKAGES", "Answer", "ask", "make", "versions"]

ROOT = Path(__file__).parents[1]
VENV = ROOT / ".venv-peers"
PYTHON = VENV / "bin" / "python"
COUNTS = Path(__file__).with_name("peer_counts.py")

# By the name of the column, which is the tool's.
PACKAGES: Mapping[str, str] = {
    "ptflops": "ptflops",
    "ptflops, aten": "ptflops",
    "ultralytics-thop": "ultralytics-thop",
    "torchinfo": "torchinfo",
    "calflops": "calflops",
    "torchprofile": "torchprofile",
    "DeepSpeed": "deepspeed",
    "TorchLens": "torchlens",
}


@dataclass(frozen=True)
class Answer:
    """What a peer said of a model: multiply-adds, or why there are none."""

    multiply_adds: int | None = None
    error: str = ""
    message: str = ""


def make() -> None:
    """Makes the environment: the torch and the transformers of `constraints.txt`, then each tool by itself."""
    subprocess.run([sys.executable, "-m", "venv", "--clear", VENV], check=True)
    _install("torch", "transformers", "numpy", "setuptools", "wheel", "ninja", "packaging").check_returncode()
    for package in dict.fromkeys(PACKAGES.values()):
        # DeepSpeed's build imports torch, and compiles kernels unless it is told not to.
        if _install("--no-build-isolation", package).returncode:
            print(f"{package} does not install here", file=sys.stderr)


def _install(*what: str) -> subprocess.CompletedProcess[bytes]:
    pip = [PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command = [*pip, "--constraint", ROOT / "constraints.txt", *what]
    return subprocess.run(command, env={**os.environ, "DS_BUILD_OPS": "0"}, check=False)


def versions() -> dict[str, str]:
    """Versions of the installed tools by package; makes the environment where there is none."""
    if not PYTHON.exists():
        make()
    listed = subprocess.run([PYTHON, "-m", "pip", "list", "--format", "json"], capture_output=True, check=True)
    installed = {each["name"].lower(): each["version"] for each in json.loads(listed.stdout)}
    return {package: installed[package] for package in dict.fromkeys(PACKAGES.values()) if package in installed}


def ask(names: Sequence[str], model: str, *, small: bool = False, timeout_s: float = 300) -> list[Answer]:
    """Has each of the tools count one model, in a process of its own."""
    command = [PYTHON, COUNTS, model, *names, "--timeout", str(timeout_s), *(["--quick"] if small else [])]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    return [Answer(**json.loads(line)) for line in ran.stdout.splitlines()]


if __name__ == "__main__":
    make()
    print(", ".join(f"{package} {version}" for package, version in versions().items()))
