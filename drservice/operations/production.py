"""What production is asked around a backup or a recovery: where it listens, and which documents its rows refer to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from drservice.components.odoo_filestore.names import is_document
from drservice.components.postgres.asking import Asking
from drservice.components.postgres.connection import connection_parameters
from drservice.environments.interface import Endpoint

_DEFAULT_PORT = "5432"
_DEFAULT_SOCKET = "/var/run/postgresql"
_TYPED = (
    "select count(*) from pg_attribute where attrelid = 'public.ir_attachment'::regclass and attname = 'type'"
    " and not attisdropped"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class References:
    """What the rows of one database refer to."""

    documents: Mapping[str, int] = field(default_factory=dict)
    """Name in the filestore to size in bytes (-1: the row does not say)."""
    in_database: int = 0
    """Attachments whose content is in the database itself."""
    elsewhere: int = 0
    """Attachments under names that are no documents of a filestore: in an object store, say. Not covered."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What people should know about attachments that are not in the filestore, in sentences."""
        told = []
        if self.in_database:
            told.append(f"{self.in_database} attachments are inside the database, and so in its snapshot")
        if self.elsewhere:
            told.append(f"{self.elsewhere} attachments are NOT COVERED: they are kept outside filestore and database")
        return tuple(told)


def endpoints_of(*dsns: str) -> tuple[Endpoint, ...]:
    """Return where dsns lead, each place once: what a recovered copy must never reach.

    Raises:
        PostgresError: a dsn cannot be parsed.
    """
    return tuple(dict.fromkeys(endpoint for dsn in dsns for endpoint in _endpoints(dsn)))


def _endpoints(dsn: str) -> tuple[Endpoint, ...]:
    parameters = connection_parameters(dsn, "drservice")
    hosts = [*_words(parameters.get("host")), *_words(parameters.get("hostaddr"))] or [_DEFAULT_SOCKET]
    ports = _words(parameters.get("port")) or [_DEFAULT_PORT]
    return tuple(
        Endpoint(host=host, port=int(ports[number] if number < len(ports) else ports[-1]))
        for number, host in enumerate(hosts)
    )


def database_in(dsn: str) -> str | None:
    """Return the database that a dsn names, ``None`` if it names none."""
    named = connection_parameters(dsn, "drservice").get("dbname")
    return str(named) if named else None


def read_references(asking: Asking) -> References:
    """Return which documents the rows of a database refer to; none if it has no attachments at all.

    Every row that is visible counts; nothing a clock says is relied on. What a row calls a document is hostile text
    until it has a document's form.

    Raises:
        PostgresError, UnansweredError: the table is there and cannot be read.
    """
    if asking.answer("select to_regclass('public.ir_attachment') is not null")[0] != "t":
        return References()
    rows = asking.scan(
        "select store_fname, max(file_size)::bigint from ir_attachment"
        " where store_fname is not null and store_fname <> '' group by store_fname"
    )
    documents: dict[str, int] = {}
    elsewhere = 0
    for name, size in rows:
        if name is not None and is_document(name):
            documents[name] = int(size) if size is not None else -1
        else:
            elsewhere += 1
    if asking.answer(_TYPED) == ("1",):
        elsewhere += int(asking.answer("select count(*) from ir_attachment where type = 'cloud_storage'")[0] or 0)
    inside = asking.answer("select count(*) from ir_attachment where db_datas is not null")[0]
    return References(documents=documents, in_database=int(inside or 0), elsewhere=elsewhere)


def _words(value: object) -> list[str]:
    return [word.strip() for word in str(value).split(",") if word.strip()] if value else []
