"""ComputeLedger: compute of a training, from the costs of observed steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import astuple, dataclass
from typing import Any, NamedTuple

__all__ = ["MOST_KEYS", "USUAL_STEP", "ComputeLedger", "StepCost", "StepKey", "StepStart"]

MOST_KEYS = 32
"""Number of kinds of steps that are observed; the cost of further kinds is estimated from these."""

MOST_TRIES = 2
"""Steps observed right after the first step of an unseen kind, in case the next one is of that kind, too."""

MOST_PREDICTIONS = 8
"""Steps observed for an unseen kind because they are as far from its last step as that was from the one before."""

MOST_UNSEEN = 256
"""Unseen kinds whose steps can still be booked exactly, once one of them is observed."""

USUAL_STEP = 3
"""Cost of a step in forwards, where no step was observed: a backward does two products for each of the forward's
(Kaplan et al., "Scaling Laws for Neural Language Models", 2020, section 2.1)."""

Shapes = tuple[tuple[int, ...], ...]


class StepStart(NamedTuple):
    """Part of a `StepKey` that is known when the step begins.

    Attributes:
        shapes: shapes of the tensors in the inputs of the first model call.
        trainable: fingerprint of the parameters and of which ones require grad.
    """

    shapes: Shapes
    trainable: str


class StepKey(NamedTuple):
    """Kind of a step: steps with equal keys have equal costs.

    It is known when a step has ended.

    Attributes:
        calls: shapes of the input tensors of each model call.
        trainable: fingerprint of the parameters and of which ones require grad.
        backwards: number of backwards.
        optimizers: numbers of the optimizers that stepped, in order.
        nodes: number of autograd nodes made in the step, which differs with a gradient penalty or a skipped layer.
    """

    calls: tuple[Shapes, ...]
    trainable: str
    backwards: int
    optimizers: tuple[int, ...]
    nodes: int

    @property
    def start(self) -> StepStart:
        """The part that was known when the step began."""
        return StepStart(self.calls[0] if self.calls else (), self.trainable)

    @property
    def elements(self) -> int:
        """Number of elements of all input tensors."""
        return sum(math.prod(shape) for shapes in self.calls for shape in shapes)


@dataclass(frozen=True, slots=True)
class StepCost:
    """Cost of a step, in FLOPs.

    Attributes:
        flops: the whole step.
        forward: its forward.
        recompute: its recomputation, as in gradient checkpointing.
    """

    flops: int
    forward: int = 0
    recompute: int = 0


@dataclass(slots=True)
class _Unseen:
    """Steps of an unseen kind: one without an observed step.

    Attributes:
        count: number of these steps.
        last: number of the last one.
        gap: number of steps between the last two; 0 after the first one.
        tries: steps observed for this kind right after its first one, at most `MOST_TRIES`.
        predictions: steps observed because `gap` predicted them, at most `MOST_PREDICTIONS`.
    """

    count: int
    last: int
    gap: int = 0
    tries: int = 0
    predictions: int = 0

    def is_due(self, step: int) -> bool:
        """Return whether to observe a step for this kind; count the attempt.

        Args:
            step: number of the step.
        """
        if self.tries < MOST_TRIES:
            self.tries += 1
            return True
        if step - self.last == self.gap and self.predictions < MOST_PREDICTIONS:
            self.predictions += 1
            return True
        return False


class _Counted(NamedTuple):
    """Counted step: forward FLOPs, and autograd nodes created outside the counted calls."""

    forward: int
    outside: int


class ComputeLedger:
    """Books of the FLOPs of all steps, as exact integers.

    A step costs what an observed step of its kind (`StepKey`) cost; that step may come later. Until then, and beyond
    `MOST_KEYS` kinds, its cost is estimated: interpolated between observed kinds, by the number of input elements.

    Attributes:
        steps: number of steps booked.
    """

    def __init__(self) -> None:
        self.steps = 0
        self._costs: dict[StepKey, StepCost] = {}  # of observed kinds
        self._unseen: dict[StepKey, _Unseen] = {}
        # Observed and unseen kinds by their start; the inner dict is an ordered set.
        self._by_start: dict[StepStart, dict[StepKey, None]] = {}
        self._booked = 0  # FLOPs of steps with a known cost
        self._estimated = 0  # FLOPs of steps whose estimate is final; unseen kinds are estimated anew each time
        self._counted_steps: dict[StepKey, _Counted] = {}
        self._counted_costs: dict[StepKey, StepCost] = {}  # of counted steps that were observed, too
        self._outside_nodes: dict[StepKey, int] = {}  # of observed kinds: autograd nodes outside the counted calls

    @property
    def flops(self) -> int:
        """FLOPs of all steps so far."""
        return self._booked + self.estimated

    @property
    def estimated(self) -> int:
        """The estimated part of `flops`."""
        waiting = (unseen.count * self._estimate(key).flops for key, unseen in self._unseen.items())
        return self._estimated + sum(waiting)

    @property
    def largest(self) -> int:
        """Largest observed cost of a step in FLOPs, or 0."""
        return max((cost.flops for cost in self._costs.values()), default=0)

    def cost_of(self, key: StepKey) -> StepCost:
        """Return the cost of a step of this kind, observed or estimated."""
        return self._observed_cost(key) or self._estimate(key)

    def learn_forward(self, key: StepKey, forward: int, outside: int) -> None:
        """Learn the forward FLOPs of a counted step.

        Estimates rest on them until a step is observed. Counting may make autograd nodes of its own. So the step gets
        the cost of an observed kind with the same forward FLOPs and outside nodes, and with an equal key but for
        `nodes`.

        Args:
            key: kind of the step, as it was counted.
            forward: FLOPs of the counted calls.
            outside: autograd nodes made in the step outside the counted calls.
        """
        self._counted_steps[key] = _Counted(forward, outside)

    def should_observe(self, start: StepStart) -> bool:
        """Return whether to observe the step that begins.

        Call it once per step: it counts the attempts. A step is observed if no known kind starts like it, or if it may
        be of an unseen kind.
        """
        if len(self._costs) >= MOST_KEYS:
            return False
        keys = self._by_start.get(start)
        if keys is None:  # no step began like this one
            return True
        if not self._unseen:
            return False
        return any(self._unseen[key].is_due(self.steps + 1) for key in keys if key in self._unseen)

    def forget_attempt(self, start: StepStart) -> None:
        """Forget one attempt of `should_observe`, since the step could not be observed."""
        for key in self._by_start.get(start, ()):
            if (unseen := self._unseen.get(key)) is not None:
                if unseen.predictions:
                    unseen.predictions -= 1
                else:
                    unseen.tries = max(0, unseen.tries - 1)

    def learn(self, key: StepKey, cost: StepCost, outside: int = 0) -> None:
        """Learn the cost of a kind, and book its earlier steps exactly.

        Args:
            key: kind of the step.
            cost: cost of the step.
            outside: autograd nodes made in the step outside the calls that would be counted.
        """
        if key in self._costs or len(self._costs) >= MOST_KEYS:
            return
        self._costs[key] = cost
        self._outside_nodes[key] = outside
        self._of_start(key)[key] = None
        for unseen in [kind for kind in self._of_start(key) if kind in self._unseen]:
            if self._observed_cost(unseen) is not None:
                self._booked += self._unseen.pop(unseen).count * cost.flops

    def learn_counted(self, key: StepKey, cost: StepCost) -> None:
        """Learn the cost of a counted step, for itself alone.

        Later steps that begin alike are observed: they lack the nodes that counting has made.
        """
        self._counted_costs[key] = cost

    def add(self, key: StepKey, count: int = 1) -> None:
        """Book `count` steps of a kind."""
        self.steps += count
        cost = self._costs.get(key) or self._observed_cost(key)
        if cost is not None:
            self._booked += count * cost.flops
        elif len(self._costs) >= MOST_KEYS:  # no further kind is observed: the estimate is final
            self._estimated += count * self._estimate(key).flops
        else:
            self._book_later(key, count)

    def add_flops(self, flops: int) -> None:
        """Book a step at the FLOPs that the user gives."""
        self.steps += 1
        self._booked += flops

    def state(self) -> dict[str, Any]:
        """Return the books as plain JSON, for `load` and `merged`."""
        basis = self._unseen if self._costs else self._counted_steps  # counted steps that are still needed
        return {
            "steps": self.steps,
            "booked": self._booked,
            "guessed": self._estimated,
            "costs": [
                [_as_lists(key), list(astuple(cost)), self._outside_nodes[key]] for key, cost in self._costs.items()
            ],
            "counted": [[_as_lists(key), *counted] for key, counted in self._counted_steps.items() if key in basis],
            "unseen": [
                [_as_lists(key), unseen.count, self.steps - unseen.last, unseen.gap]
                for key, unseen in self._unseen.items()
            ],
        }

    def load(self, state: Mapping[str, Any], *, costs_only: bool = False) -> None:
        """Add the steps and costs of a saved ledger to this one.

        Args:
            state: result of `state`.
            costs_only: learn the costs and leave out the steps, which another rank adds.
        """
        for key, cost, outside in state["costs"]:
            self.learn(_key_of(key), StepCost(*cost), outside)
        for key, forward, outside in state["counted"]:
            self.learn_forward(_key_of(key), forward, outside)
        if costs_only:
            return
        self._booked += state["booked"]
        self._estimated += state["guessed"]
        steps = self.steps + state["steps"]
        for unseen in self._unseen.values():  # their distance to the present step stays
            unseen.last += state["steps"]
        for key_lists, count, distance, gap in state["unseen"]:
            key = _key_of(key_lists)
            self.add(key, count)  # exact if its cost is known here; otherwise it stays unseen
            if (loaded := self._unseen.get(key)) is not None:
                loaded.last, loaded.gap = steps - distance, gap
        self.steps = steps  # not what `add` made it: `state["steps"]` has the unseen ones, too

    @classmethod
    def merged(cls, states: Iterable[Mapping[str, Any]]) -> ComputeLedger:
        """Return a ledger with the steps and costs of several states."""
        ledger = cls()
        for state in states:
            ledger.load(state)
        return ledger

    # --- Internals ----------------------------------------------------------------------------------------------------

    def _of_start(self, key: StepKey) -> dict[StepKey, None]:
        return self._by_start.setdefault(key.start, {})

    def _observed_cost(self, key: StepKey) -> StepCost | None:
        """Return the cost of an observed step of this kind, or None."""
        cost = self._costs.get(key) or self._counted_costs.get(key)
        if cost is not None or key not in self._counted_steps:
            return cost
        # A counted step may have nodes of its own: all else has to match, and what was counted.
        alike = (kind for kind in self._of_start(key) if kind[:-1] == key[:-1] and kind in self._costs)
        counted = self._counted_steps[key]
        same = (kind for kind in alike if (self._costs[kind].forward, self._outside_nodes[kind]) == counted)
        return next((self._costs[kind] for kind in same), None)

    def _book_later(self, key: StepKey, count: int) -> None:
        """Keep steps of an unseen kind until one of them is observed."""
        unseen = self._unseen.get(key)
        if unseen is not None:
            unseen.count, unseen.gap, unseen.last = unseen.count + count, self.steps - unseen.last, self.steps
            return
        self._unseen[key] = _Unseen(count, self.steps)
        self._of_start(key)[key] = None
        if len(self._unseen) > MOST_UNSEEN:
            oldest = next(iter(self._unseen))  # its estimate becomes final
            self._estimated += self._unseen[oldest].count * self._estimate(oldest).flops
            self._forget(oldest)

    def _forget(self, key: StepKey) -> None:
        """Remove an unseen kind; its steps can no longer be booked exactly."""
        del self._unseen[key]
        of_start = self._of_start(key)
        del of_start[key]
        if not of_start:
            del self._by_start[key.start]

    def _estimate(self, key: StepKey) -> StepCost:
        """Estimate the cost of a step of an unseen kind.

        It rests on observed kinds that are as similar as possible; without any, on the counted forward.
        """
        points = next(filter(None, self._reference_costs(key)), None)
        if points is not None:
            return _interpolated(points, key.elements)
        if not self._counted_steps:
            return StepCost(0)
        forwards = {kind.elements: counted.forward for kind, counted in self._counted_steps.items()}
        costs = {elements: StepCost(USUAL_STEP * forward, forward) for elements, forward in forwards.items()}
        return _interpolated(costs, key.elements)

    def _reference_costs(self, key: StepKey) -> Iterator[dict[int, StepCost]]:
        """Yield observed costs by number of input elements, most similar kinds first."""
        similarities: tuple[Callable[[StepKey], bool], ...] = (
            lambda kind: kind[1:] == key[1:],  # only the shapes differ
            lambda kind: (kind.backwards, kind.optimizers) == (key.backwards, key.optimizers),
            lambda _: True,
        )
        for is_similar in similarities:
            yield {kind.elements: cost for kind, cost in self._costs.items() if is_similar(kind)}


def _interpolated(points: Mapping[int, StepCost], elements: int) -> StepCost:
    """Interpolate linearly between the nearest points; scale the outermost point beyond them.

    Args:
        points: costs by number of elements; at least one.
        elements: number of elements to estimate the cost for.
    """
    below = max((point for point in points if point <= elements), default=None)
    above = min((point for point in points if point >= elements), default=None)
    if below is None or above is None:
        nearest = above if below is None else below
        assert nearest is not None
        return StepCost(*(part * elements // nearest if nearest else part for part in astuple(points[nearest])))
    if below == above:
        return points[below]
    ends = zip(astuple(points[below]), astuple(points[above]), strict=True)
    return StepCost(*(low + (high - low) * (elements - below) // (above - below) for low, high in ends))


def _as_lists(value: Any) -> Any:
    """Turn nested tuples into the lists that JSON makes of them."""
    return [_as_lists(item) for item in value] if isinstance(value, tuple) else value


def _key_of(key_lists: Any) -> StepKey:
    """Return the key that `_as_lists` was applied to."""

    def nested(value: Any) -> Any:
        return tuple(nested(item) for item in value) if isinstance(value, (list, tuple)) else value

    return StepKey(*nested(key_lists))
