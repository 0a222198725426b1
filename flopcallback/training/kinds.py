"""Kinds of steps: what tells them apart, and what observed steps of each cost."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Hashable, Sequence
from dataclasses import astuple, dataclass, replace
from operator import add, sub
from typing import Any, NamedTuple

from flopcallback.modules.structures import CallKey

__all__ = [
    "BOUNDS",
    "EITHER",
    "LOWER",
    "MARKED",
    "UPPER",
    "Audits",
    "Kind",
    "ModelCall",
    "StepCost",
    "StepKey",
    "StepStart",
    "Sums",
    "elements_of",
    "pattern_and_sizes",
    "sums_of",
]

TRUSTED = 5
"""Observed steps that have to agree before the steps in between are beyond doubt."""

LOWER, UPPER, EITHER = BOUNDS = ">=", "<=", "<>"
"""Signs between the true cost of a step and its count: something is not counted, is counted too high, or both."""


MARKED = CallKey((), names=("a marked step",))
"""In place of the inputs of a step's first call, where the step begins before that: all such steps begin alike."""

ModelCall = tuple[str, bool, "CallKey | None"]
"""A call of the model, or of a part of it, that no other such call makes: name of the module, whether autograd is on,
and what tells its inputs apart. A plain tuple, as each step makes some."""


class StepStart(NamedTuple):
    """Part of a `StepKey` that is known when the step begins.

    Attributes:
        inputs: what tells apart the inputs of the first model call, or the batch; `MARKED` if the step began before
            that; None if nothing does.
        trainable: fingerprint of the parameters and of which ones require grad.
    """

    inputs: CallKey | None
    trainable: str


class StepKey(NamedTuple):
    """Kind of a step: steps with equal keys are taken to cost the same, until an audit says otherwise.

    It is known when a step has ended.

    Attributes:
        inputs: as in `StepStart`.
        trainable: fingerprint of the parameters and of which ones require grad.
        calls: calls of the model in the step, in order.
        backwards: number of backwards.
        optimizers: numbers of the optimizers that stepped, in order.
        nodes: number of autograd nodes made in the step, which differs with a gradient penalty or a skipped layer.
    """

    inputs: CallKey | None
    trainable: str
    calls: tuple[ModelCall, ...]
    backwards: int
    optimizers: tuple[int, ...]
    nodes: int

    @property
    def start(self) -> StepStart:
        """The part that was known when the step began."""
        return StepStart(self.inputs, self.trainable)

    def digest(self) -> str:
        """Return a short text that stands for the key in a checkpoint."""
        return hashlib.blake2b(json.dumps(self).encode(), digest_size=9).hexdigest()


