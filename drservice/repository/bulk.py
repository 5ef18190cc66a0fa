"""Reading many whole files: what one worker does with the files of a folder, in its own process or inline.

Folders are opened step by step from the root without following links, files by name inside their folder, and nothing
is opened blockingly: what was exchanged since it was listed is reported, never followed. Content is read once; the
chunks, and where asked the SHA-1 of the whole, are made while it is in memory. A file that cannot be read does not end
the run: it is reported with the reason.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import struct
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from drservice.repository.capture import CaptureWorker, PreviousPart, WorkerSpec, identity_facts
from drservice.repository.chunktable import LEAF_CHUNKS, ChunkTable, PackToken, TableBuilder
from drservice.repository.descent import GONE, Root, open_below
from drservice.repository.nodes import Entry, EntryKind, FileIdentity, decode_entry
from drservice.repository.pack import ClosedPack

WHOLE_FILE_CHUNK_BYTES = 4 << 20
"""One chunk for a file up to this size; nothing shifts in documents, and few requests matter more than small ones."""
_SETTLE_SECONDS = (0.02, 0.1, 0.3)
"""Pauses before a file that was written while it was read is read again."""
_RECENT_NS = 2 * 10**9
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY

Part: TypeAlias = "tuple[tuple[PackToken, ...], bytes]"
"""Packs (names or tokens) and chunk rows of at most 1,024 chunks."""


class FileState(Enum):
    """What became of one file."""

    READ = 0
    VANISHED = 1
    """Deleted, or exchanged for something that is no file, since it was listed."""
    UNREADABLE = 2


@dataclass(frozen=True, slots=True)
class FolderTask:
    """Files of one folder to read: (name, entry of the last snapshot or ``None``)."""

    folder: bytes
    files: Sequence[tuple[bytes, bytes | None]]


@dataclass(frozen=True, slots=True)
class FileResult:
    """One file as it was read, or why it was not."""

    path: bytes
    state: FileState
    size: int = 0
    mode: int = 0
    identity: bytes = b""
    """How it looked: see :func:`unpack_identity`."""
    wrong_sha1: bytes = b""
    """SHA-1 of a document whose name says another one."""
    parts: tuple[Part, ...] = ()
    reason: str = ""

    def __reduce__(self) -> tuple[object, ...]:
        """Travel between processes as one flat tuple: there may be a million of these."""
        kept = (self.identity, self.wrong_sha1, self.parts, self.reason)
        return (_file_result, (self.path, self.state.value, self.size, self.mode, *kept))

    def tokens(self) -> list[int]:
        """Return the tokens of packs that had no name yet when the file was read."""
        return [token for packs, _ in self.parts for token in packs if isinstance(token, int)]


_STATES = tuple(FileState)
_IDENTITY = struct.Struct(">QQqqq")


def unpack_identity(packed: bytes) -> FileIdentity:
    """Return how a file looked that was read."""
    device, inode, modified_ns, changed_ns, read_began_ns = _IDENTITY.unpack(packed)
    return FileIdentity(
        device=device, inode=inode, modified_ns=modified_ns, changed_ns=changed_ns, read_began_ns=read_began_ns
    )


def _file_result(path: bytes, state: int, *fields: object) -> FileResult:
    return FileResult(path, _STATES[state], *fields)  # type: ignore[arg-type]  # as __reduce__ took them apart


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkReply:
    """Files of a batch, and the packs acknowledged since the last reply."""

    results: tuple[FileResult, ...]
    closed: tuple[ClosedPack, ...]


class BulkWorker:
    """Reads whole files; one per process (or one inline)."""

    def __init__(self, spec: WorkerSpec, root: Root, hashed: bool, name: str) -> None:  # noqa: FBT001  # for partial()
        self._capture = CaptureWorker(spec, name)
        self._hashed = hashed
        self._buffer = memoryview(bytearray(WHOLE_FILE_CHUNK_BYTES))
        try:
            self._root = root.open()
        except BaseException:
            self._capture.close()
            raise

    def work(self, tasks: Sequence[FolderTask], /) -> BulkReply:
        """Read a batch of folders."""
        results: list[FileResult] = []
        for task in tasks:
            results.extend(self._read_folder(task))
        return BulkReply(results=tuple(results), closed=self._capture.work(()).closed)

    def flush(self) -> BulkReply:
        """Store the open pack and report it."""
        return BulkReply(results=(), closed=self._capture.flush().closed)

    def close(self) -> None:
        """Release files and connections."""
        os.close(self._root)
        self._capture.close()

    def _read_folder(self, task: FolderTask) -> Iterator[FileResult]:
        prefix = task.folder + b"/" if task.folder else b""
        try:
            with open_below(self._root, task.folder) as folder:
                for name, previous in task.files:
                    yield self._read_file(folder, prefix + name, name, previous)
        except OSError as error:  # of the folder: each file reports its own
            for name, _ in task.files:
                yield _failed(prefix + name, error)

    def _read_file(self, folder: int, path: bytes, name: bytes, previous: bytes | None) -> FileResult:
        try:
            descriptor = os.open(name, _FILE, dir_fd=folder)
        except OSError as error:
            return _failed(path, error)
        try:
            before = os.fstat(descriptor)
            if not stat.S_ISREG(before.st_mode):
                return FileResult(path, FileState.VANISHED)
            known = decode_entry(previous) if previous is not None else None
            result = self._read_open(descriptor, path, known)
            for pause in _SETTLE_SECONDS:
                if not self._was_written_meanwhile(descriptor, result):
                    break
                time.sleep(pause)
                result = self._read_open(descriptor, path, known)
        except OSError as error:
            return _failed(path, error)
        finally:
            os.close(descriptor)
        return result

    def _was_written_meanwhile(self, descriptor: int, result: FileResult) -> bool:
        """Tell whether a document is not what it is named because its writer may not have finished.

        Odoo writes documents under their final name; other files are taken as they were, and read again next time.
        """
        if not result.wrong_sha1:
            return False
        after = os.fstat(descriptor)
        changed = (after.st_mtime_ns, after.st_size) != (unpack_identity(result.identity).modified_ns, result.size)
        return changed or time.time_ns() - after.st_mtime_ns < _RECENT_NS

    def _read_open(self, descriptor: int, path: bytes, known: Entry | None) -> FileResult:
        identity, facts = identity_facts(descriptor)
        sha1 = hashlib.sha1(usedforsecurity=False) if self._hashed else None
        holes = None if self._hashed or facts.st_blocks * 512 >= facts.st_size else _Holes(descriptor, facts.st_size)
        parts: list[Part] = []
        table = TableBuilder()
        before = self._previous(known, 0)
        offset = chunks = 0
        while offset < facts.st_size:  # what is appended meanwhile belongs to the next snapshot
            wanted = min(WHOLE_FILE_CHUNK_BYTES, facts.st_size - offset)
            if holes is not None and holes.covers(offset, wanted):
                count = wanted
                table.add_zero(count)
            else:
                count = _fill(descriptor, self._buffer[:wanted], offset)
                data = self._buffer[:count]
                if sha1 is not None:
                    sha1.update(data)
                self._capture.encode(
                    data, chunk_bytes=WHOLE_FILE_CHUNK_BYTES, previous=before, index=chunks, table=table
                )
            offset += count
            chunks += bool(count)
            if count < wanted:
                break  # cut off since it was listed
            if chunks == LEAF_CHUNKS:
                parts.append((tuple(table.packs), table.rows()))
                table, chunks = TableBuilder(), 0
                before = self._previous(known, len(parts))
        if chunks or not parts:
            parts.append((tuple(table.packs), table.rows()))
        return FileResult(
            path,
            FileState.READ,
            offset,
            facts.st_mode & 0o777,
            _IDENTITY.pack(
                identity.device, identity.inode, identity.modified_ns, identity.changed_ns, identity.read_began_ns
            ),
            sha1.digest() if sha1 is not None and sha1.hexdigest().encode() != path.rpartition(b"/")[2] else b"",
            tuple(parts),
        )

    def _previous(self, known: Entry | None, part: int) -> ChunkTable | None:
        """Return the last snapshot's chunks of the same part of this file."""
        if known is None or known.kind is not EntryKind.FILE or known.chunk_bytes != WHOLE_FILE_CHUNK_BYTES:
            return None
        if known.leaves:
            leaf = known.leaves[part].node_id if part < len(known.leaves) else None
            return self._capture.previous(PreviousPart(leaf=leaf)) if leaf is not None else None
        return known.inline if part == 0 else None


class _Holes:
    """Where a sparse file has no data (``lseek(2)``, SEEK_DATA): never read, and not stored."""

    def __init__(self, descriptor: int, size: int) -> None:
        self._descriptor = descriptor
        self._size = size
        self._data = 0

    def covers(self, offset: int, length: int) -> bool:
        """Tell whether a chunk lies in a hole as a whole."""
        end = offset + length
        if self._data <= offset:
            try:
                self._data = os.lseek(self._descriptor, offset, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                self._data = self._size  # no data behind this offset
        return self._data >= end


def _fill(descriptor: int, view: memoryview, offset: int) -> int:
    done = 0
    while done < len(view):
        count = os.preadv(descriptor, [view[done:]], offset + done)
        if count == 0:
            break
        done += count
    return done


def _failed(path: bytes, error: OSError) -> FileResult:
    if error.errno in GONE:
        return FileResult(path, FileState.VANISHED)
    return FileResult(path, FileState.UNREADABLE, reason=error.strerror or str(error))
