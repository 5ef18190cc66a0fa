"""Documents: what the recovered rows refer to, compared with what lies on the disk.

The rows are read from the recovered database itself and the files are read again, whatever the restore said about them.
Names come from a hostile database: one that is not exactly a folder and a SHA-1 is never used as a path.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from itertools import islice
from pathlib import Path
from typing import TypeAlias

from drservice.checks.business import ask_recovered, database_of
from drservice.checks.interface import (
    Finding,
    NotApplicable,
    RecoveredDocuments,
    RecoveredService,
    failed,
    listed,
    passed,
)
from drservice.components.odoo_filestore.names import is_document, sha1_of_name
from drservice.components.postgres.asking import Asking
from drservice.errors import UnansweredError
from drservice.model.ids import ComponentName

_REFERRED = (
    "select store_fname, max(file_size), min(file_size) from ir_attachment where store_fname is not null group by 1"
)
_ELSEWHERE = (
    "select count(*) filter (where store_fname <> '' and not (store_fname ~ '^[0-9a-f]{2,3}/[0-9a-f]{40}$'"
    "  and starts_with(split_part(store_fname, '/', 2), split_part(store_fname, '/', 1)))),"
    " count(*) filter (where coalesce(store_fname, '') = '' and db_datas is not null) from ir_attachment"
)
_TYPED = (
    "select count(*) from pg_attribute where attrelid = to_regclass('ir_attachment') and attname = 'type'"
    " and not attisdropped"
)
_IN_A_CLOUD = "select count(*) from ir_attachment where type = 'cloud_storage'"
_THREADS = 4
_AHEAD = 2000
_BLOCK = 1 << 20


class _Seen(Enum):
    SOUND = "sound"
    ABSENT = "absent"
    OTHER_CONTENT = "other content than its name says"
    OTHER_SIZE = "another size than its row says"
    NO_FILE = "no plain file"


@dataclass(slots=True)
class _Tally:
    """What was found; names are kept only where something is wrong."""

    count: int = 0
    elsewhere: int = 0
    wrong: dict[str, _Seen] = field(default_factory=dict)

    def names(self, *kinds: _Seen) -> list[str]:
        return [name for name, seen in self.wrong.items() if seen in kinds]


def ask_present(component: ComponentName, service: RecoveredService, seconds: float) -> Finding:
    """Ask whether there is a file for each name in the recovered rows."""
    documents = documents_of(service, component)
    tally = _examine(documents, service, seconds, _look)
    absent = [name for name in tally.names(_Seen.ABSENT) if name not in set(documents.missing_in_production)]
    others = tally.names(_Seen.NO_FILE)
    if absent or others:
        return failed(
            f"{len(absent)} of {tally.count} documents are missing, {len(others)} are no plain files:"
            f" {listed([*absent, *others])}",
            value=str(len(absent) + len(others)),
        )
    told = "" if tally.count == documents.expected else f"; the restore expected {documents.expected}"
    return passed(f"{tally.count - len(tally.wrong)} of {tally.count} documents are there{told}", value="0")


def ask_hashes(component: ComponentName, service: RecoveredService, seconds: float) -> Finding:
    """Read every document that the recovered rows refer to: its SHA-1 is its name, its size is the row's."""
    documents = documents_of(service, component)
    tally = _examine(documents, service, seconds, _read)
    known = set(documents.missing_in_production)
    damaged = {name: seen for name, seen in tally.wrong.items() if seen is not _Seen.ABSENT and name not in known}
    if damaged:
        how = ", ".join(dict.fromkeys(seen.value for seen in damaged.values()))
        return failed(
            f"{len(damaged)} of {tally.count} documents are damaged ({how}): {listed([*damaged])}",
            value=str(len(damaged)),
        )
    return passed(f"{tally.count - len(tally.wrong)} documents have the content that their name says", value="0")


def ask_missing_in_production(component: ComponentName, service: RecoveredService, _: float) -> Finding:
    """Tell which documents production itself had lost or spoilt before the snapshot, here again or not."""
    documents = documents_of(service, component)
    gone, back = list(documents.missing_in_production), list(documents.recovered_from_older)
    told = []
    if gone:
        told.append(f"production had no good copy of {len(gone)} documents: {listed(gone)}")
    if back:
        told.append(
            f"{len(back)} documents were lost or damaged in production and recovered from an older snapshot:"
            f" {listed(back)}"
        )
    if told:
        return failed("; ".join(told), value=str(len(gone) + len(back)))
    return passed("production had a good copy of every document", value="0")


def ask_covered(component: ComponentName, service: RecoveredService, seconds: float) -> Finding | NotApplicable:
    """Count attachments whose content is not in the filestore: in a bucket, or inside the database."""
    documents = documents_of(service, component)
    with _rows_of(documents, service, seconds) as source:
        named, inside = source.answer(_ELSEWHERE)
        in_a_cloud = source.answer(_IN_A_CLOUD)[0] if source.answer(_TYPED) == ("1",) else "0"
    told = f"{inside} attachments are inside the database"
    elsewhere = int(named or 0) + int(in_a_cloud or 0)
    if elsewhere:
        return failed(f"{elsewhere} attachments are kept elsewhere and are not covered; {told}", value=str(elsewhere))
    return passed(f"no attachment is kept elsewhere; {told}", value="0")


