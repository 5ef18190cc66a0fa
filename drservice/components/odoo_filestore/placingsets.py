"""Documents that no pass over the filestore has, from the sets that were stored between passes.

Sets are looked into the nearest first, each by its index alone, and read as a whole only if it has something that is
wanted. One set is held at a time. A document that was too big for a set is put together in its own file, under a name
no document has, and gets its own when its SHA-1 is that of its name.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

from drservice.components.odoo_filestore.staging import Staging
from drservice.errors import DrError, NoIdentityError
from drservice.model.documents import DocumentPart, StoredSet
from drservice.processes import Account
from drservice.repository.documentsets import PART_BYTES, UNUSABLE_SET, DocumentSets, SetIndex

_AHEAD = 16


@dataclass(slots=True, kw_only=True)
class FoundInSets:
    """What became of documents that were looked for in sets."""

    placed: set[str] = field(default_factory=set)
    damaged: set[str] = field(default_factory=set)
    """In a set, and damaged there; another copy may have been placed."""
    missing: set[str] = field(default_factory=set)
    """Production did not have them, by the record of a set."""
    corrupt: set[str] = field(default_factory=set)
    used: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    written_bytes: int = 0
    fetched_bytes: int = 0


def place_from_sets(
    archive: DocumentSets, sets: Sequence[StoredSet], made: Staging, *, wanted: set[str], account: Account | None
) -> FoundInSets:
    """Place what the sets have of the documents that are wanted.

    Args:
        archive: reads the sets.
        sets: in the order in which they are asked.
        made: where documents go.
        wanted: their names; not changed.
        account: whose the files are.

    Raises:
        NoIdentityError: nothing can be opened here.
        RecoveryError: a file cannot be written.
        ObjectStoreError: the store did not answer.
    """
    search = _Search(archive=archive, made=made, account=account, left=set(wanted), found=FoundInSets())
    with _indexes(archive, sets) as indexes:
        for stored, index in indexes:
            if not search.left:
                break
            search.look(stored, index)
    search.drop_unfinished()
    return search.found


@contextmanager
def _indexes(
    archive: DocumentSets, sets: Iterable[StoredSet]
) -> Iterator[Iterator[tuple[StoredSet, Future[SetIndex]]]]:
    """Read the indexes of sets ahead of who looks at them, as many as a store that is far away is worth."""
    waiting: deque[tuple[StoredSet, Future[SetIndex]]] = deque()

    def each() -> Iterator[tuple[StoredSet, Future[SetIndex]]]:
        for stored in sets:
            waiting.append((stored, threads.submit(archive.index, stored)))
            if len(waiting) >= width:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()

    width = _AHEAD if archive.is_distant else 1
    with ThreadPoolExecutor(max_workers=width, thread_name_prefix="sets") as threads:
        try:
            yield each()
        finally:
            for _, future in waiting:
                future.cancel()


@dataclass(slots=True, kw_only=True)
class _Search:
    archive: DocumentSets
    made: Staging
    account: Account | None
    left: set[str]
    found: FoundInSets
    parts: dict[str, set[int]] = field(default_factory=dict)
    """Of big documents, where the parts begin that are written."""

    def look(self, stored: StoredSet, future: Future[SetIndex]) -> None:
        """Place what one set has; what is wrong with it costs only what is in it."""
        try:
            index = future.result()
        except NoIdentityError:
            raise
        except UNUSABLE_SET as error:
            self._note(stored, error)
            return
        self.found.missing.update(index.missing)
        self.found.corrupt.update(index.corrupt)
        here = {entry.name for entry in index.entries if entry.name in self.left}
        if not here:
            return
        before = len(self.found.placed)
        try:
            for part in self.archive.read(stored, here):
                self._place(part)
        except UNUSABLE_SET as error:
            self._note(stored, error)
            self.found.damaged |= here - self.found.placed
        self.found.fetched_bytes += stored.stored_bytes
        if len(self.found.placed) > before:
            self.found.used.append(stored.id)

    def _note(self, stored: StoredSet, error: DrError) -> None:
        self.found.unreadable.append(f"document set {stored.id}: {error.message}")

    def _place(self, part: DocumentPart) -> None:
        path = os.fsencode(part.name)
        if part.is_whole:
            self.made.make_folder(path.rpartition(b"/")[0])
            self.made.write_file(path, part.data, self.account)
            self._done(part)
            return
        written = self.parts.setdefault(part.name, set())
        if part.offset not in written:
            self.made.make_folder(path.rpartition(b"/")[0])
            self.made.write_part(path, part.offset, part.data)
            written.add(part.offset)
        if written < set(range(0, part.size, PART_BYTES)):
            return
        if self.made.finish_parts(path, part.name[-40:], self.account):
            self._done(part)
        else:
            self.found.damaged.add(part.name)
        del self.parts[part.name]

    def _done(self, part: DocumentPart) -> None:
        self.found.placed.add(part.name)
        self.found.written_bytes += part.size
        self.made.wrote(len(part.data))
        self.left.discard(part.name)

    def drop_unfinished(self) -> None:
        """Remove what was written of documents whose other parts are nowhere."""
        for name in self.parts:
            self.made.drop_parts(os.fsencode(name))
