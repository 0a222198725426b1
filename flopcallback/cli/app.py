"""The command `flopcallback`: its subcommands, its version, its exit codes."""

from __future__ import annotations

from typing import Annotated

import typer

from flopcallback._version import __version__
from flopcallback.cli.compare import compare
from flopcallback.cli.count import count
from flopcallback.cli.diff import diff

__all__ = ["app", "main"]

# Plain help and errors, without boxes that wrap what people copy and search; what a model raises we show ourselves.
app = typer.Typer(name="flopcallback", no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)
app.command()(count)
app.command()(diff)
app.command()(compare)


def _show_version(is_asked_for: bool) -> None:
    if is_asked_for:
        typer.echo(f"flopcallback {__version__}")
        raise typer.Exit


@app.callback(epilog="Exit codes: 0 fine, 1 a limit or a check failed, 2 it could not be done.")
def flopcallback(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """FLOPs of PyTorch models, by module and by operator: counted, compared, held to a limit."""


def main() -> None:
    """Runs the command that `sys.argv` holds."""
    app(prog_name="flopcallback")
