"""Operators of a run, out of the profiler's records."""

from __future__ import annotations

import gc
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from flopcallback.formulas.cost import Family
from flopcallback.formulas.op_call import UNSEEN, OpCall
from flopcallback.tracing.marked_scopes import MarkedScopes
from flopcallback.tracing.marks import BACKWARD_MARK, BEGIN, CALL, CALLED, COMPILING, END, REGION, STOPPED, Marks
from flopcallback.tracing.owners import CallOwner, several
from flopcallback.tracing.phases import OPTIMIZER, Place, Placing, Span, recomputed, without_grad
from flopcallback.tracing.record import AUTOGRAD_FUNCTION, Region, leaves_memory_empty, leaves_some_empty
from flopcallback.tracing.record_kinds import Kind, Kinds, Rank
from flopcallback.tracing.recorded_values import (
    are_real,
    has_lists,
    inputs_of,
    lacks_tensor,
    outputs_of,
    own_inputs,
    refuses,
    without_shadows,
)
from flopcallback.tracing.torch_private import BACKWARD_NODE

__all__ = ["Found", "Placed", "Reading", "StepRecords", "without_garbage_collection"]


class Placed(NamedTuple):
    """An operator that ran, and the phase of the step that it ran in."""

    phase: str
    call: OpCall | Region


class StepRecords(NamedTuple):
    """What records say of a step.

    Attributes:
        placed: the operators between an observer's first and last mark, in order.
        works_early: whether one of them ran before the mark at the model's first call, if there is one.
    """

    placed: list[Placed]
    works_early: bool = False


@dataclass(slots=True)
class Found:
    """A record that counts.

    Attributes:
        event: the record; None for an operator that costs nothing, of which the name is enough.
        operator: name of the operator, or of the region.
        place: where it ran.
        body: what ran inside it, if that is known apart.
        number: under which the results of an autograd function are kept.
        may_have_raised: whether its kernel has left no record, as where an operator refuses its arguments.
    """

    event: Any
    operator: str
    place: Place
    body: list[Found] | None = None
    number: int | None = None
    may_have_raised: bool = False


# What checkpointing's hook leaves in an operator before it ends it.
_HOOK = frozenset({"aten::detach", "detach"})
# An operator that has derivatives in forward mode begins with its value without them.
FORWARD_AD = "aten::_fw_primal"
_TRANSPOSING = frozenset({"aten::t", "aten::transpose"})


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Keep the garbage collector from searching thousands of new objects in vain."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _own_record(node: Any) -> Any:
    """Return the record of a node of autograd itself, inside that of its evaluation.

    The profiler gives the evaluation its number only where nothing comes before, as work of a tensor's hook does.
    """
    name = node.name.removeprefix(BACKWARD_NODE)
    return next((child for child in node.children if child.name == name), node)


