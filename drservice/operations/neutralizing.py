"""Neutralizing a recovered copy of Odoo: after its files are placed, and before anything of Odoo starts on it.

The network-less environment is the first belt, this is the second, and the questions that a drill asks afterwards
(:mod:`~drservice.checks.neutralized`) are the third. It is never done in production: the connection is the one to the
server inside the environment, which is proved by the process that listens at its other end, and what was neutralized
bears marks that keep it from taking production's place.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from drservice.checks.neutralized import ask_everything_left, bears_mark
from drservice.clock import Clock, to_iso
from drservice.components.odoo.gathering import read_modules
from drservice.components.odoo.modules import INSTALLED, ModuleRecord, ModuleScript, modules_record
from drservice.components.odoo.neutralize import apply_all
from drservice.components.odoo.schema import OdooSchema, pinned, read_schema
from drservice.components.postgres.asking import Asking, asking, cut_after
from drservice.components.postgres.connection import Session, connect
from drservice.components.postgres.recovery import TargetAction
from drservice.environments.interface import Environment
from drservice.environments.marks import mark_directory, mark_environment
from drservice.environments.proc import processes_of
from drservice.errors import IsolationError, NeutralizedCopyError, NeutralizeError, UsageError
from drservice.model.estate import FilesSettings, Service
from drservice.model.ids import ComponentName, SystemId
from drservice.model.neutralized import Neutralized
from drservice.model.points import order_for_documents
from drservice.operations.restorerequest import RestoreContext, RestoreRequest
from drservice.repository.repository import Repository

SCRIPT_SECONDS = 1800.0
"""How long the script of one module may take."""
_QUESTION_SECONDS = 120.0
_DATA_INSIDE = "/env/data"
_OWNER_SQL = (
    "select r.rolname, r.rolcanlogin from pg_catalog.pg_class c join pg_catalog.pg_roles r on r.oid = c.relowner"
    " where c.relname = 'ir_module_module' and c.relkind in ('r', 'p')"
    " and c.relnamespace = (select oid from pg_catalog.pg_namespace where nspname = 'public')"
)
_ACTIONS_SQL = (
    "select id, name::text from public.ir_act_server where state = 'code'"
    " and code ~* '(https?://|requests[.]|urllib|urlopen|http[.]client|xmlrpc|ftplib|smtplib|[.](post|put)[(])'"
    " order by id limit 50"
)
_DATABASES_SQL = "select datname from pg_database where datallowconn and not datistemplate order by datname"


def followed_by(service: Service, cluster: ComponentName, database: str | None) -> tuple[FilesSettings, ...]:
    """Return the components with Odoo's documents whose database lies in a cluster (``database``: only that one's)."""
    return tuple(item for item in service.filestores() if item.follows == cluster and database in {None, item.database})


def require_neutralizable(request: RestoreRequest) -> None:
    """Refuse to neutralize what could be, or become, production.

    Raises:
        NeutralizedCopyError: it would be production's own directory.
        UsageError: it cannot be done with the other things that are asked for, or nothing is there to neutralize.
    """
    if not request.neutralize:
        return
    own, cluster = request.component.data_directory, request.cluster_directory
    if request.in_place or (own is not None and cluster is not None and cluster.resolve() == own.resolve()):
        raise NeutralizedCopyError("production's own data directory is not neutralized")
    if request.action is not TargetAction.PROMOTE:
        raise UsageError(
            f"--neutralize changes the database, and --action {request.action.value} leaves it as it was",
            hint="Leave one of the two out.",
        )
    if not followed_by(request.service, request.component.name, request.database):
        wanted = "no database that is restored here" if request.database is None else f"not {request.database}"
        raise UsageError(
            f"--neutralize is for databases that Odoo's documents follow: {wanted}",
            hint="Declare an odoo-filestore component with `database` (and `addons`).",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """A recovered cluster that may be neutralized."""

    environment: Environment
    system_id: SystemId
    """Of the cluster that was recovered."""
    clock: Clock


def neutralize_service(
    context: RestoreContext,
    request: RestoreRequest,
    copy: Copy,
    instant: datetime | None,
) -> tuple[Neutralized, ...]:
    """Neutralize every database of the recovered cluster that Odoo's documents follow.

    Args:
        context: what the restore works with.
        request: what was restored.
        copy: where it runs.
        instant: what it was recovered to; ``None`` for the latest position.

    Raises:
        NeutralizeError: naming the module and what the server said. That database is as it was, and nothing of Odoo
            may be started on it.
        IsolationError: the connection leads to something else than the server inside.
        FormatError, KeyProblemError, ObjectStoreError: the scripts cannot be read.
    """
    wanted = followed_by(request.service, request.component.name, request.database)
    done: list[Neutralized] = []
    for component in wanted:
        assert component.database is not None, "settings see to it"
        context.progress.step(f"neutralize {component.database}")
        record, unknown = _scripts(context.repository, request.service, component, instant)
        done.append(
            neutralize_environment(
                copy,
                component.database,
                record,
                component=component.name,
                unknown=unknown,
                directory=request.cluster_directory,
            )
        )
        if request.neutralize:  # said by a person; a drill tells it in its checks
            require_odoo(done[-1])
    if any(item.is_odoo for item in done):
        others = _others(copy, {item.database for item in done})
        done = [replace(item, other_databases=others) for item in done]
    for text in dict.fromkeys(text for item in done for text in item.problems()):
        context.progress.note(f"WARNING: {text}")
    return tuple(done)


def neutralize_environment(
    copy: Copy,
    database: str,
    record: ModuleRecord | None,
    *,
    component: ComponentName,
    unknown: str | None = None,
    directory: Path | None = None,
) -> Neutralized:
    """Neutralize one database of a recovered cluster, mark it and its environment; all of it or nothing.

    It counts when another session finds nothing left that reaches out: a trigger of the database may undo a statement
    that was no error.

    Args:
        copy: where it runs.
        database: which one.
        record: the modules' scripts, as the snapshot of the documents has them.
        component: the component with the documents.
        unknown: why there is no record.
        directory: the cluster's, where it outlives the environment; it is marked before anything is changed.

    Raises:
        NeutralizeError, IsolationError: as :func:`neutralize_service`.
        PostgresError: the server does not answer.
    """
    environment, clock = copy.environment, copy.clock
    role, may_log_in = _owner_of(copy, database)
    with _asking(environment, database) as source:
        schema = read_schema(source)
        if not schema.is_odoo:
            return Neutralized(component=component, database=database, is_odoo=False)
        installed = {name for name, item in read_modules(source).items() if item.state in INSTALLED}
        actions = _http_actions(schema, source)
    if role is None or not may_log_in:
        raise NeutralizeError(
            f"the owner of Odoo's tables in {database} ({role}) cannot log in, and so cannot run the modules' scripts",
            hint="Odoo itself connects as the owner; give that role LOGIN in production and back up again.",
        )
    scripts, without_code = usable_scripts(record, installed, database)
    now = clock.now()
    mark = f"{environment.id} {to_iso(now)}"
    mark_environment(environment.describe().path, database=database, at=now)
    if directory is not None:
        mark_directory(directory)
    with _inside(copy, database, user=role) as session:
        applied = apply_all(session, schema, scripts, mark=mark, seconds=SCRIPT_SECONDS)
    _require_done(environment, database, mark)
    return Neutralized(
        component=component,
        database=database,
        is_odoo=True,
        scripts=applied.scripts,
        without_code=without_code,
        unknown=unknown,
        changes=applied.changes,
        passed_over=applied.passed_over,
        http_actions=actions,
    )


def _owner_of(copy: Copy, database: str) -> tuple[str | None, bool]:
    """Return who owns Odoo's tables, and whether that role may log in; nobody where there are none."""
    with _inside(copy, database) as session, cut_after(session, _QUESTION_SECONDS):
        # A database may have set a search path in which the catalogue is something else.
        session.row("select pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', false)")
        ((role, may_log_in),) = session.rows(_OWNER_SQL) or [(None, False)]
    return role, may_log_in


