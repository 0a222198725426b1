"""WholeSteps: the steps of a training that are observed as a whole."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from flopcallback.formulas.op_call import OpCall
from flopcallback.modules.compiled import is_used
from flopcallback.modules.names import ModuleNames
from flopcallback.modules.structures import Shapes, shapes_of
from flopcallback.profiling.conditions import Conditions
from flopcallback.tracing.compiled_regions import Known, is_thin
from flopcallback.tracing.observed import Observed, ObservedRun
from flopcallback.tracing.observer import StepRecorder, why_not_watched
from flopcallback.tracing.owners import CallOwner
from flopcallback.tracing.run import untraceable_reason
from flopcallback.training.ledger import USUAL_STEP

__all__ = ["ESTIMATED", "MOST_ATTEMPTS", "WholeSteps"]

ESTIMATED = f"compute is estimated: {USUAL_STEP} forwards a step"
"""Note for the user if no whole step can be observed."""

MOST_ATTEMPTS = 10
"""Steps that are observed in vain before the profile stays without a whole step."""


class WholeSteps:
    """Selection of steps to observe, and the current observer.

    Args:
        owner: who calls the model, if several models may be under training.

    Attributes:
        model: root of the modules; None if no step may be observed: before `allow` and after `forbid`.
        observer: observer of the current step; None if the step is not observed.
        calls: number of calls like the counted one in the current step so far.
        is_for_profile: True if the current step completes the profile. Set by `begin_step`.
        trusts_compiled: False once a step with compiled code had fewer FLOPs in its forward than were counted.
        awaited: input shapes of the step that the profile waits for; None before `allow`, and once it has its step.
    """

    def __init__(self, owner: CallOwner | None = None) -> None:
        self._owner = owner
        self.model: nn.Module | None = None
        self.observer: StepRecorder | None = None
        self.calls = 0
        self.is_for_profile = False
        self._names = ModuleNames({})
        self.awaited: Shapes | None = None
        self.trusts_compiled = True
        self._has_thin = False  # whether the counted call has products with a dimension of 1
        self._known: Known = {}  # compiled calls as they are written
        self._usual: Shapes = ()  # of the inputs of the counted call
        self._shapes: Shapes = ()  # of the inputs of the current step's first call
        self._attempts = 0  # steps that were observed for the profile, in vain

    def allow(self, observed: Observed, model: nn.Module, conditions: Conditions) -> None:
        """Allow later steps to be observed.

        Args:
            observed: the counted call.
            model: root of the modules.
            conditions: conditions of the counted call.
        """
        self.model, self._names = model, observed.runs[0].names
        self.awaited = self._usual = conditions.input_shapes
        self._has_thin = self.has_thin_products(observed.runs)

    def begin_counted(self, model: nn.Module, inputs: Any, optimizers: Iterable[Any]) -> None:
        """Begin the step whose calls are counted, and observe it if the tracer is likely to count them.

        Args:
            model: root of the modules.
            inputs: inputs of the step's first call.
            optimizers: optimizers that may step in it.
        """
        self._shapes = shapes_of(inputs)
        names = ModuleNames({"": model})
        # A call that the tracer cannot follow needs the profiler for itself.
        if not why_not_watched() and not untraceable_reason(names, inputs):
            self.observer = self._recorder(names, model, optimizers)
        self.is_for_profile = self.observer is not None

    def begin_step(
        self,
        inputs: Any,
        optimizers: Iterable[Any],
        *,
        is_new: bool,
        timed_on: str | None = None,
        is_timed: bool = False,
    ) -> bool:
        """Begin a step; return whether it is observed, by `observer`.

        The first step with inputs of the same shapes as the counted call completes the profile. Nothing is observed
        while the user's own profiler is at work.

        Args:
            inputs: inputs of the step's first call.
            optimizers: optimizers that may step in it.
            is_new: whether the ledger wants the cost of this step.
            timed_on: type of the device, if the times of an observed step like the counted one are to be read.
            is_timed: whether such a step is to be observed for its times.
        """
        if self.model is None:
            return False
        self._shapes = shapes_of(inputs)
        self.is_for_profile = self.awaited is not None and self.awaited == self._shapes
        is_usual = self._shapes == self._usual
        if (self.is_for_profile or is_new or (is_timed and is_usual)) and not why_not_watched():
            self.observer = self._recorder(self._names, self.model, optimizers, timed_on if is_usual else None)
        return self.observer is not None

    def _recorder(
        self, names: ModuleNames, model: nn.Module, optimizers: Iterable[Any], timed_on: str | None = None
    ) -> StepRecorder:
        # Compiled code is counted as it is written only where the compiler may hide what it does: that takes its time.
        known = self._known if is_used() and self._may_hide_products(model) else None
        return StepRecorder(names, optimizers, owner=self._owner, known=known, timed_on=timed_on)

    def forget_step(self) -> None:
        """Forget the current step and its observer."""
        self.observer, self.calls = None, 0

    def end_step(self) -> StepRecorder | None:
        """End the step; return its observer if it saw a call."""
        observer, self.observer = self.observer, None
        return observer if self.calls else None  # without a call it saw nothing of the model

    def complete_profile(self) -> None:
        """Stop waiting for a step for the profile, which has one now."""
        self.awaited = None

    def may_hide_products(self) -> bool:
        """Return whether compiled code in the current step may have products without a record.

        Inductor writes a product with a dimension of 1 as a loop: of one row, of one column, of one query. In a forward
        it may leave a record, and in the backward none.
        """
        return self.model is not None and self._may_hide_products(self.model)

    def _may_hide_products(self, model: nn.Module) -> bool:
        if self._has_thin:
            return True
        parameters: Iterable[Any] = model.parameters()
        weights = (tuple(each.shape) for each in parameters if not is_lazy(each))
        if any(len(shape) == 2 and 1 in shape for shape in weights):
            return True
        # One row, or one query in each sequence; of an image a dimension of 1 is a channel.
        return any(shape[:1] == (1,) or (len(shape) == 3 and shape[1] == 1) for shape in self._shapes)

    @staticmethod
    def has_thin_products(runs: Iterable[ObservedRun]) -> bool:
        """Return whether a recorded product has a dimension of 1: in compiled code, its backward may have none."""
        return any(
            is_thin(operation)
            for run in runs
            for operation in getattr(run.record, "calls", ())
            if isinstance(operation, OpCall)
        )

    def distrust_compiled(self) -> None:
        """Book no more steps at what compiled code left records of."""
        self.trusts_compiled = False

    def fail_profile(self) -> bool:
        """Note that a step for the profile was not observed; return whether to wait for no other one."""
        self._attempts += 1
        if self._attempts >= MOST_ATTEMPTS:
            self.awaited = None
        return self.awaited is None

    def forbid(self) -> None:
        """Observe no further steps."""
        self.model = self.awaited = self.observer = None
