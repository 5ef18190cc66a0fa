"""WAL from whole files and from pieces: what counts, what a restore is given, and what happens while it runs."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from drservice.errors import DamagedObjectError, NoIdentityError, SegmentAbsentError, SegmentConflictError, WalGapError
from drservice.model.wal import Lsn, Timeline, WalFileName, segment_name
from drservice.objectstore.interface import ObjectStore
from drservice.operations import mutation
from drservice.operations.info import windows_with_times
from drservice.operations.inventory import Archived, read_archive
from drservice.operations.wal import fetch_wal
from drservice.operations.walsource import PlannedWal, WalSource
from drservice.repository.keys import Identities
from drservice.repository.repository import Repository
from tests.doubles.repositories import SYSTEM_ID, Site, flipped, noise
from tests.doubles.stores import RecordingStore
from tests.unit.model.test_recovery import snapshot

SIZE = 1 << 20
ONE = Timeline(1)
WAL = noise(SIZE, 5)
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site.create(tmp_path)


def name(number: int, timeline: int = 1) -> str:
    return segment_name(Timeline(timeline), number, SIZE)


def parsed(number: int) -> WalFileName:
    return WalFileName.parse(name(number))


def archive_whole(site: Site, *numbers: int) -> None:
    for number in numbers:
        site.put_wal(name(number), WAL)


def stream(site: Site, number: int, *cuts: tuple[int, int], data: bytes = WAL, timeline: int = 1) -> list[str]:
    """Store pieces of a segment in a run of its own; return their keys."""
    repository = site.repository()
    tail, key = repository.tail(site.scope), repository.day_keys(site.scope.service).today()
    return [
        tail.key_of(
            SYSTEM_ID,
            tail.put(
                data[start:end],
                system_id=SYSTEM_ID,
                timeline=Timeline(timeline),
                start=Lsn(number * SIZE + start),
                server_time=NOON + timedelta(microseconds=end),
                segment_bytes=SIZE,
                key=key,
            ),
        )
        for start, end in cuts
    ]


def source(site: Site, *, store: ObjectStore | None = None, repository: Repository | None = None) -> WalSource:
    opened = repository or site.repository(store=store)
    return WalSource(opened, site.scope, system_id=SYSTEM_ID, segment_bytes=SIZE)


def read(site: Site, *, proven: bool = True) -> Archived:
    return read_archive(source(site), proven=proven)


def test_whole_in_pieces_counts_as_whole_and_the_unfinished_one_as_what_it_is(site: Site) -> None:
    archive_whole(site, 2, 3)
    stream(site, 4, (0, 500_000), (500_000, SIZE))
    stream(site, 5, (0, 1000))
    for proven in (True, False):
        archived = read(site, proven=proven)
        assert archived.inventory.segments[ONE] == {2, 3, 4}
        assert {number: tail.end for number, tail in archived.inventory.tails[ONE].items()} == {5: Lsn(5 * SIZE + 1000)}
    assert archived.source.fetch(parsed(4), system_id=SYSTEM_ID) == WAL
    with pytest.raises(SegmentAbsentError):
        archived.source.fetch(parsed(5), system_id=SYSTEM_ID)
    assert archived.source.server_time_of(archived.streamed[name(5)]) == NOON + timedelta(microseconds=1000)


def test_what_the_names_promise_and_the_bytes_do_not_keep_is_found_by_reading(site: Site) -> None:
    archive_whole(site, 2)
    [_, broken, _] = stream(site, 3, (0, 1000), (1000, 2000), (2000, SIZE))
    site.replace(broken, flipped(-1))
    assert read(site, proven=False).inventory.segments[ONE] == {2, 3}
    tail = read(site).inventory.tails[ONE][3]
    assert tail.end == Lsn(3 * SIZE + 1000)
    assert tail.problem is not None
    assert not tail.is_contradicted
    with pytest.raises(DamagedObjectError):
        source(site).fetch(parsed(3), system_id=SYSTEM_ID)


def test_a_segment_that_becomes_whole_while_the_archive_is_listed_is_no_hole(site: Site) -> None:
    archive_whole(site, 2)
    stream(site, 3, (0, 1000))
    listed = source(site)
    before = list(listed.archive.listing(SYSTEM_ID))

    class Stale:
        """The listing of before: of what the receiver has stored since it shows nothing."""

        def __getattr__(self, attribute: str) -> object:
            return getattr(source(site).archive, attribute)

        def listing(self, *_: object) -> list[object]:
            return list(before)

    listed.archive = Stale()  # type: ignore[assignment]  # stands in for it
    archive_whole(site, 3)
    stream(site, 4, (0, 1000))
    archived = read_archive(listed, proven=True)
    assert archived.inventory.segments[ONE] == {2, 3}
    assert list(archived.inventory.tails[ONE]) == [4]
    without = replace(archived, inventory=replace(archived.inventory, tails={}))
    records = [snapshot("MONDAY", 2.5, 3.5, system=SYSTEM_ID)]
    [window] = windows_with_times(site.repository(), site.scope, without, records)
    assert (window.window.last_segment, window.window.end) == (name(3), Lsn(4 * SIZE)), "the window tells its times"


def test_pieces_under_whole_segments_are_not_listed(site: Site) -> None:
    archive_whole(site, *range(2, 10))
    for number in range(2, 10):
        stream(site, number, *((at, at + 10) for at in range(0, 100, 10)))
    stream(site, 10, (0, 10))
    store = RecordingStore(site.store)
    listed = source(site, store=store)
    archived = read_archive(listed)
    assert [one.number for one in archived.streamed.values()] == [10]
    asked = [key for operation, key in store.calls if operation == "stat"]
    assert [key.rsplit("/", 1)[-1] for key in asked] == [name(10)], "only what is behind the archive is looked at"
    assert not any("/tail/" in key for operation, key in store.calls if operation in {"read", "read_versions"})


def test_a_hole_between_whole_segments_is_filled_from_pieces(site: Site) -> None:
    archive_whole(site, 2, 4)
    stream(site, 3, (0, SIZE))
    assert read(site).inventory.segments[ONE] == {2, 3, 4}


def test_a_segment_in_pieces_before_the_first_whole_one_counts(site: Site) -> None:
    """The WAL before it has expired, or was never streamed: a snapshot may begin in it."""
    stream(site, 2, (0, SIZE))
    archive_whole(site, 3, 4)
    assert read(site).inventory.segments[ONE] == {2, 3, 4}


def test_the_partial_segment_of_a_timeline_that_has_ended_goes_before_its_pieces(site: Site) -> None:
    archive_whole(site, 2)
    stream(site, 3, (0, 1000))
    site.put_wal(f"{name(3)}.partial", WAL)
    inventory = read(site).inventory
    assert inventory.partials[ONE] == {3}
    assert not inventory.tails


def test_without_an_identity_pieces_count_by_their_names_and_are_not_proven(site: Site) -> None:
    stream(site, 3, (0, 1000))
    blind = source(site, repository=site.repository(identities=Identities()))
    assert read_archive(blind).inventory.tails[ONE][3].end == Lsn(3 * SIZE + 1000)
    with pytest.raises(NoIdentityError):
        read_archive(blind, proven=True)


def planned(archived: Archived, number: int) -> PlannedWal:
    return PlannedWal(archived.source, last=name(number), end=archived.inventory.tails[ONE][number].end)


def test_a_restore_gets_what_its_plan_counted_whatever_is_stored_meanwhile(site: Site) -> None:
    stream(site, 3, (0, 1000))
    wal = planned(read(site), 3)
    expected = WAL[:1000] + bytes(SIZE - 1000)
    assert wal.fetch(parsed(3), system_id=SYSTEM_ID) == expected
    stream(site, 3, (1000, 2000))
    assert wal.fetch(parsed(3), system_id=SYSTEM_ID) == expected
    assert wal.fetch_into(b"".join, parsed(3), system_id=SYSTEM_ID) == expected


def test_a_large_last_segment_is_read_again_and_a_whole_one_may_have_taken_its_place(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("drservice.operations.walsource._KEPT_BYTES", 0)
    [key] = stream(site, 3, (0, 1000))
    wal = planned(read(site), 3)
    expected = WAL[:1000] + bytes(SIZE - 1000)
    assert wal.fetch(parsed(3), system_id=SYSTEM_ID) == expected
    site.store.delete(key)
    with pytest.raises(DamagedObjectError, match="not any more"):
        wal.fetch(parsed(3), system_id=SYSTEM_ID)
    archive_whole(site, 3)
    assert wal.fetch(parsed(3), system_id=SYSTEM_ID) == expected


def test_contradicting_pieces_are_told_as_such(site: Site) -> None:
    stream(site, 3, (0, 1000))
    stream(site, 3, (0, 2000), data=WAL[:900] + bytes(SIZE))
    tail = read(site).inventory.tails[ONE][3]
    assert (tail.end, tail.is_contradicted) == (Lsn(3 * SIZE + 900), True)


# --- wal fetch ------------------------------------------------------------------------------------------------


def fetched(site: Site, tmp_path: Path, number: int) -> bytes:
    fetch_wal(site.repository(), site.scope, name(number), tmp_path / "out", system_id=SYSTEM_ID)
    return (tmp_path / "out").read_bytes()


def test_a_standby_gets_whole_segments_from_pieces_and_never_an_unfinished_one(site: Site, tmp_path: Path) -> None:
    archive_whole(site, 2)
    stream(site, 3, (0, 1000), (1000, SIZE))
    stream(site, 4, (0, 1000))
    assert fetched(site, tmp_path, 3) == WAL
    with pytest.raises(SegmentAbsentError):
        fetched(site, tmp_path, 4)
    with pytest.raises(SegmentAbsentError):
        fetched(site, tmp_path, 5)


def test_an_unfinished_segment_before_later_pieces_is_a_hole_and_never_the_end(site: Site, tmp_path: Path) -> None:
    archive_whole(site, 2)
    stream(site, 3, (0, 1000))
    stream(site, 4, (0, 1000))
    with pytest.raises(WalGapError, match=f"pieces of {name(4)} are stored"):
        fetched(site, tmp_path, 3)


def test_a_damaged_piece_of_a_whole_segment_is_no_absence(site: Site, tmp_path: Path) -> None:
    archive_whole(site, 2)
    [_, broken] = stream(site, 3, (0, 1000), (1000, SIZE))
    site.replace(broken, flipped(-1))
    with pytest.raises(DamagedObjectError):
        fetched(site, tmp_path, 3)
    stream(site, 3, (0, SIZE), data=bytes(SIZE))
    with pytest.raises(SegmentConflictError):
        fetched(site, tmp_path, 3)


# --- drills that must fail --------------------------------------------------------------------------------------


@pytest.mark.parametrize("whole", [(2, 3, 4), (2, 4)])
def test_a_drill_without_a_segment_is_without_its_pieces_too(
    site: Site, whole: tuple[int, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    archive_whole(site, *whole)
    stream(site, 3, (0, 1000), (1000, SIZE))
    monkeypatch.setattr(mutation, "plan_segments", lambda *_: [name(2), name(3), name(4)])
    planned: Any = SimpleNamespace(resolved=SimpleNamespace(plan=None), archived=read(site))
    with mutation.altered_repository(
        site.repository(), mutation.Mutation.WAL_SEGMENT_DROPPED, lambda: planned, state_dir=tmp_path
    ) as altered:
        assert read_archive(source(site, repository=altered)).inventory.segments[ONE] == {2, 4}
    assert read(site).inventory.segments[ONE] == {2, 3, 4}
