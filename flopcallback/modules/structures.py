"""Tensors and their shapes, in whatever structure holds them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch

from flopcallback.tracing.torch_private import tree_leaves

__all__ = ["Shapes", "first_dimension", "shapes_of", "tensors_in"]


Shapes = tuple[tuple[int, ...], ...]


PLAIN = (bool, int, float, str, bytes, type(None))


def tensors_in(structure: Any) -> Iterator[torch.Tensor]:
    """The tensors of a batch or a result: of nested lists, dicts and dataclasses, a tokenizer's mapping among them."""
    for leaf in tree_leaves(structure):
        if isinstance(leaf, torch.Tensor):
            yield leaf
        elif isinstance(leaf, Mapping):
            yield from tensors_in(dict(leaf))
        elif is_dataclass(leaf) and not isinstance(leaf, type):
            yield from tensors_in([getattr(leaf, item.name) for item in fields(leaf)])


def shapes_of(structure: Any) -> Shapes:
    """Of every tensor in it, as `tensors_in` finds them; quick, since it is asked in every step."""
    shapes: list[tuple[int, ...]] = []
    waiting = [structure]
    while waiting:
        part = waiting.pop()
        if isinstance(part, torch.Tensor):
            shapes.append(_shape(part) if part.is_nested else tuple(part.shape))
        elif type(part) in (tuple, list):
            waiting += part[::-1]
        elif type(part) is dict:
            waiting += [*part.values()][::-1]
        elif not isinstance(part, PLAIN):
            shapes += map(_shape, tensors_in(part))
    return tuple(shapes)


def _shape(tensor: torch.Tensor) -> tuple[int, ...]:
    """Of a nested tensor, how many it holds, and the shape of all their values together."""
    return (tensor.size(0), *tensor.values().shape) if tensor.is_nested else tuple(tensor.shape)


def first_dimension(structure: Any) -> int | None:
    """What all tensors in it agree on as their first dimension; None where they do not."""
    firsts = {tensor.shape[0] for tensor in tensors_in(structure) if tensor.dim()}
    return firsts.pop() if len(firsts) == 1 else None
