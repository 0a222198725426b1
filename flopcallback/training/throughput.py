"""Throughput: how long steps took and what they did, over stretches of training with all else left out."""

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
    """What was done in steps that were timed, since the last reading.

    Attributes:
        seconds: of all of it, what lies between steps included.
        waited_s: of these, between the end of a step and the beginning of the next.
        timed: steps.
        ended: steps, those included that were left out.
        stepped: of all that ended, those that ended with a step of an optimizer.
        keys: of every step, by kind.
        hw_flops: of steps whose cost the user gives.
        samples: None where they are not known, as are `tokens`.
    """

    seconds: float = 0.0
    waited_s: float = 0.0
    timed: int = 0
    ended: int = 0
    stepped: int = 0
    keys: Counter[StepKey] = field(default_factory=Counter)
    hw_flops: int = 0
    samples: int | None = 0
    tokens: int | None = 0

    @property
    def optimizer_steps(self) -> float:
        """Of those that were timed: no whole number where some of the steps between two of them were left out."""
        return self.timed * self.stepped / self.ended if self.ended else 0.0


class Throughput:
    """Sums up steps and the time they took; between `stop` and the next step, time is nobody's.

    Args:
        clock: seconds.
        synchronize: waits for the device. It is called where a stretch of training ends, and nowhere else.
    """

    def __init__(
        self, clock: Callable[[], float] = time.perf_counter, synchronize: Callable[[], None] = lambda: None
    ) -> None:
        self._clock = clock
        self._synchronize = synchronize
        self._since: float | None = None  # the beginning of the stretch that is under way
        self._ended: float | None = None  # the last step in it
        self._interval = Interval()

    def begin_step(self) -> None:
        """A step that is to be timed begins, and with it a stretch, where none is under way."""
        now = self._clock()
        if self._since is None:
            self._since = now
        elif self._ended is not None:
            self._interval.waited_s += now - self._ended

    def end_step(self, key: StepKey | int, *, samples: int | None, tokens: int | None, has_stepped: bool) -> None:
        """The step ended.

        Args:
            key: its kind, or its hardware FLOPs where the user gives them.
            samples: in it.
            tokens: in it.
            has_stepped: whether an optimizer stepped.
        """
        interval = self._interval
        self._ended = self._clock()
        if isinstance(key, int):
            interval.hw_flops += key
        else:
            interval.keys[key] += 1
        interval.timed += 1
        interval.ended += 1
        interval.stepped += has_stepped
        interval.samples = None if samples is None or interval.samples is None else interval.samples + samples
        interval.tokens = None if tokens is None or interval.tokens is None else interval.tokens + tokens

    def end_left_out(self, *, has_stepped: bool) -> None:
        """A step ended that is not timed; `has_stepped` as in `end_step`."""
        self._interval.ended += 1
        self._interval.stepped += has_stepped

    def stop(self) -> None:
        """The stretch ends: something else than training begins."""
        if self._since is not None:
            self._synchronize()
            self._interval.seconds += self._clock() - self._since
            self._since = self._ended = None

    @contextmanager
    def interrupted(self) -> Iterator[None]:
        """Something that takes time of its own, between two steps: a stretch that is under way goes on behind it."""
        is_under_way = self._since is not None
        self.stop()
        try:
            yield
        finally:
            if is_under_way:
                self._since = self._ended = self._clock()

    def read(self) -> Interval:
        """What was done since the last reading; where no stretch is under way."""
        self.stop()
        interval, self._interval = self._interval, Interval()
        return interval


@dataclass(frozen=True, slots=True)
class Totals:
    """What one rank has spent since training began; samples and tokens are None where they are not known."""

    hw_flops: int
    estimated: int
    samples: int | None
    tokens: int | None


@dataclass(frozen=True, slots=True)
class Work:
    """What one rank did in the steps of an interval, and how long it took; `steps` are those of optimizers."""

    seconds: float
    waited_s: float
    steps: float
    hw_flops: int
    recompute: int
    samples: int | None
    tokens: int | None


def work_of(interval: Interval, cost_of: Callable[[StepKey], StepCost]) -> Work:
    """The interval, with what its steps cost by what is known of them now."""
    costs = [(count, cost_of(key)) for key, count in interval.keys.items()]
    return Work(
        interval.seconds,
        interval.waited_s,
        interval.optimizer_steps,
        interval.hw_flops + sum(count * cost.hw_flops for count, cost in costs),
        sum(count * cost.recompute for count, cost in costs),
        interval.samples,
        interval.tokens,
    )


def totals(ranks: Sequence[Totals]) -> dict[str, int | float]:
    """`compute/*`: sums over ranks; a number that one of them does not know is left out."""
    hw_flops, estimated = (sum(each) for each in zip(*((rank.hw_flops, rank.estimated) for rank in ranks), strict=True))
    return by_name(
        {
            metrics.COMPUTE: hw_flops,
            metrics.SAMPLES: sum_of(rank.samples for rank in ranks),
            metrics.TOKENS: sum_of(rank.tokens for rank in ranks),
            metrics.ESTIMATED: 100 * estimated / hw_flops if hw_flops else 0.0,
        }
    )


def rates(ranks: Sequence[Work], peak: float | None, *, measures_waiting: bool = False) -> dict[str, float]:
    """`perf/*`: samples and tokens of all ranks, FLOPs of one device: the mean over ranks.

    Args:
        ranks: what each one did; the time is the first one's.
        peak: FLOP/s of one device; None where it is not known.
        measures_waiting: whether what lies between two steps is waiting for data.
    """
    first = ranks[0]
    if not (first.steps and all(rank.seconds > 0 for rank in ranks)):
        return {}
    speed = sum(rank.hw_flops / rank.seconds for rank in ranks) / len(ranks)
    again = sum(rank.recompute / rank.seconds for rank in ranks) / len(ranks)
    samples, tokens = sum_of(rank.samples for rank in ranks), sum_of(rank.tokens for rank in ranks)
    return by_name(
        {
            metrics.STEP_TIME_MS: first.seconds / first.steps * 1e3,
            metrics.SAMPLES_PER_SEC: samples / first.seconds if samples else None,
            metrics.TOKENS_PER_SEC: tokens / first.seconds if tokens else None,
            metrics.HW_TFLOPS_PER_SEC: speed / 1e12,
            metrics.MFU: 100 * (speed - again) / peak if peak else None,
            metrics.HFU: 100 * speed / peak if peak and again else None,
            metrics.DATA_WAIT: 100 * first.waited_s / first.seconds if measures_waiting else None,
        }
    )


def sum_of(numbers: Iterable[int | None]) -> int | None:
    """None where one of them is."""
    total = 0
    for number in numbers:
        if number is None:
            return None
        total += number
    return total
