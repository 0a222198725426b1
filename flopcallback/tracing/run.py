"""Observed runs: choose an engine, run the callable, log its operators."""

from __future__ import annotations

import functools
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
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
from flopcallback.tracing.observed import AUTO, DISPATCH, OBSERVER, TRACE, ObservedRun
from flopcallback.tracing.observer import NotRecorded, observe_records, why_not_watched
from flopcallback.tracing.record import GraphLog, OperatorLog
from flopcallback.tracing.regions import intercept_named, sees_functions, without_compilation, without_fast_paths
from flopcallback.tracing.scopes import ModuleScopes
from flopcallback.tracing.threads import Threads
from flopcallback.tracing.torch_private import (
    is_compiled,
    is_tracing,
    is_transforming,
    tree_leaves,
    why_no_records,
    why_no_tracer,
)

__all__ = [
    "AUTO",
    "DISPATCH",
    "ENGINES",
    "OBSERVER",
    "TRACE",
    "ObservedRun",
    "device_mismatch",
    "evaluation_engine",
    "observe",
    "run_isolated",
    "untraceable_reason",
]

ENGINES = (AUTO, TRACE, DISPATCH, OBSERVER)
ASKED_FOR = "asked for with engine='dispatch'"
FAST_PATHS = "PyTorch's fast paths stay on, which the tracer would turn off"
TRACER_WARNINGS = ("no_tracer_warning", "all", "none")


def observe(
    call: Callable[[], Any],
    names: ModuleNames,
    arguments: Any = (),
    *,
    engine: str = TRACE,
    reason: str = "",
    snapshot: Snapshot | None = None,
    threads: bool = False,
) -> tuple[Any, ObservedRun]:
    """Run `call` once and return its result and its operators.

    This is the real run: nothing is restored afterwards. Wrappers and modes are gone when it returns or raises.

    Args:
        call: the function to run.
        names: the modules to attribute work to.
        arguments: any structure that holds the tensors which the call will use.
        engine: `"trace"` or `"dispatch"`.
        reason: why the engine is not the tracer.
        snapshot: saves each tensor before the call writes to it, for a run that is undone.
        threads: observe the threads that the call starts. A thread that outlives the call keeps an idle mode.

    Raises:
        Exception: whatever the call raises; after the call, an error in following its modules.
    """
    scopes = ModuleScopes(names)
    before_write = None if snapshot is None else snapshot.keep_written
    record: GraphLog | OperatorLog
    other_threads = Threads(scopes, before_write)
    compiled: dict[str, None] = {}  # an ordered set

    def note(call: CompiledCall) -> None:
        if not call.is_known:
            compiled[call.name] = None

    def fail(error: Exception) -> None:
        scopes.failure = error

    with ExitStack() as stack:
        stack.enter_context(_doubled_recursion_limit())
        stack.enter_context(stepping_aside(note, fail))
        stack.enter_context(scopes.watch())
        if threads:
            stack.enter_context(other_threads.watched())
        if engine == TRACE:
            tensors = [*_parameters(names), *_buffers(names), *_tensors(arguments)]
            result, record = trace(call, scopes, tensors, before_write=before_write, threads=other_threads)
        else:
            recorder = DispatchRecorder(scopes.scope_of, before_write)
            stack.enter_context(intercept_named(other_threads.region_of(recorder)))
            stack.enter_context(stepping_aside(recorder.step_aside, fail))
            with recorder:
                result = call()
            record = OperatorLog(recorder.calls, other_threads.calls)
    if scopes.failure is not None:
        raise scopes.failure
    if other_threads.at_work:  # they outlive the call, and are no longer recorded: the root is a stray
        scopes.strays.add("")
    # The call itself is the root's, also where the root is a function and no wrapper counts it.
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
        scopes.methods,
    )
    return result, run


_lock = threading.Lock()
_deeper_runs = [0, 0]  # how many runs need the doubled limit now, and the limit before the first of them


@contextmanager
def _doubled_recursion_limit() -> Iterator[None]:
    """Double the recursion limit: wrappers add a frame per nested module."""
    # The limit is the process's, so the last run to end restores it, in whatever thread.
    with _lock:
        if not _deeper_runs[0]:
            _deeper_runs[1] = sys.getrecursionlimit()
            sys.setrecursionlimit(2 * _deeper_runs[1])
        _deeper_runs[0] += 1
    try:
        yield
    finally:
        with _lock:
            _deeper_runs[0] -= 1
            if not _deeper_runs[0]:
                sys.setrecursionlimit(_deeper_runs[1])


def run_isolated(
    call: Callable[..., Any],
    roots: Mapping[str, nn.Module],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    engine: str = AUTO,
    tracer_warnings: str = "no_tracer_warning",
) -> ObservedRun:
    """Run `call(*args, **kwargs)` for its operators alone, and undo its effects.

    Modules, inputs and random states are left as they were. With `"auto"` the tracer goes first; if it cannot count the
    call, the call is repeated under the dispatcher from the same state.

    Raises:
        RuntimeError: the engine is `"trace"`, and the tracer cannot count this call; or it is `"observer"`, and the
            profiler is not to be had.
        Exception: whatever the call raises by itself.
    """
    names = ModuleNames(roots)
    if engine == OBSERVER:
        return _listened_to(call, names, args, kwargs)
    reason = ASKED_FOR if engine == DISPATCH else untraceable_reason(names, (args, kwargs))
    error: Exception | None = None
    if not reason:
        try:
            run = _isolated(call, names, args, kwargs, TRACE, "", tracer_warnings)
            if not isinstance(run.record, GraphLog) or (kind := run.record.lost()) is None:
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


