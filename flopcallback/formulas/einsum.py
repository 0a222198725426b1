"""Einstein sums, contracted pair by pair in the order that torch takes.

`torch.einsum` asks opt_einsum for a path where it is installed and enabled, and passes it to `aten::einsum`; otherwise
ATen goes from left to right. Each step is one batched matrix product: its multiply-adds are the product of all sizes of
the pair. A step that contracts nothing (an outer or elementwise product) is a `mul`, and its figure is a number of
plain multiplications. A dimension that only one side has, and that is not needed later, is summed before the product,
which is a reduction. A transpose or a diagonal is free.
Source: `einsum` and `sumproduct_pair` in ATen's native/Linear.cpp.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import torch

from flopcallback.formulas.arithmetic import elements, items_of, multiplications, multiply_adds, shape_of
from flopcallback.formulas.cost import Cost
from flopcallback.formulas.op_call import Value

if TYPE_CHECKING:
    from flopcallback.formulas.op_call import OpCall

__all__ = ["Operand", "contract", "einsum"]

# An index of an einsum: its letter, or its distance from the last dimension that an ellipsis covers.
Label = str | int


@dataclass(frozen=True, slots=True)
class Operand:
    """Tensor with named dimensions; those of size 1 are left out."""

    sizes: dict[Label, int]
    dtype: torch.dtype | None

    @classmethod
    def of(cls, labels: Iterable[Label], value: Value) -> Operand:
        """Name each dimension of a tensor by a label.

        A repeated label takes the diagonal.
        """
        sizes = dict(zip(labels, shape_of(value), strict=True))
        # A dimension of size 1 changes no product, and ATen broadcasts it.
        return cls({label: size for label, size in sizes.items() if size != 1}, value.dtype)

    @property
    def value(self) -> Value:
        """The same tensor without names."""
        return Value(shape=tuple(self.sizes.values()), dtype=self.dtype)

    def summed_to(self, kept: Collection[Label]) -> tuple[Operand, Cost]:
        """Sum over all dimensions not `kept`, one operation per element."""
        sizes = {label: size for label, size in self.sizes.items() if label in kept}
        summed = len(sizes) < len(self.sizes)
        return Operand(sizes, self.dtype), Cost(elementwise=elements(self.value) if summed else 0)


def einsum(call: OpCall) -> Cost:
    """Count `einsum(equation, tensors, path)`.

    `path` is flat as ATen takes it, or None for left to right.
    """
    equation, tensors, path = (call.inputs[0].constant, items_of(call.inputs[1]), call.inputs[2].constant)
    terms, output = _parse(equation, [len(shape_of(tensor)) for tensor in tensors])
    if len(tensors) == 1:  # no product: a transpose, a diagonal, or a sum
        summed = any(label not in output for label in terms[0])
        return Cost(elementwise=elements(Operand.of(terms[0], tensors[0]).value) if summed else 0)
    operands = [Operand.of(term, tensor) for term, tensor in zip(terms, tensors, strict=True)]
    return _contract_all(operands, output, _steps(path, len(tensors)))


def contract(
    left: Operand, right: Operand, kept: Collection[Label], *, as_matrices: bool = False
) -> tuple[Operand, Cost]:
    """Multiply two operands, sum over the dimensions not `kept`, and count both.

    Args:
        left: first operand.
        right: second operand.
        kept: labels of the result.
        as_matrices: whether the step runs as a matrix product even if only dimensions of size 1 are summed.

    Returns:
        The result and the cost.
    """
    # As ATen: what only one side has, and no later step needs, is summed before the product.
    left, sum_left = left.summed_to({*kept, *right.sizes})
    right, sum_right = right.summed_to({*kept, *left.sizes})
    sizes = left.sizes | right.sizes
    is_contracted = as_matrices or any(label not in kept for label in sizes)
    work = multiply_adds if is_contracted else multiplications
    product = work(prod(sizes.values()), left.value, right.value)
    result = Operand({label: size for label, size in sizes.items() if label in kept}, _common(left, right))
    return result, sum_left + sum_right + product


def _contract_all(operands: list[Operand], output: Collection[Label], steps: list[tuple[int, int]]) -> Cost:
    total = Cost()
    for first, second in steps:
        # The higher position first, so that the lower one stays valid.
        right, left = operands.pop(max(first, second)), operands.pop(min(first, second))
        needed_later = {label for operand in operands for label in operand.sizes}
        result, cost = contract(left, right, needed_later.union(output))
        operands.append(result)
        total += cost
    return total


def _steps(path: list[int] | None, operands: int) -> list[tuple[int, int]]:
    """Return the pair of positions that each step contracts."""
    # The list of operands shrinks by two at each step, and the result is appended at its end.
    if path is not None:
        return list(zip(path[::2], path[1::2], strict=True))
    # From left to right, with the last result at the end of the list instead of the front.
    return [(0, 1)] + [(0, left - 1) for left in range(operands - 1, 1, -1)]


def _parse(equation: str, ranks: list[int]) -> tuple[list[list[Label]], list[Label]]:
    """Return the labels of each operand, and those of the result."""
    inputs, arrow, result = equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    covered = [rank - len(term.replace("...", "")) for term, rank in zip(terms, ranks, strict=True)]
    labels = [_labels(term, hidden) for term, hidden in zip(terms, covered, strict=True)]
    if arrow:
        return labels, _labels(result, max(covered))
    # Without an arrow, the result keeps the ellipsis and the letters that occur once; their order does not matter here.
    once = [label for label, count in Counter(inputs).items() if count == 1 and label.isalpha()]
    return labels, [*range(max(covered)), *once]


def _labels(term: str, hidden: int) -> list[Label]:
    """Return the labels of a term, `hidden` of them for its ellipsis."""
    # Numbered from the right, since broadcasting aligns the last dimensions.
    before, ellipsis, after = term.partition("...")
    return [*before, *(range(hidden - 1, -1, -1) if ellipsis else ()), *after]


def _common(left: Operand, right: Operand) -> torch.dtype | None:
    return torch.promote_types(left.dtype, right.dtype) if left.dtype and right.dtype else None
