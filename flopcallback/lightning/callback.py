"""FlopCallback: the door for Lightning."""

from __future__ import annotations

import functools
import importlib
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from flopcallback.lightning.loggers import report_folder, trackers_of
from flopcallback.lightning.metrics import MetricsByCompute
from flopcallback.lightning.step import METHODS, samples_in
from flopcallback.lightning.watch import StepWatch
from flopcallback.reporting import ModelProfile
from flopcallback.trackers import LocalTracker
from flopcallback.training.failures import Failures, FlopCallbackWarning
from flopcallback.training.options import Options
from flopcallback.training.training import TRAINING, Plan, Training

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer

__all__ = ["FlopCallback"]


def _callback_class() -> type[Any]:
    """The `Callback` of the flavour that is in use; trainers of either flavour run a callback of the other."""
    flavours = ("lightning.pytorch", "pytorch_lightning")
    missing: Exception | None = None
    for flavour in sorted(flavours, key=lambda name: name not in sys.modules):
        try:
            # Asked for by name: a folder of that name would be imported as an empty namespace.
            return importlib.import_module(flavour).Callback  # type: ignore[no-any-return]
        except (ModuleNotFoundError, AttributeError) as error:
            missing = missing or error
    raise ModuleNotFoundError(
        "FlopCallback needs Lightning, under either of its names: pip install 'flopcallback[lightning]', "
        "or pip install pytorch-lightning",
        name="lightning",
    ) from missing


if not TYPE_CHECKING:
    Callback = _callback_class()

UNSEEN = (
    "FlopCallback: no training step was seen, so none is counted: compiled code ({}) makes it, which is run as it is "
    "and not looked into. With a compiled optimizer, optimize by hand: `automatic_optimization = False`."
)

