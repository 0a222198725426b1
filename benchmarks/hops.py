"""The way of a batch through our files: calls, functions, files, and switches between files.

Usage: python benchmarks/hops.py [--batches 10] [--pairs 0]

A net of three layers is trained by a Trainer that logs to an offline run of W&B. `sys.setprofile` sees each call of a
function of ours, comprehensions and generators included. Two calls in a row in different files are a switch: a reader
who follows the batch turns to another file. The first batch is counted, and its page is drawn and written; the second
is observed as a whole step; then come one of warm-up, three that are timed, and plain ones. `--pairs` lists the pairs
of files between which the first batch switches most.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import flopcallback_wandb
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from report import environment, markdown
from torch import nn
from torch.utils.data import DataLoader

import flopcallback
from flopcallback import FlopCallback

OURS = tuple(f"{Path(package.__file__).parent}{os.sep}" for package in (flopcallback, flopcallback_wandb))
TIMED = 3


class Way:
    """What ran between two beginnings of batches."""

    def __init__(self) -> None:
        self.calls = 0
        self.functions: set[CodeType] = set()
        self.pairs: Counter[tuple[str, str]] = Counter()
        self._last = ""

    def follow(self, frame: FrameType, event: str, _: Any) -> None:
        """Note a call of a function of ours; for `sys.setprofile`."""
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(OURS):
            return
        self.calls += 1
        self.functions.add(code)
        if self._last not in ("", code.co_filename):
            self.pairs[self._last, code.co_filename] += 1
        self._last = code.co_filename

    def row(self) -> list[str]:
        """Return the figures as texts."""
        files = {code.co_filename for code in self.functions}
        return [f"{number:,}" for number in (self.calls, len(self.functions), len(files), self.pairs.total())]


class Follower(Callback):
    """Follows each batch from its beginning to that of the next one; it has to stand before the other callbacks."""

    def __init__(self) -> None:
        self.ways: list[Way] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self.ways.append(Way())
        sys.setprofile(self.ways[-1].follow)

    def on_train_end(self, *_: Any) -> None:
        sys.setprofile(None)


class Regression(LightningModule):
    """Net of three layers that logs its loss, trained on ones."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))

    def training_step(self, batch: torch.Tensor, _: int) -> torch.Tensor:
        loss = self.net(batch).square().mean()
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def ways_of(batches: int) -> list[Way]:
    """Train, and return the way of each batch."""
    follower = Follower()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=1,
            logger=WandbLogger(save_dir=folder, offline=True),
            callbacks=[follower, FlopCallback(warmup_steps=1, latency_steps=TIMED, summary=False)],
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            default_root_dir=folder,
        )
        trainer.fit(Regression(), DataLoader([torch.ones(4, 5)] * batches, batch_size=None))
        trainer.logger.experiment.finish()
    return follower.ways


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--batches", type=int, default=10, help="batches of the training")
    parser.add_argument("--pairs", type=int, default=0, help="how many pairs of files of the first batch to list")
    arguments = parser.parse_args()
    os.environ["WANDB_SILENT"] = "true"
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    ways = ways_of(arguments.batches)
    print(environment("lightning", "wandb"), end="\n\n")
    print(
        markdown(["batch", "calls", "functions", "files", "switches"], [[f"{i}", *w.row()] for i, w in enumerate(ways)])
    )
    if arguments.pairs:
        folder = Path(flopcallback.__file__).parents[1]
        pairs = [
            [f"{os.path.relpath(before, folder)}, {os.path.relpath(after, folder)}", f"{number:,}"]
            for (before, after), number in ways[0].pairs.most_common(arguments.pairs)
        ]
        print("", markdown(["from, to", "switches"], pairs), sep="\n")


if __name__ == "__main__":
    main()
