"""A place to write to for every tracker, and what stands there afterwards, told in the same words for all of them.

It takes no part in the tests' collection, and imports a tracker's package when such a place is made.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from wandb_files import RunFiles

from flopcallback.profile.metrics import METRICS, logged_name
from flopcallback.reporting import ModelProfile, si
from flopcallback.trackers import MemoryTracker

FRONTS = {"train": "", "validate": "validate/", "test": "test/", "predict": "predict/"}
"""What stands in front of the names of a phase."""

CHARTS = ("by_module", "latency")


@dataclass
class Found:
    """What a tracker keeps; all but the numbers by phase.

    Attributes:
        scalars: points of charts, as step and value, by the name of the number.
        kept: numbers that are kept once, as they stand there in the end.
        modules: the table of modules, as path and FLOPs, where there is one; the latest, where there are several.
        tables: how many tables of modules with times there are.
        profiles: what `ModelProfile.from_json` makes of the JSON that is kept.
        pages: the HTML.
        charts: the names of those that are there.
    """

    scalars: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    kept: dict[str, int | float] = field(default_factory=dict)
    modules: dict[str, list[tuple[str, Any]]] = field(default_factory=dict)
    tables: dict[str, int] = field(default_factory=dict)
    profiles: dict[str, ModelProfile] = field(default_factory=dict)
    pages: dict[str, str] = field(default_factory=dict)
    charts: dict[str, set[str]] = field(default_factory=dict)


@dataclass
class Place:
    """Where a tracker writes to.

    Attributes:
        target: what `tracker_for` gets.
        read: ends the run, if there is one, and reads back what is there.
        log_own: logs a number of the caller's own at a step.
        shown: the rows that the table of modules has to have.
        draws: whether there are charts.
    """

    target: Any
    read: Callable[[], Found]
    log_own: Callable[[int], object] = lambda step: None
    shown: Callable[[ModelProfile], list[tuple[str, Any]]] = lambda profile: [
        (row.path, row.flops) for row in profile.modules
    ]
    draws: bool = True


def in_six_digits(values: dict[str, int | float]) -> dict[str, Any]:
    """Numbers as they come back at least: MLflow's tags have six digits of what is no integer."""
    return {
        name: pytest.approx(value, rel=1e-5) if isinstance(value, float) else value for name, value in values.items()
    }


# TensorBoard


def tensorboard(folder: Path, writer: Any) -> Place:
    return Place(
        writer,
        lambda: (writer.close(), in_tensorboard(folder))[1],
        lambda step: writer.add_scalar("train/loss", 0.5, step),
        the_most_work,
    )


def the_most_work(profile: ModelProfile) -> list[tuple[str, str]]:
    """Innermost modules, 20 of them, and figures for people: the exact ones are in the file beside the events."""
    rows = [row for row in profile.modules[1:] or profile.modules if row.flops > 0]
    ranked = sorted(rows, key=lambda row: -row.flops)[:20]
    return [(row.path or profile.name, si(row.flops)) for row in ranked]


