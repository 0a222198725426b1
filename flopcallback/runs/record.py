"""RunRecord: what one training left in its tracker or folder, as plain data that knows no tracker."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from flopcallback.profile import metrics
from flopcallback.profile.model_profile import PHASES

__all__ = ["COMPUTE", "FoundRun", "RunRecord", "RunsError", "Series", "is_own_name"]

Series = tuple[tuple[int, int | float], ...]
"""Pairs of step and value, by step; the last of several values at one step comes last."""

COMPUTE = metrics.COMPUTE.name
"""The name under which a training logs the hardware FLOPs that it has spent so far."""

_PHASES = tuple(f"{phase}/" for phase in PHASES)
_TELLTALE = re.compile(f"(.*?)(?:{re.escape(metrics.FORWARD.name)}|{re.escape(COMPUTE)})")


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One run.

    Attributes:
        name: what people call it.
        place: where it was read from, in words that find it again.
        figures: the last value under each name; an exact integer where the source has one.
        series: all values under each name; what was logged once may be left out.
        config: the conditions of the count (`flops.fma`, ...), and what else the source keeps as configuration.
    """

    name: str
    place: str
    figures: Mapping[str, int | float] = field(default_factory=dict)
    series: Mapping[str, Series] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)

    def prefixes(self) -> list[str]:
        """What stands in front of our names in this run, as a user's `prefix=` puts it there; mostly `[""]` or `[]`."""
        names = (_TELLTALE.fullmatch(name) for name in {*self.figures, *self.series})
        return sorted({_without_phase(match[1]) for match in names if match})

    def without_prefix(self, prefix: str) -> RunRecord:
        """The same run with our names as they are without a prefix; ours of another prefix stay as they stand."""
        if not prefix:
            return self
        return replace(
            self,
            figures=_stripped(self.figures, prefix),
            series=_stripped(self.series, prefix),
            config=_stripped(self.config, prefix),
        )

    def own_metrics(self) -> set[str]:
        """Names of the user's own numbers that were logged along the training."""
        return {name for name in self.series if not is_own_name(name)}


def is_own_name(name: str) -> bool:
    """Whether a number under this name is one that flopcallback logs, with its phase or without."""
    phase = next((phase for phase in _PHASES if name.startswith(phase)), "")
    return name.removeprefix(phase).startswith(metrics.GROUPS)


def _without_phase(prefix: str) -> str:
    return prefix.removesuffix(next((phase for phase in _PHASES if prefix.endswith(phase)), ""))


def _stripped(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The user's own names may begin with the same: those are theirs."""
    renamed = {}
    for name, value in values.items():
        bare = name.removeprefix(prefix)
        renamed[bare if is_own_name(bare) or bare.startswith("flops.") else name] = value
    return renamed


class RunsError(ValueError):
    """A place has no runs, or one of them cannot be read; the text says why, and the way out."""


@dataclass(frozen=True, slots=True)
class FoundRun:
    """A run that is there, not read yet.

    Attributes:
        place: the folder or address that it is at.
        read: reads it; raises `RunsError` where that cannot be done.
    """

    place: str
    read: Callable[[], RunRecord]
