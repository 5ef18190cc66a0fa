"""What one configuration file describes: services, their components and objectives.

Built by ``settings`` only; everything below works with these values and never sees YAML.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import Enum
from pathlib import Path
from typing import TypeAlias

from drservice.errors import UnknownNameError
from drservice.model.calendar import UTC_CALENDAR, Calendar
from drservice.model.checks import Expectation, Severity
from drservice.model.ids import ComponentName, ServiceName
from drservice.model.retention import RetentionPolicy
from drservice.model.schedule import Cron
from drservice.model.storing import NO_SETTINGS, StoreSettings

ODOO_OWN_OPTIONS = frozenset(
    {
        "addons_path", "data_dir", "dbfilter", "gevent_port", "list_db", "log_db", "logfile", "longpolling_port",
        "max_cron_threads", "pidfile", "proxy_mode", "syslog", "workers", "admin_passwd", "load_language",
    }
)  # fmt: skip
"""Options of Odoo's configuration file that an environment sets itself, so that a copy harms nobody."""
ODOO_OWN_PREFIXES = ("db_", "http_", "smtp_", "email_", "xmlrpc", "netrpc")
"""Likewise all options that begin so."""


class CaptureMethod(Enum):
    """How a PostgreSQL cluster is read."""

    AUTO = "auto"
    LOCAL = "local"
    PG_BASEBACKUP = "pg_basebackup"


class WalMode(Enum):
    """How WAL reaches the store."""

    ARCHIVE = "archive"
    STREAM = "stream"
    BOTH = "both"


