"""Failures of this package as warnings, so that training goes on."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from flopcallback.modules.errors import first_line

__all__ = ["Failures", "FlopCallbackWarning"]

_log = logging.getLogger("flopcallback")


# A warning points at a line of this package, which says nothing about the failure.
_WHERE_TO_LOOK = "strict=True raises this; the logger 'flopcallback' has the traceback at DEBUG."


class FlopCallbackWarning(UserWarning):
    """Warning that something in flopcallback failed; training is unaffected."""


class Failures:
    """Reporter of failures, with one warning per cause.

    Each failure also goes to the log `flopcallback`, at DEBUG, with its traceback.

    Args:
        strict: whether to raise the exception instead of warning.
    """

    def __init__(self, *, strict: bool = False) -> None:
        self._strict = strict
        self._reported: set[str] = set()  # subjects and reasons; a failure that shares either is no new cause

    def log(self, what: str, error: Exception) -> None:
        """Log a failure with its traceback at DEBUG, without a warning."""
        _log.debug("%s", what, exc_info=error)

    def report(self, what: str, error: Exception, note: str = "") -> None:
        """Warn about a failure, unless its cause was reported before.

        Args:
            what: the failure in words, such as "the profile is not logged".
            error: the exception behind it.
            note: sentences about what comes of it.

        Raises:
            Exception: `error` itself, if `strict`.
        """
        self.log(what, error)
        if self._strict:
            raise error
        # Only the first line: the tracer's messages list every element of a tensor.
        message = first_line(error, "no message")
        reason = f"{type(error).__name__}: {message}"
        if not self._reported & {what, reason}:
            then = f"{note} Training is not affected and goes on.".lstrip()
            text = f"{what}: {reason}. {then} ({_WHERE_TO_LOOK})"
            warnings.warn(text, FlopCallbackWarning, stacklevel=2)
        self._reported |= {what, reason}

    @contextmanager
    def as_warning(self, what: str) -> Iterator[None]:
        """Report an exception that is raised inside, and continue after the block."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - the promise: no failure of ours ends training
            self.report(what, error)
