"""FlopHook: a plain loop's events, translated into the recorder's."""

from __future__ import annotations

import dataclasses
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flopcallback.batches import first_dimension, tensors_in
from flopcallback.counting.attempt import Observed
from flopcallback.counting.in_flight import observe_module_call, together
from flopcallback.counting.outermost import CallSite, outermost_calls
from flopcallback.counting.scopes import ModuleNames
from flopcallback.counting.whole_step import StepObserver
from flopcallback.loop_objects import optimizers_of, unwrapped
from flopcallback.options import Options
from flopcallback.profiling import Conditions
from flopcallback.ranks import rank_of
from flopcallback.recorder import Recorder
from flopcallback.reporting import ModelProfile
from flopcallback.trackers import Tracker, new_name, tracker_for
from flopcallback.troubles import FlopCallbackWarning, Troubles

__all__ = ["FlopHook"]

PHASE = "train"
REPORT = Path("flopcallback_report")
SEVERAL = 2
LOG_EVERY = 50
MOST_CALLS = 100  # of modules in the call that is counted: each takes memory, and an optimizer may be idle for long

STEP_FAILED = "the training step could not be counted"

NOTHING_SEEN = (
    "FlopHook: no training call of {} was seen. It counts calls with grad enabled and model.training, made in the "
    "thread that made the hook. With torch.compile, make the hook after it, of what it returned."
)


