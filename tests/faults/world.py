"""One real cluster, a repository with two snapshots and their WAL, and cheap copies of it to be damaged.

A :class:`Site` is a repository with its state directory. Sites are copied as files, so that each test damages its
own. Everything runs through the operations the command line calls; only the stores are exchanged.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg

from drservice.clock import SystemClock
from drservice.environments.sandbox import list_sandboxes, open_sandbox
from drservice.model.estate import CaptureMethod, PostgresSettings, Service, WalSettings
from drservice.model.ids import ComponentName, ServiceName
from drservice.model.recovery import Target, TargetKind, choose_plan
from drservice.model.snapshot import SnapshotRecord
from drservice.model.wal import Lsn
from drservice.objectstore.directory import DirectoryStore
from drservice.objectstore.interface import ObjectStore
from drservice.operations.backup import BackupContext, BackupResult, run_backup
from drservice.operations.inventory import archive_of
from drservice.operations.progress import Progress, SilentProgress
from drservice.operations.restore import run_restore
from drservice.operations.restorerequest import Afterwards, RestoreContext, RestoreRequest, RestoreResult
from drservice.operations.wal import Pushed, push_wal
from drservice.repository.envelope import HostKey
from drservice.repository.hostkey import load_host_key, make_host_key
from drservice.repository.keys import Identities, make_identity
from drservice.repository.records import Scope
from drservice.repository.repository import Repository, create_repository, open_repository
from drservice.repository.verify import Depth, Verified, verify_component
from tests.doubles.cluster import Cluster, ClusterMaker, hand_over

SERVICE = ServiceName("erp")
COMPONENT = ComponentName("database")
LATEST = Target(kind=TargetKind.LATEST)
PREFIX = f"s/{SERVICE}/{COMPONENT}"


def at_time(instant: datetime) -> Target:
    """Return a time target."""
    return Target(kind=TargetKind.TIME, time=instant)


def end_of(record: SnapshotRecord) -> Target:
    """Return the target that is a snapshot's end."""
    return Target(kind=TargetKind.SNAPSHOT, snapshot=record.id)


@dataclass(kw_only=True)
class Listener:
    """A progress that remembers its notes and calls ``on_step`` at each step."""

    on_step: Callable[[str], None] = lambda _: None
    steps: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def step(self, name: str, *, total_bytes: int | None = None, total_items: int | None = None) -> None:
        del total_bytes, total_items
        self.steps.append(name)
        self.on_step(name)

    def advance(self, amount: int) -> None:
        del amount

    def note(self, text: str) -> None:
        self.notes.append(text)

    def done(self) -> None:
        pass


