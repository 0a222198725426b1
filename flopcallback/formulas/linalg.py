"""Dense linear algebra: factorizations, solvers, eigenvalues and singular values.

A multiply-add is a product that is added to or subtracted from an element, as in a matrix product; these are the FLOPs
of the family, 2 for each. Divisions and square roots are elementwise work. Batches count matrix by matrix, complex
numbers as the real operations behind them. `[m, n]` is a matrix, `k = min(m, n)`, and there are `r` right-hand sides.

**Counted to the last multiply-add**, since the textbook algorithm leaves nothing open:

| operator | multiply-adds | leading term in FLOPs |
|---|---|---|
| solve with a triangle | `r * n(n-1)/2` | `r * n^2` |
| Cholesky, LDL | `n(n^2-1)/6` | `n^3/3` |
| solve with Cholesky, LDL, LU | `r * n(n-1)` | `2r * n^2` |
| inverse from Cholesky | `n(n-1)(2n-1)/6` | `2n^3/3` |
| LU, determinant | sum of `(m-j)(n-j)`, `j = 1 ... k` | `2n^3/3` |
| solve, inverse | LU, then `r` or `n` right-hand sides | `8n^3/3` for the inverse |
| QR by Householder reflections | sum of `2(m-j+1)(n-j)` | `2mn^2 - 2n^3/3` |
| `Q` from `k` reflections; `Q` times `[m, r]` | sum of `2(m-j+1)(n-j+1)`; of `2(m-j+1)r` | `4n^3/3`; `4rmn - 2rn^2` |
| least squares | QR, `Q.T` times `b`, a triangle | `2mn^2 - 2n^3/3` |

Sources: Golub and Van Loan, Matrix Computations, 4th edition, sections 3.1, 3.2, 4.2, 5.1, 5.2 and 5.3; for Cholesky,
LU and what solves with them these are the numbers of additions in LAPACK's own list, LAPACK Working Note 41, appendix C
(https://www.netlib.org/lapack/lawnspdf/lawn41.pdf). An inverse is what PyTorch runs: `n` right-hand sides, where
LAPACK's own takes `2n^3` FLOPs.

**Counted by the textbook's figure**, as the algorithms iterate until the data have converged; half of an odd number of
FLOPs is rounded up:

| operator | FLOPs | source, in Golub and Van Loan |
|---|---|---|
| symmetric eigenvalues; with vectors | `4n^3/3`; `9n^3` | section 8.3 |
| eigenvalues; with vectors | `10n^3`; `25n^3` | section 7.5 |
| singular values | `2mn^2 + 2n^3` | section 8.6, the "R-SVD" |
| with `U` and `V`, reduced; complete | `6mn^2 + 20n^3`; `4m^2 n + 22n^3` | the same |

There, `m >= n`: a wide matrix counts as its transpose. A pseudo-inverse is these, and a product. Where values are asked
for and derivatives are needed, PyTorch computes the vectors, too, and they count.

Unknown on purpose: a matrix exponential, whose number of products depends on the data. The observer sees its products.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, NamedTuple

from flopcallback.formulas.arithmetic import elements, is_complex, multiply_adds, numel_of, shape_of
from flopcallback.formulas.cost import Cost
from flopcallback.formulas.op_call import UNSEEN, Value

if TYPE_CHECKING:
    from flopcallback.formulas.op_call import OpCall

__all__ = [
    "cholesky",
    "cholesky_inverse",
    "cholesky_solve",
    "condition",
    "determinant",
    "eigenvalues",
    "eigenvectors",
    "householder_product",
    "householder_qr",
    "inverse",
    "ldl_solve",
    "least_squares",
    "lu",
    "lu_solve",
    "norm",
    "pseudo_inverse",
    "qr",
    "qr_some",
    "singular_rank",
    "singular_values",
    "singular_vectors",
    "solve",
    "svd",
    "svd_some",
    "symmetric_eigen",
    "symmetric_eigenvalues",
    "symmetric_eigenvectors",
    "tensor_inverse",
    "tensor_solve",
    "times_reflections",
    "triangular_solve",
    "triangular_solve_after",
]


class _Matrices(NamedTuple):
    """A batch of `[rows, columns]` matrices."""

    batch: int
    rows: int
    columns: int
    value: Value

    def cost(self, multiply_adds_each: int, elementwise_each: int = 0) -> Cost:
        """Return the cost of an algorithm on each of the matrices."""
        parts = 2 if is_complex(self.value) else 1
        work = multiply_adds(self.batch * multiply_adds_each, self.value, self.value)
        return work + Cost(elementwise=parts * self.batch * elementwise_each)


def _matrices(value: Value) -> _Matrices:
    *batch, rows, columns = shape_of(value)
    return _Matrices(prod(batch), rows, columns, value)


# --- Triangles, Cholesky, LU ------------------------------------------------------------------------------------------


def triangular_solve(call: OpCall) -> Cost:
    """Count `linalg_solve_triangular(A, B, upper, left, unitriangular)`."""
    return _triangle(call.outputs[0], shape_of(call.inputs[0])[-1], is_unit=call.inputs[4].constant)


def triangular_solve_after(call: OpCall) -> Cost:
    """Count `triangular_solve(B, A, upper, transpose, unitriangular)`."""
    return _triangle(call.outputs[0], shape_of(call.inputs[1])[-1], is_unit=call.inputs[4].constant)


def cholesky(call: OpCall) -> Cost:
    """Count a Cholesky factorization, or one into a triangle and a diagonal."""
    matrices = _matrices(call.inputs[0])
    return matrices.cost(*_cholesky(matrices.columns))


def cholesky_solve(call: OpCall) -> Cost:
    """Count `cholesky_solve(B, L, upper)`: two triangles per column."""
    return _two_triangles(call.outputs[0], shape_of(call.inputs[1])[-1], divisions=2)


def ldl_solve(call: OpCall) -> Cost:
    """Count `linalg_ldl_solve(LD, pivots, B, ...)`: two triangles per column, and a diagonal."""
    return _two_triangles(call.outputs[0], shape_of(call.inputs[0])[-1])


def cholesky_inverse(call: OpCall) -> Cost:
    """Count `cholesky_inverse(L, upper)`: the inverse triangle, times its transpose."""
    matrices = _matrices(call.inputs[0])
    n = matrices.columns
    return matrices.cost(n * (n - 1) * (2 * n - 1) // 6, n)


def lu(call: OpCall) -> Cost:
    """Count an LU factorization."""
    matrices = _matrices(call.inputs[0])
    return matrices.cost(*_lu(matrices.rows, matrices.columns))


def determinant(call: OpCall) -> Cost:
    """Count a determinant: an LU factorization, and the product of its diagonal."""
    return lu(call) + _matrices(call.inputs[0]).cost(0, shape_of(call.inputs[0])[-1])


def lu_solve(call: OpCall) -> Cost:
    """Count `linalg_lu_solve(LU, pivots, B, ...)` or `lu_solve(B, LU, pivots)`: two triangles per column."""
    # The second argument is the pivots, `[..., n]`, or the factors, `[..., n, n]`.
    return _two_triangles(call.outputs[0], shape_of(call.inputs[1])[-1])


def solve(call: OpCall) -> Cost:
    """Count `linalg_solve(A, B, left, ...)`: an LU factorization, then two triangles per column."""
    n = shape_of(call.inputs[0])[-1]
    return lu(call) + _two_triangles(call.outputs[0], n)


def inverse(call: OpCall) -> Cost:
    """Count an inverse: an LU factorization, then `n` right-hand sides."""
    source = call.inputs[0]
    return lu(call) + _two_triangles(source, shape_of(source)[-1])


def tensor_inverse(call: OpCall) -> Cost:
    """Count `linalg_tensorinv(input, ind)`: the inverse of a matrix with `ind` dimensions as rows."""
    source, rows = call.inputs[0], prod(shape_of(call.inputs[0])[: call.inputs[1].constant])
    return _Matrices(1, rows, rows, source).cost(*_lu(rows, rows)) + _two_triangles(source, rows)


def tensor_solve(call: OpCall) -> Cost:
    """Count `linalg_tensorsolve(input, other, ...)`: one right-hand side."""
    source, other = call.inputs[:2]
    n = numel_of(other)
    return _Matrices(1, n, n, source).cost(*_lu(n, n)) + _two_triangles(other, n)


# --- Orthogonal factorizations ----------------------------------------------------------------------------------------


def householder_qr(call: OpCall) -> Cost:
    """Count `geqrf(A)`: reflections, each applied to the columns after it."""
    matrices = _matrices(call.inputs[0])
    return matrices.cost(*_reflections(matrices.rows, matrices.columns))


def householder_product(call: OpCall) -> Cost:
    """Count `Q` of reflections, `(reflections: [m, n], scales: [k])`, the last one first."""
    matrices = _matrices(call.inputs[0])
    return matrices.cost(_orthogonal(matrices.rows, matrices.columns, shape_of(call.inputs[1])[-1]))


def times_reflections(call: OpCall) -> Cost:
    """Count `ormqr(reflections, scales: [k], C, left, ...)`: `Q @ C`, or `C @ Q`."""
    matrices = _matrices(call.inputs[2])
    long, others = matrices.rows, matrices.columns
    if not call.inputs[3].constant:
        long, others = others, long
    return matrices.cost(_applied(long, others, shape_of(call.inputs[1])[-1]))


def qr(call: OpCall) -> Cost:
    """Count `linalg_qr(A, mode)`.

    Raises:
        ValueError: the mode was not seen.
    """
    matrices, mode = _matrices(call.inputs[0]), call.inputs[1].constant
    _, m, n, _ = matrices
    columns = {"reduced": min(m, n), "complete": m, "r": 0}
    if mode not in columns:
        raise ValueError(f"the mode {mode!r} is not known")
    return householder_qr(call) + matrices.cost(_orthogonal(m, columns[mode], min(m, n)) if columns[mode] else 0)


def qr_some(call: OpCall) -> Cost:
    """Count `qr(A, some)`."""
    mode = Value(constant="reduced" if call.inputs[1].constant else "complete")
    return qr(replace(call, inputs=(call.inputs[0], mode)))


def least_squares(call: OpCall) -> Cost:
    """Count `linalg_lstsq(A: [m, n], b, rcond, driver)` by its orthogonal factorization.

    Raises:
        ValueError: it takes a singular value decomposition, or nobody saw which driver it takes.
    """
    matrices, right, driver = _matrices(call.inputs[0]), call.inputs[1], call.inputs[3].constant
    if driver is None and call.outputs is UNSEEN:
        raise ValueError("the driver was not seen")
    if driver not in (None, "gels", "gelsy"):
        raise ValueError(f"the driver {driver!r} takes a singular value decomposition")
    # A wide matrix is factorized as its transpose; then the triangle comes first, and `Q` after it.
    long, short = sorted((matrices.rows, matrices.columns), reverse=True)
    is_vector = len(shape_of(right)) < len(shape_of(call.inputs[0]))
    sides = 1 if is_vector else shape_of(right)[-1]
    fma, elementwise = _reflections(long, short)
    solved = sides * short * (short - 1) // 2
    return matrices.cost(fma + _applied(long, sides, short) + solved, elementwise + sides * short)


# --- Eigenvalues and singular values ----------------------------------------------------------------------------------


def symmetric_eigenvalues(call: OpCall) -> Cost:
    """Count `linalg_eigvalsh(A, UPLO)`."""
    return _symmetric(call.inputs[0], values_only=not call.outputs[0].needs_grad)


def symmetric_eigenvectors(call: OpCall) -> Cost:
    """Count `linalg_eigh(A, UPLO)`."""
    return _symmetric(call.inputs[0], values_only=False)


def symmetric_eigen(call: OpCall) -> Cost:
    """Count `_linalg_eigh(A, UPLO, compute_v)`."""
    return _symmetric(call.inputs[0], values_only=not call.inputs[2].constant)


def eigenvalues(call: OpCall) -> Cost:
    """Count eigenvalues of matrices of any kind."""
    if call.outputs[0].needs_grad:
        return eigenvectors(call)
    matrices = _matrices(call.inputs[0])
    return matrices.cost(5 * matrices.rows**3)


def eigenvectors(call: OpCall) -> Cost:
    """Count eigenvalues and eigenvectors of matrices of any kind."""
    matrices = _matrices(call.inputs[0])
    return matrices.cost(_ratio(25 * matrices.rows**3, 2))


def singular_values(call: OpCall) -> Cost:
    """Count `linalg_svdvals(A, driver)`, and norms and condition numbers by singular values."""
    return _singular(call.inputs[0], values_only=not call.outputs[0].needs_grad)


def singular_vectors(call: OpCall) -> Cost:
    """Count `linalg_svd(A, full_matrices, ...)`."""
    return _singular(call.inputs[0], values_only=False, complete=call.inputs[1].constant)


def svd(call: OpCall) -> Cost:
    """Count `_linalg_svd(A, full_matrices, compute_uv, ...)`."""
    return _singular(call.inputs[0], values_only=not call.inputs[2].constant, complete=call.inputs[1].constant)


def svd_some(call: OpCall) -> Cost:
    """Count `svd(A, some, compute_uv)`."""
    some, vectors = (value.constant for value in call.inputs[1:3])
    values_only = not (vectors or call.outputs[1].needs_grad)
    return _singular(call.inputs[0], values_only=values_only, complete=not some)


def singular_rank(call: OpCall) -> Cost:
    """Count `linalg_matrix_rank(A, ..., hermitian)`: singular values, or symmetric eigenvalues.

    Raises:
        ValueError: a derivative of the matrix may be needed; whether PyTorch computes vectors cannot be seen.
    """
    source = call.inputs[0]
    if source.needs_grad:
        raise ValueError("the rank has no derivative, and does not say whether vectors were computed")
    decomposed = _symmetric if call.inputs[-1].constant else _singular
    return decomposed(source, values_only=True)


def norm(call: OpCall) -> Cost:
    """Count `linalg_norm(input, ord, dim, ...)`, `linalg_matrix_norm`: a power and a sum, or singular values."""
    source, order, dims = call.inputs[:3]
    rank = len(shape_of(source))
    over = range(rank) if dims.constant is None else [dim % rank for dim in dims.constant]
    # Order 2 over one dimension is the vector norm; over two it is the largest singular value.
    if len(over) < 2 or order.constant not in (2, -2, "nuc"):
        return Cost(elementwise=2 * elements(source))
    sizes = shape_of(source)
    last = tuple(size for dim, size in enumerate(sizes) if dim not in over) + tuple(sizes[dim] for dim in over)
    return _singular(replace(source, shape=last), values_only=not call.outputs[0].needs_grad)


def condition(call: OpCall) -> Cost:
    """Count `linalg_cond(A, p)`: singular values for `p = 2` and `-2`.

    Raises:
        ValueError: another `p` takes norms of an inverse.
    """
    if (order := call.inputs[1].constant) not in (None, 2, -2):
        raise ValueError(f"the condition number of order {order!r} takes an inverse and norms")
    return singular_values(call)


def pseudo_inverse(call: OpCall) -> Cost:
    """Count `linalg_pinv(A, ..., hermitian)`: singular or symmetric eigenvectors, and a product."""
    matrices, is_hermitian = _matrices(call.inputs[0]), call.inputs[-1].constant is True
    _, m, n, value = matrices
    vectors = (_symmetric if is_hermitian else _singular)(value, values_only=False)
    return vectors + matrices.cost(n * min(m, n) * m)


# --- What they are made of: multiply-adds, and divisions and roots ----------------------------------------------------


def _triangle(result: Value, n: int, *, is_unit: bool) -> Cost:
    """Count a triangle of `n` rows for a result of `n` rows and any number of columns."""
    # Row `i` takes the products with the `i` results before it.
    return multiply_adds(numel_of(result) * (n - 1) // 2, result, result) + Cost(
        elementwise=0 if is_unit else elements(result)
    )


def _two_triangles(result: Value, n: int, *, divisions: int = 1) -> Cost:
    return multiply_adds(numel_of(result) * (n - 1), result, result) + Cost(elementwise=divisions * elements(result))


def _cholesky(n: int) -> tuple[int, int]:
    # Element `(i, j)` takes `j` products, `0 <= j <= i`; each but those on the diagonal a division, those a root.
    return n * (n * n - 1) // 6, n * (n + 1) // 2


def _lu(m: int, n: int) -> tuple[int, int]:
    # Step `j` divides the column below the diagonal, and subtracts its product with the row.
    steps = range(1, min(m, n) + 1)
    return sum((m - j) * (n - j) for j in steps), sum(m - j for j in steps)


def _reflections(m: int, n: int) -> tuple[int, int]:
    # A reflection of `m - j + 1` elements: a product with the columns after it, and an update of them. To make it takes
    # a norm, which is 2 operations per element, and divisions.
    steps = range(1, min(m, n) + 1)
    return sum(2 * (m - j + 1) * (n - j) for j in steps), sum(3 * (m - j + 1) for j in steps)


def _applied(length: int, others: int, reflections: int) -> int:
    return sum(2 * (length - j + 1) * others for j in range(1, reflections + 1))


def _orthogonal(m: int, n: int, reflections: int) -> int:
    # The last reflection comes first, and meets the columns from its own on: those before are still of the identity.
    return sum(2 * (m - j + 1) * (n - j + 1) for j in range(1, reflections + 1))


def _symmetric(value: Value, *, values_only: bool) -> Cost:
    matrices = _matrices(value)
    return matrices.cost(_ratio(2 * matrices.rows**3, 3) if values_only else _ratio(9 * matrices.rows**3, 2))


def _singular(value: Value, *, values_only: bool, complete: bool = False) -> Cost:
    matrices = _matrices(value)
    m, n = sorted((matrices.rows, matrices.columns), reverse=True)
    if values_only:
        return matrices.cost(m * n * n + n**3)
    return matrices.cost(2 * m * m * n + 11 * n**3 if complete else 3 * m * n * n + 10 * n**3)


def _ratio(numerator: int, denominator: int) -> int:
    """Return a quotient, rounded up."""
    return -(-numerator // denominator)
