"""Say how well FLOPs tell the time that published models take on GPUs, and draw it.

Usage: python examples/flops_and_gpu_latency.py CSV [CSV ...] [--figure flops_and_gpu_latency.png] [--count 'vit_*']

A CSV is one of the timm project's results/benchmark-infer-*.csv, at https://github.com/huggingface/pytorch-image-models,
with these columns:

  model                 name of the model
  infer_img_size        height and width of its images
  infer_samples_per_sec images per second
  infer_gmacs           1e9 multiply-adds for an image, as fvcore counts
  infer_macts           1e6 activations: what convolutions and matrix products put out
  param_count           1e6 parameters

A table whose name ends in -dynamo is that of the same models compiled. One CSV may also hold several tables: model,
image_size, gmacs, mactivations, mparams, and for each table a column NAME_ms_per_image, compiled ones
NAME_compiled_ms_per_image.

For each table the script says which of FLOPs, activations and parameters orders models by time best, among all models
and within families, what compiling changes, and in which families FLOPs mislead most. With --count, the models whose
names match are made on the meta device (pip install timm), and counted by flopcallback.
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flopcallback import FlopCountAnalysis

FLOPS, ACTIVATIONS, PARAMETERS = "FLOPs", "activations", "parameters"
SIZES = (FLOPS, ACTIVATIONS, PARAMETERS)
# Columns of name, image and sizes: of timm's files, and of a file with several tables.
TIMM = ("model", "infer_img_size", "infer_gmacs", "infer_macts", "param_count")
MERGED = ("model", "image_size", "gmacs", "mactivations", "mparams")
RATE, MS = "infer_samples_per_sec", "_ms_per_image"

FEWEST = 5  # models in a family that has figures of its own
LISTED = 8  # families that are named at either end
FLOPS_PER_MULTIPLY_ADD = 2
# Words in front of a model's name that say where its weights or its code are from.
_ORIGINS = re.compile(r"^(tf|legacy|test|gluon)_")


@dataclass(frozen=True)
class Table:
    """Times of models on one device.

    Attributes:
        name: name of the device and the software, as the file has it.
        models: name and image size of each model.
        ms: milliseconds for an image, `[models]`.
        sizes: 1e9 FLOPs, 1e6 activations and 1e6 parameters, each `[models]`.
    """

    name: str
    models: Sequence[tuple[str, int]]
    ms: np.ndarray
    sizes: Mapping[str, np.ndarray]

    @property
    def families(self) -> np.ndarray:
        """The family of each model."""
        return np.array([family(model) for model, _ in self.models])

    def only(self, chosen: np.ndarray) -> Table:
        """Return the table of the models where `chosen` is True."""
        models = [model for model, is_chosen in zip(self.models, chosen, strict=True) if is_chosen]
        return Table(self.name, models, self.ms[chosen], {name: size[chosen] for name, size in self.sizes.items()})


def family(model: str) -> str:
    """Return the letters that a model's name begins with, without the origin of its weights."""
    found = re.match(r"[a-z]+", _ORIGINS.sub("", model.lower()))
    return found.group() if found else model


# --- Reading ----------------------------------------------------------------------------------------------------------


def read(path: Path) -> list[Table]:
    """Return the tables of a file.

    Raises:
        ValueError: a column is missing, or a figure is no number; the text names file and column.
    """
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        columns, rows = list(reader.fieldnames or ()), list(reader)
    merged = [column for column in columns if column.endswith(MS)]
    expected = MERGED if merged else (*TIMM, RATE)
    if missing := [column for column in expected if column not in columns]:
        raise ValueError(f"{path}: no column {', '.join(missing)}; it has {', '.join(columns) or 'none at all'}")
    if merged:
        return [_table(path, column.removesuffix(MS), rows, MERGED, column) for column in merged]
    return [_table(path, path.stem.removeprefix("benchmark-infer-"), rows, TIMM, RATE)]


