"""WandbTracker: what W&B can show of a profile, written into a run that the caller owns."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from flopcallback.profile.metrics import COMPUTE
from flopcallback.profile.numbers import LARGEST_EXACT
from flopcallback.reporting import html_page
from flopcallback_wandb.target import run_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from flopcallback.reporting import ModelProfile

__all__ = ["WandbTracker"]

STAGES = ("report", "tables", "times")
"""How much of a profile a run shows: the report; tables and charts too; all of it, with times."""

WITH_STEP = " with a whole step"
"""Behind the stage, where what is shown has what a whole training step did."""


class WandbTracker:
    """Writes to a run of W&B's: its history, summary and config, tables, charts, an HTML report and an artifact.

    Nothing is committed and no `step=` is passed: what is logged joins the row of history that the caller commits next,
    or the one of the caller's last `step=`. So under Lightning it stands beside `train/loss`, no row of the caller's is
    moved or dropped, and what no row follows is written when the run finishes. Of two numbers of one name that wait for
    the same row, the later one stands.

    Integers are exact in history and summary below 2**63; from 2**53 on, where a browser rounds them, the summary has
    the digits as well, as a string under `<name>_exact`. They are exact at any size in the tables and the artifact.

    A second fit or a resumed run shows its profile only where the run does not show it yet, or not with times, or not
    with a whole step: the config's `flops.logged` says what it shows, by a hash of what was counted. So the same model
    is not shown twice, and another one is.

    Args:
        target: a run, as `wandb.init()` returns it; Lightning's `WandbLogger`; or the string `"wandb"`, for the active
            run. The run is not finished.
        prefix: stands in front of the names of tables, charts, report and config.

    Raises:
        TypeError: `target` is none of these.
        RuntimeError: `"wandb"` while no run is active.
        ModuleNotFoundError: W&B is not installed.
    """

    def __init__(self, target: Any, *, prefix: str = "") -> None:
        self.run: Any = run_of(target)
        self.prefix = prefix
        # In Lightning's rows stands a step already, and its logger has told W&B to draw by it.
        self._has_own_axis = isinstance(target, str) or target is self.run
        self._axis = f"{prefix}flops/step" if self._has_own_axis else "trainer/global_step"
        self._with_axis: set[str] = set()
        self._in_summary: set[str] = set()
        self._untimed: dict[str, ModelProfile] = {}

    def log_scalars(self, values: Mapping[str, int | float], step: int) -> None:
        """Puts numbers, and the step that they belong to, into the row of history that is committed next.

        On a run of the caller's own their x-axis is `flops/step`; one that is defined for these names afterwards holds.
        Under Lightning it is the logger's, `trainer/global_step`.
        """
        if not values:
            return
        if self._has_own_axis:
            self._define_axis(values)
        self.run.log({**values, self._axis: step}, commit=False)
        self._summarise(values)

    def log_profile(self, profile: ModelProfile, step: int) -> None:
        """Writes what is new of a profile: first the config and the report, then all, with times.

        Tables and charts are logged once. They wait for the times, and for `close` where none come.
        """
        tag = self._tag(profile)
        conditions = {tag + name: value for name, value in profile.config.items()}
        self.run.config.update(conditions, allow_val_change=True)
        self._summarise({self.prefix + name: value for name, value in profile.scalars().items()})
        if profile.latency is None:
            self._untimed[tag] = profile
            self._show(profile, "report")
        else:
            self._untimed.pop(tag, None)
            self._show(profile, "times")

    def log_training(self, profile: ModelProfile) -> None:
        """Writes the exact integers to the summary, and the artifact anew; no row of history is made for it."""
        from flopcallback_wandb.media import artifact

        self._summarise({self.prefix + name: value for name, value in profile.training.items()})
        self.run.log_artifact(artifact(profile, html_page(profile), self.run.id, self.prefix))

    def use_compute_axis(self, names: Sequence[str]) -> None:
        """Makes compute so far the x-axis of the caller's metrics of these names; of no others."""
        for name in names:
            self.run.define_metric(_escaped(name), step_metric=self.prefix + COMPUTE.name)

    def close(self) -> None:
        """Logs the tables and charts of profiles that got no times; the run stays open for its owner."""
        while self._untimed:
            _, profile = self._untimed.popitem()
            self._show(profile, "tables")

    def _define_axis(self, values: Mapping[str, int | float]) -> None:
        """By exact names, so that no metric of the caller's is touched."""
        if not self._with_axis:
            self.run.define_metric(_escaped(self._axis), hidden=True)
        for name in values.keys() - self._with_axis:
            self.run.define_metric(_escaped(name), step_metric=self._axis)
            self._with_axis.add(name)

    def _summarise(self, values: Mapping[str, int | float]) -> None:
        """Integers, when their names are new and where they are large; W&B itself keeps the last of the others."""
        integers = {name: value for name, value in values.items() if isinstance(value, int)}
        new = {name: value for name, value in integers.items() if name not in self._in_summary}
        # The digits of an earlier fit's large number must not outlive it.
        stale = {name for name in new if self.run.summary.get(f"{name}_exact") is not None}
        digits = {
            f"{name}_exact": str(value)
            for name, value in integers.items()
            if abs(value) > LARGEST_EXACT or name in stale
        }
        self._in_summary.update(new)
        if new or digits:
            self.run.summary.update({**new, **digits})

    def _show(self, profile: ModelProfile, stage: str) -> None:
        """Logs what `stage` has, unless the run shows that much of the profile."""
        tag = self._tag(profile)
        shown, mine = f"{tag}flops.logged", f"{self.run.id} {profile.fingerprint()}"
        steps = (WITH_STEP,) if profile.step is not None else ("", WITH_STEP)
        if self.run.config.get(shown) in [f"{mine} {each}{step}" for each in _from(stage) for step in steps]:
            return
        self._log_media(profile, tag, stage)
        # With the run's id, since configs are handed on to new runs, which show nothing yet.
        self.run.config.update({shown: f"{mine} {stage}{steps[0]}"}, allow_val_change=True)

    def _log_media(self, profile: ModelProfile, tag: str, stage: str) -> None:
        # It imports W&B, whose absence `run_of` explains.
        from flopcallback_wandb.media import artifact, charts, report, tables

        page = html_page(profile)
        media: dict[str, Any] = {} if stage == "tables" else {"flops/report": report(page)}
        if stage != "report":
            media |= {**tables(profile), **charts(profile)}
            self.run.log_artifact(artifact(profile, page, self.run.id, self.prefix))
        self.run.log({tag + name: item for name, item in media.items()}, commit=False)

    def _tag(self, profile: ModelProfile) -> str:
        return self.prefix + profile.phase_prefix


def _escaped(name: str) -> str:
    """The name as `define_metric` takes it: a bare dot there leads into a nested dict, and nothing matches."""
    return re.sub(r"([\\.])", r"\\\1", name)


def _from(stage: str) -> tuple[str, ...]:
    """The stages that show as much as this one."""
    return STAGES[STAGES.index(stage) :]
