"""Which documents the repository is known to have, in bounded memory, and how a host without identity knows it.

Names in passes and sets are sealed, and the host that writes need not be able to open them. It remembers its own: the
pass in the cache of the backup, the sets in a journal beside the stream's state. Both may be deleted; what is not
remembered is stored once more. A line of the journal that is damaged counts as absent, and so does a set that is not
listed any more: nothing is taken for stored that is not.
"""

from __future__ import annotations

import os
import stat
import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from drservice import telemetry
from drservice.components.odoo_filestore.names import is_document
from drservice.errors import NoIdentityError
from drservice.model.documents import StoredSet
from drservice.model.snapshot import SnapshotRecord, SnapshotState
from drservice.processes import create_private, make_folder, open_private
from drservice.repository.cache import SnapshotCache, sums_path
from drservice.repository.documentsets import UNUSABLE_SET, DocumentSets
from drservice.repository.marks import is_not_its_name
from drservice.repository.records import Scope
from drservice.repository.repository import Repository

_DIGEST_BYTES = 20
_FOLDERS = tuple(f"{number:0{digits}x}" for digits in (2, 3) for number in range(16**digits))
_OLDER_PASS = timedelta(hours=12)
"""So long a pass counts beside a newer one that this host does not remember (docs/format.md, section 15)."""


class Names:
    """A set of documents' names: 20 bytes for each."""

    def __init__(self) -> None:
        self._folders: dict[str, bytearray] = {}

    def __len__(self) -> int:
        return sum(map(len, self._folders.values())) // _DIGEST_BYTES

    def add(self, name: str) -> None:
        """Take a document in; one that is in already costs its bytes again."""
        folder, _, digest = name.partition("/")
        self._folders.setdefault(folder, bytearray()).extend(bytes.fromhex(digest))

    def update(self, names: Iterable[str]) -> None:
        """Take documents in."""
        for name in names:
            self.add(name)

    def folders(self) -> Collection[str]:
        """Return the folders that documents are in."""
        return self._folders.keys()

    def of(self, folder: str) -> set[bytes]:
        """Return the SHA-1s of a folder's documents."""
        digests = self._folders.get(folder, b"")
        return {bytes(digests[at : at + _DIGEST_BYTES]) for at in range(0, len(digests), _DIGEST_BYTES)}


def unknown_of(folder: str, names: Iterable[str], known: Names) -> list[str]:
    """Return which files of a folder are not known to be stored, as rows call them, in order."""
    have = known.of(folder)
    return sorted(f"{folder}/{name}" for name in names if bytes.fromhex(name) not in have)


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What is known to be stored."""

    names: Names
    pass_id: str | None
    """The pass that is relied on."""
    problem: str | None
    """Why everything counts as new that a pass may have; ``None``: it does not, or there is no pass."""


class Journal:
    """What is in the sets that this host stored: a line for each, which says by its sum whether it is whole."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, stored: str, names: Sequence[str]) -> None:
        """Remember a set that is stored; what a crash loses of it is stored once more.

        Raises:
            OSError: it cannot be written.
        """
        make_folder(self._path.parent)
        file = open_private(self._path)
        try:
            os.lseek(file, 0, os.SEEK_END)
            _write(file, _line(stored, names))
        finally:
            os.close(file)

    def read(self) -> Iterator[tuple[str, list[str]]]:
        """Yield sets and what is in them.

        Raises:
            OSError: it is there and cannot be read.
        """
        if not self._path.exists():
            return
        with os.fdopen(open_private(self._path), "r", encoding="ascii", errors="replace") as lines:
            for line in lines:
                text, _, total = line.rstrip("\n").rpartition(" ")
                words = text.split(" ")
                if f"{zlib.crc32(text.encode()):08x}" == total and all(map(is_document, words[1:])):
                    yield words[0], words[1:]

    def keep(self, sets: Collection[str]) -> None:
        """Forget all sets but these.

        Raises:
            OSError: it cannot be written; what was remembered stays.
        """
        make_folder(self._path.parent)
        temporary = self._path.with_suffix(".staged")
        with os.fdopen(create_private(temporary), "wb") as file:
            for stored, names in self.read():
                if stored in sets:
                    file.write(_line(stored, names))
        temporary.replace(self._path)


