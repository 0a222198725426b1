"""LoopWatch: calls of a plain loop's model and steps of its optimizers become events of a training."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
from torch import nn

from flopcallback.loop.objects import OptimizerHooks
from flopcallback.modules.compiled import After, CompiledCall, Return, rest_if_unused, stepping_aside
from flopcallback.modules.names import ModuleNames
from flopcallback.modules.outermost import CallSite, outermost_calls
from flopcallback.modules.structures import tensors_in
from flopcallback.profile.model_profile import ModelProfile
from flopcallback.profiling.conditions import Conditions
from flopcallback.tracing.in_flight import observe_module_call, together
from flopcallback.tracing.observed import Observed
from flopcallback.tracing.torch_private import base_of
from flopcallback.training.failures import Failures
from flopcallback.training.options import Options
from flopcallback.training.ranks import rank_of
from flopcallback.training.training import TRAINING, Plan, Training

__all__ = ["MOST_CALLS", "LoopWatch"]

SEVERAL = 2
"""Optimizers from which on a backward ends no call: the networks of a GAN share a step."""

MOST_PARTS = 64
"""Children of the model that stay watched after the window, in case the loop comes to call them itself."""

LOG_EVERY = 50
"""Steps between two logs, where the user says nothing."""

MOST_CALLS = 100
"""Module calls in the counted call: each one takes memory, and an optimizer may be idle for long."""

STEP_FAILED = "the training step could not be counted"


class Stage(Enum):
    """How much of a loop is watched; it only goes forward."""

    COUNTING = "counting"  # all modules, until the first call was counted
    MEASURING = "measuring"  # all modules: later steps are timed, or observed for the profile
    BOOKING = "booking"  # the modules that the loop calls itself: steps are booked, and nothing else
    OVER = "over"  # none


@dataclass(slots=True)
class _Step:
    """A step of the loop; a new one begins where the last one ended."""

    plan: Plan | None = None  # None until its first call begins
    is_in_first_call: bool = False  # that call is under way, or was the last one
    stepped: set[int] = field(default_factory=set)  # numbers of the optimizers


@dataclass(slots=True)
class _Call:
    """What the loop calls up to a backward; a new one begins there, and with each step."""

    has_called: bool = False  # a module's call in it came to its end
    has_backward: bool = False  # a backward through its result began
    is_added: bool = False  # the training knows of the module's call under way
    modules_called: int = 0
    seen: list[tuple[str, Observed]] = field(default_factory=list)  # by the name of the module that was called


class LoopWatch:
    """Tells calls and steps of a loop apart, and does with each what its plan says.

    A call ends where its backward begins; with several optimizers, where the step ends. A step ends when each optimizer
    has stepped, or where it is marked.

    Args:
        model: whose calls they are.
        optimizers: whose steps say where a step ends.
        options: what the user has set.
        training: is told what happens.
        failures: where failures are reported.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        options: Options,
        training: Training,
        failures: Failures,
    ) -> None:
        self._model = model
        self._optimizers = list(optimizers)
        self._options = options
        self._training = training
        self._failures = failures
        self._names = ModuleNames({"": model})
        self._conditions: Conditions | None = None  # of the counted call
        self._stage = Stage.COUNTING
        self._step, self._call = _Step(), _Call()
        self._steps = 0  # that ended
        self._has_begun = False  # a training call was seen
        self._is_marked = False  # steps end where the user says, and nowhere else
        self._is_in_optimizer = False  # what is called now is called by its closure
        self._is_simple = True  # no step had a second call so far
        self._called_sites: set[str] = set()  # names of the modules that the loop calls
        self._on_model, self._on_optimizers, self._on_step = ExitStack(), ExitStack(), ExitStack()
        self._hooks = OptimizerHooks(self._optimizers, self._optimizer_steps, self._optimizer_stepped)
        self._on_optimizers.callback(self._hooks.close)
        self._on_optimizers.enter_context(stepping_aside(self._step_aside, self._aside_failed))
        self._on_model.enter_context(outermost_calls(self._names, self._called, self._failed))

    # --- What the hook asks for ---------------------------------------------------------------------------------------

    def profile(self) -> ModelProfile | None:
        """Return the profile of the counted call; of what there is of it, where it has not ended yet."""
        profile = self._training.profiles.get(TRAINING)
        if profile is None and self._call.has_called and self._conditions is not None and self._call.seen:
            profile = self._training.preview(together(self._call.seen), self._model, self._conditions)
        return profile

    @contextmanager
    def marked_step(self) -> Iterator[None]:
        """Mark a step; from the first one on, none ends elsewhere."""
        self._is_marked = True
        with self._guarded():
            self._forget_step()
        try:
            yield
        except BaseException:
            with self._guarded():
                self._end_call()  # the loop may go on: the next step has a call of its own
                self._forget_step()
            raise
        with self._guarded():
            self._end_step()
            self._narrow()

    def close(self, *, wait: bool) -> bool:
        """End what is under way, and let go of the model and the optimizers.

        Args:
            wait: False where a device, or another rank, may never come to the end of its work.

        Returns:
            Whether a training call was seen, or something failed before.
        """
        was_over = self._stage is Stage.OVER
        try:
            with self._guarded():
                self._end_call()
                if wait and self._step.plan is not None and not self._is_marked:
                    # No optimizer came to this step, or there is none.
                    self._end_step(is_whole=False, has_stepped=not self._optimizers)
            with self._guarded():
                self._training.close(self._steps, wait=wait)
        finally:
            self._let_go()
            self._on_optimizers.close()
            self._optimizers.clear()
        return self._has_begun or was_over

    # --- The loop's events --------------------------------------------------------------------------------------------

    def _called(self, site: CallSite, call: Callable[[], Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Handle a call that the loop makes; `call()` makes it."""
        if not (site.module.training and torch.is_grad_enabled()):
            if site.module is self._model and self._step.plan is None:
                self._training.pause()  # evaluation, between two steps
            call()
            return
        self._has_begun = True
        self._called_sites.add(site.name)
        if self._call.has_backward:
            self._end_call()
            if not self._optimizers and not self._is_marked:
                self._end_step(is_whole=False)
        elif self._call.modules_called == MOST_CALLS:
            self._end_call()
        if self._call.is_added:
            self._call.is_added = False
        else:
            self._add_call(args, kwargs)
        try:
            result = self._make(site, call, args, kwargs)
        except BaseException:
            self._call_raised()
            raise
        self._call.has_called = True
        self._call.modules_called += 1
        if len(self._optimizers) < SEVERAL:
            self._watch_backward(result)
        if not (self._optimizers or self._is_marked):
            self._narrow()

    def _passes(self, site: CallSite, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Book a call after the window; return whether that is all there is to do about it, as in most loops.

        Where a loop calls the model twice in a step, what lies between has to be known, from there on.
        """
        if not (self._is_simple and site.module.training and torch.is_grad_enabled()):
            return False
        if self._step.plan is not None:
            self._is_simple = False
            # Micro-batches are more frequent than forwards that share a backward.
            self._call.has_backward = len(self._optimizers) < SEVERAL
            return False
        self._add_call(args, kwargs)
        if self._step.plan is Plan.OBSERVE:
            self._call.is_added = True
            return False
        self._call.has_called = True
        self._call.modules_called = 1
        return True

    def _call_raised(self) -> None:
        """Forget a step that began with a call that raised: the loop may leave it, and go on."""
        if self._step.is_in_first_call:
            with self._guarded():
                self._forget_step()
            self._call.has_called = False

    def _optimizer_steps(self, *_: Any) -> None:
        self._is_in_optimizer = True

    def _optimizer_stepped(self, number: int, *_: Any) -> None:
        self._is_in_optimizer = False
        if self._stage is Stage.OVER:
            return
        try:
            self._training.note_optimizer(number)
            stepped = self._step.stepped
            stepped.add(number)
            if len(stepped) == len(self._optimizers) and not self._is_marked:
                self._end_step()
                if self._stage is not Stage.BOOKING:
                    self._narrow()
        except Exception as error:  # noqa: BLE001 - as `_guarded`, which takes longer
            self._give_up(STEP_FAILED, error)

    def _step_aside(self, _: CompiledCall) -> Return | None:
        """Take the hooks away from compiled code, which may be an optimizer's step; its parameters then say so."""
        if self._is_in_optimizer:
            return None  # it is a part of a step that is not compiled, whose hooks are called
        put_back, stepped = self._hooks.take_away(), self._hooks.stepped_from_here()

        def after() -> None:
            if self._step.plan is not None and self._stage is not Stage.OVER:
                for number in stepped():
                    self._optimizer_stepped(number)

        def back(_: Any) -> After | None:
            put_back()
            return after

        return back

    def _aside_failed(self, error: Exception) -> None:
        self._give_up(STEP_FAILED, error)

    def _failed(self, site: CallSite, error: Exception) -> None:
        self._give_up(f"the call of {site.name or type(site.module).__name__} could not be counted", error)

    # --- Calls --------------------------------------------------------------------------------------------------------

    def _make(self, site: CallSite, call: Callable[[], Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Make a call as the plan of its step says."""
        if self._stage is Stage.COUNTING:
            return self._count(site, call, args, kwargs)
        if (observer := self._training.observer) is None:
            return self._time(call)
        if not self._call.has_called:
            self._training.note_observed_call()
        with self._training.counting_nodes(), observer.on():
            return call()

    def _count(self, site: CallSite, call: Callable[[], Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._conditions is None:
            self._names = ModuleNames({"": self._model})  # it may have others than when the hook was made
            if rank_of() != 0:  # the process group may have been created after the hook
                self._training.mute()
            batch = args[0] if args else kwargs
            self._conditions = self._options.conditions(
                TRAINING, self._model, batch, self._failures, inputs=(args, kwargs)
            )
        with self._training.counting_nodes():
            observed = observe_module_call(site, call, self._names, args, kwargs)
        result = observed.result
        # The result is the loop's, to keep or to drop.
        self._call.seen.append((site.name, dataclasses.replace(observed, result=None)))
        return result

    def _time(self, call: Callable[[], Any]) -> Any:
        try:
            with self._training.timed_call(continues=self._call.has_called):
                return call()
        except BaseException:
            self._call.has_called = False  # its time was dropped: there is nothing to go on with
            raise

    def _watch_backward(self, result: Any) -> None:
        """Have the first backward through any of the tensors in `result` note that it began."""

        def began(_: Any) -> None:
            self._call.has_backward = True

        for tensor in tensors_in(result):
            # An in-place write replaces a view's grad_fn but not its base's: hook both.
            for part in (tensor, base_of(tensor)):
                if part is not None and part.grad_fn is not None:
                    part.grad_fn.register_prehook(began)

    def _add_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Tell the training of a call; the first one begins a step."""
        inputs, batch, call = (args, kwargs), args[0] if args else kwargs, self._call
        is_first = self._step.plan is None
        self._step.is_in_first_call = is_first
        if is_first:
            self._step.plan = self._training.begin_step(inputs, batch, self._optimizers)
        else:
            # What an optimizer calls again, as L-BFGS does, has seen its batch before.
            self._training.add_call(inputs, batch, is_new=not call.has_called and not self._is_in_optimizer)
            self._is_simple = False
        if not call.has_called:
            self._training.note_backward()  # one backward per batch is assumed; autograd cannot be asked
        if is_first and self._step.plan is Plan.OBSERVE and self._training.observer is not None:
            self._on_step.enter_context(self._training.observer.watching())

    def _end_call(self) -> None:
        """End the call that lasted since the last backward, or the last step; keep it, if it is the counted one."""
        call, self._call = self._call, _Call()
        if not call.has_called or self._stage is not Stage.COUNTING:
            return
        assert self._conditions is not None
        observed = together(call.seen)
        self._training.record(observed, self._model, self._conditions, what="the training call", is_timed=True)
        self._stage = Stage.MEASURING

    # --- Steps --------------------------------------------------------------------------------------------------------

    def _end_step(self, *, is_whole: bool = True, has_stepped: bool = True) -> None:
        if self._stage is Stage.COUNTING:
            self._end_call()
        else:
            self._call = _Call()
        self._on_step.close()
        ended, self._step = self._step, _Step()
        number, self._steps = self._steps, self._steps + has_stepped
        if ended.plan is not None:
            is_log_step = (number + 1) % (self._options.log_every_n_steps or LOG_EVERY) == 0
            self._training.end_step(number, is_whole=is_whole, has_stepped=has_stepped, is_log_step=is_log_step)

    def _forget_step(self) -> None:
        """The step under way did not come to its end, and is not booked."""
        self._on_step.close()
        self._step = _Step(stepped=self._step.stepped)

    def _narrow(self) -> None:
        """Watch only what the loop calls itself, once nothing is timed any more; not while a module is called."""
        if self._stage is not Stage.MEASURING or self._training.is_busy:
            return
        self._stage = Stage.BOOKING
        self._is_simple &= bool(self._optimizers or self._is_marked)  # something says where a step ends
        self._on_model.close()
        wrappers = outermost_calls(
            self._names,
            self._called,
            self._failed,
            only={*self._called_sites, *self._likely_sites()},
            fast_path=self._passes,
            on_raise=self._call_raised,
        )
        self._on_model.enter_context(wrappers)
        rest_if_unused()

    def _likely_sites(self) -> set[str]:
        """Return the model and its parts, which a loop may come to call later: a head, or half of a GAN."""
        parts = [name for name, _ in self._model.named_children()]
        return {"", *parts[:MOST_PARTS]}

    # --- When something failed, and at the end ------------------------------------------------------------------------

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Turn an exception inside into a warning, and leave the rest of the loop alone."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - the promise: training goes on
            self._give_up(STEP_FAILED, error)

    def _let_go(self) -> None:
        """Leave the model alone; nothing more is booked.

        The optimizers' hooks stay until the hook is closed: this may run inside of one.
        """
        self._stage = Stage.OVER
        self._on_step.close()
        self._on_model.close()

    def _give_up(self, what: str, error: Exception) -> None:
        self._let_go()
        self._training.stop_metering()
        self._failures.report(what, error)
