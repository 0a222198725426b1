"""The runs of a server or a folder, through MLflow's client."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from flopcallback.runs import RunsError, without_password
from flopcallback_mlflow.content import Content, has_history

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

__all__ = ["Files", "Server", "require_answer"]

# Seconds that a server may take to answer.
ANSWER_S = 20


class Server:
    """A tracking server, or another store that MLflow reaches by its address."""

    def __init__(self, address: str) -> None:
        self._address = address

    @contextmanager
    def _client(self) -> Iterator[MlflowClient]:
        from mlflow import MlflowClient

        with _errors_of(self._address):
            yield MlflowClient(self._address)

    def experiments(self) -> list[tuple[str, str]]:
        """Return ids and names of the active experiments."""
        with self._client() as client:
            return [(each.experiment_id, each.name) for each in _pages(client.search_experiments)]

    def runs(self, experiments: Sequence[str]) -> Iterator[tuple[str, Callable[[], Content]]]:
        """Yield the active runs of experiments, oldest first.

        Each is an id and the function that reads the run.
        """
        with self._client() as client:
            oldest_first = ["attributes.start_time ASC"]
            found = list(_pages(client.search_runs, experiment_ids=list(experiments), order_by=oldest_first))
        for run in found:
            yield run.info.run_id, partial(self._content, run)

    def _content(self, run: Run) -> Content:
        id_, data = run.info.run_id, run.data
        with self._client() as client:
            points = [
                (name, point.step, point.value)
                for name in data.metrics
                if has_history(name)
                for point in client.get_metric_history(id_, name)
            ]
        return Content(run.info.run_name or id_, data.metrics, data.params, data.tags, points)


class Files(Server):
    """A folder `mlruns` with the files of runs.

    MLflow makes a folder for deleted experiments wherever it reads: here in a folder of links to those that are there.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder.resolve().as_uri())
        self._folder = folder

    @contextmanager
    def _client(self) -> Iterator[MlflowClient]:
        from mlflow import MlflowClient

        with TemporaryDirectory(prefix="flopcallback-") as links, _errors_of(str(self._folder)):
            for experiment in self._folder.iterdir():
                if (experiment / "meta.yaml").is_file():
                    (Path(links) / experiment.name).symlink_to(experiment.resolve())
            yield MlflowClient(Path(links).as_uri())


@contextmanager
def _errors_of(place: str) -> Iterator[None]:
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        raise RunsError(f"{without_password(place)}: MLflow could not read it: {str(error).strip()}") from error


def _pages(search: Any, **arguments: Any) -> Iterator[Any]:
    token = None
    while True:
        page = search(**arguments, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def require_answer(address: str) -> None:
    """Check that a server answers, with any status.

    MLflow would retry for minutes if there is none.

    Raises:
        RunsError: no server answers.
    """
    # urllib takes a password for a port. A server that asks for one answers all the same.
    plain = re.sub(r"(?<=://)[^/@]*@", "", address).rstrip("/")
    try:
        with urllib.request.urlopen(f"{plain}/health", timeout=ANSWER_S):
            pass
    except urllib.error.HTTPError:
        pass
    except (OSError, ValueError, HTTPException) as error:
        raise RunsError(f"{without_password(address)}: no server answers there ({error})") from error
