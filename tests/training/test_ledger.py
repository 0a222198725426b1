"""The ledger of compute, by kinds of steps that are made by hand."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flopcallback.modules.structures import CallKey
from flopcallback.training.kinds import EITHER, LOWER, TRUSTED, UPPER, StepCost, StepKey, Sums
from flopcallback.training.ledger import MOST_KINDS, MOST_SAVED, MOST_UNSEEN, USUAL_STEP, ComputeLedger

TRAINABLE = "4 of 4"


def kind(length=3, *, nodes=7, backwards=1, optimizers=(0,), trainable=TRAINABLE, calls=1, has_grad=True, site=""):
    inputs = CallKey(((length, 5),))
    return StepKey(inputs, trainable, ((site, has_grad, inputs),) * calls, backwards, optimizers, nodes)


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


def numbers(ledger):
    return ledger.steps, ledger.audited, ledger.sums


def booked(ledger, key, *costs):
    """Book steps of a kind: those with a cost are observed, `None` stands for one that is not."""
    for cost in costs:
        if cost is None:
            ledger.add(key)
        else:
            ledger.add_observed(key, StepCost(cost))


def test_a_ledger_without_steps_is_empty(ledger):
    assert numbers(ledger) == (0, 0, Sums())
    assert ledger.largest == 0


def test_steps_of_a_kind_are_booked_back_once_one_is_observed(ledger):
    booked(ledger, kind(), *[None] * 5)
    assert (ledger.flops, ledger.estimated) == (0, 0)  # nothing is known that could be estimated from
    booked(ledger, kind(), 1009, None)
    assert (ledger.steps, ledger.audited, ledger.largest) == (7, 1, 1009)
    assert (ledger.flops, ledger.estimated) == (7 * 1009, 0)


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
        kind(has_grad=False),
        kind(site="head"),
    ],
)
def test_whatever_is_known_of_a_step_tells_kinds_apart(ledger, other):
    booked(ledger, kind(), 1009)
    booked(ledger, other, None)
    booked(ledger, kind(), None)
    assert ledger.estimated == ledger.flops - 2 * 1009 > 0
    booked(ledger, other, 2003)
    assert (ledger.flops, ledger.estimated) == (2 * 1009 + 2 * 2003, 0)


def test_integers_beyond_64_bits_stay_exact(ledger):
    large = 2**63 + 1
    booked(ledger, kind(), large, None, None)
    ledger.add_flops(2**70 + 1)
    assert ledger.flops == 3 * large + 2**70 + 1
    assert loaded(through_json(ledger)).flops == ledger.flops


def test_what_the_user_knows_is_booked_as_it_is(ledger):
    ledger.add_flops(17)
    ledger.add_flops(0)
    assert (ledger.steps, ledger.flops, ledger.estimated) == (2, 17, 0)


# --- Audits -----------------------------------------------------------------------------------------------------------


def test_a_disagreement_makes_the_stretch_before_it_an_estimate(ledger):
    booked(ledger, kind(), *[100, None] * 5)  # five agree: what lies between them is beyond doubt
    booked(ledger, kind(), None, None, 40)
    # Nine steps at 100 and the last at 40 are exact: five observed, four between them. Three lie before the last.
    assert ledger.sums.exact == 5 * 100 + 4 * 100 + 40
    assert ledger.estimated == 3 * (100 + 40) // 2
    assert ledger.sums.error == 3 * (100 - 40) // 2


def test_while_few_audits_agree_a_disagreement_casts_doubt_on_all_of_them(ledger):
    booked(ledger, kind(), 100, None, 100, None, 100, None, 40)
    assert ledger.sums.exact == 3 * 100 + 40
    assert ledger.estimated == 3 * (100 + 40) // 2


def test_costs_that_only_rise_are_booked_between_their_ends(ledger):
    booked(ledger, kind(), 10, None, None, 40, None, None, 70)
    assert ledger.sums.exact == 10 + 40 + 70
    assert (ledger.estimated, ledger.sums.error) == (2 * 25 + 2 * 55, 2 * 15 + 2 * 15)
    booked(ledger, kind(), None)  # what comes is booked at the last, and may be anything that was seen
    assert (ledger.estimated, ledger.sums.error) == (2 * 25 + 2 * 55 + 70, 2 * 15 + 2 * 15 + (70 - 10) // 2)


def test_costs_that_rise_and_fall_are_booked_at_their_mean(ledger):
    booked(ledger, kind(), 10, None, 40, None, None, 10, None)
    assert ledger.sums.exact == 10 + 40 + 10
    assert (ledger.estimated, ledger.sums.error) == (4 * 20, 4 * (40 - 20))


def test_steps_of_which_nothing_is_known_are_each_observed_or_estimated(ledger):
    booked(ledger, None, 10, None, 10, None)
    assert (ledger.sums.exact, ledger.estimated, ledger.sums.error) == (20, 20, 0)
    booked(ledger, None, 40)
    assert (ledger.sums.exact, ledger.estimated, ledger.sums.error) == (60, 2 * 20, 2 * 20)


def test_kinds_vary_one_by_one(ledger):
    booked(ledger, kind(3), 10, None, 40)
    booked(ledger, kind(4), 7, None, None)
    assert (ledger.sums.exact, ledger.estimated) == (10 + 40 + 3 * 7, 25)


# --- Parts ------------------------------------------------------------------------------------------------------------


def test_work_without_autograd_and_bounds_are_summed_apart(ledger):
    ledger.add_observed(kind(), StepCost(100, 30, 0, 20))
    ledger.add(kind())
    ledger.add_observed(kind(4), StepCost(50, 10, 0, 0, LOWER))
    ledger.add(kind(4))
    ledger.add_observed(kind(5), StepCost(7, 1, 0, 0, UPPER))
    ledger.add_observed(kind(6), StepCost(9, 1, 0, 0, EITHER))
    assert ledger.sums == Sums(exact=200 + 100 + 7 + 9, without_grad=40, lower=100 + 9, upper=7 + 9)


# --- Estimates --------------------------------------------------------------------------------------------------------


def test_with_few_points_an_unseen_kind_is_estimated_by_its_elements(ledger):
    booked(ledger, kind(2), 100)
    booked(ledger, kind(6, nodes=9), 500)
    booked(ledger, kind(3, nodes=11), None)
    assert ledger.estimated == 100 + (500 - 100) * (3 - 2) // (6 - 2)
    assert ledger.sums.unjudged == ledger.estimated


@pytest.mark.parametrize(("length", "want"), [(1, 100 // 2), (9, 500 * 9 // 6)])
def test_beyond_them_it_is_in_proportion_to_the_nearest(ledger, length, want):
    booked(ledger, kind(2), 100)
    booked(ledger, kind(6), 500)
    booked(ledger, kind(length, nodes=11), None)
    assert ledger.estimated == want


def test_with_more_points_it_is_estimated_by_a_polynomial_that_says_how_good_it_is(ledger):
    for length in range(1, 13):
        booked(ledger, kind(length), 7 * length**2 + 3 * length + 11)
    booked(ledger, kind(40), None)
    assert ledger.estimated == 7 * 40**2 + 3 * 40 + 11
    assert ledger.sums.unjudged == 0
    assert ledger.sums.error <= ledger.estimated // 1000


def test_until_a_step_is_observed_a_counted_one_costs_three_forwards(ledger):
    ledger.add_counted(kind(), 100, outside=2)
    ledger.add(kind(nodes=8))
    assert ledger.estimated == ledger.sums.unjudged == 2 * USUAL_STEP * 100


def test_the_counted_step_is_of_the_kind_that_has_its_forward_and_its_nodes_outside(ledger):
    ledger.add_counted(kind(nodes=20), 100, outside=2)
    ledger.add_observed(kind(nodes=7), StepCost(301, 100), outside=2)
    assert (ledger.flops, ledger.estimated) == (2 * 301, 0)


def test_a_counted_forward_may_have_what_runs_without_autograd_inside(ledger):
    ledger.add_observed(kind(nodes=7), StepCost(301, 80, 0, 20), outside=2)
    ledger.add_counted(kind(nodes=20), 100, outside=2)
    assert (ledger.flops, ledger.estimated) == (2 * 301, 0)


def test_a_counted_step_of_the_very_same_key_costs_the_same_whatever_was_counted(ledger):
    ledger.add_counted(kind(), 99, outside=0)
    ledger.add_observed(kind(), StepCost(301, 100), outside=2)
    ledger.add_counted(kind(), 98, outside=0)
    assert (ledger.flops, ledger.estimated) == (3 * 301, 0)


@pytest.mark.parametrize(
    ("other", "cost", "outside"),
    [
        (kind(optimizers=()), StepCost(301, 100), 2),
        (kind(4), StepCost(301, 100), 2),
        (kind(nodes=8), StepCost(301, 99), 2),
        (kind(nodes=8), StepCost(301, 100), 3),
    ],
)
def test_it_is_of_no_other_kind(ledger, other, cost, outside):
    ledger.add_counted(kind(nodes=20), 100, outside=2)
    ledger.add_observed(other, cost, outside)
    assert ledger.estimated == ledger.flops - 301 > 0


# --- Many kinds -------------------------------------------------------------------------------------------------------


def test_more_kinds_than_are_remembered_keep_their_sums_and_no_memory(ledger):
    lengths = range(1, MOST_KINDS + 1500)
    for length in lengths:
        booked(ledger, kind(length), length, None)
    assert (ledger.flops, ledger.estimated) == (2 * sum(lengths), 0)
    assert len(ledger._kinds) == len(ledger._places) <= MOST_KINDS
    booked(ledger, kind(1), None)  # forgotten, so it is unseen again
    assert ledger.estimated > 0


def test_unseen_kinds_beyond_those_that_are_remembered_stay_as_they_are_estimated(ledger):
    booked(ledger, kind(1, nodes=1), 5)
    for length in range(1, MOST_UNSEEN + 501):
        booked(ledger, kind(length), None)
    estimated = ledger.estimated
    assert estimated == sum(5 * length for length in range(1, MOST_UNSEEN + 501))
    assert len(ledger._kinds) <= MOST_UNSEEN + 1
    booked(ledger, kind(MOST_UNSEEN + 500), 7)  # one of those that are remembered
    assert ledger.sums.exact == 5 + 2 * 7


def test_a_state_of_ever_so_many_kinds_is_small_and_loses_no_flop(ledger):
    for length in range(1, 3000):
        booked(ledger, kind(length), 10**15 + length, None)
        booked(ledger, kind(length, nodes=9), None)
    assert len(json.dumps(ledger.state())) < 100_000
    assert len(json.dumps(ledger.summary())) < 700
    resumed = loaded(through_json(ledger))
    assert numbers(resumed) == numbers(ledger)
    assert len(resumed._waiting) == 2 * MOST_SAVED


# --- States -----------------------------------------------------------------------------------------------------------


def test_a_step_that_was_never_observed_is_booked_exactly_after_a_resume(ledger):
    booked(ledger, kind(3), 100, None)
    booked(ledger, kind(4), None, None)
    resumed = loaded(through_json(ledger))
    booked(resumed, kind(4), 150)
    assert (resumed.flops, resumed.estimated) == (2 * 100 + 3 * 150, 0)


def test_audits_go_on_after_a_resume(ledger):
    booked(ledger, kind(), 100, None, None)
    resumed = loaded(through_json(ledger))
    booked(resumed, kind(), None, 40)
    booked(ledger, kind(), None, 40)
    assert numbers(resumed) == numbers(ledger)
    assert resumed.estimated == 3 * 70


def test_a_counted_step_is_booked_exactly_after_a_resume(ledger):
    ledger.add_counted(kind(nodes=20), 100, outside=2)
    resumed = loaded(through_json(ledger))
    assert resumed.estimated == USUAL_STEP * 100
    resumed.add_observed(kind(nodes=7), StepCost(301, 100), outside=2)
    assert (resumed.flops, resumed.estimated) == (2 * 301, 0)


def test_another_rank_takes_over_what_steps_cost_and_no_steps(ledger):
    booked(ledger, kind(3), 100, None, None)
    booked(ledger, kind(4), 10, None, 30)
    other = loaded(through_json(ledger), costs_only=True)
    assert (other.steps, other.flops) == (0, 0)
    booked(other, kind(3), None)
    booked(other, kind(4), None)
    assert (other.sums.exact, other.estimated) == (100, 30)


def test_what_one_rank_has_observed_settles_what_another_waits_for(ledger):
    other = ComputeLedger()
    booked(ledger, kind(), None, None)
    booked(other, kind(), 100, None)
    for states in ([ledger, other], [other, ledger]):
        merged = ComputeLedger.merged(map(through_json, states))
        assert (merged.steps, merged.flops, merged.estimated) == (4, 400, 0)


def test_ranks_that_disagree_keep_their_sums(ledger):
    other = ComputeLedger()
    booked(ledger, kind(), 100, None)
    booked(other, kind(), 60, None)
    merged = ComputeLedger.merged([through_json(ledger), through_json(other)])
    assert (merged.steps, merged.flops) == (4, 320)


def test_a_state_is_added_to_what_was_booked_since(ledger):
    booked(ledger, kind(3), 100, None)
    now = ComputeLedger()
    booked(now, kind(3), None)
    now.load(through_json(ledger))
    assert (now.steps, now.flops, now.estimated) == (3, 300, 0)


# --- Whatever comes ---------------------------------------------------------------------------------------------------

KINDS = st.builds(
    kind,
    st.integers(1, 4),
    nodes=st.integers(5, 6),
    backwards=st.integers(0, 1),
    optimizers=st.sampled_from([(), (0,), (0, 1)]),
)


def price_of(key):
    (length, _), *_ = key.inputs.shapes
    return StepCost(2**60 + length * 1009 + key.nodes * 101 + key.backwards * 11 + len(key.optimizers), length)


STEPS = st.lists(st.tuples(KINDS, st.booleans()), max_size=60)


def run(ledger, steps):
    for key, is_observed in steps:
        if is_observed:
            ledger.add_observed(key, price_of(key))
        else:
            ledger.add(key)


@given(steps=STEPS)
def test_once_every_kind_was_observed_the_total_is_the_exact_sum(steps):
    ledger = ComputeLedger()
    run(ledger, steps)
    observed = {key for key, is_observed in steps if is_observed}
    known = [key for key, _ in steps if key in observed]
    assert ledger.sums.exact == sum(price_of(key).flops for key in known)
    assert (ledger.estimated > 0) <= (len(known) < len(steps))
    run(ledger, [(key, True) for key in {key for key, _ in steps} - observed])
    assert ledger.estimated == 0


@given(steps=STEPS, cut=st.integers(0, 60))
def test_a_checkpoint_at_any_step_changes_no_number(steps, cut):
    whole = ComputeLedger()
    run(whole, steps)
    first = ComputeLedger()
    run(first, steps[:cut])
    resumed = loaded(through_json(first))
    run(resumed, steps[cut:])
    assert (resumed.steps, resumed.audited, resumed.sums.exact) == (whole.steps, whole.audited, whole.sums.exact)


@given(steps=STEPS, ranks=st.integers(1, 4), data=st.data())
def test_ranks_together_have_the_sum_of_their_steps_in_any_order(steps, ranks, data):
    ledgers = [ComputeLedger() for _ in range(ranks)]
    for number, step in enumerate(steps):
        run(ledgers[number % ranks], [step])
    merged = ComputeLedger.merged(data.draw(st.permutations([through_json(each) for each in ledgers])))
    assert merged.steps == len(steps)
    run(merged, [(key, True) for key in {key for key, _ in steps}])
    assert merged.estimated == 0
    everything = [key for key, _ in steps] + list({key for key, _ in steps})
    assert merged.flops == sum(price_of(key).flops for key in everything)


VARYING = st.lists(st.one_of(st.none(), st.integers(1, 9)), min_size=1, max_size=40)


@given(costs=VARYING, cut=st.integers(0, 40))
def test_observed_steps_are_exact_and_a_resume_forgets_no_audit(costs, cut):
    whole, first = ComputeLedger(), ComputeLedger()
    booked(whole, kind(), *costs)
    booked(first, kind(), *costs[:cut])
    resumed = loaded(through_json(first))
    booked(resumed, kind(), *costs[cut:])
    assert numbers(resumed) == numbers(whole)
    seen = [cost for cost in costs if cost is not None]
    if len(set(seen)) <= 1:
        assert whole.estimated == 0 if seen else whole.flops == 0
    else:
        at = [step for step, cost in enumerate(costs) if cost is not None]
        agreed = next(n for n, cost in enumerate(seen) if cost != seen[0])  # before the first that differs
        begin = 0 if agreed < TRUSTED else at[agreed - 1]
        assert (whole.estimated > 0) == (None in costs[begin:])
        unobserved = len(costs) - len(seen)
        assert whole.flops - sum(seen) <= unobserved * max(seen)
        assert whole.flops - sum(seen) >= unobserved * min(seen) - unobserved