def _line(stored: str, names: Sequence[str]) -> bytes:
    text = " ".join((stored, *names)).encode("ascii")
    return b"%s %08x\n" % (text, zlib.crc32(text))


def _write(file: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(file, left) :]


def journal_of(state_dir: Path, scope: Scope) -> Journal:
    """Return the journal of a component."""
    return Journal(state_dir / "documents" / f"{scope.service}.{scope.component}.names")


def cache_stamp(state_dir: Path, scope: Scope) -> tuple[int, ...] | None:
    """Return what changes when this host has taken another pass.

    Raises:
        OSError: it cannot be looked at.
    """
    path = _cache_path(state_dir, scope)
    try:
        # A pass that found nothing new leaves the cache as it was, and only what is said of it is replaced.
        looked = [path.stat(), sums_path(path).stat()]
    except FileNotFoundError:
        return None
    if not all(stat.S_ISREG(facts.st_mode) for facts in looked):
        return None
    return tuple(value for facts in looked for value in (facts.st_ino, facts.st_mtime_ns))


def _cache_path(state_dir: Path, scope: Scope) -> Path:
    return state_dir / "cache" / scope.service / f"{scope.component}.sqlite"


def read_known(repository: Repository, scope: Scope, state_dir: Path, journal: Journal) -> Known:
    """Return what is known to be stored: the newest pass that this host remembers, and the sets since it began.

    Raises:
        ObjectStoreError: the store did not answer.
        OSError: what this host remembers cannot be read.
    """
    names = Names()
    records = [record for record in repository.snapshots(scope).records if record.state is not SnapshotState.PARTIAL]
    relied = _take_pass(scope, state_dir, records, names)
    newest = records[-1] if records else None
    begun = None if newest is None else (relied or newest).documents.walk_began_at
    _take_sets(repository.document_sets(scope), begun, journal, names)
    problem = None
    if relied is None and newest is not None:
        problem = f"this host does not remember pass {newest.id}: all documents are stored once more"
    return Known(names=names, pass_id=None if relied is None else relied.id, problem=problem)


def _take_pass(scope: Scope, state_dir: Path, records: Sequence[SnapshotRecord], names: Names) -> SnapshotRecord | None:
    """Take in what the remembered pass has, if it may be relied on, and return it."""
    if not records:
        return None
    identity = {
        "repository": str(scope.repository),
        "service": str(scope.service),
        "component": str(scope.component),
    }
    cache = SnapshotCache.open(_cache_path(state_dir, scope), identity=identity)
    if cache is None:
        return None
    try:
        chosen = next((record for record in records if record.id == cache.meta().get("snapshot")), None)
        if chosen is None or _began(records[-1]) - _began(chosen) > _OLDER_PASS:
            return None
        for folder in _FOLDERS:
            for path, mark in cache.marks(folder.encode()).items():
                name = os.fsdecode(path)
                if is_document(name) and (mark is None or not is_not_its_name(mark)):
                    names.add(name)
        return chosen
    finally:
        cache.close()


def _began(record: SnapshotRecord) -> datetime:
    return record.documents.walk_began_at


def _take_sets(archive: DocumentSets, begun: datetime | None, journal: Journal, names: Names) -> None:
    """Take in what is in the sets since a pass began: as remembered, else as they say where they can be opened."""
    # Without a word of activity there is one each minute: those that no longer count are not read.
    listing = archive.listing(since=begun)
    sets = {item.id: item for item in listing.sets if begun is None or item.looked_at >= begun}
    journal.keep(sets)
    left = dict(sets)
    for stored, documents in journal.read():
        if left.pop(stored, None) is not None:
            names.update(documents)
    try:
        for item in left.values():
            names.update(_names_in(archive, item))
    except NoIdentityError:
        telemetry.info("document sets are not remembered, what is in them is stored once more", sets=len(left))


def _names_in(archive: DocumentSets, item: StoredSet) -> list[str]:
    """Return the documents that are in a set as a whole; those that are cut are not looked for."""
    try:
        return [entry.name for entry in archive.index(item).entries if entry.length == entry.size]
    except NoIdentityError:
        raise
    except UNUSABLE_SET as error:
        telemetry.warning("document set cannot be used", document_set=item.id, problem=error.message)
        return []
