"""What a plain loop gives to `FlopHook`: its model and its optimizers, checked, and taken out of what wraps them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from flopcallback.tracing.torch_private import step_hooks_of

__all__ = ["optimizers_of", "unwrapped"]


MOST_WRAPPERS = 8
"""Around each other; more than that is no chain of wrappers, but something that leads back to itself."""


def unwrapped(model: Any) -> nn.Module:
    """Takes a model out of `DistributedDataParallel`, `DataParallel` and what Lightning's Fabric wraps around it.

    A compiled module is no such wrapper: it is what the loop calls.

    Raises:
        TypeError: it is no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"FlopHook: model is {model!r:.80}, expected a torch.nn.Module")
    found: nn.Module = model
    for _ in range(MOST_WRAPPERS):
        inner = _wrapped_module(found)
        if inner is None:
            break
        found = inner
    return found


def _wrapped_module(model: nn.Module) -> nn.Module | None:
    """The module that a wrapper calls; None where it is none."""
    if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
        wrapped: nn.Module = model.module
        return wrapped
    # What `fabric.setup` returns, known by its parts, as Lightning is not imported here. What it calls may be compiled.
    inner = model._modules.get("_forward_module")
    return inner if "_original_module" in model._modules else None


def optimizers_of(given: Any) -> list[torch.optim.Optimizer]:
    """Takes the optimizers out of one, a list of them, or None, each once, and out of what wraps them.

    Raises:
        TypeError: one of them is none of PyTorch's, and wraps none in its attribute `optimizer`.
    """
    several = [] if given is None else list(given) if isinstance(given, (list, tuple)) else [given]
    return list(dict.fromkeys(map(_optimizer_in, several)))


def _optimizer_in(given: Any) -> torch.optim.Optimizer:
    """The optimizer that steps where `given` does.

    A wrapper (`AcceleratedOptimizer`, Fabric's) has the optimizer in its attribute `optimizer`, and hooks that are that
    one's or none. One with hooks of its own (a Lookahead that was made by `Optimizer.__init__`) is an optimizer.
    """
    each = given
    for _ in range(MOST_WRAPPERS):
        inner = getattr(each, "optimizer", None)
        hooks = step_hooks_of(each)
        if isinstance(each, torch.optim.Optimizer) and hooks is not None and hooks is not step_hooks_of(inner):
            return each
        if inner is None or not callable(getattr(each, "step", None)):
            break
        each = inner
    what = f"a {type(given).__qualname__}" if isinstance(given, torch.optim.Optimizer) else f"{given!r:.80}"
    raise TypeError(
        f"FlopHook: optimizer is {what}, expected a torch.optim.Optimizer or a list of them. Give what a "
        "wrapper wraps; or give none, and mark each step: `with hook.step():`"
    )
