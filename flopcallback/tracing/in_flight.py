"""Observes a call that has to happen anyway, exactly once, and sees to it that it does happen, whatever we fail at."""

from __future__ import annotations

import dis
import types
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from flopcallback.modules.attempt import Attempt, call_once
from flopcallback.modules.compiled import may_step_aside
from flopcallback.modules.errors import first_line
from flopcallback.modules.names import ModuleNames
from flopcallback.modules.outermost import CallSite, is_compiled, outermost_calls
from flopcallback.modules.snapshot import Snapshot
from flopcallback.tracing.observed import Observed
from flopcallback.tracing.run import DISPATCH, TRACE, ObservedRun, observe, run_isolated, untraceable_reason
from flopcallback.tracing.torch_private import RAISING_PACKAGES, tree_leaves

__all__ = [
    "observe_beside",
    "observe_each_call",
    "observe_in_flight",
    "observe_module_call",
    "raised_by_tracing",
    "together",
]

# Packages that a tracer or a compiler of torch raises from by itself, with `raise`; and ours.
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
    """Makes a call and observes it: by the tracer, failing that by the dispatcher, failing that not at all.

    A call that ended is never made again. One that stopped is, if we may have stopped it (`raised_by_tracing`): random
    states, buffers, attributes and metric states are restored before. So an error of the call itself shows as it is,
    after one call or, where it looks like the tracer's (an operator that refuses its arguments), after more.

    Args:
        call: what to run.
        names: the modules whose work is told apart.
        arguments: any structure that holds the tensors which the call will use.
        engine: `"dispatch"` goes past the tracer, for a `reason`.
        reason: why.
        keep: modules and containers outside of `names` that the call may change.

    Raises:
        BaseException: whatever the call raises by itself.
    """
    first: Exception | None = None
    try:
        if not may_step_aside():
            raise RuntimeError("in this version of torch, compiled code that it may run cannot be told from other code")
        attempts = _attempts(names, arguments, engine, reason)
    except Exception as error:  # noqa: BLE001 - ours, and nothing has happened yet
        first, attempts = error, []
    keep = tuple(keep)
    for engine, reason in attempts:
        attempt, found = Attempt(call), None
        try:
            found = _found(names, arguments, keep)
            return _observed(attempt, names, arguments, engine, _because(reason, first), found, first)
        except Exception as error:
            if attempt.has_ended:
                return Observed(attempt.result, (), first or error)
            if attempt.has_begun and not raised_by_tracing(error, first):
                raise
            first = first or error
            if attempt.has_begun and found is not None:
                found.restore()
    return Observed(call(), (), first)


