"""FlopCallback: FLOPs and compute of a Lightning training."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flopcallback.lightning.census import CallCensus
from flopcallback.lightning.loggers import Destinations, is_dev_run, report_folder, trackers_of
from flopcallback.lightning.metrics import MetricsByCompute
from flopcallback.lightning.profiles import KeptProfiles
from flopcallback.lightning.step import METHODS
from flopcallback.lightning.watch import StepWatch
from flopcallback.modules.batches import samples_in
from flopcallback.profiling.checks import max_flops_of, warn_of_fma
from flopcallback.reporting import ModelProfile
from flopcallback.trackers import Tracker
from flopcallback.training.audits import Observe
from flopcallback.training.failures import Failures, FlopCallbackWarning, guarded
from flopcallback.training.options import Options
from flopcallback.training.saved_state import compute_in
from flopcallback.training.training import TRAINING, Plan, Training

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer

__all__ = ["FlopCallback"]


def _callback_class() -> type[Any]:
    """Return Lightning's `Callback`, of the package that is in use.

    Trainers of `lightning` also run callbacks of `pytorch_lightning`, and the other way round.
    """
    flavours = ("lightning.pytorch", "pytorch_lightning")
    missing: Exception | None = None
    for flavour in sorted(flavours, key=lambda name: name not in sys.modules):
        try:
            # The attribute is tested: a folder of that name would be imported as an empty namespace package.
            return importlib.import_module(flavour).Callback  # type: ignore[no-any-return]
        except (ModuleNotFoundError, AttributeError) as error:
            missing = missing or error
    raise ModuleNotFoundError(
        "FlopCallback needs Lightning, under either of its names: pip install 'flopcallback[lightning]', "
        "or pip install pytorch-lightning",
        name="lightning",
    ) from missing


if not TYPE_CHECKING:  # type checkers see the class of `lightning.pytorch`
    Callback = _callback_class()

UNSEEN = (
    "FlopCallback: no training step was seen, so none is counted: compiled code ({}) makes it, which is run as it is "
    "and not looked into. With a compiled optimizer, optimize by hand: `automatic_optimization = False`."
)

LIVE = frozenset({"_training", "_files", "_watch", "_census", "_optimizers", "log", "log_dict"})
"""What of a callback belongs to the training under way; the last two are the module's, which Lightning lends."""


