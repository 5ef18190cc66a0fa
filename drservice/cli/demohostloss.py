"""The second disaster of the demo: the plant's machine dies under load, and nothing of it is left.

Server, receiver and document stream are killed without warning; data directory, filestore and configuration are
removed. What comes back comes from the repository alone: rows up to the last piece of WAL, documents up to the last set
that was streamed there, the configuration of the last backup. The orders and documents that people saw acknowledged
and that are gone are counted, and so are rows that came back without their document: none in a second recovery, which
goes no further than the documents do (``democonsistent``).
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from drservice.cli import demosite
from drservice.cli.democonsistent import WORDS, ConsistentCopy, recover_consistent
from drservice.cli.demofacts import CloneFacts, ConsistentFacts, DocumentLossFacts, HostLossFacts
from drservice.cli.demoproof import Proof
from drservice.cli.demostory import NoteTeller, Story, clock
from drservice.cli.demostreams import Streams
from drservice.cli.formatting import format_seconds
from drservice.cli.oracle import Comparison, Document, Order, Outlived, compare, outlived
from drservice.cli.output import Colour, Span
from drservice.cli.plant import People, Plant, sales_in
from drservice.cli.plantcode import CloneState, is_clone, read_clone
from drservice.cli.plantdocuments import Filing, documents_in
from drservice.clock import to_iso
from drservice.components.postgres.connection import connect
from drservice.errors import DrError
from drservice.model.estate import FilesKind
from drservice.model.recovery import Target, TargetKind
from drservice.operations.restorerequest import Afterwards, RestoreRequest, RestoreResult
from drservice.operations.servicerestore import document_counts, restore_service

_WORK_SECONDS = 0.5
_LOOKED_SECONDS = 60.0
_INTERVAL_SECONDS = 2.0
"""From one look of the document stream to the next: the machine dies at some instant in between."""
_POLL_SECONDS = 0.05
_SHIFT = "N-"
"""What the numbers of the orders and documents of the last shift begin with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostLoss:
    """What is lost, who works there, and who brings it back. ``sold``, ``filed``: of the shifts before."""

    story: Story
    site: demosite.Site
    plant: Plant
    streams: Streams
    proof: Proof
    sold: tuple[Order, ...]
    filed: tuple[Document, ...]

    def play(self) -> HostLossFacts:
        """Let people work, kill the machine, restore from the repository alone, compare, and go on with it."""
        self.story.chapter("The machine dies")
        plant = self.plant
        before = read_clone(plant.configuration, plant.account) if is_clone(plant.configuration) else None
        people = People(plant.dsn, Filing(plant.filestore), shift=_SHIFT, has_shop_floor=False)
        try:
            self._work(people)
            began = time.monotonic()
            died_at = self._kill(people)
        finally:
            people.stop()  # also if a stream has ended: nobody files into a folder that is being removed
        with ThreadPoolExecutor(max_workers=1) as pool:
            other = pool.submit(recover_consistent, self.site)
            restored = self._restore()
            plant.start(("archive_mode=on",))  # what was restored archives nothing until somebody says so
            with connect(plant.dsn, application_name="drservice demo") as session:
                orders, documents = sales_in(session), documents_in(session, plant.filestore)
            seconds = time.monotonic() - began
            consistent = other.result()
        customers = _Customers(
            orders=(*self.sold, *people.orders()), documents=(*self.filed, *people.documents()), died_at=died_at
        )
        facts = _facts(
            restored,
            customers.compare(orders, documents),
            consistent=_consistent(consistent, customers),
            clone=_compared(before, read_clone(plant.configuration, None)) if before is not None else None,
            entered=len(people.orders()),
            filed=len(people.documents()),
            died_at=died_at,
            seconds=seconds,
        )
        self._tell(facts, restored)
        return facts

    def _work(self, people: People) -> None:
        """Let people work until the stream has looked at what they filed, and on to some instant before its next look.

        Raises:
            DrError: a stream has ended, or does not look.
        """
        since = datetime.now(UTC)
        people.start()
        time.sleep(_WORK_SECONDS)
        deadline = time.monotonic() + _LOOKED_SECONDS
        while (looked := self.streams.durable_documents()) is None or looked < since:
            self.streams.require_running()
            if time.monotonic() > deadline:
                raise DrError(f"the document stream looks no more: {self.streams.documents.last_words()}")
            time.sleep(_POLL_SECONDS)
        time.sleep(random.uniform(0, _INTERVAL_SECONDS))  # noqa: S311 - a moment that nobody chose, no secret
        self.streams.require_running()

    def _kill(self, people: People) -> datetime:
        self.streams.kill()
        died_at = datetime.now(UTC)
        self.plant.crash()
        people.stop()
        self.plant.lose()
        self.story.line(Span(f"{clock(died_at)}  server, receiver and document stream are killed,", Colour.BAD))
        self.story.line(Span("              database, documents and configuration are removed", Colour.BAD))
        return died_at

    def _restore(self) -> RestoreResult:
        """Restore the whole service beside its old place, and move it there."""
        into = self.plant.folder / "recovered"
        self.story.line(f"$ drservice {' '.join(WORDS)} &")
        self.story.line(f"$ drservice restore {demosite.SERVICE} --to latest --into {into}")
        proof = self.proof
        service = proof.estate.service(demosite.SERVICE)
        request = RestoreRequest(
            service=service,
            component=service.database(),
            target=Target(kind=TargetKind.LATEST),
            into=into,
            afterwards=Afterwards.STOP,
            files=tuple(service.files()),
        )
        restored = restore_service(proof.context(NoteTeller(self.story)), proof.ledger, request)
        assert request.cluster_directory is not None, "it has a place"
        self.plant.take_over(
            data=request.cluster_directory,
            filestore=_root(restored, FilesKind.ODOO_FILESTORE),
            configuration=self._configuration(restored),
        )
        return restored

    def _configuration(self, restored: RestoreResult) -> Path:
        """Return the folder that came back: a clone lies in the component's, under its own name."""
        kinds = {item.component.kind for item in restored.files}
        if FilesKind.GIT in kinds:
            return _root(restored, FilesKind.GIT) / self.plant.configuration.name
        return _root(restored, FilesKind.DIRECTORY)

    def _tell(self, facts: HostLossFacts, restored: RestoreResult) -> None:
        documents, clone, reached = facts.documents, facts.clone, restored.reached
        up_to = f", up to {to_iso(reached.time)}" if reached.time is not None else ""
        self.story.line(f"back on timeline {reached.timeline}{up_to} ({format_seconds(facts.seconds)})")
        self._tell_lost("orders", len(facts.lost), facts.acknowledged, facts.lost_seconds, facts.PROMISED_SECONDS)
        self._tell_lost(
            "documents",
            len(documents.lost),
            documents.acknowledged,
            documents.lost_seconds,
            documents.PROMISED_SECONDS,
        )
        self.story.line(
            f"effective RPO {format_seconds(facts.effective_rpo_seconds)};"
            f" {len(documents.dangling)} rows are without their document, and {documents.told_missing} were named"
        )
        self._tell_consistent(facts.consistent)
        for report in restored.losses:
            waiting = ", ".join(f"{item.count} {item.what}" for item in report.queues) or "nothing"
            self.story.aside(
                f"loss report: before Odoo starts: {waiting} wait to be sent, {report.overdue_count} scheduled"
                " actions are overdue"
            )
        if clone is not None:
            word = Span("as it was", Colour.GOOD) if clone.is_same else Span("NOT as it was", Colour.BAD)
            self.story.line(f"the clone of the configuration is at {str(clone.recovered)[:12]}, edits included: ", word)

    def _tell_consistent(self, facts: ConsistentFacts) -> None:
        rows = Span(f"{len(facts.dangling)} rows without their document", Colour.BAD if facts.dangling else Colour.GOOD)
        self.story.line(f"to consistent, in a sandbox of its own ({format_seconds(facts.seconds)}): ", rows, ",")
        self.story.line(
            f"{facts.orders_lost} orders and {facts.documents_lost} documents of the last"
            f" {format_seconds(facts.lost_seconds)} are left out there"
        )

    def _tell_lost(self, what: str, lost: int, acknowledged: int, seconds: float, promised: float) -> None:
        if lost:
            words = f"{lost} of {acknowledged} acknowledged {what} are gone, the oldest {format_seconds(seconds)} old"
        else:
            words = f"none of {acknowledged} acknowledged {what} is gone"
        self.story.line(Span(words, Colour.GOOD if seconds <= promised else Colour.BAD))


