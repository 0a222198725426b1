"""The tiles of the page, four of them, and the figures that stand further down."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flopcallback.profile import metrics
from flopcallback.profile.rows import achieved_flops_per_s, share
from flopcallback.reporting.caption import bound_of, estimate_of, step_parts
from flopcallback.reporting.noise import NOISY, noise_in_words
from flopcallback.reporting.units import NOTHING, milliseconds, percent, si

if TYPE_CHECKING:
    from flopcallback.profile.model_profile import ModelProfile
    from flopcallback.profile.rows import LatencySummary

__all__ = ["Tile", "figures", "tiles"]


@dataclass(frozen=True, slots=True)
class Tile:
    """A number, its label and a note in small print.

    Attributes:
        label: name of the number.
        value: number as text.
        note: further detail.
        badge: a caution in a few words.
        is_warning: True if the reader should look into it.
    """

    label: str
    value: str
    note: str = ""
    badge: str = ""
    is_warning: bool = False


def tiles(profile: ModelProfile) -> list[Tile]:
    """Return the four numbers that the page begins with: time, FLOPs, rate, and what is unknown."""
    return [_time(profile), _flops(profile), _rate(profile), _unknown(profile)]


def _time(profile: ModelProfile) -> Tile:
    latency = profile.latency
    if latency is not None and latency.step_ms is not None:
        return Tile("Step time", f"{milliseconds(latency.step_ms)} ms", _spread(latency), _noise(latency))
    if profile.forward_ms is not None:
        note = _spread(latency) if latency else "median"
        return Tile("Forward time", f"{milliseconds(profile.forward_ms)} ms", note, _noise(latency) if latency else "")
    reasons = {
        "train": "times come with the steps after the first",
        "call": "a single call is counted, not timed",
    }
    return Tile("Step time", NOTHING, reasons.get(profile.phase, "evaluation is counted, not timed"))


def _spread(latency: LatencySummary) -> str:
    spread = latency.forward_spread if latency.step_ms is None else latency.step_spread
    quartiles = "" if spread is None else f", quartiles {milliseconds(spread[0])} to {milliseconds(spread[1])} ms"
    return f"median of {latency.steps:,} steps{quartiles}"


def _noise(latency: LatencySummary) -> str:
    text = noise_in_words(latency)
    if not text or latency.cpu_share is None or (latency.noise is not None and latency.noise >= NOISY):
        return text
    return f"noisy machine: {100 * latency.cpu_share:.0f} % of a processor"  # shorter than the words


def _flops(profile: ModelProfile) -> Tile:
    if profile.step is None:
        note = profile.step_note or f"{profile.bound}{profile.forward_flops:,}"
        return Tile("FLOPs, forward", profile.bound + si(profile.forward_flops), note)
    note = profile.step_note or step_parts(profile.step)
    value = f"{profile.step_bound}{si(profile.step.total)}"
    return Tile("FLOPs per step", value, note, is_warning=bool(profile.step_note))


def _rate(profile: ModelProfile) -> Tile:
    """Return the MFU, or else the FLOP/s of the step, or of the forward."""
    peak, label = profile.peak_flops_per_s, "Achieved FLOP/s"
    mfu = profile.training.get(metrics.MFU.name)
    of_peak = f"of the device's peak, {si(peak, 'FLOP/s')}" if peak else "of the device's peak"
    if mfu is not None and mfu <= 100:
        return Tile("MFU", percent(mfu / 100), f"{of_peak}; recomputation left out")
    latency, step = profile.latency, profile.step
    has_step = step is not None and latency is not None and latency.step_ms is not None
    work = step.total - step.recompute if has_step and step else profile.forward_flops
    ms = latency.step_ms if has_step and latency else profile.forward_ms
    rate, where = achieved_flops_per_s(work, ms), "in the step" if has_step else "in the forward"
    if not rate:
        return Tile(label, NOTHING, "needs FLOPs and a time")
    if peak is None:
        return Tile(label, si(rate), f"{where}; the device's peak is not known")
    if rate > peak:
        note = f"more than the device's peak of {si(peak, 'FLOP/s')}: not believable"
        return Tile(label, "above peak", note, is_warning=True)
    if has_step:
        return Tile("MFU", percent(rate / peak), f"{of_peak}; {si(rate, 'FLOP/s')}")
    return Tile(label, si(rate), f"{where}; {percent(rate / peak)} {of_peak}")


def _unknown(profile: ModelProfile) -> Tile:
    unknown = profile.unknown_calls
    is_something = bool(profile.unknown or unknown)
    note = "operators without a count: see below" if is_something else "every operator is accounted for"
    return Tile("Unknown calls", f"{unknown:,}", note, is_warning=profile.is_lower_bound)


def figures(profile: ModelProfile) -> Iterator[Tile]:
    """Yield what else is known of the whole call, the step and the training."""
    root, latency, bound = profile.root, profile.latency, profile.bound
    yield Tile("FLOPs, forward", bound + si(profile.forward_flops), _flops_note(profile))
    if profile.step is not None:
        yield Tile("FLOPs, step", f"{profile.step_bound}{profile.step.total:,}", step_parts(profile.step))
    if root is not None:
        trainable = "all" if root.params_trainable == root.params else si(root.params_trainable)
        yield Tile("Parameters", si(root.params), f"{root.params:,}, {trainable} trainable")
    if profile.forward_ms is not None:
        part = share(profile.forward_ms, latency.step_ms if latency else None)
        note = "median" if part is None else f"{percent(part)} of the step"
        yield Tile("Forward", f"{milliseconds(profile.forward_ms)} ms", note)
    if latency is not None and latency.observed_ms is not None:
        note = f"{latency.observed_steps:,} steps whose operators were recorded; shares of time are theirs"
        yield Tile("Recorded step", f"{milliseconds(latency.observed_ms)} ms", note)
    if latency is not None and latency.parallel_ms:
        yield Tile("In parallel", f"{milliseconds(latency.parallel_ms)} ms", "other threads, beside the step")
    if root is not None and root.flops and root.bytes:
        note = f"{si(root.bytes, 'B')} read and written by operators"
        yield Tile("FLOPs per byte", si(profile.flops_per_byte(root)), note)
    yield from _compute(profile)


def _flops_note(profile: ModelProfile) -> str:
    bound = profile.bound
    per_sample = share(profile.forward_flops, profile.batch_size)
    # With one sample, both figures are the same.
    of_sample = f", {bound}{si(per_sample)} per sample" if per_sample is not None and profile.batch_size != 1 else ""
    return f"{bound}{profile.forward_flops:,}{of_sample}"


def _compute(profile: ModelProfile) -> Iterator[Tile]:
    training = profile.training
    spent = training.get(metrics.COMPUTE.name)
    if spent is None:
        return
    estimate, bound = estimate_of(training), bound_of(training)
    steps, audited = training.get(metrics.STEPS.name), training.get(metrics.AUDITED.name)
    audits = f"; audited {audited:,} of {steps:,} steps" if steps and audited else ""
    note = f"{estimate or f'FLOPs of the whole training: {spent:,}'}{audits}"
    yield Tile("Compute spent", f"{bound}{si(spent)}", note, is_warning=bool(estimate or bound))
