"""The catalogue's database: opened, brought to the present schema, and listened to.

The one place that makes SQLAlchemy engines and knows Alembic. A database that does not answer is told apart from one
with another schema: the first may come back, the second needs a person.
"""

from __future__ import annotations

import select
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import psycopg
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session

import drservice
from drservice.errors import CatalogueError, CatalogueSchemaError, CatalogueUnreachableError

_CONNECTION = {
    "connect_timeout": "10",
    "application_name": "drservice",
    "keepalives": "1",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "4",
    "tcp_user_timeout": "60000",
    "options": "-c timezone=UTC",
}
"""libpq's parameters for what the URL leaves open: a silent network is noticed within about a minute."""
_POOL_SECONDS = 10
_POOL_SIZE = 5
_MIGRATION_LOCK = 0x6472736572766963
"""Advisory lock of whoever brings the schema up ("drservic"): two processes may start at the same moment."""


_migrating = threading.Lock()
"""Alembic keeps what it works on in its modules: two threads of a process would work on each other's database."""


class Database:
    """A pool of connections to the catalogue; threads may share it, forked processes may not.

    Nothing is connected before the first session.

    Raises:
        CatalogueError: the URL is none for PostgreSQL.
    """

    def __init__(self, url: str, *, pool_size: int = _POOL_SIZE) -> None:
        self._url = _parse(url)
        self._parameters: dict[str, Any] = {
            name: value for name, value in _CONNECTION.items() if name not in self._url.query
        }
        self._engine = create_engine(
            self._url.set(drivername="postgresql+psycopg"),
            pool_pre_ping=True,
            pool_size=pool_size,
            pool_timeout=_POOL_SECONDS,
            connect_args=self._parameters,
        )

    @property
    def url(self) -> str:
        """The ``postgresql://`` URL with its password: for other libraries that connect, never for people."""
        return self._url.render_as_string(hide_password=False)

    def __str__(self) -> str:
        """Name the database without its password."""
        return self._url.render_as_string(hide_password=True)

    @contextmanager
    def session(self) -> Iterator[Session]:
        """Work in one transaction: committed at the end, rolled back on any error.

        Objects stay readable after the end. ``session.connection()`` is the connection, for what must be written in
        the same transaction by another library.

        Raises:
            CatalogueUnreachableError: the database does not answer, or stopped answering; nothing was committed unless
                the connection broke during the commit itself.
        """
        with self._translated(), Session(self._engine, expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """Work on a bare connection in one transaction (schema and bulk work).

        Raises:
            CatalogueUnreachableError: as for :meth:`session`.
        """
        with self._translated(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def listening(self, channel: str) -> Iterator[Notifications]:
        """Hear what is announced on ``channel`` from now on, over a connection of its own.

        Raises:
            CatalogueUnreachableError: as for :meth:`session`.
        """
        try:
            opened = psycopg.connect(self.url, autocommit=True, **self._parameters)
            with closing(opened):
                opened.execute(psycopg.sql.SQL("LISTEN {}").format(psycopg.sql.Identifier(channel)))
                yield Notifications(opened)
        except psycopg.OperationalError as error:
            raise self._unreachable(error) from error

    def close(self) -> None:
        """Close every idle connection; the object may be used again."""
        self._engine.dispose()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (OperationalError, InterfaceError, PoolTimeoutError) as error:
            raise self._unreachable(error) from error
        except DBAPIError as error:
            if error.connection_invalidated:
                raise self._unreachable(error) from error
            raise

    def _unreachable(self, error: Exception) -> CatalogueUnreachableError:
        cause = getattr(error, "orig", None) or error
        lines = str(cause).strip().splitlines() or [type(cause).__name__]
        return CatalogueUnreachableError(f"the catalogue {self} does not answer: {lines[0]}")


class Notifications:
    """What is announced on a channel while somebody listens."""

    def __init__(self, connection: psycopg.Connection[tuple[object, ...]]) -> None:
        self._connection = connection

    def wait(self, seconds: float) -> list[str]:
        """Return the payloads that have come, oldest first; waits up to ``seconds`` for the first.

        Announcements made before the listening began, or while it was broken, are not repeated: read the tables once
        after each beginning.
        """
        payloads = self._come()
        if payloads:
            return payloads
        # psycopg's own waiting looks ten times a second; a node that idles shall sleep.
        ready = select.poll()
        ready.register(self._connection.fileno(), select.POLLIN)
        return self._come() if ready.poll(max(seconds, 0.0) * 1000) else []

    def _come(self) -> list[str]:
        return [heard.payload for heard in self._connection.notifies(timeout=0.0)]


def open_catalogue(url: str, *, pool_size: int = _POOL_SIZE) -> Database:
    """Open a catalogue whose schema is this program's.

    Raises:
        CatalogueUnreachableError: it does not answer.
        CatalogueSchemaError: it has no schema yet, an older one, or one this program does not know.
    """
    database = Database(url, pool_size=pool_size)
    try:
        _require_present_schema(database)
    except BaseException:
        database.close()
        raise
    return database


def migrate(url: str, revision: str = "head") -> None:
    """Bring a catalogue to ``revision``: all of it in one transaction, one process at a time.

    Raises:
        CatalogueUnreachableError: it does not answer; it is as it was.
        CatalogueSchemaError: it is of a newer program; it is as it was.
    """
    database = Database(url, pool_size=1)
    config = migration_config()
    try:
        with _migrating, database.connection() as connection:
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
            present = MigrationContext.configure(connection).get_current_heads()
            script = ScriptDirectory.from_config(config)
            known = {known.revision for known in script.walk_revisions()}
            if not known.issuperset(present):
                raise _schema_error(database, present, script)
            config.attributes["connection"] = connection
            command.upgrade(config, revision)
    finally:
        database.close()


def migration_config() -> Config:
    """Return Alembic's configuration, which names the folder of the migrations."""
    config = Config()
    config.set_main_option("script_location", str(migrations_folder()).replace("%", "%%"))
    return config


def migrations_folder() -> Path:
    """Find the migrations: beside the package in a checkout, else where the installed distribution put them.

    Raises:
        CatalogueError: this installation has none.
    """
    checkout = Path(drservice.__path__[0]).parent
    if (checkout / "pyproject.toml").is_file() and (checkout / "migrations" / "env.py").is_file():
        return checkout / "migrations"
    return _installed_migrations(metadata.files("drservice") or [])


def _installed_migrations(files: list[metadata.PackagePath]) -> Path:
    for file in files:
        if file.parts[-3:] == ("drservice", "migrations", "env.py"):
            return Path(str(file.locate())).resolve().parent
    raise CatalogueError(
        "the migrations of the catalogue are not installed", hint="This installation is not whole: install it again."
    )


def _require_present_schema(database: Database) -> None:
    with database.connection() as connection:
        present = MigrationContext.configure(connection).get_current_heads()
    script = ScriptDirectory.from_config(migration_config())
    if present != tuple(script.get_heads()):
        raise _schema_error(database, present, script)


def _schema_error(database: Database, present: tuple[str, ...], script: ScriptDirectory) -> CatalogueSchemaError:
    known = {known.revision for known in script.walk_revisions()}
    if not present:
        return CatalogueSchemaError(f"the catalogue {database} has no schema yet")
    if not known.issuperset(present):
        return CatalogueSchemaError(
            f"the catalogue {database} has schema {', '.join(present)}, which this program does not know",
            hint="A newer drservice has changed it: upgrade this host too.",
        )
    return CatalogueSchemaError(
        f"the catalogue {database} has schema {', '.join(present)}; this program needs {script.get_current_head()}"
    )


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:
        # The text may hold a password: it is not repeated.
        raise CatalogueError("the URL of the catalogue cannot be read") from error
    if parsed.drivername not in {"postgresql", "postgres", "postgresql+psycopg"}:
        raise CatalogueError(f"the catalogue is PostgreSQL; {parsed.drivername}:// is something else")
    return parsed.set(drivername="postgresql")
