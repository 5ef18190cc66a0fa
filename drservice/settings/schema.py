"""The configuration file as pydantic models: every setting, its type, default and meaning.

The descriptions are the reference: ``docs/reference/configuration.md`` and the JSON Schema are generated from
them. Models are strict (a number is no text) and closed (an unknown key is an error).
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, Field

from drservice.settings.fields import (
    AbsolutePath,
    AvoidWindow,
    BucketOwner,
    Closed,
    ConnectTimeout,
    Day,
    Dsn,
    Duration,
    Expected,
    HeartbeatInterval,
    IdleInterval,
    Lease,
    Listen,
    Name,
    Network,
    OdooOption,
    OdooOptionText,
    OdooTimeout,
    Period,
    PeriodDays,
    PublicUrl,
    Rate,
    ReadTimeout,
    Recipient,
    RedisUrl,
    References,
    RepositoryUrl,
    RetryTime,
    Schedule,
    SecretReference,
    SignerKey,
    StorageClass,
    Text,
    Timezone,
    WalInterval,
    WebUrl,
    check_catalogue,
)


class Signer(Closed):
    """A host whose objects are believed."""

    key: SignerKey = Field(description="public key of the host: ed25519: and 32 bytes in Base64 or hex")
    services: list[Name] = Field(default=[], description="services it may write; empty means all")


class Lock(Closed):
    """Object Lock of the bucket: nothing is written to one that does not keep it."""

    mode: Literal["compliance", "governance"] = Field(description="compliance cannot be shortened by anybody")
    days: int = Field(
        ge=1, le=3650, description="how long what a backup stores or uses again is locked at least; up to 10 days more"
    )


class StorageClasses(Closed):
    """What kind of storage each kind of object is put on; what is absent goes where the bucket puts it."""

    packs: StorageClass | None = Field(default=None, description="data")
    nodes: StorageClass | None = Field(default=None, description="the trees of files: small, read by every restore")
    snapshots: StorageClass | None = Field(default=None, description="snapshots and recovery points")
    wal: StorageClass | None = Field(default=None, description="WAL")
    ledger: StorageClass | None = Field(default=None, description="records of evidence")


class Store(Closed):
    """How a bucket is reached and what it is asked for; a directory has none of this."""

    ca: AbsolutePath | None = Field(
        default=None, description="file with the certificates that are trusted instead of the system's"
    )
    expected_bucket_owner: BucketOwner | None = Field(
        default=None, description="the account that must own the bucket; every request names it"
    )
    storage_class: StorageClasses | None = Field(default=None, description="storage classes by kind of object")
    connect_timeout: ConnectTimeout = Field(
        default="5s", validate_default=True, description="longest wait for a connection (1s to 5m)"
    )
    read_timeout: ReadTimeout = Field(
        default="60s", validate_default=True, description="longest silence of the store within a request (1s to 15m)"
    )
    retry_for: RetryTime = Field(
        default="90s", validate_default=True, description="how long a request without an answer is repeated (1s to 1h)"
    )


class Copy(Closed):
    """A second repository that is kept up to date."""

    name: Name = Field(description="its name in messages")
    url: RepositoryUrl = Field(description="its address, as repository.url")


class Repository(Closed):
    """Where snapshots, WAL and evidence are, and who may read and write them."""

    url: RepositoryUrl = Field(
        description="s3://BUCKET/PREFIX?region=REGION (&endpoint=https://... for other stores) or file:///PATH"
    )
    recipients: list[Recipient] = Field(
        default=[], description="age or SSH recipients: who can read what is written (recovery site, sealed escrow)"
    )
    identity: References = Field(
        default=[],
        description="secret identities as references, one or a list; only on hosts that restore",
    )
    identity_passphrase: SecretReference | None = Field(
        default=None,
        description="passphrase of identity files made with `age -p`; without it a terminal is asked",
    )
    signers: dict[Name, Signer] = Field(default={}, description="hosts whose objects are believed, by name")
    lock: Lock | None = Field(
        default=None, description="Object Lock of the bucket: what is written cannot be deleted before its time"
    )
    store: Store = Field(default_factory=Store, description="how the bucket is reached and what it is asked for")
    copies: list[Copy] = Field(default=[], description="repositories kept as copies of this one")


class Objectives(Closed):
    """What is promised."""

    rpo: Duration | None = Field(default=None, description="most committed work that may be lost")
    rto: Duration | None = Field(default=None, description="longest time from decision to checks passed")
    documents_rpo: Duration | None = Field(default=None, description="the same as rpo, for documents")


class Wal(Closed):
    """How the WAL of a cluster is shipped."""

    mode: Literal["archive", "stream", "both"] = Field(
        default="archive", description="archive_command, streaming replication, or both"
    )
    interval: WalInterval = Field(
        default="250ms",
        validate_default=True,
        description="how long new WAL may wait for more of it before it is stored (20ms to 1m)",
    )
    idle_interval: IdleInterval = Field(
        default="60s", validate_default=True, description="the same for WAL that an idle server writes (1s to 1h)"
    )
    heartbeat: HeartbeatInterval = Field(
        default="1s",
        validate_default=True,
        description="how often a server whose WAL is streamed is given a small commit with a time (200ms to 1m), or"
        " off: then the window of an idle server ends with its last WAL",
    )
    synchronous: bool = Field(
        default=False,
        description="nothing waits for more: for servers that name the receiver in synchronous_standby_names, so that"
        " a commit is acknowledged only when it is in the repository",
    )
    from_disk: bool = Field(
        default=True,
        description="a receiver on the database's host (data_directory) reads pg_wal itself while much is written: it"
        " costs the database less than sending it; false: all of it is streamed",
    )
    node: Name | None = Field(
        default=None,
        description="the host that receives streamed WAL, if not the one that runs the backups: a receiver takes about"
        " a tenth of two processors under full load, and needs nothing of the database's host but a connection",
    )
    archive_wait: Duration = Field(
        default="5m", validate_default=True, description="how long a backup waits for its WAL to be in the repository"
    )


class PostgresComponent(Closed):
    """A PostgreSQL cluster."""

    kind: Literal["postgres"]
    dsn: Dsn = Field(description="libpq connection string without a password; may lead to a standby")
    primary_dsn: Dsn | None = Field(
        default=None, description="where dsn leads to a standby: its primary, which is asked to end WAL segments"
    )
    data_directory: AbsolutePath | None = Field(default=None, description="the cluster's folder, for method local")
    method: Literal["auto", "local", "pg_basebackup"] = Field(
        default="auto", description="how it is read; auto takes local where the data directory is readable"
    )
    wal: Wal = Field(default_factory=Wal, description="how its WAL is shipped")
    node: Name | None = Field(default=None, description="the host that runs its backups")
    workers: int = Field(default=2, ge=1, le=64, description="processes that read, compress and encrypt")
    compression_level: int = Field(default=1, ge=1, le=19, description="zstd level; higher is smaller and slower")


class OdooProgram(Closed):
    """How Odoo itself is started in a recovery environment: what it needs of this host, shown read-only inside."""

    program: AbsolutePath = Field(description="Odoo's start script (odoo, odoo-bin)")
    python: AbsolutePath | None = Field(
        default=None, description="the folder of its virtual environment; the system's python3 without"
    )
    code: list[AbsolutePath] = Field(
        default_factory=list, description="folders with its packages, if they are not in the virtual environment"
    )
    folders: list[AbsolutePath] = Field(
        default_factory=list, description="what else it reads: where links in its code lead, say"
    )
    options: dict[OdooOption, OdooOptionText] = Field(
        default_factory=dict, description="what else its configuration file has to say, such as server_wide_modules"
    )
    timeout: OdooTimeout = Field(
        default="10m", validate_default=True, description="how long it may take to start and to answer"
    )


class OdooFilestoreComponent(Closed):
    """The documents of an Odoo database."""

    kind: Literal["odoo-filestore"]
    path: AbsolutePath = Field(description="the filestore's folder")
    database: Text = Field(description="the database whose rows refer to these files")
    follows: Name | None = Field(
        default=None, description="the component with that database; needed if the service has several clusters"
    )
    addons: list[AbsolutePath] = Field(default_factory=list, description="folders with Odoo's modules, on this host")
    odoo: OdooProgram | None = Field(
        default=None, description="with it drills start Odoo itself on the recovered database and open a document"
    )
    stream: bool = Field(default=True, description="the host's node captures documents as they come, between backups")
    interval: IdleInterval = Field(
        default="2s", validate_default=True, description="from one look for new documents to the next (1s to 1h)"
    )
    idle_interval: IdleInterval = Field(
        default="60s",
        validate_default=True,
        description="how long the proof that nothing is missing may wait while nothing is new (1s to 1h)",
    )
    node: Name | None = Field(default=None, description="the host that runs its backups")


class DirectoryComponent(Closed):
    """A folder."""

    kind: Literal["directory"]
    path: AbsolutePath = Field(description="the folder")
    node: Name | None = Field(default=None, description="the host that runs its backups")


class GitComponent(Closed):
    """Git clones with configuration and code."""

    kind: Literal["git"]
    clones: list[AbsolutePath] = Field(
        min_length=1, description="folders of the clones; each is captured with what is not committed"
    )
    node: Name | None = Field(default=None, description="the host that runs its backups")


class RedisComponent(Closed):
    """A Redis database."""

    kind: Literal["redis"]
    url: RedisUrl = Field(
        description="redis://HOST:PORT/NUMBER, without a password; the whole server is captured. rediss:// for TLS"
    )
    password: SecretReference | None = Field(default=None, description="the password, as a reference")
    ca: AbsolutePath | None = Field(
        default=None, description="file with the certificates that are trusted instead of the system's, for rediss://"
    )
    restore: Literal["flush", "load"] = Field(
        default="flush",
        description="flush: it begins empty after a restore; load: it gets the content of the last snapshot, and what"
        " was written since is lost",
    )
    node: Name | None = Field(default=None, description="the host that runs its backups")


Component: TypeAlias = Annotated[
    PostgresComponent | OdooFilestoreComponent | DirectoryComponent | GitComponent | RedisComponent,
    Field(discriminator="kind"),
]


class Schedules(Closed):
    """When runs start, as cron expressions in the calendar's time zone (docs/calendars.md)."""

    backup: Schedule | None = Field(default=None, description="when backups start")
    verify: Schedule | None = Field(default=None, description="when stored data is verified")
    drill: Schedule | None = Field(
        default=None,
        description="when the service's drills start that have no schedule of their own;"
        " a service without drills recovers its latest position",
    )
    retention: Schedule | None = Field(
        default=None,
        description="when what `retention` does not keep is deleted; if absent nothing is, except by hand"
        " (`drservice retention`)",
    )
    documents_every: Duration | None = Field(
        default=None,
        description="from one pass over the documents to the next; if absent half of objectives.documents_rpo,"
        " and no passes between backups without that",
    )
    grace: Duration = Field(
        default="4h",
        validate_default=True,
        description="how long after its slot a run may end before it is overdue; never beyond the next slot",
    )


