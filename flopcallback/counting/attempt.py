"""A call that has to happen, told apart from what of ours stands around it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flopcallback.counting.run import Run

__all__ = ["Attempt", "Observed", "make_sure"]


@dataclass(frozen=True, slots=True)
class Observed:
    """A call that was made.

    Attributes:
        result: what it returned.
        runs: what was seen of it; empty where nothing could be.
        failure: what kept us from seeing it, or from seeing it by the tracer.
        unseen: modules whose calls in it could not be seen, and why.
    """

    result: Any
    runs: tuple[Run, ...] = ()
    failure: Exception | None = None
    unseen: Mapping[str, str] = field(default_factory=dict)


class Attempt:
    """A call that knows whether it began, and whether it came to its end."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self.has_begun = self.has_ended = False
        self.result: Any = None

    def __call__(self) -> Any:
        """Makes the call."""
        self.has_begun, self.has_ended = True, False
        self.result = self._call()
        self.has_ended = True
        return self.result


def make_sure(call: Callable[[], Any], around: Callable[[Callable[[], Any]], Any]) -> Observed:
    """Has `around` make a call, and makes it itself where `around` failed to. A call that ended is not made again.

    Raises:
        BaseException: what `around` raises while the call is under way: that is the call's own error.
    """
    attempt, failure = Attempt(call), None
    try:
        around(attempt)
    except Exception as error:
        if attempt.has_begun and not attempt.has_ended:
            raise
        failure = error
    return Observed(attempt.result if attempt.has_ended else call(), (), failure)
