"""The HTML page of a profile: one file that loads nothing.

Trackers that show HTML show it, and it can be kept in a folder or sent by mail.
"""

from __future__ import annotations

import base64
import json
import zlib
from typing import TYPE_CHECKING, Any

from flopcallback.profile.rows import achieved_flops_per_s, share
from flopcallback.reporting.caption import at_least, footer, headline, in_words, timing_includes
from flopcallback.reporting.figures.axes import PALETTE
from flopcallback.reporting.figures.rates import RATE_COLOURS
from flopcallback.reporting.figures.scatter import scatter
from flopcallback.reporting.findings import findings
from flopcallback.reporting.flops_and_time import agreement, slow_for_their_flops
from flopcallback.reporting.page.environment import template
from flopcallback.reporting.page.icicle import Icicle
from flopcallback.reporting.page.own_work import WAITING
from flopcallback.reporting.page.page_rows import page_rows
from flopcallback.reporting.page.page_table import table_data
from flopcallback.reporting.page.tiles import figures, tiles
from flopcallback.reporting.tree import lines, widest_work
from flopcallback.reporting.units import NOTHING, milliseconds, percent, si
from flopcallback.reporting.verdict import verdict_line

if TYPE_CHECKING:
    from flopcallback.profile.model_profile import ModelProfile
    from flopcallback.reporting.figures.scatter import Point
    from flopcallback.reporting.findings import Finding

__all__ = ["html_page"]

# Types, slow modules, lines without scripts and unknown operators that the page lists.
TYPES, SLOW, PLAIN_LINES, UNKNOWN = 9, 6, 60, 100

PACKED_FROM = 200_000
"""Characters of data from which they are packed, so that a page of 5,000 modules stays below a megabyte."""


def html_page(profile: ModelProfile) -> str:
    """Render a profile as one HTML file that needs no network.

    It has a finding, tiles, an icicle of FLOPs and time, FLOPs against time, a table of all modules that opens, sorts
    and searches, operators, unknowns, and the conditions of the count. Parts that need times are left out of a profile
    without any. All names are escaped, and integers of any size are exact, as text.
    """
    rows = page_rows(profile)
    icicle = Icicle(profile, rows)
    drawn = scatter(profile, len(PALETTE))
    told = findings(profile)
    return template("page.html.jinja").render(
        profile=profile,
        sentence=told[0].text if told else _sentence(profile),
        # The first tile says how noisy the times are.
        advice=[_advice(profile, finding) for finding in told[1:] if finding.rule != "noise"],
        subtitle=headline(profile).removeprefix(f"{profile.name}, "),
        engines=_engines(profile),
        differences=[] if profile.verdict is None else profile.verdict.differences,
        palette=PALETTE,
        rate_colours=RATE_COLOURS,
        scale=icicle.scale,
        icicle=icicle,
        waiting=_waiting(icicle),
        tiles=tiles(profile),
        figures=list(figures(profile)),
        types=icicle.types(TYPES),
        scatter=drawn,
        points=[] if drawn is None else [_point(profile, icicle, point) for point in drawn.points],
        agreement=_agreement(profile),
        slow=_slow(profile),
        data=_packed({"table": table_data(profile, rows) if profile.modules else None, "icicle": icicle.data()}),
        plain_lines=_plain_lines(profile),
        operators=[_operator(record) for record in profile.operator_records()],
        unknown=list(profile.unknown.items())[:UNKNOWN],
        more_unknown=max(0, len(profile.unknown) - UNKNOWN),
        meanings=_meanings(profile),
        notes=footer(profile),
        conditions=_conditions(profile),
    )


