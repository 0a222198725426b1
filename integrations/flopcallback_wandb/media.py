"""Tables, figures, report and artifact of a profile in W&B."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import wandb

from flopcallback.profile.columns import text_columns
from flopcallback.profile.numbers import finite
from flopcallback.reporting import latency_chart, measured_leaves, module_chart, module_table, operator_table, pixels

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from flopcallback.reporting import ModelProfile

    Records = Sequence[Mapping[str, Any]]

__all__ = ["artifact", "figures", "report", "tables"]

Item = TypeVar("Item")

# Characters; W&B allows no more.
LONGEST_ARTIFACT_NAME = 128


def tables(profile: ModelProfile) -> dict[str, wandb.Table]:
    """Return `modules` and `operators`, if they have rows."""
    records = {"modules": module_table(profile), "operators": operator_table(profile)}
    return {name: _table(_cut(rows)) for name, rows in records.items() if rows}


def figures(profile: ModelProfile) -> dict[str, wandb.Image]:
    """Return the figures `by_module` and, with times, `latency`.

    They are images: W&B's own charts have neither two bars for a module, nor names of points, nor logarithmic axes, and
    a custom one has to be on the server first.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    drawn = {"by_module": module_chart(profile)}
    if measured_leaves(profile):
        drawn["latency"] = latency_chart(profile)
    return {name: wandb.Image(pixels(figure)) for name, figure in drawn.items()}


def report(page: str) -> wandb.Html:
    """Return the page as a panel of W&B, unchanged."""
    # With `inject`, W&B would add a style sheet from the network.
    return wandb.Html(page, inject=False)


def artifact(profile: ModelProfile, page: str, run_id: str, prefix: str) -> wandb.Artifact:
    """Return an artifact with the page and the exact profile.

    Each run, phase and prefix has an artifact name of its own.
    """
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", f"{profile.file_stem}-{run_id}-{prefix}".rstrip("-/"))
    bundle = wandb.Artifact(name[:LONGEST_ARTIFACT_NAME], type="flopcallback")
    with tempfile.TemporaryDirectory() as folder:
        for suffix, text in (("json", profile.to_json(indent=1) + "\n"), ("html", page)):
            file = Path(folder) / f"{profile.file_stem}.{suffix}"
            file.write_text(text, encoding="utf-8")
            bundle.add_file(str(file))  # copies it
    return bundle


def _table(records: Records) -> wandb.Table:
    """Return records as W&B's table, with column types independent of the rows."""
    columns: list[str | int] = list(records[0])
    # W&B would guess types from the rows, and a column may be empty in all of them.
    texts = {column.key for column in text_columns()}
    kinds = [str if column in texts else float for column in columns]
    # W&B would write NaN, which is not valid JSON.
    data = [[finite(record.get(str(column))) for column in columns] for record in records]
    return wandb.Table(columns=columns, data=data, dtype=kinds)


def _cut(records: Records) -> Records:
    """Return at most as many records as W&B shows.

    These are the records with the most FLOPs, and at the end the number of those left out. W&B itself would keep the
    first ones and say nothing.
    """
    limit = wandb.Table.MAX_ROWS
    if len(records) <= limit:
        return records
    name = next(iter(records[0]))
    remainder = {name: f"… {len(records) - limit + 1:,} more"}
    return [*_largest(records, limit - 1, key=lambda record: record["flops"] or 0), remainder]


def _largest(items: Sequence[Item], limit: int, key: Callable[[Item], int]) -> list[Item]:
    """Return at most `limit` items with the largest keys, in order."""
    ranked = sorted(range(len(items)), key=lambda index: -key(items[index]))
    return [items[index] for index in sorted(ranked[:limit])]
