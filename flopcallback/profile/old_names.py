"""Names of older versions: they are read as today's, with a warning."""

from __future__ import annotations

import warnings

__all__ = ["OldNameWarning", "warn_of_older_version"]

_READ = (
    "What an older flopcallback wrote is read under today's names, which CHANGELOG.md lists. FLOPs are 2 per "
    "multiply-add; its FLOPs of a forward were 1, are called macs, and are not compared with FLOPs."
)


class OldNameWarning(DeprecationWarning):
    """Warning that something has the name of an older version; `CHANGELOG.md` has today's."""


_said: set[str] = set()  # texts that this process has heard


def warn_of_older_version() -> None:
    """Warn that something was read that an older version wrote, once per process."""
    if _READ not in _said:
        _said.add(_READ)
        warnings.warn(_READ, OldNameWarning, stacklevel=3)
