"""Whether a neutralized copy of Odoo really does nothing outside: asked of the copy, whatever was done to it.

Each question has a session of its own that neither the modules' scripts nor our statements ran in. What this version of
Odoo has no table for cannot reach out and is not applicable; what has a table and lacks a column cannot be told.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from drservice.checks.business import ask_recovered, database_of
from drservice.checks.filestore import documents_of
from drservice.checks.interface import (
    Finding,
    NotApplicable,
    RecoveredService,
    failed,
    listed,
    passed,
    unverified,
)
from drservice.components.odoo.neutralize import AUTOVACUUM, DUMMY_HOST, KEYS, PROVIDERS, QUEUES, SECRETS
from drservice.components.odoo.schema import OdooSchema, pinned, read_schema
from drservice.components.postgres.asking import Asking
from drservice.errors import UnansweredError
from drservice.model.checks import CheckState, Severity
from drservice.model.ids import ComponentName
from drservice.model.neutralized import MARK_KEY, ODOO_MARK_KEY, Neutralized

_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Rows that must not be there; each row says in its first column which one it is."""

    name: str
    severity: Severity
    holds: str
    """The sentence when there is none."""
    broken: str
    """What the rows are, behind their number."""


QUESTIONS = (
    Question(
        name="no-active-cron",
        severity=Severity.CRITICAL,
        holds="no scheduled action is active but the vacuum",
        broken="scheduled actions are active beside the vacuum",
    ),
    Question(
        name="only-dummy-mail-server",
        severity=Severity.CRITICAL,
        holds=f"the only active mail server is {DUMMY_HOST!r}",
        broken="mail servers are active that lead somewhere",
    ),
    Question(
        name="no-payment-provider",
        severity=Severity.CRITICAL,
        holds="no payment provider is enabled",
        broken="payment providers are enabled",
    ),
    Question(
        name="no-fetchmail",
        severity=Severity.CRITICAL,
        holds="no incoming mail server is active",
        broken="incoming mail servers are active",
    ),
    Question(
        name="no-outgoing",
        severity=Severity.CRITICAL,
        holds="nothing waits to be sent",
        broken="mails, messages or letters wait to be sent",
    ),
    Question(
        name="no-keys",
        severity=Severity.CRITICAL,
        holds="no stored password, token or key is left",
        broken="stored passwords, tokens or keys are left",
    ),
)


def ask_nothing_left(
    question: Question, component: ComponentName, service: RecoveredService, seconds: float
) -> Finding | NotApplicable:
    """Ask for rows that could reach out."""
    with _asking(component, service, seconds) as copy:
        if copy.why_not is not None:
            return copy.why_not
        return _ask(question, copy.source, copy.schema, copy.database)


def ask_everything_left(source: Asking, database: str) -> Iterator[str]:
    """Yield what could still reach out, in sentences; what a version has no tables or columns for is passed over.

    Raises:
        PostgresError: it cannot be asked.
    """
    with pinned(source):
        schema = read_schema(source)
        for question in QUESTIONS:
            found = _ask(question, source, schema, database)
            if isinstance(found, Finding) and found.state is CheckState.FAILED:
                yield found.detail


def _ask(question: Question, source: Asking, schema: OdooSchema, database: str) -> Finding | NotApplicable:
    asked = dict(_selects(question.name, schema))
    if not asked:
        return NotApplicable(reason=f"{database} has none of the tables that {question.name} is about")
    lacking = [missing for _, missing in asked.values() if missing is not None]
    if lacking:
        return unverified(f"it cannot be told: {'; '.join(lacking)}")
    found: list[str] = []
    for sql, _ in asked.values():
        found += [row[0] or "" for row in source.scan(f"{sql} limit {_SHOWN + 1}")]
    if found:
        many = "more than " if len(found) > _SHOWN else ""
        shown = min(len(found), _SHOWN)
        return failed(f"{many}{shown} {question.broken}: {listed(found)}", value=str(len(found)))
    if question.name == "only-dummy-mail-server" and not _has_dummy(source):
        # Without any Odoo takes the one of its configuration file.
        return failed("no mail server is active at all: Odoo would use the one of its configuration file")
    return passed(question.holds, value="0")


def _selects(name: str, schema: OdooSchema) -> Iterator[tuple[str, tuple[str, str | None]]]:
    """Yield by table the question for one name, and what is missing to ask it; only of tables that are there."""
    for table, needs, sql in _all_selects(name, schema):
        if schema.has(table):
            yield table, (sql, schema.missing({table: needs}))


def _all_selects(name: str, schema: OdooSchema) -> Iterator[tuple[str, str, str]]:
    match name:
        case "no-active-cron":
            is_named = schema.has("ir_model_data", "res_id", "model", "module", "name")
            spared = f" and id not in ({AUTOVACUUM})" if is_named else ""
            yield "ir_cron", "id active", f"select id::text from public.ir_cron where active{spared}"  # noqa: S608 - our own text
        case "only-dummy-mail-server":
            sql = "select format('%s: %s', id, smtp_host) from public.ir_mail_server"
            where = f" where active and smtp_host is distinct from '{DUMMY_HOST}'"
            yield "ir_mail_server", "id active smtp_host", sql + where
        case "no-payment-provider":
            for table in PROVIDERS:
                yield table, "id state", f"select id::text from public.{table} where state = 'enabled'"  # noqa: S608 - our own text
        case "no-fetchmail":
            yield "fetchmail_server", "id active", "select id::text from public.fetchmail_server where active"
        case "no-outgoing":
            for table, waiting, _ in QUEUES:
                states = ", ".join(f"'{item}'" for item in waiting)
                sql = f"select format('{table} %s', id) from public.{table} where state in ({states})"  # noqa: S608 - our own text
                yield table, "id state", sql
        case _:
            yield from _keys(schema)


