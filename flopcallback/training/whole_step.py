"""WholeSteps: the steps of a training that are observed as a whole."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from flopcallback.modules.compiled import may_step_aside
from flopcallback.modules.names import ModuleNames
from flopcallback.modules.outermost import is_compiled
from flopcallback.modules.structures import Shapes, shapes_of
from flopcallback.profile.model_profile import ModelProfile
from flopcallback.profiling.conditions import Conditions
from flopcallback.tracing.observed import Observed
from flopcallback.tracing.run import TRACE
from flopcallback.tracing.whole_step import StepObserver
from flopcallback.training.ledger import USUAL_STEP

__all__ = ["ESTIMATED", "WholeSteps"]

CASTS_INSIDE = frozenset({"bilinear", "affine_grid_generator"})
"""Operators with a kernel that calls further operators, which autocast casts.

In an observed step these would stay in full precision, and the results would change.
"""

ESTIMATED = f"compute is estimated: {USUAL_STEP} forwards a step"
"""Note for the user if no whole step can be observed."""


class WholeSteps:
    """Selection of steps to observe, and the current observer.

    Attributes:
        model: root of the modules; None if no step may be observed: before `allow` and after `forbid`.
        observer: observer of the current step; None if the step is not observed.
        calls: number of calls like the counted one in the current step so far.
        is_for_profile: True if the current step completes the profile. Set by `begin_step`.
        awaited: input shapes of the step that the profile waits for; None before `allow`, and once it has its step.
    """

    def __init__(self) -> None:
        self.model: nn.Module | None = None
        self.observer: StepObserver | None = None
        self.calls = 0
        self.is_for_profile = False
        self._names = ModuleNames({})
        self.awaited: Shapes | None = None

    def allow(self, observed: Observed, model: nn.Module, profile: ModelProfile, conditions: Conditions) -> None:
        """Allow later steps to be observed, unless that might change their results.

        Args:
            observed: the counted call.
            model: root of the modules.
            profile: profile of the counted call.
            conditions: conditions of the counted call.
        """
        # A model that the tracer could not follow may also behave differently under the mode that observes a step.
        is_plain = all(run.engine == TRACE for run in observed.runs) and not any(map(is_compiled, model.modules()))
        if is_plain and may_step_aside() and not _casts_inside(profile, conditions):
            self.model, self._names = model, observed.runs[0].names
            self.awaited = conditions.input_shapes

    def begin_step(self, inputs: Any, optimizers: Iterable[Any], *, is_new: bool) -> bool:
        """Begin a step; return whether it is observed, by `observer`.

        The first step with inputs of the same shapes as the counted call completes the profile.

        Args:
            inputs: inputs of the step's first call.
            optimizers: optimizers that may step in it.
            is_new: whether the ledger wants the cost of this step.
        """
        self.observer, self.calls = None, 0
        if self.model is None:
            return False
        self.is_for_profile = self.awaited is not None and self.awaited == shapes_of(inputs)
        if self.is_for_profile or is_new:
            self.observer = StepObserver(self._names, optimizers)
        return self.observer is not None

    def end_step(self) -> StepObserver | None:
        """End the step; return its observer if it saw a call."""
        observer, self.observer = self.observer, None
        return observer if self.calls else None  # without a call it saw nothing of the model

    def complete_profile(self) -> None:
        """Stop waiting for a step for the profile, which has one now."""
        self.awaited = None

    def forbid(self) -> None:
        """Observe no further steps."""
        self.model = self.awaited = self.observer = None


def _casts_inside(profile: ModelProfile, conditions: Conditions) -> bool:
    """Return whether the model has operators that autocast casts inside their kernels.

    Below a dispatch mode autocast is off (torch 2.13), so these would not be cast.
    """
    return conditions.dtype != torch.float32 and any(row.operator in CASTS_INSIDE for row in profile.operators)
