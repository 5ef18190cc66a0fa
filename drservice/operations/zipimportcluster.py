"""A new cluster in a sandbox that a dump is loaded into, made and ended with its environment.

It is of a version at least as new as the server the dump was taken from. The database is as Odoo makes one: UTF-8,
sorted by bytes, owned by a role that may do nothing else; nothing of the dump runs with more rights than that role has,
and nothing inside reaches a network. What the snapshot keeps of it lets nobody in without being asked: the rules that
let us in lie outside of the data directory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

from drservice.components.odoo.zipreading import Member, OdooZipFile
from drservice.components.postgres.connection import connect
from drservice.components.postgres.controlfile import ControlFile, read_control_file
from drservice.components.postgres.loading import Loaded, load_plain
from drservice.components.postgres.plaindump import PlainDump
from drservice.components.postgres.recovery import (
    Options,
    empty_ident,
    isolation_options,
    local_trust_hba,
    minimal_postgresql_conf,
)
from drservice.components.postgres.server import PostgresPrograms, find_programs, require_supported
from drservice.components.postgres.versions import SUPPORTED_MAJORS
from drservice.environments.interface import Environment, EnvironmentSpec
from drservice.environments.isolation import require_isolated
from drservice.environments.limits import Limits
from drservice.environments.sandbox import prepare_sandbox
from drservice.errors import (
    DrError,
    EnvironmentFailedError,
    ImportRefusedError,
    PostgresError,
    ProgramMissingError,
    ProgramVersionError,
)
from drservice.model.estate import PostgresSettings, Service
from drservice.model.ids import SystemId
from drservice.operations.causes import naming_the_cause
from drservice.operations.production import endpoints_of
from drservice.operations.progress import Progress
from drservice.operations.replay import await_connection
from drservice.operations.replaymemory import buffers_option
from drservice.operations.restorerequest import RestoreContext

OWNER = "odoo"
"""The role that owns the database and everything in it."""
_LIFETIME = timedelta(hours=24)
_INITDB_SECONDS = 300.0
_ANALYZE_SECONDS = 6 * 3600.0
_NICENESS = 10
_PUBLIC_IS_THE_OWNERS = 15
"""From this version on the schema ``public`` belongs to whoever owns the database; before, to the superuser."""
_LOADING: Options = (
    # Nothing here outlives a power cut: what counts is what the snapshot reads, and that is read from the cache.
    ("fsync", "off"),
    ("synchronous_commit", "off"),
    ("max_wal_size", "4GB"),
    ("checkpoint_timeout", "1h"),
    ("maintenance_work_mem", "256MB"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadingCluster:
    """The cluster while it is there."""

    environment: Environment
    programs: PostgresPrograms
    control: ControlFile
    database: str
    progress: Progress

    @property
    def system_id(self) -> SystemId:
        """Its own: no other cluster has it."""
        return SystemId(self.control.system_id)

    @property
    def dsn(self) -> str:
        """Reaches the server as its superuser; for the database ``postgres`` alone once the dump is loaded."""
        return self.environment.dsn

    @property
    def owner_dsn(self) -> str:
        """Reaches the server as the role that owns the loaded database, and may do nothing else.

        Whoever owns a database decides what a question to it runs: by a view, a cast, an operator, or what
        ``ALTER DATABASE ... SET search_path`` has looked through first.
        """
        return f"{self.dsn} user={OWNER}"

    def load(self, archive: OdooZipFile, member: Member) -> tuple[Loaded, tuple[str, ...]]:
        """Make the database and load the dump into it, all of it; return what that brought, and notes.

        Raises:
            ImportRefusedError: the dump is none, or cut, or the server refuses a statement.
            EnvironmentLimitError: the environment was ended for a broken limit.
        """
        name = _quoted(self.database)
        self.environment.require_own_socket()
        with connect(self.dsn, application_name="drservice import") as session:
            session.script(f"create role {OWNER} login".encode(), seconds=_INITDB_SECONDS)
            session.script(f"create database {name} owner {OWNER} template template0".encode(), seconds=_INITDB_SECONDS)
        self.progress.step("load the rows", total_bytes=member.size)
        with (
            connect(self.dsn, application_name="drservice import", database=self.database) as superuser,
            connect(self.owner_dsn, application_name="drservice import", database=self.database) as session,
        ):
            if self.programs.major < _PUBLIC_IS_THE_OWNERS:
                superuser.script(f"alter schema public owner to {OWNER}".encode(), seconds=_INITDB_SECONDS)

            def made_immutable(schema: str) -> None:
                text = f"alter function {_quoted(schema)}.unaccent(text) immutable"
                superuser.script(text.encode(), seconds=_INITDB_SECONDS)

            loaded = load_plain(session, PlainDump(self._heard(archive.read(member))), made_immutable=made_immutable)
        return loaded, self._analyze()

    def _analyze(self) -> tuple[str, ...]:
        """Gather the planner's statistics, which no dump has; without them a copy is slow, and still right."""
        self.progress.step("gather statistics")
        try:
            with connect(self.owner_dsn, application_name="drservice import", database=self.database) as session:
                session.script(b"analyze", seconds=_ANALYZE_SECONDS)
        except PostgresError as error:
            self.environment.require_within_limits()
            return (f"the planner has no statistics, run ANALYZE after a restore: {error.message}",)
        return ()

    def _heard(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            self.progress.advance(len(piece))
            yield piece


def choose_programs(majors: dict[str, int]) -> PostgresPrograms:
    """Return the programs of the oldest installed version that is not older than any of ``majors`` (by who says it).

    Raises:
        UnsupportedClusterError, ProgramMissingError, ProgramVersionError: there is none.
    """
    needed = max(SUPPORTED_MAJORS.start, *majors.values())
    require_supported(needed)
    first: DrError | None = None
    for major in range(needed, SUPPORTED_MAJORS.stop):
        try:
            return find_programs(major, program="initdb")
        except (ProgramMissingError, ProgramVersionError) as error:
            first = first or error
    assert first is not None
    who = next(name for name, major in majors.items() if major == needed)
    raise type(first)(
        f"the dump was made by PostgreSQL {needed} ({who}), and no server of this or a newer version is here:"
        f" {first.message}",
        hint=first.hint,
    )


@contextmanager
def loading_cluster(
    context: RestoreContext,
    service: Service,
    component: PostgresSettings,
    *,
    database: str,
    programs: PostgresPrograms,
) -> Iterator[LoadingCluster]:
    """Make a new cluster that runs in an environment of its own; both are gone when the block ends, however it ends.

    Raises:
        IsolationError: the environment leaks; nothing was started.
        EnvironmentFailedError, PostgresError: it cannot be made.
    """
    limits = Limits(niceness=_NICENESS)
    spec = EnvironmentSpec(
        service=service.name, purpose="import", expires_at=context.clock.now() + _LIFETIME, limits=limits
    )
    environment = prepare_sandbox(spec, environments_dir=context.environments_dir, clock=context.clock)
    try:
        with naming_the_cause(environment):
            context.progress.step("make a cluster")
            probes = environment.self_test(production=endpoints_of(component.dsn, component.production_dsn))
            require_isolated(probes)
            _initialise(environment, programs)
            control = read_control_file(environment.data)
            _start(environment, programs, control, (buffers_option(limits), *_LOADING))
            await_connection(environment, clock=context.clock)
            yield LoadingCluster(
                environment=environment,
                programs=programs,
                control=control,
                database=database,
                progress=context.progress,
            )
    finally:
        context.progress.step("destroy the environment")
        environment.destroy()


def _initialise(environment: Environment, programs: PostgresPrograms) -> None:
    """Make the cluster, with page checksums and its own rules closed: who takes it over opens them."""
    finished = environment.execute(
        [
            str(programs.path("initdb")),
            "--pgdata=/env/data",
            "--username=postgres",
            "--encoding=UTF8",
            "--locale=C",
            "--lc-ctype=C.UTF-8",
            "--text-search-config=simple",
            "--data-checksums",
            "--auth-local=peer",
            "--auth-host=scram-sha-256",
            "--no-sync",
        ],
        timeout_seconds=_INITDB_SECONDS,
    )
    if finished.status != 0:
        raise EnvironmentFailedError(
            f"initdb ended with {finished.status}: {finished.last_line()}",
            hint="Look at free space below state_dir, and at `drservice check`.",
        )


def _start(environment: Environment, programs: PostgresPrograms, control: ControlFile, extra: Options) -> None:
    options = (
        ("config_file", environment.write_configuration("postgresql.conf", minimal_postgresql_conf({}))),
        ("hba_file", environment.write_configuration("pg_hba.conf", local_trust_hba())),
        ("ident_file", environment.write_configuration("pg_ident.conf", empty_ident())),
        ("unix_socket_directories", "/env/sock"),
        ("port", "5432"),
        *isolation_options(control, major=programs.major),
        *extra,
    )
    arguments = [word for name, value in options for word in ("-c", f"{name}={value}")]
    environment.start([str(programs.path("postgres")), "-D", "/env/data", *arguments])


def head_versions(archive: OdooZipFile, member: Member) -> dict[str, int]:
    """Return the versions that the head of the dump tells, by who says it.

    Raises:
        ImportRefusedError: it does not begin as a plain dump does.
    """
    dump = PlainDump(archive.read(member))
    next(dump.statements(), None)
    if "from database" not in dump.versions:
        raise ImportRefusedError("dump.sql does not begin as pg_dump begins a plain dump")
    return {"the server it was taken from": dump.versions["from database"]}


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
