"""What losing production would have cost: committed work that was not durable, never an idle gap."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import cast

from drservice.components.postgres.waldump import Outcome, TransactionEnd
from drservice.environments.interface import Environment
from drservice.model.ids import ComponentName, ServiceName
from drservice.model.recovery import choose_plan
from drservice.model.wal import Lsn, Timeline, segment_name, segment_number
from drservice.operations.locate import WalScanner
from drservice.operations.loss import Production, covered_by_receiver, is_tail_empty, loss_at
from drservice.operations.restorerequest import RestoreResult
from drservice.operations.streamstate import StreamPhase, StreamState, lock_path, write_state
from drservice.processes import open_private
from tests.unit.model.test_recovery import LATEST, MONDAY, NOON, SIZE, archive, at

SECOND = timedelta(seconds=1)
SEGMENTS = range(2, 7)


@dataclass(frozen=True, slots=True)
class Scanner:
    """Tells the commits of each segment."""

    commits: Mapping[str, tuple[datetime, ...]]
    idle: bool = False
    """What is asked about holds heartbeats alone."""

    def is_idle(self, name: str, begin: Lsn, end: Lsn) -> bool:
        assert at(segment_number(name, SIZE)) <= begin < end
        return self.idle

    def dump(self, name: str) -> SimpleNamespace:
        begin = at(segment_number(name, SIZE))
        events = [
            TransactionEnd(lsn=begin + 1000 * rank, end=begin + 1000 * rank + 40, xid=1, at=at_, outcome=Outcome.COMMIT)
            for rank, at_ in enumerate(self.commits.get(name, ()))
        ]
        return SimpleNamespace(events=events)


def name(number: int) -> str:
    return segment_name(Timeline(1), number, SIZE)


@dataclass(frozen=True, slots=True)
class Source:
    """Pieces: where each ends, and when it came into the store."""

    pieces: tuple[tuple[float, int], ...] = ()

    def held_until(self, name: str, *, at: datetime) -> Lsn:
        begin = segment_number(name, SIZE)
        ends = [end for end, second in self.pieces if int(end) == begin and NOON + second * SECOND <= at]
        return Lsn(int(max([float(begin), *ends]) * SIZE))


def restored(
    *,
    reached: float = 5.5,
    time: datetime | None = None,
    stored: Mapping[int, int] | None = None,
    pieces: tuple[tuple[float, int], ...] = (),
) -> RestoreResult:
    """Return a recovery from MONDAY; ``stored``: when each segment came into the store, in seconds after noon."""
    inventory = replace(
        archive(*SEGMENTS),
        stored_at={name(number): NOON + second * SECOND for number, second in (stored or {}).items()},
    )
    plan = choose_plan(LATEST, [MONDAY], inventory)
    archived = SimpleNamespace(inventory=inventory, source=Source(pieces))
    found = SimpleNamespace(
        planned=SimpleNamespace(resolved=SimpleNamespace(plan=plan), archived=archived),
        reached=SimpleNamespace(lsn=at(reached), time=time),
    )
    return cast("RestoreResult", found)


def idle(**commits: int) -> WalScanner:
    """Return the same where everything that the store did not hold were heartbeats."""
    return cast("WalScanner", replace(cast("Scanner", scanner(**commits)), idle=True))


def scanner(**commits: int) -> WalScanner:
    """Return what reads the segments; ``s5=40``: a commit in segment 5, 40 seconds after noon."""
    found = Scanner({name(int(key[1:])): (NOON + second * SECOND,) for key, second in commits.items()})
    return cast("WalScanner", found)


def in_segment_five(*seconds: int) -> WalScanner:
    """Return what reads segment 5 with commits at these seconds, 1,000 bytes apart."""
    return cast("WalScanner", Scanner({name(5): tuple(NOON + second * SECOND for second in seconds)}))


STORED = {2: 1, 3: 10, 4: 30, 5: 90, 6: 95}


def test_what_was_stored_at_the_instant_is_not_lost() -> None:
    result = restored(reached=4.5, stored=STORED)
    assert loss_at(NOON + 50 * SECOND, result, scanner(s4=25)) == 0.0


def test_commits_that_were_not_stored_at_the_instant_are_lost_back_to_the_last_that_was() -> None:
    result = restored(reached=5.5, stored=STORED)
    assert loss_at(NOON + 50 * SECOND, result, scanner(s4=25, s5=40)) == 25.0


def test_an_idle_gap_costs_nothing_although_its_segment_was_not_stored() -> None:
    assert loss_at(NOON + 50 * SECOND, restored(reached=5.5, stored=STORED), scanner(s4=25)) == 0.0


def test_a_commit_behind_the_instant_was_not_lost_at_it() -> None:
    assert loss_at(NOON + 50 * SECOND, restored(reached=5.5, stored=STORED), scanner(s4=25, s5=51)) == 0.0


def test_without_a_durable_commit_the_loss_goes_back_to_the_snapshot() -> None:
    result = restored(reached=5.5, stored=STORED)
    instant = NOON + 50 * SECOND
    assert loss_at(instant, result, scanner(s5=40)) == (instant - MONDAY.stopped_at).total_seconds()


def test_what_may_lie_behind_the_archive_is_lost_back_to_the_last_durable_commit() -> None:
    result = restored(reached=4.5, stored=STORED)
    instant = NOON + 50 * SECOND
    assert loss_at(instant, result, scanner(s4=25)) == 0.0
    assert loss_at(instant, result, scanner(s4=25), tail_at_risk=True) == 25.0
    assert loss_at(instant, result, scanner(), tail_at_risk=True) == (instant - MONDAY.stopped_at).total_seconds()


def test_what_lay_behind_a_segment_that_was_filled_in_later_was_not_held() -> None:
    instant = NOON + 50 * SECOND
    filled = {2: 1, 3: 10, 4: 90, 5: 30, 6: 95}
    commits = scanner(s3=5, s4=25, s5=28)
    assert loss_at(instant, restored(reached=5.5, stored=filled), commits) == 45.0
    assert loss_at(instant, restored(reached=5.5, stored=filled, pieces=((4.5, 20),)), commits) == 25.0


def test_the_store_s_clock_is_set_right_before_it_is_believed() -> None:
    """The store says 30 and is 30 seconds ahead: at 20, segment 4 with its commit of 15 was held; and behind: not."""
    result = restored(reached=4.5, stored=STORED)
    instant = NOON + 20 * SECOND
    assert loss_at(instant, result, scanner(s3=5, s4=15)) == 15.0
    assert loss_at(instant, result, scanner(s3=5, s4=15), skew=30 * SECOND) == 0.0
    assert loss_at(NOON + 50 * SECOND, result, scanner(s3=5, s4=15), skew=-30 * SECOND) == 45.0


def test_what_was_stored_in_pieces_before_its_segment_is_not_lost() -> None:
    instant = NOON + 50 * SECOND
    early = restored(reached=5.5, stored=STORED, pieces=((5.5, 49),))
    assert loss_at(instant, early, in_segment_five(30, 40)) == 0.0
    late = restored(reached=5.5, stored=STORED, pieces=((5.5, 51),))
    assert loss_at(instant, late, in_segment_five(30, 40)) == (instant - MONDAY.stopped_at).total_seconds()
    between = restored(reached=5.5, stored=STORED, pieces=((5 + 500 / SIZE, 35), (5.5, 51)))
    assert loss_at(instant, between, in_segment_five(30, 40)) == 20.0, "back to the last commit that was held"


def test_a_store_that_tells_no_times_leaves_the_loss_unknown() -> None:
    assert loss_at(NOON + 50 * SECOND, restored(reached=5.5), scanner(s5=40)) is None


def test_heartbeats_that_were_not_stored_yet_are_no_loss() -> None:
    """A receiver lets them wait, a minute or more; work behind the same piece is lost all the same."""
    found = restored(stored={2: 0, 3: 1, 4: 2, 5: 70}, pieces=((5.0, 70),))
    instant = NOON + 40 * SECOND
    assert loss_at(instant, found, scanner(s4=1, s5=39)) == 39.0
    assert loss_at(instant, found, idle(s4=1, s5=39)) == 0.0
    assert loss_at(instant, found, idle(s4=1, s5=39), tail_at_risk=True) == 39.0


def test_what_a_receiver_has_taken_care_of_is_no_empty_claim(tmp_path: Path) -> None:
    erp, database = ServiceName("erp"), ComponentName("database")
    assert covered_by_receiver(tmp_path, erp, database, Lsn(5)) is None, "there is none"
    now = datetime.now(UTC)
    state = StreamState(
        service=erp,
        component=database,
        system_id=None,
        timeline=None,
        slot="s",
        state=StreamPhase.STREAMING,
        received_lsn=Lsn(9),
        durable_lsn=Lsn(4),
        covered_lsn=Lsn(9),
        server_lsn=Lsn(9),
        durable_server_time=now,
        server_time=now,
        synchronous=False,
        problem=None,
        remedy=None,
        pid=1,
        updated_at=now,
    )
    write_state(tmp_path, state)
    assert covered_by_receiver(tmp_path, erp, database, Lsn(5)) is None, "it is dead: its word is old"
    path = lock_path(tmp_path, erp, database)
    path.parent.mkdir()
    file = open_private(path)
    fcntl.flock(file, fcntl.LOCK_EX)
    try:
        assert covered_by_receiver(tmp_path, erp, database, Lsn(9)) == Lsn(4), "the rest is known for idle"
    finally:
        os.close(file)


def tail_is_empty(result: RestoreResult, *, flushed: float, durable: float | None) -> bool:
    production = Production(at=NOON, flushed=at(flushed), next_xid=9, durable=None if durable is None else at(durable))
    nobody = cast("Environment", SimpleNamespace())
    return is_tail_empty(production, result, dsn="host=/nowhere", environment=nobody, since_xid=None)


def test_what_a_receiver_made_durable_and_the_restore_did_not_bring_is_at_risk() -> None:
    whole = restored(reached=6.5)
    assert tail_is_empty(whole, flushed=7.5, durable=7.0), "the rest is an idle server's"
    assert not tail_is_empty(whole, flushed=7.5, durable=7.25), "a piece behind it was damaged, or went away"
    assert tail_is_empty(whole, flushed=7.0, durable=None)
    assert not tail_is_empty(whole, flushed=7.5, durable=None)


def test_a_partial_segment_counts_as_far_as_there_is_wal_in_it() -> None:
    result = restored(reached=6.5)
    reach = replace(result.planned.resolved.plan.reach, partial=f"{name(6)}.partial")
    plan = replace(result.planned.resolved.plan, reach=reach)
    for wal_end, empty in ((at(6.5), False), (at(6.75), True), (None, False)):
        resolved = SimpleNamespace(plan=plan, wal_end=wal_end)
        found = cast("RestoreResult", SimpleNamespace(planned=SimpleNamespace(resolved=resolved)))
        assert tail_is_empty(found, flushed=6.6, durable=None) is empty
