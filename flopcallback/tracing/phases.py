"""Phase and module of what the profiler recorded."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from dataclasses import dataclass, field
from typing import NamedTuple

from flopcallback.formulas.op_call import ROOT, Scope
from flopcallback.tracing.marks import BACKWARD_MARK, CLOSURE, COMPILED, NO_GRAD, ON, OPTIMIZER_MARK, SCOPE, Mark

__all__ = [
    "BACKWARD",
    "FORWARD",
    "OPTIMIZER",
    "OUTSIDE",
    "PHASES",
    "RECOMPUTE",
    "WITHOUT_GRAD",
    "Backward",
    "Nodes",
    "Place",
    "Placing",
    "Span",
    "backward_detail",
    "recomputed",
]

PHASES = FORWARD, BACKWARD, RECOMPUTE, OPTIMIZER, WITHOUT_GRAD = (
    *("forward", "backward", "recompute", "optimizer"),
    "without_grad",
)

OUTSIDE = Scope("", ())
"""Scope of what runs outside of all modules, where that is told from the root's own work."""


class Backward(NamedTuple):
    """A backward under way.

    Attributes:
        makes_graph: whether it makes a graph of itself; else work with grad mode on is a recomputation.
        scope: the modules that were running when it began.
    """

    makes_graph: bool
    scope: Scope


class Place(NamedTuple):
    """Position in a step.

    Attributes:
        phase: one of `PHASES`.
        scope: the running modules.
        backward: the innermost backward under way, if any.
        is_others: True in a call of another model under training, outside of calls of the observed one.
        is_ours: False in other threads, outside of what a mark says is work of the observed call.
        has_grad: whether autograd was on when the innermost module was called.
        is_in_function: True in an autograd function, where autograd is off and its work is not without it.
    """

    phase: str = FORWARD
    scope: Scope = ROOT
    backward: Backward | None = None
    is_ours: bool = True
    is_others: bool = False
    has_grad: bool = True
    is_in_function: bool = False

    @property
    def is_in_module(self) -> bool:
        """Whether a module inside the root is at work, or one that the root's own work was told from."""
        return self.scope is not ROOT and self.scope is not OUTSIDE


class Span(NamedTuple):
    """A backward of the observed thread, and when it ran in nanoseconds."""

    start: int
    end: int
    place: Place


@dataclass(slots=True)
class Nodes:
    """Owners of autograd nodes, by the thread that made them.

    A node is numbered when it is made, and an operator carries the number that the next node will get. So a node
    belongs to the last operator that began with its number or a lower one.

    Attributes:
        numbers: by thread, the numbers with which another module's nodes begin, ascending.
        scopes: by thread, these modules.
    """

    numbers: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    scopes: dict[int, list[Scope]] = field(default_factory=lambda: defaultdict(list))

    def begin(self, thread: int, number: int, scope: Scope) -> None:
        """Note that nodes from this number on belong to a scope."""
        numbers, scopes = self.numbers[thread], self.scopes[thread]
        if scopes and scopes[-1] is scope:
            return
        if numbers and numbers[-1] == number:  # what came before made no node
            scopes[-1] = scope
            return
        numbers.append(number)
        scopes.append(scope)

    def owner(self, thread: int, number: int) -> Scope | None:
        """Return the scope in which a node was made, or None."""
        position = bisect_right(self.numbers[thread], number) - 1 if thread in self.numbers else -1
        return self.scopes[thread][position] if position >= 0 else None


def backward_detail(phase: str, *, makes_graph: bool) -> str:
    """Return what the mark of a backward says about it."""
    return f"{phase}{'+' * makes_graph}"


class Placing:
    """Places of records below the marks of one observer.

    Args:
        scopes: the scopes that marks refer to, by number.
    """

    def __init__(self, scopes: list[Scope]) -> None:
        self.nodes = Nodes()
        self.backwards: list[Span] = []
        self._scopes = scopes
        self._places: dict[tuple[int, int], tuple[Place, Place, Scope | None]] = {}

    def below(self, mark: Mark, place: Place) -> Place:
        """Return the place of what lies inside a mark."""
        if mark.kind == SCOPE:
            # A module that was called in a backward runs once more.
            phase = {BACKWARD: RECOMPUTE, OPTIMIZER: FORWARD}.get(place.phase, place.phase)
            has_grad = place.has_grad if place.is_in_function else not mark.detail.endswith(NO_GRAD)
            scope = self._scopes[int(mark.detail.removesuffix(NO_GRAD))]
            return Place(phase, scope, place.backward, has_grad=has_grad, is_in_function=place.is_in_function)
        if mark.kind == COMPILED:
            return place._replace(scope=self._scopes[int(mark.detail)])
        if mark.kind == BACKWARD_MARK:
            if place.backward is not None:  # reentrant checkpointing: the phase is the outer backward's
                phase = BACKWARD if place.phase == RECOMPUTE else place.phase
            else:
                phase = mark.detail.rstrip("+")
            return Place(phase, place.scope, Backward(mark.detail.endswith("+"), place.scope))
        if mark.kind == OPTIMIZER_MARK:
            return Place(OPTIMIZER, ROOT)
        if mark.kind in (CLOSURE, ON) and place.phase == OPTIMIZER:
            return Place(FORWARD, place.scope)
        return place

    def in_node(self, thread: int, number: int, start: int, place: Place) -> Place:
        """Return the place of what a node of autograd does.

        Args:
            thread: the thread that made the node.
            number: the node's number.
            start: when it began to work.
            place: where it works.
        """
        owner = self.nodes.owner(thread, number)
        # By identity, as there are thousands of nodes and few places; what is kept keeps its place and scope alive.
        key = id(place), id(owner)
        if (known := self._places.get(key)) is None:
            inner = self._in_node_of(owner, start, place)
            if not place.is_ours:
                return inner  # it depends on when the node works
            known = self._places[key] = inner, place, owner
        return known[0]

    def _in_node_of(self, owner: Scope | None, start: int, place: Place) -> Place:
        if not place.is_ours:
            if owner is None:  # made by nobody of ours
                return place
            span = self._backward_at(start)
            place = Place(BACKWARD, ROOT, Backward(False, ROOT)) if span is None else span.place
        elif place.backward is None:  # a backward that C++ began
            phase = place.phase if place.is_in_module else BACKWARD
            place = Place(phase, place.scope, Backward(False, place.scope))
        assert place.backward is not None
        phase = BACKWARD if place.phase == RECOMPUTE else place.phase
        return place._replace(phase=phase, scope=owner or place.backward.scope)

    def _backward_at(self, time: int) -> Span | None:
        for span in reversed(self.backwards):
            if span.start <= time <= span.end:
                return span
        return None


def without_grad(place: Place, number: int) -> Place:
    """Return the place of an operator in a forward, by whether autograd was on.

    Args:
        place: where it ran.
        number: its sequence number, without which autograd was off; an autograd function turns it off for itself.
    """
    is_forward = place.phase == FORWARD and place.backward is None
    if not is_forward or (place.has_grad if place.is_in_function else number >= 0):
        return place
    return place._replace(phase=WITHOUT_GRAD)


def recomputed(place: Place, number: int) -> Place:
    """Return the place of an operator in a backward.

    Args:
        place: where autograd runs it.
        number: its sequence number; it has one only while grad mode is on.
    """
    backward = place.backward
    if place.phase == BACKWARD and backward is not None and number >= 0 and not backward.makes_graph:
        return place._replace(phase=RECOMPUTE)
    return place
