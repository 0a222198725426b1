"""ObservationSchedule: which steps of a training are observed."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection
from itertools import islice
from typing import Literal

from flopcallback.training.kinds import Kind
from flopcallback.training.ledger import StartOfKinds

__all__ = ["ALWAYS", "AUTO", "NEVER", "ObservationSchedule", "Observe"]

Observe = Literal["auto", "always", "never"]
AUTO: Observe = "auto"
ALWAYS: Observe = "always"
NEVER: Observe = "never"

FREE_SIGHTS = 32
"""Steps that are observed for the sake of an unseen kind, whatever they cost."""

SIGHTS_SHARE = 0.05
"""Share of the time of all steps that further ones may take."""

MOST_TRIES = 2
"""Steps observed right after the first step of an unseen kind, in case the next one is of that kind, too."""

FREE_AUDITS = 32
"""Audits of a training that do not wait for their share of the time."""

AUDITS_SHARE = 0.01
"""Share of the time of all steps that further ones may take."""

RAREST = 500
"""Number of steps of a kind after which one is audited, whatever it costs."""

YOUNG = 8
"""Steps of a kind before which it is not audited while steps are timed: a short measuring window would be drawn out."""

NEAR = 16
"""Steps after which a kind that is overdue is not awaited any more."""

AHEAD = 64
"""Steps that are looked at in advance for the next audit: what changes meanwhile is seen after as many."""

MOST_ASKED = 8
"""Unseen kinds of one beginning that are awaited: the latest."""

MOST_LEVEL = 8
"""Further audits take place at one of 2**8 steps, or more often."""

COIN = 1
"""Level of the earliest audits: at one of two steps, so that they do not keep time with what alternates."""


class ObservationSchedule:
    """Choice of the steps that are observed.

    Those are the first steps of every kind, as far as their share of the time allows, and audits: about the 2nd, 4th,
    8th step and so on of a kind, in pairs while the training is young, then as often as their share allows, but at
    least each 500th. The number of a step alone, through a hash, decides whether it may be an audit: so audits are at
    the same steps on all ranks and after a resume, and never keep time with what is periodic.

    Attributes:
        plain_s: time of steps that nothing stood in, in seconds; the caller adds to it.
        plain: their number, likewise.

    Args:
        observe: "auto"; or "always" or "never".
    """

    def __init__(self, observe: Observe = AUTO) -> None:
        self._observe = observe
        self.plain_s = 0.0
        self.plain = 0
        self._observed_s = 0.0  # time of observed steps
        self._observed = 0  # their number
        self._sights = 0  # steps observed for the sake of unseen kinds
        self._audits = 0  # steps observed for the sake of known ones
        self.level = 7  # audits take place at one of 2**level steps; as long as observing doubles the time of a step

    @property
    def price(self) -> float | None:
        """What observing a step takes, in times of a plain step; None if not known yet."""
        if not (self.plain_s and self._observed):
            return None
        return max(0.0, self._observed_s / self._observed / (self.plain_s / self.plain) - 1)

    def note_observed(self, seconds: float) -> None:
        """Note the time of a step that was observed."""
        self._observed_s += seconds
        self._observed += 1

    def should_observe(
        self,
        start: StartOfKinds | None,
        step: int,
        steps: int,
        *,
        is_known: bool = True,
        is_timing: bool = False,
    ) -> bool:
        """Return whether to observe the step that begins.

        Args:
            start: kinds that begin so; None if no step did.
            step: number of the step among those of the training.
            steps: number of booked steps, for the distance of kinds.
            is_known: False if nothing is known that tells the step from others.
            is_timing: whether steps are being timed; then young kinds are not audited.
        """
        if self._observe != AUTO:
            return self._observe == ALWAYS
        if start is None or not is_known:
            return self._may_see()
        if (kind := _awaited(start, step, steps)) is not None:
            kind.tries += 1
            return self._may_see()
        due = _due(start, is_timing=is_timing)
        if self._is_audited(due, step, steps):
            self._audits += 1
            return True
        if due and not is_timing:
            start.quiet_until = self._quiet_until(due, step)
        return False

    def expects(self, start: StartOfKinds | None, step: int, steps: int, *, is_timing: bool = False) -> bool:
        """Return whether to observe the step that begins, should it begin like `start`; decide nothing.

        Arguments are as in `should_observe`.
        """
        if self._observe != AUTO or start is None:
            return self._observe == ALWAYS
        if _awaited(start, step, steps) is not None:
            return self._has_time_to_see
        return self._is_audited(_due(start, is_timing=is_timing), step, steps)

    def take_back(self, start: StartOfKinds | None) -> None:
        """Take back the last decision to observe, since the step could not be observed."""
        for kind in () if start is None else islice(reversed(start.unseen), MOST_ASKED):
            kind.tries = max(0, kind.tries - 1)

    def plan_audit(self, kind: Kind, start: StartOfKinds | None) -> None:
        """Decide when a kind is audited next, after a step of it was observed.

        Args:
            kind: the kind.
            start: kinds that begin like it; None if nothing is known of it.
        """
        if (price := self.price) is not None:
            self.level = min(MOST_LEVEL, max(0, math.ceil(math.log2(price / AUDITS_SHARE))) if price else 0)
        if self._audits < FREE_AUDITS and not kind.is_paired and start is not None:
            start.note_due(kind)  # the very next one, too
        varies = kind.audits is not None and self._audits < FREE_AUDITS  # the mean of more audits is a better one
        kind.due = kind.steps + (1 if varies else min(kind.steps, 2**self.level))

    @property
    def _has_time_to_see(self) -> bool:
        """True if there is time left for an unseen kind."""
        price = self.price
        spent = self._sights * (1.0 if price is None else price)
        return self._sights < FREE_SIGHTS or spent <= SIGHTS_SHARE * (self.plain + self._observed)

    def _may_see(self) -> bool:
        """Return whether there is time left for an unseen kind; take it."""
        has_time = self._has_time_to_see
        self._sights += has_time
        return has_time

    def _is_audited(self, due: Collection[Kind], step: int, steps: int) -> bool:
        """Return whether this step is an audit of kinds that are due."""
        if not due:
            return False
        is_free = self._audits < FREE_AUDITS
        return _level(step) >= self._needed or any(
            (is_free and not kind.is_paired) or _is_overdue(kind, steps) for kind in due
        )

    @property
    def _needed(self) -> int:
        """Level of a step that may be an audit."""
        return COIN if self._audits < FREE_AUDITS else max(COIN, self.level)

    def _quiet_until(self, due: Collection[Kind], step: int) -> int:
        """Return the next step that may be an audit, or one before it, after this one may not."""
        # A kind is overdue after so many further steps at the earliest, if all are of it.
        left = min(RAREST - 1 - (kind.steps - kind.seen) for kind in due)
        end = step + max(1, min(left, AHEAD))
        return next((later for later in range(step + 1, end) if _level(later) >= self._needed), end)


def _due(start: StartOfKinds, *, is_timing: bool) -> Collection[Kind]:
    return [kind for kind in start.due if kind.steps >= YOUNG] if is_timing else start.due


def _awaited(start: StartOfKinds, step: int, steps: int) -> Kind | None:
    """Return a kind without an observed step that this step may be of."""
    for kind in islice(reversed(start.unseen), MOST_ASKED):
        is_near = kind.tries < MOST_TRIES or steps + 1 - kind.last == kind.gap
        if is_near or _level(step) >= kind.tries:  # each further try is rarer
            return kind
    return None


def _is_overdue(kind: Kind, steps: int) -> bool:
    """Return whether a kind was not audited for long, and is still met."""
    return kind.steps - kind.seen >= RAREST - 1 and steps - kind.last <= NEAR


def _level(step: int) -> int:
    """Return a number that is at least n for one of 2**n steps, in no order."""
    number = int.from_bytes(hashlib.blake2b(step.to_bytes(8, "big"), digest_size=8).digest(), "big")
    return (number & -number).bit_length() - 1 if number else 64
