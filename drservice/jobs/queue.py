"""The queue of runs: procrastinate's tables and functions, worked on over the catalogue's own connections.

The run is the truth (``catalogue.runs``); a job in the queue only wakes a node up and keeps runs of one service apart.
A job that is lost or left behind therefore harms nothing: :meth:`Queue.repair` makes the two agree again. The worker
that procrastinate brings is not used: a node keeps its runs while the catalogue is away, and nothing here is async.

Queues: ``node:<host>`` for runs that need a host's disks, ``recovery`` for those that read data back (hosts with an
identity take them), ``shared`` for the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from procrastinate import sql
from procrastinate.schema import SchemaManager

from drservice.catalogue.database import Database
from drservice.catalogue.requests import Transaction
from drservice.catalogue.runs import RunRequest, Runs
from drservice.model.runs import RunKind

CHANNEL = "procrastinate_any_queue_v1"
"""Of LISTEN: something was put into a queue, or a lock became free."""
SHARED = "shared"
RECOVERY = "recovery"
_TASK = "drservice.run"
_SCHEMA_LOCK = 0x64727175657565
"""Advisory lock of whoever makes the queue's tables ("drqueue")."""
_LEADER_LOCK = 0x64726C65616465
"""Advisory lock of whoever looks after the queue in this round ("drleade")."""
_UNCLAIMED_SECONDS = 30
"""A job taken and not claimed for so long is its taker's no more."""
_PRIORITIES = MappingProxyType(
    {
        RunKind.DESTROY: 35,
        RunKind.RESTORE: 30,
        RunKind.BACKUP: 20,
        RunKind.DOCUMENTS: 18,
        RunKind.VERIFY: 15,
        RunKind.RETENTION: 12,
        RunKind.DRILL: 10,
    }
)
"""A waiting job holds back those of its service that come after it. A drill is last: it may wait for a host with an
identity that is not there, and no backup may wait with it."""
_RECOVERING = frozenset({RunKind.RESTORE, RunKind.DRILL})
_BESIDE = frozenset({RunKind.RESTORE, RunKind.DESTROY})
"""Somebody waits for them, and they touch nothing that other runs of the service work on."""

_TRY_LOCK = "SELECT pg_try_advisory_xact_lock(%(key)s)"
_PUT = """
    SELECT procrastinate_defer_jobs_v1(ARRAY[ROW(
        %(queue)s, %(task)s, %(priority)s, %(lock)s, NULL, jsonb_build_object('run', %(run)s::text), NULL
    )::procrastinate_job_to_defer_v1])
"""
# A job that another node's repair removed is gone already: procrastinate's function would raise.
_FINISH = """
    SELECT procrastinate_finish_job_v1(job.id, 'succeeded', true)
      FROM (SELECT id FROM procrastinate_jobs WHERE id = %(job)s AND status IN ('todo', 'doing') FOR UPDATE) AS job
"""
_FORGET = """
    DELETE FROM procrastinate_jobs AS job
     WHERE job.task_name = %(task)s
       AND (NOT EXISTS (SELECT FROM run WHERE run.id = job.args->>'run' AND run.state IN ('queued', 'running'))
            OR (job.status = 'doing' AND EXISTS (
                    SELECT FROM run
                     WHERE run.id = job.args->>'run' AND run.state = 'queued'
                       AND (run.id = ANY(%(reaped)s::text[])
                            OR (SELECT max(event.at) FROM procrastinate_events AS event
                                 WHERE event.job_id = job.id AND event.type = 'started')
                               < now() - make_interval(secs => %(unclaimed)s)))))
"""
_WITHOUT_JOB = """
    SELECT run.id, run.service, run.kind, run.host
      FROM run
     WHERE run.state = 'queued'
       AND coalesce((run.parameters->>'not_before')::timestamptz, '-infinity') <= drservice_now()
       AND NOT EXISTS (SELECT FROM procrastinate_jobs AS job
                        WHERE job.task_name = %(task)s AND job.args->>'run' = run.id
                          AND job.status IN ('todo', 'doing'))
     ORDER BY run.id
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job that was taken: its own number, and the run it stands for."""

    id: int
    run: str


def queue_of(kind: RunKind, host: str | None) -> str:
    """Return the queue that a run waits in."""
    if host is not None:
        return f"node:{host}"
    return RECOVERY if kind in _RECOVERING else SHARED


def queues_for(host: str, *, can_read: bool) -> tuple[str, ...]:
    """Return the queues that a host takes from; ``can_read``: it has an identity."""
    return (f"node:{host}", SHARED, RECOVERY) if can_read else (f"node:{host}", SHARED)


