"""Pieces of WAL in a repository: one request each, never overwritten, put together exactly, believed only if signed."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from drservice.errors import (
    DamagedObjectError,
    DrError,
    KeyProblemError,
    MissingObjectError,
    NoIdentityError,
    SegmentConflictError,
    UnknownSignerError,
    WalGapError,
)
from drservice.model.ids import SystemId
from drservice.model.storing import LockMode, LockSettings
from drservice.model.tail import ClockPair, TailPiece
from drservice.model.wal import Lsn, Timeline
from drservice.objectstore.interface import ObjectStore
from drservice.objectstore.memory import MemoryStore
from drservice.repository.keys import DataKey, Identities
from drservice.repository.records import packed_frames
from drservice.repository.repository import Repository
from drservice.repository.tail import Rebuilt, TailArchive
from tests.doubles.repositories import SYSTEM_ID, Site, flipped, new_host, noise
from tests.doubles.stores import RecordingStore

SIZE = 1 << 20
ONE = Timeline(1)
BEGIN = Lsn(3 * SIZE)
WAL = noise(SIZE)
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
PREFIX = f"s/erp/database/tail/{SYSTEM_ID}/00000001/"


class Stream:
    """A receiver's run: an archive and the key of its day."""

    def __init__(self, site: Site, *, store: ObjectStore | None = None, repository: Repository | None = None) -> None:
        self.repository = repository or site.repository(store=store)
        self.archive: TailArchive = self.repository.tail(site.scope)
        self.key: DataKey = self.repository.day_keys(site.scope.service).today()

    def put(self, start: int, end: int, data: bytes | None = None, *, packed: bytes | None = None) -> TailPiece:
        return self.archive.put(
            WAL[start:end] if data is None else data,
            system_id=SYSTEM_ID,
            timeline=ONE,
            start=BEGIN + start,
            server_time=NOON + timedelta(microseconds=start),
            segment_bytes=SIZE,
            key=self.key,
            frames=None if packed is None else tuple(packed_frames(packed)),
        )


def rebuilt(site: Site, *, store: ObjectStore | None = None) -> Rebuilt:
    return site.repository(store=store).tail(site.scope).rebuild(SYSTEM_ID, ONE, 3, SIZE)


def test_pieces_come_back_as_the_begin_of_their_segment(site: Site) -> None:
    stream = Stream(site)
    pieces = [stream.put(0, 100), stream.put(100, 70_000), stream.put(70_000, 70_001)]
    made = rebuilt(site)
    assert made.data == WAL[:70_001] + bytes(SIZE - 70_001)
    assert (made.end, made.problem, made.is_whole) == (BEGIN + 70_001, None, False)
    assert made.pieces == tuple(pieces)
    assert made.last_server_time == NOON + timedelta(microseconds=70_000)
    assert site.keys(PREFIX) == [PREFIX + piece.name for piece in pieces]


def test_a_piece_whose_frames_do_not_hold_it_is_not_stored(site: Site) -> None:
    with pytest.raises(ValueError, match="hold 99 bytes instead of 100"):
        Stream(site).put(0, 100, packed=WAL[:99])
    assert site.keys(PREFIX) == []


def test_a_piece_is_one_request_and_nothing_is_listed_or_looked_at(site: Site) -> None:
    store = RecordingStore(site.store)
    stream = Stream(site, store=store)
    store.calls.clear()
    stream.put(0, 100)
    assert [operation for operation, _ in store.calls] == ["create"]


def test_the_same_piece_again_is_fine_and_needs_no_identity(site: Site) -> None:
    stream = Stream(site, repository=site.repository(identities=Identities()))
    assert stream.put(0, 100) == stream.put(0, 100)
    assert len(site.keys(PREFIX)) == 1


def test_other_bytes_under_the_same_name_are_refused_and_nothing_changes(site: Site) -> None:
    stream = Stream(site)
    key = PREFIX + stream.put(0, 100).name
    before = site.store.read(key)
    with pytest.raises(SegmentConflictError, match="other content"):
        stream.put(0, 100, bytes(100))
    assert site.store.read(key) == before
    assert site.keys(PREFIX) == [key]


