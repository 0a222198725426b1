"""ProfileRecorder: profiles of observed calls and timed steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from torch import nn

from flopcallback.measuring.latency import LatencyWindow
from flopcallback.modules.names import ModuleNames
from flopcallback.profile.model_profile import ModelProfile
from flopcallback.profile.rows import LatencySummary
from flopcallback.profiling.build import StepAnalysis, backward_as_written, is_step_alike, profile_of, with_step
from flopcallback.profiling.conditions import Conditions
from flopcallback.profiling.times import with_times
from flopcallback.tracing.observed import DISPATCH, Observed
from flopcallback.tracing.record_times import RecordedTimes
from flopcallback.training.failures import Failures
from flopcallback.training.sinks import Sinks
from flopcallback.training.whole_step import Timing

__all__ = ["TRAINING", "ProfileRecorder"]

MOST_RECORDED = 32
"""Recorded steps of a window that are kept; where every step is observed, the window does not end by itself."""

TRAINING = "train"
"""Name of the phase with steps that are timed and booked."""


class _Log(Enum):
    """State of a phase's profile in the trackers."""

    NEW = "new"  # to be logged by the next `log`; also the state of a logged profile that was replaced
    AWAITING_TIMES = "awaiting times"  # changed while steps are timed: to be logged once, together with the times
    LOGGED = "logged"  # the trackers have it


@dataclass(slots=True)
class _Phase:
    """Profile of a phase, and where it has been logged."""

    profile: ModelProfile
    log: _Log = _Log.NEW
    are_counts_shown: bool = False  # True once its counts were printed, if its steps are timed
    is_shown: bool = False  # True once it was printed, which happens one time, after its steps were timed


