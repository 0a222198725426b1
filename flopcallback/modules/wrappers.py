"""Shadows methods on instances for a while, unseen by the copies that a model makes of itself meanwhile."""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from torch import nn

from flopcallback.tracing.torch_private import REPLICATE, replicate

__all__ = ["is_reached", "wrap_on_instance"]

_MISSING = object()
_lock = threading.Lock()


class _Shadow:
    """What stands in front of a method, and what stood there before: another one, something of the user's, nothing."""

    __slots__ = ("__weakref__", "before", "function", "is_gone")

    def __init__(self, function: Any, before: Any) -> None:
        self.function = function
        self.before = before
        self.is_gone = False


# How many shadows stand for an attribute of an instance, and all of those that may still be found there: two counts
# in two threads may take theirs away in another order than they put them there. None is kept alive from here, since
# it leads to its module.
_standing: Counter[tuple[int, str]] = Counter()
_shadows: dict[tuple[int, str], weakref.WeakValueDictionary[int, _Shadow]] = {}


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
    shadow = _Shadow(wrap(getattr(module, attribute)), _shadow_of(key, before) or before)
    _remember(key, shadow)
    own[attribute] = shadow.function

    def restore() -> None:
        _forget(key, shadow)
        if own.get(attribute, _MISSING) is not shadow.function:
            return  # below another thread's shadow, or what the user has put there since
        found = shadow.before
        while isinstance(found, _Shadow) and found.is_gone:
            found = found.before
        if found is _MISSING:
            own.pop(attribute, None)
        else:
            own[attribute] = found.function if isinstance(found, _Shadow) else found

    undo.callback(restore)


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
        _standing[key] += 1
        _shadows.setdefault(key, weakref.WeakValueDictionary())[id(shadow.function)] = shadow


def _forget(key: tuple[int, str], shadow: _Shadow) -> None:
    with _lock:
        shadow.is_gone = True
        _standing[key] -= 1
        if not _standing[key]:
            del _standing[key], _shadows[key]
        if not _standing:
            del nn.Module.__reduce_ex__
            if replicate is not None:
                setattr(nn.Module, REPLICATE, replicate)


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
