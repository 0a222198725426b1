"""Training: the one object that doors feed; what is done with a step is decided here."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from enum import Enum
from pathlib import Path
from typing import Any

from torch import nn

from flopcallback.modules.compiled import CompiledCode
from flopcallback.profile.metrics import COMPUTE
from flopcallback.profile.model_profile import ModelProfile
from flopcallback.profiling.build import step_counts
from flopcallback.profiling.conditions import Conditions
from flopcallback.tracing.observed import Observed
from flopcallback.tracing.torch_private import why_no_whole_step
from flopcallback.tracing.whole_step import FORWARD, RECOMPUTE, StepObserver
from flopcallback.trackers import Tracker
from flopcallback.training.batch_sizes import BatchSizes
from flopcallback.training.budget import Budget
from flopcallback.training.failures import Failures, FlopCallbackWarning
from flopcallback.training.ledger import StepCost
from flopcallback.training.meter import ComputeMeter
from flopcallback.training.options import Options
from flopcallback.training.ranks import END
from flopcallback.training.recorder import TRAINING, ProfileRecorder
from flopcallback.training.sinks import Sinks
from flopcallback.training.whole_step import ESTIMATED, WholeSteps

__all__ = ["TRAINING", "Plan", "Training"]


class Plan(Enum):
    """What a door does with the calls of the step that begins."""

    COUNT = "count"  # in flight, and gives them to `record`
    OBSERVE = "observe"  # inside `observer`'s contexts, each one noted by `note_observed_call`
    TIME = "time"  # inside `timed_call()`
    PASS = "pass"  # nothing


class Training:
    """One training, whatever drives it: a step is `begin_step`, what happens in it, `end_step`.

    A door tells what happens, and does with the calls of a step what the plan says. An evaluation is a training without
    steps: its door calls `record` and `end_evaluation` alone.

    Args:
        model: what is trained.
        options: what the user has set.
        trackers: by a name that tells the user where things go; none on ranks that do not log.
        samples: from a batch to its number of samples, where the user gives no function; None: no steps are booked.
        measures_waiting: whether what lies between two steps is known to be waiting for data.
        show: prints a text; None prints nothing.
        fallback: a folder for what a tracker that failed did not take.
        failures: where failures are reported.
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
        failures: Failures,
    ) -> None:
        self._failures = failures
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
            convention=options.convention,
            warmup_steps=options.warmup_steps,
            latency_steps=options.latency_steps,
            failures=failures,
        )
        self._steps = WholeSteps()
        self._meter: ComputeMeter | None = None  # None: nothing is booked, or not any more
        self._budget: Budget | None = None  # None: there is none, or it is not kept any more
        self._numbers: dict[str, int | float] = {}  # `compute/*` and `perf/*` as they were logged last
        self._was_spent = False  # in the training whose copy this one is
        self._note = ""  # printed with the profile of the training
        self._last_step = 0
        if samples is not None:
            sizes = BatchSizes(options.batch_size_fn, options.tokens_fn, samples, failures)
            self._meter = ComputeMeter(
                model, sizes, flops_fn=options.flops_fn, measures_waiting=measures_waiting, failures=failures
            )
            if options.max_hw_flops is not None:
                self._budget = Budget(options.max_hw_flops, self._meter)

    # --- A step -------------------------------------------------------------------------------------------------------

    def begin_step(self, inputs: Any, batch: Any, optimizers: Iterable[Any] = ()) -> Plan:
        """Begin a step with its first call, and decide what is done with its calls.

        The dispatcher would keep a compiled model from being compiled: no step of one is observed.

        Args:
            inputs: all that the model is given.
            batch: what samples, tokens and FLOPs are asked of.
            optimizers: those that may step.
        """
        meter = self._meter
        if meter is not None:
            meter.begin_step()
            meter.add_call(inputs, batch)
        if not self._recorder.has_training:
            self._leave_out()
            return Plan.COUNT
        steps = self._steps
        if steps.model is not None:
            is_new = meter is not None and meter.decide_observation()
            if (is_new or steps.awaited is not None) and steps.begin_step(inputs, optimizers, is_new=is_new):
                self._leave_out()
                return Plan.OBSERVE
        if self._recorder.window is not None:
            if self._recorder.begin_step():
                self._leave_out()
            return Plan.TIME
        return Plan.PASS

    def add_call(self, inputs: Any, batch: Any, *, is_new: bool = True) -> None:
        """Add another call of the model to the step.

        Args:
            inputs: all that it is given.
            batch: what samples, tokens and FLOPs are asked of.
            is_new: False where the call goes on with the batch of the one before, as the second network of a GAN does.
        """
        if self._meter is not None:
            self._meter.add_call(inputs, batch, is_new=is_new)

    def note_backward(self) -> None:
        """Note a backward of the step."""
        if self._meter is not None and (open_step := self._meter.step) is not None:
            open_step.backwards += 1

    def note_optimizer(self, number: int) -> None:
        """Note that the optimizer of this number stepped."""
        if self._meter is not None and (open_step := self._meter.step) is not None:
            open_step.stepped.append(number)

    @property
    def observer(self) -> StepObserver | None:
        """The observer of the step under way; None where its plan is another one."""
        return self._steps.observer

    def note_observed_call(self) -> None:
        """Note that a call like the counted one was made in the step that is observed."""
        self._steps.calls += 1

    def counting_nodes(self) -> AbstractContextManager[None]:
        """Return what goes around each piece that is counted, and around the same pieces of an observed step."""
        return nullcontext() if self._meter is None else self._meter.counting_nodes()

    def timed_call(self, *, is_forward: bool = True, continues: bool = False) -> AbstractContextManager[None]:
        """Return what goes around each call of a step that is timed; see `LatencyWindow.timed_call`."""
        return self._recorder.timed_call(is_forward=is_forward, continues=continues)

    def record(
        self,
        observed: Observed,
        model: nn.Module,
        conditions: Conditions,
        *,
        what: str,
        is_timed: bool = False,
    ) -> None:
        """Keep the profile of a counted call; see `ProfileRecorder.record`."""
        profile = self._recorder.record(observed, model, conditions, what=what, is_timed=is_timed)
        if conditions.phase != TRAINING:
            return
        if compiled := [name for run in observed.runs for name in run.compiled]:
            self._leave_unobserved(CompiledCode(compiled[0]))
        elif reason := why_no_whole_step():
            self.stop_observing(RuntimeError(reason))
        else:
            self._steps.allow(observed, model, profile, conditions)
        if self._meter is not None:
            if self._steps.model is None and self._meter.uses_counted_flops:
                self._note = ESTIMATED
            peak = None if conditions.peak is None else conditions.peak.flops_per_s
            self._meter.set_counted_forward(profile.forward_hw_flops, conditions.device, peak)

    def end_step(
        self,
        step: int,
        *,
        is_whole: bool = True,
        has_stepped: bool = True,
        is_log_step: bool = False,
        then: str = "training stops",
    ) -> bool:
        """End the step: book it and log what is new; return whether training should stop.

        Args:
            step: where the numbers belong.
            is_whole: False where what lies since `begin_step` is not the whole step, which then has no time.
            has_stepped: False where no optimizer stepped, and gradients accumulate.
            is_log_step: whether compute so far is to be logged; the same on all ranks.
            then: what the user is told, once, when the budget is spent.
        """
        if self._steps.observer is not None and (observer := self._steps.end_step()) is not None:
            self._keep_observed(observer)
        if self._recorder.window is not None:
            self._recorder.end_step(is_whole=is_whole)
        if self._meter is not None:
            self._meter.end_step(has_stepped=has_stepped)
        self._last_step = step
        if self._recorder.has_news:
            with nullcontext() if self._meter is None else self._meter.interrupted():
                self._log(step)
        if is_log_step:
            self._log_numbers("log", step)
        return self._budget is not None and has_stepped and self.poll_budget(step, then=then)

    def _leave_out(self) -> None:
        if self._meter is not None:
            self._meter.leave_out()

    def _keep_observed(self, observer: StepObserver) -> None:
        """Book what was observed of the step, and add it to the profile where that waits for a step."""
        model = self._steps.model
        assert model is not None
        self._recorder.use_up_warmup()
        if isinstance(observer.failure, CompiledCode):
            if self._steps.is_for_profile:
                self._leave_unobserved(observer.failure)
            return
        try:
            if observer.failure is not None:
                raise observer.failure
            counts = step_counts(observer.runs(), model)
            flops = {phase: analysis.total() for phase, analysis in counts.items()}
            if self._meter is not None:
                self._meter.set_observed_cost(StepCost(sum(flops.values()), flops[FORWARD], flops[RECOMPUTE]))
            if self._steps.is_for_profile:
                self._recorder.add_step(counts, self._steps.calls)
                self._steps.complete_profile()
        except Exception as error:  # noqa: BLE001 - a count without a whole step is a count
            self.stop_observing(error)

    def _leave_unobserved(self, compiled: CompiledCode) -> None:
        """Observe no whole step, since steps run compiled code; the profile says so."""
        self._steps.forbid()
        if self._meter is not None and self._meter.uses_counted_flops:
            self._note = ESTIMATED
        self._recorder.add_step_note(f"not observed: {compiled}")

    # --- The rest of a run --------------------------------------------------------------------------------------------

    @property
    def profiles(self) -> dict[str, ModelProfile]:
        """The latest profile of each phase."""
        return self._recorder.profiles

    def preview(self, observed: Observed, model: nn.Module, conditions: Conditions) -> ModelProfile:
        """Return the profile of a counted call that has not ended yet; nothing is kept."""
        return self._recorder.profile_of(observed, model, conditions)

    @property
    def is_busy(self) -> bool:
        """Whether any later step is still to be timed, or to be observed for the profile."""
        return self._recorder.window is not None or self._steps.awaited is not None

    @property
    def is_metering(self) -> bool:
        """Whether steps are booked."""
        return self._meter is not None

    @property
    def numbers(self) -> dict[str, int | float]:
        """`compute/*` and `perf/*` as they were logged last; of a training on one rank, compute as it is now."""
        live = {} if self._meter is None else self._meter.live_totals()
        return {**self._numbers, **live}

    @property
    def is_budget_spent(self) -> bool:
        """The last decision about the budget; `poll_budget` makes one."""
        return self._was_spent or (self._budget is not None and self._budget.is_spent)

    def poll_budget(self, step: int, *, then: str = "training stops") -> bool:
        """Decide whether the budget of compute is spent; every rank has to ask after every step.

        Args:
            step: where training is.
            then: what the user is told of it, once.
        """
        budget = self._budget
        if budget is None or budget.is_spent:
            return budget is not None
        return self._decide(lambda: budget.poll(is_settling=self._steps.model is not None), step, then)

    def pause(self) -> None:
        """Leave the time until the next step out of throughput: something else than training begins."""
        if self._meter is not None:
            self._meter.pause()

    def end_evaluation(self, step: int) -> None:
        """Log the profile of a call that no training step contains."""
        self._recorder.end_step()
        if self._recorder.has_news:
            self._log(step)

    def log_totals(self, step: int) -> None:
        """Log compute so far, where metrics of validation are logged; every rank has to come here."""
        self._log_numbers("validation", step, with_rates=False)

    @property
    def takes_copies(self) -> bool:
        """Whether `log_by_compute` has anything to log, on this rank."""
        return self._meter is not None and self._sinks.takes_copies

    def log_by_compute(self, metrics: Mapping[str, float]) -> None:
        """Log copies of the user's metrics at compute so far, as it was logged last; other ranks are not asked."""
        hw_flops = self.numbers.get(COMPUTE.name)
        if metrics and hw_flops is not None and self._meter is not None:
            with self._meter.interrupted():
                self._sinks.log_by_compute(metrics, int(hw_flops))

    def state(self, *, wait: bool = True) -> dict[str, Any]:
        """Return what a checkpoint keeps, of all ranks; every rank has to ask, and those but the first get nothing."""
        return {} if self._meter is None else self._meter.state(wait=wait)

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave, on any number of ranks; before the first step, and on every rank.

        Raises:
            ValueError: another version wrote it.
        """
        if self._meter is not None:
            self._meter.load(state)

    def restore(
        self, profiles: Mapping[str, ModelProfile], numbers: Mapping[str, int | float], *, is_spent: bool
    ) -> None:
        """Take over what another training has come to: this one is its copy, and books no steps."""
        self._recorder.restore(profiles)
        self._numbers.update(numbers)
        self._was_spent = is_spent

    def poll_loaded_budget(self, state: Mapping[str, Any]) -> None:
        """Decide whether what was loaded is all that there was to spend; every rank has to ask."""
        budget = self._budget
        if budget is not None and not budget.is_spent:
            self._decide(lambda: budget.poll_at_load(state), 0, "training stops")

    def mute(self) -> None:
        """Log nothing from here on: another rank is the one that logs."""
        self._sinks = self._recorder.sinks = Sinks({}, failures=self._failures)

    # --- When something failed, and at the end ------------------------------------------------------------------------

    def stop_timing(self, error: Exception) -> None:
        """Time no further steps, because of `error`: what was counted stands without times."""
        self._recorder.stop_timing(error)

    def stop_observing(self, error: Exception) -> None:
        """Observe no further steps, because of `error`: what was counted stands without a whole step."""
        self._steps.forbid()
        self._failures.report("no whole step could be observed", error)

    def stop_metering(self) -> None:
        """Stop metering: after a failure, totals would be too low."""
        meter, self._meter = self._meter, None
        if meter is None:
            return
        if self._budget is not None and not self._budget.is_spent:
            self._budget = None
            text = "max_hw_flops is not kept any more: steps are not booked. The training ends by its own limits."
            warnings.warn(text, FlopCallbackWarning, stacklevel=2)
        with self._failures.as_warning("other ranks do not know"):
            meter.leave()

    def close(self, step: int, *, wait: bool = True) -> None:
        """Log the times of a window that training did not fill, and let the trackers write what they hold.

        Args:
            step: where the numbers belong.
            wait: False where a device, or another rank, may never come to the end of its work.
        """
        self._recorder.close_window(wait=wait)
        self._log_numbers(END, self._last_step, wait=wait)
        self._log(step)
        self._recorder.add_training(self._numbers)
        self._sinks.close()

    # --- Inside -------------------------------------------------------------------------------------------------------

    def _log(self, step: int) -> None:
        self._recorder.log(step, self._note)

    def _log_numbers(self, topic: str, step: int, *, with_rates: bool = True, wait: bool = True) -> None:
        """Log numbers of the meter, on the rank that logs; every rank has to come here.

        Args:
            topic: what they are asked for; the same on all ranks.
            step: where they belong.
            with_rates: with throughput since the last time.
            wait: for ranks that are behind, and for the device, without which there is no throughput.
        """
        if self._meter is None:
            return
        with self._meter.interrupted() if wait else nullcontext():
            ask = self._meter.numbers if with_rates and wait else self._meter.totals
            numbers = ask(topic, wait=wait)
            if self._meter.is_in_use and any(self._numbers.get(name) != value for name, value in numbers.items()):
                self._numbers.update(numbers)
                self._sinks.log_scalars(numbers, step)

    def _decide(self, decide: Callable[[], Any], step: int, then: str) -> bool:
        """Have the budget decided, and tell the user when it is spent."""
        try:
            decide()
        except Exception as error:  # noqa: BLE001 - training goes on, as far as its own limits
            self._budget = None
            self._failures.report("max_hw_flops is not kept", error)
        if self.is_budget_spent:
            self._sinks.show(f"flopcallback: max_hw_flops is spent at step {step}: {then}")
        return self.is_budget_spent
