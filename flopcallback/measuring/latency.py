"""Forward time of every module over a window of real steps, medians of it, and nothing left on the modules between."""

from __future__ import annotations

import functools
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, Protocol

import torch

from flopcallback.modules.names import ModuleNames
from flopcallback.modules.outermost import CallSite, call_sites, has_forward
from flopcallback.modules.wrappers import wrap_on_instance
from flopcallback.profile.rows import CPU_CLOCK

__all__ = ["DeviceEvent", "Latency", "LatencyWindow", "quartiles"]


class DeviceEvent(Protocol):
    """What is used of `torch.Event(device, enable_timing=True)`."""

    def record(self) -> None:
        """Marks the present position in the device's queue of work."""

    def synchronize(self) -> None:
        """Waits until the device has come to the mark."""

    def query(self) -> bool:
        """Whether the device has come to the mark; does not wait."""

    def elapsed_time(self, end: Any) -> float:
        """Milliseconds on the device from this mark to `end`."""


@dataclass(frozen=True, slots=True)
class Latency:
    """Medians over a window, in milliseconds.

    Attributes:
        forward_ms: of the counted call.
        step_ms: of the step around it.
        steps: how many calls were timed.
        how: the clock and the device, in words.
        modules: by canonical name; a module's time in a call is the sum over its own calls, with what it contains.
        spreads: first and third quartile, by canonical name.
    """

    forward_ms: float | None
    step_ms: float | None
    steps: int
    how: str
    modules: Mapping[str, float] = field(default_factory=dict)
    spreads: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def within(self, bare_ms: Sequence[float]) -> Latency:
        """The same with the whole call by times without clocks on modules, and modules with no more than that."""
        whole_ms = statistics.median(bare_ms)
        modules = {name: min(ms, whole_ms) for name, ms in self.modules.items()}
        spreads = {name: (min(low, whole_ms), high) for name, (low, high) in self.spreads.items()}
        return replace(
            self,
            forward_ms=whole_ms,
            modules={**modules, "": whole_ms},
            spreads={**spreads, "": quartiles(bare_ms)},
        )


