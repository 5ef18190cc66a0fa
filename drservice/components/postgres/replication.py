"""Questions that need a replication connection, for a role that has REPLICATION and nothing else."""

from __future__ import annotations

from dataclasses import dataclass

import psycopg

from drservice.components.postgres.connection import connection_parameters, translate_connect_error
from drservice.errors import PostgresError
from drservice.model.ids import SystemId
from drservice.model.wal import Lsn, Timeline


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemIdentity:
    """What ``IDENTIFY_SYSTEM`` answers, and the server's version and segment size."""

    system_id: SystemId
    timeline: Timeline
    flushed: Lsn
    """WAL flushed so far (on a standby: received or replayed)."""
    server_version: int
    """``server_version_num``, for example 150018."""
    wal_segment_bytes: int
    in_recovery: bool | None
    """Whether it is a standby; ``None``: it does not say (before version 14)."""


_UNITS = {"B": 1, "kB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30}


def identify_system(dsn: str, *, application_name: str = "drservice") -> SystemIdentity:
    """Ask a server who it is over a physical replication connection.

    Raises:
        PostgresUnreachableError: no connection.
        PostgresError: the role lacks REPLICATION, pg_hba.conf has no ``replication`` line, or no free
            wal sender.
    """
    parameters = connection_parameters(dsn, application_name)
    parameters["replication"] = "true"
    try:
        # In the simple protocol only: a WAL sender knows no other. psycopg uses it without parameters.
        with psycopg.connect(**parameters, autocommit=True) as connection:
            system_id, timeline, flushed, _ = _only_row(connection, b"IDENTIFY_SYSTEM")
            (segment,) = _only_row(connection, b"SHOW wal_segment_size")
            version = connection.info.server_version
            standby = _only_row(connection, b"SHOW in_hot_standby")[0] if version >= 140000 else None
    except psycopg.OperationalError as error:
        raise translate_connect_error(error) from error
    except psycopg.Error as error:
        raise PostgresError(f"the server did not identify itself: {str(error).strip()}") from error
    return SystemIdentity(
        system_id=SystemId(system_id),
        timeline=Timeline(int(timeline)),
        flushed=Lsn.parse(flushed),
        server_version=version,
        wal_segment_bytes=parse_size(segment),
        in_recovery=None if standby is None else standby == "on",
    )


def parse_size(text: str) -> int:
    """Return the bytes of a size as ``SHOW`` prints it, for example ``16MB``.

    Raises:
        PostgresError: for another form.
    """
    digits = text.rstrip("BkMG")
    unit = text[len(digits) :]
    if not digits.isdigit() or unit not in _UNITS:
        raise PostgresError(f"the server names a size of {text!r}")
    return int(digits) * _UNITS[unit]


def _only_row(connection: psycopg.Connection[tuple[object, ...]], command: bytes) -> tuple[str, ...]:
    row = connection.execute(command).fetchone()
    if row is None:
        raise PostgresError(f"{command.decode()} returned nothing")
    return tuple(_text(value) for value in row)


def _text(value: object) -> str:
    # A WAL sender names no client encoding, so psycopg hands texts over as bytes.
    if isinstance(value, bytes):
        return value.decode("ascii")
    return "" if value is None else str(value)
