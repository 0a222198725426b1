"""The headline above a table and the footer below."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from flopcallback.profile import metrics
from flopcallback.profile.numbers import bound_sign
from flopcallback.profile.rows import CPU_CLOCK
from flopcallback.reporting.flops_and_time import agreement, measured_leaves, slow_for_their_flops
from flopcallback.reporting.measured import is_of_step
from flopcallback.reporting.noise import noise_in_words, observed_in_words, spread_in_words
from flopcallback.reporting.units import milliseconds, percent, si
from flopcallback.reporting.verdict import verdict_lines

if TYPE_CHECKING:
    from flopcallback.profile.metrics import Metric
    from flopcallback.profile.model_profile import ModelProfile
    from flopcallback.profile.rows import StepFlops

__all__ = [
    "at_least",
    "bound_of",
    "estimate_of",
    "footer",
    "headline",
    "in_words",
    "step_parts",
    "timing_includes",
]

# Modules that the footer names for one reason. Tables name all.
NAMED = 3

# Smaller differences between a module's share of the time and its share of the FLOPs may be chance.
WORTH_NAMING = 0.01


def headline(profile: ModelProfile) -> str:
    """Return the profile in one line: model, FLOPs, parameters and time."""
    call = "one call" if profile.phase == "call" else f"one {profile.phase} step, forward"
    parts = [f"{profile.bound}{si(profile.forward_flops, 'FLOPs')}"]
    if profile.root is not None:
        parts.append(f"{si(profile.root.params)} parameters")
    if profile.forward_ms is not None:
        parts.append(f"{milliseconds(profile.forward_ms)} ms")
    return f"{profile.name}, {call}: {', '.join(parts)}"


def at_least(is_lower_bound: bool) -> str:
    """Return `">= "` for a lower bound, else an empty string."""
    return ">= " if is_lower_bound else ""


def footer(profile: ModelProfile) -> list[str]:
    """Return the lines below a table.

    They say what the figures rest on: convention, conditions, engines, clock, unknown operators.
    """
    counts = (_convention(profile), _whole_step(profile), _conditions(profile), *verdict_lines(profile))
    times = (
        *(_clock(profile), noise_in_words(profile.latency), observed_in_words(profile.latency)),
        *(_module_times(profile), *_agreement(profile), *_slow_modules(profile)),
    )
    ends = (_peak(profile), _compute(profile), _throughput(profile), _unknown(profile), _at_most(profile))
    return [line for line in (*counts, *times, *ends) if line]


def _at_most(profile: ModelProfile) -> str:
    if not profile.upper_bounds:
        return ""
    return f"at most: the work of {', '.join(profile.upper_bounds)} depends on data, and counts as its maximum"


def _convention(profile: ModelProfile) -> str:
    # Elementwise work is in `macs` alone, and there only where it was asked for.
    elementwise = " with elementwise work" if profile.config.get("flops.elementwise") else ""
    bound = profile.bound
    return (
        f"forward: {bound}{profile.forward_flops:,} FLOPs, 2 per multiply-add; "
        f"{bound}{profile.forward_macs:,} macs{elementwise}"
    )


def _whole_step(profile: ModelProfile) -> str:
    """Describe the training step as it ran, with the remark on it."""
    if profile.step is None:
        return f"training step: {profile.step_note}" if profile.step_note else ""
    note = f"; {profile.step_note}" if profile.step_note else ""
    return f"training step: {profile.step_bound}{profile.step.total:,} FLOPs ({step_parts(profile.step)}){note}"


def step_parts(step: StepFlops) -> str:
    """List the phases of a training step that have FLOPs."""
    parts = [("forward", step.forward), ("backward", step.backward), ("recomputed", step.recompute)]
    parts += [("optimizer", step.optimizer), ("without grad", step.without_grad)]
    return ", ".join(f"{phase} {si(flops)}" for phase, flops in parts if flops) or "none"


def _conditions(profile: ModelProfile) -> str:
    config = profile.config
    values = {
        "counted by": config.get("flops.engine"),
        "because": config.get("flops.engine_reason"),
        "on": config.get("flops.device"),
        "in": config.get("flops.dtype"),
        "batch of": profile.batch_size,
        "inputs": config.get("flops.input_shapes"),
        "flopcallback": config.get("flops.version"),
    }
    texts = {
        word: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        # Lists, such as the input shapes, are written as JSON.
        for word, value in values.items()
        if value
    }
    return ", ".join(f"{word} {text}" for word, text in texts.items())


def _clock(profile: ModelProfile) -> str:
    latency = profile.latency
    if latency is None:
        return ""
    times = [("forward", profile.forward_ms, latency.forward_spread), ("step", latency.step_ms, latency.step_spread)]
    texts = [
        f"{name} {milliseconds(ms)} ms{spread_in_words(spread)}"
        for name, ms, spread in times
        if ms is not None or name == "forward"
    ]
    quartiles = " (quartiles)" if latency.forward_spread or latency.step_spread else ""
    parts = [*texts, f"medians{quartiles} of {latency.steps} steps", latency.how]
    if latency.cpu_share is not None:
        parts.append(f"a processor for {percent(latency.cpu_share)} of the time")
    if latency.parallel_ms:
        parts.append(f"{milliseconds(latency.parallel_ms)} ms of other threads' work in parallel")
    return f"latency: {', '.join(filter(None, parts))}"


def _module_times(profile: ModelProfile) -> str:
    """Say in short what module times include; see `timing_includes`."""
    # A window may have timed the whole call only.
    if profile.latency is None or not measured_leaves(profile):
        return ""
    return f"module times: forward in eager mode with {_gaps(profile.latency.how)}"


def timing_includes(how: str) -> str:
    """Describe what the time of a module includes besides its own work.

    Args:
        how: clock, as in `LatencySummary.how`.
    """
    return (
        f"a module's time is its forward in eager mode with what it calls and {_gaps(how)}; a compiled module is one "
        "piece; backward is in the step's time alone"
    )


def _gaps(how: str) -> str:
    """Name what a clock includes besides the work of operators."""
    return "Python and the launch of each operator" if how.startswith(CPU_CLOCK) else "the gaps between kernels"


def _peak(profile: ModelProfile) -> str:
    """Name the device's peak, and the modules above it."""
    peak = profile.peak_flops_per_s
    if peak is None:
        # Only the profile of a training has an MFU to miss.
        return "peak: not known for this device, so no MFU; peak_flops= gives it" if profile.phase == "train" else ""
    impossible = [row.path or profile.name for row in profile.modules if profile.is_above_peak(row)]
    text = f"peak: {si(peak, 'FLOP/s')} ({profile.config.get('flops.peak_source', 'given')})"
    if not impossible:
        return text
    rest = f" and {len(impossible) - NAMED:,} more" if len(impossible) > NAMED else ""
    return f"{text}; above it, so not believable: {', '.join(impossible[:NAMED])}{rest}"


