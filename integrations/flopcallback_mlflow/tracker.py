"""MLflowTracker: profiles and numbers in a run, written through an MlflowClient."""

from __future__ import annotations

import io
import json
import math
import re
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from flopcallback.profile.metrics import METRICS, placed, unsaid
from flopcallback.profile.numbers import finite
from flopcallback.reporting import (
    latency_chart,
    measured_leaves,
    module_chart,
    module_table,
    operator_table,
    report_files,
)
from flopcallback.runs import without_password
from flopcallback_mlflow.target import client_and_run, is_local

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from matplotlib.figure import Figure
    from mlflow.entities import Metric

    from flopcallback.reporting import ModelProfile
    from flopcallback.trackers import Request

__all__ = ["MLflowTracker"]

# Tag that the run page reads to offer "View as table". Not `MlflowClient.log_table`, which sets it too, but imports
# pandas and, when called again, appends to the table.
LOGGED_ARTIFACTS = "mlflow.loggedArtifacts"

# Numbers of the count itself, which params have.
COUNTED = tuple(metric.name for metric in METRICS if metric.when == "count")

# Characters. MLflow itself would cut a longer tag, with a warning that contains the whole value.
LONGEST_TAG = 8000
CUT = " … (cut; whole in report.json)"

# Rows. A browser takes over ten seconds to open such a table, and over a minute for 10,000 rows (mlflow 3.17). A longer
# table is complete in its file, which the page shows as text.
LONGEST_TABLE = 2000


class MLflowTracker:
    """A tracker that writes to an MLflow run.

    It writes metrics, tags, params, two tables, figures and a report. Numbers that are not charted are tags. Those of
    the first count are params, too, which MLflow can draw other runs' metrics against, and which no later fit of the
    run can change.

    A metric in MLflow is a float64, and a number that is not finite is logged as NaN: MLflow would keep an infinity as
    the largest float. Exact integers are in tags, tables and `flops/report.json`. The run belongs to the caller and is
    not ended.

    A method returns when everything is written. Only a training, by `send_by`, has requests to a server made in a
    thread of their own.

    Args:
        target: an `MlflowClient`, with `run_id` or as a pair `(client, run_id)`; a `Run` in the store of
            `mlflow.get_tracking_uri()`; the string `"mlflow"` for the active run; or Lightning's `MLFlowLogger`.
        run_id: id of the run if `target` is a client.
        prefix: prefix of the names of tags and of the paths of files.

    Raises:
        TypeError: `target` is none of these, or a client without a run.
        ValueError: the run is not in the current store.
        RuntimeError: `target` is `"mlflow"`, and no run is active.
        ModuleNotFoundError: MLflow is not installed.
    """

    def __init__(self, target: Any, run_id: str | None = None, *, prefix: str = "") -> None:
        self.client, self.run_id = client_and_run(target, run_id)
        self.prefix = prefix
        self._tags: dict[str, str] = {}  # numbers that are tags, as last written
        self._send: Callable[[Request], object] = _at_once
        self._is_local = False  # True once the store is known to be files of this machine

    def send_by(self, send: Callable[[Request], None]) -> bool:
        """Give every request to `send` from now on, unless the store is local files."""
        self._is_local = is_local(self.client, self.run_id)
        if not self._is_local:
            self._send = send
        return not self._is_local

    def log_scalars(self, values: Mapping[str, int | float], step: int) -> None:
        """Add one point to each chart, and replace the tags of all other numbers."""
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        charts, kept = placed(values)
        points = [Metric(_legal(name), _storable(value), now_ms, int(step)) for name, value in charts.items()]
        self._log_batch(points, kept)

    def log_profile(self, profile: ModelProfile, step: int) -> None:
        """Write tables, tags, report and figures.

        They replace those of an earlier call for the same phase.

        Raises:
            ModuleNotFoundError: matplotlib is not installed; everything except the figures is written nevertheless.
        """
        tables = {"modules.json": module_table(profile), "operators.json": operator_table(profile)}
        for name, records in tables.items():
            self._write(profile, name, _table(records))
        self._set_tags(profile, {self._path(profile, name): len(records) for name, records in tables.items()})
        self._write_report(profile, (".json", ".md", ".html"), step)
        # Last, since matplotlib may be missing.
        self._draw(profile)

    def log_training(self, profile: ModelProfile) -> None:
        """Replace the report, and write the final numbers as tags.

        A metric is a float64, and no exact integer.
        """
        self._write_report(profile, (".json", ".html"))
        _, kept = placed(profile.training)
        whole = {name: value for name, value in profile.training.items() if isinstance(value, int)}
        self._log_batch([], {self.prefix + name: value for name, value in {**kept, **whole}.items()})
        self._empty_tags(self.prefix, unsaid(profile.training, "log"))

    def page_of(self, profile: ModelProfile) -> str:
        """Return the path of the page, or the run where its files are not local."""
        if self._is_local:
            folder = urlsplit(self.client.get_run(self.run_id).info.artifact_uri)
            return str(Path(unquote(folder.path), self._path(profile, "report.html")))
        return f"run {self.run_id} at {without_password(self.client.tracking_uri)}"

    def close(self) -> None:
        """Do nothing: everything is written, and the caller ends the run."""

    def _log_batch(self, points: Sequence[Metric], numbers: Mapping[str, int | float]) -> None:
        """Write points of charts, and numbers as tags where they are new."""
        from mlflow.entities import RunTag

        tags = {_tag(name): _digits(value) for name, value in numbers.items()}
        new = [RunTag(name, text) for name, text in tags.items() if self._tags.get(name) != text]
        self._tags.update(tags)
        if points or new:
            self._send(lambda: self.client.log_batch(self.run_id, metrics=points, tags=new, synchronous=True))

    def _empty_tags(self, prefix: str, names: Sequence[str]) -> None:
        """Empty tags that an earlier fit has set and that are not true any more; MLflow deletes only one at a time."""
        from mlflow.entities import RunTag

        gone = {_tag(prefix + name) for name in names}

        def write() -> None:
            present = self.client.get_run(self.run_id).data.tags
            stale = [RunTag(name, "") for name in sorted(gone & present.keys()) if present[name]]
            if stale:
                self.client.log_batch(self.run_id, tags=stale, synchronous=True)

        self._send(write)

    def _write(self, profile: ModelProfile, name: str, text: str) -> None:
        path = self._path(profile, name)
        self._send(lambda: self.client.log_text(self.run_id, text, path))

    def _write_report(self, profile: ModelProfile, suffixes: Sequence[str], step: int = 0) -> None:
        for suffix, text in report_files(profile, step, suffixes=suffixes):
            self._write(profile, f"report{suffix}", text)

    def _draw(self, profile: ModelProfile) -> None:
        self._write_figure(module_chart(profile), self._path(profile, "by_module.png"))
        if measured_leaves(profile):
            self._write_figure(latency_chart(profile), self._path(profile, "latency.png"))

    def _write_figure(self, figure: Figure, path: str) -> None:
        """Write a figure, drawn in this thread: matplotlib must not draw in two at a time."""
        picture = io.BytesIO()
        figure.savefig(picture, format="png")
        folder, _, name = path.rpartition("/")

        def write() -> None:
            with tempfile.TemporaryDirectory() as drafts:
                file = Path(drafts, name)
                file.write_bytes(picture.getvalue())
                self.client.log_artifact(self.run_id, str(file), folder or None)

        self._send(write)

    def _path(self, profile: ModelProfile, name: str) -> str:
        # A metric's name may have a colon, but no file's name on Windows.
        return _legal(f"{self.prefix}{profile.phase_prefix}flops/{name}").replace(":", "-")

    def _set_tags(self, profile: ModelProfile, tables: Mapping[str, int]) -> None:
        """Set conditions, and which files are tables; add the numbers of the first count as params.

        Args:
            profile: profile to describe.
            tables: number of rows by path of the file.
        """
        from mlflow.entities import Param, RunTag

        prefix = self.prefix + profile.phase_prefix
        conditions = {_tag(prefix + key): _text(value) for key, value in profile.config.items()}
        numbers = {self.prefix + name: value for name, value in profile.scalars().items()}
        counted = {_tag(prefix + name): _digits(numbers[prefix + name]) for name in COUNTED if prefix + name in numbers}
        self._log_batch([], numbers)
        bare = {name.removeprefix(prefix): value for name, value in numbers.items()}
        self._empty_tags(prefix, unsaid(bare, "count", "window"))

        def write() -> None:
            present = self.client.get_run(self.run_id).data
            # An unknown condition has no tag, except to empty one that an earlier fit has set.
            tags = [RunTag(name, text) for name, text in conditions.items() if text or name in present.tags]
            earlier = json.loads(present.tags.get(LOGGED_ARTIFACTS, "[]"))
            listed = [entry for entry in earlier if entry.get("path") not in tables]
            listed += [{"path": path, "type": "table"} for path, rows in tables.items() if rows <= LONGEST_TABLE]
            tags.append(RunTag(LOGGED_ARTIFACTS, json.dumps(listed)))
            # A param that is there has another value, perhaps, and MLflow would refuse the new one.
            params = [Param(name, text) for name, text in counted.items() if name not in present.params]
            self.client.log_batch(self.run_id, tags=tags, params=params, synchronous=True)

        self._send(write)


