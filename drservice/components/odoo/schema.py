"""Which of Odoo's tables a database really has, asked without trusting anything that lies in it.

A recovered database is hostile: a view or a function may bear a table's name, and an operator in ``public`` may stand
in for PostgreSQL's own. So tables are looked up in ``pg_class`` by kind, every name in a question is qualified, and
the session sees no schema but ``pg_catalog`` while it asks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from drservice.components.postgres.asking import Asking
from drservice.errors import PostgresError

MODULES = "ir_module_module"
_TABLES_SQL = (
    "select c.relname, greatest(c.reltuples, 0)::bigint, string_agg(a.attname::text, ' ')"
    " from pg_class c join pg_namespace n on n.oid = c.relnamespace join pg_attribute a on a.attrelid = c.oid"
    " where n.nspname = 'public' and c.relkind in ('r', 'p') and a.attnum > 0 and not a.attisdropped"
    " group by c.oid, c.relname, c.reltuples"
)
_VERSION_SQL = "select latest_version from public.ir_module_module where name = 'base'"


@dataclass(frozen=True, slots=True, kw_only=True)
class OdooSchema:
    """The tables of one database. No views, and none of another schema than ``public``."""

    columns: Mapping[str, frozenset[str]]
    estimated_rows: Mapping[str, int]
    """As the planner believes; 0 where nobody has looked yet."""

    @property
    def is_odoo(self) -> bool:
        """Whether it is a database of Odoo's at all."""
        return self.has(MODULES, "name", "state", "latest_version")

    def has(self, table: str, *columns: str) -> bool:
        """Tell whether the table is there with these columns."""
        return table in self.columns and self.columns[table].issuperset(columns)

    def missing(self, needs: Mapping[str, str]) -> str | None:
        """Return the first table or column that is not there; ``None`` = nothing is missing.

        Args:
            needs: columns by table, separated by spaces.
        """
        for table, columns in needs.items():
            if table not in self.columns:
                return f"there is no table public.{table}"
            for column in columns.split():
                if column not in self.columns[table]:
                    return f"public.{table} has no column {column}"
        return None


def read_schema(source: Asking) -> OdooSchema:
    """Return the real tables of the database that is asked.

    Raises:
        PostgresError: it cannot be asked.
    """
    columns: dict[str, frozenset[str]] = {}
    estimated: dict[str, int] = {}
    for table, rows, names in source.scan(_TABLES_SQL):
        if table is not None and rows is not None and names is not None:
            columns[table] = frozenset(names.split(" "))
            estimated[table] = int(rows)
    return OdooSchema(columns=columns, estimated_rows=estimated)


def read_version(source: Asking, schema: OdooSchema) -> str | None:
    """Return the version of ``base``, such as ``19.0.1.3``; ``None`` where it cannot be told.

    Raises:
        PostgresError: the table cannot be read.
    """
    rows = list(source.scan(_VERSION_SQL)) if schema.is_odoo else []
    return rows[0][0] if len(rows) == 1 else None


@contextmanager
def pinned(source: Asking) -> Iterator[Asking]:
    """Let the session see ``pg_catalog`` and nothing else until the block ends.

    Raises:
        PostgresError: the session cannot be set.
    """
    (before,) = source.session.row("select pg_catalog.current_setting('search_path')")
    source.session.row("select pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', false)")
    try:
        yield source
    finally:
        # Where the connection broke in the block there is nothing left to set, and its own error is told.
        with suppress(PostgresError):
            source.session.row("select pg_catalog.set_config('search_path', %s, false)", (before,))