LIVE = frozenset({"_training", "_files", "_watch", "log", "log_dict"})
"""What of a callback belongs to the training under way; the last two are the module's, which Lightning lends."""

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
    on. Then the forwards of the modules are timed for `latency_steps` steps. Nothing stays on the modules. As training
    goes on, every step is booked by its shapes: compute so far and throughput are logged, and checkpoints keep compute.
    Whatever fails in here becomes one `FlopCallbackWarning`, and training goes on.

    `trainer.validate`, `test` and `predict` make a profile of their own, of their first batch.

    Args:
        fma: how many FLOPs a multiply-add is, 1 or 2.
        elementwise: whether elementwise operators and reductions count.
        warmup_steps: steps after the counted one that are not timed.
        latency_steps: steps after those that are; 0 times nothing.
        log_every_n_steps: steps between two logs of compute so far and throughput; by default the
            trainer's.
        max_hw_flops: a budget of hardware FLOPs, of all ranks together; training stops at the end of the step that
            spends them, or of the second one, since the first is counted by its forward alone; not before the
            trainer's `min_steps` and `min_epochs`. A compiled model's steps are estimated. Several ranks keep it to the
            step while none takes 16 times what any took before.
        peak_flops: dense peak of the device in FLOP/s, to hold achieved ones against; by default what is known of the
            device. `"measure"` measures it once by a matrix product.
        batch_size_fn: from a batch to its number of samples; by default what the batch's tensors agree on as their
            first dimension, and for sums what Lightning takes them for.
        tokens_fn: from a batch to its number of tokens; by default the elements of `input_ids`,
            where there is one.
        flops_fn: from a batch to the hardware FLOPs of a step with it, in place of what would be counted.
        by_compute: names of metrics that the module logs and that are to have compute so far as their x-axis, such
            as `["val/loss"]`. W&B draws them so itself; other trackers get a copy, `val/loss_by_compute`, whose step is
            hardware FLOPs in millions.
        prefix: stands in front of all names.
        report_dir: a folder for the report's files. Without one, files are written only where no logger of the
            trainer has a tracker: to `flopcallback_report/` in the logger's or the trainer's folder.
        summary: print a line, once and on rank 0, or the whole table where no logger can show it.
        strict: raise what fails instead of warning.

    Attributes:
        profiles: the latest `ModelProfile` by phase: `"train"`, `"validate"`, `"test"`, `"predict"`.

    Raises:
        ValueError: an argument is not what it is to be: `fma` neither 1 nor 2, a number of steps that is negative or no
            whole number, a `prefix` that is no string, ...

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from flopcallback import FlopCallback
        >>> trainer = Trainer(callbacks=[FlopCallback()])
    """

    state_key = ""

    def __init__(
        self,
        *,
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
        by_compute: Sequence[str] = (),
        prefix: str = "",
        report_dir: str | Path | None = None,
        summary: bool = True,
        strict: bool = False,
    ) -> None:
        self._options = Options(
            "FlopCallback",
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
            by_compute=by_compute,
            prefix=prefix,
            report_dir=report_dir,
            summary=summary,
            strict=strict,
        )
        self._failures = Failures(strict=strict)
        self._profiles: dict[str, ModelProfile] = {}
        self._loaded: dict[str, Any] = {}  # compute so far in the checkpoint that training goes on from
        self._spent: dict[str, Any] = {}  # that of the last training
        self._by_compute = MetricsByCompute(by_compute, self._failures)
        self._gave_up = False
        self._watch_nothing()
        # Where a checkpoint has the state of this one, told from others in the same trainer. No property: Lightning
        # asks for it around every hook.
        own, usual = (fma, elementwise, prefix), (1, False, "")
        key = self._generate_state_key(fma=fma, elementwise=elementwise, prefix=prefix)
        self.state_key = type(self).__qualname__ if own == usual else key

    def _watch_nothing(self) -> None:
        """Make what belongs to one training; a copy has none of it."""
        self._training: Training | None = None  # None between two runs of a trainer, and after a failure
        self._files: dict[Path, LocalTracker] = {}
        self._watch = StepWatch()

    def __getstate__(self) -> dict[str, Any]:
        """Options and profiles: a copy, or what is pickled, does not watch the training that is under way."""
        state = {**vars(self), "_profiles": dict(self.profiles)}
        return {name: value for name, value in state.items() if name not in LIVE}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._watch_nothing()

    @property
    def profiles(self) -> Mapping[str, ModelProfile]:
        """The latest profile of each phase."""
        return {**self._profiles, **({} if self._training is None else self._training.profiles)}

    # --- Lightning's events -----------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """A new `fit`, `validate`, `test` or `predict` begins: it is counted anew."""
        self._gave_up = False
        self._set_up(trainer, stage)

    @_guarded
    def _set_up(self, trainer: Trainer, stage: str) -> None:
        self._let_go()
        self._loaded = {}
        if not trainer.global_step:  # else the training that is over goes on
            self._spent = {}
        if stage == "fit":
            self._files.clear()  # An evaluation adds to the files of the training before it, a training begins anew.

    @_guarded
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to book steps, where a checkpoint ended if there is one."""
        self._by_compute.begin()
        training = self._training = self._training_of(trainer, pl_module, samples=samples_in)
        earlier = self._loaded or (self._spent if trainer.global_step else {})
        with self._failures.as_warning("compute so far begins anew"):
            training.load(earlier)

    @_guarded
    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        """Stop a training that goes on from a checkpoint with nothing left of its budget."""
        training = self._training
        if training is not None and training.poll_budget(_step(trainer), then=_then(trainer)):
            trainer.should_stop = True

    @_guarded
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Begin a step, and put around its call what the plan says."""
        self._watch.close()
        training = self._training
        if training is None:
            return
        plan = training.begin_step(batch, batch, trainer.optimizers)
        if plan is Plan.COUNT:
            self._count_next(pl_module, TRAINING, training)
        elif plan is Plan.OBSERVE:
            self._watch.observe(pl_module, training)
        elif plan is Plan.TIME:
            self._watch.time(pl_module, training)

    @_guarded
    def on_before_backward(self, *_: Any) -> None:
        """Note a backward of the step."""
        if self._training is not None:
            self._training.note_backward()

    @_guarded
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Note which optimizer steps."""
        if self._training is not None:
            number = 0
            for known in trainer.optimizers:  # not `list.index`: an optimizer of the user's may define `==`
                if known is optimizer:
                    break
                number += 1
            self._training.note_optimizer(number)

    @_guarded
    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Book the step; log the profile after the first one, the times after the last one of the window."""
        self._watch.close()
        training = self._training
        if training is None:
            return
        if self._watch.compiled and TRAINING not in training.profiles:
            self._leave_compiled()
            return
        step, has_stepped = _step(trainer), not trainer.fit_loop._should_accumulate()
        # `Trainer` declares no such attribute (2.6): a connector sets it.
        every = self._options.log_every_n_steps or vars(trainer)["log_every_n_steps"]
        is_log_step = has_stepped and every > 0 and (step + 1) % every == 0
        then = _then(trainer) if self._options.max_hw_flops is not None else ""
        should_stop = training.end_step(step, has_stepped=has_stepped, is_log_step=is_log_step, then=then)
        if is_log_step:
            self._by_compute.log(trainer, training)
        if should_stop:
            trainer.should_stop = True

    @_guarded
    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        """Logs metrics of the epoch before by compute: all ranks know them by now."""
        self._by_compute.log(trainer, self._training)

    @_guarded
    def on_validation_start(self, trainer: Trainer, *_: Any) -> None:
        """Leaves the time of validation out of throughput; a step that was left by then is not watched any more."""
        self._watch.close()
        if self._training is not None:
            self._training.pause()

    @_guarded
    def on_validation_epoch_end(self, trainer: Trainer, *_: Any) -> None:
        """Logs compute so far in the row of the metrics of validation."""
        if self._training is not None and not trainer.sanity_checking and trainer.state.fn == "fit":
            self._training.log_totals(_step(trainer))

    @_guarded
    def on_validation_end(self, trainer: Trainer, *_: Any) -> None:
        """Logs metrics of validation by compute."""
        if not trainer.sanity_checking and trainer.state.fn == "fit":
            self._by_compute.log(trainer, self._training)

    @_guarded
    def on_save_checkpoint(self, *_: Any) -> None:
        """Leaves the time of writing a checkpoint out of throughput."""
        if self._training is not None:
            self._training.pause()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: compute so far, of all ranks."""
        self._keep_spent()
        return {"compute": self._spent} if self._spent else {}

    def on_load_checkpoint(self, *_: Any) -> None:
        """Forgets the training before: one goes on from a checkpoint, which may have no compute."""
        self._spent = {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps what a checkpoint has, until training begins."""
        with self._failures.as_warning("compute so far begins anew"):
            self._loaded = dict(state_dict.get("compute", {}))

    @_guarded
    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Puts a watch around the first step of `trainer.validate`; not around validation within `fit`."""
        self._start_evaluation(trainer, pl_module, "validate")

    @_guarded
    def on_test_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Puts a watch around the first step of `trainer.test`."""
        self._start_evaluation(trainer, pl_module, "test")

    @_guarded
    def on_predict_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Puts a watch around the first step of `trainer.predict`."""
        self._start_evaluation(trainer, pl_module, "predict")

    @_guarded
    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Logs the profile of the first step of `trainer.validate`."""
        self._end_evaluation(trainer)

    @_guarded
    def on_test_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Logs the profile of the first step of `trainer.test`."""
        self._end_evaluation(trainer)

    @_guarded
    def on_predict_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Logs the profile of the first step of `trainer.predict`."""
        self._end_evaluation(trainer)

    @_guarded
    def on_train_epoch_end(self, *_: Any) -> None:
        """Takes away a watch that no step came to: the module's own `on_train_batch_start` may skip an epoch."""
        self._watch.close()

    @_guarded
    def on_train_end(self, trainer: Trainer, *_: Any) -> None:
        """Logs metrics of the last epoch by compute, and says which were named and never logged."""
        self._by_compute.log(trainer, self._training)
        self._by_compute.check(trainer)

    @_guarded
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Log what a short training has timed, and let go of the model and of the loggers."""
        training = self._training
        self._keep_spent()
        self._let_go()
        if training is not None:
            training.close(_step(trainer))
            self._profiles.update(training.profiles)

    def on_exception(self, trainer: Trainer, *_: Any) -> None:
        """Take everything away from a step that did not come to its end, and show what there is by then.

        It waits for no device, which may be dead or hang, and raises nothing, not even where `strict`: what ended the
        training is what the user is to see.
        """
        training = self._training
        try:
            self._keep_spent(wait=False)
        except Exception as error:  # noqa: BLE001 - another error is on its way
            self._failures.log("compute so far could not be kept", error)
        self._let_go()
        if training is not None:
            try:
                training.close(_step(trainer), wait=False)
                self._profiles.update(training.profiles)
            except Exception as error:  # noqa: BLE001 - another error is on its way
                self._failures.log("the report of a training that ended early is not complete", error)

    # --- Inside -----------------------------------------------------------------------------------------------------

    def _let_go(self) -> None:
        self._watch.close()
        if self._training is not None:
            self._profiles.update(self._training.profiles)
        self._training = None

    def _give_up(self, what: str, error: Exception) -> None:
        """Leave the rest of this run alone."""
        self._spent = {}  # what was booked is too little by now
        if self._training is not None:
            self._training.stop_metering()
        self._let_go()
        self._gave_up = True
        self._failures.report(what, error)

    def _leave_compiled(self) -> None:
        """Leave the rest of this run alone: its steps are made inside of compiled code."""
        if self._training is not None:
            self._training.stop_metering()
        self._spent = {}
        self._let_go()
        self._gave_up = True
        warnings.warn(UNSEEN.format(self._watch.compiled), FlopCallbackWarning, stacklevel=2)

    def _start_evaluation(self, trainer: Trainer, pl_module: LightningModule, phase: str) -> None:
        self._watch.close()
        if trainer.state.fn == phase:
            if self._training is None:
                self._training = self._training_of(trainer, pl_module)
            if phase not in self._training.profiles:
                self._count_next(pl_module, phase, self._training)

    def _end_evaluation(self, trainer: Trainer) -> None:
        self._watch.close()
        if self._training is not None:
            self._training.end_evaluation(_step(trainer))

    def _keep_spent(self, *, wait: bool = True) -> None:
        """Read compute so far for checkpoints, which may be written when training is over."""
        if self._training is not None and self._training.is_metering:
            with self._failures.as_warning("a checkpoint has no compute so far"):
                self._spent = self._training.state(wait=wait)

    def _count_next(self, pl_module: LightningModule, phase: str, training: Training) -> None:
        """Have the next call of a step observed, and a profile made of it."""
        conditions = functools.partial(
            self._options.conditions, phase, pl_module, failures=self._failures, step_row=f"({METHODS[phase]})"
        )
        give_up = functools.partial(self._give_up, f"the {phase} step could not be counted")
        self._watch.count(pl_module, phase, training, conditions, give_up)

    def _training_of(
        self, trainer: Trainer, pl_module: LightningModule, samples: Callable[[Any], int | None] | None = None
    ) -> Training:
        """Return what this run of the trainer is told to; without `samples`, an evaluation, which books no steps."""
        options = self._options
        return Training(
            pl_module,
            options,
            trackers_of(trainer, options, self._failures, self._files),
            samples=samples,
            measures_waiting=True,
            show=functools.partial(_show, trainer) if options.summary and trainer.is_global_zero else None,
            fallback=report_folder(trainer, options),
            failures=self._failures,
        )


def _then(trainer: Trainer) -> str:
    """Return what happens when the budget is spent, in words."""
    can_stop = trainer.fit_loop._can_stop_early
    return "training stops" if can_stop else "training goes on to min_epochs or min_steps, and stops"


def _step(trainer: Trainer) -> int:
    """Lightning's own x-axis: batches after which an optimizer stepped (`global_step` counts each optimizer's)."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def _show(trainer: Trainer, text: str) -> None:
    """Prints past the progress bar: tqdm's would be torn apart by a plain print."""
    bar = trainer.progress_bar_callback
    if bar is not None and getattr(bar, "is_enabled", False) and hasattr(bar, "train_progress_bar"):
        bar.print(text)
    else:
        sys.stdout.write(text + "\n")
