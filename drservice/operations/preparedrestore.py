"""Bringing back clones and the content of a Redis: what was stored is placed aside, made into what it was, and checked.

Under the target's name there is everything or nothing, as with every restore.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from drservice.components.git.rebuilding import rebuild_clones
from drservice.components.odoo_filestore.placing import PlaceContext, PlacedFolder, place_folder
from drservice.components.odoo_filestore.record import document_record
from drservice.components.postgres.placing import require_empty
from drservice.components.redis.rdb import RdbFacts, check_rdb
from drservice.errors import RecoveryError, RedisDumpError
from drservice.model.estate import FilesComponent, GitSettings, RedisRestore, RedisSettings
from drservice.model.snapshot import SnapshotRecord, SnapshotState
from drservice.operations.preparedbackup import DUMP
from drservice.processes import Account
from drservice.repository.reader import SnapshotReader
from drservice.repository.target import sync_folder, write_error

_CLOSED = 0o700


def is_flushed(component: FilesComponent) -> bool:
    """Tell whether nothing of it is relied upon: a Redis that begins empty after a restore."""
    return isinstance(component, RedisSettings) and component.restore is RedisRestore.FLUSH


def usable(component: FilesComponent, records: Sequence[SnapshotRecord]) -> Sequence[SnapshotRecord]:
    """Leave out snapshots that have nothing: of a Redis that was away when it was to be captured."""
    if isinstance(component, RedisSettings) and not is_flushed(component):
        return [record for record in records if record.state is not SnapshotState.PARTIAL]
    return records


def place_prepared(
    context: PlaceContext, component: GitSettings | RedisSettings, snapshot: SnapshotRecord, root: Path
) -> tuple[PlacedFolder, tuple[str, ...], tuple[str, ...]]:
    """Place clones or the file of a Redis under ``root``; return what was placed, notes, and what is lacking.

    Raises:
        TargetDirectoryError: the target is in use; nothing was written.
        GitCloneError, GitMismatchError, RedisDumpError: what was stored is not what it should be.
        DocumentsDamagedError, RecoveryError, FormatError, ObjectStoreError: nothing is under the target's name.
    """
    require_empty(root)
    if isinstance(component, GitSettings):
        return _place_clones(context, snapshot, root)
    if is_flushed(component):
        _make_empty(root, context.account)
        nothing = PlacedFolder(files=0, folders=0, links=0, written_bytes=0, fetched_bytes=0)
        return nothing, (f"{component.name} begins empty, as `restore: flush` says: nothing was placed",), ()
    return _place_dump(context, snapshot, root)


def _place_clones(
    context: PlaceContext, snapshot: SnapshotRecord, root: Path
) -> tuple[PlacedFolder, tuple[str, ...], tuple[str, ...]]:
    with _aside(root, context.account) as work:
        placed = place_folder(context, snapshot.id, work / "stored")
        made = work / "made"
        _make_empty(made, context.account)
        records = rebuild_clones(work / "stored", made, account=context.account)
        _put_in_place(made, root)
    notes = [record.describe() for record in records]
    notes += [f"{record.folder}: {note}" for record in records for note in record.notes]
    lacking = [
        f"the clone {os.fsdecode(path)} is not in the snapshot: {why}" for path, why in _lacking(context, snapshot)
    ]
    return placed, tuple(notes), tuple(lacking)


def _place_dump(
    context: PlaceContext, snapshot: SnapshotRecord, root: Path
) -> tuple[PlacedFolder, tuple[str, ...], tuple[str, ...]]:
    with _aside(root, context.account) as work:
        placed = place_folder(context, snapshot.id, work / "stored")
        try:
            facts = check_stored_dump(work / "stored" / DUMP)
        except FileNotFoundError:
            raise RedisDumpError(f"snapshot {snapshot.id} has no {DUMP}") from None
        _put_in_place(work / "stored", root)
    note = (
        f"start Redis with `dir {root}` and `dbfilename {DUMP}` (RDB version {facts.version}); with `appendonly yes` it"
        " would ignore the file: switch that on afterwards with CONFIG SET"
    )
    return placed, (note,), ()


def check_stored_dump(path: Path) -> RdbFacts:
    """Look at the file as it was placed; a link of a hostile snapshot would have a Redis read something else here."""
    if not stat.S_ISREG(path.lstat().st_mode):
        raise RedisDumpError(f"what the snapshot has as {path.name} is no plain file")
    with path.open("rb") as file:
        return check_rdb(file)


def _lacking(context: PlaceContext, snapshot: SnapshotRecord) -> tuple[tuple[bytes, str], ...]:
    if snapshot.state is not SnapshotState.PARTIAL:
        return ()
    repository, scope = context.repository, context.scope
    opened = repository.open_snapshot(scope, snapshot.id)
    reader = SnapshotReader(repository.store, scope=scope, keyring=repository.keyring, opened=opened)
    return document_record(reader).unreadable


@contextmanager
def _aside(root: Path, account: Account | None) -> Iterator[Path]:
    """Make a private folder beside the target, on its file system, and remove it afterwards.

    Raises:
        RecoveryError: it cannot be made, or what was made in it cannot be put in place.
    """
    work = root.parent / f".{root.name}.drservice-{os.getpid()}-{os.urandom(4).hex()}"
    try:
        _make_empty(work, account)
        yield work
    except OSError as error:
        raise write_error(os.fsencode(error.filename or work), error) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _make_empty(folder: Path, account: Account | None) -> None:
    try:
        folder.mkdir(mode=_CLOSED, exist_ok=True)
        if account is not None:
            os.chown(folder, account.uid, account.gid, follow_symlinks=False)
    except OSError as error:
        raise RecoveryError(f"{folder} cannot be made: {error.strerror}") from error


def _put_in_place(made: Path, root: Path) -> None:
    sync_folder(made)
    made.rename(root)
    sync_folder(root.parent)