def require_odoo(done: Neutralized) -> None:
    """Refuse to call a restore neutralized where there was nothing to neutralize.

    Raises:
        NeutralizeError: the database has no tables of Odoo's.
    """
    if not done.is_odoo:
        raise NeutralizeError(
            f"{done.database} has no tables of Odoo's, and nothing was neutralized",
            hint=f"Correct `database` of {done.component}, or restore without --neutralize.",
        )


def _require_done(environment: Environment, database: str, mark: str) -> None:
    with _asking(environment, database) as source:
        left = [*ask_everything_left(source, database)]
        if not bears_mark(source, mark):
            left.append("it does not bear the mark")
    if left:
        raise NeutralizeError(
            f"{database} was neutralized, and something undid it: {'; '.join(left)}",
            hint="Look for triggers and policies on these tables; nothing of Odoo may be started on this copy.",
        )


def usable_scripts(
    record: ModuleRecord | None, installed: set[str], database: str
) -> tuple[tuple[ModuleScript, ...], tuple[str, ...]]:
    """Return the scripts of what is installed in the copy, and which of its modules nobody knows whether they have one.

    Raises:
        NeutralizeError: a module has a script that could not be taken at the backup.
    """
    if record is None:
        return (), ()
    refused = [f"{name} ({reason})" for name, reason in record.refused if name in installed]
    if refused:
        raise NeutralizeError(f"neutralize.sql of modules of {database} is not in the snapshot: {'; '.join(refused)}")
    scripts = tuple(item for item in record.scripts if item.module in installed)
    known = {name for name, _ in record.versions} - set(record.missing)
    return scripts, tuple(spoken_name(name) for name in sorted(installed - known))


