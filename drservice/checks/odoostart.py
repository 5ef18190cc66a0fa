"""Whether Odoo itself starts on what was recovered: its login page renders, a user logs in, a document opens.

``/web/health`` proves nothing: an Odoo without documents answers it. Odoo is started inside, beside the recovered
server, on a data folder of its own, without scheduled jobs and without a network, and is visited from inside. The user
who logs in is one that the copy has; for the time of the visit the *copy* knows a password of ours for him, because
nobody's real one has any business in a drill.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from drservice.checks.business import database_of
from drservice.checks.filestore import documents_of
from drservice.checks.interface import (
    Finding,
    NotApplicable,
    RecoveredDatabase,
    RecoveredDocuments,
    RecoveredService,
    failed,
    passed,
    spoken,
    unverified,
)
from drservice.components.odoo import visit
from drservice.components.odoo.starting import DATA, LOG, PORT, OdooPlaces, command, configuration, odoo_places
from drservice.components.odoo_filestore.names import is_document, sha1_of_name
from drservice.components.postgres.asking import cut_after
from drservice.components.postgres.connection import Session, connect
from drservice.environments.interface import Environment
from drservice.errors import PostgresError, UnansweredError
from drservice.model.estate import FilesSettings, OdooProgram
from drservice.model.ids import ComponentName

_SESSION_SECONDS = 60.0
_ENDING_SECONDS = 15.0
"""How much of the check's time is left for Odoo's end and the way out."""
_OK = 200
_ROUNDS = 600_000
"""As Odoo hashes passwords itself since version 17: it does not have to do it anew."""
_DOCUMENTS = 3
_CANDIDATES = 200
_MOST_BYTES = 64 << 20
"""A document that is opened is not larger, so that a visit stays short."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What the visitor says, as far as it can be understood."""

    started_seconds: float
    status: int | None
    """Of the login page; ``None`` = nobody answered."""
    form: bool
    uid: int | None
    led_to: str
    version: str
    opened: Mapping[int, tuple[int, str]] = field(default_factory=dict)
    """Attachment to status and SHA-1 of what came."""
    problem: str = ""
    errors: int | None = None
    first_errors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Visit:
    """What is to be done, and what has to come of it."""

    user: int
    login: str
    owner: str
    documents: Mapping[int, str]
    """Attachment to name of its document."""
    unsound: int
    """Attachments left out because their documents are missing or corrupt."""


def ask_odoo_starts(component: ComponentName, service: RecoveredService, seconds: float) -> Finding | NotApplicable:
    """Start Odoo in the environment and visit it."""
    documents = documents_of(service, component)
    settings = service.service.components[component]
    if not isinstance(settings, FilesSettings) or settings.odoo is None or documents.follows is None:
        raise UnansweredError(f"{component} does not say how Odoo is started")
    places = odoo_places(component, settings.odoo, settings.addons)
    absent = [str(path) for path in (*places.shown.values(), settings.odoo.program) if not path.exists()]
    if absent:
        return unverified(f"Odoo is not on this host: there is no {absent[0]}")
    recovered = database_of(service, documents.follows)
    assert documents.database is not None, "what follows a cluster names its database"
    with _session(recovered, documents.database) as session:
        planned = _plan(session, documents)
        password = secrets.token_urlsafe(24)
        with _password(session, planned.user, password):
            seen = _visit(recovered.environment, settings.odoo, places, documents, planned, password, seconds)
    return judge(seen, user=planned.user, login=planned.login, documents=planned.documents, unsound=planned.unsound)


def judge(seen: Seen, *, user: int, login: str, documents: Mapping[int, str], unsound: int = 0) -> Finding:
    """Return what a visit means."""
    told = f"; Odoo wrote {seen.errors} errors, first: {seen.first_errors[0]}" if seen.first_errors else ""
    wrong = _wrong(seen, user=user, login=login, documents=documents, unsound=unsound)
    if wrong is not None:
        return failed(f"{wrong}{told}")
    opened = f"{len(documents)} documents open and have their SHA-1" if documents else "there is no document to open"
    return passed(
        f"Odoo {seen.version} answered after {seen.started_seconds:.1f} s, {login!r} logged in, {opened}{told}",
        value=str(len(documents)),
    )


def _wrong(seen: Seen, *, user: int, login: str, documents: Mapping[int, str], unsound: int) -> str | None:
    if seen.status is None:
        return f"Odoo did not answer: {seen.problem}"
    if seen.status != _OK or not seen.form:
        return f"the login page does not render (status {seen.status})"
    if seen.uid != user:
        return (
            f"user {login!r} is not logged in; the login led to {seen.led_to!r}; {seen.problem or 'no error was told'}"
        )
    if seen.problem:
        return f"the visit broke off: {seen.problem}"
    bad = []
    for number, name in documents.items():
        status, sha1 = seen.opened.get(number, (0, ""))
        if status != _OK:
            bad.append(f"attachment {number} does not open (status {status})")
        elif sha1 != sha1_of_name(name).hex():
            bad.append(f"attachment {number} has other content than its name says")
    if unsound and not documents:
        bad.append(f"no document could be opened: those of {unsound} attachments are missing or corrupt")
    return "; ".join(bad) or None


