"""Samples and tokens of a step."""

from __future__ import annotations

import pytest
import torch

from flopcallback import FlopCallbackWarning
from flopcallback.modules.batches import samples_in
from flopcallback.training.batch_sizes import BatchSizes, StepSizes, whole_number
from flopcallback.training.failures import Failures

A, B = torch.ones(3, 5), torch.ones(7)


@pytest.mark.parametrize(("value", "number"), [(3, 3), (0, 0), (2**70, 2**70), (torch.tensor(5), 5)])
def test_a_users_function_gives_a_whole_number(value, number):
    result = whole_number(lambda batch: value, "tokens_fn", A)
    assert (result, type(result)) == (number, int)


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (2.5, TypeError, "tokens_fn returned 2.5, expected an int"),
        (None, TypeError, "tokens_fn returned None, expected an int"),
        (torch.ones(2), TypeError, "tokens_fn returned tensor"),
        (-1, ValueError, "tokens_fn returned -1, expected 0 or more"),
    ],
)
def test_or_an_error_that_names_it(value, error, text):
    with pytest.raises(error, match=text):
        whole_number(lambda batch: value, "tokens_fn", A)


def sizes(samples=None, tokens=None, default=samples_in, *, strict=False):
    return BatchSizes(samples, tokens, default, Failures(strict=strict))


def of(found, *batches):
    """Samples and tokens of a step with some batches."""
    step = StepSizes(0, 0, 0)
    for batch in batches:
        found.add(step, batch, batch)
    return step.samples, step.tokens


IDS = torch.zeros(3, 5, dtype=torch.long)


def test_a_step_has_the_samples_and_tokens_of_its_batches():
    assert of(sizes(), {"input_ids": IDS}, {"input_ids": IDS[:2]}) == (3 + 2, 15 + 10)
    assert of(sizes()) == (0, 0)


@pytest.mark.parametrize("unknown", [0, 1, 2])
def test_a_sum_with_an_unknown_part_is_unknown(unknown):
    batches = [{"input_ids": IDS}] * 3
    batches[unknown] = [A, B]
    assert of(sizes(), *batches) == (None, None)


def calls(found, *inputs, batch=None):
    step = StepSizes(0, 0, 0)
    for number, each in enumerate(inputs):
        found.add(step, batch, each, is_new=not number)
    return step.samples, step.tokens


def test_a_batch_counts_once_and_the_tokens_of_each_call():
    assert calls(sizes(), {"input_ids": IDS}, {"input_ids": torch.zeros(3, 7)}) == (3, 15 + 21)


def test_calls_without_tokens_beside_those_with_some_do_not_matter():
    images = {"pixels": torch.ones(3, 2, 2)}
    assert calls(sizes(), {"input_ids": IDS}, images) == (3, 15)
    assert calls(sizes(), images, {"input_ids": IDS}) == (3, 15)
    assert calls(sizes(), images, images) == (3, None)


def test_a_users_functions_are_asked_once_for_each_batch():
    asked = []
    found = sizes(samples=lambda batch: len(batch), tokens=lambda batch: asked.append(batch) or 11)
    assert calls(found, {"input_ids": IDS}, {"input_ids": IDS}, batch="four") == (4, 11)
    assert asked == ["four"]


def test_a_function_that_fails_is_said_once_and_not_asked_again():
    asked = []

    def fails(batch):
        asked.append(batch)
        raise KeyError("length")

    found = sizes(tokens=fails)
    with pytest.warns(FlopCallbackWarning, match=r"the number of tokens is not known: KeyError") as told:
        assert calls(found, *[{"input_ids": IDS}] * 3) == of(found, {"input_ids": IDS}) == (3, None)
    assert (len(told), len(asked)) == (1, 1)


def test_where_strict_it_is_raised():
    with pytest.raises(TypeError, match="batch_size_fn returned 'three'"):
        of(sizes(samples=lambda batch: "three", strict=True), A)
