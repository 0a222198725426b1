"""`flopcallback compare`: runs by their compute and their metrics."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from flopcallback.cli.failures import UsageError
from flopcallback.cli.screen import say, screen
from flopcallback.reporting import write_file
from flopcallback.reporting.page.comparison_page import comparison_page
from flopcallback.reporting.text.comparison_table import comparison_csv, rich_comparison
from flopcallback.runs import FoundRun, RunRecord, RunsError, find_runs
from flopcallback.runs.comparison import COLUMNS, Comparison, compare_runs, direction_of, shared_metrics

__all__ = ["compare"]


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...",
            help="Folders of runs (ours, TensorBoard's, W&B's, Lightning's), or an MLflow store: sqlite:///mlflow.db, "
            "http://host#experiment. A folder may hold any number of them.",
            show_default=False,
        ),
    ],
    metric: Annotated[
        str | None, typer.Option(metavar="NAME", help="Metric to compare by, such as val/loss.", show_default=False)
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option(metavar="min|max", help="Whether small or large values are better; by default the name decides."),
    ] = None,
    sort: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN", help=f"Column to sort by, best first: {', '.join(COLUMNS)}. Default: metric or compute."
        ),
    ] = None,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a CSV file, integers exact.")] = None,
    html: Annotated[
        Path | None, typer.Option("--html", "-o", metavar="FILE", help="Write the HTML page with its figures.")
    ] = None,
    prefix: Annotated[
        str | None, typer.Option(help="The prefix= that the runs were logged with; by default it is detected.")
    ] = None,
) -> None:
    """Compare trainings by compute.

    Prints a table. --html writes a page with the Pareto front of a metric, curves, and FLOPs against time.
    """
    _check(mode, sort)
    records = [_without_prefix(record, prefix) for record in _records(_find(runs))]
    chosen = metric or _default_metric(records)
    # A name such as "score" leaves it open, and a guess may turn the front around.
    if mode is None and direction_of(chosen) is None and any(chosen in record.figures for record in records):
        raise UsageError(f"--metric {chosen}: the name does not say what is better; give --mode min or --mode max")
    try:
        comparison = compare_runs(records, metric=chosen, mode=mode or "", sort=sort or "")
    except ValueError as error:
        raise UsageError(f"--metric {chosen}: {error}") from None
    screen().print(rich_comparison(comparison))
    if not chosen:
        _list_metrics(records)
    _write(comparison, csv, html)


def _check(mode: str | None, sort: str | None) -> None:
    """Check options before any run is read, which may take a while."""
    if mode not in (None, "min", "max"):
        raise UsageError(f"--mode {mode}: it is min or max")
    if sort is not None and sort not in COLUMNS:
        raise UsageError(f"--sort {sort}: there is no such column; there are {', '.join(COLUMNS)}")


def _find(places: Sequence[str]) -> list[FoundRun]:
    """Find the runs at all places, each once."""
    runs: dict[str, FoundRun] = {}
    for place in places:
        try:
            for run in find_runs(place):
                # One run may be reached by several places; a URL has no real path.
                runs.setdefault(os.path.realpath(run.place) if "://" not in run.place else run.place, run)
        except RunsError as error:
            raise UsageError(str(error)) from None
    return list(runs.values())


def _records(runs: Sequence[FoundRun]) -> list[RunRecord]:
    """Read the runs, and report on stderr those that cannot be read."""
    from rich.console import Console
    from rich.progress import track

    records, console = [], Console(stderr=True)
    # On stderr, and only in a terminal: stdout is the table.
    tracked = track(runs, "Reading runs", console=console, transient=True, disable=not sys.stderr.isatty())
    for run in tracked:
        try:
            records.append(run.read())
        except RunsError as error:
            say(f"Left out: {error}", is_error=True)
    if not records:
        raise UsageError("none of the runs could be read")
    return records


def _without_prefix(record: RunRecord, given: str | None) -> RunRecord:
    if given is not None:
        return record.without_prefix(given)
    prefixes = record.prefixes()
    # Figures without a prefix are the default; several prefixes alone leave it open which training is meant.
    if len(prefixes) > 1 and "" not in prefixes:
        raise UsageError(
            f"{record.place} has figures under several prefixes ({', '.join(prefixes)}): give one as --prefix"
        )
    return record.without_prefix(prefixes[0]) if prefixes else record


def _default_metric(records: Sequence[RunRecord]) -> str:
    """Return the one metric to compare by, or an empty string.

    It is the only metric that all runs share, or the only one of validation among them.
    """
    shared = shared_metrics(records)
    # With several candidates none is chosen: the user is told their names.
    for metrics in (shared, [name for name in shared if name.lower().startswith("val")]):
        if len(metrics) == 1:
            return metrics[0]
    return ""


def _list_metrics(records: Sequence[RunRecord]) -> None:
    names = shared_metrics(records) or sorted(set().union(*(record.own_metrics() for record in records)))
    if names:
        say(f"No metric was chosen; --metric takes one of: {', '.join(names)}", is_error=True)
    else:
        say("The runs have no metric of their own, so there is no Pareto front.", is_error=True)


def _write(comparison: Comparison, csv: Path | None, html: Path | None) -> None:
    for path, render in ((csv, comparison_csv), (html, comparison_page)):
        if path is not None:
            try:
                write_file(path, render(comparison))
            except OSError as error:
                raise UsageError(f"{path}: {error.strerror}") from None
            say(f"Written: {path}", is_error=True)