def _at_once(request: Request) -> None:
    request()


def _legal(name: str) -> str:
    """Replace what MLflow does not allow in names.

    Other characters become `-`; empty and relative steps of the path are left out.
    """
    steps = re.sub(r"[^\w.\- :/]", "-", name).split("/")
    return "/".join(step for step in steps if step not in ("", ".", ".."))


def _tag(name: str) -> str:
    """Return the name of a tag, which MLflow shows as a path if it has slashes."""
    return _legal(name).replace("/", ".")


def _storable(value: float) -> float:
    return float(value) if math.isfinite(value) else math.nan


def _digits(value: float) -> str:
    """Return a number as a tag shows it: an integer exactly, any other in six digits."""
    return str(value) if isinstance(value, int) else str(float(f"{value:.6g}"))


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST_TAG else text[: LONGEST_TAG - len(CUT)] + CUT


def _table(records: Sequence[Mapping[str, Any]]) -> str:
    """Return records in the JSON that `log_table` writes, with exact integers.

    Columns without any value are left out: the page has room for a handful.
    """
    names = [name for name in (records[0] if records else ()) if any(record[name] is not None for record in records)]
    data = [[_cell(record[name]) for name in names] for record in records]
    return json.dumps({"columns": names, "data": data}, allow_nan=False)


def _cell(value: Any) -> Any:
    """Return a table cell, with floats of four digits.

    The page prints every digit that it gets.

    A number that is not finite is null, as in strict JSON.
    """
    return finite(float(f"{value:.4g}") if isinstance(value, float) else value)
