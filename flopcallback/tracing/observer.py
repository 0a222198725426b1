"""Third engine: PyTorch's own records of operators, of a call or of a whole training step.

It only listens: no mode and no hook stands in the way of an operator, and compiled code runs as it would without us.
"""

from __future__ import annotations

import functools
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch

from flopcallback.formulas.op_call import ROOT, UNSEEN, OpCall, Scope
from flopcallback.formulas.registry import HARDWARE_FAMILIES, counts_functions
from flopcallback.modules.attempt import call_once
from flopcallback.modules.compiled import (
    COMPILED,
    CompiledCall,
    CompiledCode,
    Return,
    is_used,
    stepping_aside,
)
from flopcallback.modules.names import ModuleNames
from flopcallback.modules.wrappers import wrap_on_instance
from flopcallback.tracing.compiled_regions import CompiledRegions, Known
from flopcallback.tracing.marked_scopes import MarkedScopes, OpenMarks, threads_noted
from flopcallback.tracing.marks import (
    BACKWARD_MARK,
    BEGIN,
    CALLED,
    CLOSURE,
    COMPILING,
    END,
    ON,
    OPTIMIZER_MARK,
    STOPPED,
    Marks,
)
from flopcallback.tracing.observed import OBSERVER, NotNow, ObservedRun
from flopcallback.tracing.owners import CallOwner
from flopcallback.tracing.phases import BACKWARD, FORWARD, OPTIMIZER, PHASES, backward_detail
from flopcallback.tracing.plain_updates import PlainUpdates
from flopcallback.tracing.profiler_broker import (
    Recording,
    abandon_here,
    begin_recording,
    end_recording,
    mark_here,
    why_no_recording,
)
from flopcallback.tracing.record import OperatorLog, Region
from flopcallback.tracing.record_times import RecordedTimes, times_of
from flopcallback.tracing.records import Reading, StepRecords, without_garbage_collection
from flopcallback.tracing.regions import intercept_named, replaced
from flopcallback.tracing.torch_private import (
    backward_engine,
    compilation_callbacks,
    device_records,
    stopped_recomputation,
)

__all__ = ["NotRecorded", "StepRecorder", "none_of_the_steps", "observe_records", "why_not_watched"]

REASON = "what really ran is seen in PyTorch's own records"


class NotRecorded(NotNow):
    """Reason for not observing a call: the profiler was not to be had."""

    def __init__(self, why: str) -> None:
        super().__init__(f"PyTorch's profiler was not to be had: {why}")


class _Here(threading.local):
    """State of this thread.

    Attributes:
        is_watched: True while a step is watched.
    """

    is_watched = False


_here = _Here()


def why_not_watched() -> str:
    """Return why no step of this thread could be watched now; empty if one could.

    Steps of several hooks take turns: what watches them stands in the place of functions of torch, and can only be
    taken away in reverse order. A step that is watched may hold steps of others, but none that is.
    """
    return "another step is watched" if _here.is_watched else why_no_recording()