class Retention(Closed):
    """How long snapshots are kept."""

    within: Period | None = Field(default=None, description="keep every snapshot this young")
    daily: Period | None = Field(default=None, description="keep one snapshot a day for this long")
    weekly: Period | None = Field(default=None, description="keep one snapshot a week for this long")
    monthly: Period | None = Field(default=None, description="keep one snapshot a month for this long")
    yearly: Period | None = Field(default=None, description="keep one snapshot a year for this long")


class Check(Closed):
    """A business question asked of a recovered service."""

    name: Name = Field(description="its name in results")
    component: Name = Field(description="the PostgreSQL component it is asked of")
    database: Text | None = Field(default=None, description="the database; the one of dsn if absent")
    sql: Text = Field(description="a query that returns one value")
    expect: Expected = Field(description="what the value must be: '= 0', '>= n', 'unchanged', 'within 1% of baseline'")
    severity: Literal["critical", "warning"] = Field(
        default="critical", description="critical fails the drill, warning is reported"
    )
    owner: Text | None = Field(default=None, description="who is asked when it fails")


class Service(Closed):
    """A business service with its own objectives."""

    tier: int = Field(default=3, ge=1, le=5, description="1 is recovered first")
    owner: str = Field(default="", description="who answers for it")
    objectives: Objectives = Field(default_factory=Objectives, description="what is promised")
    calendar: Name | None = Field(default=None, description="one of calendars")
    depends_on: list[Name] = Field(default=[], description="services or dependencies it needs")
    components: dict[Name, Component] = Field(min_length=1, description="what is captured and restored, by name")
    schedule: Schedules = Field(default_factory=Schedules, description="when runs start")
    catch_up: Literal["run-once", "skip"] = Field(
        default="run-once",
        description="after slots at which no host was there: one run for all of them, or wait for the next slot;"
        " they are recorded as missed either way",
    )
    retention: Retention = Field(default_factory=Retention, description="how long snapshots are kept")
    checks: list[Check] = Field(default=[], description="business checks, beside the built-in ones")


