"""CostFit: the cost of steps that were not observed, from the sizes of their inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations_with_replacement
from operator import mul, truediv
from typing import NamedTuple

__all__ = ["CostFit"]

MOST_POINTS = 256
"""Observed steps that a fit remembers: the latest."""

MOST_DEGREE = 3
"""Largest degree of the polynomial: attention over a batch of sequences is of the third in its sizes."""

HELD_OUT = 4
"""Each fourth point judges a trial fit, in which it has no part."""

RIDGE = 1e-10
"""Weight that keeps terms which always go together, such as the two sizes of a square, from making no solution."""

Sizes = tuple[int, ...]
Points = Sequence[tuple[Sizes, int]]


class CostFit:
    """Fit of a step's FLOPs as a polynomial in the sizes of its inputs.

    The FLOPs of matrix products, convolutions and attention are polynomials in the sizes of their operands. Points that
    have no part in a trial decide the degree. It is plain Python on purpose: operators of torch would be seen by
    whatever the user has watching them.

    Attributes:
        error: mean error at such points, as a share of their FLOPs; 1 before there were any.
    """

    def __init__(self) -> None:
        self.error = 1.0
        self._points: dict[Sizes, int] = {}
        self._polynomial: _Polynomial | None = None  # None until there are enough points
        self._new = 0  # points since it was fitted

    def add(self, sizes: Sizes, flops: int) -> None:
        """Add an observed step."""
        self._points.pop(sizes, None)
        self._points[sizes] = flops
        self._new += 1
        if len(self._points) > MOST_POINTS:
            del self._points[next(iter(self._points))]
        if 4 * self._new >= len(self._points):  # each new point would take more time than it is worth
            self._fit()

    def predict(self, sizes: Sizes) -> int | None:
        """Return the FLOPs of a step; None if the observed steps do not tell them."""
        return None if self._polynomial is None else self._polynomial.value(sizes)

    def _fit(self) -> None:
        self._new = 0
        points = list(self._points.items())
        judges = points[HELD_OUT - 1 :: HELD_OUT]
        rest = [point for index, point in enumerate(points) if index % HELD_OUT != HELD_OUT - 1]
        errors = {degree: _error(_fitted(rest, degree), judges) for degree in range(1, MOST_DEGREE + 1)}
        degree = min(errors, key=lambda degree: (errors[degree], degree))
        self.error = min(1.0, errors[degree])
        self._polynomial = _fitted(points, degree)


class _Polynomial(NamedTuple):
    """Polynomial in those sizes that vary.

    Attributes:
        example: sizes of an observed step; those that never varied have to equal it.
        columns: for each size, its position among the varying ones; None if it never varied.
        scales: largest value of each varying size.
        terms: the varying sizes whose product each term is.
        weights: weight of each term.
    """

    example: Sizes
    columns: tuple[int | None, ...]
    scales: tuple[float, ...]
    terms: tuple[tuple[int, ...], ...]
    weights: tuple[float, ...]

    def value(self, sizes: Sizes) -> int | None:
        """Return the value, or None where a size differs that never did among the observed steps."""
        varying = [-1] * len(self.scales)
        for size, column, usual in zip(sizes, self.columns, self.example, strict=True):
            if column is None:
                if size != usual:
                    return None
            elif varying[column] < 0:
                varying[column] = size
            elif varying[column] != size:  # two sizes that always were equal
                return None
        value: float = sum(map(mul, self.weights, _products(varying, self.scales, self.terms)))
        return max(0, round(value))


def _fitted(points: Points, degree: int) -> _Polynomial | None:
    """Fit a polynomial by least squares; None if there are not more points than terms."""
    if not points:
        return None
    order: dict[Sizes, int] = {}  # the values of each varying size, without those equal to an earlier one's
    columns = tuple(
        order.setdefault(values, len(order)) if len(set(values)) > 1 else None
        for values in zip(*(sizes for sizes, _ in points), strict=True)
    )
    terms = tuple(term for size in range(degree + 1) for term in combinations_with_replacement(range(len(order)), size))
    if len(points) <= len(terms) and order:
        return None
    scales = tuple(float(max(values)) for values in order)
    rows = [_products(varying, scales, terms) for varying in zip(*order, strict=True)] if order else [[1.0]]
    weights = _least_squares(rows, [float(flops) for _, flops in points])
    return _Polynomial(points[0][0], columns, scales, terms, tuple(weights))


def _products(sizes: Sequence[int], scales: Sequence[float], terms: Sequence[tuple[int, ...]]) -> list[float]:
    """Return the value of each term."""
    scaled = list(map(truediv, sizes, scales))
    return [math.prod([scaled[part] for part in term]) for term in terms]


def _least_squares(rows: Sequence[Sequence[float]], values: Sequence[float]) -> list[float]:
    """Return the weights with which the columns of `rows` come nearest to `values`.

    Source: normal equations with a ridge, solved by Gaussian elimination with partial pivoting.
    """
    columns = list(zip(*rows, strict=True))
    system = [[*(sum(map(mul, one, other)) for other in columns), sum(map(mul, one, values))] for one in columns]
    for index, row in enumerate(system):
        row[index] += RIDGE * len(rows)
    for index in range(len(system)):
        pivot = max(range(index, len(system)), key=lambda row: abs(system[row][index]))
        system[index], system[pivot] = system[pivot], system[index]
        lead = [value / system[index][index] for value in system[index]]
        system[index] = lead
        for number, row in enumerate(system):
            if number != index and row[index]:
                system[number] = [value - row[index] * part for value, part in zip(row, lead, strict=True)]
    return [row[-1] for row in system]


def _error(polynomial: _Polynomial | None, judges: Points) -> float:
    """Return the mean error of a polynomial, as a share of the FLOPs; infinite where it has no value."""
    if polynomial is None or not judges:
        return math.inf
    values = [(polynomial.value(sizes), flops) for sizes, flops in judges]
    if any(value is None for value, _ in values):
        return math.inf
    return sum(abs((value or 0) - flops) / max(1, flops) for value, flops in values) / len(values)