def _compute(profile: ModelProfile) -> str:
    """Describe the compute of the whole training."""
    training = profile.training
    spent = training.get(metrics.COMPUTE.name)
    if spent is None:
        return ""
    parts = [f"{bound_of(training)}{spent:,} FLOPs", estimate_of(training), *_metric_texts(profile, "compute")]
    steps, audited = training.get(metrics.STEPS.name), training.get(metrics.AUDITED.name)
    if steps and audited:
        parts.append(f"audited {audited:,} of {steps:,} steps")
    without_grad = training.get(metrics.WITHOUT_GRAD.name)
    if without_grad:
        parts.append(f"{without_grad:.2g} % without autograd")
    return f"the whole training: {', '.join(filter(None, parts))}"


def bound_of(training: Mapping[str, int | float]) -> str:
    """Return the sign in front of a training's compute, if its true value is larger or smaller."""
    lower, upper = training.get(metrics.LOWER_BOUND.name), training.get(metrics.UPPER_BOUND.name)
    return bound_sign(is_lower=bool(lower), is_upper=bool(upper))


def estimate_of(training: Mapping[str, int | float]) -> str:
    """Say what of a training's compute is estimated, and how well; empty if nothing is."""
    estimated, error = training.get(metrics.ESTIMATED.name) or 0, training.get(metrics.ERROR.name)
    if not estimated:
        return ""
    off = "" if error is None else f", off by at most {_two_digits(error)} %"
    return f"{_two_digits(estimated)} % estimated{off}"


