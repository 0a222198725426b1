"""Table of operators, by schema name.

A row has the formula of an operator, or the reason why it is free. An operator without a row is unknown.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from flopcallback.formulas import (
    attention,
    convolution,
    einsum,
    linalg,
    matmul,
    normalization,
    recurrent,
    resampling,
    spectral,
)
from flopcallback.formulas.cost import HARDWARE_FAMILIES, Family, Formula
from flopcallback.formulas.elementwise import ELEMENTWISE, per_input
from flopcallback.formulas.free import FREE_OPERATORS
from flopcallback.formulas.torch_flop_registry import pytorch_formula

__all__ = [
    "HARDWARE_FAMILIES",
    "Counted",
    "Family",
    "Formula",
    "Free",
    "counts_functions",
    "lookup",
    "register_formula",
    "unregister_formula",
]


@dataclass(frozen=True, slots=True)
class Counted:
    """Row of an operator that is counted by `formula`."""

    formula: Formula
    family: Family


@dataclass(frozen=True, slots=True)
class Free:
    """Row of an operator that does no floating-point work.

    Attributes:
        reason: such as a view, an index, or a copy.
    """

    reason: str


# The in-place form `aten::relu_` has the row of `aten::relu`, and `aten::mm` serves the `out=` overload too.
COUNTED: Mapping[Family, Mapping[str, Formula]] = {
    # --- Convolutions -------------------------------------------------------------------------------------------
    Family.CONVOLUTION: {
        "aten::_convolution": convolution.forward_or_transposed,
        "aten::convolution": convolution.forward_or_transposed,
        "aten::convolution_overrideable": convolution.forward_or_transposed,
        "aten::convolution_backward": convolution.backward,
        "aten::_convolution_mode": convolution.forward,
        "aten::conv1d": convolution.forward,
        "aten::conv2d": convolution.forward,
        "aten::conv3d": convolution.forward,
        "aten::conv_depthwise3d": convolution.forward,
        "aten::_conv_depthwise2d": convolution.forward,
        "aten::thnn_conv2d": convolution.forward,
        "aten::_slow_conv2d_forward": convolution.forward,
        "aten::slow_conv3d": convolution.forward,
        "aten::slow_conv3d_forward": convolution.forward,
        "aten::slow_conv_dilated2d": convolution.forward,
        "aten::slow_conv_dilated3d": convolution.forward,
        "aten::_nnpack_spatial_convolution": convolution.forward,
        "aten::mkldnn_convolution": convolution.forward,
        "aten::cudnn_convolution": convolution.forward,
        "aten::miopen_convolution": convolution.forward,
        "aten::miopen_depthwise_convolution": convolution.forward,
        "aten::_mps_convolution": convolution.forward,
        "aten::cudnn_convolution_relu": convolution.forward_activation,
        "aten::miopen_convolution_relu": convolution.forward_activation,
        "aten::cudnn_convolution_add_relu": convolution.forward_add_activation,
        "aten::miopen_convolution_add_relu": convolution.forward_add_activation,
        "aten::conv_transpose1d": convolution.transposed,
        "aten::conv_transpose2d": convolution.transposed,
        "aten::conv_transpose3d": convolution.transposed,
        "aten::slow_conv_transpose2d": convolution.transposed,
        "aten::slow_conv_transpose3d": convolution.transposed,
        "aten::cudnn_convolution_transpose": convolution.transposed,
        "aten::miopen_convolution_transpose": convolution.transposed,
        "aten::_mps_convolution_transpose": convolution.transposed,
        "aten::conv_tbc": convolution.time_major,
        # Packed parameters of a quantized layer arrive as their weight.
        "quantized::conv1d": convolution.forward,
        "quantized::conv2d": convolution.forward,
        "quantized::conv3d": convolution.forward,
        "quantized::conv1d_relu": convolution.forward_activation,
        "quantized::conv2d_relu": convolution.forward_activation,
        "quantized::conv3d_relu": convolution.forward_activation,
        "quantized::conv2d_add": convolution.weight_third,
        "quantized::conv2d_add_relu": convolution.weight_third,
        "quantized::conv1d_dynamic": convolution.forward,
        "quantized::conv2d_dynamic": convolution.forward,
        "quantized::conv3d_dynamic": convolution.forward,
        "quantized::conv_transpose1d": convolution.transposed,
        "quantized::conv_transpose2d": convolution.transposed,
        "quantized::conv_transpose3d": convolution.transposed,
        "quantized::conv_transpose1d_dynamic": convolution.transposed,
        "quantized::conv_transpose2d_dynamic": convolution.transposed,
        "quantized::conv_transpose3d_dynamic": convolution.transposed,
        "_quantized::conv2d": convolution.forward,
        "_quantized::conv3d": convolution.forward,
        "_quantized::conv2d_relu": convolution.forward_activation,
        "_quantized::conv3d_relu": convolution.forward_activation,
        "_quantized::conv_transpose1d": convolution.transposed,
        "_quantized::conv_transpose2d": convolution.transposed,
        "onednn::qconv_pointwise": convolution.onednn_quantized,
        "onednn::qconv1d_pointwise": convolution.onednn_quantized,
        "onednn::qconv2d_pointwise": convolution.onednn_quantized,
        "onednn::qconv3d_pointwise": convolution.onednn_quantized,
        "mkldnn::_convolution_pointwise": convolution.onednn_pointwise,
        "mkldnn::_convolution_transpose_pointwise": convolution.onednn_transposed,
        "torchvision::deform_conv2d": convolution.deformable,
        "torchvision::_deform_conv2d_backward": convolution.deformable_backward,
    },
    # --- Matrix products ----------------------------------------------------------------------------------------
    Family.MATMUL: {
        "aten::mm": matmul.mm,
        "aten::_int_mm": matmul.mm,
        "aten::_foreach_mm": matmul.list_mm,
        "aten::addmm": matmul.added_product,
        "aten::_sparse_addmm": matmul.added_product,
        "aten::sparse_sampled_addmm": matmul.sparse_sampled,
        "aten::_sparse_mm_reduce_impl": matmul.sparse_reduced,
        "aten::_sparse_mm_reduce_impl_backward": matmul.sparse_reduced_backward,
        "aten::addbmm": matmul.added_product,
        "aten::baddbmm": matmul.added_product,
        "aten::addmv": matmul.added_product,
        "aten::_addmm_activation": matmul.mm_activation,
        "aten::matmul": matmul.product,
        "aten::linalg_matmul": matmul.product,
        "aten::bmm": matmul.product,
        "aten::mv": matmul.product,
        "aten::dot": matmul.product,
        "aten::vdot": matmul.product,
        "aten::linalg_vecdot": matmul.vecdot,
        "aten::inner": matmul.product,
        "aten::outer": matmul.outer,
        "aten::ger": matmul.outer,
        "aten::kron": matmul.outer,
        "aten::addr": matmul.added_outer,
        "aten::tensordot": matmul.tensordot,
        "aten::cov": matmul.covariance,
        "aten::corrcoef": matmul.covariance,
        "aten::affine_grid_generator": matmul.affine_grid,
        "aten::affine_grid_generator_backward": matmul.affine_grid,
        "aten::cudnn_affine_grid_generator": matmul.affine_grid,
        "aten::cudnn_affine_grid_generator_backward": matmul.affine_grid,
        "aten::linalg_multi_dot": matmul.multi_dot,
        "aten::chain_matmul": matmul.multi_dot,
        "aten::matrix_power": matmul.matrix_power,
        "aten::linalg_matrix_power": matmul.matrix_power,
        "aten::einsum": einsum.einsum,
        "aten::linear": matmul.linear,
        "aten::mkldnn_linear": matmul.linear,
        "aten::linear_backward": matmul.linear_backward,
        "aten::mkldnn_linear_backward": matmul.linear_backward,
        "aten::matmul_backward": matmul.product_backward,
        "aten::_sparse_semi_structured_mm": matmul.half_stored_mm,
        "aten::_sparse_semi_structured_addmm": matmul.half_stored_addmm,
        "aten::bilinear": matmul.bilinear,
        "aten::_trilinear": matmul.trilinear,
        "aten::_scaled_mm": matmul.scaled_mm,
        "aten::_scaled_mm_v2": matmul.scaled_mm,
        "aten::_grouped_mm": matmul.grouped_mm,
        "aten::_scaled_grouped_mm": matmul.grouped_mm,
        "aten::_scaled_grouped_mm_v2": matmul.grouped_mm,
        "aten::_weight_int8pack_mm": matmul.linear_packed,
        "aten::_weight_int4pack_mm": matmul.linear_packed,
        "aten::_weight_int4pack_mm_for_cpu": matmul.linear_packed,
        "aten::_weight_int4pack_mm_with_scales_and_zeros": matmul.linear_packed,
        "aten::_dyn_quant_matmul_4bit": matmul.linear_packed,
        "aten::_mixed_dtypes_linear": matmul.linear_packed,
        "aten::fbgemm_linear_fp16_weight": matmul.linear_packed,
        "aten::fbgemm_linear_fp16_weight_fp32_activation": matmul.linear_packed,
        "aten::fbgemm_linear_int8_weight": matmul.linear_packed,
        "aten::fbgemm_linear_int8_weight_fp32_activation": matmul.linear_packed,
        "quantized::linear": matmul.linear_packed,
        "quantized::linear_relu": matmul.linear_packed,
        "quantized::linear_dynamic": matmul.linear_packed,
        "quantized::linear_relu_dynamic": matmul.linear_packed,
        "quantized::linear_tanh": matmul.linear_packed,
        "quantized::linear_leaky_relu": matmul.linear_packed,
        "quantized::linear_dynamic_fp16": matmul.linear_packed,
        "quantized::linear_relu_dynamic_fp16": matmul.linear_packed,
        "quantized::linear_dynamic_fp16_unpacked_weight": matmul.linear_packed,
        "quantized::linear_with_input_q_dq_qweight_dq_output_fp32": matmul.linear_packed,
        "quantized::linear_with_input_q_dq_qweight_dq_relu_output_fp32": matmul.linear_packed,
        "quantized::matmul": matmul.product,
        "_quantized::linear": matmul.linear_packed,
        "_quantized::linear_dynamic": matmul.linear_packed,
        "bitsandbytes::gemm_4bit": matmul.linear_of_shape,
        "bitsandbytes::gemv_4bit": matmul.linear_of_shape,
        "bitsandbytes::int8_linear_matmul": matmul.linear,
        "bitsandbytes::int8_scaled_mm": matmul.linear,
        "bitsandbytes::int8_mixed_scaled_mm": matmul.linear_with_outliers,
        "torchao::float8_linear_cpu": matmul.linear_packed,
        "torchao::da8w4_linear_cpu": matmul.linear_packed,
        "torchao::mx_fp8_bf16": matmul.mm,
        "onednn::qlinear_pointwise": matmul.linear_packed,
        "onednn::linear_dynamic_fp16": matmul.linear_packed,
        "onednn::linear_relu_dynamic_fp16": matmul.linear_packed,
        "mkldnn::_linear_pointwise": matmul.linear_packed,
        "mkl::_mkl_linear": matmul.linear_packed,
    },
    # --- Attention ----------------------------------------------------------------------------------------------
    Family.ATTENTION: {
        "aten::scaled_dot_product_attention": attention.scaled_dot_product_attention,
        # Query, key and value come first; a block mask does not make flex attention cheaper here.
        "higher_order::flex_attention": attention.flex,
        "higher_order::flex_attention_backward": attention.flex_backward,
        "aten::_scaled_dot_product_attention_math": attention.scaled_dot_product_attention,
        "aten::_scaled_dot_product_attention_math_for_mps": attention.scaled_dot_product_attention,
        "aten::_scaled_dot_product_fused_attention_overrideable": attention.scaled_dot_product_attention,
        "aten::_scaled_dot_product_fused_attention_overrideable_backward": attention.overrideable_backward,
        "aten::_scaled_dot_product_flash_attention": attention.flash,
        "aten::_scaled_dot_product_flash_attention_backward": attention.flash_backward,
        "aten::_scaled_dot_product_flash_attention_for_cpu": attention.flash,
        "aten::_scaled_dot_product_flash_attention_for_cpu_backward": attention.flash_for_cpu_backward,
        "aten::_scaled_dot_product_efficient_attention": attention.efficient,
        "aten::_scaled_dot_product_efficient_attention_backward": attention.efficient_backward,
        "aten::_scaled_dot_product_cudnn_attention": attention.cudnn,
        "aten::_scaled_dot_product_cudnn_attention_backward": attention.cudnn_backward,
        "aten::_cudnn_attention_forward": attention.cudnn_kernel,
        "aten::_cudnn_attention_backward": attention.cudnn_kernel_backward,
        "aten::_flash_attention_forward": attention.flash_tokens_first,
        "aten::_flash_attention_forward_no_dropout_inplace": attention.flash_inplace,
        "aten::_flash_attention_backward": attention.flash_tokens_first_backward,
        "aten::_efficient_attention_forward": attention.efficient_tokens_first,
        "aten::_efficient_attention_backward": attention.efficient_tokens_first_backward,
        "torchao::qscaled_dot_product": attention.scaled_dot_product_attention,
        "torch_attn::_varlen_attn": attention.varlen,
        "torch_attn::_varlen_attn_out": attention.varlen_out,
        "torch_attn::_varlen_attn_backward": attention.varlen_backward,
        **{
            f"{package}::_flash_attn_{name}": formula
            for package in ("flash_attn", "flashattn")
            for name, formula in {
                "forward": attention.flash_attn,
                "backward": attention.flash_attn_backward,
                "varlen_forward": attention.flash_attn_packed,
                "varlen_backward": attention.flash_attn_packed_backward,
            }.items()
        },
        "aten::_native_multi_head_attention": attention.multi_head_attention,
        "aten::_transformer_encoder_layer_fwd": attention.transformer_encoder_layer,
    },
    # --- Recurrent layers and cells -----------------------------------------------------------------------------
    Family.RECURRENT: {
        "aten::lstm": recurrent.lstm,
        "aten::_lstm_mps": recurrent.lstm,
        "aten::lstm_mps_backward": recurrent.lstm_mps_backward,
        "aten::gru": recurrent.gru,
        "aten::rnn_tanh": recurrent.rnn,
        "aten::rnn_relu": recurrent.rnn,
        "aten::lstm_cell": recurrent.lstm_cell,
        "aten::gru_cell": recurrent.gru_cell,
        "aten::rnn_tanh_cell": recurrent.rnn_cell,
        "aten::rnn_relu_cell": recurrent.rnn_cell,
        "quantized::quantized_lstm_cell_dynamic": recurrent.lstm_cell,
        "quantized::quantized_gru_cell_dynamic": recurrent.gru_cell,
        "quantized::quantized_rnn_tanh_cell_dynamic": recurrent.rnn_cell,
        "quantized::quantized_rnn_relu_cell_dynamic": recurrent.rnn_cell,
        # The fused cells do the gates alone: their products are separate calls of `mm` or `linear`.
        "aten::_thnn_fused_lstm_cell": per_input(recurrent.LSTM_GATES, argument=2),
        "aten::_thnn_fused_lstm_cell_backward": per_input(2 * recurrent.LSTM_GATES, argument=2),
        "aten::_thnn_fused_lstm_cell_backward_impl": per_input(2 * recurrent.LSTM_GATES, argument=2),
        "aten::_thnn_fused_gru_cell": per_input(recurrent.GRU_GATES, argument=2),
        "aten::_thnn_fused_gru_cell_backward": per_input(2 * recurrent.GRU_GATES),
        "aten::mkldnn_rnn_layer": recurrent.mkldnn_rnn_layer,
        "aten::mkldnn_rnn_layer_backward": recurrent.mkldnn_rnn_layer_backward,
        "aten::_cudnn_rnn": recurrent.cudnn_rnn,
        "aten::_cudnn_rnn_backward": recurrent.cudnn_rnn_backward,
        "aten::miopen_rnn": recurrent.miopen_rnn,
        "aten::miopen_rnn_backward": recurrent.miopen_rnn_backward,
    },
    # --- Dense linear algebra -----------------------------------------------------------------------------------
    Family.LINALG: {
        "aten::linalg_solve_triangular": linalg.triangular_solve,
        "aten::triangular_solve": linalg.triangular_solve_after,
        "aten::cholesky": linalg.cholesky,
        "aten::linalg_cholesky": linalg.cholesky,
        "aten::linalg_cholesky_ex": linalg.cholesky,
        "aten::linalg_ldl_factor": linalg.cholesky,
        "aten::linalg_ldl_factor_ex": linalg.cholesky,
        "aten::cholesky_solve": linalg.cholesky_solve,
        "aten::_cholesky_solve_helper": linalg.cholesky_solve,
        "aten::linalg_ldl_solve": linalg.ldl_solve,
        "aten::cholesky_inverse": linalg.cholesky_inverse,
        "aten::linalg_lu": linalg.lu,
        "aten::linalg_lu_factor": linalg.lu,
        "aten::linalg_lu_factor_ex": linalg.lu,
        "aten::_lu_with_info": linalg.lu,
        "aten::linalg_lu_solve": linalg.lu_solve,
        "aten::lu_solve": linalg.lu_solve,
        "aten::det": linalg.determinant,
        "aten::linalg_det": linalg.determinant,
        "aten::_linalg_det": linalg.determinant,
        "aten::slogdet": linalg.determinant,
        "aten::linalg_slogdet": linalg.determinant,
        "aten::_linalg_slogdet": linalg.determinant,
        "aten::logdet": linalg.determinant,
        "aten::linalg_solve": linalg.solve,
        "aten::linalg_solve_ex": linalg.solve,
        "aten::_linalg_solve_ex": linalg.solve,
        "aten::inverse": linalg.inverse,
        "aten::linalg_inv": linalg.inverse,
        "aten::linalg_inv_ex": linalg.inverse,
        "aten::linalg_tensorinv": linalg.tensor_inverse,
        "aten::linalg_tensorsolve": linalg.tensor_solve,
        "aten::geqrf": linalg.householder_qr,
        "aten::linalg_householder_product": linalg.householder_product,
        "aten::orgqr": linalg.householder_product,
        "aten::ormqr": linalg.times_reflections,
        "aten::linalg_qr": linalg.qr,
        "aten::qr": linalg.qr_some,
        "aten::linalg_lstsq": linalg.least_squares,
        "aten::linalg_eigvalsh": linalg.symmetric_eigenvalues,
        "aten::linalg_eigh": linalg.symmetric_eigenvectors,
        "aten::_linalg_eigh": linalg.symmetric_eigen,
        "aten::linalg_eigvals": linalg.eigenvalues,
        "aten::_linalg_eigvals": linalg.eigenvalues,
        "aten::linalg_eig": linalg.eigenvectors,
        "aten::svd": linalg.svd_some,
        "aten::linalg_svdvals": linalg.singular_values,
        "aten::linalg_svd": linalg.singular_vectors,
        "aten::_linalg_svd": linalg.svd,
        "aten::linalg_matrix_rank": linalg.singular_rank,
        "aten::linalg_cond": linalg.condition,
        "aten::nuclear_norm": linalg.singular_values,
        # Here and not among the reductions, since some orders are of singular values.
        "aten::linalg_norm": linalg.norm,
        "aten::linalg_matrix_norm": linalg.norm,
        "aten::linalg_pinv": linalg.pseudo_inverse,
        "aten::pinverse": linalg.pseudo_inverse,
    },
    # --- Batch, layer, group, instance, RMS norm ----------------------------------------------------------------
    Family.NORMALIZATION: {
        "aten::batch_norm": normalization.batch_norm,
        "aten::instance_norm": normalization.batch_norm,
        "aten::native_batch_norm": normalization.batch_norm,
        "aten::_native_batch_norm_legit": normalization.batch_norm,
        "aten::_native_batch_norm_legit_functional": normalization.batch_norm,  # what the compiler makes of it
        "aten::cudnn_batch_norm": normalization.batch_norm,
        "aten::miopen_batch_norm": normalization.batch_norm,
        "aten::_batch_norm_with_update": normalization.batch_norm_training,
        "aten::_batch_norm_with_update_functional": normalization.batch_norm_training,
        "aten::_batch_norm_no_update": normalization.batch_norm_evaluation,
        "aten::_native_batch_norm_legit_no_training": normalization.batch_norm_evaluation,
        "aten::batch_norm_stats": normalization.batch_norm_statistics,
        "aten::batch_norm_update_stats": normalization.batch_norm_statistics,
        "aten::batch_norm_gather_stats": normalization.batch_norm_combine,
        "aten::batch_norm_gather_stats_with_counts": normalization.batch_norm_combine,
        "aten::batch_norm_elemt": normalization.batch_norm_apply,
        "aten::layer_norm": normalization.layer_norm,
        "aten::native_layer_norm": normalization.layer_norm,
        "aten::group_norm": normalization.layer_norm,
        # Below autograd the weight is argument 1, not 2 as in `group_norm`.
        "aten::native_group_norm": normalization.batch_norm_training,
        "aten::rms_norm": normalization.rms_norm,
        "aten::_fused_rms_norm": normalization.rms_norm,
        "aten::native_batch_norm_backward": per_input(normalization.BACKWARD),
        "aten::batch_norm_backward": per_input(normalization.BACKWARD),
        "aten::cudnn_batch_norm_backward": per_input(normalization.BACKWARD),
        "aten::miopen_batch_norm_backward": per_input(normalization.BACKWARD),
        # `nn.SyncBatchNorm` splits the backward in two.
        "aten::batch_norm_backward_reduce": per_input(normalization.BACKWARD // 2),
        "aten::batch_norm_backward_elemt": per_input(normalization.BACKWARD // 2),
        "aten::native_layer_norm_backward": per_input(normalization.BACKWARD),
        "aten::native_group_norm_backward": per_input(normalization.BACKWARD),
        "aten::_fused_rms_norm_backward": per_input(normalization.BACKWARD),
    },
    # --- Interpolation, grid sampling, adaptive average pooling --------------------------------------------------
    Family.RESAMPLING: {
        "aten::upsample_nearest1d": resampling.interpolation(taps=1),
        "aten::upsample_nearest2d": resampling.interpolation(taps=1),
        "aten::upsample_nearest3d": resampling.interpolation(taps=1),
        "aten::_upsample_nearest_exact1d": resampling.interpolation(taps=1),
        "aten::_upsample_nearest_exact2d": resampling.interpolation(taps=1),
        "aten::_upsample_nearest_exact3d": resampling.interpolation(taps=1),
        "aten::upsample_linear1d": resampling.interpolation(taps=2),
        "aten::upsample_bilinear2d": resampling.interpolation(taps=4),
        "aten::upsample_trilinear3d": resampling.interpolation(taps=8),
        "aten::upsample_bicubic2d": resampling.interpolation(taps=16),
        "aten::_upsample_bilinear2d_aa": resampling.antialiased(taps=2),
        "aten::_upsample_bicubic2d_aa": resampling.antialiased(taps=4),
        "aten::_upsample_lanczos2d_aa": resampling.antialiased(taps=6),
        "aten::upsample_nearest1d_backward": per_input(1),
        "aten::upsample_nearest2d_backward": per_input(1),
        "aten::upsample_nearest3d_backward": per_input(1),
        "aten::_upsample_nearest_exact1d_backward": per_input(1),
        "aten::_upsample_nearest_exact2d_backward": per_input(1),
        "aten::_upsample_nearest_exact3d_backward": per_input(1),
        "aten::upsample_linear1d_backward": per_input(2),
        "aten::upsample_bilinear2d_backward": per_input(4),
        "aten::upsample_trilinear3d_backward": per_input(8),
        "aten::upsample_bicubic2d_backward": per_input(16),
        "aten::_upsample_bilinear2d_aa_backward": per_input(4),
        "aten::_upsample_bicubic2d_aa_backward": per_input(16),
        "aten::_upsample_lanczos2d_aa_backward": per_input(36),
        "aten::grid_sampler": resampling.grid_sampler,
        "aten::grid_sampler_2d": resampling.grid_sampler,
        "aten::grid_sampler_3d": resampling.grid_sampler,
        "aten::_grid_sampler_2d_cpu_fallback": resampling.grid_sampler,
        "aten::cudnn_grid_sampler": resampling.grid_sampler,
        "aten::grid_sampler_2d_backward": resampling.grid_sampler_backward,
        "aten::grid_sampler_3d_backward": resampling.grid_sampler_backward,
        "aten::adaptive_avg_pool1d": resampling.adaptive_average_pool,
        "aten::adaptive_avg_pool2d": resampling.adaptive_average_pool,
        "aten::adaptive_avg_pool3d": resampling.adaptive_average_pool,
        "aten::_adaptive_avg_pool2d": resampling.adaptive_average_pool,
        "aten::_adaptive_avg_pool3d": resampling.adaptive_average_pool,
        "aten::mkldnn_adaptive_avg_pool2d": resampling.adaptive_average_pool,
        # Argument 1 is the forward's input, one operation per element as in the forward.
        "aten::_adaptive_avg_pool2d_backward": per_input(argument=1),
        "aten::_adaptive_avg_pool3d_backward": per_input(argument=1),
        "torchvision::roi_align": resampling.roi_align(samples=5),
        "torchvision::ps_roi_align": resampling.roi_align(samples=5),
        "torchvision::_roi_align_backward": resampling.roi_align_backward(samples=9),
        "torchvision::_ps_roi_align_backward": resampling.roi_align_backward(samples=6),
        # Here and not among the reductions, since global average pooling runs as a mean.
        "aten::mean": resampling.global_average_pool_or_mean,
    },
    # --- Fourier transforms -------------------------------------------------------------------------------------
    Family.SPECTRAL: {
        "aten::_fft_c2c": spectral.complex_to_complex,
        "aten::_fft_r2c": spectral.real_to_complex,
        "aten::_fft_c2r": spectral.complex_to_real,
        "aten::fft_fft": spectral.fft,
        "aten::fft_ifft": spectral.fft,
        "aten::fft_fft2": spectral.fft_multidimensional,
        "aten::fft_fftn": spectral.fft_multidimensional,
        "aten::fft_ifft2": spectral.fft_multidimensional,
        "aten::fft_ifftn": spectral.fft_multidimensional,
        "aten::fft_rfft": spectral.to_half_spectrum,
        "aten::fft_rfft2": spectral.to_half_spectrum,
        "aten::fft_rfftn": spectral.to_half_spectrum,
        "aten::fft_ihfft": spectral.to_half_spectrum,
        "aten::fft_irfft": spectral.from_half_spectrum,
        "aten::fft_irfft2": spectral.from_half_spectrum,
        "aten::fft_irfftn": spectral.from_half_spectrum,
        "aten::fft_hfft": spectral.from_half_spectrum,
        "aten::fft_ihfft2": spectral.to_half_spectrum_hermitian,
        "aten::fft_ihfftn": spectral.to_half_spectrum_hermitian,
        "aten::fft_hfft2": spectral.from_half_spectrum_hermitian,
        "aten::fft_hfftn": spectral.from_half_spectrum_hermitian,
        "aten::stft": spectral.stft,
        "aten::istft": spectral.istft,
    },
    # --- Elementwise: activations, arithmetic, reductions, losses, optimizers; other pools, embedding bags --------
    Family.ELEMENTWISE: ELEMENTWISE,
}

FREE: Mapping[str, Free] = {  # a name without a namespace is ATen's
    (name if "::" in name else f"aten::{name}"): Free(reason)
    for reason, names in FREE_OPERATORS.items()
    for name in names.split()
}

_BUILT_IN: Mapping[str, Counted | Free] = {
    **FREE,
    **{operator: Counted(formula, family) for family, rows in COUNTED.items() for operator, formula in rows.items()},
}
_registered: dict[str, Counted] = {}  # by `register_formula`, for the whole process


def lookup(operator: str) -> Counted | Free | None:
    """Return the row of an operator, or None for an unknown one.

    An operator without a row here may have a formula that PyTorch's own counter was given (`register_flop_formula`).

    Args:
        operator: schema name without overload, such as `"aten::linear"`. An in-place `"aten::relu_"` has the row of
            `"aten::relu"`.
    """
    # A registered formula wins: `register_formula` refuses built-in names, so it hides no built-in row.
    row = _registered.get(operator) or _BUILT_IN.get(operator) or _BUILT_IN.get(_out_of_place(operator))
    if operator.startswith("prims::"):  # decompositions, in forward-mode AD for one, go through these
        row = row or _BUILT_IN.get(operator.replace("prims::", "aten::"))
    # Asked last, in each look-up anew: users may register with PyTorch at any time.
    if row is None and (formula := pytorch_formula(operator)) is not None:
        return Counted(formula, Family.CUSTOM)
    return row


def register_formula(operator: str, formula: Formula, *, family: Family = Family.CUSTOM) -> None:
    """Count an operator without a built-in row by your own formula.

    Args:
        operator: schema name without overload, `"namespace::name"`; an autograd function is
            `"prim::PythonOp.<ClassName>"`.
        formula: from the `OpCall` to its `Cost`: a function of shapes, dtypes and constants.
        family: family of the work; `Family.CUSTOM` is part of FLOPs by its multiply-adds.

    Raises:
        ValueError: the name is not `"namespace::name"`, or the operator already has a formula.
        TypeError: the formula cannot be called.
    """
    check_operator_name("register_formula", operator)
    if not callable(formula):
        raise TypeError(f"register_formula: formula of {operator!r} is {formula!r}, expected a function of one OpCall")
    if operator in _registered:
        raise ValueError(f"register_formula: {operator!r} is registered; unregister_formula({operator!r}) first")
    if operator in _BUILT_IN or _out_of_place(operator) in _BUILT_IN:
        raise ValueError(
            f"register_formula: {operator!r} has a built-in row; "
            f"for one analysis, replace it with FlopCountAnalysis(...).set_formula({operator!r}, formula)"
        )
    _registered[operator] = Counted(formula, family)


def counts_functions() -> bool:
    """Return whether autograd functions have formulas of their own."""
    return any(operator.startswith("prim::PythonOp.") for operator in _registered)


def check_operator_name(function: str, operator: str) -> None:
    """Raise unless a text can be an operator's name.

    Args:
        function: public function to name in the error.
        operator: text to check.

    Raises:
        ValueError: it is neither `"namespace::name"` nor `"prim::PythonOp.<ClassName>"`.
    """
    if not re.fullmatch(r"\w+::\w+|prim::PythonOp\.\w+", operator):
        raise ValueError(f'{function}: operator is {operator!r}, expected "namespace::name" without overload')


def unregister_formula(operator: str) -> None:
    """Forget the formula that `register_formula` was given for an operator.

    Raises:
        ValueError: no formula was registered for it; built-in rows cannot be removed.
    """
    if operator not in _registered:
        raise ValueError(f"unregister_formula: {operator!r} is not registered; registered: {sorted(_registered)}")
    del _registered[operator]


def _out_of_place(operator: str) -> str:
    """Return `"aten::relu"` for `"aten::relu_"`, other names unchanged."""
    # `"aten::__iand__"` and other dunder names are no in-place forms.
    return operator[:-1] if operator.endswith("_") and not operator.endswith("__") else operator
