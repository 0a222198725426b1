"""One observed run: choose the engine, run the callable, keep what it did."""

from __future__ import annotations

import functools
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from flopcallback.modules.compiled import CompiledCall, stepping_aside
from flopcallback.modules.errors import first_line
from flopcallback.modules.names import ModuleNames
from flopcallback.modules.snapshot import Snapshot, left_as_found, private_copies
from flopcallback.tracing.dispatch import DispatchRecorder
from flopcallback.tracing.jit_trace import trace
from flopcallback.tracing.record import GraphRecord, Record
from flopcallback.tracing.regions import intercept_named, sees_functions, without_compilation, without_fast_paths
from flopcallback.tracing.scopes import ModuleScopes
from flopcallback.tracing.threads import Threads
from flopcallback.tracing.torch_private import is_tracing, is_transforming, tree_leaves, why_no_tracer

__all__ = ["ENGINES", "ObservedRun", "device_mismatch", "observe", "run_isolated", "untraceable_reason"]

AUTO, TRACE, DISPATCH = "auto", "trace", "dispatch"
ENGINES = (AUTO, TRACE, DISPATCH)
ASKED_FOR = "asked for with engine='dispatch'"
TRACER_WARNINGS = ("no_tracer_warning", "all", "none")


@dataclass(frozen=True)
class ObservedRun:
    """What one run of a callable did, and on which modules.

    Attributes:
        record: the operators.
        names: the modules' names.
        calls: how often each module was entered, by canonical name.
        called: modules that were called as `module(...)`.
        strays: modules that were at work in another thread, where what they did was not seen, or not to its end.
        output_shapes: shape of the last tensor that each module returned.
        engine: `"trace"` or `"dispatch"`.
        engine_reason: why it was not the tracer; empty when it was.
        compiled: names of compiled functions that were called in it, and not looked into.
    """

    record: GraphRecord | Record
    names: ModuleNames
    calls: Counter[str]
    called: frozenset[str]
    strays: frozenset[str]
    output_shapes: Mapping[str, tuple[int, ...]]
    engine: str
    engine_reason: str = ""
    compiled: tuple[str, ...] = ()


def observe(
    call: Callable[[], Any],
    names: ModuleNames,
    arguments: Any = (),
    *,
    engine: str = TRACE,
    reason: str = "",
    found: Snapshot | None = None,
    threads: bool = False,
) -> tuple[Any, ObservedRun]:
    """Runs `call` once, for real, where it stands, and returns its result and what it did.

    Nothing is put back afterwards: this is the run. Wrappers and modes are gone when it returns or raises. What
    following the modules failed at is raised when the call has come to its end.

    Args:
        call: what to run.
        names: the modules whose work is told apart.
        arguments: any structure that holds the tensors which the call will use.
        engine: `"trace"` or `"dispatch"`.
        reason: why the engine is not the tracer.
        found: what is told before a tensor is written to, where the run is to leave no trace.
        threads: see into threads that the call starts; one that it leaves at work keeps a mode that does nothing.
    """
    scopes = ModuleScopes(names)
    before_write = None if found is None else found.keep_written
    record: GraphRecord | Record
    others = Threads(scopes, before_write)
    compiled: dict[str, None] = {}  # in order

    def note(call: CompiledCall) -> None:
        if not call.is_known:
            compiled[call.name] = None

    def fail(error: Exception) -> None:
        scopes.failure = error

    with ExitStack() as stack:
        stack.enter_context(_twice_as_deep())
        stack.enter_context(stepping_aside(note, fail))
        stack.enter_context(scopes.watch())
        if threads:
            stack.enter_context(others.watched())
        if engine == TRACE:
            tensors = [*_parameters(names), *_buffers(names), *_tensors(arguments)]
            result, record = trace(call, scopes, tensors, before_write=before_write, threads=others)
        else:
            recorder = DispatchRecorder(scopes.scope_of, before_write)
            stack.enter_context(intercept_named(others.region_of(recorder)))
            stack.enter_context(stepping_aside(recorder.step_aside, fail))
            with recorder:
                result = call()
            record = Record(recorder.calls, others.calls)
    if scopes.failure is not None:
        raise scopes.failure
    if others.at_work:
        scopes.strays.add("")
    scopes.calls[""] += 1
    scopes.called.add("")
    if isinstance(result, torch.Tensor) and not result.is_nested:
        scopes.output_shapes[""] = tuple(result.shape)
    run = ObservedRun(
        record,
        names,
        scopes.calls,
        frozenset(scopes.called),
        frozenset(scopes.strays),
        scopes.output_shapes,
        engine,
        reason,
        tuple(compiled),
    )
    return result, run


_lock = threading.Lock()
_deeper = [0, 0]  # how many runs need a deeper stack now, and the limit that the first of them found


@contextmanager
def _twice_as_deep() -> Iterator[None]:
    """Room for the wrappers, one frame more for each module that another one calls. The limit is the process's."""
    with _lock:
        if not _deeper[0]:
            _deeper[1] = sys.getrecursionlimit()
            sys.setrecursionlimit(2 * _deeper[1])
        _deeper[0] += 1
    try:
        yield
    finally:
        with _lock:
            _deeper[0] -= 1
            if not _deeper[0]:
                sys.setrecursionlimit(_deeper[1])


