"""Reads back what a W&B run wrote to its folder, by the program that `wandb leet inspect` runs.

It takes no part in the tests' collection, and imports W&B when it is used.
"""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path


class RunFiles:
    """A finished offline run.

    Attributes:
        rows: of the history, each with what was logged, nested names joined by dots.
        summary, config: as they were at the end.
        kept: the entry of the summary that is ours.
        metrics: what `define_metric` was called with, by name or glob.
        artifacts: by name, their files by path within them.
    """

    def __init__(self, folder: str | Path, wait_s: float = 10.0) -> None:
        self.folder = Path(folder)
        (log,) = self.folder.glob("run-*.wandb")
        records = _records(log)
        end = time.monotonic() + wait_s
        # Written by another process, which may still be at it when `finish()` has returned.
        while not any(record["type"] == "exit" for record in records) and time.monotonic() < end:
            time.sleep(0.02)
            records = _records(log)
        assert records[-1]["type"] == "exit", f"{log} has no end"
        self.rows = [record["history"]["item"] for record in records if record["type"] == "history"]
        self.summary = _last(records, "summary")
        self.kept = self.summary.get("flopcallback", {})
        self.config = {**_last(records, "run", "config"), **_last(records, "config")}
        defined = [record["metric"] for record in records if record["type"] == "metric"]
        self.metrics = {metric.get("name") or metric["glob_name"]: metric for metric in defined}
        made = [record["artifact"] for record in records if record["type"] == "artifact"]
        self.artifacts = [(each["type"], each["name"], _files(each)) for each in made]

    def logged(self, key: str) -> list[int]:
        """The rows, by position, in which a number or a panel stands."""
        return [place for place, row in enumerate(self.rows) if key in row or f"{key}._type" in row]

    def table(self, key: str) -> list[dict[str, object]]:
        """The rows of a table as it was logged last."""
        content = json.loads(self.file(key))
        return [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]

    def file(self, key: str) -> str:
        """The text of a panel's file as it was logged last."""
        return (self.folder / "files" / self.summary[f"{key}.path"]).read_text(encoding="utf-8")


def _records(log: Path) -> list[dict[str, dict]]:
    from wandb.util import get_core_path

    command = [get_core_path(), "leet", "inspect", "--no-observability", "--json", "--run-file", log, log.parent.parent]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in ran.stdout.splitlines()]


def _last(records: list[dict[str, dict]], kind: str, *below: str) -> dict[str, object]:
    """All updates of a kind, one after the other."""
    content: dict[str, object] = {}
    for record in records:
        if record["type"] == kind:
            part = record[kind]
            for key in below:
                part = part.get(key, {})
            content.update(part.get("update", {}))
    return content


def _files(artifact: dict) -> dict[str, str]:
    contents = artifact["manifest"]["contents"]
    return {each["path"]: Path(each["local_path"]).read_text(encoding="utf-8") for each in contents}
