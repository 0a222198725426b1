"""Analysis of a model's run by any statistic of its operators."""

from __future__ import annotations

import copy
import difflib
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

from torch import nn
from torch.nn.parameter import is_lazy

from flopcallback.counting.missing import (
    log_unknown,
    log_unsupported,
    log_unused,
    log_upper_bounds,
    lower_bounds,
    uncalled_modules,
)
from flopcallback.counting.tally import Counting, Handle, Rule, Statistic, Tally, Unknown, tally
from flopcallback.formulas.cost import Formula
from flopcallback.formulas.op_call import OpCall
from flopcallback.formulas.registry import Free, check_operator_name
from flopcallback.modules.names import ModuleNames, find_modules
from flopcallback.modules.snapshot import copies_of_lazy_buffers
from flopcallback.profile.numbers import bound_sign
from flopcallback.tracing.real_data import needs_real_data
from flopcallback.tracing.run import (
    AUTO,
    DISPATCH,
    ENGINES,
    OBSERVER,
    TRACER_WARNINGS,
    ObservedRun,
    device_mismatch,
    run_isolated,
)

__all__ = ["OperatorAnalysis"]

_Self = TypeVar("_Self", bound="OperatorAnalysis")

ANCESTOR_MODES = ("owner", "caller")


class OperatorAnalysis:
    """A statistic of a model's operators, by module and by operator.

    Nothing runs until the first result is asked for. The model then runs once with the given inputs. Afterwards its
    parameters, buffers, flags, hooks and grads are as before, and so are the random states.

    Args:
        model: a module, a method of one, or any callable that uses modules. A function's modules are found in its
            closure, globals, defaults and arguments.
        inputs: a tensor, or a tuple of positional arguments of any structure; anything else is one argument.
        kwargs: keyword arguments of the call.
        formula: returns the statistic of an `OpCall`: an int, a `Counter` by name, or None if it has none. Without a
            formula nothing is counted until handles are set.
        prune: leave out operators that no result of the call depends on.
        engine: `"trace"` for the JIT tracer, `"dispatch"` for the dispatcher below it, or `"auto"` for the tracer and,
            if it cannot count the call, the dispatcher. `"observer"` reads what really ran from PyTorch's own records,
            also in compiled code, which the others run uncompiled.

    Raises:
        ValueError: there is no such engine, or `prune` is used with the dispatcher, which sees no data flow.
        RuntimeError: the engine is `"trace"`, and the tracer cannot count this call. Raised by the first result.

    Example:
        >>> import torch
        >>> from flopcallback import OperatorAnalysis
        >>> outputs = OperatorAnalysis(torch.nn.Linear(3, 5), torch.ones(2, 3), formula=lambda call: len(call.outputs))
        >>> outputs.by_operator()
        Counter({'linear': 1})
    """

    def __init__(
        self,
        model: nn.Module | Callable[..., Any],
        inputs: Any = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        formula: Callable[[OpCall], Statistic | None] | None = None,
        prune: bool = False,
        engine: str = AUTO,
    ) -> None:
        if isinstance(model, type) and issubclass(model, nn.Module):
            name = model.__name__
            raise TypeError(f"{type(self).__name__}: model is the class {name}, expected a module, such as {name}(...)")
        if not callable(model):
            raise TypeError(f"{type(self).__name__}: model is {model!r}, expected a module or another callable")
        if engine in (DISPATCH, OBSERVER) and prune:
            raise ValueError(
                f"{type(self).__name__}: prune=True needs to know what reaches the output, and only the tracer sees "
                f"that: use engine='auto' or engine='trace'"
            )
        self._model = model
        self._inputs = inputs
        self._kwargs = dict(kwargs or {})
        self._formula = formula
        self._prune = prune
        self._engine = _one_of(f"{type(self).__name__}: engine", engine, ENGINES)
        self._op_handles: dict[str, Handle | None] = {}
        self._op_formulas: dict[str, Formula | None] = {}
        self._ancestor_mode = "owner"
        self._warn_trace = TRACER_WARNINGS[0]
        # None: log one line with the operators that make the total a lower bound. True: a line for each, as fvcore.
        self._enable_warn_unsupported_ops: bool | None = None
        self._enable_warn_uncalled_mods: bool | None = None
        self._stats: ObservedRun | None = None  # None until the first result is asked for
        self._tally: Tally | None = None  # None if the run was not summed with the present settings

    # --- Results ----------------------------------------------------------------------------------------------------

    def total(self, module_name: str = "") -> int:
        """Return the total of a module, children included; by default the call's."""
        return sum(self.by_operator(module_name).values())

    def by_operator(self, module_name: str = "") -> Counter[str]:
        """Return a module's statistic by operator, such as `Counter({"conv": 194616})`."""
        return Counter(self._results().counts[self.canonical_module_name(module_name)])

    def by_module(self) -> Counter[str]:
        """Return the totals of all modules by canonical name.

        Each includes the module's children; it is 0 for a module that did nothing.
        """
        summed: Counter[str] = Counter()
        for name, counts in self._results().counts.items():
            summed[name] = sum(counts.values())
        return summed

    def by_module_and_operator(self) -> dict[str, Counter[str]]:
        """Return the statistic of every module by operator."""
        return {name: Counter(counts) for name, counts in self._results().counts.items()}

    def unsupported_ops(self, module_name: str = "") -> Counter[str]:
        """Return calls of operators that are not counted, in fvcore's sense.

        These are all uncounted operators except those on fvcore's list of operators without cost. Operators that are
        free by our own table (a softmax, unless `elementwise=True`) are among them. For the operators that make a total
        incomplete, see `unknown_ops()`.

        Raises:
            RuntimeError: nothing was analysed yet.
        """
        if self._stats is None:
            raise RuntimeError("unsupported_ops() reports on an analysis, and none was made: call total() first")
        return Counter(self._results().unsupported[self.canonical_module_name(module_name)])

    def unknown_ops(self, module_name: str = "") -> Counter[str]:
        """Return calls of operators without a count, so that work is missing.

        They have no formula, or one that failed.
        """
        return Counter(
            {name: unknown.calls for name, unknown in self._unknown(module_name).items()},
        )

    def unknown_reasons(self, module_name: str = "") -> dict[str, str]:
        """Return why each unknown operator is unknown."""
        return {name: unknown.reason for name, unknown in self._unknown(module_name).items()}

    def counted_calls(self) -> Counter[str]:
        """Count the calls whose statistic is not 0, by the operator's whole name.

        A call on nested tensors is one call.
        """
        return +self._results().calls

    @property
    def is_lower_bound(self) -> bool:
        """True if an unknown operator worked on floating-point tensors."""
        return "" in self.lower_bounds()

    def lower_bounds(self) -> set[str]:
        """Return the modules with totals that are lower bounds, by canonical name.

        The modules that contain them are included.
        """
        return lower_bounds(self._results())

    @property
    def is_upper_bound(self) -> bool:
        """True if the work of an operator depends on data that nobody saw, and counts as its maximum."""
        return "" in self.upper_bounds()

    def upper_bounds(self) -> dict[str, set[str]]:
        """Return the operators that count as their maximum, by the canonical name of each module with any."""
        return {name: set(operators) for name, operators in self._results().upper_bounds.items() if operators}

    def uncalled_modules(self) -> set[str]:
        """Return the canonical names of modules that did not run.

        A container has run if one of its children has.
        """
        return uncalled_modules(self._run(), self._ancestor_mode)

    def module_calls(self) -> Counter[str]:
        """Return how often each module was entered, by canonical name."""
        return +self._run().calls

    @property
    def engine(self) -> str:
        """The engine that observed the run: `"trace"`, `"dispatch"` or `"observer"`."""
        return self._run().engine

    @property
    def engine_reason(self) -> str:
        """The reason why the engine was the dispatcher; empty for the tracer."""
        return self._run().engine_reason

    def canonical_module_name(self, name: str) -> str:
        """Return a module's canonical name: the first name of a shared module.

        Raises:
            KeyError: no module has this name; the nearest names are given.
            TypeError: the name is not a string.
        """
        if not isinstance(name, str):
            raise TypeError(f"module name is {name!r}, expected a string such as 'encoder.0'")
        canonical = self._names().canonical
        if name not in canonical:
            near = difflib.get_close_matches(name, canonical, n=3, cutoff=0.5)
            hint = (
                f"; did you mean {' or '.join(map(repr, near))}?" if near else f"; there are {len(canonical)} modules"
            )
            raise KeyError(f"no module is named {name!r}{hint}")
        return canonical[name]

    # --- Settings ---------------------------------------------------------------------------------------------------

    def set_op_handle(self: _Self, *args: Any, **kwargs: Handle | None) -> _Self:
        """Count operators by handles of your own, in this analysis alone.

        Args:
            args: alternating names and handles: `"aten::bmm", handle, "aten::batch_norm", None`.
            kwargs: handles by name.

        A handle takes the operator's inputs and outputs, two lists of `torch._C.Value`, and returns a number or a
        `Counter`; None makes the operator cost nothing. An autograd function is `"prim::PythonOp.<ClassName>"`.

        Raises:
            TypeError: a name without a handle, or a handle that cannot be called.
        """
        self._op_handles.update(_pairs("set_op_handle", args, kwargs))
        self._tally = None
        return self

    def set_formula(self: _Self, *args: Any, **kwargs: Formula | None) -> _Self:
        """Count operators by formulas of your own, in this analysis alone.

        Unlike a handle, a formula takes an `OpCall` (as for `register_formula`) and works with either engine. None
        makes an operator cost nothing.
        """
        pairs = _pairs("set_formula", args, kwargs)
        for name in pairs:
            check_operator_name("set_formula", name)
            self._op_handles.pop(name, None)
        self._op_formulas.update(pairs)
        self._tally = None
        return self

    def clear_op_handles(self: _Self) -> _Self:
        """Remove all handles and formulas, also built-in ones.

        Nothing is counted until new ones are set.
        """
        self._op_handles, self._op_formulas, self._formula = {}, {}, None
        self._tally = None
        return self

    def copy(self: _Self, new_model: Any = None, new_inputs: Any = None, new_kwargs: Any = None) -> _Self:
        """Return a copy with all settings, for another model or other inputs.

        Keyword arguments belong to the inputs: new inputs replace them too.
        """
        twin = copy.copy(self)
        twin._op_handles, twin._op_formulas = dict(self._op_handles), dict(self._op_formulas)
        twin._model = self._model if new_model is None else new_model
        if new_inputs is not None or new_kwargs is not None:
            twin._inputs = () if new_inputs is None else new_inputs
            twin._kwargs = dict(new_kwargs or {})
        return twin

    def tracer_warnings(self: _Self, mode: str) -> _Self:
        """Set which warnings to show: `"all"`, `"no_tracer_warning"` (default) or `"none"`."""
        self._warn_trace = _one_of("tracer_warnings: mode", mode, TRACER_WARNINGS)
        return self

    def ancestor_mode(self: _Self, mode: str) -> _Self:
        """Choose which modules an operator is attributed to.

        Args:
            mode: `"owner"` (default): the running module and the modules that contain it by name. `"caller"`: all
                modules that are being called as `module(...)`; work of an explicit `.forward()` or another method
                belongs to the module that calls it.
        """
        self._ancestor_mode = _one_of("ancestor_mode: mode", mode, ANCESTOR_MODES)
        self._tally = None
        return self

    def unsupported_ops_warnings(self: _Self, enabled: bool) -> _Self:
        """Set whether to log each unsupported operator.

        By default, one line names the unknown ones.
        """
        self._enable_warn_unsupported_ops = enabled
        return self

    def uncalled_modules_warnings(self: _Self, enabled: bool) -> _Self:
        """Set whether to log modules that were not called, or without effect.

        Off by default. A module is without effect if no result of the call depends on it.
        """
        self._enable_warn_uncalled_mods = enabled
        return self

    def __repr__(self) -> str:
        model = type(self._model).__name__ if isinstance(self._model, nn.Module) else repr(self._model)
        if self._stats is None:
            return f"{type(self).__name__}({model}, not run yet)"
        bound = bound_sign(is_lower=self.is_lower_bound, is_upper=self.is_upper_bound)
        return f"{type(self).__name__}({model}): {bound}{self.total():,}"

    # --- Inside -----------------------------------------------------------------------------------------------------

    @classmethod
    def of_run(cls: type[_Self], run: ObservedRun, model: Any, **options: Any) -> _Self:
        """Return an analysis of a run that was already observed."""
        analysis = cls(model, **options)
        analysis._stats = run
        return analysis

    @staticmethod
    def sum_together(run: ObservedRun, analyses: Sequence[OperatorAnalysis]) -> None:
        """Sum several analyses of one run in one pass over it."""
        sums = tally(run, *(analysis._counting() for analysis in analyses))
        for analysis, summed in zip(analyses, sums, strict=True):
            analysis._tally = summed

    def __getstate__(self) -> dict[str, Any]:
        # A graph can neither be copied nor pickled; a copy runs the model again for its first result.
        return {**vars(self), "_stats": None, "_tally": None}

    def _names(self) -> ModuleNames:
        return self._stats.names if self._stats is not None else ModuleNames(self._roots())

    def _roots(self) -> dict[str, nn.Module]:
        return find_modules(self._model, self._arguments())

    def _arguments(self) -> tuple[Any, ...]:
        # A named tuple, such as a packed sequence, is one argument.
        is_arguments = isinstance(self._inputs, tuple) and not hasattr(self._inputs, "_fields")
        return self._inputs if is_arguments else (self._inputs,)

    def _run(self) -> ObservedRun:
        if self._stats is None:
            self._stats = self._observe(self._engine)
            self._tally = self._sum(self._stats)
            self._log_missing(self._stats, self._tally)
        return self._stats

    def _results(self) -> Tally:
        run = self._run()
        if self._tally is None:  # another setting, or a run that was observed elsewhere
            self._tally = self._sum(run)
        return self._tally

    def _observe(self, engine: str) -> ObservedRun:
        model, roots, args = self._model, self._roots(), self._arguments()
        if any(is_lazy(p) for root in roots.values() for p in (*root.parameters(), *root.buffers())):
            # The first run turns lazy modules into plain ones: it is made with a copy.
            if not args and not self._kwargs:
                raise ValueError(
                    f"{type(self).__name__}: the model has lazy modules that are not initialised, and no inputs were "
                    f"given to initialise them with: pass inputs=..."
                )
            model, roots = copy.deepcopy((model, roots), copies_of_lazy_buffers(roots))
        try:
            return run_isolated(model, roots, args, self._kwargs, engine=engine, tracer_warnings=self._warn_trace)
        except (RuntimeError, AssertionError) as error:  # AssertionError: a fake tensor has met a real one
            if (message := needs_real_data(error) or device_mismatch(roots, (args, self._kwargs))) is None:
                raise
            raise ValueError(f"{type(self).__name__}: {message}") from error

    def _log_missing(self, run: ObservedRun, sums: Tally) -> None:
        if self._enable_warn_unsupported_ops:
            log_unsupported(sums)
        elif self._enable_warn_unsupported_ops is None:
            log_unknown(sums)
            log_upper_bounds(sums)
        if self._enable_warn_uncalled_mods:
            log_unused(run, uncalled_modules(run, self._ancestor_mode))

    def _sum(self, run: ObservedRun) -> Tally:
        return tally(run, self._counting(), prune=self._prune)[0]

    def _counting(self) -> Counting:
        return Counting(self._measure, self._op_handles, self._ancestor_mode)

    def _unknown(self, module_name: str) -> dict[str, Unknown]:
        return self._results().unknown[self.canonical_module_name(module_name)]

    def _measure(self, operators: Collection[str]) -> dict[str, Rule]:
        """Return the rule that each operator is counted by here."""
        rules = self._by_default([name for name in operators if name not in self._op_formulas])
        for name, formula in self._op_formulas.items():
            rules[name] = _costs_nothing if formula is None else self._from_cost(formula)
        return rules

    def _by_default(self, operators: Collection[str]) -> dict[str, Rule]:
        """Return the rules where nobody set a formula in this analysis."""
        return dict.fromkeys(operators, Free("no formula is set") if self._formula is None else self._formula)

    def _from_cost(self, formula: Formula) -> Callable[[OpCall], Statistic | None]:
        return formula  # type: ignore[return-value]


def _costs_nothing(call: OpCall) -> None:
    """Count nothing, not even the operators inside an autograd function.

    `Free` would count those.
    """


def _pairs(function: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    if len(args) % 2:
        raise TypeError(
            f"{function}: expected names and functions in turn, and {args[-1]!r} is a name without function"
        )
    pairs = {**dict(zip(args[::2], args[1::2], strict=True)), **kwargs}
    for name, value in pairs.items():
        if not isinstance(name, str) or not (value is None or callable(value)):
            raise TypeError(f"{function}: {name!r}: {value!r}, expected an operator's name and a function or None")
    return pairs


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}, expected one of {', '.join(map(repr, allowed))}")
    return value
