"""Options: the arguments that FlopCallback and FlopHook have in common."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from flopcallback.measuring.hardware import peak_for
from flopcallback.profiling.checks import checked_options
from flopcallback.profiling.conditions import Conditions, conditions_of
from flopcallback.tracing.observer import none_of_the_steps
from flopcallback.training.audits import Observe
from flopcallback.training.batch_sizes import whole_number
from flopcallback.training.failures import Failures

__all__ = ["Options"]


@dataclass(frozen=True, slots=True)
class Options:
    """Validated arguments of `FlopCallback` or `FlopHook`, which document them.

    Numbers become Python's own, and `report_dir` a path.

    Attributes:
        owner: name of that class, for error messages.

    Raises:
        ValueError: an argument is invalid.
    """

    owner: str
    elementwise: bool = False
    warmup_steps: int = 5
    latency_steps: int = 20
    log_every_n_steps: int | None = None
    max_flops: float | None = None
    peak_flops: float | str | None = None
    batch_size_fn: Callable[[Any], int] | None = None
    tokens_fn: Callable[[Any], int] | None = None
    flops_fn: Callable[[Any], int] | None = None
    observe: Observe = "auto"
    by_compute: Sequence[str] = ()
    prefix: str = ""
    report_dir: str | Path | None = None
    summary: bool = True
    strict: bool = False

    def __post_init__(self) -> None:
        given = {item.name: getattr(self, item.name) for item in dataclasses.fields(self) if item.name != "owner"}
        for name, value in checked_options(self.owner, **given).items():
            object.__setattr__(self, name, value)

    def conditions(
        self,
        phase: str,
        model: nn.Module,
        batch: Any,
        failures: Failures,
        *,
        inputs: Any = None,
        step_row: str | None = None,
    ) -> Conditions:
        """Return the present conditions of a call of `model`.

        A batch size or peak that cannot be determined is reported and left out.

        Args:
            phase: one of `flopcallback.profile.model_profile.PHASES`.
            model: module under call.
            batch: argument of `batch_size_fn`.
            failures: reports failures.
            inputs: all inputs of the call; by default the batch.
            step_row: path of a row for work outside of any submodule.
        """
        conditions = conditions_of(phase, model, batch if inputs is None else inputs, step_row=step_row)
        if self.batch_size_fn is not None:
            conditions = dataclasses.replace(conditions, batch_size=None)
            with failures.as_warning("the number of samples is not known"):
                with none_of_the_steps():
                    samples = whole_number(self.batch_size_fn, "batch_size_fn", batch)
                conditions = dataclasses.replace(conditions, batch_size=samples)
        # It may be measured now, in the middle of a step.
        with failures.as_warning("the device's peak is not known"), none_of_the_steps():
            peak = peak_for(conditions.device, conditions.dtype, self.peak_flops)
            return dataclasses.replace(conditions, peak=peak)
        return conditions
