"""Times of a recorded step, in parts that add up to it to the nanosecond."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from flopcallback.formulas.cost import HARDWARE_FAMILIES
from flopcallback.formulas.op_call import ROOT, OpCall
from flopcallback.formulas.registry import Counted, lookup
from flopcallback.profile.rows import StepFlops
from flopcallback.profile.times import IDLE, PYTHON
from flopcallback.tracing.marks import ON, OPTIMIZER_MARK
from flopcallback.tracing.phases import FORWARD, OPTIMIZER, OUTSIDE, WITHOUT_GRAD, Place, Placing
from flopcallback.tracing.record import Region
from flopcallback.tracing.record_kinds import Kind, is_operator
from flopcallback.tracing.records import Found, Reading
from flopcallback.tracing.torch_private import BACKWARD_NODE, COMPILED_GRAPH

__all__ = ["Amount", "Part", "RecordedTimes", "times_of"]

GENERATED = "generated code"
"""Name of the work of code that a compiler wrote, where it has no operator's or function's."""

COMPILED = "CompiledFunction"
"""Beginning of the names of the autograd functions that compiled code is."""

_OPTIMIZERS = ("Optimizer.step#", "Optimizer.zero_grad#")  # an optimizer's ranges, as `Optimizer.step#SGD.step`


class Part(NamedTuple):
    """Part of a step.

    Attributes:
        phase: one of `phases.PHASES`.
        module: canonical name of the innermost module at work; None outside of the model.
        operator: name of the outermost operator, of the node of autograd, `PYTHON` or `IDLE`.
    """

    phase: str
    module: str | None
    operator: str


@dataclass(slots=True)
class Amount:
    """What a part takes.

    Attributes:
        ns: nanoseconds of the observed thread.
        device_ns: nanoseconds of the device, on which other work may run at the same time.
        calls: number of calls.
        flops: FLOPs, 2 per multiply-add.
        nbytes: bytes that operators with a formula read and write; None where not all operators were read.
    """

    ns: int = 0
    device_ns: int = 0
    calls: int = 0
    flops: int = 0
    nbytes: int | None = None


@dataclass(slots=True)
class RecordedTimes:
    """Times of one recorded step.

    Attributes:
        ns: nanoseconds between the first and the last mark, without what was not the step's.
        parts: what each part takes; their `ns` add up to that of the step.
        parallel_ns: nanoseconds that other threads worked; no part of the step.
        device_ns: nanoseconds until the device had finished the step, None if nothing was done on one.
        busy_ns: nanoseconds of these in which the device had work.
        has_bytes: whether the bytes of its parts are known. Such a step is slowed down more than others.
    """

    ns: int
    parts: Mapping[Part, Amount]
    parallel_ns: int = 0
    device_ns: int | None = None
    busy_ns: int = 0
    has_bytes: bool = False

    @property
    def is_compiled(self) -> bool:
        """Whether code that a compiler wrote ran in it."""
        return any(part.operator == GENERATED or part.operator.startswith(COMPILED) for part in self.parts)

    @property
    def flops(self) -> StepFlops:
        """FLOPs by phase.

        Work without autograd is part of the forward here: its operators and its modules may disagree on which is which.
        """
        flops = Counter[str]()
        for part, amount in self.parts.items():
            flops[FORWARD if part.phase == WITHOUT_GRAD else part.phase] += amount.flops
        return StepFlops(**flops)

    @property
    def steps(self) -> frozenset[tuple[str, int]]:
        """How often each optimizer stepped."""
        return frozenset(
            (part.operator, amount.calls)
            for part, amount in self.parts.items()
            if part.phase == OPTIMIZER and part.operator.endswith(".step")
        )

    def shares(self) -> dict[Part, float]:
        """Return the parts' shares of the step, which add up to 1.

        On a device they are of the time until it had finished, its idle time included; work at the same time shares it.
        """
        if self.device_ns is None:
            return {part: amount.ns / self.ns for part, amount in self.parts.items() if self.ns}
        together = sum(amount.device_ns for amount in self.parts.values())
        scale = self.busy_ns / together / self.device_ns if together and self.device_ns else 0.0
        shares = {part: amount.device_ns * scale for part, amount in self.parts.items() if amount.device_ns}
        if self.device_ns:
            shares[Part(FORWARD, None, IDLE)] = (self.device_ns - self.busy_ns) / self.device_ns
        return shares


def times_of(reading: Reading, kernels: Iterable[Any] = ()) -> RecordedTimes:
    """Return the times of a step whose records were read.

    Args:
        reading: the records, after `read`.
        kernels: records of the device's work.
    """
    return _Timing(reading).times(list(kernels))


class _Timing:
    """One pass over the records of a step, from above: inside an operator nothing is told apart."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._parts: dict[Part, Amount] = defaultdict(Amount)
        self._began: dict[int, Amount] = {}  # parts by the id of the records that they begin with
        self._left_out = 0
        reading.placing = Placing(reading.scopes)  # to find the owners of nodes again, of all operators this time

    def times(self, kernels: list[Any]) -> RecordedTimes:
        reading = self._reading
        whole, inside, parallel = reading.end - reading.begin, 0, 0
        for event in reading.roots:
            is_ours = event.start_tid == reading.thread
            if (ns := self._ns(event)) <= 0:  # the marks themselves
                continue
            self._walk(event, Place(reading.phase, OUTSIDE, is_ours=is_ours), label="")
            inside += ns * is_ours
            parallel += ns * (not is_ours)
        self._parts[Part(reading.phase, None, PYTHON)].ns += whole - inside
        self._add_sizes()
        times = RecordedTimes(whole - self._left_out, self._parts, parallel, has_bytes=reading.reads_all)
        if kernels:
            self._add_device(times, kernels)
        times.parts = {part: amount for part, amount in self._parts.items() if amount.ns or amount.device_ns}
        return times

    def _ns(self, event: Any) -> int:
        """Return how long a record lies within the step: its last mark may be inside of an optimizer's."""
        begin, end = self._reading.begin, self._reading.end
        return int(min(event.end_time_ns, end) - max(event.start_time_ns, begin))

    def _walk(self, event: Any, place: Place, label: str) -> None:
        """Add the time of a record, and of those inside.

        Args:
            event: the record.
            place: where it lies.
            label: name of the node of autograd, optimizer or function that it belongs to; empty outside of these.
        """
        name, number, ns = event.name, event.extra_fields.sequence_number, self._ns(event)
        if ns <= 0:
            return
        kind = self._reading.kinds.of(name)
        if _is_operator(event, kind):
            if number >= 0 and place.is_ours:
                self._reading.placing.nodes.begin(event.start_tid, number, place.scope)
            if not label:
                self._begin(event, place, name)
            if not kind.region:
                self._part(place, label or name).ns += ns * place.is_ours
                return
            label, place = label or name, place._replace(is_in_function=True)
        else:
            inner = self._reading.inside(event, kind, place)
            if inner is None or inner.is_others:
                self._left_out += ns * place.is_ours
                return
            label, place = _label(event, kind, label), _place(event, kind, inner)
            if kind.is_node or name.startswith(_OPTIMIZERS):
                self._begin(event, place, label)
        for child in event.children:
            if child.start_tid == event.start_tid:  # else it is work beside this
                ns -= max(0, self._ns(child))
                self._walk(child, place, label)
        if place.is_ours:
            self._part(place, label or PYTHON).ns += ns

    def _begin(self, event: Any, place: Place, label: str) -> None:
        part = self._began[event.id] = self._part(place, label)
        part.calls += 1

    def _part(self, place: Place, operator: str) -> Amount:
        phase = WITHOUT_GRAD if place.phase == FORWARD and not place.has_grad else place.phase
        is_outside = place.scope is OUTSIDE or phase == OPTIMIZER
        return self._parts[Part(phase, None if is_outside else place.scope.module, operator)]

    # --- FLOPs and bytes ----------------------------------------------------------------------------------------------

    def _add_sizes(self) -> None:
        """Add FLOPs and bytes to the parts; the bytes of a part are known if those of all its operators are."""
        unknown: list[Amount] = []
        for found, call in zip(self._reading.found, self._reading.calls, strict=True):
            for event, own, row in self._counted(found, call):
                if (part := self._part_around(event)) is None:
                    continue
                try:
                    part.flops += 2 * row.formula(own).fma if row.family in HARDWARE_FAMILIES else 0
                    part.nbytes = (part.nbytes or 0) + own.nbytes if self._reading.reads_all else None
                except Exception:  # noqa: BLE001 - what it asks for is in no record: the count says so of itself
                    unknown.append(part)
        for part in unknown:
            part.nbytes = None

    def _counted(self, found: Found, call: OpCall | Region | None) -> Iterator[tuple[Any, OpCall, Counted]]:
        """Yield the record, the operator and the formula of what has one."""
        if call is None or found.event is None:
            return
        own = call.call if isinstance(call, Region) else call
        row = lookup(own.operator)
        if isinstance(row, Counted):
            yield found.event, own, row
        else:
            for inner in found.body or ():
                yield from self._counted(inner, self._reading.call_of(inner))

    def _part_around(self, event: Any) -> Amount | None:
        while event is not None:
            if (part := self._began.get(event.id)) is not None:
                return part
            event = event.parent
        return None

    # --- Devices ------------------------------------------------------------------------------------------------------

    def _add_device(self, times: RecordedTimes, kernels: list[Any]) -> None:
        """Add the device's work to the parts whose operators have launched it.

        A kernel names the record that it was launched in (`linked_correlation_id`).
        """
        reading = self._reading
        launched = {kernel.linked_correlation_id() for kernel in kernels}
        by_id = {event.correlation_id: event for event in _all(reading.roots) if event.correlation_id in launched}
        nobodys = self._parts[Part(reading.phase, None, PYTHON)]
        spans = []
        for kernel in kernels:
            event = by_id.get(kernel.linked_correlation_id())
            part = None if event is None else self._part_around(event)
            start, duration = kernel.start_ns(), kernel.duration_ns()
            if start < reading.begin:  # launched before the step
                continue
            (part or nobodys).device_ns += duration
            spans.append((start, start + duration))
        if spans:
            times.device_ns = max(reading.end, *(end for _, end in spans)) - reading.begin - self._left_out
            times.busy_ns = _union(spans)


