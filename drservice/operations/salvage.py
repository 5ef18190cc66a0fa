"""Saving the WAL that only a data directory has, before anything is written over it (document 04, Recovery 3).

After a crash the last commits are in ``pg_wal`` and nowhere else. Whole segments go into the archive under their names;
the one that was being written goes there as ``.partial``, as PostgreSQL itself does at the end of a timeline: it cannot
collide with the whole one, should that ever come, and a restore to the latest position replays it. Only what the
archive does not have is read. The folder was written by a server that may be hostile: no link is followed, and every
file has to be what its name says.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from drservice.components.postgres.walfile import HEAD_BYTES, SMALL_FILE_BYTES, check_wal_file
from drservice.errors import DrError, ForeignSegmentError, SegmentConflictError, WalError
from drservice.model.ids import SystemId
from drservice.model.wal import Timeline, WalFileKind, WalFileName, segment_number
from drservice.operations.progress import Progress
from drservice.repository.walarchive import WalArchive

_WORKERS = 4
_PARTIAL = ".partial"
_STATUS = "archive_status"


@dataclass(frozen=True, slots=True, kw_only=True)
class Salvageable:
    """A file in ``pg_wal`` that the archive does not have, or not under the eyes of the server."""

    file: str
    """Its name in the folder."""
    name: WalFileName
    """The name it is archived under."""
    bytes: int

    @property
    def is_partial(self) -> bool:
        """Whether it is archived as the unfinished last segment of its timeline."""
        return self.name.kind is WalFileKind.PARTIAL

    def describe(self) -> str:
        """Return it in words."""
        return f"{self.file} (still being written, as {self.name.name})" if self.is_partial else self.file


@dataclass(frozen=True, slots=True, kw_only=True)
class Unsaved:
    """A file that could not be archived, and why."""

    item: Salvageable
    error: DrError


@dataclass(frozen=True, slots=True, kw_only=True)
class Salvaged:
    """What became of the files."""

    saved: tuple[Salvageable, ...]
    unsaved: tuple[Unsaved, ...]


def find_salvageable(
    folder: Path, *, archived: Mapping[str, object], system_id: SystemId, segment_bytes: int, oldest_needed: int
) -> tuple[Salvageable, ...]:
    """Return what of a ``pg_wal`` folder has to be archived, histories first, then in the order of the WAL.

    A segment is whole if PostgreSQL marked it so or went on to the next one: it writes the first page of a segment only
    after the one before is durable. A name alone proves nothing: segments are recycled under names to come.

    Args:
        folder: ``pg_wal``.
        archived: what the archive has, by name.
        system_id: the cluster it must belong to.
        segment_bytes: of the cluster.
        oldest_needed: segments with a lower number serve no snapshot.

    Raises:
        WalError: the folder cannot be read.
    """
    try:
        with _Folder(folder) as opened:
            return _decide(
                opened,
                archived=archived,
                system_id=system_id,
                segment_bytes=segment_bytes,
                oldest_needed=oldest_needed,
            )
    except OSError as error:
        raise WalError(
            f"cannot read {folder}: {error.strerror}",
            hint="What is in it may be in no archive. Nothing was changed; make it readable and run again.",
        ) from error


def _decide(
    opened: _Folder, *, archived: Mapping[str, object], system_id: SystemId, segment_bytes: int, oldest_needed: int
) -> tuple[Salvageable, ...]:
    found: list[Salvageable] = []
    newest: dict[int, int] = {}
    segments: list[tuple[WalFileName, int]] = []
    for name, size in opened.files():
        is_archived = name.name in archived and opened.status(name) == "done"
        try:
            check_wal_file(name.name, opened.head(name, size), size, expected_system_id=system_id)
        except ForeignSegmentError:
            if opened.status(name) == "ready":  # PostgreSQL wrote it, so it is damaged: nobody may take it for nothing
                found.append(Salvageable(file=name.name, name=name, bytes=size))
            continue  # recycled, or another's: nothing of this cluster's WAL is in it
        if name.kind is not WalFileKind.SEGMENT:
            if not is_archived and name.kind is not WalFileKind.BACKUP:
                found.append(Salvageable(file=name.name, name=name, bytes=size))
            continue
        number = segment_number(name.name, segment_bytes)
        newest[name.timeline] = max(number, newest.get(name.timeline, number))
        if number >= oldest_needed and not is_archived:
            segments.append((name, number))
    for name, number in segments:
        whole = name.name in archived or number < newest[name.timeline] or opened.status(name) is not None
        stored = name if whole else WalFileName.parse(f"{name.name}{_PARTIAL}")
        found.append(Salvageable(file=name.name, name=stored, bytes=segment_bytes))
    return tuple(sorted(found, key=lambda item: (item.name.kind is not WalFileKind.HISTORY, item.name.name)))


def salvage(
    folder: Path,
    items: Sequence[Salvageable],
    archive: WalArchive,
    *,
    archived: Mapping[str, object],
    system_id: SystemId,
    progress: Progress,
) -> Salvaged:
    """Archive what was found; each file that is named as saved is durable and verified in the store.

    First what the archive has under the same names is compared. A timeline that differs there is another one than this
    directory's (two copies promoted to one number, trap T16): nothing of it is added, so that what belongs together is
    never mixed. Any other file that cannot be archived does not keep the others from it; once the store does not
    answer, no more is tried.

    Args:
        folder: where the files are.
        items: the files.
        archive: of the cluster.
        archived: what it has, by name.
        system_id: the cluster they must belong to.
        progress: hears of each.
    """
    away: list[DrError] = []
    foreign: dict[Timeline, DrError] = {}

    def push(item: Salvageable) -> DrError | None:
        if away:
            return away[0]
        if item.name.timeline in foreign:
            return _of_another(item, foreign[item.name.timeline])
        try:
            _push(opened, item, archive, system_id)
        except (ForeignSegmentError, SegmentConflictError) as error:
            return error
        except DrError as error:
            away.append(error)
            return error
        return None

    progress.step("salvage WAL", total_items=len(items))
    errors: dict[Salvageable, DrError | None] = {}
    compared = [item for item in items if item.name.name in archived and not item.is_partial]
    added = [item for item in items if item not in compared]
    with _Folder(folder) as opened, ThreadPoolExecutor(_WORKERS, thread_name_prefix="salvage") as pool:
        for part in (compared, added):
            for item, error in zip(part, pool.map(push, part), strict=True):
                errors[item] = error
                progress.advance(1)
            foreign.update(
                (item.name.timeline, error)
                for item, error in errors.items()
                if isinstance(error, SegmentConflictError) and item.name.timeline not in foreign
            )
    return Salvaged(
        saved=tuple(item for item in items if errors[item] is None),
        unsaved=tuple(Unsaved(item=item, error=error) for item in items if (error := errors[item]) is not None),
    )


def _of_another(item: Salvageable, conflict: DrError) -> DrError:
    return SegmentConflictError(
        f"timeline {item.name.timeline} in the archive is not the one of this directory ({conflict.message})"
    )


def _push(opened: _Folder, item: Salvageable, archive: WalArchive, system_id: SystemId) -> None:
    try:
        data, last_write = opened.content(item.file)
    except OSError as error:
        raise WalError(f"cannot read {item.file}: {error.strerror}") from error
    # What is pushed is looked at as a whole: the decision was made by what it was then.
    check_wal_file(item.name.name, data, len(data), expected_system_id=system_id)
    put = archive.put_partial if item.is_partial else archive.put
    put(item.name, data, system_id=system_id, last_write=last_write)


class _Folder:
    """``pg_wal``, opened once; everything in it is named from there."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1
        self._marks: frozenset[str] = frozenset()

    def __enter__(self) -> Self:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        self._descriptor = os.open(self._path, flags)
        try:
            status = os.open(_STATUS, flags, dir_fd=self._descriptor)
        except FileNotFoundError:
            return self
        try:
            self._marks = frozenset(os.listdir(status))  # noqa: PTH208  # of a descriptor
        finally:
            os.close(status)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def files(self) -> Iterator[tuple[WalFileName, int]]:
        """Yield every plain file that has the name of a WAL file, and its size."""
        for entry in sorted(os.listdir(self._descriptor)):  # noqa: PTH208  # of a descriptor
            try:
                name = WalFileName.parse(entry)
            except ValueError:
                continue
            facts = os.stat(entry, dir_fd=self._descriptor, follow_symlinks=False)
            if stat.S_ISREG(facts.st_mode):
                yield name, facts.st_size

    def status(self, name: WalFileName) -> str | None:
        """Return how the server marked a file for its archiver: ``ready``, ``done`` or not at all."""
        return next((mark for mark in ("done", "ready") if f"{name.name}.{mark}" in self._marks), None)

    def head(self, name: WalFileName, size: int) -> bytes:
        """Return as much of a file as tells what it is."""
        small = name.kind in {WalFileKind.HISTORY, WalFileKind.BACKUP}
        descriptor = self._open(name.name)
        try:
            return os.read(descriptor, min(size, SMALL_FILE_BYTES) if small else HEAD_BYTES)
        finally:
            os.close(descriptor)

    def content(self, name: str) -> tuple[bytes, datetime]:
        """Return a file's bytes and when it was last written."""
        with os.fdopen(self._open(name), "rb") as stream:
            last_write = datetime.fromtimestamp(os.fstat(stream.fileno()).st_mtime, tz=UTC)
            return stream.read(), last_write

    def _open(self, name: str) -> int:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        return os.open(name, flags, dir_fd=self._descriptor)
