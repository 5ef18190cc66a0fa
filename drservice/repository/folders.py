"""Taking listed folders into a snapshot: what is taken over unread, what is read, and what came of it.

The writer of a snapshot lends its parts (cache, staged entries, nodes). Folders come one after the other, files are
judged by their marks, and what must be read goes to workers in batches; a million files need no more memory than a
round of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from typing import Protocol, TypeAlias

from drservice.errors import CaptureError
from drservice.repository.bulk import (
    WHOLE_FILE_CHUNK_BYTES,
    BulkReply,
    BulkWorker,
    FileResult,
    FileState,
    FolderTask,
    unpack_identity,
)
from drservice.repository.cache import SnapshotCache, StagedCache
from drservice.repository.capture import WorkerSpec, file_clock_ns
from drservice.repository.changes import ChangeRule
from drservice.repository.chunktable import INLINE_CHUNKS, ChunkTable
from drservice.repository.descent import Root
from drservice.repository.marks import MarkJudge, is_not_its_name, make_mark, size_of
from drservice.repository.nodes import Entry, EntryKind, decode_entry, encode_entry
from drservice.repository.pool import Pool, run_inline
from drservice.repository.staging import NodeSink, stage_leaves

_INLINE_BYTES = 24 << 20
_INLINE_FILES = 2_000
"""Below both, starting worker processes costs more than it saves."""
_BATCH_BYTES = 8 << 20
_BATCH_FILES = 256
_ROUND_FILES = 1 << 12
"""Files planned at once: the large ones among them are read first."""
_ROWS = 512


_Seen: TypeAlias = "tuple[bytes, bytes]"
"""Name and look of a listed file."""
_Changed: TypeAlias = "tuple[bytes, bytes, int, bytes | None]"
"""Folder, name, size, entry of the last snapshot: a file to read."""


class ByteProgress(Protocol):
    """Hears how many source bytes are done."""

    def advance(self, amount: int, /) -> None:
        """``amount`` more bytes are captured."""
        ...


@dataclass(frozen=True, slots=True)
class ListedFolder:
    """A folder of the root (``b""`` is the root itself) and the regular files right in it."""

    path: bytes
    looks: Mapping[bytes, bytes]
    """By name what :func:`marks.look_of` makes of a file's status."""
    flat: bool
    """It holds no folders, so all that was below it can be asked for at once."""


@dataclass(slots=True, kw_only=True)
class FilesOutcome:
    """What became of the files; names are paths in the snapshot."""

    files: int = 0
    """Files in the snapshot."""
    reused_files: int = 0
    read_bytes: int = 0
    vanished: list[bytes] = field(default_factory=list)
    unreadable: list[tuple[bytes, str]] = field(default_factory=list)
    not_their_name: list[bytes] = field(default_factory=list)
    """Documents whose content is not what their name says."""

    def replace(self, paths: set[bytes], repeated: FilesOutcome) -> None:
        """Take a second reading of these paths for the first."""
        self.files += repeated.files - len(paths)
        self.read_bytes += repeated.read_bytes
        self.not_their_name = [path for path in self.not_their_name if path not in paths] + repeated.not_their_name
        self.vanished += repeated.vanished
        self.unreadable += repeated.unreadable


@dataclass(frozen=True, slots=True, kw_only=True)
class IntakeParts:
    """What the writer of a snapshot lends."""

    cache: SnapshotCache | None
    staged: StagedCache
    nodes: NodeSink
    missing: frozenset[bytes]
    spec: WorkerSpec
    spec_here: WorkerSpec
    """For a worker in this process."""
    workers: int
    on_pack: Callable[[bytes, int], None]
    take_over: Callable[[Entry], bool]
    """Carries the leaves of an entry over, unless a pack that it needs is missing."""


