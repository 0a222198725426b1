"""LoopWatch: events of a training from a plain loop."""

from __future__ import annotations

import dataclasses
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
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
from flopcallback.tracing.observer import StepRecorder
from flopcallback.tracing.owners import CallOwner, several
from flopcallback.tracing.torch_private import base_of, is_backward_running, is_in_outer_step
from flopcallback.training.failures import Failures, FlopCallbackWarning
from flopcallback.training.options import Options
from flopcallback.training.ranks import rank_of
from flopcallback.training.training import TRAINING, Plan, Training

__all__ = ["MOST_CALLS", "LoopWatch"]

SEVERAL = 2
"""Number of optimizers from which a backward no longer ends a call: the networks of a GAN share a step."""

MOST_PARTS = 64
"""Children of the model that stay wrapped after the measurements, in case the loop calls them itself."""

LOG_EVERY = 50
"""Default of `log_every_n_steps`."""

MOST_CALLS = 100
"""Module calls that are counted as one call. Each takes memory, and without an optimizer's step there is no end."""

STEP_FAILED = "the training step could not be counted"


class Stage(Enum):
    """Extent of watching a loop.

    A stage is never followed by an earlier one.
    """

    COUNTING = "counting"  # all modules are wrapped, until the first call was counted
    MEASURING = "measuring"  # all modules are wrapped: steps are timed, or observed for the profile
    BOOKING = "booking"  # only modules that the loop itself calls are wrapped: steps are booked, or observed for a cost
    OVER = "over"  # closed, or given up after a failure: no module is wrapped


@dataclass(slots=True)
class _Step:
    """State of a step, cleared when the step ends."""

    plan: Plan | None = None  # None until the step begins: at its first call, or where it is marked
    watching: StepRecorder | None = None  # observer that watches a marked step from before its first call
    has_inputs: bool = True  # False from the begin of a step at its mark to its first call
    is_in_first_call: bool = False  # True from the begin of the step's first call to the begin of its second
    stepped: set[int] = field(default_factory=set)  # numbers of the optimizers that have stepped

    def clear(self) -> None:
        """Make it that of the next step."""
        self.plan, self.watching = None, None
        self.has_inputs, self.is_in_first_call = True, False
        self.stepped.clear()


@dataclass(slots=True)
class _Call:
    """State of a call: all module calls up to a backward.

    It is replaced after a backward, and cleared with each step.
    """

    has_called: bool = False  # True once one of its module calls has returned
    has_backward: bool = False  # True once a backward through its result has begun: the next module call ends it
    is_added: bool = False  # True if `_book_only` has reported the module call that `_on_call` runs next
    modules_called: int = 0  # number of module calls that have returned
    seen: list[tuple[str, Observed]] = field(default_factory=list)  # counted module calls, with the module's name

    def clear(self) -> None:
        """Make it that of the next call, where nothing was counted."""
        self.has_called = self.has_backward = self.is_added = False
        self.modules_called = 0


