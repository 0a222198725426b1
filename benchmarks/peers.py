"""Environment with the other counters.

Usage: python benchmarks/peers.py, which makes `.venv-peers` anew and prints the installed versions; `accuracy.py
--peers` makes it if there is none.

It is separate, since some counters replace parts of torch, and their pins are not ours. Each count is a process of its
own, which is killed if it takes too long.
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

# Package by column; a column has the tool's own name.
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
    """Multiply-adds that a peer counted, or its error."""

    multiply_adds: int | None = None
    error: str = ""
    message: str = ""


def make() -> None:
    """Make the environment.

    It has the torch and the transformers of `constraints.txt`, then each tool by itself.
    """
    subprocess.run([sys.executable, "-m", "venv", "--clear", VENV], check=True)
    _install("torch", "transformers", "numpy", "setuptools", "wheel", "ninja", "packaging").check_returncode()
    for package in dict.fromkeys(PACKAGES.values()):
        # DeepSpeed's build imports torch, and compiles kernels unless it is told not to.
        # A tool that does not install is missing from the table, and does not stop the others.
        if _install("--no-build-isolation", package).returncode:
            print(f"{package} does not install here", file=sys.stderr)


def _install(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    pip = [PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command = [*pip, "--constraint", ROOT / "constraints.txt", *arguments]
    return subprocess.run(command, env={**os.environ, "DS_BUILD_OPS": "0"}, check=False)


def versions() -> dict[str, str]:
    """Return versions of the installed tools by package.

    The environment is made if there is none.
    """
    if not PYTHON.exists():
        make()
    listed = subprocess.run([PYTHON, "-m", "pip", "list", "--format", "json"], capture_output=True, check=True)
    installed = {row["name"].lower(): row["version"] for row in json.loads(listed.stdout)}
    return {package: installed[package] for package in dict.fromkeys(PACKAGES.values()) if package in installed}


def ask(names: Sequence[str], model: str, *, small: bool = False, timeout_s: float = 300) -> list[Answer]:
    """Ask each tool, in a process each, to count one model."""
    command = [PYTHON, COUNTS, model, *names, "--timeout", str(timeout_s), *(["--quick"] if small else [])]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    return [Answer(**json.loads(line)) for line in ran.stdout.splitlines()]


if __name__ == "__main__":
    make()
    print(", ".join(f"{package} {version}" for package, version in versions().items()))
