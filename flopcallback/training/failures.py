"""Failures of this package as warnings, so that training goes on."""

from __future__ import annotations

import functools
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from flopcallback.modules.errors import first_line
from flopcallback.reporting.units import visible

__all__ = ["Failures", "FlopCallbackWarning", "guarded"]

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
        self._late: list[tuple[str, Exception, str, str]] | None = None  # within `raised_last`: what is raised after it

    def log(self, what: str, error: Exception) -> None:
        """Log a failure with its traceback at DEBUG, without a warning."""
        _log.debug("%s", what, exc_info=error)

    def only_warn(self) -> None:
        """Raise nothing from now on, since nobody could catch it."""
        self._strict = False

    def report(self, what: str, error: Exception, note: str = "", *, loss: str = "") -> None:
        """Warn about a failure, unless its cause was reported before.

        Args:
            what: the failure in words, such as "the profile is not logged".
            error: the exception behind it.
            note: sentences about what comes of it.
            loss: a sentence before the note that is said even if the cause was reported before.

        Raises:
            Exception: `error` itself, if `strict`.
        """
        self.log(what, error)
        if not self._strict or self._late:
            self._warn(what, error, note, loss)
        elif self._late is None:
            raise error
        else:
            self._late.append((what, error, note, loss))

    @contextmanager
    def raised_last(self) -> Iterator[None]:
        """Raise what `strict` raises after the block.

        It is the first failure inside; further ones are warnings, and so is the first one if the block itself raises.
        """
        if self._late is not None or not self._strict:
            yield
            return
        late: list[tuple[str, Exception, str, str]] = []
        self._late = late
        try:
            yield
        except BaseException:
            for each in late:
                self._warn(*each)
            raise
        finally:
            self._late = None
        for _, error, _, _ in late:
            raise error

    def _warn(self, what: str, error: Exception, note: str, loss: str) -> None:
        # Only the first line: the tracer's messages list every element of a tensor.
        message = first_line(error, "no message")
        reason = f"{type(error).__name__}: {message}"
        if loss or not self._reported & {what, reason}:
            then = " ".join(filter(None, (loss, note, "Training is not affected and goes on.")))
            # A server's text may have what a terminal obeys.
            text = visible(f"{what}: {reason}. {then} ({_WHERE_TO_LOOK})")
            warnings.warn(text, FlopCallbackWarning, stacklevel=3)
        self._reported |= {what, reason}

    @contextmanager
    def as_warning(self, what: str) -> Iterator[None]:
        """Report an exception that is raised inside, and continue after the block."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - the promise: no failure of ours ends training
            self.report(what, error)


class _GivesUp(Protocol):
    """A callback of a trainer, which gives up for the rest of a run."""

    _gave_up: bool

    def _give_up(self, what: str, error: Exception) -> None: ...


Hook = TypeVar("Hook", bound=Callable[..., None])


def guarded(hook: Hook) -> Hook:
    """Turn an exception in a hook of a callback into a warning.

    The callback then gives up for the rest of the run.
    """

    @functools.wraps(hook)
    def guarded(self: _GivesUp, *args: Any, **kwargs: Any) -> None:
        if self._gave_up:
            return
        try:
            hook(self, *args, **kwargs)
        except Exception as error:  # noqa: BLE001 - the promise: training goes on
            self._give_up(f"{hook.__name__} failed", error)

    return guarded  # type: ignore[return-value]