def _observed(
    attempt: Attempt,
    names: ModuleNames,
    arguments: Any,
    engine: str,
    reason: str,
    found: Snapshot,
    first: Exception | None,
) -> Observed:
    with _quiet():
        _, run = observe(attempt, names, arguments, engine=engine, reason=reason, found=found)
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
    """Makes a call and observes each outermost call of a module in it, as `observe_module_call` does.

    `inside()` goes around each of those.
    """
    keep = tuple(keep)
    seen: list[tuple[str, Observed]] = []

    def intercept(site: CallSite, one: Callable[[], Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        with inside():
            observed = observe_module_call(site, one, names, args, kwargs, engine=engine, reason=reason, keep=keep)
        seen.append((site.name, observed))

    def unseen(site: CallSite, failure: Exception) -> None:
        seen.append((site.name, Observed(None, (), failure)))

    def around(attempt: Callable[[], Any]) -> None:
        with outermost_calls(names, intercept, unseen):
            attempt()

    made = call_once(call, around)
    return together(seen, result=made.result, failure=made.failure)


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
    """Makes one call of a module and observes it: in flight, or beside where a piece of the module is compiled."""

    def uncompiled(*args: Any, **kwargs: Any) -> Any:
        return site.module.forward(*args, **kwargs)

    if any(map(is_compiled, site.module.modules())):
        return observe_beside(call, uncompiled, names, args, kwargs)
    return observe_in_flight(call, names, (args, kwargs), engine=engine, reason=reason, keep=keep)


def together(seen: Sequence[tuple[str, Observed]], *, result: Any = None, failure: Exception | None = None) -> Observed:
    """Calls of modules, by name, that were observed one by one, as one call."""
    runs = tuple(run for _, one in seen for run in one.runs)
    failures = [failure, *(one.failure for _, one in seen)]
    unseen = {name: _in_words(one.failure) for name, one in seen if not one.runs}
    return Observed(result, runs, next(filter(None, failures), None), unseen)


def observe_beside(
    call: Callable[[], Any],
    counted: Callable[..., Any],
    names: ModuleNames,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Observed:
    """Counts `counted(*args, **kwargs)`, which leaves everything as it was, and then makes `call()` unseen."""
    runs: tuple[ObservedRun, ...] = ()
    failure: Exception | None = None
    try:
        runs = (run_isolated(counted, {"": names.by_name[""]}, args, kwargs),)
    except Exception as error:  # noqa: BLE001 - if it is the call's own error, the call shows it
        failure = error
    return Observed(call(), runs, failure)


def raised_by_tracing(error: BaseException, first: Exception | None = None) -> bool:
    """Whether an error out of an observed call may come from observing it.

    The tracer and the dispatcher speak in `RuntimeError`s that no `raise` statement of Python raises. So an error of
    another type, or one that the call's own code raises, is the call's own. So is running out of memory, and what an
    operator says under either engine.

    Args:
        error: what was raised.
        first: what was raised before, under the other engine.
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
    """Whether a `raise` statement raised it, rather than a function that is not written in Python."""
    if error.__traceback__ is None:
        return False
    step = _innermost(error)
    at = (i.opname for i in dis.get_instructions(step.tb_frame.f_code) if i.offset == step.tb_lasti)
    return next(at, "") in ("RAISE_VARARGS", "RERAISE")


def _innermost(error: BaseException) -> types.TracebackType:
    step = error.__traceback__
    assert step is not None
    while step.tb_next is not None:
        step = step.tb_next
    return step


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _attempts(names: ModuleNames, arguments: Any, engine: str, reason: str) -> list[tuple[str, str]]:
    if engine == TRACE and not (reason := untraceable_reason(names, arguments)):
        return [(TRACE, ""), (DISPATCH, "")]
    return [(DISPATCH, reason)]


def _because(reason: str, first: Exception | None) -> str:
    return reason if first is None else f"the tracer stopped with {_in_words(first)}"


def _in_words(error: Exception | None) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


def _found(names: ModuleNames, arguments: Any, keep: Iterable[Any]) -> Snapshot:
    """What a call may have changed when it stops half-way, as it is now."""
    modules = [*names.unique.values(), *(extra for extra in keep if isinstance(extra, nn.Module))]
    found = Snapshot([*modules, *_hidden_modules(modules)])
    for leaf in tree_leaves(arguments):
        found.keep_input(leaf)
    for extra in keep:
        if not isinstance(extra, nn.Module):
            found.keep_container(extra)
    return found


def _hidden_modules(modules: list[nn.Module]) -> list[nn.Module]:
    """Modules in plain lists and dicts, such as a list of metrics, which PyTorch does not know as children."""
    known = {id(module) for module in modules}
    found: dict[int, nn.Module] = {}
    for owner in modules:
        for name, value in vars(owner).items():
            if name == "_modules" or not isinstance(value, (list, tuple, set, deque, dict)):
                continue
            for item in value.values() if isinstance(value, dict) else value:
                if isinstance(item, nn.Module):
                    found.update((id(module), module) for module in item.modules() if id(module) not in known)
    return list(found.values())


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides the tracer's warnings by one filter more, so that filters which the call sets itself stay."""
    category = torch.jit.TracerWarning  # type: ignore[attr-defined]
    warnings.filterwarnings("ignore", message=r"(?#flopcallback)", category=category)
    added = warnings.filters[0]
    try:
        yield
    finally:
        if added in warnings.filters:
            warnings.filters.remove(added)  # type: ignore[attr-defined]