def documents_of(service: RecoveredService, component: ComponentName) -> RecoveredDocuments:
    """Return recovered files.

    Raises:
        UnansweredError: they did not come back.
    """
    found = service.documents.get(component)
    if found is None:
        raise UnansweredError(f"{component} was not recovered")
    return found


def ask_files(component: ComponentName, service: RecoveredService, _: float) -> Finding:
    """Ask whether as many files of a plain folder are there as its snapshot has."""
    documents = documents_of(service, component)
    present = _count_files(documents.root)
    wrong = [*documents.missing, *documents.corrupt]
    if wrong:
        return failed(f"{len(wrong)} of {documents.expected} files are missing or damaged: {listed(wrong)}")
    if present < documents.expected:
        return failed(f"{present} files are there, {documents.expected} were expected")
    return passed(f"{present} files are there")


def ask_content(_component: ComponentName, _service: RecoveredService, _: float) -> NotApplicable:
    """Tell what nobody can ask of a plain folder: nothing in it says what its files have to be."""
    return NotApplicable(
        reason="the content of a plain folder is compared with nothing but the hashes of its chunks, while it is placed"
    )


def _count_files(root: Path) -> int:
    """Count the plain files below a folder, links not followed."""
    count, folders = 0, [root]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(Path(entry.path))
                else:
                    count += entry.is_file(follow_symlinks=False)
    return count


_Examiner: TypeAlias = Callable[[int, str], tuple[_Seen, int]]


def _examine(documents: RecoveredDocuments, service: RecoveredService, seconds: float, examiner: _Examiner) -> _Tally:
    """Look at the file of every row, in bounded memory; the rows are listed by the recovered database."""
    tally = _Tally()
    root = os.open(documents.root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        with _rows_of(documents, service, seconds) as source, ThreadPoolExecutor(_THREADS) as pool:
            rows = source.scan(_REFERRED)
            while batch := list(islice(rows, _AHEAD)):
                known = [row for row in batch if row[0] is not None and is_document(row[0])]
                tally.count += len(known)
                tally.elsewhere += len(batch) - len(known)
                seen = pool.map(lambda row: examiner(root, str(row[0])), known)
                for (name, most, least), (state, size) in zip(known, seen, strict=True):
                    sizes = {text for text in (most, least) if text is not None}
                    if state is _Seen.SOUND and sizes - {str(size)}:
                        state = _Seen.OTHER_SIZE  # noqa: PLW2901 - the row decides what was seen
                    if state is not _Seen.SOUND:
                        tally.wrong[str(name)] = state
    finally:
        os.close(root)
    return tally


@contextmanager
def _rows_of(documents: RecoveredDocuments, service: RecoveredService, seconds: float) -> Iterator[Asking]:
    if documents.follows is None or documents.database is None:
        raise UnansweredError(f"{documents.component} follows no database")
    recovered = database_of(service, documents.follows)
    with ask_recovered(recovered, seconds=seconds, database=documents.database) as source:
        yield source


def _enter(root: int, folder: str) -> int | _Seen:
    """Open a document's folder, or tell what is wrong with it; a link is none."""
    try:
        return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=root)
    except FileNotFoundError:
        return _Seen.ABSENT
    except NotADirectoryError:
        return _Seen.NO_FILE


def _look(root: int, name: str) -> tuple[_Seen, int]:
    folder, _, base = name.partition("/")
    inside = _enter(root, folder)
    if isinstance(inside, _Seen):
        return inside, 0
    try:
        facts = os.stat(base, dir_fd=inside, follow_symlinks=False)
    except FileNotFoundError:
        return _Seen.ABSENT, 0
    finally:
        os.close(inside)
    return (_Seen.SOUND if stat.S_ISREG(facts.st_mode) else _Seen.NO_FILE), facts.st_size


def _read(root: int, name: str) -> tuple[_Seen, int]:
    folder, _, base = name.partition("/")
    inside = _enter(root, folder)
    if isinstance(inside, _Seen):
        return inside, 0
    try:
        # Non-blocking: opening a pipe that nobody writes to would wait for ever.
        descriptor = os.open(base, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=inside)
    except FileNotFoundError:
        return _Seen.ABSENT, 0
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.ENXIO}:  # a link, a socket
            return _Seen.NO_FILE, 0
        raise
    finally:
        os.close(inside)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        return _Seen.NO_FILE, 0
    with open(descriptor, "rb", buffering=0) as stream:  # noqa: PTH123 - a descriptor has no path
        digest, size = hashlib.sha1(usedforsecurity=False), 0
        while block := stream.read(_BLOCK):
            digest.update(block)
            size += len(block)
    return (_Seen.SOUND if digest.digest() == sha1_of_name(name) else _Seen.OTHER_CONTENT), size
