"""Observation of the threads that a counted call starts.

Each gets a recorder of its own; its work is attributed to the modules that were running where it was started.
"""

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
from flopcallback.tracing.torch_private import mode_flags_kept

__all__ = ["Threads"]


class Threads:
    """Recorders of the threads and the pool tasks that one run starts.

    A dispatch mode and the tracer's state belong to one thread. A thread that outlives the run keeps an idle mode, so
    this is not for training.

    Attributes:
        calls: operators of the threads that have ended, thread by thread.
        at_work: number of threads and tasks that have not ended.
        is_over: True once the run has ended; from then on nothing is recorded.

    Args:
        scopes: tracker of the running modules.
        before_write: called with every tensor that is about to be written to.
    """

    def __init__(self, scopes: ModuleScopes, before_write: Callable[[torch.Tensor], None] | None) -> None:
        self.calls: list[OpCall | Region] = []
        self.at_work = 0
        self._scopes = scopes
        self._before_write = before_write
        # By thread. None for the thread of the run: the engine records it.
        self._recorders: dict[int, DispatchRecorder | None] = {threading.get_ident(): None}
        # Threads that are in `submit`. A thread that it starts is the pool's, and not recorded as a whole.
        self._submitting: set[int] = set()
        self._lock = threading.Lock()  # guards `calls`, `at_work` and `is_over`
        self.is_over = False

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Record threads and tasks started inside the context, until it ends."""
        with ExitStack() as undo:
            undo.enter_context(replaced(threading.Thread, "start", self._around_start))
            undo.enter_context(replaced(ThreadPoolExecutor, "submit", self._around_submit))
            try:
                yield
            finally:
                with self._lock:
                    self.is_over = True

    def region_of(self, recorder: DispatchRecorder) -> RunRegion:
        """Return a function that runs a region under its thread's recorder.

        Args:
            recorder: recorder of the run's own thread.
        """

        def region(kind: str, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return (self.recorder() or recorder).region(kind, call, args, kwargs)

        return region

    def recorder(self) -> DispatchRecorder | None:
        """Return this thread's recorder; None if the run did not start it."""
        return self._recorders.get(threading.get_ident())

    def _around_start(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def start(thread: threading.Thread) -> Any:
            # A pool's thread takes tasks from anyone; those that this run submits are recorded one by one.
            if threading.get_ident() in self._recorders.keys() - self._submitting:
                thread.run = self._recorded(thread.run)  # type: ignore[method-assign]
            return original(thread)

        return start

    def _around_submit(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def submit(pool: ThreadPoolExecutor, work: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
            thread = threading.get_ident()
            if thread not in self._recorders:
                return original(pool, work, *args, **kwargs)
            self._submitting.add(thread)
            try:
                return original(pool, self._recorded(work), *args, **kwargs)
            finally:
                self._submitting.discard(thread)

        return submit

    def _recorded(self, work: Callable[..., Any]) -> Callable[..., Any]:
        scope = self._scopes.here
        self._count(started=1)

        @functools.wraps(work)
        def recorded(*args: Any, **kwargs: Any) -> Any:
            thread, calls = threading.get_ident(), []
            try:
                if self.is_over or thread in self._recorders:  # an executor may run a task in the submitting thread
                    return work(*args, **kwargs)
                recorder = self._recorders[thread] = _ThreadRecorder(self._scopes.scope_of, self._before_write, self)
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
        """Count a thread or task that has started or ended.

        Args:
            calls: operators that it ran.
            started: 1 when it starts, -1 when it has ended.
        """
        with self._lock:
            if not self.is_over:
                self.at_work += started
                self.calls += calls


class _ThreadRecorder(DispatchRecorder):
    """Recorder of a thread, idle once the run is over."""

    def __init__(self, scope: Any, before_write: Any, threads: Threads) -> None:
        super().__init__(scope, before_write)
        self._threads = threads

    def __enter__(self) -> Any:
        with mode_flags_kept():
            return super().__enter__()

    def __exit__(self, *error: Any) -> Any:
        with mode_flags_kept():
            return super().__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._threads.is_over:
            return func(*args, **(kwargs or {}))
        return super().__torch_dispatch__(func, types, args, kwargs)
