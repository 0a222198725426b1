"""The difference of two profiles: table, plain text, Markdown and JSON."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from flopcallback.profile.columns import shown_in
from flopcallback.profile.diff import Change, Figures, ProfileDiff
from flopcallback.profile.model_profile import ModelProfile
from flopcallback.reporting.caption import at_least
from flopcallback.reporting.text.markdown import escaped, markdown_table
from flopcallback.reporting.units import NOTHING, milliseconds, one_line, percent, si

if TYPE_CHECKING:
    from rich.console import RenderableType

    from flopcallback.profile.columns import Shown

__all__ = ["diff_record", "diff_text", "markdown_diff", "rich_diff", "signed_percent"]

_TEXTS = ("module", "type")
ARROW = " → "


def rich_diff(diff: ProfileDiff, *, max_rows: int = 30) -> RenderableType:
    """Build totals and changed modules for `rich.console.Console.print`."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    heads, rows = _table(diff, max_rows)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, header_style="bold")
    for head in heads:
        is_text = head in _TEXTS
        table.add_column(Text(head), justify="left" if is_text else "right", no_wrap=not is_text, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    first, *totals = _totals(diff)
    parts: list[RenderableType] = [Text(first, style="bold"), *map(Text, totals), ""]
    parts += [table, ""] if rows else []
    return Group(*parts, *(Text(note, style="yellow") for note in _notes(diff, max_rows)))


def diff_text(diff: ProfileDiff, *, width: int = 120, max_rows: int = 30) -> str:
    """Write totals and changed modules as plain text."""
    from rich.console import Console

    console = Console(width=width, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(rich_diff(diff, max_rows=max_rows))
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def markdown_diff(diff: ProfileDiff, *, max_rows: int = 30) -> str:
    """Write totals and changed modules as Markdown."""
    heads, rows = _table(diff, max_rows)
    first, *totals = map(escaped, _totals(diff))
    notes = [f"- {escaped(note)}" for note in _notes(diff, max_rows)]
    parts = [f"**{first}**", "\n".join(f"- {line}" for line in totals), "\n".join(notes)]
    return "\n\n".join(filter(None, [*parts[:2], markdown_table(heads, rows) if rows else "", parts[2]]))


def diff_record(diff: ProfileDiff) -> dict[str, Any]:
    """Return the diff as what JSON can hold.

    It has the totals of both profiles and every change with the figures of both sides. Integers are exact.
    """
    return {
        "flopcallback_diff": 2,  # version of this format
        "before": _record(diff.before),
        "after": _record(diff.after),
        "changes": [
            {"status": change.status, **dataclasses.asdict(change), "flops_change": change.flops}
            for change in diff.changes
        ],
        "notes": list(diff.notes),
        "new_unknown": list(diff.new_unknown),
    }


def _record(profile: ModelProfile) -> dict[str, Any]:
    return {
        "name": profile.name,
        "flops": profile.forward_flops,
        "macs": profile.forward_macs,
        "params": _root_count(profile, "params"),
        "activations": _root_count(profile, "activations"),
        "bytes": _root_count(profile, "bytes"),
        "train_step_flops": None if profile.step is None else profile.step.total,
        "forward_ms": profile.forward_ms,
        "is_lower_bound": profile.is_lower_bound,
        "is_upper_bound": bool(profile.upper_bounds),
        "input_shapes": profile.config.get("flops.input_shapes"),
        "batch_size": profile.batch_size,
    }


def _root_count(profile: ModelProfile, name: str) -> int:
    return 0 if profile.root is None else int(getattr(profile.root, name))


# --- Lines around the table -------------------------------------------------------------------------------------------


def _totals(diff: ProfileDiff) -> list[str]:
    """Return the lines above the table: FLOPs first, then other known totals."""
    before, after = diff.before, diff.after
    bounds = before.bound, after.bound
    flops = before.forward_flops, after.forward_flops
    first = f"{one_line(after.name)}: {bounds[0]}{flops[0]:,}{ARROW}{bounds[1]}{flops[1]:,} FLOPs{_diff(*flops)}"
    lines = [first]
    for name, word in (("params", "parameters"), ("activations", "activations"), ("bytes", "bytes")):
        old, new = _root_count(before, name), _root_count(after, name)
        lines.append(f"{word}: {old:,}{ARROW}{new:,}{_diff(old, new)}" if old != new else f"{word}: {old:,}, as before")
    if before.step is not None and after.step is not None:
        steps = before.step.total, after.step.total
        lines.append(f"train step: {steps[0]:,}{ARROW}{steps[1]:,} FLOPs{_diff(*steps)}")
    if before.forward_ms is not None and after.forward_ms is not None:
        times = f"{milliseconds(before.forward_ms)}{ARROW}{milliseconds(after.forward_ms)}"
        lines.append(f"forward ms: {times} ({signed_percent(before.forward_ms, after.forward_ms)})")
    return lines


def _diff(before: int, after: int) -> str:
    if before == after:
        return " (no change)"
    return f" ({after - before:+,}, {signed_percent(before, after)})" if before else f" ({after - before:+,})"


def _notes(diff: ProfileDiff, max_rows: int) -> list[str]:
    """Return what the table leaves out, and the conditions that differ."""
    notes = []
    if not diff.changes:
        notes.append("no module changed")
    if hidden := diff.changes[max_rows:]:
        modules = sum(change.modules for change in hidden)
        notes.append(f"and {modules:,} more modules, {_signed(sum(change.flops for change in hidden))} FLOPs together")
    if diff.new_unknown:
        notes.append(f"unknown now, so counted as 0: {', '.join(diff.new_unknown)}")
    return [one_line(note) for note in (*notes, *diff.notes)]


def signed_percent(before: float, after: float) -> str:
    """Return the change in percent of `before`, such as `"+3.1 %"`.

    It is `"new"` if there was nothing before.
    """
    if before == after:
        return "0 %"
    if not before:
        return "new"
    # Not a difference of floats, which would lose the change of a large integer.
    change = float((Fraction(after) - Fraction(before)) / Fraction(before))
    return f"{'+' if change > 0 else '-'}{percent(abs(change))}"


# --- The table --------------------------------------------------------------------------------------------------------


def _table(diff: ProfileDiff, max_rows: int) -> tuple[list[str], list[list[str]]]:
    """Return the headings of columns that are not empty, and the cells.

    Only the first `max_rows` changes are included.
    """
    rows = [_cells(diff, change) for change in diff.changes[:max_rows]]
    is_timed = diff.before.forward_ms is not None and diff.after.forward_ms is not None
    # Times of one side alone would look like a change.
    untimed = set() if is_timed else {shown.heading for shown in shown_in("diff") if shown.form == "ms"}
    heads = [head for head in (rows[0] if rows else ()) if head not in untimed and any(row[head] for row in rows)]
    return heads, [[row[head] for head in heads] for row in rows]


def _cells(diff: ProfileDiff, change: Change) -> dict[str, str]:
    """Return the cells of a change by heading.

    FLOPs have both sides and the change, times have both sides, and all others only the change.
    """
    before, after = change.before, change.after
    # An added or removed module has nothing to be a percentage of.
    share = signed_percent(before["flops"], after["flops"]) if before and after and change.flops else ""
    cells = {
        "module": _name(diff, change),
        "type": one_line(f"{change.modules:,} × {change.type}" if change.modules > 1 else change.type),
        "FLOPs": _flops(before) if before == after else f"{_flops(before)}{ARROW}{_flops(after)}",
        "change": _signed(change.flops),
        "% of before": share,
    }
    others = [shown for shown in shown_in("diff") if shown.place.rank == 0 and shown.key != "flops"]
    return cells | {shown.heading: _change(shown, before, after) for shown in others}


def _change(shown: Shown, before: Figures | None, after: Figures | None) -> str:
    old, new = (None if side is None else side[shown.key] for side in (before, after))
    if shown.form == "ms":
        texts = milliseconds(old), milliseconds(new)
        # Measured on neither side: own figures of containers have no time.
        return "" if set(texts) == {NOTHING} else ARROW.join(texts)
    return _signed((new or 0) - (old or 0))


def _name(diff: ProfileDiff, change: Change) -> str:
    sign = {"added": "+ ", "removed": "- ", "changed": ""}[change.status]
    own = " (own operators)" if change.is_own else ""
    return one_line(sign + (change.path or diff.after.name) + own)


def _flops(side: Figures | None) -> str:
    return "–" if side is None else at_least(side["unknown_calls"] > 0) + si(side["flops"])


def _signed(change: int) -> str:
    return f"{'+' if change > 0 else '-'}{si(abs(change))}" if change else ""
