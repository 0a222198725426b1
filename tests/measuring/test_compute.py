"""The ledger of compute, by kinds of steps that are made by hand."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flopcallback.training.ledger import (
    MOST_KEYS,
    MOST_PREDICTIONS,
    MOST_TRIES,
    MOST_UNSEEN,
    USUAL_STEP,
    ComputeLedger,
    StepCost,
    StepKey,
    StepStart,
)

TRAINABLE = "4 of 4"


def kind(length=3, *, nodes=7, backwards=1, optimizers=(0,), trainable=TRAINABLE, calls=1):
    return StepKey((((length, 5),),) * calls, trainable, backwards, optimizers, nodes)


def cost_of(length):
    return StepCost(1000 * length, 300 * length)


@pytest.fixture
def ledger():
    return ComputeLedger()


def through_json(ledger):
    return json.loads(json.dumps(ledger.state()))


def loaded(*states, **options):
    ledger = ComputeLedger()
    for state in states:
        ledger.load(state, **options)
    return ledger


def test_a_ledger_without_steps_is_empty(ledger):
    assert (ledger.steps, ledger.flops, ledger.estimated, ledger.largest) == (0, 0, 0, 0)


def test_steps_of_a_kind_are_booked_back_once_one_is_observed(ledger):
    for _ in range(5):
        ledger.add(kind())
    assert (ledger.flops, ledger.estimated) == (0, 0)  # nothing is known that could be estimated from
    ledger.learn(kind(), StepCost(1009))
    assert (ledger.flops, ledger.estimated) == (5 * 1009, 0)
    ledger.add(kind())
    assert (ledger.steps, ledger.flops, ledger.largest) == (6, 6 * 1009, 1009)


def test_what_was_observed_first_holds(ledger):
    ledger.learn(kind(), StepCost(1009))
    ledger.learn(kind(), StepCost(1))
    ledger.add(kind())
    assert ledger.flops == 1009


@pytest.mark.parametrize(
    "other",
    [
        kind(4),
        kind(nodes=8),
        kind(backwards=2),
        kind(optimizers=(1,)),
        kind(optimizers=()),
        kind(trainable="3 of 4"),
        kind(calls=2),
    ],
)
def test_whatever_is_known_of_a_step_tells_kinds_apart(ledger, other):
    ledger.learn(kind(), StepCost(1009))
    ledger.add(other)
    ledger.add(kind())
    assert ledger.estimated == ledger.flops - 1009 > 0
    ledger.learn(other, StepCost(2003))
    assert (ledger.flops, ledger.estimated) == (1009 + 2003, 0)


def test_integers_beyond_64_bits_stay_exact(ledger):
    large = 2**63 + 1
    ledger.learn(kind(), StepCost(large))
    for _ in range(3):
        ledger.add(kind())
    ledger.add_flops(2**70 + 1)
    ledger.add(kind(4))
    assert ledger.flops == 3 * large + 2**70 + 1 + large * 4 * 5 // (3 * 5)
    assert loaded(through_json(ledger)).flops == ledger.flops


def test_what_the_user_knows_is_booked_as_it_is(ledger):
    ledger.add_flops(17)
    ledger.add_flops(0)
    assert (ledger.steps, ledger.flops, ledger.estimated) == (2, 17, 0)


# --- Estimates --------------------------------------------------------------------------------------------------------


def test_between_two_observed_kinds_the_cost_is_on_the_line(ledger):
    ledger.learn(kind(2), StepCost(100))
    ledger.learn(kind(6), StepCost(500))
    ledger.add(kind(3))
    assert ledger.flops == ledger.estimated == 100 + (500 - 100) * (3 - 2) // (6 - 2)


def test_beyond_them_it_is_in_proportion_to_the_nearest(ledger):
    ledger.learn(kind(2), StepCost(100))
    ledger.learn(kind(6), StepCost(500))
    assert ledger.cost_of(kind(1)).flops == 100 // 2
    assert ledger.cost_of(kind(9)).flops == 500 * 9 // 6


def test_forward_and_recomputation_are_estimated_likewise(ledger):
    ledger.learn(kind(2), StepCost(100, 30, 10))
    ledger.learn(kind(4), StepCost(300, 90, 30))
    assert ledger.cost_of(kind(3)) == StepCost(200, 60, 20)


def test_estimates_go_by_kinds_that_differ_in_shapes_alone_where_there_are_some(ledger):
    ledger.learn(kind(3, nodes=8), StepCost(9001))
    ledger.learn(kind(3, backwards=2), StepCost(9002))
    ledger.learn(kind(6), StepCost(600))
    assert ledger.cost_of(kind(3)).flops == 300


def test_then_by_those_with_the_same_optimizers_and_then_by_any(ledger):
    ledger.learn(kind(6, optimizers=(1,)), StepCost(9000))
    assert ledger.cost_of(kind(3)).flops == 4500
    ledger.learn(kind(6, nodes=8), StepCost(600))
    assert ledger.cost_of(kind(3)).flops == 300


def test_a_kind_without_elements_takes_what_there_is(ledger):
    ledger.learn(StepKey((), TRAINABLE, 0, (), 0), StepCost(11))
    assert ledger.cost_of(kind(3)).flops == 11


def test_until_a_step_is_observed_it_is_three_forwards_of_the_counted_one(ledger):
    ledger.learn_forward(kind(3), 210, outside=2)
    ledger.add(kind(3))
    ledger.add(kind(6))
    assert ledger.flops == ledger.estimated == USUAL_STEP * 210 + USUAL_STEP * 210 * 2


# --- The counted step -------------------------------------------------------------------------------------------------


def test_the_counted_step_is_of_the_kind_that_has_its_forward_and_its_nodes_outside(ledger):
    counted = kind(nodes=9)  # the tracer made two of them
    ledger.learn_forward(counted, 30, outside=2)
    ledger.add(counted)
    ledger.add(kind())
    ledger.learn(kind(), StepCost(100, 30), outside=2)
    assert (ledger.flops, ledger.estimated) == (200, 0)


@pytest.mark.parametrize(
    ("other", "cost", "outside"),
    [
        (kind(), StepCost(100, 31), 2),  # it took another path
        (kind(), StepCost(100, 30), 3),  # it has a penalty outside of the counted calls
        (kind(backwards=2), StepCost(100, 30), 2),
    ],
)
def test_it_is_of_no_other_kind(ledger, other, cost, outside):
    ledger.learn_forward(kind(nodes=9), 30, outside=2)
    ledger.add(kind(nodes=9))
    ledger.learn(other, cost, outside)
    assert ledger.estimated == ledger.flops > 0


def test_a_later_step_with_the_counted_ones_key_is_as_exact(ledger):
    """A penalty every second step, from the first one on: both of its steps look like the counted one."""
    penalty = kind(nodes=15)
    ledger.learn_forward(penalty, 30, outside=10)
    for key in (penalty, kind(), penalty, kind()):
        ledger.add(key)
    ledger.learn(kind(), StepCost(100, 30), outside=2)
    assert ledger.estimated == 2 * 100
    ledger.learn(penalty, StepCost(150, 30), outside=10)
    assert (ledger.flops, ledger.estimated) == (2 * 100 + 2 * 150, 0)


def test_a_counted_step_in_a_checkpoint_is_booked_back_after_it(ledger):
    ledger.learn_forward(kind(nodes=9), 30, outside=2)
    ledger.add(kind(nodes=9))
    later = loaded(through_json(ledger))
    assert (later.flops, later.estimated) == (USUAL_STEP * 30, USUAL_STEP * 30)
    later.learn(kind(), StepCost(100, 30), outside=2)
    assert (later.flops, later.estimated) == (100, 0)


# --- Which steps are observed -----------------------------------------------------------------------------------------


def test_a_step_that_begins_as_none_before_is_observed(ledger):
    assert ledger.should_observe(kind(3).start)
    ledger.learn(kind(3), cost_of(3))
    ledger.add(kind(3))
    assert not ledger.should_observe(kind(3).start)
    assert ledger.should_observe(kind(4).start)
    assert ledger.should_observe(kind(3, trainable="3 of 4").start)
    assert kind(3).start == StepStart(((3, 5),), TRAINABLE)


def test_right_behind_an_unseen_kind_few_steps_are_tried(ledger):
    learnt(ledger, kind())
    ledger.add(kind(nodes=8))
    tries = []
    for _ in range(10):
        tries.append(ledger.should_observe(kind().start))
        ledger.add(kind())
    assert tries == [True] * MOST_TRIES + [False] * (10 - MOST_TRIES)


def learnt(ledger, key, cost=1009):
    ledger.learn(key, StepCost(cost))
    ledger.add(key)


def run_through(ledger, kinds, costs, *, can_see=lambda step: True):
    """Books steps as a meter does, observing those that the ledger asks for; which ones those were."""
    observed = []
    for step, key in enumerate(kinds):
        if ledger.should_observe(key.start) and can_see(step):
            observed.append(step)
            ledger.learn(key, costs[key])
        ledger.add(key)
    return observed


def test_a_kind_that_comes_every_16th_step_is_observed_at_its_third_time(ledger):
    plain, penalty = kind(), kind(nodes=20)
    kinds = [penalty if step % 16 == 5 else plain for step in range(64)]
    costs = {plain: StepCost(100), penalty: StepCost(170)}
    observed = run_through(ledger, kinds, costs)
    assert observed == [0, 6, 7, 37]  # the first one, those right behind the first penalty, the third penalty
    assert (ledger.flops, ledger.estimated) == (60 * 100 + 4 * 170, 0)


def test_kinds_that_alternate_are_observed_at_once(ledger):
    kinds = [kind(optimizers=(step % 2,)) for step in range(8)]
    costs = {kinds[0]: StepCost(100), kinds[1]: StepCost(170)}
    assert max(run_through(ledger, kinds, costs)) <= 3
    assert (ledger.flops, ledger.estimated) == (4 * 270, 0)


def test_a_kind_that_never_comes_when_it_is_awaited_is_given_up(ledger):
    draw = random.Random(3)
    kinds = [kind(nodes=20 if draw.random() < 0.02 else 7) for _ in range(5000)]
    observed = run_through(ledger, kinds, {kind(): StepCost(100)} | {kind(nodes=20): StepCost(170)})
    assert len(observed) <= 1 + MOST_TRIES + MOST_PREDICTIONS
    rare = kinds.count(kind(nodes=20))
    assert ledger.flops in (100 * 5000, 100 * (5000 - rare) + 170 * rare)


def test_no_more_than_32_kinds_are_observed(ledger):
    lengths = range(1, MOST_KEYS + 9)
    kinds = [kind(length) for length in lengths]
    observed = run_through(ledger, kinds, {key: cost_of(length) for key, length in zip(kinds, lengths, strict=True)})
    assert observed == list(range(MOST_KEYS))
    assert not ledger.should_observe(kind(1000).start)
    # Costs are in proportion to the elements, and so are estimates.
    assert ledger.flops == sum(1000 * length for length in lengths)
    assert ledger.estimated == sum(1000 * length for length in lengths[MOST_KEYS:])


def test_no_more_than_that_are_taken_in(ledger):
    for length in range(1, MOST_KEYS + 2):
        ledger.learn(kind(length), StepCost(1))
    ledger.learn(kind(100, nodes=3), StepCost(9000))
    ledger.add(kind(100, nodes=3))
    assert ledger.estimated == ledger.flops == 1 * 100 // MOST_KEYS


def test_beyond_the_kinds_that_are_remembered_the_oldest_is_estimated_for_good(ledger):
    ledger.learn_forward(kind(1), 10, outside=0)
    for length in range(1, MOST_UNSEEN + 2):
        ledger.add(kind(length))
    total = sum(USUAL_STEP * 10 * length for length in range(1, MOST_UNSEEN + 2))
    assert ledger.flops == ledger.estimated == total
    ledger.learn(kind(2), StepCost(60, 20))
    ledger.learn(kind(1), StepCost(7, 3))  # too late
    assert ledger.flops - ledger.estimated == 60
    assert len(ledger.state()["unseen"]) == MOST_UNSEEN - 1


def test_a_kind_that_was_forgotten_is_new_again(ledger):
    for length in range(1, MOST_UNSEEN + 2):
        ledger.add(kind(length))
    assert ledger.should_observe(kind(1).start)


def test_steps_beyond_those_kinds_keep_no_memory(ledger):
    for length in range(1, MOST_KEYS + 1):
        learnt(ledger, kind(length), 1000 * length)
    size = len(json.dumps(ledger.state()))
    for length in range(100, 400):
        ledger.add(kind(length))
    assert len(json.dumps(ledger.state())) < size + 20
    assert ledger.steps == MOST_KEYS + 300


# --- Checkpoints, and several ranks -----------------------------------------------------------------------------------


def filled(length=3):
    ledger = ComputeLedger()
    learnt(ledger, kind(length), 1009)
    ledger.add(kind(length + 1), 4)
    ledger.add(kind(nodes=50))
    ledger.add_flops(11)
    return ledger


def numbers(ledger):
    return ledger.steps, ledger.flops, ledger.estimated, ledger.largest


def test_a_state_goes_through_json_and_back():
    ledger = filled()
    again = loaded(through_json(ledger))
    assert numbers(again) == numbers(ledger) == (7, again.flops, again.estimated, 1009)
    assert through_json(again) == through_json(ledger)
    for each in (ledger, again):
        each.learn(kind(4), StepCost(2003))
        each.learn(kind(nodes=50), StepCost(3001))
    assert numbers(again) == numbers(ledger) == (7, 1009 + 4 * 2003 + 3001 + 11, 0, 3001)


def test_a_state_is_added_to_what_was_booked_since(ledger):
    learnt(ledger, kind(4), 2003)
    ledger.load(through_json(filled()))
    ledger.learn(kind(nodes=50), StepCost(3001))
    assert (ledger.steps, ledger.flops, ledger.estimated) == (8, 1009 + 5 * 2003 + 3001 + 11, 0)


def test_another_rank_takes_over_what_steps_cost_and_no_steps(ledger):
    ledger.load(through_json(filled()), costs_only=True)
    assert (ledger.steps, ledger.flops) == (0, 0)
    ledger.add(kind(3))
    assert (ledger.flops, ledger.estimated) == (1009, 0)


def test_one_rank_knows_what_another_has_waited_for():
    knows, waits = ComputeLedger(), ComputeLedger()
    learnt(knows, kind(4), 2003)
    waits.add(kind(4), 3)
    for order in ([knows, waits], [waits, knows]):
        merged = ComputeLedger.merged(map(through_json, order))
        assert (merged.steps, merged.flops, merged.estimated) == (4, 4 * 2003, 0)
    assert numbers(knows) == (1, 2003, 0, 2003)


def test_merging_one_changes_nothing():
    assert through_json(ComputeLedger.merged([through_json(filled())])) == through_json(filled())
    assert numbers(ComputeLedger.merged([])) == (0, 0, 0, 0)


# --- Whatever comes ---------------------------------------------------------------------------------------------------

LENGTHS = st.integers(1, 4)
KINDS = st.builds(
    kind,
    LENGTHS,
    nodes=st.integers(5, 6),
    backwards=st.integers(0, 1),
    optimizers=st.sampled_from([(), (0,), (0, 1)]),
)
PRICES = {
    kind(length, nodes=nodes, backwards=backwards, optimizers=optimizers): StepCost(
        2**60 + length * 1009 + nodes * 101 + backwards * 11 + len(optimizers), length
    )
    for length in (1, 2, 3, 4)
    for nodes in (5, 6)
    for backwards in (0, 1)
    for optimizers in ((), (0,), (0, 1))
}


@given(kinds=st.lists(KINDS, max_size=60).filter(lambda kinds: len(set(kinds)) <= MOST_KEYS), data=st.data())
def test_once_every_kind_was_observed_the_total_is_the_exact_sum(kinds, data):
    ledger = ComputeLedger()
    when = {key: data.draw(st.integers(0, kinds.count(key) - 1), label="observed at") for key in set(kinds)}
    unseen = set(kinds)
    for key in kinds:
        ledger.should_observe(key.start)
        if when[key] == 0:
            ledger.learn(key, PRICES[key])
            unseen.discard(key)
        when[key] -= 1
        ledger.add(key)
        assert ledger.estimated >= 0
        assert ledger.estimated == 0 or unseen
    assert ledger.estimated == 0
    assert ledger.flops == sum(PRICES[key].flops for key in kinds)
    assert ledger.steps == len(kinds)


@given(kinds=st.lists(KINDS, max_size=120), cut=st.integers(0, 120), hidden=st.sets(st.integers(0, 119)))
def test_few_steps_are_observed_and_a_checkpoint_in_between_changes_no_number(kinds, cut, hidden):
    ledger, resumed = ComputeLedger(), ComputeLedger()
    observed = 0
    for step, key in enumerate(kinds):
        if step == cut:
            resumed = loaded(through_json(resumed))
        if ledger.should_observe(key.start) and step not in hidden:
            observed += 1
            for each in (ledger, resumed):
                each.learn(key, PRICES[key])
        for each in (ledger, resumed):
            each.add(key)
    assert numbers(resumed) == numbers(ledger)
    different = len(set(kinds))
    starts = len({key.start for key in kinds})
    assert observed <= starts + different * (MOST_TRIES + MOST_PREDICTIONS)


@given(kinds=st.lists(KINDS, max_size=40), ranks=st.integers(1, 4), data=st.data())
def test_ranks_together_have_the_sum_of_their_steps_in_any_order(kinds, ranks, data):
    ledgers = [ComputeLedger() for _ in range(ranks)]
    for step, key in enumerate(kinds):
        each = ledgers[step % ranks]
        if data.draw(st.booleans(), label="observed"):
            each.learn(key, PRICES[key])
        each.add(key)
    states = data.draw(st.permutations([through_json(each) for each in ledgers]))
    merged = ComputeLedger.merged(states)
    for key in set(kinds):
        merged.learn(key, PRICES[key])
    assert merged.steps == len(kinds)
    if len(set(kinds)) <= MOST_KEYS:
        assert (merged.flops, merged.estimated) == (sum(PRICES[key].flops for key in kinds), 0)