class Anchor(Closed):
    """A second store that keeps checkpoints of the ledger."""

    name: Name = Field(description="its name in messages and bundles")
    url: RepositoryUrl = Field(description="its address, as repository.url; best in other hands than the repository")
    lock: Lock | None = Field(default=None, description="Object Lock of its bucket, as repository.lock")
    store: Store = Field(default_factory=Store, description="as repository.store")


class Evidence(Closed):
    """The ledger of evidence in the repository."""

    log_keys: list[SignerKey] = Field(
        default=[], description="public keys whose checkpoints are believed: what `drservice init` printed"
    )
    anchors: list[Anchor] = Field(default=[], description="second stores for checkpoints, against a rewritten ledger")
    anchor_age: Duration = Field(
        default="35d", validate_default=True, description="an older last anchor is told as a weakness"
    )


class Calendar(Closed):
    """The working time of a plant."""

    timezone: Timezone = Field(description="IANA time zone, such as Europe/Berlin")
    holidays: list[Day] = Field(default=[], description="days that count as Sundays in `avoid`; schedules go on")
    avoid: list[AvoidWindow] = Field(
        default=[],
        description="times without heavy work: 'Mon-Fri 05:30-22:30', '22:00-06:00', 'Sun', or a period and times,"
        " such as 'month-close 06:00-20:00'",
    )
    during_avoid: Literal["delay", "throttle"] = Field(
        default="delay",
        description="delay starts heavy work when the time ends, or throttled before an objective would break;"
        " throttle starts it at once with less of the machine",
    )
    periods: dict[Name, PeriodDays] = Field(
        default={},
        description="days with a name, such as month-close: 'first 2 days', 'last 3 days',"
        " '2026-12-21 to 2027-01-06', or several with 'and' between",
    )


