"""Observation of calls of a training, each made exactly once whatever fails."""

from __future__ import annotations

import dis
import logging
import types
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from flopcallback.modules.attempt import Attempt, call_once
from flopcallback.modules.compiled import may_step_aside
from flopcallback.modules.errors import first_line
from flopcallback.modules.names import ModuleNames
from flopcallback.modules.outermost import CallSite, is_compiled, outermost_calls
from flopcallback.modules.snapshot import Snapshot
from flopcallback.tracing.beside import NotOnFakes, count_as_written
from flopcallback.tracing.marks import COMPILING, Marks
from flopcallback.tracing.observed import NotNow, Observed
from flopcallback.tracing.observer import observe_records
from flopcallback.tracing.profiler_broker import mark_here
from flopcallback.tracing.run import DISPATCH, OBSERVER, TRACE, ObservedRun, observe, run_isolated, untraceable_reason
from flopcallback.tracing.torch_private import RAISING_PACKAGES, is_tracing, tree_leaves

__all__ = [
    "observe_beside",
    "observe_each_call",
    "observe_in_flight",
    "observe_module_call",
    "raised_by_tracing",
    "together",
]

_log = logging.getLogger("flopcallback")

# An error raised in one of these packages may come from observing: tracers, compilers, and ours.
_MACHINERY = ("flopcallback", *RAISING_PACKAGES)


def observe_in_flight(
    call: Callable[[], Any],
    names: ModuleNames,
    arguments: Any = (),
    *,
    engine: str = TRACE,
    reason: str = "",
    keep: Iterable[Any] = (),
) -> Observed:
    """Make a call, observed by the tracer, else by the profiler's records, else not.

    A call that cannot be observed now is made as it is; the result has a `NotNow` then. A call that ended is never
    repeated. A call that raised is repeated if observing it may be the cause
    (`raised_by_tracing`), after random states, buffers, attributes and metric states were restored. So an error of the
    call itself is raised after one attempt or, if it looks like the tracer's (an operator that refuses its arguments),
    after several.

    Args:
        call: the function to run.
        names: the modules to attribute work to.
        arguments: any structure that holds the tensors which the call will use.
        engine: `"trace"`, or another one to do without the tracer.
        reason: why the engine is not the tracer.
        keep: modules and containers outside of `names` that the call may change.

    Raises:
        BaseException: whatever the call raises by itself.
    """
    first: Exception | None = None
    try:
        if not may_step_aside():
            raise RuntimeError("in this version of torch, compiled code that it may run cannot be told from other code")
        attempts = _attempts(names, arguments, engine, reason)
    except Exception as error:  # noqa: BLE001 - ours, and the call has not begun
        first, attempts = error, []
    keep = tuple(keep)
    for engine, reason in attempts:
        attempt, snapshot = Attempt(call), None
        try:
            snapshot = _snapshot_of(names, arguments, keep)
            return _observed(attempt, names, arguments, engine, _because(reason, first), snapshot, first)
        except Exception as error:
            if isinstance(error, NotNow) and not attempt.has_begun:  # a later call may have the first engine
                return Observed(call(), (), error)
            if attempt.has_ended:
                return Observed(attempt.result, (), error if isinstance(error, NotNow) else first or error)
            if attempt.has_begun and not raised_by_tracing(error, first):
                raise
            first = first or error
            if attempt.has_begun and snapshot is not None:
                snapshot.restore()
    return Observed(call(), (), first)


def _observed(
    attempt: Attempt,
    names: ModuleNames,
    arguments: Any,
    engine: str,
    reason: str,
    snapshot: Snapshot,
    first: Exception | None,
) -> Observed:
    with _without_tracer_warnings():
        if engine == OBSERVER:
            _, run = observe_records(attempt, names, arguments, reason=reason)
        else:
            _, run = observe(attempt, names, arguments, engine=engine, reason=reason, snapshot=snapshot)
    return Observed(attempt.result, (run,), first)