def run_isolated(
    call: Callable[..., Any],
    roots: Mapping[str, nn.Module],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    engine: str = AUTO,
    tracer_warnings: str = "no_tracer_warning",
) -> ObservedRun:
    """Runs `call(*args, **kwargs)` for its record alone, and leaves modules, inputs and random states as found.

    With `"auto"` the tracer goes first. Where it cannot work, the run is repeated under the dispatcher from the same
    state.

    Raises:
        RuntimeError: the engine is `"trace"`, and the tracer cannot count this call.
        Exception: whatever the call raises by itself.
    """
    names = ModuleNames(roots)
    reason = ASKED_FOR if engine == DISPATCH else untraceable_reason(names, (args, kwargs))
    error: Exception | None = None
    if not reason:
        try:
            run = _isolated(call, names, args, kwargs, TRACE, "", tracer_warnings)
            if not isinstance(run.record, GraphRecord) or (kind := run.record.lost()) is None:
                return run
            reason = _loses(kind)
        except Exception as stopped:  # noqa: BLE001 - the model's own error shows again in the second run
            error, reason = stopped, f"the tracer stopped with {type(stopped).__name__}: {first_line(stopped)}"
    elif engine == TRACE:
        raise _untraceable(reason)
    run = _isolated(call, names, args, kwargs, DISPATCH, reason, tracer_warnings)
    if engine == TRACE:
        raise _untraceable(reason) from error
    return run


def _untraceable(reason: str) -> RuntimeError:
    return RuntimeError(f"engine='trace' cannot count this call: {reason}; the dispatcher can, with engine='auto'")


def _isolated(
    call: Callable[..., Any],
    names: ModuleNames,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    engine: str,
    reason: str,
    tracer_warnings: str,
) -> ObservedRun:
    modules = list(names.unique.values())
    with (
        left_as_found(modules, (args, kwargs)) as found,
        without_compilation(modules),
        filtered_warnings(tracer_warnings),
        without_fast_paths() if engine == DISPATCH else nullcontext(),
    ):
        own_args, own_kwargs = private_copies((args, dict(kwargs)))
        bound = functools.partial(call, *own_args, **own_kwargs)
        _, run = observe(bound, names, (own_args, own_kwargs), engine=engine, reason=reason, found=found, threads=True)
    return run


@contextmanager
def filtered_warnings(mode: str) -> Iterator[None]:
    """Hides the tracer's warnings, or all, or none: `"no_tracer_warning"`, `"none"`, `"all"` as fvcore names them."""
    with warnings.catch_warnings():
        if mode == "none":
            warnings.simplefilter("ignore")
        elif mode == "no_tracer_warning":
            warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)  # type: ignore[attr-defined]
        yield


def untraceable_reason(names: ModuleNames, arguments: Any) -> str:
    """Why a run should not be traced, as far as that can be told before; empty when nothing speaks against it."""
    if reason := why_no_tracer():
        return reason
    if is_tracing():
        return "another trace is under way, and traces cannot be nested"
    if not sees_functions():
        return "this version of torch does not let the tracer see autograd functions"
    if is_transforming():
        return "the tracer does not go through transforms of torch.func"
    for tensor in (*_parameters(names), *_buffers(names), *_tensors(arguments)):
        if (kind := _untraceable_kind(tensor)) is not None:
            return _loses(kind)
    return ""


def _loses(kind: str) -> str:
    return f"the tracer loses operators on {kind} tensors"


def device_mismatch(roots: Mapping[str, nn.Module], arguments: Any) -> str | None:
    """What to do where no input is on a device of the modules; None where that is not so."""
    of_model = {str(parameter.device) for root in roots.values() for parameter in root.parameters()}
    of_inputs = {str(tensor.device) for tensor in _tensors(arguments)}
    if not of_model or not of_inputs or of_model & of_inputs:
        return None
    theirs, ours = sorted(of_model), sorted(of_inputs)
    return (
        f"the inputs are on {', '.join(ours)}, the model is on {', '.join(theirs)}: "
        f"move the inputs, as in inputs.to({theirs[0]!r})"
    )


def _untraceable_kind(tensor: torch.Tensor) -> str | None:
    if tensor.is_nested:
        return "nested"
    if tensor.layout != torch.strided:
        return "sparse"
    if type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        return type(tensor).__name__
    return None


def _parameters(names: ModuleNames) -> Iterator[torch.Tensor]:
    for module in names.unique.values():
        for parameter in module._parameters.values():
            if parameter is not None and not is_lazy(parameter):
                yield parameter


def _buffers(names: ModuleNames) -> Iterator[torch.Tensor]:
    for module in names.unique.values():
        yield from (buffer for buffer in module._buffers.values() if buffer is not None and not is_lazy(buffer))


def _tensors(structure: Any) -> Iterable[torch.Tensor]:
    return (leaf for leaf in tree_leaves(structure) if isinstance(leaf, torch.Tensor))
