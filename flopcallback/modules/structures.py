"""Tensors and their shapes in nested structures."""

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
    """Yield the tensors of a batch or a result.

    Searched are nested lists, tuples, dicts, dataclasses, and mappings such as a tokenizer returns.
    """
    for leaf in tree_leaves(structure):
        if isinstance(leaf, torch.Tensor):
            yield leaf
        elif isinstance(leaf, Mapping):
            yield from tensors_in(dict(leaf))
        elif is_dataclass(leaf) and not isinstance(leaf, type):
            yield from tensors_in([getattr(leaf, item.name) for item in fields(leaf)])


def shapes_of(structure: Any) -> Shapes:
    """Return the shapes of the tensors that `tensors_in` finds."""
    # An explicit stack, and the usual types first: this runs in every step.
    shapes: list[tuple[int, ...]] = []
    stack = [structure]
    while stack:
        part = stack.pop()
        if isinstance(part, torch.Tensor):
            shapes.append(_shape(part) if part.is_nested else tuple(part.shape))
        elif type(part) in (tuple, list):
            stack += part[::-1]  # reversed, since the last one is taken first
        elif type(part) is dict:
            stack += [*part.values()][::-1]
        elif not isinstance(part, PLAIN):
            shapes += map(_shape, tensors_in(part))
    return tuple(shapes)


def _shape(tensor: torch.Tensor) -> tuple[int, ...]:
    """Return a tensor's shape; a nested one's length and packed shape."""
    return (tensor.size(0), *tensor.values().shape) if tensor.is_nested else tuple(tensor.shape)


def first_dimension(structure: Any) -> int | None:
    """Return the size of the common first dimension, or None.

    Tensors without dimensions are left out.
    """
    sizes = {tensor.shape[0] for tensor in tensors_in(structure) if tensor.dim()}
    return sizes.pop() if len(sizes) == 1 else None
