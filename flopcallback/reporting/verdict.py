"""What came of holding both engines against each other, as plain data, and in words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flopcallback.profile.model_profile import ModelProfile

__all__ = ["verdict_line", "verdict_lines"]

LISTED = 10
"""How many differences a table lists; the page and JSON have them all."""


def verdict_line(profile: ModelProfile) -> str:
    """Whether both engines count the same, in one line; empty where only one of them was asked.

    A profile of a training was checked by the whole step that was observed after the counted one, module by module.
    """
    verdict, step = profile.verdict, profile.step
    if verdict is None:
        is_checked = step is not None and not profile.step_note and profile.config.get("flops.engine") == "trace"
        return "verified: both engines count the same forward in every module" if is_checked else ""
    if verdict.reason:
        return f"not verified: {verdict.reason}"
    if not verdict.differences:
        return "verified: both engines count the same"
    return f"the engines differ in {_places(len(verdict.differences))}"


def verdict_lines(profile: ModelProfile) -> Iterator[str]:
    """The line, and below it the first of the differences."""
    if line := verdict_line(profile):
        yield line
    differences = profile.verdict.differences if profile.verdict is not None else ()
    yield from (f"the engines differ: {difference}" for difference in differences[:LISTED])
    if len(differences) > LISTED:
        yield f"the engines differ: {_places(len(differences) - LISTED)} more"


def _places(count: int) -> str:
    return f"{count:,} place{'' if count == 1 else 's'}"
