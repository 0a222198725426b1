"""Suspension of our modes and wrappers while compiled code runs.

Under a dispatch or function mode, a compiled function runs eagerly or raises. A wrapper or hook that it meets is
compiled into it, and removing that wrapper later causes a recompilation. So compiled code runs with nothing of ours
installed: each observer steps aside before the call and returns after it.
"""

from __future__ import annotations

import sys
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import nn

from flopcallback.tracing.torch_private import (
    DYNAMO_CONTEXT,
    EVAL_FRAME,
    INDUCTOR,
    INDUCTOR_CONFIG,
    MAYBE_SET_EVAL_FRAME,
    REGISTRY,
    SET_EVAL_FRAME,
)

__all__ = [
    "COMPILED",
    "After",
    "CompiledCall",
    "CompiledCode",
    "Return",
    "as_written",
    "chooses_kernels",
    "is_loaded",
    "is_used",
    "may_step_aside",
    "rest_if_unused",
    "stepping_aside",
    "with_known_count",
]

COMPILED = "torch.compile::"
"""Prefix of a compiled function's name in a count."""


class CompiledCall(NamedTuple):
    """A call of compiled code that is about to begin.

    Attributes:
        name: the compiled function, method or module class.
        args: positional arguments.
        kwargs: keyword arguments.
        is_known: True if its FLOPs are counted elsewhere, as flex attention's are by its formula.
        function: what was compiled, as it is written.
    """

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    is_known: bool = False
    function: Any = None


class CompiledCode(Exception):  # noqa: N818 - nothing went wrong
    """Reason for not observing a call: it ran compiled code."""

    def __init__(self, name: str) -> None:
        super().__init__(f"it runs compiled code ({name})")


After = Callable[[], None]
Return = Callable[[Any], After | None]
"""Function that reinstalls an observer after compiled code; takes the call's result, or None if that is unknown. The
function that it returns is called once all observers are back, unless the call raised."""

Leave = Callable[[CompiledCall], Return | None]
Failed = Callable[[Exception], None]

_lock = threading.RLock()  # guards both tables; reentrant, since a garbage-collected observer leaves within it
_observers: dict[int, list[tuple[Leave, Failed]]] = {}  # by thread, in the order of registration
# Threads that are inside compiled code. Compiled code called by compiled code is part of the outer call: without this
# set the observers would leave twice.
_suspended: set[int] = set()
_installed: dict[str, Callable[[Any], Any]] = {}  # the original functions of `EVAL_FRAME`, by name
_depths = threading.local()  # how many contexts of `as_written` and `with_known_count` this thread is inside


# Backends that run the operators as they are written.
_FAITHFUL = frozenset({"eager", "aot_eager"})


def is_used() -> bool:
    """Return whether `torch.compile` was used, without importing the compiler."""
    backends = _backends()
    return backends is None or bool(backends)


def _backends() -> list[Any] | None:
    """Return the backends that compiled something in this process; None if this torch does not say."""
    module = sys.modules.get(EVAL_FRAME)
    if module is None:
        return []
    backends = getattr(module, "cached_backends", None)
    # Functions that the compiler is to leave alone, as optimizers' are, have None for a backend.
    return None if backends is None else [backend for backend in backends.values() if backend is not None]


def chooses_kernels() -> bool:
    """Return whether compiled code may run products of any size by other means than torch's operators.

    Those leave no records: Triton and C++ templates, replays of CUDA graphs. Inductor uses them when it is told to, by
    `mode=`, `options=` or its settings; as it comes, it has torch's operators for all products without a dimension of 1
    (2.13). Other compilers that torch knows by name may do anything; a function that is given as the compiler is
    trusted.
    """
    backends = _backends()
    if backends is None:
        return True
    config = sys.modules.get(INDUCTOR_CONFIG)
    settings = [getattr(config, name, False) for name in ("max_autotune", "max_autotune_gemm")]
    settings.append(getattr(getattr(config, "triton", None), "cudagraphs", False))
    return any(_chooses_kernels(backend, any(settings)) for backend in backends)


