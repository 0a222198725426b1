"""KeptProfiles: the profiles of a callback and of its copies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flopcallback.profile.model_profile import ModelProfile

__all__ = ["KeptProfiles"]


class KeptProfiles:
    """Latest profile of each phase, of a callback or of a copy of it.

    Frameworks that keep a trainer's arguments train with copies of its callbacks, and users look at their own. So what
    a copy learns reaches the original too, but not the other way round.

    Args:
        by_phase: profiles known so far.
        original: those of the callback that was copied.

    Attributes:
        by_phase: the profiles.
    """

    def __init__(
        self, by_phase: Mapping[str, ModelProfile] | None = None, original: KeptProfiles | None = None
    ) -> None:
        self.by_phase = dict(by_phase or {})
        self._original = original

    def update(self, profiles: Mapping[str, ModelProfile]) -> None:
        """Keep newer profiles, in the original too."""
        kept: KeptProfiles | None = self
        while kept is not None:
            kept.by_phase.update(profiles)
            kept = kept._original

    def __deepcopy__(self, memo: Any) -> KeptProfiles:
        return self  # `FlopCallback.__getstate__` has made it for the copy

    def __getstate__(self) -> dict[str, Any]:
        return {"by_phase": self.by_phase, "_original": None}  # another process has no original
