"""Real catalogues for tests: a database of its own per test, made from a migrated template in a moment.

Use it through a fixture (see ``tests/integration/catalogue/conftest.py``)::

    server = CatalogueServer(cache=tmp_path_factory.getbasetemp())   # once per module: one PostgreSQL cluster
    database = server.database()                                     # drservice.catalogue.database.Database, at head
    set_clock(database, instant)                                     # drservice_now() stands still there
    server.close()
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from sqlalchemy import text

from drservice.catalogue.database import Database, migrate, open_catalogue
from tests.doubles.cluster import Cluster, ClusterMaker

_TEMPLATE = "catalogue_template"


class CatalogueServer:
    """One PostgreSQL server that holds any number of catalogues."""

    def __init__(self, *, cache: Path) -> None:
        self._maker = ClusterMaker(cache=cache)
        self._opened: list[Database] = []
        self._made = 0
        self.cluster: Cluster = self._maker.make(settings={"max_connections": "100"})
        self.cluster.start()

    def url(self, name: str) -> str:
        """Return the URL of a database of this server."""
        return f"postgresql://postgres@/{name}?host={self.cluster.sock}"

    def empty(self) -> str:
        """Make an empty database and return its URL."""
        self._made += 1
        name = f"catalogue_{self._made}"
        self.cluster.sql(f"CREATE DATABASE {name}")
        return self.url(name)

    def database(self) -> Database:
        """Make a catalogue with this program's schema."""
        if not self.cluster.sql("SELECT 1 FROM pg_database WHERE datname = %s", [_TEMPLATE]):
            self.cluster.sql(f"CREATE DATABASE {_TEMPLATE}")
            migrate(self.url(_TEMPLATE))
        self._made += 1
        name = f"catalogue_{self._made}"
        self.cluster.sql(f"CREATE DATABASE {name} TEMPLATE {_TEMPLATE}")
        self._opened.append(open_catalogue(self.url(name), pool_size=20))
        return self._opened[-1]

    def close(self) -> None:
        """Close what was opened and end the server."""
        for database in self._opened:
            database.close()
        self._maker.close()


def set_clock(database: Database, instant: datetime) -> None:
    """Let the catalogue's clock stand still at ``instant``."""
    with database.connection() as connection:
        connection.execute(
            text(
                "CREATE OR REPLACE FUNCTION drservice_now() RETURNS timestamptz LANGUAGE sql VOLATILE"
                f" AS $$SELECT timestamptz '{instant.isoformat()}'$$"
            )
        )