def spoken_name(name: str) -> str:
    """Return a name that a hostile database made up so that it can be printed and recorded."""
    return "".join(letter if letter.isprintable() else f"\\x{ord(letter):02x}" for letter in name[:120])


def _http_actions(schema: OdooSchema, source: Asking) -> tuple[str, ...]:
    if schema.missing({"ir_act_server": "id name state code"}) is not None:
        return ()
    return tuple(f"{identity}: {spoken_name(name or '')}" for identity, name in source.scan(_ACTIONS_SQL))


def _scripts(
    repository: Repository, service: Service, component: FilesSettings, instant: datetime | None
) -> tuple[ModuleRecord | None, str | None]:
    """Return what the nearest snapshot of the documents knows of the modules; else why nobody does."""
    scope = repository.scope(service.name, component.name)
    for record in order_for_documents(repository.snapshots(scope).records, instant):
        found = modules_record(repository.reader(scope, record.id))
        if found is not None:
            return found, None
    return None, f"no snapshot of {component.name} has any; set `addons` of {component.name} and back up"


def _others(copy: Copy, done: set[str]) -> tuple[str, ...]:
    """Return the other databases of Odoo's in the cluster."""
    environment = copy.environment
    with _asking(environment, None) as source:
        names = [name for (name,) in source.scan(_DATABASES_SQL) if name is not None and name not in done]
    found = []
    for name in names:
        with _asking(environment, name) as source:
            if read_schema(source).is_odoo:
                found.append(spoken_name(name))
    return tuple(found)


@contextmanager
def _asking(environment: Environment, database: str | None) -> Iterator[Asking]:
    """Ask with no schema in sight but the catalogue, whatever the database has set for those who connect."""
    environment.require_own_socket()
    with (
        asking(
            environment.dsn, seconds=_QUESTION_SECONDS, database=database, application_name="drservice neutralize"
        ) as source,
        pinned(source),
    ):
        yield source


@contextmanager
def _inside(copy: Copy, database: str, *, user: str | None = None) -> Iterator[Session]:
    """Open a session to the server inside, and prove that it is that one before anything is asked of it.

    A physical copy has production's own system identifier, so that alone proves nothing: it is the process that listens
    which has to live in the environment.

    Raises:
        IsolationError: it is another server, or of another cluster.
    """
    environment = copy.environment
    environment.require_own_socket()
    dsn = environment.dsn if user is None else f"{environment.dsn} user={_quoted(user)}"
    with connect(dsn, application_name="drservice neutralize", database=database) as session:
        with cut_after(session, _QUESTION_SECONDS):
            _require_inside(session, copy, is_superuser=user is None)
        yield session


def _require_inside(session: Session, copy: Copy, *, is_superuser: bool) -> None:
    environment = copy.environment
    pid = session.listener_pid()
    if pid not in {item.pid for item in processes_of(environment.describe().path)}:
        raise IsolationError(
            f"process {pid} listens at the other end, which does not live in {environment.id}",
            hint="Something replaced the environment's socket. Nothing was changed; destroy this environment.",
        )
    if not is_superuser:
        return
    system_id, folder, recovering = session.row(
        "select system_identifier::pg_catalog.text, pg_catalog.current_setting('data_directory'),"
        " pg_catalog.pg_is_in_recovery() from pg_catalog.pg_control_system()"
    )
    if system_id != str(copy.system_id) or folder != _DATA_INSIDE:
        raise IsolationError(f"it is cluster {system_id} in {folder}, not the one that was recovered here")
    if recovering:
        raise NeutralizeError(f"the server in {environment.id} is in recovery, and cannot be changed")


def _quoted(value: str) -> str:
    """Quote a value of a libpq string (libpq, 34.1.1.1)."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
