"""The tables of modules and operators for trackers that show records as they are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flopcallback.profile import columns

if TYPE_CHECKING:
    from flopcallback.profile.model_profile import ModelProfile

__all__ = ["module_table", "operator_table"]


def module_table(profile: ModelProfile) -> list[dict[str, Any]]:
    """Return the rows of `module_records()` for a page with room for a few columns.

    Columns that a reader wants first come first: times, of a training step where they are known, and FLOPs. The root
    has the model's name.
    """
    named = [{**record, **_named(profile, record)} for record in profile.module_records()]
    has_steps = any(row.time is not None for row in profile.modules)
    return _by_lead(named, columns.COLUMNS, first=("path",) if has_steps else ("path", "forward_ms", "latency_share"))


def _named(profile: ModelProfile, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the paths in a record of which the root's is the model's name."""
    return {key: profile.name if record[key] == "" else record[key] for key in ("path", "parent")}


def operator_table(profile: ModelProfile) -> list[dict[str, Any]]:
    """Return the rows of `operator_records()` for such a page."""
    return _by_lead(profile.operator_records(), columns.OPERATOR_COLUMNS)


def _by_lead(
    records: Sequence[Mapping[str, Any]], table: Sequence[columns.Column], first: Sequence[str] = ()
) -> list[dict[str, Any]]:
    places = {column.key: column.lead for column in table if column.lead}
    rest = sorted(records[0] if records else (), key=lambda name: places.get(name, math.inf))
    names = [*(name for name in first if name in rest), *(name for name in rest if name not in first)]
    return [{name: record[name] for name in names} for record in records]
