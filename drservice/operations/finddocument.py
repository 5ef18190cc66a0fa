"""One document by the SHA-1 of its content, wherever the repository has it: in passes over a filestore, or in sets."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from drservice.components.odoo_filestore.names import is_document
from drservice.errors import DamagedObjectError, DrError, NoIdentityError, ObjectStoreError
from drservice.model.documents import StoredSet
from drservice.model.points import order_for_documents
from drservice.repository.documentsets import PART_BYTES, UNUSABLE_SET, DocumentSets
from drservice.repository.nodes import Entry, EntryKind
from drservice.repository.reader import UNUSABLE_PACK, SnapshotReader
from drservice.repository.records import Scope
from drservice.repository.repository import Repository


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundDocument:
    """A copy of a document; whether it can be read shows when it is."""

    name: str
    """As rows have it."""
    size: int
    source: str
    """Which snapshot or set has it, in words."""
    content: Iterator[bytes | memoryview]
    """Its bytes, to be read once. It ends with ``DamagedObjectError`` where they do not have the SHA-1: believe none of
    them before it has ended."""


def find_document(
    repository: Repository, scope: Scope, sha1: str, *, on_lost: Callable[[str], None] = lambda _: None
) -> Iterator[FoundDocument]:
    """Yield every copy of a document, the newest pass first and sets after the passes.

    Take the first whose content can be read to its end; a damaged one says nothing about the next. A snapshot or set
    that cannot be looked into is passed over and told: nothing found means that nothing was found in the others.

    Args:
        repository: opened with an identity.
        scope: of the filestore.
        sha1: of the content, 40 hex digits.
        on_lost: hears of each snapshot and set, or part of one, that could not be looked into, with the reason.

    Raises:
        NoIdentityError: nothing can be opened here.
        ObjectStoreError: the store did not answer.
    """
    listing = repository.snapshots(scope)
    for key, problem in listing.unreadable.items():
        on_lost(f"{key}: {problem.message}")
    for record in order_for_documents(listing.records, None):
        try:
            reader = repository.reader(scope, record.id)
            # The tree is read to its end before a copy is offered: what follows may be damaged.
            lost: list[DrError] = []
            found = [entry for entry in reader.entries(on_lost=lost.append) if _is(entry, sha1)]
        except (NoIdentityError, ObjectStoreError):
            raise
        except UNUSABLE_PACK as error:
            on_lost(f"snapshot {record.id}: {error.message}")
            continue
        for problem in lost:
            on_lost(f"a part of snapshot {record.id}: {problem.message}")
        for entry in found:
            yield FoundDocument(
                name=os.fsdecode(entry.path),
                size=entry.size,
                source=f"snapshot {record.id}",
                content=_checked(_of_snapshot(reader, entry), sha1),
            )
    yield from _in_sets(repository.document_sets(scope), sha1, on_lost)


def _is(entry: Entry, sha1: str) -> bool:
    name = os.fsdecode(entry.path)
    return entry.kind is EntryKind.FILE and is_document(name) and name.endswith(f"/{sha1}") and not entry.sha1


def _in_sets(archive: DocumentSets, sha1: str, on_lost: Callable[[str], None]) -> Iterator[FoundDocument]:
    """Yield the copies in sets, newest first; of a document that was cut one, from whatever sets have its parts."""
    parts: dict[int, StoredSet] = {}
    listing = archive.listing()
    for key, problem in listing.unreadable.items():
        on_lost(f"{key}: {problem.message}")
    for stored in reversed(listing.sets):
        try:
            entries = [entry for entry in archive.index(stored).entries if entry.name.endswith(f"/{sha1}")]
        except (NoIdentityError, ObjectStoreError):
            raise
        except UNUSABLE_SET as error:
            on_lost(f"document set {stored.id}: {error.message}")
            continue
        for entry in entries:
            parts.setdefault(entry.offset, stored)
            sources = {0: stored} if entry.length == entry.size else dict(parts)
            if entry.length != entry.size and set(sources) != set(range(0, entry.size, PART_BYTES)):
                continue
            which = ", ".join(sorted({item.id for item in sources.values()}))
            yield FoundDocument(
                name=entry.name,
                size=entry.size,
                source=f"document set {which}",
                content=_checked(_of_sets(archive, sources, entry.name), sha1),
            )


def _of_snapshot(reader: SnapshotReader, entry: Entry) -> Iterator[bytes | memoryview]:
    yield from reader.pieces(entry)


def _of_sets(archive: DocumentSets, sources: dict[int, StoredSet], name: str) -> Iterator[bytes]:
    for offset in sorted(sources):
        for part in archive.read(sources[offset], {name}):
            if part.offset == offset:
                yield part.data


def _checked(pieces: Iterator[bytes | memoryview], sha1: str) -> Iterator[bytes | memoryview]:
    digest = hashlib.sha1(usedforsecurity=False)
    for piece in pieces:
        digest.update(piece)
        yield piece
    if digest.hexdigest() != sha1:
        raise DamagedObjectError(f"what is stored of document {sha1} has the SHA-1 {digest.hexdigest()}")
