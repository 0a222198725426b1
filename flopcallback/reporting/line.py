"""The line that a training prints of its profile."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING

from flopcallback.profile.rows import achieved_flops_per_s, share
from flopcallback.profile.times import IDLE, PYTHON
from flopcallback.reporting.tree import leaves
from flopcallback.reporting.units import milliseconds, percent, si

if TYPE_CHECKING:
    from flopcallback.profile.model_profile import ModelProfile
    from flopcallback.profile.times import OperatorTime

__all__ = ["counts_line", "profile_line", "slowest"]


def counts_line(profile: ModelProfile) -> str:
    """Return the profile in a line before its steps are timed."""
    return _joined(_forward(profile), _step(profile), _unknown(profile), "times to come")


def profile_line(profile: ModelProfile) -> str:
    """Return the profile in a line, with times if it has some."""
    times = ("", "") if profile.latency is None else (_speed(profile), slowest(profile))
    return _joined(_forward(profile), _step(profile), *times, _no_peak(profile), _unknown(profile))


def slowest(profile: ModelProfile) -> str:
    """Return what takes most of the time, with its share; an empty string without times.

    It is an operator of a module in a training step where these times are known, else a module in the forward. Modules
    that differ in nothing but numbers (`layers.0`, `layers.1`) are one, and so is all time outside of operators.
    """
    times: dict[str, float] = defaultdict(float)
    for each in profile.operator_times:
        times[_named(each)] += each.ms
    if times:
        name = max(times, key=times.__getitem__)
        return _slowest(name, share(times[name], sum(times.values())), "step")
    nodes = [node for node in leaves(profile) if node.forward_ms]
    if not nodes:
        return ""
    node = max(nodes, key=lambda node: node.forward_ms or 0.0)
    return _slowest(node.path or profile.name, share(node.forward_ms, profile.forward_ms), "forward")


def _named(time: OperatorTime) -> str:
    """Return module and operator of a time, with `*` for numbers."""
    if time.path is None or time.operator in (PYTHON, IDLE):
        return time.operator.removeprefix("aten::")
    place = re.sub(r"\b\d+\b", "*", time.path)
    return f"{place}: {time.operator.removeprefix('aten::')}".removeprefix(": ")


def _slowest(name: str, part: float | None, whole: str) -> str:
    return "" if part is None else f"slowest: {name} ({percent(min(part, 1.0))} of the {whole})"


def _joined(*parts: str) -> str:
    return f"flopcallback: {', '.join(filter(None, parts))}"


def _forward(profile: ModelProfile) -> str:
    time = "" if profile.forward_ms is None else f", {milliseconds(profile.forward_ms)} ms"
    return f"{profile.phase_prefix}forward {profile.bound}{si(profile.forward_flops, 'FLOPs')}{time}"


def _step(profile: ModelProfile) -> str:
    latency = profile.latency
    time = "" if latency is None or latency.step_ms is None else f"{milliseconds(latency.step_ms)} ms"
    if profile.step is not None:
        flops = f"train step {profile.step_bound}{si(profile.step.total, 'FLOPs')}"
        return ", ".join(filter(None, (flops, time)))
    return ", ".join(filter(None, (profile.step_note and f"train step {profile.step_note}", time and f"step {time}")))


def _speed(profile: ModelProfile) -> str:
    """Return the MFU of a step; its FLOP/s where the device's peak is not known."""
    if profile.step is None or profile.latency is None:
        return ""
    rate = achieved_flops_per_s(profile.step.total - profile.step.recompute, profile.latency.step_ms)
    if rate is None:
        return ""
    mfu = share(rate, profile.peak_flops_per_s)
    return si(rate, "FLOP/s") if mfu is None else f"MFU {percent(mfu)}"


def _no_peak(profile: ModelProfile) -> str:
    is_missing = profile.phase == "train" and profile.peak_flops_per_s is None
    return "no MFU: peak not known (peak_flops=)" if is_missing else ""


def _unknown(profile: ModelProfile) -> str:
    return f"unknown: {', '.join(profile.unknown)}" if profile.unknown else ""