@dataclass(kw_only=True)
class Site:
    """A repository, the state directory of one host, and the cluster they belong to."""

    root: Path
    dsn: str
    data_directory: Path
    spool: Path
    """Where the cluster's archive_command puts WAL; :meth:`push_spool` archives it."""
    method: CaptureMethod = CaptureMethod.LOCAL
    primary_dsn: str | None = None
    """Where ``dsn`` leads to a standby."""
    archive_wait: timedelta = timedelta(seconds=60)
    opener: Callable[[], ObjectStore] | None = None
    """Opens the store; the directory ``repository`` if ``None``."""

    @property
    def repository_dir(self) -> Path:
        return self.root / "repository"

    @property
    def state_dir(self) -> Path:
        return self.root / "state"

    @property
    def environments_dir(self) -> Path:
        return self.state_dir / "environments"

    @property
    def identity_file(self) -> Path:
        return self.root / "identity.age"

    @property
    def component(self) -> PostgresSettings:
        return PostgresSettings(
            name=COMPONENT,
            dsn=self.dsn,
            primary_dsn=self.primary_dsn,
            data_directory=self.data_directory,
            method=self.method,
            wal=WalSettings(archive_wait=self.archive_wait),
            workers=1,  # everything in this process: a double is no use in another one
        )

    @property
    def service(self) -> Service:
        return Service(name=SERVICE, components={COMPONENT: self.component})

    # --- opening ------------------------------------------------------------------------------------------

    def create(self) -> None:
        """Make keys and an empty repository."""
        self.state_dir.mkdir(parents=True)
        if self.opener is None:
            self.repository_dir.mkdir()
        identity, _ = make_identity()
        self.identity_file.write_text(f"{identity}\n")
        self.identity_file.chmod(0o600)
        store = self.open_store()
        create_repository(store, signer=make_host_key(self.state_dir), signers=[], clock=SystemClock())
        store.close()

    def open_store(self) -> ObjectStore:
        """Open the store as it is."""
        return self.opener() if self.opener is not None else DirectoryStore(self.repository_dir)

    def repository(
        self,
        store: ObjectStore | None = None,
        *,
        identities: Identities | None = None,
        host_key: HostKey | None = None,
    ) -> Repository:
        """Open the repository through ``store``, with this host's keys unless others are given."""
        chosen = store or self.open_store()
        own = Identities.load([f"file:{self.identity_file}"])
        return open_repository(
            chosen,
            open_store=(lambda: store) if store is not None else self.open_store,
            signers=[],
            host_key=host_key or load_host_key(self.state_dir),
            identities=own if identities is None else identities,
            recipients=own.recipients,
            clock=SystemClock(),
        )

    def scope(self) -> Scope:
        """Return the component's scope."""
        return self.repository().scope(SERVICE, COMPONENT)

    def snapshots(self) -> tuple[SnapshotRecord, ...]:
        """Return the visible snapshots."""
        return self.repository().snapshots(self.scope()).records

    def objects(self, part: str = "") -> list[Path]:
        """Return the files of all objects whose key contains ``part``, by key."""
        return sorted(
            path
            for path in self.repository_dir.rglob("*")
            if path.is_file() and part in str(path.relative_to(self.repository_dir))
        )

    def key_of(self, path: Path) -> str:
        """Return the key of an object's file."""
        return str(path.relative_to(self.repository_dir))

    def give_back_timelines(self) -> None:
        """Forget the numbers that restores took: with each the next restore has more calls, and "every" has no end."""
        for path in self.objects("/timelines/"):
            path.unlink()

    # --- the verbs ----------------------------------------------------------------------------------------

    def backup(
        self,
        store: ObjectStore | None = None,
        *,
        progress: Progress | None = None,
        repository: Repository | None = None,
        state_dir: Path | None = None,
        archive: bool = True,
    ) -> BackupResult:
        """Take a snapshot while the spool is archived as it fills (or not)."""
        context = BackupContext(
            repository=repository or self.repository(store),
            state_dir=state_dir or self.state_dir,
            clock=SystemClock(),
            progress=progress or SilentProgress(),
        )
        with self.archiving() if archive else contextlib.nullcontext():
            return run_backup(context, self.service, self.component)

    def restore(
        self,
        target: Target,
        store: ObjectStore | None = None,
        *,
        into: Path | None = None,
        afterwards: Afterwards = Afterwards.STOP,
        progress: Progress | None = None,
        repository: Repository | None = None,
        **wishes: Any,
    ) -> RestoreResult:
        """Restore; into ``root/restored`` unless told otherwise."""
        place = None if afterwards is Afterwards.LEAVE_RUNNING else into or self.target_dir
        return run_restore(
            self.restore_context(repository or self.repository(store), progress),
            RestoreRequest(
                service=self.service,
                component=self.component,
                target=target,
                into=place,
                afterwards=afterwards,
                **wishes,
            ),
        )

    def restore_context(self, repository: Repository, progress: Progress | None = None) -> RestoreContext:
        """Return what a restore works with here."""
        return RestoreContext(
            repository=repository,
            state_dir=self.state_dir,
            clock=SystemClock(),
            progress=progress or SilentProgress(),
        )

    @property
    def target_dir(self) -> Path:
        return self.root / "restored"

    def restored_ids(self, target: Target, store: ObjectStore | None = None, **wishes: Any) -> list[int]:
        """Restore, ask the recovered server for its orders, and remove it."""
        result = self.restore(target, store, afterwards=Afterwards.LEAVE_RUNNING, **wishes)
        try:
            with psycopg.connect(result.environment.dsn, autocommit=True) as connection:
                return [row[0] for row in connection.execute("select id from orders order by id")]
        finally:
            open_sandbox(result.environment.path).destroy()

    def push(self, path: Path, store: ObjectStore | None = None) -> Pushed:
        """Archive one WAL file."""
        repository = self.repository(store)
        return push_wal(repository, repository.scope(SERVICE, COMPONENT), path, state_dir=self.state_dir)

    def push_spool(self) -> int:
        """Archive what the spool has and the repository has not; returns how many files."""
        repository = self.repository()
        scope = repository.scope(SERVICE, COMPONENT)
        archive = repository.wal(scope)
        known = {item.name for system_id in archive.system_ids() for item in archive.listing(system_id)}
        fresh = [path for path in sorted(self.spool.iterdir()) if path.name not in known and path.name[0] != "."]
        for path in fresh:
            push_wal(repository, scope, path, state_dir=self.state_dir)
        repository.store.close()
        return len(fresh)

    @contextlib.contextmanager
    def archiving(self) -> Iterator[None]:
        """Archive the spool as it fills; a problem there fails the test."""
        stop = threading.Event()
        problems: list[BaseException] = []

        def work() -> None:
            while not stop.wait(0.05):
                try:
                    self.push_spool()
                except BaseException as error:  # noqa: BLE001 - told by the test below
                    problems.append(error)
                    return

        thread = threading.Thread(target=work, name="test-archiver")
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
        assert not problems, problems

    # --- what must hold -----------------------------------------------------------------------------------

    def verify(self) -> Verified:
        """Verify everything, with data."""
        return verify_component(
            self.repository(),
            self.scope(),
            depth=Depth.DATA,
            percent=100,
            chosen=lambda _key, _percent: True,
            advance=lambda _: None,
        )

    def require_sound(self, *, snapshots: int) -> None:
        """The invariant: exactly so many snapshots are visible, each whole, with its WAL; no environment is left."""
        result = self.verify()
        assert result.findings == []
        assert result.decrypted
        assert len(result.snapshots) == snapshots
        repository = self.repository()
        for record in result.snapshots:
            choose_plan(end_of(record), [record], archive_of(repository, record).inventory)
        self.require_no_environment()

    def require_no_environment(self) -> None:
        """No environment is left, not even a dead one."""
        assert list_sandboxes(self.environments_dir) == []

    def require_not_restored(self) -> None:
        """What a failed restore leaves: no environment, and nothing that PostgreSQL would start."""
        self.require_no_environment()
        assert not (self.target_dir / "global" / "pg_control").exists()

    def require_never_promoted(self) -> None:
        """What a failed replay leaves: no environment, and a directory that says it is in recovery."""
        self.require_no_environment()
        assert (self.target_dir / "recovery.signal").exists()
        assert not list((self.target_dir / "pg_wal").glob("00000002*"))

    # --- moving -------------------------------------------------------------------------------------------

    def copy(self, root: Path) -> Site:
        """Return a copy to be damaged; times are kept, because they are part of what is checked."""
        subprocess.run(["cp", "-a", "--reflink=auto", str(self.root), str(root)], check=True)
        return Site(root=root, dsn=self.dsn, data_directory=self.data_directory, spool=self.spool)

    def to_json(self) -> str:
        """Return what another process needs to open this site."""
        return json.dumps([str(self.root), self.dsn, str(self.data_directory), str(self.spool)])

    @classmethod
    def from_json(cls, text: str) -> Site:
        """Open a site in another process."""
        root, dsn, data_directory, spool = json.loads(text)
        return cls(root=Path(root), dsn=dsn, data_directory=Path(data_directory), spool=Path(spool))


