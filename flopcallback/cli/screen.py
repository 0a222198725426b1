"""Console that tables are printed on."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["screen"]

UNBOUNDED = 140
"""Columns without a terminal and without `COLUMNS`; files and build logs scroll sideways."""


def screen() -> Console:
    """Return a console on standard output, as wide as the terminal."""
    from rich.console import Console

    # `sys.stdout` is read in each call, since tests and `redirect_stdout` replace it.
    is_bounded = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(width=None if is_bounded else UNBOUNDED)
