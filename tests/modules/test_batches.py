"""Samples and tokens of a batch: right, or absent."""

from __future__ import annotations

from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import default_collate

from flopcallback.modules.batches import samples_in, tokens_in

X, Y, SCALAR = torch.ones(7, 5), torch.ones(7), torch.tensor(2.0)
OTHER = torch.ones(11, 5)
IDS = torch.zeros(7, 5, dtype=torch.long)

Named = namedtuple("Named", "x y")


@dataclass
class Pair:
    x: Any
    y: Any = None


class Opaque:
    def __init__(self, **values):
        vars(self).update(values)


class Graphs(Opaque):
    """Says its samples by a property, as a batch of PyTorch Geometric does."""

    @property
    def num_graphs(self):
        return len(self.sizes)


class OfDimensions(UserDict):
    """Says its samples by a shape, as a TensorDict does."""

    batch_size = torch.Size([7, 5])


class Raising(Opaque):
    @property
    def num_graphs(self):
        raise RuntimeError("collated by hand")


class Answering(Opaque):
    def __getattr__(self, name):
        return 13


@pytest.mark.parametrize(
    "batch",
    [
        X,
        [X, Y],
        (X, (Y, X)),
        {"x": X, "y": [Y, SCALAR]},
        OrderedDict(x=X, y=Y),
        UserDict(x=X, y=Y),
        Named(X, Y),
        Pair(X, Pair(Y)),
        [X, Y, "a text", 3, None, 0.5],
        [X, [f"{index}.png" for index in range(7)]],
        [np.ones((7, 2)), X],
        [X, Opaque(scale=3)],
        [X, Opaque(batch_size=32)],  # no batch: it holds no tensor
        default_collate([((torch.ones(5), torch.ones(3)), (torch.ones(2), 1))] * 7),
        ((X,), {"y": Y}),
        (({"x": X, "y": Y},), {}),
        ((X, nn.Linear(5, 3)), {}),
    ],
)
def test_samples_are_the_first_dimension_of_columns(batch):
    assert samples_in(batch) == 7


@pytest.mark.parametrize(
    "batch",
    [
        Graphs(x=OTHER, sizes=[1] * 7),
        [Graphs(x=OTHER, sizes=[1] * 7), torch.ones(7)],
        [Graphs(x=OTHER, sizes=[1] * 7), torch.ones(11)],  # a label for each node
        Opaque(num_graphs=7, x=OTHER),
        {"graph": Opaque(batch_size=7, x=OTHER)},
        OfDimensions(x=torch.ones(7, 5, 3), y=torch.ones(7, 5)),
        pack_sequence([torch.ones(length, 5) for length in (4, 4, 4, 2, 2, 1, 1)]),
        [pack_sequence([torch.ones(2, 5)] * 7), Y],
    ],
    ids=lambda batch: type(batch).__name__,
)
def test_samples_are_what_a_batch_says(batch):
    assert samples_in(batch) == 7


def test_one_sequence_that_is_packed_is_one_sample():
    # Its steps and its elements agree: they are no samples.
    assert samples_in(pack_sequence([torch.ones(4, 5)])) == 1


@pytest.mark.parametrize(
    "batch",
    [
        None,
        "a text",
        ["a text"] * 7,
        [],
        SCALAR,
        [X, OTHER],
        Pair(Pair(OTHER), Y),
        [X, Opaque(x=OTHER)],
        Opaque(x=X),  # rows, or nodes
        Opaque(x=X, y=Y),
        [Opaque(x=OTHER), OTHER],  # a label for each node
        Raising(x=X),
        Answering(x=X),
        Opaque(num_graphs=True, x=X),
        Opaque(num_graphs=SCALAR, x=X),
        [Opaque(num_graphs=3, x=X), Opaque(num_graphs=4, x=X)],
        [X] * 2_000,
    ],
    ids=lambda batch: type(batch).__name__,
)
def test_without_agreement_samples_are_not_known(batch):
    assert samples_in(batch) is None


IMAGE = torch.ones(3, 32, 32)


@pytest.mark.parametrize(
    "samples",
    [
        [(torch.ones(5), 1)] * 4,
        [(torch.ones(5), 1)],
        [Named(torch.ones(5), 1)] * 4,
        [{"x": torch.ones(5)}] * 4,
        ({"x": torch.ones(5)},) * 4,
        [Pair(torch.ones(5))] * 4,
        [IMAGE] * 4,
        (IMAGE, torch.ones(3, 16, 64)),
        ((IMAGE,) * 4, ({"boxes": torch.ones(3, 4), "labels": torch.ones(3)},) * 4),
        [torch.ones(1, 28, 28)] * 4,
    ],
)
def test_a_list_of_samples_is_no_batch_of_its_first_dimensions(samples):
    assert samples_in(samples) is None
    assert samples_in(((samples,), {})) is None


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_samples_of_nested_tensors_are_their_components():
    for layout in (torch.strided, torch.jagged):
        assert samples_in([torch.nested.nested_tensor([torch.ones(2, 5), torch.ones(4, 5)], layout=layout)]) == 2


class Refusing(torch.Tensor):
    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError("no questions")


def test_samples_of_a_tensor_that_refuses_to_be_asked_are_not_known():
    assert samples_in([X, X.as_subclass(Refusing)]) is None


@pytest.mark.parametrize(
    "batch",
    [
        {"input_ids": IDS},
        OrderedDict(input_ids=IDS),
        UserDict(input_ids=IDS, mask=IDS),
        ((), {"input_ids": IDS}),
        [X, {"input_ids": IDS}],
        {"text": {"input_ids": IDS}, "labels": IDS},
        Opaque(input_ids=IDS),
        [X, SimpleNamespace(input_ids=IDS)],
        Pair(X, {"input_ids": IDS}),
        namedtuple("Text", "input_ids mask")(IDS, IDS),
        {"query": {"input_ids": IDS[:3]}, "answers": [{"input_ids": IDS[:2]}, {"input_ids": IDS[:2]}]},
    ],
)
def test_tokens_are_the_elements_of_all_input_ids(batch):
    assert tokens_in(batch) == 7 * 5


@pytest.mark.parametrize(
    "batch",
    [X, None, {"ids": IDS}, {"input_ids": [1, 2]}, (X,), (), nn.Embedding(3, 5), "input_ids", Answering(x=IDS)],
    ids=lambda batch: type(batch).__name__,
)
def test_without_input_ids_tokens_are_not_known(batch):
    assert tokens_in(batch) is None
