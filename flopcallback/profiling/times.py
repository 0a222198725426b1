"""Recorded steps -> where the time of a training step goes."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from flopcallback.modules.names import ModuleNames
from flopcallback.profile.model_profile import ModelProfile
from flopcallback.profile.rows import ModuleRow
from flopcallback.profile.times import OperatorTime, StepTime
from flopcallback.tracing.phases import BACKWARD, FORWARD, OPTIMIZER, PHASES, RECOMPUTE
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
    rows = {row.path: _of_row(profile, row, by_row) for row in profile.modules}
    operators = [
        OperatorTime(_path(part, names), part.operator, part.phase, ms, *_sizes(part, recorded))
        for part, ms in milliseconds.items()
    ]
    return replace(profile, latency=latency).with_times(rows, operators)


def _alike(profile: ModelProfile, recorded: Sequence[RecordedTimes]) -> list[RecordedTimes]:
    """Return the largest group of steps of one kind, of the profile's kind if there are any.

    Steps of several kinds, of which none is the profile's, have no times in common.
    """
    groups: list[list[RecordedTimes]] = []
    for times in recorded:
        group = next((group for group in groups if group[0].kind() == times.kind()), None)
        if group is None:
            groups.append([times])
        else:
            group.append(times)
    step = profile.step
    if step is not None:
        flops = {
            FORWARD: step.forward + step.without_grad,
            BACKWARD: step.backward,
            RECOMPUTE: step.recompute,
            OPTIMIZER: step.optimizer,
        }
        of_profile = [group for group in groups if group[0].kind()[0] == flops]
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


def _of_row(profile: ModelProfile, row: ModuleRow, times: Mapping[str, StepTime]) -> StepTime:
    """Return the time of a row; that of the step itself, which is no module, has what its siblings do not have."""
    if row.type or row.parent is None:
        return times.get(row.path, StepTime())
    own = times.get("", StepTime())
    for other in profile.modules:
        if other.parent == row.parent and other is not row:
            own -= times.get(other.path, StepTime())
    return own


def _sizes(part: Part, recorded: Sequence[RecordedTimes]) -> tuple[int, int, int | None]:
    """Return calls, FLOPs and bytes of a part in one step."""
    amounts = [times.parts[part] for times in recorded if part in times.parts]
    sizes = [each.nbytes for each in amounts if each.nbytes is not None]
    return (
        max((each.calls for each in amounts), default=0),
        max((each.flops for each in amounts), default=0),
        max(sizes, default=None),
    )