class Dependency(Closed):
    """Something outside that a service needs."""

    kind: Literal["oidc", "https", "dns", "tls", "tcp"] = Field(description="how it is probed")
    url: WebUrl | None = Field(default=None, description="for oidc and https")
    host: Text | None = Field(default=None, description="for dns, tls and tcp")
    port: int | None = Field(default=None, ge=1, le=65535, description="for tls and tcp")
    valid_days: int | None = Field(default=None, ge=1, description="least remaining validity of a certificate")


class Drill(Closed):
    """A plan for a drill."""

    service: Name = Field(description="the service that is recovered")
    environment: Literal["sandbox", "docker", "kubernetes"] = Field(
        default="sandbox", description="where it is recovered"
    )
    target: Text = Field(default="latest", description="latest, consistent, random, or a time")
    within: Duration | None = Field(default=None, description="how far back a random target may be")
    schedule: Schedule | None = Field(default=None, description="when it is due")
    runbook: Name | None = Field(default=None, description="the runbook with its manual steps")
    keep: bool = Field(default=False, description="leave the environment running afterwards")
    neutralize: bool = Field(
        default=True, description="make copies of Odoo do nothing outside before they are checked or started"
    )


class Oidc(Closed):
    """Sign-in with an identity provider."""

    issuer: WebUrl = Field(description="the provider's address")
    client_id: Text = Field(description="how the provider knows us")
    client_secret: SecretReference | None = Field(default=None, description="the client's secret, as a reference")
    groups_claim: Text = Field(default="groups", description="the claim that lists a person's groups")