def read_seen(output: bytes, status: int, stderr: str) -> Seen:
    """Understand what the visitor wrote, which may be anything.

    Raises:
        UnansweredError: it is not what a visitor writes.
    """
    try:
        told = json.loads(output)
        entered = told.get("login") or {}
        return Seen(
            started_seconds=float(told["started_seconds"]),
            status=None if told["status"] is None else int(told["status"]),
            form=bool(told.get("form")),
            uid=int(entered["uid"]) if entered.get("uid") else None,
            led_to=spoken(str(entered.get("led_to")), most=100),
            version=spoken(str(entered.get("version")), most=40),
            opened={int(item["id"]): (int(item["status"]), str(item["sha1"])) for item in told.get("documents", [])},
            problem=spoken(str(told.get("problem", "")), most=200),
            errors=int(told["errors"]) if told.get("errors") is not None else None,
            first_errors=tuple(spoken(str(line), most=400) for line in told.get("first_errors", [])[:3]),
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UnansweredError(
            f"the visitor of Odoo ended with status {status} and did not say what it saw: {spoken(stderr, most=200)}"
        ) from error


def _visit(
    environment: Environment,
    program: OdooProgram,
    places: OdooPlaces,
    documents: RecoveredDocuments,
    planned: _Visit,
    password: str,
    seconds: float,
) -> Seen:
    assert documents.database is not None, "checked by the caller"
    text = configuration(places, database=documents.database, owner=planned.owner, options=program.options)
    plan = {
        "base": f"http://127.0.0.1:{PORT}",
        "data": DATA,
        "log": LOG,
        "database": documents.database,
        "documents": f"/env/files/{documents.component}/{documents.root.name}",
        "login": planned.login,
        "password": password,
        "attachments": [*planned.documents],
        "seconds": max(1.0, seconds - _ENDING_SECONDS),
    }
    argv = command(
        places,
        configured=environment.write_configuration("odoo.conf", text),
        visitor=environment.write_configuration("odoo-visit.py", Path(visit.__file__).read_text(encoding="utf-8")),
        plan=environment.write_configuration("odoo-visit.json", json.dumps(plan)),
    )
    finished = environment.execute(argv, timeout_seconds=seconds)
    return read_seen(finished.stdout, finished.status, finished.last_line())


def _plan(session: Session, documents: RecoveredDocuments) -> _Visit:
    """Choose who logs in and which documents are opened.

    Raises:
        UnansweredError: there is nobody, or the database belongs to a role that Odoo refuses.
    """
    users = session.rows(
        "select u.id, u.login from res_users u where u.active and u.login is not null and not coalesce(u.share, false)"
        " order by exists (select 1 from res_groups_users_rel r join ir_model_data d on d.res_id = r.gid"
        " and d.model = 'res.groups' and d.module = 'base' and d.name = 'group_system' where r.uid = u.id) desc,"
        " u.id limit 1"
    )
    if not users:
        raise UnansweredError("there is no active internal user who could log in")
    owner = str(session.row("select pg_get_userbyid(datdba) from pg_database where datname = current_database()")[0])
    if owner == "postgres":
        raise UnansweredError("the database belongs to the role postgres, as which Odoo refuses to work")
    found = session.rows(
        "select id, store_fname from ir_attachment where type = 'binary' and store_fname <> '' and res_field is null"
        " and url is null and file_size between 1 and %s order by id desc limit %s",
        (_MOST_BYTES, _CANDIDATES),
    )
    unsound = {*documents.missing, *documents.corrupt, *documents.missing_in_production}
    named = {int(number): str(name) for number, name in found if is_document(str(name))}
    sound = {number: name for number, name in named.items() if name not in unsound}
    return _Visit(
        user=int(users[0][0]),
        login=str(users[0][1]),
        owner=owner,
        documents=dict([*sound.items()][:_DOCUMENTS]),
        unsound=len(named) - len(sound),
    )


@contextmanager
def _password(session: Session, user: int, password: str) -> Iterator[None]:
    """Let the copy know a password for a user, and no second factor, while the block runs."""
    second = bool(
        session.rows(
            "select 1 from information_schema.columns where table_schema = 'public' and table_name = 'res_users'"
            " and column_name = 'totp_secret'"
        )
    )
    before = session.row("select password from res_users where id = %s", (user,))[0]
    factor = session.row("select totp_secret from res_users where id = %s", (user,))[0] if second else None
    session.rows("update res_users set password = %s where id = %s", (_hashed(password), user))
    if factor is not None:
        session.rows("update res_users set totp_secret = null where id = %s", (user,))

    def put_back() -> None:
        session.rows("update res_users set password = %s where id = %s", (before, user))
        if factor is not None:
            session.rows("update res_users set totp_secret = %s where id = %s", (factor, user))

    try:
        yield
    except BaseException:
        with suppress(PostgresError):  # what broke in the block is told
            put_back()
        raise
    put_back()  # a copy that somebody keeps to look at, and whose user it locks out, has not passed


def _hashed(password: str) -> str:
    """Return a password as Odoo stores it (passlib's pbkdf2_sha512)."""
    salt = secrets.token_bytes(16)
    parts: Sequence[bytes] = (salt, hashlib.pbkdf2_hmac("sha512", password.encode(), salt, _ROUNDS))
    spelled = [base64.b64encode(part, b"./").rstrip(b"=").decode() for part in parts]
    return f"$pbkdf2-sha512${_ROUNDS}${spelled[0]}${spelled[1]}"


@contextmanager
def _session(recovered: RecoveredDatabase, database: str) -> Iterator[Session]:
    recovered.environment.require_own_socket()
    session = connect(recovered.dsn, application_name="drservice check", database=database)
    try:
        with cut_after(session, 2 * _SESSION_SECONDS):
            for name in ("statement_timeout", "lock_timeout"):
                session.rows("select pg_catalog.set_config(%s, %s, false)", (name, str(int(_SESSION_SECONDS * 1000))))
        yield session
    finally:
        session.close()
