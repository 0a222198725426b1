"""Parameters by module, as numbers and as a table."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from flopcallback.fvcore._tables import children_by_parent, pipe_table

if TYPE_CHECKING:
    from torch import nn

__all__ = ["parameter_count", "parameter_count_table"]

# A unit is used from a tenth of it on, as in fvcore.
_UNITS = ((1e8, 1e9, "G"), (1e5, 1e6, "M"), (1e2, 1e3, "K"))


def parameter_count(model: nn.Module) -> defaultdict[str, int]:
    """Count the elements of every parameter and of every module.

    A parameter that several modules share counts once, under its first name.

    Args:
        model: root module; its total has the key `""`.

    Returns:
        Elements by the dotted name of a parameter or a module.
    """
    counts: defaultdict[str, int] = defaultdict(int)
    for name, parameter in model.named_parameters():  # yields a shared parameter once
        size = parameter.numel()
        counts[""] += size
        parts = name.split(".")
        for depth in range(1, len(parts) + 1):
            counts[".".join(parts[:depth])] += size
    return counts


def parameter_count_table(model: nn.Module, max_depth: int = 3) -> str:
    """Format parameter counts as a pipe table, children below their parents.

    Modules have totals, parameters their shapes.

    Args:
        model: root module, in the row `model`.
        max_depth: levels below the root that are shown.
    """
    counts = parameter_count(model)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    children = children_by_parent(counts)
    rows = [("model", _short(counts[""]))]

    def add_rows_below(parent: str, depth: int) -> None:
        if depth > max_depth:
            return
        indent = " " * depth
        for name in children[parent]:
            # `counts` has modules and parameters; only parameters have a shape.
            cell = str(shapes[name]) if name in shapes else _short(counts[name])
            rows.append((indent + name, indent + cell))
            add_rows_below(name, depth + 1)

    add_rows_below("", 1)
    return pipe_table(rows, ["name", "#elements or shape"])


def _short(count: int) -> str:
    for threshold, unit, suffix in _UNITS:
        if count > threshold:
            return f"{count / unit:.1f}{suffix}"
    return str(count)
