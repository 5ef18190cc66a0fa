"""Placing a snapshot's files into a folder: ordered by pack, fetched in parallel, written out of order.

Every chunk is authenticated and compared with its BLAKE3 before it is written. Paths are checked as a whole before
the first write. The folder is complete only when :func:`place_files` returns; until then it must not be used.

With :class:`Onto` the folder may hold something: what is right already is neither fetched nor written. Right is what
has the BLAKE3 of the snapshot's chunk. Times and sizes are no reason to believe content: whoever wrote the folder sets
them as he likes, a torn write or a bad disk changes neither, and the same tick may hold two versions of a page. Each
byte is read once, in the worker that would fetch it, while another chunk is on its way.
"""

from __future__ import annotations

import ctypes
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

from blake3 import blake3

from drservice.errors import CaptureError, DrError, RecoveryError
from drservice.objectstore.interface import ObjectStore
from drservice.processes import Account, files_as
from drservice.repository.chunktable import ChunkRow
from drservice.repository.descent import Folders, Root
from drservice.repository.envelope import Trust
from drservice.repository.keys import Identities, Keyring
from drservice.repository.nodes import Entry, EntryKind
from drservice.repository.placingplan import MERGE_GAP_BYTES, Item, PackFetch, batches, merged, unpacked
from drservice.repository.pool import Pool, run_inline
from drservice.repository.reader import UNUSABLE_PACK, PackOpener, SnapshotReader, open_chunk
from drservice.repository.records import CODEC_ZERO, RecordKey, Scope
from drservice.repository.skeleton import EMPTY, Shaping, Survey, open_plain, owner_of, survey
from drservice.repository.target import require_space, write_error

_INLINE_BYTES = 24 << 20
_SPAN_BYTES = 8 << 20
_READERS = 4
"""A distant store gives each request its latency and a share of its speed only: parts of a pack are fetched at once."""
_OPEN_FILES = 128
_HEAD_BYTES = 104
_PUNCH_HOLE = 0x01 | 0x02
"""FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE"""
_SYNC_FILE_RANGE_WRITE = 2


