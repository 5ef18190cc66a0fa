"""Placing a snapshot's files into an empty folder: ordered by pack, fetched in parallel, written out of order.

Every chunk is authenticated and compared with its BLAKE3 before it is written. Paths are checked as a whole before
the first write. The folder is complete only when :func:`place_files` returns; until then it must not be used.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from drservice.errors import RecoveryError
from drservice.model.estate import SignerSettings
from drservice.objectstore.interface import ObjectStore
from drservice.processes import Account
from drservice.repository.chunktable import ROW, ChunkRow
from drservice.repository.envelope import Trust
from drservice.repository.keys import Identities, Keyring
from drservice.repository.nodes import Entry, EntryKind
from drservice.repository.pool import Pool, run_inline
from drservice.repository.reader import UNUSABLE_PACK, PackOpener, SnapshotReader, open_chunk
from drservice.repository.records import CODEC_ZERO, Scope

_PLACE = struct.Struct(">IQ")
_ITEM = _PLACE.size + ROW.size
_ROUND_ROWS = 1 << 18
"""Chunks planned at once (16 GiB of data at 64 KiB): bounds memory at any size."""
_INLINE_BYTES = 24 << 20
_PIECE_BYTES = 48 << 20
"""Plain bytes a worker takes on at once."""
_MERGE_GAP_BYTES = 256 << 10
_WHOLE_PACK_SHARE = 0.5
_OPEN_FILES = 128


class PlacingProgress(Protocol):
    """Hears how many bytes are in place."""

    def advance(self, amount: int, /) -> None:
        """``amount`` more bytes are written."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchSpec:
    """Everything a fetching worker needs; picklable. ``secrets`` are this snapshot's opened data keys only."""

    open_store: Callable[[], ObjectStore]
    scope: Scope
    secrets: Sequence[tuple[str, bytes]]
    root: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PackFetch:
    """What to take from one pack and where it goes: items are (file number, file offset) + chunk row."""

    pack: bytes
    pack_bytes: int
    files: Sequence[bytes]
    items: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchReply:
    """What a worker wrote and read, in bytes."""

    written_bytes: int
    fetched_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """What placing did."""

    files: int
    directories: int
    written_bytes: int
    fetched_bytes: int
    held_back: dict[bytes, bytes]
    """Content of the paths the caller wants to write itself, last."""


