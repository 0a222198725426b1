"""Cost of booking a step after the measuring window, in microseconds, and of the audits of a long training.

Usage: python benchmarks/step_cost.py [--steps 3000] [--beside CHECKOUT ...] [--audits [--long 20000]]

The net is so small that the cost shows. Steps without us, with us, and with wrappers, hooks or a callback that do
nothing take turns in one thread, in alternating order: A B C, C B A. Printed is the median of the differences between
steps of one turn, in the thread's time on the processor, which leaves out what other programs do meanwhile, and by the
clock. Each is the median over rounds, with the least and the most. "Doing nothing" is the floor: what Python, PyTorch
and Lightning take to call anything.

Plain loop: three nets. Trainer: one training, whose callbacks are exchanged from step to step; steps without us go
through a twin of the net, with the same parameters and without wrappers.

The cost does not depend on the model, except for its parameters: `requires_grad` of each is read in every step.

With `--beside`, the `flopcallback` of other checkouts is measured too, by turns with this one.

With `--audits`, a training of a small transformer of many steps: how many of them are audits, what share of the time
they take beyond a plain step's, and how much the process has grown meanwhile.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from report import environment, markdown
from torch import nn

from flopcallback import FlopCallback, FlopHook

WITHOUT, NOTHING, OURS = "without us", "doing nothing", "with us"

WINDOW = 60  # steps: more than those that are counted, observed and timed, and a log step


def net() -> nn.Sequential:
    return nn.Sequential(*[nn.Linear(16, 16) for _ in range(6)])


Pair = tuple[int, int]
"""Nanoseconds of a step: of the clock, and of this thread on the processor."""


def now() -> Pair:
    return time.perf_counter_ns(), time.thread_time_ns()


def since(begin: Pair) -> Pair:
    processor = time.thread_time_ns()  # first, as it was read last
    return time.perf_counter_ns() - begin[0], processor - begin[1]


def with_wrappers(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Wrap a model, and hook its optimizer, by what does nothing."""
    forward = model.forward

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    model.forward = wrapped
    optimizer.register_step_pre_hook(lambda *_: None)
    optimizer.register_step_post_hook(lambda *_: None)


def in_a_loop(steps: int) -> dict[str, list[Pair]]:
    """Return the times of steps in a plain loop, turn by turn."""
    models = {name: net() for name in (WITHOUT, NOTHING, OURS)}
    optimizers = {name: torch.optim.SGD(model.parameters(), lr=0.01) for name, model in models.items()}
    taken: dict[str, list[Pair]] = {name: [] for name in models}
    x = torch.ones(4, 16)
    with_wrappers(models[NOTHING], optimizers[NOTHING])
    with FlopHook(models[OURS], optimizers[OURS], summary=False):
        for turn in range(steps):
            for name in [*models][:: -1 if turn % 2 else 1]:
                model, optimizer = models[name], optimizers[name]
                begin = now()
                model(x).square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()
                taken[name].append(since(begin))
    return taken


class Regression(LightningModule):
    """Net in a LightningModule, trained on ones.

    Attributes:
        twin: the same net, in which nobody finds modules to wrap.
        in_use: the one that is called.
    """

    def __init__(self) -> None:
        super().__init__()
        self.net = net()
        twin = nn.Sequential(*[nn.Linear(16, 16) for _ in self.net])
        for layer, own in zip(twin, self.net, strict=True):
            layer.weight, layer.bias = own.weight, own.bias
        self.both = {False: [twin], True: [self.net]}  # lists hide modules from their owner
        self.watches = True

    def training_step(self, batch: torch.Tensor, _: int) -> torch.Tensor:
        return self.both[self.watches][0](batch).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Idle(Callback):
    """Callback with the hooks of ours, which do nothing."""

    def on_train_batch_start(self, *_: Any) -> None:
        pass

    def on_before_backward(self, *_: Any) -> None:
        pass

    def on_before_optimizer_step(self, *_: Any) -> None:
        pass

    def on_train_batch_end(self, *_: Any) -> None:
        pass


