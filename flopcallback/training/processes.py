"""Whether another process of this machine lives."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["has_died", "identity"]

PROC = Path("/proc")

DEAD = frozenset("ZX")
"""States of a process that has ended: nobody has asked for its exit status yet, or it is being removed."""


def identity() -> list[str]:
    """Return what tells this process from all others; empty where the system does not say.

    It is the boot of the machine, the space of process numbers, the number, and the time of its begin.
    """
    try:
        boot = (PROC / "sys/kernel/random/boot_id").read_text().strip()
        space = os.readlink(PROC / "self/ns/pid")
        return [boot, space, str(os.getpid()), _fields_of("self")[19]]
    except (OSError, IndexError):
        return []


def has_died(process: list[str]) -> bool:
    """Return whether a process of this machine has ended; False if it is of another machine, or nothing is known.

    Args:
        process: its `identity`.
    """
    own = identity()
    if not own or own[:2] != process[:2]:
        return False
    _, _, number, begin = process
    try:
        fields = _fields_of(number)
    except FileNotFoundError:
        return True
    except (OSError, IndexError):
        return False
    return fields[0] in DEAD or fields[19] != begin


def _fields_of(process: str) -> list[str]:
    """Return the fields of `/proc/PID/stat` from the third one on, the state; the second is a name with any letters."""
    return (PROC / process / "stat").read_text().rpartition(")")[2].split()