def test_a_piece_whose_stored_copy_is_damaged_is_stored_once_more_beside_it(site: Site) -> None:
    stream = Stream(site)
    first = stream.put(0, 100)
    site.replace(PREFIX + first.name, flipped(-1))
    second = stream.put(0, 100)
    assert second != first
    made = rebuilt(site)
    assert (made.end, made.problem, list(made.unusable)) == (BEGIN + 100, None, [PREFIX + first.name])


def test_bytes_of_two_segments_and_none_at_all_are_refused_before_anything_is_stored(site: Site) -> None:
    stream = Stream(site)
    for start, end in ((SIZE - 1, SIZE + 1), (5, 5)):
        with pytest.raises(ValueError, match=r"crosses|holds nothing"):
            stream.put(start, end, bytes(end - start))
    assert site.keys(PREFIX) == []


def test_runs_that_overlap_make_one_segment_and_all_of_it_is_whole(site: Site) -> None:
    Stream(site).put(0, 600_000)
    second = Stream(site)
    second.put(0, 500_000)
    second.put(500_000, SIZE)
    made = rebuilt(site)
    assert (bytes(made.data), made.is_whole, made.problem) == (WAL, True, None)


def test_runs_that_contradict_each_other_end_it_there_with_a_conflict(site: Site) -> None:
    Stream(site).put(0, 1000)
    Stream(site).put(500, 2000, WAL[500:700] + bytes(1300))
    made = rebuilt(site)
    assert made.end == BEGIN + 700
    assert isinstance(made.problem, SegmentConflictError)
    assert made.data == WAL[:700] + bytes(SIZE - 700)


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "flipped head": flipped(50),
    "flipped body": flipped(-1),
    "cut off": lambda data: data[:-1],
    "longer": lambda data: data + b"x",
    "empty": lambda _: b"",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_piece_ends_the_segment_there_and_is_told(site: Site, damage: str) -> None:
    stream = Stream(site)
    stream.put(0, 100)
    key = PREFIX + stream.put(100, 200).name
    stream.put(200, 300)
    site.replace(key, DAMAGE[damage])
    made = rebuilt(site)
    assert made.end == BEGIN + 100
    assert isinstance(made.problem, DamagedObjectError)
    assert list(made.unusable) == [key]
    [_, broken, _] = stream.archive.pieces(SYSTEM_ID, ONE)
    with pytest.raises(DrError) as told:
        stream.archive.check(broken, system_id=SYSTEM_ID)
    assert str(made.unusable[key]) == str(told.value)


def test_a_missing_piece_ends_the_segment_there_and_is_told(site: Site) -> None:
    stream = Stream(site)
    stream.put(0, 100)
    site.store.delete(PREFIX + stream.put(100, 200).name)
    stream.put(200, 300)
    made = rebuilt(site)
    assert (made.end, type(made.problem)) == (BEGIN + 100, WalGapError)


def test_a_piece_that_was_moved_to_another_place_is_not_believed(site: Site) -> None:
    stream = Stream(site)
    stream.put(0, 100)
    moved = site.store.read(PREFIX + stream.put(100, 200).name)
    site.store.create(PREFIX + TailPiece(timeline=ONE, start=BEGIN + 200, end=BEGIN + 300, writer=ULID).name, moved)
    assert rebuilt(site).end == BEGIN + 200


ULID = "01ARZ3NDEKTSV4RRFFQ69G5FAV"


def test_pieces_of_somebody_who_may_not_write_are_not_believed(site: Site) -> None:
    stranger = new_host("stranger")
    theirs = site.repository(host=stranger)
    with pytest.raises(KeyProblemError):
        Stream(site, repository=theirs).put(0, 100)
    assert site.keys(PREFIX) == []
    stream = Stream(site)
    stream.put(0, 100)
    reader = site.repository(host=stranger)
    reader.trust = type(reader.trust)([])
    made = reader.tail(site.scope).rebuild(SYSTEM_ID, ONE, 3, SIZE)
    assert made.end == BEGIN
    assert isinstance(next(iter(made.unusable.values())), UnknownSignerError)


def test_on_a_store_with_versions_the_oldest_that_is_valid_counts(site: Site) -> None:
    made = Site.create(site.base / "versioned", store=MemoryStore(versioned=True))
    key = PREFIX + Stream(made).put(0, 100).name
    assert isinstance(made.store, MemoryStore)
    made.store.plant_version(key, b"overwritten")
    made.store.plant_version(key, None)
    assert rebuilt(made).end == BEGIN + 100


