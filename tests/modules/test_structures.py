"""Keys of calls: shapes and numbers in whatever a module is given."""

from __future__ import annotations

import gc
import weakref
from collections import OrderedDict, UserDict, deque, namedtuple
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from flopcallback.modules.structures import LONG, MOST_FACTS, MOST_VALUES, CallKey, facts_of, shapes_of, tensors_in
from flopcallback.modules.structures import key_of as whole_key_of
from flopcallback.tracing.torch_private import nodes_so_far

A, B = torch.ones(3, 5), torch.ones(7)
BOTH = ((3, 5), (7,))

Named = namedtuple("Named", "a b")


@dataclass
class Pair:
    a: Any
    b: Any = None


@dataclass(frozen=True, slots=True)
class Slotted:
    a: Any
    b: Any


class Private:
    """Slots whose names Python mangles, one of them never filled, and a property in place of a base's slot."""

    __slots__ = ("__a", "b", "c")

    def __init__(self, a, b):
        self.__a, self.b = a, b


class Untouchable:
    """An object whose own code must not run, only to be looked at."""

    def __init__(self, **values):
        object.__getattribute__(self, "__dict__").update(values)

    def __getattribute__(self, name):
        raise AssertionError(f"{name} was asked for")

    def __iter__(self):
        raise AssertionError("iterated")

    def __len__(self):
        raise AssertionError("its length was asked for")

    def __eq__(self, other):
        raise AssertionError("compared")

    def __hash__(self):
        raise AssertionError("hashed")

    def __bool__(self):
        raise AssertionError("taken for a truth")


class Shadowing(Private):
    @property
    def b(self):
        raise AssertionError("a property ran")


class LoadingDict(dict):
    def values(self):
        raise AssertionError("values() ran")

    def __iter__(self):
        raise AssertionError("iterated")


class LoadingList(list):
    def __iter__(self):
        raise AssertionError("iterated")


@pytest.mark.parametrize(
    "inputs",
    [
        (A, B),
        [A, B],
        {"a": A, "b": B},
        ((A,), {"b": B}),
        OrderedDict(a=A, b=B),
        UserDict(a=A, b=B),
        deque([A, B]),
        Named(A, B),
        Pair(A, B),
        Slotted(A, B),
        Private(A, B),
        SimpleNamespace(a=A, inner=SimpleNamespace(b=[B])),
        ((Pair(A, Pair(None, B)),), {}),
        LoadingDict(a=A, b=B),
        LoadingList([A, B]),
        [np.ones((3, 5)), np.ones(7)],
        Pair(np.ones((3, 5)), B),
        Pair(nn.Parameter(A, requires_grad=False), nn.Buffer(B)),
    ],
    ids=lambda inputs: type(inputs).__name__,
)
def test_shapes_are_found_in_anything(inputs):
    assert key_of(inputs) == CallKey(BOTH)
    assert shapes_of(inputs) == BOTH


def key_of(inputs):
    """The key, without names and the number of objects, which have tests of their own."""
    key = whole_key_of(inputs)
    return key and key._replace(names=(), objects=0)


def test_no_code_of_an_object_runs():
    inputs = ((Untouchable(a=A, b=Untouchable(c=B)),), {})
    assert key_of(inputs) == CallKey(BOTH)


def test_a_property_that_hides_a_slot_does_not_run():
    assert key_of(Shadowing.__new__(Shadowing)) is None


class OwnTuple(tuple):
    def __iter__(self):
        raise AssertionError("iterated")


def test_a_tuple_of_another_class_is_read_as_a_tuple():
    assert shapes_of(OwnTuple([A, B])) == BOTH


def loading():
    raise AssertionError("a generator ran")
    yield A


@pytest.mark.parametrize(
    "inputs",
    [
        None,
        "a text",
        ["two", "texts"],
        (("text",), {"mode": "full", "times": 3}),
        3,
        object(),
        Pair,
        Pair(3, "text"),
        nn.Linear(3, 5),
        Pair(nn.Linear(3, 5)),
        DataLoader(TensorDataset(A)),
        TensorDataset(A),
        loading(),
        iter([A]),
        map(abs, [A]),
        lambda x=A: x,
        Pair(A).__eq__,
        torch.optim.SGD([nn.Parameter(A)], lr=0.1),
        [[], {}, ()],
    ],
    ids=lambda inputs: type(inputs).__name__,
)
def test_without_a_tensor_in_the_inputs_nothing_is_known(inputs):
    assert key_of(inputs) is None


