"""StepWatch: temporary wrappers around a step of a LightningModule."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from typing import Any

from flopcallback.lightning.step import METHODS, choose_observation, counting_each_call, is_counted_by_calls
from flopcallback.modules.attempt import call_once
from flopcallback.modules.compiled import CompiledCall, stepping_aside
from flopcallback.modules.wrappers import wrap_on_instance
from flopcallback.profiling.conditions import Conditions
from flopcallback.training.training import TRAINING, Training

__all__ = ["StepWatch"]

_Around = Callable[[Callable[[], Any], tuple[Any, ...], dict[str, Any]], None]


class StepWatch:
    """Temporary wrapper that counts, observes or times the calls of a step.

    It is removed by `close`. A call is made once, whatever fails in the wrapper.

    Attributes:
        compiled: name of the first compiled code that was called since `count`; empty before. If the call to be counted
            was not seen, that code made it: a compiled optimizer's step calls `training_step` through Lightning's
            closure.
        is_open: True while anything watches a step.
    """

    def __init__(self) -> None:
        self.compiled = ""
        self.is_open = False
        self._around = ExitStack()
        self._step = ExitStack()  # what observes the step, beyond the call

    def close(self) -> None:
        """Remove the wrapper and all else that watches the step."""
        self.is_open = False
        self._around.close()
        self._step.close()

    def count(
        self,
        pl_module: Any,
        phase: str,
        training: Training,
        conditions: Callable[[Any], Conditions],
        give_up: Callable[[Exception], None],
    ) -> None:
        """Wrap the step to count its next call.

        Args:
            pl_module: LightningModule, of either package.
            phase: key of `METHODS`.
            training: receives the counted call.
            conditions: function from a batch to the conditions of its count.
            give_up: receives an exception of the wrapper.
        """

        def around(attempt: Callable[[], Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._around.close()  # only this call is counted
            observer = training.observer if phase == TRAINING else None
            is_forward = bool(pl_module.automatic_optimization)
            with nullcontext() if observer is None else observer.on(is_forward=is_forward):
                observed = choose_observation(pl_module, phase, args, kwargs, training.counting_nodes)(attempt)
            if observer is not None:
                training.note_observed_call()
            batch = args[0] if args else kwargs
            what, is_timed = f"the {phase} step", phase == TRAINING
            training.record(observed, pl_module, conditions(batch), what=what, is_timed=is_timed)

        def note(call: CompiledCall) -> None:
            self.compiled = self.compiled or call.name

        self.compiled, self.is_open = "", True
        if phase == TRAINING and training.observer is not None:
            self._step.enter_context(training.observer.watching())
        self._around.enter_context(stepping_aside(note, give_up))
        self._wrap_method(pl_module, METHODS[phase], around, give_up)

    def observe(self, pl_module: Any, training: Training) -> None:
        """Observe a whole training step.

        That is its calls of `training_step`, its backwards and its optimizers' steps.
        """
        observer = training.observer
        if observer is None:
            return
        self.is_open = True

        def around(attempt: Callable[[], Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            is_forward = bool(pl_module.automatic_optimization)
            # The pieces have to be the same as in the counted step, so that their autograd nodes can be compared.
            nodes = training.counting_nodes
            is_by_calls = is_counted_by_calls(pl_module)
            pieces = counting_each_call(pl_module, nodes, training.stop_observing) if is_by_calls else nodes()
            with observer.on(is_forward=is_forward), pieces:
                attempt()
            training.note_observed_call()

        self._step.enter_context(observer.watching())
        self._wrap_method(pl_module, METHODS[TRAINING], around, training.stop_observing)

    def time(self, pl_module: Any, training: Training) -> None:
        """Wrap the training step to time its calls."""
        self.is_open = True

        def around(attempt: Callable[[], Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            # Under manual optimization the method also runs backward and optimizer: only the forwards in it are timed.
            with training.timed_call(is_forward=bool(pl_module.automatic_optimization)):
                attempt()

        self._wrap_method(pl_module, METHODS[TRAINING], around, training.stop_timing)

    def _wrap_method(self, pl_module: Any, name: str, around: _Around, on_failure: Callable[[Exception], None]) -> None:
        """Pass each call of a method through `around` until `close`.

        Args:
            pl_module: owner of the method.
            name: name of the method.
            around: called with the attempt, which it has to make once, and with the arguments of the call.
            on_failure: receives an exception of `around`, after the call was made.
        """

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
