"""What ends a command: something wrong with how it was called, or the user's own code; each with exit code 2."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import torch
import typer

from flopcallback.modules.errors import first_line

__all__ = ["COULD_NOT", "FAILED", "UsageError", "reported", "users_code"]

FAILED, COULD_NOT = 1, 2
"""Exit codes: a limit or a check failed; the command could not be done."""

# Not the user's: our files, PyTorch's, and the import machinery.
_PASSED_OVER = (str(Path(__file__).parents[1]), str(Path(torch.__file__).parent), "<frozen")


class UsageError(Exception):
    """The command cannot be done as it was called; the text says why, and the way out."""


class _UsersError(Exception):
    """The user's code raised `error` while `what` was being done."""

    def __init__(self, what: str, error: BaseException) -> None:
        super().__init__(what)
        self.error = error


@contextmanager
def users_code(what: str) -> Iterator[None]:
    """Around code that is not ours: what it prints goes to stderr, what it raises ends the command.

    Args:
        what: what is being done, such as `"importing net"`.
    """
    try:
        with redirect_stdout(sys.stderr):
            yield
    except UsageError:
        raise
    except (Exception, SystemExit) as error:  # a script that reads its own command line when imported exits
        raise _UsersError(what, error) from error


@contextmanager
def reported() -> Iterator[None]:
    """Around a command: what ends it is said on stderr, the user's code with the part of the traceback that is theirs.

    Raises:
        typer.Exit: with code 2.
    """
    try:
        yield
    except UsageError as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(COULD_NOT) from None
    except _UsersError as error:
        typer.echo(f"{_traceback_of(error.error)}Error: {error} raised {_named(error.error)}", err=True)
        raise typer.Exit(COULD_NOT) from None


def _named(error: BaseException) -> str:
    message = first_line(error)
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def _traceback_of(error: BaseException) -> str:
    """Where it was raised, as far as that is the user's; nothing where it is not."""
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(_PASSED_OVER)
    ]
    if not frames:
        return ""
    return f"Traceback (without what is flopcallback's and PyTorch's):\n{''.join(traceback.format_list(frames))}"