def _table(path: Path, name: str, rows: Iterable[dict[str, str]], columns: Sequence[str], time: str) -> Table:
    """Return one table of a file; models without a time are left out."""
    timed = [row for row in rows if row[time]]
    image, macs, activations, parameters = (_numbers(path, timed, column) for column in columns[1:])
    times = _numbers(path, timed, time)
    sizes = {FLOPS: FLOPS_PER_MULTIPLY_ADD * macs, ACTIVATIONS: activations, PARAMETERS: parameters}
    models = [(row[columns[0]], int(side)) for row, side in zip(timed, image, strict=True)]
    return Table(name, models, 1e3 / times if time == RATE else times, sizes)


def _numbers(path: Path, rows: Sequence[dict[str, str]], column: str) -> np.ndarray:
    for row in rows:
        try:
            is_right = float(row[column]) > 0
        except (TypeError, ValueError):
            is_right = False
        if not is_right:
            raise ValueError(f"{path}: {column} of {row['model']} is {row[column]!r}, expected a number above 0")
    return np.array([float(row[column]) for row in rows])


# --- What orders models by time ---------------------------------------------------------------------------------------


def ranks(values: np.ndarray) -> np.ndarray:
    """Return the ranks of values from 0; equal ones share the mean of theirs."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count) - 1
    return (last - (count - 1) / 2)[place]


def spearman(one: np.ndarray, other: np.ndarray) -> float:
    """Return Spearman's rank correlation, -1 to 1; nan if all values of one are equal."""
    a, b = (each - each.mean() for each in (ranks(one), ranks(other)))
    spread = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / spread) if spread else float("nan")


def correlations(table: Table) -> dict[str, float]:
    """Return the rank correlation of each size with the time."""
    return {name: spearman(size, table.ms) for name, size in table.sizes.items()}


def by_family(table: Table) -> dict[str, Table]:
    """Return the tables of the families with enough models."""
    families = table.families
    parts = {name: table.only(families == name) for name in np.unique(families)}
    return {str(name): part for name, part in parts.items() if len(part.models) >= FEWEST}


def within_families(table: Table) -> dict[str, float]:
    """Return the median over families of the rank correlation within a family."""
    found = [correlations(part) for part in by_family(table).values()]
    return {name: float(np.nanmedian([each[name] for each in found])) if found else float("nan") for name in SIZES}


def spread(table: Table, size: str) -> float:
    """Return by which factor the time for a unit differs, from the 5th to the 95th percentile of the models."""
    low, high = np.percentile(table.ms / table.sizes[size], [5, 95])
    return float(high / low)


def time_per_flop(table: Table) -> dict[str, float]:
    """Return the median time for a FLOP in each family, in units of that of all models; the largest first."""
    usual = np.median(table.ms / table.sizes[FLOPS])
    found = {name: float(np.median(part.ms / part.sizes[FLOPS]) / usual) for name, part in by_family(table).items()}
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def pairs(tables: Sequence[Table]) -> Iterator[tuple[Table, Table]]:
    """Yield each table with that of the same models compiled, both without models that only one of them has."""
    by_name = {table.name: table for table in tables}
    for table in tables:
        for suffix in ("_compiled", "-dynamo"):
            if (compiled := by_name.get(table.name + suffix)) is not None:
                yield _with_models_of(table, compiled), _with_models_of(compiled, table)


def _with_models_of(table: Table, other: Table) -> Table:
    wanted = set(other.models)
    both = table.only(np.array([model in wanted for model in table.models]))
    order = sorted(range(len(both.models)), key=both.models.__getitem__)
    chosen = np.array(order, dtype=int)
    return Table(
        table.name,
        [both.models[index] for index in order],
        both.ms[chosen],
        {name: size[chosen] for name, size in both.sizes.items()},
    )


# --- What is printed --------------------------------------------------------------------------------------------------


