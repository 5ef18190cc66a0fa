"""``drservice demo``: the whole story on this machine: a plant at work, a mistake, a recovery, and what it cost.

Nothing here is a rehearsal path: WAL is archived by the real ``archive_command``; backup and restore are the
operations that the commands call. The result is judged by the orders the plant's people saw acknowledged.
"""

from __future__ import annotations

import shlex
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import click

from drservice.cli import demosite
from drservice.cli.demoreport import BackupFacts, Facts, document, problems_of, report
from drservice.cli.formatting import format_bytes, format_seconds
from drservice.cli.invocation import Invocation
from drservice.cli.oracle import Exposure, compare, exposure
from drservice.cli.output import Colour, Line, Output, Span
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
from drservice.clock import to_iso
from drservice.components.postgres.connection import connect
from drservice.environments.sandbox import open_sandbox
from drservice.errors import ExitStatus, NoIdentityError, WalTimeoutError
from drservice.model.recovery import Target, TargetKind
from drservice.model.wal import Lsn, WalFileName
from drservice.operations.backup import BackupContext, BackupResult, run_backup
from drservice.operations.progress import SilentProgress
from drservice.operations.restore import Afterwards, RestoreContext, RestoreRequest, RestoreResult, run_restore
from drservice.repository.walarchive import WalArchive
from drservice.wiring.data_plane import DataPlane, open_data_plane

_BEFORE = timedelta(seconds=1)
_WORK_SECONDS = 2.5
_UNNOTICED_SECONDS = 1.5
_LOOK_SECONDS = 0.1
_ARCHIVE_WAIT_SECONDS = 120.0


@click.command(help="A plant, a mistake, a recovery: the whole story on this machine, in about a minute.")
@click.option("--keep", is_flag=True, help="leave the recovered database running and say how to reach it")
@click.pass_obj
def demo(invocation: Invocation, *, keep: bool) -> ExitStatus:
    """Tell the story, measure it, and leave nothing behind."""
    began = time.monotonic()
    story = Story(invocation.output)
    programs = installed_postgres()
    site = demosite.make_site()
    leave = False
    try:
        plant = Plant(folder=site.folder / "plant", programs=programs, account=site.account)
        stage = Stage(story=story, site=site, plant=plant)
        with _ending(stage):
            facts = stage.play()
        leave = keep
    finally:
        if not leave:
            with _undisturbed():
                demosite.remove_site(site)
    problems = problems_of(facts)
    seconds = time.monotonic() - began
    kept = str(site.folder) if leave else None
    lines = report(facts, problems, blocks=story.blocks, seconds=seconds)
    invocation.output.result(
        "demo", document(facts, problems, seconds=seconds, kept=kept), [*lines, "", *_goodbye(site, facts, leave=leave)]
    )
    if problems:
        return ExitStatus.FAILED
    return ExitStatus.BREACHED if facts.breached() else ExitStatus.OK


class Story:
    """Tells the story as it happens; ``blocks``: whether block characters can be shown."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._chapter = 0
        self.blocks = "utf" in (output.stdout.encoding or "").lower()

    def chapter(self, title: str) -> None:
        """Begin a numbered step."""
        self._chapter += 1
        self._output.tell("")
        self._output.tell((Span(f"{self._chapter}. {title}", Colour.STRONG),))

    def line(self, *parts: str | Span) -> None:
        """Tell one thing of the present step."""
        self._output.tell(("   ", *parts))

    def aside(self, text: str) -> None:
        """Tell something for those who look closely."""
        self.line(Span(text, Colour.FAINT))


class StepTeller:
    """Progress of an operation, told as asides of the story."""

    def __init__(self, story: Story) -> None:
        self._story = story

    def step(self, name: str, *, total_bytes: int | None = None, total_items: int | None = None) -> None:
        """Tell that a step begins."""
        del total_bytes, total_items
        self._story.aside(f"- {name}")

    def advance(self, amount: int) -> None:
        """Ignore the amount: nothing here takes long."""

    def note(self, text: str) -> None:
        """Tell a note."""
        self._story.aside(f"- {text}")

    def done(self) -> None:
        """Ignore the end."""


@dataclass(slots=True, kw_only=True)
class Looks:
    """How much committed work was at risk, looked at again and again while the plant worked."""

    archive: WalArchive
    people: People
    backup: BackupResult
    seen: list[Exposure] = field(default_factory=list)

    def durable(self) -> Lsn:
        """Return the end of the WAL that is in the repository without a gap."""
        facts = self.backup.record.postgres
        files = self.archive.listing(facts.system_id)
        return demosite.durable_end(files, first=facts.start_lsn, segment_bytes=facts.segment_bytes)

    def look(self) -> Exposure:
        """Ask the repository what it holds, then the people what was acknowledged by now."""
        durable = self.durable()
        found = exposure(self.people.orders(), durable=durable, at=datetime.now(UTC))
        self.seen.append(found)
        return found

    def keep_looking(self, seconds: float) -> None:
        """Let the plant work, and look ten times a second."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.look()
            time.sleep(_LOOK_SECONDS)


