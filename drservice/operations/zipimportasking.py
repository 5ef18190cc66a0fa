"""What a loaded database of Odoo's is asked before it becomes a recovery point: is it what the zip says it is?"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from drservice.components.odoo.schema import OdooSchema, pinned, read_schema
from drservice.components.postgres.asking import Asking
from drservice.errors import ImportRefusedError

_SERVER = re.compile(r"([0-9]{1,2})(?:\.[0-9]+)*")
_MODULES_SQL = "select name, latest_version from public.ir_module_module where state = 'installed'"
_BUSY = (
    ("ir_attachment", "create_date"),
    ("ir_attachment", "write_date"),
    ("ir_cron", "lastcall"),
    ("ir_module_module", "write_date"),
    ("res_users_log", "create_date"),
    ("mail_message", "create_date"),
    ("stock_move", "write_date"),
    ("account_move", "write_date"),
    ("sale_order", "write_date"),
    ("purchase_order", "write_date"),
    ("mrp_production", "write_date"),
)
"""Tables that are written all the time, and when; scheduled actions alone are noted every few minutes."""
_NEWEST_SQL = (
    "select pg_catalog.floor(extract(epoch from pg_catalog.max({column})))::bigint from public.{table}"
    " where {column} <= pg_catalog.timezone('UTC', pg_catalog.to_timestamp({now}))"
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SHOWN = 3
_LONGEST_NAME = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a zip says of its database."""

    database: str
    version: str
    server_major: int
    modules: Mapping[str, str]
    """Installed modules with their versions; empty where a module has none."""


def read_manifest(raw: bytes) -> Manifest:
    """Read ``manifest.json`` as Odoo writes it (``dump_db_manifest`` of ``odoo/service/db.py``).

    Raises:
        ImportRefusedError: it is something else.
    """
    try:
        fields = json.loads(raw)
        if not isinstance(fields, dict) or fields["odoo_dump"] != "1":
            raise _unreadable("it is not of a dump of Odoo's")
        server = _SERVER.fullmatch(fields["pg_version"])
        modules = fields["modules"]
        named = [fields["db_name"], fields["version"], *modules, *(value for value in modules.values() if value)]
        if server is None or not all(isinstance(text, str) for text in named):
            raise _unreadable("a field is no text")
        "".join(named).encode()  # half of a surrogate is no text that anybody could write down
        if max(len(fields["db_name"]), len(fields["version"])) > _LONGEST_NAME:
            raise _unreadable("a field is too long")
        return Manifest(
            database=fields["db_name"],
            version=fields["version"],
            server_major=int(server[1]),
            modules={name: value or "" for name, value in modules.items()},
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _unreadable(f"{type(error).__name__}: {error}") from error


def _unreadable(what: str) -> ImportRefusedError:
    return ImportRefusedError(f"manifest.json cannot be understood: {what}")


def require_modules(source: Asking, manifest: Manifest) -> None:
    """Compare the modules that the manifest names with those that the rows have as installed.

    Raises:
        ImportRefusedError: they differ, or it is no database of Odoo's.
        PostgresError: it cannot be asked.
    """
    with pinned(source):
        if not read_schema(source).is_odoo:
            raise ImportRefusedError("dump.sql holds no database of Odoo's: there are no modules in it")
        found = {str(name): version or "" for name, version in source.scan(_MODULES_SQL)}
    if found == manifest.modules:
        return
    odd = sorted(name for name in {*found, *manifest.modules} if found.get(name) != manifest.modules.get(name))
    raise ImportRefusedError(
        f"manifest.json and dump.sql are not of one database: {len(odd)} modules differ, such as"
        f" {', '.join(_differing(name, manifest.modules, found) for name in odd[:_SHOWN])}",
        hint="Modules were changed while the zip was made, or its parts were exchanged. Make it again.",
    )


def _differing(name: str, told: Mapping[str, str], found: Mapping[str, str]) -> str:
    return f"{name!a} ({told.get(name, 'not there')} in the manifest, {found.get(name, 'not there')} in the rows)"


def newest_row(source: Asking, *, now: datetime) -> datetime:
    """Return the newest time that a row of the busy tables bears; Odoo writes UTC.

    A row of the future says nothing: taken for new, it would make the oldest dump as new as its import.

    Raises:
        ImportRefusedError: none bears one of the past: nobody could say how old this is.
        PostgresError: it cannot be asked.
    """
    with pinned(source):
        schema = read_schema(source)
        found = [_newest_of(source, schema, table, column, now) for table, column in _BUSY]
    known = [instant for instant in found if instant is not None]
    if not known:
        raise ImportRefusedError("no row of dump.sql bears a time: nobody could say how old this recovery point is")
    return max(known)


def _newest_of(source: Asking, schema: OdooSchema, table: str, column: str, now: datetime) -> datetime | None:
    if not schema.has(table, column):
        return None
    (seconds,) = source.answer(_NEWEST_SQL.format(table=table, column=column, now=int(now.timestamp())))
    try:
        return _EPOCH + timedelta(seconds=int(seconds)) if seconds is not None else None
    except OverflowError:  # before Christ, or for ever before
        return None
