"""What each script with a Trainer of Lightning shows: training, count, and rows are what they should be."""

from __future__ import annotations

import logging
import random
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from check import tell
from lightning.pytorch import Callback
from torch.utils.flop_counter import FlopCounterMode

from flopcallback import FlopCallback, FlopCallbackWarning
from flopcallback.reporting import ModelProfile
from flopcallback.trackers import MemoryTracker

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
"""Arguments of a trainer."""

TrainByLightning = Callable[[list[Callback]], Iterable[torch.Tensor]]

for name in ("lightning.pytorch", "pytorch_lightning"):
    logging.getLogger(f"{name}.utilities.rank_zero").setLevel(logging.ERROR)


class Counter(Callback):
    """PyTorch's own count of the training steps.

    A package may train with a copy, so the sum is the class's.
    """

    flops = 0

    def on_train_batch_start(self, *_: Any) -> None:
        self.mode = FlopCounterMode(display=False).__enter__()

    def on_train_batch_end(self, *_: Any) -> None:
        self.mode.__exit__(None, None, None)
        Counter.flops += self.mode.get_total_flops()


def check_callback(
    package: str, train: TrainByLightning, flops: int | None = None, **options: Any
) -> tuple[ModelProfile, Mapping[str, int | float]]:
    """Train without FlopCallback and with it, and compare; exit with status 1 if anything differs.

    With it there are two trainings: as by default, for rows and times, and with `observe="always"`, for a total that is
    exact where no two steps are alike.

    Args:
        package: name of the package's distribution.
        train: trains from a fixed seed with the callbacks that it is given; returns what the training leaves.
        flops: FLOPs of all steps together, on paper. Default: what PyTorch's own counter counts.
        options: further arguments of FlopCallback.

    Returns:
        The profile of the first of them, and the last numbers of the second.
    """
    untouched, again = trained(train, []), trained(train, [Counter()])
    assert all(map(torch.equal, untouched, again)), "two trainings without us are not the same"
    flops = Counter.flops if flops is None else flops
    left, profile, by_default = watched(train, **options)
    assert all(map(torch.equal, untouched, left)), "the training is not as without us"
    assert by_default["compute/flops_total"] == flops or by_default["compute/estimated_pct"] > 0
    check_rows(profile)
    left, _, numbers = watched(train, observe="always", **options)
    tell(package, numbers, profile, flops, left, untouched)
    return profile, numbers


def trained(train: TrainByLightning, callbacks: list[Callback]) -> list[torch.Tensor]:
    """Return what a training from a fixed seed leaves."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    random.seed(0)
    np.random.seed(0)  # the one that packages draw from
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FlopCallbackWarning)
        return [tensor.detach().clone() for tensor in train(callbacks)]


def watched(
    train: TrainByLightning, **options: Any
) -> tuple[list[torch.Tensor], ModelProfile, Mapping[str, int | float]]:
    """Return what a training with FlopCallback leaves, its profile, and its last numbers."""
    memory = MemoryTracker()
    callback = FlopCallback(to=memory, summary=False, strict=True, warmup_steps=0, **options)
    left = trained(train, [callback])
    numbers = {name: value for _, scalars in memory.scalars for name, value in scalars.items()}
    return left, callback.profiles["train"], numbers  # the user's own, also where a copy was at work


def check_rows(profile: ModelProfile) -> None:
    """Check that rows without calls hold something, and that all work has its time."""
    called = [row.path for row in profile.modules if row.calls]
    for row in profile.modules:
        assert row.params or any(path.startswith(row.path) for path in called), f"{row.path} is a row for nothing"
        assert not row.flops or row.forward_ms is not None, f"{row.path} has no time"
