"""FlopTrainerCallback: FLOPs and compute of a training by `transformers.Trainer`."""

from __future__ import annotations

import dataclasses
import os
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from flopcallback.loop.objects import optimizers_of, unwrapped
from flopcallback.loop.watch import LoopWatch
from flopcallback.modules.batches import samples_in
from flopcallback.profile.metrics import PADDING
from flopcallback.reporting import ModelProfile
from flopcallback.tracing.owners import CallOwner
from flopcallback.training.audits import Observe
from flopcallback.training.failures import Failures, FlopCallbackWarning, guarded
from flopcallback.training.options import Options
from flopcallback.training.training import TRAINING
from flopcallback_transformers.errors import LoopErrors
from flopcallback_transformers.padding import PaddedTraining
from flopcallback_transformers.trainer import (
    is_first_of_its_kind,
    modules_beside,
    report_folder,
    trackers_of,
    trainer_around,
)

try:
    from transformers.trainer_callback import ExportableState, TrainerCallback
except ImportError as error:
    raise ModuleNotFoundError(
        "FlopTrainerCallback needs transformers: pip install 'flopcallback[transformers]'", name="transformers"
    ) from error

__all__ = ["FlopTrainerCallback"]

UNSEEN = (
    "FlopTrainerCallback: no training call of the model was seen{}, and nothing is counted. It counts calls with grad "
    "enabled and model.training, in the thread of the Trainer; not those that compiled code makes."
)

MADE_ANEW = (
    "FlopTrainerCallback: restore_callback_states_from_checkpoint has made it anew out of a checkpoint, without {}. "
    "Leave that argument of the Trainer's off: compute so far is resumed without it."
)

OF_ONE_TRAINING = ("_training", "_watch", "_on_drop", "_errors")
"""Attributes that a copy has none of."""

DEFAULTS = Options("FlopTrainerCallback")


