"""The worker of a node: takes runs from its queues, claims them, and sees each through in a process of its own.

* A run is claimed under an epoch and held by a lease; one that is lost is stopped, and nothing more is written on it.
* A catalogue that is away ends no run. The outcome is told as soon as it is back; a backup that committed before its
  outcome could be told is recognised by whoever claims the run next.
* Draining: nothing new is taken; runs may end by themselves for a while, then they are stopped and go back into the
  queue, to be resumed by another host or by this one from what they had uploaded.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from drservice import telemetry
from drservice.catalogue.database import Database
from drservice.catalogue.runs import Claim, RunInfo, Runs, error_document
from drservice.catalogue.timetables import catalogue_now
from drservice.clock import Clock
from drservice.errors import CatalogueUnreachableError, RunCancelledError
from drservice.jobs.leases import Lease
from drservice.jobs.queue import CHANNEL, Job, Queue, queues_for
from drservice.model.estate import Estate
from drservice.model.runs import RunState
from drservice.node.assignment import Assignment, Document, Outcome
from drservice.node.observing import RunObserver
from drservice.node.process import RunProcess, Word

_POLL_SECONDS = 5.0
"""Between looks into the queue when nothing was announced."""
_WAIT_SECONDS = 1.0
_RETRY_SECONDS = 2.0
_BEAT_SECONDS = 0.5
_MOST_DEATHS = 3
"""Claims of a run in which its process may die."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A run that this node has seen through, for whoever follows up (projection)."""

    run: RunInfo
    state: RunState


