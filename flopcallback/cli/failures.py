"""How a command ends: its exit code, and what it says.

Code 1 is for a limit or a check that failed. Whatever else happens has another: an error of the command line, of a file
or of the user's code, and an error of this package.
"""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import torch
import typer

from flopcallback.cli.screen import say
from flopcallback.modules.errors import first_line
from flopcallback.profile.old_names import OldNameWarning
from flopcallback.reporting.units import visible

__all__ = [
    "COULD_NOT",
    "FAILED",
    "INTERRUPTED",
    "PIPE_CLOSED",
    "TRACEBACK",
    "UsageError",
    "exit_on_error",
    "exit_where_nobody_reads",
    "old_names_on_stderr",
    "user_code",
]

FAILED, COULD_NOT = 1, 2
"""Exit codes: a limit or a check failed; the command could not be done."""

INTERRUPTED, PIPE_CLOSED = 130, 141
"""Exit codes of what Ctrl-C ended, and of what printed into a pipe that nobody reads: 128 and the signal's number."""

TRACEBACK = "FLOPCALLBACK_TRACEBACK"
"""Environment variable; if it is set, an error of this package comes with its traceback."""

# The base of typer's errors about a command line. Its own name for it depends on the version (0.12 to 0.29).
_WrongCommandLine: Any = typer.BadParameter.__mro__[2]

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
    """Report whatever ends a command, and exit with the code for it.

    The message goes to stderr. An exception of the user's code comes with the user's part of the traceback.

    Raises:
        typer.Exit: with the code.
    """
    try:
        yield
        # Here, and not at the interpreter's end, where nobody can catch it.
        if sys.stdout is not None:  # the shell can close it, with `>&-`
            sys.stdout.flush()
    except (typer.Exit, BrokenPipeError):  # a pipe that nobody reads: `exit_where_nobody_reads`
        raise
    except _WrongCommandLine as error:
        # Typer prints it. The shell may have put any name into the command line.
        error.message = visible(error.message)
        raise
    except UsageError as error:
        say(f"Error: {error}", is_error=True)
        raise typer.Exit(COULD_NOT) from None
    except _UserCodeError as error:
        say(f"{_traceback_of(error.error)}Error: {error} raised {_named(error.error)}", is_error=True)
        raise typer.Exit(COULD_NOT) from None
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except OSError as error:  # a full disk, a file in the way
        _show_traceback()
        say(f"Error: {_named(error)}", is_error=True)
        raise typer.Exit(COULD_NOT) from None
    except (Exception, SystemExit) as error:  # noqa: BLE001 - code 1, which Python would exit with, is for a failed limit
        _show_traceback()
        say(
            f"Error: flopcallback itself failed, {_named(error)}. Please report it, with the traceback that "
            f"{TRACEBACK}=1 shows.",
            is_error=True,
        )
        raise typer.Exit(COULD_NOT) from None


def _show_traceback() -> None:
    if os.environ.get(TRACEBACK):
        say(traceback.format_exc(), is_error=True)


@contextmanager
def exit_where_nobody_reads() -> Iterator[None]:
    """Exit with a code of its own if a pipe is closed.

    Typer would exit with code 1, which is for a failed limit. Errors are printed too, so this goes around everything.
    """
    try:
        yield
    except (BrokenPipeError, SystemExit) as end:
        # Typer makes one of the other, but not while it prints an error.
        if not isinstance(end, BrokenPipeError) and not isinstance(end.__context__, BrokenPipeError):
            raise
        # The interpreter prints what is left when it ends.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.__stdout__, sys.__stderr__):
            if stream is not None:
                os.dup2(nowhere, stream.fileno())
        raise SystemExit(PIPE_CLOSED) from None


@contextmanager
def old_names_on_stderr() -> Iterator[None]:
    """Say on stderr what has the name of an older version."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", OldNameWarning)
        show = warnings.showwarning

        def say_or_show(message: Any, category: type[Warning], *args: Any, **options: Any) -> None:
            if issubclass(category, OldNameWarning):
                say(str(message), is_error=True)
            else:
                show(message, category, *args, **options)

        warnings.showwarning = say_or_show
        yield


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
