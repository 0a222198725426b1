"""Activations: the analysis, its handles, and the one-call form in millions."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

from torch import nn

from flopcallback.counting.analysis import ActivationCountAnalysis
from flopcallback.counting.tally import Handle
from flopcallback.formulas.registry import COUNTED, HARDWARE_FAMILIES, Family
from flopcallback.fvcore._one_call import counts_in
from flopcallback.fvcore.jit_handles import generic_activation_jit

__all__ = ["ActivationCountAnalysis", "activation_count"]

# What `ActivationCountAnalysis` counts by default, as handles: to copy, to change, to set on another analysis.
_DEFAULT_SUPPORTED_OPS: dict[str, Handle] = {
    operator: generic_activation_jit("conv" if family is Family.CONVOLUTION else None)
    for family, rows in COUNTED.items()
    if family in HARDWARE_FAMILIES
    for operator in rows
}


def activation_count(
    model: nn.Module, inputs: tuple[Any, ...], supported_ops: Mapping[str, Handle | None] | None = None
) -> tuple[defaultdict[str, float], Counter[str]]:
    """**Millions** of activations of a model by operator, and how often each unsupported operator occurred.

    Args:
        model: what to run.
        inputs: its positional arguments.
        supported_ops: handles beside the default ones or in their place, by operator.
    """
    return counts_in(1e6, ActivationCountAnalysis(model, inputs), supported_ops)