def _packed(data: dict[str, Any]) -> dict[str, Any]:
    """Write the data for the scripts as JSON, packed where it is long."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    if len(text) < PACKED_FROM:
        return {"is_packed": False, "value": data}
    return {"is_packed": True, "value": base64.b64encode(zlib.compress(text.encode(), 9)).decode()}


def _sentence(profile: ModelProfile) -> str:
    """Say where most of the FLOPs are; empty without any."""
    nodes = widest_work(profile, 2)
    if not nodes:
        return ""
    flops, time = percent(share(nodes[0].flops, profile.forward_flops)), share(nodes[0].forward_ms, profile.forward_ms)
    takes = "" if time is None else f" and takes {percent(time)} of the time"
    return f"{nodes[0].path or profile.name} has {flops} of the FLOPs{takes}"


def _advice(profile: ModelProfile, finding: Finding) -> dict[str, Any]:
    places = {row.path: index for index, row in enumerate(profile.modules)}
    return {"text": finding.text, "index": None if finding.path is None else places.get(finding.path)}


def _waiting(icicle: Icicle) -> dict[str, str]:
    """Return the kinds of waiting that the icicle shows, with their words in styles."""
    data = icicle.data()
    shown = set(data["waiting"].values()) if data else set()
    return {name: word for name, word in WAITING.items() if word in shown}


def _point(profile: ModelProfile, icicle: Icicle, point: Point) -> dict[str, Any]:
    """Return a point of the scatter in the colour of its FLOP/s, with what it says."""
    rate = achieved_flops_per_s(point.flops, point.ms)
    place = icicle.scale.place(rate) if icicle.scale else None
    figures = [f"{milliseconds(point.ms)} ms", f"{point.flops:,} FLOPs", si(rate, "FLOP/s") if rate else ""]
    return {
        "x": point.x,
        "y": point.y,
        "index": point.index,
        "colour": "none" if place is None else f"q{place}",
        "is_above_peak": point.is_above_peak,
        "name": point.name or profile.name,
        "said": " · ".join(filter(None, (*figures, f"bound by {point.bound}" if point.bound else ""))),
    }


def _plain_lines(profile: ModelProfile) -> list[dict[str, str]]:
    """Return the lines of the table for readers without scripts."""
    return [
        {
            "guide": line.guide,
            "name": line.node.label,
            "type": line.node.type,
            "flops": f"{at_least(line.node.unknown_calls > 0)}{si(line.node.flops)}",
            "share": percent(share(line.node.flops, profile.forward_flops)),
            "step": milliseconds(line.node.row.time.total) if line.node.row.time else "",
            "time": "" if line.node.forward_ms is None else milliseconds(line.node.forward_ms),
        }
        for line in lines(profile, max_rows=PLAIN_LINES)
    ]


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


def _agreement(profile: ModelProfile) -> dict[str, str] | None:
    """Return the rank correlation, a sentence on it, and what orders time best; None without times."""
    found = agreement(profile)
    if not found.points:
        return None
    best = ""
    if len(found.orderings) > 1:
        ranked = ", ".join(f"{name} {value:.2f}" for name, value in found.orderings.items())
        best = f"What orders them by time{found.over and f', {found.over}'}, best first: {ranked}."
    if found.correlation is None:
        sentence = "Too few modules were timed, or all are alike: there is no order to compare."
        return {"value": "", "sentence": sentence, "best": best}
    return {
        "value": f"{found.correlation:.2f}",
        "sentence": f"rank correlation of FLOPs and time over {found.points:,} modules and operators, weighted by "
        f"time. They have {percent(found.covered)} of it: {in_words(found.correlation)}.",
        "best": best,
    }


def _slow(profile: ModelProfile) -> list[dict[str, Any]]:
    """Return the rows of what is slow for its FLOPs."""
    places = {row.path: index for index, row in enumerate(profile.modules)}
    return [
        {
            # The row of a fold is that of its first module.
            "index": places.get(point.row.path, 0),
            "name": point.path or profile.name,
            "type": "" if point.operator else f"{_times(point.modules)}{point.row.type}",
            "time_share": percent(point.time_share),
            "flops_share": percent(point.flops_share),
        }
        for point in slow_for_their_flops(profile, SLOW)
    ]


def _times(modules: int) -> str:
    return f"{modules:,} × " if modules > 1 else ""


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
        meanings["slow for their FLOPs"] = "What has more of the time than of the FLOPs."
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
