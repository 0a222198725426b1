"""What a profile says about where time goes, in a few sentences, by rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flopcallback.profile.model_profile import ModelProfile

__all__ = ["Finding", "findings"]


@dataclass(frozen=True, slots=True)
class Finding:
    """A sentence about a profile.

    Attributes:
        text: the sentence, without a full stop.
        weight: share of the time that it explains, 0 to 1.
        rule: name of the rule that found it.
        path: path of the module that it is about; None if it is about the whole.
    """

    text: str
    weight: float
    rule: str
    path: str | None = None


def findings(profile: ModelProfile) -> list[Finding]:
    """Return what a reader should know first, at most five sentences."""
    return []