@dataclass(slots=True, kw_only=True)
class Decision:
    """When it was decided to restore; recovery time counts from here."""

    at: datetime
    clock: float
    wal_seconds: float = 0.0


@dataclass(slots=True, kw_only=True)
class Stage:
    """The demo in progress: what must be ended, and the steps in order."""

    story: Story
    site: demosite.Site
    plant: Plant
    people: People | None = None

    def play(self) -> Facts:
        """Play all steps and return what was seen."""
        digest = self._plant_at_work()
        self._protect()
        with open_data_plane(self.site.host()) as production:
            people = self.people = People(self.plant.dsn)
            people.start()
            self.story.chapter("Two backups while people work")
            first = self._backup(production, "first")
            scope = production.repository.scope(first.record.service, first.record.component)
            looks = Looks(archive=production.repository.wal(scope), people=people, backup=first)
            looks.keep_looking(_WORK_SECONDS)
            second = self._backup(production, "second")
            looks.keep_looking(_WORK_SECONDS)
            dropped_at = self._drop(looks)
            decision = self._decide(people, looks)
            unreadable = self._host_cannot_read(looks)
        target = dropped_at - _BEFORE
        restored = self._restore(target)
        return self._check(
            digest,
            [first, second],
            looks.seen,
            restored,
            dropped_at=dropped_at,
            target=target,
            decision=decision,
            unreadable=unreadable,
        )

    def close(self) -> None:
        """Send the people home and stop the plant's server."""
        if self.people is not None:
            self.people.stop()
        self.plant.stop()

    def _plant_at_work(self) -> Digest:
        self.story.chapter("A plant")
        mark = time.monotonic()
        self.plant.create()
        self.plant.start()
        with connect(self.plant.dsn) as session:
            digest = digest_of(session)
        self.plant.stop()
        programs = self.plant.programs
        self.story.line(
            f"PostgreSQL {programs.major}.{programs.minor}, {digest.rows:,} rows of customers, products, orders"
            f" ({format_seconds(time.monotonic() - mark)})"
        )
        self.story.aside(f"everything is in {self.site.folder} and goes at the end")
        return digest

    def _protect(self) -> None:
        self.story.chapter("Keys, configuration, repository")
        mark = time.monotonic()
        repository = demosite.write_configurations(self.site, dsn=self.plant.dsn)
        self.story.line(
            f"{self.site.host_configuration.name}      the production host can write backups, not read them"
        )
        self.story.line(
            f"{self.site.recovery_configuration.name}  the recovery site alone has the identity that opens them"
        )
        self.story.line(f"repository {repository} ({format_seconds(time.monotonic() - mark)})")
        command = demosite.archive_command(self.site)
        self.plant.configure(
            {"archive_mode": "on", "archive_command": command, "archive_timeout": f"{ARCHIVE_SECONDS}s"}
        )
        self.plant.start()
        self.story.aside(f"archive_command = '{command}'")
        self.story.aside(f"archive_timeout = {ARCHIVE_SECONDS}s; PostgreSQL restarted with it")

    def _backup(self, production: DataPlane, which: str) -> BackupResult:
        estate = production.estate
        service = estate.service(demosite.SERVICE)
        context = BackupContext(
            repository=production.repository,
            state_dir=estate.state_dir,
            clock=production.clock,
            progress=SilentProgress(),
        )
        result = run_backup(context, service, service.database())
        record = result.record
        self.story.line(
            f"{which + ':':<7} {format_bytes(record.source_bytes)} of files, read {format_bytes(record.read_bytes)},"
            f" stored {format_bytes(record.stored_bytes)} ({format_seconds(result.seconds)})"
        )
        self.story.aside(
            f"        {result.reused_files} of {record.files} files unchanged; "
            + ", ".join(f"{name} {format_seconds(value)}" for name, value in result.phases.items())
        )
        return result

    def _drop(self, looks: Looks) -> datetime:
        self.story.chapter("The mistake")
        looks.look()
        dropped_at = datetime.now(UTC)
        with connect(self.plant.dsn, application_name="a tired hand") as session:
            session.rows("drop table work_order")
        self.story.line(Span(f"{_clock(dropped_at)}  DROP TABLE work_order;", Colour.BAD))
        return dropped_at

    def _decide(self, people: People, looks: Looks) -> Decision:
        """Let time pass until it is noticed, then bring the last WAL into the repository."""
        looks.keep_looking(_UNNOTICED_SECONDS)
        for complaint in people.complaints:
            self.story.line(f"{_clock(complaint.at)}  {complaint.who}: {complaint.what.splitlines()[0]}")
        people.stop()
        decision = Decision(at=datetime.now(UTC), clock=time.monotonic())
        self.story.line(f"{_clock(decision.at)}  sales went on until now; we decide to restore to one second before")
        with connect(self.plant.dsn, application_name="drservice demo") as session:
            needed = Lsn.parse(session.row("select pg_current_wal_flush_lsn()::text")[0])
            session.rows("select pg_switch_wal()")
        deadline = time.monotonic() + _ARCHIVE_WAIT_SECONDS
        while looks.durable() < needed:
            if time.monotonic() > deadline:
                raise WalTimeoutError(f"the WAL up to {needed} did not reach the repository: {self.plant.last_words()}")
            time.sleep(_LOOK_SECONDS)
        decision.wal_seconds = time.monotonic() - decision.clock
        return decision

    def _host_cannot_read(self, looks: Looks) -> bool:
        """Tell whether the production host fails to open even the WAL that it wrote itself."""
        system_id = looks.backup.record.postgres.system_id
        newest = max(item.name for item in looks.archive.listing(system_id))
        try:
            looks.archive.fetch(WalFileName.parse(newest), system_id=system_id)
        except NoIdentityError as error:
            self.story.aside(f"the production host tries to read its own WAL: error[{error.code}], it has no identity")
            return True
        return False

    def _restore(self, target: datetime) -> RestoreResult:
        self.story.chapter("The recovery")
        self.story.line(f"$ drservice restore {demosite.SERVICE} --to {to_iso(target)} --start")
        estate = self.site.recovery()
        service = estate.service(demosite.SERVICE)
        with open_data_plane(estate) as recovery:
            context = RestoreContext(
                repository=recovery.repository,
                state_dir=estate.state_dir,
                clock=recovery.clock,
                progress=StepTeller(self.story),
            )
            request = RestoreRequest(
                service=service,
                component=service.database(),
                target=Target(kind=TargetKind.TIME, time=target),
                into=None,
                afterwards=Afterwards.LEAVE_RUNNING,
            )
            return run_restore(context, request)

    def _check(
        self,
        digest: Digest,
        backups: list[BackupResult],
        looks: list[Exposure],
        restored: RestoreResult,
        *,
        dropped_at: datetime,
        target: datetime,
        decision: Decision,
        unreadable: bool,
    ) -> Facts:
        mark = time.monotonic()
        environment = restored.environment
        dsn = environment.dsn.replace("dbname=postgres", f"dbname={DATABASE}")
        found, same = _ask(restored, dsn, digest)
        checked = time.monotonic()
        assert self.people is not None
        orders = self.people.orders()
        with connect(self.plant.dsn, application_name="drservice demo") as session:
            gone = not session.rows("select from pg_class where relname = 'work_order'")
        objectives = self.site.recovery().service(demosite.SERVICE).objectives
        assert objectives.rpo is not None
        assert objectives.rto is not None
        phases = dict(restored.phases)
        phases["check"] += checked - mark
        plan = restored.planned.resolved.plan
        facts = Facts(
            backups=tuple(_backup_facts(result) for result in backups),
            exposures=tuple(looks),
            orders=tuple(orders),
            found=frozenset(found),
            comparison=compare(orders, found, target),
            history_rows=digest.rows,
            history_is_the_same=same,
            mistake_is_real=gone,
            host_cannot_read=unreadable,
            target=target,
            dropped_at=dropped_at,
            decided_at=decision.at,
            used_snapshot=plan.snapshot.id,
            used_from=plan.snapshot.started_at,
            reached=restored.reached.time,
            probes=len(restored.isolation),
            phases={"wal": decision.wal_seconds, **phases},
            rto_seconds=checked - decision.clock,
            rpo_promised_seconds=objectives.rpo.total_seconds(),
            rto_promised_seconds=objectives.rto.total_seconds(),
            repository_bytes=self.site.repository_bytes(),
            environment=environment.id,
            dsn=dsn,
        )
        self.story.line(
            f"isolation: {facts.probes} probes from inside found no way out; the server inside is on"
            f" timeline {restored.reached.timeline}"
        )
        for text in restored.reached.evidence:
            self.story.aside(f"- {text}")
        return facts


