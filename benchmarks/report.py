"""Output of the benchmarks: Markdown tables, and the environment."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version

import torch

__all__ = ["environment", "markdown"]


def environment(*packages: str) -> str:
    """Describe date, Python, versions of packages and machine in one line."""
    parts = [f"{datetime.now(timezone.utc):%Y-%m-%d}", f"Python {platform.python_version()}"]
    parts += [f"{package} {_version(package)}" for package in ("flopcallback", "torch", *packages)]
    return ", ".join([*parts, f"{platform.machine()} with {os.cpu_count()} cores, {torch.get_num_threads()} threads"])


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # fvcore is optional here
        return "(absent)"


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Format a table with padded cells.

    The first column is aligned to the left, the others to the right.
    """
    rows = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [f"| {' | '.join(map(_aligned, range(len(row)), row, widths))} |" for row in rows]
    rule = "|".join("-" * (width + 1) + (":" if column else "-") for column, width in enumerate(widths))
    return "\n".join([lines[0], f"|{rule}|", *lines[1:]])


def _aligned(column: int, cell: str, width: int) -> str:
    return cell.rjust(width) if column else cell.ljust(width)
