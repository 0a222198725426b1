"""Train six networks on digits with equal compute, and compare them.

No account and no server is needed: Optuna in memory, metrics in CSV files. The data ships with scikit-learn. The last
lines of the output say where to look.

Usage: python examples/sweep.py [--budget 16e9] [--output sweep_output]
"""

from __future__ import annotations

import argparse
import logging
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import optuna
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from flopcallback import FlopCallback

GRID = {"width": [8, 16, 32], "depth": [1, 3]}
BUDGET = 16e9  # FLOPs of each training
DIGITS, SIDE, PIXELS = 10, 8, 16


class Classifier(LightningModule):
    """Convolutions of one width on 1×8×8 images, with a linear layer."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.save_hyperparameters()
        stages: list[nn.Module] = [nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        for _ in range(depth):
            stages += [nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        self.stages, self.head = nn.Sequential(*stages), nn.Linear(width, DIGITS)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.stages(images).mean(dim=(2, 3)))

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        images, labels = batch
        loss = F.cross_entropy(self(images), labels)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        images, labels = batch
        self.log("val/loss", F.cross_entropy(self(images), labels))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def digits() -> tuple[DataLoader, DataLoader]:
    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, SIDE, SIDE) / PIXELS
    data = TensorDataset(images, torch.tensor(labels))
    train, val = torch.utils.data.random_split(data, [1500, len(data) - 1500])
    return DataLoader(train, batch_size=64, shuffle=True, drop_last=True), DataLoader(val, batch_size=256)


def configurations() -> Iterator[dict[str, int]]:
    """Yield every combination of the grid's values."""
    yield from (dict(zip(GRID, values, strict=True)) for values in product(*GRID.values()))


def train(configuration: dict[str, Any], logger: Any, budget: float) -> tuple[float, FlopCallback]:
    """Train until the budget is spent.

    Returns:
        Validation loss, and the callback.
    """
    seed_everything(7, verbose=False)
    callback = FlopCallback(max_flops=budget, peak_flops="measure", summary=False)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=-1,  # the budget ends the training
        logger=logger,
        callbacks=[callback],
        log_every_n_steps=5,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(Classifier(**configuration), *digits())
    return float(trainer.callback_metrics["val/loss"]), callback


def name_of(configuration: dict[str, Any]) -> str:
    return "-".join(f"{key}-{value}" for key, value in configuration.items())


def compare(places: Sequence[str | Path], page: Path) -> None:
    """Run `flopcallback compare PLACES --metric val/loss -o PAGE`."""
    command = [sys.executable, "-m", "flopcallback", "compare", *map(str, places)]
    subprocess.run([*command, "--metric", "val/loss", "-o", str(page)], check=True)


def options(description: str | None, output: str) -> argparse.Namespace:
    """Parse the command line, and make the output folder anew."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=BUDGET, help="FLOPs of each training")
    parser.add_argument(
        "--output", type=Path, default=Path(output), help="a new folder; the default one is overwritten"
    )
    given = parser.parse_args()
    # Only the default folder, which this script made, is cleared without asking.
    if given.output != Path(output) and given.output.exists() and any(given.output.iterdir()):
        parser.error(f"--output {given.output}: there are files in it; give a new folder")
    shutil.rmtree(given.output, ignore_errors=True)
    given.output.mkdir(parents=True)
    torch.set_num_threads(1)  # faster than two for models this small, with steadier times
    warnings.filterwarnings("ignore", module="lightning")  # advice on data loaders' workers
    for name in ("lightning.pytorch", "mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return given


def main() -> None:
    given = options(__doc__, "sweep_output")

    def objective(trial: optuna.Trial) -> float:
        configuration = {key: trial.suggest_categorical(key, values) for key, values in GRID.items()}
        logger = CSVLogger(given.output, name=name_of(configuration), version="")
        loss, callback = train(configuration, logger, given.budget)
        # Optuna keeps the totals of each trial, for `report` and for the study.
        for name, value in callback.profiles["train"].training.items():
            trial.set_user_attr(name, value)
        return loss

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.GridSampler(GRID, seed=7))
    study.optimize(objective, callbacks=[report])
    print(f"\nbest of {len(study.trials)} at {given.budget:.3g} FLOPs: {name_of(study.best_params)}\n")
    page = given.output / "compare.html"
    compare([given.output], page)
    print(f"\nin a browser: {page}")


def report(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
    """Print a line for a training that ended."""
    spent, steps = trial.user_attrs["compute/flops_total"], trial.user_attrs["compute/samples_total"] // 64
    print(f"{name_of(trial.params):18} val/loss {trial.value:.4f} after {steps:,} steps, {spent:,} FLOPs")


if __name__ == "__main__":
    main()
