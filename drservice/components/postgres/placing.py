"""Placing a snapshot of a cluster as a data directory that PostgreSQL will recover, and only so.

Order: files, ``backup_label``, ``recovery.signal``, everything durable, and last ``pg_control`` under a temporary name
and renamed: a directory without it does not start, so an interrupted restore can never be taken for a whole one. No
``tablespace_map`` is written: PostgreSQL would make links to production's paths of it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from drservice.components.postgres.controlfile import CONTROL_PATH, ControlFile, parse_control
from drservice.components.postgres.existing import UNPROVEN, Existing, set_aside
from drservice.components.postgres.recovery import strip_stale_settings
from drservice.components.postgres.tablespaces import InsideOf, Moved, OutsideOf, require_room
from drservice.errors import FormatError, RecoveryError, TargetDirectoryError
from drservice.model.wal import Timeline
from drservice.objectstore.interface import ObjectStore
from drservice.processes import Account, files_as
from drservice.repository.descent import open_below
from drservice.repository.nodes import RESTORE_MARKER
from drservice.repository.placing import Onto, Placed, PlacingProgress, place_files
from drservice.repository.reader import SnapshotReader
from drservice.repository.records import Scope
from drservice.repository.target import sync_folder, sync_opened, write_error

_AUTO_CONF = "postgresql.auto.conf"
_TEMPORARY = "pg_control.drservice"
_OURS = frozenset({f"global/{UNPROVEN}".encode(), RESTORE_MARKER})


def require_empty(target: Path) -> None:
    """Refuse a target that is not a new or empty directory.

    Raises:
        TargetDirectoryError: naming what is in the way, or why it cannot be looked at.
    """
    try:
        if target.is_symlink() or (target.exists() and not target.is_dir()):
            raise TargetDirectoryError(f"{target} is no directory")
        first = next(target.iterdir(), None) if target.is_dir() else None
    except OSError as error:
        raise TargetDirectoryError(
            f"cannot look at {target}: {error.strerror}", hint="Give --into a folder that this user may read and write."
        ) from error
    if first is not None:
        raise TargetDirectoryError(f"{target} is not empty (it holds {first.name})")


def place_cluster(
    reader: SnapshotReader,
    target: Path,
    *,
    open_store: Callable[[], ObjectStore],
    scope: Scope,
    secrets: Sequence[tuple[str, bytes]],
    account: Account | None,
    workers: int,
    progress: PlacingProgress,
    wanted: Callable[[bytes], bool] | None = None,
    onto: Existing | None = None,
    tablespaces: Sequence[Moved] = (),
) -> tuple[ControlFile, Placed]:
    """Restore a cluster's files into ``target``: new or empty, or with ``onto`` a data directory of the same cluster.

    With ``wanted`` the content of other files is left out: they are zeros at full size, because replay must find them.

    Onto an existing directory only what differs is fetched and written (a delta restore). First ``pg_control`` is set
    aside, durably: from then on no server starts there until :func:`finish_cluster` has put the new one in place, and
    a restore that was interrupted is completed by the next one, as is one into a new directory. What the snapshot does
    not have is removed: files, databases created later, and the content of ``pg_wal``. Whoever wants WAL from there
    saves it before. A link in the place of a folder (``pg_wal`` on another disk) is removed and what it leads to is
    left as it is; links below ``pg_tblspc`` likewise.

    Extra tablespaces lie below ``pg_tblspc``, those in ``tablespaces`` in folders of their own (new or empty).

    Raises:
        TargetDirectoryError: it is not empty, or not the directory that was examined; nothing was written.
        ServerRunningError: a server was started on it meanwhile; nothing was written.
        DamagedObjectError, MissingObjectError, RecoveryError: the directory is incomplete and has no ``pg_control``.
    """
    if tablespaces:
        require_room(reader, target if onto is None else None, tablespaces)
    if onto is None:
        require_empty(target)
        make_target(target, account)
    place = partial(
        place_files,
        open_store=open_store,
        scope=scope,
        secrets=secrets,
        account=account,
        workers=workers,
        progress=progress,
    )
    placed = place(
        reader.seen_through(OutsideOf(moved=tuple(tablespaces))) if tablespaces else reader,
        target,
        hold_back=frozenset({CONTROL_PATH.encode()}),
        wanted=wanted,
        onto=None if onto is None else Onto(left_alone=_OURS),
        begin=partial(_mark, reader, target, account) if onto is None else partial(set_aside, onto),
    )
    raw = placed.held_back.get(CONTROL_PATH.encode())
    if raw is None:
        raise FormatError(f"snapshot {reader.record.id} has no pg_control")
    for item in tablespaces:
        placed = _with(placed, _place_inside(place, reader, item, wanted, account))
    return parse_control(raw), placed


def _place_inside(
    place: Callable[..., Placed],
    reader: SnapshotReader,
    item: Moved,
    wanted: Callable[[bytes], bool] | None,
    account: Account | None,
) -> Placed:
    """Place a tablespace into the folder that was named for it, durably."""
    make_target(item.folder, account)
    inside = InsideOf(oid=item.oid)
    part = place(
        reader.seen_through(inside),
        item.folder,
        hold_back=frozenset(),
        wanted=None if wanted is None else partial(_wanted_below, wanted, inside.prefix),
    )
    sync_folder(item.folder)
    return part


def _with(placed: Placed, part: Placed) -> Placed:
    return replace(
        placed,
        files=placed.files + part.files,
        directories=placed.directories + part.directories,
        written_bytes=placed.written_bytes + part.written_bytes,
        fetched_bytes=placed.fetched_bytes + part.fetched_bytes,
    )


def _wanted_below(wanted: Callable[[bytes], bool], prefix: bytes, path: bytes) -> bool:
    return wanted(prefix + path)


def finish_cluster(
    reader: SnapshotReader,
    target: Path,
    placed: Placed,
    *,
    account: Account | None,
    control_file: Path | None = None,
    keep: frozenset[str] = frozenset(),
) -> tuple[str, ...]:
    """Add ``backup_label`` and ``recovery.signal``, make all durable, and put ``pg_control`` in place last.

    Args:
        reader: the snapshot.
        target: where it was placed.
        placed: what was placed.
        account: owner of what is made (as root).
        control_file: a new file that gets the content of ``pg_control`` instead; what was set aside stays so.
        keep: settings in ``postgresql.auto.conf`` that stay although they are stale in a copy.

    Returns:
        Names of stale settings that were taken out of ``postgresql.auto.conf`` (trap T30).

    Raises:
        FormatError: the snapshot has no ``backup_label``.
        RecoveryError: the folder cannot be written; it has no ``pg_control``.
    """
    attachments = reader.secret.attachments
    if "backup_label" not in attachments:
        raise FormatError(f"snapshot {reader.record.id} has no backup_label: starting it would corrupt the cluster")
    with _opened(target) as root, files_as(account):
        _write(root, "backup_label", attachments["backup_label"])
        _write(root, "recovery.signal", b"")
        removed = _strip_auto_conf(root, keep)
        sync_opened(root, target)
        if control_file is not None:
            with _opened(control_file.parent) as folder:
                _write(folder, control_file.name, placed.held_back[CONTROL_PATH.encode()])
            return removed
        with _writing("global/pg_control"), open_below(root, b"global") as inside:
            with suppress(FileNotFoundError):
                os.unlink(_TEMPORARY, dir_fd=inside)
            _write(inside, _TEMPORARY, placed.held_back[CONTROL_PATH.encode()])
            os.rename(_TEMPORARY, "pg_control", src_dir_fd=inside, dst_dir_fd=inside)
            for mark, folder in ((UNPROVEN.encode(), inside), (RESTORE_MARKER, root)):
                with suppress(FileNotFoundError):
                    os.unlink(mark, dir_fd=folder)
        sync_opened(root, target)
    return removed


def _mark(reader: SnapshotReader, target: Path, account: Account | None) -> None:
    """Say in the folder whose it is to be, so that a restore that was interrupted can be gone on with."""
    with _opened(target) as root, files_as(account):
        _write(root, RESTORE_MARKER.decode(), f"{reader.record.postgres.system_id}\n".encode())


def announce_history(target: Path, timeline: Timeline, *, account: Account | None) -> None:
    """Have the history of the timeline that recovery promoted to archived as soon as this cluster archives again.

    It promoted with ``archive_mode=off``, so PostgreSQL noted nothing (``XLogArchiveNotify`` in xlogarchive.c); without
    the history in the archive, WAL of the new timeline leads nowhere. The folder belonged to a server that may be
    hostile: no link is followed.

    Raises:
        RecoveryError: it cannot be noted.
    """
    name = f"{timeline:08X}.history.ready"
    folders = [os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)]
    try:
        for step in ("pg_wal", "archive_status"):
            folders.append(
                os.open(step, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folders[-1])
            )
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(name, flags, 0o600, dir_fd=folders[-1])
        try:
            if account is not None:
                os.fchown(descriptor, account.uid, account.gid)
        finally:
            os.close(descriptor)
        os.fsync(folders[-1])
    except OSError as error:
        raise RecoveryError(
            f"cannot note in {target} that the history of timeline {timeline} is to be archived: {error.strerror}"
        ) from error
    finally:
        for descriptor in folders:
            os.close(descriptor)


def make_target(target: Path, account: Account | None) -> None:
    """Make a folder that is closed to everybody but its owner.

    Raises:
        RecoveryError: it cannot be made.
    """
    with _writing(str(target)):
        target.mkdir(parents=True, exist_ok=True)
        target.chmod(0o700)
        if account is not None:
            os.chown(target, account.uid, account.gid)


def _strip_auto_conf(root: int, keep: frozenset[str]) -> tuple[str, ...]:
    with _writing(_AUTO_CONF):
        try:
            descriptor = os.open(_AUTO_CONF, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=root)
        except FileNotFoundError:
            return ()
        with os.fdopen(descriptor, "rb") as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise RecoveryError(f"{_AUTO_CONF} was exchanged for something that is no file")
            content = stream.read()
        stripped = strip_stale_settings(content.decode("utf-8", "surrogateescape"), keep=keep)
        if stripped.removed:
            os.unlink(_AUTO_CONF, dir_fd=root)
            _write(root, _AUTO_CONF, stripped.text.encode("utf-8", "surrogateescape"))
    return stripped.removed


def _write(folder: int, name: str, content: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with _writing(name), os.fdopen(os.open(name, flags, 0o600, dir_fd=folder), "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


@contextmanager
def _opened(target: Path) -> Iterator[int]:
    with _writing(str(target)):
        descriptor = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _writing(name: str) -> Iterator[None]:
    """Translate what the system refuses while ``name`` is made: no space, read-only, not permitted."""
    try:
        yield
    except OSError as error:
        raise write_error(os.fsencode(name), error) from error