class FlopTrainerCallback(TrainerCallback, ExportableState):  # type: ignore[misc]
    """Callback of a Hugging Face Trainer that counts FLOPs, times modules, and tracks compute.

    The first training call of the model is counted while it runs: it is made once, as always. The next steps are timed.
    From then on each optimizer step, with all its micro-batches, adds its cost to compute so far, which is logged
    together with throughput when the Trainer logs. Evaluation is left out. Numbers go to whatever `report_to` names; a
    W&B run, TensorBoard and MLflow get tables, charts and the report page as well. The logs of the Trainer itself are
    left as they are. Compute so far is part of `trainer_state.json`, and `resume_from_checkpoint` continues it.

    A failure inside the callback becomes one `FlopCallbackWarning`, and training goes on.

    A copy (`copy.deepcopy`, pickle) has the options and the results so far, and of `to` names and folders alone.

    Args:
        to: further destinations, as for `FlopHook`: a run, a writer, a folder, a `Tracker`, or a list of these.
        elementwise: whether to count elementwise operators and reductions as `macs`; they are no FLOPs.
        warmup_steps: number of steps after the counted one that are not timed.
        latency_steps: number of timed steps after these; 0 turns timing off.
        log_every_n_steps: number of steps between two logs of compute and throughput. Default: when the Trainer logs.
        max_flops: budget of FLOPs, for all processes together. Training stops at the end of the step that spends it.
            Several processes may exceed the budget by some steps if a step costs more than 16 times any step before.
        peak_flops: dense peak of the device in FLOP/s, the basis of MFU. Default: the data sheet's value, if the device
            is known. `"measure"` measures it once, by a matrix product.
        batch_size_fn: function that returns the number of samples in a batch, the dict that the model is called with.
            Default: the common first dimension of its tensors; unknown where it is not certain.
        tokens_fn: function that returns the number of tokens in a batch. Default: the number of elements of
            `input_ids` in all calls of the step, if there are any.
        flops_fn: function that returns the FLOPs of a step with a batch, to be used for compute and throughput
            in place of counted ones.
        observe: which steps to observe as a whole for their cost: `"auto"` the first ones of each kind, and audits;
            `"always"` every step, for models whose steps of equal shapes differ in cost; `"never"` none, and compute is
            estimated.
        by_compute: metrics to plot against compute, by the name that trackers have for them, such as `["eval/loss"]`.
            W&B uses compute as their x-axis. Other trackers get a copy, `eval/loss_by_compute`; its step is FLOPs in
            millions.
        prefix: prefix of every logged name.
        report_dir: folder for report files. Default: files are written only if nothing else takes a profile, to
            `flopcallback_report/` in the Trainer's `output_dir`.
        summary: whether to print a summary, once and in the first process: one line, or the whole table if there are
            only files.
        strict: whether to raise exceptions of flopcallback instead of warning.

    Raises:
        ValueError: an argument is invalid.

    Example:
        >>> from flopcallback_transformers import FlopTrainerCallback
        >>> trainer = Trainer(model, args, callbacks=[FlopTrainerCallback()])  # doctest: +SKIP
    """

    left_out: Sequence[str] = ()
    """Names of arguments that no checkpoint has; set where a Trainer makes the callback anew out of one."""

    def __init__(
        self,
        to: Any = None,
        *,
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
    ) -> None:
        self._to = to
        self._options = Options(
            "FlopTrainerCallback",
            elementwise=elementwise,
            warmup_steps=warmup_steps,
            latency_steps=latency_steps,
            log_every_n_steps=log_every_n_steps,
            max_flops=max_flops,
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
        self._failures = Failures(strict=strict)
        self._profiles: dict[str, ModelProfile] = {}  # results of the last training that is over
        self._numbers: dict[str, int | float] = {}  # likewise
        self._spent: dict[str, Any] = {}  # compute so far, as the last checkpoint got it
        self._loaded: Any = {}  # compute so far, from the checkpoint that is resumed; it is checked at the first step
        self._gave_up = False  # True after a failure, until the next training: events then do nothing
        self._is_over = False  # True once a training has logged its results or raised, until the next one
        self._logged = -1  # step that numbers were last logged at
        self._watch_nothing()

    def _watch_nothing(self) -> None:
        """Make what belongs to one training; a copy has none of it."""
        self._training: PaddedTraining | None = None  # None before the first step and after the last one
        self._watch: LoopWatch | None = None  # likewise
        self._on_drop: weakref.finalize[..., Any] | None = None  # likewise
        self._errors: LoopErrors | None = None  # None before a training and after it

    def __getstate__(self) -> dict[str, Any]:
        """Return options and results: a copy does not watch the training under way."""
        targets = self._to if isinstance(self._to, list) else [self._to]
        kept = [target for target in targets if isinstance(target, (str, os.PathLike))]
        state = {**vars(self), "_profiles": self.profiles, "_numbers": self._all_numbers(), "_to": kept}
        return {name: value for name, value in state.items() if name not in OF_ONE_TRAINING}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._watch_nothing()

    # --- For the user -------------------------------------------------------------------------------------------------

    @property
    def profiles(self) -> dict[str, ModelProfile]:
        """Latest `ModelProfile` by phase; the one phase is `"train"`."""
        return {**self._profiles, **({} if self._training is None else self._training.profiles)}

    def metrics(self) -> dict[str, int | float]:
        """Return all numbers so far by logged name.

        Counts are exact ints.
        """
        profile = self.profiles.get(TRAINING)
        scalars = {} if profile is None else profile.scalars()
        return {self._options.prefix + name: value for name, value in {**scalars, **self._all_numbers()}.items()}

    def state(self) -> dict[str, Any]:
        """Return options and compute so far, which the Trainer puts into `trainer_state.json`."""
        if self._training is not None and self._training.is_metering:
            with self._failures.as_warning("a checkpoint has no compute so far"):
                self._training.pause()  # writing a checkpoint is not training
                self._spent = self._training.state()
        attributes: dict[str, Any] = {"compute": self._spent}
        with self._failures.as_warning("a checkpoint has no options"):
            args, left_out = self._exportable()
            return {"args": args, "attributes": attributes | ({"left_out": left_out} if left_out else {})}
        return {"args": {}, "attributes": attributes}

    # --- The Trainer's events -----------------------------------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Begin a training, which is counted anew or from a checkpoint."""
        self._gave_up = False
        # 2026-11, transformers 5.23: saving raises KeyError if the resumed checkpoint knows no such callback.
        state.stateful_callbacks.setdefault(type(self).__name__, self.state())
        self._begin(state)

    @guarded
    def _begin(self, state: Any) -> None:
        self._is_over = False
        self._end_early()  # a training whose end nobody told
        self._profiles, self._numbers, self._spent, self._logged = {}, {}, {}, -1
        self._loaded = self._saved_in(state) if state.global_step else {}
        self._errors = LoopErrors(trainer_around(), self._raised)
        if self.left_out:
            warnings.warn(MADE_ANEW.format(", ".join(self.left_out)), FlopCallbackWarning, stacklevel=3)

    @guarded
    def on_step_begin(self, args: Any, state: Any, control: Any, **event: Any) -> None:
        """Begin a step."""
        if self._is_over:
            raise RuntimeError("a step begins after the training has raised, or logged its totals")
        if self._watch is None:
            # Not before the first step: by now the other callbacks have made their runs and writers.
            self._start(args, state, control, **event)
        assert self._watch is not None
        self._watch.begin_marked_step()

    @guarded
    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Book the step, log new results, and keep to the budget."""
        training, watch, step = self._training, self._watch, state.global_step
        if training is None or watch is None:
            return
        watch.end_marked_step(step, is_log_step=False)
        training.padding.end_step()
        every = self._options.log_every_n_steps
        self._log(step, control, is_log_step=control.should_log if every is None else step % every == 0)
        if training.is_budget_spent:
            control.should_training_stop = True

    @guarded
    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Log compute so far if the Trainer logs or evaluates by epochs."""
        is_log_step = control.should_log and self._options.log_every_n_steps is None
        self._log(state.global_step, control, is_log_step=is_log_step)

    @guarded
    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any], **_: Any) -> None:
        """Log copies of metrics by compute; end with the last log of a training."""
        training = self._training
        if training is None:
            return
        if self._options.by_compute and training.takes_copies:
            training.log_by_compute(_named(logs, self._options.by_compute))
        if {"train_loss", "train_runtime"} <= logs.keys():
            # Not later: at the end of the training, the other callbacks close writers and runs.
            self._close(state.global_step)

    @guarded
    def on_evaluate(self, *_: Any, **__: Any) -> None:
        """Leave an evaluation out of throughput."""
        if self._training is not None:
            self._training.pause()

    @guarded
    def on_save(self, args: Any, *_: Any, **__: Any) -> None:
        """Leave saving out of throughput, and tell the process that saves what this one has spent."""
        if self._training is not None:
            self._training.pause()
            if not args.should_save:
                self.state()

    @guarded
    def on_train_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        """Log the last results, and detach from model and optimizers."""
        self._close(state.global_step)

    # --- Internals ----------------------------------------------------------------------------------------------------

    def _start(self, args: Any, state: Any, control: Any, *, model: Any, optimizer: Any = None, **_: Any) -> None:
        """Watch the model that the Trainer calls."""
        options, is_logging = self._options, state.is_world_process_zero
        trainer = trainer_around()
        if not is_first_of_its_kind(trainer, self):
            raise ValueError("the Trainer has another FlopTrainerCallback before this one, which counts its steps")
        called = unwrapped(model if trainer is None else trainer.model_wrapped)
        trackers = {}
        if is_logging:
            event = {"trainer": trainer, "model": model}
            trackers = trackers_of(self._to, options, self._failures, args, state, control, **event)
        owner, beside = CallOwner(), modules_beside(trainer, called)
        self._training = PaddedTraining(
            called,
            options,
            trackers,
            owner=owner,
            beside=beside,
            samples=samples_in,
            measures_waiting=True,  # between two steps, a Trainer fetches data
            show=_print if options.summary and is_logging else None,
            fallback=report_folder(options, args),
            failures=self._failures,
        )
        optimizers: list[torch.optim.Optimizer] = []
        with suppress(TypeError):  # steps end where the Trainer says, with any optimizer
            optimizers = optimizers_of(optimizer)
        self._watch = LoopWatch(
            called, optimizers, options, self._training, owner, self._failures, unseen=UNSEEN, beside=beside
        )
        # The model's wrappers hold the watch, and would keep it for good if the callback was only dropped.
        self._on_drop = weakref.finalize(self, _dropped, weakref.ref(self._watch))
        self._on_drop.atexit = False
        with self._failures.as_warning("compute so far begins anew"):
            self._training.load(self._loaded)
            self._training.poll_loaded_budget()

    def _log(self, step: int, control: Any, *, is_log_step: bool) -> None:
        """Log numbers at a log step, and compute so far beside an evaluation.

        It comes before the Trainer's own log, whose row of a W&B run these numbers join.
        """
        if self._training is None or step == self._logged:
            return
        if is_log_step:
            self._training.log_numbers(step, self._padding())
        elif control.should_evaluate:
            self._training.log_totals(step)
        else:
            return
        self._logged = step

    def _padding(self) -> dict[str, int | float]:
        share = None if self._training is None else self._training.padding.take()
        return {} if share is None else {PADDING.name: share}

    def _close(self, step: int) -> None:
        """Log what has not been logged yet, keep the results, and detach."""
        training, watch = self._training, self._watch
        if training is None or watch is None:  # there was no step, or its end is logged
            self._let_go()
            return
        self._is_over = True
        try:
            if step != self._logged:
                training.log_numbers(step, self._padding())
            has_seen_call = watch.close(wait=True)
            self._keep_results()
        finally:
            self._let_go()
        if not has_seen_call:
            warnings.warn(UNSEEN.format(""), FlopCallbackWarning, stacklevel=2)

    def _raised(self) -> None:
        """End with a training that an error ends, before the user gets the error."""
        self._end_early()
        self._is_over = True

    def _end_early(self) -> None:
        """Log what is there of a training that did not end, without waiting, and detach."""
        try:
            if self._watch is not None:
                self._watch.close(wait=False)
            self._keep_results()
        except Exception as failure:  # noqa: BLE001 - another error came first
            self._failures.log("the report of a training that ended early is not complete", failure)
        finally:
            self._let_go()

    def _let_go(self) -> None:
        """Detach from the model and the training."""
        watch, on_drop, errors = self._watch, self._on_drop, self._errors
        self._watch_nothing()
        if errors is not None:
            errors.close()
        if on_drop is not None:
            on_drop.detach()
        if watch is not None:
            watch.drop()

    def _keep_results(self) -> None:
        self._profiles, self._numbers = self.profiles, self._all_numbers()

    def _give_up(self, what: str, error: Exception) -> None:
        """Stop watching this training, and report the error."""
        self._gave_up, self._spent = True, {}  # too low from now on, since further steps are not booked
        if self._training is not None:
            self._training.stop_metering()
        self._end_early()
        self._failures.report(what, error)

    def _all_numbers(self) -> dict[str, int | float]:
        return {**self._numbers, **({} if self._training is None else self._training.numbers)}

    def _exportable(self) -> tuple[dict[str, Any], list[str]]:
        """Return the arguments that JSON can hold, and the names of the others, each if it is no default."""
        options = self._options
        given = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
        given = {name: value for name, value in given.items() if value != getattr(DEFAULTS, name)}
        given |= {} if self._to is None else {"to": self._to}
        plain = {name: _plain(value) for name, value in given.items() if _is_plain(value)}
        return plain, [name for name in given if name not in plain]

    def _saved_in(self, state: Any) -> Any:
        """Return the compute that a checkpoint has for this callback."""
        saved = state.stateful_callbacks.get(type(self).__name__, {})
        if isinstance(saved, list):  # of several callbacks, saved one after the other, again and again
            args, _ = self._exportable()
            saved = next((each for each in reversed(saved) if each.get("args") == args), {})
        return saved.get("attributes", {}).get("compute", {})


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return isinstance(value, (str, int, float, os.PathLike))


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _named(logs: Mapping[str, Any], names: Sequence[str]) -> dict[str, float]:
    """Return those metrics of a log that are wanted, by the names that trackers have for them."""
    from transformers.integrations.integration_utils import rewrite_logs

    return {name: float(value) for name, value in rewrite_logs(dict(logs)).items() if name in names}


def _dropped(reference: weakref.ref[LoopWatch]) -> None:
    """Detach the watch of a callback that nobody has any more."""
    if (watch := reference()) is not None:
        watch.drop()


def _print(text: str) -> None:
    """Print a text above the Trainer's progress bar."""
    from tqdm.auto import tqdm

    tqdm.write(text)
