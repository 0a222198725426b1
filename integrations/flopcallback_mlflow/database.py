"""The runs in a database of MLflow's, by queries that only read.

MLflow's own store is not asked: opening it makes tables that are missing, a default experiment, and in some versions a
folder for artifacts.
"""

from __future__ import annotations

import math
import reprlib
import shlex
import shutil
import sqlite3
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property, partial
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

from flopcallback.runs import RunsError, without_password
from flopcallback_mlflow.content import Content, has_history

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Engine
    from sqlalchemy.exc import DBAPIError

__all__ = ["Database"]

# Bytes 18 and 19 of a SQLite file, in the mode that keeps a write-ahead log (https://sqlite.org/fileformat2.html).
WRITE_AHEAD = b"\x02\x02"
# Bytes of the header of a write-ahead log, which is another one each time the log begins anew.
LOG_HEADER = 32

# How often a database is copied again that was written to meanwhile.
MOST_COPIES = 10


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
            if not url.database or url.database == ":memory:":
                raise RunsError(
                    f"{self._shown} names no file; sqlite:///mlflow.db is one in the working directory, and an "
                    "absolute path has four slashes, sqlite:////…"
                )
            self._file = Path(url.database)
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
        return [(str(id_), str(name)) for id_, name in rows]

    def runs(self, experiments: Sequence[str]) -> Iterator[tuple[str, Callable[[], Content]]]:
        """Yield the active runs of experiments, oldest first.

        Each is an id and the function that reads the run.
        """
        from mlflow.store.tracking.dbmodels.models import SqlRun

        columns = ("start_time", "run_uuid", "name", "experiment_id")
        with self._connected() as connection:
            rows = _rows(connection, SqlRun, columns, lifecycle_stage="active")
        for start, id_, name, experiment in sorted(rows, key=_age):
            if str(experiment) in experiments:
                yield id_, partial(self._content, id_, name, start)

    def _content(self, run: str, name: str | None, start: object) -> Content:
        """Read a run.

        SQLite keeps what it is given in a column of any type, so each value is checked.

        Raises:
            ValueError: one of them is not of its type.
        """
        from mlflow.store.tracking.dbmodels import models

        with self._connected() as connection:
            last = _rows(connection, models.SqlLatestMetric, ("key", "value", "is_nan"), run_uuid=run)
            params, tags = (
                _rows(connection, model, ("key", "value"), run_uuid=run) for model in (models.SqlParam, models.SqlTag)
            )
            columns = ("timestamp", "key", "step", "value", "is_nan")
            points = _rows(connection, models.SqlMetric, columns, run_uuid=run)
        _require(int, "start_time", [start])
        _require(int, "a timestamp", (point[0] for point in points))
        _require(str, "a name", (row[0] for rows in (last, params, tags) for row in rows))
        _require(str, "a name", (point[1] for point in points))
        for key, value, _ in last:
            _require((int, float), key, [value])
        for key, value in (*params, *tags):
            _require(str, key, [value])
        # Of several values at one step, the last logged has to come last.
        points.sort(key=lambda point: point[0] or 0)
        return Content(
            name or run,
            metrics={key: math.nan if is_nan else value for key, value, is_nan in last},
            params={key: value or "" for key, value in params},
            tags={key: value or "" for key, value in tags},
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
            self._require_no_journal(error)
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
        uri = self._uri
        yield create_engine("sqlite://", creator=lambda: sqlite3.connect(uri, uri=True), poolclass=NullPool)

    @cached_property
    def _uri(self) -> str:
        """Address under which the SQLite file is only read.

        A database with a write-ahead log is more than one file. Even a connection that only reads makes those that are
        missing and writes to the index, so it is given copies, which are there as long as this object.
        """
        file = self._file
        assert file is not None
        log = _beside(file, "wal")
        with file.open("rb") as opened:
            has_log = opened.read(20)[18:] == WRITE_AHEAD
        if not has_log:
            return f"{file.resolve().as_uri()}?mode=ro"
        folder = Path(mkdtemp(prefix="flopcallback-"))
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        for _ in range(MOST_COPIES):
            if not log.exists() or not log.stat().st_size:
                return f"{file.resolve().as_uri()}?mode=ro&immutable=1"  # all is in the file itself
            with suppress(FileNotFoundError):  # the log is removed by whoever closes the database last
                before = _state(file, log)
                for each in (file, log):
                    shutil.copyfile(each, folder / each.name)
                if _state(file, log) == before:
                    return f"{(folder / file.name).as_uri()}?mode=ro"
        raise RunsError(f"{self._shown} is written to all the time; try again later, or give the address of its server")

    def _require_no_journal(self, error: DBAPIError) -> None:
        """Check that a failure comes from no interrupted write.

        Raises:
            RunsError: it does. SQLite undoes such a write when it opens the file, and would have to change it.
        """
        if self._file is None:
            return
        journal = _beside(self._file, "journal")
        # SQLite's word if it is not interrupted but going on; Python 3.10 has no number for it.
        if "locked" not in str(error.orig) and journal.is_file() and journal.stat().st_size:
            raise RunsError(
                f"{self._shown}: a write to it was interrupted, and {journal.name} has what it takes to undo it; open "
                "it once with MLflow, which does so"
            ) from error

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
        if not versions:
            raise RunsError(
                f"{self._shown} does not say which MLflow made its tables (alembic_version is empty), and is left as "
                "it is"
            )
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


def _age(row: tuple[Any, ...]) -> tuple[float, str]:
    """Return what runs are sorted by."""
    start, id_, *_ = row
    return start if isinstance(start, int) else 0, str(id_)


def _require(kind: type | tuple[type, ...], name: object, values: Iterable[object]) -> None:
    """Check that values of a row are of a type, or missing.

    Raises:
        ValueError: one is not.
    """
    for value in values:
        if value is not None and not isinstance(value, kind):
            what = "no text" if kind is str else "no number"
            raise ValueError(f"{name} is {reprlib.repr(value)}, which is {what}")


def _beside(file: Path, suffix: str) -> Path:
    return file.with_name(f"{file.name}-{suffix}")


def _state(file: Path, log: Path) -> tuple[object, ...]:
    """Return what no write changes but one at the log's end."""
    found = file.stat()
    with log.open("rb") as opened:
        return found.st_size, found.st_mtime_ns, opened.read(LOG_HEADER)
