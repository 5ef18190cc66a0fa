"""Reading commit times, restore points and the end of valid WAL out of plain segments with ``pg_waldump``.

``pg_waldump`` runs wherever the caller says (``execute`` may run it in a sandbox: archived WAL is foreign
input); parsing is pure and works line by line, so a caller with a stream need not hold the output. Times are
read as UTC, so ``execute`` must run the program with ``TZ=UTC`` and the C locale, as ``processes.run`` and the
environments do; a line in another zone is an error, never a guess. ``pg_waldump`` prints no times for restore
points and checkpoints; they are decoded from the segment's bytes.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import Enum
from pathlib import Path

from drservice.errors import WalError
from drservice.model.wal import Lsn, Timeline
from drservice.processes import Finished

Execute = Callable[[Sequence[str]], Finished]

_RECORD = re.compile(
    r"rmgr: (?P<rmgr>\S+)\s+len \(rec/tot\):\s*\d+/\s*(?P<total>\d+), tx:\s*(?P<xid>\d+), "
    r"lsn: (?P<lsn>[0-9A-F]+/[0-9A-F]+), prev [0-9A-F]+/[0-9A-F]+, desc: (?P<desc>.*)\Z"
)
_TIME = r"(?P<time>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d{1,6})?) (?P<zone>\S+?)(?:;.*)?\Z"
_PLAIN = re.compile(r"(?P<verb>COMMIT|ABORT) " + _TIME)
_PREPARED = re.compile(r"(?P<verb>COMMIT_PREPARED|ABORT_PREPARED) (?P<xid>\d+): " + _TIME)
_CHECKPOINT = re.compile(r"CHECKPOINT_(?P<kind>ONLINE|SHUTDOWN) redo (?P<redo>[0-9A-F]+/[0-9A-F]+); tli (?P<tli>\d+);")
_END = re.compile(r"error in WAL record at ([0-9A-F]+/[0-9A-F]+): (.*)", re.DOTALL)
_NO_RECORD = re.compile(r"could not find a valid record after ([0-9A-F]+/[0-9A-F]+)")
_AT = re.compile(r" at ([0-9A-F]+/[0-9A-F]+)")
_NEXT_FILE = re.compile(r"could not find file \"([0-9A-F]{24})\"")
_ALIGNMENT = 8
_SHORT_PAGE_HEADER = 24
LONG_PAGE_HEADER_BYTES = 40
_RECORD_HEADER = 24
_SHORT_DATA = 255
_POSTGRES_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)


class Outcome(Enum):
    """How a transaction ended."""

    COMMIT = "COMMIT"
    ABORT = "ABORT"
    COMMIT_PREPARED = "COMMIT_PREPARED"
    ABORT_PREPARED = "ABORT_PREPARED"

    @property
    def committed(self) -> bool:
        """Whether its work became visible."""
        return self in {Outcome.COMMIT, Outcome.COMMIT_PREPARED}


@dataclass(frozen=True, slots=True, kw_only=True)
class TransactionEnd:
    """A commit or abort record."""

    lsn: Lsn
    end: Lsn
    """Its end as the server counts it (aligned; a page border stays one): replay up to here includes it."""
    xid: int
    """32-bit; for a prepared transaction its own, not that of the session that finished it."""
    at: datetime
    outcome: Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class RestorePoint:
    """A named point made by ``pg_create_restore_point``."""

    lsn: Lsn
    end: Lsn
    name: str
    at: datetime | None
    """``None`` when the record reaches into the next segment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint record."""

    lsn: Lsn
    end: Lsn
    redo: Lsn
    timeline: Timeline
    shutdown: bool
    at: datetime | None
    """``None`` when the record reaches into the next segment."""


Event = TransactionEnd | RestorePoint | Checkpoint


class EndKind(Enum):
    """Why reading stopped."""

    WHOLE = "whole"
    """The segment is valid to its end."""
    CONTINUES = "continues"
    """Its last record goes on in the next segment."""
    STOPPED = "stopped"
    """Valid WAL ends inside the segment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WalEnd:
    """Where valid WAL ends in a segment."""

    kind: EndKind
    position: Lsn | None
    """The first position without a valid record (kind STOPPED), else ``None``."""
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Dump:
    """What one segment tells."""

    events: tuple[Event, ...]
    """In the order of the WAL."""
    end: WalEnd


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """The sizes needed to compute where a record ends."""

    segment_bytes: int
    wal_block_bytes: int