class ProfileRecorder:
    """Recorder of profiles, which times steps and logs the results.

    Each step is `begin_step`; then either `record` with the counted call, or calls inside `with timed_call():`; then
    `end_step` and `log`. `close_window` ends the training. `record` may follow again for another phase.

    Args:
        sinks: receives the profiles.
        elementwise: whether elementwise operators count as `macs`.
        warmup_steps: number of steps after the counted one that are not timed.
        latency_steps: number of timed steps after these; every second one has clocks on modules.
        beside: other modules that a step may call, by name: they have rows in a training's profile.
        failures: reports failures.
        clock: returns seconds, for times on a CPU.
        event: `torch.Event` or a stand-in, for times on other devices.

    Attributes:
        sinks: receives the profiles; may be replaced, for a rank that does not log.
        window: timer of the steps; None before `record(is_timed=True)`, and after the last timed step or a failure.
        has_training: True once a training call was recorded.
        has_news: True if `log` has something to do. Every step reads it, and in most steps it is False.
    """

    def __init__(
        self,
        sinks: Sinks,
        *,
        elementwise: bool = False,
        warmup_steps: int = 5,
        latency_steps: int = 20,
        beside: Mapping[str, nn.Module] | None = None,
        failures: Failures | None = None,
        clock: Callable[[], float] = time.perf_counter,
        event: Callable[..., Any] | None = None,
    ) -> None:
        self.sinks = sinks
        self._elementwise = elementwise
        self._warmup_steps = warmup_steps
        self._latency_steps = latency_steps
        # Half of the steps that are not bare; the others have clocks on modules, as records are not always to be had.
        self._records_wanted = (latency_steps - latency_steps // 2) // 2
        self._beside = dict(beside or {})
        self._failures = failures or Failures()
        self._clock = clock
        self._event = event
        self._phases: dict[str, _Phase] = {}
        self.window: LatencyWindow | None = None
        self.has_training = self.has_news = False
        self._is_short = False  # True if the training ended before any step was timed
        self._timed_phase = ""  # phase of the profile that gets the times
        self._as_written: Mapping[str, int] | None = {}  # backward of the counted call, from `backward_as_written`
        self._device = "cpu"
        self._names = ModuleNames({})  # of the modules that are timed
        self._spared = 0  # recorded steps that took the place of one with clocks
        self._attempts = 0  # steps that were recorded for their times, or in vain
        self._recorded: list[RecordedTimes] = []  # times of steps in the window whose operators were recorded

    @property
    def profiles(self) -> dict[str, ModelProfile]:
        """The latest profile of each phase."""
        return {name: phase.profile for name, phase in self._phases.items()}

    def restore(self, profiles: Mapping[str, ModelProfile]) -> None:
        """Take over the profiles of another recorder, which has logged them."""
        self._phases = {name: _Phase(profile, _Log.LOGGED, is_shown=True) for name, profile in profiles.items()}

    # --- Counted calls ------------------------------------------------------------------------------------------------

    def profile_of(self, observed: Observed, model: nn.Module, conditions: Conditions) -> ModelProfile:
        """Return the profile of an observed call without keeping it.

        Raises:
            Exception: nothing of the call could be observed; the exception says why.
        """
        if not observed.runs:
            raise observed.failure or RuntimeError("no module was called in it")
        beside = self._beside if conditions.phase == TRAINING else {}
        return profile_of(observed, model, conditions, elementwise=self._elementwise, beside=beside)

    def record(
        self,
        observed: Observed,
        model: nn.Module,
        conditions: Conditions,
        *,
        what: str = "the call",
        is_timed: bool = False,
    ) -> ModelProfile:
        """Keep the profile of an observed call and return it.

        It is reported if the call was observed only in part, or not by the tracer.

        Args:
            observed: the call.
            model: root of the modules.
            conditions: conditions of the call.
            what: name of the call in messages.
            is_timed: whether to time the following steps for this profile.

        Raises:
            Exception: nothing of the call could be observed; the exception says why.
        """
        profile = self.profile_of(observed, model, conditions)
        if observed.failure is not None:
            engine = "dispatcher" if observed.runs[0].engine == DISPATCH else "records"
            manner = "in part" if observed.unseen else f"by PyTorch's {engine}, since the tracer could not"
            self._failures.report(f"{what} was counted {manner}", observed.failure)
        self._keep(profile)
        if conditions.phase == TRAINING:
            self._as_written = backward_as_written(observed, model)
        if is_timed and self._latency_steps > 0:
            self._timed_phase, self._device = conditions.phase, conditions.device.type
            self._names, self._recorded = observed.runs[0].names, []
            self._attempts = self._spared = 0
            self.window = LatencyWindow(
                observed.runs[0].names,
                conditions.device,
                warmup_steps=self._warmup_steps,
                # Half of the steps have clocks on modules, the other half run without them, to be undisturbed.
                steps=self._latency_steps - self._latency_steps // 2,
                bare_steps=self._latency_steps // 2,
                clock=self._clock,
                event=self._event,
                rest=conditions.step_row,
                methods=_methods_of(observed),
            )
        return profile

    def add_step(self, counts: Mapping[str, StepAnalysis], calls: int, bound: str = "") -> bool:
        """Add the FLOPs of a whole step to the training's profile.

        Args:
            counts: FLOPs by phase of the step, from `step_counts`.
            calls: number of calls like the counted one in the step.
            bound: sign between its true FLOPs and its count.

        Returns:
            Whether its forward has at least the FLOPs of these calls.
        """
        phase = self._phases[TRAINING]
        profile = with_step(phase.profile, counts, calls, self._as_written)
        phase.profile = replace(profile, step_bound=bound)
        if phase.log is not _Log.NEW:  # a new profile is logged at once, with or without times
            phase.log = _Log.AWAITING_TIMES if self.is_timing else _Log.NEW
        self.has_news = True
        step = phase.profile.step
        return step is not None and step.forward + step.without_grad >= calls * phase.profile.forward_flops

    def is_step_alike(self, counts: Mapping[str, StepAnalysis], calls: int) -> bool:
        """Return whether the forward of a step has the FLOPs of so many counted calls, module by module.

        Args:
            counts: FLOPs by phase of the step, from `step_counts`.
            calls: number of calls like the counted one in the step.
        """
        profile = with_step(self._phases[TRAINING].profile, counts, calls, self._as_written)
        return is_step_alike(profile, calls)

    def add_step_note(self, note: str) -> None:
        """Add the reason for a missing whole step to the training's profile."""
        phase = self._phases[TRAINING]
        phase.profile = replace(phase.profile, step_note=note)
        if phase.log is not _Log.NEW:
            phase.log = _Log.AWAITING_TIMES if self.is_timing else _Log.NEW
        self.has_news = True

    def add_training(self, numbers: Mapping[str, int | float]) -> None:
        """Add final numbers to the training's profile, and log them."""
        if numbers and self.has_training:
            phase = self._phases[TRAINING]
            phase.profile = replace(phase.profile, training=dict(numbers))
            self.sinks.log_training(phase.profile)

    def _keep(self, profile: ModelProfile) -> None:
        phase = self._phases.get(profile.phase)
        if phase is None:
            self._phases[profile.phase] = _Phase(profile)
        else:
            phase.profile, phase.log = profile, _Log.NEW
        self.has_training |= profile.phase == TRAINING
        self.has_news = True

    # --- Times --------------------------------------------------------------------------------------------------------

    @property
    def is_timing(self) -> bool:
        """True if more steps are to be timed."""
        return self.window is not None

    def begin_step(self) -> bool:
        """Start a step's time; return whether clocks slow it down."""
        if self.window is None:
            return False
        with self._timing():
            self.window.begin_step()
            return self.window.is_disturbing
        return False  # after a failure

    def timed_call(self, *, is_forward: bool = True, continues: bool = False) -> AbstractContextManager[None]:
        """Return a context manager that times a call; see `LatencyWindow.timed_call`."""
        if self.window is None:
            return nullcontext()
        return self.window.timed_call(is_forward=is_forward, continues=continues)

    def end_step(self, *, is_whole: bool = True) -> None:
        """End the time of a step.

        The last timed step adds all times to the profile.

        Args:
            is_whole: False if the code since `begin_step` is not the whole step, which then has no time.
        """
        if self.window is not None:
            with self._timing():
                self.window.end_step(is_whole=is_whole)
                if not self.window.is_open:
                    self._read_window()

    @property
    def timing(self) -> Timing | None:
        """What is wanted to know of the next step's times; None while steps warm up, and outside of the window."""
        if self.window is None or not self.window.is_warm:
            return None
        timed = sum(not times.has_bytes for times in self._recorded)
        # One of several is read for its bytes, which takes longer.
        has_one_for_bytes = self._records_wanted > 1
        wanted = self._records_wanted - has_one_for_bytes
        wants_bytes = has_one_for_bytes and timed >= wanted and timed == len(self._recorded)
        may_try = self._attempts < 2 * self._records_wanted  # some may fail, and the window has to end
        is_wanted = may_try and self.window.can_spare_next and (timed < wanted or wants_bytes)
        return Timing(self._device, is_wanted, wants_bytes)

    def note_recording(self) -> None:
        """Note that a step is recorded for its times."""
        self._attempts += 1

    def add_times(self, times: RecordedTimes) -> None:
        """Keep the times of a recorded step, which takes the place of one with clocks on modules."""
        if self.window is not None and len(self._recorded) < MOST_RECORDED:
            with self._timing():
                self._recorded.append(times)
                self._spared += self.window.spare_step()
                if not self.window.is_open:
                    self._read_window()

    def use_up_warmup(self) -> None:
        """Use up one warm-up step, if any is left, without timing it."""
        if self.window is not None:
            self.window.warm_up()

    def stop_timing(self, error: Exception) -> None:
        """Report `error` and time no further steps; counts are kept without times."""
        self.window = None
        self._failures.report("steps could not be timed", error)

    def close_window(self, *, wait: bool = True) -> None:
        """Add the times so far to the profile.

        A short training ends before all steps of the window were timed.

        Args:
            wait: whether to wait for the device. With False, for a device that may never finish its work, steps that it
                has not completed by now are left out.
        """
        with self._timing():
            self._read_window(wait=wait)

    @contextmanager
    def _timing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 - counts are of use without times
            self.stop_timing(error)

    def _read_window(self, *, wait: bool = True) -> None:
        window, self.window = self.window, None
        latency = None if window is None else window.read(wait=wait)
        self._is_short = window is not None and latency is None
        if latency is not None:
            summary = LatencySummary(
                latency.forward_ms,
                latency.step_ms,
                latency.steps + self._spared,
                latency.how,
                latency.spreads.get(""),
                latency.step_spread,
                latency.cpu_share,
            )
            profile = self._phases[self._timed_phase].profile
            profile = profile.with_latency(summary, latency.modules, latency.spreads)
            self._keep(with_times(profile, self._recorded, self._names))

    @property
    def recorded_step(self) -> tuple[int, int] | None:
        """FLOPs and bytes of a training step whose operators were recorded; None if unknown."""
        phase = self._phases.get(TRAINING)
        moved = None if phase is None else phase.profile.step_bytes
        if phase is None or phase.profile.step is None or moved is None:
            return None
        return phase.profile.step.total, moved

    # --- Logging ------------------------------------------------------------------------------------------------------

    def log(self, step: int, note: str = "") -> None:
        """Log profiles that the trackers do not have, and print what was not printed yet.

        Args:
            step: step that the numbers are logged at.
            note: text to print with the training's profile.
        """
        phases = list(self._phases.items())
        for _, phase in phases:
            if phase.log is _Log.NEW or (phase.log is _Log.AWAITING_TIMES and not self.is_timing):
                phase.log = _Log.LOGGED  # even if a tracker fails: it is reported, and not tried again
                self.sinks.log_profile(phase.profile, step)
        for name, phase in phases:
            if not phase.is_shown:
                self._show(name, phase, note if name == TRAINING else "")
        self.has_news = any(phase.log is not _Log.LOGGED or not phase.is_shown for _, phase in phases)

    def _show(self, name: str, phase: _Phase, note: str) -> None:
        """Print a profile, or its counts while its steps are timed."""
        if not self.is_timing:
            phase.is_shown = True
            short = "too few steps for times" if self._is_short and name == self._timed_phase else ""
            self.sinks.show_profile(phase.profile, ", ".join(filter(None, (short, note))))
        elif name == self._timed_phase and not phase.are_counts_shown:
            phase.are_counts_shown = True
            self.sinks.show_counts(phase.profile)


def _methods_of(observed: Observed) -> dict[str, set[str]]:
    """Return the methods other than `forward` by which an observed call entered modules."""
    methods: dict[str, set[str]] = {}
    for run in observed.runs:
        for name, entered in run.methods.items():
            methods.setdefault(name, set()).update(entered)
    return methods
