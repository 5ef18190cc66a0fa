"""Making one database of Odoo's do nothing outside any more: the modules' scripts, then what they leave.

Everything happens in one transaction, as the role that owns Odoo's tables: either all of it was done and the database
bears the mark, or nothing. The scripts are somebody else's and as hostile as the database: they cannot end the
transaction unseen, and what a statement returns is not kept. What is asked of tables and columns that a version does
not have is passed over and told; an error is never passed over.
"""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from drservice.components.odoo.modules import ModuleScript
from drservice.components.odoo.schema import OdooSchema
from drservice.components.postgres.asking import cut_after
from drservice.components.postgres.connection import Session
from drservice.errors import DrError, NeutralizeError, PostgresError
from drservice.model.neutralized import MARK_KEY, ODOO_MARK_KEY

DUMMY_HOST = "invalid"
"""Of the one mail server that stays active: a name that never resolves (RFC 2606). Without any, Odoo would take the one
of its configuration file."""
PARAMETERS = "ir_config_parameter"
AUTOVACUUM = (
    "select res_id from public.ir_model_data where model = 'ir.cron' and module = 'base' and name = 'autovacuum_job'"
)
"""The one scheduled action that Odoo's own neutralization leaves on."""
_BASE_URL = "http://localhost:8069"


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """One change beyond the modules' scripts."""

    name: str
    needs: Mapping[str, str]
    """Columns by table."""
    sql: str
    """Changes rows and ends with ``returning 1``."""


_OAUTH = (
    "google_gmail_refresh_token", "google_gmail_access_token",
    "microsoft_outlook_refresh_token", "microsoft_outlook_access_token",
)  # fmt: skip
_CALENDARS = (
    "google_calendar_rtoken", "google_calendar_token", "microsoft_calendar_rtoken", "microsoft_calendar_token",
)  # fmt: skip
SECRETS: Mapping[str, Sequence[str]] = {
    "ir_mail_server": ("smtp_user", "smtp_pass", "smtp_ssl_certificate", "smtp_ssl_private_key", *_OAUTH),
    "fetchmail_server": ("password", *_OAUTH),
    "res_users": ("totp_secret", "oauth_access_token", *_CALENDARS),
    "res_users_settings": _CALENDARS,
}
"""Columns with what opens a door somewhere else; emptied."""
KEYS = ("res_users_apikeys", "auth_totp_device", "auth_passkey_key")
"""Tables whose rows open a door here to whoever holds the other half; emptied."""
QUEUES = (
    ("mail_mail", ("outgoing",), "cancel"),
    ("sms_sms", ("outgoing", "process"), "canceled"),
    ("snailmail_letter", ("pending",), "canceled"),
)
"""What waits to be sent: table, states in which it does, and the state that it gets."""
PROVIDERS = ("payment_provider", "payment_acquirer")
"""The table's name since 16.0, and before."""


def own_statements(schema: OdooSchema) -> Iterator[Statement]:
    """Yield what is done beyond the modules' scripts, also what a version has no tables for.

    All of it is done with and without scripts: up to version 15 no module has one, and a script that was run changes
    nothing here.
    """
    spared = (
        f" and id not in ({AUTOVACUUM})" if schema.has("ir_model_data", "res_id", "model", "module", "name") else ""
    )
    yield Statement(
        name="scheduled actions off",
        needs={"ir_cron": "id active"},
        sql=f"update public.ir_cron set active = false where active{spared} returning 1",  # noqa: S608 - from the constant above
    )
    yield from _mail_servers(schema)
    yield Statement(
        name="incoming mail servers off",
        needs={"fetchmail_server": "active"},
        sql="update public.fetchmail_server set active = false where active returning 1",
    )
    for table, columns in SECRETS.items():
        present = [column for column in columns if schema.has(table, column)] or columns[:1]
        changed = " or ".join(f"{column} is not null" for column in present)
        emptied = ", ".join(f"{column} = null" for column in present)
        yield Statement(
            name=f"secrets of {table} emptied",
            needs={table: " ".join(present)},
            sql=f"update public.{table} set {emptied} where {changed} returning 1",  # noqa: S608 - from the table above
        )
    for table in KEYS:
        yield Statement(
            name=f"{table} emptied",
            needs={table: "id"},
            sql=f"delete from public.{table} returning 1",  # noqa: S608 - from the tuple above
        )
    for table, waiting, state in QUEUES:
        states = ", ".join(f"'{item}'" for item in waiting)
        yield Statement(
            name=f"{table} cancelled",
            needs={table: "state"},
            sql=f"update public.{table} set state = '{state}' where state in ({states}) returning 1",  # noqa: S608 - as above
        )
    table = next((item for item in PROVIDERS if schema.has(item)), PROVIDERS[0])
    yield Statement(
        name="payment providers off",
        needs={table: "state"},
        sql=f"update public.{table} set state = 'disabled' where state = 'enabled' returning 1",  # noqa: S608 - as above
    )
    yield Statement(
        name="sign-in elsewhere off",
        needs={"auth_oauth_provider": "enabled"},
        sql="update public.auth_oauth_provider set enabled = false where enabled returning 1",
    )
    yield Statement(
        name="webhooks emptied",
        needs={"ir_act_server": "state webhook_url"},
        sql="update public.ir_act_server set webhook_url = null"
        " where state = 'webhook' and webhook_url like 'http%' returning 1",
    )


