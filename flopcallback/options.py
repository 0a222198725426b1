"""What a user can set, the same for the callback and the hook: checked once, and turned into conditions."""

from __future__ import annotations

import dataclasses
import operator
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from flopcallback.measuring.hardware import peak_for
from flopcallback.profiling import Conditions, Convention, conditions_of
from flopcallback.troubles import Troubles

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
    peak_flops: float | str | None = None
    batch_size_fn: Callable[[Any], int] | None = None
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
        peak = self.peak_flops
        is_number = isinstance(peak, (int, float)) and not isinstance(peak, bool) and 0 < peak < float("inf")
        is_peak = peak is None or peak == "measure" or is_number
        self._check("peak_flops", is_peak, 'FLOP/s above 0, "measure" or None')
        is_function = self.batch_size_fn is None or callable(self.batch_size_fn)
        self._check("batch_size_fn", is_function, "a function or None")
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
            phase: one of `flopcallback.reporting.profile.PHASES`.
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
                conditions = dataclasses.replace(conditions, batch_size=_samples(self.batch_size_fn, batch))
        with troubles.reported("the device's peak is not known"):
            peak = peak_for(conditions.device, conditions.dtype, self.peak_flops)
            return dataclasses.replace(conditions, peak=peak)
        return conditions


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _samples(function: Callable[[Any], int], batch: Any) -> int:
    size = function(batch)
    try:
        samples = operator.index(size)
    except Exception as error:
        raise TypeError(f"batch_size_fn returned {size!r:.80}, expected an int") from error
    if samples < 0:
        raise ValueError(f"batch_size_fn returned {samples}, expected 0 or more")
    return samples