class FlopCallback(Callback):
    """Lightning callback that counts FLOPs, times modules, and tracks compute.

    The first `training_step` is counted while it runs: it is called once, as always, and Lightning gets its result. The
    next steps are timed. Nothing stays on the modules. From then on each step adds its cost, known by the shapes of its
    inputs, to compute so far, which is logged together with throughput and kept in checkpoints. Everything goes to the
    trainer's loggers. `trainer.validate`, `test` and `predict` get a profile of their own, of their first batch.

    A failure inside the callback becomes one `FlopCallbackWarning`, and training goes on.

    Args:
        to: destination, or list of several, next to the trainer's loggers, which need not be named: `"wandb"` or
            `"mlflow"` for the active run, `"tensorboard"` for a new one in `runs/`, each only if no logger leads there;
            a run, `SummaryWriter` or `(MlflowClient(), run_id)`; a folder; a `Tracker`. Runs and writers stay yours to
            close.
        elementwise: whether to count elementwise operators and reductions as `macs`; they are no FLOPs.
        warmup_steps: number of steps after the counted one that are not timed.
        latency_steps: number of timed steps after these; 0 turns timing off.
        log_every_n_steps: number of steps between two logs of compute and throughput. Default: the trainer's.
        max_flops: budget of FLOPs, for all ranks together. Training stops at the end of the step that spends it, but
            not before the trainer's `min_steps` and `min_epochs`. Several ranks may exceed the budget by some steps if
            a step costs more than 16 times any step before.
        peak_flops: dense peak of the device in FLOP/s, the basis of MFU. Default: the data sheet's value, if the device
            is known. `"measure"` measures it once, by a matrix product.
        batch_size_fn: function that returns the number of samples in a batch. Default: what it says in
            `num_graphs` or `batch_size`, or the common first dimension of its tensors; unknown where it is not certain.
        tokens_fn: function that returns the number of tokens in a batch. Default: the number of elements of all
            `input_ids` in it, if there are any.
        flops_fn: function that returns the FLOPs of a step with a batch, to be used for compute and throughput
            in place of counted ones.
        observe: which steps to observe as a whole for their cost: `"auto"` the first ones of each kind, and audits;
            `"always"` every step, for models whose steps of equal shapes differ in cost; `"never"` none, and compute is
            estimated.
        by_compute: metrics to plot against compute, by name, such as `["val/loss"]`. W&B uses compute as their x-axis.
            Other trackers get a copy, `val/loss_by_compute`; its step is FLOPs in millions.
        prefix: prefix of every logged name.
        report_dir: folder for report files. Default: files are written only if the trainer has no logger, or one
            without a tracker, to `flopcallback_report/` in the logger's or the trainer's folder.
        summary: whether to print a summary, once and on rank 0: one line, or the whole table if no logger can show it.
        strict: whether to raise exceptions of flopcallback instead of warning.
        fma: deprecated, without effect. FLOPs are 2 per multiply-add.
        max_hw_flops: deprecated name of `max_flops`.

    Attributes:
        profiles: latest `ModelProfile` by phase: `"train"`, `"validate"`, `"test"`, `"predict"`. Those of a copy that a
            trainer was given in place of this object, as forecasting packages do, are there when the trainer is done.

    Raises:
        ValueError: an argument is invalid.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from flopcallback import FlopCallback
        >>> trainer = Trainer(callbacks=[FlopCallback()])
    """

    state_key = ""  # replaces the property of `Callback`; set by the constructor

    def __init__(
        self,
        *,
        to: Any = None,
        elementwise: bool = False,
        warmup_steps: int = 5,
        latency_steps: int = 20,
        log_every_n_steps: int | None = None,
        max_flops: float | None = None,
        peak_flops: float | str | None = None,
        batch_size_fn: Callable[[Any], int] | None = None,
        tokens_fn: Callable[[Any], int] | None = None,
        flops_fn: Callable[[Any], int] | None = None,
        observe: Observe = "auto",
        by_compute: Sequence[str] = (),
        prefix: str = "",
        report_dir: str | Path | None = None,
        summary: bool = True,
        strict: bool = False,
        fma: int | None = None,
        max_hw_flops: float | None = None,
    ) -> None:
        warn_of_fma("FlopCallback", fma)
        self._options = Options(
            "FlopCallback",
            elementwise=elementwise,
            warmup_steps=warmup_steps,
            latency_steps=latency_steps,
            log_every_n_steps=log_every_n_steps,
            max_flops=max_flops_of("FlopCallback", max_flops, max_hw_flops),
            peak_flops=peak_flops,
            batch_size_fn=batch_size_fn,
            tokens_fn=tokens_fn,
            flops_fn=flops_fn,
            observe=observe,
            by_compute=by_compute,
            prefix=prefix,
            report_dir=report_dir,
            summary=summary,
            strict=strict,
        )
        self._to = Destinations(to)
        self._failures = Failures(strict=strict)
        self._profiles = KeptProfiles()
        self._loaded: Any = {}  # compute so far, from the checkpoint that this run resumes; it is checked at the start
        self._spent: dict[str, Any] = {}  # compute so far of the present or last training, for checkpoints
        self._by_compute = MetricsByCompute(by_compute, self._failures)
        self._gave_up = False  # True after a failure, until the next run of the trainer: hooks then do nothing
        self._watch_nothing()
        # Key of the state in checkpoints, different from that of other instances in the same trainer. Not a property:
        # Lightning reads it around every hook.
        # `fma` stays in it, for checkpoints of older versions.
        options, defaults = (fma or 1, elementwise, prefix), (1, False, "")
        key = self._generate_state_key(fma=fma or 1, elementwise=elementwise, prefix=prefix)
        self.state_key = type(self).__qualname__ if options == defaults else key
        self._former_key = self._generate_state_key(fma=2, elementwise=elementwise, prefix=prefix)

    def _watch_nothing(self) -> None:
        """Make what belongs to one training; a copy has none of it."""
        self._training: Training | None = None  # None between two runs of a trainer, and after a failure
        self._files: dict[Path | str, Tracker] = {}  # of the present training: report folders and what else has one
        self._watch = StepWatch()
        self._census = CallCensus()
        self._optimizers = OptimizersOf(None)

    def __getstate__(self) -> dict[str, Any]:
        """Return options and profiles: a copy does not watch the training under way."""
        state = {**vars(self), "_profiles": KeptProfiles(self.profiles, self._profiles)}
        return {name: value for name, value in state.items() if name not in LIVE}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._watch_nothing()

    @property
    def profiles(self) -> Mapping[str, ModelProfile]:
        """Latest profile of each phase."""
        return {**self._profiles.by_phase, **({} if self._training is None else self._training.profiles)}

    # --- Lightning's events -------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin a run of the trainer, which is counted anew."""
        self._gave_up = False
        self._set_up(trainer, stage)

    @guarded
    def _set_up(self, trainer: Trainer, stage: str) -> None:
        self._let_go()
        self._loaded = {}
        if not trainer.global_step:  # otherwise a second `fit` continues the training
            self._spent = {}
        if stage == "fit":
            self._files.clear()  # new files for a training; an evaluation adds to those of the training before it

    @guarded
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to book steps, from the checkpoint's compute if there is one."""
        self._by_compute.begin()
        training = self._training = self._training_of(trainer, pl_module, samples=samples_in)
        self._optimizers = OptimizersOf(trainer)
        earlier = self._spent if self._loaded == {} and trainer.global_step else self._loaded
        with self._failures.as_warning("compute so far begins anew"):
            training.load(earlier)

    @guarded
    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        """Stop a training with a checkpoint that has spent the budget."""
        training = self._training
        if training is not None and training.poll_budget(_step(trainer), then=_then(trainer)):
            trainer.should_stop = True

    # The next four run in every step: without `guarded`, each is one call less.

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Begin a step, and wrap its call by the step's plan."""
        try:
            if self._watch.is_open:  # the module may have skipped the step before
                self._watch.close()
            if (training := self._training) is not None:
                if not self._census.is_open and TRAINING in training.profiles:
                    self._open_census(pl_module, training)
                plan = training.begin_step(batch, batch, self._optimizers)
                if plan is not Plan.PASS:
                    self._carry_out(plan, pl_module, training)
        except Exception as error:  # noqa: BLE001 - the promise: training goes on
            self._give_up("on_train_batch_start failed", error)

    def on_before_backward(self, *_: Any) -> None:
        """Note a backward of the step."""
        try:
            if self._training is not None:
                self._training.note_backward()
        except Exception as error:  # noqa: BLE001 - as above
            self._give_up("on_before_backward failed", error)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Note the optimizer that steps."""
        try:
            if self._training is not None:
                self._training.note_optimizer(self._optimizers.number_of(optimizer))
        except Exception as error:  # noqa: BLE001 - as above
            self._give_up("on_before_optimizer_step failed", error)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Book the step, log new results, and keep to the budget."""
        try:
            if self._watch.is_open:
                self._watch.close()
            if self._training is not None:
                self._end_step(trainer, self._training)
        except Exception as error:  # noqa: BLE001 - as above
            self._give_up("on_train_batch_end failed", error)

    def _open_census(self, pl_module: LightningModule, training: Training) -> None:
        give_up = functools.partial(self._give_up, "the calls of a training step could not be noted")
        self._census.open(pl_module, training, training.called, give_up)

    def _carry_out(self, plan: Plan, pl_module: LightningModule, training: Training) -> None:
        if plan is Plan.COUNT:
            self._count_next(pl_module, TRAINING, training)
        elif plan is Plan.OBSERVE:
            self._watch.observe(pl_module, training)
        else:
            self._watch.time(pl_module, training)

    def _end_step(self, trainer: Trainer, training: Training) -> None:
        # The wrapper around `training_step` was not called, but compiled code was, which bypasses wrappers.
        if self._watch.compiled and TRAINING not in training.profiles:
            self._leave_compiled()
            return
        # Without accumulation, which is quicker to see, each batch steps.
        has_stepped = trainer.accumulate_grad_batches == 1 or not trainer.fit_loop._should_accumulate()
        step = trainer.fit_loop.epoch_loop._batches_that_stepped  # as `_step` returns it
        # `vars`, since `Trainer` declares no such attribute (Lightning 2.6): a connector sets it.
        every = self._options.log_every_n_steps or vars(trainer)["log_every_n_steps"]
        is_log_step = has_stepped and every > 0 and (step + 1) % every == 0
        then = _then(trainer) if self._options.max_flops is not None else ""
        should_stop = training.end_step(step, has_stepped=has_stepped, is_log_step=is_log_step, then=then)
        if is_log_step:
            self._by_compute.log(trainer, training)
        if should_stop:
            trainer.should_stop = True

    @guarded
    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        """Log copies of the previous epoch's metrics at compute so far.

        By now all ranks know these metrics.
        """
        self._by_compute.log(trainer, self._training)

    @guarded
    def on_validation_start(self, trainer: Trainer, *_: Any) -> None:
        """Leave the time of validation out of throughput.

        An unfinished training step is no longer watched.
        """
        self._watch.close()
        if self._training is not None:
            self._training.pause()

    @guarded
    def on_validation_epoch_end(self, trainer: Trainer, *_: Any) -> None:
        """Log compute so far at the step of the validation metrics."""
        if self._training is not None and not trainer.sanity_checking and trainer.state.fn == "fit":
            self._training.log_totals(_step(trainer))

    @guarded
    def on_validation_end(self, trainer: Trainer, *_: Any) -> None:
        """Log copies of validation metrics at compute so far."""
        if not trainer.sanity_checking and trainer.state.fn == "fit":
            self._by_compute.log(trainer, self._training)

    @guarded
    def on_save_checkpoint(self, *_: Any) -> None:
        """Leave the time of writing a checkpoint out of throughput."""
        if self._training is not None:
            self._training.pause()

    def state_dict(self) -> dict[str, Any]:
        """Return compute so far, of all ranks, for a checkpoint."""
        self._keep_spent()
        return {"compute": self._spent} if self._spent else {}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Forget the compute of the last training.

        The checkpoint may have none, and then `load_state_dict` is not called. Nor is it where an older version saved
        the state of this callback, with `fma=2`.
        """
        self._spent = {}
        states = checkpoint.get("callbacks") or {}
        if self.state_key not in states and self._former_key in states:
            self.load_state_dict(states[self._former_key])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the compute of a checkpoint until training begins."""
        with self._failures.as_warning("compute so far begins anew"):
            self._loaded = compute_in(state_dict)

    @guarded
    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Wrap the first step of `trainer.validate`, but no validation within `fit`."""
        self._start_evaluation(trainer, pl_module, "validate")

    @guarded
    def on_test_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Wrap the first step of `trainer.test`."""
        self._start_evaluation(trainer, pl_module, "test")

    @guarded
    def on_predict_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Wrap the first step of `trainer.predict`."""
        self._start_evaluation(trainer, pl_module, "predict")

    @guarded
    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Log the profile of the first step of `trainer.validate`."""
        self._end_evaluation(trainer)

    @guarded
    def on_test_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Log the profile of the first step of `trainer.test`."""
        self._end_evaluation(trainer)

    @guarded
    def on_predict_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Log the profile of the first step of `trainer.predict`."""
        self._end_evaluation(trainer)

    @guarded
    def on_train_epoch_end(self, *_: Any) -> None:
        """Remove the wrapper of a step that was never called.

        The module's own `on_train_batch_start` may skip the rest of an epoch.
        """
        self._watch.close()

    @guarded
    def on_train_end(self, trainer: Trainer, *_: Any) -> None:
        """Log copies of the last epoch's metrics; report names never logged."""
        self._by_compute.log(trainer, self._training)
        self._by_compute.check(trainer)

    @guarded
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Log the last results, and detach from the model and the loggers."""
        training = self._training
        self._keep_spent()  # before `_let_go`: it reads the training
        self._let_go()
        if training is not None:
            training.close(_step(trainer))
            self._profiles.update(training.profiles)

    def on_exception(self, trainer: Trainer, *_: Any) -> None:
        """Detach from the interrupted step, and log the results so far.

        It does not wait for a device, which may be dead, and raises nothing, not even if `strict`: the user has to see
        the error that ended the training.
        """
        training = self._training
        try:
            self._keep_spent(wait=False)
        except Exception as error:  # noqa: BLE001 - another error is being raised
            self._failures.log("compute so far could not be kept", error)
        self._let_go()
        if training is not None:
            try:
                training.close(_step(trainer), wait=False)
                self._profiles.update(training.profiles)
            except Exception as error:  # noqa: BLE001 - another error is being raised
                self._failures.log("the report of a training that ended early is not complete", error)

    # --- Internals ----------------------------------------------------------------------------------------------------

    def _let_go(self) -> None:
        """Detach from the module and the training; keep its profiles."""
        training, self._training = self._training, None  # first: giving up after an error in here ends here again
        self._watch.close()
        self._census.close()
        if training is not None:
            self._profiles.update(training.profiles)

    def _give_up(self, what: str, error: Exception) -> None:
        """Stop observing this run, and report the error."""
        self._spent = {}  # too low from now on, since further steps are not booked
        self._gave_up = True
        try:
            if self._training is not None:
                self._training.stop_metering()
            self._let_go()
        except Exception as another:  # noqa: BLE001 - it may have the same cause, and the first is told
            self._failures.log("the training that is not counted any more was not left tidy", another)
        self._failures.report(what, error)

    def _leave_compiled(self) -> None:
        """Stop observing this run, with steps inside compiled code, and warn."""
        if self._training is not None:
            self._training.stop_metering()
        self._spent = {}
        self._let_go()
        self._gave_up = True
        warnings.warn(UNSEEN.format(self._watch.compiled), FlopCallbackWarning, stacklevel=2)

    def _start_evaluation(self, trainer: Trainer, pl_module: LightningModule, phase: str) -> None:
        self._watch.close()
        if trainer.state.fn == phase:  # not validation within `fit`
            if self._training is None:
                self._training = self._training_of(trainer, pl_module)
            if phase not in self._training.profiles:
                self._count_next(pl_module, phase, self._training)

    def _end_evaluation(self, trainer: Trainer) -> None:
        self._watch.close()
        if self._training is not None:
            self._training.end_evaluation(_step(trainer))

    def _keep_spent(self, *, wait: bool = True) -> None:
        """Store compute so far for checkpoints, which may be written after training."""
        if self._training is not None and self._training.is_metering:
            with self._failures.as_warning("a checkpoint has no compute so far"):
                self._spent = self._training.state(wait=wait)

    def _count_next(self, pl_module: LightningModule, phase: str, training: Training) -> None:
        """Wrap the next step of a phase to count it."""
        conditions = functools.partial(
            self._options.conditions, phase, pl_module, failures=self._failures, step_row=f"({METHODS[phase]})"
        )
        give_up = functools.partial(self._give_up, f"the {phase} step could not be counted")
        self._watch.count(pl_module, phase, training, conditions, give_up)

    def _training_of(
        self, trainer: Trainer, pl_module: LightningModule, samples: Callable[[Any], int | None] | None = None
    ) -> Training:
        """Return a new training for this run of the trainer.

        Without `samples` it is an evaluation, for which no steps are booked.
        """
        options = self._options
        if is_dev_run(trainer):  # one line is printed of it
            options = dataclasses.replace(options, latency_steps=0)
        return Training(
            pl_module,
            options,
            trackers_of(trainer, options, self._failures, self._files, self._to),
            samples=samples,
            measures_waiting=True,  # between two steps, a trainer fetches data
            show=functools.partial(_show, trainer) if options.summary and trainer.is_global_zero else None,
            fallback=None if is_dev_run(trainer) else report_folder(trainer, options),
            failures=self._failures,
        )


class OptimizersOf:
    """Optimizers of a trainer, looked up when they are asked for.

    Args:
        trainer: the trainer; None has no optimizers.
    """

    def __init__(self, trainer: Trainer | None) -> None:
        self._trainer = trainer
        self._known: list[Any] = []  # as of the last look: the trainer asks its strategy each time

    def __iter__(self) -> Iterator[Any]:
        self._known = [] if self._trainer is None else list(self._trainer.optimizers)
        return iter(self._known)

    def number_of(self, optimizer: Any) -> int:
        """Return the position of an optimizer; that behind the last one if it is none of the trainer's."""
        for number, known in enumerate(self._known):  # not `list.index`: a user's optimizer may define `==`
            if known is optimizer:
                return number
        return next((number for number, known in enumerate(self) if known is optimizer), len(self._known))


def _then(trainer: Trainer) -> str:
    """Return the consequence of a spent budget, for the user."""
    can_stop = trainer.fit_loop._can_stop_early
    return "training stops" if can_stop else "training goes on to min_epochs or min_steps, and stops"


def _step(trainer: Trainer) -> int:
    """Return the step on the x-axis of Lightning's own logs.

    It counts batches with an optimizer step; `global_step` counts the steps of each optimizer.
    """
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def _show(trainer: Trainer, text: str) -> None:
    """Print through the progress bar if there is one: tqdm's needs that."""
    bar = trainer.progress_bar_callback
    if bar is not None and getattr(bar, "is_enabled", False) and hasattr(bar, "train_progress_bar"):
        bar.print(text)
    else:
        sys.stdout.write(text + "\n")
