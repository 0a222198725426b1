"""assert_flops: a test that fails when a model does more work than it may, and shows where."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

from torch import nn

from flopcallback.profile.diff import diff_profiles, parse_share
from flopcallback.profiling.on_demand import profile_call
from flopcallback.reporting import ModelProfile, plain_table
from flopcallback.reporting.text.diff_table import diff_text, signed_percent

__all__ = ["UPDATE_VARIABLE", "assert_flops"]

UPDATE_VARIABLE = "FLOPCALLBACK_UPDATE_BASELINES"
"""Environment variable; where it is `1`, baselines are written instead of compared with."""


def assert_flops(
    model: nn.Module | Callable[..., Any],
    inputs: Any = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    at_most: float | None = None,
    baseline: str | os.PathLike[str] | None = None,
    max_increase: float | str = 0.0,
    fma: int = 1,
    elementwise: bool = False,
) -> None:
    """Raises AssertionError where one call of a model has more FLOPs than it may; the message shows them by module.

    The model runs once, as it is, and is left as it was found. FLOPs that are a lower bound fail as well, since nobody
    knows whether they are within the limit.

    Args:
        model: a module, a method of one, or any callable on modules, as `FlopCountAnalysis` takes it.
        inputs: a tensor, or a tuple of positional arguments of any structure; anything else is one argument.
        kwargs: keyword arguments of the call.
        at_most: FLOPs that the call may have.
        baseline: JSON of a profile to compare with, kept with the tests. It is written only where the environment
            variable `FLOPCALLBACK_UPDATE_BASELINES` is `1`, over an older one too; without the file, the test fails.
        max_increase: by what share FLOPs may be above those of the baseline, such as 0.02 or `"2%"`.
        fma: how many FLOPs a multiply-add is, 1 or 2.
        elementwise: whether elementwise operators and reductions count.

    Raises:
        AssertionError: the call has more FLOPs, or a lower bound of them; the baseline is missing, or of other inputs
            or another convention.
        ValueError: there is neither `at_most` nor `baseline`, or `max_increase` is no share.

    Example:
        >>> import torch
        >>> from flopcallback.testing import assert_flops
        >>> assert_flops(torch.nn.Linear(3, 5), torch.ones(2, 3), at_most=30)
    """
    __tracebackhide__ = True  # pytest then shows the line of the test
    if at_most is None and baseline is None:
        raise ValueError("assert_flops: give at_most=, a number of FLOPs, or baseline=, a file to compare with")
    limit = parse_share(max_increase)
    profile = profile_call(model, inputs, kwargs, fma=fma, elementwise=elementwise)
    path = None if baseline is None else Path(baseline)
    problem = _lower_bound(profile) or _above(profile, at_most, path) or _beyond_baseline(profile, path, limit)
    if problem:
        raise AssertionError(problem)


def _lower_bound(profile: ModelProfile) -> str:
    if not profile.is_lower_bound:
        return ""
    reasons = "; ".join(f"{name}: {reason}" for name, reason in profile.unknown.items())
    return (
        f"FLOPs of {profile.name} are a lower bound, so no limit can be checked ({reasons}). register_formula gives an "
        f"operator a count.\n\n{plain_table(profile)}"
    )


def _above(profile: ModelProfile, at_most: float | None, path: Path | None) -> str:
    if at_most is None or profile.forward_flops <= at_most:
        return ""
    over = signed_percent(at_most, profile.forward_flops)
    shown = plain_table(profile)
    if path is not None and path.exists():
        try:
            shown = diff_text(diff_profiles(_read(path), profile))
        except ValueError as error:  # of another convention
            shown += f"\n{path}: {error}"
    return f"{profile.name} has {profile.forward_flops:,} FLOPs, at_most={at_most:,} ({over})\n\n{shown}"


def _beyond_baseline(profile: ModelProfile, path: Path | None, limit: Fraction) -> str:
    if path is None:
        return ""
    if os.environ.get(UPDATE_VARIABLE) == "1":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(profile.to_json(indent=1) + "\n", encoding="utf-8")
        return ""
    if not path.exists():
        return f"there is no baseline {path}. {UPDATE_VARIABLE}=1 writes it: look at it, and keep it with the tests"
    try:
        diff = diff_profiles(_read(path), profile)
    except ValueError as error:
        return f"{path}: {error} {_WAY_OUT}"
    if not diff.has_same_inputs:
        return f"{path}: {'; '.join(diff.notes)}. {_WAY_OUT}"
    if not diff.flops_exceed(limit):
        return ""
    return (
        f"{profile.name} has more FLOPs than {path} by more than max_increase={float(limit):g}. {_WAY_OUT}\n\n"
        f"{diff_text(diff)}"
    )


_WAY_OUT = f"If that is meant, {UPDATE_VARIABLE}=1 writes the baseline anew."


def _read(path: Path) -> ModelProfile:
    return ModelProfile.from_json(path.read_text(encoding="utf-8"))
