"""Where tables are printed."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["screen"]

UNBOUNDED = 140
"""Columns where the output is no terminal and `COLUMNS` says nothing: files and logs of builds scroll sideways."""


def screen() -> Console:
    """Standard output as it is now, as wide as the terminal."""
    from rich.console import Console

    is_bounded = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(width=None if is_bounded else UNBOUNDED)