def _keys(schema: OdooSchema) -> Iterator[tuple[str, str, str]]:
    for table, columns in SECRETS.items():
        present = [column for column in columns if schema.has(table, column)]
        if present:
            left = " or ".join(f"{column} is not null" for column in present)
            yield table, "id", f"select format('{table} %s', id) from public.{table} where {left}"  # noqa: S608 - our own text
    for table in KEYS:
        yield table, "id", f"select format('{table} %s', id) from public.{table}"  # noqa: S608 - our own text


def _has_dummy(source: Asking) -> bool:
    rows = source.scan(
        f"select 1 from public.ir_mail_server where active and smtp_host = '{DUMMY_HOST}' limit 1"  # noqa: S608 - our own text
    )
    return bool([*rows])  # read to the end: another question follows


def ask_marked(component: ComponentName, service: RecoveredService, seconds: float) -> Finding | NotApplicable:
    """Ask whether the copy says of itself that it is neutralized, and in this environment."""
    with _asking(component, service, seconds) as copy:
        if copy.why_not is not None:
            return copy.why_not
        if copy.schema.missing({"ir_config_parameter": "key value"}) is not None:
            return failed("there is no table of parameters: the copy bears no mark")
        marks = _marks(copy.source)
        if marks.get(ODOO_MARK_KEY, "").lower() not in {"true", "t", "1"}:
            return failed(f"{ODOO_MARK_KEY} is {marks.get(ODOO_MARK_KEY)!r}")
        if not marks.get(MARK_KEY, "").startswith(f"{copy.environment} "):
            return failed(f"{MARK_KEY} names no neutralization of this environment: {marks.get(MARK_KEY)!r}")
        return passed(f"marked as neutralized in {copy.environment}")


def bears_mark(source: Asking, mark: str) -> bool:
    """Tell whether a database bears just this mark, and Odoo's own.

    Raises:
        PostgresError: it cannot be asked.
    """
    marks = _marks(source)
    return marks.get(MARK_KEY) == mark and marks.get(ODOO_MARK_KEY) == "true"


def _marks(source: Asking) -> dict[str | None, str]:
    sql = "select key, value from public.ir_config_parameter"
    where = f" where key in ('{MARK_KEY}', '{ODOO_MARK_KEY}', 'database.uuid')"
    return {key: value or "" for key, value in source.scan(sql + where)}


def ask_scripts(component: ComponentName, service: RecoveredService, _: float) -> Finding | NotApplicable:
    """Tell whose scripts were run, and of which modules nobody knows whether they have one."""
    done = _done(component, service)
    if not done.is_odoo:
        return NotApplicable(reason=f"{done.database} has no table of Odoo's modules")
    if done.unknown is not None:
        return unverified(f"drservice's own statements were run, and no module's: {done.unknown}")
    told = f"the scripts of {len(done.scripts)} modules were run"
    if done.without_code:
        return failed(
            f"{told}; {len(done.without_code)} installed modules have no code: {listed(list(done.without_code))}",
            value=str(len(done.without_code)),
        )
    return passed(told, value="0")


def ask_others(component: ComponentName, service: RecoveredService, _: float) -> Finding | NotApplicable:
    """Tell which other databases of Odoo's in the cluster were left as they are."""
    done = _done(component, service)
    if not done.is_odoo:
        return NotApplicable(reason=f"{done.database} has no table of Odoo's modules")
    if done.other_databases:
        return failed(
            f"other databases of Odoo's were not neutralized: {listed(list(done.other_databases))}",
            value=str(len(done.other_databases)),
        )
    return passed("there is no other database of Odoo's in the cluster", value="0")


def ask_http_actions(component: ComponentName, service: RecoveredService, _: float) -> Finding | NotApplicable:
    """List the server actions with code that calls out; the environment alone holds them."""
    done = _done(component, service)
    if not done.is_odoo:
        return NotApplicable(reason=f"{done.database} has no table of Odoo's modules")
    if not done.http_actions:
        return passed("no server action has code that looks like a call to the outside", value="0")
    told = f"{len(done.http_actions)} server actions have code that looks like a call to the outside"
    return passed(f"{told}; only the environment holds it: {listed(list(done.http_actions))}")


# --- what is asked ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Copy:
    source: Asking
    schema: OdooSchema
    database: str
    environment: str

    @property
    def why_not(self) -> NotApplicable | None:
        if self.schema.is_odoo:
            return None
        return NotApplicable(reason=f"{self.database} has no table of Odoo's modules")


@contextmanager
def _asking(component: ComponentName, service: RecoveredService, seconds: float) -> Iterator[_Copy]:
    documents = documents_of(service, component)
    if documents.follows is None or documents.database is None:
        raise UnansweredError(f"{component} follows no database")
    recovered = database_of(service, documents.follows)
    with ask_recovered(recovered, seconds=seconds, database=documents.database) as source, pinned(source):
        yield _Copy(
            source=source,
            schema=read_schema(source),
            database=documents.database,
            environment=recovered.environment.id,
        )


def _done(component: ComponentName, service: RecoveredService) -> Neutralized:
    done: Mapping[ComponentName, Neutralized] = service.neutralized
    if component not in done:
        raise UnansweredError(f"the database of {component} was not neutralized")
    return done[component]
