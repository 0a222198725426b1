"""Cost of booking a step after the measuring window, in microseconds, and of the audits of a long training.

Usage: python benchmarks/step_cost.py [--steps 3000] [--audits [--long 20000]]

The net is so small that the cost shows. Plain loop: two trainings of a tiny net, with us and without us, take turns
step by step; each has the median of its steps after the window. Trainer: time inside the hooks of `FlopCallback`,
compared with the time from batch to batch. The cost does not depend on the model, except for its parameters:
`requires_grad` of each is read in every step.

With `--audits`, a training of a small transformer of many steps: how many of them are audits, what share of the time
they take beyond a plain step's, and how much the process has grown meanwhile.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from report import environment, markdown
from torch import nn

from flopcallback import FlopCallback, FlopHook

WINDOW = 60  # steps: more than those that are counted, observed and timed, and a log step


def net() -> nn.Sequential:
    return nn.Sequential(*[nn.Linear(16, 16) for _ in range(6)])


class Regression(LightningModule):
    """Net in a LightningModule, trained on ones."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def training_step(self, batch: torch.Tensor, _: int) -> torch.Tensor:
        return self.net(batch).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Timed(FlopCallback):
    """Callback that times its own hooks and records begins of batches."""

    def __init__(self) -> None:
        super().__init__(summary=False)
        self.begins: list[float] = []
        self.inside = [0.0]

    def on_train_batch_start(self, *arguments: Any) -> None:
        self.begins.append(time.perf_counter())
        self.inside.append(0.0)
        self._time(super().on_train_batch_start, arguments)

    def on_before_backward(self, *arguments: Any) -> None:
        self._time(super().on_before_backward, arguments)

    def on_before_optimizer_step(self, *arguments: Any) -> None:
        self._time(super().on_before_optimizer_step, arguments)

    def on_train_batch_end(self, *arguments: Any) -> None:
        self._time(super().on_train_batch_end, arguments)

    def _time(self, hook: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        begin = time.perf_counter()
        hook(*arguments)
        self.inside[-1] += time.perf_counter() - begin


def in_a_loop(steps: int) -> tuple[float, float]:
    """Return the microseconds of a step without us, and with us."""
    models = [net(), net()]
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.01) for model in models]
    times: tuple[list[float], list[float]] = ([], [])
    x = torch.ones(4, 16)
    with FlopHook(models[1], optimizers[1], summary=False):
        for _ in range(steps):
            for model, optimizer, taken in zip(models, optimizers, times, strict=True):
                begin = time.perf_counter()
                model(x).square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()
                taken.append(time.perf_counter() - begin)
    # Medians, since a step that something else interrupts takes many times as long.
    without, ours = (statistics.median(taken[WINDOW:]) * 1e6 for taken in times)
    return without, ours


def under_a_trainer(steps: int) -> tuple[float, float]:
    """Return the microseconds of a step without our hooks, and with them."""
    callback = Timed()
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        logger=False,
        callbacks=[callback],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Regression(), torch.utils.data.DataLoader(torch.ones(4 * steps, 16), batch_size=4))
    whole = statistics.median(itertools.starmap(lambda a, b: b - a, itertools.pairwise(callback.begins[WINDOW:]))) * 1e6
    inside = statistics.median(callback.inside[WINDOW:]) * 1e6
    return whole - inside, whole


def audits_of(steps: int) -> list[list[str]]:
    """Return rows on the audits of a training, quarter by quarter."""
    model = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x, rows = torch.ones(4, 16, 32), []
    with FlopHook(model, optimizer, summary=False, warmup_steps=2, latency_steps=4) as hook:
        taken: tuple[list[float], list[float]] = ([], [])  # of plain steps, and of audits
        ledger, audited = hook._training._meter.ledger, 0
        for step in range(steps):
            begin = time.perf_counter()
            model(x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            taken[ledger.audited > audited].append(time.perf_counter() - begin)
            audited = ledger.audited
            if (step + 1) % (steps // 4) == 0:
                plain, audits = taken
                usual = statistics.median(plain)
                share = sum(each - usual for each in audits) / (sum(plain) + sum(audits))
                price = statistics.median(audits) / usual
                resident = int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20
                rows.append([f"{step + 1:,}", f"{len(audits)}", f"{price:.1f}", f"{share:.2%}", f"{resident:.1f}"])
                taken = ([], [])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3000, help="of a training")
    parser.add_argument("--audits", action="store_true", help="measure audits instead")
    parser.add_argument("--long", type=int, default=20_000, help="steps of the training that is audited")
    options = parser.parse_args()
    steps = options.steps
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    print(environment("lightning"))
    if options.audits:
        headings = ["up to step", "audits", "an audit, in steps", "share of the time", "resident, MiB"]
        print(markdown(headings, audits_of(options.long)))
        return
    rows = []
    for name, train in (("plain loop", in_a_loop), ("Trainer", under_a_trainer)):
        without, ours = train(steps)
        rows.append([name, f"{without:.0f}", f"{ours:.0f}", f"{ours - without:.0f}"])
    print(markdown(["loop", "a step without us, µs", "with us", "difference"], rows))


if __name__ == "__main__":
    main()
