"""Compiled code runs as it is: for each call of it, what is ours steps aside, and comes back behind it.

Under a mode of PyTorch's a compiled function runs eagerly, or raises; a wrapper or a hook that it meets is compiled
along, and makes it compile once more when it is gone.
"""

from __future__ import annotations

import sys
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import nn

from flopcallback.tracing.torch_private import DYNAMO_CONTEXT, EVAL_FRAME, MAYBE_SET_EVAL_FRAME, SET_EVAL_FRAME

__all__ = [
    "COMPILED",
    "After",
    "CompiledCall",
    "CompiledCode",
    "Return",
    "as_written",
    "in_use",
    "known",
    "may_step_aside",
    "rest_if_unused",
    "stepping_aside",
]

COMPILED = "torch.compile::"
"""Stands before the name of a compiled function that ran in a count."""


class CompiledCall(NamedTuple):
    """A call of compiled code that begins.

    Attributes:
        name: of what is compiled.
        args: positional arguments.
        kwargs: keyword arguments.
        is_known: somebody has a count for it.
    """

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    is_known: bool = False


class CompiledCode(Exception):  # noqa: N818 - nothing went wrong
    """Compiled code ran where something was to be observed."""

    def __init__(self, name: str) -> None:
        super().__init__(f"it runs compiled code ({name})")


After = Callable[[], None]
Return = Callable[[Any], After | None]
"""Comes back, given what the compiled call returned (None where that is not known). What it returns is called when all
have come back, unless the call raised."""

Leave = Callable[[CompiledCall], Return | None]
Failed = Callable[[Exception], None]

_lock = threading.Lock()
_leaving: dict[int, list[tuple[Leave, Failed]]] = {}  # by thread, in the order in which they came
_away: set[int] = set()  # threads in which compiled code runs, and ours has stepped aside
_installed: dict[str, Callable[[Any], Any]] = {}  # what stood in `EVAL_FRAME`, by name
_flags = threading.local()


def in_use() -> bool:
    """Whether anything was given to `torch.compile` in this process; does not import the compiler."""
    module = sys.modules.get(EVAL_FRAME)
    return module is not None and bool(getattr(module, "cached_backends", True))


def may_step_aside() -> bool:
    """Whether calls of compiled code can be told from others, in this version of torch."""
    return not in_use() or bool(_wrappers())


@contextmanager
def stepping_aside(leave: Leave, failed: Failed) -> Iterator[None]:
    """Has `leave(call)` called when this thread begins to call compiled code, and what that returns when it has ended.

    Of several, the last one leaves first, and comes back last. Calls that compiled code makes of other compiled code
    are part of it.

    Args:
        leave: takes something away; what it returns puts it back.
        failed: is told what either of them failed at.
    """
    thread, mine = threading.get_ident(), (leave, failed)
    with _lock:
        _install()
        _leaving.setdefault(thread, []).append(mine)
    try:
        yield
    finally:
        with _lock:
            _leaving[thread].remove(mine)
            if not _leaving[thread]:
                del _leaving[thread]
            if not _leaving:
                _uninstall()


@contextmanager
def as_written() -> Iterator[None]:
    """Goes around a run that `torch.compile` is switched off for: nothing steps aside in this thread."""
    with _raised("as_written"):
        yield


@contextmanager
def known() -> Iterator[None]:
    """Goes around a call of compiled code that somebody has a count for."""
    with _raised("known"):
        yield


@contextmanager
def _raised(flag: str) -> Iterator[None]:
    setattr(_flags, flag, getattr(_flags, flag, False) + 1)
    try:
        yield
    finally:
        setattr(_flags, flag, getattr(_flags, flag) - 1)


# --- Where compiled code is called ------------------------------------------------------------------------------------

# What `torch.compile` returns begins each call with `prior = set_eval_frame(None)`, and ends it, whatever happened in
# it, with `_maybe_set_eval_frame(prior)`; both are looked up in their module (2.13, 2.14). So what stands in their
# place may take modes and wrappers away at the first, hand out a `_Prior`, and put them back when that comes back.