class Queue:
    """The queue in a catalogue.

    Every method raises CatalogueUnreachableError when the database does not answer.
    """

    def __init__(self, database: Database, runs: Runs | None = None) -> None:
        self._database = database
        self._runs = runs or Runs(database)

    def install(self) -> None:
        """Make the queue's tables where they are missing; any number of processes may call this at once."""
        with self._database.connection() as connection:
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(%(key)s)", {"key": _SCHEMA_LOCK})
            if connection.exec_driver_sql(sql.queries["check_connection"]).scalar_one() is None:
                connection.exec_driver_sql(SchemaManager.get_schema(), execution_options={"no_parameters": True})

    def enqueue(self, request: RunRequest, *, session: Transaction | None = None) -> str | None:
        """Request a run and put its job into the queue, both or neither; ``None`` if the slot is taken.

        A run whose parameters have ``not_before`` (ISO 8601) gets its job from :meth:`look_after` when that has come.
        """
        if session is None:
            with self._database.session() as own:
                return self.enqueue(request, session=own)
        run = self._runs.request(request, session=session)
        if run is not None and "not_before" not in request.parameters:
            self.put(run, service=request.service, kind=request.kind, host=request.host, session=session)
        return run

    def put(self, run: str, *, service: str, kind: RunKind, host: str | None, session: Transaction) -> None:
        """Put the job of a queued run into its queue, in the caller's transaction.

        Runs of one service never overlap, on any host. A restore that somebody asked for, and the end of an
        environment, wait for none of them.
        """
        session.connection().exec_driver_sql(
            _PUT,
            {
                "queue": queue_of(kind, host),
                "task": _TASK,
                "priority": _PRIORITIES[kind],
                "lock": None if kind in _BESIDE else f"service:{service}",
                "run": run,
            },
        )

    def take(self, queues: Sequence[str]) -> Job | None:
        """Take the most urgent job of these queues whose service is free; ``None`` if there is none."""
        with self._database.session() as session:
            row = (
                session.connection()
                .exec_driver_sql(sql.queries["fetch_job"], {"queues": list(queues), "worker_id": None})
                .mappings()
                .one()
            )
        return None if row["id"] is None else Job(id=row["id"], run=row["args"]["run"])

    def done(self, job: Job, *, session: Transaction | None = None) -> None:
        """Remove a job and tell everybody that its service is free; it may be gone already."""
        if session is None:
            with self._database.session() as own:
                self.done(job, session=own)
            return
        connection = session.connection()
        connection.exec_driver_sql(_FINISH, {"job": job.id})
        _wake(connection)

    def give_back(self, job: Job, *, session: Transaction) -> None:
        """Replace the job of a run that its host put back into the queue by a fresh one."""
        connection = session.connection()
        connection.exec_driver_sql(_FINISH, {"job": job.id})
        self._put_missing(session)
        _wake(connection)

    def look_after(self, *, reaping: bool = True) -> list[str] | None:
        """Take lost runs from their hosts and make jobs and runs agree; one process at a time does.

        Args:
            reaping: whether runs whose lease has ended are taken from their hosts; not while nobody could renew.

        Returns:
            the runs that are in the queue again; ``None`` if another process is doing it.
        """
        with self._database.session() as session:
            connection = session.connection()
            # Whoever is stopped in the middle of this must not keep the others from it.
            connection.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = '30s'")
            if not connection.exec_driver_sql(
                "SELECT pg_try_advisory_xact_lock(%(key)s)", {"key": _LEADER_LOCK}
            ).scalar():
                return None
            reaped = self._runs.reap(session=session) if reaping else []
            self.repair(reaped, session=session)
            return reaped

    def repair(self, reaped: Sequence[str] = (), *, session: Transaction) -> None:
        """Make the queue agree with the runs: no job without a run that is under way, no waiting run without a job."""
        connection = session.connection()
        forgotten = connection.exec_driver_sql(
            _FORGET, {"task": _TASK, "reaped": list(reaped), "unclaimed": _UNCLAIMED_SECONDS}
        ).rowcount
        if self._put_missing(session) or forgotten:
            _wake(connection)

    def _put_missing(self, session: Transaction) -> int:
        rows = session.connection().exec_driver_sql(_WITHOUT_JOB, {"task": _TASK}).all()
        for run, service, kind, host in rows:
            self.put(run, service=service, kind=RunKind(kind), host=host, session=session)
        return len(rows)


def _wake(connection: Any) -> None:  # noqa: ANN401 - SQLAlchemy's type belongs to the catalogue
    connection.exec_driver_sql("SELECT pg_notify(%(channel)s, '')", {"channel": CHANNEL})
