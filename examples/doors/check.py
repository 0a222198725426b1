"""What each script of this folder shows: the training is as without us, and the count is what it is on paper."""

from __future__ import annotations

import importlib.metadata
import itertools
import random
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch

from flopcallback import FlopCallbackWarning, FlopHook

MakeHook = Callable[..., AbstractContextManager[Any]]
Train = Callable[[MakeHook], Iterable[torch.Tensor]]


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

    untouched = trained(train, lambda *_, **__: Nothing())
    left = trained(train, hook_of)
    (hook,) = hooks
    is_bound = hook.profile is not None and hook.profile.is_lower_bound
    compare(package, untouched, left, hook.metrics(), flops, is_bound=is_bound, may_be_bound=is_lower_bound)
    return hook


def trained(train: Callable[[Any], Iterable[torch.Tensor]], given: Any) -> list[torch.Tensor]:
    """Return what a training from a fixed seed leaves."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FlopCallbackWarning)
        return [tensor.detach().clone() for tensor in train(given)]


def compare(
    package: str,
    untouched: Sequence[torch.Tensor],
    left: Sequence[torch.Tensor],
    numbers: Mapping[str, int | float],
    flops: int,
    *,
    is_bound: bool,
    may_be_bound: bool = False,
) -> None:
    """Say whether a training left the same as without us, and the FLOPs that it has on paper.

    Exits with status 1 if anything differs.

    Args:
        package: name of the package's distribution.
        untouched: what the training leaves without us.
        left: what it left with us.
        numbers: last logged numbers, by name.
        flops: FLOPs of all steps together, on paper.
        is_bound: whether flopcallback says that the count is a lower bound.
        may_be_bound: whether that is right.
    """
    is_same = len(left) == len(untouched) > 0 and all(map(torch.equal, left, untouched))
    counted, estimated = numbers.get("compute/flops_total"), numbers.get("compute/estimated_pct")
    is_right = (counted, estimated, is_bound) == (flops, 0, may_be_bound)
    sign = ">= " * is_bound
    print(
        f"{package} {importlib.metadata.version(package)}, torch {torch.__version__}: "
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
