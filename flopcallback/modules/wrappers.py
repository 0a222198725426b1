"""Temporary wrappers around methods of module instances, invisible to copies and compilers."""

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

__all__ = ["is_reached", "without_wrappers", "wrap_on_instance"]

_log = logging.getLogger("flopcallback")

_MISSING = object()
_lock = threading.Lock()  # guards changes of the four tables below


class _Wrapper:
    """A wrapper around a method, and the attribute that it covers.

    Attributes:
        own: the instance's dictionary.
        attribute: the name of the method.
        function: the wrapping function, which is what the dictionary holds.
        before: what it covers: another `_Wrapper`, a value of the user's, or `_MISSING`.
        is_gone: True once the wrapper is removed. Another thread's wrapper may still cover it; whoever uncovers it then
            goes on to `before`.
        thread: the thread that installed it, in which it steps aside for compiled code.
    """

    __slots__ = ("__weakref__", "attribute", "before", "function", "is_gone", "own", "thread")

    def __init__(self, own: dict[str, Any], attribute: str, function: Any, before: Any) -> None:
        self.own = own
        self.attribute = attribute
        self.function = function
        self.before = before
        self.is_gone = False
        self.thread = threading.get_ident()


# Wrappers by (id of the instance's dictionary, attribute): how many are active, and all that may still be found there.
# Two counts in two threads may remove theirs in another order than they installed them. The references are weak, since
# a wrapper keeps its module alive.
_active: Counter[tuple[int, str]] = Counter()
_wrappers: dict[tuple[int, str], weakref.WeakValueDictionary[int, _Wrapper]] = {}
# Wrappers by the thread that installed them: how many are active, and the registration that has them step aside for
# compiled code which that thread calls.
_active_by_thread: Counter[int] = Counter()
_stepping_aside: dict[int, ExitStack] = {}


def wrap_on_instance(
    module: nn.Module,
    attribute: str,
    wrap: Callable[[Callable[..., Any]], Callable[..., Any]],
    undo: ExitStack,
) -> None:
    """Replace `module.attribute` by `wrap(module.attribute)` until `undo` closes.

    The wrapper is put into the instance's dictionary directly, so that a model with a `__setattr__` of its own notices
    nothing. Afterwards the previous entry (such as a `forward` that the user had replaced) is restored, unless the user
    has set another one meanwhile. Copies of the module have no wrapper: it would call the original.
    """
    own = vars(module)
    key = (id(own), attribute)
    before = own.get(attribute, _MISSING)
    wrapper = _Wrapper(own, attribute, wrap(getattr(module, attribute)), _wrapper_of(key, before) or before)
    _remember(key, wrapper)
    own[attribute] = wrapper.function

    def restore() -> None:
        _forget(key, wrapper)
        # Else another thread's wrapper covers it, or the user has set the attribute.
        if own.get(attribute, _MISSING) is wrapper.function:
            _set_attribute(wrapper)

    undo.callback(restore)


def _set_attribute(wrapper: _Wrapper) -> None:
    """Set the attribute to the topmost wrapper that is not gone."""
    layer: Any = wrapper
    while isinstance(layer, _Wrapper) and layer.is_gone:
        layer = layer.before
    if layer is _MISSING:
        wrapper.own.pop(wrapper.attribute, None)
    else:
        wrapper.own[wrapper.attribute] = layer.function if isinstance(layer, _Wrapper) else layer


def is_reached(module: nn.Module, attribute: str, function: Any) -> bool:
    """Return whether calling `module.attribute` reaches `function` through our wrappers alone.

    It does not if the user has wrapped the attribute since: such a call runs the user's code first.
    """
    own = vars(module)
    layer: Any = _wrapper_of((id(own), attribute), own.get(attribute))
    while isinstance(layer, _Wrapper) and layer.function is not function:
        layer = layer.before
    return isinstance(layer, _Wrapper)


def _wrapper_of(key: tuple[int, str], function: Any) -> _Wrapper | None:
    return _wrappers[key].get(id(function)) if key in _wrappers else None


def _remember(key: tuple[int, str], wrapper: _Wrapper) -> None:
    with _lock:
        if not _active:  # the first: from here on, copies and replicas of modules have to leave wrappers out
            nn.Module.__reduce_ex__ = _reduce_ex  # type: ignore[method-assign,assignment]
            if replicate is not None:
                setattr(nn.Module, REPLICATE, _replicate_plainly)
            if create_script_module is not None:
                setattr(*SCRIPT_MODULE_PLACE, _script_plainly)
        if not _active_by_thread[wrapper.thread]:
            undo = _stepping_aside[wrapper.thread] = ExitStack()
            undo.enter_context(stepping_aside(_step_aside, _log_failure))
        _active_by_thread[wrapper.thread] += 1
        _active[key] += 1
        _wrappers.setdefault(key, weakref.WeakValueDictionary())[id(wrapper.function)] = wrapper


