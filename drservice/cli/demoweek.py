"""A week of the plant with nobody at the machine: ``drservice up`` backs up each night, and things happen.

The node, its runs, the store, the message to on-call, the destroyed catalogue: everything is the real thing. Only the
week is not: the catalogue says what time it is (``drservice_now()``), and the demo, as the owner of that database,
moves its clock from slot to slot. What asks the machine instead (dates of snapshots and records) has the date of today.
"""

from __future__ import annotations

import json
import shutil
import textwrap
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TypeVar

from drservice import processes
from drservice.catalogue.database import Database
from drservice.catalogue.embedded import EmbeddedCluster
from drservice.catalogue.reading import Reading
from drservice.catalogue.runs import RunInfo, Runs
from drservice.cli import demosite
from drservice.cli.demofacts import (
    KnownFacts,
    LossFacts,
    NightFacts,
    NoticeFacts,
    ScheduledFacts,
    WeekFacts,
)
from drservice.cli.demonodes import NodeProgram, Receiver, free_port
from drservice.cli.demoplan import (
    DRILL_AT,
    HOST,
    KEPT_FREE_UNTIL,
    LOSS_AT,
    POWER_BACK_AT,
    RECOVERY_HOST,
    ZONE,
    WeekPlan,
    at,
)
from drservice.cli.demostory import Story
from drservice.cli.formatting import format_bytes, format_seconds
from drservice.cli.output import Colour, Span
from drservice.cli.plant import People
from drservice.clock import from_iso
from drservice.errors import DrError
from drservice.model.runs import RunKind, RunState
from drservice.wiring.control_plane import open_control_plane

_T = TypeVar("_T")
_MACHINE_TIME = "SELECT clock_timestamp()"
_WORK_SECONDS = 0.4
_RUN_SECONDS = 120.0
_NOTICE_SECONDS = 60.0
_PROJECTED_SECONDS = 60.0
_REBUILD_SECONDS = 120.0
_POLL_SECONDS = 0.1
_COLUMNS = 74
_MOST_RUNS = 500
_SOON = timedelta(seconds=1)


@dataclass(slots=True, kw_only=True)
class Catalogue:
    """The embedded catalogue of the production host, held open beside the node; its clock is moved here."""

    site: demosite.Site
    _stack: ExitStack = field(default_factory=ExitStack)
    _database: Database | None = None

    @property
    def database(self) -> Database:
        """The open catalogue."""
        assert self._database is not None, "it is open"
        return self._database

    @property
    def folder(self) -> Path:
        """Where the cluster is."""
        return self.site.host().state_dir / "catalogue"

    def open(self) -> None:
        """Start the server unless it runs, and make the schema in an empty one."""
        self._database = self._stack.enter_context(open_control_plane(self.site.host()))

    def close(self) -> None:
        """Stop the server, unless a node uses it; one that is not open is fine."""
        self._database = None
        self._stack.close()

    def set_clock(self, instant: datetime) -> None:
        """Let it be ``instant`` in the catalogue; its clock goes on from there."""
        behind = (datetime.now(UTC) - instant).total_seconds()
        self._tell_time(f"{_MACHINE_TIME} - interval ''{behind:.6f} seconds''")

    def release_clock(self) -> None:
        """Let the catalogue say the machine's time again."""
        self._tell_time(_MACHINE_TIME)

    def _tell_time(self, query: str) -> None:
        with self.database.connection() as connection:
            connection.exec_driver_sql(
                f"CREATE OR REPLACE FUNCTION drservice_now() RETURNS timestamptz LANGUAGE sql VOLATILE AS '{query}'"
            )

    def runs(self, kind: RunKind | None = None) -> list[RunInfo]:
        """Return its runs, the newest request first."""
        return list(Runs(self.database).list(kind=kind, limit=_MOST_RUNS))

    def known(self) -> KnownFacts:
        """Return what it knows of the plant."""
        reading = Reading(self.database)
        windows = reading.windows(demosite.SERVICE)
        return KnownFacts(
            points=frozenset((point.id, point.state) for point in reading.points(demosite.SERVICE, limit=_MOST_RUNS)),
            windows=frozenset((item.component, item.timeline, item.from_lsn) for item in windows),
            reaches=sum(item.to_lsn for item in windows),
            records=frozenset((item.entry, item.sha256) for item in reading.records(services=None, limit=_MOST_RUNS)),
            runs=len(self.runs()),
        )


