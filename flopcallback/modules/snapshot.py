"""Snapshots of a model's state, restored after a run outside training."""

from __future__ import annotations

import copy
import random
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from flopcallback.modules.names import storage_of
from flopcallback.tracing.torch_private import (
    disable_current_modes,
    is_view,
    preserve_version_counter,
    set_deterministic_algorithms,
    tree_leaves,
    tree_map,
)

__all__ = ["Snapshot", "copies_of_lazy_buffers", "isolation", "left_as_found", "private_copies"]

# Containers whose contents a forward may change in place (`self.history.append(...)`).
_CONTAINERS = (list, dict, set, deque)
_IMMUTABLE = frozenset({bool, int, float, str, tuple, type(None)})


@contextmanager
def left_as_found(modules: Iterable[nn.Module], inputs: Any = ()) -> Iterator[Snapshot]:
    """Restore everything that a forward may change, also if it raises.

    That is module state, inputs, random states, the grad mode and the other global modes. Module state is every
    attribute (flags, hooks, counters, metric states, containers one level deep), every buffer and tensor attribute by
    value, and `.grad`. Parameters and inputs are restored by value if the snapshot's `keep_written` is called before
    each write: most runs write to none of them, and copies of all would cost memory.

    Args:
        modules: all modules of the model.
        inputs: any structure of tensors; those that the run writes to get their values back.
    """
    # Without the caller's modes: under a fake mode, the copy of a real tensor would be a fake one, and be restored.
    with disable_current_modes():
        snapshot = Snapshot(modules)
        for leaf in tree_leaves(inputs):
            snapshot.keep_input(leaf)
        snapshot.drop_grads()
    isolation.depth += 1
    try:
        yield snapshot
    finally:
        isolation.depth -= 1
        with disable_current_modes():
            snapshot.restore()


class _Isolation(threading.local):
    depth = 0  # how many `left_as_found` this thread is inside


isolation = _Isolation()
"""State of this thread: at a depth above 0 it is inside `left_as_found`, and so not training. Not a function, since
each step of a training asks for it."""


def private_copies(inputs: Any) -> Any:
    """Copy inputs that carry state, such as a key-value cache."""
    return tree_map(_private_copy, inputs)


def _private_copy(leaf: Any) -> Any:
    stateless = (torch.Tensor, nn.Module, type, torch.device, torch.dtype, str, bytes, int, float, complex, type(None))
    if isinstance(leaf, stateless) or callable(leaf) or not hasattr(leaf, "__dict__"):
        return leaf
    try:
        return copy.deepcopy(leaf)
    except Exception:  # noqa: BLE001 - an input that cannot be copied is passed on as it is
        return leaf


def copies_of_lazy_buffers(roots: Mapping[str, nn.Module]) -> dict[int, Any]:
    """Return a `deepcopy` memo of lazy buffers, which it cannot copy (2.13)."""
    buffers: Any = (buffer for root in roots.values() for buffer in root.buffers() if is_lazy(buffer))
    return {id(b): type(b)(requires_grad=b.requires_grad, device=b.device, dtype=b.dtype) for b in buffers}


def _keep_modes(undo: ExitStack) -> None:
    undo.callback(torch.set_grad_enabled, torch.is_grad_enabled())
    undo.callback(torch.set_default_dtype, torch.get_default_dtype())
    undo.callback(torch.set_anomaly_enabled, torch.is_anomaly_enabled())
    undo.callback(_restore_determinism, *_determinism())


def _determinism() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _restore_determinism(is_on: bool, warn_only: bool) -> None:
    if _determinism() != (is_on, warn_only):  # else nothing is set, and no private function is needed
        set_deterministic_algorithms(is_on, warn_only=warn_only)


def _keep_random_states(undo: ExitStack) -> None:
    undo.callback(random.setstate, random.getstate())
    if (numpy := sys.modules.get("numpy")) is not None:
        undo.callback(numpy.random.set_state, numpy.random.get_state())
    undo.callback(torch.set_rng_state, torch.get_rng_state())
    if torch.accelerator.is_available():
        device = torch.get_device_module(torch.accelerator.current_accelerator())
        for index in range(device.device_count()):
            undo.callback(device.set_rng_state, device.get_rng_state(index), index)


