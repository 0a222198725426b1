"""Command `flopcallback`: its subcommands and its version."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from flopcallback._version import __version__
from flopcallback.cli.compare import compare
from flopcallback.cli.count import count
from flopcallback.cli.diff import diff
from flopcallback.cli.failures import exit_on_error, exit_where_nobody_reads, old_names_on_stderr

__all__ = ["app", "main"]


class Command(TyperGroup):
    """The command, every end of which has its exit code and message."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Run the command and exit."""
        with exit_where_nobody_reads():
            return super().main(*args, **options)

    def make_context(self, *args: Any, **options: Any) -> Any:
        """Read the command line up to the subcommand, and show help and version."""
        with exit_on_error():
            return super().make_context(*args, **options)

    def invoke(self, ctx: Any) -> Any:
        """Run the subcommand."""
        with exit_on_error(), old_names_on_stderr():
            return super().invoke(ctx)


# No rich markup: its boxes wrap text that people copy and search. No pretty exceptions: `exit_on_error` shows what a
# model raises.
app = typer.Typer(
    name="flopcallback", cls=Command, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False
)
app.command()(count)
app.command()(diff)
app.command()(compare)


def _show_version(is_requested: bool) -> None:
    if is_requested:
        typer.echo(f"flopcallback {__version__}")
        raise typer.Exit


@app.callback(epilog="Exit codes: 0 fine, 1 a limit or a check failed, 2 it could not be done.")
def flopcallback(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Count, compare and limit FLOPs of PyTorch models."""


def main() -> None:
    """Run the command in `sys.argv`."""
    app(prog_name="flopcallback")
