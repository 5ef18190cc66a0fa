"""What a receiver holds of a segment while it is stored, and what it notes of the server's clock."""

from __future__ import annotations

import gc
import mmap
import random
import struct
import weakref
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from drservice.errors import StoreUnreachableError
from drservice.model.ids import SystemId
from drservice.model.wal import Lsn, Timeline, WalFileName
from drservice.operations.walcollector import Collector, Job, JobKind, Pacing
from drservice.operations.walshipping import ClockPairs, Shipping
from drservice.repository.walarchive import WalArchive
from tests.doubles.repositories import Site
from tests.doubles.stores import SlowStore

SEGMENT = 1 << 20
BEGIN = Lsn(8 * SEGMENT)
NOON = datetime(2026, 11, 27, 12, tzinfo=UTC)
SYSTEM = SystemId("7")
HEAD = struct.pack("<HHIQIxxxxQII", 0xD110, 2, 1, BEGIN.value, 0, 7, SEGMENT, 8192)
WAL = HEAD + random.Random(1).randbytes(SEGMENT - len(HEAD))


class Away:
    """A store that is away for whole segments as long as it is to be."""

    is_away = True

    def __call__(self, operation: str) -> None:
        if operation == "create" and self.is_away:
            raise StoreUnreachableError("the store is away")


def shipping_to(site: Site, away: Away) -> Shipping:
    repository = site.repository(store=SlowStore(site.store, wait=away))
    scope = site.scope
    return Shipping(
        archive=repository.wal(scope),
        tail=repository.tail(scope),
        clocks=repository.clocks(scope),
        day_keys=site.repository().day_keys(scope.service),
        system_id=SYSTEM,
        segment_bytes=SEGMENT,
        clock=site.clock,
    )


def test_a_whole_segment_is_sealed_once_and_its_plain_bytes_go_while_the_store_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sealed, seal = [], WalArchive.seal

    def sealing(archive: WalArchive, name: WalFileName, *arguments: object, **more: object) -> object:
        sealed.append(name.name)
        return seal(archive, name, *arguments, **more)  # type: ignore[arg-type]  # handed on as they come

    monkeypatch.setattr(WalArchive, "seal", sealing)
    maps: list[weakref.ref[mmap.mmap]] = []

    def allocate(size: int) -> memoryview:
        made = mmap.mmap(-1, size)
        maps.append(weakref.ref(made))
        return memoryview(made)

    site, away = Site.create(tmp_path), Away()
    shipping = shipping_to(site, away)
    collector = Collector(
        timeline=Timeline(1),
        segment_bytes=SEGMENT,
        begin=BEGIN,
        stored=BEGIN,
        pacing=Pacing(interval=timedelta(milliseconds=20)),
        allocate=allocate,
    )
    half = SEGMENT // 2
    jobs: list[Job] = []
    for begin, end, now in ((0, half, 1.0), (half, SEGMENT, 3.0)):
        collector.add(BEGIN + begin, memoryview(WAL)[begin:end], server_end=BEGIN + end, server_time=NOON, now=now)
        job = collector.next_job(now + 1)
        assert job is not None
        jobs.append(job)
        del job
    whole = jobs[1]
    assert [each.kind for each in jobs] == [JobKind.PIECE, JobKind.SEGMENT]
    for _ in range(2):
        with pytest.raises(StoreUnreachableError):
            shipping.put(whole)
    with pytest.raises(StoreUnreachableError):
        shipping.put(jobs[0])
    assert maps[0]() is not None, "a piece that is not stored yet needs them"
    assert bytes(jobs[0].data) == WAL[:half]
    away.is_away = False
    shipping.put(jobs[0])
    jobs.clear()
    gc.collect()
    assert maps[0]() is None, "16 MB, beside what is sent"
    shipping.put(whole)
    assert sealed == [whole.segment.name]
    archive = site.repository().wal(site.scope)
    assert archive.fetch(WalFileName.parse(whole.segment.name), system_id=SYSTEM) == WAL
    collector.acknowledge(whole)
    assert collector.durable == BEGIN + SEGMENT


def test_the_clock_is_noted_each_second_and_at_once_where_it_jumps_also_back() -> None:
    pairs = ClockPairs()
    for number, seconds in enumerate((0.0, 0.5, 1.0, -7200.0, -7199.5, -7199.0, 9000.0)):
        pairs.add(NOON + timedelta(seconds=seconds), Lsn(1000 + number))
    pairs.add(NOON, Lsn(1006))
    told = [(pair.server_time - NOON).total_seconds() for pair in pairs.take(Lsn(2000))]
    assert told == [0.0, 1.0, -7200.0, -7199.0, 9000.0]
