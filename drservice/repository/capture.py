"""Reading files into chunks: what one worker does, in its own process or inline.

A worker reads whole ranges, compares each chunk with the same place of the last snapshot, and packs what is new. It
returns references, never bytes. Packs are acknowledged before anything refers to them.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Protocol

from blake3 import blake3

from drservice.errors import CaptureError
from drservice.objectstore.interface import ObjectStore
from drservice.repository.cache import SnapshotCache
from drservice.repository.chunktable import ChunkRow, ChunkTable, PackToken, TableBuilder
from drservice.repository.journal import JournalFolder, ResumeIndex
from drservice.repository.nodes import FileIdentity
from drservice.repository.pack import ClosedPack, PackSink, PackTarget
from drservice.repository.records import CODEC_ZERO

_CLOCK_REALTIME_COARSE = 5  # <linux/time.h>; the clock that local file systems stamp files with
READ_BYTES = 4 << 20
"""One read, and one batch of page checksums."""


class PageCheck(Protocol):
    """Checks the pages of a batch while it is in memory (picklable; owned by a component)."""

    def __call__(self, descriptor: int, offset: int, data: memoryview) -> Sequence[int]:
        """Return the byte offsets in the file of pages that are damaged, after reading them again."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PreviousPart:
    """Where the last snapshot has the same range: a table at hand, or a leaf of the cache."""

    table: ChunkTable | None = None
    leaf: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RangeTask:
    """A piece of a file to read: ``length`` bytes from ``offset`` (a multiple of the chunk size)."""

    number: int
    path: str
    """Absolute, without links on the way."""
    offset: int
    length: int
    chunk_bytes: int
    previous: PreviousPart | None
    check: PageCheck | None


