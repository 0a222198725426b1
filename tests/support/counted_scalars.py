"""Scalars that count what they do, in NumPy arrays: operators written down on them, against what is counted.

There is no formula on this side. Each multiplication and each addition of two scalars is noted as it happens. A product
that is added to something is a multiply-add, others are multiplications.
"""

from __future__ import annotations

from typing import Any

import torch

from flopcallback import FlopCountAnalysis


class Notes:
    """What has happened to the scalars of one example."""

    def __init__(self) -> None:
        self.multiplications = 0
        self.multiply_adds = 0


class Scalar:
    """A number whose value does not matter: it notes multiplications, and whether a sum takes the product up."""

    __slots__ = ("is_product", "notes")

    def __init__(self, notes: Notes, *, is_product: bool = False) -> None:
        self.notes, self.is_product = notes, is_product

    def __mul__(self, other: Scalar) -> Scalar:
        self.notes.multiplications += 1
        return Scalar(self.notes, is_product=True)

    def __add__(self, other: Scalar) -> Scalar:
        for side in (self, other):
            if side.is_product:
                self.notes.multiply_adds += 1
                side.is_product = False
        return Scalar(self.notes)

    def conjugate(self) -> Scalar:
        return self


class Arrays:
    """Arrays of scalars that share their notes."""

    def __init__(self) -> None:
        self.notes = Notes()
        self.zero = Scalar(self.notes)

    def of(self, *shape: int) -> Any:
        import numpy as np

        array = np.empty(shape, dtype=object)
        for position in np.ndindex(*shape):
            array[position] = Scalar(self.notes)
        return array

    def like(self, *tensors: torch.Tensor) -> list[Any]:
        return [self.of(*tensor.shape) for tensor in tensors]

    def activated(self, array: Any) -> Any:
        """What an elementwise function makes of an array: other scalars."""
        return self.of(*array.shape)

    def product(self, left: Any, right: Any) -> Any:
        """A matrix product, whose accumulators begin with zero."""
        import numpy as np

        return np.matmul(left, right) + self.zero

    def summed(self, products: Any) -> Any:
        """The sum of all of an array, begun with zero."""
        import numpy as np

        return np.add.reduce(products, axis=None) + self.zero


def assert_counts_what_happens(
    function: Any, inputs: tuple[torch.Tensor, ...], notes: Notes, *, both_engines: bool = True
) -> None:
    """The trace has both kinds of work; the dispatcher, to which a lone product is elementwise, the multiply-adds."""
    trace = FlopCountAnalysis(function, inputs, engine="trace")
    twice = FlopCountAnalysis(function, inputs, engine="trace", fma=2)
    assert trace.unknown_ops() == {}
    assert trace.total() == notes.multiplications
    assert twice.total() == notes.multiplications + notes.multiply_adds
    assert trace.hardware_flops()[""] == 2 * notes.multiply_adds
    if both_engines:
        dispatch = FlopCountAnalysis(function, inputs, engine="dispatch")
        assert dispatch.hardware_flops()[""] == 2 * notes.multiply_adds
