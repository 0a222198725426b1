"""WholeSteps: the steps of a training that are observed as a whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from torch import nn
from torch.nn.parameter import is_lazy

from flopcallback.formulas.op_call import OpCall
from flopcallback.modules.compiled import chooses_kernels, is_used
from flopcallback.modules.names import ModuleNames
from flopcallback.modules.structures import Shapes, shapes_of
from flopcallback.profiling.conditions import Conditions
from flopcallback.tracing.compiled_regions import Known, is_thin
from flopcallback.tracing.observed import Observed, ObservedRun
from flopcallback.tracing.observer import StepRecorder, why_not_watched
from flopcallback.tracing.owners import CallOwner
from flopcallback.tracing.run import untraceable_reason
from flopcallback.training.kinds import MARKED
from flopcallback.training.ledger import USUAL_STEP

__all__ = ["ESTIMATED", "MOST_ATTEMPTS", "Timing", "WholeSteps"]

ESTIMATED = f"compute is estimated: {USUAL_STEP} forwards a step"
"""Note for the user if no whole step can be observed."""

MOST_ATTEMPTS = 10
"""Steps that are observed in vain before the profile stays without a whole step."""


class Timing(NamedTuple):
    """What is wanted to know of a step's times.

    Attributes:
        device: type of the device on which its work is done.
        is_wanted: whether it should be observed for its times, if for nothing else.
        wants_bytes: whether the bytes of its operators are wanted, too.
    """

    device: str
    is_wanted: bool
    wants_bytes: bool


class WholeSteps:
    """Selection of steps to observe, and the current observer.

    Args:
        owner: who calls the model, if several models may be under training.
        beside: other modules whose work in a step is told apart, by name.

    Attributes:
        model: root of the modules; None if no step may be observed: before `allow` and after `forbid`.
        observer: observer of the current step; None if the step is not observed.
        calls: number of calls like the counted one in the current step so far.
        is_for_profile: True if the current step completes the profile. Set by `begin_step`.
        is_usual: whether the current step's first call has inputs like the counted one. Set by `begin_step`.
        trusts_compiled: False once a step with compiled code had fewer FLOPs in its forward than were counted.
        awaited: input shapes of the step that the profile waits for; None before `allow`, and once it has its step.
    """

    def __init__(self, owner: CallOwner | None = None, beside: Mapping[str, nn.Module] | None = None) -> None:
        self._owner = owner
        self._beside = dict(beside or {})
        self.model: nn.Module | None = None
        self.observer: StepRecorder | None = None
        self.calls = 0
        self.is_for_profile = False
        self._names = ModuleNames({})
        self.awaited: Shapes | None = None
        self.trusts_compiled = True
        self.is_usual = False
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
        if self._beside:
            self._names = self._names_with_others(model)
        self.awaited = self._usual = conditions.input_shapes
        self._has_thin = self.has_thin_products(observed.runs)

    def recorder(self, model: nn.Module, optimizers: Iterable[Any]) -> StepRecorder | None:
        """Return an observer for a step whose first call is not known yet; None if none is to be had."""
        if why_not_watched():
            return None
        names = self._names_with_others(model) if self.model is None else self._names
        return self._recorder(names, self.model or model, optimizers)

    def begin_counted(
        self, model: nn.Module, inputs: Any, optimizers: Iterable[Any], watching: StepRecorder | None = None
    ) -> None:
        """Begin the step whose calls are counted, and observe it if the tracer is likely to count them.

        Args:
            model: root of the modules.
            inputs: inputs of the step's first call.
            optimizers: optimizers that may step in it.
            watching: observer that watches the step already.
        """
        self._shapes = shapes_of(inputs)
        names = ModuleNames({"": model})
        # A call that the tracer cannot follow needs the profiler for itself.
        if (watching is not None or not why_not_watched()) and not untraceable_reason(names, inputs):
            self.observer = watching or self._recorder(self._names_with_others(model), model, optimizers)
        self.is_for_profile = self.observer is not None

    def begin_step(
        self,
        inputs: Any,
        optimizers: Iterable[Any],
        *,
        is_new: bool,
        timing: Timing | None = None,
        watching: StepRecorder | None = None,
    ) -> bool:
        """Begin a step; return whether it is observed, by `observer`.

        The first step with inputs of the same shapes as the counted call completes the profile. Nothing is observed
        while the user's own profiler is at work.

        Args:
            inputs: inputs of the step's first call.
            optimizers: optimizers that may step in it.
            is_new: whether the ledger wants the cost of this step.
            timing: what is wanted to know of the step's times; None for nothing.
            watching: observer that watches the step already.
        """
        if self.model is None:
            return False
        self._shapes = shapes_of(inputs)
        self.is_for_profile = self.awaited is not None and self.awaited == self._shapes
        self.is_usual = inputs is MARKED or self._shapes == self._usual
        is_timed = timing is not None and timing.is_wanted and self.is_usual
        wants_bytes = is_timed and timing is not None and timing.wants_bytes
        if (self.is_for_profile or is_new or is_timed) and (watching is not None or not why_not_watched()):
            self.observer = watching or self._recorder(
                self._names,
                self.model,
                optimizers,
                reads_all=wants_bytes and not (self.is_for_profile or is_new),
            )
            if timing is not None and self.is_usual and (watching is None or timing.device == "cpu"):
                self.observer.timed_on = timing.device  # a device's work is recorded from the beginning or not at all
        return self.observer is not None

    def note_inputs(self, inputs: Any) -> None:
        """Note the inputs of the first call of a step that began before that."""
        self._shapes = shapes_of(inputs)
        self.is_usual = self._shapes == self._usual
        self.is_for_profile = self.observer is not None and self.awaited is not None and self.awaited == self._shapes

    def _names_with_others(self, model: nn.Module) -> ModuleNames:
        return ModuleNames({"": model, **self._beside})

    def _recorder(
        self, names: ModuleNames, model: nn.Module, optimizers: Iterable[Any], *, reads_all: bool = False
    ) -> StepRecorder:
        # Compiled code is counted as it is written only where the compiler may hide what it does: that takes its time.
        known = self._known if is_used() and self._may_hide_products(model) else None
        return StepRecorder(names, optimizers, owner=self._owner, reads_all=reads_all, known=known)

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
        it may leave a record, and in the backward none. Where it is told to choose kernels, any product may have none.
        """
        return self.model is not None and self._may_hide_products(self.model)

    def _may_hide_products(self, model: nn.Module) -> bool:
        if self._has_thin or chooses_kernels():
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
