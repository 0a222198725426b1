"""CallCensus: the calls that a `training_step` makes of its modules."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import ExitStack
from typing import Any

from flopcallback.modules.compiled import rest_if_unused
from flopcallback.modules.names import ModuleNames
from flopcallback.modules.outermost import outermost_calls
from flopcallback.training.training import Training

__all__ = ["CallCensus"]

MOST_PARTS = 64
"""Children of the module that are watched in case later steps call them."""


class CallCensus:
    """Notes of the calls in each training step, which tell steps of equal batches apart.

    A step may call a teacher in every other batch, or pick a head by task. The notes are taken between `open` and
    `close`, by wrappers around the modules that steps call themselves.
    """

    def __init__(self) -> None:
        self._wrappers = ExitStack()
        self.is_open = False

    def open(
        self, pl_module: Any, training: Training, called: Collection[str], give_up: Callable[[Exception], None]
    ) -> None:
        """Begin to note calls.

        Args:
            pl_module: LightningModule, of either package.
            training: receives the calls.
            called: names of the modules that the counted step has called.
            give_up: receives what failed.
        """
        self.is_open = True
        if pl_module._compiler_ctx is not None:  # the whole step is compiled, and calls no module that one could wrap
            return

        names = ModuleNames({"": pl_module})
        children = [name for name, _ in pl_module.named_children()]
        wrappers = outermost_calls(
            names,
            lambda _, call, *__: call(),
            lambda _, error: give_up(error),
            only={"", *children[:MOST_PARTS], *outer_names(called)},
            fast_path=training.note_site,
        )
        self._wrappers.enter_context(wrappers)
        rest_if_unused()

    def close(self) -> None:
        """Remove the wrappers."""
        self._wrappers.close()
        self.is_open = False


def outer_names(called: Collection[str]) -> set[str]:
    """Return the names of modules in no other one of these, but the root."""
    return {name for name in called if not any(owner in called for owner in ModuleNames.owners(name)[1:-1])}
