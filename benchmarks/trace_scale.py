"""Scaling of a count: time per operator, and peak memory.

Usage: python benchmarks/trace_scale.py [--quick]

Time: a chain of a thousand to a hundred thousand cheap operators on a small tensor, spread over modules, so that the
operators' own work is negligible. Memory: peak resident size of a process that runs a forward, or counts one, of models
with large activations; the size of the process before either is subtracted.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from models import UNet, UNetConfig
from report import environment, markdown
from torch import nn

from flopcallback import FlopCountAnalysis

OPERATORS_PER_BLOCK = 100
MIB = 2**20


class Block(nn.Module):
    """Module of a hundred operators."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(OPERATORS_PER_BLOCK // 4):
            x = torch.relu(x * 1.01 - 0.01).transpose(0, 1)
        return x


def chain(operators: int) -> nn.Module:
    """Build blocks in groups of ten: modules at two levels."""
    blocks = [Block() for _ in range(operators // OPERATORS_PER_BLOCK)]
    return nn.Sequential(*(nn.Sequential(*blocks[start : start + 10]) for start in range(0, len(blocks), 10)))


def seconds(function: Callable[[], Any]) -> float:
    gc.collect()  # a collection inside would be timed
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def time_row(operators: int, rounds: int) -> tuple[int, float, float]:
    """Time a forward and a count of `operators` operators.

    Returns:
        Operators, and the best microseconds per operator of a forward and of a count.
    """
    model, x = chain(operators), torch.ones(2, 3)
    with torch.no_grad():
        # The minimum: other load on the machine only adds time.
        forward_s = min(seconds(lambda: model(x)) for _ in range(rounds))
        count_s = min(seconds(lambda: FlopCountAnalysis(model, x, elementwise=True).total()) for _ in range(rounds))
    return operators, 1e6 * forward_s / operators, 1e6 * count_s / operators


def wide_mlp() -> tuple[nn.Module, torch.Tensor]:
    """Build an MLP with activations of 64 MiB each and small weights."""
    layers = [layer for _ in range(8) for layer in (nn.Linear(64, 64), nn.GELU())]
    return nn.Sequential(*layers), torch.randn(64 * MIB // (4 * 64), 64)


def unet() -> tuple[nn.Module, torch.Tensor]:
    return UNet(UNetConfig(3, (16, 32, 64, 128), 2)), torch.randn(4, 3, 512, 512)


BIG: Mapping[str, Callable[[], tuple[nn.Module, torch.Tensor]]] = {"wide MLP": wide_mlp, "U-Net": unet}


def peak_mib() -> float:
    """Return the peak resident size of this process so far, in MiB."""
    # Not `ru_maxrss` on Linux: it starts from the size that the parent had when it forked.
    status = Path("/proc/self/status")
    if status.exists():
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS, KiB elsewhere
    return peak / MIB if sys.platform == "darwin" else peak / 1024


def probe(name: str, action: str, grad: bool) -> None:
    """Print the MiB by which the peak grows, in a separate process.

    Args:
        name: key of `BIG`.
        action: `"forward"` or `"count"`.
        grad: whether autograd is on.
    """
    FlopCountAnalysis(nn.Linear(3, 5), torch.ones(2, 3)).total()  # loads modules that a first count needs
    model, x = BIG[name]()
    model.eval()
    before = peak_mib()
    with torch.set_grad_enabled(grad):
        if action == "forward":
            model(x)
        else:
            FlopCountAnalysis(model, x).total()
    print(json.dumps(peak_mib() - before))


def memory_row(name: str, grad: bool) -> list[str]:
    # With this setting, freed blocks of 1 MiB and more go back to the system. By default glibc keeps blocks below 32
    # MiB in a heap, which cannot shrink below the graph's small blocks at its end. Up to 130 MiB are then used by no
    # tensor, more or less by chance.
    environ = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(MIB)}
    grown = []
    for action in ("forward", "count"):
        command = [sys.executable, __file__, "--probe", name, action, str(int(grad))]
        grown.append(
            json.loads(subprocess.run(command, check=True, capture_output=True, text=True, env=environ).stdout)
        )
    forward, count = grown
    return [f"{name}, {'grad' if grad else 'no_grad'}", f"{forward:.0f}", f"{count:.0f}", f"{count / forward:.3f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="up to 10,000 operators, one model's memory")
    parser.add_argument("--rounds", type=int, default=3, help="of the timings, the best of which is shown")
    parser.add_argument("--probe", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.probe:
        name, action, grad = options.probe
        probe(name, action, bool(int(grad)))
        return

    sizes = (1_000, 3_000, 10_000) if options.quick else (1_000, 3_000, 10_000, 30_000, 100_000)
    time_row(sizes[0], 1)  # loads modules that a first count needs
    rows = [time_row(operators, options.rounds) for operators in sizes]
    print(f"{environment()}\n")
    header = ["operators", "forward, us/operator", "count, us/operator", "count against the smallest"]
    print(markdown(header, ([f"{n:,}", f"{f:.1f}", f"{c:.1f}", f"{c / rows[0][2]:.2f}"] for n, f, c in rows)))

    cases = [(name, grad) for name in BIG for grad in (False, True)][: 1 if options.quick else None]
    print()
    print(markdown(["peak memory, MiB", "forward", "count", "ratio"], (memory_row(*case) for case in cases)))


if __name__ == "__main__":
    main()
