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

__all__ = ["CallOwner", "are_several"]

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
        _owners.add(self)

    def close(self) -> None:
        """Forget it: it makes no more calls."""
        _owners.discard(self)

    @contextmanager
    def calling(self) -> Iterator[None]:
        """Note that a call of the model is its own, if there are others."""
        if not are_several():
            yield
            return
        first = nodes_so_far()
        try:
            with mark_here(Marks.name_of(0, CALL, self.number)):
                yield
        finally:
            _calls.add(first, nodes_so_far(), self.number)

    def is_others(self, node: int) -> bool:
        """Return whether a node of this thread was made in a call of somebody else's."""
        return _calls.maker_of(node) not in (0, self.number)


class _Calls(threading.local):
    """Calls of this thread, by the numbers of the nodes that they made."""

    def __init__(self) -> None:
        self.firsts: list[int] = []  # ascending
        self.calls: list[tuple[int, int]] = []  # the number behind the last node, and the owner

    def add(self, first: int, stop: int, owner: int) -> None:
        if first == stop:
            return
        if len(self.firsts) >= MOST_CALLS:
            del self.firsts[: MOST_CALLS // 2], self.calls[: MOST_CALLS // 2]
        self.firsts.append(first)
        self.calls.append((stop, owner))

    def maker_of(self, node: int) -> int:
        """Return the number of the owner that made a node; 0 if unknown."""
        position = bisect_right(self.firsts, node) - 1
        if position < 0 or node >= self.calls[position][0]:
            return 0
        return self.calls[position][1]


_owners: weakref.WeakSet[CallOwner] = weakref.WeakSet()
_calls = _Calls()


def are_several() -> bool:
    """Return whether more than one model is under training in this process."""
    return len(_owners) > 1