class Reading:
    """Pass over the records of a run, between an observer's first and last mark.

    Attributes:
        placing: the places of records; `times_of` goes over them anew.
        scopes: the scopes that marks refer to, by number.
        kinds: the kinds of records.
        found: the records that count, in order; empty before `read`. `calls` are the operators that they tell of.
        roots: the outermost records between the marks, of all threads.
        thread: the observed thread.
        begin: time of the first mark's end, in nanoseconds.
        end: time of the last mark's begin.

    Args:
        result: the records.
        marks: the observer's.
        seen: what the observer saw of modules.
        families: operators of other families are left out; None for all, with those that cost nothing in regions.
        owner: who calls the observed model, where calls of others and their backwards are to be left out.
    """

    def __init__(
        self,
        result: Any,
        marks: Marks,
        seen: MarkedScopes,
        families: Collection[Family] | None = None,
        owner: CallOwner | None = None,
    ) -> None:
        self._result = result
        self._observer = marks.number
        self.scopes = seen.numbered
        self.placing = Placing(self.scopes)
        self._seen = seen
        self._stored = seen.stored()
        self._families = families
        self.kinds = Kinds(families)
        self._owner = owner if several.are_there else None
        self._maker_threads: dict[int, int] | None = None  # by the record of a node; None while one thread makes all
        self._constants: dict[int, Sequence[Any]] = {}
        self.thread = self.begin = self.end = 0
        self.phase = ""
        self.roots: list[Any] = []
        self.found: list[Found] = []
        self.calls: list[OpCall | Region | None] = []

    @property
    def reads_all(self) -> bool:
        """Whether operators of all families are read."""
        return self._families is None

    def read(self) -> StepRecords:
        """Return the operators between the marks."""
        roots = self._result.experimental_event_tree()
        begin = next((event for event in _depth_first(roots) if self._is(event, BEGIN)), None)
        if begin is None:
            raise RuntimeError("the mark of the beginning is not among the profiler's records")
        end = next((event for event in _depth_first(reversed(roots)) if self._is(event, END)), None)
        phase = self.phase = begin.name.rpartition(":")[2]
        start, stop = begin.start_time_ns, roots[-1].end_time_ns if end is None else end.end_time_ns
        self.begin, self.end = begin.end_time_ns, stop if end is None else end.start_time_ns
        self.thread = begin.start_tid
        if any(event.start_tid != self.thread for event in roots):
            self._maker_threads = {event.correlation_id(): event.fwd_thread_id() for event in self._result.events()}
        self.roots = [event for event in roots if event.start_time_ns <= stop and event.end_time_ns >= start]
        for event in self.roots:
            self._walk([event], Place(phase, is_ours=event.start_tid == self.thread), self.found, is_top=True)
        self._fetch_constants(self.found)
        called = next((event for event in _depth_first(roots) if self._is(event, CALLED)), None)
        works_early = called is not None and any(
            record.event is not None and record.event.start_time_ns < called.start_time_ns for record in self.found
        )
        self.calls = [self.call_of(record) for record in self.found]
        self._result = None
        together = zip(self.found, self.calls, strict=True)
        placed = [Placed(record.place.phase, call) for record, call in together if call is not None]
        return StepRecords(placed, works_early)

    def _is(self, event: Any, kind: str) -> bool:
        mark = Marks.read(event.name)
        return mark is not None and mark.kind == kind and mark.observer == self._observer

    # --- The tree -----------------------------------------------------------------------------------------------------

    def _walk(self, events: Iterable[Any], place: Place, found: list[Found], *, is_top: bool) -> Rank:
        """Add to `found` what counts among records and inside them.

        Args:
            events: records of one level.
            place: where they lie.
            found: receives what counts.
            is_top: whether they lie outside of all operators; then they carry the numbers of autograd's nodes.

        Returns:
            The highest rank of what was found.
        """
        highest = Rank.NONE
        leaves, kind_of = self.kinds.leaves, self.kinds.of
        for event in events:
            if (name := event.name) in leaves:  # most are
                continue
            kind = kind_of(name)
            if kind.is_leaf:
                continue
            if kind.rank or kind.region:
                if place.is_ours and not place.is_others:
                    highest = max(highest, self._operator(event, name, kind, place, found, is_top=is_top))
                elif kind.region:  # an autograd function of another thread may call our modules
                    highest = max(highest, self._walk(event.children, place, found, is_top=is_top))
                continue
            if (inner := self.inside(event, kind, place)) is not None:
                highest = max(highest, self._walk(event.children, inner, found, is_top=is_top or inner is not place))
        return highest

    def inside(self, event: Any, kind: Kind, place: Place) -> Place | None:
        """Return the place of what lies inside a record that does not count itself.

        None if it is not part of the run.
        """
        if kind.mark is not None:
            if kind.mark.kind == CALL and self._owner is not None:
                is_others = kind.mark.detail != str(self._owner.number)
                return place if place.is_in_module else place._replace(is_others=is_others)
            if kind.mark.observer != self._observer:
                return None if kind.mark.kind == COMPILING else place
            if kind.mark.kind == COMPILING:
                return None
            inner = self.placing.below(kind.mark, place)
            if kind.mark.kind == BACKWARD_MARK:
                self.placing.backwards.append(Span(event.start_time_ns, event.end_time_ns, inner))
            return inner
        if kind.is_node:
            threads, number = self._maker_threads, event.extra_fields.sequence_number
            if number < 0:
                event = _own_record(event)
                number = event.extra_fields.sequence_number
            thread = self.thread if threads is None else threads.get(event.correlation_id, 0)
            if self._owner is not None and thread == self.thread and self._owner.is_others(number):
                return None
            start = 0 if place.is_ours else event.start_time_ns
            return self.placing.in_node(thread, number, start, place)
        if kind.is_optimizer and place.is_ours:
            # Of several models' optimizers those of this one have marks around.
            return Place(OPTIMIZER) if self._owner is None else place if place.phase == OPTIMIZER else None
        return place

    def _operator(self, event: Any, name: str, kind: Kind, place: Place, found: list[Found], *, is_top: bool) -> Rank:
        if is_top:
            number = event.extra_fields.sequence_number
            if number >= 0:
                self.placing.nodes.begin(event.start_tid, number, place.scope)
        number = event.extra_fields.sequence_number
        if place.backward is not None:
            place = recomputed(place, number)
        if is_top:
            if kind.region and not place.is_in_function:
                place = place._replace(is_in_function=True)
            place = without_grad(place, number)
        if not (kind.region or kind.is_composite or kind.rank is Rank.UNKNOWN):
            inputs = own_inputs(name, event.extra_fields.inputs)
            if are_real(inputs) and not lacks_tensor(name, inputs):
                return self._kernel(event, name, kind, place, found)
        inner: list[Found] = []
        children = event.children if kind.region else without_shadows(event.children)
        rank = self._walk(children, place, inner, is_top=is_top and bool(kind.region))
        if kind.region:
            return self._region(event, kind, place, inner, rank, found)
        is_transparent = kind.is_composite and kind.rank >= Rank.UNKNOWN and self._shows_work(event)
        if is_transparent or self._says_more(inner, rank, kind):
            found += inner
            return rank
        found.append(Found(event, name, place))
        return kind.rank

    def _kernel(self, event: Any, name: str, kind: Kind, place: Place, found: list[Found]) -> Rank:
        """Count an operator that worked on tensors with memory, by its own arguments.

        What it has called to do so is part of it, but for the derivatives of forward-mode AD.
        """
        names = {child.name for child in event.children}
        marks = {child for child in names if (mark := self.kinds.of(child).mark) and mark.kind == STOPPED}
        # Checkpointing has ended it. Where autograd saves the operator's arguments, no kernel has run so far; where it
        # saves results, one has, and has left records.
        if marks and names <= _HOOK | marks:
            return kind.rank
        found.append(Found(event, name, place, may_have_raised=not names))
        if FORWARD_AD in names:
            self._walk(event.children, place, found, is_top=False)
        return kind.rank

    def _region(self, event: Any, kind: Kind, place: Place, inner: list[Found], rank: Rank, found: list[Found]) -> Rank:
        names, number = [], None
        for child in event.children:
            if (mark := self.kinds.of(child.name).mark) is not None and mark.kind == REGION:
                number = int(mark.detail)
                names += [grandchild.name for grandchild in child.children]
            else:
                names.append(child.name)
        if kind.rank is Rank.UNKNOWN and self._are_free(event.children):
            found.append(Found(event, kind.region, place))  # it has left PyTorch, or only copies: nobody knows
            return kind.rank
        if kind.rank is Rank.UNKNOWN and leaves_some_empty(names):
            inner.append(Found(event, kind.region, place))  # it has left PyTorch for some of its work
        if kind.is_whole or self._families is None or leaves_memory_empty(names):
            free = [Found(None, name, place) for name in names if self.kinds.of(name).is_free]
            found.append(Found(event, kind.region, place, [*free, *inner], number))
            return max(rank, kind.rank)
        found += inner
        return rank

    def _are_free(self, events: Iterable[Any]) -> bool:
        """Return whether nothing in records costs anything, also inside of autograd functions."""
        kinds = ((event, self.kinds.of(event.name)) for event in events)
        return all(kind.is_free or (kind.is_open and self._are_free(event.children)) for event, kind in kinds)

    def _says_more(self, inner: Iterable[Found], rank: Rank, kind: Kind) -> bool:
        """Return whether what was found inside an operator counts instead of it."""
        if kind.rank is Rank.UNKNOWN:
            return rank > kind.rank
        if rank is kind.rank is Rank.OTHER:  # the mean inside a normalization is not one
            return any(self.kinds.of(record.operator).family is kind.family for record in inner)
        return rank >= kind.rank

    def _shows_work(self, event: Any) -> bool:
        """Return whether the operators that did an operator's work are inside it."""
        return any(not self.kinds.of(child.name).is_free for child in event.children)

    # --- Arguments ----------------------------------------------------------------------------------------------------

    def _fetch_constants(self, found: Iterable[Found]) -> None:
        """Read lists of numbers from the list of records, for operators that have any."""
        records = (record for record in _with_bodies(found) if record.event is not None)
        wanted = {record.event.correlation_id for record in records if has_lists(record.operator)}
        for event in self._result.events() if wanted else ():
            if (number := event.correlation_id()) in wanted:
                self._constants[number] = event.concrete_inputs()

    def _stored_in(self, event: Any, recorded: Iterable[Any]) -> Mapping[int | None, int]:
        """Return the stored elements of sparse operands.

        One that was transposed just before has as many as what it was transposed from: so the backward of a product
        with a sparse matrix begins.
        """
        stored = self._stored
        unseen = {argument.impl_ptr: argument.sizes for argument in recorded if _is_sparse(argument)}
        if not unseen or event.parent is None:
            return stored
        for sibling in event.parent.children:
            if sibling.id == event.id:
                break
            if sibling.name in _TRANSPOSING and _is_sparse(source := sibling.extra_fields.inputs[0]):
                transposed = source.sizes[::-1]
                same = {pointer for pointer, sizes in unseen.items() if sizes == transposed and pointer not in stored}
                if source.impl_ptr in stored:
                    stored = {**stored, **dict.fromkeys(same, stored[source.impl_ptr])}
        return stored

    def call_of(self, record: Found) -> OpCall | Region | None:
        """Return what a record says; None if the operator has raised an error."""
        event, operator = record.event, record.operator
        if event is None:
            return OpCall(operator, (), (), record.place.scope)
        constants = self._constants.get(event.correlation_id, ())
        recorded = event.extra_fields.inputs
        inputs = inputs_of(operator, recorded, constants, self._stored_in(event, recorded))
        if record.number is not None:
            outputs = self._seen.results.get(record.number, UNSEEN)
        else:
            outputs = UNSEEN if operator.startswith(AUTOGRAD_FUNCTION) else outputs_of(operator, inputs)
        if record.may_have_raised and refuses(operator, inputs):
            return None
        call = OpCall(operator, inputs, outputs, record.place.scope)
        if record.body is None:
            return call
        return Region(call, tuple(filter(None, map(self.call_of, record.body))))


def _is_sparse(argument: Any) -> bool:
    return getattr(argument, "layout", torch.strided) is not torch.strided


def _depth_first(events: Iterable[Any]) -> Iterator[Any]:
    for event in events:
        yield event
        if not event.name.startswith("aten::"):
            yield from _depth_first(event.children)


def _with_bodies(found: Iterable[Found]) -> Iterator[Found]:
    for record in found:
        yield record
        yield from _with_bodies(record.body or ())
