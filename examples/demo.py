"""Train two small models on digits, by Trainer and by loop.

The data ships with scikit-learn. No account and no server is needed: TensorBoard's files, MLflow on SQLite, W&B
offline. The last lines of the output say where to look.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
import warnings
from pathlib import Path

import mlflow
import torch
import torch.nn.functional as F
import wandb
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger
from rich.console import Console
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.tensorboard import SummaryWriter
from torchmetrics.classification import MulticlassAccuracy

from flopcallback import FlopCallback, FlopHook
from flopcallback.reporting import ModelProfile, rich_table

OUTPUT = Path("demo_output")
STORE = f"sqlite:///{OUTPUT}/mlflow.db"
ARTIFACTS = (OUTPUT / "mlflow").resolve().as_uri()
DIGITS, SIDE = 10, 8
WIDTH = 118  # columns of the whole table


class Residual(nn.Module):
    """Residual block of two convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.norm1(self.conv1(x)))
        return F.relu(x + self.norm2(self.conv2(inner)))


class ImageModel(nn.Module):
    """Small residual network on 1×8×8 images."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.stage1 = nn.Sequential(Residual(16), Residual(16))
        self.down = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.stage2 = nn.Sequential(Residual(32), Residual(32))
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(32, DIGITS)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.stage2(self.down(self.stage1(self.stem(images))))
        return self.head(self.dropout(maps.mean(dim=(2, 3))))


class RowTransformer(nn.Module):
    """Transformer that reads an image as a sequence of eight rows."""

    def __init__(self, width: int = 64, layers: int = 4) -> None:
        super().__init__()
        self.embed = nn.Linear(SIDE, width)
        self.position = nn.Parameter(torch.randn(SIDE, width) * 0.02)
        layer = nn.TransformerEncoderLayer(width, nhead=4, dim_feedforward=4 * width, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, DIGITS)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.embed(images.squeeze(1)) + self.position
        return self.head(self.encoder(tokens).mean(dim=1))


class Classifier(LightningModule):
    """Model of images, trained to classify digits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.accuracy = MulticlassAccuracy(DIGITS)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        loss = F.cross_entropy(self.model(images), labels)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        self.accuracy(self.model(images), labels)
        self.log("val/accuracy", self.accuracy, prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


def digits() -> tuple[DataLoader, DataLoader]:
    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, SIDE, SIDE) / 16
    data = TensorDataset(images, torch.tensor(labels))
    train, val = torch.utils.data.random_split(data, [1500, len(data) - 1500])
    return DataLoader(train, batch_size=64, shuffle=True, drop_last=True), DataLoader(val, batch_size=256)


def train_with_lightning(epochs: int) -> None:
    """Train in a Trainer: FlopCallback is one line.

    Each of the loggers shows the profile.
    """
    seed_everything(7, verbose=False)
    train_data, val_data = digits()
    name = ImageModel.__name__
    callback = FlopCallback(peak_flops="measure", summary=False)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=[
            TensorBoardLogger(OUTPUT / "tensorboard", name=name, version=""),
            MLFlowLogger("digits", run_name=name, tracking_uri=STORE, artifact_location=ARTIFACTS),
            WandbLogger(name=name, project="digits", save_dir=OUTPUT, offline=True),
        ],
        callbacks=[callback],
        log_every_n_steps=5,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    start = time.perf_counter()
    trainer.fit(Classifier(ImageModel()), train_data, val_data)
    accuracy = float(trainer.callback_metrics["val/accuracy"])
    show(callback.profiles["train"], f"{name}, by a Trainer: {epochs} epochs", time.perf_counter() - start, accuracy)
    wandb.finish()


def train_in_a_loop(epochs: int) -> None:
    """Train in a plain loop: FlopHook is one line.

    Each of the targets shows the profile.
    """
    torch.manual_seed(7)
    train_data, val_data = digits()
    model = RowTransformer()
    name = type(model).__name__
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    client = mlflow.MlflowClient(STORE)
    run_id = client.create_run(client.get_experiment_by_name("digits").experiment_id, run_name=name).info.run_id
    start = time.perf_counter()
    with (
        SummaryWriter(OUTPUT / "tensorboard" / name) as writer,
        FlopHook(
            model, optimizer, to=[writer, (client, run_id), OUTPUT / "report"], peak_flops="measure", summary=False
        ) as hook,
    ):
        for step, (images, labels) in enumerate(batch for _ in range(epochs) for batch in train_data):
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if step % 5 == 0:
                writer.add_scalar("train/loss", loss.item(), step)
    client.set_terminated(run_id)  # the hook leaves the run open: it is the user's
    model.eval()
    with torch.no_grad():
        right = [(model(images).argmax(dim=1) == labels).float() for images, labels in val_data]
    accuracy = torch.cat(right).mean().item()
    show(hook.profile, f"{name}, in a plain loop: {epochs} epochs", time.perf_counter() - start, accuracy)


def show(profile: ModelProfile, title: str, seconds: float, accuracy: float) -> None:
    console = Console(width=max(WIDTH, Console().width))
    console.print(rich_table(profile, width=console.width))
    console.print(f"\n{title} in {seconds:.0f} s, accuracy {accuracy:.1%}\n", style="bold")


def main() -> None:
    for name in ("lightning.pytorch", "mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")  # advice on data loaders' workers
    os.environ.setdefault("WANDB_SILENT", "true")
    shutil.rmtree(OUTPUT, ignore_errors=True)
    OUTPUT.mkdir()
    torch.set_num_threads(1)  # faster than two for models this small, with steadier times
    train_with_lightning(epochs=6)
    train_in_a_loop(epochs=8)
    print(f"All of it is in {OUTPUT.resolve()}. To look at it:\n")
    for command, hint in (
        (f"{OUTPUT}/report/flopcallback.html", "in a browser: the transformer's report"),
        (f".venv/bin/tensorboard --logdir {OUTPUT}/tensorboard", "and http://localhost:6006: TEXT, IMAGES, SCALARS"),
        (f".venv/bin/mlflow server --backend-store-uri {STORE}", "and http://localhost:5000: the runs' artifacts"),
        (f".venv/bin/wandb sync {OUTPUT}/wandb/offline-run-*", "with an account, to see it there"),
    ):
        print(f"    {command}\n        {hint}")


if __name__ == "__main__":
    main()
