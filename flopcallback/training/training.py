"""Training: the treatment of each step, the same for FlopCallback and FlopHook."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flopcallback.counting.operator_analysis import OperatorAnalysis
from flopcallback.modules.compiled import CompiledCode, rest_if_unused
from flopcallback.modules.outermost import CallSite
from flopcallback.profile.metrics import COMPUTE
from flopcallback.profile.model_profile import ModelProfile
from flopcallback.profile.numbers import bound_sign
from flopcallback.profiling.build import step_counts
from flopcallback.profiling.conditions import Conditions
from flopcallback.tracing.observed import NotNow, Observed
from flopcallback.tracing.observer import NotRecorded, StepRecorder, none_of_the_steps
from flopcallback.tracing.owners import CallOwner
from flopcallback.tracing.phases import FORWARD, RECOMPUTE, WITHOUT_GRAD
from flopcallback.tracing.torch_private import why_no_records
from flopcallback.trackers import Tracker
from flopcallback.training.audits import NEVER
from flopcallback.training.batch_sizes import BatchSizes
from flopcallback.training.budget import Budget
from flopcallback.training.failures import Failures, FlopCallbackWarning
from flopcallback.training.kinds import MARKED, StepCost
from flopcallback.training.meter import ComputeMeter
from flopcallback.training.options import Options
from flopcallback.training.ranks import END
from flopcallback.training.recorder import TRAINING, ProfileRecorder
from flopcallback.training.sinks import Sinks
from flopcallback.training.whole_step import ESTIMATED, WholeSteps

__all__ = ["TRAINING", "Plan", "Training"]

TORCHS_OWN = ("aten::", "prim::", "prims::", "bytes of ")
"""Beginnings of names of operators that always have a record, and of remarks on no FLOPs."""

# Calls that may pass uncounted before training is reported to be without a count.
MOST_WAITS = 100


class _Here:
    """The present process; read by every step, for which asking the system is slow.

    Attributes:
        process: its number.
    """

    def __init__(self) -> None:
        self.ask()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self.ask)

    def ask(self) -> None:
        """Ask the system for the number."""
        self.process = os.getpid()


here = _Here()


class Plan(Enum):
    """Treatment of the model calls in a step.

    The callback or hook carries it out.
    """

    COUNT = "count"  # as OBSERVE where there is an `observer`; each call is counted too, and given to `record`
    OBSERVE = "observe"  # run the calls in the contexts of `observer`, and note each by `note_observed_call`
    TIME = "time"  # run the calls inside `timed_call()`
    PASS = "pass"  # run the calls as they are; the step is booked by its shapes


class Training:
    """Training of a model, as a sequence of events.

    FlopCallback and FlopHook report the events. A step is `begin_step`, the events in it, `end_step`. `begin_step`
    returns a plan, by which the caller runs the model calls of the step. The first step is counted: its model calls are
    traced. A later step of each kind is observed: every operator in it is recorded, those of backward and optimizer
    included. Other steps are timed, or only booked: their cost is that of the observed step of their kind.

    An evaluation has no steps: it is `record` and `end_evaluation` alone.

    Args:
        model: model under training.
        options: arguments of the user.
        trackers: trackers by a name that tells the user where they log to; empty on ranks that do not log.
        samples: function from all inputs of the model to the number of samples, in place of a missing `batch_size_fn`.
            None makes an evaluation, for which no steps are booked.
        measures_waiting: whether the time between two steps is known to be a wait for data.
        show: prints a text; None prints nothing.
        fallback: folder for what a tracker failed to log.
        owner: who calls the model, if several models may be under training.
        beside: other modules that a step may call, such as a teacher, by name: they have rows, too.
        failures: reports failures.
    """

    def __init__(
        self,
        model: nn.Module,
        options: Options,
        trackers: Mapping[str, Tracker],
        *,
        samples: Callable[[Any], int | None] | None = None,
        measures_waiting: bool = False,
        show: Callable[[str], None] | None = None,
        fallback: str | Path | None = None,
        owner: CallOwner | None = None,
        beside: Mapping[str, nn.Module] | None = None,
        failures: Failures,
    ) -> None:
        self._failures = failures
        self._model = model
        self._process = here.process  # the one that makes its steps
        self._sinks = Sinks(
            trackers,
            prefix=options.prefix,
            by_compute=() if samples is None else options.by_compute,
            show=show,
            fallback=fallback,
            failures=failures,
        )
        self._recorder = ProfileRecorder(
            self._sinks,
            elementwise=options.elementwise,
            warmup_steps=options.warmup_steps,
            latency_steps=options.latency_steps,
            beside=beside,
            failures=failures,
        )
        self._steps = WholeSteps(owner, beside)
        self._observes = options.observe != NEVER
        self._meter: ComputeMeter | None = None  # None for an evaluation, and after `stop_metering`
        self._budget: Budget | None = None  # None without `max_flops`, and once a failure ended the metering
        self._numbers: dict[str, int | float] = {}  # `compute/*` and `perf/*` as last logged
        self._was_spent = False  # of a copy: the budget of the training that was copied was spent
        self.begins_at_marks = False  # True once a marked step was seen to work before its first call
        self.called: frozenset[str] = frozenset()  # names of the modules that the counted call has called
        self._note = ""  # text to print with the training's profile; set if compute can only be estimated
        self._waits = 0  # training calls that were not counted, since another thread was tracing or profiling
        self._awaited: NotNow | None = None  # what the last of them waited for
        self._was_repeated = False  # whether the counted call may have been begun more than once
        self._last_step = 0  # step of the last `end_step`, for the final numbers
        if samples is not None:
            sizes = BatchSizes(options.batch_size_fn, options.tokens_fn, samples, failures)
            self._meter = ComputeMeter(
                model,
                sizes,
                flops_fn=options.flops_fn,
                observe=options.observe,
                measures_waiting=measures_waiting,
                failures=failures,
            )
            if options.max_flops is not None:
                self._budget = Budget(options.max_flops, self._meter)

    # --- Steps --------------------------------------------------------------------------------------------------------

    def begin_step(
        self,
        inputs: Any,
        batch: Any,
        optimizers: Iterable[Any] = (),
        *,
        site: str | None = None,
        has_grad: bool = True,
        watching: StepRecorder | None = None,
        backwards: int = 0,
    ) -> Plan:
        """Begin a step, and return its plan.

        Args:
            inputs: the batch, or all inputs of the step's first model call; `MARKED` before that.
            batch: argument of the user's functions for samples, tokens and FLOPs.
            optimizers: optimizers that may step in it.
            site: name of the module that is called first; None if calls are noted one by one.
            has_grad: whether that call is made with autograd.
            watching: result of `observer_from_mark` that watches the step already.
            backwards: number of backwards that are taken for granted.
        """
        meter, steps, recorder = self._meter, self._steps, self._recorder
        self._process = here.process
        if steps.calls or steps.observer is not None:
            steps.forget_step()  # the one before has not ended, such as one whose call raised
        may_be_new = meter is not None and meter.begin_step(
            inputs, batch, site=site, has_grad=has_grad, backwards=backwards
        )
        if not may_be_new and recorder.has_training and recorder.window is None and steps.awaited is None:
            return Plan.PASS  # nearly all steps
        if not recorder.has_training:
            self._leave_out()
            if meter is not None and self._observes and not why_no_records():
                with meter.counting_nodes():  # whether the tracer may go first is asked once by a node of ours
                    self._steps.begin_counted(self._model, inputs, optimizers, watching)
            return Plan.COUNT
        if steps.model is not None:
            is_timing = recorder.window is not None
            is_new = meter is not None and meter.decide_observation(is_timing=is_timing)
            # As long as the profile awaits a step, each step is checked for the awaited shapes.
            timing = recorder.timing
            if is_new or (timing is not None and timing.is_wanted) or steps.awaited is not None:
                # What a marked step is called with is not known yet: it may be the awaited one.
                if steps.begin_step(
                    inputs, optimizers, is_new=is_new or inputs is MARKED, timing=timing, watching=watching
                ):
                    self._leave_out()
                    if timing is not None and timing.is_wanted:
                        recorder.note_recording()
                    return Plan.OBSERVE
                if is_new and meter is not None:
                    meter.take_back_observation()  # the profiler was not to be had
        if self._recorder.window is not None:
            if self._recorder.begin_step():  # clocks on modules slow the step down
                self._leave_out()
            return Plan.TIME
        return Plan.PASS

    def begin_marked_step(self, optimizers: Iterable[Any] = ()) -> Plan:
        """Begin a step before its first call, and return its plan; `note_inputs` follows.

        Args:
            optimizers: optimizers that may step in it.
        """
        return self.begin_step(MARKED, None, optimizers, has_grad=False)

    def note_inputs(self, inputs: Any) -> None:
        """Note all inputs of the first call of a step that began by `begin_marked_step`."""
        self._steps.note_inputs(inputs)

    def observer_from_mark(self, optimizers: Iterable[Any] = ()) -> StepRecorder | None:
        """Return an observer for a step that is about to begin, if it is likely to be observed.

        It finds work before the step's first call, after which `begins_at_marks` is True.
        """
        if self._meter is None or not self._observes:
            return None
        if not self._recorder.has_training:
            is_likely = not why_no_records()
        else:
            is_timing = self._recorder.window is not None
            is_likely = self._steps.model is not None and self._meter.expects_observation(is_timing=is_timing)
        return self._steps.recorder(self._model, optimizers) if is_likely else None

    def begin_unseen_step(self, inputs: Any, batch: Any, *, site: str) -> None:
        """Begin a step whose first call can neither be counted nor observed, as another training counts it.

        Args:
            inputs: all inputs of the call.
            batch: argument of the user's functions for samples, tokens and FLOPs.
            site: name of the module that is called.
        """
        self._process = here.process
        self._steps.forget_step()
        if self._meter is not None:
            self._meter.begin_step(inputs, batch, site=site)
            self._meter.leave_out()

    def note_site(self, site: CallSite, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Note a call of a module if a step is under way; return True, as the call can run as it is."""
        meter = self._meter
        if meter is not None and meter.step is not None:  # else it is a validation between two steps
            meter.add_call(site.name, (args, kwargs), has_grad=torch.is_grad_enabled())
        return True

    def note_call(self, site: str, inputs: Any, *, has_grad: bool = True) -> None:
        """Note a call of the model, or of a part of it, in the current step.

        Args:
            site: name of the module.
            inputs: all inputs of the call.
            has_grad: whether it is made with autograd.
        """
        if self._meter is not None:
            self._meter.add_call(site, inputs, has_grad=has_grad)

    def add_batch(self, inputs: Any, batch: Any, *, is_new: bool = True) -> None:
        """Add the batch of the last call to the step.

        Args:
            inputs: all inputs of the call.
            batch: argument of the user's functions for samples, tokens and FLOPs.
            is_new: False if the call reuses the batch of the one before, as the second network of a GAN does.
        """
        if self._meter is not None:
            self._meter.add_batch(inputs, batch, is_new=is_new)

    def note_backward(self) -> None:
        """Note a backward in the current step."""
        if self._meter is not None and (open_step := self._meter.step) is not None:
            open_step.backwards += 1

    def note_optimizer(self, number: int) -> None:
        """Note that the optimizer with this number stepped."""
        if self._meter is not None and (open_step := self._meter.step) is not None:
            open_step.stepped += (number,)

    @property
    def observer(self) -> StepRecorder | None:
        """Observer of the current step; None unless its plan is `OBSERVE`, or `COUNT` and it may be had."""
        return self._steps.observer

    def note_observed_call(self) -> None:
        """Note a call like the counted one in an observed step."""
        self._steps.calls += 1

    def counting_nodes(self) -> AbstractContextManager[None]:
        """Return a context manager for counted calls; see `ComputeMeter.counting_nodes`."""
        return nullcontext() if self._meter is None else self._meter.counting_nodes()

    def timed_call(self, *, is_forward: bool = True, continues: bool = False) -> AbstractContextManager[None]:
        """Return a context manager that times a call; see `LatencyWindow.timed_call`."""
        return self._recorder.timed_call(is_forward=is_forward, continues=continues)

    def record(
        self,
        observed: Observed,
        model: nn.Module,
        conditions: Conditions,
        *,
        what: str,
        is_timed: bool = False,
    ) -> bool:
        """Keep the profile of a counted call; see `ProfileRecorder.record`.

        Returns:
            False if a later call is to be counted instead, as this one could not be observed at its time.
        """
        if conditions.phase == TRAINING and isinstance(observed.failure, NotNow) and self._waits < MOST_WAITS:
            self._waits, self._awaited = self._waits + 1, observed.failure
            return False
        self.called = frozenset(name for run in observed.runs for name in run.calls)
        self._was_repeated = observed.failure is not None
        with none_of_the_steps():
            profile = self._recorder.record(observed, model, conditions, what=what, is_timed=is_timed)
        if conditions.phase != TRAINING:  # an evaluation has neither whole steps nor a meter
            return True
        if not self._observes:
            pass
        elif reason := why_no_records():  # this version of torch lacks a private name that observing needs
            self.stop_observing(RuntimeError(reason))
        else:
            self._steps.allow(observed, model, conditions)
        if self._meter is not None:
            if self._steps.model is None and self._meter.uses_counted_flops:
                self._note = ESTIMATED
            self._meter.set_counted_forward(profile.forward_flops, conditions.device, conditions.peak)
        return True

    def end_step(
        self,
        step: int,
        *,
        is_whole: bool = True,
        has_stepped: bool = True,
        is_log_step: bool = False,
        then: str = "training stops",
    ) -> bool:
        """End the step: book it, and log what is new.

        Args:
            step: step that the numbers are logged at.
            is_whole: False if the code since `begin_step` is not the whole step, which then has no time.
            has_stepped: False if gradients only accumulated and no optimizer stepped.
            is_log_step: whether to log compute so far; the same on all ranks.
            then: consequence of a spent budget, as a text for the user.

        Returns:
            Whether training should stop, since the budget is spent.
        """
        # First, since the meter books the step at its observed cost.
        observer = self._steps.end_step() if self._steps.observer is not None else None
        if observer is not None:
            if self._steps.model is not None:
                self._keep_observed(observer)
            rest_if_unused()
        if self._recorder.window is not None:
            self._recorder.end_step(is_whole=is_whole)
        if self._meter is not None:
            self._meter.end_step(has_stepped=has_stepped)
        self._last_step = step
        if self._recorder.has_news:
            # Trackers and figures take their time, which is not training's.
            with nullcontext() if self._meter is None else self._meter.interrupted():
                self._log(step)
        if is_log_step:
            self._log_numbers("log", step)
        return self._budget is not None and has_stepped and self.poll_budget(step, then=then)

    def _leave_out(self) -> None:
        if self._meter is not None:
            self._meter.leave_out()

    def _keep_observed(self, observer: StepRecorder) -> None:
        """Book an observed step; add it to a profile that awaits one."""
        steps, model = self._steps, self._steps.model
        assert model is not None
        is_counted = self._meter is not None and self._meter.is_in_counted_step
        if not is_counted:
            self._recorder.use_up_warmup()  # a step that was not timed counts as a warm-up step
        if observer.untimed is not None:
            self._failures.report("the operators of a step could not be timed", observer.untimed)
        if observer.times is not None and observer.failure is None and steps.is_usual:
            self._recorder.add_times(observer.times)
        if observer.reads_all:  # it was read for its bytes; unknown work without products is no bound of FLOPs
            return
        # No failure of ours: the user's profiler began in the step, or the compiler was at work for the first time.
        failure, runs = observer.failure, observer.runs()
        hides = bool(observer.compiled) and (steps.may_hide_products() or steps.has_thin_products(runs.values()))
        if failure is None and hides and observer.reveal_hidden():
            runs = observer.runs()
        elif failure is None and hides:
            failure = CompiledCode(f"{observer.compiled[0]}, which may have run products without a record")
            if self._meter is not None and self._meter.uses_counted_flops:
                self._note = ESTIMATED
        if isinstance(failure, (NotRecorded, CompiledCode)):
            if is_counted:
                return
            if steps.is_for_profile and steps.fail_profile():
                self._recorder.add_step_note(f"not observed: {failure}")
            return
        try:
            if failure is not None:
                raise failure
            counts = step_counts(runs, model)
            flops = {phase: analysis.total() for phase, analysis in counts.items()}
            # What was begun in a first attempt was recorded, too.
            if is_counted and self._was_repeated and not self._recorder.is_step_alike(counts, steps.calls):
                return
            self.begins_at_marks |= observer.works_early
            bound = self._bound_of(counts, is_counted=is_counted)
            if steps.is_for_profile:
                is_whole = self._recorder.add_step(counts, steps.calls, bound)
                steps.complete_profile()
                if observer.compiled and not is_whole:
                    # Of products with a dimension of 1, compiled code leaves no records: all its steps may have some.
                    steps.distrust_compiled()
            if self._meter is not None and (steps.trusts_compiled or not observer.compiled):
                total = sum(flops.values())
                self._meter.set_observed_cost(
                    StepCost(total, flops[FORWARD], flops[RECOMPUTE], flops[WITHOUT_GRAD], bound.strip())
                )
            elif self._meter is not None and self._meter.uses_counted_flops:
                self._note = ESTIMATED
        except Exception as error:  # noqa: BLE001 - counts are of use without a whole step
            self.stop_observing(error)

    def _bound_of(self, counts: Mapping[str, OperatorAnalysis], *, is_counted: bool) -> str:
        """Return the sign between the FLOPs of an observed step and their count."""
        is_lower = any(analysis.is_lower_bound for analysis in counts.values())
        is_upper = any(analysis.is_upper_bound for analysis in counts.values())
        profile = self._recorder.profiles[TRAINING]
        if is_counted:  # under the tracer, records may miss what it has found
            is_lower, is_upper = is_lower or profile.is_lower_bound, is_upper or bool(profile.upper_bounds)
        # An operator of a library may have no record at all (a `custom_op` called by its object, torch 2.14).
        is_lower = is_lower or any(not name.startswith(TORCHS_OWN) for name in profile.unknown)
        return bound_sign(is_lower=is_lower, is_upper=is_upper)

    # --- Results and other events -------------------------------------------------------------------------------------

    @property
    def profiles(self) -> dict[str, ModelProfile]:
        """Latest profile of each phase."""
        return self._recorder.profiles

    def preview(self, observed: Observed, model: nn.Module, conditions: Conditions) -> ModelProfile:
        """Return the profile of a call that is still being counted."""
        return self._recorder.profile_of(observed, model, conditions)

    @property
    def is_busy(self) -> bool:
        """True while steps are to be timed, or observed for the profile."""
        return self._recorder.window is not None or self._steps.awaited is not None

    @property
    def is_metering(self) -> bool:
        """True if steps are booked."""
        return self._meter is not None

    @property
    def numbers(self) -> dict[str, int | float]:
        """Numbers of `compute/*` and `perf/*` as last logged.

        On a single rank, `compute/*` is up to date.
        """
        live = {} if self._meter is None or self._is_uncounted else self._meter.live_totals()
        return {**self._numbers, **live}

    @property
    def is_budget_spent(self) -> bool:
        """True if the last poll of the budget found it spent."""
        return self._was_spent or (self._budget is not None and self._budget.is_spent)

    def poll_budget(self, step: int, *, then: str = "training stops") -> bool:
        """Decide whether the budget is spent, and tell the user if so.

        Every rank has to call it after every step.

        Args:
            step: number of the present step, for the message.
            then: consequence, as a text for the user.
        """
        budget = self._budget
        if budget is None or budget.is_spent:
            return budget is not None
        return self._decide(lambda: budget.poll(is_settling=self._steps.model is not None), step, then)

    def pause(self) -> None:
        """Leave the time until the next step out of throughput."""
        if self._meter is not None:
            self._meter.pause()

    def end_evaluation(self, step: int) -> None:
        """Log the profile of an evaluation."""
        self._recorder.end_step()
        if self._recorder.has_news:
            self._log(step)

    def log_totals(self, step: int) -> None:
        """Log compute so far beside the metrics of a validation.

        Every rank has to call it.
        """
        self._log_numbers("validation", step, with_rates=False)

    def log_numbers(self, step: int, more: Mapping[str, int | float] | None = None) -> None:
        """Log compute so far and throughput, between two steps.

        Every rank has to call it.

        Args:
            step: step that the numbers are logged at.
            more: numbers that only the caller knows, by name.
        """
        self._log_numbers("log", step)
        if more and self._meter is not None and not self._is_uncounted:
            self._numbers.update(more)
            with self._meter.interrupted():
                self._sinks.log_scalars(more, step)

    @property
    def takes_copies(self) -> bool:
        """True if any tracker on this rank needs the copies of `log_by_compute`."""
        return self._meter is not None and self._sinks.takes_copies

    def log_by_compute(self, metrics: Mapping[str, float]) -> None:
        """Log copies of the user's metrics at compute so far.

        With several ranks that is compute as last logged: this rank does not ask the others.
        """
        flops = self.numbers.get(COMPUTE.name)
        if metrics and flops is not None and self._meter is not None:
            with self._meter.interrupted():
                self._sinks.log_by_compute(metrics, int(flops))

    def state(self, *, wait: bool = True) -> dict[str, Any]:
        """Return the state of all ranks for a checkpoint.

        Every rank has to call it; those other than rank 0 get an empty dict.
        """
        return {} if self._meter is None else self._meter.state(wait=wait)

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from the state of a checkpoint, from any number of ranks.

        Every rank has to call it, before the first step.

        Raises:
            ValueError: it is no such state, or has another version.
        """
        if self._meter is not None:
            self._meter.load(state)

    def restore(
        self, profiles: Mapping[str, ModelProfile], numbers: Mapping[str, int | float], *, is_spent: bool
    ) -> None:
        """Take over the results of another training, as its copy that books no steps."""
        self._recorder.restore(profiles)
        self._numbers.update(numbers)
        self._was_spent = is_spent

    def poll_loaded_budget(self) -> None:
        """Decide whether a loaded checkpoint has already spent the budget.

        Every rank has to call it.
        """
        budget = self._budget
        if budget is not None and not budget.is_spent:
            self._decide(budget.poll_at_load, 0, "training stops")

    def mute(self) -> None:
        """Log nothing from now on, since another rank logs."""
        self._sinks = self._recorder.sinks = Sinks({}, failures=self._failures)

    # --- Failures and the end -----------------------------------------------------------------------------------------

    def stop_timing(self, error: Exception) -> None:
        """Report `error` and time no further steps; counts are kept without times."""
        self._recorder.stop_timing(error)

    def stop_observing(self, error: Exception) -> None:
        """Report `error` and observe no further steps; other counts are kept."""
        self._steps.forbid()
        self._failures.report("no whole step could be observed", error)

    def stop_metering(self) -> None:
        """Stop metering: after a failure, totals would be too low."""
        meter, self._meter = self._meter, None
        if meter is None:
            return
        # A spent budget is kept, so that the answer stays the same.
        if self._budget is not None and not self._budget.is_spent:
            self._budget = None
            text = "max_flops is not kept any more: steps are not booked. The training ends by its own limits."
            warnings.warn(text, FlopCallbackWarning, stacklevel=2)
        with self._failures.as_warning("other ranks do not know"):
            meter.leave()

    @property
    def is_own(self) -> bool:
        """False in a forked child of the process that makes the steps."""
        return here.process == self._process

    def close(self, step: int, *, wait: bool = True) -> None:
        """Log what has not been logged yet, and close the trackers.

        In a forked child nothing is done: the training goes on in its parent.

        Args:
            step: step that the profile's numbers are logged at.
            wait: whether to wait for the device and for other ranks. False after an error: they may never finish.

        Raises:
            Exception: the first failure, if `strict`; all trackers are closed nevertheless.
        """
        if not self.is_own:
            return
        with self._failures.raised_last():
            try:
                if self._awaited is not None and self._is_uncounted:
                    self._failures.report("no training step could be counted", self._awaited)
                self._recorder.close_window(wait=wait)
                self._log_numbers(END, self._last_step, wait=wait)
                self._log(step)
                self._recorder.add_training(self._numbers)
            finally:
                self._sinks.close()

    # --- Internals ----------------------------------------------------------------------------------------------------

    @property
    def _is_uncounted(self) -> bool:
        """True if the steps so far passed uncounted, and nothing tells what they cost."""
        is_told = self._meter is not None and not self._meter.uses_counted_flops  # by the user
        return self._awaited is not None and not self._recorder.has_training and not is_told

    def _log(self, step: int) -> None:
        self._recorder.log(step, self._note)

    def _log_numbers(self, topic: str, step: int, *, with_rates: bool = True, wait: bool = True) -> None:
        """Log the meter's numbers, on the rank that logs.

        Every rank has to call it.

        Args:
            topic: name of the occasion, the same on all ranks.
            step: step that the numbers are logged at.
            with_rates: whether to log throughput since the last time, too.
            wait: whether to wait for other ranks and for the device. Without the device there is no throughput.
        """
        if self._meter is None:
            return
        with self._meter.interrupted() if wait else nullcontext():
            if self._meter.recorded_step is None:
                self._meter.recorded_step = self._recorder.recorded_step
            gather = self._meter.numbers if with_rates and wait else self._meter.totals
            numbers = gather(topic, wait=wait)
            if self._is_uncounted:
                return
            # Unchanged numbers were logged before: the end often follows a log step.
            if self._meter.is_in_use and any(self._numbers.get(name) != value for name, value in numbers.items()):
                self._numbers.update(numbers)
                self._sinks.log_scalars(numbers, step)

    def _decide(self, decide: Callable[[], Any], step: int, then: str) -> bool:
        """Call `decide`; tell the user if the budget is spent."""
        try:
            decide()
        except Exception as error:  # noqa: BLE001 - training goes on, up to its own limits
            self._budget = None
            self._failures.report("max_flops is not kept", error)
        if self.is_budget_spent:
            self._sinks.show(f"flopcallback: max_flops is spent at step {step}: {then}")
        return self.is_budget_spent
