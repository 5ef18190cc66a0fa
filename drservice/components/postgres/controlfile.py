"""Reading ``global/pg_control``, and writing one poisoned copy of it.

Promises: a :class:`ControlFile` comes only from bytes whose CRC-32C is right at the place the layout names,
so a layout that does not fit can never yield numbers. Layouts follow ``catalog/pg_control.h`` of PostgreSQL
13 to 18 on little-endian machines with 8-byte alignment (every platform the Debian packages support).
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path

from drservice.errors import CaptureError, FormatError, UnsupportedClusterError
from drservice.model.ids import SystemId
from drservice.model.wal import Lsn, Timeline

CONTROL_PATH = "global/pg_control"
CONTROL_FILE_BYTES = 8192
POISON_CHECKPOINT = Lsn(0xDEAD)

_CRC_OFFSETS = {1300: 288, 1700: 288, 1800: 292}
"""Where the CRC stands, by pg_control_version. 1800 put a flag before the 32-byte nonce that precedes it;
everything that is read here stands before that flag and has one place in all of 13 to 18."""

_MAJOR_OF_CATALOG = {
    202007201: 13,
    202107181: 14,
    202209061: 15,
    202307071: 16,
    202406281: 17,
    202506291: 18,
}
_CHECKPOINT_OFFSET = 32
_FLOAT_MARK = 1234567.0


class ClusterState(Enum):
    """What the cluster said of itself when it last wrote the file (``DBState``)."""

    STARTING_UP = 0
    SHUT_DOWN = 1
    SHUT_DOWN_IN_RECOVERY = 2
    SHUTTING_DOWN = 3
    IN_CRASH_RECOVERY = 4
    IN_ARCHIVE_RECOVERY = 5
    IN_PRODUCTION = 6


class WalLevel(Enum):
    """How much the WAL tells (``wal_level``)."""

    MINIMAL = 0
    REPLICA = 1
    LOGICAL = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlFile:
    """What ``pg_control`` says. Sizes are bytes unless the name says blocks."""

    system_id: SystemId
    pg_control_version: int
    catalog_version: int
    state: ClusterState
    written_at: datetime
    checkpoint: Lsn
    redo: Lsn
    timeline: Timeline
    previous_timeline: Timeline
    full_page_writes: bool
    next_xid: int
    """Full 64-bit transaction id (epoch included)."""
    checkpoint_at: datetime
    min_recovery_point: Lsn
    min_recovery_timeline: Timeline
    backup_start: Lsn
    backup_end: Lsn
    backup_end_required: bool
    wal_level: WalLevel
    wal_log_hints: bool
    max_connections: int
    max_worker_processes: int
    max_wal_senders: int
    max_prepared_transactions: int
    max_locks_per_transaction: int
    track_commit_timestamp: bool
    block_bytes: int
    relation_segment_blocks: int
    wal_block_bytes: int
    wal_segment_bytes: int
    data_checksum_version: int
    """0 = data checksums are off."""

    @property
    def major(self) -> int | None:
        """The major version of the server that made the cluster; ``None`` for an unreleased catalogue."""
        return _MAJOR_OF_CATALOG.get(self.catalog_version)

    @property
    def has_checksums(self) -> bool:
        """Whether data pages carry checksums."""
        return self.data_checksum_version != 0


def _make_crc_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return tuple(table)


_CRC_TABLE = _make_crc_table()


def crc32c(data: bytes) -> int:
    """Return the CRC-32C (Castagnoli, RFC 3720 appendix B.4) of a short buffer; slow, meant for < 1 KiB."""
    value = 0xFFFFFFFF
    for byte in data:
        value = (value >> 8) ^ _CRC_TABLE[(value ^ byte) & 0xFF]
    return value ^ 0xFFFFFFFF


def parse_control(raw: bytes) -> ControlFile:
    """Parse the bytes of ``pg_control``.

    Raises:
        UnsupportedClusterError: a layout of another PostgreSQL version or byte order.
        FormatError: too short, a wrong CRC, or values no server writes.
    """
    _require_crc(raw)
    system_id, version, catalog, state = struct.unpack_from("<QIII", raw, 0)
    written_at, checkpoint = struct.unpack_from("<qQ", raw, 24)
    redo, timeline, previous, full_page_writes = struct.unpack_from("<QII?", raw, 40)
    (next_xid,) = struct.unpack_from("<Q", raw, 64)
    (checkpoint_at,) = struct.unpack_from("<q", raw, 104)
    recovery = struct.unpack_from("<QI4xQQ?", raw, 136)
    wal_level, hints, connections, workers, senders, prepared, locks, track = struct.unpack_from(
        "<i?3xiiiii?", raw, 172
    )
    (float_mark,) = struct.unpack_from("<d", raw, 208)
    block, relation_segment, wal_block, wal_segment = struct.unpack_from("<IIII", raw, 216)
    (checksums,) = struct.unpack_from("<I", raw, 252)
    if float_mark != _FLOAT_MARK:
        raise FormatError(f"pg_control's float mark is {float_mark!r}: the layout does not fit this machine")
    _require_sizes(block=block, wal_block=wal_block, wal_segment=wal_segment, relation=relation_segment)
    try:
        return ControlFile(
            system_id=SystemId(str(system_id)),
            pg_control_version=version,
            catalog_version=catalog,
            state=ClusterState(state),
            written_at=datetime.fromtimestamp(written_at, tz=UTC),
            checkpoint=Lsn(checkpoint),
            redo=Lsn(redo),
            timeline=Timeline(timeline),
            previous_timeline=Timeline(previous),
            full_page_writes=full_page_writes,
            next_xid=next_xid,
            checkpoint_at=datetime.fromtimestamp(checkpoint_at, tz=UTC),
            min_recovery_point=Lsn(recovery[0]),
            min_recovery_timeline=Timeline(recovery[1]),
            backup_start=Lsn(recovery[2]),
            backup_end=Lsn(recovery[3]),
            backup_end_required=recovery[4],
            wal_level=WalLevel(wal_level),
            wal_log_hints=hints,
            max_connections=connections,
            max_worker_processes=workers,
            max_wal_senders=senders,
            max_prepared_transactions=prepared,
            max_locks_per_transaction=locks,
            track_commit_timestamp=track,
            block_bytes=block,
            relation_segment_blocks=relation_segment,
            wal_block_bytes=wal_block,
            wal_segment_bytes=wal_segment,
            data_checksum_version=checksums,
        )
    except (ValueError, OverflowError, OSError) as error:
        raise FormatError(f"pg_control holds a value no server writes: {error}") from error


def read_control(
    read: Callable[[], bytes], *, tries: int = 50, pause_seconds: float = 0.02
) -> tuple[ControlFile, bytes]:
    """Read ``pg_control`` until its CRC is right and return it parsed with the very bytes (trap T12).

    A live server rewrites the file in place and a reader may see half of a write; the next try sees all of
    it. An unsupported layout is not retried.

    Args:
        read: returns the whole file anew at each call.
        tries: how often to read before giving up.
        pause_seconds: the wait between two tries.

    Raises:
        FormatError: still wrong after the last try; the file is damaged.
        UnsupportedClusterError: a version this program does not know.
    """
    for attempt in range(tries):
        raw = read()
        try:
            return parse_control(raw), raw
        except FormatError as error:
            if attempt + 1 == tries:
                raise FormatError(f"pg_control was read {tries} times and never whole: {error.message}") from error
        time.sleep(pause_seconds)
    raise ValueError("tries must be at least 1")


def read_control_file(data_directory: Path) -> ControlFile:
    """Read ``pg_control`` of a data directory (see :func:`read_control`)."""
    path = data_directory / CONTROL_PATH
    return read_control(path.read_bytes)[0]


def poisoned_copy(raw: bytes) -> bytes:
    """Return ``pg_control`` with its checkpoint set to 0/DEAD and a right CRC (trap T12).

    A cluster restored from a backup must start from ``backup_label``. With this copy a server that lost the
    label finds no checkpoint and refuses to start; with the label it never looks at the poisoned field.

    Raises:
        FormatError, UnsupportedClusterError: as :func:`parse_control`.
    """
    parse_control(raw)
    changed = bytearray(raw)
    struct.pack_into("<Q", changed, _CHECKPOINT_OFFSET, POISON_CHECKPOINT.value)
    crc_offset = _crc_offset(raw)
    struct.pack_into("<I", changed, crc_offset, crc32c(bytes(changed[:crc_offset])))
    return bytes(changed)


def require_checkpoint_of_start(control: ControlFile, *, start: Lsn, timeline: Timeline) -> None:
    """Check that the directory being read belongs to the server that began the backup (trap T3).

    ``pg_backup_start`` returns only after a checkpoint whose record lies at or after the start position, so
    the ``pg_control`` of the same cluster shows it. An older one is a stale copy or another directory.

    Raises:
        CaptureError: the checkpoint is older than the start, or the timeline differs.
    """
    if control.timeline != timeline:
        raise CaptureError(
            f"the server is on timeline {timeline}, but pg_control says {control.timeline}",
            hint="data_directory must be the directory of the very server the dsn reaches; "
            "a promotion during the backup also shows so: run it again.",
        )
    if control.checkpoint < start:
        raise CaptureError(
            f"the backup began at {start}, but pg_control's last checkpoint is {control.checkpoint}",
            hint="data_directory must be the directory of the very server the dsn reaches.",
        )


def _crc_offset(raw: bytes) -> int:
    if len(raw) < 16:
        raise FormatError(f"pg_control has {len(raw)} bytes only")
    (version,) = struct.unpack_from("<I", raw, 8)
    offset = _CRC_OFFSETS.get(version)
    if offset is None:
        raise UnsupportedClusterError(
            f"pg_control has version {version}; known are {', '.join(map(str, _CRC_OFFSETS))}",
            hint="PostgreSQL 13 to 18 on a little-endian machine is supported.",
        )
    return offset


def _require_crc(raw: bytes) -> None:
    offset = _crc_offset(raw)
    if len(raw) < offset + 4:
        raise FormatError(f"pg_control has {len(raw)} bytes only")
    (stored,) = struct.unpack_from("<I", raw, offset)
    computed = crc32c(raw[:offset])
    if stored != computed:
        raise FormatError(f"pg_control's CRC is {stored:08x}, its content gives {computed:08x}")


def _require_sizes(*, block: int, wal_block: int, wal_segment: int, relation: int) -> None:
    for name, value, least, most in (
        ("block size", block, 1 << 10, 1 << 15),
        ("WAL block size", wal_block, 1 << 10, 1 << 16),
        ("WAL segment size", wal_segment, 1 << 20, 1 << 30),
    ):
        if not least <= value <= most or value & (value - 1):
            raise FormatError(f"pg_control names a {name} of {value} bytes")
    if relation < 1:
        raise FormatError("pg_control names a relation segment of no blocks")
