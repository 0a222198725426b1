"""Inputs that were met before: one look-up answers what their key would."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from flopcallback.modules.batches import samples_in
from flopcallback.training.batch_sizes import BatchSizes
from flopcallback.training.call_keys import FEW
from flopcallback.training.failures import Failures
from flopcallback.training.kinds import Kind, StepCost
from flopcallback.training.known_inputs import MOST_BEGINNINGS, MOST_ENDS, MOST_INPUTS, InputTable, KnownInputs
from flopcallback.training.meter import ComputeMeter

A, B = torch.ones(3, 5), torch.ones(7)


@pytest.mark.parametrize("inputs", [A, (A,), [A], ((A,), {}), ([[A]],), ((A, "text"), {}), (torch.zeros(3, 5), [])])
def test_containers_texts_and_values_make_no_difference(inputs):
    table = InputTable()
    assert table.look_up(inputs) is table.look_up(A)
    assert table.look_up(inputs).key.shapes == ((3, 5),)


@pytest.mark.parametrize("other", [B, (A, A), A.clone().requires_grad_(), {"a": A}, (A, 3), (A, object()), "text"])
def test_other_inputs_are_told_apart(other):
    table = InputTable()
    assert table.look_up(A) is not table.look_up(other)
    assert table.look_up(A) is table.look_up(torch.zeros(3, 5))


def test_only_so_many_are_remembered_and_all_are_answered():
    table = InputTable()
    for length in range(1, MOST_INPUTS + 10):
        assert table.look_up(torch.empty(length)).key.shapes == ((length,),)
        assert len(table._by_key) <= MOST_INPUTS
        assert len(table._by_facts) <= MOST_INPUTS


def test_only_so_many_beginnings_and_ends_are_remembered():
    known = KnownInputs(None)
    for number in range(3 * MOST_BEGINNINGS):
        beginning = known.begin(f"{number} of 100")
        assert len(known.beginnings) <= MOST_BEGINNINGS
    for nodes in range(3 * MOST_ENDS):
        beginning.note(((), 1, (0,), nodes, 2, 3), Kind(""))
        assert len(beginning.ends) <= MOST_ENDS


def metered(model):
    return ComputeMeter(model, BatchSizes(None, None, samples_in, Failures()))


def test_names_that_are_left_out_of_keys_tell_of_tokens_all_the_same():
    meter = metered(nn.Linear(7, 3))
    batches = [torch.ones(2, 7), *({f"sample_{number}": torch.ones(2, 7)} for number in range(FEW))]
    for batch in (*batches, *batches):
        meter.begin_step(batch, batch)
        assert (meter.step.samples, meter.step.tokens) == (2, None)
        meter.end_step()
    for _ in range(3):
        batch = {"input_ids": torch.ones(2, 7)}
        meter.begin_step(batch, batch)
        assert (meter.step.samples, meter.step.tokens) == (2, 2 * 7)
        meter.end_step()


def test_a_kind_that_was_forgotten_is_met_anew():
    meter, x = metered(nn.Linear(5, 3)), torch.ones(2, 5)

    def step(cost=None):
        meter.begin_step(x, x)
        if cost is not None:
            meter.set_observed_cost(cost)
        meter.end_step()

    step(StepCost(60))
    for _ in range(3):
        step()
    ledger = meter.ledger
    (kind,) = ledger._kinds.values()
    ledger._forget(kind)
    for _ in range(2):
        step()
    assert kind.steps == 4
    assert [each.steps for each in ledger._kinds.values()] == [2]
    assert (ledger.sums.exact, ledger.steps) == (4 * 60, 6)
    step(StepCost(70))
    assert ledger.sums.exact == 4 * 60 + 3 * 70
