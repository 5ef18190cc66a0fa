"""``drservice demo``: the whole story on this machine: a plant at work, a mistake, a recovery, and what it cost.

Nothing here is a rehearsal path: WAL is archived by the real ``archive_command``; backup, restore, drill and evidence
are the operations that the commands call. The result is judged by the orders and documents that the plant's people saw
acknowledged, and by the drill, its counterpart that must fail, and the bundle's own verifier.
"""

from __future__ import annotations

import shlex
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import click

from drservice.cli import demosite
from drservice.cli.demofacts import BackupFacts, DocumentFacts, DrillFacts, EvidenceFacts, Facts, MutationFacts
from drservice.cli.demoproof import Proof, open_proof
from drservice.cli.demoreport import document, problems_of, report
from drservice.cli.demostory import NoteTeller, StepTeller, Story, clock
from drservice.cli.formatting import format_bytes, format_seconds
from drservice.cli.invocation import Invocation
from drservice.cli.oracle import Document, Exposure, compare, compare_documents, exposure
from drservice.cli.output import Colour, Line, Span
from drservice.cli.plant import (
    ARCHIVE_SECONDS,
    DATABASE,
    Digest,
    People,
    Plant,
    digest_of,
    installed_postgres,
    orders_in,
)
from drservice.cli.plantdocuments import Filestore, Filing, documents_in
from drservice.clock import to_iso
from drservice.components.postgres.connection import connect
from drservice.environments.sandbox import open_sandbox
from drservice.errors import ExitStatus, NoIdentityError, WalTimeoutError
from drservice.model.estate import FilesKind
from drservice.model.ids import ComponentName
from drservice.model.recovery import Target, TargetKind
from drservice.model.snapshot import SnapshotRecord
from drservice.model.wal import Lsn, WalFileName
from drservice.operations.backup import BackupContext
from drservice.operations.evidence import Evidence
from drservice.operations.restore import Afterwards, RestoreContext, RestoreRequest, RestoreResult
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


@click.command(help="A plant, a mistake, a recovery: the whole story on this machine, in about a minute.")
@click.option("--keep", is_flag=True, help="leave the recovered database running and say how to reach it")
@click.option(
    "--evidence", type=click.Path(path_type=Path), metavar="DIR", help="keep the bundle, its report and verify.py there"
)
@click.pass_obj
def demo(invocation: Invocation, *, keep: bool, evidence: Path | None) -> ExitStatus:
    """Tell the story, measure it, and leave nothing behind but what was asked for."""
    began = time.monotonic()
    if evidence is not None:
        demosite.require_place(evidence)
    story = Story(invocation.output)
    programs = installed_postgres()
    site = demosite.make_site()
    leave = False
    try:
        plant = Plant(folder=site.folder / "plant", programs=programs, account=site.account)
        stage = Stage(story=story, site=site, plant=plant)
        with _ending(stage):
            facts = stage.play()
        folder = demosite.keep_evidence(site, evidence) if evidence is not None else None
        leave = keep
    finally:
        if not leave:
            with _undisturbed():
                demosite.remove_site(site)
    problems = problems_of(facts)
    seconds = time.monotonic() - began
    kept = str(site.folder) if leave else None
    if folder is None and leave:
        folder = site.evidence
    answer = document(facts, problems, seconds=seconds, kept=kept, evidence=str(folder) if folder else None)
    lines = report(facts, problems, blocks=story.blocks, seconds=seconds)
    goodbye = [*_where(folder), *_goodbye(site, facts, leave=leave)]
    invocation.output.result("demo", answer, [*lines, "", *goodbye])
    if problems:
        return ExitStatus.FAILED
    return ExitStatus.BREACHED if facts.breached() else ExitStatus.OK


