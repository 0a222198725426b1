"""Errors that end a training, which no event of a callback tells."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["LoopErrors"]

LOOP = ("_run_epoch", "_finalize_training")
"""Methods that a Trainer's loop is made of, since transformers 5.4."""

STEPS = ("get_batch_samples", "training_step", "_maybe_log_save_evaluate")
"""Methods that do most of the work in the one long loop of transformers 5.0 to 5.3."""


class LoopErrors:
    """Watch over the loop of a Trainer for errors that leave it.

    Methods of the loop are wrapped on the Trainer until `close`. A wrapper calls its method as it was called, and hands
    on what it returns or raises. A copy of the Trainer has no wrappers.

    Args:
        trainer: the Trainer, in `on_train_begin`; None watches nothing.
        told: bound method that is called when an error leaves the loop, before the user has it. It must not raise. Its
            object is not kept alive.
    """

    def __init__(self, trainer: Any, told: Callable[[], None]) -> None:
        reference = weakref.WeakMethod(told)
        self._parts = [_Part(owner, name, reference) for owner, name in _methods_of(trainer)]
        for part in self._parts:
            part.put_on()

    def close(self) -> None:
        """Remove all wrappers."""
        while self._parts:
            self._parts.pop().take_off()


class _Part:
    """A method of an object, wrapped on the instance.

    Attributes:
        method: what the wrapper covers.
        is_off: True once the wrapper is taken off. A wrapper of somebody else's may still call it.
    """

    def __init__(self, owner: Any, name: str, told: weakref.WeakMethod[Callable[[], None]]) -> None:
        self.method = getattr(owner, name)
        self.is_off = False
        self._owner, self._name, self._told = owner, name, told
        self._is_own = name in vars(owner)  # True if the user has set the attribute on the instance

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the method, and tell of an error."""
        try:
            return self.method(*args, **kwargs)
        except BaseException:
            told = self._told()
            if told is not None and not self.is_off:
                told()
            raise

    def __reduce__(self) -> tuple[Any, ...]:
        """Be the plain method in a copy, which belongs to the copy of the Trainer."""
        return _same, (self.method,)

    def put_on(self) -> None:
        """Wrap the method."""
        vars(self._owner)[self._name] = self

    def take_off(self) -> None:
        """Put back what was there, unless somebody has replaced the wrapper meanwhile."""
        self.is_off = True
        own, layer = vars(self._owner), self
        if own.get(self._name) is not self:
            return
        # A second callback may have wrapped the first one's wrapper, which is off before.
        while isinstance(layer.method, _Part) and layer.method.is_off:
            layer = layer.method
        if layer._is_own:
            own[self._name] = layer.method
        else:
            del own[self._name]


def _methods_of(trainer: Any) -> Iterator[tuple[Any, str]]:
    if trainer is None:
        return
    names = LOOP if hasattr(trainer, LOOP[0]) else STEPS
    yield from ((trainer, name) for name in names if hasattr(trainer, name))
    yield trainer.callback_handler, "on_epoch_begin"  # called by the loop itself


def _same(value: Any) -> Any:
    return value
