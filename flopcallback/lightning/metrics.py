"""Metrics of the user's module by compute: what a trainer logged goes to trackers once more, at compute so far."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flopcallback.training.failures import Failures
from flopcallback.training.training import Training

__all__ = ["MetricsByCompute"]


class MetricsByCompute:
    """Metrics of the module's own that are logged once more, at compute so far.

    What a trainer has logged is read where it is known already, so that no rank waits for another one.

    Args:
        names: as they stand in the trackers (`train_loss_epoch`, where Lightning makes two of one).
        failures: where failures go.
    """

    def __init__(self, names: Sequence[str], failures: Failures) -> None:
        self._names = tuple(names)
        self._failures = failures
        self._latest: dict[str, float] = {}

    def begin(self) -> None:
        """A training begins."""
        self._latest = {}

    def log(self, trainer: Any, training: Training | None) -> None:
        """Logs those that have another value than the last time; waits for their device where there is a tracker."""
        if not self._names or training is None or not training.takes_copies:
            return
        with self._failures.as_warning("metrics are not logged by compute"):
            logged = trainer.logged_metrics
            values = {name: float(logged[name]) for name in self._names if name in logged}
            # As text, in which NaN is what it was.
            new = {name: value for name, value in values.items() if str(value) != str(self._latest.get(name))}
            self._latest.update(new)
            training.log_by_compute(new)

    def check(self, trainer: Any) -> None:
        """Reports names that the training never logged."""
        logged = trainer.logged_metrics if self._names and trainer.is_global_zero else self._names
        if missing := [name for name in self._names if name not in logged]:
            known = ", ".join(sorted(logged)) or "nothing"
            error = LookupError(f"by_compute names {missing}, and what the training logged is {known}")
            self._failures.report("metrics are not drawn by compute", error)
