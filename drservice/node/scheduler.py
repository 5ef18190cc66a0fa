"""The clock of a node: looks at the schedules when a slot comes, and puts what is due into the queue.

Any number of nodes may do that at once. A schedule's row in the timetable is held while its slots are judged
(``model.timetable``), so each slot is a run or a missed slot, once. What time it is, the catalogue says; this host's
clock only wakes the scheduler up. A catalogue that was away is asked again, and the slots of that time are judged then.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from apscheduler.schedulers.background import BackgroundScheduler  # type: ignore[import-untyped]  # it has no types
from apscheduler.triggers.date import DateTrigger  # type: ignore[import-untyped]  # it has no types

from drservice import telemetry
from drservice.catalogue.database import Database
from drservice.catalogue.ledgeroutbox import SCHEDULE, put_missed
from drservice.catalogue.requests import Transaction
from drservice.catalogue.runs import RunRequest, Runs
from drservice.catalogue.timetables import (
    LastDone,
    ScheduleKey,
    catalogue_now,
    hold,
    hold_all,
    is_under_way,
    last_done,
    settle,
    settled,
)
from drservice.clock import Clock, to_iso
from drservice.errors import CatalogueUnreachableError
from drservice.jobs.queue import Queue
from drservice.model.due import StartKind, decide_start
from drservice.model.estate import Estate
from drservice.model.runs import RunKind
from drservice.model.timetable import Planned, Settlement, host_of, settle_slots, timetable

_JOB = "tick"
_LONGEST_WAIT_SECONDS = 30.0
_RETRY_SECONDS = 2.0
_AFTER_SLOT_SECONDS = 0.005
_IDLE = timedelta(minutes=10)
"""A schedule without slots is carried on this often: when its text changes, no older slot of the new one is missed."""
_FURTHEST_BACK = timedelta(days=35)
"""Missed slots of a longer darkness are not recorded one by one."""
_LOOKS = 3
"""That may be under way: one at work, and others that wait for it. If only one were allowed, an alarm in the middle of
a look, or before APScheduler has noticed its end, would not ring, and slots would wait for the longest wait."""
_HELD_ELSEWHERE = timedelta(seconds=0.2)
"""Until a schedule is looked at again that another node is carrying out."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Missed:
    """Slots of a schedule for which nobody was there."""

    planned: Planned
    slots: tuple[datetime, ...]
    caught_up_by: str | None
    reason: str


@dataclass(slots=True, kw_only=True)
class _Next:
    """The first slot of a schedule after an instant."""

    after: datetime
    slot: datetime


