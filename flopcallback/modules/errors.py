"""Says in one line what an error says."""

from __future__ import annotations

__all__ = ["first_line"]


def first_line(error: BaseException | None, otherwise: str = "") -> str:
    """Return the first line of an error's message, or `otherwise` where it has none: a tracer's goes on for pages."""
    return next(iter(str(error).strip().splitlines()), otherwise)
