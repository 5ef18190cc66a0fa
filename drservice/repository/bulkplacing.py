"""Placing many whole files: ordered by pack, each made, written and checked by one worker in one go.

Where a few files are made of many chunks, ``placing`` is the better order. Here a file is mostly one chunk, so what
counts is that nobody touches it twice: the worker that has the pack in memory makes the file under its own name, with
its owner and mode, in a folder that nobody else can enter yet. Folders are opened step by step and through no link, so
root is not led elsewhere. Damage costs the files it is in and no other: they are reported and not left behind.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from typing import NamedTuple

from drservice.errors import CaptureError, DamagedObjectError, RecoveryError
from drservice.objectstore.interface import ObjectStore
from drservice.processes import Account
from drservice.repository.chunktable import ROW, ChunkRow, ChunkTable
from drservice.repository.descent import Folders, Root
from drservice.repository.envelope import Trust
from drservice.repository.keys import Identities, Keyring
from drservice.repository.nodes import Entry
from drservice.repository.placing import PlacingProgress
from drservice.repository.pool import Pool, run_inline
from drservice.repository.reader import UNUSABLE_PACK, PackOpener, SnapshotReader, open_chunk
from drservice.repository.records import CODEC_ZERO, RecordKey, Scope
from drservice.repository.target import write_error

_FIRST_FILES = 1 << 12
_ROUND_FILES = 1 << 15
"""Files planned at once. The first round is small, so that workers begin soon, and each is twice the one before: the
more files are planned together, the fewer packs are asked for twice. The largest bounds memory at any number of files.
"""
_PIECE_BYTES = 24 << 20
"""Plain bytes a worker takes on at once."""
_PIECE_FILES = 1024
_BATCH_PACKS = 4
"""Pieces per batch: of all but the first the pack is fetched while the one before is written."""
_LAST_PIECES = 8
"""Towards the end a batch is no more than this part of what is left."""
_INLINE_BYTES = 24 << 20
_INLINE_FILES = 2_000
_SPARSE_BYTES = 64 << 20
"""Smaller files are not looked into for holes."""
_WORTH_A_SPAN = 0.5
"""Share of a span that must be wanted for it to be fetched with one request."""


@dataclass(frozen=True, slots=True)
class WantedFile:
    """An entry to place, and the SHA-1 its content must have (``b""`` = any)."""

    entry: Entry
    sha1: bytes


class FilePlan(NamedTuple):
    """A file for a worker: path below the root, permission bits, size, SHA-1, chunk tables as (packs, rows)."""

    path: bytes
    mode: int
    size: int
    sha1: bytes
    tables: Sequence[tuple[tuple[bytes, ...], bytes]]


class PackPlan(NamedTuple):
    """Files that begin in one pack (``b""`` for files without data)."""

    pack: bytes
    files: Sequence[FilePlan]


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkPlaced:
    """What was placed and what could not be: (path, reason)."""

    files: int = 0
    written_bytes: int = 0
    fetched_bytes: int = 0
    lost: Sequence[tuple[bytes, str]] = ()

    def plus(self, other: BulkPlaced) -> BulkPlaced:
        """Return the sum of two batches."""
        return BulkPlaced(
            files=self.files + other.files,
            written_bytes=self.written_bytes + other.written_bytes,
            fetched_bytes=self.fetched_bytes + other.fetched_bytes,
            lost=(*self.lost, *other.lost),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacingSpec:
    """Everything a placing worker needs; picklable. ``secrets`` are opened data keys."""

    open_store: Callable[[], ObjectStore]
    scope: Scope
    secrets: Sequence[tuple[str, bytes]]
    root: Root
    account: Account | None


@dataclass(slots=True)
class _Tally:
    files: int = 0
    written_bytes: int = 0
    fetched_bytes: int = 0
    lost: list[tuple[bytes, str]] = field(default_factory=list)


class PlacingWorker:
    """Makes files; one per process (or one inline)."""

    def __init__(self, spec: PlacingSpec, _name: str) -> None:
        self._store = spec.open_store()
        keyring = Keyring(self._store, spec.scope.repository, Trust(()), Identities())
        keyring.adopt(spec.secrets)
        self._packs = PackOpener(self._store, scope=spec.scope, keyring=keyring)
        self._account = spec.account
        try:
            self._root = spec.root.open()
        except CaptureError as error:
            self._store.close()
            raise RecoveryError(error.message) from error
        self._folders = Folders(self._root)
        self._ahead = ThreadPoolExecutor(max_workers=1, thread_name_prefix="fetch-ahead")

    def work(self, tasks: Sequence[PackPlan], /) -> BulkPlaced:
        """Place the files of a batch, and fetch for the next pack meanwhile."""
        tally = _Tally()
        coming = self._ahead.submit(self._fetch, tasks[0])
        for number, task in enumerate(tasks, 1):
            fetched = coming.result()
            if number < len(tasks):
                coming = self._ahead.submit(self._fetch, tasks[number])
            self._place_pack(task, fetched, tally)
            tally.fetched_bytes += fetched.fetched_bytes
        return BulkPlaced(
            files=tally.files,
            written_bytes=tally.written_bytes,
            fetched_bytes=tally.fetched_bytes,
            lost=tuple(tally.lost),
        )

    def flush(self) -> BulkPlaced:
        """Nothing is kept back."""
        return BulkPlaced()

    def close(self) -> None:
        """Release the root and connections."""
        self._ahead.shutdown(wait=True, cancel_futures=True)
        self._folders.close()
        os.close(self._root)
        self._store.close()

    def _fetch(self, task: PackPlan) -> _Fetched:
        fetched = _Fetched(self._packs, task.pack)
        begin, end, wanted = _span(task)
        if wanted and wanted >= (end - begin) * _WORTH_A_SPAN:
            with suppress(*UNUSABLE_PACK):  # then chunk by chunk: each file is lost or found on its own
                fetched.load(begin, end)
        return fetched

    def _place_pack(self, task: PackPlan, fetched: _Fetched, tally: _Tally) -> None:
        for plan in task.files:
            try:
                self._place_file(plan, fetched, tally)
            except UNUSABLE_PACK as error:
                tally.lost.append((plan.path, error.message))

    def _place_file(self, plan: FilePlan, fetched: _Fetched, tally: _Tally) -> None:
        """Make one file.

        Raises:
            DamagedObjectError, MissingObjectError, FormatError, KeyProblemError: it is lost, and not there.
            RecoveryError: the folder cannot be written.
        """
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        folder, _, name = plan.path.rpartition(b"/")
        try:
            inside = self._folders.at(folder)
            descriptor = os.open(name, flags, plan.mode, dir_fd=inside)  # nobody else can enter yet
        except OSError as error:
            raise write_error(plan.path, error) from error
        try:
            self._fill(plan, descriptor, fetched)
        except BaseException:
            with suppress(OSError):
                os.unlink(name, dir_fd=inside)
            raise
        finally:
            os.close(descriptor)
        tally.files += 1
        tally.written_bytes += plan.size

    def _fill(self, plan: FilePlan, descriptor: int, fetched: _Fetched) -> None:
        sha1 = hashlib.sha1(usedforsecurity=False) if plan.sha1 else None
        at = 0
        for packs, rows in plan.tables:
            for row in ChunkTable(packs, rows):
                if row.codec == CODEC_ZERO:
                    if sha1 is not None:
                        sha1.update(bytes(row.plain_length))
                else:
                    plain = fetched.chunk(packs[row.pack_index], row, hashed=sha1 is None)
                    if sha1 is not None:
                        sha1.update(plain)
                    _write(descriptor, plan.path, at, plain)
                at += row.plain_length
        if sha1 is not None and sha1.digest() != plan.sha1:
            raise DamagedObjectError(f"the content has the SHA-1 {sha1.hexdigest()}, not {plan.sha1.hex()}")
        self._finish(plan, descriptor, at)

    def _finish(self, plan: FilePlan, descriptor: int, size: int) -> None:
        """Give a file that is written its length, owner and mode, as far as it does not have them."""
        try:
            facts = os.fstat(descriptor)
            if size != facts.st_size:
                os.ftruncate(descriptor, size)  # it ends in a hole
            if self._account is not None:
                os.fchown(descriptor, self._account.uid, self._account.gid)
            if stat.S_IMODE(facts.st_mode) != plan.mode:
                os.fchmod(descriptor, plan.mode)
        except OSError as error:
            raise write_error(plan.path, error) from error


class _Fetched:
    """A span of the pack of a task in memory if that pays, and everything else chunk by chunk."""

    def __init__(self, packs: PackOpener, pack: bytes) -> None:
        self._packs = packs
        self._pack = pack
        self.fetched_bytes = 0
        self._begin = 0
        self._data: memoryview | None = None
        self._key: RecordKey | None = None

    def load(self, begin: int, end: int) -> None:
        """Fetch a span of the pack.

        Raises:
            DamagedObjectError, MissingObjectError, FormatError, KeyProblemError: it is not the pack.
        """
        self._key = self._packs.record_key(self._pack)
        self._data = memoryview(self._packs.read(self._pack, begin, end - begin))
        self._begin = begin
        self.fetched_bytes += end - begin

    def chunk(self, pack: bytes, row: ChunkRow, *, hashed: bool) -> bytes | memoryview:
        """Return the plain bytes of a chunk; ``hashed`` compares them with its id, too.

        Raises:
            DamagedObjectError, MissingObjectError, FormatError, KeyProblemError: no version of its pack holds it.
        """
        if pack == self._pack and self._data is not None and self._key is not None:
            begin = row.offset - self._begin
            stored = self._data[begin : begin + row.stored_length]
            try:
                return open_chunk(self._key, stored, pack, row, hashed=hashed)
            except UNUSABLE_PACK:
                self._data = None  # from here on by ranges, from another version of the pack if there is one
        self.fetched_bytes += row.stored_length
        return self._packs.chunk(pack, row)


def _write(descriptor: int, path: bytes, offset: int, plain: bytes | memoryview) -> None:
    view = memoryview(plain)
    done = 0
    try:
        while done < len(view):
            done += os.pwrite(descriptor, view[done:], offset + done)
    except OSError as error:
        raise write_error(path, error) from error


def _span(task: PackPlan) -> tuple[int, int, int]:
    """Return where the chunks wanted of a task's pack begin and end in it, and how many bytes they are."""
    rows = [
        row
        for plan in task.files
        for packs, raw in plan.tables
        for row in ChunkTable(packs, raw)
        if row.codec != CODEC_ZERO and packs[row.pack_index] == task.pack
    ]
    if not rows:
        return 0, 0, 0
    end = max(row.offset + row.stored_length for row in rows)
    return min(row.offset for row in rows), end, sum(row.stored_length for row in rows)


