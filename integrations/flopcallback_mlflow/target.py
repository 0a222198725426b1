"""The MlflowClient and the run for a user's target."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from flopcallback.trackers import within

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["client_and_run", "is_local"]

ANSWER_S = 5.0
"""Seconds that a server may take to say whether it has a run; a training does not begin before."""

PAIR = "Give the pair of a client and its run: (MlflowClient(), run_id)."


def client_and_run(target: Any, run_id: Any = None) -> tuple[MlflowClient, str]:
    """Return the client and the run id of a target.

    `MLflowTracker` documents the possible targets and errors.
    """
    # MLflow's fluent functions that log are never used: without an active run, as under Lightning's logger, they start
    # one.
    mlflow = _mlflow()
    if isinstance(target, tuple) and len(target) == 2 and run_id is None:
        target, run_id = target
    if isinstance(target, mlflow.MlflowClient):
        if not isinstance(run_id, str):
            raise TypeError(f"MLflowTracker: an MlflowClient came with {run_id!r} for the id of a run. {PAIR}")
        return target, run_id
    if run_id is not None:
        raise TypeError(f"MLflowTracker: a run_id goes with an MlflowClient, not with {target!r:.80}. {PAIR}")
    if isinstance(target, str):
        target = _active_run(target)
    if isinstance(target, mlflow.entities.Run):
        return _client_of(target.info.run_id), target.info.run_id
    # Lightning's logger, of either package: the first access makes the run where there is none yet.
    client: Any = getattr(target, "experiment", None)
    logger_run_id = getattr(target, "run_id", None) if isinstance(client, mlflow.MlflowClient) else None
    if isinstance(logger_run_id, str):
        return client, logger_run_id
    raise TypeError(
        f"MLflowTracker: {target!r:.80} is no run of MLflow's. {PAIR} A Run, the string 'mlflow' for the active run, "
        "and Lightning's MLFlowLogger do as well."
    )


def is_local(client: MlflowClient, run_id: str) -> bool:
    """Return whether numbers and files of a run are written to local files."""
    from mlflow.exceptions import MlflowException

    if not _is_of_files(client.tracking_uri):
        return False
    try:
        return _is_of_files(client.get_run(run_id).info.artifact_uri)
    except MlflowException:  # there is no such run: an error of the first call that writes
        return True


def _is_of_files(address: str) -> bool:
    scheme = urlsplit(address).scheme.partition("+")[0]
    return scheme in ("", "file", "sqlite") or len(scheme) == 1  # one letter is a drive of Windows


def _mlflow() -> Any:
    """Import MLflow."""
    try:
        # A folder `mlflow` beside the script would be imported as an empty package, so more than the name is imported.
        import mlflow.entities
        from mlflow import MlflowClient  # noqa: F401
    except ImportError as error:
        raise ModuleNotFoundError("MLflowTracker needs MLflow: pip install mlflow", name="mlflow") from error
    return mlflow


def _active_run(name: str) -> Any:
    import mlflow

    if name != "mlflow":
        raise TypeError(f'MLflowTracker: the string {name!r:.80} is no run; "mlflow" is the active one. {PAIR}')
    run = mlflow.active_run()
    if run is None:
        raise RuntimeError(
            'MLflowTracker: "mlflow" is the active run, and none is active in this thread. Stand inside '
            f"`with mlflow.start_run():`. Or: {PAIR[0].lower()}{PAIR[1:]}"
        )
    return run


def _client_of(run_id: str) -> MlflowClient:
    """Return a client of the current store that has this run.

    A `Run` does not say which store it came from.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    client = mlflow.MlflowClient()
    try:
        within(ANSWER_S, lambda: client.get_run(run_id))
    except TimeoutError:
        pass  # a slow server is no reason to wait: what it does not take later is kept in files
    except MlflowException as error:
        # Any other error, such as one of the connection, is not about the run.
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise ValueError(
            f"MLflowTracker: the run {run_id} is not in {mlflow.get_tracking_uri()}, where MLflow looks. Give the pair "
            "of the client that made it and its id: (client, run_id)."
        ) from error
    return client