class StepRecorder:
    """Observer of every operator of a training step, by phase and module.

    The step runs inside `with watching():`. All that this thread runs in there is observed, and what autograd runs for
    it in others. Modules that run or start threads elsewhere are noted: their work there is not recorded. What runs
    outside of modules, backwards and optimizers is forward.

    Attributes:
        failure: the error that kept the step from being observed, or None.
        compiled: names of the compiled code that ran, whose products with a dimension of 1 leave no records.
        reads_all: whether all families of operators are read.
        timed_on: type of the device on which the step's work is done, if its times are to be read; else None.
        times: where the step's time went; None where it was not asked, or the step was not observed.
        untimed: the error that kept its times from being read, or None.

    Args:
        names: the modules.
        optimizers: the optimizers that may step.
        owner: who calls the model, if several models may be under training.
        arguments: any structure that holds tensors which the step will use.
        reads_all: whether all families of operators are read, or those alone that multiply.
        known: calls of compiled code in earlier steps as they are written, for `reveal_hidden`; None where it is not
            asked.
    """

    def __init__(
        self,
        names: ModuleNames,
        optimizers: Iterable[Any] = (),
        *,
        owner: CallOwner | None = None,
        arguments: Any = (),
        reads_all: bool = False,
        known: Known | None = None,
    ) -> None:
        self._names = names
        self._optimizers = tuple(optimizers)
        self._owner = owner
        self.reads_all = reads_all
        self._families = None if reads_all else HARDWARE_FAMILIES
        self._marks = Marks()
        self._scopes = MarkedScopes(names, self._marks, arguments)
        self._regions = CompiledRegions(names, self._scopes, self._marks, known)
        self._updates: PlainUpdates | None = None  # None before the step, and where all families are read
        self._forwards = 0  # how many `on(is_forward=True)` are open: a backward in there is part of the forward
        self._thread = threading.get_ident()
        self._failure: Exception | None = None  # the first: later ones may follow from it
        self._records = StepRecords([])
        self.compiled: list[str] = []
        self.times: RecordedTimes | None = None
        self.untimed: Exception | None = None
        self.timed_on: str | None = None
        self._compiled_calls: list[OpCall] = []  # for `whole_run`: empty where only products are read

    @contextmanager
    def watching(self, *, is_in_optimizer: bool = False) -> Iterator[None]:
        """Record during a step, and read the records at its end.

        Args:
            is_in_optimizer: whether an optimizer is stepping already, and its closure begins the step: then only calls
                of the model are forward.
        """
        recording: Recording | None = None
        try:
            device = self.timed_on or "cpu"
            if device != "cpu":  # what was launched before is not the step's
                torch.accelerator.synchronize()
            recording = begin_recording(device=device)
        except Exception as error:  # noqa: BLE001 - the step is the training's, and is made
            self._note(error)
        if recording is None:
            self._note(NotRecorded(why_no_recording()))
            yield
            return
        self._marks.recording = recording
        self._updates = None if self._families is None else PlainUpdates(recording, self._note)
        _here.is_watched = True
        result: Any = None
        try:
            with ExitStack() as undo:
                self._watch(undo)
                self._marks.at(BEGIN, OPTIMIZER if is_in_optimizer else FORWARD)
                yield
                self._marks.at(END)
        finally:
            _here.is_watched = False
            try:
                result = end_recording(recording)
            except Exception as error:  # noqa: BLE001 - as above
                self._note(error)
        self._read(result, recording)

    @contextmanager
    def on(self, *, is_forward: bool = True) -> Iterator[None]:
        """Say that a call of the model runs inside the context.

        Args:
            is_forward: count a backward inside as part of the forward, as a gradient penalty is; False if the step
                itself calls backward in there.
        """
        self._forwards += is_forward
        try:
            with self._marks.over(ON):
                yield
        finally:
            self._forwards -= is_forward

    def note_first_call(self) -> None:
        """Note that the model is about to be called for the first time in the step."""
        self._marks.at(CALLED)

    @property
    def works_early(self) -> bool:
        """Whether anything that costs FLOPs ran before `note_first_call`."""
        return self._records.works_early

    def reveal_hidden(self) -> bool:
        """Add the products that compiled code ran without a record; return False if they are not certain."""
        revealed = self._regions.revealed(self._records.placed)
        if revealed is not None:
            self._records = self._records._replace(placed=revealed)
        return revealed is not None

    def runs(self) -> Mapping[str, ObservedRun]:
        """Return the observed run of each phase."""
        calls: dict[str, list[OpCall | Region]] = {phase: [] for phase in PHASES}
        for phase, call in self._records.placed:
            calls[phase].append(call)
        return {phase: self._run(of_phase, is_first=phase == FORWARD) for phase, of_phase in calls.items()}

    @property
    def failure(self) -> Exception | None:
        """The error that kept the step from being observed, or None."""
        return self._failure or self._scopes.failure

    def whole_run(self, reason: str = REASON) -> ObservedRun:
        """Return the observed run, all phases together.

        Compiled code that may have run products without a record is an operator of its own in it, of unknown cost.
        """
        calls = [call for _, call in self._records.placed]
        return self._run([*calls, *self._compiled_calls], is_first=True, reason=reason)

    def _run(self, calls: list[OpCall | Region], *, is_first: bool, reason: str = REASON) -> ObservedRun:
        scopes = self._scopes
        return ObservedRun(
            OperatorLog(calls),
            self._names,
            scopes.calls if is_first else Counter(),
            frozenset(scopes.called),
            frozenset(scopes.strays),
            scopes.output_shapes if is_first else {},
            OBSERVER,
            reason or REASON,
            methods=scopes.methods,
        )

    # --- The step -----------------------------------------------------------------------------------------------------

    def _watch(self, undo: ExitStack) -> None:
        """Install all that leaves marks."""
        try:
            undo.enter_context(stepping_aside(self._note_compiled, self._note))
            undo.enter_context(self._scopes.watch())
            undo.enter_context(threads_noted(self._scopes))
            if counts_functions():  # their formulas may ask for results, which no record has
                undo.enter_context(intercept_named(self._scopes.region))
            for owner, name in backward_engine():
                undo.enter_context(replaced(owner, name, self._around_backward))
            for owner, name in stopped_recomputation():
                undo.enter_context(replaced(owner, name, self._around_stop))
            for optimizer in self._optimizers:
                wrap_on_instance(optimizer, "step", functools.partial(self._around_optimizer, optimizer), undo)
            self._watch_compiler(undo)
        except Exception as error:  # noqa: BLE001 - the step is the training's, and is made
            self._note(error)

    def _read(self, result: Any, recording: Recording) -> None:
        if self.failure is not None:
            return
        if result is None:
            self._note(NotRecorded(recording.why or "the step was not seen"))
            return
        try:
            with without_garbage_collection():
                reading = Reading(result, self._marks, self._scopes, self._families, self._owner)
                self._records = reading.read()
                self._read_times(reading, result)
        except Exception as error:  # noqa: BLE001 - the step was the training's, and was made
            self._note(error)

    def _read_times(self, reading: Reading, result: Any) -> None:
        try:
            if self.timed_on is not None:
                times = times_of(reading, device_records(result, self.timed_on))
                # What only launches a device's work says nothing of where its time goes.
                self.times = times if self.timed_on == "cpu" or times.device_ns is not None else None
        except Exception as error:  # noqa: BLE001 - its FLOPs are of use without times
            self.untimed = error

    def _note(self, failure: Exception | None) -> None:
        self._failure = self._failure or failure

    def _around_backward(self, engine: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(engine)
        def run_backward(outputs: Any, *args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != self._thread:
                return engine(outputs, *args, **kwargs)
            # Arguments of `_engine_run_backward`: outputs, grads, `retain_graph`, `create_graph`.
            makes_graph = bool(args[2] if len(args) > 2 else kwargs.get("create_graph"))
            call = functools.partial(engine, outputs, *args, **kwargs)
            outcome = call_once(call, functools.partial(self._see_backward, makes_graph))
            self._note(outcome.failure)
            return outcome.result

        return run_backward

    def _see_backward(self, makes_graph: bool, engine: Callable[[], Any]) -> None:
        is_part_of_forward = self._forwards or self._scopes.current is not ROOT
        detail = backward_detail(FORWARD if is_part_of_forward else BACKWARD, makes_graph=makes_graph)
        with self._marks.over(BACKWARD_MARK, detail):
            engine()

    def _around_stop(self, initialize: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(initialize)
        def stopped(*args: Any, **kwargs: Any) -> Any:
            try:
                self._marks.at(STOPPED)
            except Exception as error:  # noqa: BLE001 - checkpointing is at work
                self._note(error)
            return initialize(*args, **kwargs)

        return stopped

    def _around_optimizer(self, optimizer: Any, step: Callable[..., Any]) -> Callable[..., Any]:
        updates = self._updates

        def closure_of(closure: Any) -> Any:
            """Wrap a closure: its work is forward and backward, not the optimizer's."""
            if not callable(closure):
                return closure

            @functools.wraps(closure)
            def outside(*args: Any, **kwargs: Any) -> Any:
                within = nullcontext if updates is None else updates.lifted
                return self._marked(CLOSURE, functools.partial(closure, *args, **kwargs), within)

            return outside

        @functools.wraps(step)
        def optimizer_step(*args: Any, **kwargs: Any) -> Any:
            args = (closure_of(args[0]), *args[1:]) if args else args
            if "closure" in kwargs:
                kwargs = {**kwargs, "closure": closure_of(kwargs["closure"])}
            within = nullcontext if updates is None else functools.partial(updates.left_out, optimizer)
            return self._marked(OPTIMIZER_MARK, functools.partial(step, *args, **kwargs), within)

        return optimizer_step

    def _marked(self, kind: str, call: Callable[[], Any], within: Callable[[], AbstractContextManager[None]]) -> Any:
        """Make a call of the training's once, in a context and a mark."""

        def around(attempt: Callable[[], Any]) -> None:
            with within(), self._marks.over(kind):
                attempt()

        outcome = call_once(call, around)
        self._note(outcome.failure)
        return outcome.result

    # --- Compiled code ------------------------------------------------------------------------------------------------

    def _note_compiled(self, call: CompiledCall) -> Return | None:
        self.compiled.append(call.name)
        if self._families is None and not call.is_known:
            self._compiled_calls.append(OpCall(COMPILED + call.name, (), UNSEEN, Scope(*self._scopes.here)))
        return self._regions.enter(call)

    def _watch_compiler(self, undo: ExitStack) -> None:
        """Mark what the compiler does, whose operators look like the step's."""
        handler = compilation_callbacks()
        if handler is None:
            undo.callback(lambda: self._note(CompiledCode("for the first time") if is_used() else None))
            return
        open_marks = OpenMarks()

        def begin(_: Any) -> None:
            try:
                mark = self._marks.over(COMPILING)
                mark.__enter__()
                open_marks.marks.append(mark)
            except Exception as error:  # noqa: BLE001 - the compiler is at work
                self._note(error)

        def end(_: Any) -> None:
            try:
                if open_marks.marks:
                    open_marks.marks.pop().__exit__(None, None, None)
            except Exception as error:  # noqa: BLE001 - as above
                self._note(error)

        handler.register_start_callback(begin)
        handler.register_end_callback(end)

        def remove() -> None:
            for callbacks, ours in ((handler.start_callbacks, begin), (handler.end_callbacks, end)):
                if ours in callbacks:
                    callbacks.remove(ours)
                else:  # `torch._dynamo.reset()` forgets them, and what was compiled since looks like the step's
                    self._note(CompiledCode("after a reset of the compiler"))

        undo.callback(remove)


def none_of_the_steps() -> AbstractContextManager[None]:
    """Return a context for work of ours inside a watched step, such as the measurement of a peak."""
    return mark_here(Marks.name_of(0, COMPILING))


def observe_records(
    call: Callable[[], Any], names: ModuleNames, arguments: Any = (), *, reason: str = REASON
) -> tuple[Any, ObservedRun]:
    """Run a call once, and return its result and its operators.

    Args:
        call: the function to run.
        names: the modules to attribute work to.
        arguments: any structure that holds the tensors which the call will use; of sparse ones no record has the
            stored elements.
        reason: why the engine is not the tracer.

    Raises:
        NotRecorded: after the call, if the profiler was not to be had.
        Exception: whatever the call raises.
    """
    abandon_here("a call in it had to be recorded by itself")  # its records are wanted now, not with those of a step
    recorder = StepRecorder(names, arguments=arguments, reads_all=True)
    with recorder.watching(), recorder.on():
        result = call()
    if recorder.failure is not None:
        raise recorder.failure
    run = recorder.whole_run(reason)
    run.calls[""] += 1
    return result, run
