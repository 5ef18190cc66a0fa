"""A service with weeks of history on any store: nights of snapshot, point and WAL, by a clock that is moved.

site = RetainedService.create(tmp_path)          # in memory; the store's clock is the site's
old = site.night(segment=10)                      # a snapshot that needs WAL from segment 10 on, its point, its WAL
site.proved(old)                                  # a restore with it goes on record
site.apply(); site.inspect()                      # retention, on this store or another view of it
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timedelta
from pathlib import Path

from drservice.canonical import Json
from drservice.evidence.ledger import Ledger
from drservice.evidence.policy import LedgerPolicy, LogKey, RecordKey
from drservice.evidence.signing import Signer
from drservice.evidence.statements import Occasion
from drservice.model.estate import PostgresSettings, Service
from drservice.model.evidence import EvidenceKind, ledger_origin
from drservice.model.ids import ComponentName, ServiceName
from drservice.model.points import RecoveryPoint, instant_of, member_of, state_of
from drservice.model.retention import Period, RetentionPolicy
from drservice.model.snapshot import POSTGRES_KIND, SnapshotRecord
from drservice.model.wal import Lsn, Timeline, segment_name
from drservice.objectstore.interface import Body, Capabilities, ObjectInfo, ObjectStore
from drservice.objectstore.memory import MemoryStore
from drservice.operations.evidence import Evidence, snapshot_subjects
from drservice.operations.progress import SilentProgress
from drservice.operations.records import recovery_fields, target_fields
from drservice.operations.retention import RetentionContext, RetentionOutcome, inspect_retention
from drservice.operations.retentionrecord import apply_retention
from drservice.repository.changes import ChangeRule
from drservice.repository.writer import CommitFacts, SnapshotWriter
from tests.doubles.clock import ManualClock
from tests.doubles.evidence import LOG, drill, ulid
from tests.doubles.repositories import SYSTEM_ID, Heard, Site, facts, noise

DAY_SECONDS = 86400
SEGMENT = 16 << 20
DELETIONS = 2 + 2 + 5
"""What expires of :meth:`RetainedService.filled`: points, snapshots, and segments 1 to 5."""
_SAID_FIRST = {field.name for field in fields(Occasion)}
"""What every record says of itself."""


@dataclass(kw_only=True)
class RetainedService:
    """One service on one store."""

    site: Site
    clock: ManualClock
    policy: RetentionPolicy = field(default_factory=lambda: RetentionPolicy(within=Period.parse("14d")))
    nights: int = 0

    @classmethod
    def create(cls, base: Path, *, store: ObjectStore | None = None) -> RetainedService:
        """Make it in memory, or on a store with a clock of its own: time passes only in :class:`Later` there."""
        clock = ManualClock() if store is None else ManualClock(store.server_time())
        site = Site.create(base, store=store or MemoryStore(clock=clock))
        site.clock = clock
        made = cls(site=site, clock=clock)
        evidence = made.evidence()
        evidence.ledger.begin(evidence.occasion(None, None))
        return made

    @classmethod
    def filled(cls, base: Path, store: ObjectStore) -> RetainedService:
        """Three snapshots with points and WAL; to a store of forty days later all but the newest have expired."""
        service = cls.create(base, store=store)
        service.wal(1, 2, 3)
        for segment in (4, 5, 6):
            service.night(segment=segment, pause_days=0.0001)  # stores tell whole seconds: names tell the order
        return service

    @property
    def service(self) -> Service:
        database = PostgresSettings(name=ComponentName("database"), dsn="")
        return Service(name=ServiceName("erp"), components={database.name: database}, retention=self.policy)

    # --- history ------------------------------------------------------------------------------------------------

    def night(self, *, segment: int, pause_days: float = 1) -> SnapshotRecord:
        """Archive a segment, take a snapshot that needs WAL from it on, publish its point; then time passes."""
        self.wal(segment)
        with self.begun() as writer:
            record = self.commit(writer, segment=segment)
        self.point(record)
        self.clock.pass_seconds(pause_days * DAY_SECONDS)
        return record

    def begun(self, store: ObjectStore | None = None) -> SnapshotWriter:
        """Begin a snapshot of a file that is new each time."""
        self.nights += 1
        self.site.write({f"base/1/{self.nights}": noise(70_000, self.nights)})
        return self.site.repository(store=store).writer(
            self.site.scope, state_dir=self.site.state_dir, workers=1, level=1
        )

    def commit(self, writer: SnapshotWriter, *, segment: int, ahead_days: float = 0) -> SnapshotRecord:
        """Read the files and commit, claiming an end that lies ahead."""
        writer.add_directory(b"base", 0o700)
        writer.add_directory(b"base/1", 0o700)
        writer.capture_files(self.site.files(), rule=ChangeRule.READ_ALL, progress=Heard())
        now = self.clock.now() + timedelta(days=ahead_days)
        return writer.commit(
            CommitFacts(
                kind=POSTGRES_KIND,
                method="local",
                started_at=now,
                stopped_at=now,
                facts=facts(start_lsn=Lsn(segment * SEGMENT + 40), stop_lsn=Lsn(segment * SEGMENT + 400)),
                attachments={"backup_label": b"START WAL LOCATION\n"},
                bad_pages=(),
            )
        )

    def point(self, record: SnapshotRecord) -> RecoveryPoint:
        """Publish the point of one snapshot."""
        members = [member_of(record)]
        repository = self.site.repository()
        return repository.points(self.service.name).publish(
            members,
            at=instant_of(members),
            state=state_of(members),
            secret={},
            signer=repository.host_key,
            now=self.clock.now(),
        )

    def wal(self, *segments: int, timeline: int = 1) -> None:
        """Archive segments."""
        for number in segments:
            self.site.put_wal(segment_name(Timeline(timeline), number, SEGMENT), noise(100, number))

    def proved(self, record: SnapshotRecord, *, outcome: str = "restored") -> None:
        """Put a restore with a snapshot on record."""
        self.evidence().require(
            EvidenceKind.RESTORE,
            service=self.service.name,
            run=ulid(self.nights),
            subject=snapshot_subjects([record]),
            fields={
                "outcome": outcome,
                "target": target_fields(
                    requested="latest", kind="latest", reached_time=None, reached_lsn=None, timeline=None
                ),
                **recovery_fields(snapshots=[(record.component, record.id)]),
            },
        )

    def drilled(self, record: SnapshotRecord, *, outcome: str = "passed", mutation: str | None = None) -> None:
        """Put a drill with a snapshot on record."""
        evidence = self.evidence()
        number = evidence.ledger.size()
        snapshots: list[Json] = [{"component": record.component, "snapshot": record.id}]
        model = drill(
            self.clock.now(), number, entry=0, outcome=outcome, changes={"snapshots": snapshots, "mutation": mutation}
        )
        said = {name: value for name, value in model.predicate.items() if name not in _SAID_FIRST}
        evidence.require(
            EvidenceKind.DRILL, service=self.service.name, run=ulid(number), subject=model.subject, fields=said
        )

    # --- retention ----------------------------------------------------------------------------------------------

    def evidence(self, store: ObjectStore | None = None) -> Evidence:
        """Open the ledger."""
        repository = self.site.repository()
        signer = Signer(self.site.host.host, self.site.host.private_key)
        return Evidence(
            repository=repository.id,
            ledger=Ledger(
                store or self.site.store,
                origin=ledger_origin(repository.id),
                policy=LedgerPolicy(
                    log_keys=(LogKey(name=LOG.name, public_key=LOG.public_key),),
                    executors=(RecordKey(name=signer.name, public_key=signer.public_key),),
                ),
                state_dir=self.site.state_dir,
                clock=self.clock,
                executor=signer,
                log=LOG,
            ),
            host=signer.name,
            clock=self.clock,
            signer=signer,
            problem=None,
            holds_log_key=True,
        )

    def context(self, store: ObjectStore | None = None) -> RetentionContext:
        """Return what retention works with, on this store or a view of it."""
        return RetentionContext(
            repository=self.site.repository(store=store or self.site.store),
            evidence=self.evidence(),
            state_dir=self.site.state_dir,
            clock=self.clock,
            progress=SilentProgress(),
        )

    def inspect(self, store: ObjectStore | None = None, *, accepted: bool = False) -> RetentionOutcome:
        return inspect_retention(self.context(store), self.service, accepted=accepted)

    def apply(self, store: ObjectStore | None = None, *, accepted: bool = False) -> RetentionOutcome:
        return apply_retention(self.context(store), self.service, accepted=accepted)

    # --- looking ------------------------------------------------------------------------------------------------

    def listing(self, part: str = "") -> list[str]:
        """Return the keys that contain a part; those of the ledger, which grows with each run, only if it names it."""
        return [key for key in self.site.sizes() if part in key and ("ledger" in part or not key.startswith("ledger/"))]

    def segments(self) -> list[int]:
        """Return the numbers of the archived segments."""
        return [int(key[-8:], 16) for key in self.listing(f"/wal/{SYSTEM_ID}/") if not key.endswith(".history")]

    def with_policy(self, within: str) -> RetainedService:
        """Return the service with a shorter or longer policy."""
        return replace(self, policy=RetentionPolicy(within=Period.parse(within)))


class Later:
    """A store as it will be after some days: the same objects, and a clock that is ahead."""

    def __init__(self, inner: ObjectStore, days: int) -> None:
        self._inner, self._ahead = inner, timedelta(days=days)

    @property
    def description(self) -> str:
        return self._inner.description

    @property
    def capabilities(self) -> Capabilities:
        return self._inner.capabilities

    def create(self, key: str, body: Body) -> None:
        self._inner.create(key, body)

    def read(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        return self._inner.read(key, offset=offset, length=length)

    def stat(self, key: str) -> ObjectInfo:
        return self._inner.stat(key)

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[ObjectInfo]:
        return self._inner.list(prefix, start_after=start_after)

    def read_versions(self, key: str) -> Iterator[bytes]:
        return self._inner.read_versions(key)

    def extend_lock(self, key: str, until: datetime) -> None:
        self._inner.extend_lock(key, until)

    def delete(self, key: str) -> None:
        self._inner.delete(key)

    def server_time(self) -> datetime:
        return self._inner.server_time() + self._ahead

    def close(self) -> None:
        self._inner.close()
