"""What production is asked around a backup or a recovery: where it listens, and which documents its rows refer to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from drservice.components.postgres.asking import Asking
from drservice.components.postgres.connection import connection_parameters
from drservice.environments.interface import Endpoint

_DEFAULT_PORT = "5432"
_DEFAULT_SOCKET = "/var/run/postgresql"


@dataclass(frozen=True, slots=True, kw_only=True)
class References:
    """What the rows of one database refer to."""

    documents: Mapping[str, int | None] = field(default_factory=dict)
    """Name in the filestore to size in bytes (``None``: the row does not say)."""
    in_database: int = 0
    """Attachments whose content is in the database itself."""


def endpoints_of(dsn: str) -> tuple[Endpoint, ...]:
    """Return where a dsn leads: what a recovered copy must never reach.

    Raises:
        PostgresError: the dsn cannot be parsed.
    """
    parameters = connection_parameters(dsn, "drservice")
    hosts = [*_words(parameters.get("host")), *_words(parameters.get("hostaddr"))] or [_DEFAULT_SOCKET]
    ports = _words(parameters.get("port")) or [_DEFAULT_PORT]
    return tuple(
        Endpoint(host=host, port=int(ports[number] if number < len(ports) else ports[-1]))
        for number, host in enumerate(hosts)
    )


def read_references(asking: Asking) -> References:
    """Return which documents the rows of a database refer to; none if it has no attachments at all.

    Every row that is visible counts; nothing a clock says is relied on. Names are as the rows have them: hostile text,
    good for looking up and for nothing else.

    Raises:
        PostgresError, UnansweredError: the table is there and cannot be read.
    """
    if asking.answer("select to_regclass('public.ir_attachment') is not null")[0] != "t":
        return References()
    rows = asking.scan(
        "select store_fname, max(file_size)::bigint from ir_attachment"
        " where store_fname is not null and store_fname <> '' group by store_fname"
    )
    documents = {name: int(size) if size is not None else None for name, size in rows if name is not None}
    inside = asking.answer("select count(*) from ir_attachment where db_datas is not null")[0]
    return References(documents=documents, in_database=int(inside or 0))


def _words(value: object) -> list[str]:
    return [word.strip() for word in str(value).split(",") if word.strip()] if value else []
