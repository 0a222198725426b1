"""For runs outside training: leave model, inputs and random state as found, also when the forward raises half-way."""

from __future__ import annotations

import copy
import functools
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

__all__ = [
    "Snapshot",
    "copies_of_lazy_buffers",
    "is_isolated",
    "left_as_found",
    "private_copies",
    "writes",
    "written_to",
]

# Containers whose contents a forward may change in place (`self.history.append(...)`).
_CONTAINERS = (list, dict, set, deque)
_IMMUTABLE = frozenset({bool, int, float, str, tuple, type(None)})


@contextmanager
def left_as_found(modules: Iterable[nn.Module], inputs: Any = ()) -> Iterator[Snapshot]:
    """Puts everything back that a forward may change: module state, tensors given to it, random states, grad mode.

    Module state is every attribute (flags, hooks, counters, metric states, containers one level deep), every buffer
    and plain tensor attribute by value, and `.grad`. Parameters and inputs are put back by value if `keep_written` of
    what this gives is told before they are written to: most runs write to none, and copies of all cost memory.

    Args:
        modules: all modules of the model.
        inputs: any structure of tensors; those that the run writes to get their values back.
    """
    # Past the caller's modes: under a fake mode, what is kept of a real tensor would be a fake one, and be put back.
    with disable_current_modes():
        found = Snapshot(modules)
        for leaf in tree_leaves(inputs):
            found.keep_input(leaf)
        found.drop_grads()
    _isolated.depth = getattr(_isolated, "depth", 0) + 1
    try:
        yield found
    finally:
        _isolated.depth -= 1
        with disable_current_modes():
            found.restore()


_isolated = threading.local()


def is_isolated() -> bool:
    """Whether what runs now in this thread leaves everything as found: a count or a measurement, no training."""
    return getattr(_isolated, "depth", 0) > 0


def private_copies(inputs: Any) -> Any:
    """The same structure with copies of those inputs that carry state of their own (a key-value cache)."""
    return tree_map(_private_copy, inputs)


def _private_copy(leaf: Any) -> Any:
    stateless = (torch.Tensor, nn.Module, type, torch.device, torch.dtype, str, bytes, int, float, complex, type(None))
    if isinstance(leaf, stateless) or callable(leaf) or not hasattr(leaf, "__dict__"):
        return leaf
    try:
        return copy.deepcopy(leaf)
    except Exception:  # noqa: BLE001 - what cannot be copied is handed on as it is: the model's input is not ours
        return leaf


def copies_of_lazy_buffers(roots: Mapping[str, nn.Module]) -> dict[int, Any]:
    """A memo for `deepcopy`, which can copy lazy parameters but not lazy buffers (2.13)."""
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
    if _determinism() != (is_on, warn_only):
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
    """Keeps the state of a random generator of the model's own, PyTorch's or NumPy's."""
    if isinstance(value, torch.Generator):
        undo.callback(value.set_state, value.get_state())
    elif (numpy := sys.modules.get("numpy")) is not None and isinstance(value, numpy.random.Generator):
        undo.callback(setattr, value.bit_generator, "state", value.bit_generator.state)