def data_bytes(reader: SnapshotReader, files: Iterable[WantedFile]) -> int:
    """Return the space that files need: holes need none."""
    return sum(item.entry.size if item.entry.size < _SPARSE_BYTES else _filled(reader, item.entry) for item in files)


def _filled(reader: SnapshotReader, entry: Entry) -> int:
    try:
        return sum(row.plain_length for table in reader.tables(entry) for row in table if row.codec != CODEC_ZERO)
    except UNUSABLE_PACK:
        return 0  # placing it will say what is lost


def place_whole_files(
    reader: SnapshotReader,
    files: Iterable[WantedFile],
    spec: PlacingSpec,
    *,
    workers: int,
    progress: PlacingProgress,
) -> Iterator[BulkPlaced]:
    """Place files below a folder in which their folders exist already; yields what was done, batch by batch.

    A file that cannot be restored is in ``lost`` and is not in the folder. The caller makes everything durable.

    Args:
        reader: the snapshot the entries are of.
        files: what to place; pulled in rounds.
        spec: where to, and with which keys.
        workers: processes to use.
        progress: hears of written bytes.

    Raises:
        RecoveryError: the folder cannot be written.
        ObjectStoreError: the store does not answer.
    """
    source = iter(files)
    first = list(islice(source, _FIRST_FILES))
    make = partial(PlacingWorker, spec)
    lost: list[tuple[bytes, str]] = []
    small = len(first) < _INLINE_FILES and sum(item.entry.size for item in first) < _INLINE_BYTES
    batches = _batches(reader, chain(first, source), lost)
    del first
    pool: Pool[Sequence[PackPlan], BulkPlaced] | None = None if small or workers < 2 else Pool(make, workers)
    replies = run_inline(make, batches) if pool is None else pool.run(batches)
    try:
        for _, reply in replies:
            progress.advance(reply.written_bytes)
            yield reply
    finally:
        if pool is not None:
            pool.close()
    yield BulkPlaced(lost=tuple(lost))


