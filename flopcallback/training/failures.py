"""What fails in here is one warning that says what and why, and training goes on."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from flopcallback.modules.errors import first_line

__all__ = ["Failures", "FlopCallbackWarning"]

_log = logging.getLogger("flopcallback")


# The line that a warning points at is ours, and says nothing about what failed.
_WHERE_TO_LOOK = "strict=True raises this; the logger 'flopcallback' has the traceback at DEBUG."


class FlopCallbackWarning(UserWarning):
    """Something in flopcallback failed; training was not touched by it and goes on."""


class Failures:
    """What failed in here: a warning, once for each cause, and each time a traceback in the log, at DEBUG.

    Args:
        strict: raise it instead.
    """

    def __init__(self, *, strict: bool = False) -> None:
        self._strict = strict
        self._told: set[str] = set()

    def log(self, what: str, error: Exception) -> None:
        """Logs that `what` failed and where, and no more than that."""
        _log.debug("%s", what, exc_info=error)

    def report(self, what: str, error: Exception) -> None:
        """Warns that `what` failed and why.

        Raises:
            Exception: `error` itself, where `strict`.
        """
        self.log(what, error)
        if self._strict:
            raise error
        # The first line: the tracer's complaints go on with every element of a tensor.
        message = first_line(error, "no message")
        reason = f"{type(error).__name__}: {message}"
        if not self._told & {what, reason}:
            text = f"{what}: {reason}. Training is not affected and goes on. ({_WHERE_TO_LOOK})"
            warnings.warn(text, FlopCallbackWarning, stacklevel=2)
        self._told |= {what, reason}

    @contextmanager
    def as_warning(self, what: str) -> Iterator[None]:
        """Reports what is raised inside."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - the promise: whatever fails in here is a warning
            self.report(what, error)
