"""Updates of torch's optimizers that multiply no matrices, and need no records.

AdamW makes some thirty records for each parameter on a CPU, more than forward and backward of a small model together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import optim

from flopcallback.modules.compiled import is_used
from flopcallback.modules.wrappers import wrap_on_instance
from flopcallback.tracing.profiler_broker import Recording
from flopcallback.tracing.torch_private import STEP_CODE, switch_records

__all__ = ["PlainUpdates"]

# Not Adafactor, LBFGS and Muon, which multiply matrices or vectors.
_PLAIN: frozenset[type] = frozenset(
    {
        *(optim.Adadelta, optim.Adagrad, optim.Adam, optim.Adamax, optim.AdamW, optim.ASGD, optim.NAdam, optim.RAdam),
        *(optim.RMSprop, optim.Rprop, optim.SGD),
    }
)


class PlainUpdates:
    """Switch of one recording, which is off during plain updates.

    Hooks of the optimizer and its closure are recorded: they are the user's, and may do anything.

    Args:
        recording: the recording, which goes on.
        failed: receives what fails in here while an optimizer steps.
    """

    def __init__(self, recording: Recording, failed: Callable[[Exception], None]) -> None:
        self._recording = recording
        self._failed = failed
        self._is_off = False

    @contextmanager
    def left_out(self, optimizer: Any) -> Iterator[None]:
        """Leave no records of the update itself while the optimizer steps."""
        if not _is_plain(optimizer):
            yield
            return
        with ExitStack() as undo:
            undo.callback(self._switch_on)
            wrap_on_instance(optimizer, STEP_CODE, self._around_end, undo)
            hook = optimizer.register_step_pre_hook(self._before_update)  # the last one
            undo.callback(hook.remove)
            yield

    @contextmanager
    def lifted(self) -> Iterator[None]:
        """Record what runs in the context."""
        was_off = self._is_off
        self._switch_on()
        try:
            yield
        finally:
            # The user's profiler may have begun in there, and gets all records.
            if was_off and not self._recording.is_lost:
                self._switch_off()

    def _before_update(self, *_: Any) -> None:
        try:
            self._switch_off()
        except Exception as error:  # noqa: BLE001 - the optimizer is at work
            self._failed(error)

    def _around_end(self, step_code: Callable[[], Any]) -> Callable[[], Any]:
        """Wrap what an optimizer calls after the update, before hooks."""

        def after_update() -> Any:
            try:
                self._switch_on()
            except Exception as error:  # noqa: BLE001 - as above
                self._failed(error)
            return step_code()

        return after_update

    def _switch_off(self) -> None:
        self._is_off = True
        switch_records(False)

    def _switch_on(self) -> None:
        if self._is_off:
            self._is_off = False
            switch_records(True)


def _is_plain(optimizer: Any) -> bool:
    """Return whether an optimizer's update is elementwise for certain, whatever was put around it."""
    if type(optimizer) not in _PLAIN or not hasattr(optimizer, STEP_CODE):
        return False
    if is_used():  # the update may be compiled, and would be once more with a hook
        return False
    # Of tensors of the user's own, an elementwise operator may be anything.
    parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
    return _is_as_written(type(optimizer).step) and all(type(each) in _TENSORS for each in parameters)


_TENSORS = (torch.nn.Parameter, torch.Tensor)


def _is_as_written(step: Any) -> bool:
    """Return whether a method and all that it wraps are torch's, and nobody's replacement."""
    while step is not None:
        if not str(getattr(step, "__globals__", {}).get("__name__", "")).startswith("torch.optim."):
            return False
        step = getattr(step, "__wrapped__", None)
    return True
