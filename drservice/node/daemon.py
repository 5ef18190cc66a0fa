"""A node: the process of a host that does its runs, and looks at the schedules of the estate like every other node.

It owns its name (one process per name, by a lock on this machine and an incarnation in the catalogue), the scheduler,
the worker and the projector, and what has to happen now and then: heartbeat, lost runs, changed configuration,
messages. A catalogue that is away stops none of what runs; everything else is tried again until it is back.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import timedelta
from importlib import metadata

from drservice import telemetry
from drservice.catalogue.database import Database
from drservice.catalogue.duties import duty
from drservice.catalogue.embedded import EmbeddedCluster
from drservice.catalogue.history import forget
from drservice.catalogue.hosts import Hosts
from drservice.catalogue.requests import Transaction
from drservice.catalogue.timetables import catalogue_now
from drservice.clock import Clock
from drservice.environments.proc import boot_id
from drservice.errors import CatalogueUnreachableError, DrError, HostTakenError, UsageError
from drservice.jobs.queue import Queue
from drservice.model.estate import Estate
from drservice.model.ids import is_name
from drservice.model.runs import RunKind
from drservice.model.timetable import host_of
from drservice.node.companions import Companions
from drservice.node.documentstreams import CAPTURING
from drservice.node.environments import EnvironmentTeller
from drservice.node.projecting import Projector
from drservice.node.scheduler import Missed, Scheduler
from drservice.node.streamtelling import StreamTeller
from drservice.node.telling import Teller, notice_of_missed
from drservice.node.walhelpers import HELPING
from drservice.node.walstreams import RECEIVING
from drservice.node.watching import Watcher
from drservice.node.witnessing import Witness
from drservice.node.worker import Ended, Worker
from drservice.notify.apprise import places
from drservice.notify.outbox import Outbox
from drservice.processes import open_private
from drservice.settings.watching import WatchedConfiguration
from drservice.wiring.control_plane import EMBEDDED, open_control_plane
from drservice.wiring.data_plane import make_state_folder

_TURN_SECONDS = 1.0
_RETRY_SECONDS = 2.0
_LOOK_SECONDS = 5.0
_CONFIGURATION_SECONDS = 2.0
_MESSAGES_SECONDS = 5.0
_WATCH_SECONDS = 20.0
"""Between looks whether it is this node's turn to look for breaches."""
_HISTORY = timedelta(minutes=5)
_MOST_FORGOTTEN = 20_000
_CLOCKS_APART = timedelta(seconds=2)
_LAST_SECONDS = 60.0
"""For runs that were told to stop, to end."""
_POOL_SIZE = 10


