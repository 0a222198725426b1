"""One table: operator schema name -> how it is counted, or why it is free. What is not in it is unknown."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

from flopcallback.counting.op_call import OpCall
from flopcallback.formulas import convolution, einsum, matmul
from flopcallback.formulas.cost import Cost
from flopcallback.formulas.elementwise import ELEMENTWISE
from flopcallback.formulas.free import FREE_OPERATORS

__all__ = ["Counted", "Family", "Formula", "Free", "lookup", "register_formula", "unregister_formula"]

Formula = Callable[[OpCall], Cost]


class Family(str, Enum):
    """What kind of work an operator does; `hardware` families make up hardware FLOPs."""

    CONVOLUTION = "convolution"
    MATMUL = "matmul"
    ATTENTION = "attention"
    RECURRENT = "recurrent"
    NORMALIZATION = "normalization"
    RESAMPLING = "resampling"
    SPECTRAL = "spectral"
    ELEMENTWISE = "elementwise"
    CUSTOM = "custom"


@dataclass(frozen=True, slots=True)
class Counted:
    """An operator that is counted, by `formula`."""

    formula: Formula
    family: Family


@dataclass(frozen=True, slots=True)
class Free:
    """An operator that does no floating-point work, and `reason`: a view, an index, a copy, ..."""

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
        "aten::conv_tbc_backward": convolution.time_major_backward,
    },
    # --- Matrix products ----------------------------------------------------------------------------------------
    Family.MATMUL: {
        "aten::mm": matmul.mm,
        "aten::_int_mm": matmul.mm,
        "aten::_foreach_mm": matmul.list_mm,
        "aten::addmm": matmul.added_product,
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
        "aten::einsum": einsum.einsum,
        "aten::linear": matmul.linear,
        "aten::mkldnn_linear": matmul.linear,
        "aten::linear_backward": matmul.linear_backward,
        "aten::mkldnn_linear_backward": matmul.linear_backward,
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
    },
    # --- Attention ----------------------------------------------------------------------------------------------
    Family.ATTENTION: {},
    # --- Recurrent layers and cells -----------------------------------------------------------------------------
    Family.RECURRENT: {},
    # --- Batch, layer, group, instance, RMS norm ----------------------------------------------------------------
    Family.NORMALIZATION: {},
    # --- Interpolation, grid sampling, adaptive average pooling --------------------------------------------------
    Family.RESAMPLING: {},
    # --- Fourier transforms -------------------------------------------------------------------------------------
    Family.SPECTRAL: {},
    # --- Elementwise: activations, arithmetic, reductions, losses, optimizers; other pools, embedding bags --------
    Family.ELEMENTWISE: ELEMENTWISE,
}

FREE: Mapping[str, Free] = {
    **{f"aten::{name}": Free(reason) for reason, names in FREE_OPERATORS.items() for name in names.split()},
    "profiler::_record_function_enter": Free("a mark for the profiler"),
    "profiler::_record_function_enter_new": Free("a mark for the profiler"),
    "profiler::_record_function_exit": Free("a mark for the profiler"),
}

_BUILT_IN: Mapping[str, Counted | Free] = {
    **FREE,
    **{operator: Counted(formula, family) for family, rows in COUNTED.items() for operator, formula in rows.items()},
}
_registered: dict[str, Counted] = {}


def lookup(operator: str) -> Counted | Free | None:
    """How an operator is counted, or why it is free; None where no one knows.

    Args:
        operator: schema name without overload, such as `"aten::linear"`. An in-place `"aten::relu_"` has the row of
            `"aten::relu"`.
    """
    return _registered.get(operator) or _BUILT_IN.get(operator) or _BUILT_IN.get(_out_of_place(operator))


def register_formula(operator: str, formula: Formula, *, family: Family = Family.CUSTOM) -> None:
    """Count an operator that has no built-in row by a formula of your own.

    Args:
        operator: schema name without overload, `"namespace::name"`.
        formula: from the `OpCall` to its `Cost`: a function of shapes, dtypes and constants.
        family: where the work belongs; `Family.CUSTOM` is part of hardware FLOPs by its multiply-adds.

    Raises:
        ValueError: the name is not `"namespace::name"`, or the operator already has a formula.
        TypeError: the formula cannot be called.
    """
    if not re.fullmatch(r"\w+::\w+", operator):
        raise ValueError(f'register_formula: operator is {operator!r}, expected "namespace::name" without overload')
    if not callable(formula):
        raise TypeError(f"register_formula: formula of {operator!r} is {formula!r}, expected a function of one OpCall")
    if operator in _registered:
        raise ValueError(f"register_formula: {operator!r} is registered; unregister_formula({operator!r}) first")
    if lookup(operator) is not None:
        raise ValueError(
            f"register_formula: {operator!r} has a built-in row; "
            f"for one analysis, replace it with FlopCountAnalysis(...).set_op_handle({operator!r}, handle)"
        )
    _registered[operator] = Counted(formula, family)


def unregister_formula(operator: str) -> None:
    """Forget what `register_formula` was told about an operator.

    Raises:
        ValueError: nothing was registered for it; built-in rows cannot be taken away.
    """
    if operator not in _registered:
        raise ValueError(f"unregister_formula: {operator!r} is not registered; registered: {sorted(_registered)}")
    del _registered[operator]


def _out_of_place(operator: str) -> str:
    """`"aten::relu"` for `"aten::relu_"`; names such as `"aten::__iand__"` stay as they are."""
    return operator[:-1] if operator.endswith("_") and not operator.endswith("__") else operator