class Turns(Callback):
    """Callback that exchanges others from step to step, and times the steps."""

    def __init__(self, others: dict[str, list[Callback]]) -> None:
        self.others = others
        self.taken: dict[str, list[Pair]] = {name: [] for name in others}
        self.order = itertools.cycle([*others, *reversed(others)])
        self.name = ""
        self.began = (0, 0)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self.name:
            self.taken[self.name].append(since(self.began))
        self.name = next(self.order)
        pl_module.watches = self.name == OURS
        trainer.callbacks[:] = [self, *self.others[self.name]]  # the list that this hook's caller walks through
        self.began = now()

    def on_train_end(self, trainer: Trainer, *_: Any) -> None:
        trainer.callbacks[:] = [self, *itertools.chain(*self.others.values())]


def under_a_trainer(steps: int) -> dict[str, list[Pair]]:
    """Return the times of steps under a Trainer, turn by turn."""
    turns = Turns({WITHOUT: [], NOTHING: [Idle()], OURS: [FlopCallback(summary=False)]})
    trainer = Trainer(
        accelerator="cpu",
        max_steps=3 * steps + 1,
        logger=False,
        callbacks=[turns, *itertools.chain(*turns.others.values())],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Regression(), torch.utils.data.DataLoader(torch.ones(4 * (3 * steps + 1), 16), batch_size=4))
    return turns.taken


def summarized(taken: dict[str, list[Pair]]) -> dict[str, list[float]]:
    """Return the median microseconds of a step without us, and of what the others take more: clock and processor."""
    late = {name: times[WINDOW:] for name, times in taken.items()}
    plain = late.pop(WITHOUT)
    more = {WITHOUT: plain} | {
        name: [
            (clock - without[0], processor - without[1])
            for (clock, processor), without in zip(times, plain, strict=False)
        ]
        for name, times in late.items()
    }
    return {
        name: [statistics.median(column) / 1e3 for column in zip(*pairs, strict=True)] for name, pairs in more.items()
    }


def measured(steps: int) -> dict[str, dict[str, list[float]]]:
    """Return the medians by loop and by what stands in it."""
    return {"plain loop": summarized(in_a_loop(steps)), "Trainer": summarized(under_a_trainer(steps))}


def measured_in(checkout: Path, steps: int) -> dict[str, dict[str, list[float]]]:
    """Return what a process measures with the package of a checkout."""
    places = os.pathsep.join([str(checkout), str(checkout / "integrations")])
    command = [sys.executable, __file__, "--steps", str(steps), "--json"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": places}, check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def by_turns(checkouts: Sequence[Path], steps: int, rounds: int) -> list[list[str]]:
    """Return a row for each checkout and loop: the median over rounds, in which checkouts take turns."""
    taken = [[measured_in(checkout, steps) for checkout in checkouts] for _ in range(rounds)]
    rows = []
    for number, checkout in enumerate(checkouts):
        for loop in taken[0][number]:
            cells = [loop, checkout.name or str(checkout)]
            for name, column in ((WITHOUT, 1), (NOTHING, 1), (OURS, 1), (OURS, 0)):
                each = [one[number][loop][name][column] for one in taken]
                cells.append(f"{statistics.median(each):.0f} ({min(each):.0f} to {max(each):.0f})")
            rows.append(cells)
    return rows


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
    parser.add_argument("--beside", type=Path, nargs="*", default=[], help="other checkouts to measure by turns")
    parser.add_argument("--rounds", type=int, default=3, help="of trainings, each in a process of its own")
    parser.add_argument("--json", action="store_true", help="measure in this process, and print plain numbers")
    parser.add_argument("--audits", action="store_true", help="measure audits instead")
    parser.add_argument("--long", type=int, default=20_000, help="steps of the training that is audited")
    options = parser.parse_args()
    steps = options.steps
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    if options.json:
        print(json.dumps(measured(steps)))
        return
    print(environment("lightning"))
    if options.audits:
        headings = ["up to step", "audits", "an audit, in steps", "share of the time", "resident, MiB"]
        print(markdown(headings, audits_of(options.long)))
        return
    headings = ["loop", "checkout", "a step without us, µs", "doing nothing", "with us", "with us, by the clock"]
    print(markdown(headings, by_turns([Path(__file__).resolve().parents[1], *options.beside], steps, options.rounds)))


if __name__ == "__main__":
    main()
