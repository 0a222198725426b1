"""FlopCallback: Lightning's events, translated into the recorder's."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from flopcallback.counting.in_flight import (
    Observed,
    call_within,
    observe_beside,
    observe_each_call,
    observe_in_flight,
)
from flopcallback.counting.outermost import is_compiled
from flopcallback.counting.run import DISPATCH, TRACE
from flopcallback.counting.scopes import ModuleNames, wrap_on_instance
from flopcallback.profiling import Convention, conditions_of
from flopcallback.recorder import Recorder, Troubles
from flopcallback.reporting import ModelProfile
from flopcallback.trackers import LocalTracker, NoTrackerError, Tracker, tracker_for

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer

__all__ = ["FlopCallback"]

TRAINING = "train"
EVALUATION_REASON = "evaluation is watched from below, where PyTorch's fast paths stay on"
STEP_ROW = "(training_step)"


def _callback_class() -> type[Any]:
    """The `Callback` of the flavour that is in use; trainers of either flavour run a callback of the other."""
    flavours = ("lightning.pytorch", "pytorch_lightning")
    for flavour in sorted(flavours, key=lambda name: name not in sys.modules):
        if find_spec(flavour.partition(".")[0]) is not None:
            try:
                module = __import__(flavour, fromlist=["Callback"])
            except ImportError:
                continue
            if hasattr(module, "Callback"):
                return module.Callback  # type: ignore[no-any-return]
    raise ModuleNotFoundError(
        "FlopCallback needs Lightning, under either name: pip install 'flopcallback[lightning]' "
        "(or: pip install pytorch-lightning)",
        name="lightning",
    )


if not TYPE_CHECKING:
    Callback = _callback_class()

Hook = TypeVar("Hook", bound=Callable[..., None])


def _guarded(hook: Hook) -> Hook:
    """Whatever a hook of ours fails at becomes one warning; from there on the run is left alone."""

    @functools.wraps(hook)
    def guarded(self: FlopCallback, *args: Any, **kwargs: Any) -> None:
        if self._gave_up:
            return
        try:
            hook(self, *args, **kwargs)
        except Exception as error:  # noqa: BLE001 - the promise: training goes on
            self._give_up(f"{hook.__name__} failed", error)

    return guarded  # type: ignore[return-value]


class FlopCallback(Callback):
    """Counts the first training step as it happens, times the next ones, and shows both in the trainer's loggers.

    The first call of `training_step` is observed in flight: it is called once, as always, and its results are handed
    on. Then the forwards of the modules are timed for `latency_steps` steps. Nothing stays on the modules. Whatever
    fails in here becomes one `FlopCallbackWarning`, and training goes on.

    `trainer.validate`, `test` and `predict` make a profile of their own, of their first batch.

    Args:
        fma: how many FLOPs a multiply-add is, 1 or 2.
        elementwise: whether elementwise operators and reductions count.
        warmup_steps: steps after the counted one that are not timed.
        latency_steps: steps after those that are; 0 times nothing.
        batch_size_fn: from a batch to its number of samples; by default what the batch's tensors agree on as their
            first dimension.
        prefix: stands in front of all names.
        report_dir: a folder for the report's files. Without one, files are written only where no logger of the
            trainer has a tracker: to `flopcallback/` in the logger's or the trainer's folder.
        summary: print a line, once and on rank 0, or the whole table where no logger can show it.
        strict: raise what fails instead of warning.

    Attributes:
        profiles: the latest `ModelProfile` by phase: `"train"`, `"validate"`, `"test"`, `"predict"`.

    Raises:
        ValueError: `fma` is neither 1 nor 2, or a number of steps is negative.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from flopcallback import FlopCallback
        >>> trainer = Trainer(callbacks=[FlopCallback()])
    """

    def __init__(
        self,
        *,
        fma: int = 1,
        elementwise: bool = False,
        warmup_steps: int = 5,
        latency_steps: int = 20,
        batch_size_fn: Callable[[Any], int] | None = None,
        prefix: str = "",
        report_dir: str | Path | None = None,
        summary: bool = True,
        strict: bool = False,
    ) -> None:
        if fma not in (1, 2) or isinstance(fma, bool):
            raise ValueError(f"FlopCallback: fma is {fma!r}, expected 1 (a multiply-add is one FLOP) or 2 (it is two)")
        for name, value in (("warmup_steps", warmup_steps), ("latency_steps", latency_steps)):
            if value < 0:
                raise ValueError(f"FlopCallback: {name} is {value!r}, expected 0 or more")
        self._convention = Convention(fma, elementwise)
        self._steps = (warmup_steps, latency_steps)
        self._batch_size_fn = batch_size_fn
        self._prefix = prefix
        self._report_dir = report_dir
        self._summary = summary
        self._troubles = Troubles(strict=strict)
        self._profiles: dict[str, ModelProfile] = {}
        self._recorder: Recorder | None = None
        self._wrapped = ExitStack()
        self._is_logged = self._gave_up = False

    @property
    def profiles(self) -> Mapping[str, ModelProfile]:
        """The latest profile of each phase."""
        return MappingProxyType(self._profiles)

    # --- Lightning's events -----------------------------------------------------------------------------------------

    @_guarded
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Puts a watch around the first step, and a clock around later ones."""
        self._unwrap()
        recorder = self._recorder_for(trainer)
        if TRAINING not in recorder.profiles:
            self._wrap(pl_module, "training_step", functools.partial(self._watched, pl_module, TRAINING))
        elif recorder.is_timing:
            self._wrap(pl_module, "training_step", functools.partial(self._timed, pl_module))
            recorder.begin_step()

    @_guarded
    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Logs the profile after the first step, the times after the last one of the window."""
        self._unwrap()
        if self._recorder is not None:
            self._log(trainer, TRAINING)
            self._recorder.end_step(_step(trainer))
            self._profiles.update(self._recorder.profiles)

    @_guarded
    def on_train_epoch_end(self, *_: Any) -> None:
        """Takes away a watch that no step came to: another callback's `on_train_batch_start` may skip the epoch."""
        self._unwrap()

    @_guarded
    def on_train_end(self, trainer: Trainer, *_: Any) -> None:
        """Logs what a short training has timed."""
        self._unwrap()
        if self._recorder is not None:
            self._recorder.close(_step(trainer))
            self._profiles.update(self._recorder.profiles)

    @_guarded
    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Puts a watch around the first step of `trainer.validate`; not around validation within `fit`."""
        self._watch_evaluation(trainer, pl_module, "validate", "validation_step")

    @_guarded
    def on_test_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Puts a watch around the first step of `trainer.test`."""
        self._watch_evaluation(trainer, pl_module, "test", "test_step")

    @_guarded
    def on_predict_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Puts a watch around the first step of `trainer.predict`."""
        self._watch_evaluation(trainer, pl_module, "predict", "predict_step")

    @_guarded
    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Logs the profile of the first step of `trainer.validate`."""
        self._log_evaluation(trainer, "validate")

    @_guarded
    def on_test_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Logs the profile of the first step of `trainer.test`."""
        self._log_evaluation(trainer, "test")

    @_guarded
    def on_predict_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Logs the profile of the first step of `trainer.predict`."""
        self._log_evaluation(trainer, "predict")

    def on_exception(self, *_: Any) -> None:
        """Takes away what stands around a step that did not come to its end."""
        self._unwrap()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """A new `fit`, `validate`, `test` or `predict` begins, with nothing known of an earlier one."""
        self._start_afresh()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lets go of the model and of the loggers."""
        self._start_afresh()

    # --- Inside -----------------------------------------------------------------------------------------------------

    def _start_afresh(self) -> None:
        self._unwrap()
        self._recorder = None
        self._is_logged = self._gave_up = False

    def _give_up(self, what: str, error: Exception) -> None:
        """Leaves the rest of this run alone."""
        self._start_afresh()
        self._gave_up = True
        self._troubles.report(what, error)

    def _watch_evaluation(self, trainer: Trainer, pl_module: LightningModule, phase: str, method: str) -> None:
        self._unwrap()
        if trainer.state.fn == phase and phase not in self._recorder_for(trainer).profiles:
            self._wrap(pl_module, method, functools.partial(self._watched, pl_module, phase))

    def _log_evaluation(self, trainer: Trainer, phase: str) -> None:
        self._unwrap()
        if self._recorder is not None and trainer.state.fn == phase and not self._is_logged:
            self._log(trainer, phase)
            self._recorder.close(_step(trainer))

    def _log(self, trainer: Trainer, phase: str) -> None:
        recorder = self._recorder
        if recorder is not None and not self._is_logged and phase in recorder.profiles:
            self._is_logged = True
            recorder.log(phase, _step(trainer))

    def _wrap(self, pl_module: LightningModule, name: str, step: Callable[..., Any]) -> None:
        def wrap(method: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(method)
            def wrapped(*args: Any, **kwargs: Any) -> Any:
                return step(method, args, kwargs)

            return wrapped

        wrap_on_instance(pl_module, name, wrap, self._wrapped)

    def _unwrap(self) -> None:
        self._wrapped.close()

    def _watched(
        self,
        pl_module: LightningModule,
        phase: str,
        method: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Makes the step's call, once, and observes it."""
        self._unwrap()
        call = functools.partial(method, *args, **kwargs)
        try:
            observe = _way_to_observe(pl_module, phase, method, args, kwargs)
        except Exception as error:  # noqa: BLE001 - ours, and the step has not begun
            self._give_up(f"the {phase} step could not be counted", error)
            return call()
        observed = observe(call)
        self._take(observed, pl_module, phase, args, kwargs)
        return observed.result

    def _take(self, observed: Observed, pl_module: LightningModule, phase: str, args: Any, kwargs: Any) -> None:
        if not observed.runs:
            error = observed.failure or RuntimeError("no module was called in it")
            self._give_up(f"the {phase} step could not be counted", error)
            return
        if observed.failure is not None:
            what = f"the {phase} step was counted by PyTorch's dispatcher, since the tracer could not"
            self._troubles.report(what, observed.failure)
        try:
            assert self._recorder is not None
            batch = args[0] if args else kwargs
            size = None if self._batch_size_fn is None else self._batch_size_fn(batch)
            conditions = conditions_of(phase, pl_module, batch, batch_size=size, step_row=f"({_METHODS[phase]})")
            self._recorder.record(observed, pl_module, conditions, is_timed=phase == TRAINING)
            self._profiles.update(self._recorder.profiles)
        except Exception as error:  # noqa: BLE001 - the step is under way
            self._give_up(f"the {phase} step was counted, but its profile could not be made", error)

    def _timed(
        self, pl_module: LightningModule, method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Makes the step's call and times it."""
        call = functools.partial(method, *args, **kwargs)
        if self._recorder is None:
            return call()
        # Under manual optimisation the step is backward and optimizer too: the forwards in it are timed apart.
        is_forward = bool(pl_module.automatic_optimization)
        observed = call_within(lambda: self._recorder.timed_call(is_forward=is_forward), call)
        if observed.failure is not None:
            self._give_up("a training step could not be timed", observed.failure)
        return observed.result

    # --- Lightning's side of the recorder ---------------------------------------------------------------------------

    def _recorder_for(self, trainer: Trainer) -> Recorder:
        if self._recorder is None:
            warmup, steps = self._steps
            self._recorder = Recorder(
                self._trackers(trainer),
                convention=self._convention,
                warmup_steps=warmup,
                latency_steps=steps,
                prefix=self._prefix,
                show=functools.partial(_show, trainer) if self._summary and trainer.is_global_zero else None,
                troubles=self._troubles,
            )
        return self._recorder

    def _trackers(self, trainer: Trainer) -> dict[str, Tracker]:
        """A tracker for each of the trainer's loggers that has one; files, where none has. None on other ranks."""
        trackers: dict[str, Tracker] = {}
        if not trainer.is_global_zero:
            return trackers
        for logger in trainer.loggers:
            name = f"{type(logger).__name__} ({_folder(logger) or logger.name})"
            try:
                trackers[name] = tracker_for(logger, prefix=self._prefix)
            except NoTrackerError:
                continue
            except Exception as error:  # noqa: BLE001 - the other loggers get theirs
                self._troubles.report(f"the logger {name} gets nothing", error)
        if self._report_dir is not None or not trackers:
            folders = (folder for folder in map(_folder, trainer.loggers) if folder)
            own = Path(next(folders, trainer.default_root_dir)) / "flopcallback"
            folder = own if self._report_dir is None else Path(self._report_dir)
            trackers[str(folder)] = LocalTracker(folder)
        return trackers


_METHODS = {"train": "training_step", "validate": "validation_step", "test": "test_step", "predict": "predict_step"}


def _way_to_observe(
    pl_module: LightningModule, phase: str, method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Callable[[Callable[[], Any]], Observed]:
    """How the call of a step is observed without changing what it does.

    Whole and in flight. Where it contains a backward (manual optimisation), module by module. Where a module is
    compiled, that module's call is counted beside the real one, uncompiled: an observed step would not be compiled, or
    would be compiled once more. Where Lightning's module as a whole is compiled, so is the step.
    """
    names = ModuleNames({"": pl_module})
    if pl_module._compiler_ctx is not None:
        counted = functools.partial(_uncompiled, pl_module, _METHODS[phase])
        return lambda call: observe_beside(method, counted, names, args, kwargs)
    results = pl_module.trainer._results  # what `self.log` keeps
    keep = () if results is None else (results, *results.values())
    engine, reason = (TRACE, "") if phase == TRAINING else (DISPATCH, EVALUATION_REASON)
    is_whole = (phase != TRAINING or pl_module.automatic_optimization) and not any(map(is_compiled, pl_module.modules()))
    if is_whole:
        return lambda call: observe_in_flight(call, names, (args, kwargs), engine=engine, reason=reason, keep=keep)
    return lambda call: observe_each_call(call, names, engine=engine, reason=reason, keep=keep)


def _uncompiled(pl_module: LightningModule, name: str, *args: Any, **kwargs: Any) -> Any:
    """Calls a step of a compiled LightningModule as it was written, and logs nothing."""
    own, originals = vars(pl_module), pl_module._compiler_ctx
    with ExitStack() as undo:
        undo.callback(own.update, {name: own[name] for name in own.keys() & {*_METHODS.values(), "forward"}})
        for method in ("log", "log_dict"):
            undo.callback(own.pop, method)
            own[method] = _log_nothing
        own.update({name: originals[f"original_{name}"] for name in ("forward", *_METHODS.values())})
        return getattr(pl_module, name)(*args, **kwargs)


def _log_nothing(*_: Any, **__: Any) -> None:
    """In place of `self.log`, in a call that is made for its count alone."""


def _step(trainer: Trainer) -> int:
    """Lightning's own x-axis: batches after which an optimizer stepped (`global_step` counts each optimizer's)."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def _folder(logger: Any) -> str | None:
    return getattr(logger, "log_dir", None) or getattr(logger, "save_dir", None)


def _show(trainer: Trainer, text: str) -> None:
    """Prints past the progress bar: tqdm's would be torn apart by a plain print."""
    bar = trainer.progress_bar_callback
    if bar is not None and bar.is_enabled and hasattr(bar, "train_progress_bar"):
        bar.print(text)
    else:
        sys.stdout.write(text + "\n")