def _chooses_kernels(backend: Any, is_set: bool) -> bool:
    name = getattr(backend, "compiler_name", None)
    if name == INDUCTOR:
        return is_set or bool(backend.config)  # `mode=` and `options=`
    registry = sys.modules.get(REGISTRY)
    is_known = registry is None or name in registry.list_backends(exclude_tags=())
    return is_known and name not in _FAITHFUL


def is_loaded() -> bool:
    """Return whether this process may have compiled code, without importing the compiler."""
    return EVAL_FRAME in sys.modules


def may_step_aside() -> bool:
    """Return whether this torch lets calls of compiled code be recognized."""
    return not is_used() or bool(_wrappers())


@contextmanager
def stepping_aside(leave: Leave, failed: Failed) -> Iterator[None]:
    """Suspend an observer during each call of compiled code in this thread.

    Observers leave in reverse order of registration, and return in order of registration. Compiled code that calls
    other compiled code is one call.

    Args:
        leave: removes the observer before the call, and returns the function that reinstalls it.
        failed: receives what either of the two raised; the compiled call is made in any case.
    """
    thread, entry = threading.get_ident(), (leave, failed)
    with _lock:
        _install()
        _observers.setdefault(thread, []).append(entry)
    try:
        yield
    finally:
        with _lock:
            _observers[thread].remove(entry)
            if not _observers[thread]:
                del _observers[thread]
            if not _observers:
                _uninstall()


@contextmanager
def as_written() -> Iterator[None]:
    """Keep observers in place while compilation is switched off in this thread."""
    with _counted_depth("as_written"):
        yield


@contextmanager
def with_known_count() -> Iterator[None]:
    """Mark calls of compiled code as counted elsewhere (`CompiledCall.is_known`)."""
    with _counted_depth("known"):
        yield


@contextmanager
def _counted_depth(name: str) -> Iterator[None]:
    # A depth, not a flag: these contexts may be nested.
    setattr(_depths, name, getattr(_depths, name, 0) + 1)
    try:
        yield
    finally:
        setattr(_depths, name, getattr(_depths, name) - 1)


# --- The entry into compiled code -------------------------------------------------------------------------------------

# The function that `torch.compile` returns begins each call with `prior = set_eval_frame(None)` and ends it, also after
# an error, with `_maybe_set_eval_frame(prior)`; both are looked up in their module (2.13, 2.14). So a replacement of
# the first can suspend the observers and return a `_Prior`, and a replacement of the second, given that `_Prior`, can
# resume them.


class _Prior(NamedTuple):
    """State of one call of compiled code, in place of Dynamo's callback.

    Attributes:
        callback: Dynamo's own callback, given back to it when the call has ended.
        returning: the observers that have left, in that order.
        failures: errors of observers that could not leave; reported when the others are back.
        error: the exception that was being handled when the call began. Another one at its end was raised by the call.
    """

    callback: Any
    returning: list[tuple[Return, Failed]]
    failures: list[tuple[Failed, Exception]]
    error: BaseException | None


def _wrappers() -> frozenset[types.CodeType]:
    """Return the code of the functions that `torch.compile` returns.

    They are defined inside of the context's `__call__`, so its constants hold their code. Empty if this version of
    torch builds them in another way.
    """
    context = getattr(sys.modules.get(EVAL_FRAME), DYNAMO_CONTEXT, object)
    code = getattr(vars(context).get("__call__"), "__code__", None)
    codes = (constant for constant in getattr(code, "co_consts", ()) if isinstance(constant, types.CodeType))
    return frozenset(code for code in codes if SET_EVAL_FRAME in code.co_names)


def _install() -> None:
    module = sys.modules.get(EVAL_FRAME)
    wrappers = frozenset() if module is None or _installed else _wrappers()
    if wrappers:
        originals = {
            name: getattr(module, name) for name in (SET_EVAL_FRAME, MAYBE_SET_EVAL_FRAME) if hasattr(module, name)
        }
        replacements = {name: _replacement(original, wrappers) for name, original in originals.items()}
        _installed.update(originals)
        for name, replacement in replacements.items():
            setattr(module, name, replacement)