def _batches(
    reader: SnapshotReader, files: Iterator[WantedFile], lost: list[tuple[bytes, str]]
) -> Iterator[Sequence[PackPlan]]:
    """Group each round of files by the pack they begin in; what cannot even be planned is lost."""
    planner = _Planner(reader)
    amount = _FIRST_FILES
    while True:
        groups: dict[bytes, list[tuple[int, FilePlan]]] = {}
        taken = 0
        for wanted in islice(files, amount):  # each entry goes as soon as it is planned: plans need far less
            taken += 1
            try:
                pack, offset, plan = planner.plan(wanted)
            except UNUSABLE_PACK as error:
                lost.append((wanted.entry.path, error.message))
            else:
                groups.setdefault(pack, []).append((offset, plan))
        if not taken:
            return
        pieces = deque(PackPlan(pack, piece) for pack, plans in groups.items() for piece in _pieces(plans))
        groups.clear()
        is_last = taken < amount
        while pieces:
            # The last ones go out one by one: nobody is to be left with four when the others have nothing to do.
            count = min(_BATCH_PACKS, max(1, len(pieces) // _LAST_PIECES)) if is_last else _BATCH_PACKS
            yield [pieces.popleft() for _ in range(min(count, len(pieces)))]
        amount = min(2 * amount, _ROUND_FILES)


class _Planner:
    """Makes plans of files; what many have in common is kept once."""

    def __init__(self, reader: SnapshotReader) -> None:
        self._reader = reader
        self._packs: dict[tuple[bytes, ...], tuple[bytes, ...]] = {}

    def plan(self, wanted: WantedFile) -> tuple[bytes, int, FilePlan]:
        """Return where a file's first stored chunk lies (``b""``, 0: it has none), and its plan.

        Raises:
            DamagedObjectError: in a pack that the snapshot does not list.
            MissingObjectError, FormatError, KeyProblemError: its leaves cannot be read.
        """
        entry = wanted.entry
        tables = [(self._known(tuple(table.packs)), table.rows) for table in self._reader.tables(entry)]
        pack, offset = b"", 0
        for packs, rows in tables:
            stored = next((row for row in ROW.iter_unpack(rows) if row[-1] != CODEC_ZERO), None)
            if stored is not None:
                pack, offset = packs[stored[1]], stored[3]
                break
        return pack, offset, FilePlan(entry.path, entry.mode & 0o777, entry.size, wanted.sha1, tables)

    def _known(self, packs: tuple[bytes, ...]) -> tuple[bytes, ...]:
        kept = self._packs.get(packs)
        if kept is None:
            for name in packs:
                self._reader.pack_bytes(name)
            kept = self._packs[packs] = packs
        return kept


def _pieces(plans: Iterable[tuple[int, FilePlan]]) -> Iterator[list[FilePlan]]:
    """Cut files of one pack, in order of their place in it, into what a worker takes on at once."""
    piece: list[FilePlan] = []
    size = 0
    for _, plan in sorted(plans, key=lambda item: item[0]):
        piece.append(plan)
        size += plan.size
        if size >= _PIECE_BYTES or len(piece) >= _PIECE_FILES:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece
