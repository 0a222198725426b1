"""Small trainings under a real Trainer of either flavour, and everything about them that can be compared."""

from __future__ import annotations

import importlib
import random
import warnings
from dataclasses import dataclass, field, fields
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

FLAVOURS = ("lightning.pytorch", "pytorch_lightning")
BATCH, FEATURES, CLASSES, BATCHES = 6, 7, 3, 5


@dataclass
class Calls:
    """Calls of `training_step`, counted in a global and in a file."""

    path: Any
    counted: int = 0

    def one_more(self):
        self.counted += 1
        with self.path.open("a") as file:
            file.write("called\n")

    @property
    def in_file(self):
        return len(self.path.read_text().splitlines()) if self.path.exists() else 0


class Net(nn.Module):
    """Convolution, batch norm, dropout, attention, a linear head: on batches of `FEATURES` x `FEATURES` images."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.dropout = nn.Dropout(0.2)
        self.attention = nn.MultiheadAttention(FEATURES * 4, 2, dropout=0.1, batch_first=True)
        self.head = nn.Linear(FEATURES * 4, CLASSES)

    def forward(self, x):
        maps = F.relu(self.norm(self.conv(x)))
        tokens = self.dropout(maps).flatten(1, 2).unflatten(1, (4, FEATURES)).transpose(1, 2).flatten(2)
        mixed, _ = self.attention(tokens, tokens, tokens)
        return self.head(mixed.mean(dim=1))


def make_classifier(flavour, calls, net=None):
    import numpy as np
    import torchmetrics

    class Classifier(flavour.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = Net() if net is None else net()
            self.accuracy = torchmetrics.classification.MulticlassAccuracy(CLASSES)
            self.seen = []

        def training_step(self, batch, batch_idx):
            calls.one_more()
            images, labels = batch
            noise = random.random() + np.random.rand()
            scores = self.net(images + 0.01 * noise * torch.randn_like(images))
            loss = F.cross_entropy(scores, labels)
            self.seen.append(batch_idx)
            self.log("train/loss", loss, on_step=True, on_epoch=True)
            self.log("train/accuracy", self.accuracy(scores, labels), on_step=False, on_epoch=True)
            return loss

        def validation_step(self, batch, batch_idx):
            images, labels = batch
            self.log("val/loss", F.cross_entropy(self.net(images), labels))

        def test_step(self, batch, batch_idx):
            images, labels = batch
            self.seen.append(batch_idx)
            self.accuracy(self.net(images), labels)
            self.log("test/accuracy", self.accuracy)

        def predict_step(self, batch, batch_idx):
            self.seen.append(batch_idx)
            return self.net(batch[0])

        def configure_optimizers(self):
            optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]

    return Classifier()


def make_gan(flavour, calls):
    class Gan(flavour.LightningModule):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False
            pixels = FEATURES * FEATURES
            self.generator = nn.Sequential(nn.Linear(5, 11), nn.BatchNorm1d(11), nn.ReLU(), nn.Linear(11, pixels))
            self.discriminator = nn.Sequential(nn.Linear(pixels, 13), nn.Dropout(0.3), nn.Linear(13, 1))

        def training_step(self, batch, batch_idx):
            calls.one_more()
            real = batch[0].flatten(1)
            generator, discriminator = self.optimizers()
            self.toggle_optimizer(generator)
            loss = F.softplus(-self.discriminator(self.generator(torch.randn(len(real), 5)))).mean()
            generator.zero_grad()
            self.manual_backward(loss)
            generator.step()
            self.untoggle_optimizer(generator)
            fake = self.generator(torch.randn(len(real), 5)).detach()
            loss_d = (F.softplus(self.discriminator(fake)) + F.softplus(-self.discriminator(real))).mean()
            discriminator.zero_grad()
            self.manual_backward(loss_d)
            discriminator.step()
            self.log("train/loss", loss + loss_d)

        def configure_optimizers(self):
            return [torch.optim.Adam(part.parameters()) for part in (self.generator, self.discriminator)]

    return Gan()


def make_loader(shuffle=True):
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(BATCH * BATCHES, 1, FEATURES, FEATURES, generator=generator)
    labels = torch.randint(0, CLASSES, (BATCH * BATCHES,), generator=generator)
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, labels), BATCH, shuffle=shuffle)


def make_memory_logger(flavour):
    loggers = importlib.import_module(f"{flavour.__name__}.loggers.logger")

    class MemoryLogger(loggers.Logger):
        """Keeps every row that Lightning logs."""

        name, version = "memory", 0

        def __init__(self):
            super().__init__()
            self.rows = []

        def log_metrics(self, metrics, step=None):
            self.rows.append((step, dict(metrics)))

        def log_hyperparams(self, *args, **kwargs):
            pass

    return MemoryLogger()


@dataclass
class Training:
    """What is left of a training, bit by bit."""

    rows: list
    weights: dict
    optimizers: list
    random: tuple
    calls_counted: int
    calls_in_file: int
    calls_logged: int
    attributes: list
    trainer: Any = field(compare=False)
    model: Any = field(compare=False)
    warnings: list = field(compare=False)


def random_states():
    import numpy as np

    name, keys, *rest = np.random.get_state()
    return torch.get_rng_state(), random.getstate(), name, keys.tolist(), rest


@pytest.fixture(params=FLAVOURS)
def flavour(request):
    """Lightning, under either of its names."""
    return importlib.import_module(request.param)


@pytest.fixture
def lightning():
    """Lightning, under its present name."""
    return importlib.import_module(FLAVOURS[0])


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A function that trains (or evaluates) from a fixed seed and gives back a `Training`."""
    monkeypatch.chdir(tmp_path)
    runs = iter(range(100))

    def run(flavour, callbacks=(), *, make=make_classifier, do="fit", loggers=None, between=None, **options):
        folder = tmp_path / f"run{next(runs)}"
        folder.mkdir()
        calls = Calls(folder / "calls.txt")
        logger = make_memory_logger(flavour)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            flavour.seed_everything(11, verbose=False)
            model = make(flavour, calls)
            loader = make_loader()
            trainer = flavour.Trainer(
                **{
                    "accelerator": "cpu",
                    "max_epochs": 3,
                    "logger": [logger, *(loggers(folder) if loggers else ())],
                    "callbacks": list(callbacks),
                    "log_every_n_steps": 1,
                    "enable_progress_bar": False,
                    "enable_model_summary": False,
                    "enable_checkpointing": False,
                    "default_root_dir": str(folder),
                    **options,
                }
            )
            if do == "fit":
                trainer.fit(model, loader, make_loader(shuffle=False) if hasattr(model, "accuracy") else None)
            else:
                quiet = {} if do == "predict" else {"verbose": False}
                getattr(trainer, do)(model, make_loader(shuffle=False), **quiet)
        return Training(
            rows=logger.rows,
            weights={
                name: tensor.clone() for name, tensor in model.state_dict().items() if not nn.parameter.is_lazy(tensor)
            },
            optimizers=[optimizer.state_dict() for optimizer in trainer.optimizers],
            random=random_states(),
            calls_counted=calls.counted,
            calls_in_file=calls.in_file,
            calls_logged=sum("train/loss" in row or "train/loss_step" in row for _, row in logger.rows),
            attributes=list(getattr(model, "seen", ())),
            trainer=trainer,
            model=model,
            warnings=caught,
        )

    return run


def differences(a, b, path=""):
    """Where two structures are not the same to the bit."""
    if type(a) is not type(b):
        return [f"{path}: {type(a).__name__} and {type(b).__name__}"]
    if isinstance(a, Training):
        names = [item.name for item in fields(a) if item.compare]
        return [line for name in names for line in differences(getattr(a, name), getattr(b, name), name)]
    if isinstance(a, dict):
        if a.keys() != b.keys():
            return [f"{path}: {sorted(map(str, a))} and {sorted(map(str, b))}"]
        return [line for key in a for line in differences(a[key], b[key], f"{path}.{key}")]
    if isinstance(a, (list, tuple)):
        if len(a) != len(b):
            return [f"{path}: {len(a)} and {len(b)} items"]
        return [line for i, pair in enumerate(zip(a, b, strict=True)) for line in differences(*pair, f"{path}[{i}]")]
    if isinstance(a, torch.Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    else:
        same = a == b or (a != a and b != b)
    return [] if same else [f"{path}: {a} and {b}"]


@pytest.fixture(name="differences")
def differences_():
    return differences


def leftovers(model):
    """What a callback left on a model, or active in the process."""
    found = []
    for name, module in model.named_modules():
        own = vars(module)
        found += [f"{name}.{key}" for key in ("forward", "training_step", "validation_step", "log") if key in own]
        hooks = [key for key, value in own.items() if key.endswith("_hooks") and value]
        found += [f"{name}.{key}" for key in hooks if type(module).__module__.partition(".")[0] != "torchmetrics"]
    if torch._C._get_tracing_state() is not None:
        found.append("a trace is under way")
    if torch._C._len_torch_dispatch_stack():
        found.append("a dispatch mode is active")
    if torch._C._len_torch_function_stack():
        found.append("a function mode is active")
    if torch.jit.is_tracing is not _IS_TRACING or _function_attributes() != _FUNCTION_ATTRIBUTES:
        found.append("a function of torch is replaced")
    return found


def _function_attributes():
    """How autograd functions look their attributes up, and what they have of their own."""
    function = torch.autograd.Function
    return [dict(vars(owner)) for owner in (type(function), function, *function.__bases__)]


_IS_TRACING = torch.jit.is_tracing
_FUNCTION_ATTRIBUTES = _function_attributes()


@pytest.fixture(name="leftovers")
def leftovers_():
    return leftovers


@pytest.fixture
def ours():
    """The warnings of ours among those that were caught."""
    from flopcallback import FlopCallbackWarning

    def ours(training):
        kinds = (FlopCallbackWarning, torch.jit.TracerWarning)
        return [str(warning.message) for warning in training.warnings if issubclass(warning.category, kinds)]

    return ours


@pytest.fixture
def classifier():
    return make_classifier


@pytest.fixture
def gan():
    return make_gan


@pytest.fixture
def loader():
    return make_loader
