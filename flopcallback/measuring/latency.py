"""Latency of every module over a window of real steps, in parts that add up."""

from __future__ import annotations

import functools
import math
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, Protocol

import torch

from flopcallback.modules.names import ModuleNames
from flopcallback.modules.outermost import CallSite, call_sites
from flopcallback.modules.wrappers import wrap_on_instance
from flopcallback.profile.rows import CPU_CLOCK
from flopcallback.tracing.torch_private import is_backward_running

__all__ = ["DeviceEvent", "Latency", "LatencyWindow", "is_captured", "quartiles"]


def is_captured(device: torch.device) -> bool:
    """Return whether work for a device goes into a CUDA graph now.

    To wait for the device then ends the capture with an error, and marks in the graph have no times.
    """
    return device.type == "cuda" and torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


class DeviceEvent(Protocol):
    """The used part of `torch.Event(device, enable_timing=True)`."""

    def record(self) -> None:
        """Mark the present position in the device's queue of work."""

    def synchronize(self) -> None:
        """Wait until the device has reached the mark."""

    def query(self) -> bool:
        """Return at once whether the device has reached the mark."""

    def elapsed_time(self, end: Any) -> float:
        """Return the milliseconds on the device from this mark to `end`."""


@dataclass(frozen=True, slots=True)
class Latency:
    """Times over a window, in milliseconds.

    Attributes:
        forward_ms: median time of the counted call.
        step_ms: median time of the step around it.
        steps: number of timed calls.
        how: clock and device, in words.
        modules: time by the module's name for the user, with everything inside. They are shares of the call's time:
            what is inside a module and its own time add up to it.
        spreads: first and third quartile, by the same name.
        step_spread: those of the step's time; None if no step was timed.
        cpu_share: share of the steps' time in which their thread did not wait for a processor; None where that is not
            known.
    """

    forward_ms: float | None
    step_ms: float | None
    steps: int
    how: str
    modules: Mapping[str, float] = field(default_factory=dict)
    spreads: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    step_spread: tuple[float, float] | None = None
    cpu_share: float | None = None

    def within(self, bare_ms: Sequence[float]) -> Latency:
        """Replace the whole call's times by bare ones, and share these out to the modules.

        Args:
            bare_ms: times of the whole call in calls without clocks on modules.
        """
        whole_ms = statistics.median(bare_ms)
        scale = whole_ms / self.forward_ms if self.forward_ms else 1.0
        return replace(
            self,
            forward_ms=whole_ms,
            modules={**{name: ms * scale for name, ms in self.modules.items()}, "": whole_ms},
            spreads={
                **{name: (low * scale, high * scale) for name, (low, high) in self.spreads.items()},
                "": quartiles(bare_ms),
            },
        )