def _root(restored: RestoreResult, kind: FilesKind) -> Path:
    return next(item.root for item in restored.files if item.component.kind is kind)


def _compared(before: CloneState, after: CloneState) -> CloneFacts:
    return CloneFacts(commit=before.commit or "", recovered=after.commit, has_edits=before.edited == after.edited)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """What came back, seen from those who entered it."""

    orders: Comparison
    orders_seconds: float
    """Age of the oldest acknowledged order that is gone."""
    documents: Outlived


@dataclass(frozen=True, slots=True, kw_only=True)
class _Customers:
    """Everybody who saw something acknowledged before the machine died."""

    orders: tuple[Order, ...]
    documents: tuple[Document, ...]
    died_at: datetime

    def compare(self, orders: Mapping[str, int], documents: Mapping[str, str | None]) -> _Seen:
        """Compare what they remember with what came back."""
        seen = compare(self.orders, orders, self.died_at)
        lost = set(seen.lost)
        gone = [order.acknowledged for order in self.orders if order.number in lost and order.acknowledged is not None]
        return _Seen(
            orders=seen,
            orders_seconds=max(((self.died_at - at).total_seconds() for at in gone), default=0.0),
            documents=outlived(self.documents, documents, self.died_at),
        )


def _consistent(copy: ConsistentCopy, customers: _Customers) -> ConsistentFacts:
    seen = customers.compare(copy.orders, copy.documents)
    return ConsistentFacts(
        orders_lost=len(seen.orders.lost),
        documents_lost=len(seen.documents.lost),
        lost_seconds=max(seen.orders_seconds, seen.documents.lost_seconds),
        dangling=seen.documents.dangling,
        unwanted=(*seen.orders.unwanted, *seen.documents.unwanted),
        told_missing=copy.told_missing,
        seconds=copy.seconds,
    )


def _facts(
    restored: RestoreResult,
    seen: _Seen,
    *,
    consistent: ConsistentFacts,
    clone: CloneFacts | None,
    entered: int,
    filed: int,
    died_at: datetime,
    seconds: float,
) -> HostLossFacts:
    counts, documents = document_counts(restored), seen.documents
    assert counts is not None, "the service has documents"
    return HostLossFacts(
        acknowledged=seen.orders.acknowledged,
        entered=entered,
        lost=seen.orders.lost,
        unwanted=seen.orders.unwanted,
        lost_seconds=seen.orders_seconds,
        documents=DocumentLossFacts(
            acknowledged=documents.acknowledged,
            filed=filed,
            lost=documents.lost,
            lost_seconds=documents.lost_seconds,
            dangling=documents.dangling,
            unwanted=documents.unwanted,
            told_missing=counts.missing,
            told_corrupt=counts.corrupt,
            behind_seconds=None if counts.is_unproven else counts.behind_seconds,
        ),
        consistent=consistent,
        clone=clone,
        died_at=died_at,
        seconds=seconds,
    )