def test_without_an_identity_nothing_is_shortened_in_silence(site: Site) -> None:
    Stream(site).put(0, 100)
    blind = site.repository(identities=Identities())
    with pytest.raises(NoIdentityError):
        blind.tail(site.scope).rebuild(SYSTEM_ID, ONE, 3, SIZE)
    [stored] = blind.tail(site.scope).pieces(SYSTEM_ID, ONE)
    assert blind.tail(site.scope).check(stored, system_id=SYSTEM_ID).server_time == NOON


def test_a_piece_whose_data_key_is_gone_cannot_be_used(site: Site) -> None:
    stream = Stream(site)
    stream.put(0, 100)
    for key in site.keys("keys/"):
        site.store.delete(key)
    made = rebuilt(site)
    assert (made.end, type(made.problem)) == (BEGIN, DamagedObjectError)
    blind = site.repository(identities=Identities()).tail(site.scope)
    with pytest.raises(MissingObjectError):
        blind.check(blind.pieces(SYSTEM_ID, ONE)[0], system_id=SYSTEM_ID)


def test_only_the_stretch_that_is_asked_for_is_listed(site: Site) -> None:
    stream = Stream(site)
    pieces = [stream.put(start, start + 10) for start in range(0, 50, 10)]
    found = stream.archive.pieces(SYSTEM_ID, ONE, begin=BEGIN + 20, end=BEGIN + 40)
    assert [stored.piece for stored in found] == pieces[2:4]
    assert stream.archive.pieces(SYSTEM_ID, Timeline(2)) == []
    assert stream.archive.pieces(SystemId("1"), ONE) == []
    assert (stream.archive.system_ids(), stream.archive.timelines(SYSTEM_ID)) == ([SYSTEM_ID], [ONE])


def test_pieces_are_locked_for_hours_and_segments_for_days() -> None:
    lock = LockSettings(mode=LockMode.COMPLIANCE, days=30)
    assert lock.end_for(PREFIX + "x", NOON) == NOON + timedelta(hours=24)
    assert lock.end_for(f"s/erp/database/wal/{SYSTEM_ID}/00000001/x", NOON) >= NOON + timedelta(days=30)
    assert lock.end_for("s/tail/database/wal/x", NOON) >= NOON + timedelta(days=30)


# --- the clock ------------------------------------------------------------------------------------------------


def pair(second: int, at: int) -> ClockPair:
    return ClockPair(server_time=NOON + timedelta(seconds=second), lsn=BEGIN + at)


def put_clock(site: Site, *pairs: ClockPair) -> None:
    site.repository().clocks(site.scope).put(
        system_id=SYSTEM_ID, timeline=ONE, segment=3, segment_bytes=SIZE, pairs=pairs
    )


def read_clock(site: Site) -> tuple[ClockPair, ...]:
    blind = site.repository(identities=Identities())
    return blind.clocks(site.scope).read(system_id=SYSTEM_ID, timeline=ONE, segment=3, segment_bytes=SIZE)


def test_what_the_clock_said_comes_back_without_an_identity_even_if_it_went_back(site: Site) -> None:
    assert read_clock(site) == ()
    put_clock(site, pair(5, 10), pair(3, 20), pair(9, SIZE))
    assert read_clock(site) == (pair(5, 10), pair(3, 20), pair(9, SIZE))
    assert site.keys("s/") == [f"s/erp/database/clock/{SYSTEM_ID}/00000001/000000010000000000000003"]
    put_clock(site, pair(7, 30))
    assert read_clock(site)[0] == pair(5, 10)


def test_pairs_out_of_order_or_of_another_segment_are_refused(site: Site) -> None:
    for pairs in ((), (pair(1, 20), pair(2, 10)), (pair(1, 20), pair(2, 20)), (pair(1, SIZE + 1),)):
        with pytest.raises(ValueError, match="pairs"):
            put_clock(site, *pairs)
    assert site.keys("s/") == []


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_clock_is_no_clock(site: Site, damage: str) -> None:
    put_clock(site, pair(5, 10))
    [key] = site.keys("s/")
    site.replace(key, DAMAGE[damage])
    assert read_clock(site) == ()