class PlacingProgress(Protocol):
    """Hears how many bytes are in place."""

    def advance(self, amount: int, /) -> None:
        """``amount`` more bytes are written, or were right."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Onto:
    """How to place into a folder that holds something."""

    left_alone: frozenset[bytes]
    """Paths that are neither looked at nor removed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchSpec:
    """Everything a fetching worker needs; picklable. ``secrets`` are this snapshot's opened data keys only."""

    open_store: Callable[[], ObjectStore]
    scope: Scope
    secrets: Sequence[tuple[str, bytes]]
    root: Root
    account: Account | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchReply:
    """What a worker wrote, read from the store, and found right, in bytes."""

    written_bytes: int = 0
    fetched_bytes: int = 0
    kept_bytes: int = 0

    def plus(self, other: FetchReply) -> FetchReply:
        """Return the sum of two batches."""
        return FetchReply(
            written_bytes=self.written_bytes + other.written_bytes,
            fetched_bytes=self.fetched_bytes + other.fetched_bytes,
            kept_bytes=self.kept_bytes + other.kept_bytes,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """What placing did."""

    files: int
    directories: int
    written_bytes: int
    fetched_bytes: int
    held_back: dict[bytes, bytes]
    """Content of the paths the caller wants to write itself, last."""
    kept_bytes: int = 0
    """What was right already."""
    removed: int = 0
    """Things that were there and are not in the snapshot (a folder counts as one)."""
    replaced: tuple[bytes, ...] = ()
    """Paths at which something stood that could not be written in place: a link, another's file, another kind."""


@dataclass(slots=True)
class _Prepared:
    """A task whose files were compared and whose bytes were fetched."""

    task: PackFetch
    zeros: list[Item]
    wanted: list[Item]
    kept_bytes: int
    fetched_bytes: int = 0
    key: RecordKey | None = None
    spans: list[tuple[int, memoryview, list[Item]]] = field(default_factory=list)
    """(offset in the pack, bytes, what lies there)"""
    problem: DrError | None = None


class FetchWorker:
    """Fetches packs and writes their chunks; one per process (or one inline)."""

    def __init__(self, spec: FetchSpec, _name: str) -> None:
        self._store = spec.open_store()
        keyring = Keyring(self._store, spec.scope.repository, Trust(()), Identities())
        keyring.adopt(spec.secrets)
        self._packs = PackOpener(self._store, scope=spec.scope, keyring=keyring)
        self._account = spec.account
        self._owner = owner_of(spec.account)
        try:
            self._root = spec.root.open()
        except CaptureError as error:
            self._store.close()
            raise RecoveryError(error.message) from error
        self._files = _OpenFiles(self._root, os.O_WRONLY, spec.account)
        self._looked_at = _OpenFiles(self._root, os.O_RDONLY, spec.account)  # by the other thread only
        self._buffer = memoryview(bytearray(1 << 16))
        self._ahead = ThreadPoolExecutor(max_workers=1, thread_name_prefix="fetch-ahead")
        self._readers = ThreadPoolExecutor(max_workers=_READERS, thread_name_prefix="fetch-span")

    def work(self, tasks: Sequence[PackFetch], /) -> FetchReply:
        """Place a batch; what is next is compared and fetched meanwhile."""
        written = fetched = kept = 0
        coming = self._ahead.submit(self._prepare, tasks[0])
        for number, _ in enumerate(tasks, 1):
            prepared = coming.result()
            if number < len(tasks):
                coming = self._ahead.submit(self._prepare, tasks[number])
            written += self._place(prepared)
            self._files.write_back()
            fetched += prepared.fetched_bytes
            kept += prepared.kept_bytes
        return FetchReply(written_bytes=written, fetched_bytes=fetched, kept_bytes=kept)

    def flush(self) -> FetchReply:
        """Nothing is kept back."""
        return FetchReply()

    def close(self) -> None:
        """Close files and connections."""
        self._ahead.shutdown(wait=True, cancel_futures=True)
        self._readers.shutdown(wait=True, cancel_futures=True)
        self._files.close()
        self._looked_at.close()
        os.close(self._root)
        self._store.close()

    # --- ahead, in a thread of its own ------------------------------------------------------------------------

    def _prepare(self, task: PackFetch) -> _Prepared:
        zeros: list[Item] = []
        wanted: list[Item] = []  # in order of their offset in the pack
        kept = 0
        for item in unpacked(task.items):
            number, offset, row = item
            if number in task.compared and self._is_right(task.files[number], offset, row):
                kept += row.plain_length
            else:
                (zeros if row.codec == CODEC_ZERO else wanted).append(item)
        prepared = _Prepared(task=task, zeros=zeros, wanted=wanted, kept_bytes=kept)
        try:
            self._fetch(prepared)
        except UNUSABLE_PACK as error:
            prepared.problem = error
        return prepared

    def _is_right(self, path: bytes, offset: int, row: ChunkRow) -> bool:
        """Tell whether a file has a chunk at its place already."""
        if row.plain_length > len(self._buffer):
            self._buffer = memoryview(bytearray(row.plain_length))
        view = self._buffer[: row.plain_length]
        try:
            count = os.preadv(self._looked_at.at(path), [view], offset)
        except OSError as error:
            raise RecoveryError(
                f"cannot read {path.decode('utf-8', 'backslashreplace')} of the target: {error.strerror}"
            ) from error
        if count != row.plain_length:
            return False
        if row.codec == CODEC_ZERO:
            return not any_byte(view)
        return blake3(view).digest() == row.chunk_id

    def _fetch(self, prepared: _Prepared) -> None:
        pack = prepared.task.pack
        prepared.spans.clear()
        spans: list[tuple[int, int, list[Item]]] = []
        for group in merged(prepared.wanted, most=_SPAN_BYTES if self._store.capabilities.distant else None):
            begin = group[0][2].offset
            end = max(row.offset + row.stored_length for _, _, row in group)
            if begin <= MERGE_GAP_BYTES and not spans:
                begin = 0  # with the head, from which the key is derived
            spans.append((begin, end - begin, group))
        reads = self._readers.map(lambda span: self._packs.read(pack, span[0], span[1]), spans)
        for (begin, _, group), read in zip(spans, reads, strict=True):
            data = memoryview(read)
            prepared.fetched_bytes += len(data)
            if prepared.key is None:
                prepared.key = self._packs.record_key(pack, data[:_HEAD_BYTES] if begin == 0 else None)
            prepared.spans.append((begin, data, group))

    # --- writing ----------------------------------------------------------------------------------------------

    def _place(self, prepared: _Prepared) -> int:
        written = sum(
            self._make_zero(prepared.task.files[number], offset, row) for number, offset, row in prepared.zeros
        )
        try:
            return written + self._write_all(prepared)
        except UNUSABLE_PACK:
            if not self._packs.recover(prepared.task.pack):
                raise
        prepared.problem = prepared.key = None
        self._fetch(prepared)
        return written + self._write_all(prepared)  # what was written before is written again, at the same places

    def _write_all(self, prepared: _Prepared) -> int:
        if prepared.problem is not None:
            raise prepared.problem
        written = 0
        pack, files = prepared.task.pack, prepared.task.files
        for begin, data, group in prepared.spans:
            assert prepared.key is not None
            for number, offset, row in group:
                at = row.offset - begin
                plain = open_chunk(prepared.key, data[at : at + row.stored_length], pack, row)
                written += self._write(files[number], offset, plain)
        prepared.spans.clear()
        return written

    def _write(self, path: bytes, offset: int, plain: bytes | memoryview) -> int:
        view = memoryview(plain)
        done = 0
        try:
            descriptor = self._files.at(path)
            while done < len(view):
                done += os.pwrite(descriptor, view[done:], offset + done)
        except OSError as error:
            raise write_error(path, error) from error
        return done

    def _make_zero(self, path: bytes, offset: int, row: ChunkRow) -> int:
        """Make a hole where something else stands, or write zeros where there can be none."""
        try:
            descriptor = self._files.at(path)
        except OSError as error:
            raise write_error(path, error) from error
        if _LIBC.fallocate(descriptor, _PUNCH_HOLE, ctypes.c_int64(offset), ctypes.c_int64(row.plain_length)) == 0:
            return row.plain_length
        return self._write(path, offset, bytes(row.plain_length))


class _OpenFiles:
    """Files below a root that were used last, opened step by step and through no link, with their owner's rights."""

    def __init__(self, root: int, flags: int, account: Account | None) -> None:
        self._folders = Folders(root)
        self._flags = flags
        self._account = account
        self._owner = owner_of(account)
        self._open: OrderedDict[bytes, int] = OrderedDict()

    def at(self, path: bytes) -> int:
        """Return the descriptor of a file, good until another one is asked for.

        Raises:
            OSError: it is not there, or not the plain file that was made or found.
        """
        descriptor = self._open.get(path)
        if descriptor is not None:
            self._open.move_to_end(path)
            return descriptor
        if len(self._open) >= _OPEN_FILES:
            self._let_go(self._open.popitem(last=False)[1])
        folder, _, name = path.rpartition(b"/")
        with files_as(self._account):
            descriptor = open_plain(self._folders.at(folder), name, self._flags, owner=self._owner)
        self._open[path] = descriptor
        return descriptor

    def write_back(self) -> None:
        """Have the disk begin with what was written, which else would wait for the call that makes all durable.

        That call is what counts: nothing is promised here, and a disk that does not know this one does it all then.
        """
        if self._flags == os.O_WRONLY:
            for descriptor in self._open.values():
                _begin_write_back(descriptor)

    def _let_go(self, descriptor: int) -> None:
        if self._flags == os.O_WRONLY:
            _begin_write_back(descriptor)
        os.close(descriptor)

    def close(self) -> None:
        """Close them all."""
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()
        self._folders.close()


_LIBC = ctypes.CDLL(None, use_errno=True)
_ZEROS = bytes(1 << 20)


def _begin_write_back(descriptor: int) -> None:
    _LIBC.sync_file_range(descriptor, ctypes.c_int64(0), ctypes.c_int64(0), _SYNC_FILE_RANGE_WRITE)


def any_byte(view: memoryview) -> bool:
    """Tell whether there is anything but zeros."""
    return any(view[at : at + len(_ZEROS)] != _ZEROS[: len(view) - at] for at in range(0, len(view), len(_ZEROS)))


def _nothing() -> None:
    """Begin without ado."""


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
    onto: Onto | None = None,
    begin: Callable[[], None] = _nothing,
) -> Placed:
    """Write all files of a snapshot below ``root``, which exists and is empty, unless ``onto`` says how to go on.

    Args:
        reader: the snapshot.
        root: the target.
        open_store: opens the store in a worker process (picklable).
        scope: whose data it is.
        secrets: (key id, data key) of every key the snapshot needs.
        hold_back: paths whose content is returned instead of written.
        account: owner of what is made (as root), or ``None`` for the present user. Everything below ``root`` is done
            with no more rights than that account has.
        workers: processes to use.
        progress: hears of written bytes, and of those that were right.
        wanted: tells by its path whether a file's content is; the others are one hole. Not together with ``onto``.
        onto: the folder holds something; it is made to hold the snapshot and nothing else.
        begin: called once everything was checked and before anything is changed; may refuse by raising.

    Raises:
        DamagedObjectError, MissingObjectError, RecoveryError: naming what cannot be read or written; it is incomplete.
    """
    if onto is not None and wanted is not None:
        raise ValueError("what is left out of a folder that holds something would stay as it is there")
    entries = list(reader.entries())
    files = [entry for entry in entries if entry.kind is EntryKind.FILE and (wanted is None or wanted(entry.path))]
    made = [entry for entry in entries if entry.path not in hold_back]
    with _opened(root) as top:
        found = EMPTY if onto is None else _survey(top, made, onto, account)
        require_space(root, sum(entry.size for entry in files) - found.kept_bytes - found.freed_bytes)
        held = {entry.path: reader.read_file(entry) for entry in files if entry.path in hold_back}
        begin()
        spec = FetchSpec(open_store=open_store, scope=scope, secrets=secrets, root=_known(root, top), account=account)
        filled = [entry for entry in files if entry.path not in hold_back]
        with _shaping(top, made, found, account) as shaping, _running(spec, _count(filled, workers)) as run:
            done = FetchReply()
            for _, reply in run(batches(reader, filled, found, shaping, progress.advance)):
                done = done.plus(reply)
                progress.advance(reply.written_bytes + reply.kept_bytes)
    return Placed(
        files=len(files),
        directories=sum(entry.kind is EntryKind.DIRECTORY for entry in made),
        held_back=held,
        removed=len(found.unwanted),
        replaced=found.replaced,
        **asdict(done),
    )


