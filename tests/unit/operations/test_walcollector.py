"""What is cut from the stream, when, and how much of it is durable."""

from __future__ import annotations

import struct
from datetime import UTC, datetime, timedelta

import pytest

from drservice.errors import StreamError
from drservice.model.wal import Lsn, Timeline
from drservice.operations.walcollector import PIECE_BYTES, Collector, Job, JobKind, Pacing

SEGMENT = 4 << 20
BEGIN = Lsn(8 * SEGMENT)
NOON = datetime(2026, 11, 27, 12, tzinfo=UTC)
WORK = bytes(range(256)) * (SEGMENT // 256)


def collector(*, stored: Lsn = BEGIN, pacing: Pacing | None = None) -> Collector:
    return Collector(timeline=Timeline(1), segment_bytes=SEGMENT, begin=BEGIN, stored=stored, pacing=pacing or Pacing())


def add(to: Collector, size: int, now: float, *, server_end: Lsn | None = None) -> None:
    start = to.received
    data = memoryview(WORK * 4)[start.value % SEGMENT :][:size]
    to.add(start, data, server_end=server_end or start + size, server_time=NOON + timedelta(seconds=now), now=now)


def jobs(of: Collector, now: float) -> list[tuple[str, int, int]]:
    found = []
    while (job := of.next_job(now)) is not None:
        found.append((job.kind.value, job.begin - BEGIN.value, job.end - BEGIN.value))
    return found


def take(of: Collector, now: float) -> Job:
    job = of.next_job(now)
    assert job is not None
    return job


def test_the_first_piece_after_a_pause_goes_at_once_and_the_next_after_the_interval() -> None:
    one = collector()
    add(one, 1000, 10.0)
    assert jobs(one, 10.01) == [("piece", 0, 1000)]
    add(one, 500, 10.05)
    assert jobs(one, 10.1) == []
    assert one.wait_seconds(10.1) == pytest.approx(0.16)
    assert jobs(one, 10.27) == [("piece", 1000, 1500)]


def test_a_full_piece_does_not_wait() -> None:
    one = Collector(timeline=Timeline(1), segment_bytes=4 * PIECE_BYTES, begin=BEGIN, stored=BEGIN, pacing=Pacing())
    add(one, 1000, 10.0)
    assert len(jobs(one, 10.01)) == 1
    content = memoryview((WORK * (PIECE_BYTES // len(WORK) + 2))[: PIECE_BYTES + 10])
    start = one.received
    one.add(start, content, server_end=start + len(content), server_time=NOON + timedelta(seconds=10.02), now=10.02)
    assert jobs(one, 10.02) == [("piece", 1000, 1000 + PIECE_BYTES)]


def test_durable_is_the_contiguous_prefix_whatever_order_uploads_end_in() -> None:
    one = collector()
    cut = []
    for number in range(4):
        add(one, 1000, float(number))
        cut.append(take(one, number + 0.5))
    assert one.durable == BEGIN
    for index, expected in ((2, 0), (0, 1000), (3, 1000), (1, 4000)):
        one.acknowledge(cut[index])
        assert one.durable == BEGIN + expected
    assert one.is_drained


def test_nothing_behind_a_segment_is_durable_before_the_segment_is_stored_as_a_whole() -> None:
    one = collector()
    add(one, SEGMENT - 100, 1.0)
    while (job := one.next_job(1.5)) is not None:
        one.acknowledge(job)
    add(one, 1100, 2.0)
    whole = take(one, 2.5)
    assert whole.kind is JobKind.SEGMENT
    behind = take(one, 2.5)
    assert (behind.begin, behind.end) == (BEGIN.value + SEGMENT, BEGIN.value + SEGMENT + 1000)
    one.acknowledge(behind)
    assert one.durable < BEGIN + SEGMENT
    assert not one.is_drained
    one.acknowledge(whole)
    assert one.durable == BEGIN + SEGMENT + 1000


def test_a_segment_that_is_stored_in_pieces_only_is_not_left_behind() -> None:
    one = collector(stored=BEGIN + SEGMENT)
    assert one.durable < BEGIN + SEGMENT
    add(one, SEGMENT + 10, 1.0)
    assert one.durable < BEGIN + SEGMENT
    one.acknowledge(take(one, 1.0))
    assert one.durable == BEGIN + SEGMENT


def test_a_full_segment_goes_up_as_a_whole_and_no_piece_of_it_is_cut_any_more() -> None:
    one = collector()
    add(one, SEGMENT, 1.0, server_end=BEGIN + 10 * SEGMENT)
    add(one, SEGMENT // 2, 1.0, server_end=BEGIN + 10 * SEGMENT)
    assert jobs(one, 1.1) == [("segment", 0, SEGMENT)]
    assert one.held_bytes == SEGMENT + SEGMENT // 2


def test_while_the_rest_of_a_segment_is_on_its_way_it_is_waited_for_but_not_for_ever() -> None:
    one = collector()
    add(one, 5000, 1.0, server_end=BEGIN + SEGMENT)
    assert jobs(one, 1.5) == []
    assert jobs(one, 2.5) == [("piece", 0, 5000)]


def test_two_segments_at_a_time_are_on_their_way() -> None:
    one = collector()
    for _ in range(3):
        add(one, SEGMENT, 1.0)
    first, second = take(one, 1.0), take(one, 1.0)
    assert one.next_job(1.0) is None
    one.acknowledge(second)
    assert one.durable < BEGIN + SEGMENT
    assert take(one, 1.0).begin == BEGIN.value + 2 * SEGMENT
    one.acknowledge(first)
    assert one.durable == BEGIN + 2 * SEGMENT


def test_what_is_stored_already_is_compared_and_then_durable_and_not_stored_again_but_part_of_the_whole() -> None:
    one = collector(stored=BEGIN + 3000)
    add(one, 2000, 1.0)
    assert jobs(one, 2.0) == []
    add(one, 1500, 2.0)
    comparison, piece = take(one, 3.0), take(one, 3.0)
    assert (comparison.kind, bytes(comparison.data)) == (JobKind.COMPARISON, WORK[:3000])
    assert (piece.kind, piece.begin, piece.end) == (JobKind.PIECE, BEGIN.value + 3000, BEGIN.value + 3500)
    one.acknowledge(piece)
    assert one.durable == BEGIN, "what another history wrote may lie there"
    add(one, SEGMENT - 3500, 4.0)
    assert one.next_job(4.0) is None, "a whole segment goes before the pieces of another history"
    one.acknowledge(comparison)
    assert one.durable == BEGIN + 3500
    whole = take(one, 4.0)
    assert (whole.kind, bytes(whole.data)) == (JobKind.SEGMENT, WORK)


def test_a_stream_that_ends_before_what_is_stored_already_has_nothing_to_store() -> None:
    one = collector(stored=BEGIN + 3000)
    add(one, 2000, 1.0)
    one.drain()
    assert one.next_job(2.0) is None
    assert one.is_drained
    assert one.durable == BEGIN


def test_a_gap_or_a_repetition_in_the_stream_is_refused() -> None:
    one = collector()
    add(one, 100, 1.0)
    for start in (BEGIN, BEGIN + 101):
        with pytest.raises(StreamError, match="was next"):
            one.add(start, memoryview(b"x"), server_end=start + 1, server_time=NOON, now=1.0)
    assert one.received == BEGIN + 100


def test_draining_lets_nothing_wait() -> None:
    one = collector(pacing=Pacing(interval=timedelta(seconds=30)))
    add(one, 10, 1.0)
    one.acknowledge(take(one, 40.0))
    add(one, 10, 41.0)
    assert one.next_job(41.0) is None
    one.drain()
    one.acknowledge(take(one, 41.0))
    assert one.is_drained


def test_a_synchronous_server_waits_for_nothing() -> None:
    one = collector(pacing=Pacing(interval=timedelta(seconds=30), synchronous=True))
    for now in (1.0, 1.001, 1.002):
        add(one, 10, now)
        assert len(jobs(one, now)) == 1


def test_up_to_date_is_proved_by_what_the_server_said_and_not_by_when_it_sent() -> None:
    one = collector()
    add(one, 1000, 1.0, server_end=BEGIN + 5000)  # old bytes, sent now
    one.drain()
    one.acknowledge(take(one, 1.0))
    assert one.durable_server_time is None
    add(one, 4000, 2.0)
    one.acknowledge(take(one, 2.0))
    assert one.durable_server_time == NOON + timedelta(seconds=2)
    one.heard(one.received, server_time=NOON + timedelta(seconds=9))
    assert one.durable_server_time == NOON + timedelta(seconds=9)


def test_the_age_is_that_of_the_oldest_byte_that_is_not_durable() -> None:
    one = collector()
    add(one, 1000, 1.0)
    first = take(one, 1.5)
    add(one, 1000, 2.0)
    assert one.oldest_age_seconds(3.0) == 2.0
    one.acknowledge(first)
    assert one.oldest_age_seconds(3.0) == 1.0


# --- an idle server's WAL -----------------------------------------------------------------------------------


def record(manager: int, info: int, data: bytes = b"", transaction: int = 0) -> bytes:
    body = struct.pack("<BB", 255, len(data)) + data if data else b""
    made = struct.pack("<IIQBBxxI", 24 + len(body), transaction, 0, info, manager, 0) + body
    return made + bytes(-len(made) % 8)


def message(prefix: str, transaction: int) -> bytes:
    text = prefix.encode() + b"\0"
    return record(21, 0, struct.pack("<IBxxxQQ", 5, 1, len(text), 4) + text + b"beat", transaction)


def commit(transaction: int) -> bytes:
    return record(1, 0, bytes(8), transaction)


HEAD = struct.pack("<HHIQIxxxxQII", 0xD110, 2, 1, BEGIN.value, 0, 7, SEGMENT, 8192)
RUNNING = record(8, 0x10, bytes(24))
CHECKPOINT = record(0, 0x10, bytes(80))


@pytest.mark.parametrize(
    ("records", "is_idle"),
    [
        ([message("drservice", 700), commit(700), RUNNING, CHECKPOINT], True),
        ([message("drservice", 700), commit(700), message("drservice", 701), commit(701)], True),
        ([message("drservice", 700), commit(701)], False),
        ([commit(700)], False),
        ([message("other", 700), commit(700)], False),
        ([RUNNING, record(10, 0, bytes(16), 700)], False),
        ([RUNNING, record(0, 0x40)], False),
        ([RUNNING[:-9]], False),
    ],
)
def test_wal_of_an_idle_server_waits_and_any_doubt_sends_it(records: list[bytes], *, is_idle: bool) -> None:
    one = collector()
    data = HEAD + b"".join(records)
    one.add(BEGIN, memoryview(data), server_end=BEGIN + len(data), server_time=NOON, now=100.0)
    if is_idle:
        assert jobs(one, 101.0) == []
        assert one.covered == one.received
        assert one.wait_seconds(101.0) == pytest.approx(59.0)
        assert jobs(one, 161.0) == [("piece", 0, len(data))]
    else:
        assert jobs(one, 101.0) == [("piece", 0, len(data))]


def test_work_behind_heartbeats_takes_them_along_at_once() -> None:
    one = collector()
    data = HEAD + message("drservice", 700) + commit(700)
    one.add(BEGIN, memoryview(data), server_end=BEGIN + len(data), server_time=NOON, now=100.0)
    assert jobs(one, 101.0) == []
    work = record(10, 0, bytes(16), 701) + commit(701)
    one.add(one.received, memoryview(work), server_end=one.received + len(work), server_time=NOON, now=102.0)
    assert one.covered == BEGIN + len(data)
    assert one.oldest_age_seconds(102.1) == pytest.approx(0.1), "the heartbeats before were no risk, and stay none"
    assert jobs(one, 102.1) == [("piece", 0, len(data) + len(work))]


def test_wal_of_an_idle_server_is_no_risk_while_it_is_on_its_way() -> None:
    """Else the receiver of an idle server calls itself stalled each time, for as long as the store takes."""
    one = collector()
    data = HEAD + message("drservice", 700) + commit(700)
    one.add(BEGIN, memoryview(data), server_end=BEGIN + len(data), server_time=NOON, now=100.0)
    assert one.covered == one.received
    piece = take(one, 161.0)
    assert (one.covered, one.durable) == (one.received, BEGIN)
    assert one.oldest_age_seconds(161.0) == 0.0
    assert one.durable_server_time == NOON
    one.acknowledge(piece)
    assert one.durable == one.received


# --- the server's clock jumps ---------------------------------------------------------------------------------


def test_a_clock_that_is_set_back_makes_nothing_look_younger_than_it_is() -> None:
    """Moments of before lie in the future then: kept, they would never be passed, and no age would grow."""
    one = collector()
    add(one, 1000, 100.0)
    one.acknowledge(take(one, 100.5))
    assert one.durable_server_time == NOON + timedelta(seconds=100)
    start = one.received
    earlier = NOON - timedelta(hours=1)
    one.add(start, memoryview(WORK)[1000:2000], server_end=start + 1000, server_time=earlier, now=101.0)
    told = [one.durable_server_time]
    one.acknowledge(take(one, 101.5))
    told.append(one.durable_server_time)
    assert told == [None, earlier], "what was true by the clock before is not true by this one"


def test_a_clock_that_jumps_ahead_is_followed_as_soon_as_that_is_durable() -> None:
    one = collector()
    add(one, 1000, 100.0)
    one.acknowledge(take(one, 100.5))
    start = one.received
    later = NOON + timedelta(days=3)
    one.add(start, memoryview(WORK)[1000:2000], server_end=start + 1000, server_time=later, now=101.0)
    assert one.durable_server_time == NOON + timedelta(seconds=100)
    assert one.oldest_age_seconds(101.2) == pytest.approx(0.2), "the age of what waits is by our own clock"
    one.acknowledge(take(one, 101.5))
    assert one.durable_server_time == later


# --- a first segment that is stored as a whole ----------------------------------------------------------------


def test_nothing_behind_a_stored_segment_goes_up_before_the_server_has_shown_the_same_one() -> None:
    one = collector(stored=BEGIN + SEGMENT)
    add(one, SEGMENT // 2, 10.0)
    assert jobs(one, 20.0) == []
    assert one.is_drained, "nothing of it is missing in the store"
    add(one, SEGMENT // 2 + 5000, 21.0)
    whole = take(one, 30.0)
    assert (whole.kind, whole.begin) == (JobKind.SEGMENT, BEGIN.value)
    assert jobs(one, 40.0) == []
    assert one.wait_seconds(40.0) is None, "it is not looked for work that must not be done"
    one.acknowledge(whole)
    assert jobs(one, 41.0) == [("piece", SEGMENT, SEGMENT + 5000)]