class FetchWorker:
    """Fetches packs and writes their chunks; one per process (or one inline)."""

    def __init__(self, spec: FetchSpec, _name: str) -> None:
        self._store = spec.open_store()
        keyring = Keyring(self._store, spec.scope.repository, Trust(_NOBODY), Identities())
        keyring.adopt(spec.secrets)
        self._packs = PackOpener(self._store, scope=spec.scope, keyring=keyring)
        self._root = os.fsencode(spec.root)
        self._open: OrderedDict[bytes, int] = OrderedDict()

    def work(self, tasks: Sequence[PackFetch], /) -> FetchReply:
        """Fetch and write a batch."""
        written = fetched = 0
        for task in tasks:
            done, read = self._fetch(task)
            written += done
            fetched += read
        return FetchReply(written_bytes=written, fetched_bytes=fetched)

    def flush(self) -> FetchReply:
        """Nothing is kept back."""
        return FetchReply(written_bytes=0, fetched_bytes=0)

    def close(self) -> None:
        """Close files and connections."""
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()
        self._store.close()

    def _fetch(self, task: PackFetch) -> tuple[int, int]:
        try:
            return self._fetch_once(task)
        except UNUSABLE_PACK:
            if not self._packs.recover(task.pack):
                raise
        return self._fetch_once(task)  # what was written before is written again, at the same places

    def _fetch_once(self, task: PackFetch) -> tuple[int, int]:
        items = list(_unpack_items(task.items))  # in order of their offset in the pack
        wanted = sum(row.stored_length for _, _, row in items)
        written = 0
        fetched = 0
        if wanted >= task.pack_bytes * _WHOLE_PACK_SHARE:
            data = memoryview(self._packs.read(task.pack, 0, None))
            key = self._packs.record_key(task.pack, data[:104])
            for number, offset, row in items:
                stored = data[row.offset : row.offset + row.stored_length]
                written += self._write(task.files[number], offset, open_chunk(key, stored, task.pack, row))
            return written, len(data)
        key = self._packs.record_key(task.pack)
        for group in _merge(items):
            begin = group[0][2].offset
            end = max(row.offset + row.stored_length for _, _, row in group)
            data = memoryview(self._packs.read(task.pack, begin, end - begin))
            fetched += len(data)
            for number, offset, row in group:
                stored = data[row.offset - begin : row.offset - begin + row.stored_length]
                written += self._write(task.files[number], offset, open_chunk(key, stored, task.pack, row))
        return written, fetched

    def _write(self, path: bytes, offset: int, plain: bytes | memoryview) -> int:
        descriptor = self._descriptor(path)
        view = memoryview(plain)
        done = 0
        try:
            while done < len(view):
                done += os.pwrite(descriptor, view[done:], offset + done)
        except OSError as error:
            raise write_error(path, error) from error
        return done

    def _descriptor(self, path: bytes) -> int:
        descriptor = self._open.get(path)
        if descriptor is None:
            if len(self._open) >= _OPEN_FILES:
                os.close(self._open.popitem(last=False)[1])
            try:
                descriptor = os.open(self._root + b"/" + path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except OSError as error:
                raise write_error(path, error) from error
            self._open[path] = descriptor
        else:
            self._open.move_to_end(path)
        return descriptor


_NOBODY: tuple[SignerSettings, ...] = ()


def place_files(
    reader: SnapshotReader,
    root: Path,
    *,
    open_store: Callable[[], ObjectStore],
    scope: Scope,
    secrets: Sequence[tuple[str, bytes]],
    hold_back: frozenset[bytes],
    account: Account | None,
    workers: int,
    progress: PlacingProgress,
    wanted: Callable[[bytes], bool] | None = None,
) -> Placed:
    """Write all files of a snapshot below ``root``, which exists and is empty.

    Args:
        reader: the snapshot.
        root: the target.
        open_store: opens the store in a worker process (picklable).
        scope: whose data it is.
        secrets: (key id, data key) of every key the snapshot needs.
        hold_back: paths whose content is returned instead of written.
        account: owner of what is made (as root), or ``None`` for the present user.
        workers: processes to use.
        progress: hears of written bytes.
        wanted: tells by its path whether a file's content is; the others are made at their size and are one hole, of
            which nothing is fetched. ``None``: all are.

    Raises:
        DamagedObjectError, MissingObjectError: naming what cannot be restored; the folder is incomplete.
        RecoveryError: the folder cannot be written.
    """
    entries = list(reader.entries())
    files = [entry for entry in entries if entry.kind is EntryKind.FILE and (wanted is None or wanted(entry.path))]
    require_space(root, sum(entry.size for entry in files))
    directories = _make_skeleton(root, entries, hold_back, account)
    held = {entry.path: reader.read_file(entry) for entry in files if entry.path in hold_back}
    plan = [entry for entry in files if entry.path not in hold_back]
    spec = FetchSpec(open_store=open_store, scope=scope, secrets=secrets, root=str(root))
    make = partial(FetchWorker, spec)
    batches = _batches(reader, _rounds(reader, plan, progress))
    total = sum(entry.size for entry in plan)
    written = fetched = 0
    if total < _INLINE_BYTES or workers < 2:
        replies: Iterator[tuple[int, FetchReply]] = run_inline(make, batches)
        pool = None
    else:
        pool = Pool(make, workers)
        replies = pool.run(batches)
    try:
        for _, reply in replies:
            written += reply.written_bytes
            fetched += reply.fetched_bytes
            progress.advance(reply.written_bytes)
    finally:
        if pool is not None:
            pool.close()
    return Placed(
        files=len(files), directories=directories, written_bytes=written, fetched_bytes=fetched, held_back=held
    )


def sync_folder(root: Path) -> None:
    """Make everything below ``root`` durable with one call (``syncfs(2)``).

    Raises:
        RecoveryError: the disk reports an error.
    """
    try:
        descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise write_error(os.fsencode(root), error) from error
    try:
        sync_opened(descriptor, root)
    finally:
        os.close(descriptor)


def sync_opened(descriptor: int, root: Path) -> None:
    """Make everything durable that is below an open folder; ``root`` is how messages call it.

    Raises:
        RecoveryError: the disk reports an error.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syncfs(descriptor) != 0:
        raise RecoveryError(f"writing {root} to disk failed: {os.strerror(ctypes.get_errno())}")


def write_error(path: bytes, error: OSError) -> RecoveryError:
    """Translate a failed write into the target folder."""
    name = path.decode("utf-8", "backslashreplace")
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return RecoveryError(f"no space left while writing {name}", hint="Free space on the target and run again.")
    return RecoveryError(f"cannot write {name}: {error.strerror}")


def _rounds(
    reader: SnapshotReader, files: Sequence[Entry], progress: PlacingProgress
) -> Iterator[dict[bytes, tuple[dict[bytes, int], bytearray]]]:
    """Plan file by file and hand out groups by pack whenever a round is full."""
    groups: dict[bytes, tuple[dict[bytes, int], bytearray]] = {}
    rows = 0
    for entry in files:
        offset = 0
        for table in reader.tables(entry):
            for row in table:
                if row.codec == CODEC_ZERO:
                    progress.advance(row.plain_length)  # the file was made at its size: a hole reads as zeros
                else:
                    paths, items = groups.setdefault(table.packs[row.pack_index], ({}, bytearray()))
                    number = paths.setdefault(entry.path, len(paths))
                    items += _PLACE.pack(number, offset) + ROW.pack(*row)
                    rows += 1
                offset += row.plain_length
        if rows >= _ROUND_ROWS:
            yield groups
            groups, rows = {}, 0
    yield groups


def _batches(
    reader: SnapshotReader,
    rounds: Iterator[dict[bytes, tuple[dict[bytes, int], bytearray]]],
) -> Iterator[Sequence[PackFetch]]:
    """Cut each pack's share into pieces small enough that no worker is left with a long one at the end."""
    for groups in rounds:
        for pack, (paths, items) in groups.items():
            size = reader.pack_bytes(pack)
            ordered = sorted(_unpack_items(bytes(items)), key=lambda item: item[2].offset)
            for piece in _pieces(ordered):
                packed = b"".join(_PLACE.pack(number, offset) + ROW.pack(*row) for number, offset, row in piece)
                yield [PackFetch(pack=pack, pack_bytes=size, files=tuple(paths), items=packed)]


def _pieces(items: Sequence[tuple[int, int, ChunkRow]]) -> Iterator[list[tuple[int, int, ChunkRow]]]:
    piece: list[tuple[int, int, ChunkRow]] = []
    plain = 0
    for item in items:
        piece.append(item)
        plain += item[2].plain_length
        if plain >= _PIECE_BYTES:
            yield piece
            piece, plain = [], 0
    if piece:
        yield piece


def _unpack_items(items: bytes) -> Iterator[tuple[int, int, ChunkRow]]:
    for position in range(0, len(items), _ITEM):
        number, offset = _PLACE.unpack_from(items, position)
        yield number, offset, ChunkRow(*ROW.unpack_from(items, position + _PLACE.size))


def _merge(items: Sequence[tuple[int, int, ChunkRow]]) -> Iterator[list[tuple[int, int, ChunkRow]]]:
    group: list[tuple[int, int, ChunkRow]] = []
    end = 0
    for item in items:
        row = item[2]
        if group and row.offset > end + _MERGE_GAP_BYTES:
            yield group
            group = []
        group.append(item)
        end = max(end, row.offset + row.stored_length)
    if group:
        yield group


def free_bytes(root: Path) -> int:
    """Return what this user may still write to the file system of a folder."""
    facts = os.statvfs(root)
    return facts.f_bavail * facts.f_frsize


def require_space(root: Path, needed_bytes: int) -> None:
    """Refuse to begin what cannot end.

    Raises:
        RecoveryError: with the bytes that are free and needed.
    """
    free = free_bytes(root)
    if free < needed_bytes:
        raise RecoveryError(
            f"{root} has {free:,} bytes free, and {needed_bytes:,} are needed",
            hint="Give --into a place with more space; nothing was written.",
        )


def _make_skeleton(root: Path, entries: Sequence[Entry], hold_back: frozenset[bytes], account: Account | None) -> int:
    base = os.fsencode(root)
    directories = 0
    for entry in entries:
        path = base + b"/" + entry.path
        try:
            if entry.kind is EntryKind.DIRECTORY:
                os.mkdir(path, 0o700)  # noqa: PTH102  # byte paths: names need not be UTF-8
                os.chmod(path, entry.mode & 0o777)  # noqa: PTH101  # the same
                directories += 1
            elif entry.kind is EntryKind.LINK:
                os.symlink(entry.target, path)  # noqa: PTH211  # the same
            elif entry.path not in hold_back:
                _make_file(path, entry)
            else:
                continue
            if account is not None:
                os.chown(path, account.uid, account.gid, follow_symlinks=False)
        except OSError as error:
            raise write_error(entry.path, error) from error
    return directories


def _make_file(path: bytes, entry: Entry) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600)
    try:
        os.fchmod(descriptor, entry.mode & 0o777)
        if entry.size:
            os.ftruncate(descriptor, entry.size)
    finally:
        os.close(descriptor)
