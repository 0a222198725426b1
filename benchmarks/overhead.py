"""Time of a training step with us over one without us.

Usage: python benchmarks/overhead.py [--quick] [--seconds 75] [--begins 5] [--threads 1]

Three trainings of the same model advance step by step in one process, in a random order: without us, without us once
more, and with us, all with TensorBoard and the default logging interval. So other load on the machine affects all
three. A step is timed from its begin to the begin of the next one, including the loop's work between (data, logging).
Trainings are begun anew several times, since the place of a model in memory matters, too. Each begin gives a ratio of
medians over the steps after the measuring window; printed are the median, minimum and maximum of these ratios. The
column "without, twice" is the ratio of two equal trainings: it shows how precise such a figure is on the machine.

The counted step is the first one. It is compared with a plain step, next to the first step without us, which takes
longer than a plain one, too; medians over the begins, without the very first. With TensorBoard, it also draws and
writes the profile.
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
from contextlib import nullcontext
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

WINDOW = 30  # steps: a few more than the counted one, 5 of warm-up, and 20 timed ones
CLASSES = 10
LOG_EVERY = 50  # Lightning's default


class Encoder(nn.Module):
    """Transformer encoder on sequences of vectors."""

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
    """Model to train, with the shape of its batches."""

    name: str
    build: Callable[[], nn.Module]
    batch: tuple[int, ...]

    def batch_of_ones(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return inputs and labels of ones, since data does not matter."""
        return torch.ones(self.batch), torch.ones(self.batch[:1], dtype=torch.long)


CASES = (
    Case("small: the demo's transformer", lambda: Encoder(8, 64, 4), (64, 8, 8)),
    Case("medium: 6 layers of 256", lambda: Encoder(64, 256, 6), (4, 64, 64)),
)


class Training:
    """Training in its own thread that runs only during `advance`."""

    def __init__(self, train: Callable[[Training], None]) -> None:
        self._may_go = threading.Semaphore(0)
        self._done: queue.SimpleQueue[float | BaseException] = queue.SimpleQueue()
        self._train = train
        self._began = 0.0  # begin of the step under way; 0 before the first
        self._is_over = False  # set by `end`: from then on nothing waits
        # A daemon, so that a training that still waits does not keep the process alive.
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def advance(self) -> float:
        """Make one step and return its seconds."""
        self._may_go.release()
        result = self._done.get()
        if isinstance(result, BaseException):
            raise result
        return result

    def end(self) -> None:
        """Let the training finish, untimed."""
        self._is_over = True
        self._may_go.release()
        self._thread.join()

    def batches(self, case: Case) -> Iterator[Any]:
        """Yield the same batch until the training is over."""
        batch = case.batch_of_ones()
        while not self._is_over:
            yield batch

    def begin_step(self) -> None:
        """Report the last step, and wait until the next one may begin.

        The training calls it.
        """
        if self._is_over:
            return
        if self._began:
            self._done.put(time.perf_counter() - self._began)
        self._may_go.acquire()
        self._began = time.perf_counter()

    def _run(self) -> None:
        try:
            self._train(self)
        except BaseException as error:  # noqa: BLE001 - `advance` raises it again
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
    """Callback that makes a trainer wait for its turn.

    It has to come before every other callback.
    """

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
        us = FlopHook(model, optimizer, to=writer, summary=False, strict=True) if with_us else nullcontext()
        with us:
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
    """Seconds of steps by training.

    Attributes:
        firsts: seconds of the first step.
        steps: seconds of the steps after the window.
    """

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
    trainings.pop(NO_TRACKER).end()  # only its first step is of interest
    names.remove(NO_TRACKER)
    for name, _ in itertools.product(names, range(WINDOW)):
        trainings[name].advance()
    steps: dict[str, list[float]] = {name: [] for name in names}
    # Shuffled in every round, so that none always runs after the same other one.
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
    """Measure a row of the table."""
    begins = [begin(case, loop, folder, options.seconds / options.begins) for _ in range(options.begins)]
    plain_s = statistics.median(itertools.chain(*(b.steps[WITHOUT] for b in begins)))
    ratios = [spread([b.ratio(name) for b in begins]) for name in (WITH, AGAIN)]
    # Without the first begin, in which the process also loads code.
    firsts = [statistics.median(b.firsts[name] for b in begins[1:]) / plain_s for name in (WITHOUT, NO_TRACKER, WITH)]
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