def _is_operator(event: Any, kind: Kind) -> bool:
    if kind.mark is not None or kind.is_node or kind.is_optimizer:
        return False
    if event.parent is not None and event.parent.name == BACKWARD_NODE + event.name:  # the node's own record
        return False
    # By name alone, a user's range may look like one.
    return bool(kind.rank or kind.is_leaf or kind.region) or ("::" in event.name and is_operator(event.name))


def _label(event: Any, kind: Kind, label: str) -> str:
    """Return the name of what lies inside a record that is no operator."""
    name = event.name
    if kind.is_node:
        return str(name.rpartition("::")[2] if name.count("::") > 2 else name.removeprefix(BACKWARD_NODE))
    if kind.mark is not None:  # modules and the user's code are told apart again, but for an optimizer's own
        return label if kind.mark.kind == OPTIMIZER_MARK else ""
    if name.startswith(_OPTIMIZERS):
        return name.partition("#")[2] or str(name)
    return label or (GENERATED if name.startswith(COMPILED_GRAPH) else "")


def _place(event: Any, kind: Kind, inner: Place) -> Place:
    """Return the place of what lies inside a record, with the root's own work told from that of no module."""
    if kind.mark is not None and kind.mark.kind == ON and inner.scope is OUTSIDE:
        return inner._replace(scope=ROOT)
    return inner._replace(phase=OPTIMIZER) if event.name.startswith(_OPTIMIZERS) else inner


def _union(spans: list[tuple[int, int]]) -> int:
    """Return how long at least one of the spans lasts."""
    covered, reached = 0, -1
    for start, end in sorted(spans):
        covered += max(0, end - max(start, reached))
        reached = max(reached, end)
    return covered


def _all(events: Iterable[Any]) -> Iterator[Any]:
    for event in events:
        yield event
        yield from _all(event.children)