class Snapshot:
    """How modules, tensors and random states were found, to be put back.

    Plain lists, where callbacks on a stack would be shorter: a closure for each of thousands of attributes is felt.

    Args:
        modules: all modules of a model.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._by_storage: dict[int | None, list[torch.Tensor]] = {}
        self._attributes: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._containers: list[tuple[Any, Any]] = []
        self._empty: list[Any] = []  # a module has a dozen of these, for hooks that it has not
        self._with_grads: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, bool]] = []
        self._tensors: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._versions: list[Any] = []
        self._seen: set[int] = set()
        self._states = ExitStack()
        _keep_modes(self._states)
        _keep_random_states(self._states)
        for module in modules:
            self.keep_module(module)

    def keep_module(self, module: nn.Module) -> None:
        """Keeps all attributes, what stands in containers among them, tensors by value, and of parameters the rest."""
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
        """Keeps an argument: a tensor until it is written to, its grad, the state of a generator of random numbers."""
        if isinstance(value, torch.Tensor):
            if self._is_new(value):
                self._keep_until_written(value)
        else:
            _keep_generator(value, self._states)

    def keep_tensor(self, tensor: torch.Tensor) -> None:
        """Keeps a tensor by value."""
        if self._is_new(tensor) and not is_lazy(tensor) and tensor.device.type != "meta":
            self._keep_version(tensor)
            self._keep_values(tensor)

    def keep_container(self, container: Any) -> None:
        """Keeps what stands in a container, tensors by value."""
        if not container:
            self._empty.append(container)
            return
        self._containers.append((container, copy.copy(container)))
        for value in container.values() if isinstance(container, dict) else container:
            if isinstance(value, torch.Tensor) and not isinstance(value, nn.Parameter):
                self.keep_tensor(value)

    def keep_written(self, tensor: torch.Tensor) -> None:
        """Keeps by value the parameters and inputs whose memory a tensor shares: it is about to be written to."""
        for kept in self._by_storage.pop(storage_of(tensor) or -1, ()):
            with disable_current_modes():
                self._keep_values(kept if kept.is_inference() else kept.data)

    def drop_grads(self) -> None:
        """Takes the grads away until they are put back: a backward inside a forward then makes grads of its own."""
        for parameter, _, grad, _ in self._with_grads:
            if grad is not None:
                parameter.grad = None

    def restore(self) -> None:
        """Makes everything as it was found; what cannot be put back keeps nothing else from it."""
        with self._states, ExitStack() as undo:
            undo.callback(self._restore_attributes)
            undo.callback(self._restore_tensors)

    def _restore_tensors(self) -> None:
        for tensor, values in self._tensors:
            _restore(tensor, values)
        for tensor, data, grad, requires_grad in self._with_grads:
            if not tensor.is_leaf and not is_view(tensor):  # written to with something that requires grad
                tensor.detach_()
            if _place_of(tensor) != _place_of(data):
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
        # A graph that saved the tensor before the run has to find it unchanged, by its version too.
        if not tensor.is_inference():
            self._versions.append(preserve_version_counter(tensor))

    def _keep_values(self, tensor: torch.Tensor) -> None:
        with torch.no_grad():
            self._tensors.append((tensor, _each_place_once(tensor).detach().clone()))


def _has_one_place(tensor: torch.Tensor) -> bool:
    """Whether a tensor is a plain block of memory; a nested or sparse one has parts, and no strides to ask for."""
    return not tensor.is_nested and tensor.layout == torch.strided


def _place_of(tensor: torch.Tensor) -> Any:
    if not _has_one_place(tensor):
        return None
    return storage_of(tensor), tensor.shape, tensor.stride(), tensor.storage_offset()


def _each_place_once(tensor: torch.Tensor) -> torch.Tensor:
    """Of an expanded tensor, one of the elements that share a place: no other view of it can be written to."""
    if not _has_one_place(tensor) or 0 not in tensor.stride():
        return tensor
    return tensor.detach()[tuple(slice(1) if stride == 0 else slice(None) for stride in tensor.stride())]


def _restore(tensor: torch.Tensor, before: torch.Tensor) -> None:
    # Nothing outside inference mode may write to a tensor that was made inside of it.
    with torch.inference_mode(tensor.is_inference()), torch.no_grad():
        places = _each_place_once(tensor)
        if not _has_one_place(places) or places.shape == before.shape:
            places.copy_(before)
        else:
            tensor.data = before


def written_to(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[torch.Tensor]:
    """The tensors that a call of a PyTorch function writes to, by its name (`add_`, `_foreach_add_`) or its `out=`."""
    if writes(func):
        # A list comes first where many are written to; the fused optimizers write to several lists.
        lists = args if func.__name__.startswith("_fused_") else args[:1]
        yield from (leaf for leaf in tree_leaves(lists) if isinstance(leaf, torch.Tensor))
    if "out" in kwargs:
        yield from (leaf for leaf in tree_leaves(kwargs["out"]) if isinstance(leaf, torch.Tensor))


_WRITING_OPERATORS = frozenset(
    # The last three hand the memory to somebody whose writes cannot be seen.
    """
    __setitem__ __iadd__ __isub__ __imul__ __imatmul__ __itruediv__ __ifloordiv__ __imod__ __ipow__ __iand__ __ior__
    __ixor__ numpy __array__ __dlpack__
    """.split()  # noqa: SIM905 - easier read without quotes
)


@functools.cache
def writes(func: Any) -> bool:
    """Return whether a PyTorch function writes to its arguments, by its name."""
    name = getattr(func, "__name__", "")
    return name in _WRITING_OPERATORS or (name.endswith("_") and not name.endswith("__"))
