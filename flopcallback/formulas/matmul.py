"""Matrix products: `[m, k] @ [k, n]` is `m * k * n` multiply-adds.

A product that sums nothing (`outer`, `kron`, `inner` with a scalar) has no multiply-adds: it runs as `mul`, one FLOP
for each multiplication in either custom. Where it runs as `mm` (`matmul` and `tensordot` with `k = 1`) or adds to its
result (`addr`), it has. Factors `alpha`, `beta` and the scales of quantized products cost nothing.

A sparse matrix does as many multiply-adds as it has stored elements, times the columns of the dense one.

Left unknown, on purpose: products of two sparse matrices (their cost depends on data), factorizations and what stands
on them (`linalg_solve`, `inverse`, `matrix_exp`, a negative `matrix_power`, ...).
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from flopcallback.formulas.arithmetic import elements, items_of, multiplications, multiply_adds, numel_of, shape_of
from flopcallback.formulas.cost import Cost
from flopcallback.formulas.einsum import Operand, contract

if TYPE_CHECKING:
    from flopcallback.formulas.op_call import OpCall, Value

__all__ = [
    "added_outer",
    "added_product",
    "affine_grid",
    "bilinear",
    "covariance",
    "grouped_mm",
    "half_stored_addmm",
    "half_stored_mm",
    "linear",
    "linear_backward",
    "linear_packed",
    "list_mm",
    "matrix_power",
    "mm",
    "mm_activation",
    "multi_dot",
    "outer",
    "product",
    "product_backward",
    "scaled_mm",
    "tensordot",
    "trilinear",
    "vecdot",
]


def mm(call: OpCall) -> Cost:
    """`mm` and its integer form: `[m, k] @ [k, n]`; each stored element of a sparse factor meets a row or a column."""
    left, right = call.inputs[:2]
    return _sparse(left, right) or _mm(left, right)


def list_mm(call: OpCall) -> Cost:
    """`_foreach_mm`: pairwise products of two lists."""
    lefts, rights = map(items_of, call.inputs[:2])
    return sum(map(_mm, lefts, rights), Cost())


def product(call: OpCall) -> Cost:
    """`matmul`, `bmm`, `mv`, `dot`, `inner`: each element of the result sums over the last dimension of the left."""
    left, right = call.inputs[:2]
    if (sparse := _sparse(left, right)) is not None:
        return sparse
    if not shape_of(left) or not shape_of(right):  # `inner` with a scalar
        return multiplications(numel_of(call.outputs[0]), left, right)
    return multiply_adds(numel_of(call.outputs[0]) * shape_of(left)[-1], left, right)


def added_product(call: OpCall) -> Cost:
    """`addmm`, `baddbmm`, `addbmm`, `addmv`: `input + left @ right`, with a batch or without."""
    left, right = call.inputs[1:3]
    if (sparse := _sparse(left, right)) is not None:
        return sparse
    *batch, m, k = shape_of(left)
    columns = shape_of(right)[len(batch) + 1 :]
    return multiply_adds(prod(batch) * m * k * prod(columns), left, right)


def mm_activation(call: OpCall) -> Cost:
    """`_addmm_activation`: `addmm`, then ReLU or GELU, which is one elementwise operation per output."""
    return added_product(call) + Cost(elementwise=elements(call.outputs[0]))


def scaled_mm(call: OpCall) -> Cost:
    """`_scaled_mm` of 8-bit or 4-bit numbers; two 4-bit numbers share an element of `k`."""
    left, right = call.inputs[:2]
    (m, k), (_, n) = shape_of(left), shape_of(right)
    return multiply_adds(m * k * _packed(left) * n, left, right)


def grouped_mm(call: OpCall) -> Cost:
    """`_grouped_mm`, `_scaled_grouped_mm`: products of groups, which offsets cut out of a 2-dimensional side.

    Groups of rows `[m, k] @ [g, k, n]`, of columns `[g, m, k] @ [k, n]` and of the contracted dimension
    `[m, k] @ [k, n]` all do `m * k * n`; `[g, m, k] @ [g, k, n]` does it `g` times. Offsets are data: all of `m`, `n`
    and `k` is taken as used.
    """
    left, right = call.inputs[:2]
    groups = shape_of(left)[0] if len(shape_of(left)) == len(shape_of(right)) == 3 else 1
    (m, k), n = shape_of(left)[-2:], shape_of(right)[-1]
    return multiply_adds(groups * m * k * _packed(left) * n, left, right)


def linear(call: OpCall) -> Cost:
    """`input @ weight.T + bias`, with `weight` `[out, in]` or `[in]`; the bias is the accumulator's first value."""
    source, weight = call.inputs[:2]
    outs = shape_of(weight)[:-1]
    return multiply_adds(numel_of(source) * prod(outs), source, weight)


