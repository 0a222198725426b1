"""Time of a training step with us over one without us, by trainings that take turns in one process.

Usage: python benchmarks/overhead.py [--quick] [--seconds 75] [--begins 5] [--threads 1]

Three trainings of the same model advance step by step, in a random order: without us, without us once more, and with
us, all with TensorBoard and the default logging interval. So whatever else the machine does hits all three. A step is
timed from its begin to the begin of the next one, with what the loop does between (data, logging). Trainings are begun
anew several times, since where a model happens to lie in memory makes a difference, too. Of each begin there is a ratio
of medians over the steps after the measuring window; printed are their median, and the lowest and the highest of them.
The column "without, twice" is the same ratio of what is the same: what such a figure is worth on the machine.

The counted step is the first one. It is held against a plain step, beside the first step without us, which is no plain
step either; medians over the begins, the very first left out. With TensorBoard, it draws and writes the profile, too.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import queue
import random
import statistics
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from report import environment, markdown
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from flopcallback import FlopCallback, FlopHook

WINDOW = 30  # steps, a few more than the counted one, 5 that warm up, and 20 that are timed
CLASSES = 10
LOG_EVERY = 50  # Lightning's default


class Encoder(nn.Module):
    """A transformer encoder on sequences of vectors."""

    def __init__(self, features: int, width: int, layers: int) -> None:
        super().__init__()
        self.embed = nn.Linear(features, width)
        layer = nn.TransformerEncoderLayer(width, nhead=4, dim_feedforward=4 * width, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(self.embed(x)).mean(dim=1))


@dataclass(frozen=True)
class Case:
    """A model to train, and the shape of its batches."""

    name: str
    build: Callable[[], nn.Module]
    batch: tuple[int, ...]

    def batch_of_ones(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and labels; data is no part of this."""
        return torch.ones(self.batch), torch.ones(self.batch[:1], dtype=torch.long)


CASES = (
    Case("small: the demo's transformer", lambda: Encoder(8, 64, 4), (64, 8, 8)),
    Case("medium: 6 layers of 256", lambda: Encoder(64, 256, 6), (4, 64, 64)),
)


class Training:
    """A training in a thread of its own, which goes on only while `advance` waits for it."""

    def __init__(self, train: Callable[[Training], None]) -> None:
        self._may_go = threading.Semaphore(0)
        self._done: queue.SimpleQueue[float | BaseException] = queue.SimpleQueue()
        self._train = train
        self._began = 0.0
        self._is_over = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def advance(self) -> float:
        """Makes one step and gives its seconds."""
        self._may_go.release()
        done = self._done.get()
        if isinstance(done, BaseException):
            raise done
        return done

    def end(self) -> None:
        """Lets the training come to its end, untimed."""
        self._is_over = True
        self._may_go.release()
        self._thread.join()

    def batches(self, case: Case) -> Iterator[Any]:
        """Asked for by the training: the same batch until it is over."""
        batch = case.batch_of_ones()
        while not self._is_over:
            yield batch

    def begin_step(self) -> None:
        """Called by the training: a step ended, if there was one, and the next one begins when it may."""
        if self._is_over:
            return
        if self._began:
            self._done.put(time.perf_counter() - self._began)
        self._may_go.acquire()
        self._began = time.perf_counter()

    def _run(self) -> None:
        try:
            self._train(self)
        except BaseException as error:  # noqa: BLE001 - raised again where somebody waits
            self._done.put(error)


# --- Under a Trainer ------------------------------------------------------------------------------------------------


class Classifier(LightningModule):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        loss = F.cross_entropy(self.model(batch[0]), batch[1])
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters())


class Turns(Callback):
    """Makes a trainer wait for its turn; stands before every other callback."""

    def __init__(self, training: Training) -> None:
        self._training = training

    def on_train_batch_start(self, *_: Any) -> None:
        self._training.begin_step()


