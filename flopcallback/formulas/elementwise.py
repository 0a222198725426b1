"""Elementwise operators, reductions, losses and optimizer steps, counted with `elementwise=True`.

The figures follow the definition of the operator, per floating-point element:

| operators | operations | reasoning |
|---|---|---|
| arithmetic, activations, `exp`, `sqrt`, `max(a, b)` | 1 per output | one call of one function |
| `glu`, `addcmul`, activations' backward | 2 per output | a product and one more |
| `lerp`, `mse_loss_backward` | 3 per output | subtract, multiply, add or scale |
| dropout in training; alpha dropout | 2; 6 per output | the mask is scaled, then multiplied |
| `sum`, `mean`, `prod`, `max`, `argmax`, `cumsum` | 1 per input | one step per element |
| norms | 2 per input | square and add |
| `logsumexp`, `var`, `std`, softmax' backward | 4 per input | max, subtract, exp, add; mean, subtract, square, add |
| softmax, log-softmax | 5 per input | max, subtract, exp, add, divide |
| `l1_loss`, `mse_loss`, Huber; `kl_div`; cross-entropy of two classes | 3; 4; 7 per input | with the mean or sum |
| cross-entropy | 5 per score, 1 per target | log-softmax and a sum |
| `cosine_similarity`, `triplet_margin_loss` | 8 per input | three sums of products, two quotients; two distances |
| Adam, AdamW; SGD; Adagrad | 12; 4; 7 per parameter | update rule with weight decay and momentum |

A complex element is two real ones; a complex product takes 6 operations, a quotient 11. Integers and booleans are no
floating-point work; comparisons are free where they give booleans and cost 1 where they give numbers (ReLU, `max`).
Scalar factors (`add(alpha=)`, the quotient of a mean) and work per row beside work per element are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING

from flopcallback.formulas.arithmetic import elements, is_complex, is_floating, numel_of, shape_of
from flopcallback.formulas.cost import Cost, Formula
from flopcallback.formulas.embedding import embedding_bag, embedding_bag_backward, per_sample_weights_backward
from flopcallback.formulas.resampling import pool, pool_backward, region_pool

if TYPE_CHECKING:
    from flopcallback.formulas.op_call import OpCall, Value

__all__ = ["ELEMENTWISE", "per_input", "per_output"]


def per_output(operations: int = 1) -> Formula:
    """Return a formula of `operations` per element of the first result.

    Where an in-place operator on lists returns nothing, its first argument is the result.
    """

    def formula(call: OpCall) -> Cost:
        first = next(iter(call.outputs), None)
        # `_foreach_add_` and other in-place operators on lists have no result in their schema.
        result = first if first is not None and _has_tensors(first) else call.inputs[0]
        return Cost(elementwise=operations * elements(result))

    return formula


def per_input(operations: int = 1, *, argument: int = 0) -> Formula:
    """Return a formula of `operations` per element of one argument."""

    def formula(call: OpCall) -> Cost:
        return Cost(elementwise=operations * elements(call.inputs[argument]))

    return formula


def per_list_element(operations: int = 1) -> Formula:
    """Return a formula of `operations` per element of the first list.

    It serves `_foreach` operators and fused optimizers.
    """

    def formula(call: OpCall) -> Cost:
        first = next((value for value in call.inputs if value.items is not None), None)
        if first is None:
            raise ValueError("expected a list of tensors among the arguments")
        return Cost(elementwise=operations * elements(first))

    return formula


def extremum(call: OpCall) -> Cost:
    """Count `max`, `min`: one per output for two tensors, else a reduction."""
    formula = per_output() if len(call.inputs) > 1 and call.inputs[1].is_tensor else per_input()
    return formula(call)


def multiply(call: OpCall) -> Cost:
    """Count `mul`: one operation per output."""
    both_complex = _both_complex(call)
    # Four products and two sums are 6 operations, on a result of which each element counts as 2 already.
    return per_output(3 if both_complex else 1)(call)


def divide(call: OpCall) -> Cost:
    """Count `div`: one operation per output.

    `(a + bi) / (c + di)` is a complex product (6 operations), `c * c + d * d` (3) and two quotients: 11.
    """
    if not _both_complex(call):
        return per_output()(call)
    # `numel_of`, not `elements`: 11 is per complex element.
    return Cost(elementwise=11 * numel_of(call.outputs[0]))


def dropout(operations: int) -> Formula:
    """Return a formula of `dropout(input, p, train)`: `operations` per element in training.

    In evaluation, or with `p = 0`, it costs nothing.
    """

    def formula(call: OpCall) -> Cost:
        probability, train = call.inputs[1].constant, call.inputs[2].constant
        return per_output(operations)(call) if probability and train else Cost()

    return formula


def cross_entropy(call: OpCall) -> Cost:
    """Count `cross_entropy_loss(input, target, ...)`: log-softmax, then a sum.

    The sum is over targets (indices) or over products (probabilities).
    """
    scores, target = call.inputs[:2]
    # Indices pick one score each; probabilities take a product and a sum per class.
    picked = 2 * elements(target) if is_floating(target) else numel_of(target)
    # Position 5 is the label smoothing, which adds a sum over all classes.
    smoothed = elements(scores) if call.inputs[5].constant else 0
    return Cost(elementwise=5 * elements(scores) + picked + smoothed)


def picked_targets(call: OpCall) -> Cost:
    """Count `nll_loss(input, target, ...)` or its backward: one per target.

    The backward is `(grad, input, target, ...)`.
    """
    # The target is the only tensor of integers, one place further back in the backward.
    target = next(value for value in call.inputs[1:] if value.is_tensor and not is_floating(value))
    return Cost(elementwise=numel_of(target))


def scatter(call: OpCall) -> Cost:
    """Count `scatter_add(self, dim, index, source)`: one addition per index.

    Elements of the source beyond the index are not read.
    """
    index, source = call.inputs[2:4]
    return Cost(elementwise=numel_of(index) if is_floating(source) else 0)


def accumulate(call: OpCall) -> Cost:
    """Count `index_put(self, indices, values, accumulate)`, `put`: one addition per value.

    Without `accumulate`, values are only written, which is free.
    """
    values, adds = call.inputs[2:4]
    return Cost(elementwise=elements(values) if adds.constant else 0)


def distances(call: OpCall) -> Cost:
    """Count `cdist([*, p, m], [*, r, m])`.

    Each pair of rows takes a subtraction, a power and an addition per coordinate.
    """
    pairs, width = call.outputs[0], shape_of(call.inputs[0])[-1]
    return Cost(elementwise=3 * elements(pairs) * width)


def distances_backward(call: OpCall) -> Cost:
    """Count `_cdist_backward(grad, x, ...)`: three operations per pair and coordinate."""
    pairs, width = call.inputs[0], shape_of(call.inputs[1])[-1]
    return Cost(elementwise=3 * elements(pairs) * width)


def ctc(call: OpCall) -> Cost:
    """Count `ctc_loss([time, batch, classes], targets, ...)`: six operations per time and state.

    They are a logsumexp of three and an addition. A target of `s` labels has `2 * s + 1` states; padding counts as
    labels.
    """
    scores, targets = call.inputs[:2]
    time, *batch = shape_of(scores)[:-1]
    # Summed over the batch, `2 * s + 1` states are `2 * targets + batch`.
    return Cost(elementwise=6 * time * (2 * numel_of(targets) + prod(batch)))


def _has_tensors(value: Value) -> bool:
    return value.is_tensor or value.items is not None


def _both_complex(call: OpCall) -> bool:
    return all(map(is_complex, call.inputs[:2]))


def _rows(formula: Formula, names: str) -> dict[str, Formula]:
    return {f"aten::{name}": formula for name in names.split()}


def _foreach_rows(operations: int, names: str) -> dict[str, Formula]:
    return {f"aten::_foreach_{name}": per_list_element(operations) for name in names.split()}


_BLOCKWISE = "optimizer_update_8bit_blockwise"

ELEMENTWISE: Mapping[str, Formula] = {
    # --- Arithmetic and functions of numbers ---
    **_rows(
        per_output(),
        """
        add sub subtract rsub neg negative abs absolute fabs ceil floor round trunc fix frac sign sgn positive square
        pow float_power exp exp2 expm1 log log2 log10 log1p sqrt rsqrt reciprocal sin cos tan asin acos atan sinh cosh
        tanh asinh acosh atanh arcsin arccos arctan arcsinh arccosh arctanh atan2 arctan2 hypot sinc erf erfc erfinv
        lgamma digamma polygamma mvlgamma igamma igammac i0 xlogy logaddexp logaddexp2 logit heaviside copysign
        nextafter ldexp fmod remainder floor_divide maximum minimum fmax fmin clamp clamp_min clamp_max clip nan_to_num
        deg2rad rad2deg angle conj_physical polar renorm cross linalg_cross diff special_airy_ai special_bessel_j0
        special_bessel_j1 special_bessel_y0 special_bessel_y1 special_digamma special_entr special_erf special_erfc
        special_erfcx special_erfinv special_exp2 special_expit special_expm1 special_gammainc special_gammaincc
        special_gammaln special_i0 special_i0e special_i1 special_i1e special_log1p special_log_ndtr special_logit
        special_multigammaln special_ndtr special_ndtri special_polygamma special_psi special_round special_sinc
        special_xlog1py special_xlogy special_zeta special_chebyshev_polynomial_t special_chebyshev_polynomial_u
        special_chebyshev_polynomial_v special_chebyshev_polynomial_w special_hermite_polynomial_h
        special_hermite_polynomial_he special_laguerre_polynomial_l special_legendre_polynomial_p
        special_modified_bessel_i0 special_modified_bessel_i1 special_modified_bessel_k0 special_modified_bessel_k1
        special_scaled_modified_bessel_k0 special_scaled_modified_bessel_k1 special_shifted_chebyshev_polynomial_t
        special_shifted_chebyshev_polynomial_u special_shifted_chebyshev_polynomial_v
        special_shifted_chebyshev_polynomial_w special_spherical_bessel_j0 frexp modf vander linalg_vander
        _standard_gamma_grad _dirichlet_grad _conj_physical
        """,
    ),
    **_rows(multiply, "mul multiply"),
    **_rows(divide, "div divide true_divide"),
    **_rows(per_output(2), "addcmul addcdiv _add_relu gradient"),
    **_rows(per_output(3), "lerp quantile nanquantile"),  # a quantile interpolates between two sorted elements
    # --- Activations and dropout ---
    **_rows(
        per_output(),
        """
        relu relu6 leaky_relu prelu _prelu_kernel rrelu rrelu_with_noise rrelu_with_noise_functional elu selu celu gelu
        silu mish sigmoid hardsigmoid hardswish hardtanh hardshrink softshrink softplus log_sigmoid log_sigmoid_forward
        threshold
        """,
    ),
    **_rows(per_output(2), "glu native_dropout _fused_dropout"),
    **_rows(dropout(2), "dropout feature_dropout"),
    **_rows(dropout(6), "alpha_dropout feature_alpha_dropout"),
    **_rows(
        per_output(2),
        """
        threshold_backward leaky_relu_backward _prelu_kernel_backward rrelu_with_noise_backward elu_backward
        gelu_backward silu_backward mish_backward sigmoid_backward tanh_backward logit_backward hardsigmoid_backward
        hardswish_backward hardtanh_backward hardshrink_backward softshrink_backward softplus_backward
        log_sigmoid_backward glu_backward native_dropout_backward _masked_scale infinitely_differentiable_gelu_backward
        glu_jvp glu_backward_jvp
        """,
    ),
    # --- Reductions, scans, softmax ---
    **_rows(
        per_input(),
        """
        sum nansum nanmean prod amax amin aminmax _aminmax argmax argmin median nanmedian cumsum cumprod cummax cummin
        _cummax_helper _cummin_helper trace sum_to_size _grad_sum_to_size segment_reduce
        """,
    ),
    **_rows(extremum, "max min"),
    **_rows(per_input(2), "norm linalg_vector_norm frobenius_norm norm_except_dim native_norm linalg__powsum"),
    **_rows(per_input(4), "logsumexp special_logsumexp logcumsumexp _logcumsumexp var std var_mean std_mean"),
    **_rows(
        per_input(5),
        "softmax _softmax _safe_softmax special_softmax log_softmax _log_softmax special_log_softmax _masked_softmax",
    ),
    **_rows(per_input(4), "_softmax_backward_data _log_softmax_backward_data _masked_softmax_backward"),
    # --- Additions at indices ---
    # Argument 3 is the source: one addition per element.
    **_rows(per_input(argument=3), "index_add index_reduce _unsafe_masked_index_put_accumulate"),
    **_rows(scatter, "scatter_add scatter_reduce"),
    **_rows(accumulate, "index_put _index_put_impl _unsafe_index_put put"),
    **_rows(
        per_input(),
        """
        _segment_reduce_backward
        embedding_backward embedding_dense_backward embedding_sparse_backward index_select_backward gather_backward
        unfold_backward col2im reflection_pad1d_backward reflection_pad2d_backward reflection_pad3d_backward
        replication_pad1d_backward replication_pad2d_backward replication_pad3d_backward
        """,
    ),
    # --- Losses and distances ---
    **_rows(per_input(2), "trapezoid trapz cumulative_trapezoid"),
    **_rows(per_input(3), "l1_loss mse_loss smooth_l1_loss huber_loss dist"),
    **_rows(
        per_input(4),
        """
        kl_div poisson_nll_loss soft_margin_loss multi_margin_loss pairwise_distance hinge_embedding_loss
        multilabel_margin_loss multilabel_margin_loss_forward
        """,
    ),
    **_rows(per_input(6), "margin_ranking_loss cosine_embedding_loss"),
    **_rows(per_input(7), "binary_cross_entropy binary_cross_entropy_with_logits"),
    **_rows(per_input(8), "cosine_similarity triplet_margin_loss"),
    **_rows(cross_entropy, "cross_entropy_loss"),
    **_rows(picked_targets, "nll_loss nll_loss_nd nll_loss_forward nll_loss2d nll_loss2d_forward"),
    **_rows(picked_targets, "nll_loss_backward nll_loss2d_backward"),
    **_rows(
        per_output(3),
        """
        mse_loss_backward smooth_l1_loss_backward huber_loss_backward soft_margin_loss_backward
        multi_margin_loss_backward multilabel_margin_loss_backward binary_cross_entropy_backward
        """,
    ),
    **_rows(distances, "cdist _cdist_forward _euclidean_dist pdist _pdist_forward"),
    **_rows(distances_backward, "_cdist_backward _pdist_backward"),
    **_rows(ctc, "ctc_loss _ctc_loss _cudnn_ctc_loss"),
    **_rows(per_output(6), "_ctc_loss_backward"),
    # --- Weights as direction and length ---
    **_rows(per_input(4), "_weight_norm _weight_norm_interface"),
    **_rows(per_input(8), "_weight_norm_interface_backward _weight_norm_differentiable_backward"),
    # --- Quantization: scale, round, clamp, shift ---
    **_rows(per_input(4), "quantize_per_tensor quantize_per_tensor_dynamic quantize_per_channel"),
    **_rows(per_output(2), "dequantize"),
    **_rows(
        per_input(6),
        """
        fake_quantize_per_tensor_affine fake_quantize_per_channel_affine fake_quantize_per_tensor_affine_cachemask
        fake_quantize_per_channel_affine_cachemask _fake_quantize_per_tensor_affine_cachemask_tensor_qparams
        _fake_quantize_learnable_per_tensor_affine _fake_quantize_learnable_per_channel_affine
        fused_moving_avg_obs_fake_quant _fused_moving_avg_obs_fq_helper _fused_moving_avg_obs_fq_helper_functional
        """,
    ),
    **_rows(
        per_output(),
        """
        fake_quantize_per_tensor_affine_cachemask_backward fake_quantize_per_channel_affine_cachemask_backward
        _fake_quantize_learnable_per_tensor_affine_backward _fake_quantize_learnable_per_channel_affine_backward
        """,
    ),
    "torchao::quantize_affine": per_input(4),
    "torchao::dequantize_affine": per_output(2),
    "torchao::choose_qparams_affine": per_input(2),  # a minimum and a maximum
    "torchao::choose_scale_float8": per_input(2),
    "torchao::quantize_affine_float8_non_decomposed": per_input(4),
    "torchao::dequantize_affine_float8_non_decomposed": per_output(2),
    **{f"bitsandbytes::{name}": per_input(4) for name in ("quantize_4bit", "quantize_blockwise")},
    **{f"bitsandbytes::{name}": per_input(4) for name in ("int8_vectorwise_quant", "int8_double_quant")},
    **{f"bitsandbytes::{name}": per_output(2) for name in ("dequantize_4bit", "dequantize_blockwise")},
    **{f"bitsandbytes::{name}": per_output(2) for name in ("int8_vectorwise_dequant", "int8_mm_dequant")},
    # The parameter is argument 2; as Adam.
    **{f"bitsandbytes::{name}": per_input(12, argument=2) for name in ("optimizer_update_32bit", _BLOCKWISE)},
    # --- Lists of tensors: optimizers, gradient clipping ---
    **_foreach_rows(
        1,
        """
        abs acos add asin atan ceil clamp_max clamp_min cos cosh div erf erfc exp expm1 floor frac lgamma log log10
        log1p log2 max maximum minimum mul neg pow reciprocal round rsqrt sigmoid sign sin sinh sqrt sub tan tanh trunc
        """,
    ),
    **_foreach_rows(2, "addcdiv addcmul norm powsum"),
    **{name.replace("aten::", "prims::"): row for name, row in _rows(per_output(2), "fma").items()},
    **_foreach_rows(3, "lerp"),
    **_rows(per_list_element(12), "_fused_adam _fused_adamw"),
    **_rows(per_list_element(4), "_fused_sgd"),
    **_rows(per_list_element(7), "_fused_adagrad"),
    **_rows(per_list_element(1), "_amp_foreach_non_finite_check_and_unscale"),
    # --- Pools and embedding bags ---
    **_rows(pool, "avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d max_pool3d max_pool1d_with_indices"),
    **_rows(pool, "max_pool2d_with_indices max_pool3d_with_indices mkldnn_max_pool2d mkldnn_max_pool3d"),
    **_rows(pool, "fractional_max_pool2d fractional_max_pool3d"),
    **_rows(per_input(), "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d"),
    **{f"torchvision::{name}": region_pool for name in ("roi_pool", "ps_roi_pool")},
    **{f"torchvision::_{name}_backward": per_input() for name in ("roi_pool", "ps_roi_pool")},
    **_rows(pool_backward, "avg_pool2d_backward avg_pool3d_backward"),
    **_rows(
        per_input(),
        """
        max_pool2d_backward max_pool2d_with_indices_backward max_pool3d_with_indices_backward mkldnn_max_pool2d_backward
        mkldnn_max_pool3d_backward fractional_max_pool2d_backward fractional_max_pool3d_backward
        adaptive_max_pool2d_backward adaptive_max_pool3d_backward
        """,
    ),
    **_rows(embedding_bag, "embedding_bag _embedding_bag _embedding_bag_forward_only"),
    **_rows(
        embedding_bag_backward,
        "_embedding_bag_backward _embedding_bag_dense_backward _embedding_bag_sparse_backward",
    ),
    **_rows(per_sample_weights_backward, "_embedding_bag_per_sample_weights_backward"),
}