def test_an_iterator_is_left_as_it_was():
    batches = iter([A, B])
    key_of((batches, A))
    assert next(batches) is A


def test_objects_that_hold_each_other_are_entered_once():
    child = Pair(A)
    child.b = parent = Pair(child, B)
    assert key_of(parent) == CallKey(BOTH)


@pytest.mark.parametrize("again", [list, dict], ids=["list", "dict"])
def test_a_container_that_holds_itself_ends_without_a_key(again):
    inputs = again()
    if again is list:
        inputs += [A, inputs]
    else:
        inputs.update(a=A, again=inputs)
    assert key_of(inputs) is None
    assert key_of(Pair(inputs)) == CallKey(((3, 5),))  # in an object each container is entered once


@pytest.mark.parametrize("wrap", [lambda values: values, Pair, lambda values: Pair(Pair(tuple(values)))])
def test_beyond_a_thousand_values_nothing_is_known(wrap):
    assert len(key_of(wrap([A] * (MOST_VALUES - 10))).shapes) == MOST_VALUES - 10
    assert key_of(wrap([A] * (MOST_VALUES + 1))) is None


def test_a_long_chain_of_objects_ends():
    chain = None
    for _ in range(100_000):
        chain = SimpleNamespace(next=chain)
    assert key_of((A, chain)) is None
    while chain is not None:  # one by one: Python frees a chain recursively
        chain = chain.next


def test_names_and_ids_beside_a_batch_are_known_by_their_number():
    names = [f"{index}.png" for index in range(100_000)]
    assert key_of((A, names)) == key_of((A, [*names[:-1], "another.png"])) == CallKey(((3, 5),), (100_000,))
    assert key_of((A, names)) != key_of((A, names[:-1]))
    assert key_of(Pair(A, names)) == CallKey(((3, 5),))


def test_plain_numbers_are_part_of_the_key():
    def key(*args, **kwargs):
        return key_of((args, kwargs))

    assert key(A, 3) != key(A, 4)
    assert key(A, depth=3) != key(A, depth=4)
    assert key(A, full=True) != key(A, full=False)
    assert key(A, size=(224, 224)) != key(A, size=(96, 96))
    assert key({"x": A, "depth": 3}) != key({"x": A, "depth": 4})


def test_names_are_part_of_the_key():
    assert whole_key_of({"cats": A, "size": 3}).names == ("cats size",)
    assert whole_key_of(((), {"text": {"cats": A}})).names == ("text", "cats")
    assert whole_key_of({"cats": A}) != whole_key_of({"dogs": A})
    assert whole_key_of({17: A}) == whole_key_of({18: A})  # numbers of samples, say


def test_a_key_says_whether_objects_were_searched():
    assert [whole_key_of(inputs).objects for inputs in (A, {"a": [A]}, UserDict(a=A), Pair(A), [A, Pair(B)])] == [
        *(0, 0, 0, 1, 1)
    ]
    assert whole_key_of(UserDict(a=A)) == whole_key_of({"a": A})


def test_numbers_of_objects_floats_and_long_lists_are_not():
    assert key_of(Pair(A, 3)) == key_of(Pair(A, 4))
    assert key_of((A, 0.25)) == key_of((A, 0.5))
    assert key_of((A, [*range(LONG + 1)])) == key_of((A, [*range(1, LONG + 2)]))


def test_a_tensor_that_requires_grad_makes_another_key():
    # Its backward has a product more.
    wants = torch.ones(3, 5, requires_grad=True)
    assert key_of((B, A)) == CallKey(((7,), (3, 5)))
    assert key_of((B, wants)) == key_of((B, wants * 2)) == CallKey(((7,), (3, 5)), (), (1,))
    assert key_of((B, Pair(wants))) == CallKey(((7,), (3, 5)), (), (1,))


