"""What a plain loop gives to `FlopHook`: its model and its optimizers, checked."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from flopcallback.tracing.torch_private import takes_step_hooks

__all__ = ["optimizers_of", "unwrapped"]


def unwrapped(model: Any) -> nn.Module:
    """The model that is trained: what `DistributedDataParallel` or `DataParallel` wraps is taken out of it.

    Raises:
        TypeError: it is no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"FlopHook: model is {model!r:.80}, expected a torch.nn.Module")
    wrappers = (nn.parallel.DistributedDataParallel, nn.DataParallel)
    return model.module if isinstance(model, wrappers) else model


def optimizers_of(given: Any) -> list[torch.optim.Optimizer]:
    """The optimizers in one, in a list of them, or in None, each once.

    Raises:
        TypeError: one of them is none of PyTorch's.
    """
    several = [] if given is None else list(given) if isinstance(given, (list, tuple)) else [given]
    for each in several:
        # A wrapper may be one in name alone, without the list of hooks that `Optimizer.__init__` makes.
        if not isinstance(each, torch.optim.Optimizer) or not takes_step_hooks(each):
            what = f"a {type(each).__qualname__}" if isinstance(each, torch.optim.Optimizer) else f"{each!r:.80}"
            raise TypeError(
                f"FlopHook: optimizer is {what}, expected a torch.optim.Optimizer or a list of them. Give what a "
                "wrapper wraps; or give none, and mark each step: `with hook.step():`"
            )
    return list(dict.fromkeys(several))
