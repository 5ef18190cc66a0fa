"""``drservice demo``: the whole story on this machine: a plant at work, a week by itself, a mistake and a recovery.

The steps in order, and the end of everything that was started. The week is in ``demoweek``, today in ``demotoday``.
"""

from __future__ import annotations

import shlex
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import click

from drservice.cli import demosite
from drservice.cli.demofacts import Facts, WeekFacts
from drservice.cli.demonodes import receiving
from drservice.cli.demoplan import plan_week
from drservice.cli.demoreport import document, problems_of, report
from drservice.cli.demostory import Story
from drservice.cli.demotoday import Today
from drservice.cli.demoweb import Pages, open_pages
from drservice.cli.demoweek import Week, make_week
from drservice.cli.formatting import format_seconds
from drservice.cli.invocation import Invocation
from drservice.cli.oracle import Document
from drservice.cli.output import Line
from drservice.cli.plant import ARCHIVE_SECONDS, Digest, People, Plant, digest_of, installed_postgres
from drservice.cli.plantcode import is_clone
from drservice.cli.plantdocuments import Filing
from drservice.clock import to_iso
from drservice.components.postgres.connection import connect
from drservice.errors import ExitStatus, UsageError


@click.command(help="A plant, a week by itself, a mistake, a recovery: the whole story on this machine, in a minute.")
@click.option("--short", is_flag=True, help="without the week: today alone, in a third of the time")
@click.option("--keep", is_flag=True, help="leave the recovered database running and say how to reach it")
@click.option("--web", is_flag=True, help="leave the pages open until Ctrl-C, and print address and login")
@click.option(
    "--evidence", type=click.Path(path_type=Path), metavar="DIR", help="keep the bundle, its report and verify.py there"
)
@click.pass_obj
def demo(invocation: Invocation, *, short: bool, keep: bool, web: bool, evidence: Path | None) -> ExitStatus:
    """Tell the story, measure it, and leave nothing behind but what was asked for."""
    if web and (short or keep):
        raise UsageError("--web does not go with --short or --keep", hint="The pages show the week, and end with it.")
    if evidence is not None:
        demosite.require_place(evidence)
    telling = _Telling(invocation=invocation, story=Story(invocation.output), began=time.monotonic(), evidence=evidence)
    programs = installed_postgres()
    site = demosite.make_site()
    leave = False
    try:
        plant = Plant(folder=site.folder / "plant", programs=programs, account=site.account)
        stage = Stage(story=telling.story, site=site, plant=plant)
        with _ending(stage):
            facts = stage.play(with_week=not short)
            pages = stage.open_pages() if web else None
            if pages is not None:
                status = telling.end(site, facts, pages=pages, leave=False)
                pages.wait()
        if pages is None:
            status = telling.end(site, facts, pages=None, leave=keep)
            leave = keep
    finally:
        if not leave:
            with _undisturbed():
                demosite.remove_site(site)
    return status


@dataclass(frozen=True, slots=True, kw_only=True)
class _Telling:
    """How the story is told to its end."""

    invocation: Invocation
    story: Story
    began: float
    evidence: Path | None

    def end(self, site: demosite.Site, facts: Facts, *, pages: Pages | None, leave: bool) -> ExitStatus:
        """Judge what was seen, and print the result."""
        problems = problems_of(facts)
        seconds = time.monotonic() - self.began
        folder = demosite.keep_evidence(site, self.evidence) if self.evidence is not None else None
        if folder is None and (leave or pages is not None):
            folder = site.evidence
        answer = document(
            facts,
            problems,
            seconds=seconds,
            kept=str(site.folder) if leave else None,
            evidence=str(folder) if folder else None,
        )
        answer["web"] = {"url": pages.url, "user": pages.user, "password": pages.password} if pages else None
        lines = report(facts, problems, blocks=self.story.blocks, seconds=seconds)
        goodbye = [*_where(folder), *(pages.lines() if pages is not None else _goodbye(site, facts, leave=leave))]
        self.invocation.output.result("demo", answer, [*lines, "", *goodbye])
        self.invocation.output.flush()
        if problems:
            return ExitStatus.FAILED
        return ExitStatus.BREACHED if facts.breached() else ExitStatus.OK


@dataclass(slots=True, kw_only=True)
class Stage:
    """The demo in progress: what must be ended, and the parts of the story in order."""

    story: Story
    site: demosite.Site
    plant: Plant
    history: list[Document] = field(default_factory=list)
    _people: People | None = None
    _week: Week | None = None
    _stack: ExitStack = field(default_factory=ExitStack)

    def play(self, *, with_week: bool) -> Facts:
        """Play all parts and return what was seen."""
        digest = self._plant_at_work()
        people = self._people = People(self.plant.dsn, Filing(self.plant.filestore))
        if with_week:
            receiver = self._stack.enter_context(receiving())
            self._week = make_week(
                self.story, self.site, plan=plan_week(datetime.now(UTC)), people=people, receiver=receiver
            )
        self._protect()
        week: WeekFacts | None = None
        if self._week is not None:
            week = self._week.play()
            demosite.promise_documents(self.site)
        today = Today(
            story=self.story, site=self.site, plant=self.plant, people=people, history=self.history, digest=digest
        )
        return today.play(week)

    def open_pages(self) -> Pages:
        """Run both nodes again, with pages, by the machine's clock."""
        assert self._week is not None, "the story was told with the week"
        return open_pages(self.story, self.site, self._week)

    def close(self) -> None:
        """Send the people home, stop the nodes and the plant's server."""
        if self._people is not None:
            self._people.stop()
        if self._week is not None:
            self._week.close()
        self._stack.close()
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
        self.story.aside("in the shape of Odoo 19: orders, invoices, stock, attachments; mail, cron and modules too")
        if not is_clone(self.plant.configuration):
            self.story.aside("git is not installed: its configuration is a plain folder and no clone")
        self.story.aside(f"everything is in {self.site.folder} and goes at the end")
        return digest

    def _protect(self) -> None:
        self.story.chapter("Keys, configuration, repository")
        mark = time.monotonic()
        repository = demosite.write_configurations(
            self.site, self.plant, self._week.control_plane if self._week is not None else None
        )
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