class FolderIntake:
    """One pass over listed folders."""

    def __init__(
        self, parts: IntakeParts, root: Root, *, rule: ChangeRule, hashed: bool, progress: ByteProgress
    ) -> None:
        self._parts = parts
        self._root = root
        self._rule = rule
        self._hashed = hashed
        self._progress = progress
        self._judge = MarkJudge(file_clock_ns())
        self._pack_names: dict[tuple[int, int], bytes] = {}
        self._waiting: dict[int, deque[FileResult]] = {}
        self._rows: list[tuple[bytes, bytes, bytes]] = []
        self.outcome = FilesOutcome()

    def run(self, folders: Iterable[ListedFolder]) -> FilesOutcome:
        """Take all folders in.

        Raises:
            CaptureError: the root was exchanged, or the cache cannot be written.
            ObjectStoreError: the store failed; packs that were acknowledged are re-used by the next run.
        """
        changed = (item for folder in folders for item in self._judge_folder(folder))
        first, small = _beginning(changed)
        is_here = small or self._parts.workers < 2
        spec = self._parts.spec_here if is_here else self._parts.spec
        make = partial(BulkWorker, spec, self._root, self._hashed)
        batches = _batches(chain(first, changed))
        if not first:
            pass
        elif is_here:
            self._absorb(run_inline(make, batches))
        else:
            pool: Pool[Sequence[FolderTask], BulkReply] = Pool(make, self._parts.workers)
            try:
                self._absorb(pool.run(batches))
            finally:
                pool.close()
        if any(self._waiting.values()):
            raise CaptureError("files were read into packs that nobody acknowledged")
        self._write_rows()
        return self.outcome

    # --- what need not be read ------------------------------------------------------------------------------

    def _judge_folder(self, folder: ListedFolder) -> Iterator[_Changed]:
        """Take over what is unchanged; yield (folder, name, size, last entry) of the rest."""
        cache, staged = self._parts.cache, self._parts.staged
        at_once = folder.flat and folder.path != b""
        if at_once and self._take_whole(folder):
            return
        if at_once and self._rule is ChangeRule.IDENTITY:
            staged.note_folder(folder.path)
        if cache is None:
            yield from ((folder.path, name, size_of(look), None) for name, look in folder.looks.items())
            return
        prefix = folder.path + b"/" if folder.path else b""
        known = (
            cache.marks(folder.path)
            if at_once
            else {name: cache.mark(name) for name in map(prefix.__add__, folder.looks)}
        )
        same, changed = self._split(folder, prefix, known)
        paths = self._take_over(prefix, same, known, changed)
        if at_once and len(paths) == len(known):
            staged.carry_folder(folder.path, len(known))
        elif at_once and self._hashed and len(paths) > len(known) // 2:
            # Between documents there are no links; elsewhere one may have been recorded in a file's place by now.
            staged.carry_folder(folder.path, len(known), without=sorted(known.keys() - set(paths)))
        else:
            staged.carry(paths)
        for name, look in changed:
            path = prefix + name
            yield folder.path, name, size_of(look), cache.entry(path) if known.get(path) is not None else None

    def _take_whole(self, folder: ListedFolder) -> bool:
        """Take a folder over whose mark says that none of its files need be looked at more closely."""
        parts = self._parts
        if parts.cache is None or parts.missing or self._rule is not ChangeRule.IDENTITY:
            return False
        mark = parts.cache.folder_mark(folder.path)
        unchanged = self._judge.whole_folder(folder.looks, mark) if mark is not None else None
        if unchanged is None:
            return False
        parts.staged.carry_folder(folder.path, unchanged[0])
        self._taken_over(*unchanged)
        return True

    def _split(
        self, folder: ListedFolder, prefix: bytes, marks: dict[bytes, bytes | None]
    ) -> tuple[list[_Seen], list[_Seen]]:
        if self._rule is ChangeRule.READ_ALL:
            return [], list(folder.looks.items())
        judge = self._judge.by_identity if self._rule is ChangeRule.IDENTITY else self._judge.by_name
        same: list[_Seen] = []
        changed: list[_Seen] = []
        for seen in folder.looks.items():
            (same if judge(seen[1], marks.get(prefix + seen[0])) else changed).append(seen)
        return same, changed

    def _take_over(
        self,
        prefix: bytes,
        same: Sequence[_Seen],
        marks: dict[bytes, bytes | None],
        changed: list[_Seen],
    ) -> list[bytes]:
        """Return the paths that can be carried over as they are; what needs a missing pack joins ``changed``."""
        paths: list[bytes] = []
        taken = size = 0
        for seen in same:
            path = prefix + seen[0]
            mark = marks[path] or b""
            if self._parts.missing:
                if not self._carry_checked(path):
                    changed.append(seen)
                    continue
            else:
                paths.append(path)
            if is_not_its_name(mark):
                self.outcome.not_their_name.append(path)
            taken += 1
            size += size_of(seen[1])
        self._taken_over(taken, size)
        return paths

    def _taken_over(self, files: int, size: int) -> None:
        self.outcome.reused_files += files
        self.outcome.files += files
        self._progress.advance(size)

    def _carry_checked(self, path: bytes) -> bool:
        body = self._parts.cache.entry(path) if self._parts.cache is not None else None
        if body is None or not self._parts.take_over(decode_entry(body)):
            return False
        self._parts.staged.carry([path])  # with its mark
        return True

    # --- what was read --------------------------------------------------------------------------------------

    def _absorb(self, replies: Iterator[tuple[int, BulkReply]]) -> None:
        for worker, reply in replies:
            for pack in reply.closed:
                self._pack_names[worker, pack.token] = pack.name
                self._parts.on_pack(pack.name, pack.stored_bytes)
            waiting = self._waiting.setdefault(worker, deque())
            waiting.extend(reply.results)
            # A worker fills its packs one after the other: what waits behind an open pack waits for it, too.
            while waiting and all((worker, token) in self._pack_names for token in waiting[0].tokens()):
                self._settle(worker, waiting.popleft())
            self._progress.advance(sum(result.size for result in reply.results))

    def _settle(self, worker: int, result: FileResult) -> None:
        if result.state is not FileState.READ:
            self._parts.staged.drop_entry(result.path)  # of an earlier reading in this run
            if result.state is FileState.VANISHED:
                self.outcome.vanished.append(result.path)
            else:
                self.outcome.unreadable.append((result.path, result.reason))
            return
        tables = [
            ChunkTable([t if isinstance(t, bytes) else self._pack_names[worker, t] for t in packs], rows)
            for packs, rows in result.parts
        ]
        wrong = result.wrong_sha1 != b""
        identity = unpack_identity(result.identity)
        inline = tables[0] if len(tables) == 1 and len(tables[0]) <= INLINE_CHUNKS else None
        entry = Entry(
            path=result.path,
            kind=EntryKind.FILE,
            mode=result.mode,
            size=result.size,
            chunk_bytes=WHOLE_FILE_CHUNK_BYTES,
            inline=inline,
            leaves=() if inline is not None else stage_leaves(tables, self._parts.nodes, self._parts.staged),
            identity=identity,
            sha1=result.wrong_sha1,
        )
        mark = make_mark(result.path, result.size, identity, not_its_name=wrong)
        self._rows.append((result.path, encode_entry(entry), mark))
        if len(self._rows) >= _ROWS:
            self._write_rows()
        self.outcome.files += 1
        self.outcome.read_bytes += result.size
        if wrong:
            self.outcome.not_their_name.append(result.path)

    def _write_rows(self) -> None:
        self._parts.staged.put_entries(self._rows)
        self._rows.clear()


