"""Which steps are observed, in trainings that are made by hand."""

from __future__ import annotations

import itertools
import random

import pytest

from flopcallback.modules.structures import CallKey
from flopcallback.training.audits import FREE_AUDITS, FREE_SIGHTS, MOST_LEVEL, RAREST, ObservationSchedule
from flopcallback.training.kinds import StepCost, StepKey
from flopcallback.training.ledger import ComputeLedger


def kind(length=3, *, nodes=7):
    return StepKey(CallKey(((length, 5),)), "4 of 4", (), 1, (0,), nodes)


class Training:
    """Steps that are observed as the schedule says, on a clock of its own."""

    def __init__(self, observe="auto", *, price=1.0):
        self.ledger, self.schedule = ComputeLedger(), ObservationSchedule(observe)
        self.price = price
        self.observed = []
        self.steps = 0
        self.total = 0

    def run(self, steps):
        for key, flops in steps:
            start = self.ledger.starts.get(key.start)
            is_observed = self.is_asked(start) and self.schedule.should_observe(
                start, self.steps, self.ledger.steps, is_known=key.inputs is not None
            )
            if is_observed:
                self.observed.append(self.steps)
                observed = self.ledger.add_observed(key, StepCost(flops))
                self.schedule.plan_audit(observed, self.ledger.starts.get(key.start))
            else:
                self.ledger.add(key)
            if is_observed:
                self.schedule.note_observed(1.0 + self.price)
            else:
                self.schedule.plain_s += 1.0
                self.schedule.plain += 1
            self.steps += 1
            self.total += flops
        return self

    def is_asked(self, start):
        return True

    @property
    def error(self):
        return abs(self.ledger.flops - self.total) / self.total

    @property
    def extra(self):
        """What observing took, as a share of the time of plain steps."""
        return self.price * len(self.observed) / self.steps


def alike(steps, flops=7):
    return [(kind(), flops)] * steps


def test_a_kind_is_audited_about_each_time_its_steps_have_doubled():
    observed = Training().run(alike(128)).observed
    for begin, end in itertools.pairwise([1, 4, 8, 16, 32, 64]):
        assert any(begin <= step < 2 * end for step in observed), (begin, observed)
    assert len(observed) <= 16


@pytest.mark.parametrize("price", [0.04, 0.5, 1.0, 4.0])
def test_audits_of_a_long_training_take_a_hundredth_of_its_time(price):
    training = Training(price=price).run(alike(20_000))
    assert training.extra <= 0.01 + price * (FREE_AUDITS + 1) / 20_000
    assert max(b - a for a, b in itertools.pairwise([*training.observed, 20_000])) <= RAREST
    assert training.ledger.estimated == 0


def test_a_kind_is_never_left_alone_for_more_than_500_of_its_steps():
    training = Training(price=1000.0).run(alike(10_000))
    assert max(b - a for a, b in itertools.pairwise([*training.observed, 10_000])) <= RAREST
    assert 2**MOST_LEVEL < RAREST


def test_which_steps_is_a_matter_of_their_number_alone():
    other = Training()
    random.seed(5)
    assert Training().run(alike(3000)).observed == other.run(alike(3000)).observed


@pytest.mark.parametrize("period", [2, 3, 4, 7, 8, 16])
def test_what_alternates_is_found_out(period):
    steps = [(kind(), 100 if step % period else 700) for step in range(4000)]
    training = Training().run(steps)
    assert training.ledger.estimated > 0.8 * training.ledger.flops
    assert training.error <= (training.ledger.sums.error) / training.total


def test_a_switch_in_the_middle_is_found_out_and_little_of_it_is_wrong():
    training = Training().run(alike(3000, 100) + alike(3000, 40))
    assert training.ledger.estimated > 0
    assert training.error < 0.05


def test_steps_that_differ_in_each_case_are_all_observed_on_demand_or_never():
    rng = random.Random(7)
    steps = [(kind(), rng.randint(1, 99)) for _ in range(200)]
    training = Training("always").run(steps)
    assert (training.ledger.flops, training.ledger.estimated) == (training.total, 0)
    assert Training("never").run(steps).observed == []


def test_a_curriculum_of_400_lengths_is_exact():
    steps = [(kind(length), 31 * length**2 + 7) for length in range(1, 401) for _ in range(50)]
    training = Training().run(steps)
    assert (training.ledger.flops, training.ledger.estimated) == (training.total, 0)
    assert training.extra <= 0.06 + (FREE_AUDITS + FREE_SIGHTS) / len(steps)


def test_ten_thousand_steps_of_which_no_two_are_alike_are_estimated_closely_at_little_cost():
    rng = random.Random(3)
    sizes = [(rng.randint(1, 64), rng.randint(8, 2048)) for _ in range(10_000)]
    steps = [
        (StepKey(CallKey((size, size)), "4 of 4", (), 1, (0,), 9), size[0] * size[1] * (900 + size[1]))
        for size in sizes
    ]
    training = Training().run(steps)
    assert training.extra <= 0.06
    assert training.error < 0.02
    sums = training.ledger.sums
    assert sums.estimated > 0.9 * sums.flops
    assert sums.error + sums.unjudged < 0.02 * sums.flops


def test_batches_of_which_nothing_is_known_take_a_share_of_the_time():
    rng = random.Random(2)
    unknown = StepKey(None, "4 of 4", (), 1, (0,), 9)
    training = Training()
    for _ in range(2000):
        training.run([(unknown, rng.randint(50, 150))])
    assert FREE_SIGHTS < len(training.observed) <= 0.06 * 2000 + FREE_SIGHTS
    assert training.ledger.estimated > 0


@pytest.mark.parametrize("every", [2, 5, 16])
def test_a_kind_that_comes_now_and_then_and_begins_like_another_is_observed_soon(every):
    steps = [
        (kind(nodes=9 if step % every == every - 1 else 7), 50 + step % every // (every - 1)) for step in range(99)
    ]
    training = Training().run(steps)
    assert (training.ledger.flops, training.ledger.estimated) == (training.total, 0)


class Hasty(Training):
    """The same, where the schedule is asked as rarely as it says, as in a real training."""

    asked = 0

    def is_asked(self, start):
        is_asked = start is None or bool(start.unseen) or bool(start.due and self.steps >= start.quiet_until)
        self.asked += is_asked
        return is_asked


@pytest.mark.parametrize("price", [0.1, 1.0, 20.0])
def test_audits_are_at_the_same_steps_where_the_schedule_is_asked_as_rarely_as_it_says(price):
    numbers = random.Random(7)
    lengths = [numbers.choice((3, 5, 5, 5)) for _ in range(6000)] + [5] * 2000
    steps = [(kind(length), 60 * length) for length in lengths]
    patient, hasty = Training(price=price).run(steps), Hasty(price=price).run(steps)
    assert hasty.observed == patient.observed
    assert hasty.asked < 0.1 * len(steps)
