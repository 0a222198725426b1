"""Marks over the work of modules."""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch.nn.parameter import is_lazy

from flopcallback.formulas.op_call import ROOT, Scope, Value
from flopcallback.modules.attempt import call_once
from flopcallback.modules.names import ModuleNames
from flopcallback.modules.structures import PLAIN, tensors_in
from flopcallback.tracing.dispatch import value_of
from flopcallback.tracing.marks import COMPILED, NO_GRAD, REGION, SCOPE, Marks
from flopcallback.tracing.regions import replaced
from flopcallback.tracing.scopes import ModuleScopes
from flopcallback.tracing.torch_private import identity_of, is_backward_running, tree_leaves

__all__ = ["MarkedScopes", "OpenMarks", "threads_noted"]


class MarkedScopes(ModuleScopes):
    """Tracker of the running modules that leaves a mark over each.

    Attributes:
        numbered: the scopes that marks refer to, by number.
        results: results of autograd functions, by number.

    Args:
        names: the modules' names.
        marks: the observer's.
        arguments: any structure that holds tensors which are used outside of modules, too.
    """

    def __init__(self, names: ModuleNames, marks: Marks, arguments: Any = ()) -> None:
        super().__init__(names)
        self.numbered: list[Scope] = []
        self.results: dict[int, tuple[Value, ...]] = {}
        # Sparse tensors that modules have or were given, and their stored elements; kept, so that no other tensor gets
        # what records call them by.
        self._sparse: dict[int | None, tuple[torch.Tensor, int | None]] = {}
        self._numbers: dict[Scope, int] = {}
        self._marks = marks
        self._open = OpenMarks()
        self._regions = itertools.count()
        self._received((arguments,), {})
        for module in names.unique.values():
            # PyTorch's own modules have no tensors among their attributes, and are most of all modules.
            own = {} if type(module).__module__.startswith("torch.nn.") else vars(module)
            for values in (module._parameters, module._buffers, own):
                for value in values.values():
                    if isinstance(value, torch.Tensor):
                        self._keep_sparse(value)

    def over(self, scope: Scope) -> AbstractContextManager[Any]:
        """Return a mark over work of these modules."""
        number = self._numbers.get(scope)
        if number is None:
            # Two threads may add the same scope at the same time: both numbers are right.
            number = self._numbers[scope] = len(self.numbered)
            self.numbered.append(scope)
        return self._marks.over(SCOPE, number if torch.is_grad_enabled() else f"{number}{NO_GRAD}")

    def over_compiled(self, scope: Scope) -> AbstractContextManager[Any]:
        """Return a mark over a call of compiled code, whose scope is no other call's."""
        self.numbered.append(scope)
        return self._marks.over(COMPILED, len(self.numbered) - 1)

    def region(self, kind: str, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an autograd function exactly once, and keep what its results are."""
        number = next(self._regions)

        def around(attempt: Callable[[], Any]) -> None:
            with self._marks.over(REGION, number):
                attempt()

        outcome = call_once(functools.partial(call, *args, **kwargs), around)
        self.failure = self.failure or outcome.failure
        try:
            self.results[number] = tuple(map(value_of, tree_leaves(outcome.result)))
        except Exception as error:  # noqa: BLE001 - the function is the model's, and has run
            self.failure = error
        return outcome.result

    def is_here(self) -> bool:
        """Return whether this is the thread of `watch`."""
        return threading.get_ident() == self._thread

    def _entered(self, name: str, *, is_call: bool) -> Scope | None:
        thread = threading.get_ident()
        # A thread of autograd's is recorded like the one that began the backward.
        if thread != self._thread and thread not in self._elsewhere and is_backward_running():
            self._elsewhere[thread] = ROOT
        outer = super()._entered(name, is_call=is_call)
        if outer is not None:
            mark = self.over(self.here)
            mark.__enter__()
            self._open.marks.append(mark)
        return outer

    def stored(self) -> dict[int | None, int]:
        """Return the stored elements of sparse tensors, by what records call them.

        Those of a tensor that was written to meanwhile are not known.
        """
        return {
            name: stored
            for name, (tensor, stored) in self._sparse.items()
            if stored is not None and value_of(tensor).stored == stored
        }

    def _received(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for value in (*args, *kwargs.values()) if kwargs else args:
            if isinstance(value, torch.Tensor):
                self._keep_sparse(value)
            elif type(value) not in PLAIN:
                for tensor in tensors_in(value):
                    self._keep_sparse(tensor)

    def _keep_sparse(self, value: torch.Tensor) -> None:
        # A record has no number of stored elements, and the work follows from nothing else.
        if value.layout is torch.strided or is_lazy(value):
            return
        name, stored = identity_of(value), value_of(value).stored
        if name in self._sparse:
            stored = stored if stored == self._sparse[name][1] else None
        elif stored is None:  # a nested one, whose operators are on dense tensors
            return
        self._sparse[name] = value, stored

    def _left(self, outer: Scope) -> None:
        try:
            self._open.marks.pop().__exit__(None, None, None)
        finally:
            super()._left(outer)


class OpenMarks(threading.local):
    """Open marks of this thread, outermost first."""

    def __init__(self) -> None:
        self.marks: list[AbstractContextManager[Any]] = []


@contextmanager
def threads_noted(scopes: MarkedScopes) -> Iterator[None]:
    """Note modules that start threads or give tasks to a pool: their work there is not recorded."""

    def around(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def start(*args: Any, **kwargs: Any) -> Any:
            try:
                if scopes.is_here() and scopes.here is not ROOT:  # outside of modules it may be anybody's work
                    scopes.strays.add(scopes.here.module)
            except Exception as error:  # noqa: BLE001 - the thread is the model's, and is started
                scopes.failure = error
            return original(*args, **kwargs)

        return start

    with replaced(threading.Thread, "start", around), replaced(ThreadPoolExecutor, "submit", around):
        yield
