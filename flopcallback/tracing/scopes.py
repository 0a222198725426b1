"""Which module an operator belongs to: the one that is running now."""

from __future__ import annotations

import functools
import inspect
import sys
import threading
import types
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from flopcallback.formulas.op_call import ROOT, Scope
from flopcallback.modules.names import ModuleNames, storage_of
from flopcallback.modules.wrappers import wrap_on_instance

__all__ = ["ModuleScopes"]

# Methods of these packages' own classes are machinery (`parameters`, `log`, `training_step`'s plumbing), not the user's
# model: only the classes that a user's or a model library's code defines get their public methods watched.
_FRAMEWORKS = frozenset({"torch", "lightning", "pytorch_lightning", "lightning_fabric", "torchmetrics"})

# `module(...)` reaches `forward` through this file; an explicit `module.forward(...)` does not.
_CALL_MACHINERY = nn.Module.__call__.__code__.co_filename

# Containers that PyTorch never calls and whose `forward` is the abstract one.
_ABSTRACT_FORWARD = nn.Module.forward


class ModuleScopes:
    """Follows which modules are running, by wrapping `forward` and the public methods on the instances.

    A wrapper on the instance sees explicit `.forward()` calls and other methods, which hooks do not, and adds no hook
    that the user or another library could count or trip over.

    Attributes:
        names: the modules' names.
        current: the modules that are running now.
        calls: how often each module was entered from outside itself, by canonical name.
        called: modules that were called as `module(...)`, not only through `.forward()` or another method.
        output_shapes: shape of the last tensor that each module returned.
        strays: modules that ran in a thread where no engine could see them; the root for what it left at work in one.
        on_change: told each time `current` changes.
        failure: what following the modules failed at; what ran from there on is not told apart.
    """

    def __init__(self, names: ModuleNames) -> None:
        self.names = names
        self.current = ROOT
        self.calls: Counter[str] = Counter()
        self.called: set[str] = set()
        self.strays: set[str] = set()
        self.output_shapes: dict[str, tuple[int, ...]] = {}
        self.on_change: Callable[[Scope], None] = lambda scope: None
        self.failure: Exception | None = None
        self._thread = threading.get_ident()
        self._elsewhere: dict[int, Scope] = {}
        self._scripted = {
            storage_of(parameter): name
            for name, module in names.unique.items()
            if isinstance(module, torch.jit.ScriptModule)
            for parameter in module.parameters(recurse=False)
        }

    def scope_of(self, arguments: Iterable[Any]) -> Scope:
        """The modules that are running, as far into a scripted one as an operator's arguments tell.

        The modules inside a scripted one are not called from Python; an operator that takes a parameter of one is its.
        """
        for argument in arguments if self._scripted else ():
            if isinstance(argument, torch.Tensor) and (owner := self._scripted.get(storage_of(argument))) is not None:
                self.calls.setdefault(owner, 1)  # how often cannot be seen from here
                return Scope(owner, (*self.here.called, owner))
        return self.here

    @property
    def here(self) -> Scope:
        """The modules that are running in this thread."""
        return self._elsewhere.get(threading.get_ident(), self.current) if self._elsewhere else self.current

    @contextmanager
    def elsewhere(self, scope: Scope) -> Iterator[None]:
        """Follows the modules of another thread too, this one, from `scope` on, which is where it was started."""
        thread = threading.get_ident()
        self._elsewhere[thread] = scope
        try:
            yield
        finally:
            del self._elsewhere[thread]

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Wraps the modules for the time of the context; afterwards nothing remains on them."""
        self._thread = threading.get_ident()
        with ExitStack() as undo:
            for name, module in self.names.unique.items():
                # A `forward` put on the instance may be the only one that the module has.
                own_forward = vars(module).keys() & {"forward"}
                for method in {*_watched_methods(type(module)), *own_forward}:  # type: ignore[arg-type]
                    wrap_on_instance(module, method, self._wrapper(name), undo)
                if module._forward_hooks or module._forward_pre_hooks:  # what they do is the module's work
                    wrap_on_instance(module, "_call_impl", self._wrapper(name), undo)
            yield

    def _wrapper(self, name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def wrap(method: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(method)
            def watched(*args: Any, **kwargs: Any) -> Any:
                try:
                    is_call = sys._getframe(1).f_code.co_filename == _CALL_MACHINERY
                    outer = self._entered(name, is_call=is_call)
                except Exception as error:  # noqa: BLE001 - the method is the model's, and is called
                    self.failure, outer = error, None
                if outer is None:
                    return method(*args, **kwargs)
                try:
                    result = method(*args, **kwargs)
                finally:
                    self._left(outer)
                self._returned(name, result)
                return result

            return watched

        return wrap

    def _entered(self, name: str, *, is_call: bool) -> Scope | None:
        """A module is entered: the modules that were running before; None where it is not to be followed."""
        thread = threading.get_ident()
        if thread != self._thread and thread not in self._elsewhere:
            self.strays.add(name)
            return None
        outer = self.here
        if outer.module == name and (not is_call or outer.called[-1] == name):
            return None  # a module's own method, called by itself
        self.calls[name] += outer.module != name
        if is_call:
            self.called.add(name)
        self._enter(Scope(name, (*outer.called, name) if is_call else outer.called))
        return outer

    def _left(self, outer: Scope) -> None:
        """A module was left, by its end or by what it raised: that is the model's, and goes on its way."""
        try:
            self._enter(outer)
        except Exception as error:  # noqa: BLE001
            self.current, self.failure = outer, error

    def _returned(self, name: str, result: Any) -> None:
        try:
            if isinstance(result, torch.Tensor) and not result.is_nested:
                self.output_shapes[name] = tuple(result.size())
        except Exception as error:  # noqa: BLE001 - the result is the model's, and goes on its way
            self.failure = error

    def _enter(self, scope: Scope) -> None:
        if (thread := threading.get_ident()) != self._thread:
            self._elsewhere[thread] = scope
            return
        self.current = scope
        self.on_change(scope)


@functools.cache
def _watched_methods(cls: type[nn.Module]) -> tuple[str, ...]:
    """`forward` and the public methods that the model's own classes define."""
    # `getattr_static`: the `forward` of a scripted module's class is a descriptor that only instances can be asked for.
    methods = set() if inspect.getattr_static(cls, "forward", None) is _ABSTRACT_FORWARD else {"forward"}
    for base in cls.__mro__:
        if base.__module__.partition(".")[0] in _FRAMEWORKS or base.__module__ == "transformers.modeling_utils":
            continue
        methods |= {
            name
            for name, value in vars(base).items()
            if isinstance(value, types.FunctionType)
            and not name.startswith("_")
            and not inspect.isgeneratorfunction(value)  # its body runs after the call has returned
            and not inspect.iscoroutinefunction(value)
        }
    return tuple(sorted(methods))
