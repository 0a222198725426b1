"""What a plain loop gives to `FlopHook`: its model and its optimizers, checked, and taken out of what wraps them."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from flopcallback.profile.model_profile import ModelProfile
from flopcallback.tracing.torch_private import POST_HOOKS, PRE_HOOKS, step_hooks_of, version_of

__all__ = ["EndedWatch", "OptimizerHooks", "optimizers_of", "unwrapped"]


MOST_WRAPPERS = 8
"""Around each other; more than that is no chain of wrappers, but something that leads back to itself."""

MOST_PARAMETERS = 64
"""Of an optimizer, that are asked whether it has stepped."""


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


class OptimizerHooks:
    """Hooks before and behind the steps of optimizers, that can be taken away while compiled code runs.

    Args:
        optimizers: those that are hooked.
        before: is called before each step.
        after: is called behind each step, with the number of the optimizer.
    """

    def __init__(
        self,
        optimizers: Sequence[torch.optim.Optimizer],
        before: Callable[..., None],
        after: Callable[..., None],
    ) -> None:
        self._optimizers = list(optimizers)
        self._handles: list[Any] = []
        for number, each in enumerate(self._optimizers):
            # The number is bound here: the object that steps may be another one with the same hooks.
            self._handles.append(each.register_step_pre_hook(before))
            self._handles.append(each.register_step_post_hook(functools.partial(after, number)))

    def close(self) -> None:
        """Takes the hooks away for good."""
        for handle in self._handles:
            handle.remove()
        self._optimizers.clear()

    def take_away(self) -> Callable[[], None]:
        """Takes the hooks away; what this returns puts them back.

        What holds hooks is exchanged as a whole: a step of the user's may be going through it.
        """
        ours = {handle.id for handle in self._handles}
        taken = []
        for each in self._optimizers:
            own = vars(each)
            for name in (PRE_HOOKS, POST_HOOKS):
                hooks = own[name]
                taken.append((own, name, hooks))
                own[name] = type(hooks)((key, hook) for key, hook in hooks.items() if key not in ours)

        def put_back() -> None:
            for own, name, hooks in taken:
                own[name] = hooks

        return put_back

    def stepped_from_here(self) -> Callable[[], list[int]]:
        """Gives a function that says which optimizers have written to their parameters since."""
        before = [
            [(parameter, version_of(parameter)) for parameter in _some_parameters(each)] for each in self._optimizers
        ]

        def stepped() -> list[int]:
            numbers = range(len(before))
            return [n for n in numbers if any(version_of(parameter) != version for parameter, version in before[n])]

        return stepped


def _some_parameters(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Parameters that change where the optimizer steps; not all of very many."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    with_grad = (parameter for parameter in parameters if parameter.grad is not None)
    return list(itertools.islice(with_grad, MOST_PARAMETERS)) or parameters[:MOST_PARAMETERS]


class EndedWatch:
    """The watch of a hook that is a copy: the loop is not the copy's.

    Args:
        profile: the one that the hook had when it was copied.
    """

    def __init__(self, profile: ModelProfile | None) -> None:
        self._profile = profile

    def profile(self) -> ModelProfile | None:
        """Return the profile that the hook had."""
        return self._profile

    @contextmanager
    def marked_step(self) -> Iterator[None]:
        """Mark nothing: no step is watched."""
        yield

    def close(self, *, wait: bool) -> bool:
        """Return True: there is nothing to close, and nothing to warn of."""
        return True