def dump_segment(execute: Execute, *, program: str, segment: str, local: Path, geometry: Geometry) -> Dump:
    """Read transactions, restore points and checkpoints of one plain segment.

    Args:
        execute: runs ``pg_waldump`` to its end (UTC, C locale).
        program: ``pg_waldump`` as ``execute`` sees it, of the cluster's major version.
        segment: the segment's path as ``execute`` sees it, under its full name.
        local: the same file as this process sees it (times are decoded from its bytes).
        geometry: segment and WAL page size, from the segment's header.

    Raises:
        WalError: ``pg_waldump`` could not read the segment at all, or printed what is not understood.
    """
    events: list[Event] = []
    end: WalEnd | None = None
    for manager in ("Transaction", "XLOG"):
        # One manager a call: only PostgreSQL 15 and later takes the option twice.
        result = execute([program, f"--rmgr={manager}", segment])
        seen = interpret_end(result.status, result.stderr.decode("utf-8", "replace"))
        end = end or seen
        lines = result.stdout.decode("utf-8", "surrogateescape").split("\n")
        events.extend(parse_records(lines, geometry=geometry))
    assert end is not None
    with local.open("rb") as content:
        base = _first_position(content.read(LONG_PAGE_HEADER_BYTES))

        def read_at(position: Lsn, length: int) -> bytes:
            content.seek(position.value - base.value)
            return content.read(length)

        dated = [decode_time(event, read_at, geometry=geometry) for event in events]
    return Dump(events=tuple(sorted(dated, key=lambda event: event.lsn)), end=end)


def has_record_from(execute: Execute, *, program: str, segment: str, begin: Lsn) -> bool:
    """Tell whether a plain segment holds a whole record that begins at a position in it or behind it.

    Raises:
        WalError: ``pg_waldump`` could not read the segment at all.
    """
    result = execute([program, "--start", str(begin), "--limit", "1", segment])
    if any(_RECORD.match(line) for line in result.stdout.decode("utf-8", "replace").split("\n")):
        return True
    interpret_end(result.status, result.stderr.decode("utf-8", "replace"))
    return False


def parse_records(lines: Iterable[str], *, geometry: Geometry) -> Iterator[Event]:
    """Yield the events among ``pg_waldump``'s output lines; other records are passed over.

    Lines that are no records (a restore point's name may hold line feeds) are passed over, but a
    Transaction record that cannot be read is an error.

    Raises:
        WalError: a commit or abort whose time, zone or xid cannot be read.
    """
    for line in lines:
        record = _RECORD.match(line)
        if record is None:
            continue
        lsn = Lsn.parse(record["lsn"])
        end = record_end(lsn, int(record["total"]), geometry=geometry)
        if record["rmgr"] == "Transaction":
            transaction = _transaction(record["desc"], int(record["xid"]), lsn, end)
            if transaction is not None:
                yield transaction
        elif record["rmgr"] == "XLOG":
            point = _xlog(record["desc"], lsn, end)
            if point is not None:
                yield point


def interpret_end(status: int, stderr: str) -> WalEnd:
    """Tell from how ``pg_waldump`` ended where valid WAL ends.

    Raises:
        WalError: it did not stop at the end of WAL but failed.
    """
    text = stderr.strip()
    if status == 0:
        return WalEnd(kind=EndKind.WHOLE, position=None, reason="")
    if status == 1:
        if _NEXT_FILE.search(text):
            return WalEnd(kind=EndKind.CONTINUES, position=None, reason=text)
        stopped = _END.search(text)
        if stopped is not None:
            where = _AT.search(stopped[2])
            # Some reasons name no position ("incorrect resource manager data checksum in record at" does,
            # "contrecord is requested by" does); then the failing record itself is the end.
            return WalEnd(
                kind=EndKind.STOPPED, position=Lsn.parse(where[1] if where else stopped[1]), reason=stopped[2]
            )
        none = _NO_RECORD.search(text)
        if none is not None:
            return WalEnd(kind=EndKind.STOPPED, position=Lsn.parse(none[1]), reason=text)
    raise WalError(
        f"pg_waldump ended with status {status}: {text.splitlines()[-1] if text else 'no message'}",
        hint="The segment is damaged, or pg_waldump is of another major version than the cluster.",
    )


