"""Today in the demo: people at work, two backups, drills, a mistake, and the recovery from it.

Nothing here is a rehearsal path: WAL is archived by the real ``archive_command``; backup, restore, drill and evidence
are the operations that the commands call. The result is judged by the orders and documents that the plant's people saw
acknowledged, and by the drill, its counterpart that must fail, and the bundle's own verifier.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
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
from drservice.cli.demohostloss import HostLoss
from drservice.cli.demoproof import Proof, open_proof
from drservice.cli.demostory import NoteTeller, StepTeller, Story, clock
from drservice.cli.demostreams import Streams, streaming
from drservice.cli.formatting import format_bytes, format_seconds
from drservice.cli.oracle import (
    Document,
    Exposure,
    compare,
    compare_documents,
    document_exposure,
    exposure,
)
from drservice.cli.output import Colour, Span
from drservice.cli.plant import DATABASE, Digest, Outward, People, Plant, digest_of, orders_in, outward_of
from drservice.cli.plantdocuments import Filestore, documents_in
from drservice.clock import to_iso
from drservice.components.postgres.connection import connect
from drservice.environments.sandbox import open_sandbox
from drservice.errors import NoIdentityError, WalTimeoutError
from drservice.model.estate import FilesKind
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

_BEFORE = timedelta(seconds=1)
_WORK_SECONDS = 2.0
_UNNOTICED_SECONDS = 1.2
_LOOK_SECONDS = 0.1
_ARRIVAL_SECONDS = 120.0


@dataclass(slots=True, kw_only=True)
class Looks:
    """How much committed work was at risk, looked at again and again while the plant worked."""

    archive: WalArchive
    streams: Streams
    people: People
    record: SnapshotRecord
    seen: list[Exposure] = field(default_factory=list)
    documents: list[Exposure] = field(default_factory=list)

    def durable(self) -> Lsn:
        """Return the end of the WAL that is in the repository without a gap."""
        facts = self.record.postgres
        files = self.archive.listing(facts.system_id)
        archived = demosite.durable_end(files, first=facts.start_lsn, segment_bytes=facts.segment_bytes)
        return max(archived, self.streams.durable_wal() or archived)

    def look(self) -> None:
        """Ask what the repository holds, then the people what was acknowledged by now."""
        durable, stored = self.durable(), self.streams.durable_documents()
        at = datetime.now(UTC)
        self.seen.append(exposure(self.people.orders(), durable=durable, at=at))
        self.documents.append(document_exposure(self.people.documents(), durable=stored, at=at))

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
    documents_seconds: float
    wal_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Production:
    """The production host with its repository and ledger open."""

    plane: DataPlane
    ledger: Evidence

    def backup(self, story: Story) -> ServiceBackup:
        """Take a recovery point of the service now."""
        estate = self.plane.estate
        context = BackupContext(
            repository=self.plane.repository,
            state_dir=estate.state_dir,
            clock=self.plane.clock,
            progress=NoteTeller(story),
        )
        return run_service_backup(context, self.ledger, estate.service(demosite.SERVICE))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ordinary:
    """The first half of the story: from the first backup to the decision."""

    backups: tuple[ServiceBackup, ...]
    looks: Looks
    drill: DrillFacts
    mutation: MutationFacts
    dropped_at: datetime
    decision: Decision
    host_cannot_read: bool
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
        with open_proof(self.site, self.story) as proof, streaming(self.site, self.story) as streams:
            with open_data_plane(self.site.host()) as plane, open_evidence(plane) as ledger:
                ordinary = self._ordinary_days(Production(plane=plane, ledger=ledger), proof, streams)
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
                story=self.story,
                site=self.site,
                plant=self.plant,
                streams=streams,
                proof=proof,
                sold=sold,
                filed=(*self.history, *self.people.documents()),
            ).play()
            evidence = proof.evidence()
        facts = self._facts(ordinary, recovery, loss, evidence, began)
        return replace(facts, week=week)

    def _ordinary_days(self, production: Production, proof: Proof, streams: Streams) -> Ordinary:
        """Let people work, back up, drill beside them, and then make the mistake."""
        people = self.people
        people.start()
        self.story.chapter("Two backups while people work")
        first = self._backup(production, "first")
        record = first.databases[0].record
        repository = production.plane.repository
        archive = repository.wal(repository.scope(record.service, record.component))
        looks = Looks(archive=archive, streams=streams, people=people, record=record)
        with looks.looking():
            time.sleep(_WORK_SECONDS)
            second = self._backup(production, "second")
            # Before the mistake: a drill to an instant after it would find that a sequence has gone with its table.
            behind = second.databases[0].record.postgres
            self._await_wal(looks, behind.stop_lsn + behind.segment_bytes)  # instants to choose from
            drill, mutation = proof.drill(self._outward), proof.drill_that_must_fail()
            time.sleep(_UNNOTICED_SECONDS)
            dropped_at = self._drop()
            time.sleep(_UNNOTICED_SECONDS)
        decision = self._decide(people, looks, dropped_at - _BEFORE)
        return Ordinary(
            backups=(first, second),
            looks=looks,
            drill=drill,
            mutation=mutation,
            dropped_at=dropped_at,
            decision=decision,
            host_cannot_read=self._host_cannot_read(looks),
            people=people,
        )

    def _outward(self) -> Outward:
        with connect(self.plant.dsn, application_name="drservice demo") as session:
            return outward_of(session)

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

    def _drop(self) -> datetime:
        self.story.chapter("The mistake")
        dropped_at = datetime.now(UTC)
        with connect(self.plant.dsn, application_name="a tired hand") as session:
            session.rows("drop table mrp_production cascade")
        self.story.line(Span(f"{clock(dropped_at)}  DROP TABLE mrp_production CASCADE;", Colour.BAD))
        return dropped_at

    def _decide(self, people: People, looks: Looks, target: datetime) -> Decision:
        """Decide to restore, and wait until the documents of that instant and the last WAL are in the repository."""
        for complaint in people.complaints:
            self.story.line(f"{clock(complaint.at)}  {complaint.who}: {complaint.what.splitlines()[0]}")
        people.stop()
        decided_at, decided = datetime.now(UTC), time.monotonic()
        self.story.line(f"{clock(decided_at)}  sales went on; we decide to restore to one second before")
        with connect(self.plant.dsn, application_name="drservice demo") as session:
            needed = Lsn.parse(session.row("select pg_current_wal_flush_lsn()::text")[0])
            session.rows("select pg_switch_wal()")
        self._await(looks, f"the documents of {to_iso(target)}", lambda: _is_reached(looks, target))
        captured = time.monotonic()
        self._await_wal(looks, needed)
        self.story.line("the documents of that instant and the last WAL are in the repository")
        return Decision(
            at=decided_at,
            clock=decided,
            documents_seconds=captured - decided,
            wal_seconds=time.monotonic() - captured,
        )

    def _await_wal(self, looks: Looks, needed: Lsn) -> None:
        self._await(looks, f"the WAL up to {needed}", lambda: looks.durable() >= needed)

    def _await(self, looks: Looks, what: str, is_there: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _ARRIVAL_SECONDS
        while not is_there():
            looks.streams.require_running()
            if time.monotonic() > deadline:
                raise WalTimeoutError(f"{what} did not reach the repository: {self.plant.last_words()}")
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
            gone = not session.rows("select from pg_class where relname = 'mrp_production'")
        objectives = self.site.recovery().service(demosite.SERVICE).objectives
        assert objectives.rpo is not None
        assert objectives.rto is not None
        phases = dict(restored.phases)
        phases["check"] += recovery.check_seconds
        plan = restored.planned.resolved.plan
        return Facts(
            backups=tuple(_backup_facts(result) for result in ordinary.backups),
            exposures=tuple(ordinary.looks.seen),
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
            exposures=tuple(ordinary.looks.documents),
            rpo_promised_seconds=promised.total_seconds(),
        )


def _is_reached(looks: Looks, instant: datetime) -> bool:
    """Tell whether every document that rows committed by an instant refer to is in the repository."""
    durable = looks.streams.durable_documents()
    return durable is not None and durable >= instant


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