def _two_digits(value: float) -> str:
    return f"{value:.2g}" if value < 9.95 else f"{value:,.0f}"  # and not `1e+02`


def _throughput(profile: ModelProfile) -> str:
    """Describe the rates at the end of the training."""
    parts = _metric_texts(profile, "perf")
    return f"at its end: {', '.join(parts)}" if parts else ""


def _metric_texts(profile: ModelProfile, group: str) -> list[str]:
    """Return the phrases of a group's known metrics."""
    values = {metric: profile.training.get(metric.name) for metric in metrics.of_group(group) if metric.text}
    return [metric.text.format(_with_unit(value, metric)) for metric, value in values.items() if value is not None]


def _with_unit(value: float, metric: Metric) -> str:
    if metric.unit == "ms":
        return f"{milliseconds(value)} ms"
    # Such metrics are 0 to 100, shares 0 to 1.
    if metric.unit == "%":
        return percent(value / 100)
    if metric.unit == "TFLOP/s":
        return si(value * 1e12, "FLOP/s")
    return f"{si(value) if metric.unit.endswith('/s') else f'{value:,}'} {metric.unit}"


def _agreement(profile: ModelProfile) -> Iterator[str]:
    """Say how well FLOPs predict time, and which of FLOPs, activations and bytes does best."""
    found = agreement(profile)
    if found.correlation is not None:
        what = "modules and own operators" if is_of_step(profile) else "modules"
        yield (
            f"FLOPs and time: rank correlation {found.correlation:.2f} by time over {found.points:,} {what} with "
            f"{percent(found.covered)} of the time; {in_words(found.correlation)}"
        )
    if len(found.orderings) > 1:
        best, *others = (f"{name} {value:.2f}" for name, value in found.orderings.items())
        how = ", ".join(filter(None, ("the same rank correlation", found.over)))
        yield f"what orders modules by time best: {best}, then {', '.join(others)} ({how})"


def in_words(correlation: float) -> str:
    """Describe a rank correlation of FLOPs and time."""
    # The limits are a matter of taste.
    if correlation >= 0.9:
        return "more FLOPs nearly always means more time"
    if correlation >= 0.7:
        return "more FLOPs mostly means more time, with exceptions"
    if correlation >= 0.4:
        return "FLOPs are a rough guide to time, no more"
    return "FLOPs say little about where the time goes"


def _slow_modules(profile: ModelProfile) -> list[str]:
    """Return a line for each module that is slow for its FLOPs.

    Differences below `WORTH_NAMING` are left out.
    """
    slow = []
    for point in slow_for_their_flops(profile, NAMED):
        # The model itself is no module to look for.
        if point.path and point.time_share - point.flops_share >= WORTH_NAMING:
            shares = f"{percent(point.time_share)} of the time, {percent(point.flops_share)} of the FLOPs"
            slow.append(f"slow for {'their' if point.modules > 1 else 'its'} FLOPs: {point.path} ({shares})")
    return slow


def _unknown(profile: ModelProfile) -> str:
    calls = {row.operator: row.calls for row in profile.operators if row.status == "unknown"}
    # Reasons can also be about modules that could not be observed, which have no calls.
    reasons = {**dict.fromkeys(calls, ""), **profile.unknown}
    if not reasons:
        return "nothing unknown: every operator was counted, or does no work that counts"
    named = [
        f"{name} ({_calls(calls[name]) + ': ' if name in calls else ''}{reason or 'no formula'})"
        for name, reason in reasons.items()
    ]
    return f"unknown, so counted as 0: {'; '.join(named)}"


def _calls(count: int) -> str:
    return f"{count:,} call{'' if count == 1 else 's'}"
