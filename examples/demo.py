"""Two small models on the handwritten digits that scikit-learn ships, trained with FlopCallback; see the last lines."""

from __future__ import annotations

import logging
import shutil
import time
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from flopcallback import FlopCallback
from flopcallback.reporting import rich_table

OUTPUT = Path("demo_output")
DIGITS, SIDE = 10, 8
WIDTH = 118  # columns that the whole table needs


class Residual(nn.Module):
    """Two convolutions around which the input is added."""

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
    """A small residual network on 1×8×8 images."""

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
    """A transformer that reads an image as a sequence of eight rows."""

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
    """Any model of images, trained to tell digits apart."""

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


def train(model_class: type[nn.Module], epochs: int) -> None:
    seed_everything(7, verbose=False)
    train_data, val_data = digits()
    name = model_class.__name__
    callback = FlopCallback()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=TensorBoardLogger(OUTPUT, name=name, version=""),
        callbacks=[callback],
        log_every_n_steps=5,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    start = time.perf_counter()
    trainer.fit(Classifier(model_class()), train_data, val_data)
    seconds, accuracy = time.perf_counter() - start, float(trainer.callback_metrics["val/accuracy"])
    console = Console(width=max(WIDTH, Console().width))
    console.print(rich_table(callback.profiles["train"], width=console.width))
    console.print(f"\n{name}: {epochs} epochs in {seconds:.0f} s, accuracy {accuracy:.1%}\n", style="bold")


def main() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")  # advice on data loaders' workers
    shutil.rmtree(OUTPUT, ignore_errors=True)
    torch.set_num_threads(1)  # for models this small faster than two, and the times are steadier
    train(ImageModel, epochs=6)
    train(RowTransformer, epochs=8)
    print(f"TensorBoard's files are in {OUTPUT.resolve()}. To look at them:\n")
    print(f"    .venv/bin/tensorboard --logdir {OUTPUT}\n")
    print("and then http://localhost:6006: TEXT has the tables, IMAGES the charts, SCALARS the totals.")


if __name__ == "__main__":
    main()
