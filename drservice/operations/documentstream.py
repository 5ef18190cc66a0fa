"""Continuous capture of documents: each is in the repository seconds after the commit of the row that refers to it.

A round reads where the database stands, then which documents its rows refer to, then lists the folders that changed,
and stores what the repository is not known to have. In that order a row that is visible has its file on disk, and so
has one whose commit is under way: it is listed although nobody sees its row yet. What rows and folders told is
forgotten only when it is stored: a round that fails is made again, and one that a crash ends is only repeated.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import Enum
from pathlib import Path

from drservice import telemetry
from drservice.clock import Clock
from drservice.errors import BusyError, DocumentsUnreadableError, DrError
from drservice.model.documents import DocumentPart, DocumentPosition
from drservice.model.estate import FilesSettings, PostgresSettings
from drservice.model.ids import ComponentName, ServiceName
from drservice.model.wal import Lsn
from drservice.operations.documentstate import DocumentPhase, DocumentState, lock_path, write_state
from drservice.operations.documentstreamfolders import Filestore, FolderWatch, WrongContentError, is_gone
from drservice.operations.documentstreamnames import (
    Names,
    cache_stamp,
    journal_of,
    read_known,
    unknown_of,
)
from drservice.operations.documentstreamrows import Rows, View, looking
from drservice.operations.lineage import Lineage
from drservice.operations.livestate import held_alone
from drservice.repository.documentsets import MAX_DOCUMENTS, MAX_SET_BYTES
from drservice.repository.repository import Repository

_SHARE = 10
"""A look at all rows may take one part in so many of the time."""
_UNHINTED_SECONDS = 15.0
"""Rows are looked at so often although nothing says that one changed."""
_AFRESH_SECONDS = 6 * 3600.0
"""So often everything is compared anew; the format allows 12 hours."""
_RETRIED = 1000
"""So many doubtful documents are looked for again in a round."""
_TRIES = 30
"""So often a file that is not what its name says is read again before a row refers to it."""
_DRAIN_SECONDS = 20.0
"""How long a capture that is to stop goes on storing what was committed before."""
_MOST_PAUSE_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentContext:
    """Where documents go."""

    service: ServiceName
    repository: Repository
    state_dir: Path
    clock: Clock


def stream_documents(
    context: DocumentContext,
    component: FilesSettings,
    database: PostgresSettings,
    *,
    stop: threading.Event,
    observe: Callable[[DocumentState], None] = lambda _: None,
) -> None:
    """Capture the documents of a component until ``stop`` is set; a set that is being stored then is stored first.

    Whatever goes wrong is told (state file, ``observe``, log) with its remedy, and tried again: files wait on their
    disk. A crash anywhere loses nothing.

    Args:
        context: where documents go.
        component: whose.
        database: the cluster whose rows refer to them.
        stop: ends it in order.
        observe: is told the state after each round.

    Raises:
        BusyError: this component's documents are being captured on this host already.
    """
    with only_capture(context.state_dir, context.service, component.name, clock=context.clock):
        _Streamer(context, component, database, stop, observe).run()


@contextmanager
def only_capture(state_dir: Path, service: ServiceName, component: ComponentName, *, clock: Clock) -> Iterator[None]:
    """Be the only capture of a component's documents on this host while the block runs.

    Raises:
        BusyError: there is one.
    """
    taken = BusyError(
        f"the documents of {service}/{component} are being captured already on this host",
        hint="One is enough: a node has one for each filestore, systemd may have another.",
    )
    with held_alone(lock_path(state_dir, service, component), clock=clock, taken=taken):
        yield


class _StoppedError(Exception):
    """The capture has to end in the middle of a round."""


class _AgedError(Exception):
    """A round has lasted so long that what it takes for stored may not be any more."""


class _Kind(Enum):
    """What is wrong with a document."""

    MISSING = "missing"
    CORRUPT = "corrupt"
    UNREADABLE = "unreadable"


@dataclass(slots=True, kw_only=True)
class _Doubt:
    """A document that is not what it should be."""

    kind: _Kind
    reason: str
    tries: int = 1
    is_referred: bool = False
    """A row refered to it before it was read the last time."""
    is_told: bool = False
    """Named in a set."""

    @property
    def is_decided(self) -> bool:
        """Whether production has lost it: its row was visible, so its file had been written, and twice it was not."""
        return self.is_referred and self.tries > 1 and self.kind is not _Kind.UNREADABLE


@dataclass(slots=True, kw_only=True)
class _Round:
    """What one round has read and not stored."""

    position: DocumentPosition
    parts: list[DocumentPart] = field(default_factory=list)
    bytes: int = 0
    complete: list[str] = field(default_factory=list)
    """Documents whose last part is among these or stored."""
    relieved: dict[str, _Doubt] = field(default_factory=dict)
    """What was in doubt and was read whole; until it is stored, nothing but this says that it is to be read again."""
    waiting: int = 0
    """Documents found and not stored yet."""


class _Streamer:
    """Makes rounds."""

    def __init__(
        self,
        context: DocumentContext,
        component: FilesSettings,
        database: PostgresSettings,
        stop: threading.Event,
        observe: Callable[[DocumentState], None],
    ) -> None:
        self._context = context
        self._component = component
        self._database = database
        self._stop = stop
        self._observe = observe
        repository = context.repository
        self._scope = repository.scope(context.service, component.name)
        self._lineage = Lineage(repository, repository.scope(context.service, database.name), context.state_dir)
        self._sets = repository.document_sets(self._scope)
        self._day_keys = repository.day_keys(context.service)
        self._journal = journal_of(context.state_dir, self._scope)
        self._watch = FolderWatch(os.fspath(component.path), clock=context.clock)
        self._known = Names()
        self._known_at = float("-inf")
        self._known_wall: datetime | None = None
        self._stamp: tuple[int, ...] | None = None
        self._seen: View | None = None
        """At which look all rows were compared; ``None``: they are to be compared anew."""
        self._position: DocumentPosition | None = None
        self._rows_at = float("-inf")
        self._rows_seconds = 0.0
        self._folders_changed = False
        self._has_table = True
        self._doubts: dict[str, _Doubt] = {}
        self._retried_at = float("-inf")
        self._previous: str | None = None
        self._proved_at = float("-inf")
        self._proved: Lsn | None = None
        self._owes_proof = True
        self._ends_at: float | None = None
        self._is_unwritable = False
        self.state = DocumentState(
            service=context.service,
            component=component.name,
            state=DocumentPhase.STARTING,
            durable_server_time=None,
            looked_at=None,
            server_time=None,
            pending=0,
            missing=0,
            corrupt=0,
            stored=0,
            in_database=0,
            not_covered=0,
            problem=None,
            remedy=None,
            pid=os.getpid(),
            updated_at=context.clock.now(),
        )

    def run(self) -> None:
        """Make rounds until told to stop, and one more then: what was committed before is stored, if the store lets."""
        interval = self._component.interval.total_seconds()
        pause = interval
        is_last = False
        self._publish()
        while not is_last:
            is_last = self._stop.is_set()
            began = self._context.clock.monotonic()
            try:
                self._make_round()
                pause = interval
            except _StoppedError:
                telemetry.warning("stopped with documents that are not stored; they wait in the filestore")
                break
            except _AgedError:
                telemetry.info("asked again what is stored; the round goes on", stored=self.state.stored)
            except (DrError, OSError) as error:
                self._fail(error)
                pause = max(interval, min(pause * 2, _MOST_PAUSE_SECONDS))
            self._publish()
            spent = self._context.clock.monotonic() - began if pause == interval else 0.0
            self._stop.wait(max(0.0, pause - spent))
        self._publish()

    # --- a round --------------------------------------------------------------------------------------------

    def _make_round(self) -> None:
        """Look once, and store what is new.

        Raises:
            _StoppedError, _AgedError: it has to end; what is not stored is found again.
            DrError, OSError: it has to be made again.
        """
        clock = self._context.clock
        self._look_what_is_stored()
        looked_at = clock.now()
        asked = Names()
        with looking(self._database.production_dsn, self._component.database) as rows:
            self._note_history(rows)
            is_compared = self._ask(rows, asked) and rows.has_table
            self._has_table = rows.has_table
            self._note_referred(rows.still(list(self._doubts)))
        self.state = replace(self.state, server_time=rows.position.server_time)
        found = _Round(position=rows.position)
        try:
            with self._watch.opened() as filestore:
                self._folders_changed = self._store_found(filestore, asked, found)
                is_whole = self._finish(found, is_compared=is_compared)
        finally:
            self.state = replace(self.state, pending=found.waiting + self._undecided())
            self._doubts.update(found.relieved)
        if is_compared:
            self._seen = rows.view
        self._settle(rows.position, looked_at, is_whole=is_whole)

    def _look_what_is_stored(self) -> None:
        """Read what is known to be stored: at the beginning, after each pass, and now and then."""
        context = self._context
        stamp = cache_stamp(context.state_dir, self._scope)
        now, wall = context.clock.monotonic(), context.clock.now()
        # A machine that slept, or was put back to life from a copy of its memory, knows it by the other clock alone.
        slept = abs((wall - self._known_wall).total_seconds()) if self._known_wall is not None else 0.0
        if stamp == self._stamp and max(now - self._known_at, slept) < _AFRESH_SECONDS:
            return
        known = read_known(context.repository, self._scope, context.state_dir, self._journal)
        telemetry.info("documents known to be stored", documents=len(known.names), relied_on=known.pass_id)
        if known.problem is not None:
            telemetry.warning("documents are stored once more", problem=known.problem)
        self._known, self._known_at, self._known_wall, self._stamp = known.names, now, wall, stamp
        self._seen = None
        self._watch.reset()

    def _note_history(self, rows: Rows) -> None:
        """Require the cluster to be the component's; rows of another database, or of one that went back, are all new.

        Transactions are counted again there.
        """
        before, position = self._position, rows.position
        if before is None or before.system_id != position.system_id:
            self._lineage.require(position.system_id)
        if before is not None and (
            (before.system_id, before.timeline) != (position.system_id, position.timeline) or position.lsn < before.lsn
        ):
            self._seen = None
        if self._seen is not None and self._seen.source != rows.view.source:
            self._seen = None
        self._position = position

    def _ask(self, rows: Rows, asked: Names) -> bool:
        """Collect which documents of rows are not known to be stored; tells whether all rows are compared by now."""
        clock, view = self._context.clock, rows.view
        began = clock.monotonic()
        if self._seen is None:
            self._collect(rows.all(), asked)
            inside, elsewhere = rows.uncovered()
            self.state = replace(self.state, in_database=inside, not_covered=elsewhere)
        elif view.snapshot == self._seen.snapshot:
            return True
        elif self._is_row_look_due(view, self._seen, began):
            self._collect(rows.changed(self._seen.horizon), asked)
            self._rows_seconds = clock.monotonic() - began  # the first look, at everything, says nothing of later ones
        else:
            return False
        self._rows_at = clock.monotonic()
        return True

    def _is_row_look_due(self, view: View, seen: View, now: float) -> bool:
        since = now - self._rows_at
        if since < self._rows_seconds * _SHARE and not self._stop.is_set():
            return False
        is_hinted = view.changes != seen.changes or self._folders_changed or self._owes_proof or self._stop.is_set()
        return is_hinted or since >= min(_UNHINTED_SECONDS, self._component.idle_interval.total_seconds())

    def _collect(self, names: Iterable[str], asked: Names) -> None:
        """Keep what is not known to be stored; 20 bytes for each row, however many there are."""
        found = Names()
        found.update(names)
        for folder in found.folders():
            have = self._known.of(folder)
            asked.update(f"{folder}/{digest.hex()}" for digest in sorted(found.of(folder) - have))

    def _note_referred(self, referred: set[str]) -> None:
        """Take note to which doubtful documents rows refer; one that no row refers to in the end is nobody's."""
        for name, doubt in list(self._doubts.items()):
            doubt.is_referred = name in referred
            if not doubt.is_referred and (doubt.is_told or doubt.tries >= _TRIES):
                del self._doubts[name]

    def _store_found(self, filestore: Filestore, asked: Names, found: _Round) -> bool:
        """Take everything that is new; tells whether a folder had changed."""
        again = self._to_retry()
        left = set(asked.folders())
        has_changed = False
        for folder, files in filestore.changed():
            has_changed = True
            wanted = {f"{folder}/{digest.hex()}" for digest in asked.of(folder)}
            left.discard(folder)
            for name in sorted(wanted.union(unknown_of(folder, files, self._known))):
                again.discard(name)
                self._take(filestore, name, found, is_referred=name in wanted)
        if (left or again) and not self._watch.count:
            raise DocumentsUnreadableError(
                f"{self._component.path} has no documents, and rows refer to some",
                hint="Is its disk mounted, and is path right? Nothing is taken for lost.",
            )
        for folder in sorted(left):
            for digest in sorted(asked.of(folder)):
                again.discard(f"{folder}/{digest.hex()}")
                self._take(filestore, f"{folder}/{digest.hex()}", found, is_referred=True)
        for name in sorted(again):
            self._take(filestore, name, found, is_referred=self._doubts[name].is_referred)
        return has_changed

    def _to_retry(self) -> set[str]:
        """Return which doubtful documents are read again: those that are decided seldom, the others each time."""
        now = self._context.clock.monotonic()
        all_due = now - self._retried_at >= self._component.idle_interval.total_seconds()
        if all_due:
            self._retried_at = now
        due = [name for name, doubt in self._doubts.items() if all_due or not doubt.is_told]
        for name in due[:_RETRIED]:  # the others' turn comes
            self._doubts[name] = self._doubts.pop(name)
        return set(due[:_RETRIED])

    def _take(self, filestore: Filestore, name: str, found: _Round, *, is_referred: bool) -> None:
        """Read a document for the next set; what is wrong with it makes it doubtful."""
        self._require_time(found)
        found.waiting += 1
        try:
            for part in filestore.parts(name):
                if found.bytes + len(part.data) > MAX_SET_BYTES or len(found.parts) >= MAX_DOCUMENTS:
                    self._put(found)
                found.parts.append(part)
                found.bytes += len(part.data)
        except WrongContentError:
            self._give_up(found, name, _Kind.CORRUPT, is_referred=is_referred)
        except OSError as error:
            kind = _Kind.MISSING if is_gone(error) else _Kind.UNREADABLE
            self._give_up(found, name, kind, is_referred=is_referred, reason=error.strerror or str(error))
        else:
            if (doubt := self._doubts.pop(name, None)) is not None:
                found.relieved[name] = doubt
            found.complete.append(name)

    def _require_time(self, found: _Round) -> None:
        """End a round that goes on for too long, before or after it was told to stop; what it has read is stored."""
        now = self._context.clock.monotonic()
        if now - self._known_at >= _AFRESH_SECONDS:
            if found.complete:
                self._put(found)
            raise _AgedError
        if not self._stop.is_set():
            return
        self._ends_at = self._ends_at or now + _DRAIN_SECONDS
        if now > self._ends_at:
            if found.complete:
                self._put(found)
            raise _StoppedError

    def _give_up(self, found: _Round, name: str, kind: _Kind, *, is_referred: bool, reason: str = "") -> None:
        """Take a document out of the next set, and remember what is wrong with it."""
        found.waiting -= 1
        if found.parts and found.parts[-1].name == name:
            found.parts = [part for part in found.parts if part.name != name]
            found.bytes = sum(len(part.data) for part in found.parts)
        known = self._doubts.get(name)
        if kind is _Kind.MISSING and not is_referred and known is None:
            return  # listed, and collected by Odoo before it was read: no row refers to it
        if known is None or known.kind is not kind:
            self._doubts[name] = _Doubt(kind=kind, reason=reason, is_referred=is_referred)
        else:
            known.tries += 1
            known.is_referred = known.is_referred or is_referred

    # --- storing --------------------------------------------------------------------------------------------

    def _finish(self, found: _Round, *, is_compared: bool) -> bool:
        """Store what is left, with what was found to be lost; tells whether everything up to the position is stored."""
        decided = [name for name, doubt in self._doubts.items() if doubt.is_decided and not doubt.is_told]
        while len(decided) > MAX_DOCUMENTS:
            self._put(found, lost=decided[:MAX_DOCUMENTS])
            del decided[:MAX_DOCUMENTS]
        # The row of a document in a folder that cannot be listed may be committed already and not visible yet.
        is_whole = is_compared and self._undecided() == 0 and not self._watch.unlisted
        now = self._context.clock.monotonic()
        is_end = self._stop.is_set() and found.position.lsn != self._proved  # rows that only went are proved, too
        is_due = self._owes_proof or is_end or now - self._proved_at >= self._component.idle_interval.total_seconds()
        if found.parts or decided or (is_whole and is_due):
            self._put(found, lost=decided, is_whole=is_whole)
        return is_whole

    def _undecided(self) -> int:
        """Return how many documents that rows refer to are neither stored nor known to be lost."""
        return sum(doubt.is_referred and not doubt.is_decided for doubt in self._doubts.values())

    def _put(self, found: _Round, *, lost: Sequence[str] = (), is_whole: bool = False) -> None:
        """Store a set; after an error everything is as it was before."""
        missing = [name for name in lost if self._doubts[name].kind is _Kind.MISSING]
        corrupt = [name for name in lost if self._doubts[name].kind is _Kind.CORRUPT]
        stored = self._sets.put(
            [],
            position=found.position,
            missing=missing,
            corrupt=corrupt,
            whole=is_whole,
            previous=self._previous,
            key=self._day_keys.today(),
            parts=found.parts,
        )
        self._previous = stored.id
        self._owes_proof = not is_whole
        if is_whole:
            self._proved_at, self._proved = self._context.clock.monotonic(), found.position.lsn
        for name in lost:
            self._doubts[name].is_told = True
        complete, found.complete, found.parts, found.bytes = found.complete, [], [], 0
        found.relieved = {}
        self._known.update(complete)
        found.waiting -= len(complete)
        try:
            self._journal.add(stored.id, complete)
        except OSError as error:  # they are stored; not remembered, they are stored once more
            telemetry.warning("what was stored cannot be remembered", problem=str(error))
        for kind, names in (("missing", missing), ("corrupt", corrupt)):
            if names:
                telemetry.error(f"documents are {kind} in production", documents=len(names), first=names[0])
        self.state = replace(self.state, stored=self.state.stored + len(complete))
        self._publish()

    # --- what is said ---------------------------------------------------------------------------------------

    def _settle(self, position: DocumentPosition, looked_at: datetime, *, is_whole: bool) -> None:
        if is_whole:
            self.state = replace(self.state, durable_server_time=position.server_time, looked_at=looked_at)
        unreadable = {name: doubt.reason for name, doubt in self._doubts.items() if doubt.kind is _Kind.UNREADABLE}
        unreadable.update(self._watch.unlisted)
        if unreadable:
            name, reason = next(iter(unreadable.items()))
            problem = DocumentsUnreadableError(
                f"{len(unreadable)} documents or folders cannot be read, {self._component.path}/{name}: {reason}",
                hint="Let the user of this process read them; it is the owner of the filestore as a rule.",
            )
            self._say(DocumentPhase.STALLED, problem.message, problem.hint)
        elif not self._has_table:
            problem = DocumentsUnreadableError(
                f"database {self._component.database} has no table ir_attachment: no row says which documents it needs",
                hint="Is database of the component the one that Odoo uses? Files are stored; nothing is proven.",
            )
            self._say(DocumentPhase.STALLED, problem.message, problem.hint)
        elif self.state.durable_server_time is None:
            self._say(DocumentPhase.STARTING, None, None)
        else:
            self._say(DocumentPhase.STREAMING, None, None)

    def _fail(self, error: DrError | OSError) -> None:
        if isinstance(error, DrError):
            self._say(DocumentPhase.STALLED, error.message, error.hint)
        else:
            self._say(DocumentPhase.STALLED, str(error), "Look at the disk of state_dir and at the filestore's.")

    def _say(self, phase: DocumentPhase, problem: str | None, remedy: str | None) -> None:
        lost = [doubt.kind for doubt in self._doubts.values() if doubt.is_told]
        before = self.state
        self.state = replace(
            before,
            state=phase,
            problem=problem,
            remedy=remedy,
            missing=lost.count(_Kind.MISSING),
            corrupt=lost.count(_Kind.CORRUPT),
        )
        if (before.state, before.remedy) == (phase, remedy):
            return
        tell = telemetry.info if problem is None else telemetry.error
        tell(
            "document stream",
            service=before.service,
            component=before.component,
            state=phase.value,
            problem=problem,
            remedy=remedy,
        )

    def _publish(self) -> None:
        self.state = replace(self.state, updated_at=self._context.clock.now())
        try:
            write_state(self._context.state_dir, self.state)
            self._is_unwritable = False
        except OSError as error:
            if not self._is_unwritable:  # the capture goes on: it does not live from this file
                telemetry.error("the state of the document stream cannot be written", problem=str(error))
            self._is_unwritable = True
        self._observe(self.state)
