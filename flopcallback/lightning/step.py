"""How one step of a LightningModule is observed without changing what it does."""

from __future__ import annotations

import functools
import importlib
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

from torch import nn

from flopcallback.modules.names import ModuleNames
from flopcallback.modules.outermost import is_compiled, outermost_calls
from flopcallback.tracing.in_flight import observe_beside, observe_each_call, observe_in_flight
from flopcallback.tracing.observed import Observed
from flopcallback.tracing.run import DISPATCH, TRACE
from flopcallback.training.training import TRAINING

__all__ = ["METHODS", "samples_in", "way_to_observe", "with_each_call"]

METHODS = {TRAINING: "training_step", "validate": "validation_step", "test": "test_step", "predict": "predict_step"}
"""The step of each phase."""

EVALUATION_REASON = "evaluation is watched from below, where PyTorch's fast paths stay on"


def way_to_observe(
    pl_module: Any,
    phase: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    counting_nodes: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Callable[[Callable[[], Any]], Observed]:
    """How a step is to be called: a function that takes a call of it with these arguments.

    Whole and in flight. Where it contains a backward (manual optimisation), module by module. Where a module is
    compiled, that module's call is counted beside the real one, uncompiled: an observed call would not be compiled, or
    would be compiled once more. Where the LightningModule as a whole is compiled, so is the step.

    A step of training is traced. One of evaluation is observed by the dispatcher: the tracer's function mode would
    switch PyTorch's fast paths off, and with them change results in the last digits.

    Args:
        pl_module: the LightningModule, of either flavour.
        phase: a key of `METHODS`.
        args: of the step.
        kwargs: of the step.
        counting_nodes: makes what goes around each piece that is observed.
    """
    names = ModuleNames({"": pl_module})
    if pl_module._compiler_ctx is not None:
        counted = functools.partial(_uncompiled, pl_module, METHODS[phase])
        return lambda call: observe_beside(call, counted, names, args, kwargs)
    results = pl_module.trainer._results  # what `self.log` was given so far
    keep = () if results is None else (results, *results.values())
    engine, reason = (TRACE, "") if phase == TRAINING else (DISPATCH, EVALUATION_REASON)
    has_backward = phase == TRAINING and not pl_module.automatic_optimization
    if has_backward or _has_compiled_pieces(pl_module):
        return lambda call: observe_each_call(
            call, names, engine=engine, reason=reason, keep=keep, inside=counting_nodes
        )

    def as_a_whole(call: Callable[[], Any]) -> Observed:
        with counting_nodes():
            return observe_in_flight(call, names, (args, kwargs), engine=engine, reason=reason, keep=keep)

    return as_a_whole


@contextmanager
def with_each_call(pl_module: Any, counting_nodes: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """Have `counting_nodes()` go around each piece of a step with a backward that `way_to_observe` would observe."""

    def intercept(_: Any, call: Callable[[], Any], *__: Any) -> None:
        with counting_nodes():
            call()

    with outermost_calls(ModuleNames({"": pl_module}), intercept, lambda *_: None):
        yield


def samples_in(batch: Any) -> int | None:
    """Of a batch, as Lightning itself counts them where it logs; None where it cannot tell."""
    flavour = next(name for name in ("lightning.pytorch", "pytorch_lightning") if name in sys.modules)
    extract = importlib.import_module(f"{flavour}.utilities.data").extract_batch_size
    with warnings.catch_warnings():  # it says where tensors differ in their first dimension, and takes the first one's
        warnings.simplefilter("ignore")
        try:
            return int(extract(batch))
        except Exception:  # noqa: BLE001 - of its own kind, one for each flavour
            return None


def _has_compiled_pieces(model: nn.Module) -> bool:
    return any(map(is_compiled, model.modules()))


def _uncompiled(pl_module: Any, name: str, *args: Any, **kwargs: Any) -> Any:
    """Calls a step of a compiled LightningModule as it was written, and logs nothing."""
    own, originals = vars(pl_module), pl_module._compiler_ctx
    with ExitStack() as undo:
        undo.callback(own.update, {key: own[key] for key in own.keys() & {*METHODS.values(), "forward"}})
        for method in ("log", "log_dict"):
            undo.callback(own.pop, method)
            own[method] = _log_nothing
        own.update({key: originals[f"original_{key}"] for key in ("forward", *METHODS.values())})
        return getattr(pl_module, name)(*args, **kwargs)


def _log_nothing(*_: Any, **__: Any) -> None:
    """In place of `self.log`, in a call that is made for its count alone."""
