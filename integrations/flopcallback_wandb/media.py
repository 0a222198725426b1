"""What W&B shows of a profile in panels of its own: tables, charts and report; and an artifact with the whole of it."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import wandb

from flopcallback.profile.columns import text_columns
from flopcallback.profile.numbers import finite
from flopcallback.reporting import measured_leaves, widest_work

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from wandb.plot.custom_chart import CustomChart

    from flopcallback.reporting import ModelProfile

    Records = Sequence[Mapping[str, Any]]

__all__ = ["artifact", "charts", "report", "tables"]

Item = TypeVar("Item")

BARS = 20
LONGEST_ARTIFACT_NAME = 128


def tables(profile: ModelProfile) -> dict[str, wandb.Table]:
    """`flops/modules` and `flops/operators`, those that have rows."""
    records = {"flops/modules": profile.module_records(), "flops/operators": profile.operator_records()}
    return {name: _table(_cut(rows)) for name, rows in records.items() if rows}


def charts(profile: ModelProfile) -> dict[str, CustomChart]:
    """`flops/by_module`, bars; `flops/latency`, a point per innermost module that was timed. Those that have any."""
    bars = [{"path": node.path or profile.name, "FLOPs": node.flops} for node in widest_work(profile, BARS)]
    points = [
        {"path": row.path or profile.name, "hardware FLOPs": row.hw_flops, "forward ms": row.forward_ms}
        for row in _largest(measured_leaves(profile), wandb.Table.MAX_ROWS, key=lambda row: row.hw_flops)
    ]
    drawn = {}
    # The data of a chart is a table too: split_table keeps it out of the section that the chart is in.
    if bars:
        title = "FLOPs by module"
        drawn["flops/by_module"] = wandb.plot.bar(_table(bars), "path", "FLOPs", title, split_table=True)
    if points:
        x, y, title = "hardware FLOPs", "forward ms", "FLOPs against time, module by module"
        drawn["flops/latency"] = wandb.plot.scatter(_table(points), x, y, title, split_table=True)
    return drawn


def report(page: str) -> wandb.Html:
    """The page as it is: W&B would put a style sheet of its own, from the network, into its head."""
    return wandb.Html(page, inject=False)


def artifact(profile: ModelProfile, page: str, run_id: str, prefix: str) -> wandb.Artifact:
    """The profile as JSON, whole and exact, and the page; one name for each run, phase and prefix."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", f"{profile.file_stem}-{run_id}-{prefix}".rstrip("-/"))
    made = wandb.Artifact(name[:LONGEST_ARTIFACT_NAME], type="flopcallback")
    with tempfile.TemporaryDirectory() as folder:
        for suffix, text in (("json", profile.to_json(indent=1) + "\n"), ("html", page)):
            file = Path(folder) / f"{profile.file_stem}.{suffix}"
            file.write_text(text, encoding="utf-8")
            made.add_file(str(file))  # Copies it.
    return made


def _table(records: Records) -> wandb.Table:
    """The records as W&B's table, of columns whose types do not depend on the rows.

    W&B would write NaN into its JSON, which is none then.
    """
    columns: list[str | int] = list(records[0])
    # W&B would guess from the rows, and a column may be empty in all of them.
    texts = {column.key for column in text_columns()}
    kinds = [str if column in texts else float for column in columns]
    data = [[finite(record.get(str(column))) for column in columns] for record in records]
    return wandb.Table(columns=columns, data=data, dtype=kinds)


def _cut(records: Records) -> Records:
    """As many records as W&B shows, those with the most FLOPs, and at the end how many more there are.

    W&B itself would keep the first ones and say nothing.
    """
    limit = wandb.Table.MAX_ROWS
    if len(records) <= limit:
        return records
    name = next(iter(records[0]))
    more = {name: f"… {len(records) - limit + 1:,} more"}
    return [*_largest(records, limit - 1, key=lambda record: record["flops"]), more]


def _largest(items: Sequence[Item], limit: int, key: Callable[[Item], int]) -> list[Item]:
    """At most `limit` of the items, in their order."""
    ranked = sorted(range(len(items)), key=lambda index: -key(items[index]))
    return [items[index] for index in sorted(ranked[:limit])]