def _known(path: Path, descriptor: int) -> Root:
    facts = os.fstat(descriptor)
    return Root(str(path), facts.st_dev, facts.st_ino)


def _count(files: Sequence[Entry], workers: int) -> int:
    """Return how many workers are worth their start."""
    return 1 if sum(entry.size for entry in files) < _INLINE_BYTES else workers


def _survey(root: int, entries: Sequence[Entry], onto: Onto, account: Account | None) -> Survey:
    names = {entry.path: entry for entry in entries}
    with files_as(account):
        return survey(root, names, owner=owner_of(account), left_alone=onto.left_alone)


Run = Callable[[Iterator[Sequence[PackFetch]]], Iterator[tuple[int, FetchReply]]]


@contextmanager
def _shaping(root: int, entries: Sequence[Entry], found: Survey, account: Account | None) -> Iterator[Shaping]:
    """Bring an open folder into shape; at the end set the modes that would have been in the way."""
    shaping = Shaping(root, entries, found, account=account)
    try:
        yield shaping
        shaping.set_late_modes()
    finally:
        shaping.close()


@contextmanager
def _running(spec: FetchSpec, workers: int) -> Iterator[Run]:
    """Start workers; one is this process."""
    make = partial(FetchWorker, spec)
    if workers < 2:
        yield partial(run_inline, make)
        return
    pool: Pool[Sequence[PackFetch], FetchReply] = Pool(make, workers)
    try:
        yield pool.run
    finally:
        pool.close()


@contextmanager
def _opened(root: Path) -> Iterator[int]:
    try:
        descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise write_error(os.fsencode(root), error) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)
