"""Shadows methods on instances for a while, unseen by the copies that a model makes of itself meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from torch import nn

__all__ = ["wrap_on_instance"]

_MISSING = object()
# For every shadow that stands, what stood there before: (id of the instance's dictionary, attribute) -> value.
_before: dict[tuple[int, str], Any] = {}
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
    is_first = _remember((id(own), attribute), before)
    own[attribute] = shadow

    def restore() -> None:
        if before is _MISSING:
            own.pop(attribute, None)
        else:
            own[attribute] = before
        if is_first:
            _forget((id(own), attribute))

    undo.callback(restore)


def _remember(key: tuple[int, str], before: Any) -> bool:
    """Whether this is the first of the shadows that may stand before each other there."""
    with _lock:
        if not _before:
            nn.Module.__reduce_ex__ = _reduce_ex  # type: ignore[method-assign,assignment]
            nn.Module._replicate_for_data_parallel = _replicate_plainly  # type: ignore[method-assign]
        return _before.setdefault(key, before) is before


def _forget(key: tuple[int, str]) -> None:
    with _lock:
        del _before[key]
        if not _before:
            del nn.Module.__reduce_ex__
            nn.Module._replicate_for_data_parallel = _replicate  # type: ignore[method-assign]


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
    plain = {name: _before.get((owner, name), value) for name, value in state.items()}
    return {name: value for name, value in plain.items() if value is not _MISSING}
