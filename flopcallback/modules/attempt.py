"""A call that has to happen, told apart from what of ours stands around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

__all__ = ["Attempt", "Made", "call_once"]


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


class Made(NamedTuple):
    """A call that was made: its result, and what failed around it."""

    result: Any
    failure: Exception | None


def call_once(call: Callable[[], Any], around: Callable[[Callable[[], Any]], Any]) -> Made:
    """Makes a call through `around`, or by itself where `around` fails before the call.

    A call that ended is not made again.

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
    return Made(attempt.result if attempt.has_ended else call(), failure)
