"""FlopHook: the door for plain loops."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flopcallback.loop.objects import EndedWatch, optimizers_of, unwrapped
from flopcallback.loop.watch import LoopWatch
from flopcallback.modules.structures import first_dimension
from flopcallback.reporting import ModelProfile
from flopcallback.runs.folders import REPORT
from flopcallback.trackers import Tracker, new_name, tracker_for
from flopcallback.training.failures import Failures, FlopCallbackWarning
from flopcallback.training.options import Options
from flopcallback.training.ranks import rank_of
from flopcallback.training.training import TRAINING, Training

__all__ = ["FlopHook"]

NOTHING_SEEN = (
    "FlopHook: no training call of {} was seen. It counts calls with grad enabled and model.training, made in the "
    "thread that made the hook; not those that compiled code makes. With torch.compile, make the hook after it, of "
    "what it returned."
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

    Make it after `torch.compile`, of what the loop calls, and in the thread that trains. A copy of it (by `deepcopy`,
    or pickled) has what is known by then, and watches nothing.

    Args:
        model: whose modules are told apart. What `DistributedDataParallel`, `DataParallel` or Fabric wraps is taken out
            of it, so that names are those of a single process.
        optimizer: one, or a list of several. What Accelerate, Fabric and others wrap is taken out of the wrapper's
            attribute `optimizer`.
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
        by_compute: names of metrics of the loop's own that are to have compute so far as their x-axis, such
            as `["val/loss"]`. W&B draws them so itself; other trackers get a copy, `val/loss_by_compute`, whose step is
            hardware FLOPs in millions, of what `log_by_compute` is given.
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
        by_compute: Sequence[str] = (),
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
            by_compute=by_compute,
            prefix=prefix,
            report_dir=report_dir,
            summary=summary,
            strict=strict,
        )
        self._model, optimizers = unwrapped(model), optimizers_of(optimizer)
        self._failures = Failures(strict=strict)
        is_logging = rank_of() == 0
        self._training = Training(
            self._model,
            options,
            self._trackers(to) if is_logging else {},
            samples=first_dimension,
            show=_print if summary and is_logging else None,
            fallback=options.report_dir or Path(REPORT),
            failures=self._failures,
        )
        self._watch: LoopWatch | EndedWatch = LoopWatch(
            self._model, optimizers, options, self._training, self._failures
        )
        self._is_closed = False

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

    # --- What a user asks for -----------------------------------------------------------------------------------------

    @property
    def profile(self) -> ModelProfile | None:
        """The profile of the first training call, with times once they are in; None before that call."""
        with self._failures.as_warning("the profile could not be read"):
            return self._watch.profile()
        return None

    def metrics(self) -> dict[str, int | float]:
        """The numbers that are known by now, by name, to merge into what the loop logs itself; integers are exact.

        Example:
            >>> wandb.log({"loss": loss, **hook.metrics()}, step=step)  # doctest: +SKIP
        """
        profile = self.profile
        scalars = {} if profile is None else profile.scalars()
        scalars |= self._training.numbers
        return {self._options.prefix + name: value for name, value in scalars.items()}

    def log_by_compute(self, metrics: Mapping[str, float | torch.Tensor]) -> None:
        """Logs metrics that `by_compute` names, at compute so far; where the loop logs them, on any rank.

        W&B needs no call: there, `{"val/loss": loss, **hook.metrics()}` has compute beside the loss. Tensors have one
        element; their device is waited for where a tracker gets a copy.

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
        """Whether `max_hw_flops` are spent, by all ranks together; the same on all ranks after the same step.

        Example:
            >>> for x, y in loader:  # doctest: +SKIP
            ...     ...
            ...     if hook.should_stop:
            ...         break
        """
        return self._training.is_budget_spent

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps, for `load_state_dict`: compute so far, of all ranks.

        Every rank has to call it, after the same step: the first one waits for the others, for seconds at most, and
        warns of those that did not come. What it gets is to be saved; others get no compute.
        """
        with self._failures.as_warning("a checkpoint has no compute so far"):
            self._training.pause()  # what follows is not training
            return {"compute": self._training.state()} if self._training.is_metering else {}
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state_dict` gave, on any number of ranks; before the first step, and on every rank."""
        with self._failures.as_warning("compute so far begins anew"):
            if isinstance(self._watch, EndedWatch):
                raise RuntimeError("this is a copy of a hook, which watches no loop")
            compute = state.get("compute", {})
            self._training.load(compute)
            self._training.poll_loaded_budget(compute)

    @contextmanager
    def step(self) -> Iterator[None]:
        """Goes around each step of a loop whose steps are not what its optimizers say."""
        with self._watch.marked_step():
            yield

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
            self._failures.log("the report of a training that ended early is not complete", ours)

    def _close(self, *, wait: bool) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        has_seen = self._watch.close(wait=wait)
        if wait and not has_seen:
            warnings.warn(NOTHING_SEEN.format(type(self._model).__name__), FlopCallbackWarning, stacklevel=3)

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