def _keep_generator(value: Any, undo: ExitStack) -> None:
    """Save the state of a random generator, PyTorch's or NumPy's."""
    if isinstance(value, torch.Generator):
        undo.callback(value.set_state, value.get_state())
    elif (numpy := sys.modules.get("numpy")) is not None and isinstance(value, numpy.random.Generator):
        undo.callback(setattr, value.bit_generator, "state", value.bit_generator.state)


class Snapshot:
    """The state of modules, tensors and random generators, to be restored.

    Args:
        modules: all modules of a model.
    """

    # Plain lists, where callbacks on a stack would be shorter: a closure for each of thousands of attributes is felt.
    def __init__(self, modules: Iterable[nn.Module]) -> None:
        # Tensors that are copied only before they are written to, by storage: a write to a view changes its base.
        self._by_storage: dict[int | None, list[torch.Tensor]] = {}
        self._attributes: list[tuple[dict[str, Any], dict[str, Any]]] = []  # an instance's dictionary and its copy
        self._containers: list[tuple[Any, Any]] = []  # a container and its copy
        self._empty: list[Any] = []  # empty containers: a module has a dozen, for hooks that it does not have
        # A leaf, its data, its grad, and whether it requires grad.
        self._with_grads: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, bool]] = []
        self._tensors: list[tuple[torch.Tensor, torch.Tensor]] = []  # a tensor and a copy of its values
        self._versions: list[Any] = []  # open contexts; closing one restores a tensor's version counter
        self._seen: set[int] = set()  # ids of saved tensors: modules share some
        self._states = ExitStack()  # global modes and random states
        _keep_modes(self._states)
        _keep_random_states(self._states)
        for module in modules:
            self.keep_module(module)

    def keep_module(self, module: nn.Module) -> None:
        """Save a module's attributes, tensors by value; parameters until written to."""
        own = vars(module)
        self._attributes.append((own, dict(own)))
        for value in own.values():
            if type(value) in _IMMUTABLE:
                continue
            if isinstance(value, torch.Tensor):
                self.keep_tensor(value)
            elif isinstance(value, _CONTAINERS):
                self.keep_container(value)
            else:
                _keep_generator(value, self._states)
        for parameter in module._parameters.values():
            if parameter is not None and self._is_new(parameter) and not is_lazy(parameter):
                self._keep_until_written(parameter)

    def keep_input(self, value: Any) -> None:
        """Save an input, which may be a tensor or a random generator.

        A tensor's values are copied only before it is written to; its grad is saved at once.
        """
        if isinstance(value, torch.Tensor):
            if self._is_new(value):
                self._keep_until_written(value)
        else:
            _keep_generator(value, self._states)

    def keep_tensor(self, tensor: torch.Tensor) -> None:
        """Save a tensor by value; lazy and meta tensors have none."""
        if self._is_new(tensor) and not is_lazy(tensor) and tensor.device.type != "meta":
            self._keep_version(tensor)
            self._keep_values(tensor)

    def keep_container(self, container: Any) -> None:
        """Save the contents of a container, tensors by value."""
        if not container:
            self._empty.append(container)
            return
        self._containers.append((container, copy.copy(container)))
        for value in container.values() if isinstance(container, dict) else container:
            if isinstance(value, torch.Tensor) and not isinstance(value, nn.Parameter):
                self.keep_tensor(value)

    def keep_written(self, tensor: torch.Tensor) -> None:
        """Copy parameters and inputs that share a tensor's memory, before a write."""
        for sharing in self._by_storage.pop(storage_of(tensor) or -1, ()):
            with disable_current_modes():
                self._keep_values(sharing if sharing.is_inference() else sharing.data)

    def keep_all(self) -> None:
        """Copy all parameters and inputs now, where nothing will tell before a write."""
        for tensor in [tensor for sharing in self._by_storage.values() for tensor in sharing]:
            self.keep_written(tensor)

    def drop_grads(self) -> None:
        """Remove all grads until `restore`.

        A backward inside of the forward then makes new ones, instead of adding to those of the training.
        """
        for parameter, _, grad, _ in self._with_grads:
            if grad is not None:
                parameter.grad = None

    def restore(self) -> None:
        """Restore everything that can be restored.

        Raises:
            Exception: the last error; the other parts are restored all the same.
        """
        with self._states, ExitStack() as undo:  # each step runs even if an earlier one raises
            undo.callback(self._restore_attributes)
            undo.callback(self._restore_tensors)

    def _restore_tensors(self) -> None:
        for tensor, values in self._tensors:
            _restore_values(tensor, values)
        for tensor, data, grad, requires_grad in self._with_grads:
            if not tensor.is_leaf and not is_view(tensor):  # an in-place write of a tensor that requires grad
                tensor.detach_()
            if _place_of(tensor) != _place_of(data):  # `tensor.data` was set
                tensor.data = data
            if tensor.requires_grad != requires_grad and tensor.is_leaf:
                tensor.requires_grad_(requires_grad)
            if tensor.grad is not grad:
                tensor.grad = grad
        for version in self._versions:
            version.__exit__(None, None, None)

    def _restore_attributes(self) -> None:
        for container in filter(None, self._empty):
            container.clear()
        for container, contents in self._containers:
            container.clear()
            (container.update if isinstance(container, (dict, set)) else container.extend)(contents)
        for own, before in self._attributes:
            own.clear()
            own.update(before)

    def _is_new(self, tensor: torch.Tensor) -> bool:
        is_new = id(tensor) not in self._seen
        self._seen.add(id(tensor))
        return is_new

    def _keep_until_written(self, tensor: torch.Tensor) -> None:
        self._keep_version(tensor)
        self._by_storage.setdefault(storage_of(tensor), []).append(tensor)
        if tensor.is_leaf:
            self._with_grads.append((tensor, tensor.data, tensor.grad, tensor.requires_grad))

    def _keep_version(self, tensor: torch.Tensor) -> None:
        # A graph that saved the tensor before the run compares its version in backward.
        if not tensor.is_inference():
            self._versions.append(preserve_version_counter(tensor))

    def _keep_values(self, tensor: torch.Tensor) -> None:
        if _has_memory(tensor):
            with torch.no_grad():
                self._tensors.append((tensor, _without_expansion(tensor).detach().clone()))


