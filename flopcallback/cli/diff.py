"""`flopcallback diff`: two profiles by module, with limits that fail a build."""

from __future__ import annotations

import json as json_  # `--json` is an argument of that name
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Annotated

import typer

from flopcallback.cli.failures import FAILED, UsageError
from flopcallback.cli.screen import say, screen
from flopcallback.profile.diff import ProfileDiff, diff_profiles, parse_share
from flopcallback.reporting import ModelProfile, milliseconds
from flopcallback.reporting.text.diff_table import diff_record, markdown_diff, rich_diff, signed_percent
from flopcallback.reporting.units import visible_json

__all__ = ["diff"]


def diff(
    before: Annotated[Path, typer.Argument(metavar="BEFORE", help="JSON of a profile, as count --json prints it.")],
    after: Annotated[Path, typer.Argument(metavar="AFTER", help="JSON of the profile to compare with it.")],
    max_increase: Annotated[
        str | None,
        typer.Option(metavar="SHARE", help="Exit code 1 if all FLOPs together rise by more: 2% or 0.02."),
    ] = None,
    max_latency_increase: Annotated[
        str | None,
        typer.Option(metavar="SHARE", help="Exit code 1 if the measured forward takes longer by more: 20% or 0.2."),
    ] = None,
    rows: Annotated[int, typer.Option(min=0, help="Modules to list at most.")] = 30,
    json: Annotated[bool, typer.Option("--json", help="Print JSON in place of the table.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown in place of the table.")] = False,
) -> None:
    """Compare two profiles module by module, the largest changes first."""
    if json and markdown:
        raise UsageError("--json and --markdown: only one form can be printed")
    limits = _share("--max-increase", max_increase), _share("--max-latency-increase", max_latency_increase)
    difference = _diff(before, after)
    # Before anything is printed: a limit that cannot be checked is an error of the command line.
    failures = list(_failures(difference, *limits))
    if json:
        say(visible_json(json_.dumps(diff_record(difference), indent=1, ensure_ascii=False, allow_nan=False)))
    elif markdown:
        say(markdown_diff(difference, max_rows=rows))
    else:
        _print(difference, rows)
    for failure in failures:
        say(f"Failed: {failure}", is_error=True)
    if failures:
        raise typer.Exit(FAILED)


def _share(option: str, text: str | None) -> Fraction | None:
    try:
        return None if text is None else parse_share(text)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from None


def _diff(before: Path, after: Path) -> ProfileDiff:
    try:
        return diff_profiles(_profile(before), _profile(after))
    except ValueError as error:
        raise UsageError(str(error)) from None


def _profile(path: Path) -> ModelProfile:
    try:
        return ModelProfile.from_json(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"{path} is no profile, such as flopcallback count --json prints: {error}") from None


def _failures(diff: ProfileDiff, max_increase: Fraction | None, max_latency_increase: Fraction | None) -> Iterator[str]:
    """Describe every limit that the change breaks.

    Raises:
        UsageError: the profiles cannot be compared by the limit.
    """
    if max_increase is not None:
        if not diff.has_same_inputs:
            raise UsageError(
                f"--max-increase: the inputs have other shapes ({_shapes(diff.before)} before, {_shapes(diff.after)} "
                "after), so totals cannot be compared. Count both with the same inputs."
            )
        if diff.flops_exceed(max_increase):
            before, after = diff.before.forward_flops, diff.after.forward_flops
            rise = f"from {before:,} to {after:,} ({signed_percent(before, after)})"
            yield f"FLOPs rose {rise}; {_percent(max_increase)} is allowed"
        # A rise in an operator without a formula is invisible in the totals.
        if diff.new_unknown:
            names = ", ".join(diff.new_unknown)
            yield f"FLOPs are a lower bound that may hide any rise: there is no count for {names}"
    if max_latency_increase is not None:
        yield from _latency_failures(diff, max_latency_increase)


def _latency_failures(diff: ProfileDiff, limit: Fraction) -> Iterator[str]:
    # None in profiles of `count` without `--latency`.
    before, after = diff.before.forward_ms, diff.after.forward_ms
    if before is None or after is None:
        raise UsageError("--max-latency-increase needs two profiles with times, as count --latency --json prints them")
    if diff.latency_exceeds(limit):
        rise = f"from {milliseconds(before)} to {milliseconds(after)} ms ({signed_percent(before, after)})"
        yield f"the forward takes longer, {rise}; {_percent(limit)} is allowed"


def _percent(limit: Fraction) -> str:
    return f"{float(100 * limit):g} %"


def _shapes(profile: ModelProfile) -> str:
    return json_.dumps(profile.config.get("flops.input_shapes"))


def _print(diff: ProfileDiff, rows: int) -> None:
    screen().print(rich_diff(diff, max_rows=rows))
