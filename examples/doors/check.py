"""What each script of this folder shows: the training is as without us, and the count is what it is on paper."""

from __future__ import annotations

import importlib.metadata
import itertools
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch

from flopcallback import FlopCallbackWarning, FlopHook
from flopcallback.reporting import ModelProfile

if TYPE_CHECKING:
    from flopcallback_transformers import FlopTrainerCallback

MakeHook = Callable[..., AbstractContextManager[Any]]
Train = Callable[[MakeHook], Iterable[torch.Tensor]]
TrainWith = Callable[[list[Any]], Iterable[torch.Tensor]]


def check(package: str, train: Train, flops: int, *, is_lower_bound: bool = False) -> FlopHook:
    """Train without a hook and with one, and compare; exit with status 1 if anything differs.

    Args:
        package: name of the package's distribution.
        train: trains from a fixed seed, with what it makes by its argument in the place of `FlopHook`; returns what
            the training leaves.
        flops: FLOPs of all steps together, on paper.
        is_lower_bound: whether the work has parts that flopcallback says it cannot count.
    """
    hooks: list[FlopHook] = []

    def hook_of(*args: Any, **options: Any) -> FlopHook:
        hooks.append(FlopHook(*args, summary=False, strict=True, **options))
        return hooks[-1]

    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.manual_seed(0)
    untouched = [tensor.detach().clone() for tensor in train(lambda *_, **__: Nothing())]
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FlopCallbackWarning)
        left = list(train(hook_of))
    (hook,) = hooks
    tell(package, hook.metrics(), hook.profile, flops, left, untouched, is_lower_bound=is_lower_bound)
    return hook


def check_trainer(package: str, train: TrainWith, flops: int) -> FlopTrainerCallback:
    """Train by a Hugging Face Trainer without a callback and with one, and compare, as `check` does.

    Args:
        package: name of the package's distribution, and in further words what it trains.
        train: trains from a fixed seed, with callbacks; returns what the training leaves.
        flops: FLOPs of all steps together, on paper.
    """
    from flopcallback_transformers import FlopTrainerCallback

    torch.manual_seed(0)
    untouched = [tensor.detach().clone() for tensor in train([])]
    torch.manual_seed(0)
    callback = FlopTrainerCallback(summary=False, strict=True)
    left = list(train([callback]))
    tell(package, callback.metrics(), callback.profiles["train"], flops, left, untouched)
    return callback


def tell(
    package: str,
    numbers: Mapping[str, int | float],
    profile: ModelProfile | None,
    flops: int,
    left: Sequence[torch.Tensor],
    untouched: Sequence[torch.Tensor],
    *,
    is_lower_bound: bool = False,
) -> None:
    """Print what came of both trainings; exit with status 1 if anything differs."""
    is_same = len(left) == len(untouched) > 0 and all(map(torch.equal, left, untouched))
    counted, estimated = numbers.get("compute/flops_total"), numbers.get("compute/estimated_pct")
    is_bound = profile is not None and profile.is_lower_bound
    is_right = (counted, estimated, is_bound) == (flops, 0, is_lower_bound)
    sign = ">= " * is_bound
    name, *what = package.split(maxsplit=1)  # of several trainings by one package, which
    print(
        f"{' '.join([name, importlib.metadata.version(name), *what])}, torch {torch.__version__}: "
        f"{'as without us' if is_same else 'DIFFERENT'}; {sign}{counted:,} FLOPs, {estimated} % estimated, "
        f"{'as on paper' if is_right else f'on paper {flops:,}: DIFFERENT'}"
    )
    if not (is_same and is_right):
        sys.exit(1)


class Nothing(nullcontext[Any]):
    """Stands where a hook stands, and does nothing."""

    def begin_step(self) -> None: ...

    def end_step(self) -> None: ...

    def close(self) -> None: ...


def linear(rows: int, *widths: int) -> tuple[int, int]:
    """Return the FLOPs of linear layers, one after the other: of the forward, and of a whole step.

    Nobody asks for the gradient of the first one's input.
    """
    products = [2 * rows * wide * out for wide, out in itertools.pairwise(widths)]
    return sum(products), 3 * sum(products) - products[0]
