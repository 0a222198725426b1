"""Activations: the analysis, its handles, and a function that counts in millions."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

from torch import nn

from flopcallback.counting.analysis import ActivationCountAnalysis
from flopcallback.counting.tally import Handle
from flopcallback.formulas.cost import LAYER_FAMILIES
from flopcallback.formulas.registry import COUNTED, Family
from flopcallback.fvcore._one_call import counts_in
from flopcallback.fvcore.jit_handles import generic_activation_jit

__all__ = ["ActivationCountAnalysis", "activation_count"]

# The default counts of `ActivationCountAnalysis` as handles, for users who copy or change them: fvcore's name.
_DEFAULT_SUPPORTED_OPS: dict[str, Handle] = {
    operator: generic_activation_jit("conv" if family is Family.CONVOLUTION else None)
    for family, rows in COUNTED.items()
    if family in LAYER_FAMILIES
    for operator in rows
}


def activation_count(
    model: nn.Module, inputs: tuple[Any, ...], supported_ops: Mapping[str, Handle | None] | None = None
) -> tuple[defaultdict[str, float], Counter[str]]:
    """Count **millions** of activations by operator, and list unsupported operators.

    Args:
        model: module to run.
        inputs: positional arguments of the model.
        supported_ops: handles by operator, in addition to the default ones or in their place.

    Returns:
        Millions of activations by operator, and the number of calls of each unsupported operator.
    """
    return counts_in(1e6, ActivationCountAnalysis(model, inputs), supported_ops)