class Role(Closed):
    """Who holds a role."""

    groups: list[Text] = Field(default=[], description="groups of the identity provider")
    services: list[Name] = Field(default=[], description="services it is limited to; empty means all")


RoleName: TypeAlias = Literal["viewer", "auditor", "operator", "restorer", "approver", "admin"]


class Access(Closed):
    """Who may use web and API."""

    oidc: Oidc | None = Field(default=None, description="sign-in with an identity provider")
    roles: dict[RoleName, Role] = Field(default={}, description="who holds which role")


class Notification(Closed):
    """A place that is told."""

    name: Name | None = Field(default=None, description="its name in messages; place-1, place-2, ... if absent")
    url: SecretReference = Field(description="the service's URL as a reference: it is a secret")
    on: list[Literal["failure", "objective", "overdue"]] = Field(
        default=["failure", "objective", "overdue"], min_length=1, description="what it is told about"
    )


class Web(Closed):
    """Where pages and API answer."""

    listen: Listen = Field(
        default="127.0.0.1:8484",
        description="address and port; anything but this machine alone needs public_url and TLS in front",
    )
    public_url: PublicUrl | None = Field(
        default=None, description="the address that people and links use: https://HOST[:PORT]"
    )
    session: Duration = Field(default="12h", validate_default=True, description="how long a sign-in lasts")
    trusted_proxies: list[Network] = Field(
        default=[], description="networks of proxies that are believed about who is calling (X-Forwarded-For)"
    )


class Node(Closed):
    """How hosts execute runs."""

    runs: int = Field(default=2, ge=1, le=64, description="how many runs a host executes at one time")
    lease: Lease = Field(
        default="60s",
        validate_default=True,
        description="how long a run stays with a host that is not heard from (5s to 1h)",
    )
    drain: Duration = Field(
        default="10m", validate_default=True, description="how long a host that is told to stop waits for its runs"
    )
    throttled_rate: Rate | None = Field(
        default=None,
        description="what a throttled run moves to and from the repository at most, such as 20MB/s (1MB/s to 10GB/s);"
        " if absent only its priorities are lowered",
    )


class History(Closed):
    """How long the catalogue remembers what ran; what the ledger has on record stays."""

    runs: Duration = Field(
        default="400d",
        validate_default=True,
        description="runs that are over (at least 7d); the newest result of each schedule stays in any case",
    )
    events: Duration = Field(
        default="90d",
        validate_default=True,
        description="steps and notes of runs, and passes over documents (at least 7d, at most `runs`)",
    )


class Configuration(Closed):
    """Everything one configuration file describes."""

    version: Literal[1] = Field(description="version of this format")
    state_dir: AbsolutePath = Field(default="/var/lib/drservice", description="where this host keeps its state")
    repository: Repository = Field(description="where snapshots, WAL and evidence are")
    catalogue: Annotated[str, AfterValidator(check_catalogue)] = Field(
        default="embedded", description="embedded or postgresql://USER@HOST/DATABASE"
    )
    services: dict[Name, Service] = Field(default={}, description="business services, by name")
    calendars: dict[Name, Calendar] = Field(default={}, description="working times, by name")
    dependencies: dict[Name, Dependency] = Field(default={}, description="things outside, by name")
    drills: dict[Name, Drill] = Field(default={}, description="plans for drills, by name")
    evidence: Evidence = Field(default_factory=Evidence, description="the ledger of evidence")
    access: Access = Field(default_factory=Access, description="who may use web and API")
    notify: list[Notification] = Field(default=[], description="who is told")
    web: Web = Field(default_factory=Web, description="where pages and API answer")
    node: Node = Field(default_factory=Node, description="how hosts execute runs")
    history: History = Field(default_factory=History, description="how long the catalogue remembers what ran")
