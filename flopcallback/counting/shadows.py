"""Shadows methods on instances for a while, unseen by the copies that a model makes of itself meanwhile."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from torch import nn

__all__ = ["wrap_on_instance"]

_MISSING = object()
# Where shadows stand, what stood there before the first of them, and how many there are: two counts in two threads
# may take theirs away in another order than they put them there.
_before: dict[tuple[int, str], Any] = {}
_standing: Counter[tuple[int, str]] = Counter()
_lock = threading.Lock()
_replicate = nn.Module._replicate_for_data_parallel


def wrap_on_instance(
    module: nn.Module,
    attribute: str,
    wrap: Callable[[Callable[..., Any]], Callable[..., Any]],
    undo: ExitStack,
) -> None:
    """Shadows `module.attribute` by `wrap(module.attribute)` in the instance's own dictionary, until `undo` closes.

    `nn.Module.__setattr__` is passed by, so that a model that overrides it notices nothing. What stood in the
    dictionary before (a `forward` that the user had replaced) is put back. A copy of the module made meanwhile has no
    shadow: it would lead back to the original.
    """
    own = vars(module)
    before = own.get(attribute, _MISSING)
    shadow = wrap(getattr(module, attribute))
    key = (id(own), attribute)
    _remember(key, before)
    own[attribute] = shadow

    def restore() -> None:
        is_last, first = _forget(key)
        if not is_last and own.get(attribute) is not shadow:
            return  # another thread's shadow stands before this one; the last to go puts back what the first one found
        found = first if is_last else before
        if found is _MISSING:
            own.pop(attribute, None)
        else:
            own[attribute] = found

    undo.callback(restore)


def _remember(key: tuple[int, str], before: Any) -> None:
    with _lock:
        if not _before:
            nn.Module.__reduce_ex__ = _reduce_ex  # type: ignore[method-assign,assignment]
            nn.Module._replicate_for_data_parallel = _replicate_plainly  # type: ignore[method-assign]
        _before.setdefault(key, before)
        _standing[key] += 1


def _forget(key: tuple[int, str]) -> tuple[bool, Any]:
    """Whether this was the last of the shadows there, and what stood there before the first."""
    with _lock:
        _standing[key] -= 1
        if _standing[key]:
            return False, _before[key]
        del _standing[key]
        first = _before.pop(key)
        if not _before:
            del nn.Module.__reduce_ex__
            nn.Module._replicate_for_data_parallel = _replicate  # type: ignore[method-assign]
        return True, first


def _reduce_ex(self: nn.Module, protocol: Any) -> Any:
    """What `copy` and `pickle` take a module apart by."""
    reduced = object.__reduce_ex__(self, protocol)
    if not isinstance(reduced, tuple) or len(reduced) < 3 or not isinstance(reduced[2], dict):
        return reduced
    return (*reduced[:2], _without_shadows(reduced[2], id(vars(self))), *reduced[3:])


def _replicate_plainly(self: nn.Module) -> nn.Module:
    replica: nn.Module = _replicate(self)  # type: ignore[no-untyped-call]
    replica.__dict__ = _without_shadows(replica.__dict__, id(vars(self)))
    return replica


def _without_shadows(state: dict[str, Any], owner: int) -> dict[str, Any]:
    """Of an instance's attributes, those that the model knows of: what stood where now a shadow stands."""
    if not _before:
        return dict(state)
    plain = {name: _before.get((owner, name), value) for name, value in state.items()}
    return {name: value for name, value in plain.items() if value is not _MISSING}