class LatencyWindow:
    """Times the forward of every module during some steps, after some that only warm up.

    On a CPU with `clock`; on any other device with a pair of its events around each forward, whose times are asked for
    once, when the window is read: no step waits for the device.

    A step is `begin_step()`, one or more calls inside `with timed_call():`, `end_step()`. Modules are wrapped within
    `timed_call` only.

    The clocks on the modules take time themselves. `bare_steps` go without, in turns with those that have them: where
    there are any, the times of the call and of the step are of these, and no module has more than the call.

    Args:
        names: the modules.
        device: where they run.
        warmup_steps: steps that are not timed.
        steps: steps in which modules are timed.
        bare_steps: steps that are timed as a whole; `is_open` turns False after both.
        clock: seconds, for a CPU.
        event: `torch.Event`, for other devices: `event(device, enable_timing=True)`.
        rest: the name under which the time outside of any submodule is to stand; None: it is not asked for.
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
    ) -> None:
        self._names = names
        self._rest = rest
        self._timer = _Clock(clock) if event is None and device.type == "cpu" else _Events(device, event or torch.Event)
        self._steps_to_skip = warmup_steps
        self._steps_to_time = steps
        self._steps_to_time_bare = bare_steps
        self._step_spans: list[_Span] = []
        self._bare_step_spans: list[_Span] = []
        self._calls: list[_TimedCall] = []
        self._in_step = self._is_bare = False
        self._began: Any = None
        self._sites = list(call_sites(names))

    @property
    def is_open(self) -> bool:
        """Whether there are steps left to warm up or to time."""
        return self._steps_to_time > 0 or self._steps_to_time_bare > 0

    def warm_up(self) -> None:
        """A step went by that was not begun: it is one of those that warm up, if there are any left."""
        self._steps_to_skip = max(0, self._steps_to_skip - 1)

    def begin_step(self) -> None:
        """Starts the time of a step."""
        self._in_step = True
        self._is_bare = self._steps_to_time_bare > self._steps_to_time
        self._began = self._timer.mark() if self._steps_to_skip == 0 and self.is_open else None

    @property
    def is_disturbing(self) -> bool:
        """Whether the step under way takes longer than others: modules carry clocks in it.

        On a device, all steps that are timed count as such. Between them the device's queue would have to be emptied,
        to tell their times apart.
        """
        return self._began is not None and not (self._is_bare and isinstance(self._timer, _Clock))

    @contextmanager
    def timed_call(self, *, is_forward: bool = True, continues: bool = False) -> Iterator[None]:
        """Times the modules, and what is inside as the counted call. What raises leaves no time.

        Args:
            is_forward: False where more than forwards happens inside (a backward, an optimizer's step): the time of
                the counted call is then the sum over outermost calls of modules.
            continues: what is inside belongs to the same call as what was timed last.
        """
        if self._began is None or (self._is_bare and not is_forward):
            yield
            return
        call = self._calls.pop() if continues and self._calls else _TimedCall(self._timer, is_forward, self._is_bare)
        with ExitStack() as undo:
            for site in () if call.is_bare else self._sites:
                wrap_on_instance(site.module, site.attribute, functools.partial(call.wrap, site), undo)
            with call:
                yield
        if call.failure is not None:
            raise call.failure
        self._calls.append(call)

    def end_step(self, *, is_whole: bool = True) -> None:
        """Ends the time of a step; without effect where none began.

        Args:
            is_whole: False where what lies in between is not the whole step: it then has no time.
        """
        if self._began is not None:
            if is_whole:
                spans = self._bare_step_spans if self._is_bare else self._step_spans
                spans.append((self._began, self._timer.mark()))
            self._began = None
            if self._is_bare:
                self._steps_to_time_bare -= 1
            else:
                self._steps_to_time -= 1
        elif self._in_step and self._steps_to_skip > 0:
            self._steps_to_skip -= 1
        self._in_step = False

    def read(self, *, wait: bool = True) -> Latency | None:
        """Medians of what was timed so far, None where no modules were.

        Args:
            wait: for the device. False where it may never come to the end of its work: calls and steps that it has not
                come through by now are left out.
        """
        if wait:
            self._timer.wait()
        done = [call for call in self._calls if call.whole and all(map(self._has_passed, call.spans()))]
        calls = [self._times(call) for call in done if not call.is_bare]
        if not calls:
            return None
        by_name = {name: [times[name] for times in calls if name in times] for name in dict.fromkeys(chain(*calls))}
        steps = self._step_times(self._bare_step_spans) or self._step_times(self._step_spans)
        latency = Latency(
            forward_ms=statistics.median(by_name[""]),
            step_ms=statistics.median(steps) if steps else None,
            steps=len(done),
            how=self._timer.how,
            modules={name: statistics.median(times) for name, times in by_name.items()},
            spreads={name: quartiles(times) for name, times in by_name.items()},
        )
        bare_ms = [self._sum(call.whole) for call in done if call.is_bare]
        return latency.within(bare_ms) if bare_ms else latency

    def _step_times(self, spans: list[_Span]) -> list[float]:
        return [self._timer.ms(*span) for span in spans if self._has_passed(span)]

    def _has_passed(self, span: _Span) -> bool:
        return all(map(self._timer.has_come_to, span))

    def _times(self, call: _TimedCall) -> dict[str, float]:
        """Milliseconds of one call by module; the call's own stand under the root's name."""
        times = {name: self._sum(spans) for name, spans in call.modules.items()}
        times[""] = self._sum(call.whole)
        if self._rest is not None and call.is_forward:
            times[self._rest] = times[""] - self._sum(call.submodules)
        return self._with_containers(times)

    def _sum(self, spans: list[_Span]) -> float:
        return sum(self._timer.ms(*span) for span in spans)

    def _with_containers(self, times: dict[str, float]) -> dict[str, float]:
        """Adds containers that are never called themselves (`ModuleList`): the sum over what they contain."""
        for name in reversed(self._names.unique):
            if name not in times and not has_forward(self._names.unique[name]):
                inside = [times[child] for child in times if child.rpartition(".")[0] == name]
                if inside:
                    times[name] = sum(inside)
        return times


_Span = tuple[Any, Any]


class _Clock:
    """Times on the CPU."""

    how = CPU_CLOCK

    def __init__(self, clock: Callable[[], float]) -> None:
        self.mark = clock

    def wait(self) -> None:
        """A clock has always come to its marks."""

    def has_come_to(self, mark: float) -> bool:
        return True

    def ms(self, start: float, end: float) -> float:
        return (end - start) * 1e3


class _Events:
    """Times on a device."""

    def __init__(self, device: torch.device, event: Callable[..., DeviceEvent]) -> None:
        self.how = f"events on {device}"
        self._device = device
        self._event = event
        self._last: DeviceEvent | None = None

    def mark(self) -> DeviceEvent:
        self._last = self._event(self._device, enable_timing=True)
        self._last.record()
        return self._last

    def wait(self) -> None:
        if self._last is not None:
            self._last.synchronize()

    def has_come_to(self, mark: DeviceEvent) -> bool:
        try:
            return mark.query()
        except Exception:  # noqa: BLE001 - a device that died raises whatever it is asked
            return False

    def ms(self, start: DeviceEvent, end: DeviceEvent) -> float:
        return start.elapsed_time(end)


class _TimedCall:
    """Spans of one call: its own, and those of the modules in it.

    Timing must not stop a module's forward: what fails around one is kept in `failure`.

    Attributes:
        is_bare: modules carry no clock in it.
        whole: of the call; where it is not a forward, of the outermost calls of modules in it.
        modules: by canonical name.
        submodules: of those submodules that no other submodule called.
    """

    def __init__(self, timer: _Clock | _Events, is_forward: bool, is_bare: bool) -> None:
        self.is_forward = is_forward
        self.is_bare = is_bare
        self.failure: Exception | None = None
        self.whole: list[_Span] = []
        self.modules: dict[str, list[_Span]] = {}
        self.submodules: list[_Span] = []
        self._timer = timer
        self._thread = threading.get_ident()
        self._running: list[str] = []
        self._began: Any = None

    def spans(self) -> Iterator[_Span]:
        """All of them."""
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
            # Autograd at work: a recomputation, which is part of the backward.
            elsewhere = torch._C._current_graph_task_id() != -1 or threading.get_ident() != self._thread
            if elsewhere or name in running:
                return method(*args, **kwargs)
            began = None
            try:
                began = self._timer.mark()
            except Exception as error:  # noqa: BLE001 - the model's forward is under way
                self.failure = error
            running.append(name)
            try:
                return method(*args, **kwargs)
            finally:
                running.pop()
                try:
                    self._keep(name, (began, self._timer.mark()))
                except Exception as error:  # noqa: BLE001
                    self.failure = error

        return timed

    def _keep(self, name: str, span: _Span) -> None:
        self.modules.setdefault(name, []).append(span)
        if not self._running and not self.is_forward:
            self.whole.append(span)
        if name and not any(self._running):
            self.submodules.append(span)


def quartiles(times: Sequence[float]) -> tuple[float, float]:
    """The first and the third; of a single time, twice that."""
    if len(times) == 1:
        return times[0], times[0]
    first, _, third = statistics.quantiles(times, n=4, method="inclusive")
    return first, third