class LoopWatch:
    """Watch over a plain loop, which divides it into calls and steps.

    It wraps modules to see their calls, and hooks optimizers to see their steps. It runs the calls of each step by the
    step's plan, and reports events to the training. A call ends where its backward begins; with several optimizers,
    where the step ends. A step ends when each optimizer has stepped, or where the user marks it.

    Args:
        model: model under training.
        optimizers: optimizers that end a step.
        options: arguments of the user.
        training: receives the events.
        owner: who makes the calls of this model.
        failures: reports failures.
        unseen: text for a loop without a training call, with a place for when.
        beside: other modules that a marked step may call, by name, such as a teacher. What they do before the model's
            first call belongs to the step as well.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        options: Options,
        training: Training,
        owner: CallOwner,
        failures: Failures,
        *,
        unseen: str,
        beside: Mapping[str, nn.Module] | None = None,
    ) -> None:
        self._model = model
        self._optimizers = list(optimizers)
        self._options = options
        self._training = training
        self._owner = owner
        self._failures = failures
        self._unseen = unseen
        self._names = ModuleNames({"": model})
        self._conditions: Conditions | None = None  # of the counted call; None until it begins
        self._stage = Stage.COUNTING
        self._step, self._call = _Step(), _Call()
        self._steps = 0  # number of ended steps, without those that only accumulated gradients
        self._has_begun = False  # True once a training call was seen; otherwise the user is told
        self._is_told = False  # True once the user was told at a step of an optimizer; otherwise it is told at `close`
        self._is_marked = False  # True from the first marked step on: steps end there, and nowhere else
        self._is_in_marked = False  # True from the begin of a marked step to its end
        self._is_in_optimizer = False  # True while an optimizer steps: calls are then made by its closure
        self._is_step_watched = False  # True while `_step_watch` has something to undo; spares closing it
        self._may_nest = False  # True if an optimizer's step may run inside another call of it; False spares a search
        self._has_single_calls = True  # True while each step has one call, and a clear end: enough for `_book_only`
        self._ends_late = False  # True from the end of an observed step inside a backward to the end of the backward
        self._called_sites: set[str] = set()  # names of the modules that the loop itself has called
        # What undoes the wrappers of modules, the hooks of optimizers, and the observation of the current step.
        self._model_watch, self._optimizer_watch, self._step_watch = ExitStack(), ExitStack(), ExitStack()
        self._beside_watch = ExitStack()  # the same for the wrappers of modules beside the model
        self._hooks = OptimizerHooks(self._optimizers, self._optimizer_steps, self._optimizer_stepped)
        self._optimizer_watch.callback(self._hooks.close)
        # Weakly: what is process-wide must not keep a hook that was forgotten, and with it the model.
        step_aside, failed = _weak(self._step_aside), _weak(self._step_aside_failed)
        with self._guarded():
            self._may_nest = any(map(_has_several_steps, self._optimizers))
            self._optimizer_watch.enter_context(stepping_aside(step_aside, failed))
            wrappers = outermost_calls(self._names, self._on_call, self._failed, on_traced=self._on_traced)
            self._model_watch.enter_context(wrappers)
            if beside:
                others = outermost_calls(ModuleNames(beside), self._on_call_beside, self._failed, only=set(beside))
                self._beside_watch.enter_context(others)

    # --- For the hook -------------------------------------------------------------------------------------------------

    def profile(self) -> ModelProfile | None:
        """Return the profile of the counted call, or None before it.

        While the call has not ended, it is the profile of the part so far.
        """
        profile = self._training.profiles.get(TRAINING)
        if profile is None and self._call.has_called and self._conditions is not None and self._call.seen:
            profile = self._training.preview(together(self._call.seen), self._model, self._conditions)
        return profile

    @contextmanager
    def marked_step(self) -> Iterator[None]:
        """Mark the code inside as one step.

        From the first mark on, steps end nowhere else.
        """
        self.begin_marked_step()
        try:
            yield
        except BaseException:
            self._drop_marked_step()
            raise
        self.end_marked_step()

    def begin_marked_step(self) -> None:
        """Begin a step that ends with `end_marked_step`; one that was begun and not ended is dropped."""
        if self._is_in_marked:
            self._drop_marked_step()
        self._is_marked = self._is_in_marked = True
        with self._guarded():
            self._discard_step()
            if self._stage is not Stage.OVER:
                self._watch_from_mark()

    def _watch_from_mark(self) -> None:
        """Observe a marked step from its begin, if that is likely to be wanted.

        Where work before the first call was found, all steps begin at their marks. Others begin with that call, whose
        inputs tell which kind they are of.
        """
        training, step = self._training, self._step
        if training.begins_at_marks:
            step.plan, step.has_inputs = training.begin_marked_step(self._optimizers), False
            observer = training.observer
        else:
            observer = step.watching = training.observer_from_mark(self._optimizers)
        if observer is not None:
            self._is_step_watched = True
            self._step_watch.enter_context(observer.watching(is_in_optimizer=self._is_in_optimizer))

    def _drop_marked_step(self) -> None:
        self._is_in_marked = False
        with self._guarded():
            self._end_call()  # if the loop goes on, its next step begins a new call
            self._discard_step()

    def end_marked_step(self, step: int | None = None, *, is_log_step: bool | None = None) -> None:
        """End the step that `begin_marked_step` began.

        Args:
            step: step that its numbers are logged at. Default: steps are numbered from 0.
            is_log_step: whether to log compute so far. Default: every `log_every_n_steps`.
        """
        self._is_marked, self._is_in_marked = True, False
        with self._guarded():
            self._end_step(step=step, is_log_step=is_log_step)
            self._reduce_to_booking()

    @property
    def optimizer_ids(self) -> set[int]:
        """The optimizers that end its steps, by identity: theirs may define `==`."""
        return set(map(id, self._optimizers))

    def close(self, *, wait: bool) -> bool:
        """End the current call and step, and remove all wrappers and hooks.

        Args:
            wait: whether to wait for the device and for other ranks. False after an error: they may never finish.

        Returns:
            Whether a training call was seen, or the user knows why not.
        """
        was_over = self._stage is Stage.OVER or self._is_told
        try:
            with self._guarded():
                self._end_late_step()
                self._end_call()
                if wait and self._training.is_own and self._step.plan is not None and not self._is_marked:
                    # The loop ended before an optimizer ended this step, or there is no optimizer.
                    self._end_step(is_whole=False, has_stepped=not self._optimizers)
            with self._guarded():
                self._training.close(self._steps, wait=wait)
        finally:
            self._let_go()
            self._optimizer_watch.close()
            self._optimizers.clear()
            self._owner.close()
        return self._has_begun or was_over

    def drop(self) -> bool:
        """Remove all wrappers and hooks, and log nothing.

        Returns:
            As `close` does.
        """
        was_over = self._stage is Stage.OVER or self._is_told
        self._let_go()
        self._optimizer_watch.close()
        self._optimizers.clear()
        self._owner.close()
        return self._has_begun or was_over

    # --- Events of the loop -------------------------------------------------------------------------------------------

    def _on_call(self, site: CallSite, call: Callable[[], Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Run a module call of the loop, and report it.

        Args:
            site: module under call.
            call: makes the call; it has to be called once.
            args: positional arguments of the call.
            kwargs: keyword arguments of the call.
        """
        self._end_late_step()
        if not (site.module.training or self._model.training):
            if self._step.plan is not None:  # an evaluation within a step is part of its cost, as of its records
                self._training.note_call(site.name, (args, kwargs), has_grad=torch.is_grad_enabled())
            elif site.module is self._model:
                self._training.pause()  # evaluation between two steps
            call()
            return
        if not torch.is_grad_enabled():
            self._run_without_grad(site, call, args, kwargs)
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
            self._add_call(site, args, kwargs)
        try:
            with self._owner.calling():
                result = self._run_call(site, call, args, kwargs)
        except BaseException:
            self._call_raised()
            raise
        self._call.has_called = True
        self._call.modules_called += 1
        if len(self._optimizers) < SEVERAL:
            self._watch_backward(result)
        if not (self._optimizers or self._is_marked):
            self._reduce_to_booking()

    def _book_only(self, site: CallSite, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Book a module call; return whether it can run as it is.

        This is the fast path of the stage `BOOKING`, and enough for most loops. A loop that calls the model twice in a
        step leaves it for good: between two calls, backwards have to be noticed.
        """
        if self._ends_late:
            with self._guarded():
                self._end_late_step()
        if not (self._has_single_calls and site.module.training and torch.is_grad_enabled()) or several.are_there:
            return False
        if self._step.plan is not None:
            self._has_single_calls = False
            # Backwards were not watched for so far. Assume that there was one, as between micro-batches: two forwards
            # that share a backward are rarer.
            self._call.has_backward = len(self._optimizers) < SEVERAL
            return False
        self._step.is_in_first_call = True
        call = self._call
        call.is_added = self._begin_step(site, args, kwargs, backwards=not call.has_called) is Plan.OBSERVE
        if call.is_added:
            return False
        call.has_called = True
        call.modules_called = 1
        return True

    def _run_without_grad(
        self, site: CallSite, call: Callable[[], Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Run a module call without autograd, such as a teacher's, as part of the step."""
        is_first = self._step.plan is None
        self._step.is_in_first_call = is_first
        self._has_single_calls = False
        if is_first:
            self._begin_step(site, args, kwargs, has_grad=False)
        else:
            self._note_inputs(args, kwargs)
            self._training.note_call(site.name, (args, kwargs), has_grad=False)
        observer = self._training.observer
        try:
            with self._owner.calling(), nullcontext() if observer is None else observer.on():
                call()
        except BaseException:
            self._call_raised()
            raise

    def _on_call_beside(
        self, site: CallSite, call: Callable[[], Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Run a call of a module beside the model, as part of a marked step."""
        # Once the step is observed, records have what it does; with autograd, the kind of the step knows its nodes.
        if not self._is_in_marked or (self._step.plan is not None and torch.is_grad_enabled()):
            call()
        else:
            self._run_without_grad(site, call, args, kwargs)

    def _on_traced(self, site: CallSite, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note a module call that another hook is counting: it is part of a step of this one, too."""
        if not (site.module.training and torch.is_grad_enabled()):
            return
        self._has_begun = True
        if self._step.plan is None:
            self._step.plan = Plan.PASS
            self._training.begin_unseen_step((args, kwargs), args[0] if args else kwargs, site=site.name)
        else:
            self._training.note_call(site.name, (args, kwargs))
        self._training.note_backward()

    def _call_raised(self) -> None:
        """Discard the current step if its first call raised.

        The loop may catch the error and skip the batch.
        """
        if self._step.is_in_first_call:
            with self._guarded():
                self._discard_step()
            self._call.has_called = False

    def _optimizer_steps(self, *_: Any) -> None:
        self._is_in_optimizer = True

    def _optimizer_stepped(self, number: int, *arguments: Any) -> None:
        if self._may_nest and arguments and is_in_outer_step(arguments[0]):
            return
        self._is_in_optimizer = False
        if self._stage is Stage.OVER:
            return
        try:
            # Of several hooks, another one may have traced the call, and leaves the next to this one.
            if not (self._has_begun or self._is_told or several.are_there):
                self._tell_nothing_seen(self._optimizers[number])
            self._training.note_optimizer(number)
            stepped = self._step.stepped
            stepped.add(number)
            if len(stepped) == len(self._optimizers) and not self._is_marked:
                # An update in a hook of a backward: a recording cannot end there.
                self._ends_late = self._is_step_watched and is_backward_running()
                if not self._ends_late:  # as `_end_optimizers_step` does
                    self._end_step()
                    if self._stage is not Stage.BOOKING:
                        self._reduce_to_booking()
        except Exception as error:  # noqa: BLE001 - as in `_guarded`, without the cost of a context manager
            self._give_up(STEP_FAILED, error)

    def _tell_nothing_seen(self, optimizer: torch.optim.Optimizer) -> None:
        """Warn that an optimizer steps and no call was seen, as long as the user can still do something about it."""
        # At a learning rate of 0, PyTorch's distributed checkpoints make a step only to create the optimizer's state.
        if any(group.get("lr", 1) for group in optimizer.param_groups):
            self._is_told = True
            text = self._unseen.format(" before the first step of an optimizer")
            warnings.warn(text, FlopCallbackWarning, stacklevel=4)

    def _end_optimizers_step(self) -> None:
        self._end_step()
        if self._stage is not Stage.BOOKING:
            self._reduce_to_booking()

    def _end_late_step(self) -> None:
        """End a step that has ended inside a backward, once the backward is over."""
        if self._ends_late and not is_backward_running():
            self._ends_late = False
            self._end_optimizers_step()

    def _step_aside(self, _: CompiledCall) -> Return | None:
        """Take optimizer hooks off while compiled code runs.

        The code may be the step of a compiled optimizer. Without hooks, changed parameters tell which ones stepped.

        Returns:
            A function that puts the hooks back, and in turn returns one that reports the steps.
        """
        if self._is_in_optimizer:
            return None  # compiled code within an uncompiled step, whose own hooks report it
        restore_hooks, stepped = self._hooks.take_off(), self._hooks.watch_parameters()

        def report_steps() -> None:
            with self._guarded():
                if self._step.plan is not None and self._stage is not Stage.OVER:
                    for number in stepped():
                        self._optimizer_stepped(number)

        def come_back(_: Any) -> After | None:
            restore_hooks()
            return report_steps

        return come_back

    def _step_aside_failed(self, error: Exception) -> None:
        self._give_up(STEP_FAILED, error)

    def _failed(self, site: CallSite, error: Exception) -> None:
        self._give_up(f"the call of {site.name or type(site.module).__name__} could not be counted", error)

    # --- Calls --------------------------------------------------------------------------------------------------------

    def _run_call(self, site: CallSite, call: Callable[[], Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Make a module call as the plan of its step says."""
        if self._stage is Stage.COUNTING:
            return self._count(site, call, args, kwargs)
        if (observer := self._training.observer) is None:
            return self._time(call)  # without any effect if the plan is `PASS`
        if not self._call.has_called:  # once per call, whatever number of module calls it has
            self._training.note_observed_call()
        with self._training.counting_nodes(), observer.on():
            return call()

    def _count(self, site: CallSite, call: Callable[[], Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._conditions is None:
            self._names = ModuleNames({"": self._model})  # modules may have changed since the hook was created
            if rank_of() != 0:  # the process group may have been created after the hook
                self._training.mute()
            batch = args[0] if args else kwargs
            self._conditions = self._options.conditions(
                TRAINING, self._model, batch, self._failures, inputs=(args, kwargs)
            )
        if not self._call.has_called and self._training.observer is not None:
            self._training.note_observed_call()
        observing = nullcontext() if self._training.observer is None else self._training.observer.on()
        with self._training.counting_nodes(), observing:
            observed = observe_module_call(site, call, self._names, args, kwargs)
        result = observed.result
        # Without the result: the loop decides how long its tensors live.
        self._call.seen.append((site.name, dataclasses.replace(observed, result=None)))
        return result

    def _time(self, call: Callable[[], Any]) -> Any:
        try:
            with self._training.timed_call(continues=self._call.has_called):
                return call()
        except BaseException:
            self._call.has_called = False  # the time of the call was dropped: a retry cannot continue it
            raise

    def _watch_backward(self, result: Any) -> None:
        """Register hooks that notice a backward through the tensors of a result."""

        def began(_: Any) -> None:
            self._call.has_backward = True

        for tensor in tensors_in(result):
            # An in-place write replaces a view's grad_fn but not its base's: hook both.
            for part in (tensor, base_of(tensor)):
                if part is not None and part.grad_fn is not None:
                    part.grad_fn.register_prehook(began)

    def _add_call(self, site: CallSite, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Report a call to the training; the first one begins a step."""
        call = self._call
        is_first = self._step.plan is None
        self._step.is_in_first_call = is_first
        backwards = not call.has_called  # one per batch is assumed; autograd cannot be asked
        if is_first:
            self._begin_step(site, args, kwargs, backwards=backwards)
        else:
            inputs, batch = (args, kwargs), args[0] if args else kwargs
            self._note_inputs(args, kwargs)
            self._training.note_call(site.name, inputs)
            # A closure that an optimizer calls again, such as L-BFGS, reuses its batch.
            self._training.add_batch(inputs, batch, is_new=not call.has_called and not self._is_in_optimizer)
            self._has_single_calls = False
            if backwards:
                self._training.note_backward()

    def _note_inputs(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note what the first call of a step is given that began where it is marked."""
        if not self._step.has_inputs:
            self._step.has_inputs = True
            self._training.note_inputs((args, kwargs))

    def _begin_step(
        self,
        site: CallSite,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        has_grad: bool = True,
        backwards: int = 0,
    ) -> Plan:
        """Begin a step with a module call, and watch it if it is observed; return its plan."""
        training, batch, watching = self._training, args[0] if args else kwargs, self._step.watching
        plan = self._step.plan = training.begin_step(
            (args, kwargs),
            batch,
            self._optimizers,
            site=site.name,
            has_grad=has_grad,
            watching=watching,
            backwards=backwards,
        )
        if watching is not None:
            if training.observer is watching:
                watching.note_first_call()
                return plan
            self._close_step_watch()
        if plan is not Plan.PASS and training.observer is not None:
            self._is_step_watched = True
            self._step_watch.enter_context(training.observer.watching(is_in_optimizer=self._is_in_optimizer))
        return plan

    def _end_call(self) -> None:
        """End the current call, and record it if it was counted."""
        call, self._call = self._call, _Call()
        if not call.has_called or self._stage is not Stage.COUNTING:
            return
        assert self._conditions is not None
        observed = together(call.seen)
        if self._training.record(observed, self._model, self._conditions, what="the training call", is_timed=True):
            self._stage = Stage.MEASURING

    # --- Steps --------------------------------------------------------------------------------------------------------

    def _end_step(
        self,
        *,
        is_whole: bool = True,
        has_stepped: bool = True,
        step: int | None = None,
        is_log_step: bool | None = None,
    ) -> None:
        if self._stage is Stage.COUNTING:
            self._end_call()
        else:
            self._call.clear()
        if self._is_step_watched:
            self._close_step_watch()
        was_begun = self._step.plan is not None and self._step.has_inputs
        self._step.clear()
        if step is None:
            step, self._steps = self._steps, self._steps + has_stepped
        else:
            self._steps = step
        if was_begun:
            if is_log_step is None:
                is_log_step = (step + 1) % (self._options.log_every_n_steps or LOG_EVERY) == 0
            self._training.end_step(step, is_whole=is_whole, has_stepped=has_stepped, is_log_step=is_log_step)

    def _close_step_watch(self) -> None:
        self._is_step_watched = False
        self._step_watch.close()

    def _discard_step(self) -> None:
        """Drop the current step without booking it.

        Optimizers that have stepped in it stay noted.
        """
        self._close_step_watch()
        self._step = _Step(stepped=self._step.stepped)

    def _reduce_to_booking(self) -> None:
        """Enter the stage `BOOKING` once all measurements are done.

        From then on only modules that the loop itself calls are wrapped. Not to be called during a module call.
        """
        if self._stage is not Stage.MEASURING or self._training.is_busy:
            return
        self._stage = Stage.BOOKING
        self._has_single_calls &= bool(self._optimizers or self._is_marked)  # else only calls tell where a step ends
        self._model_watch.close()
        wrappers = outermost_calls(
            self._names,
            self._on_call,
            self._failed,
            only={*self._called_sites, *self._likely_sites()},
            fast_path=self._book_only,
            on_raise=self._call_raised,
            on_traced=self._on_traced,
        )
        self._model_watch.enter_context(wrappers)
        rest_if_unused()

    def _likely_sites(self) -> set[str]:
        """Return the names of modules that a loop may call later.

        These are the model and its children, such as a head or one half of a GAN.
        """
        parts = [name for name, _ in self._model.named_children()]
        return {"", *parts[:MOST_PARTS]}

    # --- Failures and the end -----------------------------------------------------------------------------------------

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Turn an exception inside into a warning, and stop watching the loop."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - the promise: training goes on
            self._give_up(STEP_FAILED, error)

    def _let_go(self) -> None:
        """Remove all wrappers of modules; nothing more is booked.

        The optimizers' hooks stay until `close`: this may run inside of one.
        """
        self._stage = Stage.OVER
        for watch in (self._step_watch, self._model_watch, self._beside_watch):
            try:
                watch.close()
            except Exception as error:  # noqa: BLE001 - the training goes on, and one warning is enough
                self._failures.log("not all wrappers of modules could be removed", error)

    def _give_up(self, what: str, error: Exception) -> None:
        self._let_go()
        self._training.stop_metering()
        self._failures.report(what, error)


def _has_several_steps(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether a class and a base of it both define `step`."""
    classes = [base for base in type(optimizer).__mro__ if base is not torch.optim.Optimizer and "step" in vars(base)]
    return len(classes) > 1


def _weak(method: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a function that calls a bound method without keeping its object alive."""
    reference = weakref.WeakMethod(method)

    def call(argument: Any) -> Any:
        bound = reference()
        return None if bound is None else bound(argument)

    return call
