"""Parameters by module, and the table of them."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from flopcallback.fvcore._tables import children_by_parent, pipe_table

if TYPE_CHECKING:
    from torch import nn

__all__ = ["parameter_count", "parameter_count_table"]

_UNITS = ((1e8, 1e9, "G"), (1e5, 1e6, "M"), (1e2, 1e3, "K"))


def parameter_count(model: nn.Module) -> defaultdict[str, int]:
    """Elements of every parameter and of all parameters below every module.

    Args:
        model: the root, whose total stands under `""`. A parameter that several modules share counts once, under the
            first of its names.
    """
    counts: defaultdict[str, int] = defaultdict(int)
    for name, parameter in model.named_parameters():
        size = parameter.numel()
        counts[""] += size
        parts = name.split(".")
        for depth in range(1, len(parts) + 1):
            counts[".".join(parts[:depth])] += size
    return counts


def parameter_count_table(model: nn.Module, max_depth: int = 3) -> str:
    """The counts as a pipe table, a module's rows below its own: totals of modules, shapes of parameters.

    Args:
        model: the root, the row `model`.
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
            cell = str(shapes[name]) if name in shapes else _short(counts[name])
            rows.append((indent + name, indent + cell))
            add_rows_below(name, depth + 1)

    add_rows_below("", 1)
    return pipe_table(rows, ["name", "#elements or shape"])


def _short(count: int) -> str:
    for above, unit, suffix in _UNITS:
        if count > above:
            return f"{count / unit:.1f}{suffix}"
    return str(count)
