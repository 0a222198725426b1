"""The runs in a database of MLflow's, by queries that only read.

MLflow's own store is not asked: opening it makes tables that are missing, a default experiment, and in some versions a
folder for artifacts.
"""

from __future__ import annotations

import math
import shlex
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from flopcallback.runs import RunsError, without_password
from flopcallback_mlflow.content import Content, has_history

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Engine

__all__ = ["Database"]

# Bytes 18 and 19 of a SQLite file, in the mode that keeps a write-ahead log (https://sqlite.org/fileformat2.html).
WRITE_AHEAD = b"\x02\x02"


class Database:
    """A database of MLflow's, checked to be of the installed version.

    Its address is one of SQLAlchemy's.

    Raises:
        RunsError: it cannot be opened, is not MLflow's, or has the tables of another version.
    """

    def __init__(self, address: str) -> None:
        from sqlalchemy.engine import make_url
        from sqlalchemy.exc import ArgumentError

        try:
            url = make_url(address)
        except (ArgumentError, ValueError) as error:
            raise RunsError(f"{without_password(address)} is no address of a database") from error
        self._address = address
        self._shown = without_password(address)
        self._file: Path | None = None
        if url.get_backend_name() == "sqlite":
            self._file = Path(url.database or "")
            self._shown = str(self._file)
            if not self._file.is_file():
                shown = f"sqlite:///{self._file}"
                raise RunsError(
                    f"{shown}: there is no file {self._file}; an absolute path has four slashes, sqlite:////…"
                )
        with self._connected() as connection:
            self._require_schema(connection)

    def experiments(self) -> list[tuple[str, str]]:
        """Return ids and names of the active experiments."""
        from mlflow.store.tracking.dbmodels.models import SqlExperiment

        with self._connected() as connection:
            rows = _rows(connection, SqlExperiment, ("experiment_id", "name"), lifecycle_stage="active")
        return [(str(id_), name) for id_, name in rows]

    def runs(self, experiments: Sequence[str]) -> Iterator[tuple[str, Callable[[], Content]]]:
        """Yield the active runs of experiments, oldest first.

        Each is an id and the function that reads the run.
        """
        from mlflow.store.tracking.dbmodels.models import SqlRun

        columns = ("start_time", "run_uuid", "name", "experiment_id")
        with self._connected() as connection:
            rows = _rows(connection, SqlRun, columns, lifecycle_stage="active")
        for _, id_, name, experiment in sorted(rows, key=lambda row: (row[0] or 0, row[1])):
            if str(experiment) in experiments:
                yield id_, partial(self._content, id_, name)

    def _content(self, run: str, name: str | None) -> Content:
        from mlflow.store.tracking.dbmodels import models

        with self._connected() as connection:
            last = _rows(connection, models.SqlLatestMetric, ("key", "value", "is_nan"), run_uuid=run)
            params, tags = (
                dict(_rows(connection, model, ("key", "value"), run_uuid=run))
                for model in (models.SqlParam, models.SqlTag)
            )
            columns = ("timestamp", "key", "step", "value", "is_nan")
            points = _rows(connection, models.SqlMetric, columns, run_uuid=run)
        # Of several values at one step, the last logged has to come last.
        points.sort(key=lambda point: point[0] or 0)
        return Content(
            name or run,
            metrics={key: math.nan if is_nan else value for key, value, is_nan in last},
            params=params,
            tags=tags,
            points=[
                (key, step, math.nan if is_nan else value) for _, key, step, value, is_nan in points if has_history(key)
            ],
        )

    @contextmanager
    def _connected(self) -> Iterator[Connection]:
        from sqlalchemy.exc import DBAPIError, SQLAlchemyError

        try:
            with self._engine() as engine, engine.connect() as connection:
                yield connection
        except DBAPIError as error:
            raise RunsError(f"{self._shown} is no database that MLflow could read: {error.orig}") from error
        except SQLAlchemyError as error:
            raise RunsError(f"{self._shown} is no database that MLflow could read: {error}") from error

    @contextmanager
    def _engine(self) -> Iterator[Engine]:
        from sqlalchemy import NullPool, create_engine

        if self._file is None:
            engine = create_engine(self._address, poolclass=NullPool)
            yield engine
            engine.dispose()
            return
        with _read_only(self._file) as uri:
            yield create_engine("sqlite://", creator=lambda: sqlite3.connect(uri, uri=True), poolclass=NullPool)

    def _require_schema(self, connection: Connection) -> None:
        """Check that the tables are those of the installed MLflow.

        Raises:
            RunsError: they are not.
        """
        import mlflow
        from alembic.script import ScriptDirectory
        from mlflow.store.tracking.dbmodels.initial_models import Base
        from sqlalchemy import inspect, text

        tables = set(inspect(connection).get_table_names())
        # Those of the first MLflow that kept runs in a database; all later ones have them.
        for table in ("experiments", *Base.metadata.tables, "alembic_version"):
            if table not in tables:
                raise RunsError(f"{self._shown} is no database of MLflow's: it has no table of {table}")
        revisions = ScriptDirectory(str(Path(mlflow.__file__).parent / "store" / "db_migrations"))
        versions = list(connection.execute(text("SELECT version_num FROM alembic_version")).scalars())
        if versions == revisions.get_heads():
            return
        if len(versions) == 1 and versions[0] in {revision.revision for revision in revisions.walk_revisions()}:
            raise RunsError(
                f"{self._shown} has the tables of an older MLflow, and is left as it is. To bring them up to date, "
                f"make a copy of it, then run: mlflow db upgrade {self._upgradable()}"
            )
        # MLflow has dropped none of its first columns.
        for name, table in Base.metadata.tables.items():
            if not set(table.columns.keys()) <= {column["name"] for column in inspect(connection).get_columns(name)}:
                raise RunsError(f"{self._shown} is no database of MLflow's: its table of {name} has other columns")
        raise RunsError(
            f"{self._shown} has tables that MLflow {mlflow.__version__} does not know, and is left as it is. A newer "
            "one made them: pip install --upgrade mlflow"
        )

    def _upgradable(self) -> str:
        return shlex.quote(self._shown if self._file is None else f"sqlite:///{self._file.resolve()}")


def _rows(connection: Connection, model: Any, columns: Sequence[str], **equal: str) -> list[tuple[Any, ...]]:
    """Return columns of a table where other columns have the given values."""
    from sqlalchemy import select

    query = select(*(getattr(model, column) for column in columns)).filter_by(**equal)
    return [tuple(row) for row in connection.execute(query)]


@contextmanager
def _read_only(file: Path) -> Iterator[str]:
    """Yield an address under which a SQLite file is only read.

    A database with a write-ahead log is more than one file, and even a connection that only reads makes those that are
    missing, and leaves them behind.
    """
    log, index = (file.with_name(f"{file.name}-{suffix}") for suffix in ("wal", "shm"))
    with file.open("rb") as opened:
        has_log = opened.read(20)[18:] == WRITE_AHEAD
    if not has_log or index.exists():
        yield f"{file.resolve().as_uri()}?mode=ro"
    elif not log.exists() or not log.stat().st_size:
        # All is in the file itself, and nobody has it open.
        yield f"{file.resolve().as_uri()}?mode=ro&immutable=1"
    else:
        with TemporaryDirectory(prefix="flopcallback-") as folder:
            for each in (file, log):
                shutil.copy(each, folder)
            yield f"{(Path(folder) / file.name).as_uri()}?mode=ro"
