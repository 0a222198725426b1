"""RunRecord: what one training left behind, as plain data without any tracker."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from flopcallback.profile import metrics
from flopcallback.profile.model_profile import PHASES

__all__ = ["COMPUTE", "FoundRun", "RunRecord", "RunsError", "Series", "is_our_name"]

Series = tuple[tuple[int, int | float], ...]
"""Pairs of step and value in order of steps. Of several values at one step, the last logged comes last."""

COMPUTE = metrics.COMPUTE.name
"""Name under which a training logs its hardware FLOPs so far."""

_PHASES = tuple(f"{phase}/" for phase in PHASES)
# Every run of ours has one of these names; a user's prefix is what precedes it.
_OUR_NAME = re.compile(f"(.*?)(?:{re.escape(metrics.FORWARD.name)}|{re.escape(COMPUTE)})")


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One run.

    Attributes:
        name: name shown to people.
        place: folder or address from which it was read.
        figures: last value under each name; an exact int if the source has one.
        series: all values under each name; numbers that were logged once may be missing.
        config: conditions of the count (`flops.fma`, ...), and other configuration that the source has.
    """

    name: str
    place: str
    figures: Mapping[str, int | float] = field(default_factory=dict)
    series: Mapping[str, Series] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)

    def prefixes(self) -> list[str]:
        """Return the prefixes in front of our names in this run.

        They are what users gave as `prefix=`; mostly `[""]`, or `[]` if nothing is ours.
        """
        names = (_OUR_NAME.fullmatch(name) for name in {*self.figures, *self.series})
        return sorted({_without_phase(match[1]) for match in names if match})

    def without_prefix(self, prefix: str) -> RunRecord:
        """Return a copy in which our names have this prefix no more.

        Names of ours with another prefix stay as they are.
        """
        if not prefix:
            return self
        return replace(
            self,
            figures=_stripped(self.figures, prefix),
            series=_stripped(self.series, prefix),
            config=_stripped(self.config, prefix),
        )

    def own_metrics(self) -> set[str]:
        """Return the names of the user's own numbers that were logged repeatedly."""
        return {name for name in self.series if not is_our_name(name)}


def is_our_name(name: str) -> bool:
    """Return whether flopcallback logs a number under this name.

    A phase in front is part of the name; a prefix is not.
    """
    phase = next((phase for phase in _PHASES if name.startswith(phase)), "")
    return name.removeprefix(phase).startswith(metrics.GROUPS)


def _without_phase(prefix: str) -> str:
    return prefix.removesuffix(next((phase for phase in _PHASES if prefix.endswith(phase)), ""))


def _stripped(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Remove the prefix from our names only.

    The user's own names may begin with the same text.
    """
    renamed = {}
    for name, value in values.items():
        bare = name.removeprefix(prefix)
        renamed[bare if is_our_name(bare) or bare.startswith("flops.") else name] = value
    return renamed


class RunsError(ValueError):
    """Error for a place without runs, or with an unreadable one.

    The text says why, and what to do.
    """


@dataclass(frozen=True, slots=True)
class FoundRun:
    """A run that was found but not read yet.

    Attributes:
        place: its folder or address.
        read: reads it; raises `RunsError` if it cannot be read.
    """

    place: str
    read: Callable[[], RunRecord]
