"""Arithmetic that all families share: multiply-adds, element counts, required shapes."""

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
    """Return the cost of `count` multiply-adds, in real operations.

    A complex factor multiplies the cost, see `real_multiply_adds`. Integer factors (`_int_mm`, quantized layers) count
    as floating-point ones do: the same array of multipliers does the work, and the figure can be compared with that of
    the unquantized model.

    Args:
        count: multiply-adds of elements.
        factors: the two operands; only their dtypes matter.
    """
    return Cost(fma=count * real_multiply_adds(sum(is_complex(factor) for factor in factors)))


def multiplications(count: int, *factors: Value) -> Cost:
    """Return the cost of `count` products that no sum follows.

    They are FLOPs, but no multiply-adds. `(a + bi)(c + di)` takes four real products and two sums; with one real factor
    it takes two products.

    Args:
        count: products of elements.
        factors: the two operands; only their dtypes matter.
    """
    # Indexed by the number of complex factors; 6 is four products and two sums.
    return Cost(other=count * (1, 2, 6)[sum(is_complex(factor) for factor in factors)])


def real_multiply_adds(complex_factors: int) -> int:
    """Return the real multiply-adds behind one multiply-add.

    `(a + bi)(c + di) + (e + fi)` is `ac - bd + e` and `ad + bc + f`: four. With a real `c + di`, two.

    Args:
        complex_factors: how many of the two factors are complex.
    """
    return (1, 2, 4)[complex_factors]


def elements(value: Value) -> int:
    """Count the floating-point elements of a tensor or a list.

    A complex element counts as two. Integers and booleans count as none: work on them is not floating-point work.
    """
    if value.items is not None:
        return sum(map(elements, value.items))
    return value.numel * (2 if is_complex(value) else 1) if is_floating(value) else 0


def is_floating(value: Value) -> bool:
    """Return whether a value is a tensor of floating-point or complex numbers."""
    return value.dtype is not None and (value.dtype.is_floating_point or value.dtype.is_complex)


def shape_of(value: Value) -> tuple[int, ...]:
    """Return the shape of a required tensor.

    Raises:
        ValueError: the value is no tensor, or an optional tensor that was not given. The operator is then unknown,
            never 0.
    """
    if value.shape is None:
        raise ValueError(f"expected a tensor, got {value}")
    return value.shape


def items_of(value: Value) -> tuple[Value, ...]:
    """Return the tensors of a required list.

    Raises:
        ValueError: the value is no list of tensors.
    """
    if value.items is None:
        raise ValueError(f"expected a list of tensors, got {value}")
    return value.items


def numel_of(value: Value) -> int:
    """Return the number of elements of a required tensor.

    Raises:
        ValueError: the value is no tensor; `Value.numel` would be 0.
    """
    return prod(shape_of(value))


def is_complex(value: Value) -> bool:
    """Return whether a value is a tensor of complex numbers."""
    return value.dtype is not None and value.dtype.is_complex
