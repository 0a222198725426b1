"""Shadows methods on instances for a while, unseen by copies of a model that are made meanwhile, and by compilers."""

from __future__ import annotations

import logging
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from flopcallback.modules.compiled import After, CompiledCall, Return, stepping_aside
from flopcallback.tracing.torch_private import REPLICATE, SCRIPT_MODULE_PLACE, create_script_module, replicate

__all__ = ["is_reached", "lifted", "wrap_on_instance"]

_log = logging.getLogger("flopcallback")

_MISSING = object()
_lock = threading.Lock()


class _Shadow:
    """What stands in front of a method, and what stood there before: another one, something of the user's, nothing."""

    __slots__ = ("__weakref__", "attribute", "before", "function", "is_gone", "own", "thread")

    def __init__(self, own: dict[str, Any], attribute: str, function: Any, before: Any) -> None:
        self.own = own
        self.attribute = attribute
        self.function = function
        self.before = before
        self.is_gone = False  # taken away, but another one may still lead here
        self.thread = threading.get_ident()


# How many shadows stand for an attribute of an instance, and all of those that may still be found there: two counts
# in two threads may take theirs away in another order than they put them there. None is kept alive from here, since
# it leads to its module.
_standing: Counter[tuple[int, str]] = Counter()
_shadows: dict[tuple[int, str], weakref.WeakValueDictionary[int, _Shadow]] = {}
# How many stand that a thread has put there, and what has them step aside for compiled code that this thread calls.
_by_thread: Counter[int] = Counter()
_stepping_aside: dict[int, ExitStack] = {}


def wrap_on_instance(
    module: nn.Module,
    attribute: str,
    wrap: Callable[[Callable[..., Any]], Callable[..., Any]],
    undo: ExitStack,
) -> None:
    """Shadows `module.attribute` by `wrap(module.attribute)` in the instance's own dictionary, until `undo` closes.

    `nn.Module.__setattr__` is passed by, so that a model that overrides it notices nothing. What stood in the
    dictionary before (a `forward` that the user had replaced) is put back; what the user has put there since stays. A
    copy of the module made meanwhile has no shadow: it would lead back to the original.
    """
    own = vars(module)
    key = (id(own), attribute)
    before = own.get(attribute, _MISSING)
    shadow = _Shadow(own, attribute, wrap(getattr(module, attribute)), _shadow_of(key, before) or before)
    _remember(key, shadow)
    own[attribute] = shadow.function

    def restore() -> None:
        _forget(key, shadow)
        if own.get(attribute, _MISSING) is shadow.function:  # else: below another thread's, or the user's own
            _put(shadow)

    undo.callback(restore)


def _put(shadow: _Shadow) -> None:
    """Puts a shadow where it stands, or what stood there before where it is gone."""
    found: Any = shadow
    while isinstance(found, _Shadow) and found.is_gone:
        found = found.before
    if found is _MISSING:
        shadow.own.pop(shadow.attribute, None)
    else:
        shadow.own[shadow.attribute] = found.function if isinstance(found, _Shadow) else found


def is_reached(module: nn.Module, attribute: str, function: Any) -> bool:
    """Whether a call of `module.attribute` comes to `function`, a shadow, by way of shadows alone.

    It does not where the user has wrapped the attribute since: such a call passes what is theirs before.
    """
    own = vars(module)
    found: Any = _shadow_of((id(own), attribute), own.get(attribute))
    while isinstance(found, _Shadow) and found.function is not function:
        found = found.before
    return isinstance(found, _Shadow)


def _shadow_of(key: tuple[int, str], function: Any) -> _Shadow | None:
    return _shadows[key].get(id(function)) if key in _shadows else None


