"""MLflowTracker: what MLflow can show of a profile, written into a run through an MlflowClient."""

from __future__ import annotations

import json
import math
import re
import time
from typing import TYPE_CHECKING, Any

from flopcallback.profile import columns
from flopcallback.profile.numbers import finite
from flopcallback.reporting import latency_chart, measured_leaves, module_chart, report_files
from flopcallback_mlflow.target import client_and_run

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from flopcallback.reporting import ModelProfile

__all__ = ["MLflowTracker"]

# What the run page reads to offer "View as table"; `MlflowClient.log_table` keeps it too, but appends to the table that
# is there when it is called again, and imports pandas.
LOGGED_ARTIFACTS = "mlflow.loggedArtifacts"

# MLflow cuts a longer one itself, with a warning that has the whole value in it.
LONGEST_TAG = 8000
CUT = " … (cut; whole in report.json)"

# A browser takes over ten seconds to open a table this long, a minute and more for one of 10,000 rows (mlflow 3.17).
# A longer one is whole in its file all the same, and the page shows that as text.
LONGEST_TABLE = 2000


class MLflowTracker:
    """Writes to a run of MLflow's: metrics, tags, two tables, figures and a report.

    A metric in MLflow is a float64, and a number that is not finite is NaN there: MLflow would keep an infinity as the
    largest float. Exact integers stand in tags, tables and `flops/report.json`. No params are written, since a later
    fit of the run could not change them. The run belongs to the caller and is not ended.

    Args:
        target: an `MlflowClient`, with `run_id` or as a pair `(client, run_id)`; a `Run`, which has to be in the store
            of `mlflow.get_tracking_uri()`; the string `"mlflow"`, for the active run; or Lightning's `MLFlowLogger`.
        run_id: the run, where `target` is a client.
        prefix: stands in front of the names of tags and of the paths of files.

    Raises:
        TypeError: `target` is none of these, or a client without a run.
        ValueError: the run is not in the store that is in use.
        RuntimeError: `"mlflow"` while no run is active.
        ModuleNotFoundError: MLflow is not installed.
    """

    def __init__(self, target: Any, run_id: str | None = None, *, prefix: str = "") -> None:
        self.client, self.run_id = client_and_run(target, run_id)
        self.prefix = prefix
        self._earlier: dict[str, float] | None = None

    def log_scalars(self, values: Mapping[str, int | float], step: int) -> None:
        """Adds one point to each metric.

        The first value under a name is left out where it is the latest that the run has under it: what a second fit
        counts again stays one point.
        """
        from mlflow.entities import Metric

        if self._earlier is None:
            self._earlier = dict(self.client.get_run(self.run_id).data.metrics)
        now_ms = int(time.time() * 1000)
        points = [Metric(_legal(name), _storable(value), now_ms, int(step)) for name, value in values.items()]
        new = [point for point in points if self._earlier.pop(point.key, None) != point.value]
        if new:
            self.client.log_batch(self.run_id, metrics=new, synchronous=True)

    def log_profile(self, profile: ModelProfile, step: int) -> None:
        """Writes tables, tags, report and figures; what an earlier call wrote of the same phase is replaced.

        Raises:
            ModuleNotFoundError: matplotlib is not installed; all but the figures is written nevertheless.
        """
        tables = {"modules.json": profile.module_records(), "operators.json": profile.operator_records()}
        for name, records in tables.items():
            self._write(profile, name, _table(records))
        self._set_tags(profile, {self._path(profile, name): len(records) for name, records in tables.items()})
        self._write_report(profile, (".json", ".md", ".html"), step)
        self._draw(profile)

    def log_training(self, profile: ModelProfile) -> None:
        """Writes the report anew, and the exact integers as tags: a metric is a float64."""
        from mlflow.entities import RunTag

        self._write_report(profile, (".json", ".html"))
        integers = {name: value for name, value in profile.training.items() if isinstance(value, int)}
        tags = [RunTag(_legal(self.prefix + name).replace("/", "."), str(value)) for name, value in integers.items()]
        self.client.log_batch(self.run_id, tags=tags, synchronous=True)

    def close(self) -> None:
        """Does nothing: every call has written what it was given, and the run is its owner's to end."""

    def _write(self, profile: ModelProfile, name: str, text: str) -> None:
        self.client.log_text(self.run_id, text, self._path(profile, name))

    def _write_report(self, profile: ModelProfile, suffixes: Sequence[str], step: int = 0) -> None:
        for suffix, text in report_files(profile, step, suffixes=suffixes):
            self._write(profile, f"report{suffix}", text)

    def _draw(self, profile: ModelProfile) -> None:
        self.client.log_figure(self.run_id, module_chart(profile), self._path(profile, "by_module.png"))
        if measured_leaves(profile):
            self.client.log_figure(self.run_id, latency_chart(profile), self._path(profile, "latency.png"))

    def _path(self, profile: ModelProfile, name: str) -> str:
        # A colon may stand in a metric's name, and in no file's on Windows.
        return _legal(f"{self.prefix}{profile.phase_prefix}flops/{name}").replace(":", "-")

    def _set_tags(self, profile: ModelProfile, tables: Mapping[str, int]) -> None:
        """Sets the conditions, the exact integers, and which files are tables; `tables` has the rows of each."""
        from mlflow.entities import RunTag

        present = self.client.get_run(self.run_id).data.tags
        front = self.prefix + profile.phase_prefix
        integers = {name: value for name, value in profile.scalars().items() if isinstance(value, int)}
        content = {front + key: _text(value) for key, value in profile.config.items()}
        content |= {self.prefix + name: str(value) for name, value in integers.items()}
        named = {_legal(name).replace("/", "."): text for name, text in content.items()}
        # What is not known has no tag, but for one that an earlier fit has set.
        tags = [RunTag(name, text) for name, text in named.items() if text or name in present]
        shown = [entry for entry in json.loads(present.get(LOGGED_ARTIFACTS, "[]")) if entry.get("path") not in tables]
        shown += [{"path": path, "type": "table"} for path, rows in tables.items() if rows <= LONGEST_TABLE]
        tags.append(RunTag(LOGGED_ARTIFACTS, json.dumps(shown)))
        self.client.log_batch(self.run_id, tags=tags, synchronous=True)


def _legal(name: str) -> str:
    """The name with what MLflow takes in no name replaced by `-`, and without empty or relative steps in its path."""
    steps = re.sub(r"[^\w.\- :/]", "-", name).split("/")
    return "/".join(step for step in steps if step not in ("", ".", ".."))


def _storable(value: float) -> float:
    return float(value) if math.isfinite(value) else math.nan


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST_TAG else text[: LONGEST_TAG - len(CUT)] + CUT


def _table(records: Sequence[Mapping[str, Any]]) -> str:
    """The records in the shape that `log_table` writes; integers are exact."""
    # The page shows the first handful of columns beside each other and leaves the rest to scrolling.
    places = {column.key: column.lead for column in (*columns.COLUMNS, *columns.OPERATOR_COLUMNS) if column.lead}
    names = sorted(records[0] if records else (), key=lambda name: places.get(name, math.inf))
    data = [[_cell(record[name]) for name in names] for record in records]
    return json.dumps({"columns": names, "data": data}, allow_nan=False)


def _cell(value: Any) -> Any:
    """Times and shares to four digits: the page prints all it gets. What is not finite is null, as in strict JSON."""
    return finite(float(f"{value:.4g}") if isinstance(value, float) else value)
