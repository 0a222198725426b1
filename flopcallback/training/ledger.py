"""Compute so far: what steps cost, from steps that were observed and all that were like them. Pure arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import astuple, dataclass
from typing import Any, NamedTuple

__all__ = ["MOST_KEYS", "USUAL_STEP", "ComputeLedger", "StepCost", "StepKey", "StepStart"]

MOST_KEYS = 32
"""Kinds of steps that are observed; the cost of others is estimated from theirs."""

MOST_TRIES = 2
"""Steps right behind one of an unseen kind that are observed, to see another of that kind."""

MOST_PREDICTIONS = 8
"""Steps that are observed because an unseen kind came at this distance before."""

MOST_UNSEEN = 256
"""Unseen kinds that are remembered, to be booked back once one is observed."""

USUAL_STEP = 3
"""A step over its forward, where no step was observed: a backward does two products for each of the forward's
(Kaplan et al., "Scaling Laws for Neural Language Models", 2020, section 2.1)."""

Shapes = tuple[tuple[int, ...], ...]


class StepStart(NamedTuple):
    """What is known of a step when it begins.

    Attributes:
        shapes: of the tensors that its first call is given.
        trainable: which parameters there are and require grad, in short.
    """

    shapes: Shapes
    trainable: str


class StepKey(NamedTuple):
    """What steps of one cost have in common; known when a step has ended.

    Attributes:
        calls: the shapes of the tensors that each call of the model in it was given.
        trainable: which parameters there are and require grad, in short.
        backwards: how many there were.
        optimizers: numbers of those that stepped, in order.
        nodes: how many autograd made, which tells a penalty on gradients or a skipped layer.
    """

    calls: tuple[Shapes, ...]
    trainable: str
    backwards: int
    optimizers: tuple[int, ...]
    nodes: int

    @property
    def start(self) -> StepStart:
        """What was known of it when it began."""
        return StepStart(self.calls[0] if self.calls else (), self.trainable)

    @property
    def elements(self) -> int:
        """Of all that was given to the model."""
        return sum(math.prod(shape) for shapes in self.calls for shape in shapes)


@dataclass(frozen=True, slots=True)
class StepCost:
    """Hardware FLOPs of a step; of these `forward` in its forward and `recompute` in recomputation."""

    hw_flops: int
    forward: int = 0
    recompute: int = 0


@dataclass(slots=True)
class _Unseen:
    """Steps of a kind of which none was observed: how many, the last one's number, how far it was from the one before.

    `tries` and `predictions` are steps that were observed for it, in vain.
    """

    count: int
    last: int
    gap: int = 0
    tries: int = 0
    predictions: int = 0

    def is_due(self, step: int) -> bool:
        """Whether that step may be another of this kind, and is observed for it."""
        if self.tries < MOST_TRIES:
            self.tries += 1
            return True
        if step - self.last == self.gap and self.predictions < MOST_PREDICTIONS:
            self.predictions += 1
            return True
        return False


class _Counted(NamedTuple):
    """Of a step in which calls were counted: FLOPs of their forwards, and nodes made outside of them."""

    forward: int
    outside: int


class ComputeLedger:
    """Hardware FLOPs of all steps so far: exact integers, where a step of the same kind was observed at any time.

    Until one was, and beyond `MOST_KEYS` kinds, the cost of a step is estimated: between those of observed kinds, by
    the elements of the inputs.
    """

    def __init__(self) -> None:
        self.steps = 0
        self._costs: dict[StepKey, StepCost] = {}
        self._unseen: dict[StepKey, _Unseen] = {}
        self._by_start: dict[StepStart, dict[StepKey, None]] = {}  # in order
        self._booked = self._guessed = 0  # for good: exactly, and estimated
        self._counted: dict[StepKey, _Counted] = {}
        self._outside: dict[StepKey, int] = {}  # of the observed kinds

    @property
    def hw_flops(self) -> int:
        """Of all steps so far."""
        return self._booked + self.estimated

    @property
    def estimated(self) -> int:
        """What of it is estimated."""
        waiting = (unseen.count * self._estimate(key).hw_flops for key, unseen in self._unseen.items())
        return self._guessed + sum(waiting)

    @property
    def largest(self) -> int:
        """Of the costs of a step that are known."""
        return max((cost.hw_flops for cost in self._costs.values()), default=0)

    def cost_of(self, key: StepKey) -> StepCost:
        """Of a step of this kind, observed or estimated."""
        return self._observed(key) or self._estimate(key)

    def count(self, key: StepKey, forward: int, outside: int) -> None:
        """Takes in the hardware FLOPs of the forward in the counted step: all that is known until one is observed.

        What counts may make nodes of its own. So that step is of the kind that is like it in all else, and in this.

        Args:
            key: the step's kind, as it was counted.
            forward: of the counted calls.
            outside: nodes that autograd made in the step, but not in those calls.
        """
        self._counted[key] = _Counted(forward, outside)

    def should_observe(self, start: StepStart) -> bool:
        """Whether the step that begins now is worth observing; asked once a step."""
        if len(self._costs) >= MOST_KEYS:
            return False
        keys = self._by_start.get(start)
        if keys is None:
            return True
        if not self._unseen:
            return False
        return any(self._unseen[key].is_due(self.steps + 1) for key in keys if key in self._unseen)

    def learn(self, key: StepKey, cost: StepCost, outside: int = 0) -> None:
        """Takes in what a step of this kind cost, and books those of the kind that were waiting for it.

        Args:
            key: the kind.
            cost: of a step.
            outside: nodes that autograd made in the step, but not in calls like those that are counted.
        """
        if key in self._costs or len(self._costs) >= MOST_KEYS:
            return
        self._costs[key] = cost
        self._outside[key] = outside
        self._of_start(key)[key] = None
        for waiting in [each for each in self._of_start(key) if each in self._unseen]:
            if self._observed(waiting) is not None:
                self._booked += self._unseen.pop(waiting).count * cost.hw_flops

    def add(self, key: StepKey, count: int = 1) -> None:
        """Books a step, or `count` of its kind."""
        self.steps += count
        cost = self._costs.get(key) or self._observed(key)
        if cost is not None:
            self._booked += count * cost.hw_flops
        elif len(self._costs) >= MOST_KEYS:
            self._guessed += count * self._estimate(key).hw_flops
        else:
            self._wait(key, count)

    def add_flops(self, hw_flops: int) -> None:
        """Books a step whose cost the user knows."""
        self.steps += 1
        self._booked += hw_flops

    def state(self) -> dict[str, Any]:
        """All of it as plain JSON, for `load` and `merged`."""
        basis = self._unseen if self._costs else self._counted  # what estimates rest on
        return {
            "steps": self.steps,
            "booked": self._booked,
            "guessed": self._guessed,
            "costs": [[_listed(key), list(astuple(cost)), self._outside[key]] for key, cost in self._costs.items()],
            "counted": [[_listed(key), *counted] for key, counted in self._counted.items() if key in basis],
            "unseen": [
                [_listed(key), unseen.count, self.steps - unseen.last, unseen.gap]
                for key, unseen in self._unseen.items()
            ],
        }

    def load(self, state: Mapping[str, Any], *, costs_only: bool = False) -> None:
        """Goes on from a state: its steps are added to those that are booked here.

        Args:
            state: as `state` gives it.
            costs_only: take over what steps cost, and none of the steps: another rank has them.
        """
        for key, cost, outside in state["costs"]:
            self.learn(_key(key), StepCost(*cost), outside)
        for key, forward, outside in state["counted"]:
            self.count(_key(key), forward, outside)
        if costs_only:
            return
        self._booked += state["booked"]
        self._guessed += state["guessed"]
        steps = self.steps + state["steps"]
        for each in self._unseen.values():  # they are as far away as they were
            each.last += state["steps"]
        for listed, count, distance, gap in state["unseen"]:
            key = _key(listed)
            self.add(key, count)
            if (unseen := self._unseen.get(key)) is not None:
                unseen.last, unseen.gap = steps - distance, gap
        self.steps = steps

    @classmethod
    def merged(cls, states: Iterable[Mapping[str, Any]]) -> ComputeLedger:
        """One ledger with the steps of several."""
        ledger = cls()
        for state in states:
            ledger.load(state)
        return ledger

    # --- Inside -----------------------------------------------------------------------------------------------------

    def _of_start(self, key: StepKey) -> dict[StepKey, None]:
        return self._by_start.setdefault(key.start, {})

    def _observed(self, key: StepKey) -> StepCost | None:
        cost = self._costs.get(key)
        if cost is not None or key not in self._counted:
            return cost
        alike = (known for known in self._of_start(key) if known[:-1] == key[:-1] and known in self._costs)
        same = (known for known in alike if (self._costs[known].forward, self._outside[known]) == self._counted[key])
        return next((self._costs[known] for known in same), None)

    def _wait(self, key: StepKey, count: int) -> None:
        unseen = self._unseen.get(key)
        if unseen is not None:
            unseen.count, unseen.gap, unseen.last = unseen.count + count, self.steps - unseen.last, self.steps
            return
        self._unseen[key] = _Unseen(count, self.steps)
        self._of_start(key)[key] = None
        if len(self._unseen) > MOST_UNSEEN:
            oldest = next(iter(self._unseen))
            self._guessed += self._unseen[oldest].count * self._estimate(oldest).hw_flops
            self._forget(oldest)

    def _forget(self, key: StepKey) -> None:
        del self._unseen[key]
        of_start = self._of_start(key)
        del of_start[key]
        if not of_start:
            del self._by_start[key.start]

    def _estimate(self, key: StepKey) -> StepCost:
        points = next(filter(None, self._points(key)), None)
        if points is not None:
            return _interpolated(points, key.elements)
        if not self._counted:
            return StepCost(0)
        counted = {each.elements: StepCost(USUAL_STEP * c.forward, c.forward) for each, c in self._counted.items()}
        return _interpolated(counted, key.elements)

    def _points(self, key: StepKey) -> Iterator[dict[int, StepCost]]:
        """Observed costs by elements: of kinds that differ in shapes alone; in what the graph was, too; of all."""
        alike: tuple[Callable[[StepKey], bool], ...] = (
            lambda known: known[1:] == key[1:],
            lambda known: (known.backwards, known.optimizers) == (key.backwards, key.optimizers),
            lambda _: True,
        )
        for is_alike in alike:
            yield {known.elements: cost for known, cost in self._costs.items() if is_alike(known)}


def _interpolated(points: Mapping[int, StepCost], elements: int) -> StepCost:
    """On the line between the nearest points below and above; beyond the last one, in proportion to it."""
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


def _listed(value: Any) -> Any:
    return [_listed(item) for item in value] if isinstance(value, tuple) else value


def _key(listed: Any) -> StepKey:
    def nested(value: Any) -> Any:
        return tuple(nested(item) for item in value) if isinstance(value, (list, tuple)) else value

    return StepKey(*nested(listed))