class Worker:
    """Takes and carries out runs until it is told to drain.

    Args:
        database: the catalogue.
        host: whose runs are taken.
        estate: returns the configuration in force, for each run anew.
        clock: of this host.
        log_level: of the processes of runs.
        ended: told of each run after its end is in the catalogue; what it raises is logged.
    """

    def __init__(
        self,
        database: Database,
        *,
        host: str,
        estate: Callable[[], Estate],
        clock: Clock,
        log_level: str,
        ended: Callable[[Ended], None],
    ) -> None:
        self._database = database
        self._runs = Runs(database)
        self._queue = Queue(database, self._runs)
        self._host = host
        self._estate = estate
        self._clock = clock
        self._log_level = log_level
        self._ended = ended
        self._draining = threading.Event()
        self._stopping = threading.Event()
        self._is_away = False
        self._lock = threading.Lock()
        self._threads: dict[str, threading.Thread] = {}
        self._taker = threading.Thread(target=self._take_until_drained, name="taker", daemon=True)

    @property
    def running(self) -> tuple[str, ...]:
        """The runs at work here."""
        with self._lock:
            return tuple(self._threads)

    def start(self) -> None:
        """Begin to take runs."""
        self._taker.start()

    def drain(self) -> None:
        """Take nothing new; what runs may end by itself."""
        self._draining.set()

    def stop(self) -> None:
        """Stop what still runs and put it back into the queue."""
        self._draining.set()
        self._stopping.set()

    def wait(self, seconds: float) -> bool:
        """Wait for the end of everything; whether it has come."""
        deadline = self._clock.monotonic() + seconds
        with self._lock:
            threads = [self._taker, *self._threads.values()]
        for thread in threads:
            thread.join(max(0.0, deadline - self._clock.monotonic()))
        return not self._taker.is_alive() and not self.running

    # --- Taking ----------------------------------------------------------------------------------------------

    def _take_until_drained(self) -> None:
        while not self._draining.is_set():
            try:
                with self._database.listening(CHANNEL) as heard:
                    # What was put into the queue before the listening began is looked for once.
                    looked_at = self._look()
                    while not self._draining.is_set():
                        if heard.wait(_WAIT_SECONDS) or self._clock.monotonic() - looked_at >= _POLL_SECONDS:
                            looked_at = self._look()
            except CatalogueUnreachableError as error:
                if not self._is_away:
                    telemetry.warning("the catalogue is away, no run is taken", problem=error.message)
                self._is_away = True
                self._draining.wait(_RETRY_SECONDS)
            except Exception as error:  # noqa: BLE001 - the node's catch-all: a defect in one look ends no node
                telemetry.error("looking into the queue failed", exception=error)
                self._draining.wait(_RETRY_SECONDS)

    def _look(self) -> float:
        """Take runs while there is room; returns when it looked."""
        looked_at = self._clock.monotonic()
        estate = self._estate()
        queues = queues_for(self._host, can_read=bool(estate.repository.identities))
        while not self._draining.is_set() and len(self.running) < estate.node.runs:
            job = self._queue.take(queues)
            if job is None:
                break
            self._claim(job, estate)
        if self._is_away:
            telemetry.info("the catalogue is back")
        self._is_away = False
        return looked_at

    def _claim(self, job: Job, estate: Estate) -> None:
        claim = self._runs.claim(job.run, host=self._host, lease=estate.node.lease)
        info = self._runs.get(job.run) if claim is not None else None
        if claim is None or info is None:
            self._queue.done(job)  # it was cancelled, or somebody else has it
            return
        telemetry.info("run claimed", run=info.id, epoch=claim.epoch, service=info.service, kind=info.kind.value)
        thread = threading.Thread(
            target=self._see_through, args=(job, claim, info, estate), name=f"run {info.id}", daemon=True
        )
        with self._lock:
            self._threads[info.id] = thread
        thread.start()

    # --- One run ---------------------------------------------------------------------------------------------

    def _see_through(self, job: Job, claim: Claim, info: RunInfo, estate: Estate) -> None:
        try:
            with telemetry.bound(run=info.id, epoch=claim.epoch):
                outcome, lease = self._work(claim, info, estate)
                if lease.is_lost:
                    return  # somebody else has the run, or ended it: nothing is written about it any more
                state = self._until_told(lambda: self._conclude(job, claim, outcome, lease))
                if state is not None:
                    telemetry.info("run ended", state=state.value, **_words(outcome.error))
                    self._ended(Ended(run=info, state=state))
        except Exception as error:  # noqa: BLE001 - the node's catch-all: its lease runs out, and the reaper sees to it
            telemetry.error("a run was given up by a defect", exception=error, run=info.id)
        finally:
            with self._lock:
                del self._threads[info.id]

    def _work(self, claim: Claim, info: RunInfo, estate: Estate) -> tuple[Outcome, Lease]:
        """Let the run's process work, as long as the run is ours and wanted."""
        observer = RunObserver(self._runs, claim, self._clock)
        with Lease(self._runs, claim, estate.node.lease, beat=observer.write) as lease:
            process = RunProcess(estate, self._assignment(claim, info), estate.node.lease, log_level=self._log_level)
            try:
                outcome = self._follow(process, lease, observer)
            except BaseException:
                process.kill()
                raise
            finally:
                died = process.close()
        if outcome is None:
            # A run whose process was killed is resumed; one that kills its processes (memory) is not tried for ever.
            is_resumed = self._is_unwanted(lease) or claim.epoch < _MOST_DEATHS
            outcome = Outcome(state=RunState.FAILED, error=error_document(died), is_interrupted=is_resumed)
        return outcome, lease

    def _follow(self, process: RunProcess, lease: Lease, observer: RunObserver) -> Outcome | None:
        outcome: Outcome | None = None
        while outcome is None and not process.has_ended:
            for message in process.messages(_BEAT_SECONDS):
                if isinstance(message, Outcome):
                    outcome = message
                else:
                    observer.hear(message)
            if lease.is_lost or self._is_unwanted(lease):
                process.say(Word.STOP)
                process.insist()
            else:
                process.say(Word.GO_ON)
        return outcome

    def _is_unwanted(self, lease: Lease) -> bool:
        return lease.cancelled_by is not None or self._stopping.is_set()

    def _assignment(self, claim: Claim, info: RunInfo) -> Assignment:
        return Assignment(
            run=info.id,
            epoch=claim.epoch,
            service=info.service,
            kind=info.kind,
            plan=info.plan,
            parameters=info.parameters,
            first_started_at=None if info.started_at is None else info.started_at + self._clock_ahead(),
        )

    def _clock_ahead(self) -> timedelta:
        """Return how far this host's clock is before the catalogue's."""
        with self._database.session() as session:
            return self._clock.now() - catalogue_now(session)

    def _conclude(self, job: Job, claim: Claim, outcome: Outcome, lease: Lease) -> RunState | None:
        """Tell the catalogue how the run ended; ``None`` if it goes on elsewhere."""
        if outcome.is_interrupted and lease.cancelled_by is None:
            with self._database.session() as session:
                reason = "its host drains" if self._stopping.is_set() else "its process was stopped or died"
                if self._runs.release(claim, reason, session=session):
                    self._queue.give_back(job, session=session)
            return None
        state, error = outcome.state, outcome.error
        if outcome.is_interrupted:
            state = RunState.CANCELLED
            error = error_document(RunCancelledError(f"cancelled by {lease.cancelled_by}"))
        is_told = self._runs.finish(claim, state, result=outcome.result, error=error)
        self._queue.done(job)
        return state if is_told else None

    def _until_told(self, tell: Callable[[], RunState | None]) -> RunState | None:
        """Tell the catalogue something, however long it is away."""
        while True:
            try:
                return tell()
            except CatalogueUnreachableError as error:
                telemetry.warning("the catalogue is away, a run's end is told later", problem=error.message)
                self._clock.sleep(_RETRY_SECONDS)


def _words(error: Document | None) -> dict[str, object]:
    return {} if error is None else {"problem": error.get("message"), "code": error.get("code")}