def nested(lengths, layout):
    return torch.nested.nested_tensor([torch.ones(length, 5) for length in lengths], layout=layout)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize(("layout", "packed"), [(torch.strided, (30,)), (torch.jagged, (6, 5))])
def test_a_nested_tensor_has_its_length_and_what_it_packs(layout, packed):
    assert key_of([nested((2, 4), layout)]) == CallKey(((2, *packed),))
    assert key_of([nested((2, 3), layout)]) != key_of([nested((2, 4), layout)])
    assert key_of([nested((2, 4), layout)]) == key_of([nested((2, 4), layout)])


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
def test_a_sparse_tensor_has_its_stored_elements(layout):
    assert key_of([torch.eye(5).to_sparse(layout=layout)]) == CallKey(((5, 5, 5),))
    assert key_of([torch.eye(5)[:, :2].to_sparse(layout=layout)]) == CallKey(((5, 2, 2),))


def test_a_packed_sequence_has_all_its_steps():
    def packed(*lengths):
        return nn.utils.rnn.pack_sequence([torch.ones(length, 2) for length in lengths])

    assert key_of(packed(4, 3)) != key_of(packed(4, 2))
    assert key_of(packed(4, 3)).shapes[0] == (4 + 3, 2)


def test_a_look_makes_no_autograd_node():
    values = torch.ones(6, 5, requires_grad=True)
    inputs = torch.nested.nested_tensor_from_jagged(values * 1, torch.tensor([0, 2, 6]))
    before = nodes_so_far()
    assert key_of([inputs]) == CallKey(((2, 6, 5),), (), (0,))
    assert nodes_so_far() == before


class Refusing(torch.Tensor):
    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError("no questions")


def test_a_tensor_that_refuses_to_be_asked_makes_no_key():
    assert key_of((A, A.as_subclass(Refusing))) is None


def test_nothing_of_the_inputs_is_kept():
    class Own:
        __slots__ = ("__weakref__", "x")

        def __init__(self, x):
            self.x = x

    inputs = Own(torch.ones(3, 5))
    assert key_of(inputs) == CallKey(((3, 5),))
    gone = weakref.ref(inputs), weakref.ref(inputs.x), weakref.ref(Own)
    del inputs, Own
    gc.collect()
    assert [reference() for reference in gone] == [None] * 3


def test_tensors_are_those_of_results_in_objects_too():
    found = [*tensors_in([Pair(A, np.ones(2)), {"b": B}])]
    assert [id(tensor) for tensor in found] == [id(A), id(B)]


GRAD = torch.ones(3, 5, requires_grad=True)
PLAIN_INPUTS = [
    A, (A,), [A], ((A,), {}), ((A, B), {}), ([A, [B]],), ((B, A), {}), ((GRAD,), {}), ((A, GRAD), {}), ((GRAD, A), {}),
    {"a": A}, {"b": A}, {"a": A, "b": B}, {"b": A, "a": B}, ((), {"a": A}), ((A,), {"b": B}), (({"a": A},), {}),
    {"a": {"b": A}}, {"a b": A}, ({"a": A}, {"b": B}), ({"b": A}, {"a": B}), [(A, B)], [(A,), (B,)], {1: A}, {2: A},
]  # fmt: skip


def test_equal_facts_have_equal_keys():
    for one in PLAIN_INPUTS:
        assert facts_of(one) is not None
        for other in PLAIN_INPUTS:
            assert (facts_of(one) == facts_of(other)) <= (whole_key_of(one) == whole_key_of(other))


ITSELF: list[Any] = [A]
ITSELF.append(ITSELF)


@pytest.mark.parametrize(
    "inputs",
    [
        (A, 3), "text", None, object(), {"a": Pair(A)}, A.to_sparse(), (A.to_sparse(),), np.ones(3), nn.Parameter(A),
        Named(A, B), ITSELF, [A] * (MOST_FACTS + 1), {str(name): A for name in range(MOST_FACTS + 1)},
        ([A] * (MOST_FACTS + 1), {}), ((A,), {"b": 3}), torch.nested.nested_tensor([A, A], layout=torch.jagged),
    ],
)  # fmt: skip
def test_of_anything_but_a_few_tensors_in_plain_containers_there_are_no_facts(inputs):
    assert facts_of(inputs) is None
