"""MetricsByCompute: the user's metrics, logged once more at compute so far."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flopcallback.training.failures import Failures
from flopcallback.training.training import Training

__all__ = ["MetricsByCompute"]


class MetricsByCompute:
    """Metrics of the user's module, logged once more at compute so far.

    They are read from the trainer after it has logged them itself, so that no rank waits for another one.

    Args:
        names: names in the trackers, such as `train_loss_epoch` if Lightning logs a value per step and per epoch.
        failures: reports failures.
    """

    def __init__(self, names: Sequence[str], failures: Failures) -> None:
        self._names = tuple(names)
        self._failures = failures
        self._latest: dict[str, float] = {}  # last logged value by name

    def begin(self) -> None:
        """Forget the values of the last training."""
        self._latest = {}

    def log(self, trainer: Any, training: Training | None) -> None:
        """Log the metrics with a new value.

        Reading the values waits for their device, which happens only if a tracker needs copies.
        """
        if not self._names or training is None or not training.takes_copies:
            return
        with self._failures.as_warning("metrics are not logged by compute"):
            logged = trainer.logged_metrics
            values = {name: float(logged[name]) for name in self._names if name in logged}
            # Compared as text, since NaN is not equal to itself.
            new = {name: value for name, value in values.items() if str(value) != str(self._latest.get(name))}
            self._latest.update(new)
            training.log_by_compute(new)

    def check(self, trainer: Any) -> None:
        """Report names that the training never logged."""
        logged = trainer.logged_metrics if self._names and trainer.is_global_zero else self._names
        if missing := [name for name in self._names if name not in logged]:
            logged_names = ", ".join(sorted(logged)) or "nothing"
            error = LookupError(f"by_compute names {missing}, and what the training logged is {logged_names}")
            self._failures.report("metrics are not drawn by compute", error)