def observe_each_call(
    call: Callable[[], Any],
    names: ModuleNames,
    *,
    engine: str = TRACE,
    reason: str = "",
    keep: Iterable[Any] = (),
    inside: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Observed:
    """Make a call, and observe each outermost module call in it.

    Args:
        call: the function to run.
        names: the modules.
        engine: `"trace"`, `"dispatch"` or `"observer"`.
        reason: why the engine is not the tracer.
        keep: modules and containers outside of `names` that the call may change.
        inside: makes a context that each of the module calls runs in.

    Raises:
        BaseException: whatever the call raises by itself.
    """
    keep = tuple(keep)
    seen: list[tuple[str, Observed]] = []

    def intercept(site: CallSite, module_call: Callable[[], Any], args: Any, kwargs: Any) -> None:
        with inside():
            observed = observe_module_call(
                site, module_call, names, args, kwargs, engine=engine, reason=reason, keep=keep
            )
        seen.append((site.name, observed))

    def unseen(site: CallSite, failure: Exception) -> None:
        seen.append((site.name, Observed(None, (), failure)))

    def around(attempt: Callable[[], Any]) -> None:
        with outermost_calls(names, intercept, unseen):
            attempt()

    outcome = call_once(call, around)
    return together(seen, result=outcome.result, failure=outcome.failure)


def observe_module_call(
    site: CallSite,
    call: Callable[[], Any],
    names: ModuleNames,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    engine: str = TRACE,
    reason: str = "",
    keep: Iterable[Any] = (),
) -> Observed:
    """Make a call of a module and observe it.

    The real call is observed, unless a part of the module is compiled: then a separate run of `forward` is counted.
    """

    def uncompiled(*args: Any, **kwargs: Any) -> Any:
        return site.module.forward(*args, **kwargs)

    if any(map(is_compiled, site.module.modules())):
        return observe_beside(call, uncompiled, names, args, kwargs)
    return observe_in_flight(call, names, (args, kwargs), engine=engine, reason=reason, keep=keep)


def together(seen: Sequence[tuple[str, Observed]], *, result: Any = None, failure: Exception | None = None) -> Observed:
    """Combine separately observed module calls, by name, into one `Observed`."""
    runs = tuple(run for _, observed in seen for run in observed.runs)
    failures = [failure, *(observed.failure for _, observed in seen)]
    unseen = {name: _in_words(observed.failure) for name, observed in seen if not observed.runs}
    return Observed(result, runs, next(filter(None, failures), None), unseen, _backwards(seen))


def _backwards(seen: Iterable[tuple[str, Observed]]) -> tuple[ObservedRun, ...] | None:
    backwards: list[ObservedRun] = []
    for _, observed in seen:
        if observed.backwards is None:
            return None
        backwards += observed.backwards
    return tuple(backwards)


def observe_beside(
    call: Callable[[], Any],
    counted: Callable[..., Any],
    names: ModuleNames,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Observed:
    """Count `counted(*args, **kwargs)` on fake tensors, then make `call()`.

    For compiled code: the real call runs as it would without us. If the count asks for values of tensors, its forward
    is run on the real ones, and undone.
    """
    seen = Observed(None)
    try:
        with mark_here(Marks.name_of(0, COMPILING)):  # no work of the step's, for whoever records it
            seen = _count_beside(counted, ModuleNames({"": names.by_name[""]}), args, kwargs)
    except Exception as error:  # noqa: BLE001 - if it is the call's own error, the call shows it
        seen = Observed(None, failure=error)
    return replace(seen, result=call())


def _count_beside(
    counted: Callable[..., Any], names: ModuleNames, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Observed:
    try:
        written = count_as_written(counted, names, args, kwargs)
    except NotOnFakes as error:
        _log.debug("compiled code could not be counted on fake tensors", exc_info=error)
        return Observed(None, (run_isolated(counted, {"": names.by_name[""]}, args, kwargs),), backwards=None)
    return Observed(None, (written.forward,), backwards=() if written.backward is None else (written.backward,))


def raised_by_tracing(error: BaseException, first: Exception | None = None) -> bool:
    """Return whether an error may come from observing the call.

    The tracer raises `RuntimeError` from C++, without a `raise` statement. So an error of another
    type, or from a `raise` in the call's own code, is the call's own. So is running out of memory, and an operator's
    error that is the same under both engines.

    Args:
        error: the error of this attempt.
        first: the error of the attempt before, under the other engine.
    """
    return not _is_the_operators(error, first) and any(_raised_by_tracing(link) for link in _chain(error))


def _raised_by_tracing(error: BaseException) -> bool:
    if not isinstance(error, Exception) or isinstance(error, torch.OutOfMemoryError):
        return False
    frame = _innermost(error).tb_frame if error.__traceback__ else None
    package = "" if frame is None else str(frame.f_globals.get("__name__", ""))
    if any(package == name or package.startswith(f"{name}.") for name in _MACHINERY):
        return True
    return isinstance(error, RuntimeError) and not _is_raised(error)


def _is_the_operators(error: BaseException, first: Exception | None) -> bool:
    return type(error) is type(first) and str(error) == str(first) and not _is_raised(error)


def _is_raised(error: BaseException) -> bool:
    """Return whether an error was raised by a `raise` statement in Python."""
    if error.__traceback__ is None:
        return False
    step = _innermost(error)
    names = (i.opname for i in dis.get_instructions(step.tb_frame.f_code) if i.offset == step.tb_lasti)
    return next(names, "") in ("RAISE_VARARGS", "RERAISE")


def _innermost(error: BaseException) -> types.TracebackType:
    step = error.__traceback__
    assert step is not None
    while step.tb_next is not None:
        step = step.tb_next
    return step


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    # A model may catch an error of the tracer's and raise its own instead.
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _attempts(names: ModuleNames, arguments: Any, engine: str, reason: str) -> list[tuple[str, str]]:
    """Return the engines to try, each with the reason against the tracer."""
    if engine == TRACE and not (reason := untraceable_reason(names, arguments)):
        return [(TRACE, ""), (OBSERVER, "")]
    if engine == TRACE:
        # Under somebody's tracer, the end of a recording would be traced.
        engine = DISPATCH if is_tracing() else OBSERVER
    return [(engine, reason)]


def _because(reason: str, first: Exception | None) -> str:
    return reason if first is None else f"the tracer stopped with {_in_words(first)}"


def _in_words(error: Exception | None) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


def _snapshot_of(names: ModuleNames, arguments: Any, keep: Iterable[Any]) -> Snapshot:
    """Take a snapshot of everything that the call may change."""
    modules = [*names.unique.values(), *(extra for extra in keep if isinstance(extra, nn.Module))]
    snapshot = Snapshot([*modules, *_hidden_modules(modules)])
    for leaf in tree_leaves(arguments):
        snapshot.keep_input(leaf)
    for extra in keep:
        if not isinstance(extra, nn.Module):
            snapshot.keep_container(extra)
    return snapshot


def _hidden_modules(modules: list[nn.Module]) -> list[nn.Module]:
    """Return modules in plain lists and dicts, which PyTorch does not register.

    A list of metrics, for instance.
    """
    registered = {id(module) for module in modules}
    hidden: dict[int, nn.Module] = {}
    for owner in modules:
        for name, value in vars(owner).items():
            if name == "_modules" or not isinstance(value, (list, tuple, set, deque, dict)):
                continue
            for item in value.values() if isinstance(value, dict) else value:
                if isinstance(item, nn.Module):
                    hidden.update((id(module), module) for module in item.modules() if id(module) not in registered)
    return list(hidden.values())


@contextmanager
def _without_tracer_warnings() -> Iterator[None]:
    """Hide the tracer's warnings by one added filter."""
    # Not `warnings.catch_warnings`: it would remove filters that the call itself sets.
    category = torch.jit.TracerWarning  # type: ignore[attr-defined]
    # An empty regular expression with a comment, by which this filter differs from all others.
    warnings.filterwarnings("ignore", message=r"(?#flopcallback)", category=category)
    added = warnings.filters[0]
    try:
        yield
    finally:
        if added in warnings.filters:
            warnings.filters.remove(added)  # type: ignore[attr-defined]