def _remember(key: tuple[int, str], shadow: _Shadow) -> None:
    with _lock:
        if not _standing:
            nn.Module.__reduce_ex__ = _reduce_ex  # type: ignore[method-assign,assignment]
            if replicate is not None:
                setattr(nn.Module, REPLICATE, _replicate_plainly)
            if create_script_module is not None:
                setattr(*SCRIPT_MODULE_PLACE, _script_plainly)
        if not _by_thread[shadow.thread]:
            undo = _stepping_aside[shadow.thread] = ExitStack()
            undo.enter_context(stepping_aside(_step_aside, _note))
        _by_thread[shadow.thread] += 1
        _standing[key] += 1
        _shadows.setdefault(key, weakref.WeakValueDictionary())[id(shadow.function)] = shadow


def _forget(key: tuple[int, str], shadow: _Shadow) -> None:
    with _lock:
        shadow.is_gone = True
        _standing[key] -= 1
        if not _standing[key]:
            del _standing[key], _shadows[key]
        _by_thread[shadow.thread] -= 1
        if not _by_thread[shadow.thread]:
            del _by_thread[shadow.thread]
            _stepping_aside.pop(shadow.thread).close()
        if not _standing:
            del nn.Module.__reduce_ex__
            if replicate is not None:
                setattr(nn.Module, REPLICATE, replicate)
            if create_script_module is not None:
                setattr(*SCRIPT_MODULE_PLACE, create_script_module)


@contextmanager
def lifted() -> Iterator[None]:
    """Takes away what shadows this thread has put, for the time of the context."""
    try:
        taken = _take_away()
    except Exception as error:  # noqa: BLE001 - what is inside is the user's
        taken = []
        _log.debug("wrappers could not be taken away", exc_info=error)
    try:
        yield
    finally:
        _bring_back(taken)


def _step_aside(_: CompiledCall) -> Return | None:
    taken = _take_away()

    def back(_: Any) -> After | None:
        _bring_back(taken)
        return None

    return back if taken else None


def _note(error: Exception) -> None:
    _log.debug("compiled code met a wrapper", exc_info=error)  # and is compiled once more when that is gone


def _take_away() -> list[tuple[_Shadow, Any]]:
    """Puts what is the model's own where shadows of this thread stand; returns those, and what stands there now."""
    thread, taken = threading.get_ident(), []
    with _lock:
        standing = [shadow for shadows in _shadows.values() for shadow in shadows.values()]
    for shadow in standing:
        if shadow.is_gone or shadow.own.get(shadow.attribute) is not shadow.function:
            continue  # not the uppermost
        found: Any = shadow
        while isinstance(found, _Shadow) and (found.is_gone or found.thread == thread):
            found = found.before
        if isinstance(found, _Shadow):
            continue  # another thread's
        taken.append((shadow, found))
        if found is _MISSING:
            del shadow.own[shadow.attribute]
        else:
            shadow.own[shadow.attribute] = found
    return taken


def _bring_back(taken: Iterable[tuple[_Shadow, Any]]) -> None:
    for shadow, found in taken:
        if shadow.own.get(shadow.attribute, _MISSING) is found:  # else: the user's since
            _put(shadow)


def _reduce_ex(self: nn.Module, protocol: Any) -> Any:
    """What `copy` and `pickle` take a module apart by."""
    reduced = object.__reduce_ex__(self, protocol)
    if not isinstance(reduced, tuple) or len(reduced) < 3 or not isinstance(reduced[2], dict):
        return reduced
    return (*reduced[:2], _without_shadows(reduced[2], id(vars(self))), *reduced[3:])


def _replicate_plainly(self: nn.Module) -> nn.Module:
    replica: nn.Module = replicate(self)
    replica.__dict__ = _without_shadows(replica.__dict__, id(vars(self)))
    return replica


def _script_plainly(*args: Any, **kwargs: Any) -> Any:
    with lifted():
        return create_script_module(*args, **kwargs)


def _without_shadows(state: dict[str, Any], owner: int) -> dict[str, Any]:
    """Of an instance's attributes, those that the model knows of: what stood where now a shadow stands."""
    plain = {}
    for name, value in state.items():
        found: Any = _shadow_of((owner, name), value) or value
        while isinstance(found, _Shadow):
            found = found.before
        if found is not _MISSING:
            plain[name] = found
    return plain
