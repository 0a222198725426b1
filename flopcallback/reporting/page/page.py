"""The HTML page of a profile: one file that loads nothing.

Trackers that show HTML show it, and it can be kept in a folder or sent by mail.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flopcallback.profile import metrics
from flopcallback.profile.rows import achieved_flops_per_s, share
from flopcallback.reporting.caption import (
    at_least,
    bound_of,
    estimate_of,
    footer,
    headline,
    in_words,
    step_parts,
    timing_includes,
)
from flopcallback.reporting.figures.axes import PALETTE
from flopcallback.reporting.figures.scatter import scatter
from flopcallback.reporting.flops_and_time import measured_leaves, rank_correlation, slow_for_their_flops
from flopcallback.reporting.page.environment import template
from flopcallback.reporting.page.page_table import table_data
from flopcallback.reporting.tree import widest_work
from flopcallback.reporting.units import NOTHING, milliseconds, percent, si
from flopcallback.reporting.verdict import verdict_line

if TYPE_CHECKING:
    from flopcallback.profile.model_profile import ModelProfile

__all__ = ["html_page"]

# Modules, types, slow modules and unknown operators that the page lists outside of its table.
TOP, TYPES, SLOW, UNKNOWN = 10, 7, 6, 100


def html_page(profile: ModelProfile) -> str:
    """Render a profile as one HTML file that needs no network.

    It has tiles, where FLOPs and time go, FLOPs against time, a table of all modules that opens, sorts and searches,
    operators, unknowns, and the conditions of the count. Parts that need times are left out of a profile without any.
    All names are escaped, and integers of any size are exact, as text.
    """
    return template("page.html.jinja").render(
        profile=profile,
        subtitle=headline(profile).removeprefix(f"{profile.name}, "),
        engines=_engines(profile),
        differences=[] if profile.verdict is None else profile.verdict.differences,
        palette=PALETTE,
        tiles=list(_tiles(profile)),
        top=_top(profile),
        types=_types(profile),
        scatter=scatter(profile, len(PALETTE)),
        agreement=_agreement(profile),
        slow=_slow(profile),
        table=table_data(profile) if profile.modules else None,
        operators=[_operator(record) for record in profile.operator_records()],
        unknown=list(profile.unknown.items())[:UNKNOWN],
        more_unknown=max(0, len(profile.unknown) - UNKNOWN),
        meanings=_meanings(profile),
        notes=footer(profile),
        conditions=_conditions(profile),
    )


def _engines(profile: ModelProfile) -> dict[str, Any] | None:
    """Say which engine counted, why, and whether the other agrees.

    None if the profile does not say.
    """
    engine, reason = profile.config.get("flops.engine"), profile.config.get("flops.engine_reason")
    verdict = verdict_line(profile) or profile.step_note
    if not engine and not verdict:
        return None
    engine_text = f"counted by {engine}{'' if verdict else ' alone'}" if engine else ""
    # The reason for a single engine is in the verdict already.
    because = f", because {reason}" if reason and not (profile.verdict and profile.verdict.reason) else ""
    is_difference = bool(profile.verdict and profile.verdict.differences) or verdict == profile.step_note != ""
    return {"text": "; ".join(filter(None, (engine_text + because, verdict))), "is_warning": is_difference}


@dataclass(frozen=True, slots=True)
class _Tile:
    """A number, its label and a note in small print.

    Attributes:
        label: name of the number.
        value: number as text.
        note: further detail.
        is_warning: True if the reader should look into it.
    """

    label: str
    value: str
    note: str = ""
    is_warning: bool = False


def _tiles(profile: ModelProfile) -> Iterator[_Tile]:
    bound, root, latency = profile.bound, profile.root, profile.latency
    yield _Tile("FLOPs", bound + si(profile.forward_flops), _flops_note(profile))
    if root is not None:
        trainable = "all" if root.params_trainable == root.params else si(root.params_trainable)
        yield _Tile("Parameters", si(root.params), f"{root.params:,}, {trainable} trainable")
    if profile.forward_ms is not None:
        steps = f"median of {latency.steps} steps" if latency else "median"
        yield _Tile("Forward", f"{milliseconds(profile.forward_ms)} ms", steps)
    if latency is not None and latency.step_ms is not None:
        yield _Tile("Step", f"{milliseconds(latency.step_ms)} ms", _forward_share(profile, latency.step_ms))
    if profile.step is not None:
        note = profile.step_note or f"FLOPs: {step_parts(profile.step)}"
        yield _Tile(
            "Training step", f"{profile.step_bound}{si(profile.step.total)}", note, is_warning=bool(profile.step_note)
        )
    yield from _training_tiles(profile)
    yield from _rate_tile(profile)
    if root is not None and root.flops and root.bytes:
        intensity = si(profile.flops_per_byte(root))
        yield _Tile("FLOPs per byte", intensity, f"{si(root.bytes, 'B')} read and written by operators")
    unknown = profile.unknown_calls
    yield _Tile(
        "Unknown calls",
        f"{unknown:,}",
        "operators without a count: see below" if profile.unknown or unknown else "every operator is accounted for",
        is_warning=profile.is_lower_bound,
    )


def _training_tiles(profile: ModelProfile) -> Iterator[_Tile]:
    training = profile.training
    spent = training.get(metrics.COMPUTE.name)
    if spent is not None:
        estimate, bound = estimate_of(training), bound_of(training)
        steps, audited = training.get(metrics.STEPS.name), training.get(metrics.AUDITED.name)
        audits = f"; audited {audited:,} of {steps:,} steps" if steps and audited else ""
        note = f"{estimate or f'FLOPs of the whole training: {spent:,}'}{audits}"
        yield _Tile("Compute spent", f"{bound}{si(spent)}", note, is_warning=bool(estimate or bound))
    mfu = training.get(metrics.MFU.name)
    if mfu is not None:
        yield _Tile("MFU", percent(mfu / 100), "of the device's peak, at the training's end; recomputation left out")


def _flops_note(profile: ModelProfile) -> str:
    bound = profile.bound
    per_sample = share(profile.forward_flops, profile.batch_size)
    # With one sample, both figures are the same.
    of_sample = f", {bound}{si(per_sample)} per sample" if per_sample is not None and profile.batch_size != 1 else ""
    return f"{bound}{profile.forward_flops:,}{of_sample}"


def _forward_share(profile: ModelProfile, step_ms: float) -> str:
    part = share(profile.forward_ms, step_ms)
    return "" if part is None else f"forward is {percent(part)} of it"


def _rate_tile(profile: ModelProfile) -> Iterator[_Tile]:
    """Yield a tile with the FLOP/s of the forward.

    If the peak is known, the tile compares the two.
    """
    rate = achieved_flops_per_s(profile.forward_flops, profile.forward_ms)
    # A rate of 0 is that of a model without FLOPs, not of a slow one.
    if rate is None or not rate:
        return
    peak = profile.peak_flops_per_s
    if peak is None:
        yield _Tile("Achieved FLOP/s", si(rate), "in the forward; the device's peak is not known")
    elif rate > peak:
        note = f"more than the device's peak of {si(peak, 'FLOP/s')}: not believable"
        yield _Tile("Achieved FLOP/s", "above peak", note, is_warning=True)
    else:
        yield _Tile("Achieved FLOP/s", si(rate), f"{percent(rate / peak)} of the peak, {si(peak, 'FLOP/s')}")


def _top(profile: ModelProfile) -> list[dict[str, Any]]:
    """Return the rows of the modules with the most FLOPs.

    All bars have one scale, the largest share of either.
    """
    nodes = widest_work(profile, TOP)
    # The node of all small modules may be larger than any named one: its bars end at the edge.
    named = [node for node in nodes if node.type or not node.path.startswith("…")]
    shares = [share(node.flops, profile.forward_flops) for node in named]
    shares += [share(node.forward_ms, profile.forward_ms) for node in named]
    largest = max(filter(None, shares), default=1.0)
    rows = []
    for node in nodes:
        flops, time = share(node.flops, profile.forward_flops), share(node.forward_ms, profile.forward_ms)
        rows.append(
            {
                "name": node.path or profile.name,
                "type": f"{node.modules:,} × {node.type}" if node.type and node.modules > 1 else node.type,
                "flops": f"{at_least(node.unknown_calls > 0)}{si(node.flops)}",
                "flops_share": percent(flops),
                "flops_bar": min(100.0, 100 * (flops or 0.0) / largest),
                "time": milliseconds(node.forward_ms),
                "time_share": percent(time),
                "time_bar": min(100.0, 100 * (time or 0.0) / largest),
                "is_timed": node.forward_ms is not None,
            }
        )
    return rows


@dataclass(slots=True)
class _Work:
    """FLOPs and milliseconds of several modules together.

    Attributes:
        modules: number of modules; None for work between modules.
        flops: FLOPs.
        forward_ms: milliseconds of their forwards.
    """

    modules: int | None = 0
    flops: int = 0
    forward_ms: float = 0.0

    def add(self, other: _Work) -> None:
        self.modules = (self.modules or 0) + (other.modules or 0)
        self.flops += other.flops
        self.forward_ms += other.forward_ms


def _types(profile: ModelProfile) -> list[dict[str, str]]:
    """Return FLOPs and time by type of innermost module.

    The type with the most time comes first. The last row is the work between and around the modules.
    """
    by_type: defaultdict[str, _Work] = defaultdict(_Work)
    inside = _Work()
    for row in measured_leaves(profile):
        work = _Work(1, row.flops, row.forward_ms or 0.0)
        by_type[row.type or row.path].add(work)
        inside.add(work)
    ranked = sorted(by_type.items(), key=lambda item: -item[1].forward_ms)
    parts, small = ranked[:TYPES], ranked[TYPES:]
    if small:
        small_types = _Work()
        for _, work in small:
            small_types.add(work)
        parts.append((f"{len(small):,} other types", small_types))
    if parts:
        # The times of modules can add up to more than the time of the call around them.
        rest_ms = max(0.0, (profile.forward_ms or 0.0) - inside.forward_ms)
        parts.append(("between and around them", _Work(None, profile.forward_flops - inside.flops, rest_ms)))
    return [
        {
            "type": kind,
            "modules": "" if work.modules is None else f"{work.modules:,}",
            "flops_share": percent(share(work.flops, profile.forward_flops)),
            "time_share": percent(share(work.forward_ms, profile.forward_ms)),
        }
        for kind, work in parts
    ]


def _agreement(profile: ModelProfile) -> dict[str, str] | None:
    """Return the rank correlation and a sentence on it; None without times."""
    modules = len(measured_leaves(profile))
    if not modules:
        return None
    correlation = rank_correlation(profile)
    if correlation is None:
        return {"value": "", "sentence": "Too few modules were timed, or all are alike: there is no order to compare."}
    return {
        "value": f"{correlation:.2f}",
        "sentence": f"rank correlation of FLOPs and time over {modules:,} innermost modules: {in_words(correlation)}.",
    }


def _slow(profile: ModelProfile) -> list[dict[str, Any]]:
    """Return the rows of modules that are slow for their FLOPs."""
    places = {row.path: index for index, row in enumerate(profile.modules)}
    return [
        {
            # The row of a fold is that of its first module.
            "index": places[node.row.path],
            "name": node.path or profile.name,
            "type": f"{node.modules:,} × {node.type}" if node.modules > 1 else node.type,
            "time_share": percent(share(node.forward_ms, profile.forward_ms)),
            "flops_share": percent(share(node.flops, profile.forward_flops) or 0.0),
        }
        for node in slow_for_their_flops(profile, SLOW)
    ]


def _operator(record: dict[str, Any]) -> dict[str, Any]:
    # The 0 of an unknown operator is no figure, so it is never shown.
    is_unknown, part = record["status"] == "unknown" or record["flops"] is None, record["flops_share"]
    return {
        "name": record["operator"],
        "family": record["family"],
        "calls": f"{record['calls']:,}",
        "flops": "?" if is_unknown else si(record["flops"]),
        "exact": "" if is_unknown else f"{record['flops']:,}",
        "share": "?" if is_unknown else percent(part),
        "bar": 0.0 if is_unknown else min(100.0, 100 * (part or 0.0)),
        "status": record["status"],
    }


def _meanings(profile: ModelProfile) -> dict[str, str]:
    """Return explanations of the page's terms, as they apply to this profile."""
    elementwise = "with" if profile.config.get("flops.elementwise") else "without"
    meanings = {
        "FLOPs": "2 per multiply-add of matrix products, convolutions, attention, recurrent layers, factorizations "
        "and operators of your own, and nothing else: what a clock and a peak are compared with.",
        "MACs": "The count of fvcore: 1 per multiply-add, with normalization and resampling, and "
        f"{elementwise} elementwise operators. It stands in an open row of the table.",
        "FLOPs per byte": "FLOPs over the bytes that operators read and write, as if nothing stayed in a "
        "cache. Where it is low, memory sets the pace.",
    }
    if profile.latency is not None:
        text = timing_includes(profile.latency.how)
        meanings["time"] = f"{text[0].upper()}{text[1:]}. It contains the modules inside, as all figures of a row do."
        meanings["slow for their FLOPs"] = "Innermost modules whose share of the time exceeds their share of the FLOPs."
    if profile.is_lower_bound:
        meanings[">="] = "Something inside has no count: the figure is a lower bound."
    if profile.upper_bounds:
        meanings["<="] = "The work of something inside depends on data, and counts as its maximum: an upper bound."
    if profile.bound == "<> ":
        meanings["<>"] = "Both: something has no count, and something counts as its maximum."
    return meanings


def _conditions(profile: ModelProfile) -> dict[str, str]:
    values = {"phase": profile.phase, "batch size": profile.batch_size, **profile.config}
    return {key: NOTHING if value in (None, "", []) else _as_text(value) for key, value in values.items()}


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