def record_end(lsn: Lsn, total_bytes: int, *, geometry: Geometry) -> Lsn:
    """Return where a record of ``total_bytes`` that begins at ``lsn`` ends, page headers counted, aligned."""
    position, left = lsn.value, total_bytes
    while True:
        room = geometry.wal_block_bytes - position % geometry.wal_block_bytes
        if left <= room:
            position += left
            break
        left -= room
        position += room
        position += LONG_PAGE_HEADER_BYTES if position % geometry.segment_bytes == 0 else _SHORT_PAGE_HEADER
    return Lsn(-(-position // _ALIGNMENT) * _ALIGNMENT)


def decode_time(event: Event, read_at: Callable[[Lsn, int], bytes], *, geometry: Geometry) -> Event:
    """Return a restore point or checkpoint with the time that its record holds.

    Args:
        event: as parsed; a transaction comes back unchanged.
        read_at: returns up to so many bytes of WAL from a position, fewer at the segment's end.
        geometry: sizes of the segment.
    """
    if isinstance(event, TransactionEnd):
        return event
    body = _main_data(event, read_at, geometry)
    if isinstance(event, RestorePoint):
        if len(body) < 8:
            return event
        (micros,) = struct.unpack_from("<q", body, 0)
        return replace(event, at=_POSTGRES_EPOCH + timedelta(microseconds=micros))
    if len(body) < 72:
        return event
    (seconds,) = struct.unpack_from("<q", body, 64)
    return replace(event, at=datetime.fromtimestamp(seconds, tz=UTC))


def _main_data(event: RestorePoint | Checkpoint, read_at: Callable[[Lsn, int], bytes], geometry: Geometry) -> bytes:
    """Gather a record's bytes over page borders and return what follows its short data header."""
    wanted, parts, position = _RECORD_HEADER + 2 + 255, [], event.lsn.value
    segment_end = (position // geometry.segment_bytes + 1) * geometry.segment_bytes
    while wanted and position < min(event.end.value, segment_end):
        room = geometry.wal_block_bytes - position % geometry.wal_block_bytes
        piece = read_at(Lsn(position), min(room, wanted, event.end.value - position))
        parts.append(piece)
        wanted -= len(piece)
        position += room + _SHORT_PAGE_HEADER
    record = b"".join(parts)
    if len(record) < _RECORD_HEADER + 2 or record[_RECORD_HEADER] != _SHORT_DATA:
        return b""
    length = record[_RECORD_HEADER + 1]
    return record[_RECORD_HEADER + 2 : _RECORD_HEADER + 2 + length]


def _transaction(description: str, xid: int, lsn: Lsn, end: Lsn) -> TransactionEnd | None:
    if not description.startswith(("COMMIT", "ABORT")):
        return None  # PREPARE, ASSIGNMENT, INVALIDATION decide nothing
    match = _PLAIN.match(description) or _PREPARED.match(description)
    if match is None:
        raise WalError(f"pg_waldump's record at {lsn} cannot be read: {description[:120]!r}")
    if match["zone"] not in {"UTC", "GMT"}:
        raise WalError(f"pg_waldump printed the record at {lsn} in zone {match['zone']}; it must run in UTC")
    return TransactionEnd(
        lsn=lsn,
        end=end,
        xid=int(match["xid"]) if "xid" in match.groupdict() else xid,
        at=datetime.fromisoformat(match["time"]).replace(tzinfo=UTC),
        outcome=Outcome(match["verb"]),
    )


def _xlog(description: str, lsn: Lsn, end: Lsn) -> RestorePoint | Checkpoint | None:
    if description.startswith("RESTORE_POINT "):
        name = description.removeprefix("RESTORE_POINT ")
        return RestorePoint(lsn=lsn, end=end, name=name, at=None)
    match = _CHECKPOINT.match(description)
    if match is None:
        return None
    return Checkpoint(
        lsn=lsn,
        end=end,
        redo=Lsn.parse(match["redo"]),
        timeline=Timeline(int(match["tli"])),
        shutdown=match["kind"] == "SHUTDOWN",
        at=None,
    )


def _first_position(head: bytes) -> Lsn:
    if len(head) < LONG_PAGE_HEADER_BYTES:
        raise WalError("the segment is shorter than a page header")
    (address,) = struct.unpack_from("<Q", head, 8)
    return Lsn(address)
