"""Recorder: from a training loop's events to profiles, times and trackers; knows neither loop nor Lightning."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from flopcallback.measuring.latency import LatencyWindow
from flopcallback.modules.names import ModuleNames
from flopcallback.modules.outermost import is_compiled
from flopcallback.modules.structures import shapes_of
from flopcallback.profiling.build import profile_of, step_counts, with_step
from flopcallback.profiling.conditions import Conditions, Convention
from flopcallback.reporting import LatencySummary, ModelProfile
from flopcallback.tracing.observed import Observed
from flopcallback.tracing.run import TRACE
from flopcallback.tracing.whole_step import FORWARD, RECOMPUTE, StepObserver
from flopcallback.trackers import Tracker
from flopcallback.training.failures import FlopCallbackWarning, Troubles
from flopcallback.training.ledger import USUAL_STEP, StepCost
from flopcallback.training.meter import ComputeMeter
from flopcallback.training.ranks import END
from flopcallback.training.sinks import Outlets

__all__ = ["Recorder"]

CASTS_INSIDE = frozenset({"bilinear", "affine_grid_generator"})
"""Operators whose kernels call others that autocast casts; observed, they would stay in full precision."""


ESTIMATED = f"compute is estimated: {USUAL_STEP} forwards a step"
"""Said of a model whose steps cannot be observed."""


class Recorder:
    """Makes profiles of observed calls, times later steps, and hands both to trackers.

    Order of events, for each step: `begin_step`; either `record`, with the call that was counted, or calls inside
    `with timed_call():`, or `record_step`, with what observed it; `end_step`. At last `close`. `record` may come again,
    for another phase.

    Args:
        trackers: by a name that says to the user where things go; none on ranks that do not log.
        meter: books the steps of a training; adapters tell it what happens in them. None: nothing is booked.
        convention: what counts as a FLOP.
        warmup_steps: steps after the counted one that are not timed.
        latency_steps: steps after those that are; in every second one, modules are.
        prefix: stands in front of the names of numbers.
        by_compute: the user's metrics that are to be drawn by compute.
        show: prints a text; None prints nothing.
        troubles: where failures of single trackers go.
        fallback: a folder for what a tracker that failed did not take.
        clock: seconds, for times on a CPU.
        event: `torch.Event`, for times on other devices.

    Attributes:
        profiles: the latest profile of each phase.
    """

    def __init__(
        self,
        trackers: Mapping[str, Tracker],
        *,
        meter: ComputeMeter | None = None,
        convention: Convention | None = None,
        warmup_steps: int = 5,
        latency_steps: int = 20,
        prefix: str = "",
        by_compute: Sequence[str] = (),
        show: Callable[[str], None] | None = None,
        troubles: Troubles | None = None,
        fallback: str | os.PathLike[str] | None = None,
        clock: Callable[[], float] = time.perf_counter,
        event: Callable[..., Any] | None = None,
    ) -> None:
        self.profiles: dict[str, ModelProfile] = {}
        self._meter = meter
        self._numbers: dict[str, int | float] = {}
        self._is_spent, self._has_budget = False, True
        self._last_step = 0
        self._convention = convention or Convention()
        self._steps = (warmup_steps, latency_steps)
        self._troubles = troubles or Troubles()
        self._outlets = Outlets(
            trackers, prefix=prefix, by_compute=by_compute, show=show, fallback=fallback, troubles=self._troubles
        )
        self._clock = clock
        self._event = event
        self._window: LatencyWindow | None = None
        self._observable: tuple[nn.Module, ModuleNames] | None = None  # what whole steps can be observed of
        self._note = ""  # that goes with the training's profile
        self._awaited: tuple[tuple[int, ...], ...] | None = None  # the inputs of the step that the profile is to have
        self._is_awaited = False  # the step under way
        self._timed_phase = ""
        self._new: set[str] = set()  # phases whose profile the trackers do not have yet
        self._waiting: set[str] = set()  # those that they get together with the times
        self._shown: set[str] = set()

    def record(
        self,
        observed: Observed,
        model: nn.Module,
        conditions: Conditions,
        *,
        what: str = "the call",
        is_timed: bool = False,
    ) -> None:
        """Makes the profile of an observed call, and reports where it was not seen whole, or not by the tracer.

        Args:
            observed: the call.
            model: the root of the modules.
            conditions: under which it was counted.
            what: the call, in words.
            is_timed: whether the steps from here on are to be timed for it.

        Raises:
            Exception: nothing of the call was seen, and why.
        """
        if not observed.runs:
            raise observed.failure or RuntimeError("no module was called in it")
        if observed.failure is not None:
            how = "in part" if observed.unseen else "by PyTorch's dispatcher, since the tracer could not"
            self._troubles.report(f"{what} was counted {how}", observed.failure)
        profile = profile_of(observed, model, conditions, self._convention)
        self._renew(profile)
        # What the tracer could not do may be a compiled function, which the mode would keep from being compiled.
        is_plain = all(run.engine == TRACE for run in observed.runs) and not any(map(is_compiled, model.modules()))
        if conditions.phase == "train":
            if is_plain and not _casts_inside(profile, conditions):
                self._observable, self._awaited = (model, observed.runs[0].names), conditions.input_shapes
            elif self._meter is not None and self._meter.counts:
                self._note = ESTIMATED
            if self._meter is not None:
                peak = None if conditions.peak is None else conditions.peak.flops_per_s
                self._meter.counted(profile.forward_hw_flops, conditions.device, peak)
        if is_timed and self._steps[1] > 0:
            warmup, steps = self._steps
            self._timed_phase = conditions.phase
            self._window = LatencyWindow(
                observed.runs[0].names,
                conditions.device,
                warmup_steps=warmup,
                steps=steps - steps // 2,
                bare_steps=steps // 2,
                clock=self._clock,
                event=self._event,
                rest=conditions.step_row,
            )

    def inside(self) -> AbstractContextManager[None]:
        """Goes around each piece of a step that is counted, and around the same pieces of one that is observed."""
        return nullcontext() if self._meter is None else self._meter.inside()

    def step_observer(self, inputs: Any, optimizers: Iterable[Any]) -> StepObserver | None:
        """What a whole step of training is to be observed by, if this one is to be; `record_step` takes it back.

        The first one whose inputs have the shapes of the counted call's is for the profile, those of kinds that are new
        for the meter. The dispatcher would keep a compiled model from being compiled: a step of one is not observed.

        Args:
            inputs: of the step's first call.
            optimizers: those that may step in it.
        """
        if self._observable is None:
            return None
        self._is_awaited = self._awaited is not None and self._awaited == shapes_of(inputs)
        is_new = self._meter is not None and self._meter.wants_observation
        if not (self._is_awaited or is_new):
            return None
        if self._meter is not None:
            self._meter.leave_out()
        return StepObserver(self._observable[1], optimizers)

    def record_step(self, observer: StepObserver, calls: int) -> None:
        """Books what was observed of a whole step, and adds it to the profile where that waits for one.

        Args:
            observer: after its step.
            calls: how many calls like the counted one the step had.
        """
        if self._observable is None:
            return
        if self._window is not None:
            self._window.warm_up()
        try:
            if observer.failure is not None:
                raise observer.failure
            counts = step_counts(observer.runs(), self._observable[0])
            flops = {phase: analysis.total() for phase, analysis in counts.items()}
            if self._meter is not None:
                self._meter.observed(StepCost(sum(flops.values()), flops[FORWARD], flops[RECOMPUTE]))
            if not self._is_awaited:
                return
            profile = with_step(self.profiles["train"], counts, calls)
        except Exception as error:  # noqa: BLE001 - a count without a whole step is a count
            self.give_up_step(error)
            return
        self._awaited = None
        self.profiles["train"] = profile
        (self._waiting if self.is_timing else self._new).add("train")

    def give_up_step(self, error: Exception) -> None:
        """No whole step can be observed, because of `error`: what was counted stands without one."""
        self._observable = self._awaited = None
        self._troubles.report("no whole step could be observed", error)

    def mute(self) -> None:
        """Another rank is the one that logs."""
        self._outlets = Outlets({}, troubles=self._troubles)

    @property
    def is_metering(self) -> bool:
        """Whether steps are booked."""
        return self._meter is not None

    @property
    def is_timing(self) -> bool:
        """Whether steps are still to be timed."""
        return self._window is not None

    @property
    def is_busy(self) -> bool:
        """Whether any later step is still to be timed, or to be observed for the profile."""
        return self._window is not None or self._awaited is not None

    def begin_step(self) -> None:
        """A step begins."""
        if self._window is None:
            return
        with self._timing():
            self._window.begin_step()
            if self._meter is not None and self._window.is_disturbing:
                self._meter.leave_out()

    def timed_call(self, *, is_forward: bool = True, continues: bool = False) -> AbstractContextManager[None]:
        """Goes around each call in a step that is like the counted one; see `LatencyWindow.timed_call`."""
        if self._window is None:
            return nullcontext()
        return self._window.timed_call(is_forward=is_forward, continues=continues)

    def end_step(
        self, step: int, *, is_whole: bool = True, has_stepped: bool = True, is_log_step: bool = False
    ) -> None:
        """A step ended: what is new is logged at `step`, a profile, or times after the last step of the window.

        Args:
            step: where the numbers belong.
            is_whole: False where what lies since `begin_step` is not the whole step, which then has no time.
            has_stepped: False where no optimizer stepped, and gradients accumulate.
            is_log_step: whether compute so far is to be logged; the same on all ranks.
        """
        if self._window is not None:
            with self._timing():
                self._window.end_step(is_whole=is_whole)
                if not self._window.is_open:
                    self._close_window()
        if self._meter is not None:
            self._meter.end_step(has_stepped=has_stepped)
        self._last_step = step
        if self._new or self._waiting or len(self._shown) < len(self.profiles):  # most steps have nothing to say
            with nullcontext() if self._meter is None else self._meter.interrupted():
                self._log(step)
        if is_log_step:
            self._log_numbers("log", step)

    def stop_timing(self, error: Exception) -> None:
        """Steps cannot be timed, because of `error`: what was counted stands without times."""
        self._window = None
        self._troubles.report("steps could not be timed", error)

    def close(self, step: int, *, wait: bool = True) -> None:
        """Logs the times of a window that training did not fill, and lets the trackers write what they hold.

        Args:
            step: where the numbers belong.
            wait: False where a device may never come to the end of its work: what it has come through by now is
                logged then.
        """
        with self._timing():
            self._close_window(wait=wait)
        self._log_numbers(END, self._last_step, wait=wait)
        self._log(step)
        self._log_training()
        self._outlets.close()

    @contextmanager
    def _timing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 - a count without times is a count
            self.stop_timing(error)

    def _close_window(self, *, wait: bool = True) -> None:
        window, self._window = self._window, None
        latency = None if window is None else window.read(wait=wait)
        if latency is not None:
            summary = LatencySummary(latency.forward_ms, latency.step_ms, latency.steps, latency.how)
            profile = self.profiles[self._timed_phase]
            self._renew(profile.with_latency(summary, latency.modules, latency.spreads))

    def _renew(self, profile: ModelProfile) -> None:
        self.profiles[profile.phase] = profile
        self._new.add(profile.phase)

    def _log(self, step: int) -> None:
        """Hands profiles that are new to the trackers, and shows those that are complete."""
        if not self.is_timing:
            self._new, self._waiting = self._new | self._waiting, set()
        new, self._new = self._new, set()
        for phase, profile in list(self.profiles.items()):
            if phase in new:
                self._outlets.give_profile(profile, step)
        for phase, profile in self.profiles.items():
            if phase not in self._shown and not self.is_timing:
                self._shown.add(phase)
                self._outlets.show_profile(profile, self._note if phase == "train" else "")

    @property
    def numbers(self) -> dict[str, int | float]:
        """`compute/*` and `perf/*` as they were logged last; of a training on one rank, compute as it is now."""
        live = {} if self._meter is None else self._meter.live_totals()
        return {**self._numbers, **live}

    def is_spent(self, step: int, *, then: str = "training stops") -> bool:
        """Whether the budget of compute is spent; every rank has to ask after every step.

        Args:
            step: where training is.
            then: what the user is told of it.
        """
        if self._meter is None or self._is_spent or not self._has_budget:
            return self._is_spent
        try:
            self._is_spent = self._meter.is_spent(is_settling=self._observable is not None)
        except Exception as error:  # noqa: BLE001 - training goes on, as far as its own limits
            self._has_budget = False
            self._troubles.report("max_hw_flops is not kept", error)
        if self._is_spent:
            self._outlets.show(f"flopcallback: max_hw_flops is spent at step {step}: {then}")
        return self._is_spent

    def stop_metering(self) -> None:
        """What was done cannot be booked any more: no number is logged that would be too low."""
        meter, self._meter = self._meter, None
        if meter is not None:
            if meter.has_budget:
                text = "max_hw_flops is not kept any more: steps are not booked. The training ends by its own limits."
                warnings.warn(text, FlopCallbackWarning, stacklevel=2)
            with self._troubles.reported("other ranks do not know"):
                meter.leave()

    def log_totals(self, step: int) -> None:
        """Logs compute so far, where metrics of validation are logged; every rank has to come here."""
        self._log_numbers("validation", step, with_rates=False)

    @property
    def takes_copies(self) -> bool:
        """Whether `log_by_compute` has anything to log, on this rank."""
        return self._meter is not None and self._outlets.takes_copies

    def log_by_compute(self, metrics: Mapping[str, float]) -> None:
        """Logs copies of the user's metrics at compute so far, as it was logged last; other ranks are not asked."""
        hw_flops = self.numbers.get("compute/hw_flops_total")
        if metrics and hw_flops is not None and self._meter is not None:
            with self._meter.interrupted():
                self._outlets.give_by_compute(metrics, int(hw_flops))

    def _log_numbers(self, topic: str, step: int, *, with_rates: bool = True, wait: bool = True) -> None:
        """Hands numbers of the meter to the trackers, on the rank that logs; every rank has to come here.

        Args:
            topic: what they are asked for; the same on all ranks.
            step: where they belong.
            with_rates: with throughput since the last time.
            wait: for ranks that are behind, and for the device, without which there is no throughput.
        """
        if self._meter is not None:
            with self._meter.interrupted() if wait else nullcontext():
                ask = self._meter.numbers if with_rates and wait else self._meter.totals
                numbers = ask(topic, wait=wait)
                if self._meter.is_in_use and any(self._numbers.get(name) != value for name, value in numbers.items()):
                    self._numbers.update(numbers)
                    self._outlets.give_numbers(numbers, step)

    def _log_training(self) -> None:
        """Adds to the profile what the training came to."""
        if self._numbers and "train" in self.profiles:
            profile = self.profiles["train"] = replace(self.profiles["train"], training=self._numbers)
            self._outlets.give_training(profile)


def _casts_inside(profile: ModelProfile, conditions: Conditions) -> bool:
    """Whether autocast does something below the dispatcher's mode, where the mode switches it off (2.13)."""
    return conditions.dtype != torch.float32 and any(row.operator in CASTS_INSIDE for row in profile.operators)
