"""Capturing what is no folder by itself: clones and a Redis are prepared in a private folder and captured from there.

What cannot be had costs the snapshot its wholeness and nothing else: it is partial and says why, the clusters'
snapshots stand, and so does the recovery point.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from datetime import datetime

from drservice.clock import Clock
from drservice.components.git.capture import prepare_clones
from drservice.components.odoo_filestore.capture import CapturedFiles, capture_files
from drservice.components.prepared import PreparedFolder, prepared_folder
from drservice.components.redis.client import RedisServer
from drservice.components.redis.rdb import check_rdb
from drservice.credentials import resolve
from drservice.errors import CaptureError, RedisError, SecretError
from drservice.model.estate import FilesSettings, GitSettings, RedisSettings, Service
from drservice.operations.backup import BackupContext
from drservice.repository.folders import ByteProgress
from drservice.repository.writer import SnapshotWriter

DUMP = "dump.rdb"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What could not be prepared, by name with the reason, and what is to be told of the rest."""

    unreadable: tuple[tuple[bytes, str], ...] = ()
    notes: tuple[str, ...] = ()


def capture_prepared(
    context: BackupContext, writer: SnapshotWriter, service: Service, component: GitSettings | RedisSettings
) -> tuple[CapturedFiles, tuple[str, ...]]:
    """Prepare clones or a Redis and take them into a snapshot; return what was captured, and notes.

    Raises:
        CaptureError: the private folder cannot be made, or was exchanged.
        ProgramMissingError: git is not installed.
        ObjectStoreError: nothing partial is visible.
    """
    name = f"{service.name}.{component.name}"
    began = context.clock.now()
    with prepared_folder(context.state_dir, name) as folder:
        try:
            if isinstance(component, GitSettings):
                prepared = _prepare_git(component, folder, name)
            else:
                prepared = _prepare_redis(component, folder, context.progress)
        except OSError as error:
            raise CaptureError(f"{component.name} cannot be prepared in {folder.path}: {error.strerror}") from error
        folder.require_own_name()
        captured = _capture(writer, component, folder, clock=context.clock, progress=context.progress)
        folder.require_own_name()
    record = replace(captured.record, unreadable=(*prepared.unreadable, *captured.record.unreadable))
    return _since(began, replace(captured, record=record)), prepared.notes


def _since(began: datetime, captured: CapturedFiles) -> CapturedFiles:
    """What was made after this instant may be missing, however long it took to prepare the rest."""
    return replace(captured, started_at=began)


def _capture(
    writer: SnapshotWriter,
    component: GitSettings | RedisSettings,
    folder: PreparedFolder,
    *,
    clock: Clock,
    progress: ByteProgress,
) -> CapturedFiles:
    as_folder = FilesSettings(
        name=component.name,
        kind=component.kind,
        path=folder.path,
        workers=component.workers,
        compression_level=component.compression_level,
    )
    return capture_files(writer, component=as_folder, referred=None, clock=clock, progress=progress)


def _prepare_git(component: GitSettings, folder: PreparedFolder, name: str) -> Prepared:
    prepared = prepare_clones(component.clones, folder, name=name)
    notes = [record.describe() for record in prepared.records]
    notes += [f"{record.folder}: {note}" for record in prepared.records for note in record.notes]
    return Prepared(unreadable=prepared.unreadable, notes=tuple(notes))


def _prepare_redis(component: RedisSettings, folder: PreparedFolder, progress: ByteProgress) -> Prepared:
    name = DUMP.encode()
    try:
        password = resolve(component.password) if component.password is not None else None
        with (
            RedisServer(component.url, password=password, ca_file=component.ca_file) as server,
            os.fdopen(folder.create(name), "w+b") as file,
        ):
            server.copy_to(file, heard=progress.advance)
            facts = check_rdb(file)
    except (RedisError, SecretError) as error:
        folder.remove_file(name)
        return Prepared(unreadable=((name, error.message),))
    checked = "its sum is right" if facts.has_sum else "the server writes no sum into it"
    return Prepared(notes=(f"an RDB of version {facts.version}, {facts.size} bytes; {checked}",))
