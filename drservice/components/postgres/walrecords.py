"""Telling WAL in which nothing happened from WAL that somebody may miss.

An idle server writes all the same: the checkpointer's notes of running transactions, checkpoints, and our own
heartbeats. Such WAL may wait (``idle_interval``). Whatever is not recognised counts as work: a doubt sends too early,
never too late. Layouts: ``access/xlogrecord.h``, ``replication/message.h``, PostgreSQL 13 to 18, little-endian.
"""

from __future__ import annotations

import struct

HEARTBEAT_PREFIX = "drservice"
"""Of the logical messages that are heartbeats."""

_RECORD = struct.Struct("<IIQBBxxI")
_PAGE = struct.Struct("<HHIQI")
_MESSAGE = struct.Struct("<IBxxxQQ")
_BLOCK, _BLOCK_AT = struct.Struct("<I"), 36
"""Size of a WAL page, in the first page of each segment."""
_SHORT_PAGE, _LONG_PAGE = 24, 40
_CONTINUES, _LONG = 0x0001, 0x0002
_XLOG, _TRANSACTION, _STANDBY, _MESSAGES = 0, 1, 8, 21
_NOTED = frozenset({(_XLOG, 0x10), (_XLOG, 0x20), (_XLOG, 0xE0), (_STANDBY, 0x10)})
"""(resource manager, operation): online checkpoint, filler, a checkpoint's redo point, running transactions."""
_OPERATION, _COMMIT_OPERATION = 0xF0, 0x70
_DATA_SHORT, _DATA_LONG = 255, 254


def is_idle(segment: memoryview, begin: int, end: int) -> bool:
    """Tell whether the records in ``[begin, end)`` of a segment are all of an idle server.

    Args:
        segment: from its first byte to ``end`` at least.
        begin: where the WAL that was not sent yet begins.
        end: where the WAL that was received ends.
    """
    try:
        (block_bytes,) = _BLOCK.unpack_from(segment, _BLOCK_AT)
        return block_bytes >= _LONG_PAGE and _walk(segment[:end], begin, block_bytes)
    except (struct.error, IndexError):
        return False


def record_end(pages: memoryview, begin: int, block_bytes: int) -> int | None:
    """Return where the record behind the one at ``begin`` would begin; ``None`` if it is not there as a whole.

    Args:
        pages: from the begin of a page on.
        begin: of the record.
        block_bytes: size of a page.
    """
    try:
        record, following = _record(pages, begin, block_bytes)
    except (struct.error, IndexError):
        return None
    return None if record is None else _aligned(following)


def _walk(wal: memoryview, begin: int, block_bytes: int) -> bool:
    position = _first_record(wal, begin - begin % block_bytes, block_bytes, begin)
    heartbeats: set[int] = set()
    while position < len(wal):
        record, following = _record(wal, position, block_bytes)
        if record is None or following <= position:
            return False
        if following > begin and not _is_noted(record, heartbeats):
            return False
        position = _next_record(following, block_bytes)
    return True


def _first_record(wal: memoryview, page: int, block_bytes: int, begin: int) -> int:
    """Return where the first record begins that begins on this page.

    One that began before and reaches beyond the page or beyond ``begin`` is not looked into.
    """
    _, flags, _, _, remaining = _PAGE.unpack_from(wal, page)
    head = _LONG_PAGE if flags & _LONG else _SHORT_PAGE
    carried = _aligned(remaining) if flags & _CONTINUES else 0
    if carried and (head + carried > block_bytes or page + head + carried > begin):
        raise IndexError(page)
    return page + head + carried


def _record(wal: memoryview, position: int, block_bytes: int) -> tuple[bytes | None, int]:
    """Return a record without the page heads inside it, and where it ends; ``None`` if it is not there as a whole."""
    length = _gather(wal, position, 4, block_bytes)[0]
    if len(length) < 4:
        return None, position
    (total,) = struct.unpack("<I", length)
    if total < _RECORD.size or total > len(wal):
        return None, position
    data, end = _gather(wal, position, total, block_bytes)
    return (data, end) if len(data) == total else (None, position)


def _gather(wal: memoryview, position: int, length: int, block_bytes: int) -> tuple[bytes, int]:
    """Return up to ``length`` bytes from ``position`` on, without page heads, and the position behind them."""
    parts: list[bytes] = []
    while length > 0 and position < len(wal):
        if position % block_bytes == 0:
            position += _SHORT_PAGE  # a long head begins a segment, where nothing is carried to from here
        part = bytes(wal[position : min(position + length, position - position % block_bytes + block_bytes)])
        parts.append(part)
        position += len(part)
        length -= len(part)
    return b"".join(parts), position


def _next_record(position: int, block_bytes: int) -> int:
    position = _aligned(position)
    return position + _SHORT_PAGE if position % block_bytes == 0 else position


def _aligned(position: int) -> int:
    return (position + 7) & ~7


def _is_noted(record: bytes, heartbeats: set[int]) -> bool:
    """Tell whether a record is of an idle server; transactions of heartbeats are added to ``heartbeats``."""
    _, transaction, _, info, manager, _ = _RECORD.unpack_from(record)
    if (manager, info & _OPERATION) in _NOTED:
        return True
    if manager == _TRANSACTION and info & _COMMIT_OPERATION == 0:
        return transaction in heartbeats
    if manager == _MESSAGES and _prefix(record) == HEARTBEAT_PREFIX.encode():
        heartbeats.add(transaction)
        return True
    return False


def _prefix(record: bytes) -> bytes | None:
    """Return the prefix of a logical message, ``None`` for one of an unexpected shape."""
    data = {_DATA_SHORT: _RECORD.size + 2, _DATA_LONG: _RECORD.size + 5}.get(record[_RECORD.size])
    if data is None:
        return None
    _, _, prefix_bytes, _ = _MESSAGE.unpack_from(record, data)
    begin = data + _MESSAGE.size
    return record[begin : begin + prefix_bytes].removesuffix(b"\0")
