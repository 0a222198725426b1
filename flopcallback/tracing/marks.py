"""Marks that an observer leaves among the profiler's records, to read them by."""

from __future__ import annotations

import itertools
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

from flopcallback.tracing.profiler_broker import Recording

__all__ = [
    "BACKWARD_MARK",
    "BEGIN",
    "CALL",
    "CALLED",
    "CLOSURE",
    "COMPILED",
    "COMPILING",
    "END",
    "NO_GRAD",
    "ON",
    "OPTIMIZER_MARK",
    "REGION",
    "SCOPE",
    "STOPPED",
    "Mark",
    "Marks",
]

# Kinds of marks. Those without a duration of their own are BEGIN, CALLED, END and STOPPED.
BEGIN, END = "begin", "end"  # of what an observer watches: several may share the records of one profiler
CALLED = "called"  # in a step that is watched from before that: the model is called for the first time
SCOPE = "scope"  # a module is at work; the detail is the number of its scope, and NO_GRAD if autograd is off
NO_GRAD = "-"
BACKWARD_MARK = "backward"  # the detail is its phase, and whether it makes a graph
OPTIMIZER_MARK, CLOSURE = "optimizer", "closure"  # an optimizer's step, and what it calls of the user's
ON = "on"  # a call of the model
STOPPED = "stopped"  # checkpointing has ended a recomputation in the middle of an operator
REGION = "region"  # an autograd function is at work; the detail is the number under which its results are kept
CALL = "call"  # of one of several models under training, by no observer; the detail is the number of its owner
COMPILED = "compiled"  # a call of compiled code; the detail is the number of a scope that is its own
COMPILING = "compiling"  # the compiler is at work, or a count beside the step: these operators are not the step's

_PREFIX = "flopcallback"


class Mark(NamedTuple):
    """What the name of a mark says.

    Attributes:
        observer: the number of the observer that left it.
        kind: one of the kinds above.
        detail: what the kind says it is.
    """

    observer: int
    kind: str
    detail: str


class Marks:
    """Marks of one observer.

    Attributes:
        number: tells its marks from those of other observers.
        recording: the recording that they are left in; None leaves none.
    """

    _numbers = itertools.count(1)

    def __init__(self) -> None:
        self.number = next(self._numbers)
        self.recording: Recording | None = None

    def over(self, kind: str, detail: object = "") -> AbstractContextManager[Any]:
        """Return a context; records inside it lie inside the mark.

        The recording ends before it has too many records, or if the user's profiler waits: it looks at each mark.
        """
        if self.recording is None or not self.recording.check():
            return nullcontext()
        return self.recording.mark(self.name_of(self.number, kind, detail))

    def at(self, kind: str, detail: object = "") -> None:
        """Leave a mark at this moment."""
        with self.over(kind, detail):
            pass

    @staticmethod
    def name_of(observer: int, kind: str, detail: object = "") -> str:
        """Return the name of a mark; the observer is 0 if there is none."""
        return f"{_PREFIX}:{observer}:{kind}:{detail}"

    @staticmethod
    def read(name: str) -> Mark | None:
        """Return what a record's name says if it is that of a mark, else None."""
        if not name.startswith(_PREFIX + ":"):
            return None
        _, observer, kind, detail = name.split(":", 3)
        return Mark(int(observer), kind, detail)