class LatencyWindow:
    """Times the forward of every module during some steps, after a warm-up.

    On a CPU it reads `clock`. On any other device it records a pair of events around each forward, and asks for their
    times only when the window is read, so that no step waits for the device.

    A step is `begin_step()`, one or more calls inside `with timed_call():`, `end_step()`. Modules are wrapped within
    `timed_call` only.

    The clocks on the modules take time themselves. So `bare_steps` run without them, in turns with the others: if there
    are any, they give the times of the call and of the step, which are shared out to the modules as the others took
    theirs. Of these the faster half counts, in which fewest other things happened.

    Args:
        names: modules to time.
        device: device of the modules.
        warmup_steps: steps that are not timed.
        steps: steps in which modules are timed.
        bare_steps: steps that are timed as a whole only; `is_open` becomes False after both kinds.
        clock: returns seconds, for a CPU.
        event: `torch.Event` or a stand-in, called as `event(device, enable_timing=True)`, for other devices.
        rest: name for the time outside of any submodule; None leaves it out.
        methods: methods other than `forward` by which modules are entered, by canonical name, timed as calls.
    """

    def __init__(
        self,
        names: ModuleNames,
        device: torch.device,
        *,
        warmup_steps: int = 5,
        steps: int = 20,
        bare_steps: int = 0,
        clock: Callable[[], float] = time.perf_counter,
        event: Callable[..., DeviceEvent] | None = None,
        rest: str | None = None,
        methods: Mapping[str, set[str]] | None = None,
    ) -> None:
        self._names = names
        self._device = device
        self._rest = rest
        self._timer = _Clock(clock) if event is None and device.type == "cpu" else _Events(device, event or torch.Event)
        # Counted down to 0: warm-up first, then timed and bare steps in turns.
        self._steps_to_skip = warmup_steps
        self._steps_to_time = steps
        self._steps_to_time_bare = bare_steps
        self._step_spans: list[_Span] = []
        self._bare_step_spans: list[_Span] = []
        self._queued_s: list[float] = []  # of the calling thread, in bare steps; see `seconds_queued`
        self._queued_before: float | None = None
        self._calls: list[_TimedCall] = []
        self._in_step = False  # between `begin_step` and `end_step`
        self._is_bare = False  # of the current step; meaningful only while `_began` is set
        self._began: Any = None  # mark at the begin of the current step; None while warming up, or after the window
        self._sites = list(call_sites(names, methods))
        self._measures_queue = isinstance(self._timer, _Clock) and clock is time.perf_counter

    @property
    def is_open(self) -> bool:
        """True if there are steps left to warm up or to time."""
        return self._steps_to_time > 0 or self._steps_to_time_bare > 0

    @property
    def is_warm(self) -> bool:
        """True if no warm-up steps are left."""
        return self._steps_to_skip == 0

    @property
    def can_spare_next(self) -> bool:
        """True if the next step is to be timed with clocks on modules, and one like it was timed already."""
        is_clocked = self.is_warm and self._steps_to_time > 0 and self._steps_to_time >= self._steps_to_time_bare
        return is_clocked and self._has_clocked

    def spare_step(self) -> bool:
        """Use up a step with clocks on modules without timing it; return False if none like it was timed so far."""
        can_spare = self._has_clocked and self._steps_to_time > 0
        self._steps_to_time -= can_spare
        return can_spare

    @property
    def _has_clocked(self) -> bool:
        return any(not call.is_bare for call in self._calls)

    def warm_up(self) -> None:
        """Use up one warm-up step, if any is left, without timing it."""
        self._steps_to_skip = max(0, self._steps_to_skip - 1)

    def begin_step(self) -> None:
        """Start the time of a step."""
        self._in_step = True
        # With as many bare steps as others, every second step is bare.
        self._is_bare = self._steps_to_time_bare > self._steps_to_time
        is_timed = self._steps_to_skip == 0 and self.is_open and not is_captured(self._device)
        # Before the mark: it takes a few microseconds.
        self._queued_before = seconds_queued() if self._measures_queue and self._is_bare and is_timed else None
        self._began = self._timer.mark() if is_timed else None

    @property
    def is_disturbing(self) -> bool:
        """True if clocks on modules slow down the current step.

        On a device all timed steps count as disturbed: to tell their times apart, its queue would have to be emptied
        between them.
        """
        return self._began is not None and not (self._is_bare and isinstance(self._timer, _Clock))

    @contextmanager
    def timed_call(self, *, is_forward: bool = True, continues: bool = False) -> Iterator[None]:
        """Time the modules and the code inside as one call.

        A call that raises has no time.

        Args:
            is_forward: False if more than forwards happens inside (a backward, an optimizer's step). The time of the
                call is then the sum over outermost module calls.
            continues: whether the code inside belongs to the same call as the last timed one.
        """
        # Without clocks on modules there is nothing to sum for a call that is not a forward.
        if self._began is None or (self._is_bare and not is_forward):
            yield
            return
        call = self._calls.pop() if continues and self._calls else _TimedCall(self._timer, is_forward, self._is_bare)
        with ExitStack() as undo:
            for site in () if call.is_bare else self._sites:
                wrap_on_instance(site.module, site.attribute, functools.partial(call.wrap, site), undo)
            with call:
                yield
        # Raised only now, after the model's own code has finished.
        if call.failure is not None:
            raise call.failure
        self._calls.append(call)

    def end_step(self, *, is_whole: bool = True) -> None:
        """End the time of a step; without effect if none began.

        Args:
            is_whole: False if the code since `begin_step` is not the whole step, which then has no time.
        """
        if self._began is not None:
            if is_whole:
                spans = self._bare_step_spans if self._is_bare else self._step_spans
                spans.append((self._began, self._timer.mark()))
                if self._queued_before is not None and (queued := seconds_queued()) is not None:
                    self._queued_s.append(queued - self._queued_before)
            self._began = None
            if self._is_bare:
                self._steps_to_time_bare -= 1
            else:
                self._steps_to_time -= 1
        elif self._in_step and self._steps_to_skip > 0:  # a warm-up step that was begun and not timed
            self._steps_to_skip -= 1
        self._in_step = False

    def read(self, *, wait: bool = True) -> Latency | None:
        """Return medians so far, or None if no modules were timed.

        Args:
            wait: whether to wait for the device. With False, for a device that may never finish its work, calls and
                steps that it has not completed by now are left out.
        """
        if wait:
            self._timer.wait()
        done = [call for call in self._calls if call.whole and all(map(self._has_passed, call.spans()))]
        calls = [self._own_times(call) for call in done if not call.is_bare]
        if not calls:
            return None
        # Bare steps are the undisturbed ones.
        steps = self._step_times(self._bare_step_spans) or self._step_times(self._step_spans)
        bare_s = sum(self._step_times(self._bare_step_spans)) / 1e3
        times = [_with_what_is_inside(own) for own in calls]
        latency = Latency(
            forward_ms=statistics.median(each[""] for each in times),
            step_ms=statistics.median(steps) if steps else None,
            steps=len(done),
            how=self._timer.how,
            modules=self._names.as_shown(_shared_out(times)),
            spreads=self._names.as_shown(_spreads(times)),
            step_spread=quartiles(steps) if steps else None,
            cpu_share=max(0.0, 1 - sum(self._queued_s) / bare_s) if self._queued_s and bare_s else None,
        )
        bare_ms = [self._sum(call.whole) for call in done if call.is_bare]
        return latency.within(bare_ms) if bare_ms else latency

    def _step_times(self, spans: list[_Span]) -> list[float]:
        return [self._timer.ms(*span) for span in spans if self._has_passed(span)]

    def _has_passed(self, span: _Span) -> bool:
        return all(map(self._timer.has_reached, span))

    def _own_times(self, call: _TimedCall) -> dict[str, float]:
        """Return the milliseconds of one call by module, without those that a module called.

        They add up to the call.
        """
        # Not below 0, as rounding may make them.
        own = {
            name: max(0.0, self._sum(spans) - self._sum(call.inner[name]))
            for name, spans in call.modules.items()
            if name
        }
        rest = max(0.0, self._sum(call.whole) - math.fsum(own.values()))
        # Outside of a forward, `whole` is only a sum over modules: nothing is left over.
        is_apart = self._rest is not None and call.is_forward
        return {**own, "": rest} if not is_apart else {**own, "": 0.0, str(self._rest): rest}

    def _sum(self, spans: Iterable[_Span]) -> float:
        return math.fsum(self._timer.ms(*span) for span in spans)


