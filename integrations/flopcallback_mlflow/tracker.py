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

from flopcallback.profile import columns
from flopcallback.profile.numbers import finite
from flopcallback.reporting import latency_chart, measured_leaves, module_chart, report_files
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

# Characters. MLflow itself would cut a longer tag, with a warning that contains the whole value.
LONGEST_TAG = 8000
CUT = " … (cut; whole in report.json)"

# Rows. A browser takes over ten seconds to open such a table, and over a minute for 10,000 rows (mlflow 3.17). A longer
# table is complete in its file, which the page shows as text.
LONGEST_TABLE = 2000


class MLflowTracker:
    """A tracker that writes to an MLflow run.

    It writes metrics, tags, two tables, figures and a report.

    A metric in MLflow is a float64, and a number that is not finite is logged as NaN: MLflow would keep an infinity as
    the largest float. Exact integers are in tags, tables and `flops/report.json`. No params are written, since a later
    fit of the run could not change them. The run belongs to the caller and is not ended.

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
        # The run's last values from before this tracker, each until its name is logged; None until the first call.
        self._unrepeated: dict[str, float] | None = None
        self._send: Callable[[Request], object] = _at_once

    def send_by(self, send: Callable[[Request], None]) -> bool:
        """Give every request to `send` from now on, unless the store is local files."""
        is_remote = not is_local(self.client, self.run_id)
        if is_remote:
            self._send = send
        return is_remote

    def log_scalars(self, values: Mapping[str, int | float], step: int) -> None:
        """Add one point to each metric.

        The first value under a name is left out if it is already the run's last value: what a second fit counts again
        stays one point.
        """
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        points = [Metric(_legal(name), _storable(value), now_ms, int(step)) for name, value in values.items()]
        self._send(lambda: self._add(points))

    def log_profile(self, profile: ModelProfile, step: int) -> None:
        """Write tables, tags, report and figures.

        They replace those of an earlier call for the same phase.

        Raises:
            ModuleNotFoundError: matplotlib is not installed; everything except the figures is written nevertheless.
        """
        tables = {"modules.json": profile.module_records(), "operators.json": profile.operator_records()}
        for name, records in tables.items():
            self._write(profile, name, _table(records))
        self._set_tags(profile, {self._path(profile, name): len(records) for name, records in tables.items()})
        self._write_report(profile, (".json", ".md", ".html"), step)
        # Last, since matplotlib may be missing.
        self._draw(profile)

    def log_training(self, profile: ModelProfile) -> None:
        """Replace the report, and write exact integers as tags.

        A metric is a float64.
        """
        from mlflow.entities import RunTag

        self._write_report(profile, (".json", ".html"))
        integers = {name: value for name, value in profile.training.items() if isinstance(value, int)}
        tags = [RunTag(_legal(self.prefix + name).replace("/", "."), str(value)) for name, value in integers.items()]
        self._send(lambda: self.client.log_batch(self.run_id, tags=tags, synchronous=True))

    def close(self) -> None:
        """Do nothing: everything is written, and the caller ends the run."""

    def _add(self, points: Sequence[Metric]) -> None:
        if self._unrepeated is None:
            self._unrepeated = dict(self.client.get_run(self.run_id).data.metrics)
        new = [point for point in points if self._unrepeated.pop(point.key, None) != point.value]
        if new:
            self.client.log_batch(self.run_id, metrics=new, synchronous=True)

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
        """Set conditions, exact integers, and which files are tables.

        Args:
            profile: profile to describe.
            tables: number of rows by path of the file.
        """
        from mlflow.entities import RunTag

        prefix = self.prefix + profile.phase_prefix
        integers = {name: value for name, value in profile.scalars().items() if isinstance(value, int)}
        content = {prefix + key: _text(value) for key, value in profile.config.items()}
        content |= {self.prefix + name: str(value) for name, value in integers.items()}
        tags_by_name = {_legal(name).replace("/", "."): text for name, text in content.items()}

        def write() -> None:
            present = self.client.get_run(self.run_id).data.tags
            # An unknown condition has no tag, except to empty one that an earlier fit has set.
            tags = [RunTag(name, text) for name, text in tags_by_name.items() if text or name in present]
            earlier = json.loads(present.get(LOGGED_ARTIFACTS, "[]"))
            listed = [entry for entry in earlier if entry.get("path") not in tables]
            listed += [{"path": path, "type": "table"} for path, rows in tables.items() if rows <= LONGEST_TABLE]
            tags.append(RunTag(LOGGED_ARTIFACTS, json.dumps(listed)))
            self.client.log_batch(self.run_id, tags=tags, synchronous=True)

        self._send(write)


def _at_once(request: Request) -> None:
    request()


def _legal(name: str) -> str:
    """Replace what MLflow does not allow in names.

    Other characters become `-`; empty and relative steps of the path are left out.
    """
    steps = re.sub(r"[^\w.\- :/]", "-", name).split("/")
    return "/".join(step for step in steps if step not in ("", ".", ".."))


def _storable(value: float) -> float:
    return float(value) if math.isfinite(value) else math.nan


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST_TAG else text[: LONGEST_TAG - len(CUT)] + CUT


def _table(records: Sequence[Mapping[str, Any]]) -> str:
    """Return records in the JSON that `log_table` writes, with exact integers."""
    # The page shows only a handful of columns without scrolling.
    places = {column.key: column.lead for column in (*columns.COLUMNS, *columns.OPERATOR_COLUMNS) if column.lead}
    names = sorted(records[0] if records else (), key=lambda name: places.get(name, math.inf))
    data = [[_cell(record[name]) for name in names] for record in records]
    return json.dumps({"columns": names, "data": data}, allow_nan=False)


def _cell(value: Any) -> Any:
    """Return a table cell, with floats of four digits.

    The page prints every digit that it gets.

    A number that is not finite is null, as in strict JSON.
    """
    return finite(float(f"{value:.4g}") if isinstance(value, float) else value)
