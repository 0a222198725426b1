"""Attribution of operators to the modules that are running."""

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
from flopcallback.tracing.torch_private import COMPILED_CALL, has_compiled_call

__all__ = ["ModuleScopes"]

# Public methods that these packages define (`parameters`, `log`) are not the model's, and are not watched.
_FRAMEWORKS = frozenset({"torch", "lightning", "pytorch_lightning", "lightning_fabric", "torchmetrics"})

# The file that calls `forward` for `module(...)`, but not for an explicit `module.forward(...)`.
_CALL_MACHINERY = nn.Module.__call__.__code__.co_filename

# What a call of a module comes by.
_CALLED = frozenset({"forward", "_call_impl", COMPILED_CALL})

# The `forward` of containers such as `ModuleList`, which raises.
_ABSTRACT_FORWARD = nn.Module.forward


class ModuleScopes:
    """Tracker of the running modules, by wrappers on their instances.

    `forward` and the public methods are wrapped. Unlike hooks, wrappers see explicit `.forward()` calls and other
    methods, and do not show in the module's lists of hooks, which users and other libraries read.

    Attributes:
        names: the modules' names.
        current: the modules that are running now, in the thread of `watch`.
        calls: how often each module was entered from outside itself, by canonical name.
        called: modules that were called as `module(...)`, not only through `.forward()` or another method.
        methods: methods other than `forward` by which modules were entered, by canonical name.
        output_shapes: shape of the last tensor that each module returned.
        strays: modules that ran in a thread where no engine saw them; the root, if a thread outlived the call.
        on_change: called with the new scope each time `current` changes.
        failure: the last error of ours, if any; operators after it may be attributed to the wrong module.
    """

    def __init__(self, names: ModuleNames) -> None:
        self.names = names
        self.current = ROOT
        self.calls: Counter[str] = Counter()
        self.called: set[str] = set()
        self.methods: dict[str, set[str]] = {}
        self.strays: set[str] = set()
        self.output_shapes: dict[str, tuple[int, ...]] = {}
        self.on_change: Callable[[Scope], None] = lambda scope: None
        self.failure: Exception | None = None
        self._thread = threading.get_ident()
        self._elsewhere: dict[int, Scope] = {}  # running modules of other threads that are followed
        # Modules inside scripted ones, by the storages of their parameters.
        self._scripted = {
            storage_of(parameter): name
            for name, module in names.unique.items()
            if isinstance(module, torch.jit.ScriptModule)
            for parameter in module.parameters(recurse=False)
        }

    def scope_of(self, arguments: Iterable[Any]) -> Scope:
        """Return the running modules, also inside a scripted module.

        Modules inside a scripted one are not called from Python: an operator belongs to the module whose parameter is
        among its arguments.
        """
        for argument in arguments if self._scripted else ():
            if isinstance(argument, torch.Tensor) and (owner := self._scripted.get(storage_of(argument))) is not None:
                self.calls.setdefault(owner, 1)  # at least once: the number of calls cannot be seen
                return Scope(owner, (*self.here.called, owner))
        return self.here

    @property
    def here(self) -> Scope:
        """The modules that are running in this thread."""
        return self._elsewhere.get(threading.get_ident(), self.current) if self._elsewhere else self.current

    @contextmanager
    def elsewhere(self, scope: Scope) -> Iterator[None]:
        """Follow modules in this thread, which is not that of `watch`.

        Args:
            scope: the modules that were running where the thread was started.
        """
        thread = threading.get_ident()
        self._elsewhere[thread] = scope
        try:
            yield
        finally:
            del self._elsewhere[thread]

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Wrap the modules during the context."""
        self._thread = threading.get_ident()
        with ExitStack() as undo:
            for name, module in self.names.unique.items():
                # The class may have no `forward` of its own, only the instance.
                own_forward = vars(module).keys() & {"forward"}
                for method in {*_watched_methods(type(module)), *own_forward}:  # type: ignore[arg-type]
                    wrap_on_instance(module, method, self._wrapper(name, method), undo)
                if has_compiled_call(module):  # compiled in place: its calls do not come by `forward`
                    wrap_on_instance(module, COMPILED_CALL, self._wrapper(name, COMPILED_CALL), undo)
                if module._forward_hooks or module._forward_pre_hooks:  # work in hooks is the module's
                    wrap_on_instance(module, "_call_impl", self._wrapper(name, "_call_impl"), undo)
            yield

    def _wrapper(self, name: str, attribute: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def wrap(method: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(method)
            def watched(*args: Any, **kwargs: Any) -> Any:
                # First: where a compiler meets this after all, the rest is dead code to it.
                if torch.compiler.is_compiling():
                    return method(*args, **kwargs)
                try:
                    is_call = sys._getframe(1).f_code.co_filename == _CALL_MACHINERY
                    outer = self._entered(name, is_call=is_call)
                    if outer is not None and attribute not in _CALLED:
                        self.methods.setdefault(name, set()).add(attribute)
                    self._received(args, kwargs)
                except Exception as error:  # noqa: BLE001 - the method is the model's, and is called
                    self.failure, outer = error, None
                if outer is None:
                    return method(*args, **kwargs)
                try:
                    result = method(*args, **kwargs)
                finally:
                    try:
                        self._left(outer)
                    except Exception as error:  # noqa: BLE001 - the method's own error, if any, must not be replaced
                        self.failure = error
                try:
                    self._returned(name, result)
                except Exception as error:  # noqa: BLE001 - the method is the model's, and has returned
                    self.failure = error
                return result

            return watched

        return wrap

    def _entered(self, name: str, *, is_call: bool) -> Scope | None:
        """Enter a module.

        Returns:
            The modules that were running before, for `_left`; None if the call is not followed.
        """
        thread = threading.get_ident()
        if thread != self._thread and thread not in self._elsewhere:
            self.strays.add(name)
            return None
        outer = self.here
        if outer.module == name and (not is_call or outer.called[-1] == name):
            return None  # the module calls a method of its own
        self.calls[name] += outer.module != name
        if is_call:
            self.called.add(name)
        self._enter(Scope(name, (*outer.called, name) if is_call else outer.called))
        return outer

    def _received(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Look at the arguments of a call that begins; for subclasses."""

    def _left(self, outer: Scope) -> None:
        """Leave a module, after its return or its error."""
        try:
            self._enter(outer)
        except Exception as error:  # noqa: BLE001 - the model's own error, if any, must not be replaced
            self.current, self.failure = outer, error

    def _returned(self, name: str, result: Any) -> None:
        if isinstance(result, torch.Tensor) and not result.is_nested:
            self.output_shapes[name] = tuple(result.size())

    def _enter(self, scope: Scope) -> None:
        if (thread := threading.get_ident()) != self._thread:
            self._elsewhere[thread] = scope
            return
        self.current = scope
        self.on_change(scope)


@functools.cache
def _watched_methods(cls: type[nn.Module]) -> tuple[str, ...]:
    """Return `forward` and the public methods that the model's classes define."""
    # `getattr_static`: in the class of a scripted module, `forward` is a descriptor that works on instances only.
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
