"""Throughput: time and work of training steps, without anything in between."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from flopcallback.profile import metrics
from flopcallback.profile.metrics import by_name
from flopcallback.training.ledger import StepCost, StepKey

__all__ = ["Interval", "Throughput", "Totals", "Work", "rates", "sum_of", "totals", "work_of"]


@dataclass(slots=True)
class Interval:
    """Time and work of the timed steps since the last reading.

    Attributes:
        seconds: total time, including the time between steps.
        waited_s: part of it between the end of a step and the beginning of the next.
        timed: number of timed steps.
        ended: number of all steps, including those left out.
        stepped: number of all steps that an optimizer's step ended.
        keys: number of timed steps by kind.
        flops: FLOPs of timed steps, as far as the user gives them.
        samples: samples in timed steps; None if unknown for any of them.
        tokens: tokens in timed steps; None likewise.
    """

    seconds: float = 0.0
    waited_s: float = 0.0
    timed: int = 0
    ended: int = 0
    stepped: int = 0
    keys: Counter[StepKey] = field(default_factory=Counter)
    flops: int = 0
    samples: int | None = 0
    tokens: int | None = 0

    @property
    def optimizer_steps(self) -> float:
        """Optimizer steps in the timed interval.

        Fractional if part of an accumulation cycle was excluded.
        """
        return self.timed * self.stepped / self.ended if self.ended else 0.0


class Throughput:
    """Sums of time and work over stretches of training.

    A stretch begins with a step and lasts until `stop`. Time between two stretches does not count.

    Args:
        clock: returns seconds.
        synchronize: waits for the device. It is called only when a stretch ends.
    """

    def __init__(
        self, clock: Callable[[], float] = time.perf_counter, synchronize: Callable[[], None] = lambda: None
    ) -> None:
        self._clock = clock
        self._synchronize = synchronize
        self._stretch_began: float | None = None  # begin of the current stretch; None between two stretches
        self._step_ended: float | None = None  # end of the last step in it; None before its first step has ended
        self._interval = Interval()

    def begin_step(self) -> None:
        """Begin a timed step, and a stretch if there is none."""
        now = self._clock()
        if self._stretch_began is None:
            self._stretch_began = now
        elif self._step_ended is not None:
            self._interval.waited_s += now - self._step_ended

    def end_step(self, key: StepKey | int, *, samples: int | None, tokens: int | None, has_stepped: bool) -> None:
        """End a timed step.

        Args:
            key: kind of the step, or its FLOPs if the user gives them.
            samples: number of samples; None if unknown.
            tokens: number of tokens; None if unknown.
            has_stepped: whether an optimizer stepped.
        """
        interval = self._interval
        self._step_ended = self._clock()
        if isinstance(key, int):
            interval.flops += key
        else:
            interval.keys[key] += 1
        interval.timed += 1
        interval.ended += 1
        interval.stepped += has_stepped
        interval.samples = None if samples is None or interval.samples is None else interval.samples + samples
        interval.tokens = None if tokens is None or interval.tokens is None else interval.tokens + tokens

    def end_left_out(self, *, has_stepped: bool) -> None:
        """End a step that is not timed.

        Args:
            has_stepped: whether an optimizer stepped.
        """
        self._interval.ended += 1
        self._interval.stepped += has_stepped

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
        return interval


@dataclass(frozen=True, slots=True)
class Totals:
    """Totals of one rank since training began.

    Attributes:
        flops: FLOPs.
        estimated: estimated part of `flops`.
        samples: number of samples; None if unknown.
        tokens: number of tokens; None if unknown.
    """

    flops: int
    estimated: int
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
    """

    seconds: float
    waited_s: float
    steps: float
    flops: int
    recompute: int
    samples: int | None
    tokens: int | None


def work_of(interval: Interval, cost_of: Callable[[StepKey], StepCost]) -> Work:
    """Return the work of an interval, at present costs of steps."""
    costs = [(count, cost_of(key)) for key, count in interval.keys.items()]
    return Work(
        interval.seconds,
        interval.waited_s,
        interval.optimizer_steps,
        interval.flops + sum(count * cost.flops for count, cost in costs),
        sum(count * cost.recompute for count, cost in costs),
        interval.samples,
        interval.tokens,
    )


def totals(ranks: Sequence[Totals]) -> dict[str, int | float]:
    """Return `compute/*`: sums over ranks.

    A sum is left out if any rank does not know its own number.
    """
    flops, estimated = sum(rank.flops for rank in ranks), sum(rank.estimated for rank in ranks)
    return by_name(
        {
            metrics.COMPUTE: flops,
            metrics.SAMPLES: sum_of(rank.samples for rank in ranks),
            metrics.TOKENS: sum_of(rank.tokens for rank in ranks),
            metrics.ESTIMATED: 100 * estimated / flops if flops else 0.0,
        }
    )


def rates(ranks: Sequence[Work], peak: float | None, *, measures_waiting: bool = False) -> dict[str, float]:
    """Return `perf/*` of an interval.

    It is empty if no time passed or no optimizer stepped.

    Samples and tokens are sums over ranks, times are those of rank 0, and FLOPs are of one device: the mean over ranks.

    Args:
        ranks: work of each rank, rank 0 first.
        peak: peak of one device in FLOP/s; None if unknown.
        measures_waiting: whether the time between two steps is a wait for data.
    """
    first = ranks[0]
    if not (first.steps and all(rank.seconds > 0 for rank in ranks)):
        return {}
    # FLOP/s of one device. MFU leaves recomputation out, HFU has it.
    speed = sum(rank.flops / rank.seconds for rank in ranks) / len(ranks)
    recompute_speed = sum(rank.recompute / rank.seconds for rank in ranks) / len(ranks)
    samples, tokens = sum_of(rank.samples for rank in ranks), sum_of(rank.tokens for rank in ranks)
    return by_name(
        {
            metrics.STEP_TIME_MS: first.seconds / first.steps * 1e3,
            metrics.SAMPLES_PER_SEC: samples / first.seconds if samples else None,
            metrics.TOKENS_PER_SEC: tokens / first.seconds if tokens else None,
            metrics.TFLOPS_PER_SEC: speed / 1e12,
            metrics.MFU: 100 * (speed - recompute_speed) / peak if peak else None,
            metrics.HFU: 100 * speed / peak if peak and recompute_speed else None,
            metrics.DATA_WAIT: 100 * first.waited_s / first.seconds if measures_waiting else None,
        }
    )


def sum_of(numbers: Iterable[int | None]) -> int | None:
    """Return the sum, or None if any number is None."""
    total = 0
    for number in numbers:
        if number is None:
            return None
        total += number
    return total
