"""Drop-in replacement for the counting functions of `fvcore.nn`.

The names and submodules are those of fvcore: a program changes the import and nothing else.
"""

from flopcallback.fvcore.activation_count import ActivationCountAnalysis, activation_count
from flopcallback.fvcore.flop_count import FlopCountAnalysis, flop_count
from flopcallback.fvcore.jit_analysis import JitModelAnalysis, Statistics
from flopcallback.fvcore.jit_handles import (
    Handle,
    addmm_flop_jit,
    batchnorm_flop_jit,
    bmm_flop_jit,
    conv_flop_count,
    conv_flop_jit,
    einsum_flop_jit,
    elementwise_flop_counter,
    generic_activation_jit,
    get_shape,
    linear_flop_jit,
    matmul_flop_jit,
    norm_flop_counter,
)
from flopcallback.fvcore.parameter_count import parameter_count, parameter_count_table
from flopcallback.fvcore.print_model_statistics import flop_count_str, flop_count_table

__all__ = [
    "ActivationCountAnalysis",
    "FlopCountAnalysis",
    "Handle",
    "JitModelAnalysis",
    "Statistics",
    "activation_count",
    "addmm_flop_jit",
    "batchnorm_flop_jit",
    "bmm_flop_jit",
    "conv_flop_count",
    "conv_flop_jit",
    "einsum_flop_jit",
    "elementwise_flop_counter",
    "flop_count",
    "flop_count_str",
    "flop_count_table",
    "generic_activation_jit",
    "get_shape",
    "linear_flop_jit",
    "matmul_flop_jit",
    "norm_flop_counter",
    "parameter_count",
    "parameter_count_table",
]
