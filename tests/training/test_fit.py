"""The fit of costs by sizes, held against polynomials."""

from __future__ import annotations

import random

import pytest

from flopcallback.training.fit import MOST_POINTS, CostFit


def fitted(points, cost):
    fit = CostFit()
    for sizes in points:
        fit.add(sizes, cost(*sizes))
    return fit


def attention(batch, length):
    return batch * length * (700 + 4 * length) + 90


def test_without_enough_points_there_is_no_value():
    fit = CostFit()
    assert fit.predict((3,)) is None
    fit.add((3,), 10)
    assert fit.predict((4,)) is None


@pytest.mark.parametrize(
    ("cost", "points"),
    [(lambda n: 17 * n + 5, 6), (lambda n: 3 * n * n + 17 * n, 8), (lambda n: n**3 + n, 16)],
    ids=["line", "square", "cube"],
)
def test_a_polynomial_of_one_size_is_found(cost, points):
    fit = fitted([(n,) for n in range(2, 2 + points)], cost)
    assert fit.predict((40,)) == pytest.approx(cost(40), rel=1e-4)
    assert fit.error < 1e-4


def test_attention_over_batches_of_two_sizes_is_found_where_masks_have_them_again():
    rng = random.Random(1)
    fit = CostFit()
    for _ in range(2 * MOST_POINTS):
        batch, length = rng.randint(1, 32), rng.randint(8, 1024)
        fit.add((batch, length, 5, batch, length), attention(batch, length))
    for batch, length in ((1, 8), (7, 333), (32, 1024)):
        assert fit.predict((batch, length, 5, batch, length)) == pytest.approx(attention(batch, length), rel=1e-3)


@pytest.mark.parametrize("sizes", [(3, 9), (3, 5)], ids=["two that always were equal", "one that never differed"])
def test_sizes_unlike_all_observed_ones_have_no_value(sizes):
    fit = CostFit()
    for n in range(1, 12):
        fit.add((n, n) if sizes == (3, 9) else (n, 4), n)
    assert fit.predict(sizes) is None


def test_what_is_no_polynomial_has_an_error_that_says_so():
    rng = random.Random(4)
    fit = fitted([(n,) for n in range(100)], lambda _: rng.randint(50, 150))
    assert 0.1 < fit.error < 1


def test_costs_are_never_below_0():
    fit = fitted([(n,) for n in range(10, 20)], lambda n: 100 * n - 900)
    assert fit.predict((1,)) == 0