def _has_memory(tensor: torch.Tensor) -> bool:
    """Return whether there are values to read: FSDP1 frees the memory of gathered weights, and leaves their views.

    To read such a view ends the process (torch 2.13).
    """
    try:
        return tensor.untyped_storage().nbytes() > 0 or tensor.numel() == 0
    except NotImplementedError:  # sparse, or wrapped by a transform of torch.func
        return True


def _is_strided(tensor: torch.Tensor) -> bool:
    """Return whether a tensor has strides; nested and sparse ones have none."""
    return not tensor.is_nested and tensor.layout == torch.strided


def _place_of(tensor: torch.Tensor) -> Any:
    """Return a tensor's storage, shape, strides and offset; None without strides."""
    if not _is_strided(tensor):
        return None
    return storage_of(tensor), tensor.shape, tensor.stride(), tensor.storage_offset()


def _without_expansion(tensor: torch.Tensor) -> torch.Tensor:
    """Return a view with size 1 in each expanded dimension.

    An expanded tensor has several elements at one address, and PyTorch refuses to write to it.
    """
    if not _is_strided(tensor) or 0 not in tensor.stride():
        return tensor
    return tensor.detach()[tuple(slice(1) if stride == 0 else slice(None) for stride in tensor.stride())]


def _restore_values(tensor: torch.Tensor, before: torch.Tensor) -> None:
    if not _has_memory(tensor):  # freed by the run
        return
    # A tensor made in inference mode can be written to in inference mode only.
    with torch.inference_mode(tensor.is_inference()), torch.no_grad():
        target = _without_expansion(tensor)
        if not _is_strided(target) or target.shape == before.shape:
            target.copy_(before)
        else:  # resized by the run
            tensor.data = before
