"""Models and optimizers of a plain loop, validated and without their wrappers."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from flopcallback.modules.names import ModuleHolder, is_fabric, wrapped_module
from flopcallback.profile.model_profile import ModelProfile
from flopcallback.tracing.torch_private import POST_HOOKS, PRE_HOOKS, step_hooks_of, version_of

__all__ = ["EndedWatch", "OptimizerHooks", "model_of", "optimizers_of"]


MOST_WRAPPERS = 8
"""Longest chain of wrappers that is followed; a longer one is taken for a cycle."""

MOST_NAMED = 4
"""Attributes that an error names."""

MOST_PARAMETERS = 64
"""Parameters per optimizer that are checked for a change."""


class Models(ModuleHolder):
    """Several models of one training, by name.

    It trains while one of them does: a teacher or target network stays in eval mode.
    """

    @property
    def training(self) -> bool:
        """Whether any of the models is in training mode."""
        return any(model.training for model in self.children())

    @training.setter
    def training(self, is_training: bool) -> None:
        """Leave the mode to the models."""


def model_of(given: Any) -> nn.Module:
    """Return the given model, or several by name as one, without wrappers.

    Raises:
        TypeError: a model is not a module.
        ValueError: there are no models, or a name cannot be that of a row.
    """
    if not isinstance(given, Mapping):
        return unwrapped(given)
    for name in given:
        if not isinstance(name, str) or not name or "." in name:
            raise ValueError(
                f"FlopHook: model has the name {name!r:.80}, expected a text without dots, such as 'teacher'"
            )
    if not given:
        raise ValueError("FlopHook: model is an empty dict, expected a model, or several by name")
    return Models({name: unwrapped(model) for name, model in given.items()})


def unwrapped(model: Any) -> nn.Module:
    """Return a model without the wrappers of data parallelism and of Fabric.

    These are `DistributedDataParallel`, `DataParallel` and the result of Lightning's `fabric.setup`. A module that is
    compiled or sharded is not unwrapped: it is the module that the loop calls.

    Raises:
        TypeError: `model` is not a module; an attribute of it that is one is named.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"FlopHook: model is {model!r:.80}, expected a torch.nn.Module{_held(model, nn.Module)}")
    module: nn.Module = model
    while is_fabric(module) or isinstance(module, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
        module = wrapped_module(module)  # type: ignore[assignment]  # a wrapper has one
    return module


def _held(given: Any, kind: type) -> str:
    """Return a hint at the attributes of an object that are of a kind, if there are any."""
    attributes = getattr(given, "__dict__", {})
    names = [f"its .{name}" for name, value in attributes.items() if isinstance(value, kind)]
    return f". Give {' or '.join(names[:MOST_NAMED])}" if names else ""


def optimizers_of(given: Any) -> list[torch.optim.Optimizer]:
    """Return the given optimizers, each once and without wrappers.

    Args:
        given: an optimizer, a list or tuple of optimizers, or None.

    Raises:
        TypeError: an element is not an optimizer of PyTorch, and has none in its attribute `optimizer`; another
            attribute that is one is named.
    """
    optimizers = [] if given is None else list(given) if isinstance(given, (list, tuple)) else [given]
    return list(dict.fromkeys(map(_optimizer_in, optimizers)))


def _optimizer_in(given: Any) -> torch.optim.Optimizer:
    """Return the optimizer with the step hooks that `given.step()` calls.

    A wrapper (Accelerate's, Fabric's) has the optimizer in its attribute `optimizer`, and shares its hooks or has none.
    An optimizer around another one, such as a Lookahead, is not unwrapped if it has hooks of its own.
    """
    optimizer = given
    for _ in range(MOST_WRAPPERS):
        inner = getattr(optimizer, "optimizer", None)
        hooks = step_hooks_of(optimizer)
        if isinstance(optimizer, torch.optim.Optimizer) and hooks is not None and hooks is not step_hooks_of(inner):
            return optimizer
        if inner is None or not callable(getattr(optimizer, "step", None)):
            break
        optimizer = inner
    what = f"a {type(given).__qualname__}" if isinstance(given, torch.optim.Optimizer) else f"{given!r:.80}"
    raise TypeError(
        f"FlopHook: optimizer is {what}, expected a torch.optim.Optimizer or a list of them"
        f"{_held(given, torch.optim.Optimizer) or '. Give what a wrapper wraps'}; or give none, and mark each step: "
        "`with hook.step():`"
    )


class OptimizerHooks:
    """Hooks before and after optimizer steps, removable while compiled code runs.

    Args:
        optimizers: optimizers to hook.
        before: called before each step.
        after: called after each step, with the number of the optimizer as first argument.
    """

    def __init__(
        self,
        optimizers: Sequence[torch.optim.Optimizer],
        before: Callable[..., None],
        after: Callable[..., None],
    ) -> None:
        self._optimizers = list(optimizers)
        self._handles: list[Any] = []
        for number, optimizer in enumerate(self._optimizers):
            self._handles.append(optimizer.register_step_pre_hook(before))
            # The number is bound here: the hook's argument may be a wrapper that shares the hooks.
            self._handles.append(optimizer.register_step_post_hook(functools.partial(after, number)))

    def close(self) -> None:
        """Remove the hooks for good."""
        for handle in self._handles:
            handle.remove()
        self._optimizers.clear()

    def take_off(self) -> Callable[[], None]:
        """Take the hooks off; return a function that puts them back.

        The dicts of hooks are replaced rather than changed: a step of the user may be iterating over them.
        """
        own_ids = {handle.id for handle in self._handles}
        replaced = []
        for optimizer in self._optimizers:
            attributes = vars(optimizer)
            for name in (PRE_HOOKS, POST_HOOKS):
                hooks = attributes[name]
                replaced.append((attributes, name, hooks))
                attributes[name] = type(hooks)((key, hook) for key, hook in hooks.items() if key not in own_ids)

        def restore() -> None:
            for attributes, name, hooks in replaced:
                attributes[name] = hooks

        return restore

    def watch_parameters(self) -> Callable[[], list[int]]:
        """Return a function that lists optimizers with parameters changed since."""
        before = [
            [(parameter, version_of(parameter)) for parameter in _some_parameters(optimizer)]
            for optimizer in self._optimizers
        ]

        def stepped() -> list[int]:
            numbers = range(len(before))
            return [n for n in numbers if any(version_of(parameter) != version for parameter, version in before[n])]

        return stepped


def _some_parameters(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Return at most `MOST_PARAMETERS` parameters that a step would change."""
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

    def begin_marked_step(self) -> None:
        """Mark nothing: no step is watched."""

    def end_marked_step(self) -> None:
        """Mark nothing: no step is watched."""

    def close(self, *, wait: bool) -> bool:
        """Return True: there is nothing to close, and nothing to warn of."""
        return True
