"""Model statistics as text: `flop_count_table` and `flop_count_str`.

`flop_count_table` is a pipe table, `flop_count_str` is `str(model)` with figures.

A statistic is a mapping from module names to figures. Between the analyses and the text they are nested mappings,
either `{statistic: {module: figure}}` or, "by module", `{module: {statistic: figure}}`.

The private functions that `tests/fvcore/test_names.py` lists keep fvcore's names and parameters for fvcore's own tests.
Only those tests use `hide_zero`, or leave out `stat_columns`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from torch import nn

from flopcallback.counting.analysis import ActivationCountAnalysis, BytesCountAnalysis, FlopCountAnalysis
from flopcallback.fvcore._tables import children_by_parent, pipe_table
from flopcallback.fvcore.jit_analysis import JitModelAnalysis
from flopcallback.fvcore.parameter_count import parameter_count
from flopcallback.modules.names import as_one_module

__all__ = ["flop_count_str", "flop_count_table"]

T = TypeVar("T")
ByModule = dict[str, dict[str, T]]

_UNITS = ((1e14, 1e15, "P"), (1e11, 1e12, "T"), (1e8, 1e9, "G"), (1e5, 1e6, "M"), (1e2, 1e3, "K"))
_ABOUT_MISSING = (
    "N/A indicates a possibly missing statistic: the module itself was not called. What its code did is counted in the "
    "module that ran it.\n"
)


@dataclass(frozen=True, slots=True)
class _Column:
    """Result of one analysis, by module.

    Attributes:
        figures: figure of every module.
        uncalled: modules that were not called.
        lower_bounds: modules with a figure that is a lower bound.
    """

    figures: Mapping[str, int]
    uncalled: set[str]
    lower_bounds: set[str]


def flop_count_table(
    flops: FlopCountAnalysis,
    max_depth: int = 3,
    activations: ActivationCountAnalysis | None = None,
    show_param_shapes: bool = True,
) -> str:
    """Format parameters, FLOPs and activations by module as a pipe table.

    A module with the same figures as its only child shares the child's row, and rows in which everything is 0 are left
    out. A module that was not called has an empty cell. A lower bound has `>=` in front, and its row always stays.

    Args:
        flops: FLOP count; it runs now unless it has run before, without fvcore's warnings.
        max_depth: levels below the root that are shown.
        activations: second count, for a column of its own.
        show_param_shapes: whether parameters have rows, with their shapes.
    """
    parameters_header = "#parameters or shape" if show_param_shapes else "#parameters"
    columns = _columns("flop_count_table", flops, activations, {ActivationCountAnalysis: "#activations"})
    model = as_one_module(flops._roots())
    figures = {parameters_header: parameter_count(model), **{h: column.figures for h, column in columns.items()}}

    shown = _remove_zero_statistics(
        _group_by_module(figures),
        # The root always has a row, and no lower bound is hidden.
        force_keep={""}.union(*(column.lower_bounds for column in columns.values())),
        require_trivial_children=True,
    )
    rows = _marked(_pretty_statistics(shown), columns, uncalled_indicator="")
    # `parameter_count` has rows for parameters as well as for modules.
    for name, parameter in model.named_parameters():
        if not show_param_shapes:
            rows.pop(name, None)
        elif name in rows:
            rows[name][parameters_header] = str(tuple(parameter.shape))
    return _model_stats_table(rows, max_depth=max_depth, stat_columns=list(figures))


def flop_count_str(flops: FlopCountAnalysis, activations: ActivationCountAnalysis | None = None) -> str:
    """Format `str(model)` with parameters, FLOPs and activations in every module.

    Modules in which everything is 0 stay as they are. A module that was not called has `N/A`, and the first line
    explains it. A lower bound has `>=` in front.

    Args:
        flops: FLOP count; it runs now unless it has run before, without fvcore's warnings.
        activations: second count, shown as `#acts`.
    """
    columns = _columns("flop_count_str", flops, activations, {ActivationCountAnalysis: "#acts"})
    model = as_one_module(flops._roots())
    figures = {"#params": parameter_count(model), **{h: column.figures for h, column in columns.items()}}

    # A module that was not called keeps its line, so that "N/A" shows.
    all_uncalled = set().union(*(column.uncalled for column in columns.values()))
    shown = _remove_zero_statistics(
        _group_by_module(_fill_missing_statistics(model, figures)),
        force_keep=all_uncalled.union(*(column.lower_bounds for column in columns.values())),
    )
    rows = _marked(_pretty_statistics(shown, sig_figs=2), columns)
    return (_ABOUT_MISSING if all_uncalled else "") + _model_stats_str(model, rows)


def _columns(
    function: str, first: JitModelAnalysis, second: JitModelAnalysis | None, headers: Mapping[type, str]
) -> dict[str, _Column]:
    """Run one or two analyses and return their columns by header.

    A header follows from what an analysis counts, not from the argument that it was given as.

    Raises:
        TypeError: an argument is no analysis. A model or a total are common mistakes.
    """
    analyses: dict[str, JitModelAnalysis] = {}
    for argument, analysis in {"flops": first, **({} if second is None else {"activations": second})}.items():
        if not isinstance(analysis, JitModelAnalysis):
            expected = "FlopCountAnalysis" if argument == "flops" else "ActivationCountAnalysis"
            given = type(analysis).__name__  # the `repr` of a model may have a thousand lines
            raise TypeError(f"{function}: {argument} is of type {given}, expected a count: {expected}(model, inputs)")
        header = _header(analysis, headers)
        # Two counts of one kind need two headers.
        analyses[f"{header} (2)" if header in analyses else header] = analysis
    with _without_warnings(analyses.values()):
        return {h: _Column(a.by_module(), a.uncalled_modules(), a.lower_bounds()) for h, a in analyses.items()}


def _header(analysis: JitModelAnalysis, headers: Mapping[type, str]) -> str:
    by_class = {FlopCountAnalysis: "#flops", BytesCountAnalysis: "#bytes", **headers}
    # fvcore's users count FLOPs of their own by an analysis that has handles alone, without a formula.
    default = "#flops" if analysis._formula is None else "#count"
    return next((header for kind, header in by_class.items() if isinstance(analysis, kind)), default)


@contextmanager
def _without_warnings(analyses: Collection[JitModelAnalysis]) -> Iterator[None]:
    """Silence fvcore's warnings of analyses that run inside.

    Afterwards their warnings are set as the caller had them. The one line about a lower bound stays: the run is kept,
    so nothing would say it later.
    """
    before = [(a, a._enable_warn_unsupported_ops, a._enable_warn_uncalled_mods, a._warn_trace) for a in analyses]
    for analysis in analyses:
        # None warns about lower bounds alone; True would warn about every unsupported operator.
        if analysis._enable_warn_unsupported_ops:
            analysis._enable_warn_unsupported_ops = None
        analysis.uncalled_modules_warnings(False).tracer_warnings("none")
    try:
        yield
    finally:
        for analysis, unsupported_ops, uncalled_modules, tracer in before:
            analysis._enable_warn_unsupported_ops = unsupported_ops
            analysis._enable_warn_uncalled_mods = uncalled_modules
            analysis._warn_trace = tracer


# --- From figures to cells ------------------------------------------------------------------------------------------


def _format_size(x: int, sig_figs: int = 3, hide_zero: bool = False) -> str:
    """Format `1234567` as `"1.235M"`, with at most `sig_figs` decimals.

    A unit is used from a tenth of it on.
    """
    if hide_zero and x == 0:
        return ""
    for threshold, unit, suffix in _UNITS:
        if abs(x) > threshold:
            return f"{x / unit:.{sig_figs}f}".rstrip("0").rstrip(".") + suffix
    return str(x)


def _pretty_statistics(
    statistics: Mapping[str, Mapping[str, int]], sig_figs: int = 3, hide_zero: bool = False
) -> ByModule[str]:
    """Format all figures as short texts."""
    return {
        module: {statistic: _format_size(figure, sig_figs, hide_zero) for statistic, figure in figures.items()}
        for module, figures in statistics.items()
    }


def _group_by_module(statistics: Mapping[str, Mapping[str, T]]) -> ByModule[T]:
    """Regroup figures with the module as the outer key."""
    by_module: defaultdict[str, dict[str, T]] = defaultdict(dict)
    for statistic, figures in statistics.items():
        for module, figure in figures.items():
            by_module[module][statistic] = figure
    return dict(by_module)


def _indicate_uncalled_modules(
    statistics: Mapping[str, Mapping[str, str]],
    stat_name: str,
    uncalled_modules: Collection[str],
    uncalled_indicator: str = "N/A",
) -> ByModule[str]:
    """Return a copy with `uncalled_indicator` for modules that were not called."""
    marked = {module: dict(texts) for module, texts in statistics.items()}
    for module in sorted(uncalled_modules):
        marked.setdefault(module, {})[stat_name] = uncalled_indicator
    return marked


def _marked(rows: ByModule[str], columns: Mapping[str, _Column], uncalled_indicator: str = "N/A") -> ByModule[str]:
    """Mark uncalled modules and lower bounds in a copy of the rows."""
    for header, column in columns.items():
        rows = _indicate_uncalled_modules(rows, header, column.uncalled & rows.keys(), uncalled_indicator)
        # A module that was not called has no figure to mark.
        for module in (column.lower_bounds - column.uncalled) & rows.keys():
            rows[module][header] = f">= {rows[module][header]}"
    return rows


def _remove_zero_statistics(
    statistics: Mapping[str, Mapping[str, int]],
    force_keep: Collection[str] | None = None,
    require_trivial_children: bool = False,
) -> ByModule[int]:
    """Return a copy without the modules with only zeros.

    Args:
        statistics: figures by module.
        force_keep: modules that stay whatever their figures; by default the root alone.
        require_trivial_children: whether a module stays if one of its children stays.
    """
    result: ByModule[int] = {}
    always = force_keep or {""}
    children = children_by_parent(statistics)

    def add_if_nonzero(module: str) -> None:
        for child in children[module]:  # first, since the decision about a parent depends on them
            add_if_nonzero(child)
        has_nonzero_child = any(child in result for child in children[module])
        if any(statistics[module].values()) or module in always or (require_trivial_children and has_nonzero_child):
            result[module] = dict(statistics[module])

    add_if_nonzero("")
    return result


def _fill_missing_statistics(model: nn.Module, statistics: Mapping[str, Mapping[str, int]]) -> ByModule[int]:
    """Return a copy, by statistic, with 0 for modules without a figure."""
    modules = [name for name, _ in model.named_modules()]
    return {
        statistic: {**figures, **{module: 0 for module in modules if module not in figures}}
        for statistic, figures in statistics.items()
    }


# --- The model's own text -------------------------------------------------------------------------------------------


def _model_stats_str(model: nn.Module, statistics: Mapping[str, Mapping[str, str]]) -> str:
    """Format `str(model)` with each module's figures.

    They have a line of their own, or are in the module's parentheses if nothing else is.
    """

    def text_of(module: nn.Module, path: str) -> str:
        own = module.extra_repr().splitlines()
        if figures := statistics.get(path):
            own.append(", ".join(f"{statistic}: {text}" for statistic, text in figures.items()))
        inner = list(own)
        for name, child in module._modules.items():
            text = str(None) if child is None else text_of(child, f"{path}.{name}" if path else name)
            inner.extend(f"({name}): {text}".split("\n"))
        # As `nn.Module.__repr__`: one line if there are no children and at most one line of its own.
        is_short = len(own) <= 1 and len(inner) == len(own)
        body = "".join(inner) if is_short else "".join(f"\n  {line}" for line in inner) + "\n"
        return f"{module._get_name()}({body})"

    return text_of(model, "")


# --- The table ------------------------------------------------------------------------------------------------------


def _model_stats_table(
    statistics: Mapping[str, Mapping[str, str]], max_depth: int = 3, stat_columns: list[str] | None = None
) -> str:
    """Format texts by module as a pipe table.

    Args:
        statistics: texts by module.
        max_depth: levels of rows below the root's; merged rows count as one level.
        stat_columns: columns in their order; by default all that occur, in order of appearance.
    """
    if stat_columns is None:
        stat_columns = list(dict.fromkeys(column for texts in statistics.values() for column in texts))
    children = children_by_parent(statistics)
    table: list[list[str]] = []

    def add_row(label: str, texts: Mapping[str, str], depth: int) -> None:
        indent = " " * depth
        table.append([indent + label, *(indent + texts[c] if c in texts else "" for c in stat_columns)])

    def add_rows_below(parent: str, depth: int) -> None:
        if depth > max_depth:
            return
        for child in children[parent]:
            module, texts = _merged_with_only_child(child, statistics, children)
            # Once the root is merged with its only child, all names share that prefix.
            add_row(module.removeprefix(root + ".") if root else module, texts, depth)
            add_rows_below(module, depth + 1)

    root, texts = _merged_with_only_child("", statistics, children)
    add_row(root or "model", texts, 0)
    add_rows_below(root, 1)
    return pipe_table(table, ["module", *stat_columns])


def _merged_with_only_child(
    module: str, statistics: Mapping[str, Mapping[str, str]], children: Mapping[str, list[str]]
) -> tuple[str, Mapping[str, str]]:
    """Merge a module's row with its only child's while their texts agree."""
    texts = statistics[module]
    while len(below := children.get(module, [])) == 1:
        merged = _merged(texts, statistics[below[0]])
        if merged is None:
            break
        module, texts = below[0], merged
    return module, texts


def _merged(texts: Mapping[str, str], below: Mapping[str, str]) -> dict[str, str] | None:
    """Merge two rows, or return None if they differ."""
    # An empty text, of a module that was not called, gives way to the other one.
    if texts.keys() != below.keys() or any(text and below[key] and text != below[key] for key, text in texts.items()):
        return None
    return {key: text or below[key] for key, text in texts.items()}
