"""The names of modules, and the modules that a callable works on."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from flopcallback.tracing.torch_private import storage_id

__all__ = ["ModuleHolder", "ModuleNames", "as_one_module", "find_modules", "storage_of"]


def _named_modules_with_duplicates(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Like `named_modules()`, but a shared module is listed under each of its names."""
    yield prefix, module
    for name, child in module._modules.items():
        if child is not None:
            yield from _named_modules_with_duplicates(child, f"{prefix}.{name}" if prefix else name)


class ModuleNames:
    """Every name of every module, and which of the names of a shared module is the canonical one.

    Args:
        roots: the modules that are analysed, by name; a single model is `{"": model}`. Names of a root's children are
            the root's name, a dot, and the name within the root.
    """

    def __init__(self, roots: Mapping[str, nn.Module]) -> None:
        self.by_name: dict[str, nn.Module] = {}
        self.canonical: dict[str, str] = {}
        self._of_module: dict[int, str] = {}
        for root_name, root in roots.items():
            for name, module in _named_modules_with_duplicates(root, root_name):
                self.by_name[name] = module
                self.canonical[name] = self._of_module.setdefault(id(module), name)
        self.canonical.setdefault("", "")

    def of(self, module: nn.Module) -> str | None:
        """Canonical name of a module, None for a module that is not among the analysed ones."""
        return self._of_module.get(id(module))

    @functools.cached_property
    def unique(self) -> dict[str, nn.Module]:
        """Canonical name -> module, in the order of `named_modules()`."""
        return {name: module for name, module in self.by_name.items() if self.canonical[name] == name}

    @staticmethod
    @functools.cache
    def owners(name: str) -> tuple[str, ...]:
        """The module itself and the modules that own it by name, outermost first: `("", "a", "a.b")` for `"a.b"`."""
        if not name:
            return ("",)
        parts = name.split(".")
        return ("", *(".".join(parts[: depth + 1]) for depth in range(len(parts))))


def find_modules(function: Callable[..., Any], arguments: tuple[Any, ...] = ()) -> dict[str, nn.Module]:
    """The modules that a callable works on, by name, so that what they do can be attributed.

    A module is its own root `""`, and so is the owner of a bound method, also where `functools.partial` made something
    of them. For any other function: the modules among its closure, the globals that it names, its defaults, what
    `functools.partial` bound, and its arguments, each under its variable's name. A module that another found one
    contains is left to its owner.
    """
    whole = function
    while isinstance(whole, functools.partial):
        whole = whole.func
    owner = whole if isinstance(whole, nn.Module) else getattr(whole, "__self__", None)
    if isinstance(owner, nn.Module):
        return {"": owner}
    found = {name: value for name, value in _variables(function, arguments) if isinstance(value, nn.Module)}
    inner = {id(child) for module in found.values() for child in module.modules() if child is not module}
    return {name: module for name, module in found.items() if id(module) not in inner}


class ModuleHolder(nn.Module):
    """Holds the modules that a function works on, under the names by which it calls them."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self._modules.update(modules)


def as_one_module(roots: Mapping[str, nn.Module]) -> nn.Module:
    """Return the module that `find_modules` found, or a `ModuleHolder` of those that a function works on."""
    return roots[""] if "" in roots else ModuleHolder(roots)


def _variables(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Iterator[tuple[str, Any]]:
    function = inspect.unwrap(function)
    if isinstance(function, functools.partial):
        yield from function.keywords.items()
        yield from _variables(function.func, (*function.args, *arguments))
        return
    if inspect.ismethod(function):
        yield from vars(function.__self__).items() if hasattr(function.__self__, "__dict__") else ()
        function = function.__func__
    elif not inspect.isfunction(function):
        yield from getattr(function, "__dict__", {}).items()
        function = type(function).__call__
    if inspect.isfunction(function):
        yield from _named_in_code(function)
        parameters = list(inspect.signature(function).parameters.values())
        yield from ((p.name, p.default) for p in parameters)
        yield from zip((p.name for p in parameters), arguments, strict=False)


def _named_in_code(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # a cell that is not filled yet
            continue
    for name in function.__code__.co_names:
        if name in function.__globals__:
            yield name, function.__globals__[name]


def storage_of(tensor: torch.Tensor) -> int | None:
    """What tells whether two tensors share memory; None for one that has no storage to ask for."""
    if is_lazy(tensor):
        return None
    try:
        return storage_id(tensor.untyped_storage())
    except NotImplementedError:  # sparse, or wrapped by a transform of torch.func
        return None
