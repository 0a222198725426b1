"""Recorder: from a training loop's events to profiles, times and trackers; knows neither loop nor Lightning."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from flopcallback.counting.attempt import Observed
from flopcallback.counting.outermost import is_compiled
from flopcallback.counting.run import TRACE
from flopcallback.counting.scopes import ModuleNames
from flopcallback.counting.whole_step import StepObserver
from flopcallback.measuring.latency import LatencyWindow
from flopcallback.profiling import Conditions, Convention, profile_of, tensors_in, with_step
from flopcallback.reporting import LatencySummary, ModelProfile, milliseconds, rich_text, si
from flopcallback.trackers import LocalTracker, Tracker
from flopcallback.troubles import Troubles

__all__ = ["Recorder"]

CASTS_INSIDE = frozenset({"bilinear", "affine_grid_generator"})
"""Operators whose kernels call others that autocast casts; observed, they would stay in full precision."""


class Recorder:
    """Makes profiles of observed calls, times later steps, and hands both to trackers.

    Order of events, for each step: `begin_step`; either `record`, with the call that was counted, or calls inside
    `with timed_call():`; `end_step`. At last `close`. `record` may come again, for another phase.

    Args:
        trackers: by a name that says to the user where things go; none on ranks that do not log.
        convention: what counts as a FLOP.
        warmup_steps: steps after the counted one that are not timed.
        latency_steps: steps after those that are; in every second one, modules are.
        prefix: stands in front of the names of numbers.
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
        convention: Convention | None = None,
        warmup_steps: int = 5,
        latency_steps: int = 20,
        prefix: str = "",
        show: Callable[[str], None] | None = None,
        troubles: Troubles | None = None,
        fallback: str | os.PathLike[str] | None = None,
        clock: Callable[[], float] = time.perf_counter,
        event: Callable[..., Any] | None = None,
    ) -> None:
        self.profiles: dict[str, ModelProfile] = {}
        self._trackers = dict(trackers)
        self._fallback = fallback
        self._convention = convention or Convention()
        self._steps = (warmup_steps, latency_steps)
        self._prefix = prefix
        self._show = show
        self._troubles = troubles or Troubles()
        self._clock = clock
        self._event = event
        self._window: LatencyWindow | None = None
        self._to_observe: tuple[nn.Module, ModuleNames, tuple[tuple[int, ...], ...]] | None = None
        self._timed_phase = ""
        self._new: set[str] = set()  # phases whose profile the trackers do not have yet
        self._waiting: set[str] = set()  # those that they get together with the times
        self._logged: set[str] = set()
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
        if conditions.phase == "train" and is_plain and not _casts_inside(profile, conditions):
            self._to_observe = (model, observed.runs[0].names, conditions.input_shapes)
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

    def step_observer(self, inputs: Any, optimizers: Iterable[Any]) -> StepObserver | None:
        """What a whole step of training is to be observed by, if this one is to be; `record_step` takes it back.

        It is the first one whose inputs have the shapes of the counted call's. The dispatcher would keep a compiled
        model from being compiled: a step of one is not observed.

        Args:
            inputs: of the step's first call.
            optimizers: those that may step in it.
        """
        if self._to_observe is None or self._to_observe[2] != tuple(tuple(each.shape) for each in tensors_in(inputs)):
            return None
        return StepObserver(self._to_observe[1], optimizers)

    def record_step(self, observer: StepObserver, calls: int) -> None:
        """Adds what was observed of a whole step to the profile.

        Args:
            observer: after its step.
            calls: how many calls like the counted one the step had.
        """
        if self._to_observe is None:
            return
        (model, _, _), self._to_observe = self._to_observe, None
        if self._window is not None:
            self._window.warm_up()
        try:
            if observer.failure is not None:
                raise observer.failure
            profile = with_step(self.profiles["train"], observer.runs(), model, calls)
        except Exception as error:  # noqa: BLE001 - a count without a whole step is a count
            self.give_up_step(error)
            return
        self.profiles["train"] = profile
        (self._waiting if self.is_timing else self._new).add("train")

    def give_up_step(self, error: Exception) -> None:
        """No whole step can be observed, because of `error`: what was counted stands without one."""
        self._to_observe = None
        self._troubles.report("no whole step could be observed", error)

    @property
    def is_timing(self) -> bool:
        """Whether steps are still to be timed."""
        return self._window is not None

    @property
    def is_busy(self) -> bool:
        """Whether any later step is still to be timed or to be observed whole."""
        return self._window is not None or self._to_observe is not None

    def begin_step(self) -> None:
        """A step begins."""
        with self._timing():
            if self._window is not None:
                self._window.begin_step()

    def timed_call(self, *, is_forward: bool = True, continues: bool = False) -> AbstractContextManager[None]:
        """Goes around each call in a step that is like the counted one; see `LatencyWindow.timed_call`."""
        if self._window is None:
            return nullcontext()
        return self._window.timed_call(is_forward=is_forward, continues=continues)

    def end_step(self, step: int, *, is_whole: bool = True) -> None:
        """A step ended: what is new is logged at `step`, a profile, or times after the last step of the window.

        Args:
            step: where the numbers belong.
            is_whole: False where what lies since `begin_step` is not the whole step, which then has no time.
        """
        if self._window is not None:
            with self._timing():
                self._window.end_step(is_whole=is_whole)
                if not self._window.is_open:
                    self._close_window()
        if self._new or self._waiting or len(self._shown) < len(self.profiles):  # most steps have nothing to say
            self._log(step)

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
        self._log(step)
        for name, tracker in self._trackers.items():
            with self._troubles.reported(f"the tracker {name} failed"):
                tracker.close()

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
        """Hands profiles that are new to the trackers, with those of their numbers that are new."""
        if not self.is_timing:
            self._new, self._waiting = self._new | self._waiting, set()
        new, self._new = [profile for phase, profile in self.profiles.items() if phase in self._new], set()
        for profile in new:
            scalars = {self._prefix + name: value for name, value in profile.scalars().items()}
            scalars = {name: value for name, value in scalars.items() if name not in self._logged}
            self._logged.update(scalars)
            for name, tracker in list(self._trackers.items()):
                with self._troubles.reported(f"the tracker {name} failed"):
                    try:
                        _give(tracker, scalars, profile, step)
                    except Exception:
                        self._keep_in_files(scalars, profile, step)
                        raise
        for phase in self.profiles:
            if phase not in self._shown and not self.is_timing:
                self._shown.add(phase)
                self._show_profile(self.profiles[phase])

    def _keep_in_files(self, scalars: Mapping[str, int | float], profile: ModelProfile, step: int) -> None:
        """Writes what a tracker did not take to a folder, unless there is one that gets it anyway."""
        if self._fallback is None or any(isinstance(tracker, LocalTracker) for tracker in self._trackers.values()):
            return
        folder = LocalTracker(self._fallback)
        self._trackers[str(folder.folder)] = folder
        _give(folder, scalars, profile, step)

    def _show_profile(self, profile: ModelProfile) -> None:
        if self._show is not None:
            is_in_files_alone = all(isinstance(tracker, LocalTracker) for tracker in self._trackers.values())
            text = _table(profile) + "\n" if self._trackers and is_in_files_alone else _line(profile) + "; "
            self._show(f"{text}report: {', '.join(self._trackers)}" if self._trackers else _line(profile))


