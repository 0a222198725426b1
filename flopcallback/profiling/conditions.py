"""The conditions of a counted call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from flopcallback.measuring.hardware import Peak
from flopcallback.modules.batches import samples_in
from flopcallback.modules.structures import shapes_of, tensors_in

__all__ = ["Conditions", "conditions_of"]


@dataclass(frozen=True, slots=True)
class Conditions:
    """Conditions that a call was counted under.

    Attributes:
        phase: one of `flopcallback.profile.model_profile.PHASES`.
        device: device of the call.
        dtype: dtype of its matrix products and convolutions: autocast's, or the parameters'.
        input_shapes: shapes of all tensors and NumPy arrays in its inputs.
        batch_size: number of samples; None if unknown.
        step_row: path of a row for work outside of any submodule; None books it on the root.
        peak: peak rates of the device in that dtype; None if unknown.
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
    """Return the present conditions of a call of `model`.

    Args:
        phase: one of `flopcallback.profile.model_profile.PHASES`.
        model: module under call.
        inputs: inputs of the call, of any structure.
        batch_size: number of samples; by default what `samples_in` finds in `inputs`.
        step_row: path of a row for work outside of any submodule.
    """
    tensors = list(tensors_in(inputs))
    # The first floating-point parameter decides; without one, the inputs decide the device.
    parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
    device = next((t.device for t in (parameter, *tensors) if t is not None), torch.device("cpu"))
    dtype = torch.get_default_dtype() if parameter is None else parameter.dtype
    # `is_autocast_enabled` raises for a device without autocast, such as meta.
    if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        dtype = torch.get_autocast_dtype(device.type)
    if batch_size is None:
        batch_size = samples_in(inputs)
    return Conditions(phase, device, dtype, shapes_of(inputs), batch_size, step_row)