class Node:
    """One node, from taking its name to giving it up.

    Args:
        name: of the host.
        configuration: watched while the node runs.
        clock: of this host.
        log_level: of the processes it starts.
        ready: told once when the node takes runs.
    """

    def __init__(
        self,
        *,
        name: str,
        configuration: WatchedConfiguration,
        clock: Clock,
        log_level: str,
        ready: Callable[[], None] = lambda: None,
    ) -> None:
        if not is_name(name):
            raise UsageError(f"{name!r} is no name of a host", hint="Lower-case letters, digits, - and _; see --name.")
        self._name = name
        self._configuration = configuration
        self._clock = clock
        self._log_level = log_level
        self._ready = ready
        self._stop = threading.Event()
        self._hurry = threading.Event()
        self._reload = threading.Event()

    def stop(self) -> None:
        """Drain and end; asked a second time, runs are stopped at once. Safe in a signal handler."""
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()

    def reload(self) -> None:
        """Read the configuration now. Safe in a signal handler."""
        self._reload.set()

    def run(self) -> None:
        """Work until :meth:`stop`.

        Raises:
            HostTakenError: another process has the name, or took it.
            CatalogueError: the catalogue cannot be used; one that is away is waited for instead.
        """
        with ExitStack() as stack:
            estate = self._configuration.estate
            make_state_folder(estate)
            dead = self._lock_name(estate, stack)
            database = self._open_catalogue(estate, stack)
            if database is None:
                return
            hosts, incarnation = Hosts(database), f"{dead}{secrets.token_hex(8)}"
            if not hosts.register(self._name, incarnation, _version(), silence=estate.node.lease, dead=dead):
                raise HostTakenError(f"another node named {self._name} is running elsewhere")
            duties = _Duties(
                name=self._name,
                incarnation=incarnation,
                database=database,
                configuration=self._configuration,
                clock=self._clock,
                log_level=self._log_level,
            )
            try:
                self._work(duties)
            finally:
                duties.end()
                try:
                    hosts.leave(self._name, incarnation)
                except CatalogueUnreachableError as error:
                    telemetry.warning("the name is given up later, when it was silent for long", problem=error.message)

    def _work(self, duties: _Duties) -> None:
        duties.start()
        telemetry.info("node runs", host=self._name)
        self._ready()
        while not self._stop.wait(_TURN_SECONDS):
            duties.turn(reload=self._reload.is_set())
            self._reload.clear()
        drain = self._configuration.estate.node.drain
        telemetry.info(
            "node drains", host=self._name, running=list(duties.worker.running), seconds=drain.total_seconds()
        )
        duties.scheduler.stop()
        duties.worker.drain()
        self._wait(duties, drain, unless=self._hurry)
        duties.worker.stop()
        self._wait(duties, timedelta(seconds=_LAST_SECONDS), unless=threading.Event())

    def _wait(self, duties: _Duties, patience: timedelta, *, unless: threading.Event) -> None:
        deadline = self._clock.monotonic() + patience.total_seconds()
        while not duties.worker.wait(0.0) and self._clock.monotonic() < deadline and not unless.wait(0.2):
            duties.keep_name()

    def _lock_name(self, estate: Estate, stack: ExitStack) -> str:
        """Hold the name on this machine, and return how the incarnations of its former holders here begin.

        A copy of this machine has another boot, a container with another state_dir another file: neither proves that
        the holder of the name in the catalogue is dead.
        """
        path = estate.state_dir / "run" / f"node-{self._name}.lock"
        descriptor = open_private(path)
        stack.callback(os.close, descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise HostTakenError(f"another node named {self._name} is running on this machine") from error
        facts = os.fstat(descriptor)
        return f"{boot_id()}/{facts.st_dev}-{facts.st_ino}:"

    def _open_catalogue(self, estate: Estate, stack: ExitStack) -> Database | None:
        """Wait for the catalogue; ``None`` if the node is to end before it is there."""
        is_told = False
        while not self._stop.is_set():
            try:
                database = stack.enter_context(open_control_plane(estate, pool_size=_POOL_SIZE))
                Queue(database).install()
            except CatalogueUnreachableError as error:
                if not is_told:
                    telemetry.warning("the catalogue is away, the node waits for it", problem=error.message)
                is_told = True
                self._stop.wait(_RETRY_SECONDS)
            else:
                return database
        return None


class _Duties:
    """What a node with a name does, part by part; the turns are taken in the main thread."""

    def __init__(
        self,
        *,
        name: str,
        incarnation: str,
        database: Database,
        configuration: WatchedConfiguration,
        clock: Clock,
        log_level: str,
    ) -> None:
        self._name = name
        self._incarnation = incarnation
        self._database = database
        self._configuration = configuration
        self._clock = clock
        self._hosts = Hosts(database)
        self._queue = Queue(database)
        self._teller = Teller(database)
        self._watcher = Watcher(database)
        self._outbox = Outbox(database, places(configuration.estate.notify))
        self._is_over = threading.Event()
        self._messenger = threading.Thread(target=self._deliver, name="messenger", daemon=True)
        self._next: dict[str, float] = {}
        self._is_away = False
        self._ahead: timedelta | None = None
        self._turned_at = clock.monotonic()
        self._watching_since = clock.monotonic()
        self.projector = Projector(
            database.url, estate=self._estate, own=lambda estate: own_services(estate, name), log_level=log_level
        )
        self.witness = Witness(database, estate=self._estate, log_level=log_level)
        self.worker = Worker(
            database, host=name, estate=self._estate, clock=clock, log_level=log_level, ended=self._ended
        )
        self.environments = EnvironmentTeller(
            database, host=name, folder=lambda: self._estate().state_dir / "environments", clock=clock
        )
        self.scheduler = Scheduler(database, estate=configuration.estate, clock=clock, missed=self._missed)
        self.streams = StreamTeller(database, estate=self._estate, host=name, clock=clock)
        self.companions = [
            Companions(trade, estate=self._estate, host=name, log_level=log_level)
            for trade in (HELPING, RECEIVING, CAPTURING)
        ]

    def start(self) -> None:
        """Begin to take runs and to look at schedules."""
        self._asking(self._compare_clocks)
        self.worker.start()
        self.scheduler.start()
        self.projector.start()
        self.witness.start()
        self.environments.start()
        for companions in self.companions:
            companions.start()
        self.streams.start()
        self._messenger.start()

    def end(self) -> None:
        """End what :meth:`start` began; runs are at an end already, or are stopped and go back into the queue."""
        self._is_over.set()
        self.environments.stop()
        self.scheduler.stop()
        self.worker.stop()
        self.worker.wait(_LAST_SECONDS)
        self.projector.stop()
        self.witness.stop()
        for companions in self.companions:
            companions.stop()
        self.streams.stop()

    def turn(self, *, reload: bool) -> None:
        """Do what is due now.

        Raises:
            HostTakenError: another process has the name now.
        """
        now = self._clock.monotonic()
        if now - self._turned_at > self._lease_seconds / 2:
            telemetry.warning("this node stood still", seconds=round(now - self._turned_at, 1))
            self._watching_since = now
            self.projector.refresh()
        self._turned_at = now
        if self._is_due("configuration", _CONFIGURATION_SECONDS) or reload:
            self._look_at_configuration(force=reload)
        self.scheduler.keep_alive()
        self.keep_name()
        if self._is_due("queue", min(_LOOK_SECONDS, self._lease_seconds / 4)):
            self._asking(self._look_after_queue)

    def keep_name(self) -> None:
        """Be seen.

        Raises:
            HostTakenError: another process has the name now.
        """
        if self._is_due("name", self._lease_seconds / 6):
            self._asking(self._be_seen)
            self._asking(self._compare_clocks)

    @property
    def _lease_seconds(self) -> float:
        return self._estate().node.lease.total_seconds()

    def _estate(self) -> Estate:
        return self._configuration.estate

    def _is_due(self, what: str, seconds: float) -> bool:
        now = self._clock.monotonic()
        if now < self._next.get(what, now):
            return False
        self._next[what] = now + seconds
        return True

    def _asking(self, work: Callable[[], None]) -> None:
        """Ask the catalogue something that is asked again; after it was away, lost runs get a lease to come back."""
        try:
            work()
        except CatalogueUnreachableError as error:
            if not self._is_away:
                telemetry.warning("the catalogue is away", problem=error.message)
            self._is_away = True
            self._revive()
        else:
            if self._is_away:
                telemetry.info("the catalogue is back")
                self._watching_since = self._clock.monotonic()
                self.projector.refresh()
            self._is_away = False

    def _revive(self) -> None:
        """Start an embedded server that has died."""
        estate = self._estate()
        if estate.catalogue != EMBEDDED:
            return
        try:
            with EmbeddedCluster(estate.state_dir):
                pass  # this process uses it through another object, so it stays
        except DrError as error:
            telemetry.error("the embedded catalogue cannot be started", problem=error.message)

    def _be_seen(self) -> None:
        if not self._hosts.seen(self._name, self._incarnation):
            raise HostTakenError(
                f"another node took the name {self._name}: this one was not seen for too long",
                hint="Its runs go on elsewhere. Start it again once you know which of the two is the right one.",
            )

    def _compare_clocks(self) -> None:
        """Look at the schedules at once when the catalogue's clock has moved against ours: the alarm goes by ours."""
        with self._database.session() as session:
            ahead = self._clock.now() - catalogue_now(session)
        moved = ahead - self._ahead if self._ahead is not None else timedelta(0)
        self._ahead = ahead
        if abs(moved) > _CLOCKS_APART:
            telemetry.info("the clocks of host and catalogue moved apart", seconds=round(moved.total_seconds(), 1))
            self.scheduler.wake()

    def _look_after_queue(self) -> None:
        # Holders of leases that ended while nobody could renew them come first: the catalogue, or all of us, were away.
        is_patient = self._clock.monotonic() - self._watching_since < self._lease_seconds
        for run in self._queue.look_after(reaping=not is_patient) or ():
            telemetry.warning("a run lost its host and is in the queue again", run=run)

    def _look_at_configuration(self, *, force: bool) -> None:
        estate = self._configuration.look(force=force)
        if estate is None:
            return
        self._outbox = Outbox(self._database, places(estate.notify))
        self.scheduler.replace(estate)
        for name in own_services(estate, self._name):
            self.projector.ask(name)

    def _ended(self, ended: Ended) -> None:
        self.projector.ask(ended.run.service)
        self.environments.ask()

    def _missed(self, found: Missed, session: Transaction) -> None:
        self._outbox.tell(notice_of_missed(found), session=session)

    def _forget(self) -> None:
        """Remove old runs and events, if no other node has just done so."""
        with duty(self._database, "history", every=_HISTORY) as session:
            if session is None:
                return
            gone = forget(session, self._estate().history, limit=_MOST_FORGOTTEN)
        if gone.runs or gone.events:
            telemetry.info("old runs forgotten", runs=gone.runs, events=gone.events)

    def _deliver(self) -> None:
        """Queue and deliver messages; in a thread of its own, because places may take their time."""
        while not self._is_over.wait(_MESSAGES_SECONDS):
            outbox, estate = self._outbox, self._estate()
            try:
                if self._is_due("history", _HISTORY.total_seconds()):
                    self._forget()
                if not estate.notify:
                    continue
                self._teller.tell(outbox)
                # What the catalogue does not know yet would look like a broken promise.
                if self.projector.is_fresh and self._is_due("watch", _WATCH_SECONDS):
                    self._watcher.look(estate, outbox)
                outbox.deliver()
            except CatalogueUnreachableError:
                continue  # the main thread tells; they are delivered when it is back
            except Exception as error:  # noqa: BLE001 - the node's catch-all: what cannot be told today is told later
                telemetry.error("messages were not delivered", exception=error)


def _version() -> str:
    """Return this program's version, for people; a checkout that is not installed has none."""
    try:
        return metadata.version("drservice")
    except metadata.PackageNotFoundError:
        return "not installed"


def own_services(estate: Estate, host: str) -> Sequence[str]:
    """Return the services that a host keeps the index of: those whose data it has, and those of no host."""
    return [service.name for service in estate.services.values() if host_of(service, RunKind.BACKUP) in {host, None}]
