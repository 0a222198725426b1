"""WandbTracker: profiles and numbers in a W&B run that the caller owns."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flopcallback.profile.metrics import COMPUTE, card, placed, unsaid
from flopcallback.profile.numbers import LARGEST_EXACT, finite
from flopcallback.reporting import html_page
from flopcallback_wandb.target import run_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from flopcallback.reporting import ModelProfile

__all__ = ["KEPT", "WandbTracker"]

KEPT = "flopcallback"
"""Entry of the summary with all numbers that are not charted, and all exact integers, by name.

It is one entry, since W&B prints the first ten at the end of a run, by name, and would print none of the user's.
"""

# What a run shows of a profile: the report; tables and charts too; everything, with times.
STAGES = ("report", "tables", "times")

# Follows the stage if what is shown includes a whole training step.
WITH_STEP = " with a whole step"


class WandbTracker:
    """A tracker that writes to a W&B run.

    It writes history, summary and config, tables, figures, an HTML report and an artifact. Everything that has a panel
    is in the section `workload`. Numbers that are not charted are in the summary's entry `flopcallback`.

    Nothing is committed and no `step=` is passed: what is logged joins the row of history that the caller commits next,
    or the row of the caller's last `step=`. So under Lightning it is in the row of `train/loss`, no row of the caller's
    is moved or dropped, and what no row follows is written when the run finishes. If two numbers of one name wait for
    the same row, the later one is kept.

    Integers are exact in history and summary below 2**63. From 2**53 on, where a browser rounds them, that entry also
    has the digits, as a string under `<name>_exact`. Integers of any size are exact in the tables and the artifact.

    A second fit or a resumed run shows its profile only if the run does not show it yet, or not with times, or not with
    a whole step. The config's `flops.logged` keeps what the run shows, with a hash of the count. So the same model is
    not shown twice, and another one is.

    Args:
        target: a run, as returned by `wandb.init()`; Lightning's `WandbLogger`; or the string `"wandb"` for the active
            run. The run is not finished.
        prefix: prefix of the names of tables, figures, report and config.

    Raises:
        TypeError: `target` is none of these.
        RuntimeError: `target` is `"wandb"`, and no run is active.
        ModuleNotFoundError: W&B is not installed.
    """

    def __init__(self, target: Any, *, prefix: str = "") -> None:
        self.run: Any = run_of(target)
        self.prefix = prefix
        # False under Lightning: its rows have a step already, and its logger has defined that as the x-axis.
        self._defines_axis = isinstance(target, str) or target is self.run
        self._axis = prefix + card("step") if self._defines_axis else "trainer/global_step"
        self._names_with_axis: set[str] = set()  # names whose x-axis was defined
        # Profiles by tag whose tables and figures wait for times; `close` logs those that are left.
        self._untimed: dict[str, ModelProfile] = {}

    def log_scalars(self, values: Mapping[str, int | float], step: int) -> None:
        """Put numbers and their step into the row that is committed next.

        On a run of the caller's, their x-axis is `workload/step`, unless the caller defines another one afterwards.
        Under Lightning it is that of the logger, `trainer/global_step`.
        """
        charts, kept = placed(values)
        if charts:
            if self._defines_axis:
                self._define_axis(charts)
            self.run.log({**charts, self._axis: step}, commit=False)
        self._keep(kept | _whole(values))

    def log_profile(self, profile: ModelProfile, step: int) -> None:
        """Write config and report, and everything once there are times.

        Tables and figures are logged once. They wait for times, or for `close` if there are none.
        """
        tag = self._tag(profile)
        conditions = {tag + name: value for name, value in profile.config.items()}
        self.run.config.update(conditions, allow_val_change=True)
        scalars = profile.scalars()
        bare = {name.removeprefix(profile.phase_prefix): value for name, value in scalars.items()}
        self._keep(self._prefixed(scalars), [tag + name for name in unsaid(bare, "count", "window")])
        if profile.latency is None:
            self._untimed[tag] = profile
            self._show(profile, "report")
        else:
            self._untimed.pop(tag, None)
            self._show(profile, "times")

    def log_training(self, profile: ModelProfile) -> None:
        """Write the final numbers to the summary, and replace the artifact.

        No row of history is made for it.
        """
        from flopcallback_wandb.media import artifact

        _, kept = placed(profile.training)
        gone = [self.prefix + name for name in unsaid(profile.training, "log")]
        self._keep(self._prefixed(kept | _whole(profile.training)), gone)
        self.run.log_artifact(artifact(profile, html_page(profile), self.run.id, self.prefix))

    def page_of(self, profile: ModelProfile) -> str:
        """Return the address of the run, or its folder while it is offline."""
        folder = f"{Path(self.run.dir).parent} (wandb sync uploads it)"
        return folder if self.run.offline else str(self.run.url)

    def use_compute_axis(self, names: Sequence[str]) -> None:
        """Make compute so far the x-axis of these metrics of the caller's."""
        for name in names:
            self.run.define_metric(_escaped(name), step_metric=self.prefix + COMPUTE.chart)

    def close(self) -> None:
        """Log tables and figures of profiles without times.

        The run stays open for its owner.
        """
        while self._untimed:
            _, profile = self._untimed.popitem()
            self._show(profile, "tables")

    def _define_axis(self, values: Mapping[str, int | float]) -> None:
        """Define the x-axis by exact names.

        No metric of the caller's is touched.
        """
        if not self._names_with_axis:
            self.run.define_metric(_escaped(self._axis), hidden=True, summary="none")
        for name in values.keys() - self._names_with_axis:
            self.run.define_metric(_escaped(name), step_metric=self._axis)
            self._names_with_axis.add(name)

    def _keep(self, values: Mapping[str, int | float], gone: Iterable[str] = ()) -> None:
        """Put numbers into our entry of the summary, beside those of other trackers of the run.

        Args:
            values: numbers by name.
            gone: names of numbers that are not kept any longer.
        """
        present = dict(self.run.summary.get(KEPT) or {})
        # Digits of an earlier fit must not stay beside a new number.
        for name in (*values, *gone):
            present.pop(f"{name}_exact", None)
        left = {name: value for name, value in present.items() if name not in set(gone)}
        # W&B would write NaN, which is not valid JSON inside an entry.
        numbers = {name: finite(value) for name, value in values.items()}
        digits = {f"{name}_exact": str(value) for name, value in _whole(values).items() if abs(value) > LARGEST_EXACT}
        if values or left != present:
            self.run.summary.update({KEPT: {**left, **numbers, **digits}})

    def _prefixed(self, values: Mapping[str, int | float]) -> dict[str, int | float]:
        return {self.prefix + name: value for name, value in values.items()}

    def _show(self, profile: ModelProfile, stage: str) -> None:
        """Log what a stage has, unless the run shows it already."""
        tag = self._tag(profile)
        key, state = f"{tag}flops.logged", f"{self.run.id} {profile.fingerprint()}"
        steps = (WITH_STEP,) if profile.step is not None else ("", WITH_STEP)
        if self.run.config.get(key) in [f"{state} {later}{step}" for later in _stages_from(stage) for step in steps]:
            return
        self._log_media(profile, tag, stage)
        # With the run's id, since configs are copied to new runs, which show nothing yet.
        self.run.config.update({key: f"{state} {stage}{steps[0]}"}, allow_val_change=True)

    def _log_media(self, profile: ModelProfile, tag: str, stage: str) -> None:
        """Log report, tables and figures as the stage has them.

        Raises:
            ModuleNotFoundError: matplotlib is not installed; everything except the figures is logged nevertheless.
        """
        # Imported here because it imports W&B, whose absence `run_of` reports.
        from flopcallback_wandb.media import artifact, figures, report, tables

        page = html_page(profile)
        self._log(tag, {} if stage == "tables" else {"report": report(page)})
        if stage != "report":
            self._log(tag, tables(profile))
            self.run.log_artifact(artifact(profile, page, self.run.id, self.prefix))
            self._log(tag, figures(profile))

    def _log(self, tag: str, media: Mapping[str, Any]) -> None:
        self.run.log({tag + card(name): item for name, item in media.items()}, commit=False)

    def _tag(self, profile: ModelProfile) -> str:
        return self.prefix + profile.phase_prefix


def _whole(values: Mapping[str, int | float]) -> dict[str, int | float]:
    """Return the integers above 0."""
    return {name: value for name, value in values.items() if isinstance(value, int) and value}


def _escaped(name: str) -> str:
    """Escape a name for `define_metric`.

    A bare dot leads into a nested dict there, and nothing matches.
    """
    return re.sub(r"([\\.])", r"\\\1", name)


def _stages_from(stage: str) -> tuple[str, ...]:
    """Return the stages that show at least as much as this one."""
    return STAGES[STAGES.index(stage) :]
