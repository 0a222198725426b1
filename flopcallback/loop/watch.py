"""What a plain loop does, from calls of its model and steps of its optimizers to the recorder's events."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from flopcallback.modules.names import ModuleNames
from flopcallback.modules.outermost import CallSite, outermost_calls
from flopcallback.modules.structures import tensors_in
from flopcallback.profiling.conditions import Conditions
from flopcallback.tracing.in_flight import observe_module_call, together
from flopcallback.tracing.observed import Observed
from flopcallback.tracing.whole_step import StepObserver
from flopcallback.training.failures import Troubles
from flopcallback.training.meter import ComputeMeter
from flopcallback.training.options import Options
from flopcallback.training.ranks import rank_of
from flopcallback.training.recorder import Recorder

__all__ = ["MOST_CALLS", "PHASE", "LoopWatch"]

PHASE = "train"
SEVERAL = 2
MOST_PARTS = 64
LOG_EVERY = 50
MOST_CALLS = 100  # of modules in the call that is counted: each takes memory, and an optimizer may be idle for long

STEP_FAILED = "the training step could not be counted"


class LoopWatch:
    """Tells calls and steps of a loop apart, and has them counted, observed, timed and booked.

    A call ends where its backward begins; with several optimizers, where the step ends. A step ends when each optimizer
    has stepped, or where it is marked. After the window only what is needed to book steps is left.

    Args:
        model: whose calls they are.
        optimizers: whose steps say where a step ends.
        options: what the user has set.
        recorder: is fed.
        meter: the recorder's.
        troubles: where failures go.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        options: Options,
        recorder: Recorder,
        meter: ComputeMeter,
        troubles: Troubles,
    ) -> None:
        self._model = model
        self._optimizers = list(optimizers)
        self._options = options
        self._recorder = recorder
        self._meter = meter
        self._troubles = troubles
        self._names = ModuleNames({"": self._model})
        self._seen: list[tuple[str, Observed]] = []  # of the counted call, by the name of the module that was called
        self._conditions: Conditions | None = None
        self._has_called = self._has_backward = False  # in the call that is counted or timed
        self._modules_called = 0  # in that call
        self._has_begun = False
        self._in_step = self._is_met = self._is_marked = self._is_counted = self._is_light = self._is_done = False
        self._stepped: set[int] = set()
        self._steps = 0
        self._should_stop = False
        self._is_first = False  # the call under way is the first one of its step
        self._in_optimizer = False
        self._is_simple = True  # a step has one call
        self._called_sites: set[str] = set()  # names of the modules that the loop calls
        self._observer: StepObserver | None = None  # of the step that is under way, where it is observed whole
        self._calls = 0  # like the counted one, in that step
        self._on_model, self._on_optimizers, self._watching = ExitStack(), ExitStack(), ExitStack()
        self._on_model.enter_context(outermost_calls(self._names, self._called, self._failed))
        self._numbers = {id(each): number for number, each in enumerate(self._optimizers)}
        for each in self._optimizers:
            self._on_optimizers.callback(each.register_step_pre_hook(self._optimizer_steps).remove)
            self._on_optimizers.callback(each.register_step_post_hook(self._optimizer_stepped).remove)

    @property
    def should_stop(self) -> bool:
        """Whether the budget is spent."""
        if self._steps == 0:  # what was loaded may be all that there was to spend
            self._should_stop = self._recorder.is_spent(0)
        return self._should_stop

    @contextmanager
    def marked_step(self) -> Iterator[None]:
        """Goes around a step; from the first one on, none ends elsewhere."""
        self._is_marked, self._in_step = True, False
        try:
            yield
        except BaseException:
            with self.guarded():
                self.end_call()  # The loop may go on: the next step has a call of its own.
                self._end_watch()
                self._in_step = False
            raise
        with self.guarded():
            self._end_step()
            if not self._is_light:
                self._lighten()

    def close(self, *, wait: bool) -> bool:
        """Ends what is under way, and lets go of the model and the optimizers.

        Args:
            wait: False where a device, or another rank, may never come to the end of its work.

        Returns:
            Whether a training call was seen, or something failed before.
        """
        was_over = self._is_done
        try:
            with self.guarded():
                self.end_call()
                if wait and self._in_step and not self._is_marked:  # no optimizer came to it, or there is none
                    self._end_step(is_whole=False, has_stepped=not self._optimizers)
            with self.guarded():
                self._recorder.close(self._steps, wait=wait)
        finally:
            self._let_go()
            self._on_optimizers.close()
            self._optimizers.clear()
        return self._has_begun or was_over

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Whatever fails inside becomes a warning, and the rest of the loop is left alone."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - the promise: training goes on
            self._give_up(STEP_FAILED, error)

    # --- The loop's events --------------------------------------------------------------------------------------------

    def _called(self, site: CallSite, call: Callable[[], Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A module was called, by none of the model's modules."""
        if not (site.module.training and torch.is_grad_enabled()):
            if site.module is self._model and not self._in_step:
                self._meter.pause()  # evaluation, between two steps
            call()
            return
        self._has_begun = True
        self._called_sites.add(site.name)
        if self._has_backward:
            self.end_call()
            if not self._optimizers and not self._is_marked:
                self._end_step(is_whole=False)
        elif self._modules_called == MOST_CALLS:
            self.end_call()
        if self._is_met:
            self._is_met = False
        else:
            self._meet(args, kwargs)
        try:
            result = self._make(site, call, args, kwargs)
        except BaseException:
            self._call_raised()
            raise
        self._has_called = True
        self._modules_called += 1
        if len(self._optimizers) < SEVERAL:
            self._watch_backward(result)
        if not (self._optimizers or self._is_marked or self._is_light):
            self._lighten()

    def _call_raised(self) -> None:
        """Where a step began with a call that raised, it did not begin: the loop may leave it, and go on."""
        if self._is_first:
            self._in_step = self._has_called = False
            with self.guarded():
                self._end_watch()

    def _passes(self, site: CallSite, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Books a call after the window; whether that is all there is to do about it, as in most loops.

        Where a loop calls the model twice in a step, what lies between has to be known, from there on.
        """
        if not (self._is_simple and site.module.training and torch.is_grad_enabled()):
            return False
        if self._in_step:
            self._is_simple = False
            # Micro-batches are more often than forwards that share a backward.
            self._has_backward = len(self._optimizers) < SEVERAL
            return False
        self._meet(args, kwargs)
        self._is_met = self._observer is not None
        self._has_called = True
        self._modules_called = 1
        return not self._is_met

    def _optimizer_steps(self, *_: Any) -> None:
        self._in_optimizer = True

    def _optimizer_stepped(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self._in_optimizer = False
        if self._is_done:
            return
        number = self._numbers[id(optimizer)]
        self._meter.stepped.append(number)
        if self._is_marked:
            return
        self._stepped.add(number)
        if len(self._stepped) == len(self._optimizers):
            try:
                self._end_step()
                if not self._is_light:
                    self._lighten()
            except Exception as error:  # noqa: BLE001 - as `guarded`, which takes longer
                self._give_up(STEP_FAILED, error)

    def _failed(self, site: CallSite, error: Exception) -> None:
        self._give_up(f"the call of {site.name or type(site.module).__name__} could not be counted", error)

    # --- Inside -----------------------------------------------------------------------------------------------------

    def _make(self, site: CallSite, call: Callable[[], Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self._is_counted:
            return self._count(site, call, args, kwargs)
        if self._observer is None:
            return self._time(call)
        self._calls += not self._has_called
        with self._meter.inside(), self._observer.on():
            return call()

    def _count(self, site: CallSite, call: Callable[[], Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._conditions is None:
            self._names = ModuleNames({"": self._model})  # it may have others than when the hook was made
            if rank_of() != 0:  # there may have been no process group then, and nobody who said
                self._recorder.mute()
            batch = args[0] if args else kwargs
            self._conditions = self._options.conditions(
                PHASE, self._model, batch, self._troubles, inputs=(args, kwargs)
            )
        with self._meter.inside():
            observed = observe_module_call(site, call, self._names, args, kwargs)
        self._seen.append((site.name, dataclasses.replace(observed, result=None)))  # the loop's to keep or to drop
        return observed.result

    def _time(self, call: Callable[[], Any]) -> Any:
        try:
            with self._recorder.timed_call(continues=self._has_called):
                return call()
        except BaseException:
            self._has_called = False  # Its time was dropped: there is nothing to go on with.
            raise

    def _watch_backward(self, result: Any) -> None:
        """Has the first backward through any of the tensors in `result` note that it began."""

        def began(_: Any) -> None:
            self._has_backward = True

        for tensor in tensors_in(result):
            for each in (tensor, tensor._base):  # a write to a view gives it another node, and leaves that of its base
                if each is not None and each.grad_fn is not None:
                    each.grad_fn.register_prehook(began)

    def end_counted_call(self) -> None:
        """Somebody asks for the profile: the call that is counted ends, if one is."""
        if not self._is_counted:
            self.end_call()

    def end_call(self) -> None:
        """What was counted or timed since the last backward, or the last step, is complete."""
        has_called, self._has_called = self._has_called, False
        self._has_backward, self._modules_called = False, 0
        if not has_called or self._is_counted:
            return
        observed = together(self._seen)
        self._seen = []
        assert self._conditions is not None
        self._recorder.record(observed, self._model, self._conditions, what="the training call", is_timed=True)
        self._is_counted = True

    def _meet(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The model is called in a step; the first call begins it."""
        inputs, is_first = (args, kwargs), not self._in_step
        self._is_first = is_first
        if is_first:
            self._in_step = True
            self._meter.begin_step()
        # What an optimizer calls again, as L-BFGS does, has seen its batch before.
        is_new = not self._has_called and (is_first or not self._in_optimizer)
        self._meter.add_call(inputs, args[0] if args else kwargs, is_new=is_new)
        if not self._has_called:
            self._meter.backwards += 1  # that it comes to, for each batch
        if not is_first:
            self._is_simple = False
            return
        if not self._is_counted:
            self._meter.leave_out()
            return
        self._observer = self._recorder.step_observer(inputs, self._optimizers)
        if self._observer is None:
            self._recorder.begin_step()
        else:
            self._watching.enter_context(self._observer.watching())

    def _end_watch(self) -> None:
        """The step is not observed any more, if it was."""
        self._watching.close()
        self._observer, self._calls = None, 0

    def _end_step(self, *, is_whole: bool = True, has_stepped: bool = True) -> None:
        self.end_call()
        if self._observer is not None:
            observer, calls = self._observer, self._calls
            self._end_watch()
            self._recorder.record_step(observer, calls)
        self._stepped.clear()
        step, self._steps = self._steps, self._steps + has_stepped
        if self._in_step:
            self._in_step = False
            is_log_step = (step + 1) % (self._options.log_every_n_steps or LOG_EVERY) == 0
            self._recorder.end_step(step, is_whole=is_whole, has_stepped=has_stepped, is_log_step=is_log_step)
            if self._options.max_hw_flops is not None:
                self._should_stop = self._recorder.is_spent(step)

    def _lighten(self) -> None:
        """Once nothing is timed any more, only modules that the loop calls are watched; not while one is called."""
        if self._is_counted and not self._recorder.is_busy:
            self._is_light = True
            self._is_simple &= bool(self._optimizers or self._is_marked)  # something says where a step ends
            self._on_model.close()
            wrappers = outermost_calls(
                self._names,
                self._called,
                self._failed,
                only={*self._called_sites, *self._likely_sites()},
                passes=self._passes,
                raised=self._call_raised,
            )
            self._on_model.enter_context(wrappers)

    def _likely_sites(self) -> set[str]:
        """The model and its parts, which a loop may come to call later: the head alone, or a GAN's other network."""
        parts = [name for name, _ in self._model.named_children()]
        return {"", *parts[:MOST_PARTS]}

    def _let_go(self) -> None:
        """Leaves the model alone; nothing more is booked.

        The optimizers' hooks stay until the hook is closed: this may run inside of one.
        """
        self._is_done = True
        self._watching.close()
        self._on_model.close()

    def _give_up(self, what: str, error: Exception) -> None:
        """Leaves the rest of the loop alone."""
        self._let_go()
        self._recorder.stop_metering()
        self._troubles.report(what, error)
