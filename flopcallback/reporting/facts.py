"""What findings go by: the times of a profile, by kind of work and by phase."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING

from flopcallback.profile import metrics
from flopcallback.profile.rows import achieved_flops_per_s, share
from flopcallback.profile.times import StepTime
from flopcallback.reporting.measured import is_of_step, points_of, whole_ms
from flopcallback.reporting.points import OPTIMIZER
from flopcallback.reporting.tree import OWN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flopcallback.profile.model_profile import ModelProfile
    from flopcallback.reporting.points import Point

__all__ = ["Facts", "Part"]


@dataclass(frozen=True, slots=True)
class Part:
    """Points of one kind: modules of a class, or an operator of modules' own.

    Attributes:
        points: the points, the slowest first.
        share: share of the time.
        flops_share: share of the FLOPs.
        flops: FLOPs.
        ms: milliseconds.
    """

    points: Sequence[Point]
    share: float
    flops_share: float
    flops: int
    ms: float

    @property
    def name(self) -> str:
        """Name in a sentence: that of the place where there is only one, else of the kind."""
        first = self.points[0]
        if first.is_outside and first.operator != OPTIMIZER:
            return first.path if first.path != first.operator else f"{first.operator}, outside of the model"
        if first.operator:
            return first.short_path if len(self.points) == 1 else first.operator
        if len(self.points) == 1 and first.modules == 1:
            return f"{first.path} ({first.type})" if first.path else first.type
        return first.type or first.short_path

    @property
    def path(self) -> str | None:
        """Path of the slowest module; None outside of the model."""
        return self.points[0].row.path or None

    @property
    def is_countable(self) -> bool:
        """True if its FLOPs are all that it does: no operator without a count is in it."""
        return not any(point.row.unknown_calls for point in self.points)


class Facts:
    """A profile's times, sorted for the rules.

    Attributes:
        profile: the profile.
        whole: milliseconds that all shares are of; 0 without times.
        what: what these milliseconds are, in a word.
    """

    def __init__(self, profile: ModelProfile) -> None:
        self.profile = profile
        whole = whole_ms(profile) or 0.0
        self.whole = whole if 0 < whole < math.inf else 0.0
        self.what = "step" if is_of_step(profile) else "forward"

    @cached_property
    def points(self) -> list[Point]:
        """All of the work, the slowest first; empty without times."""
        return points_of(self.profile) if self.whole else []

    @cached_property
    def parts(self) -> list[Part]:
        """All of the work by kind, the slowest first."""
        groups: defaultdict[tuple[bool, str], list[Point]] = defaultdict(list)
        for point in self.points:
            # What modules of one class do on their own is no kind; of several it has as many meanings.
            name = point.path if point.operator == OWN or not point.type else point.type
            groups[bool(point.operator), name].append(point)
        parts = [
            Part(
                points,
                min(1.0, math.fsum(point.time_share for point in points)),
                math.fsum(point.flops_share for point in points),
                sum(point.flops for point in points),
                math.fsum(point.ms for point in points),
            )
            for points in groups.values()
        ]
        return sorted(parts, key=lambda part: -part.ms)

    def share_of(self, operator: str) -> float:
        """Return the share of `PYTHON` or `IDLE` in all of the step, 0 to 1."""
        ms = math.fsum(each.ms for each in self.profile.operator_times if each.operator == operator)
        return share(ms, self.whole) or 0.0

    @cached_property
    def phases(self) -> StepTime:
        """Milliseconds by phase; all 0 if they are not known."""
        root = self.profile.root
        if root is not None and root.time is not None:
            return root.time
        sums = dict.fromkeys((phase.name for phase in fields(StepTime)), 0.0)
        for each in self.profile.operator_times:
            if each.phase in sums:
                sums[each.phase] += each.ms
        return StepTime(**sums)

    def phase_share(self, phase: str) -> float:
        """Return the share of a phase, 0 to 1."""
        return share(getattr(self.phases, phase), self.phases.total) or 0.0

    def rate_beside(self, part: Part) -> float | None:
        """Return the part's FLOP/s over those of all other parts with FLOPs; None without any."""
        others = [other for other in self.parts if other.flops and other is not part]
        rate = achieved_flops_per_s(part.flops, part.ms)
        rest = achieved_flops_per_s(sum(other.flops for other in others), math.fsum(other.ms for other in others))
        return share(rate, rest)

    def share_of_peak(self, part: Part) -> float | None:
        """Return the part's FLOP/s over the device's peak; None if that is not known or not believable."""
        of_peak = share(achieved_flops_per_s(part.flops, part.ms), self.profile.peak_flops_per_s)
        return of_peak if of_peak is not None and of_peak <= 1 else None

    @property
    def data_wait(self) -> float:
        """Share of the training's time between two steps, 0 to 1."""
        return (self.profile.training.get(metrics.DATA_WAIT.name) or 0.0) / 100

    @property
    def is_compiled(self) -> bool:
        """True if some of the model is compiled."""
        return any("compiled" in row.note for row in self.profile.modules) or any(
            "Compiled" in each.operator for each in self.profile.operator_times
        )
