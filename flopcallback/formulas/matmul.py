"""Matrix products: dense, sparse and quantized.

`[m, k] @ [k, n]` is `m * k * n` multiply-adds.

A product that sums nothing (`outer`, `kron`, `inner` with a scalar) has no multiply-adds: it runs as `mul`, one FLOP
per multiplication in either convention. It has multiply-adds where it runs as `mm` (`matmul` and `tensordot` with
`k = 1`) or adds to its result (`addr`). Factors `alpha`, `beta` and the scales of quantized products cost nothing.

A sparse matrix takes one multiply-add per stored element and column of the dense matrix.

Unknown on purpose: products of two sparse matrices, whose cost depends on data.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from flopcallback.formulas.arithmetic import elements, items_of, multiplications, multiply_adds, numel_of, shape_of
from flopcallback.formulas.cost import Cost
from flopcallback.formulas.einsum import Operand, contract
from flopcallback.formulas.linalg import inverse

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
    "linear_of_shape",
    "linear_packed",
    "linear_with_outliers",
    "list_mm",
    "matrix_power",
    "mm",
    "mm_activation",
    "multi_dot",
    "outer",
    "product",
    "product_backward",
    "scaled_mm",
    "sparse_reduced",
    "sparse_reduced_backward",
    "sparse_sampled",
    "tensordot",
    "trilinear",
    "vecdot",
]


def mm(call: OpCall) -> Cost:
    """Count `mm` or `_int_mm`: `[m, k] @ [k, n]`.

    One of the factors may be sparse.
    """
    left, right = call.inputs[:2]
    return _sparse(left, right) or _mm(left, right)


def sparse_reduced(call: OpCall) -> Cost:
    """Count `_sparse_mm_reduce_impl(left, right, reduce)`: each row of the result reduces products.

    Raises:
        ValueError: nobody saw which reduction it is, or how many elements are stored.
    """
    left, right, reduction = call.inputs[:3]
    return _reduced(_stored(left) * shape_of(right)[1], reduction.constant, left, right)


def sparse_reduced_backward(call: OpCall) -> Cost:
    """Count the gradients of `_sparse_mm_reduce_impl`, `(left, gradient, right, reduce, arg, mask)`.

    Raises:
        ValueError: as above.
    """
    left, _, right, reduction, _, mask = call.inputs[:6]
    return _reduced(sum(mask.constant) * _stored(left) * shape_of(right)[1], reduction.constant, left, right)


def sparse_sampled(call: OpCall) -> Cost:
    """Count `sparse_sampled_addmm(input, left, right)`: a dot product per stored element of the input.

    Raises:
        ValueError: nobody saw how many elements are stored.
    """
    source, left, right = call.inputs[:3]
    return multiply_adds(_stored(source) * shape_of(left)[-1], left, right)


def _stored(value: Value) -> int:
    if value.stored is None:
        raise ValueError("nobody saw how many elements are stored")
    return value.stored


def _reduced(count: int, reduction: object, left: Value, right: Value) -> Cost:
    if reduction in ("sum", "mean"):
        return multiply_adds(count, left, right)
    if reduction in ("amax", "amin"):  # products that no sum follows
        return multiplications(count, left, right)
    raise ValueError(f"the reduction {reduction!r} is not known")


def list_mm(call: OpCall) -> Cost:
    """Count `_foreach_mm`: pairwise products of two lists."""
    lefts, rights = map(items_of, call.inputs[:2])
    return sum(map(_mm, lefts, rights), Cost())


def product(call: OpCall) -> Cost:
    """Count `matmul`, `bmm`, `mv`, `dot`, `inner`.

    Each element of the result sums over the last dimension of the left factor.
    """
    left, right = call.inputs[:2]
    if (sparse := _sparse(left, right)) is not None:
        return sparse
    if not shape_of(left) or not shape_of(right):  # `inner` with a scalar
        return multiplications(numel_of(call.outputs[0]), left, right)
    return multiply_adds(numel_of(call.outputs[0]) * shape_of(left)[-1], left, right)


def added_product(call: OpCall) -> Cost:
    """Count `addmm`, `baddbmm`, `addbmm`, `addmv`: `input + left @ right`.

    `left` is `[m, k]` or `[batch, m, k]`; `right` may be a vector.
    """
    left, right = call.inputs[1:3]
    if (sparse := _sparse(left, right)) is not None:
        return sparse
    *batch, m, k = shape_of(left)
    # Empty for a vector, whose product with the left factor is `m * k`.
    columns = shape_of(right)[len(batch) + 1 :]
    return multiply_adds(prod(batch) * m * k * prod(columns), left, right)


def mm_activation(call: OpCall) -> Cost:
    """Count `_addmm_activation`: `addmm` with one elementwise operation per output."""
    return added_product(call) + Cost(elementwise=elements(call.outputs[0]))


def scaled_mm(call: OpCall) -> Cost:
    """Count `_scaled_mm` of 8-bit or 4-bit numbers."""
    left, right = call.inputs[:2]
    (m, k), (_, n) = shape_of(left), shape_of(right)
    # `k` counts elements, and two 4-bit numbers share one.
    return multiply_adds(m * k * _packed(left) * n, left, right)


def grouped_mm(call: OpCall) -> Cost:
    """Count `_grouped_mm`, `_scaled_grouped_mm`: products of groups.

    Offsets cut the groups out of a 2-dimensional side:

    - groups of rows `[m, k] @ [g, k, n]`, of columns `[g, m, k] @ [k, n]`, and of the contracted dimension
      `[m, k] @ [k, n]` do `m * k * n`;
    - `[g, m, k] @ [g, k, n]` does `g * m * k * n`.

    Offsets are data, so `m`, `n` and `k` count as fully used.
    """
    left, right = call.inputs[:2]
    # Only two 3-dimensional sides are a batch; otherwise the groups are parts of one dimension.
    groups = shape_of(left)[0] if len(shape_of(left)) == len(shape_of(right)) == 3 else 1
    (m, k), n = shape_of(left)[-2:], shape_of(right)[-1]
    return multiply_adds(groups * m * k * _packed(left) * n, left, right)


def linear(call: OpCall) -> Cost:
    """Count `input @ weight.T + bias`, with `weight` `[out, in]` or `[in]`.

    The bias costs nothing: it is the accumulator's first value.
    """
    source, weight = call.inputs[:2]
    outs = shape_of(weight)[:-1]
    return multiply_adds(numel_of(source) * prod(outs), source, weight)


def linear_packed(call: OpCall) -> Cost:
    """Count a linear layer with a packed weight (quantized, fbgemm)."""
    # A packed weight has no readable shape: the result tells the number of outputs.
    source, result = call.inputs[0], call.outputs[0]
    return multiply_adds(numel_of(source) * shape_of(result)[-1])


def linear_of_shape(call: OpCall) -> Cost:
    """Count a linear layer `(input, packed weight, [out, in], ...)` of 4-bit numbers."""
    source, weight, sizes = call.inputs[:3]
    outs, _ = sizes.constant
    return multiply_adds(numel_of(source) * outs, source, weight)


def linear_with_outliers(call: OpCall) -> Cost:
    """Count `int8_mixed_scaled_mm(_, input, weight: [out, in], _, _, outlier columns, ...)`.

    The columns of outliers are multiplied once more, in floating point.
    """
    source, weight, outliers = call.inputs[1], call.inputs[2], call.inputs[5]
    rows, (outs, ins) = prod(shape_of(source)[:-1]), shape_of(weight)
    return multiply_adds(rows * outs * (ins + outliers.numel), source, weight)


def linear_backward(call: OpCall) -> Cost:
    """Count `linear_backward(input, grad, weight, mask)`.

    The gradients of input and weight are a product each; the gradient of the bias is a sum.
    """
    source, grad, weight, mask = call.inputs[:4]
    wants_source, wants_weight, wants_bias = mask.constant
    # Each of the two gradients takes as many multiply-adds as the forward.
    products = (wants_source + wants_weight) * numel_of(source) * shape_of(weight)[0]
    return multiply_adds(products, source, weight) + Cost(elementwise=wants_bias * elements(grad))


def product_backward(call: OpCall) -> Cost:
    """Count `matmul_backward(grad, left, right, mask)`: a product per gradient."""
    grad, left, right, mask = call.inputs[:4]
    return multiply_adds(sum(mask.constant) * numel_of(grad) * shape_of(left)[-1], left, right)


def half_stored_mm(call: OpCall) -> Cost:
    """Count `_sparse_semi_structured_mm(left: [m, k / 2], where, right: [k, n])`.

    Two of four elements of the left factor are stored, and only these are multiplied.
    """
    left, right = call.inputs[0], call.inputs[2]
    return multiply_adds(numel_of(left) * shape_of(right)[1], left, right)


def half_stored_addmm(call: OpCall) -> Cost:
    """Count `_sparse_semi_structured_addmm(input, left: [m, k / 2], where, right: [k, n])`."""
    left, right = call.inputs[1], call.inputs[3]
    return multiply_adds(numel_of(left) * shape_of(right)[1], left, right)


def outer(call: OpCall) -> Cost:
    """Count `outer`, `ger`, `kron`: one multiplication per pair of elements."""
    left, right = call.inputs[:2]
    return multiplications(numel_of(left) * numel_of(right), left, right)


def added_outer(call: OpCall) -> Cost:
    """Count `addr`: `input + outer(left, right)`, one multiply-add per element."""
    left, right = call.inputs[1:3]
    return multiply_adds(numel_of(left) * numel_of(right), left, right)


def vecdot(call: OpCall) -> Cost:
    """Count `linalg_vecdot`: a `dot` for vectors, elementwise work for batches.

    A batch runs as `mul` and `sum`.
    """
    left = call.inputs[0]
    if len(shape_of(left)) == len(shape_of(call.inputs[1])) == 1:
        return product(call)
    axis = call.inputs[2].constant
    return Cost(elementwise=2 * elements(call.outputs[0]) * shape_of(left)[axis])


def covariance(call: OpCall) -> Cost:
    """Count `cov`, `corrcoef` of `[variables, samples]`.

    Samples are centred, then multiplied with their own transpose.
    """
    samples = call.inputs[0]
    # A single variable may come as a vector.
    variables = shape_of(samples)[0] if len(shape_of(samples)) == 2 else 1
    # The mean and its subtraction.
    centring = Cost(elementwise=2 * elements(samples))
    return multiply_adds(variables * numel_of(samples), samples, samples) + centring


def affine_grid(call: OpCall) -> Cost:
    """Count `affine_grid_generator` or its backward: points times a matrix.

    Each of `*size` homogeneous points `[d + 1]` meets the matrix `[d + 1, d]`.
    """
    # Forward returns the points, `[n, *size, d]`, and backward takes them; the other side is `[n, d, d + 1]`.
    points = call.outputs[0] if len(shape_of(call.outputs[0])) > 3 else call.inputs[0]
    return multiply_adds(numel_of(points) * (shape_of(points)[-1] + 1), points)


def tensordot(call: OpCall) -> Cost:
    """Count `tensordot(left, right, dims_left, dims_right)` as one matrix product."""
    left, right, dims_left, dims_right = call.inputs[:4]
    pairs = [
        (shape_of(left)[i], shape_of(right)[j]) for i, j in zip(dims_left.constant, dims_right.constant, strict=True)
    ]
    # A dimension that is 1 on one side only is summed away on the other before the product.
    contracted = prod(1 if 1 in pair else pair[0] for pair in pairs)
    return multiply_adds(numel_of(call.outputs[0]) * contracted, left, right)


def multi_dot(call: OpCall) -> Cost:
    """Count `linalg.multi_dot`, `chain_matmul` in the order with the fewest multiply-adds.

    torch takes that order.
    """
    matrices = items_of(call.inputs[0])
    shapes = [shape_of(matrix) for matrix in matrices]
    # A vector at the front is a row, at the end a column.
    shapes[0], shapes[-1] = (1, *shapes[0])[-2:], (*shapes[-1], 1)[:2]
    sizes = (shapes[0][0], *(columns for _, columns in shapes))
    return multiply_adds(_cheapest_order(sizes), *matrices[:2])


def matrix_power(call: OpCall) -> Cost:
    """Count `matrix_power(matrices, n)`: squares, and products of some of them.

    There is a square for each binary digit of `n` but the first, and a product for each further digit that is 1. A
    negative power is one of the inverse.
    Source: `linalg_matrix_power` in ATen's native/LinearAlgebra.cpp.
    """
    matrices, power = call.inputs[0], call.inputs[1].constant
    # `bit_length - 1` squares and `bit_count - 1` products.
    products = power.bit_length() + power.bit_count() - 2 if power else 0
    inverted = inverse(call) if power < 0 else Cost()
    return inverted + multiply_adds(products * numel_of(matrices) * shape_of(matrices)[-1], matrices, matrices)


def bilinear(call: OpCall) -> Cost:
    """Count `bilinear([*, i], [*, j], [o, i, j])`.

    Each output takes `[*, i] @ [i, j]`, then a dot product over `j`.
    """
    left, _, weight = call.inputs[:3]
    outs, i, j = shape_of(weight)
    rows = prod(shape_of(left)[:-1])
    return multiply_adds(rows * outs * (i * j + j), left, weight)


def trilinear(call: OpCall) -> Cost:
    """Count `_trilinear`: a product of three tensors over named dimensions.

    `bilinear` and its backward run as it, one slice of the unrolled dimension at a time. Each slice multiplies the
    first two tensors, then the third.
    Source: `_trilinear` in ATen's native/Linear.cpp.
    """
    tensors, hidden = call.inputs[:3], [value.constant for value in call.inputs[3:6]]
    # `sumdim` and `unroll_dim` of the schema.
    summed, unrolled = call.inputs[6].constant, call.inputs[7].constant
    # `expand1` ... `expand3` list the dimensions that each tensor lacks, so all three share one numbering.
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
    # What the third tensor lacks is summed in the first product, the rest in the second.
    sums_of_pair = [dim for dim in summed if dim in hidden[2] and dim != unrolled]
    sums_of_all = [dim for dim in summed if dim not in hidden[2] and dim != unrolled]
    pair, first = contract(left, middle, {*results, *right.sizes}, as_matrices=bool(sums_of_pair))
    _, second = contract(pair, right, results, as_matrices=bool(sums_of_all))
    return Cost(fma=slices * (first.fma + second.fma), other=slices * (first.other + second.other))


def _sparse(left: Value, right: Value) -> Cost | None:
    """Count the product of one sparse and one dense factor.

    The dense factor may be a batch or a vector. For two dense or two sparse factors the result is None. Two sparse
    factors then raise in `shape_of`, and the operator stays unknown: its cost depends on where the elements are.
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
    """Return how many numbers one element holds."""
    return 2 if str(value.dtype) == "torch.float4_e2m1fn_x2" else 1


def _cheapest_order(sizes: tuple[int, ...]) -> int:
    """Return the fewest multiply-adds that multiply a chain of matrices.

    The chain is `[sizes[0], sizes[1]] @ [sizes[1], sizes[2]] @ ...`.
    Source: Cormen et al., Introduction to Algorithms, "Matrix-chain multiplication".
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
