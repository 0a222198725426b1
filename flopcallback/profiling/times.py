"""Recorded steps -> where the time of a training step goes."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace

from flopcallback.modules.names import ModuleNames
from flopcallback.profile.model_profile import ModelProfile
from flopcallback.profile.times import OperatorTime, StepTime
from flopcallback.profiling.build import of_row
from flopcallback.tracing.phases import PHASES
from flopcallback.tracing.record_times import Part, RecordedTimes

__all__ = ["with_times"]


def with_times(profile: ModelProfile, recorded: Sequence[RecordedTimes], names: ModuleNames) -> ModelProfile:
    """Return a profile with the times of a whole training step.

    They are the clean step's, shared out as the recorded steps shared theirs; of these the faster half counts, in which
    fewest other things happened.

    Args:
        profile: the profile, with the times of clean steps if there are any.
        recorded: the recorded steps. Those count that are like the profile's step in their FLOPs, and like each other.
        names: the modules' names, by which their parts go.
    """
    recorded = _alike(profile, recorded)
    if not recorded or profile.latency is None:
        return profile
    timed = [times for times in recorded if not times.has_bytes] or recorded
    faster = sorted(timed, key=lambda times: times.ns)[: (len(timed) + 1) // 2]
    observed_ms = statistics.median(times.ns for times in timed) / 1e6
    step_ms = observed_ms if profile.latency.step_ms is None else profile.latency.step_ms
    shares: dict[Part, float] = defaultdict(float)
    for times in faster:
        for part, share in times.shares().items():
            shares[part] += share / len(faster)
    milliseconds = {part: share * step_ms for part, share in shares.items()}
    latency = replace(
        profile.latency,
        observed_ms=observed_ms,
        observed_steps=len(timed),
        parallel_ms=statistics.median(times.parallel_ns for times in timed) / 1e6,
    )
    by_row = names.as_shown(_by_module(milliseconds))
    rows = {row.path: of_row(profile, row, by_row, StepTime()) for row in profile.modules}
    operators = [
        OperatorTime(_path(part, names), part.operator, part.phase, ms, *_sizes(part, recorded))
        for part, ms in milliseconds.items()
    ]
    return replace(profile, latency=latency).with_times(rows, operators)


def _alike(profile: ModelProfile, recorded: Sequence[RecordedTimes]) -> list[RecordedTimes]:
    """Return the largest group of steps of one kind, of the profile's kind if there are any.

    Steps of several kinds, of which none is the profile's, have no times in common.
    """
    by_kind: dict[Hashable, list[RecordedTimes]] = defaultdict(list)
    for times in recorded:
        by_kind[times.flops, times.steps].append(times)
    groups = list(by_kind.values())
    if (step := profile.step) is not None:
        flops = replace(step, forward=step.forward + step.without_grad, without_grad=0)
        of_profile = [group for group in groups if group[0].flops == flops]
        # Compiled code may have run products that left no record: then no step has all FLOPs.
        groups = of_profile or [group for group in groups if group[0].is_compiled]
    return max(groups, key=len, default=[])


def _path(part: Part, names: ModuleNames) -> str | None:
    return None if part.module is None else names.shown.get(part.module, part.module)


def _by_module(milliseconds: Mapping[Part, float]) -> dict[str, StepTime]:
    """Return the time of each module with what is inside; the root has the whole step."""
    times: dict[str, dict[str, float]] = defaultdict(lambda: dict.fromkeys(PHASES, 0.0))
    for part, ms in milliseconds.items():
        for owner in ModuleNames.owners(part.module or ""):
            times[owner][part.phase] += ms
    return {name: StepTime(**phases) for name, phases in times.items()}


def _sizes(part: Part, recorded: Sequence[RecordedTimes]) -> tuple[int, int, int | None]:
    """Return calls, FLOPs and bytes of a part in one step."""
    amounts = [times.parts[part] for times in recorded if part in times.parts]
    sizes = [each.nbytes for each in amounts if each.nbytes is not None]
    return (
        max((each.calls for each in amounts), default=0),
        max((each.flops for each in amounts), default=0),
        max(sizes, default=None),
    )
