"""FLOPs: the analysis, its handles, and the one-call form in GFLOPs."""

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

# What `FlopCountAnalysis` counts by default, as handles: to copy, to change, to set on another analysis.
_DEFAULT_SUPPORTED_OPS: dict[str, Handle] = {
    **{
        operator: handle_by_formula(operator)
        for family, rows in COUNTED.items()
        if family is not Family.ELEMENTWISE
        for operator in rows
    },
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
    """**Giga**FLOPs of a model by operator, and how often each unsupported operator occurred.

    Args:
        model: what to run.
        inputs: its positional arguments.
        supported_ops: handles beside the default ones or in their place, by operator.
    """
    return counts_in(1e9, FlopCountAnalysis(model, inputs), supported_ops)
