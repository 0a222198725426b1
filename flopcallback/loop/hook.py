"""FlopHook: FLOPs and compute of a plain training loop."""

from __future__ import annotations

import sys
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flopcallback.loop.objects import EndedWatch, model_of, optimizers_of
from flopcallback.loop.watch import LoopWatch
from flopcallback.modules.batches import samples_in
from flopcallback.modules.names import innermost
from flopcallback.profile.metrics import placed
from flopcallback.profiling.checks import max_flops_of, warn_of_fma
from flopcallback.reporting import ModelProfile
from flopcallback.runs.folders import REPORT
from flopcallback.tracing.owners import CallOwner
from flopcallback.trackers import Tracker, new_name, tracker_for
from flopcallback.training.audits import Observe
from flopcallback.training.failures import Failures, FlopCallbackWarning
from flopcallback.training.options import Options
from flopcallback.training.ranks import rank_of
from flopcallback.training.saved_state import compute_in
from flopcallback.training.training import TRAINING, Training

__all__ = ["FlopHook"]

REPLACED = (
    "FlopHook: this one takes the place of an earlier one with the same optimizer and modules in common, which is now "
    "closed: no step is counted twice. Close a hook before you make the next, or give each another optimizer."
)

UNSEEN = (
    "FlopHook: no training call of {} was seen{}. It counts calls with grad enabled and model.training, made in the "
    "thread that made the hook; not those that compiled code makes. Give it the module that the loop calls: with "
    "torch.compile what that returned; where calls are made under no_grad, as by odeint_adjoint, a module around them."
)

DROPPED = (
    "FlopHook: it was dropped before a training call was seen, and counts nothing. Keep it until the training ends: "
    "`with FlopHook(model, optimizer) as hook:`."
)


