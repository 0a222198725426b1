"""ProfileRecorder: observed calls and timed steps become profiles, which are logged when they are complete."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from torch import nn

from flopcallback.counting.operator_analysis import OperatorAnalysis
from flopcallback.measuring.latency import LatencyWindow
from flopcallback.profile.model_profile import ModelProfile
from flopcallback.profile.rows import LatencySummary
from flopcallback.profiling.build import profile_of, with_step
from flopcallback.profiling.conditions import Conditions, Convention
from flopcallback.tracing.observed import Observed
from flopcallback.training.failures import Failures
from flopcallback.training.sinks import Sinks

__all__ = ["TRAINING", "ProfileRecorder"]

TRAINING = "train"
"""The phase whose steps are timed and booked."""


class _Log(Enum):
    """Whether the trackers have the profile of a phase."""

    NEW = "new"  # not yet
    AWAITING_TIMES = "awaiting times"  # not yet: they get it together with the times
    LOGGED = "logged"


@dataclass(slots=True)
class _Phase:
    """The profile of a phase, and who has it."""

    profile: ModelProfile
    log: _Log = _Log.NEW
    is_shown: bool = False  # printed; once, when its times are in


class ProfileRecorder:
    """Makes profiles of observed calls, times later steps, and logs both.

    For each step: `begin_step`; then either `record`, with the call that was counted, or calls inside
    `with timed_call():`; `end_step`; `log`. At last `close_window`. `record` may come again, for another phase.

    Args:
        sinks: where profiles go.
        convention: what counts as a FLOP.
        warmup_steps: steps after the counted one that are not timed.
        latency_steps: steps after those that are; in every second one, modules are.
        failures: where failures are reported.
        clock: returns seconds, for times on a CPU.
        event: `torch.Event`, for times on other devices.

    Attributes:
        sinks: may be replaced, by those of a rank that does not log.
        window: None where no more steps are to be timed.
        has_training: the training call was counted.
        has_news: there is something to log or to print; in most steps there is not, and every step asks.
    """

    def __init__(
        self,
        sinks: Sinks,
        *,
        convention: Convention | None = None,
        warmup_steps: int = 5,
        latency_steps: int = 20,
        failures: Failures | None = None,
        clock: Callable[[], float] = time.perf_counter,
        event: Callable[..., Any] | None = None,
    ) -> None:
        self.sinks = sinks
        self._convention = convention or Convention()
        self._warmup_steps = warmup_steps
        self._latency_steps = latency_steps
        self._failures = failures or Failures()
        self._clock = clock
        self._event = event
        self._phases: dict[str, _Phase] = {}
        self.window: LatencyWindow | None = None
        self.has_training = self.has_news = False
        self._timed_phase = ""

    @property
    def profiles(self) -> dict[str, ModelProfile]:
        """The latest profile of each phase."""
        return {name: phase.profile for name, phase in self._phases.items()}

    def restore(self, profiles: Mapping[str, ModelProfile]) -> None:
        """Take over the profiles of another recorder, which has logged them."""
        self._phases = {name: _Phase(profile, _Log.LOGGED, is_shown=True) for name, profile in profiles.items()}

    # --- What was counted ---------------------------------------------------------------------------------------------

    def profile_of(self, observed: Observed, model: nn.Module, conditions: Conditions) -> ModelProfile:
        """Return the profile of an observed call, and keep nothing.

        Raises:
            Exception: nothing of the call was seen, and why.
        """
        if not observed.runs:
            raise observed.failure or RuntimeError("no module was called in it")
        return profile_of(observed, model, conditions, self._convention)

    def record(
        self,
        observed: Observed,
        model: nn.Module,
        conditions: Conditions,
        *,
        what: str = "the call",
        is_timed: bool = False,
    ) -> ModelProfile:
        """Keep the profile of an observed call; report what of it was not seen, or not by the tracer.

        Args:
            observed: the call.
            model: the root of the modules.
            conditions: under which it was counted.
            what: the call, in words.
            is_timed: whether the steps from here on are to be timed for it.

        Raises:
            Exception: nothing of the call was seen, and why.
        """
        profile = self.profile_of(observed, model, conditions)
        if observed.failure is not None:
            how = "in part" if observed.unseen else "by PyTorch's dispatcher, since the tracer could not"
            self._failures.report(f"{what} was counted {how}", observed.failure)
        self._keep(profile)
        if is_timed and self._latency_steps > 0:
            self._timed_phase = conditions.phase
            self.window = LatencyWindow(
                observed.runs[0].names,
                conditions.device,
                warmup_steps=self._warmup_steps,
                steps=self._latency_steps - self._latency_steps // 2,
                bare_steps=self._latency_steps // 2,
                clock=self._clock,
                event=self._event,
                rest=conditions.step_row,
            )
        return profile

    def add_step(self, counts: Mapping[str, OperatorAnalysis], calls: int) -> None:
        """Add the FLOPs of a whole training step to the profile of the training.

        Args:
            counts: of each phase of the step, as `step_counts` gives them.
            calls: how many calls like the counted one the step had.
        """
        phase = self._phases[TRAINING]
        phase.profile = with_step(phase.profile, counts, calls)
        phase.log = _Log.AWAITING_TIMES if self.is_timing else _Log.NEW
        self.has_news = True

    def add_step_note(self, note: str) -> None:
        """Add to the profile of the training why no whole step was observed."""
        phase = self._phases[TRAINING]
        phase.profile = replace(phase.profile, step_note=note)
        phase.log = _Log.AWAITING_TIMES if self.is_timing else _Log.NEW
        self.has_news = True

    def add_training(self, numbers: Mapping[str, int | float]) -> None:
        """Add what the training came to to its profile, and log that."""
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

    # --- What is timed ------------------------------------------------------------------------------------------------

    @property
    def is_timing(self) -> bool:
        """Whether steps are still to be timed."""
        return self.window is not None

    def begin_step(self) -> bool:
        """Start the time of a step; return whether clocks make the step slower than others."""
        if self.window is None:
            return False
        with self._timing():
            self.window.begin_step()
            return self.window.is_disturbing
        return False

    def timed_call(self, *, is_forward: bool = True, continues: bool = False) -> AbstractContextManager[None]:
        """Return what goes around each call like the counted one; see `LatencyWindow.timed_call`."""
        if self.window is None:
            return nullcontext()
        return self.window.timed_call(is_forward=is_forward, continues=continues)

    def end_step(self, *, is_whole: bool = True) -> None:
        """End the time of a step; after the last step of the window, times go into the profile.

        Args:
            is_whole: False where what lies since `begin_step` is not the whole step, which then has no time.
        """
        if self.window is not None:
            with self._timing():
                self.window.end_step(is_whole=is_whole)
                if not self.window.is_open:
                    self._read_window()

    def use_up_warmup(self) -> None:
        """Use up one warm-up step, if there are any left: a step went by that was not timed."""
        if self.window is not None:
            self.window.warm_up()

    def stop_timing(self, error: Exception) -> None:
        """Time no further steps, because of `error`: what was counted stands without times."""
        self.window = None
        self._failures.report("steps could not be timed", error)

    def close_window(self, *, wait: bool = True) -> None:
        """Take the times of a window that training did not fill.

        Args:
            wait: False where a device may never come to the end of its work: what it has come through by now counts.
        """
        with self._timing():
            self._read_window(wait=wait)

    @contextmanager
    def _timing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 - a count without times is a count
            self.stop_timing(error)

    def _read_window(self, *, wait: bool = True) -> None:
        window, self.window = self.window, None
        latency = None if window is None else window.read(wait=wait)
        if latency is not None:
            summary = LatencySummary(latency.forward_ms, latency.step_ms, latency.steps, latency.how)
            profile = self._phases[self._timed_phase].profile
            self._keep(profile.with_latency(summary, latency.modules, latency.spreads))

    # --- What is logged -----------------------------------------------------------------------------------------------

    def log(self, step: int, note: str = "") -> None:
        """Log the profiles that the trackers do not have, and print those that are complete.

        Args:
            step: where their numbers belong.
            note: printed with the training's profile.
        """
        phases = list(self._phases.items())
        for _, phase in phases:
            if phase.log is _Log.NEW or (phase.log is _Log.AWAITING_TIMES and not self.is_timing):
                phase.log = _Log.LOGGED
                self.sinks.log_profile(phase.profile, step)
        for name, phase in phases:
            if not phase.is_shown and not self.is_timing:
                phase.is_shown = True
                self.sinks.show_profile(phase.profile, note if name == TRAINING else "")
        self.has_news = any(phase.log is not _Log.LOGGED or not phase.is_shown for _, phase in phases)
