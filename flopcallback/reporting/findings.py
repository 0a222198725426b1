"""What a profile says about where time goes, in a few sentences, by rule."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from flopcallback.profile.rows import share
from flopcallback.profile.times import IDLE, PYTHON
from flopcallback.reporting.facts import Facts
from flopcallback.reporting.measured import is_of_step
from flopcallback.reporting.noise import lost_share, noise_in_words
from flopcallback.reporting.points import OPTIMIZER, bound_of_point
from flopcallback.reporting.tree import leaves

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from flopcallback.profile.model_profile import ModelProfile
    from flopcallback.reporting.facts import Part

__all__ = ["RULES", "Finding", "findings"]

MOST = 5
"""Findings that are told. Further ones explain little, and nobody reads them."""

# Shares of the time from which a rule speaks: below, there is more to gain elsewhere.
NO_PRODUCTS, SLOW, WAIT, PHASE, OVERHEAD, ONE_MODULE, MEMORY = 0.1, 0.05, 0.05, 0.1, 0.2, 0.5, 0.3

# What runs at a third of the rate of the rest is slow in itself: sizes and caches alone make smaller differences.
SLOW_RATE = 1 / 3

# The backward of a product is two products of the same size.
BACKWARD_FLOPS = 2.0
# It also adds up gradients and reads what the forward kept, so it may well take somewhat longer than its FLOPs say.
LONG_BACKWARD = 1.5

# A smaller share is written as 0 %.
LEAST = 0.005

# Optimizers of torch.optim that have `fused=`.
FUSED = frozenset({"Adagrad", "Adam", "AdamW", "SGD"})

# One module among so few says nothing that the table does not.
FEWEST_MODULES = 3
# How many times its share of the modules a module's share of the time has to be, to be more than a part of the model.
STANDS_OUT = 2.0

# A share of the time that much above the share of the FLOPs makes a part slow for them.
SLOW_SHARE = 1.2


@dataclass(frozen=True, slots=True)
class Finding:
    """A sentence about a profile.

    Attributes:
        text: the sentence, without a full stop.
        weight: share of the time that it explains, 0 to 1.
        rule: name of the rule that found it.
        path: path of the module that it is about; None if it is about the whole.
    """

    text: str
    weight: float
    rule: str
    path: str | None = None


def findings(profile: ModelProfile) -> list[Finding]:
    """Return what a reader should know first, at most five sentences.

    The first says which part takes the most time, whether it is slow for its FLOPs, and whether the machine computes or
    waits; without times, where the FLOPs are. Then come the others, in decreasing order of the time that they explain.
    """
    facts = Facts(profile)
    found = [finding for rule in RULES for finding in rule(facts)]
    first = _first(facts, found)
    others = [finding for finding in found if not _is_same(finding, first)]
    return [first, *sorted(others, key=lambda finding: -finding.weight)][:MOST]


def _is_same(finding: Finding, first: Finding) -> bool:
    """Return whether a finding is about what the first one has said already."""
    return finding.text in first.text or (finding.path is not None and finding.path == first.path)


# --- The first sentence ----------------------------------------------------------------------------------------------


def _first(facts: Facts, found: Sequence[Finding]) -> Finding:
    """Return the sentence about the part with the most time, or with the most FLOPs."""
    if not facts.parts:
        return _most_flops(facts.profile)
    part = facts.parts[0]
    waits = [finding for finding in found if finding.rule in ("python", "idle") and finding.weight > part.share]
    if waits:  # no part of the work takes as long
        longest = max(waits, key=lambda finding: finding.weight)
        return replace(longest, text=f"{longest.text}; {_most_time(facts, part)}")
    about = _slow_one(facts, part) or _without_products(facts, part)
    if about is None and part.points[0].operator == OPTIMIZER:
        about = next(_optimizer(facts), None)
    text, rule = (_most_time(facts, part), "most time") if about is None else (about.text, about.rule)
    return Finding(text + _busy(facts), part.share, rule, part.path)


def _most_time(facts: Facts, part: Part) -> str:
    text = f"{part.name} takes {_percent(part.share)} of the {facts.what}"
    if not part.flops:
        return text
    is_slow = part.share > SLOW_SHARE * part.flops_share
    verdict = "slow for them" if is_slow else "not slow for them"
    of_peak = facts.share_of_peak(part)
    rate = "" if of_peak is None else f", at {_percent(of_peak)} of the peak"
    return f"{text} for {_percent(part.flops_share)} of the FLOPs, {verdict}{rate}"


def _busy(facts: Facts) -> str:
    """Say whether the machine computes or waits; empty if that is not known."""
    if not facts.profile.operator_times:
        return f"; {_percent(facts.data_wait)} of the time waits for data" if facts.data_wait >= WAIT else ""
    inside = 1 - facts.data_wait  # share of the time inside of steps
    waits = {PYTHON: inside * facts.share_of(PYTHON), IDLE: inside * facts.share_of(IDLE)}
    waits["waiting for data"] = facts.data_wait
    known = ", ".join(f"{name} {_percent(part)}" for name, part in waits.items() if part >= LEAST)
    computes = _percent(1 - sum(waits.values())) if known else "nearly all"
    return f"; the machine computes for {computes} of the time" + (f" ({known})" if known else "")


def _most_flops(profile: ModelProfile) -> Finding:
    """Return the sentence for a profile without times."""
    nodes = [node for node in leaves(profile) if node.flops]
    if not nodes:
        return Finding("no FLOPs were counted, and no times were measured", 0.0, "most flops")
    flops: defaultdict[str, int] = defaultdict(int)
    for node in nodes:
        flops[node.type or node.path] += node.flops
    kind = max(flops, key=flops.__getitem__)
    largest = max((node for node in nodes if (node.type or node.path) == kind), key=lambda node: node.flops)
    text = f"{kind} has {_percent(share(flops[kind], profile.forward_flops) or 0.0)} of the FLOPs"
    if largest.path and largest.flops < flops[kind]:
        text += f", {largest.path} alone {_percent(share(largest.flops, profile.forward_flops) or 0.0)}"
    return Finding(f"{text}; no times were measured", 0.0, "most flops", largest.row.path or None)


# --- Rules -----------------------------------------------------------------------------------------------------------


def _no_products(facts: Facts) -> Iterator[Finding]:
    """Find kinds of modules and operators that take time without any FLOPs."""
    yield from filter(None, (_without_products(facts, part) for part in facts.parts))


def _without_products(facts: Facts, part: Part) -> Finding | None:
    is_enough = part.share >= NO_PRODUCTS and part.points[0].operator != OPTIMIZER
    if part.flops or not is_enough or not part.is_countable:
        return None
    text = f"{part.name}: no products, {_percent(part.share)} of the {facts.what}"
    return Finding(text, part.share, "no products", part.path)


def _slow(facts: Facts) -> Iterator[Finding]:
    """Find parts with FLOPs that run far below the rate of the others."""
    yield from filter(None, (_slow_one(facts, part) for part in facts.parts))


def _slow_one(facts: Facts, part: Part) -> Finding | None:
    ratio = facts.rate_beside(part) if part.flops and part.share >= SLOW else None
    of_peak = facts.share_of_peak(part)
    # Nor is slow what comes near the peak, however fast the rest is.
    if ratio is None or max(ratio, of_peak or 0.0) > SLOW_RATE or not part.is_countable:
        return None
    rate = f"{_percent(of_peak)} of the peak" if of_peak else f"1/{1 / ratio:,.0f} of the rate of the rest"
    text = f"{part.name} runs at {rate}, {_percent(part.share)} of the {facts.what}"
    # At the rate of the others it would take that much less.
    return Finding(text, part.share * (1 - ratio), "slow", part.path)


def _one_module(facts: Facts) -> Iterator[Finding]:
    """Find the innermost module that has most of the time and few of the modules."""
    times = _inclusive(facts.profile)
    inner = _innermost_inside(facts.profile)
    modules = inner.get("", 0)
    if modules < FEWEST_MODULES:
        return
    standing_out = [
        (row, part)
        for row in facts.profile.modules
        if row.path
        and (part := share(times.get(row.path), facts.whole) or 0.0) >= ONE_MODULE
        and part >= STANDS_OUT * inner[row.path] / modules
    ]
    if standing_out:
        row, part = standing_out[-1]  # rows are depth first: a later one is inside of an earlier one
        text = f"one module, {row.path}, has {_percent(min(1.0, part))} of the {facts.what}"
        yield Finding(text, min(1.0, part), "one module", row.path)


def _inclusive(profile: ModelProfile) -> dict[str, float]:
    """Return the milliseconds of modules with all inside, of what points are shares of."""
    if is_of_step(profile):
        return {row.path: row.time.total for row in profile.modules if row.time is not None}
    return {row.path: row.forward_ms for row in profile.modules if row.forward_ms is not None}


def _innermost_inside(profile: ModelProfile) -> dict[str, int]:
    """Return the number of innermost modules in each module."""
    counts: dict[str, int] = {}
    for row in reversed(profile.modules):  # children before their parents
        counts[row.path] = counts.get(row.path, 0) or 1
        if row.parent is not None:
            counts[row.parent] = counts.get(row.parent, 0) + counts[row.path]
    return counts


def _python(facts: Facts) -> Iterator[Finding]:
    part = facts.share_of(PYTHON)
    if part >= OVERHEAD:
        advice = "a larger batch makes it a smaller part" if facts.is_compiled else "try torch.compile"
        yield Finding(f"{_percent(part)} of the {facts.what} is Python and launches: {advice}", part, "python")


def _idle(facts: Facts) -> Iterator[Finding]:
    part = facts.share_of(IDLE)
    if part >= OVERHEAD:
        advice = "try a larger batch" if facts.is_compiled else "try torch.compile or a larger batch"
        text = f"the device is idle for {_percent(part)} of the {facts.what}, waiting for launches: {advice}"
        yield Finding(text, part, "idle")


def _data_wait(facts: Facts) -> Iterator[Finding]:
    part = facts.data_wait
    if part >= WAIT:
        yield Finding(f"{_percent(part)} of the time waits for data: try more workers (num_workers=)", part, "data")


def _backward(facts: Facts) -> Iterator[Finding]:
    """Find a backward that takes longer than its FLOPs say."""
    phases, step = facts.phases, facts.profile.step
    times = share(phases.backward, phases.forward)
    by_flops = (share(step.backward, step.forward) if step is not None else None) or BACKWARD_FLOPS
    if times is not None and times >= LONG_BACKWARD * by_flops:
        excess = share(phases.backward - by_flops * phases.forward, phases.total) or 0.0
        text = f"backward takes {times:.1f} times the forward, for {by_flops:.1f} times its FLOPs"
        yield Finding(text, excess, "backward")


def _optimizer(facts: Facts) -> Iterator[Finding]:
    part = facts.phase_share("optimizer")
    if part >= PHASE:
        names = {each.operator for each in facts.profile.operator_times if each.phase == "optimizer"}
        classes = sorted(name.removesuffix(".step") for name in names if name.endswith(".step"))
        who = f" ({', '.join(classes)})" if classes else ""
        can_fuse = all(name in FUSED for name in classes) and not any("_fused_" in name for name in names)
        advice = "try fused=True, if it is not on" if can_fuse else "a larger batch makes it a smaller part"
        yield Finding(f"optimizer{who}: {_percent(part)} of the step: {advice}", part, "optimizer")


def _recomputation(facts: Facts) -> Iterator[Finding]:
    part = facts.phase_share("recompute")
    if part >= PHASE:
        text = f"recomputation: {_percent(part)} of the step, the price of activation checkpointing"
        yield Finding(text, part, "recomputation")


def _without_grad(facts: Facts) -> Iterator[Finding]:
    part = facts.phase_share("without_grad")
    if part >= PHASE:
        text = f"forward without autograd, as of a teacher: {_percent(part)} of the step"
        yield Finding(text, part, "without grad")


def _memory(facts: Facts) -> Iterator[Finding]:
    """Find bytes that take much of the time even at the full bandwidth of the memory."""
    bandwidth = facts.profile.peak_bytes_per_s
    if bandwidth is None:
        return
    bound = [point for point in facts.points if bound_of_point(facts.profile, point) == "memory" and point.bytes]
    needed_ms = math.fsum(min(point.ms, 1e3 * (point.bytes or 0) / bandwidth) for point in bound)
    part = share(needed_ms, facts.whole) or 0.0
    if part >= MEMORY:
        advice = "a lower precision moves fewer" if facts.is_compiled else "torch.compile may move fewer"
        text = f"bytes take {_percent(part)} of the {facts.what} at the memory's full bandwidth: {advice}"
        yield Finding(text, part, "memory")


def _noise(facts: Facts) -> Iterator[Finding]:
    if text := noise_in_words(facts.profile.latency):
        yield Finding(text, lost_share(facts.profile.latency), "noise")


RULES: tuple[Callable[[Facts], Iterator[Finding]], ...] = (
    *(_no_products, _slow, _one_module, _python, _idle, _data_wait),
    *(_backward, _optimizer, _recomputation, _without_grad, _memory, _noise),
)
"""The rules. A new one is a function here and its place in this table."""


# --- Words -----------------------------------------------------------------------------------------------------------


def _percent(part: float) -> str:
    """Write a share of 0 to 1 in per cent, with two digits at most."""
    percent = 100 * part
    return f"{percent:.0f} %" if percent >= 1 or percent == 0 else f"{percent:.1g} %"