def describe(table: Table) -> Iterator[str]:
    """Yield what a table says, as lines."""
    among_all, within = correlations(table), within_families(table)
    families = by_family(table)
    yield f"{table.name}: {len(table.models):,} models, {len(families)} families of {FEWEST} or more"
    yield "  rank correlation with time, 1 being the same order:"
    yield "    among all models          " + _figures(among_all) + f"   best: {_best(among_all)}"
    if families:
        yield "    within families (median)  " + _figures(within) + f"   best: {_best(within)}"
    factors = ", ".join(f"{name} {spread(table, name):.1f}" for name in SIZES)
    yield f"  factor by which the time for a unit differs (5th to 95th percentile): {factors}"
    per_flop = time_per_flop(table)
    if len(per_flop) > 1:
        named = min(LISTED, len(per_flop) // 2)
        yield "  most time for a FLOP, in units of the usual:  " + _named(list(per_flop.items())[:named])
        yield "  least time for a FLOP:                        " + _named(list(per_flop.items())[: -named - 1 : -1])


def describe_compiled(eager: Table, compiled: Table) -> Iterator[str]:
    """Yield what compiling changes, as lines."""
    factor = eager.ms / compiled.ms
    low, middle, high = np.percentile(factor, [25, 50, 75])
    quartiles = f"quartiles {low:.2f}, {high:.2f}; {len(factor):,} models"
    yield f"{eager.name}, compiled: {middle:.2f} times as fast ({quartiles})"
    before, after = correlations(eager), correlations(compiled)
    yield "  rank correlation: " + ", ".join(f"{name} {before[name]:.3f} -> {after[name]:.3f}" for name in SIZES)
    families = eager.families
    gains = {name: float(np.median(factor[families == name])) for name in by_family(eager)}
    ordered = sorted(gains.items(), key=lambda item: -item[1])
    if len(ordered) > 1:
        named = min(LISTED, len(ordered) // 2)
        yield "  most:  " + _named(ordered[:named])
        yield "  least: " + _named(ordered[: -named - 1 : -1])


def _figures(by_size: Mapping[str, float]) -> str:
    return "   ".join(f"{name} {value:.3f}" for name, value in by_size.items())


def _best(by_size: Mapping[str, float]) -> str:
    return max(by_size, key=lambda name: -2.0 if np.isnan(by_size[name]) else by_size[name])


def _named(factors: Iterable[tuple[str, float]]) -> str:
    return ", ".join(f"{name} {factor:.2f}" for name, factor in factors)


# --- What flopcallback counts -----------------------------------------------------------------------------------------


def count(model: str, side: int) -> float:
    """Return 1e9 multiply-adds for an image, in fvcore's convention, as the tables have them.

    Raises:
        ModuleNotFoundError: timm is not installed.
    """
    net, image = on_meta(model, side)
    with torch.no_grad():
        return FlopCountAnalysis(net, image).total() / 1e9


def on_meta(model: str, side: int) -> tuple[torch.nn.Module, torch.Tensor]:
    """Return a model of timm's without weights, and an image for it.

    Branches that are trained apart and then merged are merged, as for the tables.
    """
    import timm
    from timm.utils import reparameterize_model

    with torch.device("meta"):
        try:
            net = timm.create_model(model, img_size=side)
        except TypeError:  # most convolutional ones take images of any size
            net = timm.create_model(model)
        return reparameterize_model(net.eval()).eval(), torch.empty(1, 3, side, side)


def describe_counts(table: Table, patterns: Sequence[str], count_model: Any = count) -> Iterator[str]:
    """Yield where our count differs from the table's by more than its rounding and 1 %, as lines."""
    chosen = np.array([any(fnmatch(model, pattern) for pattern in patterns) for model, _ in table.models])
    part = table.only(chosen)
    own = np.array([count_model(*model) for model in part.models])
    theirs = part.sizes[FLOPS] / FLOPS_PER_MULTIPLY_ADD
    differ = np.abs(own - theirs) > 0.005 + 0.01 * own  # the table has two decimals
    yield f"{table.name}: {len(own):,} models counted, {int(differ.sum())} not as in the table, 1e9 multiply-adds:"
    for (model, side), ours, figure in zip(np.array(part.models)[differ], own[differ], theirs[differ], strict=True):
        yield f"  {model} at {side}: {ours:.3f}, in the table {figure:.2f} ({100 * (figure / ours - 1):+.0f} %)"
    if len(own) > 1:
        before, after = spearman(theirs, part.ms), spearman(own, part.ms)
        yield f"  rank correlation of these with time: the table's FLOPs {before:.4f}, ours {after:.4f}"


# --- The figure -------------------------------------------------------------------------------------------------------

INK, PALE, GRID = "#1f2933", "#7b8794", "#e4e7eb"
COLOURS = ("#2f6db3", "#d9822b", "#2f9e6e", "#c23b4b", "#7a5bb5")


def draw(tables: Sequence[Table], path: Path) -> None:
    """Draw time against FLOPs, a panel for each table; families in which FLOPs mislead most have colours."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(3, len(tables))
    rows = -(-len(tables) // columns)
    figure = Figure(figsize=(4.2 * columns, 0.9 + 3.6 * rows), dpi=106, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flat
    order = list(time_per_flop(tables[0]))
    coloured = dict(zip([*order[:3], *order[3:][-2:]], COLOURS, strict=False))
    for panel, table in zip(panels, tables, strict=False):
        _draw_panel(panel, table, coloured)
    for panel in list(panels)[len(tables) :]:
        panel.set_visible(False)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, frameon=False, labelcolor=INK)
    figure.suptitle("FLOPs against time on GPUs, a point for each model", color=INK, fontweight="bold")
    figure.savefig(path)


def _draw_panel(panel: Any, table: Table, coloured: Mapping[str, str]) -> None:
    flops, families = table.sizes[FLOPS], table.families
    panel.spines[:].set_visible(False)
    panel.grid(color=GRID)
    panel.set_axisbelow(True)
    panel.loglog(flops, table.ms, ".", color="#c3cad2", markersize=4, label="all models")
    for name, colour in coloured.items():
        is_in = families == name
        panel.loglog(flops[is_in], table.ms[is_in], ".", color=colour, markersize=7, label=name)
    found = correlations(table)
    subtitle = ", ".join(f"{name} {value:.2f}" for name, value in found.items())
    panel.set_title(f"{table.name}\nrank correlation: {subtitle}", fontsize=8, color=INK, loc="left")
    panel.minorticks_off()
    panel.tick_params(colors=PALE, length=0)
    panel.set_xlabel("1e9 FLOPs for an image", color=PALE)
    panel.set_ylabel("ms for an image", color=PALE)


# --- The command ------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", metavar="CSV", nargs="*", type=Path)
    parser.add_argument("--figure", type=Path, default=Path("flops_and_gpu_latency.png"))
    parser.add_argument("--count", metavar="PATTERN", nargs="+", default=[], help="names of models to count")
    options = parser.parse_args(arguments)
    if not options.tables:
        parser.print_help()
        sys.exit(2)
    try:
        tables = [table for path in options.tables for table in read(path)]
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    for table in tables:
        print(*describe(table), sep="\n", end="\n\n")
    for eager, compiled in pairs(tables):
        print(*describe_compiled(eager, compiled), sep="\n", end="\n\n")
    if options.count:
        try:
            print(*describe_counts(tables[0], options.count), sep="\n", end="\n\n")
        except ModuleNotFoundError as error:
            sys.exit(f"--count makes models of timm's: pip install timm ({error})")
    draw(tables, options.figure)
    print(f"Figure: {options.figure}")


if __name__ == "__main__":
    main()
