"""Stores of MLflow's, a bare SQLite file and a real server on loopback, and what a client finds in a run of theirs.

It takes no part in the tests' collection, and imports MLflow when it is used.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from flopcallback.trackers import tracker_for

if TYPE_CHECKING:
    from collections.abc import Iterator

# Both are read when they are needed. The bar would be drawn for every file that is read back.
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"


def make_database(path: Path) -> Path:
    """A store without runs, to copy: the first use of one takes seconds, for its migrations."""
    from mlflow import MlflowClient

    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@contextmanager
def fluent_state_put_back() -> Iterator[None]:
    """Lightning's logger sets MLflow's global address, as users do; runs that a failed test left active are ended."""
    import mlflow

    before = mlflow.get_tracking_uri()
    try:
        yield
    finally:
        while mlflow.active_run() is not None:
            mlflow.end_run()
        mlflow.set_tracking_uri(before)


class Run:
    """A run of the caller's in an experiment of its own, and what a client finds in it."""

    def __init__(self, uri, folder):
        from mlflow import MlflowClient

        self.uri, self.client = uri, MlflowClient(uri)
        where = None if uri.startswith("http") else folder.as_uri()
        self.experiment = self.client.create_experiment(str(folder), artifact_location=where)
        self.id = self.client.create_run(self.experiment).info.run_id

    def tracker(self, prefix=""):
        return tracker_for((self.client, self.id), prefix=prefix)

    def found(self):
        return self.client.get_run(self.id)

    def tags(self):
        return {name: value for name, value in self.found().data.tags.items() if not name.startswith("mlflow.")}

    def shown_as_tables(self):
        return json.loads(self.found().data.tags["mlflow.loggedArtifacts"])

    def points(self, name):
        return [(point.step, point.value) for point in self.client.get_metric_history(self.id, name)]

    def files(self, folder="flops"):
        return {Path(file.path).name for file in self.client.list_artifacts(self.id, folder)}

    def file(self, path):
        return Path(self.client.download_artifacts(self.id, path)).read_bytes()

    def rows(self, name="modules", folder="flops"):
        """A table, as records, by strict JSON."""
        table = json.loads(self.file(f"{folder}/{name}.json"), parse_constant=pytest.fail)
        assert set(table) == {"columns", "data"}
        return [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]

    def number_in_experiment(self):
        return len(self.client.search_runs([self.experiment]))


@contextmanager
def serving(folder: Path, database: Path, wait_s: float = 120.0) -> Iterator[str]:
    """The address of a server that keeps all it gets in `folder`, and in `database`, until the block ends."""
    port = _free_port()
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{database}", "--artifacts-destination", str(folder / "artifacts")),
    ]
    # The jobs are eight processes more, for what is no part of tracking.
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(
            command, cwd=folder, env={**os.environ, **quiet}, stdout=log, stderr=log, start_new_session=True
        )
        try:
            address = f"http://127.0.0.1:{port}"
            _wait_until_healthy(address, server, folder / "server.log", wait_s)
            yield address
        finally:
            # What it started is in its group.
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def _wait_until_healthy(address: str, server: subprocess.Popen[bytes], log: Path, wait_s: float) -> None:
    end = time.monotonic() + wait_s
    while True:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            if server.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"mlflow server did not come up:\n{log.read_text()}") from None
        time.sleep(0.1)