@dataclass(slots=True, kw_only=True)
class Week:
    """The week in progress, and the nodes that have to be ended."""

    story: Story
    site: demosite.Site
    plan: WeekPlan
    people: People
    receiver: Receiver
    catalogue: Catalogue
    control_plane: demosite.ControlPlane
    up: NodeProgram
    recovery: NodeProgram
    _nights: list[NightFacts] = field(default_factory=list)

    def play(self) -> WeekFacts:
        """Let the week pass; at its end both nodes are stopped and the catalogue is closed."""
        mark = time.monotonic()
        self.story.chapter("A week by itself, in fast motion")
        self.catalogue.open()
        self.catalogue.set_clock(self.plan.begins)
        self._start(self.up, "up")
        self.story.aside("the catalogue's clock is moved from slot to slot; data keep today's date")
        loss = None
        for day in self.plan.days:
            self._night(day)
            if day == self.plan.loss:
                loss = self._lose_catalogue()
            if day == self.plan.drill:
                verification, drill = self._drill(day)
        assert loss is not None, "the plan has such a day"
        points = self._projected()
        self.close()
        return WeekFacts(
            holiday=self.plan.holiday,
            fault=self.plan.fault,
            loss_on=self.plan.loss,
            drill_on=self.plan.drill,
            expected_to_wait=frozenset(day for day in self.plan.days if self.plan.waits(day)),
            nights=tuple(self._nights),
            verification=verification,
            drill=drill,
            messages=tuple(NoticeFacts(title=told.title, text=told.text) for told in self.receiver.messages()),
            loss=loss,
            points=points,
            first_stored_bytes=self._nights[0].stored_bytes,
            seconds=time.monotonic() - mark,
        )

    def close(self) -> None:
        """Stop both nodes and the catalogue; what does not run is fine."""
        self.people.rest()
        self.recovery.stop()
        self.up.stop()
        self.catalogue.close()

    def start_nodes(self) -> None:
        """Start both nodes again, the host's with its pages; the catalogue is open."""
        self._start(self.up, "up", serving=True)
        self._start(self.recovery, "node")

    # --- A night ---------------------------------------------------------------------------------------------

    def _night(self, day: date) -> None:
        """Let people work through the day before, and then one o'clock come."""
        self.story.aside(f"- {_shown(day)}: people work, then the night comes")
        self.people.start()
        time.sleep(_WORK_SECONDS)
        self.people.rest()
        slot = self.plan.slot(day)
        if day == self.plan.fault:
            self.up.kill()
            self.story.line(f"{_shown(day)} 00:40  ", Span("kill -9: the node is gone", Colour.BAD))
            self.catalogue.set_clock(at(day, POWER_BACK_AT))
            self._start(self.up, "up")
        else:
            self.catalogue.set_clock(slot + _SOON)
        found = self._row_of(RunKind.BACKUP, slot)
        if "not_before" in found.parameters:
            self.story.line(f"{_shown(day)} 01:00  waits: {found.parameters['reason']}")
            self.catalogue.set_clock(at(day, KEPT_FREE_UNTIL) + _SOON)
        made = self._made_for(found)
        night = _night_facts(day, found, made)
        self._nights.append(night)
        self._tell(night)
        if day == self.plan.fault:
            self._await_notice()

    def _tell(self, night: NightFacts) -> None:
        started = night.started_at.astimezone(ZONE) if night.started_at is not None else None
        words = "caught up" if night.caught_up else "ok" if night.run_state is RunState.SUCCEEDED else "FAILED"
        colour = Colour.GOOD if night.run_state is RunState.SUCCEEDED else Colour.BAD
        when = f"{started:%H:%M}" if started is not None else "--:--"
        self.story.line(
            f"{_shown(night.day)} {when}  ",
            Span(words, colour),
            f": stored {format_bytes(night.stored_bytes)} ({format_seconds(night.seconds)})",
        )

    def _row_of(self, kind: RunKind, slot: datetime) -> RunInfo:
        """Wait for what stands for a slot: its run, or the note that it was missed."""

        def look() -> RunInfo | None:
            return next((run for run in self.catalogue.runs(kind) if run.scheduled_for == slot), None)

        return self._until(look, f"the scheduler has not seen the slot {slot.isoformat()}", _RUN_SECONDS)

    def _made_for(self, row: RunInfo) -> RunInfo:
        """Wait for the end of a slot's run, or of the run that makes up for a missed slot."""
        wanted = row.caught_up_by if row.state is RunState.MISSED else row.id
        if wanted is None:
            return row

        def look() -> RunInfo | None:
            run = Runs(self.catalogue.database).get(wanted)
            return run if run is not None and run.state.is_over else None

        return self._until(look, f"run {wanted} has not ended", _RUN_SECONDS)

    def _await_notice(self) -> None:
        """Wait until on-call has been told; a message that never comes is a problem for the end, no error here."""
        deadline = time.monotonic() + _NOTICE_SECONDS
        while not self.receiver.messages() and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        for told in self.receiver.messages():
            self.story.line("on-call is told:")
            for line in textwrap.wrap(told.title, _COLUMNS):
                self.story.line("  ", Span(line, Colour.WARNING))
            for line in textwrap.wrap(told.text, _COLUMNS):
                self.story.aside(f"  {line}")

    # --- The drill -------------------------------------------------------------------------------------------

    def _drill(self, day: date) -> tuple[ScheduledFacts, ScheduledFacts]:
        """Let the recovery site's node come, and then the morning with verification and drill."""
        self._start(self.recovery, "node")
        slot = at(day, DRILL_AT)
        self.story.aside(f"- {_shown(day)}: nine o'clock comes; a verification, then a drill are due")
        self.catalogue.set_clock(slot + _SOON)
        found = []
        for kind in (RunKind.VERIFY, RunKind.DRILL):
            facts = _scheduled_facts(self._made_for(self._row_of(kind, slot)), slot)
            word = facts.verdict or facts.state.value
            good = facts.state is RunState.SUCCEEDED
            self.story.line(
                f"{_shown(day)} 09:00  {kind.value} by {facts.host}: ",
                Span(word, Colour.GOOD if good else Colour.BAD),
                f" ({format_seconds(facts.seconds)})",
            )
            found.append(facts)
        verification, drill = found
        return verification, drill

    # --- The catalogue ---------------------------------------------------------------------------------------

    def _lose_catalogue(self) -> LossFacts:
        """Destroy the catalogue at noon, fill an empty one from the store, and go on with that."""
        self._projected()
        self.up.stop()
        before = self.catalogue.known()
        self.catalogue.close()
        folder = self.catalogue.folder
        was_gone = not _server_of(folder)
        shutil.rmtree(folder)
        was_gone = was_gone and not folder.exists()
        mark = time.monotonic()
        self.catalogue.open()
        self.catalogue.set_clock(at(self.plan.loss, LOSS_AT))
        empty = self.catalogue.known()
        self.story.line(
            f"{_shown(self.plan.loss)} 12:00  ",
            Span("the catalogue is destroyed", Colour.BAD),
            ": an empty one is made",
        )
        self.story.line("$ drservice rebuild")
        self._rebuild()
        after = self.catalogue.known()
        seconds = time.monotonic() - mark
        self.story.line(
            f"from the store: {len(after.points)} of {len(before.points)} recovery points,"
            f" {len(after.records)} of {len(before.records)} records ({format_seconds(seconds)})"
        )
        self.story.aside(f"not in the store, so not in it again: the history of {before.runs} runs")
        self._start(self.up, "up")
        return LossFacts(before=before, empty=empty, after=after, was_gone=was_gone, seconds=seconds)

    def _rebuild(self) -> None:
        done = processes.run([*demosite.program(self.site), "--json", "rebuild"], timeout_seconds=_REBUILD_SECONDS)
        if done.status != 0:
            raise DrError(f"`drservice rebuild` ended with status {done.status}: {_message(done)}")

    def _projected(self) -> frozenset[str]:
        """Wait until the catalogue has indexed every recovery point of the nights; return the points it knows.

        One that never comes is a problem for the end, no error here.
        """
        wanted = {night.point for night in self._nights if night.point is not None}
        deadline = time.monotonic() + _PROJECTED_SECONDS
        while True:
            known = frozenset(point for point, _ in self.catalogue.known().points)
            if wanted <= known or time.monotonic() > deadline:
                return known
            time.sleep(_POLL_SECONDS)

    # --- Nodes -----------------------------------------------------------------------------------------------

    def _start(self, node: NodeProgram, command: str, *, serving: bool = False) -> None:
        mark = time.monotonic()
        self.story.line(f"$ drservice {command}      (on {HOST if command == 'up' else RECOVERY_HOST})")
        node.start(serving=serving)
        self.story.aside(f"takes runs after {format_seconds(time.monotonic() - mark)}")

    def _until(self, look: Callable[[], _T | None], problem: str, seconds: float) -> _T:
        """Wait for something that the node does.

        Raises:
            DrError: it did not, with what the node said last.
        """
        deadline = time.monotonic() + seconds
        while (found := look()) is None:
            dead = next((node for node in (self.up, self.recovery) if node.has_ended), None)
            if dead is not None or time.monotonic() > deadline:
                raise DrError(f"{problem}: {(dead or self.up).last_words()}")
            time.sleep(_POLL_SECONDS)
        return found


