"""Names of modules, and the modules that a callable uses."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from flopcallback.tracing.torch_private import WRAPPED_MODULES, storage_id

__all__ = [
    "ModuleHolder",
    "ModuleNames",
    "as_one_module",
    "find_modules",
    "innermost",
    "is_fabric",
    "storage_of",
    "wrapped_in",
    "wrapped_module",
]

Value = TypeVar("Value")

_FABRIC = {"_forward_module", "_original_module"}
"""Children of what Lightning's `fabric.setup` returns: the module that it calls, and the one that the user gave."""


def _named_modules_with_duplicates(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield modules as `named_modules()` does, shared ones under every name."""
    yield prefix, module
    for name, child in module._modules.items():
        if child is not None:
            yield from _named_modules_with_duplicates(child, f"{prefix}.{name}" if prefix else name)


def is_fabric(module: nn.Module) -> bool:
    """Return whether a module is what Lightning's `fabric.setup` returns.

    It is recognized by its children, since Lightning must not be imported here.
    """
    return set(module._modules.keys()) == _FABRIC


def wrapped_in(module: nn.Module) -> str | None:
    """Return the name of the child that a wrapper wraps, or None for a module that is no wrapper.

    Wrappers are those of data parallelism, `torch.compile`, FSDP1, activation checkpointing and Lightning's Fabric.
    """
    children = module._modules  # a scripted module's have no `get`
    if isinstance(module, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
        return "module"
    if len(children) == 1:
        return next((name for name in WRAPPED_MODULES if name in children), None)
    return "_forward_module" if is_fabric(module) else None  # not `_original_module`: what is called may be compiled


def wrapped_module(module: nn.Module) -> nn.Module | None:
    """Return the module that a wrapper wraps, or None for a module that is no wrapper."""
    name = wrapped_in(module)
    return None if name is None else module._modules[name]


def innermost(module: nn.Module) -> nn.Module:
    """Return a module without its wrappers."""
    while (inner := wrapped_module(module)) is not None:
        module = inner
    return module


class ModuleNames:
    """Names of modules; a shared module has several, the first is canonical.

    Args:
        roots: the analysed modules, by name; a single model is `{"": model}`. The name of a root's child is the root's
            name, a dot, and the name within the root.

    Attributes:
        by_name: module by any of its names.
        canonical: canonical name by any name.
    """

    def __init__(self, roots: Mapping[str, nn.Module]) -> None:
        self.by_name: dict[str, nn.Module] = {}
        self.canonical: dict[str, str] = {}
        self._by_id: dict[int, str] = {}  # canonical names
        for root_name, root in roots.items():
            for name, module in _named_modules_with_duplicates(root, root_name):
                self.by_name[name] = module
                self.canonical[name] = self._by_id.setdefault(id(module), name)
        self.canonical.setdefault("", "")  # for a function of several modules, where "" is the call and no module

    def of(self, module: nn.Module) -> str | None:
        """Return a module's canonical name, or None if it is not analysed."""
        return self._by_id.get(id(module))

    @functools.cached_property
    def unique(self) -> dict[str, nn.Module]:
        """Modules by canonical name, in the order of `named_modules()`."""
        return {name: module for name, module in self.by_name.items() if self.canonical[name] == name}

    @functools.cached_property
    def shown(self) -> dict[str, str]:
        """Names for the user, by canonical name: a wrapper and what it wraps share one, that of the unwrapped module.

        So `_orig_mod.block.0` of a compiled model is `block.0`.
        """
        shown = {"": ""}
        for name in self.unique:  # a module comes before those inside
            parent, _, own = name.rpartition(".")
            above, around = shown[parent], self.unique.get(parent)
            is_wrapped = name and around is not None and wrapped_in(around) == own
            shown[name] = above if is_wrapped else f"{above}.{own}" if above else own
        return shown

    def as_shown(self, by_name: Mapping[str, Value]) -> dict[str, Value]:
        """Return values by the names for the user.

        Of a wrapper and what it wraps, the outermost with a value counts. Names of no module are kept.
        """
        ordered = [*(name for name in self.shown if name in by_name), *(name for name in by_name)]
        values: dict[str, Value] = {}
        for name in ordered:
            values.setdefault(self.shown.get(name, name), by_name[name])
        return values

    @staticmethod
    @functools.cache
    def owners(name: str) -> tuple[str, ...]:
        """Return a name and the names above, such as `("", "a", "a.b")`."""
        if not name:
            return ("",)
        parts = name.split(".")
        return ("", *(".".join(parts[: depth + 1]) for depth in range(len(parts))))


def find_modules(function: Callable[..., Any], arguments: tuple[Any, ...] = ()) -> dict[str, nn.Module]:
    """Return the modules that a callable uses, by name.

    A module, or the module of a bound method, is the root `""`; a `functools.partial` of either as well. For any other
    function these are the modules in its closure, the globals that it names, its defaults, the arguments bound by
    `functools.partial`, and its arguments, each under the name of its variable; for a method of another object, such as
    a pipeline, also those in the attributes of the object. A module inside another one of these
    is not listed: it belongs to that one.
    """
    unwrapped = function
    while isinstance(unwrapped, functools.partial):
        unwrapped = unwrapped.func
    owner = unwrapped if isinstance(unwrapped, nn.Module) else getattr(unwrapped, "__self__", None)
    if isinstance(owner, nn.Module):
        return {"": owner}
    modules = {name: value for name, value in _variables(function, arguments) if isinstance(value, nn.Module)}
    inner = {id(child) for module in modules.values() for child in module.modules() if child is not module}
    return {name: module for name, module in modules.items() if id(module) not in inner}


class ModuleHolder(nn.Module):
    """Container of the modules that a function uses, by variable name."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self._modules.update(modules)  # `add_module` refuses names of attributes, such as `half`


def as_one_module(roots: Mapping[str, nn.Module]) -> nn.Module:
    """Return the only module of `find_modules`, or a `ModuleHolder` of several."""
    return roots[""] if "" in roots else ModuleHolder(roots)


def _variables(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Iterator[tuple[str, Any]]:
    if not inspect.ismethod(function):  # a decorated method would be unwrapped to its function, without the object
        function = inspect.unwrap(function)
    if isinstance(function, functools.partial):
        yield from function.keywords.items()
        yield from _variables(function.func, (*function.args, *arguments))
        return
    if inspect.ismethod(function):
        owner, arguments = function.__self__, (function.__self__, *arguments)
        yield from vars(owner).items() if hasattr(owner, "__dict__") else ()
        function = inspect.unwrap(function.__func__)
    elif not inspect.isfunction(function):
        yield from getattr(function, "__dict__", {}).items()
        function, arguments = inspect.unwrap(type(function).__call__), (function, *arguments)
    if inspect.isfunction(function):
        yield from _named_in_code(function)
        parameters = list(inspect.signature(function).parameters.values())
        yield from ((p.name, p.default) for p in parameters)
        yield from zip((p.name for p in parameters), arguments, strict=False)


def _named_in_code(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # an empty cell: the variable is not assigned yet
            continue
    for name in function.__code__.co_names:
        if name in function.__globals__:
            yield name, function.__globals__[name]


def storage_of(tensor: torch.Tensor) -> int | None:
    """Return an id that tensors of the same memory share, or None.

    None for a tensor without a storage of its own: lazy, sparse, or wrapped by a transform of `torch.func`.
    """
    if is_lazy(tensor):
        return None
    try:
        return storage_id(tensor.untyped_storage())
    except NotImplementedError:  # sparse, or wrapped by a transform of torch.func
        return None
