"""Work in threads that a counted call starts: each gets a recorder of its own, and stands where it was started."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from flopcallback.formulas.op_call import OpCall
from flopcallback.tracing.dispatch import DispatchRecorder
from flopcallback.tracing.record import Region
from flopcallback.tracing.regions import RunRegion, replaced
from flopcallback.tracing.scopes import ModuleScopes

__all__ = ["Threads"]


class Threads:
    """The threads that one run starts, and what it hands to the threads of a pool.

    A mode of PyTorch's, and the tracer's state, belong to one thread. A thread that outlives the run keeps a mode that
    does nothing, so this is for runs beside training.

    Attributes:
        calls: what ran in them, complete ones after each other.
        at_work: how many pieces of work have not come to an end.
        is_over: the run has ended; nothing is recorded any more.

    Args:
        scopes: tells which modules are running.
        before_write: told of every tensor that is about to be written to.
    """

    def __init__(self, scopes: ModuleScopes, before_write: Callable[[torch.Tensor], None] | None) -> None:
        self.calls: list[OpCall | Region] = []
        self.at_work = 0
        self._scopes = scopes
        self._before_write = before_write
        self._recorders: dict[int, DispatchRecorder | None] = {threading.get_ident(): None}
        self._submitting: set[int] = set()  # threads that are handing work to a pool, which starts its own for it
        self._lock = threading.Lock()
        self.is_over = False

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Records what is started within; what goes on after it is `at_work`, and no longer recorded."""
        with ExitStack() as undo:
            undo.enter_context(replaced(threading.Thread, "start", self._around_start))
            undo.enter_context(replaced(ThreadPoolExecutor, "submit", self._around_submit))
            try:
                yield
            finally:
                with self._lock:
                    self.is_over = True

    def region_of(self, recorder: DispatchRecorder) -> RunRegion:
        """Runs a named piece under the recorder of the thread that it is in, or else under `recorder`."""

        def region(kind: str, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return (self.recorder() or recorder).region(kind, call, args, kwargs)

        return region

    def recorder(self) -> DispatchRecorder | None:
        """That of this thread, if the run started it."""
        return self._recorders.get(threading.get_ident())

    def _around_start(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def start(thread: threading.Thread) -> Any:
            # A pool's thread waits for work of anybody's; what is submitted to it is recorded piece by piece.
            if threading.get_ident() in self._recorders.keys() - self._submitting:
                thread.run = self._recorded(thread.run)  # type: ignore[method-assign]
            return original(thread)

        return start

    def _around_submit(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def submit(pool: ThreadPoolExecutor, work: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
            here = threading.get_ident()
            if here not in self._recorders:
                return original(pool, work, *args, **kwargs)
            self._submitting.add(here)
            try:
                return original(pool, self._recorded(work), *args, **kwargs)
            finally:
                self._submitting.discard(here)

        return submit

    def _recorded(self, work: Callable[..., Any]) -> Callable[..., Any]:
        scope = self._scopes.here
        self._count(started=1)

        @functools.wraps(work)
        def recorded(*args: Any, **kwargs: Any) -> Any:
            thread, calls = threading.get_ident(), []
            try:
                if self.is_over or thread in self._recorders:  # a pool may run what it is given at once
                    return work(*args, **kwargs)
                recorder = self._recorders[thread] = _UntilItIsOver(self._scopes.scope_of, self._before_write, self)
                calls = recorder.calls
                try:
                    with self._scopes.elsewhere(scope), recorder:
                        return work(*args, **kwargs)
                finally:
                    del self._recorders[thread]
            finally:
                self._count(calls)

        return recorded

    def _count(self, calls: Iterable[OpCall | Region] = (), *, started: int = -1) -> None:
        with self._lock:
            if not self.is_over:
                self.at_work += started
                self.calls += calls


class _UntilItIsOver(DispatchRecorder):
    """A recorder in a thread that may go on after the run that it belongs to."""

    def __init__(self, scope: Any, before_write: Any, threads: Threads) -> None:
        super().__init__(scope, before_write)
        self._threads = threads

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._threads.is_over:
            return func(*args, **(kwargs or {}))
        return super().__torch_dispatch__(func, types, args, kwargs)
