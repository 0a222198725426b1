"""What counts as a FLOP, and the conditions under which a call is counted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from flopcallback.counting.analysis import (
    FlopCountAnalysis,
)
from flopcallback.measuring.hardware import Peak
from flopcallback.modules.structures import first_dimension, shapes_of, tensors_in
from flopcallback.tracing.run import Run

__all__ = ["Conditions", "Convention", "conditions_of"]


@dataclass(frozen=True, slots=True)
class Convention:
    """What counts as a FLOP: `fma` per multiply-add, and whether elementwise operators count."""

    fma: int = 1
    elementwise: bool = False

    def analysis(self, run: Run, model: nn.Module) -> FlopCountAnalysis:
        """The FLOPs of a run under this convention."""
        return FlopCountAnalysis.of_run(run, model, fma=self.fma, elementwise=self.elementwise)


@dataclass(frozen=True, slots=True)
class Conditions:
    """Under which a call was counted.

    Attributes:
        phase: one of `flopcallback.profile.model_profile.PHASES`.
        device: where it ran.
        dtype: what its matrix products and convolutions computed in: autocast's dtype, or the parameters'.
        input_shapes: of every tensor given to it.
        batch_size: samples; None where it is not known.
        step_row: the path of a row for what ran outside of any submodule; without one, that is the root's own.
        peak: what the device can do in that dtype; None where it is not known.
    """

    phase: str
    device: torch.device
    dtype: torch.dtype
    input_shapes: tuple[tuple[int, ...], ...] = ()
    batch_size: int | None = None
    step_row: str | None = None
    peak: Peak | None = None


def conditions_of(
    phase: str,
    model: nn.Module,
    inputs: Any,
    *,
    batch_size: int | None = None,
    step_row: str | None = None,
) -> Conditions:
    """The conditions that a call of `model` finds now.

    Args:
        phase: one of `flopcallback.profile.model_profile.PHASES`.
        model: what is called.
        inputs: what it is given, of any structure.
        batch_size: samples; by default what all tensors in `inputs` agree on as their first dimension.
        step_row: the path of a row for what runs outside of any submodule.
    """
    tensors = list(tensors_in(inputs))
    parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
    device = next((t.device for t in (parameter, *tensors) if t is not None), torch.device("cpu"))
    dtype = torch.get_default_dtype() if parameter is None else parameter.dtype
    if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        dtype = torch.get_autocast_dtype(device.type)
    if batch_size is None:
        batch_size = first_dimension(tensors)
    return Conditions(phase, device, dtype, shapes_of(tensors), batch_size, step_row)
