"""What waits in a recovered Odoo to act on the world outside, and what of the world it no longer knows.

A database that went back in time sends again what it has sent since, and never hears again what it had heard. Nothing
here changes anything: it is counted so that people can decide before Odoo is started.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from drservice.components.odoo.schema import OdooSchema
from drservice.components.postgres.asking import Asking
from drservice.errors import UnansweredError
from drservice.model.losses import Effect, Overdue, Waiting

_MOST_IDS = 200
_MOST_JOBS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueKind:
    """A table whose rows leave the house when Odoo runs."""

    table: str
    what: str
    needs: str
    waiting: str
    """The condition that a row waits."""


QUEUES = (
    QueueKind(table="mail_mail", what="mails", needs="id state", waiting="state = 'outgoing'"),
    QueueKind(table="sms_sms", what="text messages", needs="id state", waiting="state in ('outgoing', 'process')"),
    QueueKind(table="snailmail_letter", what="letters by post", needs="id state", waiting="state = 'pending'"),
    QueueKind(table="mailing_mailing", what="mailings", needs="id state", waiting="state in ('in_queue', 'sending')"),
    QueueKind(table="mail_message_schedule", what="scheduled notifications", needs="id", waiting="true"),
    QueueKind(table="mail_scheduled_message", what="scheduled messages", needs="id", waiting="true"),
    QueueKind(
        table="queue_job",
        what="queued jobs",
        needs="id state",
        waiting="state in ('wait_dependencies', 'pending', 'enqueued', 'started')",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Jobs:
    """The scheduled actions that run as soon as Odoo starts."""

    count: int
    overdue: tuple[Overdue, ...]
    """The first ones, the longest overdue first."""


def read_queues(source: Asking, schema: OdooSchema) -> Iterator[Waiting]:
    """Yield what waits to be sent, without what is empty; the session has to be pinned.

    Raises:
        PostgresError, UnansweredError: a queue cannot be read.
    """
    for kind in QUEUES:
        if schema.missing({kind.table: kind.needs}) is not None:
            continue
        count, ids = source.answer(
            f"select count(*), (select string_agg(id::text, ',' order by id) from (select id from public.{kind.table}"  # noqa: S608 - from the table above
            f" where {kind.waiting} order by id limit {_MOST_IDS}) as first)"
            f" from public.{kind.table} where {kind.waiting}"
        )
        if _number(count):
            yield Waiting(
                table=kind.table,
                what=kind.what,
                count=_number(count),
                ids=tuple(_number(text) for text in (ids or "").split(",")),
            )


def read_jobs(source: Asking, schema: OdooSchema, *, now: str) -> Jobs:
    """Return which scheduled actions are overdue at an instant: all of them run at the first start.

    Args:
        source: a pinned session.
        schema: of its database.
        now: the instant, as ISO 8601 with ``Z``.

    Raises:
        PostgresError, UnansweredError: it cannot be told.
    """
    if not schema.has("ir_cron", "id", "active", "nextcall"):
        return Jobs(count=0, overdue=())
    name = "coalesce(cron_name, '')" if schema.has("ir_cron", "cron_name") else "''"
    rows = list(
        source.scan(
            f'select id, {name}, to_char(nextcall, \'YYYY-MM-DD"T"HH24:MI:SS"Z"\'), count(*) over ()'  # noqa: S608 - from the schema, and an instant
            f" from public.ir_cron where active and nextcall <= '{now}'::timestamptz"
            f" order by nextcall, id limit {_MOST_JOBS}"
        )
    )
    jobs = tuple(Overdue(id=_number(row[0]), name=row[1] or "", due_at=row[2] or "") for row in rows)
    return Jobs(count=_number(rows[0][3]) if rows else 0, overdue=jobs)


_FETCHED = {
    "pop": "mails fetched after that instant were deleted there: they are gone, ask the senders",
    "imap": "mails fetched after that instant are marked as read there: mark them as unread to fetch them again",
}
_BANK = "bank transactions fetched since are unknown: synchronize again from that instant"
_EDI = "electronic documents sent or received since are unknown: compare with the network's list"
_CALENDAR = "a synchronization overwrites what changed there since, or brings it back: look before it runs"
_CHAIN = "it goes on from that instant: reports on it that were made since do not agree with it any more"
_MODULES: Mapping[str, str] = {
    "account_online_synchronization": _BANK,
    "account_plaid": _BANK,
    "account_peppol": _EDI,
    "account_edi_proxy_client": _EDI,
    "website_sale": "customers hold confirmations of orders that are unknown: mails and the payment provider have them",
    "point_of_sale": "tills may hold orders that are unknown, and closed sessions that are open here: count the cash",
    "google_calendar": _CALENDAR,
    "microsoft_calendar": _CALENDAR,
    "mrp": "labels, machines and shop floor systems may hold numbers of orders and lots that are unknown here",
    "iot": "printers, scales and machines may hold numbers that are unknown here",
}
_PREFIXES = (
    ("payment_", "payments that were notified since are unknown: compare with the provider's list of payments"),
    ("delivery_", "labels ordered since are unknown: compare with the carrier's list of shipments"),
)
_NO_PROVIDER = frozenset({"payment_demo", "payment_custom", "payment_transfer", "delivery_stock_picking_batch"})
_PROVIDERS = ("payment_provider", "payment_acquirer")


def read_outside(source: Asking, schema: OdooSchema) -> Iterator[Effect]:
    """Yield mailboxes, payment providers and modules through which the world outside went on; the session is pinned.

    Raises:
        PostgresError, UnansweredError: a table cannot be read.
    """
    if schema.has("fetchmail_server", "id", "server_type", "active"):
        rows = source.scan("select id, server_type from public.fetchmail_server where active order by id limit 100")
        for identity, kind in rows:
            effect = _FETCHED["pop" if kind == "pop" else "imap"]
            yield Effect(subject=f"incoming mail server {identity} ({kind})", effect=effect)
    table = next((item for item in _PROVIDERS if schema.has(item, "id", "state")), None)
    if table is not None:
        code = "code" if schema.has(table, "code") else "id"
        rows = source.scan(
            f"select coalesce({code}::text, id::text) from public.{table} where state = 'enabled' order by id limit 100"  # noqa: S608 - from the table above
        )
        for (name,) in rows:
            yield Effect(subject=f"payment provider {name}", effect=_PREFIXES[0][1])
    if schema.has("account_move", "inalterable_hash"):
        (chained,) = source.answer(
            "select exists (select from public.account_move where coalesce(inalterable_hash, '') <> '')"
        )
        if chained == "t":
            yield Effect(subject="hash chain of posted entries", effect=_CHAIN)
    installed = source.scan("select name from public.ir_module_module where state = 'installed' order by name")
    for (name,) in installed:
        effect_of = _effect_of_module(name or "")
        if effect_of is not None:
            yield Effect(subject=f"module {name}", effect=effect_of)


def _effect_of_module(name: str) -> str | None:
    if name in _MODULES:
        return _MODULES[name]
    if name in _NO_PROVIDER:
        return None
    if name.startswith("l10n_") and "_edi" in name:
        return _EDI
    return next((effect for prefix, effect in _PREFIXES if name.startswith(prefix)), None)


def _number(text: str | None) -> int:
    if text is None or not (text.isascii() and text.isdigit()):
        raise UnansweredError("a number was expected")
    return int(text)
