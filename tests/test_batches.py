"""What is read of a batch: shapes, samples and tokens."""

from __future__ import annotations

from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from flopcallback import FlopCallbackWarning
from flopcallback.modules.batches import samples_in, tokens_in
from flopcallback.modules.structures import shapes_of, tensors_in
from flopcallback.training.batch_sizes import BatchSizes, whole_number
from flopcallback.training.failures import Failures


@dataclass
class Pair:
    x: Any
    y: Any = None


Named = namedtuple("Named", "a b")
A, B = torch.ones(3, 5), torch.ones(7)


@pytest.mark.parametrize(
    "structure",
    [
        [A, B],
        (A, [B]),
        {"a": A, "b": {"c": B}},
        OrderedDict(a=A, b=B),
        UserDict(a=A, b=B),
        Named(A, B),
        Pair(A, B),
        Pair({"a": A}, [B, None, 3, "text", 2.0, True]),
        ((A,), {"b": B}),
    ],
)
def test_tensors_are_found_wherever_they_are(structure):
    assert shapes_of(structure) == ((3, 5), (7,))
    assert [tuple(tensor.shape) for tensor in tensors_in(structure)] == [(3, 5), (7,)]


@pytest.mark.parametrize("structure", [None, [], {}, "text", 3, Pair, Pair(None), object()])
def test_where_there_are_none_there_are_no_shapes(structure):
    assert shapes_of(structure) == ()
    assert samples_in(structure) is None


def test_samples_are_the_samples_in_that_all_agree_on():
    assert samples_in([A, torch.ones(3)]) == 3
    assert samples_in([A, torch.tensor(2.0)]) == 3
    assert samples_in([A, B]) is None
    assert samples_in(torch.tensor(2.0)) is None


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


def of(found, batch):
    return found.of(batch, batch, shapes_of(batch))


IDS = torch.zeros(3, 5, dtype=torch.long)


@pytest.mark.parametrize(
    "batch",
    [{"input_ids": IDS}, UserDict(input_ids=IDS, mask=IDS), ((), {"input_ids": IDS}), [A, {"input_ids": IDS}]],
)
def test_tokens_are_the_elements_of_input_ids(batch):
    assert of(sizes(), batch) == (3, 15)


def test_also_of_an_object_that_has_them():
    batch = Pair(IDS)
    batch.input_ids = IDS
    assert of(sizes(), batch) == (3, 15)


@pytest.mark.parametrize("batch", [A, {"ids": IDS}, {"input_ids": [1, 2]}, (A,), ()])
def test_without_them_tokens_are_not_known(batch):
    assert of(sizes(), batch)[1] is None


def test_batches_of_the_same_shapes_and_other_names_are_told_apart():
    found = sizes()
    assert [of(found, each)[1] for each in ({"input_ids": IDS}, {"labels": IDS}, {"input_ids": IDS})] == [15, None, 15]
    calls = [((), {"input_ids": IDS}), ((), {"labels": IDS})]
    assert [of(sizes(), each)[1] for each in calls] == [15, None]
    found = sizes()
    assert [of(found, each)[1] for each in calls] == [15, None]


def test_what_lightning_says_is_asked_once_for_batches_that_are_alike():
    asked = []
    found = sizes(default=lambda batch: asked.append(batch) or 3)
    for batch in (A, A, torch.ones(4, 5), A):
        of(found, batch)
    assert len(asked) == 2


def test_a_users_functions_are_asked_every_time():
    found = sizes(samples=lambda batch: int(batch.sum()), tokens=lambda batch: 11)
    assert [of(found, torch.full((2,), float(value))) for value in (1, 2, 3)] == [(2, 11), (4, 11), (6, 11)]


def test_a_function_that_fails_is_said_once_and_not_asked_again():
    asked = []

    def fails(batch):
        asked.append(batch)
        raise KeyError("length")

    found = sizes(tokens=fails)
    with pytest.warns(FlopCallbackWarning, match=r"the number of tokens is not known: KeyError") as told:
        assert [of(found, A) for _ in range(3)] == [(3, None)] * 3
    assert (len(told), len(asked)) == (1, 1)


def test_where_strict_it_is_raised():
    with pytest.raises(TypeError, match="batch_size_fn returned 'three'"):
        of(sizes(samples=lambda batch: "three", strict=True), A)