def linear_packed(call: OpCall) -> Cost:
    """A linear layer whose weight is packed (quantized, fbgemm): the result tells the number of outputs."""
    source, result = call.inputs[0], call.outputs[0]
    return multiply_adds(numel_of(source) * shape_of(result)[-1])


def linear_backward(call: OpCall) -> Cost:
    """`linear_backward(input, grad, weight, mask)`: one product each for the gradients of input and weight."""
    source, grad, weight, mask = call.inputs[:4]
    wants_source, wants_weight, wants_bias = mask.constant
    products = (wants_source + wants_weight) * numel_of(source) * shape_of(weight)[0]
    return multiply_adds(products, source, weight) + Cost(elementwise=wants_bias * elements(grad))


def product_backward(call: OpCall) -> Cost:
    """`matmul_backward(grad, left, right, mask)`: a product of the same size for each gradient."""
    grad, left, right, mask = call.inputs[:4]
    return multiply_adds(sum(mask.constant) * numel_of(grad) * shape_of(left)[-1], left, right)


def half_stored_mm(call: OpCall) -> Cost:
    """`_sparse_semi_structured_mm(left: [m, k / 2], where, right: [k, n])`: two of four elements are stored."""
    left, right = call.inputs[0], call.inputs[2]
    return multiply_adds(numel_of(left) * shape_of(right)[1], left, right)


def half_stored_addmm(call: OpCall) -> Cost:
    """`_sparse_semi_structured_addmm(input, left: [m, k / 2], where, right: [k, n])`."""
    left, right = call.inputs[1], call.inputs[3]
    return multiply_adds(numel_of(left) * shape_of(right)[1], left, right)


def outer(call: OpCall) -> Cost:
    """`outer`, `ger`, `kron`: each element of one side with each of the other, and no sum."""
    left, right = call.inputs[:2]
    return multiplications(numel_of(left) * numel_of(right), left, right)


def added_outer(call: OpCall) -> Cost:
    """`addr`: `input + outer(left, right)`, one kernel with a multiply-add for each element."""
    left, right = call.inputs[1:3]
    return multiply_adds(numel_of(left) * numel_of(right), left, right)


def vecdot(call: OpCall) -> Cost:
    """`linalg_vecdot`: one pair of vectors runs as `dot`; a batch of them as `mul` and `sum`, which are elementwise."""
    left = call.inputs[0]
    if len(shape_of(left)) == len(shape_of(call.inputs[1])) == 1:
        return product(call)
    axis = call.inputs[2].constant
    return Cost(elementwise=2 * elements(call.outputs[0]) * shape_of(left)[axis])


def covariance(call: OpCall) -> Cost:
    """`cov`, `corrcoef` of `[variables, samples]`: samples are centred, then multiplied with their own transpose."""
    samples = call.inputs[0]
    variables = shape_of(samples)[0] if len(shape_of(samples)) == 2 else 1
    centring = Cost(elementwise=2 * elements(samples))
    return multiply_adds(variables * numel_of(samples), samples, samples) + centring


def affine_grid(call: OpCall) -> Cost:
    """`affine_grid_generator`: each of `*size` points `[d + 1]` (homogeneous) by `[d + 1, d]`; its backward likewise.

    Forward returns `[n, *size, d]`, backward takes it.
    """
    points = call.outputs[0] if len(shape_of(call.outputs[0])) > 3 else call.inputs[0]
    return multiply_adds(numel_of(points) * (shape_of(points)[-1] + 1), points)


def tensordot(call: OpCall) -> Cost:
    """`tensordot(left, right, dims_left, dims_right)`: one matrix product.

    A contracted dimension that is 1 on one side is summed away on the other before: it is no part of the product.
    """
    left, right, dims_left, dims_right = call.inputs[:4]
    pairs = [
        (shape_of(left)[i], shape_of(right)[j]) for i, j in zip(dims_left.constant, dims_right.constant, strict=True)
    ]
    contracted = prod(1 if 1 in pair else pair[0] for pair in pairs)
    return multiply_adds(numel_of(call.outputs[0]) * contracted, left, right)