def _ask(restored: RestoreResult, dsn: str, digest: Digest) -> tuple[dict[str, int], bool]:
    """Ask the recovered database for its orders, and whether the rows from before the demo are as they were."""
    open_sandbox(restored.environment.path).require_own_socket()
    with connect(dsn, application_name="drservice demo") as session:
        return orders_in(session), digest_of(session) == digest


def _backup_facts(result: BackupResult) -> BackupFacts:
    record = result.record
    return BackupFacts(
        snapshot=record.id,
        started_at=record.started_at,
        stopped_at=record.stopped_at,
        source_bytes=record.source_bytes,
        read_bytes=record.read_bytes,
        stored_bytes=record.stored_bytes,
        seconds=result.seconds,
    )


def _clock(instant: datetime) -> str:
    return f"{instant:%H:%M:%S}.{instant.microsecond // 1000:03d}"


def _goodbye(site: demosite.Site, facts: Facts, *, leave: bool) -> list[Line]:
    if not leave:
        return [
            "Nothing is left running or on disk; --keep leaves the recovered database to look at.",
            "next: drservice init    (writes a first configuration for a PostgreSQL of yours)",
        ]
    again = shlex.join([*demosite.recovery_program(site), "restore", demosite.SERVICE, "--to", to_iso(facts.target)])
    return [
        "The recovered database runs in its sandbox; production's server is stopped.",
        f'connect: psql "{facts.dsn}"',
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