class FlopHook:
    """Counts the first training step of a plain loop as it happens, times the next ones, and shows both in trackers.

    Nothing else in the loop changes. The first training call of the model (grad enabled, `model.training`) is observed
    in flight: it is made once, as always, and its results are handed on. It ends where its backward begins; with
    several optimizers, where the step ends, so that the parts of a GAN are counted together. Then forwards and steps
    are timed for `latency_steps` steps. As training goes on, every step is booked by its shapes, and compute so far and
    throughput are logged; for that, until `close`, the calls that the loop makes itself pass through here, and the ends
    of its optimizers' steps. Whatever fails in here becomes one `FlopCallbackWarning`, and training goes on.

    A step ends when the optimizer has stepped; with several, when each of them has. Where that is not what a step is,
    or where there is no optimizer, `with hook.step():` marks steps. With neither, calls are timed and steps are not.

    Make it after `torch.compile`, of what the loop calls, and in the thread that trains.

    Args:
        model: whose modules are told apart. What `DistributedDataParallel` or `DataParallel` wraps is taken out of it,
            so that names are those of a single process.
        optimizer: one, or a list of several.
        to: where to show it: a W&B run, a `SummaryWriter`, `"mlflow"` or `(MlflowClient(), run_id)`, a Lightning
            logger, a folder, a `Tracker`, or a list of these. Runs and writers stay the caller's. None shows it
            nowhere: `metrics()` and `profile` have it.
        fma: how many FLOPs a multiply-add is, 1 or 2.
        elementwise: whether elementwise operators and reductions count.
        warmup_steps: steps after the counted one that are not timed.
        latency_steps: steps after those that are; 0 times nothing.
        log_every_n_steps: steps between two logs of compute so far and throughput; by default 50.
        max_hw_flops: a budget of hardware FLOPs, of all ranks together; `should_stop` is True from the end of the step
            that spends them, or of the second one, since the first is counted by its forward alone. A compiled model's
            steps are estimated. Several ranks keep it to the step while none takes 16 times what any took before.
        peak_flops: dense peak of the device in FLOP/s, to hold achieved ones against; by default what is known of the
            device. `"measure"` measures it once by a matrix product.
        batch_size_fn: from the first argument of the model (its keyword arguments where it has none) to its number of
            samples; by default what the tensors given to the model agree on as their first dimension.
        tokens_fn: from the same to its number of tokens; by default the elements of `input_ids`,
            where there is one.
        flops_fn: from the same to the hardware FLOPs of a step with it, in place of what would be counted.
        prefix: stands in front of all names.
        report_dir: a folder for the report's files, besides what `to` says.
        summary: print a line, once and on rank 0, or the whole table where `to` is folders alone.
        strict: raise what fails instead of warning.

    Raises:
        ValueError: an argument is not what it is to be.
        TypeError: `model` is no module, `optimizer` no optimizer of PyTorch's, or no tracker takes what `to` is.
        ImportError: a package is missing that a tracker needs.

    Example:
        >>> import torch
        >>> from flopcallback import FlopHook
        >>> model = torch.nn.Linear(5, 3)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with FlopHook(model, optimizer, summary=False) as hook:
        ...     for _ in range(3):
        ...         loss = model(torch.ones(2, 5)).sum()
        ...         loss.backward()
        ...         optimizer.step()
        ...         optimizer.zero_grad()
        >>> hook.metrics()["flops/forward"]  # 2 * 5 * 3
        30
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None = None,
        *,
        to: Any = None,
        fma: int = 1,
        elementwise: bool = False,
        warmup_steps: int = 5,
        latency_steps: int = 20,
        log_every_n_steps: int | None = None,
        max_hw_flops: float | None = None,
        peak_flops: float | str | None = None,
        batch_size_fn: Callable[[Any], int] | None = None,
        tokens_fn: Callable[[Any], int] | None = None,
        flops_fn: Callable[[Any], int] | None = None,
        prefix: str = "",
        report_dir: str | Path | None = None,
        summary: bool = True,
        strict: bool = False,
    ) -> None:
        self._options = options = Options(
            "FlopHook",
            fma=fma,
            elementwise=elementwise,
            warmup_steps=warmup_steps,
            latency_steps=latency_steps,
            log_every_n_steps=log_every_n_steps,
            max_hw_flops=max_hw_flops,
            peak_flops=peak_flops,
            batch_size_fn=batch_size_fn,
            tokens_fn=tokens_fn,
            flops_fn=flops_fn,
            prefix=prefix,
            report_dir=report_dir,
            summary=summary,
            strict=strict,
        )
        self._model = unwrapped(model)
        self._optimizers = optimizers_of(optimizer)
        self._troubles = Troubles(strict=strict)
        is_logging = rank_of() == 0
        self._meter = options.meter(self._model, first_dimension, self._troubles)
        self._recorder = Recorder(
            self._trackers(to) if is_logging else {},
            meter=self._meter,
            convention=options.convention,
            warmup_steps=warmup_steps,
            latency_steps=latency_steps,
            prefix=prefix,
            show=_print if summary and is_logging else None,
            troubles=self._troubles,
            fallback=options.report_dir or REPORT,
        )
        self._names = ModuleNames({"": self._model})
        self._seen: list[tuple[str, Observed]] = []  # of the counted call, by the name of the module that was called
        self._conditions: Conditions | None = None
        self._has_called = self._has_backward = False  # in the call that is counted or timed
        self._modules_called = 0  # in that call
        self._has_begun = False
        self._in_step = self._is_met = self._is_marked = self._is_counted = self._is_light = self._is_done = (
            self._is_closed
        ) = False
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

    # --- What a user asks for -----------------------------------------------------------------------------------------

    @property
    def profile(self) -> ModelProfile | None:
        """The profile of the first training call, with times once they are in; None before. Asking ends that call."""
        with self._guarded():
            self._end_call()
        return self._recorder.profiles.get(PHASE)

    def metrics(self) -> dict[str, int | float]:
        """The numbers that are known by now, by name, to merge into what the loop logs itself; integers are exact.

        Example:
            >>> wandb.log({"loss": loss, **hook.metrics()}, step=step)  # doctest: +SKIP
        """
        profile = self.profile
        scalars = {} if profile is None else profile.scalars()
        scalars |= self._recorder.numbers
        return {self._options.prefix + name: value for name, value in scalars.items()}

    @property
    def should_stop(self) -> bool:
        """Whether `max_hw_flops` are spent, by all ranks together; the same on all ranks after the same step.

        Example:
            >>> for x, y in loader:  # doctest: +SKIP
            ...     ...
            ...     if hook.should_stop:
            ...         break
        """
        if self._steps == 0:  # what was loaded may be all that there was to spend
            self._should_stop = self._recorder.is_spent(0)
        return self._should_stop

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps, for `load_state_dict`: compute so far, of all ranks.

        Every rank has to call it, after the same step: the first one waits for the others, for seconds at most, and
        warns of those that did not come. What it gets is to be saved; others get no compute.
        """
        with self._troubles.reported("a checkpoint has no compute so far"):
            return {"compute": self._meter.state()}
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state_dict` gave, on any number of ranks; before the first step, and on every rank."""
        with self._troubles.reported("compute so far begins anew"):
            self._meter.load(state.get("compute", {}))

    @contextmanager
    def step(self) -> Iterator[None]:
        """Goes around each step of a loop whose steps are not what its optimizers say."""
        self._is_marked, self._in_step = True, False
        try:
            yield
        except BaseException:
            with self._guarded():
                self._end_call()  # The loop may go on: the next step has a call of its own.
                self._end_watch()
                self._in_step = False
            raise
        with self._guarded():
            self._end_step()
            if not self._is_light:
                self._lighten()

    def close(self) -> None:
        """Logs what a short loop has timed, and lets go of the model and the optimizers; again, it does nothing."""
        self._close(wait=True)

    def __enter__(self) -> FlopHook:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if error is None:
            self.close()
            return
        try:  # No waiting for a device that may be dead, and nothing raised: the loop's own error is on its way.
            self._close(wait=False)
        except Exception as ours:  # noqa: BLE001
            self._troubles.note("the report of a training that ended early is not complete", ours)

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
            self._end_call()
            if not self._optimizers and not self._is_marked:
                self._end_step(is_whole=False)
        elif self._modules_called == MOST_CALLS:
            self._end_call()
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
            with self._guarded():
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
            except Exception as error:  # noqa: BLE001 - as `_guarded`, which takes longer
                self._give_up(STEP_FAILED, error)

    def _failed(self, site: CallSite, error: Exception) -> None:
        self._give_up(f"the call of {site.name or type(site.module).__name__} could not be counted", error)

    # --- Inside -------------------------------------------------------------------------------------------------------

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

    def _end_call(self) -> None:
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
        self._end_call()
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
                only=self._called_sites,
                passes=self._passes,
                raised=self._call_raised,
            )
            self._on_model.enter_context(wrappers)

    def _let_go(self) -> None:
        """Leaves the model alone; nothing more is booked.

        The optimizers' hooks stay until the hook is closed: this may run inside of one.
        """
        self._is_done = True
        self._watching.close()
        self._on_model.close()

    def _close(self, *, wait: bool) -> None:
        if self._is_closed:
            return
        self._is_closed, was_over = True, self._is_done
        try:
            with self._guarded():
                self._end_call()
                if wait and self._in_step and not self._is_marked:  # no optimizer came to it, or there is none
                    self._end_step(is_whole=False, has_stepped=not self._optimizers)
            with self._guarded():
                self._recorder.close(self._steps, wait=wait)
        finally:
            self._let_go()
            self._on_optimizers.close()
            self._optimizers.clear()
        if wait and not self._has_begun and not was_over:
            warnings.warn(NOTHING_SEEN.format(type(self._model).__name__), FlopCallbackWarning, stacklevel=3)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 - the promise: training goes on
            self._give_up(STEP_FAILED, error)

    def _give_up(self, what: str, error: Exception) -> None:
        """Leaves the rest of the loop alone."""
        self._let_go()
        self._recorder.stop_metering()
        self._troubles.report(what, error)

    def _trackers(self, to: Any) -> dict[str, Tracker]:
        """A tracker for each target, by a name that says where it goes."""
        targets = to if isinstance(to, list) else [] if to is None else [to]
        if self._options.report_dir is not None:
            targets = [*targets, Path(self._options.report_dir)]
        trackers: dict[str, Tracker] = {}
        for target in targets:
            trackers[new_name(target, trackers)] = tracker_for(target, prefix=self._options.prefix)
        return trackers


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")
