"""ComputeLedger: compute of a training, from the costs of observed steps."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from flopcallback.training.fit import CostFit
from flopcallback.training.kinds import (
    Kind,
    StepCost,
    StepKey,
    StepStart,
    Sums,
    elements_of,
    pattern_and_sizes,
    sums_of,
)

__all__ = ["UNKNOWN_KIND", "USUAL_STEP", "ComputeLedger", "StartOfKinds", "interpolated"]

MOST_KINDS = 4096
"""Observed kinds that are remembered. Those not met for the longest time are forgotten first; their sums stay."""

MOST_UNSEEN = 1024
"""Kinds without an observed step whose steps can still be booked exactly, once one is observed."""

MOST_FITS = 64
"""Fits of costs by sizes, one for all kinds that differ in sizes alone."""

MOST_POINTS = 64
"""Costs by number of input elements in a checkpoint, from which estimates go on."""

MOST_SAVED = 250
"""Observed kinds in a checkpoint, and as many others: it stays below 100 kB."""

USUAL_STEP = 3
"""Cost of a step in forwards, where no step was observed: a backward does two products for each of the forward's
(Kaplan et al., "Scaling Laws for Neural Language Models", 2020, section 2.1)."""

UNKNOWN_KIND = ""
"""Digest of all steps of which nothing is known."""


@dataclass(slots=True)
class StartOfKinds:
    """Kinds of steps that begin alike.

    Attributes:
        kinds: these kinds; an ordered set.
        unseen: those without an observed step.
        due: those whose audit is due.
        quiet_until: number of the step before which none of these will be audited, so that nobody has to ask.
    """

    kinds: dict[Kind, None] = field(default_factory=dict)
    unseen: dict[Kind, None] = field(default_factory=dict)
    due: dict[Kind, None] = field(default_factory=dict)
    quiet_until: int = 0

    def note_due(self, kind: Kind) -> None:
        """Note that the audit of a kind is due."""
        if kind not in self.due:
            self.due[kind] = None
            self.quiet_until = 0


class _Place(NamedTuple):
    """Place of a kind among those that this process has met; `fit` has the kinds that differ in sizes alone."""

    key: StepKey
    start: StartOfKinds
    fit: CostFit
    sizes: tuple[int, ...]


class _Counted(NamedTuple):
    """Step whose forward was counted, and which was not observed.

    Attributes:
        digest: that of its key, as it was counted.
        rest: what its kind has in common with that of an observed step of equal cost: all but autograd nodes and calls,
            since counting may make nodes of its own.
        forward: FLOPs of its forward.
        outside: autograd nodes made in the step outside the counted calls.
        elements: number of elements of its inputs.
    """

    digest: str
    rest: str
    forward: int
    outside: int
    elements: int


class ComputeLedger:
    """Books of the FLOPs of all steps.

    An observed step is booked at its own cost, as an exact integer. Another step costs what observed steps of its kind
    (`StepKey`) cost, also if these come later. Where observed steps of a kind do not agree, or where none was observed,
    the cost is estimated.

    Attributes:
        steps: number of steps booked.
        audited: number of observed steps among them.
        largest: largest observed cost of a step in FLOPs, or 0.
        starts: kinds by how their steps begin.
    """

    def __init__(self) -> None:
        self.steps = 0
        self.audited = 0
        self._sums = Sums()  # of all steps but those that `_plain` has, and those in `_counted`
        self._plain = 0  # FLOPs of steps that were booked by an addition alone
        self.largest = 0
        self._kinds: dict[StepKey, Kind] = {}
        self._places: dict[Kind, _Place] = {}  # of the kinds in `_kinds`
        self._waiting: dict[str, Kind] = {}  # kinds of a loaded state that this process has not met yet, by digest
        self.starts: dict[StepStart, StartOfKinds] = {}
        self._unseen: dict[Kind, None] = {}  # those in `_kinds` without an observed step; an ordered set
        self._are_guesses_old = False  # True once something was observed that may change the guesses of `_unseen`
        self._fits: dict[Hashable, CostFit] = {}  # by what kinds have in common besides sizes
        self._by_elements: dict[int, int] = {}  # FLOPs of observed steps by number of input elements
        self._unknown = Kind(UNKNOWN_KIND)
        self._counted: list[_Counted] = []
        self._both: tuple[StepKey, StepCost] | None = None  # of the step that was counted and observed at once

    # --- Reading ------------------------------------------------------------------------------------------------------

    @property
    def sums(self) -> Sums:
        """Sums over all steps so far."""
        self._renew_guesses()
        guessed = sum(map(self._guess_of, self._counted))
        return self._sums.plus(Sums(exact=self._plain, estimated=guessed, unjudged=guessed))

    @property
    def flops(self) -> int:
        """FLOPs of all steps so far."""
        return self.sums.flops

    @property
    def estimated(self) -> int:
        """The estimated part of `flops`."""
        return self.sums.estimated

    def cost_of(self, kind: Kind) -> StepCost:
        """Return the cost of a step of a kind, observed or estimated."""
        self._renew_guesses()
        return kind.usual_cost()

    # --- Booking ------------------------------------------------------------------------------------------------------

    def add(self, key: StepKey | None) -> Kind:
        """Book a step that was not observed; return its kind.

        Args:
            key: its kind; None if nothing is known that tells it from other steps.
        """
        kind = self._unknown if key is None else self._kinds.get(key) or self._meet(key)
        if kind.plain is not None:
            self.add_plain(kind, kind.plain)
            return kind
        self.steps += 1
        self._withdraw(kind)
        kind.steps += 1
        kind.open += 1
        kind.meet(self.steps)
        self._enter(kind)
        if kind.steps >= kind.due and key is not None and kind.cost is not None:
            self._places[kind].start.note_due(kind)
        return kind

    def add_plain(self, kind: Kind, flops: int) -> None:
        """Book the usual step, which takes no more than an addition.

        Args:
            kind: its kind, a result of `add`.
            flops: its `plain`, which is not None.
        """
        self.steps += 1
        kind.steps += 1
        kind.open += 1
        kind.last = self.steps
        self._plain += flops
        if kind.steps >= kind.due:
            self._places[kind].start.note_due(kind)

    def add_observed(self, key: StepKey | None, cost: StepCost, outside: int = 0) -> Kind:
        """Book an observed step at its cost, and learn from it; return its kind.

        Args:
            key: its kind, as in `add`.
            cost: its cost.
            outside: autograd nodes made in the step outside the calls that would be counted.
        """
        self._add_exactly(cost)
        kind = self._unknown if key is None else self._kinds.get(key) or self._meet(key)
        self._withdraw(kind)
        kind.steps += 1
        kind.meet(self.steps)
        kind.learn(cost, outside, varies=key is None)
        self._enter(kind)
        if key is not None:
            self._learn_by_sizes(kind)
            self._settle_counted(key, kind)
        return kind

    def add_both(self, key: StepKey | None, cost: StepCost) -> None:
        """Book a step at its cost, which was counted and observed at once.

        Counting may have made autograd nodes that later steps lack: only a step of an equal key costs the same.
        """
        self._add_exactly(cost)
        if key is not None:
            self._by_elements[elements_of(key)] = cost.flops  # should it be the only one
            if key.calls:  # else its calls are not known, and it may be of another kind
                self._both = key, cost

    def _add_exactly(self, cost: StepCost) -> None:
        self.steps += 1
        self.audited += 1
        self._sums = self._sums.plus(sums_of(cost))
        self.largest = max(self.largest, cost.flops)

    def add_counted(self, key: StepKey | None, forward: int, outside: int) -> None:
        """Book a step whose forward was counted, and which was not observed.

        It costs what an observed step of an equal forward costs, also if that comes later.

        Args:
            key: its kind, as it was counted.
            forward: FLOPs of the counted calls.
            outside: autograd nodes made in the step outside of these.
        """
        self.steps += 1
        if key is None:
            self._counted.append(_Counted("", "", forward, outside, 0))
            return
        counted = _Counted(key.digest(), _rest_of(key), forward, outside, elements_of(key))
        known = self._kinds.get(key) or self._waiting.get(counted.digest)
        cost = None if known is None else known.cost
        if cost is None:
            alike = (kind for other, kind in self._kinds.items() if _rest_of(other) == counted.rest)
            cost = next((kind.cost for kind in alike if _is_alike(counted, kind)), None)
        if cost is None:
            self._counted.append(counted)
        else:
            self._sums = self._sums.plus(sums_of(cost))

    def add_flops(self, flops: int) -> None:
        """Book a step at the FLOPs that the user gives."""
        self.steps += 1
        self._plain += flops

    # --- States -------------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Return the books as plain JSON, for `load` and `merged`.

        Only the kinds met last stay apart. The steps of others stay as they are booked.
        """
        for key, kind in self._kinds.items():
            kind.digest = kind.digest or key.digest()
        kinds = sorted((*self._waiting.values(), *self._kinds.values()), key=lambda kind: kind.last, reverse=True)
        seen = [kind for kind in kinds if kind.cost is not None][:MOST_SAVED]
        unseen = [kind for kind in kinds if kind.cost is None][:MOST_SAVED]
        unknown = [self._unknown] if self._unknown.steps else []
        self._renew_guesses()
        return {
            "steps": self.steps,
            "audited": self.audited,
            "largest": self.largest,
            "sums": list(self._sums.plus(Sums(exact=self._plain))),
            "kinds": [kind.state(self.steps) for kind in (*unknown, *seen, *unseen)],
            "counted": [list(counted) for counted in self._counted[-MOST_SAVED:]],
            "points": [list(point) for point in [*self._by_elements.items()][-MOST_POINTS:]],
        }

    def summary(self) -> list[int]:
        """Return the sums alone, for `merged`: what a rank tells of itself on the way."""
        return [self.steps, self.audited, self.largest, *self.sums]

    def load(self, state: Mapping[str, Any], *, costs_only: bool = False) -> None:
        """Add the steps and costs of a saved ledger to this one.

        Args:
            state: result of `state`.
            costs_only: learn the costs and leave out the steps, which another rank adds.
        """
        self.largest = max(self.largest, state["largest"])
        self._by_elements = {**dict(state["points"]), **self._by_elements}
        if not costs_only:
            for kind in self._kinds.values():  # their distance to the present step stays
                kind.last += state["steps"]
            self.steps += state["steps"]
            self.audited += state["audited"]
            self._sums = self._sums.plus(Sums(*state["sums"]))
            self._counted += (_Counted(*row) for row in state["counted"])
        for row in state["kinds"]:
            kind = Kind.of(row, self.steps)
            if costs_only:
                kind.forget_steps()
            if kind.steps or kind.cost is not None:
                self._take_in(kind)

    @classmethod
    def merged(cls, books: Iterable[Mapping[str, Any] | Sequence[int]]) -> ComputeLedger:
        """Return a ledger with the steps and costs of several.

        Args:
            books: result of `state` or `summary` of each.
        """
        ledger = cls()
        summaries = []
        for each in books:
            if isinstance(each, Mapping):
                ledger.load(each)
            else:
                summaries.append(each)
        if summaries:
            steps, audited, largest, *sums = zip(*summaries, strict=True)
            ledger.steps += sum(steps)
            ledger.audited += sum(audited)
            ledger.largest = max(ledger.largest, *largest)
            ledger._sums = ledger._sums.plus(Sums(*map(sum, sums)))
        return ledger

    # --- Internals ----------------------------------------------------------------------------------------------------

    def _withdraw(self, kind: Kind) -> None:
        self._sums = self._sums.minus(kind.sums())

    def _enter(self, kind: Kind) -> None:
        self._sums = self._sums.plus(kind.sums())

    def _meet(self, key: StepKey) -> Kind:
        """Return the kind of a key that this process has not met before."""
        kind = self._waiting.pop(key.digest(), None) if self._waiting else None
        kind = kind or Kind("")
        if kind.cost is None and self._both is not None and self._both[0] == key:
            kind.know(self._both[1])
        start = self.starts.setdefault(key.start, StartOfKinds())
        name, sizes = pattern_and_sizes(key)
        place = _Place(key, start, self._fits.setdefault(name, CostFit()), sizes)
        self._kinds[key], self._places[kind] = kind, place
        start.kinds[kind] = None
        if kind.cost is None:
            start.unseen[kind] = self._unseen[kind] = None
            self._guess(kind)
        self._make_room()
        return kind

    def _make_room(self) -> None:
        """Forget kinds beyond the largest numbers, and the oldest fits."""
        if len(self._unseen) > MOST_UNSEEN:
            self._forget(next(iter(self._unseen)))
        if len(self._kinds) - len(self._unseen) > MOST_KINDS:
            seen = [kind for kind in self._kinds.values() if kind.cost is not None]
            for kind in sorted(seen, key=lambda kind: kind.last)[: MOST_KINDS // 4]:
                self._forget(kind)
        if len(self._fits) > MOST_FITS:
            del self._fits[next(iter(self._fits))]

    def _forget(self, kind: Kind) -> None:
        """Forget a kind; its steps stay as they are booked."""
        key, start, _, _ = self._places.pop(kind)
        kind.plain = None  # whoever remembers it looks for the kind anew
        del self._kinds[key], start.kinds[kind]
        for kinds in (start.unseen, start.due, self._unseen):
            kinds.pop(kind, None)
        if not start.kinds:
            del self.starts[key.start]

    # --- Estimates ----------------------------------------------------------------------------------------------------

    def _learn_by_sizes(self, kind: Kind) -> None:
        """Take in an observed step for the estimates of other kinds."""
        key, start, fit, sizes = self._places[kind]
        for kinds in (start.unseen, start.due, self._unseen):
            kinds.pop(kind, None)
        flops = kind.usual_cost().flops
        fit.add(sizes, flops)
        self._by_elements[elements_of(key)] = flops
        if len(self._by_elements) > MOST_UNSEEN:
            del self._by_elements[next(iter(self._by_elements))]
        self._are_guesses_old = True

    def _renew_guesses(self) -> None:
        """Estimate kinds without an observed step by all that was observed so far."""
        if not self._are_guesses_old:
            return
        self._are_guesses_old = False
        for kind in self._unseen:
            self._guess(kind)

    def _guess(self, kind: Kind) -> None:
        """Estimate the cost of a kind without an observed step."""
        key, _, fit, sizes = self._places[kind]
        guess = fit.predict(sizes)
        self._withdraw(kind)
        if guess is None:
            kind.guess, kind.guess_error = self._interpolated(elements_of(key)), None
        else:
            kind.guess, kind.guess_error = guess, math.ceil(guess * fit.error)
        self._enter(kind)

    def _interpolated(self, elements: int) -> int:
        """Estimate a step by its number of input elements alone."""
        if self._by_elements:
            return interpolated(self._by_elements, elements)
        forwards = {counted.elements: USUAL_STEP * counted.forward for counted in self._counted}
        return interpolated(forwards, elements) if forwards else 0

    def _guess_of(self, counted: _Counted) -> int:
        """Estimate a counted step."""
        return self._interpolated(counted.elements)

    def _settle_counted(self, key: StepKey, kind: Kind) -> None:
        """Book counted steps at the cost of an observed one that is like them."""
        if not self._counted:
            return
        digest, rest, cost = key.digest(), _rest_of(key), kind.cost
        alike = [
            counted
            for counted in self._counted
            if counted.digest == digest or (counted.rest == rest and _is_alike(counted, kind))
        ]
        if cost is None:
            return
        for counted in alike:
            self._counted.remove(counted)
            self._sums = self._sums.plus(sums_of(cost))

    # --- States -------------------------------------------------------------------------------------------------------

    def _take_in(self, kind: Kind) -> None:
        """Add a loaded kind, whose steps are among the sums already."""
        if kind.digest == UNKNOWN_KIND:
            known: Kind | None = self._unknown
        else:
            known = self._waiting.get(kind.digest)
            known = known or next((own for key, own in self._kinds.items() if key.digest() == kind.digest), None)
        if known is None:
            self._waiting[kind.digest] = kind
            return
        self._withdraw(kind)
        self._withdraw(known)
        if not known.absorb(kind):
            self._enter(kind)  # its steps stay as they are booked
        self._enter(known)
        if known in self._places and known.cost is not None:
            self._learn_by_sizes(known)


def _rest_of(key: StepKey) -> str:
    return key._replace(calls=(), nodes=0).digest()


def _is_alike(counted: _Counted, kind: Kind) -> bool:
    """Return whether a counted step costs what an observed one of the same `rest` does."""
    cost = kind.cost
    # Of a `training_step` the count has the calls without autograd, too.
    forwards = () if cost is None else (cost.forward, cost.forward + cost.without_grad)
    return counted.forward in forwards and kind.outside == counted.outside


def interpolated(points: Mapping[int, int], elements: int) -> int:
    """Interpolate linearly between the nearest points; scale the outermost point beyond them.

    Args:
        points: FLOPs by number of elements; at least one.
        elements: number of elements to estimate the FLOPs for.
    """
    below = max((point for point in points if point <= elements), default=None)
    above = min((point for point in points if point >= elements), default=None)
    if below is None or above is None:
        nearest = above if below is None else below
        assert nearest is not None
        return points[nearest] * elements // nearest if nearest else points[nearest]
    if below == above:
        return points[below]
    return points[below] + (points[above] - points[below]) * (elements - below) // (above - below)
