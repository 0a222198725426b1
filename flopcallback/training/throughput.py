"""Throughput: time and work of training steps, without anything in between."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from flopcallback.profile import metrics
from flopcallback.profile.metrics import by_name
from flopcallback.profile.numbers import sum_of
from flopcallback.training.kinds import Kind, StepCost, Sums

__all__ = ["Alike", "Interval", "Throughput", "Totals", "Work", "rates", "totals", "work_of"]


@dataclass(slots=True)
class Interval:
    """Time and work of the timed steps since the last reading.

    Attributes:
        seconds: total time, including the time between steps.
        waited_s: part of it between the end of a step and the beginning of the next.
        timed: number of timed steps.
        ended: number of all steps, including those left out.
        stepped: number of all steps that an optimizer's step ended.
        kinds: number of timed steps by kind.
        flops: FLOPs of timed steps, as far as the user gives them.
        samples: samples in timed steps; None if unknown for any of them.
        tokens: tokens in timed steps; None likewise.
    """

    seconds: float = 0.0
    waited_s: float = 0.0
    timed: int = 0
    ended: int = 0
    stepped: int = 0
    kinds: Counter[Kind] = field(default_factory=Counter)
    flops: int = 0
    samples: int | None = 0
    tokens: int | None = 0

    def add(self, kind: Kind | int, samples: int | None, tokens: int | None, steps: int = 1) -> None:
        """Add timed steps, each of these samples and tokens; an int is the FLOPs of each as the user gives them."""
        if isinstance(kind, int):
            self.flops += steps * kind
        else:
            self.kinds[kind] += steps
        self.timed += steps
        self.ended += steps
        self.samples = None if samples is None or self.samples is None else self.samples + steps * samples
        self.tokens = None if tokens is None or self.tokens is None else self.tokens + steps * tokens

    @property
    def optimizer_steps(self) -> float:
        """Optimizer steps in the timed interval.

        Fractional if part of an accumulation cycle was excluded.
        """
        return self.timed * self.stepped / self.ended if self.ended else 0.0


@dataclass(slots=True, eq=False)
class Alike:
    """Steps that are alike, so that one more is a number more.

    Attributes:
        kind: their kind.
        samples: number of samples in each; None if unknown.
        tokens: number of tokens in each; None if unknown.
        timed: number of timed steps since the last reading.
    """

    kind: Kind
    samples: int | None
    tokens: int | None
    timed: int = 0


class Throughput:
    """Sums of time and work over stretches of training.

    A stretch begins with a step and lasts until `stop`. Time between two stretches does not count.

    Args:
        clock: returns seconds.
        synchronize: waits for the device. It is called only when a stretch ends.
    """

    __slots__ = ("_clock", "_interval", "_met", "_step_began", "_step_ended", "_stretch_began", "_synchronize")

    def __init__(
        self, clock: Callable[[], float] = time.perf_counter, synchronize: Callable[[], None] = lambda: None
    ) -> None:
        self._clock = clock
        self._synchronize = synchronize
        self._stretch_began: float | None = None  # begin of the current stretch; None between two stretches
        self._step_ended: float | None = None  # end of the last step in it; None before its first step has ended
        self._step_began = 0.0  # begin of the last step
        self._interval = Interval()
        self._met: list[Alike] = []  # those with timed steps since the last reading

    def begin_step(self) -> None:
        """Begin a timed step, and a stretch if there is none."""
        now = self._step_began = self._clock()
        if self._stretch_began is None:
            self._stretch_began = now
        elif self._step_ended is not None:
            self._interval.waited_s += now - self._step_ended

    def end_step(self, kind: Kind | int, *, samples: int | None, tokens: int | None, has_stepped: bool) -> float:
        """End a timed step, and return its time in seconds.

        Args:
            kind: kind of the step, or its FLOPs if the user gives them.
            samples: number of samples; None if unknown.
            tokens: number of tokens; None if unknown.
            has_stepped: whether an optimizer stepped.
        """
        now = self._step_ended = self._clock()
        self._interval.add(kind, samples, tokens)
        self._interval.stepped += has_stepped
        return now - self._step_began

    def end_alike(self, alike: Alike) -> float:
        """End a timed step that an optimizer's step ended, and return its time in seconds.

        Args:
            alike: steps that it is like.
        """
        now = self._step_ended = self._clock()
        if not alike.timed:
            self._met.append(alike)
        alike.timed += 1
        return now - self._step_began

    def end_left_out(self, *, has_stepped: bool) -> float:
        """End a step that is left out, and return its time in seconds.

        Args:
            has_stepped: whether an optimizer stepped.
        """
        self._interval.ended += 1
        self._interval.stepped += has_stepped
        return self._clock() - self._step_began

    def stop(self) -> None:
        """End the current stretch, if any, and wait for the device."""
        if self._stretch_began is not None:
            self._synchronize()
            self._interval.seconds += self._clock() - self._stretch_began
            self._stretch_began = self._step_ended = None

    @contextmanager
    def interrupted(self) -> Iterator[None]:
        """Leave the time inside out; a current stretch goes on afterwards."""
        is_under_way = self._stretch_began is not None
        self.stop()
        try:
            yield
        finally:
            if is_under_way:
                self._stretch_began = self._step_ended = self._clock()

    def read(self) -> Interval:
        """End the current stretch; return time and work since the last reading."""
        self.stop()
        interval, self._interval = self._interval, Interval()
        for alike in self._met:
            interval.add(alike.kind, alike.samples, alike.tokens, alike.timed)
            interval.stepped += alike.timed
            alike.timed = 0
        self._met.clear()
        return interval


@dataclass(frozen=True, slots=True)
class Totals:
    """Totals since training began, of all ranks.

    Attributes:
        sums: FLOPs.
        steps: number of steps.
        audited: number of observed steps among them.
        samples: number of samples; None if unknown for any rank.
        tokens: number of tokens; None likewise.
    """

    sums: Sums
    steps: int
    audited: int
    samples: int | None
    tokens: int | None


@dataclass(frozen=True, slots=True)
class Work:
    """Work of one rank in an interval.

    Attributes:
        seconds: total time.
        waited_s: part of it between two steps.
        steps: optimizer steps; fractional as in `Interval.optimizer_steps`.
        flops: FLOPs.
        recompute: part of `flops` in recomputation.
        samples: number of samples; None if unknown.
        tokens: number of tokens; None if unknown.
        bytes: bytes that operators read and wrote; None if unknown.
    """

    seconds: float
    waited_s: float
    steps: float
    flops: int
    recompute: int
    samples: int | None
    tokens: int | None
    bytes: int | None = None


def work_of(interval: Interval, cost_of: Callable[[Kind], StepCost], recorded: tuple[int, int] | None = None) -> Work:
    """Return the work of an interval, at present costs of steps.

    Args:
        interval: the interval.
        cost_of: returns the cost of a step of some kind.
        recorded: FLOPs and bytes of a step whose operators were recorded; None if there is none. They tell the bytes of
            an interval in which every step has these FLOPs.
    """
    costs = [(count, cost_of(kind)) for kind, count in interval.kinds.items()]
    is_alike = recorded is not None and not interval.flops and {cost.flops for _, cost in costs} == {recorded[0]}
    return Work(
        interval.seconds,
        interval.waited_s,
        interval.optimizer_steps,
        interval.flops + sum(count * cost.flops for count, cost in costs),
        sum(count * cost.recompute for count, cost in costs),
        interval.samples,
        interval.tokens,
        interval.timed * recorded[1] if recorded is not None and is_alike else None,
    )


def totals(spent: Totals) -> dict[str, int | float]:
    """Return `compute/*`.

    Left out are samples and tokens that are unknown, and shares that are 0, but for that of estimates.
    """
    sums = spent.sums

    def share(part: int) -> float:
        return 100 * part / sums.flops if sums.flops else 0.0

    return by_name(
        {
            metrics.COMPUTE: sums.flops,
            metrics.SAMPLES: spent.samples,
            metrics.TOKENS: spent.tokens,
            # Where no step's cost is known, 0 FLOPs are no statement.
            metrics.ESTIMATED: share(sums.estimated) if sums.flops or spent.audited or not spent.steps else 100.0,
            metrics.ERROR: share(sums.error + sums.unjudged) or None,
            metrics.WITHOUT_GRAD: share(sums.without_grad) or None,
            metrics.LOWER_BOUND: share(sums.lower) or None,
            metrics.UPPER_BOUND: share(sums.upper) or None,
            metrics.STEPS: spent.steps,
            metrics.AUDITED: spent.audited,
        }
    )


def rates(
    ranks: Sequence[Work], peak: float | None, *, bandwidth: float | None = None, measures_waiting: bool = False
) -> dict[str, float]:
    """Return `perf/*` of an interval.

    It is empty if no time passed or no optimizer stepped.

    Samples and tokens are sums over ranks, times are those of rank 0, and FLOPs are of one device: the mean over ranks.

    Args:
        ranks: work of each rank, rank 0 first.
        peak: peak of one device in FLOP/s; None if unknown.
        bandwidth: bytes/s of one device's memory; None if unknown.
        measures_waiting: whether the time between two steps is a wait for data.
    """
    first = ranks[0]
    if not (first.steps and all(rank.seconds > 0 for rank in ranks)):
        return {}
    # FLOP/s of one device. MFU leaves recomputation out, HFU has it.
    speed = sum(rank.flops / rank.seconds for rank in ranks) / len(ranks)
    recompute_speed = sum(rank.recompute / rank.seconds for rank in ranks) / len(ranks)
    known = [rank.bytes / rank.seconds for rank in ranks if rank.bytes is not None]
    samples, tokens = sum_of(rank.samples for rank in ranks), sum_of(rank.tokens for rank in ranks)
    return by_name(
        {
            metrics.STEP_TIME_MS: first.seconds / first.steps * 1e3,
            metrics.SAMPLES_PER_SEC: samples / first.seconds if samples else None,
            metrics.TOKENS_PER_SEC: tokens / first.seconds if tokens else None,
            metrics.TFLOPS_PER_SEC: speed / 1e12,
            metrics.MFU: 100 * (speed - recompute_speed) / peak if peak else None,
            metrics.HFU: 100 * speed / peak if peak and recompute_speed else None,
            metrics.MBU: 100 * sum(known) / len(known) / bandwidth if bandwidth and len(known) == len(ranks) else None,
            metrics.DATA_WAIT: 100 * first.waited_s / first.seconds if measures_waiting else None,
        }
    )
