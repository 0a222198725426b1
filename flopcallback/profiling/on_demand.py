"""`profile_call` and `verify_call`: one call of a model, counted on demand."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from flopcallback.counting.analysis import FlopCountAnalysis
from flopcallback.counting.verification import checked_engines
from flopcallback.measuring.hardware import peak_for
from flopcallback.modules.names import ModuleHolder, as_one_module, find_modules
from flopcallback.profile.model_profile import ModelProfile
from flopcallback.profile.verdict import Verdict
from flopcallback.profiling.build import profile_of
from flopcallback.profiling.checks import checked_options, warn_of_fma
from flopcallback.profiling.conditions import Conditions, conditions_of
from flopcallback.tracing.observed import Observed
from flopcallback.tracing.run import AUTO, DISPATCH, ENGINES, TRACE, ObservedRun, run_isolated

__all__ = ["Call", "profile_call", "verify_call"]


def profile_call(
    model: nn.Module | Callable[..., Any],
    inputs: Any = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    elementwise: bool = False,
    engine: str = AUTO,
    fma: int | None = None,
) -> ModelProfile:
    """Return one call of a model as a profile without times.

    It has FLOPs, and as `macs` the count of `FlopCountAnalysis`, ready for tables and pages. The model runs once, as it
    is, and is left as it was found, also when it raises. It may be on the meta device.

    Args:
        model: a module, a method of one, or any callable on modules, as for `FlopCountAnalysis`.
        inputs: a tensor, or a tuple of positional arguments of any structure; anything else is a single argument.
        kwargs: keyword arguments of the call.
        elementwise: whether elementwise operators and reductions count as `macs`; they are no FLOPs.
        engine: `"auto"`, `"trace"`, `"dispatch"` or `"observer"`, as for `FlopCountAnalysis`.
        fma: deprecated, without effect. FLOPs are 2 per multiply-add.

    Raises:
        TypeError: `model` is no module and cannot be called.
        ValueError: an argument is invalid, or the model has lazy modules that are not initialised.
        RuntimeError: the engine is `"trace"`, and the tracer cannot count this call.
        Exception: whatever the model raises by itself.

    Example:
        >>> import torch
        >>> from flopcallback.profiling.on_demand import profile_call
        >>> profile = profile_call(torch.nn.Linear(3, 5), torch.ones(2, 3))
        >>> profile.forward_flops, profile.root.params
        (60, 20)
    """
    warn_of_fma("profile_call", fma)
    checked_options("profile_call", elementwise=elementwise)
    call = Call.of("profile_call", model, inputs, kwargs)
    return call.count(call.conditions(), engine, elementwise=elementwise)[0]


def verify_call(
    model: nn.Module | Callable[..., Any],
    inputs: Any = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    engines: Sequence[str] = (TRACE, DISPATCH),
) -> Verdict:
    """Count one call with two engines, and return their verdict.

    It is `FlopCountAnalysis.verify()` as data for a profile. The model runs once with each engine, and is left as it
    was found. If one of them cannot count the call, the verdict says why, and nothing is raised.

    Args:
        model: a module, a method of one, or any callable on modules.
        inputs: a tensor, or a tuple of positional arguments of any structure; anything else is a single argument.
        kwargs: keyword arguments of the call.
        engines: two of `"trace"`, `"dispatch"` and `"observer"`.

    Raises:
        TypeError: `model` is no module and cannot be called.
        ValueError: `engines` are not two different engines.
        Exception: whatever the model raises by itself.

    Example:
        >>> import torch
        >>> from flopcallback.profiling.on_demand import verify_call
        >>> verify_call(torch.nn.Linear(3, 5), torch.ones(2, 3)).differences
        ()
    """
    pair = checked_engines("verify_call", engines)
    analysis = FlopCountAnalysis(model, inputs, kwargs, engine=AUTO if TRACE in pair else DISPATCH)
    analysis.unsupported_ops_warnings(False)  # a profile lists them
    if TRACE in pair and analysis.engine == DISPATCH:
        failed = "only the dispatcher can" if DISPATCH in pair else "the tracer cannot"
        return Verdict(reason=f"{failed} count this call: {analysis.engine_reason}", engines=pair)
    try:
        return Verdict(analysis.verify(engines=pair), engines=pair)
    except RuntimeError as error:  # the other engine cannot count it
        alone = "tracer" if TRACE in pair else "dispatcher"
        return Verdict(reason=f"only the {alone} can count this call: {error}", engines=pair)


@dataclass(frozen=True, slots=True)
class Call:
    """Call of a model that is made only to be counted.

    Attributes:
        owner: public function that makes it, named in errors.
        model: callable.
        root: module with the row of the whole call.
        args: positional arguments.
        kwargs: keyword arguments.
    """

    owner: str
    model: Callable[..., Any]
    root: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @classmethod
    def of(cls, owner: str, model: Any, inputs: Any, kwargs: Mapping[str, Any] | None) -> Call:
        """Check a user's arguments and return the call.

        Raises:
            TypeError: `model` is no module and cannot be called.
            ValueError: the model has lazy modules that are not initialised.
        """
        _check_model(owner, model)
        # A named tuple is one argument, such as a batch with fields.
        args = inputs if isinstance(inputs, tuple) and not hasattr(inputs, "_fields") else (inputs,)
        return cls(owner, model, _root(owner, model, args), args, dict(kwargs or {}))

    def conditions(self, peak_flops: float | str | None = None) -> Conditions:
        """Read the present conditions of the call.

        Args:
            peak_flops: as for `measure_latency`.
        """
        conditions = conditions_of("call", self.root, (self.args, self.kwargs))
        peak = peak_for(conditions.device, conditions.dtype, peak_flops)
        return dataclasses.replace(conditions, peak=peak)

    def count(
        self, conditions: Conditions, engine: str = AUTO, *, elementwise: bool = False
    ) -> tuple[ModelProfile, ObservedRun]:
        """Make the call once; return its profile and the observed run.

        Everything is left as it was found.

        Raises:
            ValueError: there is no such engine.
            RuntimeError: the engine is `"trace"`, and the tracer cannot count this call.
        """
        if engine not in ENGINES:
            raise ValueError(f"{self.owner}: engine is {engine!r}, expected one of {', '.join(map(repr, ENGINES))}")
        run = run_isolated(self.model, {"": self.root}, self.args, self.kwargs, engine=engine)
        profile = profile_of(Observed(None, (run,)), self.root, conditions, elementwise=elementwise)
        if isinstance(self.root, ModuleHolder):
            profile = _named(profile, getattr(self.model, "__name__", type(self.model).__name__))
        return profile, run


def _root(owner: str, model: nn.Module | Callable[..., Any], args: tuple[Any, ...]) -> nn.Module:
    """Return the module with the row of the whole call."""
    root = as_one_module(find_modules(model, args))
    if any(is_lazy(tensor) for tensor in (*root.parameters(), *root.buffers())):
        raise ValueError(
            f"{owner}: the model has lazy modules that are not initialised. Call it once, as in model(*inputs), and "
            f"then {owner}."
        )
    return root


def _named(profile: ModelProfile, name: str) -> ModelProfile:
    """Rename the profile of a function.

    Its root is no module of the user's.
    """
    root, *rows = profile.modules
    return dataclasses.replace(profile, name=name, modules=(dataclasses.replace(root, type="function"), *rows))


def _check_model(owner: str, model: object) -> None:
    # A class is callable too, but counting its constructor is never meant.
    if isinstance(model, type) and issubclass(model, nn.Module):
        name = model.__name__
        raise TypeError(f"{owner}: model is the class {name}, expected a module, such as {name}(...)")
    if not callable(model):
        raise TypeError(f"{owner}: model is {model!r:.80}, expected a module or another callable")