class FlopHook:
    """Counter of FLOPs and compute for a plain training loop.

    The first training call of the model (grad enabled, `model.training`) is counted while it runs: it is made once, as
    always, and the loop gets its result. The next steps are timed. From then on each step adds its cost, known by the
    shapes of its inputs, to compute so far, which is logged together with throughput. The loop itself does not change.

    The counted call ends where its backward begins. With several optimizers it ends with the step, so that the parts of
    a GAN are counted together. A step ends when each optimizer has stepped. If that is not a step of your loop, or if
    there is no optimizer, mark steps by `with hook.step():`, or in a framework's callbacks by `begin_step` and
    `end_step`. Without either, calls are timed and steps are not.

    Create the hook after `torch.compile`, with the model that the loop calls, and in the thread that trains. Until
    `close`, the model calls that the loop makes pass through the hook, and so do the ends of optimizer steps. A hook
    that is dropped without `close` detaches as well, and logs nothing more. A hook takes the place of an earlier one
    with the same optimizer and modules in common: that one is closed, with a warning. A failure inside the hook becomes
    one `FlopCallbackWarning`, and training goes on.

    A copy of a hook (`copy.deepcopy`, pickle) has the results so far, and watches nothing.

    Args:
        model: model under training, or several by name, such as `{"student": student, "teacher": teacher}`: then those
            that are called without grad have rows, too. Wrappers, as of `DistributedDataParallel`, `torch.compile` and
            Fabric, are no part of the names of modules, which are those of a plain model.
        optimizer: optimizer, or list of several. Wrappers such as Accelerate's and Fabric's are followed through their
            attribute `optimizer`.
        to: destination: a W&B run or `"wandb"` for the active one, `"mlflow"` likewise or `(MlflowClient(), run_id)`, a
            `SummaryWriter` or `"tensorboard"` for a new one in `runs/`, a Lightning logger, a folder, a `Tracker`, or a
            list of these. Runs and writers stay yours to close. Default: none; results are in `metrics()` and
            `profile`.
        elementwise: whether to count elementwise operators and reductions as `macs`; they are no FLOPs.
        warmup_steps: number of steps after the counted one that are not timed.
        latency_steps: number of timed steps after these; 0 turns timing off.
        log_every_n_steps: number of steps between two logs of compute and throughput. Default: 50.
        max_flops: budget of FLOPs, for all ranks together. `should_stop` is True from the end of the step that spends
            it. Several ranks may exceed the budget by some steps if a step costs more than 16 times any step before.
        peak_flops: dense peak of the device in FLOP/s, the basis of MFU. Default: the data sheet's value, if the device
            is known. `"measure"` measures it once, by a matrix product.
        batch_size_fn: function that returns the number of samples in a batch. The batch is the model's first positional
            argument, or the dict of its keyword arguments if it has none. Default: what the inputs say in
            `num_graphs` or `batch_size`, or the common first dimension of their tensors; unknown where it is not
            certain.
        tokens_fn: function that returns the number of tokens in a batch. Default: the number of elements of
            `input_ids` in all calls of the step, if there are any.
        flops_fn: function that returns the FLOPs of a step with a batch, to be used for compute and throughput
            in place of counted ones.
        observe: which steps to observe as a whole for their cost: `"auto"` the first ones of each kind, and audits;
            `"always"` every step, for models whose steps of equal shapes differ in cost; `"never"` none, and compute is
            estimated.
        by_compute: metrics to plot against compute, by name, such as `["val/loss"]`. W&B uses compute as their x-axis.
            Other trackers get a copy, `val/loss_by_compute`, of the values given to `log_by_compute`; its step is
            FLOPs in millions.
        prefix: prefix of every logged name.
        report_dir: folder for report files, in addition to `to`.
        summary: whether to print a summary, once and on rank 0: one line, or the whole table if `to` has only folders.
        strict: whether to raise exceptions of flopcallback instead of warning.
        fma: deprecated, without effect. FLOPs are 2 per multiply-add.
        max_hw_flops: deprecated name of `max_flops`.

    Raises:
        ValueError: an argument is invalid.
        TypeError: `model` is not a module, `optimizer` not an optimizer of PyTorch, or no tracker supports `to`.
        ImportError: a tracker needs a package that is not installed.

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
        >>> hook.metrics()["flops/forward"]  # 2 * (2 * 5 * 3)
        60
    """

    def __init__(
        self,
        model: nn.Module | Mapping[str, nn.Module],
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None = None,
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
        warn_of_fma("FlopHook", fma)
        self._options = options = Options(
            "FlopHook",
            elementwise=elementwise,
            warmup_steps=warmup_steps,
            latency_steps=latency_steps,
            log_every_n_steps=log_every_n_steps,
            max_flops=max_flops_of("FlopHook", max_flops, max_hw_flops),
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
        self._model, optimizers = model_of(model), optimizers_of(optimizer)
        self._failures = Failures(strict=strict)
        # The process group may be created later: the watch asks again when it counts.
        is_logging = rank_of() == 0
        owner = CallOwner()
        self._training = Training(
            self._model,
            options,
            self._trackers(to) if is_logging else {},
            owner=owner,
            samples=samples_in,
            show=_print if summary and is_logging else None,
            fallback=options.report_dir or Path(REPORT),
            failures=self._failures,
        )
        self._replace_earlier(optimizers)
        self._unseen = UNSEEN.format(type(innermost(self._model)).__name__, "{}")
        watch = LoopWatch(self._model, optimizers, options, self._training, owner, self._failures, unseen=self._unseen)
        self._watch: LoopWatch | EndedWatch = watch
        self._is_closed = False  # True from the first `close` on
        # The model's wrappers hold the watch, and would keep it for good if the user only dropped the hook. Weakly: a
        # model may hold its hook, and both have to be able to go.
        self._on_drop = weakref.finalize(self, _dropped, weakref.ref(watch))
        self._on_drop.atexit = False
        _open.add(self)

    def __getstate__(self) -> dict[str, Any]:
        """Return the options and the results so far: a copy watches no loop, and holds no model."""
        training = self._training
        return {
            "options": self._options,
            "profiles": training.profiles,
            "numbers": training.numbers,
            "is_spent": training.is_budget_spent,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._options = options = state["options"]
        self._model = nn.Module()
        self._failures = Failures(strict=options.strict)
        self._training = Training(self._model, options, {}, failures=self._failures)
        self._training.restore(state["profiles"], state["numbers"], is_spent=state["is_spent"])
        self._watch = EndedWatch(self._training.profiles.get(TRAINING))
        self._is_closed = True

    # --- For the user -------------------------------------------------------------------------------------------------

    @property
    def profile(self) -> ModelProfile | None:
        """Profile of the first training call; None before that call.

        Times and the whole step are added once they are measured.
        """
        with self._failures.as_warning("the profile could not be read"):
            return self._watch.profile()
        return None

    def charts(self) -> dict[str, int | float]:
        """Return the numbers that a dashboard charts, to log them with your own.

        They are at most six, by the names of their charts, such as `workload/mfu_pct`.

        Example:
            >>> wandb.log({"loss": loss, **hook.charts()}, step=step)  # doctest: +SKIP
        """
        charts, _ = placed(self.metrics())
        return charts

    def metrics(self) -> dict[str, int | float]:
        """Return all numbers so far by logged name.

        Counts are exact ints. Most never change, and make no chart worth looking at: `charts` has the others.
        """
        profile = self.profile
        scalars = {} if profile is None else profile.scalars()
        scalars |= self._training.numbers
        return {self._options.prefix + name: value for name, value in scalars.items()}

    def log_by_compute(self, metrics: Mapping[str, float | torch.Tensor]) -> None:
        """Log metrics at compute so far.

        Trackers that can plot against compute themselves get nothing.

        Call it where the loop logs these metrics, on any rank. For W&B it is not needed: logging `{"val/loss": loss,
        **hook.charts()}` puts compute beside the loss.

        Args:
            metrics: values by name, each named in `by_compute`. A tensor has one element; reading it waits for its
                device.

        Example:
            >>> writer.add_scalar("val/loss", loss, step)  # doctest: +SKIP
            >>> hook.log_by_compute({"val/loss": loss})  # doctest: +SKIP
        """
        with self._failures.as_warning("nothing was logged by compute"):
            named = self._options.by_compute
            if unknown := [name for name in metrics if name not in named]:
                raise ValueError(f"FlopHook: by_compute is {list(named)}, and does not name {unknown}: add it there")
            if self._training.takes_copies:
                self._training.log_by_compute({name: float(value) for name, value in metrics.items()})

    @property
    def should_stop(self) -> bool:
        """True once all ranks together have spent `max_flops`.

        After the same step, it is the same on all ranks.

        Example:
            >>> for x, y in loader:  # doctest: +SKIP
            ...     ...
            ...     if hook.should_stop:
            ...         break
        """
        return self._training.is_budget_spent

    def state_dict(self) -> dict[str, Any]:
        """Return compute so far, of all ranks, for a checkpoint.

        Every rank has to call it after the same step. Rank 0 waits some seconds for the others, warns about missing
        ones, and gets the state to save; the state of other ranks has no compute.
        """
        with self._failures.as_warning("a checkpoint has no compute so far"):
            self._training.pause()  # writing a checkpoint is not training
            return {"compute": self._training.state()} if self._training.is_metering else {}
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load compute so far from a checkpoint.

        Every rank has to call it, before the first step. The number of ranks may differ from that of the checkpoint.

        Args:
            state: result of `state_dict` on rank 0.
        """
        with self._failures.as_warning("compute so far begins anew"):
            if isinstance(self._watch, EndedWatch):
                raise RuntimeError("this is a copy of a hook, which watches no loop")
            compute = compute_in(state)
            self._training.load(compute)
            self._training.poll_loaded_budget()

    @contextmanager
    def step(self) -> Iterator[None]:
        """Mark the code inside as one step.

        Use it around every step if steps of the loop do not end with the steps of its optimizers, or to have what comes
        before the first call of the model in the step, such as that of another module. Where the loop is not yours,
        `begin_step` and `end_step` do the same in its callbacks.
        """
        with self._watch.marked_step():
            yield

    def begin_step(self) -> None:
        """Mark the begin of a step, which `end_step` ends.

        What was called since the end of the step before is in no step: of a step that was begun and not ended, as where
        its batch was skipped, nothing is booked.

        Example:
            >>> class Counted(Callback):  # doctest: +SKIP
            ...     def before_batch(self): hook.begin_step()
            ...     def after_batch(self): hook.end_step()
        """
        self._watch.begin_marked_step()

    def end_step(self) -> None:
        """Mark the end of a step.

        Without `begin_step` it began with the first call after the step before.
        """
        self._watch.end_marked_step()

    def close(self) -> None:
        """Log the last results, and detach from model and optimizers.

        A second call does nothing.
        """
        self._close(wait=True)

    def __enter__(self) -> FlopHook:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if error is None:
            self.close()
            return
        # The loop's own error is being raised: do not wait for a device that may be dead, and raise nothing.
        try:
            self._close(wait=False)
        except Exception as failure:  # noqa: BLE001 - another error is being raised
            self._failures.log("the report of a training that ended early is not complete", failure)

    def _close(self, *, wait: bool, is_replaced: bool = False) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        _open.discard(self)
        self._on_drop.detach()
        has_seen_call = self._watch.close(wait=wait)
        if wait and not has_seen_call and not is_replaced:
            warnings.warn(self._unseen.format(""), FlopCallbackWarning, stacklevel=3)

    def _replace_earlier(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Close earlier hooks that have one of the optimizers, and modules in common with this one."""
        steppers, modules = set(map(id, optimizers)), set(map(id, self._model.modules()))
        for hook in list(_open):
            is_same = isinstance(hook._watch, LoopWatch) and steppers & hook._watch.optimizer_ids
            if is_same and modules & set(map(id, hook._model.modules())):
                warnings.warn(REPLACED, FlopCallbackWarning, stacklevel=3)
                hook._close(wait=True, is_replaced=True)

    def _trackers(self, to: Any) -> dict[str, Tracker]:
        """Return a tracker for each target, by name."""
        targets = to if isinstance(to, list) else [] if to is None else [to]
        if self._options.report_dir is not None:
            targets = [*targets, Path(self._options.report_dir)]
        trackers: dict[str, Tracker] = {}
        for target in targets:
            tracker = tracker_for(target, prefix=self._options.prefix)
            trackers[new_name(target, trackers, tracker)] = tracker
        return trackers


_open: weakref.WeakSet[FlopHook] = weakref.WeakSet()  # those that watch a loop


def _dropped(reference: weakref.ref[LoopWatch]) -> None:
    """Detach the watch of a hook that nobody has any more."""
    watch = reference()
    if watch is not None and not watch.drop():
        warnings.warn(DROPPED, FlopCallbackWarning, stacklevel=2)


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")