@dataclass(frozen=True, slots=True, kw_only=True)
class SignerSettings:
    """A host whose objects are believed: Ed25519 public key (32 bytes) and its services (empty = all)."""

    name: str
    public_key: bytes
    services: tuple[ServiceName, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RepositorySettings:
    """Where the repository is and who may read and write it."""

    url: str
    recipients: tuple[str, ...] = ()
    identities: tuple[str, ...] = ()
    """Secret references; empty on hosts that only write."""
    identity_passphrase: str | None = None
    """Secret reference to the passphrase of protected identity files; ``None``: a terminal is asked."""
    signers: tuple[SignerSettings, ...] = ()
    bytes_per_second: int | None = None
    """What is moved to and from the store at most; set for the process of a throttled run only."""
    store: StoreSettings = NO_SETTINGS


@dataclass(frozen=True, slots=True, kw_only=True)
class WalSettings:
    """How the WAL of a cluster is shipped."""

    mode: WalMode = WalMode.ARCHIVE
    interval: timedelta = timedelta(milliseconds=250)
    """How long new WAL that is streamed may wait for more of it."""
    idle_interval: timedelta = timedelta(seconds=60)
    """The same for WAL that an idle server writes."""
    heartbeat: timedelta | None = timedelta(seconds=1)
    """From one commit with a time to the next while WAL is streamed; ``None``: none."""
    synchronous: bool = False
    """Commits wait for the repository: nothing waits for more."""
    from_disk: bool = True
    """A receiver on the database's host reads ``pg_wal`` itself while much is written, instead of being sent it."""
    node: str | None = None
    """The host that receives what is streamed; ``None``: the component's."""
    archive_wait: timedelta = timedelta(minutes=5)
    """How long a backup waits for its WAL to be in the store."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PostgresSettings:
    """A PostgreSQL cluster as a component."""

    name: ComponentName
    dsn: str
    """The server that is backed up: the primary, or a standby."""
    primary_dsn: str | None = None
    """The primary, where ``dsn`` leads to a standby."""
    data_directory: Path | None = None
    method: CaptureMethod = CaptureMethod.AUTO
    wal: WalSettings = field(default_factory=WalSettings)
    node: str | None = None
    workers: int = 2
    compression_level: int = 1

    @property
    def production_dsn(self) -> str:
        """Where commits are made: what is at risk is asked there, and restore points are left there."""
        return self.dsn if self.primary_dsn is None else self.primary_dsn


class FilesKind(Enum):
    """What a folder of files is."""

    ODOO_FILESTORE = "odoo-filestore"
    """Documents named by the SHA-1 of their content; the rows of a database refer to them."""
    DIRECTORY = "directory"
    """Anything else: restored as it was captured."""
    GIT = "git"
    """Clones, each as a bundle of its refs with what was not committed."""
    REDIS = "redis"
    """The content of a Redis as an RDB file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OdooProgram:
    """How Odoo itself is started in a recovery environment; all paths are of this host."""

    program: Path
    """Its start script."""
    python: Path | None = None
    """The folder of its virtual environment; ``None`` = the system's python3."""
    code: tuple[Path, ...] = ()
    """Folders with its packages."""
    folders: tuple[Path, ...] = ()
    """What else it reads, such as where links in its code lead."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Lines for its configuration file, none of those that an environment sets itself."""
    timeout: timedelta = timedelta(minutes=10)


@dataclass(frozen=True, slots=True, kw_only=True)
class FilesSettings:
    """A folder of files as a component."""

    name: ComponentName
    kind: FilesKind
    path: Path
    database: str | None = None
    """The database whose rows refer to the files; set for ``odoo-filestore`` only."""
    follows: ComponentName | None = None
    """The PostgreSQL component that holds ``database``; set for ``odoo-filestore`` only."""
    addons: tuple[Path, ...] = ()
    """Folders with Odoo's modules; for ``odoo-filestore`` only."""
    odoo: OdooProgram | None = None
    """How Odoo is started in a drill's environment, if it is; for ``odoo-filestore`` only."""
    stream: bool = False
    """Documents are captured as they come; for ``odoo-filestore`` only."""
    interval: timedelta = timedelta(seconds=2)
    """From one look for new documents to the next."""
    idle_interval: timedelta = timedelta(seconds=60)
    """How long the proof that nothing is missing may wait while nothing is new."""
    node: str | None = None
    workers: int = 2
    compression_level: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class GitSettings:
    """Git clones as a component."""

    name: ComponentName
    clones: tuple[Path, ...]
    node: str | None = None
    workers: int = 2
    compression_level: int = 1

    @property
    def kind(self) -> FilesKind:
        """What its snapshots are."""
        return FilesKind.GIT

    @property
    def follows(self) -> ComponentName | None:
        """No cluster."""
        return None

    @property
    def database(self) -> str | None:
        """No database."""
        return None


class RedisRestore(Enum):
    """What a restore does with the content of a Redis."""

    FLUSH = "flush"
    """It begins empty: what was in it is made anew, or nobody needs it."""
    LOAD = "load"
    """It gets the content of the snapshot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisSettings:
    """A Redis as a component: the whole server, whatever database the URL names."""

    name: ComponentName
    url: str
    password: str | None = None
    """A secret reference."""
    ca_file: Path | None = None
    """Certificates that are trusted instead of the system's; for ``rediss`` only."""
    restore: RedisRestore = RedisRestore.FLUSH
    node: str | None = None
    workers: int = 2
    compression_level: int = 1

    @property
    def kind(self) -> FilesKind:
        """What its snapshots are."""
        return FilesKind.REDIS

    @property
    def follows(self) -> ComponentName | None:
        """No cluster."""
        return None

    @property
    def database(self) -> str | None:
        """No PostgreSQL database."""
        return None


FilesComponent: TypeAlias = FilesSettings | GitSettings | RedisSettings
"""What is stored as files, after the clusters."""
ComponentSettings: TypeAlias = PostgresSettings | FilesComponent


@dataclass(frozen=True, slots=True, kw_only=True)
class BusinessCheck:
    """A question about the business, asked of a recovered database."""

    name: str
    component: ComponentName
    database: str | None
    """``None`` = the database that the component's dsn names."""
    sql: str
    expect: Expectation
    severity: Severity = Severity.CRITICAL
    owner: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Objectives:
    """What is promised: recovery point and recovery time."""

    rpo: timedelta | None = None
    rto: timedelta | None = None
    documents_rpo: timedelta | None = None


class DrillTarget(Enum):
    """How the instant of a drill is chosen."""

    LATEST = "latest"
    CONSISTENT = "consistent"
    """The newest instant that rows and documents share."""
    TIME = "time"
    RANDOM = "random"
    """From a seed that is committed to before anything is restored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrillPlan:
    """What a drill is to do."""

    name: str
    service: ServiceName
    environment: str = "sandbox"
    target: DrillTarget = DrillTarget.LATEST
    time: datetime | None = None
    """Set for ``TIME`` only."""
    within: timedelta | None = None
    """How far back a random instant may lie; set for ``RANDOM`` only."""
    runbook: str | None = None
    keep: bool = False
    neutralize: bool = True
    """Copies of Odoo are neutralized before they are asked; of a service without Odoo it says nothing."""
    schedule: Cron | None = None


class CatchUp(Enum):
    """What happens to slots at which nobody was there."""

    RUN_ONCE = "run-once"
    """They are recorded as missed, and one run is made for all of them."""
    SKIP = "skip"
    """They are recorded as missed; the next slot is the next run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedules:
    """When the runs of a service start, in the zone of its calendar."""

    backup: Cron | None = None
    verify: Cron | None = None
    drill: Cron | None = None
    """Of drills without a schedule of their own."""
    retention: Cron | None = None
    """When what has expired is let go; ``None`` = by hand only."""
    documents_every: timedelta | None = None
    """From one pass over the documents to the next; ``None`` = no passes between backups."""
    grace: timedelta = timedelta(hours=4)
    """How long after its slot a run may end before it is overdue; never beyond the next slot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A business service and its components."""

    name: ServiceName
    tier: int = 3
    owner: str = ""
    objectives: Objectives = field(default_factory=Objectives)
    components: Mapping[ComponentName, ComponentSettings] = field(default_factory=dict)
    checks: tuple[BusinessCheck, ...] = ()
    retention: RetentionPolicy = field(default_factory=RetentionPolicy)
    calendar: str | None = None
    """A name of ``Estate.calendars``; ``None`` = UTC without windows."""
    schedule: Schedules = field(default_factory=Schedules)
    catch_up: CatchUp = CatchUp.RUN_ONCE
    depends_on: tuple[str, ...] = ()
    """Names of services and of dependencies outside."""

    def component(self, name: str) -> ComponentSettings:
        """Return the named component.

        Raises:
            UnknownNameError: with the names that exist.
        """
        found = self.components.get(ComponentName(name))
        if found is None:
            raise UnknownNameError(
                f"service {self.name} has no component {name}",
                hint=f"Its components: {', '.join(self.components) or 'none'}.",
            )
        return found

    def databases(self) -> list[PostgresSettings]:
        """Return the PostgreSQL components, in the order of the configuration."""
        return [item for item in self.components.values() if isinstance(item, PostgresSettings)]

    def around(self, cluster: PostgresSettings) -> Service:
        """Return the service as one cluster sees it: without other clusters and what follows those."""
        kept = {
            name: item
            for name, item in self.components.items()
            if item is cluster or (isinstance(item, FilesComponent) and item.follows in {None, cluster.name})
        }
        return replace(
            self, components=kept, checks=tuple(check for check in self.checks if check.component == cluster.name)
        )

    def files(self) -> list[FilesComponent]:
        """Return the components that are stored as files, in the order of the configuration."""
        return [item for item in self.components.values() if isinstance(item, FilesComponent)]

    def filestores(self) -> list[FilesSettings]:
        """Return the components with Odoo's documents, in the order of the configuration."""
        return [
            item
            for item in self.components.values()
            if isinstance(item, FilesSettings) and item.kind is FilesKind.ODOO_FILESTORE
        ]

    def filestore(self, name: str | None = None) -> FilesSettings:
        """Return the named component with Odoo's documents, or the only one.

        Raises:
            UnknownNameError: unknown, of another kind, or a name is needed because there are several.
        """
        found = [item for item in self.filestores() if name in {None, item.name}]
        if len(found) == 1:
            return found[0]
        names = ", ".join(item.name for item in self.filestores()) or "none"
        wanted = f"no odoo-filestore {name}" if name is not None else f"{len(found)} components of kind odoo-filestore"
        raise UnknownNameError(f"service {self.name} has {wanted}", hint=f"Name one of: {names}.")

    def database(self, name: str | None = None) -> PostgresSettings:
        """Return the named PostgreSQL component, or the only one.

        Raises:
            UnknownNameError: unknown, of another kind, or a name is needed because there are several.
        """
        candidates = self.databases()
        names = ", ".join(item.name for item in candidates)
        if name is not None:
            found = self.component(name)
            if not isinstance(found, PostgresSettings):
                raise UnknownNameError(
                    f"component {name} of service {self.name} is no PostgreSQL cluster",
                    hint=f"Its clusters: {names or 'none'}.",
                )
            return found
        if len(candidates) != 1:
            alone = f"Without a cluster its folders are restored one by one: --component {'|'.join(self.components)}."
            raise UnknownNameError(
                f"service {self.name} has {len(candidates)} PostgreSQL components",
                hint=f"Name one with --component: {names}." if names else alone,
            )
        return candidates[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnchorSettings:
    """A second store that keeps checkpoints of the ledger."""

    name: str
    url: str
    store: StoreSettings = NO_SETTINGS


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceSettings:
    """Whose checkpoints of the ledger are believed, and where they are anchored."""

    log_keys: tuple[bytes, ...] = ()
    """Ed25519 public keys (32 bytes each)."""
    anchors: tuple[AnchorSettings, ...] = ()
    anchor_age: timedelta = timedelta(days=35)
    """An older last anchor is told as a weakness."""


class NotifyKind(Enum):
    """What somebody may be told about."""

    FAILURE = "failure"
    """A run failed or its slot was missed."""
    OBJECTIVE = "objective"
    """An objective is broken."""
    OVERDUE = "overdue"
    """What a schedule asks for has not happened."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NotifyPlace:
    """A place that is told. Its name may be shown; its URL is a secret and only referred to."""

    name: str
    url: str
    """A secret reference."""
    on: frozenset[NotifyKind] = frozenset(NotifyKind)


@dataclass(frozen=True, slots=True, kw_only=True)
class WebSettings:
    """Where pages and API answer, and how."""

    host: str = "127.0.0.1"
    port: int = 8484
    public_url: str | None = None
    """What people and links use; ``None`` = the address it listens on."""
    session: timedelta = timedelta(hours=12)
    """How long a sign-in lasts."""
    trusted_proxies: tuple[str, ...] = ()
    """Networks of proxies whose ``X-Forwarded-*`` headers are believed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSettings:
    """How hosts execute runs."""

    runs: int = 2
    """How many at one time."""
    lease: timedelta = timedelta(seconds=60)
    """How long a run stays with a host that is not heard from."""
    drain: timedelta = timedelta(minutes=10)
    """How long a host that is to stop waits for its runs."""
    throttled_rate: int | None = None
    """Bytes per second that a throttled run moves to and from the store; ``None`` = as many as it can."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HistorySettings:
    """How long the catalogue remembers what ran; the ledger does for ever."""

    runs: timedelta = timedelta(days=400)
    events: timedelta = timedelta(days=90)
    """Steps and notes of runs, and passes over documents as a whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estate:
    """One configuration file."""

    source: Path
    state_dir: Path
    repository: RepositorySettings
    services: Mapping[ServiceName, Service] = field(default_factory=dict)
    evidence: EvidenceSettings = field(default_factory=EvidenceSettings)
    drills: Mapping[str, DrillPlan] = field(default_factory=dict)
    catalogue: str = "embedded"
    """``embedded`` or a ``postgresql://`` URL without a password."""
    calendars: Mapping[str, Calendar] = field(default_factory=dict)
    notify: tuple[NotifyPlace, ...] = ()
    web: WebSettings = field(default_factory=WebSettings)
    node: NodeSettings = field(default_factory=NodeSettings)
    history: HistorySettings = field(default_factory=HistorySettings)

    def calendar(self, service: Service) -> Calendar:
        """Return the calendar of a service: the one it names, or UTC without windows."""
        return self.calendars[service.calendar] if service.calendar is not None else UTC_CALENDAR

    def drill(self, service: Service, name: str | None) -> DrillPlan:
        """Return the named plan of a service; without a name its only one, or one to the latest position.

        Raises:
            UnknownNameError: unknown, of another service, or a name is needed because there are several.
        """
        plans = {plan.name: plan for plan in self.drills.values() if plan.service == service.name}
        if name is not None:
            found = plans.get(name)
            if found is None:
                raise UnknownNameError(
                    f"service {service.name} has no drill {name}",
                    hint=f"Its drills: {', '.join(plans) or 'none'}.",
                )
            return found
        if len(plans) > 1:
            raise UnknownNameError(
                f"service {service.name} has {len(plans)} drills", hint=f"Name one with --plan: {', '.join(plans)}."
            )
        return next(iter(plans.values()), DrillPlan(name=f"{service.name}-latest", service=service.name))

    def service(self, name: str) -> Service:
        """Return the named service.

        Raises:
            UnknownNameError: with the names that exist.
        """
        found = self.services.get(ServiceName(name))
        if found is None:
            raise UnknownNameError(
                f"there is no service {name}",
                hint=f"The configuration declares: {', '.join(self.services) or 'no service'}.",
            )
        return found

    def selected(self, name: str | None) -> Sequence[Service]:
        """Return the named service, or all."""
        return [self.service(name)] if name else list(self.services.values())
