"""What bounds the rate of some work: the device's products, its memory, or the launches of its operators.

Williams, Waterman, Patterson, "Roofline: An Insightful Visual Performance Model for Multicore Architectures", 2009.
"""

from __future__ import annotations

from typing import Literal

__all__ = ["Bound", "bound_by", "memory_roof"]

Bound = Literal["compute", "memory", "launches", ""]
"""What sets the pace; empty if that is not known."""

# An operator costs PyTorch some microseconds before its kernel starts: a call that is as short as that is all launch.
LAUNCH_MS = 0.01


def bound_by(
    flops: int,
    moved: int | None,
    ms: float,
    *,
    peak: float | None,
    bandwidth: float | None,
    overhead_ms: float = 0.0,
    calls: int = 0,
) -> Bound:
    """Return what bounds the rate of some work.

    It is launches if half of the time passes outside of operators, or if an operator takes no longer than its launch.
    Else it is memory if the bytes take longer at the device's bandwidth than the FLOPs at its peak. A kernel that keeps
    data on the chip moves fewer bytes than its operators read and write.

    Args:
        flops: FLOPs.
        moved: bytes that are read and written; None if unknown.
        ms: milliseconds; where they are not above 0, nothing is known.
        peak: the device's FLOP/s; None if unknown.
        bandwidth: bytes/s of its memory; None if unknown.
        overhead_ms: part of `ms` outside of operators.
        calls: number of calls of operators; 0 if unknown.
    """
    if not ms > 0:
        return ""
    if overhead_ms >= ms / 2 or (calls and ms - overhead_ms < calls * LAUNCH_MS):
        return "launches"
    if moved is None or peak is None or bandwidth is None or not (moved or flops):
        return ""
    return "memory" if moved / bandwidth > flops / peak else "compute"


def memory_roof(flops: int, moved: int, *, peak: float | None, bandwidth: float | None) -> float | None:
    """Return the most FLOP/s that memory allows at so many FLOPs per byte; None if the peak allows no more.

    Args:
        flops: FLOPs.
        moved: bytes that are read and written.
        peak: the device's FLOP/s; None if unknown.
        bandwidth: bytes/s of its memory; None if unknown.
    """
    if not flops or not moved or bandwidth is None:
        return None
    roof = bandwidth * (flops / moved)
    return roof if peak is None or roof < peak else None
