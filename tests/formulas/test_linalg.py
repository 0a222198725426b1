"""Dense linear algebra: multiply-adds in loops of the textbook, the same from all engines that see enough."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import nn

from flopcallback import ActivationCountAnalysis, FlopCountAnalysis, FlopHook
from flopcallback.formulas.cost import Cost
from flopcallback.formulas.registry import lookup

L = torch.linalg
BATCH, N, M, SIDES = 3, 5, 7, 2
pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated:UserWarning")


def in_cholesky(n):
    """Row by row, as in a Crout algorithm: element `(i, j)` subtracts `j` products."""
    return sum(1 for i in range(n) for j in range(i + 1) for _ in range(j))


def in_lu(m, n):
    """Gaussian elimination: each step subtracts the product of a column and a row from what is left."""
    return sum(1 for step in range(min(m, n)) for _ in product(range(step + 1, m), range(step + 1, n)))


def in_triangle(n):
    return sum(1 for row in range(n) for _ in range(row))


def in_reflections(m, n):
    """Each reflection: a dot product with each column after it, and an update of that column."""
    return sum(2 for step in range(min(m, n)) for _ in product(range(step, m), range(step + 1, n)))


def in_q(m, columns, reflections):
    return sum(2 for step in range(reflections) for _ in product(range(step, m), range(step, columns)))


def applied(length, others, reflections):
    return sum(2 for step in range(reflections) for _ in product(range(step, length), range(others)))


TRIANGLES = 2 * in_triangle(N)  # with a lower and an upper one
SVD_VALUES, SVD_REDUCED, SVD_COMPLETE = (
    (2 * M * N**2 + 2 * N**3) // 2,
    (6 * M * N**2 + 20 * N**3) // 2,
    (4 * M**2 * N + 22 * N**3) // 2,
)
# 9 n^3 and 4/3 n^3 FLOPs for n = 5 are 1125 and 166 2/3: 563 and 84 multiply-adds, rounded up.
SYMMETRIC_VECTORS, SYMMETRIC_VALUES = 563, 84

# `s` is symmetric and positive `[5, 5]`, `b` its `[5, 2]` right-hand sides, `t` tall `[7, 5]`; all in batches.
EVERYWHERE = {
    "solve": (lambda s, b, t: L.solve(s, b), in_lu(N, N) + SIDES * TRIANGLES),
    "solve from the right": (lambda s, b, t: L.solve(s, b.mT, left=False), in_lu(N, N) + SIDES * TRIANGLES),
    "solve for a vector": (lambda s, b, t: L.solve(s, b[..., 0]), in_lu(N, N) + TRIANGLES),
    "inv": (lambda s, b, t: L.inv(s), in_lu(N, N) + N * TRIANGLES),
    "inverse": (lambda s, b, t: torch.inverse(s), in_lu(N, N) + N * TRIANGLES),
    "matrix_power": (lambda s, b, t: L.matrix_power(s, -2), in_lu(N, N) + N * TRIANGLES + N**3),
    "det": (lambda s, b, t: L.det(s), in_lu(N, N)),
    "slogdet": (lambda s, b, t: L.slogdet(s), in_lu(N, N)),
    "logdet": (lambda s, b, t: torch.logdet(s), in_lu(N, N)),
    "lu": (lambda s, b, t: L.lu(t), in_lu(M, N)),
    "lu of a wide matrix": (lambda s, b, t: L.lu(t.mT), in_lu(N, M)),
    "lu_factor": (lambda s, b, t: L.lu_factor(t), in_lu(M, N)),
    "lu_solve": (lambda s, b, t: L.lu_solve(*L.lu_factor(s), b), in_lu(N, N) + SIDES * TRIANGLES),
    "ldl": (lambda s, b, t: L.ldl_solve(*L.ldl_factor(s), b), in_cholesky(N) + SIDES * TRIANGLES),
    "cholesky": (lambda s, b, t: L.cholesky(s), in_cholesky(N)),
    "cholesky_solve": (lambda s, b, t: torch.cholesky_solve(b, s), SIDES * TRIANGLES),
    # The inverse of the triangle is `n^3/6`, its product with its transpose too; LAPACK's is `(2n^3 - 3n^2 + n) / 6`.
    "cholesky_inverse": (lambda s, b, t: torch.cholesky_inverse(s), (2 * N**3 - 3 * N**2 + N) // 6),
    "solve_triangular": (lambda s, b, t: L.solve_triangular(s, b, upper=True), SIDES * in_triangle(N)),
    "triangular_solve": (lambda s, b, t: torch.triangular_solve(b, s), SIDES * in_triangle(N)),
    "geqrf": (lambda s, b, t: torch.geqrf(t), in_reflections(M, N)),
    "householder_product": (
        lambda s, b, t: L.householder_product(*torch.geqrf(t)),
        in_reflections(M, N) + in_q(M, N, N),
    ),
    "ormqr": (lambda s, b, t: torch.ormqr(*torch.geqrf(s), b), in_reflections(N, N) + applied(N, SIDES, N)),
    "ormqr from the right": (
        lambda s, b, t: torch.ormqr(*torch.geqrf(s), b.mT, left=False),
        in_reflections(N, N) + applied(N, SIDES, N),
    ),
    "svd": (lambda s, b, t: L.svd(t), SVD_COMPLETE),
    "svd, reduced, wide": (lambda s, b, t: L.svd(t.mT, full_matrices=False), SVD_REDUCED),
    "eigh": (lambda s, b, t: L.eigh(s), SYMMETRIC_VECTORS),
    "eig": (lambda s, b, t: L.eig(s), (25 * N**3 + 1) // 2),
    "pinv": (lambda s, b, t: L.pinv(t), SVD_REDUCED + N * N * M),
    "pinv, symmetric": (lambda s, b, t: L.pinv(s, hermitian=True), SYMMETRIC_VECTORS + N**3),
}
# What the dispatcher makes PyTorch compute vectors for, and records have no text for.
NOT_EVERYWHERE = {
    "svdvals": (lambda s, b, t: L.svdvals(t), SVD_VALUES, SVD_REDUCED),
    "cond": (lambda s, b, t: L.cond(t), SVD_VALUES, SVD_REDUCED),
    "matrix_rank": (lambda s, b, t: L.matrix_rank(t), SVD_VALUES, SVD_REDUCED),
    "spectral norm": (lambda s, b, t: L.matrix_norm(t, 2), SVD_VALUES, SVD_REDUCED),
    "nuclear norm": (lambda s, b, t: L.matrix_norm(t.mT, "nuc"), SVD_VALUES, SVD_REDUCED),
    "norm of other dimensions": (lambda s, b, t: L.matrix_norm(t.movedim(0, 1), 2, (0, 2)), SVD_VALUES, SVD_REDUCED),
    "eigvalsh": (lambda s, b, t: L.eigvalsh(s), SYMMETRIC_VALUES, SYMMETRIC_VECTORS),
    "eigvals": (lambda s, b, t: L.eigvals(s), 5 * N**3, (25 * N**3 + 1) // 2),
}
OF_TEXT = {
    "qr": (lambda s, b, t: L.qr(t), in_reflections(M, N) + in_q(M, N, N)),
    "qr, complete": (lambda s, b, t: L.qr(t, mode="complete"), in_reflections(M, N) + in_q(M, M, N)),
    "qr, R alone": (lambda s, b, t: L.qr(t, mode="r"), in_reflections(M, N)),
    "qr, wide": (lambda s, b, t: L.qr(t.mT), in_reflections(N, M) + in_q(N, N, N)),
    "lstsq": (
        lambda s, b, t: L.lstsq(t, torch.ones(BATCH, M, SIDES)),
        in_reflections(M, N) + applied(M, SIDES, N) + SIDES * in_triangle(N),
    ),
    "lstsq, wide": (
        lambda s, b, t: L.lstsq(t.mT, b),
        in_reflections(M, N) + applied(M, SIDES, N) + SIDES * in_triangle(N),
    ),
}


@pytest.fixture(scope="module")
def matrices():
    generator = torch.Generator().manual_seed(0)
    tall = torch.randn(BATCH, M, N, generator=generator)
    return tall.mT @ tall + torch.eye(N), torch.randn(BATCH, N, SIDES, generator=generator), tall


@pytest.mark.parametrize("engine", ["auto", "trace", "dispatch", "observer"])
@pytest.mark.parametrize(("function", "each"), EVERYWHERE.values(), ids=EVERYWHERE)
def test_each_matrix_counts_what_the_textbook_says(function, each, engine, matrices):
    flops = FlopCountAnalysis(function, matrices, engine=engine)
    assert flops.total() == BATCH * each
    assert flops.hardware_flops()[""] == 2 * BATCH * each
    assert not flops.is_lower_bound


@pytest.mark.parametrize(("function", "values", "vectors"), NOT_EVERYWHERE.values(), ids=NOT_EVERYWHERE)
def test_values_alone_take_less_but_not_where_derivatives_may_be_needed(function, values, vectors, matrices):
    """PyTorch computes vectors for derivatives, and takes a dispatcher mode for a sign that some are needed."""
    for engine in ("auto", "trace", "observer"):
        assert FlopCountAnalysis(function, matrices, engine=engine).total() == BATCH * values
    assert FlopCountAnalysis(function, matrices, engine="dispatch").total() == BATCH * vectors


@pytest.mark.parametrize("name", ["svdvals", "spectral norm", "eigvalsh", "eigvals"])
@pytest.mark.parametrize("engine", ["trace", "observer"])
def test_with_derivatives_the_vectors_count_where_they_run(name, engine, matrices):
    function, values, vectors = NOT_EVERYWHERE[name]
    with_grad = tuple(matrix.clone().requires_grad_() for matrix in matrices)
    assert FlopCountAnalysis(function, with_grad, engine=engine).total() == BATCH * vectors
    with torch.no_grad():
        assert FlopCountAnalysis(function, with_grad, engine=engine).total() == BATCH * values


@pytest.mark.parametrize(("function", "each"), OF_TEXT.values(), ids=OF_TEXT)
def test_what_depends_on_a_text_is_unknown_in_records(function, each, matrices):
    for engine in ("auto", "trace", "dispatch"):
        assert FlopCountAnalysis(function, matrices, engine=engine).total() == BATCH * each
    flops = FlopCountAnalysis(function, matrices, engine="observer")
    assert flops.is_lower_bound
    assert flops.total() == 0


def test_least_squares_by_singular_values_is_unknown(matrices):
    flops = FlopCountAnalysis(lambda s, b, t: L.lstsq(s, b, driver="gelsd"), matrices)
    assert "singular value decomposition" in flops.unknown_reasons()["aten::linalg_lstsq"]


def test_one_matrix_of_tensors(matrices):
    symmetric, right, _ = matrices
    inverse = FlopCountAnalysis(lambda s: L.tensorinv(s[0].reshape(N, 1, N), ind=1), symmetric)
    assert inverse.total() == in_lu(N, N) + N * TRIANGLES
    solved = FlopCountAnalysis(lambda s, b: L.tensorsolve(s[0], b[0, :, 0]), (symmetric, right))
    assert solved.total() == in_lu(N, N) + TRIANGLES


def test_a_matrix_exponential_is_unknown_but_for_the_observer_who_sees_its_products(matrices):
    symmetric = matrices[0][0] / 1000
    for engine in ("auto", "dispatch"):
        assert FlopCountAnalysis(L.matrix_exp, symmetric, engine=engine).is_lower_bound
    observed = FlopCountAnalysis(L.matrix_exp, symmetric, engine="observer")
    assert not observed.is_lower_bound
    assert observed.total() > 0
    assert observed.total() % N**3 == 0


def test_complex_matrices_count_four_and_a_unit_triangle_divides_nothing(tensor, op_call):
    operator = "aten::linalg_solve_triangular"
    real, complex_ = (
        [tensor(N, N, dtype=dtype), tensor(N, SIDES, dtype=dtype)] for dtype in (torch.float64, torch.complex64)
    )
    products = SIDES * in_triangle(N)
    formula = lookup(operator).formula
    call = op_call(operator, *real, True, True, False, out=real[1])
    assert formula(call) == Cost(fma=products, elementwise=SIDES * N)
    assert formula(op_call(operator, *real, True, True, True, out=real[1])) == Cost(fma=products)
    call = op_call(operator, *complex_, True, True, False, out=complex_[1])
    assert formula(call) == Cost(fma=4 * products, elementwise=2 * SIDES * N)


def test_functions_that_newer_versions_have_no_more_count_the_same(tensor, op_call):
    square, tall = tensor(N, N), tensor(M, N)
    call = op_call("aten::cholesky", square, False, out=square)
    assert lookup(call.operator).formula(call).fma == in_cholesky(N)
    for some, columns in (True, N), (False, M):
        call = op_call("aten::qr", tall, some, out=[tall, square])
        assert lookup(call.operator).formula(call).fma == in_reflections(M, N) + in_q(M, columns, N)
    for some, vectors, each in (True, True, SVD_REDUCED), (False, True, SVD_COMPLETE), (True, False, SVD_VALUES):
        call = op_call("aten::svd", tall, some, vectors, out=[tall, square, square])
        assert lookup(call.operator).formula(call).fma == each


def test_an_empty_matrix_costs_nothing():
    assert FlopCountAnalysis(L.inv, torch.ones(0, 5, 5)).total() == 0
    assert FlopCountAnalysis(L.cholesky, torch.ones(2, 0, 0)).total() == 0


class Whitening(nn.Module):
    """`x` times the inverse of a triangle, of which the derivatives are solutions too."""

    def __init__(self):
        super().__init__()
        self.triangle = nn.Parameter(torch.eye(N) + torch.ones(N, N).triu())

    def forward(self, x):
        return L.solve_triangular(self.triangle, x, upper=True)


def test_a_training_step_has_the_solutions_of_its_backward():
    model = Whitening()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    hook = FlopHook(model, optimizer, summary=False)
    for _ in range(2):
        model(torch.ones(N, SIDES)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    hook.close()
    numbers = hook.metrics()
    assert numbers["flops/forward"] == 2 * SIDES * in_triangle(N)
    # The gradient of the right-hand side is a solution too, and that of the triangle its product with the result.
    assert numbers["flops/train_step"] == 2 * (2 * SIDES * in_triangle(N) + N * SIDES * N)


def test_solutions_and_norms_are_no_activations(matrices):
    symmetric, right, _ = matrices
    assert ActivationCountAnalysis(lambda s, b: L.solve(s, b) @ b.mT, (symmetric, right)).total() == BATCH * N * N
    assert ActivationCountAnalysis(L.matrix_norm, symmetric).total() == 0


def test_a_norm_of_vectors_is_elementwise(tensor, op_call):
    formula = lookup("aten::linalg_norm").formula
    assert formula(op_call("aten::linalg_norm", tensor(3, 5), 2, [1], out=tensor(3))) == Cost(elementwise=2 * 15)
    assert formula(op_call("aten::linalg_norm", tensor(3, 5), None, None, out=tensor())) == Cost(elementwise=2 * 15)
