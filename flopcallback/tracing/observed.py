"""Observed runs of calls that were made, and their results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flopcallback.modules.names import ModuleNames
from flopcallback.tracing.record import GraphLog, OperatorLog

__all__ = ["AUTO", "DISPATCH", "OBSERVER", "TRACE", "NotNow", "Observed", "ObservedRun"]

AUTO, TRACE, DISPATCH, OBSERVER = "auto", "trace", "dispatch", "observer"


class NotNow(RuntimeError):  # noqa: N818 - nothing went wrong
    """Reason for not observing a call, which a later call need not have."""


@dataclass(frozen=True)
class ObservedRun:
    """Operators of one run of a callable, and the modules called.

    Attributes:
        record: the operators.
        names: the modules' names.
        calls: how often each module was entered, by canonical name.
        called: modules that were called as `module(...)`.
        strays: modules that ran in another thread in which no engine saw them, or not until they ended.
        output_shapes: shape of the last tensor that each module returned.
        engine: `"trace"`, `"dispatch"` or `"observer"`.
        engine_reason: why the engine was not the tracer; empty if it was.
        compiled: names of the compiled functions that the run called; they are not looked into.
        methods: methods other than `forward` by which modules were entered, by canonical name.
    """

    record: GraphLog | OperatorLog
    names: ModuleNames
    calls: Counter[str]
    called: frozenset[str]
    strays: frozenset[str]
    output_shapes: Mapping[str, tuple[int, ...]]
    engine: str
    engine_reason: str = ""
    compiled: tuple[str, ...] = ()
    methods: Mapping[str, set[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Observed:
    """The result of a call, and its observed runs.

    Attributes:
        result: the value that the call returned.
        runs: the observed runs; empty if the call could not be observed.
        failure: the error that kept us from observing it, or from observing it by the tracer.
        unseen: why calls of modules in it could not be observed, by module name.
        backwards: backwards of the calls that were counted beside the training; None if one of them is not known.
    """

    result: Any
    runs: tuple[ObservedRun, ...] = ()
    failure: Exception | None = None
    unseen: Mapping[str, str] = field(default_factory=dict)
    backwards: tuple[ObservedRun, ...] | None = ()