@dataclass(slots=True, kw_only=True)
class Looks:
    """How much committed work was at risk, looked at again and again while the plant worked."""

    archive: WalArchive
    people: People
    record: SnapshotRecord
    seen: list[Exposure] = field(default_factory=list)

    def durable(self) -> Lsn:
        """Return the end of the WAL that is in the repository without a gap."""
        facts = self.record.postgres
        files = self.archive.listing(facts.system_id)
        return demosite.durable_end(files, first=facts.start_lsn, segment_bytes=facts.segment_bytes)

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
class Stage:
    """The demo in progress: what must be ended, and the steps in order."""

    story: Story
    site: demosite.Site
    plant: Plant
    people: People | None = None
    history: list[Document] = field(default_factory=list)

    def play(self) -> Facts:
        """Play all steps and return what was seen."""
        digest = self._plant_at_work()
        self._protect()
        with open_proof(self.site, self.story) as proof:
            with open_data_plane(self.site.host()) as plane, open_evidence(plane) as ledger:
                ordinary = self._ordinary_days(Production(plane=plane, ledger=ledger), proof)
            restored = self._restore(proof, ordinary.target)
            mark = time.monotonic()
            orders, documents, same = self._ask(restored, digest)
            checked = time.monotonic()
            recovery = Recovery(
                restored=restored,
                orders=orders,
                documents=documents,
                history_is_the_same=same,
                checked=checked,
                check_seconds=checked - mark,
            )
            evidence = proof.evidence()
        return self._facts(ordinary, recovery, digest, evidence)

    def _ordinary_days(self, production: Production, proof: Proof) -> Ordinary:
        """Let people work, back up, drill beside them, and then make the mistake."""
        people = self.people = People(self.plant.dsn, Filing(self.plant.filestore))
        people.start()
        self.story.chapter("Two backups while people work")
        first = self._backup(production, "first")
        record = first.databases[0].record
        repository = production.plane.repository
        archive = repository.wal(repository.scope(record.service, record.component))
        looks = Looks(archive=archive, people=people, record=record)
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

    def close(self) -> None:
        """Send the people home and stop the plant's server."""
        if self.people is not None:
            self.people.stop()
        self.plant.stop()

    def _plant_at_work(self) -> Digest:
        self.story.chapter("A plant")
        mark = time.monotonic()
        self.history = self.plant.create()
        self.plant.start()
        with connect(self.plant.dsn) as session:
            digest = digest_of(session)
        self.plant.stop()
        programs = self.plant.programs
        self.story.line(
            f"PostgreSQL {programs.major}.{programs.minor}, {digest.rows:,} rows, {len(self.history)} documents in a"
            f" filestore ({format_seconds(time.monotonic() - mark)})"
        )
        self.story.aside("in the shape of Odoo's: orders, journal items, stock moves, attachments")
        self.story.aside(f"everything is in {self.site.folder} and goes at the end")
        return digest

    def _protect(self) -> None:
        self.story.chapter("Keys, configuration, repository")
        mark = time.monotonic()
        repository = demosite.write_configurations(self.site, self.plant)
        self.story.line("host.yaml      the production host can write backups, not read them")
        self.story.line("recovery.yaml  the recovery site alone has the identity that opens them,")
        self.story.line("               and the key that signs the ledger of evidence")
        self.story.line(f"repository {repository} ({format_seconds(time.monotonic() - mark)})")
        command = demosite.archive_command(self.site)
        self.plant.configure(
            {"archive_mode": "on", "archive_command": command, "archive_timeout": f"{ARCHIVE_SECONDS}s"}
        )
        self.plant.start()
        self.story.aside(f"archive_command = '{command}'")
        self.story.aside(f"archive_timeout = {ARCHIVE_SECONDS}s; PostgreSQL restarted with it")

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
        context = RestoreContext(
            repository=proof.plane.repository,
            state_dir=proof.estate.state_dir,
            clock=proof.plane.clock,
            progress=StepTeller(self.story),
        )
        request = RestoreRequest(
            service=service,
            component=service.database(),
            target=Target(kind=TargetKind.TIME, time=target),
            into=None,
            afterwards=Afterwards.LEAVE_RUNNING,
            files=tuple(service.files()),
        )
        return restore_service(context, proof.ledger, request)

    def _ask(self, restored: RestoreResult, digest: Digest) -> tuple[dict[str, int], dict[str, str | None], bool]:
        """Ask the recovered service for its orders and documents, and whether the rows from before are as they were."""
        open_sandbox(restored.environment.path).require_own_socket()
        filestore = Filestore(root_of_documents(restored))
        with connect(_dsn(restored), application_name="drservice demo") as session:
            orders, documents = orders_in(session), documents_in(session, filestore)
            same = digest_of(session) == digest
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

    def _facts(self, ordinary: Ordinary, recovery: Recovery, digest: Digest, evidence: EvidenceFacts) -> Facts:
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
            orders=tuple(orders),
            found=frozenset(recovery.orders),
            comparison=compare(orders, recovery.orders, ordinary.target),
            documents=self._document_facts(ordinary, recovery, objectives.documents_rpo),
            history_rows=digest.rows,
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


def _where(evidence: Path | None) -> list[Line]:
    """Tell where the evidence is."""
    if evidence is None:
        return ["--evidence DIR keeps the bundle and its report."]
    verify = shlex.join(["python3", str(evidence / "verify.py"), str(evidence / demosite.BUNDLE)])
    return [
        f"bundle:  {evidence / demosite.BUNDLE}",
        f"report:  {evidence / 'report.pdf'}",
        f"verify:  {verify}",
        "         (needs Python with the package cryptography, and nothing of drservice)",
    ]


def _goodbye(site: demosite.Site, facts: Facts, *, leave: bool) -> list[Line]:
    if not leave:
        return [
            "Nothing else is left running or on disk; --keep leaves the recovered database.",
            "next: drservice init    (writes a first configuration for a PostgreSQL of yours)",
        ]
    again = shlex.join([*demosite.recovery_program(site), "restore", demosite.SERVICE, "--to", to_iso(facts.target)])
    return [
        "The recovered database runs in its sandbox; production's server is stopped.",
        f'connect: psql "{facts.dsn}"',
        f"files:   {facts.documents.root}",
        f"again:   {again} --dry-run",
        f"destroy: {demosite.destroy_command(site, facts.environment)}",
    ]


@contextmanager
def _ending(stage: Stage) -> Iterator[None]:
    """End people and server, whatever happens in the block."""
    try:
        yield
    finally:
        with _undisturbed():
            stage.close()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Let nobody's second Ctrl-C interrupt the clean-up, which takes seconds."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {
        number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