def make_week(story: Story, site: demosite.Site, *, plan: WeekPlan, people: People, receiver: Receiver) -> Week:
    """Prepare a week; nothing is started yet. The address of whoever is told is left where the nodes look for it."""
    site.on_call.touch(mode=0o600)
    site.on_call.write_text(f"{receiver.url}\n", encoding="utf-8")
    up = [*demosite.program(site), "up", "--name", HOST]
    node = [*demosite.recovery_program(site), "node", "--name", RECOVERY_HOST]
    return Week(
        story=story,
        site=site,
        plan=plan,
        people=people,
        receiver=receiver,
        catalogue=Catalogue(site=site),
        control_plane=demosite.ControlPlane(
            plan=plan, catalogue=EmbeddedCluster(site.folder / "host").url, web_port=free_port()
        ),
        up=NodeProgram(argv=up, log=site.folder / "up.log"),
        recovery=NodeProgram(argv=node, log=site.folder / "node.log"),
    )


def _night_facts(day: date, row: RunInfo, made: RunInfo) -> NightFacts:
    result = made.result or {}
    not_before = row.parameters.get("not_before")
    return NightFacts(
        day=day,
        slot=row.scheduled_for or made.requested_at,
        state=row.state if row.state is RunState.MISSED else made.state,
        run=made.id,
        run_state=made.state,
        started_at=made.started_at,
        not_before=from_iso(str(not_before)) if not_before is not None else None,
        point=result.get("point"),
        stored_bytes=sum(int(item["stored_bytes"]) for item in result.get("snapshots", ())),
        seconds=_took(made),
    )


def _took(run: RunInfo) -> float:
    if run.started_at is None or run.ended_at is None:
        return 0.0
    return (run.ended_at - run.started_at).total_seconds()


def _scheduled_facts(run: RunInfo, slot: datetime) -> ScheduledFacts:
    return ScheduledFacts(
        slot=slot,
        run=run.id,
        state=run.state,
        host=run.claimed_by,
        verdict=(run.result or {}).get("verdict"),
        seconds=_took(run),
    )


def _server_of(folder: Path) -> bool:
    """Tell whether a server of the cluster in ``folder`` runs."""
    wanted = str(folder / "data").encode()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if wanted in path.read_bytes().split(b"\0"):
                return True
        except (FileNotFoundError, ProcessLookupError):
            continue
    return False


def _message(done: processes.Finished) -> str:
    try:
        return str(json.loads(done.stdout)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return done.last_line()


def _shown(day: date) -> str:
    return f"{day:%a %d %b}"
