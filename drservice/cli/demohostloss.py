"""The second disaster of the demo: the machine with the database dies under load, and nothing of it is left.

Server and receiver are killed without warning and the data directory is removed. What comes back comes from the
repository alone, up to the last piece of WAL that was streamed there; the orders that people saw acknowledged and that
are gone are counted.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from drservice.cli import demosite
from drservice.cli.demofacts import HostLossFacts
from drservice.cli.demonodes import NodeProgram
from drservice.cli.demoproof import Proof
from drservice.cli.demostory import NoteTeller, Story, clock
from drservice.cli.formatting import format_seconds
from drservice.cli.oracle import Order, compare
from drservice.cli.output import Colour, Span
from drservice.cli.plant import People, Plant, sales_in
from drservice.clock import to_iso
from drservice.components.postgres.connection import connect
from drservice.errors import DrError
from drservice.model.ids import ComponentName, ServiceName
from drservice.model.recovery import Target, TargetKind
from drservice.model.wal import Lsn
from drservice.operations.restorerequest import Afterwards, RestoreRequest, RestoreResult
from drservice.operations.servicerestore import restore_service
from drservice.operations.streamstate import StreamPhase, StreamState, read_state

_SERVICE, _COMPONENT = ServiceName(demosite.SERVICE), ComponentName("database")
_READY_SECONDS = 60.0
_POLL_SECONDS = 0.05
_WORK_SECONDS = 2.0
_SHIFT = "N-"
"""What the numbers of the orders of the last shift begin with."""


@dataclass(slots=True, kw_only=True)
class Shipping:
    """``drservice wal stream`` on the production host."""

    site: demosite.Site
    program: NodeProgram

    def state(self) -> StreamState | None:
        """Return what the receiver said last."""
        return read_state(self.site.folder / "host", _SERVICE, _COMPONENT)

    def durable(self) -> Lsn | None:
        """Return up to where it has made the WAL durable."""
        state = self.state()
        return state.durable_lsn if state is not None else None

    def start(self) -> None:
        """Start it and wait until WAL arrives.

        Raises:
            DrError: it ended, or does not stream within a minute; with its last words.
        """
        self.program.launch()
        deadline = time.monotonic() + _READY_SECONDS
        while True:
            state = self.state()
            if state is not None and state.state is StreamPhase.STREAMING and state.durable_lsn is not None:
                return
            if self.program.has_ended or time.monotonic() > deadline:
                raise DrError(f"`drservice wal stream` did not begin: {self.program.last_words()}")
            time.sleep(_POLL_SECONDS)


@contextmanager
def shipping(site: demosite.Site, story: Story) -> Iterator[Shipping]:
    """Stream the plant's WAL while the block runs, or until it is killed."""
    argv = [*demosite.program(site), "wal", "stream", demosite.SERVICE]
    made = Shipping(site=site, program=NodeProgram(argv=argv, log=site.folder / "stream.log"))
    story.line(f"$ drservice wal stream {demosite.SERVICE} &")
    mark = time.monotonic()
    try:
        made.start()
        story.line(f"WAL is in the repository a moment after it is written ({format_seconds(time.monotonic() - mark)})")
        yield made
    finally:
        made.program.stop()


@dataclass(frozen=True, slots=True, kw_only=True)
class HostLoss:
    """What is lost, who works there, and who brings it back. ``sold``: orders of the shifts before."""

    story: Story
    site: demosite.Site
    plant: Plant
    shipping: Shipping
    proof: Proof
    sold: tuple[Order, ...]

    def play(self) -> HostLossFacts:
        """Let people work, kill the machine, restore from the repository alone, compare, and go on with it."""
        self.story.chapter("The machine dies")
        people = People(self.plant.dsn, None, shift=_SHIFT)
        people.start()
        time.sleep(_WORK_SECONDS)
        began = time.monotonic()
        died_at = self._kill()
        people.stop()
        what = f"server and receiver are killed, {self.plant.data} is removed"
        self.story.line(Span(f"{clock(died_at)}  {what}", Colour.BAD))
        restored = self._restore()
        self.plant.start(("archive_mode=on",))  # what was restored archives nothing until somebody says so
        with connect(self.plant.dsn, application_name="drservice demo") as session:
            found = sales_in(session)
        seconds = time.monotonic() - began
        return self._facts(restored, found, (*self.sold, *people.orders()), died_at, seconds)

    def _kill(self) -> datetime:
        self.shipping.program.kill()
        died_at = datetime.now(UTC)
        self.plant.crash()
        shutil.rmtree(self.plant.data)
        return died_at

    def _restore(self) -> RestoreResult:
        self.story.line(f"$ drservice restore {demosite.SERVICE} --to latest --into {self.plant.data}")
        proof = self.proof
        service = proof.estate.service(demosite.SERVICE)
        request = RestoreRequest(
            service=service,
            component=service.database(),
            target=Target(kind=TargetKind.LATEST),
            into=self.plant.data,
            afterwards=Afterwards.STOP,
        )
        return restore_service(proof.context(NoteTeller(self.story)), proof.ledger, request)

    def _facts(
        self,
        restored: RestoreResult,
        found: dict[str, int],
        orders: tuple[Order, ...],
        died_at: datetime,
        seconds: float,
    ) -> HostLossFacts:
        seen = compare(orders, found, died_at)
        lost = set(seen.lost)
        gone = [order.acknowledged for order in orders if order.number in lost and order.acknowledged is not None]
        age = max(((died_at - at).total_seconds() for at in gone), default=0.0)
        reached = restored.reached
        up_to = f", up to {to_iso(reached.time)}" if reached.time is not None else ""
        self.story.line(f"back on timeline {reached.timeline}{up_to} ({format_seconds(seconds)})")
        if gone:
            words = (
                f"{len(lost)} of {seen.acknowledged} acknowledged orders are gone, the oldest {format_seconds(age)} old"
            )
        else:
            words = f"none of {seen.acknowledged} acknowledged orders is gone"
        self.story.line(Span(words, Colour.GOOD if age <= HostLossFacts.PROMISED_SECONDS else Colour.BAD))
        return HostLossFacts(
            acknowledged=seen.acknowledged,
            entered=sum(order.number.startswith(_SHIFT) for order in orders),
            lost=seen.lost,
            unwanted=seen.unwanted,
            lost_seconds=age,
            died_at=died_at,
            seconds=seconds,
        )
