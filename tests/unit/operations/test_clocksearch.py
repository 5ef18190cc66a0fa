"""The clock narrows: it leads to where an instant lies, and where it lies or is silent the whole search goes on."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from drservice.components.postgres.waldump import Dump, EndKind, Outcome, TransactionEnd, WalEnd
from drservice.model.ids import SystemId
from drservice.model.reach import Reach, WalInventory
from drservice.model.recovery import Target, TargetKind
from drservice.model.snapshot import SnapshotRecord
from drservice.model.tail import ClockPair
from drservice.model.wal import Lsn, Timeline, TimelineSpan, segment_name
from drservice.operations import locate
from drservice.operations.clocksearch import CLOCKS_APART, candidates
from drservice.operations.locate import resolve

SIZE = 1 << 20
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
NAMES = [segment_name(Timeline(1), number, SIZE) for number in range(100)]


def minute(number: float) -> datetime:
    return NOON + timedelta(minutes=number)


class Clocks:
    """Segment n ends at minute n + 1, but for what a test says."""

    def __init__(self) -> None:
        self.said: dict[int, datetime | None] = {}
        self.asked: list[int] = []

    def read(
        self, *, system_id: SystemId, timeline: Timeline, segment: int, segment_bytes: int
    ) -> tuple[ClockPair, ...]:
        assert (system_id, timeline, segment_bytes) == ("1", 1, SIZE)
        self.asked.append(segment)
        at = self.said.get(segment, minute(segment + 1))
        return () if at is None else (ClockPair(server_time=at, lsn=Lsn((segment + 1) * SIZE)),)


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


@pytest.fixture
def archived(clocks: Clocks) -> Any:
    source = SimpleNamespace(clocks=clocks, system_id=SystemId("1"), segment_bytes=SIZE)
    return SimpleNamespace(streamed={}, source=source)


def test_an_instant_is_found_in_few_looks(clocks: Clocks, archived: Any) -> None:
    assert candidates(minute(41.5), NAMES, archived) == (NAMES[41], NAMES[42])
    assert len(clocks.asked) <= 7
    assert candidates(minute(99.5), NAMES, archived) == (NAMES[99],)
    assert candidates(minute(500), NAMES, archived) == ()


def test_without_a_clock_on_the_way_nothing_is_narrowed(clocks: Clocks, archived: Any) -> None:
    clocks.said |= dict.fromkeys(range(50, 54))
    assert candidates(minute(41.5), NAMES, archived) == ()
    assert len(clocks.asked) == CLOCKS_APART, "of an archive without any, no more are asked for"


@pytest.mark.parametrize("first", range(CLOCKS_APART))
@pytest.mark.parametrize("count", [*range(1, 12), 97, 100])
def test_where_one_segment_of_four_has_a_clock_a_few_are_left_and_the_right_one_is_among_them(
    clocks: Clocks, archived: Any, first: int, count: int
) -> None:
    clocks.said |= {number: None for number in range(100) if number % CLOCKS_APART != first}
    for number in range(count):
        found = candidates(minute(number + 0.5), NAMES[:count], archived)
        if count <= first:
            assert found == (), "no clock tells anything"
            continue
        assert NAMES[number] in found
        assert len(found) <= CLOCKS_APART + 2


def test_pieces_tell_the_time_of_a_segment_that_is_not_finished(clocks: Clocks, archived: Any) -> None:
    clocks.said[99] = None
    archived.streamed[NAMES[99]] = SimpleNamespace(server_time=minute(100))
    assert candidates(minute(99.5), NAMES, archived) == (NAMES[99],)


class Scanner:
    """In segment n a transaction ended at minute n + 0.5."""

    def __init__(self, archived: Any) -> None:
        self.archived = archived
        self.read: list[str] = []
        self.progress = SimpleNamespace(step=lambda _: None)

    def dump(self, name: str) -> Dump:
        self.read.append(name)
        number = NAMES.index(name)
        lsn = Lsn(number * SIZE + 100)
        end = TransactionEnd(lsn=lsn, end=lsn + 40, at=minute(number + 0.5), xid=number, outcome=Outcome.COMMIT)
        return Dump(events=(end,), end=WalEnd(kind=EndKind.WHOLE, position=None, reason=""))


def resolved(scanner: Scanner, instant: datetime, monkeypatch: pytest.MonkeyPatch) -> Any:
    plan: Any = SimpleNamespace(
        reach=Reach(
            path=(TimelineSpan(timeline=Timeline(1), begin=Lsn(0), end=None),),
            end=Lsn(100 * SIZE),
            segments=100,
            gap=None,
        )
    )
    monkeypatch.setattr(locate, "_plan_by_server_clock", lambda *_: plan)
    monkeypatch.setattr(locate, "plan_segments", lambda *_: NAMES)
    records: list[SnapshotRecord] = []
    inventory = WalInventory(system_id=SystemId("1"), segment_bytes=SIZE, segments={}, histories={})
    given: Any = scanner
    return resolve(Target(kind=TargetKind.TIME, time=instant), records, inventory, given)


def test_only_wal_at_the_target_is_read(archived: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    scanner = Scanner(archived)
    proven = resolved(scanner, minute(41.2), monkeypatch)
    assert scanner.read == [NAMES[41]]
    assert "proves WAL past the target" in proven.notes[0]


def test_a_clock_that_lies_only_costs_a_look(clocks: Clocks, archived: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clocks.said = {number: minute(500) for number in range(100)}  # "the instant lies in the first segment"
    scanner = Scanner(archived)
    proven = resolved(scanner, minute(41.2), monkeypatch)
    assert scanner.read == [NAMES[0], NAMES[1], NAMES[99]]
    assert proven.ends is locate.RecoveryEnd.TARGET
