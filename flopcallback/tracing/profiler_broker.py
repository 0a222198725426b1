"""Stand-in for the process-wide owner of PyTorch's profiler."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from flopcallback.tracing.torch_private import ProfilerResult, start_profiler, stop_profiler, why_no_observer

__all__ = ["ProfilerResult", "Recording", "begin_recording", "end_recording"]


@dataclass(slots=True)
class Recording:
    """Recording under way."""

    is_over: bool = False  # True once it has ended


_current: Recording | None = None  # one session per process


def begin_recording() -> Recording | None:
    """Begin to record operators; None if the profiler is not to be had."""
    global _current  # noqa: PLW0603 - a process has one
    if _current is not None or why_no_observer():
        return None
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else libkineto prints two lines at each use
    start_profiler()
    _current = Recording()
    return _current


def end_recording(recording: Recording) -> Any:
    """End a recording and return its records; None if it was ended before."""
    global _current
    if recording.is_over or recording is not _current:
        return None
    recording.is_over, _current = True, None
    return stop_profiler()
