"""How far times can be relied on, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flopcallback.profile.rows import CPU_CLOCK, share
from flopcallback.reporting.units import milliseconds, percent

if TYPE_CHECKING:
    from flopcallback.profile.rows import LatencySummary

__all__ = ["lost_share", "noise_in_words", "observed_in_words", "spread_in_words"]

# Half of the quartiles' distance over the median. On a machine that does nothing else it is a few hundredths; from a
# tenth on, differences that a reader would act on may be chance.
NOISY = 0.1

# Share of the steps' time in which their thread had a processor. A thread that computes alone has one for nearly all of
# it; below this, other programs took turns with it.
CROWDED = 0.8

# Two medians of the same steps differ by as much.
WORTH_SAYING = 0.02


def noise_in_words(latency: LatencySummary | None) -> str:
    """Say that times are noisy and by how much; empty if they are not, or if that is not known."""
    if latency is None:
        return ""
    parts = []
    if latency.noise is not None and latency.noise >= NOISY:
        parts.append(f"times ±{100 * latency.noise:.0f} %")
    if crowded := _crowded(latency):
        parts.append(f"a processor for {100 * (1 - crowded):.0f} % of the steps' time")
    return f"noisy machine: {', '.join(parts)}" if parts else ""


def lost_share(latency: LatencySummary | None) -> float:
    """Return the share of the time that noise may be, 0 to 1; 0 where `noise_in_words` says nothing."""
    if not noise_in_words(latency) or latency is None:
        return 0.0
    noise = latency.noise or 0.0
    return min(1.0, max(noise if noise >= NOISY else 0.0, _crowded(latency)))


def _crowded(latency: LatencySummary) -> float:
    """Return the share of the time without a processor, 0 if that is ordinary."""
    # A thread that feeds a device also waits for it.
    if latency.cpu_share is None or not latency.how.startswith(CPU_CLOCK) or latency.cpu_share >= CROWDED:
        return 0.0
    return 1 - latency.cpu_share


def spread_in_words(spread: tuple[float, float] | None) -> str:
    """Write quartiles behind a median, such as ` (36.1 to 40.2)`; empty if there are none."""
    return "" if spread is None else f" ({milliseconds(spread[0])} to {milliseconds(spread[1])})"


def observed_in_words(latency: LatencySummary | None) -> str:
    """Compare steps while their operators were recorded with steps that nothing stood in; empty without either."""
    if latency is None or latency.observed_ms is None or latency.step_ms is None:
        return ""
    steps = "one step" if latency.observed_steps == 1 else f"{latency.observed_steps:,} steps"
    more_ms = latency.observed_ms - latency.step_ms
    part = share(abs(more_ms), latency.step_ms) or 0.0
    if part < WORTH_SAYING:
        difference = "as long as"
    else:
        difference = f"{milliseconds(abs(more_ms))} ms ({percent(part)}) {'more' if more_ms > 0 else 'less'} than"
    took = f"{milliseconds(latency.observed_ms)} ms"
    return (
        f"shares of time: from {steps} whose operators were recorded, {took}, {difference} the "
        f"{milliseconds(latency.step_ms)} ms of steps that nothing stood in; milliseconds are shares of the latter"
    )