def _casts_inside(profile: ModelProfile, conditions: Conditions) -> bool:
    """Whether autocast does something below the dispatcher's mode, where the mode switches it off (2.13)."""
    return conditions.dtype != torch.float32 and any(row.operator in CASTS_INSIDE for row in profile.operators)


def _give(tracker: Tracker, scalars: Mapping[str, int | float], profile: ModelProfile, step: int) -> None:
    if scalars:
        tracker.log_scalars(scalars, step)
    tracker.log_profile(profile, step)


def _line(profile: ModelProfile) -> str:
    """The profile in a line, for those who have a tracker to look at."""
    bound = ">= " if profile.is_lower_bound else ""
    fma = profile.config["flops.fma"]
    parts = [f"{profile.phase_prefix}forward {bound}{si(profile.forward_flops, 'FLOPs')} ({fma} per multiply-add)"]
    if profile.forward_ms is not None:
        parts.append(f"{milliseconds(profile.forward_ms)} ms")
    if profile.step is not None:
        parts.append(f"train step {si(profile.step.total, 'FLOPs')} (hardware)")
    if profile.latency is not None and profile.latency.step_ms is not None:
        parts.append(f"step {milliseconds(profile.latency.step_ms)} ms")
    parts.append(f"unknown: {', '.join(profile.unknown)}" if profile.unknown else "nothing unknown")
    return f"flopcallback: {', '.join(parts)}"


def _table(profile: ModelProfile) -> str:
    """The whole tree, for those who have none."""
    return rich_text(profile, width=shutil.get_terminal_size((120, 24)).columns)