class Scheduler:
    """Carries out the schedules of one configuration.

    Args:
        database: the catalogue.
        estate: the configuration in force; another one comes with :meth:`replace`.
        clock: of this host, for waking up only.
        missed: told of missed slots in the transaction that records them.
        longest_wait_seconds: between two looks at the schedules.
    """

    def __init__(
        self,
        database: Database,
        *,
        estate: Estate,
        clock: Clock,
        missed: Callable[[Missed, Transaction], None],
        longest_wait_seconds: float = _LONGEST_WAIT_SECONDS,
    ) -> None:
        self._database = database
        self._runs = Runs(database)
        self._queue = Queue(database, self._runs)
        self._clock = clock
        self._missed = missed
        self._longest_wait_seconds = longest_wait_seconds
        self._lock = threading.Lock()
        self._ticked_at = clock.monotonic()
        self._is_away = False
        self._next: dict[ScheduleKey, _Next] = {}
        self._fresh: set[ScheduleKey] = set()
        self._estate = estate
        self._planned = _by_key(estate)
        self._setting = threading.Lock()
        """Of the alarm: none is set any more once it is to end."""
        self._is_over = False
        self._alarm = BackgroundScheduler(
            timezone=UTC, job_defaults={"coalesce": True, "max_instances": _LOOKS, "misfire_grace_time": None}
        )

    def start(self) -> None:
        """Begin: look at once, then whenever a slot comes."""
        self._alarm.start()
        self._wake_in(0.0)

    def stop(self) -> None:
        """Look no more; a look that is under way is finished. Safe to repeat."""
        # APScheduler waits for that look under the lock that setting the next alarm needs: a deadlock if it were set.
        with self._setting:
            self._is_over = True
        if self._alarm.running:
            self._alarm.shutdown(wait=True)

    def replace(self, estate: Estate) -> None:
        """Go on with another configuration.

        What changed or is new counts from now on: slots that its text names in the past are nobody's.
        """
        with self._lock:
            new = _by_key(estate)
            old = self._planned
            self._fresh |= {key for key in new if key not in old or old[key].cron != new[key].cron}
            self._fresh |= {key for key in new if key in old and old[key].calendar.zone != new[key].calendar.zone}
            self._estate, self._planned = estate, new
            self._next.clear()
        self.wake()

    def wake(self) -> None:
        """Look now: the catalogue's clock was moved."""
        if self._alarm.running:
            self._wake_in(0.0)

    def keep_alive(self) -> None:
        """Look now if this host's clock was set back: the alarm would sleep until it has caught up."""
        late = self._clock.monotonic() - self._ticked_at
        if self._alarm.running and late > self._longest_wait_seconds + 2 * _RETRY_SECONDS:
            self._wake_in(0.0)

    def tick(self) -> float:
        """Look at every schedule once, and return in how many seconds to look again.

        Raises:
            CatalogueUnreachableError: what has not been judged is judged the next time.
        """
        with self._lock:
            self._ticked_at = self._clock.monotonic()
            wanted = [*self._planned, *_documents_keys(self._estate)]
            with self._database.session() as session:
                now = catalogue_now(session)
                known = settled(session, wanted)
            for key in sorted(wanted):
                if key in known or key in self._fresh:
                    self._look_at(key, known.get(key), now)
            self._carry_on(wanted, known, now)
            soonest = min((entry.slot for entry in self._next.values()), default=None)
            if soonest is None:
                return self._longest_wait_seconds
            wait = (soonest - now).total_seconds() - (self._clock.monotonic() - self._ticked_at)
            return min(max(wait + _AFTER_SLOT_SECONDS, 0.0), self._longest_wait_seconds)

    # --- The alarm -------------------------------------------------------------------------------------------

    def _wake_in(self, seconds: float) -> None:
        at = datetime.now(UTC) + timedelta(seconds=seconds)
        with self._setting:
            if not self._is_over:
                self._alarm.add_job(self._on_time, DateTrigger(at, timezone=UTC), id=_JOB, replace_existing=True)

    def _on_time(self) -> None:
        wait = _RETRY_SECONDS
        try:
            wait = self.tick()
        except CatalogueUnreachableError as error:
            if not self._is_away:
                telemetry.warning("the catalogue is away, slots are judged when it is back", problem=error.message)
            self._is_away = True
        else:
            self._is_away = False
        finally:
            self._wake_in(wait)

    # --- One schedule ----------------------------------------------------------------------------------------

    def _look_at(self, key: ScheduleKey, until: datetime | None, now: datetime) -> None:
        try:
            if key in self._fresh or self._has_come(key, until, now):
                self._judge(key)
        except CatalogueUnreachableError:
            raise
        except Exception as error:  # noqa: BLE001 - the node's catch-all: other schedules go on, this one is tried again
            telemetry.error("a schedule cannot be carried out", exception=error, schedule=_named(key))

    def _has_come(self, key: ScheduleKey, until: datetime | None, now: datetime) -> bool:
        """Tell whether a schedule has a slot that nobody has carried out."""
        if until is None:
            return False
        cached = self._next.get(key)
        if cached is None or not cached.after <= until or now >= cached.slot:
            # Somebody else may have carried it out: then the next slot is another one, and there is nothing to do.
            cached = self._next[key] = _Next(after=until, slot=self._slot_after(key, until))
        return now >= cached.slot

    def _carry_on(self, wanted: Iterable[ScheduleKey], known: Mapping[ScheduleKey, datetime], now: datetime) -> None:
        """Begin with new schedules, and carry on those that had no slot for long: all in one transaction."""
        new = [key for key in wanted if key not in known and key not in self._fresh]
        idle = [key for key, until in known.items() if now - until >= _IDLE and key in self._next]
        if not new and not idle:
            return
        with self._database.session() as session:
            held = hold_all(session, idle)
            quiet = [key for key, until in held.items() if not self._has_come(key, until, now)]
            settle(session, dict.fromkeys([*new, *quiet], now))
        self._next |= {key: _Next(after=now, slot=self._slot_after(key, now)) for key in new}

    def _judge(self, key: ScheduleKey) -> None:
        with self._database.session() as session:
            held = hold(session, key)
            now = catalogue_now(session)
            if not held.is_ours:
                # Whoever carries it out may die in the middle: it is looked at again in a moment.
                self._next[key] = _Next(after=now + _HELD_ELSEWHERE, slot=now + _HELD_ELSEWHERE)
                return
            until, planned = held.until, self._planned.get(key)
            if until is None or key in self._fresh:
                pass  # nobody asked for the slots of the past
            elif planned is None:
                self._documents(session, key, until, now)
            else:
                after = max(until, now - _FURTHEST_BACK)
                self._carry_out(session, planned, key, settle_slots(planned, settled=after, now=now), now)
            settle(session, {key: now})
        self._fresh.discard(key)
        self._next[key] = _Next(after=now, slot=self._slot_after(key, now))

    def _slot_after(self, key: ScheduleKey, now: datetime) -> datetime:
        planned = self._planned.get(key)
        if planned is not None:
            return planned.next_slots(after=now, count=1)[0]
        every = _documents_every(self._estate, key)
        return _last_multiple(now, every) + every

    def _carry_out(
        self, session: Transaction, planned: Planned, key: ScheduleKey, found: Settlement, now: datetime
    ) -> None:
        runs = [self._request(session, planned, key, slot, now) for slot in found.due]
        if not found.missed:
            return
        caught_up_by = next((run for run in runs if run is not None), None)
        if found.catches_up:
            caught_up_by = self._request(session, planned, key, None, now, newest_missed=found.missed[-1])
        recorded: list[tuple[str, datetime]] = []
        for slot in found.missed:
            missed = self._runs.missed(key.service, planned.kind, key.plan, slot, found.reason, session=session)
            if missed is None:
                continue
            recorded.append((missed, slot))
            if caught_up_by is not None:
                self._runs.caught_up(missed, caught_up_by, session=session)
        telemetry.warning("slots were missed", slots=len(recorded), caught_up_by=caught_up_by, schedule=_named(key))
        if recorded:
            put_missed(
                session,
                service=key.service,
                kind=planned.kind,
                plan=key.plan,
                slots=recorded,
                reason=found.reason,
                caught_up_by=caught_up_by,
            )
            slots = tuple(slot for _, slot in recorded)
            self._missed(Missed(planned=planned, slots=slots, caught_up_by=caught_up_by, reason=found.reason), session)

    def _request(
        self,
        session: Transaction,
        planned: Planned,
        key: ScheduleKey,
        slot: datetime | None,
        now: datetime,
        *,
        newest_missed: datetime | None = None,
    ) -> str | None:
        wanted_for = slot if slot is not None else newest_missed
        assert wanted_for is not None, "a run is for a slot or for missed ones"
        newest = last_done(session, key)
        start = decide_start(
            planned,
            now=now,
            slot=wanted_for,
            last_done=newest.at if newest is not None else None,
            expected=_expected(newest),
        )
        parameters: dict[str, object] = {}
        if newest_missed is not None:
            parameters["catches_up"] = to_iso(newest_missed)
        if start.kind is StartKind.DELAYED:
            parameters |= {"not_before": to_iso(start.at), "reason": start.reason}
        elif start.kind is StartKind.THROTTLED:
            parameters |= {"throttled": True, "reason": start.reason}
        run = self._queue.enqueue(
            RunRequest(
                service=key.service,
                kind=planned.kind,
                plan=key.plan,
                requested_by=SCHEDULE,
                parameters=parameters,
                host=host_of(planned.service, planned.kind),
                scheduled_for=slot,
            ),
            session=session,
        )
        if run is not None:
            telemetry.info("run queued", run=run, start=start.kind.value, schedule=_named(key))
        return run

    def _documents(self, session: Transaction, key: ScheduleKey, until: datetime, now: datetime) -> None:
        """Queue one pass for everything since the last look; none beside one that waits or works."""
        slot = _last_multiple(now, _documents_every(self._estate, key))
        if slot <= until or is_under_way(session, key):
            return
        service = self._estate.service(key.service)
        self._queue.enqueue(
            RunRequest(
                service=key.service,
                kind=RunKind.DOCUMENTS,
                requested_by=SCHEDULE,
                host=host_of(service, RunKind.DOCUMENTS),
                scheduled_for=slot,
            ),
            session=session,
        )


def _by_key(estate: Estate) -> dict[ScheduleKey, Planned]:
    return {
        ScheduleKey(service=planned.service.name, kind=planned.kind.value, plan=planned.plan): planned
        for planned in timetable(estate)
    }


def _documents_keys(estate: Estate) -> Iterable[ScheduleKey]:
    return (
        ScheduleKey(service=service.name, kind=RunKind.DOCUMENTS.value)
        for service in estate.services.values()
        if service.schedule.documents_every is not None
    )


def _documents_every(estate: Estate, key: ScheduleKey) -> timedelta:
    every = estate.service(key.service).schedule.documents_every
    assert every is not None, "only services with passes are looked at"
    return every


def _last_multiple(now: datetime, every: timedelta) -> datetime:
    """Return the last of the instants that lie ``every`` apart, the same for all schedulers."""
    return _EPOCH + (now - _EPOCH) // every * every


def _expected(newest: LastDone | None) -> timedelta:
    return newest.took if newest is not None else timedelta(0)


def _named(key: ScheduleKey) -> str:
    return " ".join(part for part in (key.service, key.kind, key.plan) if part)
