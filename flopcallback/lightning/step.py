"""Observation of a LightningModule's step, without a change of its results."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

from torch import nn

from flopcallback.modules.names import ModuleNames
from flopcallback.modules.outermost import is_compiled, outermost_calls
from flopcallback.tracing.in_flight import observe_beside, observe_each_call, observe_in_flight
from flopcallback.tracing.observed import Observed
from flopcallback.tracing.run import TRACE, evaluation_engine
from flopcallback.training.training import TRAINING

__all__ = ["METHODS", "choose_observation", "counting_each_call", "is_counted_by_calls"]

METHODS = {TRAINING: "training_step", "validate": "validation_step", "test": "test_step", "predict": "predict_step"}
"""Name of the step method by phase."""


def choose_observation(
    pl_module: Any,
    phase: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    counting_nodes: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Callable[[Callable[[], Any]], Observed]:
    """Return a function that makes and observes a call of a step.

    Usually it observes the whole step while it runs. A step with a backward (manual optimization) is observed one
    module call at a time. So is a model with compiled modules, which are counted beside the real call, uncompiled: an
    observed call would run uncompiled, or be compiled once more. If the whole LightningModule is compiled, the whole
    step is counted beside the real call.

    A training step is traced. A step of evaluation is not: the tracer's function mode would turn off PyTorch's fast
    paths, and with them change the last digits of results. See `evaluation_engine`.

    Args:
        pl_module: LightningModule, of either package.
        phase: key of `METHODS`.
        args: positional arguments of the step.
        kwargs: keyword arguments of the step.
        counting_nodes: returns a context manager for each observed piece of the step.
    """
    names = ModuleNames({"": pl_module})
    if pl_module._compiler_ctx is not None:
        counted = functools.partial(_uncompiled, pl_module, METHODS[phase])
        return lambda call: observe_beside(call, counted, names, args, kwargs)
    results = pl_module.trainer._results  # values given to `self.log` so far, to be restored if the call is repeated
    keep = () if results is None else (results, *results.values())
    engine, reason = (TRACE, "") if phase == TRAINING else evaluation_engine(names, (args, kwargs))
    has_backward = phase == TRAINING and not pl_module.automatic_optimization
    if has_backward or _has_compiled_pieces(pl_module):
        return lambda call: observe_each_call(
            call, names, engine=engine, reason=reason, keep=keep, inside=counting_nodes
        )

    def observe_whole(call: Callable[[], Any]) -> Observed:
        with counting_nodes():
            return observe_in_flight(call, names, (args, kwargs), engine=engine, reason=reason, keep=keep)

    return observe_whole


@contextmanager
def counting_each_call(
    pl_module: Any,
    counting_nodes: Callable[[], AbstractContextManager[None]],
    on_failure: Callable[[Exception], None],
) -> Iterator[None]:
    """Enter `counting_nodes()` around each outermost module call.

    These are the pieces of a step with a backward that `choose_observation` observes. `on_failure` receives what failed
    around a call, which is made in any case.
    """

    def intercept(_: Any, call: Callable[[], Any], *__: Any) -> None:
        with counting_nodes():
            call()

    with outermost_calls(ModuleNames({"": pl_module}), intercept, lambda _, error: on_failure(error)):
        yield


def is_counted_by_calls(pl_module: Any) -> bool:
    """Return whether a training step is counted one module call at a time, as `choose_observation` does."""
    return not pl_module.automatic_optimization or _has_compiled_pieces(pl_module)


def _has_compiled_pieces(model: nn.Module) -> bool:
    return any(map(is_compiled, model.modules()))


def _uncompiled(pl_module: Any, name: str, *args: Any, **kwargs: Any) -> Any:
    """Call the original method of a compiled LightningModule, without logging."""
    attributes, originals = vars(pl_module), pl_module._compiler_ctx
    with ExitStack() as undo:
        compiled = {key: attributes[key] for key in attributes.keys() & {*METHODS.values(), "forward"}}
        undo.callback(attributes.update, compiled)
        for method in ("log", "log_dict"):
            undo.callback(attributes.pop, method)
            attributes[method] = _log_nothing
        attributes.update({key: originals[f"original_{key}"] for key in ("forward", *METHODS.values())})
        return getattr(pl_module, name)(*args, **kwargs)


def _log_nothing(*_: Any, **__: Any) -> None:
    """Replace `self.log` in a call that is made for its count alone."""