def multi_dot(call: OpCall) -> Cost:
    """`linalg.multi_dot`, `chain_matmul`: the order with the fewest multiply-adds, which is the one torch takes."""
    matrices = items_of(call.inputs[0])
    shapes = [shape_of(matrix) for matrix in matrices]
    # A vector at the front is a row, at the end a column.
    shapes[0], shapes[-1] = (1, *shapes[0])[-2:], (*shapes[-1], 1)[:2]
    sizes = (shapes[0][0], *(columns for _, columns in shapes))
    return multiply_adds(_cheapest_order(sizes), *matrices[:2])


def matrix_power(call: OpCall) -> Cost:
    """`matrix_power(matrices, n)`: squares for the binary digits of `n`, multiplied together for those that are 1.

    Source: `linalg_matrix_power` in ATen's native/LinearAlgebra.cpp.

    Raises:
        ValueError: `n` is negative, and powers of an inverse are taken.
    """
    matrices, power = call.inputs[0], call.inputs[1].constant
    if power < 0:
        raise ValueError(f"the power {power} takes an inverse, for which there is no count")
    products = power.bit_length() + power.bit_count() - 2 if power else 0
    return multiply_adds(products * numel_of(matrices) * shape_of(matrices)[-1], matrices, matrices)


def bilinear(call: OpCall) -> Cost:
    """`bilinear([*, i], [*, j], [o, i, j])`: for each output, `[*, i] @ [i, j]`, then a dot product over `j`."""
    left, _, weight = call.inputs[:3]
    outs, i, j = shape_of(weight)
    rows = prod(shape_of(left)[:-1])
    return multiply_adds(rows * outs * (i * j + j), left, weight)


def trilinear(call: OpCall) -> Cost:
    """`_trilinear`: the product of three tensors over named dimensions, one slice of one dimension at a time.

    It is what `bilinear` and its backward run as. Each slice multiplies the first two, then the third.
    Source: `_trilinear` in ATen's native/Linear.cpp.
    """
    tensors, hidden = call.inputs[:3], [value.constant for value in call.inputs[3:6]]
    summed, unrolled = call.inputs[6].constant, call.inputs[7].constant
    dims = range(len(shape_of(tensors[0])) + len(hidden[0]))
    named = [
        Operand.of([dim for dim in dims if dim not in gone], tensor)
        for tensor, gone in zip(tensors, hidden, strict=True)
    ]
    slices = max(operand.sizes.get(unrolled, 1) for operand in named)
    left, middle, right = (
        Operand({dim: size for dim, size in operand.sizes.items() if dim != unrolled}, operand.dtype)
        for operand in named
    )
    results = [dim for dim in dims if dim not in summed]
    sums_of_pair = [dim for dim in summed if dim in hidden[2] and dim != unrolled]
    sums_of_all = [dim for dim in summed if dim not in hidden[2] and dim != unrolled]
    pair, first = contract(left, middle, {*results, *right.sizes}, as_matrices=bool(sums_of_pair))
    _, second = contract(pair, right, results, as_matrices=bool(sums_of_all))
    return Cost(fma=slices * (first.fma + second.fma), other=slices * (first.other + second.other))


def _sparse(left: Value, right: Value) -> Cost | None:
    """The product of a sparse and a dense matrix (of batches, of a matrix and a vector); None where none is sparse.

    Of two sparse factors it depends on where the elements are, so that it stays unknown.
    """
    if left.stored is not None and right.is_tensor:
        *_, columns = shape_of(right) if len(shape_of(right)) > 1 else (1,)
        return multiply_adds(left.stored * columns, left, right)
    if right.stored is not None and left.is_tensor:
        return multiply_adds(shape_of(left)[-2] * right.stored, left, right)
    return None


def _mm(left: Value, right: Value) -> Cost:
    (m, k), (_, n) = shape_of(left), shape_of(right)
    return multiply_adds(m * k * n, left, right)


def _packed(value: Value) -> int:
    """Numbers in one element: torch keeps 4-bit floats in pairs."""
    return 2 if str(value.dtype) == "torch.float4_e2m1fn_x2" else 1


def _cheapest_order(sizes: tuple[int, ...]) -> int:
    """Fewest multiply-adds for the product of matrices `[sizes[0], sizes[1]] @ [sizes[1], sizes[2]] @ ...`.

    Cormen et al., Introduction to Algorithms, "Matrix-chain multiplication".
    """
    count = len(sizes) - 1
    best = {(start, start + 1): 0 for start in range(count)}
    for length in range(2, count + 1):
        for start in range(count - length + 1):
            stop = start + length
            best[start, stop] = min(
                best[start, cut] + best[cut, stop] + sizes[start] * sizes[cut] * sizes[stop]
                for cut in range(start + 1, stop)
            )
    return best[0, count]
