"""Calls that must happen exactly once, whatever fails around them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

__all__ = ["Attempt", "Outcome", "call_once"]


class Attempt:
    """A call that records whether it has begun and ended."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self.has_begun = False  # set before the call: from then on, an error may be the call's own
        self.has_ended = False  # set when the call has returned; False again while a second attempt is under way
        self.result: Any = None

    def __call__(self) -> Any:
        """Make the call and return its result."""
        self.has_begun, self.has_ended = True, False
        self.result = self._call()
        self.has_ended = True
        return self.result


class Outcome(NamedTuple):
    """The result of a call, and the error raised around it."""

    result: Any
    failure: Exception | None


def call_once(call: Callable[[], Any], around: Callable[[Callable[[], Any]], Any]) -> Outcome:
    """Make a call exactly once, through `around` if that works.

    If `around` fails before it makes the call, the call is made directly. If it fails afterwards, the call is not
    repeated.

    Raises:
        BaseException: raised while the call was under way, so it is the call's own error.
    """
    attempt, failure = Attempt(call), None
    try:
        around(attempt)
    except Exception as error:
        if attempt.has_begun and not attempt.has_ended:
            raise
        failure = error
    return Outcome(attempt.result if attempt.has_ended else call(), failure)
