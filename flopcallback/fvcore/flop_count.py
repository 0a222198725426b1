"""FLOPs: the analysis, its handles, and a function that counts in GFLOPs."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

from torch import nn

from flopcallback.counting.analysis import FlopCountAnalysis
from flopcallback.counting.tally import Handle
from flopcallback.formulas.registry import COUNTED, Family
from flopcallback.fvcore._one_call import counts_in
from flopcallback.fvcore.jit_handles import (
    addmm_flop_jit,
    batchnorm_flop_jit,
    bmm_flop_jit,
    conv_flop_jit,
    einsum_flop_jit,
    handle_by_formula,
    linear_flop_jit,
    matmul_flop_jit,
)

__all__ = ["FlopCountAnalysis", "flop_count"]

# The default counts of `FlopCountAnalysis` as handles, for users who copy or change them: fvcore's name.
_DEFAULT_SUPPORTED_OPS: dict[str, Handle] = {
    **{
        operator: handle_by_formula(operator)
        for family, rows in COUNTED.items()
        if family is not Family.ELEMENTWISE
        for operator in rows
    },
    # Operators with a handle of their own in fvcore have that function here too.
    "aten::addmm": addmm_flop_jit,
    "aten::bmm": bmm_flop_jit,
    "aten::_convolution": conv_flop_jit,
    "aten::einsum": einsum_flop_jit,
    "aten::matmul": matmul_flop_jit,
    "aten::mm": matmul_flop_jit,
    "aten::linear": linear_flop_jit,
    "aten::batch_norm": batchnorm_flop_jit,
}


def flop_count(
    model: nn.Module, inputs: tuple[Any, ...], supported_ops: Mapping[str, Handle | None] | None = None
) -> tuple[defaultdict[str, float], Counter[str]]:
    """Count **giga**FLOPs by operator, and list unsupported operators.

    Args:
        model: module to run.
        inputs: positional arguments of the model.
        supported_ops: handles by operator, in addition to the default ones or in their place.

    Returns:
        GFLOPs by operator, and the number of calls of each unsupported operator.
    """
    return counts_in(1e9, FlopCountAnalysis(model, inputs), supported_ops)