class StepCost(NamedTuple):
    """Cost of a step, in FLOPs.

    Attributes:
        flops: the whole step.
        forward: its forward.
        recompute: its recomputation, as in gradient checkpointing.
        without_grad: its forward calls without autograd, as of a teacher.
        bound: `LOWER`, `UPPER` or `EITHER` if something in the step has no exact count; else empty.
    """

    flops: int
    forward: int = 0
    recompute: int = 0
    without_grad: int = 0
    bound: str = ""

    def scaled(self, part: int, whole: int) -> StepCost:
        """Return the cost times `part / whole`, rounded down."""
        if not whole:
            return self._replace(flops=part)
        flops, forward, recompute, without_grad = (value * part // whole for value in self[:4])
        return StepCost(flops, forward, recompute, without_grad, self.bound)


@dataclass(slots=True)
class Audits:
    """Observed steps of a kind that do not agree, and the steps in between.

    Steps between two audits are booked at the mean of both if costs only rise or only fall, as with a memory that
    fills; else all are booked at the mean of all audits.

    Attributes:
        number: number of audits.
        total: sum of their FLOPs.
        least: smallest of them.
        most: largest of them.
        last: the latest.
        rises: True if any was larger than the one before.
        falls: True if any was smaller than the one before.
        between: number of steps between audits.
        flops: their FLOPs, each stretch at the mean of its two ends.
        error: bound of the error of `flops`, as long as costs only rise or only fall.
    """

    number: int
    total: int
    least: int
    most: int
    last: int
    rises: bool = False
    falls: bool = False
    between: int = 0
    flops: int = 0
    error: int = 0

    @classmethod
    def of(cls, number: int, flops: int) -> Audits:
        """Return audits that agree so far."""
        return cls(number, number * flops, flops, flops, flops)

    def add(self, flops: int, steps: int) -> None:
        """Add an audit.

        Args:
            flops: FLOPs of the observed step.
            steps: number of steps since the last audit.
        """
        self.rises |= flops > self.last
        self.falls |= flops < self.last
        self.between += steps
        self.flops += steps * (self.last + flops) // 2
        self.error += steps * abs(flops - self.last) // 2
        self.number, self.total, self.last = self.number + 1, self.total + flops, flops
        self.least, self.most = min(self.least, flops), max(self.most, flops)

    @property
    def usual(self) -> int:
        """FLOPs of a step that is not audited."""
        return self.total // self.number if self.rises and self.falls else self.last

    def estimate(self, steps: int) -> tuple[int, int]:
        """Return the FLOPs of all steps that were not audited, and a bound of their error.

        Args:
            steps: number of steps since the last audit.
        """
        if self.rises and self.falls:
            count, mean = self.between + steps, self.usual
            return count * mean, count * max(mean - self.least, self.most - mean)
        return self.flops + steps * self.last, self.error + steps * (self.most - self.least) // 2


class Sums(NamedTuple):
    """Sums of FLOPs over steps.

    Attributes:
        exact: FLOPs whose number is known.
        estimated: FLOPs that are estimated.
        error: bound of the error of `estimated`, as far as there is one.
        unjudged: part of `estimated` whose error nothing bounds.
        without_grad: part of all that calls without autograd took.
        lower: part of all that is a lower bound: something in it is not counted.
        upper: part of all that is an upper bound.
    """

    exact: int = 0
    estimated: int = 0
    error: int = 0
    unjudged: int = 0
    without_grad: int = 0
    lower: int = 0
    upper: int = 0

    @property
    def flops(self) -> int:
        """All FLOPs."""
        return self.exact + self.estimated

    def plus(self, other: Sums) -> Sums:
        """Return the sums over both."""
        return Sums(*map(add, self, other))

    def minus(self, other: Sums) -> Sums:
        """Return the sums without those of `other`."""
        return Sums(*map(sub, self, other))


@dataclass(slots=True, eq=False)
class Kind:
    """Steps of a kind, and how they are booked.

    Attributes:
        digest: what stands for the kind in a checkpoint; empty until there is one.
        steps: number of steps, the observed ones included.
        observed: number of observed steps, which are booked at their own cost.
        cost: cost of the step that was observed last; None before any was.
        outside: autograd nodes made in that step outside the calls that would be counted.
        open: number of steps since then.
        doubted: number of steps before then, back to the first, while fewer than `TRUSTED` observed steps agree.
        seen: value of `steps` when one was observed last.
        due: value of `steps` from which the next audit is due.
        last: number of the latest step among those of the training.
        gap: number of steps of the training between the latest two.
        is_paired: True if the last two observed steps had none of the kind between them, which tells what alternates.
        tries: steps observed for this kind before any was seen, which turned out to be of another.
        confirmed: FLOPs of unobserved steps that are exact, in spite of `audits`.
        audits: observed costs that do not agree; None while all do.
        guess: FLOPs of a step before any was observed.
        guess_error: bound of the error of `guess`; None if nothing bounds it.
        plain: result of `plain_flops`, kept since every step reads it.
    """

    digest: str
    steps: int = 0
    observed: int = 0
    cost: StepCost | None = None
    outside: int = 0
    open: int = 0
    doubted: int = 0
    seen: int = 0
    due: int = 0
    last: int = 0
    gap: int = 0
    is_paired: bool = True
    tries: int = 0
    confirmed: int = 0
    audits: Audits | None = None
    guess: int = 0
    guess_error: int | None = None
    plain: int | None = None

    def meet(self, step: int) -> None:
        """Note that a step is of this kind."""
        self.gap, self.last = step - self.last if self.last else 0, step

    def know(self, cost: StepCost) -> None:
        """Take over a cost from a step that is booked elsewhere."""
        self.cost, self.due = cost, 1
        self.plain = self.plain_flops()

    def learn(self, cost: StepCost, outside: int, *, varies: bool = False) -> None:
        """Take in an observed step, which is already among `steps`.

        Args:
            cost: its cost.
            outside: autograd nodes made in it outside the calls that would be counted.
            varies: whether nothing is known that would make steps of this kind alike.
        """
        before, self.cost, self.outside = self.cost, cost, outside
        self.is_paired = before is not None and self.open == 0
        self.observed += 1
        if before is None:
            if varies:  # booked at the mean from the start
                self.audits = Audits.of(1, cost.flops)
                self.audits.rises = self.audits.falls = True
        elif self.audits is not None:
            self.audits.add(cost.flops, self.open)
            self.open = 0
        elif cost.flops == before.flops:
            self.doubted = self.doubted + self.open if self.observed < TRUSTED else 0
            self.open = 0
        else:
            in_doubt, self.doubted, self.open = self.open + self.doubted, 0, 0
            self.confirmed = (self.steps - self.observed - in_doubt) * before.flops
            self.audits = Audits.of(self.observed - 1, before.flops)
            self.audits.add(cost.flops, in_doubt)
        self.plain = self.plain_flops()
        self.seen = self.steps

    def absorb(self, other: Kind) -> bool:
        """Take in the steps of the same kind from another process; return False if they do not agree."""
        if other.cost is None:
            self._add_steps(other)
        elif self.cost is None:
            own, self.steps, self.open = self.steps, 0, 0
            for name in self.__slots__:
                if name not in ("digest", "last", "gap"):
                    setattr(self, name, getattr(other, name))
            self.steps, self.open = self.steps + own, self.open + own
        elif self.cost == other.cost and self.audits is None and other.audits is None:
            self._add_steps(other)
        else:
            return False
        return True

    def _add_steps(self, other: Kind) -> None:
        self.steps += other.steps
        self.observed += other.observed
        self.open += other.open
        self.doubted += other.doubted
        self.seen += other.seen
        self.due += other.seen

    def forget_steps(self) -> None:
        """Keep what a step costs, and no steps: another rank has booked them."""
        if self.audits is not None:
            self.audits = replace(self.audits, between=0, flops=0, error=0)
        self.steps = self.observed = self.open = self.doubted = self.seen = self.due = self.confirmed = 0

    def state(self, steps: int) -> list[Any]:
        """Return the kind as plain JSON.

        Args:
            steps: number of steps of the training.
        """
        audits = [] if self.audits is None else list(astuple(self.audits))
        cost = [] if self.cost is None else list(self.cost)
        numbers = [self.steps, self.observed, self.outside, self.open, self.doubted, self.seen, self.due, self.gap]
        guess = [self.guess, -1 if self.guess_error is None else self.guess_error]
        return [self.digest, steps - self.last, cost, numbers, self.confirmed, guess, audits]

    @classmethod
    def of(cls, row: Sequence[Any], steps: int) -> Kind:
        """Return the kind of a result of `state`."""
        digest, distance, cost, numbers, confirmed, (guess, guess_error), audits = row
        kind = cls(digest, last=steps - distance, confirmed=confirmed, guess=guess)
        kind.steps, kind.observed, kind.outside, kind.open, kind.doubted, kind.seen, kind.due, kind.gap = numbers
        kind.guess_error = None if guess_error < 0 else guess_error
        kind.cost = StepCost(*cost) if cost else None
        kind.audits = Audits(*audits) if audits else None
        kind.plain = kind.plain_flops()
        return kind

    def plain_flops(self) -> int | None:
        """Return the FLOPs of a step, if all that booking one takes is to add them; else None."""
        cost = self.cost
        is_plain = cost is not None and self.audits is None and not cost.without_grad and not cost.bound
        return cost.flops if is_plain and cost is not None else None

    def usual_cost(self) -> StepCost:
        """Return the cost of a step that was not observed, known or estimated."""
        if self.cost is None:
            return StepCost(self.guess)
        if self.audits is None:
            return self.cost
        return self.cost.scaled(self.audits.usual, self.cost.flops)

    def sums(self) -> Sums:
        """Return the sums over all steps but the observed ones."""
        count, cost = self.steps - self.observed, self.usual_cost()
        if self.cost is None:
            flops = count * self.guess
            if self.guess_error is None:
                return Sums(estimated=flops, unjudged=flops)
            return Sums(estimated=flops, error=count * self.guess_error)
        if self.audits is None:
            return sums_of(cost, count)
        estimated, error = self.audits.estimate(self.open)
        parts = sums_of(cost, count)._replace(exact=self.confirmed, estimated=estimated, error=error)
        bounds = {part: parts.flops for part in ("lower", "upper") if getattr(parts, part)}
        return parts._replace(**bounds)


def sums_of(cost: StepCost, count: int = 1) -> Sums:
    """Return the sums over steps that cost the same."""
    flops = count * cost.flops
    lower, upper = (flops if cost.bound in signs else 0 for signs in ((LOWER, EITHER), (UPPER, EITHER)))
    return Sums(flops, without_grad=count * cost.without_grad, lower=lower, upper=upper)


def pattern_and_sizes(key: StepKey) -> tuple[Hashable, tuple[int, ...]]:
    """Split a key into what it has besides sizes, and the sizes: those in shapes, and the number of nodes."""
    sizes: list[int] = [key.nodes]

    def without_sizes(value: Any) -> Any:
        if type(value) is int:
            sizes.append(value)
            return int  # not None: that is a number which was left out, and has no size
        return tuple(map(without_sizes, value)) if isinstance(value, tuple) else value

    pattern = without_sizes(key.inputs), without_sizes(key.calls), key.trainable, key.backwards, key.optimizers
    return pattern, tuple(sizes)


def elements_of(key: StepKey) -> int:
    """Return the number of elements of a step's inputs: of the batch, or of all calls if these have more."""
    calls = sum(_elements_in(inputs) for _, _, inputs in key.calls)
    return max(_elements_in(key.inputs), calls)


def _elements_in(inputs: CallKey | None) -> int:
    return 0 if inputs is None else sum(map(math.prod, inputs.shapes))