def _mail_servers(schema: OdooSchema) -> Iterator[Statement]:
    real = f" and smtp_host is distinct from '{DUMMY_HOST}'" if schema.has("ir_mail_server", "smtp_host") else ""
    yield Statement(
        name="mail servers off",
        needs={"ir_mail_server": "active"},
        sql=f"update public.ir_mail_server set active = false where active{real} returning 1",  # noqa: S608 - as above
    )
    values = {
        "name": "'neutralized: no mail leaves'",
        "smtp_host": f"'{DUMMY_HOST}'",
        "active": "true",
        "smtp_port": "25",
        "smtp_encryption": "'none'",
        "smtp_authentication": "'login'",
        "sequence": "0",
    }
    there = {name: value for name, value in values.items() if schema.has("ir_mail_server", name)}
    yield Statement(
        name="a mail server that leads nowhere",
        needs={"ir_mail_server": "name smtp_host active"},
        sql=f"insert into public.ir_mail_server ({', '.join(there)}) select {', '.join(there.values())}"  # noqa: S608 - our own text
        " where not exists"
        f" (select 1 from public.ir_mail_server where active and smtp_host = '{DUMMY_HOST}') returning 1",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """What was done in one database."""

    scripts: tuple[str, ...]
    changes: tuple[tuple[str, int], ...]
    passed_over: tuple[tuple[str, str], ...]


def apply_all(
    session: Session, schema: OdooSchema, scripts: Sequence[ModuleScript], *, mark: str, seconds: float
) -> Applied:
    """Run the scripts and our own statements in one transaction, and mark the database; all of it or nothing.

    Args:
        session: of the role that owns Odoo's tables, with nothing begun.
        schema: the tables that are there.
        scripts: of the modules, in order.
        mark: what the database's own mark says: which environment it is in, and since when.
        seconds: how long each script may take, and all of our own statements together.

    Raises:
        NeutralizeError: naming the module or statement and what the server said; the database is as it was.
        PostgresUnreachableError: the connection broke.
    """
    if schema.missing({PARAMETERS: "key value"}) is not None:
        raise NeutralizeError(f"the database has no {PARAMETERS}, and so cannot be marked as neutralized")
    session.rows("begin transaction isolation level read committed read write")
    (transaction,) = session.row("select pg_catalog.pg_current_xact_id()::text")
    for script in scripts:
        _run(session, script, transaction=transaction, seconds=seconds)
    # What a script of somebody else's left set does not count for what follows; names are qualified all the same.
    session.rows("set local search_path = pg_catalog, pg_temp")
    # A policy that hides rows from their owner has to be an error, never rows that stay as they are.
    session.rows("set local row_security = off")
    changes: list[tuple[str, int]] = []
    passed_over: list[tuple[str, str]] = []
    with cut_after(session, seconds):  # a trigger of the database may wait for ever
        for statement in own_statements(schema):
            missing = schema.missing(statement.needs)
            if missing is not None:
                passed_over.append((statement.name, missing))
                continue
            changes.append((statement.name, _count(session, statement)))
        for key, value in _parameters(mark):
            _set(session, key, value)
        _require_transaction(session, transaction, "a trigger of the database")
        try:
            session.rows("commit")  # checks that were deferred fail here
        except PostgresError as error:
            raise NeutralizeError(f"what was changed cannot be committed: {error.message}") from error
    return Applied(
        scripts=tuple(script.module for script in scripts), changes=tuple(changes), passed_over=tuple(passed_over)
    )


def _run(session: Session, script: ModuleScript, *, transaction: str, seconds: float) -> None:
    try:
        session.script(script.sql.encode(), seconds=seconds)
    except PostgresError as error:
        raise NeutralizeError(f"neutralize.sql of module {script.module} failed: {error.message}") from error
    _require_transaction(session, transaction, f"neutralize.sql of module {script.module}")


def _require_transaction(session: Session, transaction: str, culprit: str) -> None:
    """Refuse to go on in another transaction than the one that was begun.

    Raises:
        NeutralizeError: it was ended: what was done before it may stay, and no longer goes with the rest.
    """
    try:
        (current,) = session.row("select pg_catalog.pg_current_xact_id_if_assigned()::text")
    except PostgresError as error:
        raise NeutralizeError(f"{culprit} left a broken transaction: {error.message}") from error
    if current != transaction:
        raise NeutralizeError(f"{culprit} ended the transaction: all of it or nothing is no longer so")


def _count(session: Session, statement: Statement) -> int:
    try:
        rows = session.texts(f"with changed as ({statement.sql}) select count(*) from changed")  # noqa: S608 - our own text
    except PostgresError as error:
        raise NeutralizeError(f"neutralizing ({statement.name}) failed: {error.message}") from error
    return int(rows[0][0] or 0)


def _parameters(mark: str) -> Iterator[tuple[str, str]]:
    """Yield what a copy must not share with production: its identity, its secret, and where links lead."""
    yield "database.uuid", str(uuid.uuid4())
    yield "database.secret", str(uuid.UUID(bytes=secrets.token_bytes(16)))
    yield "web.base.url", _BASE_URL
    yield ODOO_MARK_KEY, "true"
    yield MARK_KEY, mark


def _set(session: Session, key: str, value: str) -> None:
    try:
        session.rows(
            "with changed as (update public.ir_config_parameter set value = %s::text where key = %s::text returning 1)"
            " insert into public.ir_config_parameter (key, value) select %s::text, %s::text"
            " where not exists (select 1 from changed)",
            (value, key, key, value),
        )
    except DrError as error:
        raise NeutralizeError(f"the parameter {key} cannot be set: {error.message}") from error
