"""What a user can set, the same for the callback and the hook: checked once, and turned into conditions."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from flopcallback.measuring.hardware import peak_for
from flopcallback.profiling.conditions import Conditions, Convention, conditions_of
from flopcallback.training.batch_sizes import BatchSizes, whole_number
from flopcallback.training.failures import Troubles
from flopcallback.training.meter import ComputeMeter

__all__ = ["Options"]


@dataclass(frozen=True, slots=True)
class Options:
    """The arguments of `FlopCallback` and `FlopHook`, which document them; `owner` is the one that was given them.

    Raises:
        ValueError: an argument is not what it is to be.
    """

    owner: str
    fma: int = 1
    elementwise: bool = False
    warmup_steps: int = 5
    latency_steps: int = 20
    log_every_n_steps: int | None = None
    max_hw_flops: float | None = None
    peak_flops: float | str | None = None
    batch_size_fn: Callable[[Any], int] | None = None
    tokens_fn: Callable[[Any], int] | None = None
    flops_fn: Callable[[Any], int] | None = None
    by_compute: Sequence[str] = ()
    prefix: str = ""
    report_dir: str | Path | None = None
    summary: bool = True
    strict: bool = False

    def __post_init__(self) -> None:
        is_fma = _is_whole(self.fma) and self.fma in (1, 2)
        self._check("fma", is_fma, "1 (a multiply-add is one FLOP) or 2 (it is two)")
        for name in ("warmup_steps", "latency_steps"):
            value = getattr(self, name)
            self._check(name, _is_whole(value) and value >= 0, "a whole number, 0 or more")
        for name in ("elementwise", "summary", "strict"):
            self._check(name, isinstance(getattr(self, name), bool), "True or False")
        every, budget, peak = self.log_every_n_steps, self.max_hw_flops, self.peak_flops
        self._check("log_every_n_steps", every is None or (_is_whole(every) and every > 0), "1 or more, or None")
        self._check("max_hw_flops", budget is None or _is_amount(budget), "FLOPs above 0, or None")
        is_peak = peak is None or peak == "measure" or _is_amount(peak)
        self._check("peak_flops", is_peak, 'FLOP/s above 0, "measure" or None')
        for name in ("batch_size_fn", "tokens_fn", "flops_fn"):
            function = getattr(self, name)
            self._check(name, function is None or callable(function), "a function or None")
        is_names = isinstance(self.by_compute, (list, tuple)) and all(map(_is_name, self.by_compute))
        self._check("by_compute", is_names, "a list of names of metrics, such as ['val/loss']")
        self._check("prefix", isinstance(self.prefix, str), "a string")
        is_folder = self.report_dir is None or isinstance(self.report_dir, (str, os.PathLike))
        self._check("report_dir", is_folder, "a folder or None")

    def _check(self, name: str, is_fine: bool, expected: str) -> None:
        if not is_fine:
            raise ValueError(f"{self.owner}: {name} is {getattr(self, name)!r}, expected {expected}")

    @property
    def convention(self) -> Convention:
        """What counts as a FLOP."""
        return Convention(self.fma, self.elementwise)

    def meter(
        self,
        model: nn.Module,
        samples: Callable[[Any], int | None],
        troubles: Troubles,
        *,
        measures_waiting: bool = False,
    ) -> ComputeMeter:
        """What books the steps of a training of `model`.

        Args:
            model: what is trained.
            samples: of a batch, where the user gives no function.
            troubles: where failures go.
            measures_waiting: whether what lies between two steps is known to be waiting for data.
        """
        return ComputeMeter(
            model,
            BatchSizes(self.batch_size_fn, self.tokens_fn, samples, troubles),
            flops_fn=self.flops_fn,
            budget=self.max_hw_flops,
            measures_waiting=measures_waiting,
            troubles=troubles,
        )

    def conditions(
        self,
        phase: str,
        model: nn.Module,
        batch: Any,
        troubles: Troubles,
        *,
        inputs: Any = None,
        step_row: str | None = None,
    ) -> Conditions:
        """The conditions that a call of `model` finds now; what of them cannot be told is reported and left out.

        Args:
            phase: one of `flopcallback.profile.model_profile.PHASES`.
            model: what is called.
            batch: what `batch_size_fn` is asked about.
            troubles: where to report.
            inputs: all that the call is given, by default the batch.
            step_row: the path of a row for what runs outside of any submodule.
        """
        conditions = conditions_of(phase, model, batch if inputs is None else inputs, step_row=step_row)
        if self.batch_size_fn is not None:
            conditions = dataclasses.replace(conditions, batch_size=None)
            with troubles.reported("the number of samples is not known"):
                samples = whole_number(self.batch_size_fn, "batch_size_fn", batch)
                conditions = dataclasses.replace(conditions, batch_size=samples)
        with troubles.reported("the device's peak is not known"):
            peak = peak_for(conditions.device, conditions.dtype, self.peak_flops)
            return dataclasses.replace(conditions, peak=peak)
        return conditions


def _is_amount(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < float("inf")


def _is_name(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