def _listened_to(
    call: Callable[..., Any], names: ModuleNames, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> ObservedRun:
    """Run a call as it is, compiled code included, and undo its effects."""
    if reason := why_no_records():
        raise RuntimeError(f"engine='observer' cannot count this call: {reason}")
    with left_as_found(names.unique.values(), (args, kwargs)) as snapshot, without_fast_paths():
        snapshot.keep_all()  # nothing tells before a write
        own_args, own_kwargs = private_copies((args, dict(kwargs)))
        try:
            bound = functools.partial(call, *own_args, **own_kwargs)
            _, run = observe_records(bound, names, (own_args, own_kwargs))
        except NotRecorded as error:
            raise RuntimeError(f"engine='observer' cannot count this call: {error}") from error
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
        left_as_found(modules, (args, kwargs)) as snapshot,
        without_compilation(modules),
        filtered_warnings(tracer_warnings),
        without_fast_paths() if engine == DISPATCH else nullcontext(),
    ):
        own_args, own_kwargs = private_copies((args, dict(kwargs)))
        bound = functools.partial(call, *own_args, **own_kwargs)
        inputs = own_args, own_kwargs
        _, run = observe(bound, names, inputs, engine=engine, reason=reason, snapshot=snapshot, threads=True)
    return run


@contextmanager
def filtered_warnings(mode: str) -> Iterator[None]:
    """Filter warnings of a run.

    Args:
        mode: as fvcore names it: `"no_tracer_warning"` hides the tracer's, `"none"` hides all, `"all"` shows all.
    """
    with warnings.catch_warnings():
        if mode == "none":
            warnings.simplefilter("ignore")
        elif mode == "no_tracer_warning":
            warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)  # type: ignore[attr-defined]
        yield


def untraceable_reason(names: ModuleNames, arguments: Any) -> str:
    """Return why a run cannot be traced, or an empty string.

    Reasons that only show during the run are not known here.
    """
    if reason := why_no_tracer():
        return reason
    if is_tracing():
        return "another trace is under way, and traces cannot be nested"
    if is_transforming():
        return "the tracer does not go through transforms of torch.func"
    if not sees_functions():  # after the question before: it runs a function, which transforms would refuse
        return "this version of torch does not let the tracer see autograd functions"
    for tensor in (*_parameters(names), *_buffers(names), *_attributes(names), *_tensors(arguments)):
        if (kind := _untraceable_kind(tensor)) is not None:
            return _loses(kind)
    return ""


def evaluation_engine(names: ModuleNames, arguments: Any) -> tuple[str, str]:
    """Return the engine for a call without gradients that has to keep its digits, and why it is not the tracer.

    The observer only listens. But records do not tell the lengths of nested tensors, the stored elements of sparse
    ones, or the sizes of packed weights, and compiled modules may hide products. Where the model or its arguments have
    such, and where the profiler is at work, it is the dispatcher, which sees the tensors themselves.
    """
    hides = _hides_sizes(names, arguments) or any(map(is_compiled, names.unique.values()))
    return (DISPATCH if hides or why_not_watched() else OBSERVER), FAST_PATHS


def _hides_sizes(names: ModuleNames, arguments: Any) -> bool:
    tensors = (*_parameters(names), *_buffers(names), *_attributes(names), *_tensors(arguments))
    if any(tensor.is_nested or tensor.layout != torch.strided for tensor in tensors):
        return True
    # A transformer's encoder leaves out padding by nested tensors.
    return any(
        getattr(module, "use_nested_tensor", False)
        or any(isinstance(value, torch.ScriptObject) for value in vars(module).values())
        for module in names.unique.values()
    )


def _loses(kind: str) -> str:
    return f"the tracer loses operators on {kind} tensors"


def device_mismatch(roots: Mapping[str, nn.Module], arguments: Any) -> str | None:
    """Return an error text if no input is on the model's devices."""
    model_devices = sorted({str(parameter.device) for root in roots.values() for parameter in root.parameters()})
    input_devices = sorted({str(tensor.device) for tensor in _tensors(arguments)})
    if not model_devices or not input_devices or set(model_devices) & set(input_devices):
        return None
    return (
        f"the inputs are on {', '.join(input_devices)}, the model is on {', '.join(model_devices)}: "
        f"move the inputs, as in inputs.to({model_devices[0]!r})"
    )


def _untraceable_kind(tensor: torch.Tensor) -> str | None:
    """Return a tensor's kind if the tracer cannot follow it, else None."""
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


def _attributes(names: ModuleNames) -> Iterator[torch.Tensor]:
    for module in names.unique.values():
        yield from (value for value in vars(module).values() if isinstance(value, torch.Tensor) and not is_lazy(value))


def _tensors(structure: Any) -> Iterable[torch.Tensor]:
    return (leaf for leaf in tree_leaves(structure) if isinstance(leaf, torch.Tensor))
