"""Products and Einstein sums against NumPy arrays of scalars that count what they do: see `counted_scalars.py`."""

from __future__ import annotations

import itertools
from typing import Any

import counted_scalars as scalars
import pytest
import torch
import torch.backends.opt_einsum
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.models  # NumPy comes with these; the core does without

Arrays, assert_counts_what_happens = scalars.Arrays, scalars.assert_counts_what_happens

sizes = st.integers(1, 5)
small = st.integers(1, 3)
few = settings(max_examples=25)


def test_scalars_note_what_happens_to_them():
    arrays = Arrays()
    a, b = arrays.of(2), arrays.of(2)
    _ = a * b
    assert (arrays.notes.multiplications, arrays.notes.multiply_adds) == (2, 0)
    _ = arrays.summed(a * b)
    assert (arrays.notes.multiplications, arrays.notes.multiply_adds) == (4, 2)


# --- Products ---------------------------------------------------------------------------------------------------------


@st.composite
def factors(draw):
    """Two tensors that `matmul` takes, of any ranks, the batches broadcast."""
    m, k, n = draw(sizes), draw(sizes), draw(sizes)
    batch = draw(st.lists(small, max_size=2))
    left, right = ([draw(st.sampled_from([1, size])) for size in batch] for _ in "lr")
    left_shape = draw(st.sampled_from([[k], [m, k], [*left, m, k], [*left[1:], m, k]]))
    right_shape = draw(st.sampled_from([[k], [k, n], [*right, k, n], [*right[1:], k, n]]))
    return torch.ones(left_shape), torch.ones(right_shape)


@few
@given(factors())
def test_matmul_of_any_ranks(pair):
    arrays = Arrays()
    arrays.product(*arrays.like(*pair))
    assert_counts_what_happens(torch.matmul, pair, arrays.notes)


@few
@given(
    sizes, sizes, sizes, small, st.sampled_from(["mm", "bmm", "addmm", "baddbmm", "addbmm", "mv", "addmv", "linear"])
)
def test_products_of_one_rank(m, k, n, batch, name):
    left, right, vector = torch.ones(batch, m, k), torch.ones(batch, k, n), torch.ones(k)
    inputs, written = {
        "mm": ((left[0], right[0]), lambda a, x, y: a.product(x, y)),
        "bmm": ((left, right), lambda a, x, y: a.product(x, y)),
        "addmm": ((torch.ones(n), left[0], right[0]), lambda a, z, x, y: z + a.product(x, y)),
        "baddbmm": ((torch.ones(m, n), left, right), lambda a, z, x, y: z + a.product(x, y)),
        "addbmm": ((torch.ones(m, n), left, right), lambda a, z, x, y: z + a.product(x, y).sum(axis=0)),
        "mv": ((left[0], vector), lambda a, x, y: a.product(x, y)),
        "addmv": ((torch.ones(m), left[0], vector), lambda a, z, x, y: z + a.product(x, y)),
        "linear": ((left, torch.ones(n, k), torch.ones(n)), lambda a, x, w, b: a.product(x, w.T) + b),
    }[name]
    arrays = Arrays()
    written(arrays, *arrays.like(*inputs))
    function = F.linear if name == "linear" else getattr(torch, name)
    assert_counts_what_happens(function, inputs, arrays.notes)


@few
@given(st.lists(small, min_size=1, max_size=2), st.lists(small, min_size=1, max_size=2), sizes)
def test_inner_dot_outer_and_kronecker_products(left, right, k):
    import numpy as np

    cases = [
        (torch.dot, np.vdot, (torch.ones(k), torch.ones(k)), True),
        (torch.vdot, np.vdot, (torch.ones(k), torch.ones(k)), True),
        (torch.inner, np.inner, (torch.ones(*left, k), torch.ones(*right, k)), True),
        (torch.outer, np.outer, (torch.ones(left[0]), torch.ones(k)), False),
        (torch.kron, np.kron, (torch.ones(left[0], k), torch.ones(right[0], 2)), False),
    ]
    for function, written, inputs, accumulates in cases:
        arrays = Arrays()
        result = written(*arrays.like(*inputs))
        if accumulates:
            result + arrays.zero
        assert_counts_what_happens(function, inputs, arrays.notes)


@few
@given(st.data(), st.lists(small, max_size=2), st.lists(small, max_size=2), st.lists(small, max_size=2))
def test_tensordot_over_any_dimensions(data, left, right, contracted):
    import numpy as np

    order = data.draw(st.permutations(range(len(left) + len(contracted))))
    dims_left = [order.index(len(left) + position) for position in range(len(contracted))]
    shape_left = [([*left, *contracted])[position] for position in order]
    inputs = torch.ones(shape_left), torch.ones([*contracted, *right])
    dims = dims_left, list(range(len(contracted)))
    arrays = Arrays()
    np.tensordot(*arrays.like(*inputs), axes=dims) + arrays.zero
    # Down to one number, over dimensions in another order, the kernel multiplies and sums in two elementwise operators.
    is_elementwise_below = all(size == 1 for size in (*left, *right)) and dims_left != sorted(dims_left)
    assert_counts_what_happens(
        lambda x, y: torch.tensordot(x, y, dims=dims), inputs, arrays.notes, both_engines=not is_elementwise_below
    )


