"""What a command prints: tables on a console, and lines."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import typer

from flopcallback.reporting.units import visible

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["say", "screen"]

UNBOUNDED = 140
"""Columns without a terminal and without `COLUMNS`; files and build logs scroll sideways."""


def screen() -> Console:
    """Return a console on standard output, as wide as the terminal."""
    from rich.console import Console

    class Screen(Console):
        def on_broken_pipe(self) -> None:
            """Re-raise the error, where rich would exit with code 1."""
            raise  # noqa: PLE0704 - rich calls this where it has caught the error

    # `sys.stdout` is read in each call, since tests and `redirect_stdout` replace it.
    is_bounded = (sys.stdout is not None and sys.stdout.isatty()) or "COLUMNS" in os.environ
    return Screen(width=None if is_bounded else UNBOUNDED)


def say(text: str, *, is_error: bool = False) -> None:
    """Print lines, with control characters made visible."""
    typer.echo(visible(text), err=is_error)
