"""What stands around the next calls of a step of a LightningModule, and is taken away behind it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from flopcallback.lightning.step import METHODS, way_to_observe, with_each_call
from flopcallback.modules.attempt import call_once
from flopcallback.modules.compiled import CompiledCall, stepping_aside
from flopcallback.modules.wrappers import wrap_on_instance
from flopcallback.profiling.conditions import Conditions
from flopcallback.training.training import TRAINING, Training

__all__ = ["StepWatch"]

_Around = Callable[[Callable[[], Any], tuple[Any, ...], dict[str, Any]], None]


class StepWatch:
    """Has the next calls of a step counted, observed or timed, until it is closed.

    A call is made once, whatever fails around it.

    Attributes:
        compiled: the first compiled code that was called since a call was to be counted. Where that call was not seen,
            it was made in there: a compiled optimizer's step calls `training_step`, as Lightning's closure does.
    """

    def __init__(self) -> None:
        self.compiled = ""
        self._around = ExitStack()

    def close(self) -> None:
        """Take away everything that was put around a step."""
        self._around.close()

    def count(
        self,
        pl_module: Any,
        phase: str,
        training: Training,
        conditions: Callable[[Any], Conditions],
        give_up: Callable[[Exception], None],
    ) -> None:
        """Have the next call counted, and a profile made of it.

        Args:
            pl_module: the LightningModule, of either flavour.
            phase: a key of `METHODS`.
            training: makes the profile.
            conditions: returns the conditions under which a batch is counted.
            give_up: is told what failed.
        """

        def around(attempt: Callable[[], Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.close()
            observed = way_to_observe(pl_module, phase, args, kwargs, training.counting_nodes)(attempt)
            batch = args[0] if args else kwargs
            what, is_timed = f"the {phase} step", phase == TRAINING
            training.record(observed, pl_module, conditions(batch), what=what, is_timed=is_timed)

        def note(call: CompiledCall) -> None:
            self.compiled = self.compiled or call.name

        self.compiled = ""
        self._around.enter_context(stepping_aside(note, give_up))
        self._put_around(pl_module, METHODS[phase], around, give_up)

    def observe(self, pl_module: Any, training: Training) -> None:
        """Have all of a training step observed: its calls of `training_step`, its backwards, its optimizers' steps."""
        observer = training.observer
        if observer is None:
            return

        def around(attempt: Callable[[], Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            is_forward = bool(pl_module.automatic_optimization)
            nodes = training.counting_nodes
            pieces = nodes() if is_forward else with_each_call(pl_module, nodes)
            with observer.on(is_forward=is_forward), pieces:
                attempt()
            training.note_observed_call()

        self._around.enter_context(observer.watching())
        self._put_around(pl_module, METHODS[TRAINING], around, training.stop_observing)

    def time(self, pl_module: Any, training: Training) -> None:
        """Have the next calls of the training step timed."""

        def around(attempt: Callable[[], Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            # Under manual optimisation the step is backward and optimizer too: the forwards in it are timed apart.
            with training.timed_call(is_forward=bool(pl_module.automatic_optimization)):
                attempt()

        self._put_around(pl_module, METHODS[TRAINING], around, training.stop_timing)

    def _put_around(self, pl_module: Any, name: str, around: _Around, on_failure: Callable[[Exception], None]) -> None:
        """Until this is closed, each call of a step goes through `around(attempt, args, kwargs)`."""

        def wrap(method: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(method)
            def wrapped(*args: Any, **kwargs: Any) -> Any:
                call = functools.partial(method, *args, **kwargs)
                made = call_once(call, lambda attempt: around(attempt, args, kwargs))
                if made.failure is not None:
                    on_failure(made.failure)
                return made.result

            return wrapped

        wrap_on_instance(pl_module, name, wrap, self._around)
