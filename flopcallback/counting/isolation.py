"""For runs outside training: leave model, inputs and random state as found, also when the forward raises half-way."""

from __future__ import annotations

import copy
import random
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

__all__ = ["left_as_found", "private_copies"]

# Containers whose contents a forward may change in place (`self.history.append(...)`).
_CONTAINERS = (list, dict, set, deque)


@contextmanager
def left_as_found(modules: Iterable[nn.Module], inputs: Any = ()) -> Iterator[None]:
    """Puts everything back that a forward may change: module state, tensors given to it, random states, grad mode.

    Module state is every attribute (flags, hooks, counters, metric states, containers one level deep), every buffer
    and plain tensor attribute by value, parameters by value if they were written to, and `.grad`.

    Args:
        modules: all modules of the model.
        inputs: any structure of tensors; those that the run writes to get their values back.
    """
    with ExitStack() as undo:
        _keep_modes(undo)
        _keep_random_states(undo)
        kept: set[int] = set()
        for module in modules:
            _keep_attributes(module, undo, kept)
        for leaf in tree_leaves(inputs):
            if isinstance(leaf, torch.Tensor):
                _keep_tensor(leaf, undo, kept)
        undo.enter_context(_ParametersKeptOnWrite(modules, undo, kept))
        yield


def private_copies(inputs: Any) -> Any:
    """The same structure with copies of those inputs that carry state of their own (a key-value cache)."""
    return tree_map(_private_copy, inputs)


def _private_copy(leaf: Any) -> Any:
    stateless = (torch.Tensor, nn.Module, type, torch.device, torch.dtype, str, bytes, int, float, complex, type(None))
    if isinstance(leaf, stateless) or callable(leaf) or not hasattr(leaf, "__dict__"):
        return leaf
    try:
        return copy.deepcopy(leaf)
    except Exception:  # noqa: BLE001 - what cannot be copied is handed on as it is: a count is no reason to refuse a model's input
        return leaf


def _keep_modes(undo: ExitStack) -> None:
    undo.callback(torch.set_grad_enabled, torch.is_grad_enabled())
    undo.callback(torch.set_default_dtype, torch.get_default_dtype())


def _keep_random_states(undo: ExitStack) -> None:
    undo.callback(random.setstate, random.getstate())
    if (numpy := sys.modules.get("numpy")) is not None:
        undo.callback(numpy.random.set_state, numpy.random.get_state())
    undo.callback(torch.set_rng_state, torch.get_rng_state())
    if torch.accelerator.is_available():
        device = torch.get_device_module(torch.accelerator.current_accelerator())
        for index in range(device.device_count()):
            undo.callback(device.set_rng_state, device.get_rng_state(index), index)


def _keep_attributes(module: nn.Module, undo: ExitStack, kept: set[int]) -> None:
    own = vars(module)
    before = dict(own)

    def restore() -> None:
        own.clear()
        own.update(before)

    undo.callback(restore)
    for value in before.values():
        if isinstance(value, torch.Tensor):
            _keep_tensor(value, undo, kept)
        elif isinstance(value, _CONTAINERS):
            _keep_container(value, undo, kept)
    for parameter in module._parameters.values():
        if parameter is not None and not is_lazy(parameter):
            _keep_parameter(parameter, undo, kept)


def _keep_container(container: Any, undo: ExitStack, kept: set[int]) -> None:
    before = copy.copy(container)

    def restore() -> None:
        container.clear()
        (container.update if isinstance(container, (dict, set)) else container.extend)(before)

    undo.callback(restore)
    for value in before.values() if isinstance(before, dict) else before:
        if isinstance(value, torch.Tensor) and not isinstance(value, nn.Parameter):
            _keep_tensor(value, undo, kept)


def _keep_parameter(parameter: nn.Parameter, undo: ExitStack, kept: set[int]) -> None:
    """Keeps `.grad` and the flag; a backward inside the forward then makes grads of its own, which are dropped."""
    if id(parameter) in kept:
        return
    kept.add(id(parameter))
    data, grad, requires_grad = parameter.data, parameter.grad, parameter.requires_grad

    def restore() -> None:
        if parameter.data_ptr() != data.data_ptr():
            parameter.data = data
        parameter.requires_grad_(requires_grad)
        parameter.grad = grad

    _keep_version(parameter, undo)
    undo.callback(restore)
    parameter.grad = None


def _keep_tensor(tensor: torch.Tensor, undo: ExitStack, kept: set[int]) -> None:
    if id(tensor) in kept or is_lazy(tensor) or tensor.device.type == "meta":
        return
    kept.add(id(tensor))
    _keep_version(tensor, undo)
    with torch.no_grad():
        before = tensor.detach().clone()
    undo.callback(_put_back, tensor, before)


def _keep_version(tensor: torch.Tensor, undo: ExitStack) -> None:
    """A graph that saved the tensor before the run has to find it unchanged, by its version too."""
    if not tensor.is_inference():
        undo.push(torch.autograd._unsafe_preserve_version_counter(tensor))  # type: ignore[attr-defined]


def _put_back(tensor: torch.Tensor, before: torch.Tensor) -> None:
    if tensor.shape != before.shape:
        tensor.data = before
        return
    if tensor.is_inference():  # it has no version, and nothing outside inference mode may write to it
        with torch.inference_mode():
            tensor.copy_(before)
        return
    with torch.no_grad():
        tensor.copy_(before)


class _ParametersKeptOnWrite(TorchFunctionMode):
    """Copies a parameter when it is first written to: most models write to none, and a copy of all costs memory."""

    def __init__(self, modules: Iterable[nn.Module], undo: ExitStack, kept: set[int]) -> None:
        super().__init__()
        parameters = (p for module in modules for p in module._parameters.values() if p is not None and not is_lazy(p))
        self._parameters = {_storage(parameter): parameter for parameter in parameters}
        self._parameters.pop(None, None)
        self._undo = undo

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.__name__
        if name[-1] == "_" and name[-2] != "_":
            self._keep(args[:1])
        elif "out" in kwargs:
            self._keep(tree_leaves(kwargs["out"]))
        return func(*args, **kwargs)

    def _keep(self, written: Iterable[Any]) -> None:
        for tensor in written:
            if isinstance(tensor, torch.Tensor):
                parameter = self._parameters.pop(_storage(tensor), None)
                if parameter is not None:
                    _keep_tensor(parameter.data, self._undo, set())


def _storage(tensor: torch.Tensor) -> int | None:
    try:
        return int(tensor.untyped_storage()._cdata)
    except NotImplementedError:  # sparse, or wrapped by a transform of torch.func
        return None