def _with_what_is_inside(own: Mapping[str, float]) -> dict[str, float]:
    """Add to each module's time that of the modules inside, called or not."""
    times: dict[str, float] = {}
    for name, ms in own.items():
        for owner in ModuleNames.owners(name):
            times[owner] = times.get(owner, 0.0) + ms
    return times


def _shared_out(times: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the median call, shared out as the modules shared the faster half of the calls."""
    faster = sorted(times, key=lambda each: each[""])[: (len(times) + 1) // 2]
    sums: dict[str, float] = {}
    for each in faster:
        for name, ms in each.items():
            sums[name] = sums.get(name, 0.0) + ms
    scale = statistics.median(each[""] for each in times) / sums[""] if sums[""] else 0.0
    return {name: ms * scale for name, ms in sums.items()}


def _spreads(times: Sequence[Mapping[str, float]]) -> dict[str, tuple[float, float]]:
    by_name: dict[str, list[float]] = {}
    for each in times:
        for name, ms in each.items():
            by_name.setdefault(name, []).append(ms)
    return {name: quartiles(values) for name, values in by_name.items()}


# Marks at begin and end, of a `_Clock` or of `_Events`.
_Span = tuple[Any, Any]


class _Clock:
    """Clock of the CPU."""

    how = CPU_CLOCK

    def __init__(self, clock: Callable[[], float]) -> None:
        self.mark = clock

    def wait(self) -> None:
        """Return at once: a clock is always at its marks."""

    def has_reached(self, mark: float) -> bool:
        return True

    def ms(self, start: float, end: float) -> float:
        return (end - start) * 1e3


class _Events:
    """Events in a device's queue of work."""

    def __init__(self, device: torch.device, event: Callable[..., DeviceEvent]) -> None:
        self.how = f"events on {device}"
        self._device = device
        self._event = event
        self._last: DeviceEvent | None = None  # the device has reached all marks when it has reached this one

    def mark(self) -> DeviceEvent:
        self._last = self._event(self._device, enable_timing=True)
        self._last.record()
        return self._last

    def wait(self) -> None:
        if self._last is not None:
            self._last.synchronize()

    def has_reached(self, mark: DeviceEvent) -> bool:
        try:
            return mark.query()
        except Exception:  # noqa: BLE001 - a device that died raises on any question
            return False

    def ms(self, start: DeviceEvent, end: DeviceEvent) -> float:
        return start.elapsed_time(end)


class _TimedCall:
    """Spans of one call and of the modules in it.

    Timing must not stop a module's forward: an error of the timing is kept in `failure`.

    Attributes:
        is_bare: True if modules carry no clock in this call.
        whole: spans of the call; if it is not a forward, of the outermost module calls in it.
        modules: spans by canonical name.
        inner: spans of the modules that each module called itself, by its name.
    """

    def __init__(self, timer: _Clock | _Events, is_forward: bool, is_bare: bool) -> None:
        self.is_forward = is_forward
        self.is_bare = is_bare
        self.failure: Exception | None = None
        self.whole: list[_Span] = []
        self.modules: dict[str, list[_Span]] = {}
        self.inner: dict[str, list[_Span]] = defaultdict(list)
        self._timer = timer
        self._thread = threading.get_ident()
        self._running: list[str] = []  # names of the modules under call, outermost first
        self._began: Any = None

    def spans(self) -> Iterator[_Span]:
        """Return all spans."""
        return chain(self.whole, *self.modules.values())

    def __enter__(self) -> None:
        self._began = self._timer.mark()

    def __exit__(self, *_: object) -> None:
        if self.is_forward:
            self.whole.append((self._began, self._timer.mark()))

    def wrap(self, site: CallSite, method: Callable[..., Any]) -> Callable[..., Any]:
        name, running = site.name, self._running

        @functools.wraps(method)
        def timed(*args: Any, **kwargs: Any) -> Any:
            began, is_timed = None, False
            try:
                # A call during a backward is a recomputation, whose time belongs to the backward. Other threads would
                # mix up `running`.
                elsewhere = is_backward_running() or threading.get_ident() != self._thread
                # A module that calls itself is timed once, by its outer call.
                is_timed = not elsewhere and name not in running
                began = self._timer.mark() if is_timed else None
            except Exception as error:  # noqa: BLE001 - the model's forward is under way
                self.failure = error
            if not is_timed:
                return method(*args, **kwargs)
            running.append(name)
            try:
                return method(*args, **kwargs)
            finally:
                running.pop()
                try:
                    self._keep(name, (began, self._timer.mark()))
                except Exception as error:  # noqa: BLE001 - it would hide what the forward returns or raises
                    self.failure = error

        return timed

    def _keep(self, name: str, span: _Span) -> None:
        self.modules.setdefault(name, []).append(span)
        # `_running` has the callers only: the module itself was just removed.
        if self._running:
            self.inner[self._running[-1]].append(span)
        elif not self.is_forward:
            self.whole.append(span)


def seconds_queued() -> float | None:
    """Return how long this thread has been ready to run and had no processor, in seconds.

    Not the processor time: a thread that sleeps, or waits for other threads of an operator, wants none. None where the
    system does not say (elsewhere than on Linux).
    """
    try:
        with open("/proc/thread-self/schedstat", encoding="ascii") as file:
            return int(file.read().split()[1]) / 1e9  # after the time that it ran
    except (OSError, ValueError, IndexError):
        return None


def quartiles(times: Sequence[float]) -> tuple[float, float]:
    """Return the first and the third quartile.

    Of a single time both are that time.
    """
    if len(times) == 1:
        return times[0], times[0]
    first, _, third = statistics.quantiles(times, n=4, method="inclusive")
    return first, third