def _beginning(changed: Iterator[_Changed]) -> tuple[list[_Changed], bool]:
    """Return the first files to read, and whether they are all and so little that one process reads them soonest."""
    first: list[_Changed] = []
    size = 0
    for item in changed:
        first.append(item)
        size += item[2]
        if len(first) >= _INLINE_FILES or size >= _INLINE_BYTES:
            return first, False
    return first, True


def _batches(changed: Iterator[_Changed]) -> Iterator[Sequence[FolderTask]]:
    """Cut files to read into batches: of each round the large ones first, so that none comes last."""
    while files := list(islice(changed, _ROUND_FILES)):
        large = [item for item in files if item[2] >= _BATCH_BYTES]
        for folder, name, _, previous in sorted(large, key=lambda item: -item[2]):
            yield [FolderTask(folder, [(name, previous)])]
        yield from _small_batches(item for item in files if item[2] < _BATCH_BYTES)


def _small_batches(files: Iterable[_Changed]) -> Iterator[Sequence[FolderTask]]:
    tasks: dict[bytes, list[tuple[bytes, bytes | None]]] = {}
    size = count = 0
    for folder, name, length, previous in files:
        tasks.setdefault(folder, []).append((name, previous))
        size += length
        count += 1
        if size >= _BATCH_BYTES or count >= _BATCH_FILES:
            yield [FolderTask(*task) for task in tasks.items()]
            tasks, size, count = {}, 0, 0
    if tasks:
        yield [FolderTask(*task) for task in tasks.items()]
