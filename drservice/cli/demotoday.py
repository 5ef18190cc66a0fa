"""Today in the demo: people at work, two backups, drills, a mistake, and the recovery from it.

Nothing here is a rehearsal path: WAL is archived by the real ``archive_command``; backup, restore, drill and evidence
are the operations that the commands call. The result is judged by the orders and documents that the plant's people saw
acknowledged, and by the drill, its counterpart that must fail, and the bundle's own verifier.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

from drservice.cli import demosite
from drservice.cli.demofacts import (
    BackupFacts,
    DocumentFacts,
    DrillFacts,
    EvidenceFacts,
    Facts,
    HostLossFacts,
    MutationFacts,
    WeekFacts,
)
from drservice.cli.demohostloss import HostLoss, Shipping, shipping
from drservice.cli.demoproof import Proof, open_proof
from drservice.cli.demostory import NoteTeller, StepTeller, Story, clock
from drservice.cli.formatting import format_bytes, format_seconds
from drservice.cli.oracle import Document, Exposure, compare, compare_documents, exposure
from drservice.cli.output import Colour, Span
from drservice.cli.plant import DATABASE, Digest, People, Plant, digest_of, orders_in
from drservice.cli.plantdocuments import Filestore, documents_in
from drservice.clock import to_iso
from drservice.components.postgres.connection import connect
from drservice.environments.sandbox import open_sandbox
from drservice.errors import NoIdentityError, WalTimeoutError
from drservice.model.estate import FilesKind
from drservice.model.ids import ComponentName
from drservice.model.recovery import Target, TargetKind
from drservice.model.snapshot import SnapshotRecord
from drservice.model.wal import Lsn, WalFileName
from drservice.operations.backup import BackupContext
from drservice.operations.evidence import Evidence
from drservice.operations.restorerequest import Afterwards, RestoreRequest, RestoreResult
from drservice.operations.servicebackup import ServiceBackup, run_service_backup
from drservice.operations.servicerestore import document_counts, restore_service
from drservice.repository.walarchive import WalArchive
from drservice.wiring.data_plane import DataPlane, open_data_plane
from drservice.wiring.evidence import open_evidence

DOCUMENTS = ComponentName("documents")

_BEFORE = timedelta(seconds=1)
_WORK_SECONDS = 2.0
_UNNOTICED_SECONDS = 1.5
_LOOK_SECONDS = 0.1
_ARCHIVE_WAIT_SECONDS = 120.0


@dataclass(slots=True, kw_only=True)
class Looks:
    """How much committed work was at risk, looked at again and again while the plant worked."""

    archive: WalArchive
    shipping: Shipping
    people: People
    record: SnapshotRecord
    seen: list[Exposure] = field(default_factory=list)

    def durable(self) -> Lsn:
        """Return the end of the WAL that is in the repository without a gap."""
        facts = self.record.postgres
        files = self.archive.listing(facts.system_id)
        archived = demosite.durable_end(files, first=facts.start_lsn, segment_bytes=facts.segment_bytes)
        return max(archived, self.shipping.durable() or archived)

    def look(self) -> Exposure:
        """Ask the repository what it holds, then the people what was acknowledged by now."""
        durable = self.durable()
        found = exposure(self.people.orders(), durable=durable, at=datetime.now(UTC))
        self.seen.append(found)
        return found

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Look ten times a second while the block runs; a look that failed is raised at its end."""
        stop = threading.Event()
        with ThreadPoolExecutor(max_workers=1) as pool:
            looks = pool.submit(self._look_until, stop)
            try:
                yield
            finally:
                stop.set()
            looks.result()

    def _look_until(self, stop: threading.Event) -> None:
        while not stop.wait(_LOOK_SECONDS):
            self.look()


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """When it was decided to restore, recovery time counts from here, and what was fetched from production then."""

    at: datetime
    clock: float
    documents: SnapshotRecord
    documents_seconds: float
    wal_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Production:
    """The production host with its repository and ledger open."""

    plane: DataPlane
    ledger: Evidence

    def backup(self, story: Story, only: ComponentName | None = None) -> ServiceBackup:
        """Take a recovery point of the service now, or a snapshot of one component."""
        estate = self.plane.estate
        context = BackupContext(
            repository=self.plane.repository,
            state_dir=estate.state_dir,
            clock=self.plane.clock,
            progress=NoteTeller(story),
        )
        return run_service_backup(context, self.ledger, estate.service(demosite.SERVICE), only)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ordinary:
    """The first half of the story: from the first backup to the decision."""

    backups: tuple[ServiceBackup, ...]
    looks: tuple[Exposure, ...]
    drill: DrillFacts
    mutation: MutationFacts
    dropped_at: datetime
    decision: Decision
    host_cannot_read: bool
    passes: tuple[SnapshotRecord, ...]
    """Everything that captured documents, in order."""
    people: People

    @property
    def target(self) -> datetime:
        """The instant to restore to."""
        return self.dropped_at - _BEFORE


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """What the recovered service holds."""

    restored: RestoreResult
    orders: dict[str, int]
    documents: dict[str, str | None]
    history_is_the_same: bool
    checked: float
    """When the last comparison was done, by the monotonic clock."""
    check_seconds: float