def in_tensorboard(folder: Path) -> Found:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"tensors": 0, "images": 0, "scalars": 0}).Reload()
    found = in_files(folder)
    found.scalars = {
        logged_name(name): [(point.step, point.value) for point in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }
    if "flopcallback" in events.Tags()["tensors"]:
        for note in events.Tensors("flopcallback"):
            found.kept |= json.loads(note.tensor_proto.string_val[0])
    found.modules, found.tables = {}, {}
    for phase, front in FRONTS.items():
        if f"{front}workload/modules/text_summary" in events.Tags()["tensors"]:
            texts = [
                event.tensor_proto.string_val[0].decode()
                for event in events.Tensors(f"{front}workload/modules/text_summary")
            ]
            found.modules[phase] = _markdown_rows(texts[-1])
            found.tables[phase] = sum("forward ms" in text for text in texts)
        found.charts[phase] = {name for name in CHARTS if f"{front}workload/{name}" in events.Tags()["images"]}
    return found


def hyperparameters_in_tensorboard(folder: Path) -> list[dict[str, float]]:
    """The run's, each time that they were written."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    events = [event for file in sorted(folder.glob("*tfevents*")) for event in EventFileLoader(str(file)).Load()]
    values = [value for event in events for value in event.summary.value if value.tag.endswith("/session_start_info")]
    content = [HParamsPluginData.FromString(value.metadata.plugin_data.content) for value in values]
    return [{name: value.number_value for name, value in each.session_start_info.hparams.items()} for each in content]


def _markdown_rows(text: str) -> list[tuple[str, str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    heads, _, *rows = [[_unescaped(cell) for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines] or [[], []]
    return [(_name(row[heads.index("module")]), row[heads.index("FLOPs")]) for row in rows]


def _name(cell: str) -> str:
    """Without the type, which stands behind the name where there is room."""
    return cell.rpartition(": ")[0] or cell


def _unescaped(cell: str) -> str:
    return unescape(re.sub(r"\\([\\`*_\[\]|])", r"\1", cell.strip())).replace("\N{NO-BREAK SPACE}", " ")


# W&B


def wandb(folder: Path) -> Place:
    run = start_wandb(folder)

    def read() -> Found:
        run.finish()
        return in_wandb(Path(run.dir).parent)

    return Place(run, read, lambda step: run.log({"train/loss": 0.5}), rows_that_wandb_shows)


def start_wandb(folder: Path) -> Any:
    import wandb

    folder.mkdir(exist_ok=True)
    return wandb.init(dir=folder, mode="offline", project="p", settings=wandb_settings())


def wandb_settings() -> Any:
    import wandb

    quiet = {"silent": True, "console": "off", "x_disable_stats": True, "disable_git": True}
    return wandb.Settings(**quiet, disable_job_creation=True)


def rows_that_wandb_shows(profile: ModelProfile) -> list[tuple[str, int | None]]:
    """All up to 10,000; of more, the 9,999 with the most FLOPs and a line that says how many more there are."""
    rows = named_rows(profile)
    if len(rows) <= 10_000:
        return rows
    largest = set(sorted(rows, key=lambda row: -row[1])[:9_999])
    return [*filter(largest.__contains__, rows), (f"… {len(rows) - 9_999:,} more", None)]


def named_rows(profile: ModelProfile) -> list[tuple[str, int]]:
    """All modules, the root by the model's name."""
    return [(row.path or profile.name, row.flops) for row in profile.modules]


def in_wandb(folder: Path) -> Found:
    read, found = RunFiles(folder), Found()
    for row in read.rows:
        step = row.get("workload/step", row.get("trainer/global_step"))
        for name, value in row.items():
            if isinstance(value, (int, float)) or value in ("NaN", "Infinity"):
                found.scalars.setdefault(logged_name(name), []).append((step, float(value)))
    found.kept = dict(read.summary.get("flopcallback", {}))
    for name in [name for name in found.kept if name.endswith("_exact")]:
        found.kept[name.removesuffix("_exact")] = int(found.kept.pop(name))
    for phase, front in FRONTS.items():
        if count := len(read.logged(f"{front}workload/modules")):
            found.modules[phase] = [(row["path"], row["flops"]) for row in read.table(f"{front}workload/modules")]
            found.tables[phase] = count
        if read.logged(f"{front}workload/report"):
            found.pages[phase] = read.file(f"{front}workload/report")
        found.charts[phase] = {name for name in CHARTS if read.logged(f"{front}workload/{name}")}
    for kind, _, files in read.artifacts:
        if kind == "flopcallback":
            (text,) = (text for path, text in files.items() if path.endswith(".json"))
            profile = ModelProfile.from_json(text)
            found.profiles[profile.phase] = profile
    return found


# MLflow


def mlflow(run: Any) -> Place:
    """`run` is the `Run` of mlflow_stores.py."""
    return Place(
        (run.client, run.id),
        lambda: in_mlflow(run.client, run.id),
        lambda step: run.client.log_metric(run.id, "train/loss", 0.5, step=step),
        named_rows,
    )


def in_mlflow(client: Any, run_id: str) -> Found:
    data, found = client.get_run(run_id).data, Found()
    for name in data.metrics:
        points = client.get_metric_history(run_id, name)
        found.scalars[logged_name(name)] = [(point.step, point.value) for point in points]
    for name in (front + metric.name for front in FRONTS.values() for metric in METRICS):
        if text := data.tags.get(name.replace("/", ".")):
            found.kept[name] = int(text) if text.isdecimal() else float(text)
    shown = [each["path"] for each in json.loads(data.tags.get("mlflow.loggedArtifacts", "[]"))]
    for phase, front in FRONTS.items():
        files = {Path(file.path).name for file in client.list_artifacts(run_id, f"{front}flops")}
        found.charts[phase] = {name for name in CHARTS if f"{name}.png" in files}
        if files:
            folder = Path(client.download_artifacts(run_id, f"{front}flops"))
            table = json.loads((folder / "modules.json").read_bytes())
            rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
            found.modules[phase] = [(row["path"], row["flops"]) for row in rows]
            found.tables[phase] = shown.count(f"{front}flops/modules.json")
            found.profiles[phase] = ModelProfile.from_json((folder / "report.json").read_bytes())
            found.pages[phase] = (folder / "report.html").read_text(encoding="utf-8").removesuffix("\n")
    return found


# Files in a folder, and memory


def folder(path: Path) -> Place:
    return Place(path, lambda: in_folder(path), draws=False)


def in_folder(path: Path) -> Found:
    found = in_files(path)
    for line in (path / "scalars.jsonl").read_text(encoding="utf-8").splitlines():
        values = json.loads(line)
        step = values.pop("step")
        for name, value in values.items():
            found.scalars.setdefault(name, []).append((step, float("nan") if value is None else value))
    return with_last(found)


def with_last(found: Found) -> Found:
    """With every number kept as it was logged last, of a place that has no charts."""
    found.kept = {name: points[-1][1] for name, points in found.scalars.items()}
    return found


def in_files(path: Path) -> Found:
    """The profiles and pages that stand in a folder, and the tables that are in the profiles."""
    found = Found()
    for file in path.glob("flopcallback*.json"):
        profile = ModelProfile.from_json(file.read_bytes())
        found.profiles[profile.phase] = profile
        found.modules[profile.phase] = [(row.path, row.flops) for row in profile.modules]
        found.tables[profile.phase] = int(profile.latency is not None)
        found.pages[profile.phase] = file.with_suffix(".html").read_text(encoding="utf-8").removesuffix("\n")
    return found


def memory() -> Place:
    tracker = MemoryTracker()

    def read() -> Found:
        found = Found()
        for step, values in tracker.scalars:
            for name, value in values.items():
                found.scalars.setdefault(name, []).append((step, value))
        for _, profile in tracker.profiles:
            found.profiles[profile.phase] = profile
            found.modules[profile.phase] = [(row.path, row.flops) for row in profile.modules]
        return with_last(found)

    return Place(tracker, read, draws=False)
