"""WholeSteps: which steps of a training are observed from below, and the one that is."""

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
"""Operators whose kernels call others that autocast casts; observed, they would stay in full precision."""

ESTIMATED = f"compute is estimated: {USUAL_STEP} forwards a step"
"""Said of a model whose steps cannot be observed."""


class WholeSteps:
    """Hands out observers for steps, and keeps the one of the step under way.

    Attributes:
        model: the root of the modules; None where no step can be observed.
        observer: of the step under way; None where it is not observed.
        calls: how many calls like the counted one that step had so far.
        is_for_profile: whether the profile waits for what is observed of that step.
        awaited: input shapes of the step that the profile waits for; None once it has one.
    """

    def __init__(self) -> None:
        self.model: nn.Module | None = None
        self.observer: StepObserver | None = None
        self.calls = 0
        self.is_for_profile = False
        self._names = ModuleNames({})
        self.awaited: Shapes | None = None

    def allow(self, observed: Observed, model: nn.Module, profile: ModelProfile, conditions: Conditions) -> None:
        """Allow later steps to be observed, where that changes nothing about them.

        Args:
            observed: the counted call.
            model: the root of the modules.
            profile: of that call.
            conditions: under which it was counted.
        """
        # What the tracer could not do, the mode of an observed step may change.
        is_plain = all(run.engine == TRACE for run in observed.runs) and not any(map(is_compiled, model.modules()))
        if is_plain and may_step_aside() and not _casts_inside(profile, conditions):
            self.model, self._names = model, observed.runs[0].names
            self.awaited = conditions.input_shapes

    def begin_step(self, inputs: Any, optimizers: Iterable[Any], *, is_new: bool) -> bool:
        """Return whether the step that begins is observed, by `observer`.

        The first step whose inputs have the shapes of the counted call's is for the profile.

        Args:
            inputs: of the step's first call.
            optimizers: those that may step in it.
            is_new: whether the step is of a kind that is to be observed for compute.
        """
        self.observer, self.calls = None, 0
        if self.model is None:
            return False
        self.is_for_profile = self.awaited is not None and self.awaited == shapes_of(inputs)
        if self.is_for_profile or is_new:
            self.observer = StepObserver(self._names, optimizers)
        return self.observer is not None

    def end_step(self) -> StepObserver | None:
        """Return the observer of the step that ends, if anything was observed."""
        observer, self.observer = self.observer, None
        return observer if self.calls else None

    def complete_profile(self) -> None:
        """Note that the profile has its step."""
        self.awaited = None

    def forbid(self) -> None:
        """Observe no further step."""
        self.model = self.awaited = self.observer = None


def _casts_inside(profile: ModelProfile, conditions: Conditions) -> bool:
    """Return whether autocast does something below the dispatcher's mode, where the mode switches it off (2.13)."""
    return conditions.dtype != torch.float32 and any(row.operator in CASTS_INSIDE for row in profile.operators)
