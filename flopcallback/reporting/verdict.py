"""What came of holding both engines against each other, as plain data, and in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flopcallback.reporting.profile import ModelProfile

__all__ = ["EngineDifference", "Verdict", "verdict_line", "verdict_lines"]

LISTED = 10
"""How many differences a table lists; the page and JSON have them all."""


@dataclass(frozen=True, slots=True)
class EngineDifference:
    """Hardware FLOPs of a family of operators in a module, `""` for the model, as each of the engines saw them."""

    module: str
    family: str
    trace: int
    dispatch: int

    def __str__(self) -> str:
        return f"{self.module or '(model)'}, {self.family}: {self.trace:,} traced, {self.dispatch:,} dispatched"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of counting a call with both engines: without differences and without a reason, they agree.

    Attributes:
        differences: in hardware FLOPs, outermost modules first.
        reason: why only one of the engines could count the call; empty where both did.
    """

    differences: tuple[EngineDifference, ...] = ()
    reason: str = ""

    @classmethod
    def of_content(cls, content: Mapping[str, Any]) -> Verdict:
        """The verdict that JSON has as `content`."""
        return cls(tuple(EngineDifference(**each) for each in content["differences"]), content["reason"])


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