@few
@given(st.lists(small, max_size=2), sizes, sizes, sizes)
def test_bilinear_is_two_products_for_each_output(batch, i, j, outs):
    inputs = torch.ones(*batch, i), torch.ones(*batch, j), torch.ones(outs, i, j), torch.ones(outs)
    arrays = Arrays()
    left, right, weight, bias = arrays.like(*inputs)
    for o in range(outs):
        arrays.product(left, weight[o])
        for position in itertools.product(*map(range, batch)):
            arrays.summed(arrays.of(j) * right[position]) + bias[o]
    assert_counts_what_happens(F.bilinear, inputs, arrays.notes)


# --- Einstein sums ----------------------------------------------------------------------------------------------------


@st.composite
def einsums(draw):
    """An equation with two to four operands, and these; a size of one stands beside a larger one here and there."""
    size_of = {letter: draw(small) for letter in "abcde"}
    terms = draw(st.lists(st.lists(st.sampled_from("abcde"), unique=True, max_size=3), min_size=2, max_size=4))
    used = sorted({letter for term in terms for letter in term})
    output = draw(st.lists(st.sampled_from(used), unique=True, max_size=3)) if used else []
    shapes = [[draw(st.sampled_from([1, size_of[letter]])) for letter in term] for term in terms]
    return terms, output, [torch.ones(shape) for shape in shapes]


def multiply_pair(arrays: Any, left: Any, right: Any, kept: set[str]) -> Any:
    """The product of two named arrays, summed over what nobody needs any more."""
    import numpy as np

    left, right = (sum_lonely(*side, kept | set(other[0])) for side, other in ((left, right), (right, left)))
    letters = sorted({*left[0], *right[0]})
    inner = [letter for letter in letters if letter not in kept]
    outer = [letter for letter in letters if letter in kept]
    size_of = dict(zip(left[0], left[1].shape, strict=True)) | dict(zip(right[0], right[1].shape, strict=True))
    result = np.empty([size_of[letter] for letter in outer], dtype=object)
    for position in np.ndindex(*result.shape):
        products = []
        for summed in np.ndindex(*(size_of[letter] for letter in inner)):
            at = dict(zip((*outer, *inner), (*position, *summed), strict=True))
            x, y = (array[tuple(at[letter] for letter in term)] for term, array in (left, right))
            products.append(x * y)
        result[position] = sum(products[1:], products[0])
    return outer, result


def sum_lonely(letters: list[str], array: Any, needed: set[str]) -> Any:
    """Sums over the dimensions that nothing else has, before the product; they are no part of it."""
    import numpy as np

    axes = tuple(axis for axis, letter in enumerate(letters) if letter not in needed)
    return [letter for letter in letters if letter in needed], np.asarray(array.sum(axis=axes) if axes else array)


@settings(max_examples=60)
@given(einsums(), st.booleans())
def test_einsum_pair_by_pair_along_the_path(drawn, optimized):
    terms, output, operands = drawn
    equation = ",".join(map("".join, terms)) + "->" + "".join(output)
    arrays = Arrays()
    # A dimension of one takes part in nothing.
    named = [
        ([letter for letter, size in zip(term, array.shape, strict=True) if size > 1], array.squeeze())
        for term, array in zip(terms, arrays.like(*operands), strict=True)
    ]
    for first, second in path_of(equation, operands, optimized=optimized):
        right, left = named.pop(max(first, second)), named.pop(min(first, second))
        kept = {letter for letters, _ in named for letter in letters} | set(output)
        named.append(multiply_pair(arrays, left, right, kept))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.backends.opt_einsum, "enabled", optimized)
        assert_counts_what_happens(lambda *tensors: torch.einsum(equation, *tensors), tuple(operands), arrays.notes)


def path_of(equation: str, operands: list[torch.Tensor], *, optimized: bool) -> Any:
    """Pairs of positions, the result going to the end; left to right unless opt_einsum is asked, as torch does."""
    if not optimized or len(operands) == 2:
        return [(0, 1)] + [(0, left - 1) for left in range(len(operands) - 1, 1, -1)]
    strategy = torch.backends.opt_einsum.strategy
    return torch.backends.opt_einsum.get_opt_einsum().contract_path(equation, *operands, optimize=strategy)[0]