class _Prior(NamedTuple):
    """What Dynamo is to have back when a call of compiled code has ended, and what is to come back before.

    Attributes:
        callback: Dynamo's.
        returning: what has left, in that order.
        failures: of what could not leave; told when all have come back.
        error: that was being handled when the call began.
    """

    callback: Any
    returning: list[tuple[Return, Failed]]
    failures: list[tuple[Failed, Exception]]
    error: BaseException | None


def _wrappers() -> frozenset[types.CodeType]:
    """The code of what `torch.compile` returns; empty where this version of torch has it otherwise."""
    context = getattr(sys.modules.get(EVAL_FRAME), DYNAMO_CONTEXT, object)
    code = getattr(vars(context).get("__call__"), "__code__", None)
    codes = (each for each in getattr(code, "co_consts", ()) if isinstance(each, types.CodeType))
    return frozenset(code for code in codes if SET_EVAL_FRAME in code.co_names)


def _install() -> None:
    module = sys.modules.get(EVAL_FRAME)
    wrappers = frozenset() if module is None or _installed else _wrappers()
    if wrappers:
        for name in (SET_EVAL_FRAME, MAYBE_SET_EVAL_FRAME):
            if hasattr(module, name):
                _installed[name] = getattr(module, name)
                setattr(module, name, _replacement(_installed[name], wrappers))


def rest_if_unused() -> None:
    """Leave `EVAL_FRAME` alone while nothing is compiled in this process: its functions run in every optimizer's step.

    What is called first after that, compiled then, meets wrappers until the next ones are put.
    """
    with _lock:
        if not in_use():
            _uninstall()


def _uninstall() -> None:
    for name, original in _installed.items():
        setattr(sys.modules[EVAL_FRAME], name, original)
    _installed.clear()


def _replacement(original: Callable[[Any], Any], wrappers: frozenset[types.CodeType]) -> Callable[[Any], Any]:
    def set_eval_frame(callback: Any) -> Any:
        if type(callback) is _Prior:
            try:
                _come_back(callback, sys._getframe(1))
            finally:
                original(callback.callback)
            return None
        prior = original(callback)
        if callback is not None or (frame := sys._getframe(1)).f_code not in wrappers:
            return prior
        thread = threading.get_ident()
        if thread in _away or thread not in _leaving or getattr(_flags, "as_written", False):
            return prior
        return _left(prior, frame, thread)  # the call itself has not begun: what fails in there is told behind it

    return set_eval_frame


def _left(callback: Any, frame: types.FrameType, thread: int) -> _Prior:
    """Has all leave."""
    prior = _Prior(callback, [], [], sys.exc_info()[1])
    _away.add(thread)
    for leave, failed in reversed(list(_leaving[thread])):
        try:
            if (back := leave(_call_in(frame))) is not None:
                prior.returning.append((back, failed))
        except Exception as error:  # noqa: BLE001 - the call is the user's, and is made
            prior.failures.append((failed, error))
    return prior


def _come_back(prior: _Prior, frame: types.FrameType) -> None:
    """Has all come back that left, and tells what failed."""
    result, has_raised = frame.f_locals.get("result"), sys.exc_info()[1] is not prior.error
    afterwards = []
    for back, failed in reversed(prior.returning):
        try:
            if (after := back(result)) is not None:
                afterwards.append(after)
        except Exception as error:  # noqa: BLE001 - the call was the user's, and was made
            prior.failures.append((failed, error))
    _away.discard(threading.get_ident())
    for failed, failure in prior.failures:
        failed(failure)
    for after in () if has_raised else afterwards:
        after()


def _call_in(frame: types.FrameType) -> CompiledCall:
    found = frame.f_locals
    is_known = bool(getattr(_flags, "known", 0))
    return CompiledCall(_name_of(found.get("fn")), found.get("args", ()), found.get("kwargs", {}), is_known)


def _name_of(function: Any) -> str:
    """`"gelu"`, `"<lambda>"`, `"SGD.step"`, `"Linear"`."""
    wrapped = getattr(function, "__wrapped__", function)  # of a module, a function around it is compiled
    if isinstance(wrapped, nn.Module):
        return type(wrapped).__name__
    owner = getattr(function, "__self__", None)
    if isinstance(owner, nn.Module) and function.__name__ == "_call_impl":
        return type(owner).__name__
    name = str(getattr(function, "__name__", type(function).__name__))
    return name if owner is None else f"{type(owner).__name__}.{name}"
