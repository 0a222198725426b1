"""Numbers and names in the keys of a training's calls."""

from __future__ import annotations

import torch

from flopcallback.modules.structures import CallKey, key_of
from flopcallback.training.call_keys import FEW, CallKeys

X = torch.ones(3, 5)


def call(*args, **kwargs):
    return (X, *args), kwargs


def test_a_number_of_few_values_is_part_of_all_keys():
    keys = CallKeys()
    depths = [*range(FEW)] * 100
    assert [keys.settled(key_of(call(depth))).numbers for depth in depths] == [(depth,) for depth in depths]


def test_a_counter_is_left_out_after_a_while():
    keys = CallKeys()
    seen = [keys.settled(key_of(call(step))) for step in range(10_000)]
    assert len({*seen}) == FEW + 1
    assert {*seen[FEW:]} == {CallKey(((3, 5),), (None,))}


def test_beside_a_counter_other_numbers_stay():
    keys = CallKeys()
    for step in range(100):
        keys.settled(key_of(call(step, 3, depth=step % 2)))
    assert keys.settled(key_of(call(200, 3, depth=0))) == keys.settled(key_of(call(201, 3, depth=0)))
    assert len({keys.settled(key_of(call(200, 3, depth=depth))) for depth in (0, 1)}) == 2
    assert len({keys.settled(key_of(call(200, width, depth=0))) for width in (3, 4)}) == 2


def test_an_argument_of_another_name_is_another_number():
    keys = CallKeys()
    for step in range(100):
        keys.settled(key_of(call(step=step)))
    assert keys.settled(key_of(call(step=200))).numbers == (None,)
    assert keys.settled(key_of(call(depth=200))).numbers == (200,)


def test_tasks_are_told_apart_and_names_of_samples_are_not():
    keys = CallKeys()
    tasks = [keys.settled(key_of({task: X})) for task in ("cats", "dogs") * 100]
    assert len({*tasks}) == 2
    samples = [keys.settled(key_of({f"{sample}.png": X, "sample": sample})) for sample in range(10_000)]
    assert len({*samples}) <= 2 * FEW  # names first, then numbers
    assert samples[-1] == CallKey(((3, 5),), (None,))
    assert keys.settled(key_of({"cats": X})) == tasks[0]