def rest_if_unused() -> None:
    """Give `EVAL_FRAME` its functions back if nothing was compiled so far.

    They run in every optimizer's step, where ours would cost time. A function that is compiled later meets wrappers of
    ours until another observer steps in.
    """
    with _lock:
        if not is_used():
            _uninstall()


def _uninstall() -> None:
    for name, original in _installed.items():
        setattr(sys.modules[EVAL_FRAME], name, original)
    _installed.clear()


def _replacement(original: Callable[[Any], Any], wrappers: frozenset[types.CodeType]) -> Callable[[Any], Any]:
    def set_eval_frame(callback: Any) -> Any:
        if type(callback) is _Prior:
            try:
                _tell(callback, _resumed(callback, sys._getframe(1)))
            finally:
                original(callback.callback)
            return None
        prior = original(callback)
        # Dynamo itself calls this in many places; only a call from the function that `torch.compile` returned counts.
        if callback is not None or (frame := sys._getframe(1)).f_code not in wrappers:
            return prior
        thread = threading.get_ident()
        if thread in _suspended or thread not in _observers or getattr(_depths, "as_written", 0) > 0:
            return prior
        suspended = _Prior(prior, [], [], sys.exc_info()[1])
        _suspended.add(thread)
        try:
            _suspend_observers(suspended, frame, list(_observers[thread]))
        except Exception as error:  # noqa: BLE001 - the call is the user's, and is made; the failure is told after it
            suspended.failures.extend((failed, error) for _, failed in _observers[thread])
        return suspended

    return set_eval_frame


def _suspend_observers(prior: _Prior, frame: types.FrameType, observers: list[tuple[Leave, Failed]]) -> None:
    call = _call_in(frame)
    for leave, failed in reversed(observers):
        try:
            if (back := leave(call)) is not None:
                prior.returning.append((back, failed))
        except Exception as error:  # noqa: BLE001 - as above
            prior.failures.append((failed, error))


def _resumed(prior: _Prior, frame: types.FrameType) -> list[After]:
    """Reinstall the observers that left; return what is to be called now that all are back."""
    try:
        return _resume_observers(prior, frame)
    except Exception as error:  # noqa: BLE001 - the call was the user's, and was made
        prior.failures.extend((failed, error) for _, failed in prior.returning)
        return []
    finally:
        _suspended.discard(threading.get_ident())


def _resume_observers(prior: _Prior, frame: types.FrameType) -> list[After]:
    result, has_raised = frame.f_locals.get("result"), sys.exc_info()[1] is not prior.error
    afterwards = []
    for back, failed in reversed(prior.returning):
        try:
            if (after := back(result)) is not None:
                afterwards.append(after)
        except Exception as error:  # noqa: BLE001 - as above
            prior.failures.append((failed, error))
    return [] if has_raised else afterwards


def _tell(prior: _Prior, afterwards: list[After]) -> None:
    """Report what failed, and tell the observers that all are back; either may raise, if the user asked for that."""
    for failed, failure in prior.failures:
        failed(failure)
    for after in afterwards:
        after()


def _call_in(frame: types.FrameType) -> CompiledCall:
    variables = frame.f_locals  # of the function that `torch.compile` returned; it names them so (2.13, 2.14)
    is_known = bool(getattr(_depths, "known", 0))
    function = variables.get("fn")
    return CompiledCall(_name_of(function), variables.get("args", ()), variables.get("kwargs", {}), is_known, function)


def _name_of(function: Any) -> str:
    """Return a name such as `"gelu"`, `"<lambda>"`, `"SGD.step"` or `"Linear"`."""
    wrapped = getattr(function, "__wrapped__", function)  # for a module, a function around it is compiled
    if isinstance(wrapped, nn.Module):
        return type(wrapped).__name__
    owner = getattr(function, "__self__", None)
    if isinstance(owner, nn.Module) and function.__name__ == "_call_impl":
        return type(owner).__name__
    name = str(getattr(function, "__name__", type(function).__name__))
    return name if owner is None else f"{type(owner).__name__}.{name}"