class RangeState(Enum):
    """How reading a range went."""

    READ = "read"
    VANISHED = "vanished"
    """The file is gone: deleted since it was listed, which WAL replay accounts for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RangeResult:
    """What became of a :class:`RangeTask`."""

    number: int
    state: RangeState
    packs: Sequence[PackToken] = ()
    rows: bytes = b""
    plain_bytes: int = 0
    identity: FileIdentity | None = None
    bad_offsets: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpec:
    """Everything a worker needs; picklable without ``store``."""

    open_store: Callable[[], ObjectStore]
    store: ObjectStore | None
    """The caller's own, for a worker in its process: opening a bucket again costs 50 ms, and new connections."""
    target: PackTarget
    cache: Path | None
    resume: Path | None
    journal: Path
    journal_prefix: str
    """Names this run, so that a later one never writes over the journal of an interrupted one."""
    missing: frozenset[bytes]
    """Packs that the last snapshot uses and that are gone or condemned: their chunks are stored again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerReply:
    """Results of a batch, and the packs acknowledged since the last reply."""

    results: tuple[RangeResult, ...]
    closed: tuple[ClosedPack, ...]


class CaptureWorker:
    """Reads ranges; one per process (or one inline)."""

    def __init__(self, spec: WorkerSpec, name: str) -> None:
        self._missing = spec.missing
        self._closed: list[ClosedPack] = []
        self._journal = JournalFolder(spec.journal).writer(f"{spec.journal_prefix}-{name}", spec.target.key_id)
        self._store = spec.store or spec.open_store()
        self._is_borrowed = spec.store is not None
        self._sink = PackSink(self._store, spec.target, self._on_closed)
        self._cache = SnapshotCache(spec.cache) if spec.cache else None
        self._resume = ResumeIndex(spec.resume) if spec.resume else None
        self._buffer = memoryview(bytearray(READ_BYTES))
        self._zero_ids: dict[int, bytes] = {}

    def _on_closed(self, pack: ClosedPack) -> None:
        self._journal.append(pack)
        self._closed.append(ClosedPack(token=pack.token, name=pack.name, stored_bytes=pack.stored_bytes, table=b""))

    def work(self, tasks: Sequence[RangeTask]) -> WorkerReply:
        """Read a batch of ranges."""
        results = tuple(self._read_range(task) for task in tasks)
        return WorkerReply(results=results, closed=self._take_closed())

    def flush(self) -> WorkerReply:
        """Store the open pack and report it."""
        self._sink.flush()
        return WorkerReply(results=(), closed=self._take_closed())

    def close(self) -> None:
        """Release files and connections; what is not flushed is dropped."""
        self._sink.close()
        self._journal.close()
        if not self._is_borrowed:
            self._store.close()
        for index in (self._cache, self._resume):
            if index is not None:
                index.close()

    def _take_closed(self) -> tuple[ClosedPack, ...]:
        closed, self._closed = tuple(self._closed), []
        return closed

    def encode(
        self, data: memoryview, *, chunk_bytes: int, previous: ChunkTable | None, index: int, table: TableBuilder
    ) -> None:
        """Append the chunks of ``data`` to ``table``; ``index`` is the first one's row in ``previous``."""
        for begin in range(0, len(data), chunk_bytes):
            chunk = data[begin : begin + chunk_bytes]
            chunk_id = blake3(chunk).digest()
            if not chunk[0] and not chunk[-1] and chunk_id == self._zero_id(len(chunk)):
                table.add_zero(len(chunk))
            elif not self._reuse(chunk_id, len(chunk), previous, index + begin // chunk_bytes, table):
                place = self._sink.add(chunk_id, chunk)
                table.add(
                    chunk_id,
                    place.token,
                    place.ordinal,
                    (place.offset, place.stored_length, place.plain_length, place.codec),
                )

    def _reuse(
        self, chunk_id: bytes, length: int, previous: ChunkTable | None, index: int, table: TableBuilder
    ) -> bool:
        if previous is not None and index < len(previous):
            row = previous.row(index)
            if row.chunk_id == chunk_id and row.plain_length == length and row.codec != CODEC_ZERO:
                return self._reuse_row(previous.packs[row.pack_index], row, table)
        if self._resume is not None:
            found = self._resume.find(chunk_id)
            if found is not None and found[1].plain_length == length:
                return self._reuse_row(found[0], found[1], table)
        return False

    def _reuse_row(self, pack: bytes, row: ChunkRow, table: TableBuilder) -> bool:
        if pack in self._missing:
            return False
        table.add(row.chunk_id, pack, row.ordinal, (row.offset, row.stored_length, row.plain_length, row.codec))
        return True

    def _zero_id(self, length: int) -> bytes:
        known = self._zero_ids.get(length)
        if known is None:
            known = self._zero_ids[length] = blake3(bytes(length)).digest()
        return known

    def previous(self, part: PreviousPart | None) -> ChunkTable | None:
        """Return the last snapshot's table of a range, if it has one."""
        if part is None:
            return None
        if part.leaf is not None:
            return self._cache.leaf(part.leaf) if self._cache else None
        return part.table

    def _read_range(self, task: RangeTask) -> RangeResult:
        try:
            descriptor = os.open(task.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            return RangeResult(number=task.number, state=RangeState.VANISHED)
        except OSError as error:
            raise CaptureError(f"cannot read {task.path}: {error.strerror}") from error
        try:
            require_straight(descriptor, task.path)
            return self._read_open(task, descriptor)
        except OSError as error:
            raise CaptureError(f"reading {task.path} failed: {error.strerror}") from error
        finally:
            os.close(descriptor)

    def _read_open(self, task: RangeTask, descriptor: int) -> RangeResult:
        identity = identity_of(descriptor, task.path)
        previous = self.previous(task.previous)
        table = TableBuilder()
        bad: list[int] = []
        done = 0
        step = max(task.chunk_bytes, READ_BYTES - READ_BYTES % task.chunk_bytes)
        if step > len(self._buffer):
            self._buffer = memoryview(bytearray(step))
        while done < task.length:
            wanted = min(step, task.length - done)
            count = _read_fully(descriptor, self._buffer[:wanted], task.offset + done)
            data = self._buffer[:count]
            if task.check is not None and count:
                bad.extend(task.check(descriptor, task.offset + done, data))
            self.encode(
                data,
                chunk_bytes=task.chunk_bytes,
                previous=previous,
                index=done // task.chunk_bytes,
                table=table,
            )
            done += count
            if count < wanted:
                break  # truncated since it was listed; WAL replay accounts for it
        return RangeResult(
            number=task.number,
            state=RangeState.READ,
            packs=tuple(table.packs),
            rows=table.rows(),
            plain_bytes=done,
            identity=identity,
            bad_offsets=tuple(bad),
        )


def require_straight(descriptor: int, path: str) -> None:
    """Refuse an open file that was reached through a link, which ``O_NOFOLLOW`` notices in the last step only.

    Who reads as root what a database's user owns would else read whatever that user had a folder exchanged for. A file
    may be renamed or deleted meanwhile; its folder stays the same.

    Raises:
        CaptureError: it lies in another folder than its path, which has no links in it, says.
        OSError: the system does not say where it lies.
    """
    real = os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115 - for every file that is read
    if real.rpartition("/")[0] != path.rpartition("/")[0]:
        raise CaptureError(
            f"{path} leads to {real}: a folder on the way is a link now",
            hint="Somebody exchanged it while it was read. Look who writes there; nothing of it was stored.",
        )


def identity_of(descriptor: int, path: str) -> FileIdentity:
    """Return how an open file looks now; call it before reading, or a change meanwhile goes unseen.

    Raises:
        CaptureError: it is not a regular file.
    """
    identity, facts = identity_facts(descriptor)
    if not stat.S_ISREG(facts.st_mode):
        raise CaptureError(f"{path} is no regular file any more")
    return identity


def identity_facts(descriptor: int) -> tuple[FileIdentity, os.stat_result]:
    """Return how an open file looks now, as an identity and in full; call it before reading.

    Raises:
        OSError: the file system does not say.
    """
    began = file_clock_ns()
    facts = os.fstat(descriptor)
    identity = FileIdentity(
        device=facts.st_dev,
        inode=facts.st_ino,
        modified_ns=facts.st_mtime_ns,
        changed_ns=facts.st_ctime_ns,
        read_began_ns=began,
    )
    return identity, facts


def file_clock_ns() -> int:
    """Return the time by the clock that local file systems stamp files with."""
    return time.clock_gettime_ns(_CLOCK_REALTIME_COARSE)


def _read_fully(descriptor: int, view: memoryview, offset: int) -> int:
    """Fill ``view`` from ``offset`` and return how much there was."""
    done = 0
    while done < len(view):
        count = os.preadv(descriptor, [view[done:]], offset + done)
        if count == 0:
            break
        done += count
    return done
