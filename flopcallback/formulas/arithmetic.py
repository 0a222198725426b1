"""What all families share: real operations behind a multiply-add, and the size of what an operator touches."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from flopcallback.formulas.cost import Cost

if TYPE_CHECKING:
    from flopcallback.formulas.op_call import Value

__all__ = [
    "elements",
    "is_complex",
    "is_floating",
    "items_of",
    "multiplications",
    "multiply_adds",
    "numel_of",
    "real_multiply_adds",
    "shape_of",
]


def multiply_adds(count: int, *factors: Value) -> Cost:
    """The cost of `count` multiply-adds of elements of `factors`, in real operations.

    Integer factors (`_int_mm`, quantized layers) count as floating-point ones do: the same array of multipliers does
    the work, and the figure can be set beside that of the model that was not quantized.
    """
    return Cost(fma=count * real_multiply_adds(sum(is_complex(factor) for factor in factors)))


def multiplications(count: int, *factors: Value) -> Cost:
    """The cost of `count` products of elements of two `factors` that no sum follows: no multiply-adds, but FLOPs.

    `(a + bi)(c + di)` takes four real products and two sums; with a real factor, two products.
    """
    return Cost(other=count * (1, 2, 6)[sum(is_complex(factor) for factor in factors)])


def real_multiply_adds(complex_factors: int) -> int:
    """Real multiply-adds in one multiply-add with that many complex factors out of two.

    `(a + bi)(c + di) + (e + fi)` is `ac - bd + e` and `ad + bc + f`: four. With a real `c`, two.
    """
    return (1, 2, 4)[complex_factors]


def elements(value: Value) -> int:
    """Floating-point elements of a tensor or of all tensors of a list; integers and booleans are no FLOPs.

    A complex element counts as two.
    """
    if value.items is not None:
        return sum(map(elements, value.items))
    return value.numel * (2 if is_complex(value) else 1) if is_floating(value) else 0


def is_floating(value: Value) -> bool:
    """Whether this is a tensor of floating-point or complex numbers."""
    return value.dtype is not None and (value.dtype.is_floating_point or value.dtype.is_complex)


def shape_of(value: Value) -> tuple[int, ...]:
    """The shape of a tensor that must be there.

    Raises:
        ValueError: this is no tensor, or an optional one that was not given; the operator is then unknown, never 0.
    """
    if value.shape is None:
        raise ValueError(f"expected a tensor, got {value}")
    return value.shape


def items_of(value: Value) -> tuple[Value, ...]:
    """The tensors of a list that must be there.

    Raises:
        ValueError: this is no list of tensors.
    """
    if value.items is None:
        raise ValueError(f"expected a list of tensors, got {value}")
    return value.items


def numel_of(value: Value) -> int:
    """The number of elements of a tensor that must be there.

    Raises:
        ValueError: as `shape_of`; `Value.numel` would be 0.
    """
    return prod(shape_of(value))


def is_complex(value: Value) -> bool:
    """Whether this is a tensor of complex numbers."""
    return value.dtype is not None and value.dtype.is_complex