def under_a_trainer(case: Case, folder: str, *, with_us: bool, with_tracker: bool = True) -> Training:
    def train(training: Training) -> None:
        trainer = Trainer(
            accelerator="cpu",
            max_steps=-1,
            logger=TensorBoardLogger(folder) if with_tracker else False,
            callbacks=[Turns(training), *([FlopCallback(summary=False, strict=True)] if with_us else [])],
            default_root_dir=folder,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        trainer.fit(Classifier(case.build()), training.batches(case))

    return Training(train)


# --- In a plain loop ------------------------------------------------------------------------------------------------


def in_a_plain_loop(case: Case, folder: str, *, with_us: bool, with_tracker: bool = True) -> Training:
    def train(training: Training) -> None:
        model = case.build()
        optimizer = torch.optim.AdamW(model.parameters())
        writer = SummaryWriter(folder) if with_tracker else None
        if with_us:
            FlopHook(model, optimizer, to=writer, summary=False, strict=True)
        for step, (x, labels) in enumerate(training.batches(case)):
            training.begin_step()
            loss = F.cross_entropy(model(x), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if writer is not None and (step + 1) % LOG_EVERY == 0:
                writer.add_scalar("train/loss", loss.item(), step)

    return Training(train)


LOOPS = {"Trainer": under_a_trainer, "plain loop": in_a_plain_loop}


# --- Figures --------------------------------------------------------------------------------------------------------

WITHOUT, AGAIN, WITH, NO_TRACKER = "without", "without, twice", "with", "with, no tracker"


@dataclass(frozen=True)
class Begin:
    """Seconds of steps by training: of the first one, and of those after the window."""

    firsts: dict[str, float]
    steps: dict[str, list[float]]

    def ratio(self, over: str) -> float:
        return statistics.median(self.steps[over]) / statistics.median(self.steps[WITHOUT])


def begin(case: Case, loop: str, folder: str, seconds: float) -> Begin:
    names = [WITHOUT, AGAIN, WITH, NO_TRACKER]
    random.shuffle(names)
    trainings = {
        name: LOOPS[loop](case, folder, with_us=name in (WITH, NO_TRACKER), with_tracker=name != NO_TRACKER)
        for name in names
    }
    firsts = {name: training.advance() for name, training in trainings.items()}
    trainings.pop(NO_TRACKER).end()
    names.remove(NO_TRACKER)
    for name, _ in itertools.product(names, range(WINDOW)):
        trainings[name].advance()
    steps: dict[str, list[float]] = {name: [] for name in names}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        random.shuffle(names)
        for name in names:
            steps[name].append(trainings[name].advance())
    for training in trainings.values():
        training.end()
    return Begin(firsts, steps)


def spread(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"


def measured(case: Case, loop: str, options: argparse.Namespace, folder: str) -> list[str]:
    """A row of the table."""
    begins = [begin(case, loop, folder, options.seconds / options.begins) for _ in range(options.begins)]
    plain_s = statistics.median(itertools.chain(*(one.steps[WITHOUT] for one in begins)))
    ratios = [spread([one.ratio(name) for one in begins]) for name in (WITH, AGAIN)]
    firsts = [
        statistics.median(one.firsts[name] for one in begins[1:]) / plain_s for name in (WITHOUT, NO_TRACKER, WITH)
    ]
    return [case.name, loop, f"{1000 * plain_s:.1f}", *ratios, *(f"{first:.1f}" for first in firsts)]


HEADER = [
    "model", "loop", "plain step, ms", "with us / without", "without, twice", "first step", "counted",
    "with TensorBoard",
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="the small model, few seconds: shows that it runs, no more"
    )
    parser.add_argument("--seconds", type=float, default=75, help="for the steps after the window, of a row")
    parser.add_argument("--begins", type=int, default=5, help="how often the trainings are begun anew, 2 or more")
    parser.add_argument("--threads", type=int, default=1, help="of torch; more disturb each other here")
    options = parser.parse_args()
    if options.quick:
        options.seconds, options.begins = 4, 2
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    random.seed(0)

    rows = []
    for case, loop in itertools.product(CASES[: 1 if options.quick else None], LOOPS):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measured(case, loop, options, folder))
        print(" | ".join(rows[-1]), file=sys.stderr, flush=True)

    print(f"\n{environment('lightning', 'tensorboard')}\n")
    print(markdown(HEADER, rows))


if __name__ == "__main__":
    main()
