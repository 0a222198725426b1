"""The result of comparing two engines, in words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from flopcallback.profile.verdict import Verdict

if TYPE_CHECKING:
    from flopcallback.profile.model_profile import ModelProfile

__all__ = ["verdict_line", "verdict_lines"]

# Differences that a table lists. The page and the JSON have all.
LISTED = 10


def verdict_line(profile: ModelProfile) -> str:
    """Say in one line whether the two engines agree.

    It is empty if only one engine was asked. A profile of a training counts as checked if the whole step that was
    observed after the counted one matched module by module.
    """
    verdict, step = profile.verdict, profile.step
    if verdict is None:
        # A whole step is observed by the dispatcher, so it checks only a count by the tracer.
        is_checked = step is not None and not profile.step_note and profile.config.get("flops.engine") == "trace"
        return "verified: both engines count the same forward in every module" if is_checked else ""
    if verdict.reason:
        return f"not verified: {verdict.reason}"
    if not verdict.differences:
        who = "both engines" if verdict.engines == Verdict().engines else " and ".join(verdict.engines)
        return f"verified: {who} count the same"
    return f"the engines differ in {_places(len(verdict.differences))}"


def verdict_lines(profile: ModelProfile) -> Iterator[str]:
    """Yield the verdict, then the first of the differences."""
    if line := verdict_line(profile):
        yield line
    differences = profile.verdict.differences if profile.verdict is not None else ()
    yield from (f"the engines differ: {difference}" for difference in differences[:LISTED])
    if len(differences) > LISTED:
        yield f"the engines differ: {_places(len(differences) - LISTED)} more"


def _places(count: int) -> str:
    return f"{count:,} place{'' if count == 1 else 's'}"
