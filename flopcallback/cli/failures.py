"""Errors that end a command with exit code 2.

Either the command cannot be done as it was called, or the user's own code raised.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import torch
import typer

from flopcallback.modules.errors import first_line

__all__ = ["COULD_NOT", "FAILED", "UsageError", "exit_on_error", "user_code"]

FAILED, COULD_NOT = 1, 2
"""Exit codes: a limit or a check failed; the command could not be done."""

# Frames that are not the user's: files of this package, of PyTorch, and of the import machinery.
_HIDDEN_FRAMES = (str(Path(__file__).parents[1]), str(Path(torch.__file__).parent), "<frozen")


class UsageError(Exception):
    """Command that cannot be done as it was called.

    The text says why, and how to do it instead.
    """


class _UserCodeError(Exception):
    """Exception in the user's code.

    Attributes:
        error: exception that was raised.
    """

    def __init__(self, activity: str, error: BaseException) -> None:
        super().__init__(activity)
        self.error = error


@contextmanager
def user_code(activity: str) -> Iterator[None]:
    """Redirect the output of the user's code, and report its exceptions.

    Its prints go to stderr, and an exception ends the command.

    Args:
        activity: description for the error message, such as `"importing net"`.
    """
    try:
        with redirect_stdout(sys.stderr):  # stdout may be JSON for another program
            yield
    except UsageError:  # raised by this package inside, about the command line
        raise
    except (Exception, SystemExit) as error:  # a script exits if it parses its command line on import
        raise _UserCodeError(activity, error) from error


@contextmanager
def exit_on_error() -> Iterator[None]:
    """Report the error that ends a command, and exit with code 2.

    The message goes to stderr. An exception of the user's code comes with the user's part of the traceback.

    Raises:
        typer.Exit: with code 2.
    """
    try:
        yield
    except UsageError as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(COULD_NOT) from None
    except _UserCodeError as error:
        typer.echo(f"{_traceback_of(error.error)}Error: {error} raised {_named(error.error)}", err=True)
        raise typer.Exit(COULD_NOT) from None


def _named(error: BaseException) -> str:
    message = first_line(error)
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def _traceback_of(error: BaseException) -> str:
    """Return the user's frames of a traceback, or an empty string."""
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(_HIDDEN_FRAMES)
    ]
    if not frames:
        return ""
    return f"Traceback (without what is flopcallback's and PyTorch's):\n{''.join(traceback.format_list(frames))}"