@dataclass(slots=True, kw_only=True)
class Today:
    """The day in progress: the plant's server runs with archiving on, its people come to work."""

    story: Story
    site: demosite.Site
    plant: Plant
    people: People
    history: list[Document]
    """What was filed before anybody came to work."""
    digest: Digest
    """Of the rows that were there before."""

    def play(self, week: WeekFacts | None) -> Facts:
        """Play all steps and return what was seen; ``week``: what was seen before."""
        began = datetime.now(UTC)
        with open_proof(self.site, self.story) as proof, self._streaming() as stream:
            with open_data_plane(self.site.host()) as plane, open_evidence(plane) as ledger:
                ordinary = self._ordinary_days(Production(plane=plane, ledger=ledger), proof, stream)
            restored = self._restore(proof, ordinary.target)
            mark = time.monotonic()
            orders, documents, same = self._ask(restored)
            checked = time.monotonic()
            recovery = Recovery(
                restored=restored,
                orders=orders,
                documents=documents,
                history_is_the_same=same,
                checked=checked,
                check_seconds=checked - mark,
            )
            sold = tuple(order for order in self.people.orders() if "SO-" in order.number)
            loss = HostLoss(
                story=self.story, site=self.site, plant=self.plant, shipping=stream, proof=proof, sold=sold
            ).play()
            evidence = proof.evidence()
        facts = self._facts(ordinary, recovery, loss, evidence, began)
        return replace(facts, week=week)

    @contextmanager
    def _streaming(self) -> Iterator[Shipping]:
        self.story.chapter("The WAL, as it is written")
        with shipping(self.site, self.story) as stream:
            yield stream

    def _ordinary_days(self, production: Production, proof: Proof, stream: Shipping) -> Ordinary:
        """Let people work, back up, drill beside them, and then make the mistake."""
        people = self.people
        people.start()
        self.story.chapter("Two backups while people work")
        first = self._backup(production, "first")
        record = first.databases[0].record
        repository = production.plane.repository
        archive = repository.wal(repository.scope(record.service, record.component))
        looks = Looks(archive=archive, shipping=stream, people=people, record=record)
        with looks.looking():
            time.sleep(_WORK_SECONDS)
            second = self._backup(production, "second")
            # Before the mistake: a drill to an instant after it would find that a sequence has gone with its table.
            with people.filing_closed():
                behind = second.databases[0].record.postgres
                self._await_wal(looks, behind.stop_lsn + behind.segment_bytes)  # instants to choose from
                covered = self._documents(production)
                drill, mutation = proof.drill(), proof.drill_that_must_fail()
            time.sleep(_UNNOTICED_SECONDS)
            dropped_at = self._drop()
            time.sleep(_UNNOTICED_SECONDS)
        decision = self._decide(production, people, looks)
        return Ordinary(
            backups=(first, second),
            looks=tuple(looks.seen),
            drill=drill,
            mutation=mutation,
            dropped_at=dropped_at,
            decision=decision,
            host_cannot_read=self._host_cannot_read(looks),
            passes=(*(documents_of(result) for result in (first, second)), covered, decision.documents),
            people=people,
        )

    def _backup(self, production: Production, which: str) -> ServiceBackup:
        result = production.backup(self.story)
        facts = _backup_facts(result)
        self.story.line(
            f"{which + ':':<7} {format_bytes(facts.source_bytes)} of files, read {format_bytes(facts.read_bytes)},"
            f" stored {format_bytes(facts.stored_bytes)} ({format_seconds(facts.seconds)})"
        )
        for record in result.records:
            self.story.aside(
                f"        {record.component}: {record.files} files, stored {format_bytes(record.stored_bytes)}"
            )
        return result

    def _documents(self, production: Production) -> SnapshotRecord:
        """Take a pass over the documents: an instant after the newest one would lack what was filed since."""
        self.story.line(f"$ drservice backup {demosite.SERVICE} --component {DOCUMENTS}")
        result = production.backup(self.story, DOCUMENTS)
        (record,) = result.records
        seconds = (result.ended_at - result.started_at).total_seconds()
        self.story.line(
            f"documents filed since the last pass: {format_bytes(record.stored_bytes)} ({format_seconds(seconds)})"
        )
        return record

    def _drop(self) -> datetime:
        self.story.chapter("The mistake")
        dropped_at = datetime.now(UTC)
        with connect(self.plant.dsn, application_name="a tired hand") as session:
            session.rows("drop table work_order")
        self.story.line(Span(f"{clock(dropped_at)}  DROP TABLE work_order;", Colour.BAD))
        return dropped_at

    def _decide(self, production: Production, people: People, looks: Looks) -> Decision:
        """Decide to restore, and bring the last documents and the last WAL into the repository."""
        for complaint in people.complaints:
            self.story.line(f"{clock(complaint.at)}  {complaint.who}: {complaint.what.splitlines()[0]}")
        people.stop()
        decided_at, decided = datetime.now(UTC), time.monotonic()
        self.story.line(f"{clock(decided_at)}  sales went on; we decide to restore to one second before")
        with connect(self.plant.dsn, application_name="drservice demo") as session:
            needed = Lsn.parse(session.row("select pg_current_wal_flush_lsn()::text")[0])
            session.rows("select pg_switch_wal()")
        record = self._documents(production)
        captured = time.monotonic()
        self._await_wal(looks, needed)
        self.story.line("the last WAL is in the repository")
        return Decision(
            at=decided_at,
            clock=decided,
            documents=record,
            documents_seconds=captured - decided,
            wal_seconds=time.monotonic() - captured,
        )

    def _await_wal(self, looks: Looks, needed: Lsn) -> None:
        deadline = time.monotonic() + _ARCHIVE_WAIT_SECONDS
        while looks.durable() < needed:
            if time.monotonic() > deadline:
                raise WalTimeoutError(f"the WAL up to {needed} did not reach the repository: {self.plant.last_words()}")
            time.sleep(_LOOK_SECONDS)

    def _host_cannot_read(self, looks: Looks) -> bool:
        """Tell whether the production host fails to open even the WAL that it wrote itself."""
        system_id = looks.record.postgres.system_id
        newest = max(item.name for item in looks.archive.listing(system_id))
        try:
            looks.archive.fetch(WalFileName.parse(newest), system_id=system_id)
        except NoIdentityError as error:
            self.story.aside(f"production tries to read its own WAL: error[{error.code}], it has no identity")
            return True
        return False

    def _restore(self, proof: Proof, target: datetime) -> RestoreResult:
        self.story.chapter("The recovery")
        self.story.line(f"$ drservice restore {demosite.SERVICE} --to {to_iso(target)} --start")
        service = proof.estate.service(demosite.SERVICE)
        request = RestoreRequest(
            service=service,
            component=service.database(),
            target=Target(kind=TargetKind.TIME, time=target),
            into=None,
            afterwards=Afterwards.LEAVE_RUNNING,
            files=tuple(service.files()),
        )
        return restore_service(proof.context(StepTeller(self.story)), proof.ledger, request)

    def _ask(self, restored: RestoreResult) -> tuple[dict[str, int], dict[str, str | None], bool]:
        """Ask the recovered service for its orders and documents, and whether the rows from before are as they were."""
        open_sandbox(restored.environment.path).require_own_socket()
        filestore = Filestore(root_of_documents(restored))
        with connect(_dsn(restored), application_name="drservice demo") as session:
            orders, documents = orders_in(session), documents_in(session, filestore)
            same = digest_of(session) == self.digest
        self.story.line(
            f"isolation: {len(restored.isolation)} probes from inside found no way out;"
            f" timeline {restored.reached.timeline}"
        )
        for text in restored.reached.evidence:
            self.story.aside(f"- {text}")
        counts = document_counts(restored)
        assert counts is not None, "the service has documents"
        self.story.line(f"{counts.expected} documents that the recovered rows refer to, {counts.missing} missing")
        return orders, documents, same

    def _facts(
        self, ordinary: Ordinary, recovery: Recovery, loss: HostLossFacts, evidence: EvidenceFacts, began: datetime
    ) -> Facts:
        restored, decision = recovery.restored, ordinary.decision
        orders = ordinary.people.orders()
        with connect(self.plant.dsn, application_name="drservice demo") as session:
            gone = not session.rows("select from pg_class where relname = 'work_order'")
        objectives = self.site.recovery().service(demosite.SERVICE).objectives
        assert objectives.rpo is not None
        assert objectives.rto is not None
        phases = dict(restored.phases)
        phases["check"] += recovery.check_seconds
        plan = restored.planned.resolved.plan
        return Facts(
            backups=tuple(_backup_facts(result) for result in ordinary.backups),
            exposures=ordinary.looks,
            orders=tuple(order for order in orders if order.begun >= began),
            found=frozenset(recovery.orders),
            comparison=compare(orders, recovery.orders, ordinary.target),
            documents=self._document_facts(ordinary, recovery, objectives.documents_rpo),
            history_rows=self.digest.rows,
            history_is_the_same=recovery.history_is_the_same,
            mistake_is_real=gone,
            host_cannot_read=ordinary.host_cannot_read,
            target=ordinary.target,
            dropped_at=ordinary.dropped_at,
            decided_at=decision.at,
            used_snapshot=plan.snapshot.id,
            used_from=plan.snapshot.started_at,
            reached=restored.reached.time,
            probes=len(restored.isolation),
            phases={"documents": decision.documents_seconds, "wal": decision.wal_seconds, **phases},
            rto_seconds=recovery.checked - decision.clock,
            rpo_promised_seconds=objectives.rpo.total_seconds(),
            rto_promised_seconds=objectives.rto.total_seconds(),
            drill=ordinary.drill,
            mutation=ordinary.mutation,
            host_loss=loss,
            evidence=evidence,
            repository_bytes=self.site.repository_bytes(),
            environment=restored.environment.id,
            dsn=_dsn(restored),
        )

    def _document_facts(self, ordinary: Ordinary, recovery: Recovery, promised: timedelta | None) -> DocumentFacts:
        assert promised is not None
        counts = document_counts(recovery.restored)
        assert counts is not None, "the service has documents"
        return DocumentFacts(
            comparison=compare_documents(
                [*self.history, *ordinary.people.documents()], recovery.documents, ordinary.target
            ),
            expected=counts.expected,
            missing=counts.missing,
            corrupt=counts.corrupt,
            rows=len(recovery.documents),
            root=str(root_of_documents(recovery.restored)),
            rpo_seconds=longest_wait(ordinary.passes),
            rpo_promised_seconds=promised.total_seconds(),
        )


