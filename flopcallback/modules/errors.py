"""Short texts for errors."""

from __future__ import annotations

__all__ = ["first_line"]


def first_line(error: BaseException | None, otherwise: str = "") -> str:
    """Return the first line of an error's message, or `otherwise`.

    A message of the tracer's can be pages long.
    """
    return next(iter(str(error).strip().splitlines()), otherwise)
