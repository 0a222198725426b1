"""Which of several models under training made a call, and the nodes of autograd behind it.

A process may train several models in turns: a GAN with a hook for each network, tasks of asyncio, a student and its
teacher. The profiler records all of them together, and a backward does not say whose it is.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager

from flopcallback.tracing.marks import CALL, Marks
from flopcallback.tracing.profiler_broker import mark_here
from flopcallback.tracing.torch_private import nodes_so_far

__all__ = ["CallOwner", "several"]

MOST_CALLS = 4096
"""Calls of a thread that are remembered; a backward through older ones is taken for the observed model's."""


class CallOwner:
    """Whoever calls a model under training.

    Attributes:
        number: tells it from others of the process.
    """

    _numbers = itertools.count(1)

    def __init__(self) -> None:
        self.number = next(self._numbers)
        self._calls = _Calls()
        for owner in _owners if len(_owners) == 1 else ():
            owner._calls.add(0, nodes_so_far())  # so far it was alone, and its calls were not noted
        _owners.add(self)
        weakref.finalize(self, _count).atexit = False
        _count()

    def close(self) -> None:
        """Forget it: it makes no more calls."""
        _owners.discard(self)
        _count()

    @contextmanager
    def calling(self) -> Iterator[None]:
        """Note that a call of the model is its own, if there are others."""
        if not several.are_there:
            yield
            return
        first = nodes_so_far()
        try:
            with mark_here(Marks.name_of(0, CALL, self.number)):
                yield
        finally:
            self._calls.add(first, nodes_so_far())

    def is_others(self, node: int) -> bool:
        """Return whether a node of this thread was made in a call of somebody else's, and not in one of its own."""
        return not self._calls.have(node) and any(owner._calls.have(node) for owner in list(_owners))


class _Calls(threading.local):
    """Calls of this thread, by the numbers of the nodes that they made.

    A node of autograd gets the next number of the thread that makes it.
    """

    def __init__(self) -> None:
        self._firsts: list[int] = []  # ascending
        self._stops: list[int] = []  # behind the last node of each call

    def add(self, first: int, stop: int) -> None:
        """Add a call; of nested calls of one owner, the inner one may be missing."""
        if first == stop:
            return
        if self._firsts and first < self._firsts[-1]:
            self._firsts.pop()
            self._stops.pop()
        if len(self._firsts) >= MOST_CALLS:
            del self._firsts[: MOST_CALLS // 2], self._stops[: MOST_CALLS // 2]
        self._firsts.append(first)
        self._stops.append(stop)

    def have(self, node: int) -> bool:
        """Return whether a node was made in one of the calls."""
        position = bisect_right(self._firsts, node) - 1
        return position >= 0 and node < self._stops[position]


class _Several:
    """Whether more than one model is under training in this process; read by every step.

    Attributes:
        are_there: True if so.
    """

    are_there = False


several = _Several()
_owners: weakref.WeakSet[CallOwner] = weakref.WeakSet()


def _count() -> None:
    several.are_there = len(_owners) > 1
