"""What it takes of memory to observe training steps by the profiler's records.

    python benchmarks/observe_memory.py [--quick]

Each figure is of a process of its own, in MiB of resident memory: its peak over some steps (BERT-base), its growth over
2,000 observed steps of a small model, and its peak in a step with some 500,000 records, which is abandoned before the
limit.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from observe_cost import bert
from report import environment, markdown
from torch import nn

from flopcallback.modules.names import ModuleNames
from flopcallback.tracing.observer import StepRecorder

QUICK = "--quick" in sys.argv
STEPS = 3 if QUICK else 6
OBSERVED_STEPS = 200 if QUICK else 2000
LAYERS = 2_000 if QUICK else 20_000
"""Of a net whose step makes some 25 records for each."""


def resident(kind: str = "VmRSS") -> float:
    """Return resident memory in MiB, now or at its peak (`VmHWM`)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{kind}:"))


def forget_peak() -> None:
    """Begin the peak anew."""
    Path("/proc/self/clear_refs").write_text("5")


def trainer_of(model: nn.Module, x: torch.Tensor) -> Callable[[bool], Exception | None]:
    """Return a function that makes a step, observed or not, and returns why it was not observed."""
    optimizer = torch.optim.AdamW(model.parameters())
    names = ModuleNames({"": model})

    def step(is_observed: bool) -> Exception | None:
        recorder = StepRecorder(names, [optimizer])
        with recorder.watching() if is_observed else nullcontext():
            model(x).float().pow(2).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        return recorder.failure

    return step


def small() -> tuple[nn.Module, torch.Tensor]:
    """Return a net of six layers, with the records of its step in the hundreds."""
    return nn.Sequential(*[nn.Linear(8, 8) for _ in range(6)]), torch.ones(4, 8)


def long() -> tuple[nn.Module, torch.Tensor]:
    """Return a net of very many layers."""
    return nn.Sequential(*[nn.Linear(2, 2) for _ in range(LAYERS)]), torch.ones(2, 2)


def peak(make: Callable[[], tuple[nn.Module, torch.Tensor]], is_observed: bool, steps: int) -> tuple[float, str]:
    """Return the peak of some steps, and why they were not observed."""
    step = trainer_of(*make())
    step(False)  # gradients and states of the optimizer stay
    trainer_of(*small())(True)  # and what libkineto takes once
    forget_peak()
    failures = {str(step(is_observed)) for _ in range(steps)}
    return resident("VmHWM"), ", ".join(failures - {"None"})


def growth(is_observed: bool) -> float:
    """Return by how much memory grows over many steps, after some at the beginning."""
    step = trainer_of(*small())
    for _ in range(OBSERVED_STEPS // 4):
        step(is_observed)
    before = resident()
    for _ in range(OBSERVED_STEPS):
        step(is_observed)
    return resident() - before


def alone(function: Callable[..., object], *args: object) -> object:
    """Call a function in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, args)


def main() -> None:
    rows = []
    (plain, _), (observed, why) = (alone(peak, bert, is_observed, STEPS) for is_observed in (False, True))
    rows.append(["BERT-base, peak of a step", f"{plain:.0f}", f"{observed:.0f}", f"{observed / plain:.3f}", why])
    plain, observed = (alone(growth, is_observed) for is_observed in (False, True))
    rows.append([f"six layers, growth over {OBSERVED_STEPS:,} steps", f"{plain:.1f}", f"{observed:.1f}", "-", ""])
    (plain, _), (observed, why) = (alone(peak, long, is_observed, 1) for is_observed in (False, True))
    rows.append(
        [f"{LAYERS:,} layers, peak of a step", f"{plain:.0f}", f"{observed:.0f}", f"{observed / plain:.3f}", why]
    )
    print(f"{environment()}\n")
    print(markdown(["MiB", "plain", "observed", "ratio", "not observed"], rows))


if __name__ == "__main__":
    main()