def _forget(key: tuple[int, str], wrapper: _Wrapper) -> None:
    with _lock:
        wrapper.is_gone = True
        _active[key] -= 1
        if not _active[key]:
            del _active[key], _wrappers[key]
        _active_by_thread[wrapper.thread] -= 1
        if not _active_by_thread[wrapper.thread]:
            del _active_by_thread[wrapper.thread]
            _stepping_aside.pop(wrapper.thread).close()
        if not _active:
            del nn.Module.__reduce_ex__
            if replicate is not None:
                setattr(nn.Module, REPLICATE, replicate)
            if create_script_module is not None:
                setattr(*SCRIPT_MODULE_PLACE, create_script_module)


@contextmanager
def without_wrappers() -> Iterator[None]:
    """Remove this thread's wrappers for the time of the context."""
    try:
        lifted = _lift()
    except Exception as error:  # noqa: BLE001 - the code inside is the user's
        lifted = []
        _log.debug("wrappers could not be removed", exc_info=error)
    try:
        yield
    finally:
        try:
            _put_back(lifted)
        except Exception as error:  # noqa: BLE001 - as above
            _log.debug("wrappers could not be put back", exc_info=error)


def _step_aside(_: CompiledCall) -> Return | None:
    lifted = _lift()

    def back(_: Any) -> After | None:
        _put_back(lifted)
        return None

    return back if lifted else None


def _log_failure(error: Exception) -> None:
    # No harm to the training: the wrapper is compiled along, and its removal costs one recompilation.
    _log.debug("compiled code met a wrapper", exc_info=error)


def _lift() -> list[tuple[_Wrapper, Any]]:
    """Uncover what this thread's wrappers cover.

    Returns:
        The topmost wrapper of each attribute, and the value that the attribute has now (`_MISSING` if none).
    """
    thread, lifted = threading.get_ident(), []
    with _lock:
        candidates = [wrapper for wrappers in _wrappers.values() for wrapper in wrappers.values()]
    for wrapper in candidates:
        if wrapper.is_gone or wrapper.own.get(wrapper.attribute) is not wrapper.function:
            continue  # covered by another one
        layer: Any = wrapper
        while isinstance(layer, _Wrapper) and (layer.is_gone or layer.thread == thread):
            layer = layer.before
        if isinstance(layer, _Wrapper):
            continue  # another thread's is below, and stays
        lifted.append((wrapper, layer))
        if layer is _MISSING:
            del wrapper.own[wrapper.attribute]
        else:
            wrapper.own[wrapper.attribute] = layer
    return lifted


def _put_back(lifted: Iterable[tuple[_Wrapper, Any]]) -> None:
    for wrapper, value in lifted:
        if wrapper.own.get(wrapper.attribute, _MISSING) is value:  # else the user has set it meanwhile
            _set_attribute(wrapper)


def _reduce_ex(self: nn.Module, protocol: Any) -> Any:
    """Reduce a module for `copy` and `pickle`, without our wrappers."""
    reduced = object.__reduce_ex__(self, protocol)
    if not isinstance(reduced, tuple) or len(reduced) < 3 or not isinstance(reduced[2], dict):
        return reduced
    try:
        return (*reduced[:2], _without_wrappers(reduced[2], id(vars(self))), *reduced[3:])
    except Exception as error:  # noqa: BLE001 - the copy is the user's
        _log.debug("a copy of a module has wrappers", exc_info=error)
        return reduced


def _replicate_plainly(self: nn.Module) -> nn.Module:
    replica: nn.Module = replicate(self)
    try:
        replica.__dict__ = _without_wrappers(replica.__dict__, id(vars(self)))
    except Exception as error:  # noqa: BLE001 - as in `_reduce_ex`
        _log.debug("a replica of a module has wrappers", exc_info=error)
    return replica


def _script_plainly(*args: Any, **kwargs: Any) -> Any:
    with without_wrappers():
        return create_script_module(*args, **kwargs)


def _without_wrappers(state: dict[str, Any], owner: int) -> dict[str, Any]:
    """Return an instance's attributes with every wrapper replaced by what it covers.

    Args:
        state: the attributes, by name.
        owner: the id of the original instance's dictionary.
    """
    plain = {}
    for name, value in state.items():
        layer: Any = _wrapper_of((owner, name), value) or value
        while isinstance(layer, _Wrapper):
            layer = layer.before
        if layer is not _MISSING:
            plain[name] = layer
    return plain