def documents_of(result: ServiceBackup) -> SnapshotRecord:
    """Return the snapshot of the documents."""
    return next(record for record in result.records if record.component == DOCUMENTS)


def longest_wait(passes: Sequence[SnapshotRecord]) -> float:
    """Return the longest time that a document may have waited: filed as one pass began, seen by the next."""
    return max((after.stopped_at - before.started_at).total_seconds() for before, after in pairwise(passes))


def root_of_documents(restored: RestoreResult) -> Path:
    """Return the recovered filestore."""
    return next(item.root for item in restored.files if item.component.kind is FilesKind.ODOO_FILESTORE)


def _dsn(restored: RestoreResult) -> str:
    return restored.environment.dsn.replace("dbname=postgres", f"dbname={DATABASE}")


def _backup_facts(result: ServiceBackup) -> BackupFacts:
    database = result.databases[0].record
    assert result.point is not None, "the whole service was backed up"
    return BackupFacts(
        point=result.point.id,
        snapshot=database.id,
        started_at=database.started_at,
        stopped_at=database.stopped_at,
        source_bytes=sum(record.source_bytes for record in result.records),
        read_bytes=sum(record.read_bytes for record in result.records),
        stored_bytes=sum(record.stored_bytes for record in result.records),
        seconds=(result.ended_at - result.started_at).total_seconds(),
    )