@dataclass(kw_only=True)
class World:
    """A running cluster and a template of a site: snapshots ``older`` and ``newer`` and WAL behind both."""

    cluster: Cluster
    template: Site
    older: SnapshotRecord
    newer: SnapshotRecord
    between: datetime
    """After ``older``, before ``newer``: orders 1 to 200 are committed."""
    late: datetime
    """After ``newer``: orders 1 to 400 are committed."""
    tail: list[str]
    """Names of the segments behind ``newer``, oldest first; the last ones are needed only for 'latest'."""

    def site(self, root: Path) -> Site:
        """Return a copy of the template at ``root`` (new)."""
        return self.template.copy(root)


def make_cluster(maker: ClusterMaker) -> tuple[Cluster, Path]:
    """Make and start a cluster with 1 MiB segments that archives into a spool (atomically)."""
    cluster = maker.make(wal_segment_mb=1)
    spool = cluster.root / "spool"
    spool.mkdir()
    hand_over(spool)
    command = f"test ! -f {spool}/%f && cp %p {spool}/.%f && mv {spool}/.%f {spool}/%f"
    cluster.configure(archive_mode="on", archive_command=f"'{command}'")
    cluster.start()
    return cluster, spool


def site_of(cluster: Cluster, spool: Path, root: Path) -> Site:
    """Return a site for a cluster; :meth:`Site.create` makes it."""
    return Site(root=root, dsn=cluster.dsn(), data_directory=cluster.data, spool=spool)


def insert(cluster: Cluster, first: int, last: int) -> datetime:
    """Commit orders ``first`` to ``last``, each in its own transaction, and return an instant behind them."""
    with cluster.connect() as connection:
        for number in range(first, last + 1, 20):
            connection.execute(f"insert into orders select generate_series({number}, {number + 19})".encode())
    time.sleep(0.01)
    instant = cluster.value("select clock_timestamp()")
    assert isinstance(instant, datetime)
    time.sleep(0.01)
    return instant


def make_world(maker: ClusterMaker, root: Path) -> World:
    """Make the world of this folder's tests (about 3 s)."""
    cluster, spool = make_cluster(maker)
    site = site_of(cluster, spool, root)
    site.create()
    cluster.sql("create table orders(id int primary key, at timestamptz default clock_timestamp())")
    insert(cluster, 1, 100)
    older = site.backup().record
    between = insert(cluster, 101, 200)
    insert(cluster, 201, 300)
    newer = site.backup().record
    tail = [cluster.switch_wal()]
    late = insert(cluster, 301, 400)
    tail.append(cluster.switch_wal())
    insert(cluster, 401, 500)
    tail += [cluster.switch_wal(), cluster.switch_wal()]
    cluster.wait_archived(tail[-1], spool)
    site.push_spool()
    site.require_sound(snapshots=2)
    return World(cluster=cluster, template=site, older=older, newer=newer, between=between, late=late, tail=tail)


def empty(folder: Path) -> None:
    """Remove what a failed restore left, as the message tells people to."""
    shutil.rmtree(folder, ignore_errors=True)


def flush_lsn(cluster: Cluster) -> Lsn:
    """Return the flushed position."""
    return Lsn.parse(str(cluster.value("select pg_current_wal_flush_lsn()::text")))
