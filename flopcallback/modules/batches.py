"""Numbers of samples and tokens in what a model is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.nn.utils.rnn import PackedSequence

from flopcallback.modules.structures import MOST_VALUES, PLAIN, holds_tensors, is_plain, is_wanted, parts_of

__all__ = ["samples_in", "tokens_in"]

SAYS_SAMPLES = ("num_graphs", "batch_size")
"""Attributes in which a batch says its number of samples: of PyTorch Geometric; of DGL and tensordict."""

TOKENS = "input_ids"
"""Name of the tokens in the batches of `transformers`."""

CHANNELS = (1, 3)
"""Numbers of channels by which images are told from batches."""

_columns: WeakKeyDictionary[type, bool] = WeakKeyDictionary()  # what `_has_columns` answered

Tensor = torch.Tensor  # looked up for each value of each step


def samples_in(inputs: Any) -> int | None:
    """Return the number of samples in a batch, or None where it is not certain.

    It is what a batch says in `num_graphs` or `batch_size`, else the first dimension that all tensors and arrays have
    in common. They are searched in tuples, lists, mappings and dataclasses, whose parts are taken for columns. Not
    certain are lists of samples (tuples, mappings, dataclasses or images), and other objects with tensors.

    Args:
        inputs: a batch, or `(args, kwargs)`.
    """
    parts = _arguments(inputs)
    said: set[int] = set()
    found: set[int] = set()
    for part in parts:  # which grows
        kind = type(part)
        if kind is Tensor:
            if part.dim():
                found.add(part.size(0))
        elif kind is dict:
            parts += part.values()
        elif kind is tuple or kind is list:
            if is_plain(part):
                continue
            if _are_samples(part, kind):
                return None
            parts += part
        elif kind not in PLAIN:
            if (number := _said_by(part)) is not None:
                said.add(number)
            elif _has_columns(kind):
                parts += parts_of(part)
            elif is_wanted(kind):
                if (shape := _shape_of(part)) is None:
                    return None
                found |= {*shape[:1]}
            elif holds_tensors(part):
                return None
        if len(parts) > MOST_VALUES:
            return None
    numbers = said or found
    return numbers.pop() if len(numbers) == 1 else None


def tokens_in(inputs: Any) -> int | None:
    """Return the number of elements of all `input_ids` in a batch; None if there are none.

    They are searched in tuples, lists and mappings, and among the attributes of objects in these.

    Args:
        inputs: a batch, or `(args, kwargs)`.
    """
    parts = [inputs]
    tokens = None
    for part in parts:  # which grows
        kind = type(part)
        if kind is Tensor or kind in PLAIN:
            continue
        named = None
        if kind is dict:
            named = part.get(TOKENS)
            parts += part.values()
        elif kind is tuple or kind is list:
            if not is_plain(part):
                parts += part
        elif not is_wanted(kind):
            named = dict.get(part, TOKENS) if issubclass(kind, dict) else _attribute(part, TOKENS)
            if _has_columns(kind):
                parts += parts_of(part)
        if isinstance(named, Tensor):
            tokens = (tokens or 0) + named.numel()
        if len(parts) > MOST_VALUES:
            return None
    return tokens


def _arguments(inputs: Any) -> list[Any]:
    if type(inputs) is tuple and [*map(type, inputs)] == [tuple, dict]:
        return [*inputs[0], *inputs[1].values()]
    return [inputs]


def _shape_of(value: Any) -> tuple[int, ...] | None:
    try:
        return tuple(value.shape)
    except (RuntimeError, TypeError):  # a subclass of tensors may refuse
        return None


def _has_columns(kind: type) -> bool:
    answer = _columns.get(kind)
    if answer is None:
        answer = _columns[kind] = issubclass(kind, (tuple, list, Mapping)) or is_dataclass(kind)
    return answer


def _are_samples(parts: Any, kind: type) -> bool:
    """Return whether the parts of a list or tuple may be samples, and no columns.

    PyTorch's `default_collate` makes lists of columns. A list of tuples is what it was given.
    """
    first = parts[0]
    if type(first) is Tensor:
        return first.dim() == 3 and all(
            type(part) is Tensor and part.dim() == 3 and part.size(0) in CHANNELS for part in parts
        )
    kinds = [*map(type, parts)]
    if kind is list and all(issubclass(each, tuple) for each in kinds):
        return True
    return all(issubclass(each, Mapping) or is_dataclass(each) for each in kinds)


def _said_by(batch: Any) -> int | None:
    """Return the number of samples that an object with tensors says it has, or None."""
    if type(batch) is PackedSequence:
        return int(batch.batch_sizes[0])  # always on the CPU
    for name in SAYS_SAMPLES:
        value = _attribute(batch, name)
        if isinstance(value, (tuple, list)) and value:  # of all batch dimensions
            value = value[0]
        if type(value) is int and holds_tensors(batch):  # and no configuration
            return value
    return None


def _attribute(part: Any, name: str) -> Any:
    """Return an attribute of an object or its class; None if there is none, or it raises.

    An object's `__getattr__` is not asked: it may answer to any name.
    """
    try:
        is_there = hasattr(type(part), name) or name in object.__getattribute__(part, "__dict__")
        return getattr(part, name) if is_there else None
    except Exception:  # noqa: BLE001 - a property is code of the user's
        return None
