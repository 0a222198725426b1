"""`assert_flops`: a test that limits a model's FLOPs and shows the modules."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

from torch import nn

from flopcallback.profile.diff import diff_profiles, parse_share
from flopcallback.profiling.checks import warn_of_fma
from flopcallback.profiling.on_demand import profile_call
from flopcallback.reporting import ModelProfile, plain_table
from flopcallback.reporting.text.diff_table import diff_text, signed_percent

__all__ = ["UPDATE_VARIABLE", "assert_flops"]

UPDATE_VARIABLE = "FLOPCALLBACK_UPDATE_BASELINES"
"""Environment variable: with `1`, baselines are written instead of compared."""


def assert_flops(
    model: nn.Module | Callable[..., Any],
    inputs: Any = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    at_most: float | None = None,
    baseline: str | os.PathLike[str] | None = None,
    max_increase: float | str = 0.0,
    elementwise: bool = False,
    fma: int | None = None,
) -> None:
    """Raise AssertionError if a call of a model exceeds its FLOPs.

    The message shows FLOPs by module. The model runs once, as it is, and is left as it was found. FLOPs that are a
    lower bound fail as well, since the true figure may exceed the limit.

    Args:
        model: a module, a method of one, or any callable on modules, as for `FlopCountAnalysis`.
        inputs: a tensor, or a tuple of positional arguments of any structure; anything else is a single argument.
        kwargs: keyword arguments of the call.
        at_most: maximal FLOPs of the call, 2 per multiply-add.
        baseline: JSON of a profile to compare with, kept with the tests. It is written only if the environment variable
            `FLOPCALLBACK_UPDATE_BASELINES` is `1`, over an older one too; without the file, the test fails.
        max_increase: allowed increase over the baseline's FLOPs, such as 0.02 or `"2%"`.
        elementwise: whether elementwise operators and reductions count as `macs`; they are no FLOPs.
        fma: deprecated, without effect. FLOPs are 2 per multiply-add.

    Raises:
        AssertionError: the call has more FLOPs, or a lower bound of them; the baseline is missing, or of other
            inputs.
        ValueError: there is neither `at_most` nor `baseline`, or `max_increase` is no share.

    Example:
        >>> import torch
        >>> from flopcallback.testing import assert_flops
        >>> assert_flops(torch.nn.Linear(3, 5), torch.ones(2, 3), at_most=60)  # 2 * (2 * 3 * 5)
    """
    __tracebackhide__ = True  # pytest then shows the line of the test, not this file
    if at_most is None and baseline is None:
        raise ValueError("assert_flops: give at_most=, a number of FLOPs, or baseline=, a file to compare with")
    warn_of_fma("assert_flops", fma)
    limit = parse_share(max_increase)
    profile = profile_call(model, inputs, kwargs, elementwise=elementwise)
    path = None if baseline is None else Path(baseline)
    # Each returns a message, or an empty string. A lower bound is reported first: no limit can hold it.
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
    excess = signed_percent(at_most, profile.forward_flops)
    details = plain_table(profile)
    # With a baseline at hand, the modules that changed say more than the whole table.
    if path is not None and path.exists():
        try:
            details = diff_text(diff_profiles(_read(path), profile))
        except ValueError as error:  # the baseline has another convention
            details += f"\n{path}: {error}"
    return f"{profile.name} has {profile.forward_flops:,} FLOPs, at_most={at_most:,} ({excess})\n\n{details}"


def _beyond_baseline(profile: ModelProfile, path: Path | None, limit: Fraction) -> str:
    if path is None:
        return ""
    # Read in every call, so that a test may set it.
    if os.environ.get(UPDATE_VARIABLE) == "1":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(profile.to_json(indent=1) + "\n", encoding="utf-8")
        return ""
    # Not written by itself: on a build machine a missing file would then always pass.
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
