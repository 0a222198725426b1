"""Marks over the work of modules, and of the threads that they start."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from flopcallback.formulas.op_call import ROOT, Scope
from flopcallback.modules.names import ModuleNames
from flopcallback.tracing.marks import SCOPE, Marks
from flopcallback.tracing.regions import replaced
from flopcallback.tracing.scopes import ModuleScopes

__all__ = ["MarkedScopes", "OpenMarks", "threads_marked"]


class MarkedScopes(ModuleScopes):
    """Tracker of the running modules that leaves a mark over each.

    Attributes:
        numbered: the scopes that marks refer to, by number.

    Args:
        names: the modules' names.
        marks: the observer's.
    """

    def __init__(self, names: ModuleNames, marks: Marks) -> None:
        super().__init__(names)
        self.numbered: list[Scope] = []
        self._numbers: dict[Scope, int] = {}
        self._marks = marks
        self._open = OpenMarks()

    def over(self, scope: Scope) -> AbstractContextManager[Any]:
        """Return a mark over work of these modules."""
        number = self._numbers.get(scope)
        if number is None:
            # Two threads may add the same scope at the same time: both numbers are right.
            number = self._numbers[scope] = len(self.numbered)
            self.numbered.append(scope)
        return self._marks.over(SCOPE, number)

    def follows_thread(self) -> bool:
        """Return whether this thread's work is that of the watched call."""
        thread = threading.get_ident()
        return thread == self._thread or thread in self._elsewhere

    def _entered(self, name: str, *, is_call: bool) -> Scope | None:
        thread = threading.get_ident()
        if thread != self._thread and thread not in self._elsewhere:
            self._elsewhere[thread] = ROOT  # its records are in the profiler, wherever it was started
        outer = super()._entered(name, is_call=is_call)
        if outer is not None:
            mark = self.over(self.here)
            mark.__enter__()
            self._open.marks.append(mark)
        return outer

    def _left(self, outer: Scope) -> None:
        self._open.marks.pop().__exit__(None, None, None)
        super()._left(outer)


class OpenMarks(threading.local):
    """Open marks of this thread, outermost first."""

    def __init__(self) -> None:
        self.marks: list[AbstractContextManager[Any]] = []


@contextmanager
def threads_marked(scopes: MarkedScopes) -> Iterator[None]:
    """Mark the work of threads and of pools' tasks that begin during the context.

    It is that of the modules which are running where they begin.
    """
    is_over = False  # once the context has ended: a thread may begin, or go on, later
    starting = threading.local()  # while a task is handed to a pool: a thread that this starts is the pool's

    def marked(work: Callable[..., Any]) -> Callable[..., Any]:
        scope = scopes.here

        @functools.wraps(work)
        def run(*args: Any, **kwargs: Any) -> Any:
            if is_over or scopes.follows_thread():  # an executor may run a task in the submitting thread
                return work(*args, **kwargs)
            with scopes.elsewhere(scope), scopes.over(scope):
                return work(*args, **kwargs)

        return run

    def around_start(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def start(thread: threading.Thread) -> Any:
            if scopes.follows_thread() and not getattr(starting, "is_pool", False):
                thread.run = marked(thread.run)  # type: ignore[method-assign]
            return original(thread)

        return start

    def around_submit(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def submit(pool: ThreadPoolExecutor, work: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
            if not scopes.follows_thread():
                return original(pool, work, *args, **kwargs)
            starting.is_pool = True
            try:
                return original(pool, marked(work), *args, **kwargs)
            finally:
                starting.is_pool = False

        return submit

    with (
        replaced(threading.Thread, "start", around_start),
        replaced(ThreadPoolExecutor, "submit", around_submit),
    ):
        try:
            yield
        finally:
            is_over = True
