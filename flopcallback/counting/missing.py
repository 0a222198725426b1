"""Reports of work that a total leaves out.

Operators without a count; modules that were never called, or that no result depends on.
"""

from __future__ import annotations

import logging

from torch import nn

from flopcallback.counting.tally import Tally
from flopcallback.modules.names import ModuleNames
from flopcallback.tracing.run import ObservedRun

__all__ = ["log_unknown", "log_unsupported", "log_unused", "log_upper_bounds", "lower_bounds", "uncalled_modules"]

_log = logging.getLogger("flopcallback")

_NO_FORWARD = nn.Module.forward


def lower_bounds(sums: Tally) -> set[str]:
    """Return the modules with totals that are lower bounds, by canonical name.

    In each, an unknown operator took and returned floating-point tensors.
    """
    return {
        name
        for name, operators in sums.unknown.items()
        if any(unknown.is_floating_point for unknown in operators.values())
    }


def uncalled_modules(run: ObservedRun, ancestor_mode: str) -> set[str]:
    """Return the canonical names of modules that did not run.

    Args:
        run: the observed run.
        ancestor_mode: as for `OperatorAnalysis`. With `"owner"`, a container has run if a module in it has.
    """
    if ancestor_mode == "caller":
        return set(run.names.unique) - run.called
    running = {owner for name in run.calls for owner in ModuleNames.owners(name)}
    return set(run.names.unique) - running


def log_unsupported(sums: Tally) -> None:
    """Log a line for each uncounted operator, as fvcore does."""
    for operator, calls in sums.unsupported[""].items():
        _log.warning("Unsupported operator %s encountered %d time(s)", operator, calls)


def log_unknown(sums: Tally) -> None:
    """Log the operators that make the total a lower bound, if any."""
    missing = sorted(
        name if unknown.reason == "no formula" else f"{name} ({unknown.reason})"
        for name, unknown in sums.unknown[""].items()
        if unknown.is_floating_point
    )
    if missing:
        _log.warning("The total is a lower bound: no count for %s", ", ".join(missing))


def log_upper_bounds(sums: Tally) -> None:
    """Log the operators that make the total an upper bound, if any."""
    if operators := sorted(sums.upper_bounds.get("", ())):
        _log.warning("The total is an upper bound: the work of %s depends on data", ", ".join(operators))


def log_unused(run: ObservedRun, uncalled: set[str]) -> None:
    """Log the modules that were not called, and those without effect."""
    by_name = run.names.by_name
    # Containers have no `forward` to call: they are not missing.
    if missing := sorted(name for name in uncalled if type(by_name[name]).forward is not _NO_FORWARD):
        _log.warning("Modules never called: %s", ", ".join(missing))
    live = {owner for op in run.record.operations(prune=True) for owner in ModuleNames.owners(op.scope.module)}
    if unused := sorted({op.scope.module for op in run.record.operations()} - live):
        _log.warning(
            "Modules called, but nothing they compute reaches an output (a pruning counter says: never called): %s",
            ", ".join(unused),
        )
