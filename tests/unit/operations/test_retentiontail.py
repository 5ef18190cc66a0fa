"""Pieces and clocks of segments go with the WAL of their segments, and no earlier."""

from __future__ import annotations

from pathlib import Path

from drservice.model.tail import ClockPair
from drservice.model.wal import Lsn, Timeline
from drservice.operations.progress import SilentProgress
from drservice.operations.prune import mark_packs
from drservice.operations.retentiontail import covered_pieces
from tests.doubles.repositories import SYSTEM_ID
from tests.doubles.retained import SEGMENT, RetainedService
from tests.doubles.stores import RecordingStore

ONE = Timeline(1)


def stream(service: RetainedService, *segments: int) -> None:
    """Store a piece and a clock of each segment."""
    site = service.site
    repository = site.repository()
    tail, key = repository.tail(site.scope), repository.day_keys(site.scope.service).today()
    for number in segments:
        start = Lsn(number * SEGMENT)
        now = service.clock.now()
        tail.put(
            b"wal", system_id=SYSTEM_ID, timeline=ONE, start=start, server_time=now, segment_bytes=SEGMENT, key=key
        )
        repository.clocks(site.scope).put(
            system_id=SYSTEM_ID,
            timeline=ONE,
            segment=number,
            segment_bytes=SEGMENT,
            pairs=[ClockPair(server_time=now, lsn=start + 3)],
        )


def left(service: RetainedService, kind: str) -> list[int]:
    """Return the segments of which anything of a kind is stored."""
    names = (key.rsplit("/", 1)[-1] for key in service.site.keys(f"s/erp/database/{kind}/"))
    return [int(name[:16], 16) // SEGMENT if kind == "tail" else int(name[-8:], 16) for name in names]


def test_pieces_and_clocks_below_the_oldest_snapshot_go_and_the_others_stay(tmp_path: Path) -> None:
    service = RetainedService.create(tmp_path)
    service.wal(3)
    stream(service, 3, 4, 5)
    service.night(segment=4, pause_days=30)
    service.night(segment=10, pause_days=1 / 24)
    stream(service, 10, 11)
    outcome = service.apply()
    assert outcome.removed is not None
    assert (left(service, "tail"), left(service, "clock")) == ([10, 11], [10, 11])
    assert not outcome.removed.refused
    assert len([key for key in outcome.removed.wal if "/tail/" in key]) == 3


def test_what_lies_behind_the_oldest_snapshot_is_not_even_listed(tmp_path: Path) -> None:
    service = RetainedService.create(tmp_path)
    service.night(segment=4, pause_days=30)
    service.night(segment=10, pause_days=1 / 24)
    stream(service, *range(20, 60))
    store = RecordingStore(service.site.store)
    plan = service.inspect(store).wal[0].plan
    assert not any("/tail/" in item.key for item in plan.expired)
    assert plan.remaining == 1 + 40, "the segment of the snapshot, and the clocks: pieces behind it are not looked at"


def test_pieces_of_a_cluster_that_has_no_snapshot_yet_all_stay(tmp_path: Path) -> None:
    service = RetainedService.create(tmp_path)
    stream(service, 1, 2)
    service.clock.pass_seconds(100 * 86400)
    service.apply()
    assert left(service, "tail") == [1, 2]


def test_pieces_under_whole_segments_are_marked_and_those_of_the_unfinished_one_never(tmp_path: Path) -> None:
    service = RetainedService.create(tmp_path)
    service.wal(3, 4)
    stream(service, 3, 4, 5)
    repository = service.site.repository()
    before = service.site.keys()
    [marked] = mark_packs(repository, service.service, progress=SilentProgress())
    assert marked.covered_pieces == 2
    assert [stored.piece.start.value // SEGMENT for stored in covered_pieces(repository, service.site.scope)] == [3, 4]
    assert service.site.keys() == before
