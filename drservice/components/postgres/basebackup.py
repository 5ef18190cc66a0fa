"""Capturing a cluster remotely, with a REPLICATION role only: method ``pg_basebackup``.

The program's tar goes from the pipe straight into the repository; nothing is spooled. A cluster that has extra
tablespaces, or may have some, is read over the program's protocol instead (``basestream``). The server verifies page
checksums itself and reports bad pages on the way; the backup manifest, last in the stream, tells where the backup began
and ended.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import IO

from drservice import processes
from drservice.clock import Clock
from drservice.components.postgres.backupsession import CheckpointSpeed, promoted
from drservice.components.postgres.basestream import BaseBackup, audible, open_base_backup
from drservice.components.postgres.capture import CHUNK_BYTES, Captured
from drservice.components.postgres.connection import connect
from drservice.components.postgres.controlfile import CONTROL_PATH, ControlFile, parse_control, poisoned_copy
from drservice.components.postgres.layout import TABLESPACES, LeftOut, require_state_inside
from drservice.components.postgres.recovery import parse_backup_label
from drservice.components.postgres.replication import SystemIdentity
from drservice.components.postgres.server import require_tool
from drservice.components.postgres.servernotices import FileNotice, read_notice
from drservice.components.postgres.silence import WatchedPipe
from drservice.components.postgres.standby import standby_end
from drservice.components.postgres.tablespaces import MAP_NAME, oid_of, write_map
from drservice.components.postgres.tarstream import TarKind, TarMember, TarStream
from drservice.errors import (
    CaptureError,
    PostgresError,
    PostgresUnreachableError,
    WalTimeoutError,
)
from drservice.model.wal import Lsn, Timeline
from drservice.repository.folders import ByteProgress
from drservice.repository.intake import SourceFile, StreamCapture
from drservice.repository.nodes import FileIdentity
from drservice.repository.writer import SnapshotWriter

_PASSED_ON = re.compile(r"(?:PG[A-Z]+|HOME|USER)\Z")
_LIMIT_BYTES = 1 << 30
_NOBODY = FileIdentity(device=0, inode=0, modified_ns=0, changed_ns=0, read_began_ns=0)


@dataclass(slots=True)
class _Found:
    """What the stream brought besides files."""

    attachments: dict[str, bytes] = field(default_factory=dict)
    manifest: bytes | None = None
    control: ControlFile | None = None
    locations: dict[int, str] = field(default_factory=dict)
    """Where tablespaces lie that are not in place, as their links say."""


def capture_basebackup(
    writer: SnapshotWriter,
    *,
    dsn: str,
    identity: SystemIdentity,
    checkpoint: CheckpointSpeed,
    silence_seconds: float,
    clock: Clock,
    progress: ByteProgress,
    closing: Callable[[], None],
) -> Captured:
    """Stream a base backup of a running server into a snapshot.

    Args:
        writer: takes the files; not committed here.
        dsn: of a role with REPLICATION.
        identity: what the server says about itself.
        checkpoint: fast or spread.
        silence_seconds: how long the stream may pause; at its end the server waits for the archive.
        clock: tells start and end.
        progress: hears of source bytes.
        closing: called when a standby has sent all files: with ``archive_mode = always`` it now waits until its last
            segment is archived, which only the primary can end.

    Raises:
        WalTimeoutError: the stream paused for longer.
        CaptureError: the program failed or the stream is not whole.
        UnsupportedClusterError: the server does not send part of the cluster's own state.
        PostgresError, PostgresUnreachableError: the server refused or was not reached.
    """
    started_at = clock.now()
    found = _Found()
    if _may_have_tablespaces(dsn):
        backup = open_base_backup(dsn, silence_seconds=silence_seconds)
        notices = _take_streams(backup, writer, found, checkpoint=checkpoint, progress=progress, closing=closing)
    else:
        process = _start(identity.server_version // 10000, dsn, checkpoint)
        pipe = WatchedPipe(
            _stdout(process), limit_seconds=silence_seconds, clock=clock, end=lambda: processes.kill_group(process)
        )
        try:
            notices = _take_output(process, pipe, writer, found, progress=progress, closing=closing)
        except CaptureError as error:
            if pipe.fell_silent:
                raise _silence(silence_seconds) from error
            raise
    return _conclude(found, writer, identity, started_at=started_at, clock=clock, notices=notices)


def _stdout(process: subprocess.Popen[bytes]) -> IO[bytes]:
    assert process.stdout is not None
    return process.stdout


def _take_output(
    process: subprocess.Popen[bytes],
    pipe: WatchedPipe,
    writer: SnapshotWriter,
    found: _Found,
    *,
    progress: ByteProgress,
    closing: Callable[[], None],
) -> list[FileNotice]:
    """Take what the program writes, to its end, and return what the server said about single files."""
    assert process.stderr is not None
    messages: list[bytes] = []
    listener = threading.Thread(target=messages.extend, args=(process.stderr,), daemon=True)
    listener.start()
    try:
        try:
            with pipe:
                _take(TarStream(pipe), writer, progress, closing, found=found)
        except CaptureError as error:
            if pipe.fell_silent:
                raise
            # The program's own message says more than "the stream ended early".
            _stdout(process).close()
            process.wait(60)
            listener.join(10)
            raise _failure(b"".join(messages).decode("utf-8", "replace"), error) from error
        status = process.wait()
        listener.join(60)
    finally:
        _end(process, listener)
    return _notices(b"".join(messages).decode("utf-8", "replace"), status)


def _may_have_tablespaces(dsn: str) -> bool:
    """Ask for extra tablespaces; a role that may replicate and nothing else cannot, and is told yes.

    The program leaves tablespaces in place out without a word (tar format, before version 16), so what is not known
    must not be left to it.
    """
    try:
        with connect(dsn, application_name="drservice backup facts") as session:
            return bool(session.row("select count(*) > 2 from pg_tablespace")[0])
    except PostgresError:
        return True


def _take_streams(
    backup: BaseBackup,
    writer: SnapshotWriter,
    found: _Found,
    *,
    checkpoint: CheckpointSpeed,
    progress: ByteProgress,
    closing: Callable[[], None],
) -> list[FileNotice]:
    """Take every archive the server sends and return what it said about single files."""
    with backup:
        served = frozenset(space.oid for space in backup.begin("drservice", checkpoint=checkpoint))
        for oid in served:
            writer.add_directory(f"{TABLESPACES}/{oid}".encode(), 0o700)
        try:
            for space, archive in backup.archives():
                stream = TarStream(archive, is_terminated=backup.is_terminated)
                below = f"{TABLESPACES}/{space.oid}/".encode() if space is not None else b""
                _take(stream, writer, progress, closing, found=found, below=below, served=served)
        except CaptureError as error:
            refusal = backup.refusal()
            if refusal is None:
                raise
            raise refusal from error  # the server's own words say more than "the stream ended early"
        found.manifest = backup.finish()
    if found.locations:
        found.attachments[MAP_NAME] = write_map(found.locations)
    return backup.notices()


def _end(process: subprocess.Popen[bytes], listener: threading.Thread) -> None:
    if process.poll() is None:
        processes.kill_group(process)
        process.wait()
    assert process.stderr is not None
    _stdout(process).close()
    listener.join(10)
    process.stderr.close()


def _silence(seconds: float) -> WalTimeoutError:
    return WalTimeoutError(f"the server was silent for {seconds:g} s: it waits for this backup's WAL to be archived")


def _notices(text: str, status: int) -> list[FileNotice]:
    """Return what the server said about single files; damaged pages alone excuse a status that is not 0."""
    found = [item for item in map(read_notice, text.splitlines()) if item is not None]
    if status != 0 and not (any(item.block is not None for item in found) and "checksum error occurred" in text):
        raise _failure(text, None)
    return found


def _start(major: int, dsn: str, checkpoint: CheckpointSpeed) -> subprocess.Popen[bytes]:
    argv: list[str | Path] = [
        require_tool("pg_basebackup", server=major).path("pg_basebackup"),
        f"--dbname={audible(dsn)}",
        "--pgdata=-",
        "--format=tar",
        "--wal-method=none",
        f"--checkpoint={checkpoint.value}",
        "--label=drservice",
        "--manifest-checksums=none",
        "--no-password",
        "--verbose",
    ]
    return processes.start(argv, environment=_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def _take(
    stream: TarStream,
    writer: SnapshotWriter,
    progress: ByteProgress,
    closing: Callable[[], None],
    *,
    found: _Found,
    below: bytes = b"",
    served: frozenset[int] = frozenset(),
) -> None:
    """Take one archive: of the data directory, or of the tablespace whose place is ``below``."""
    with writer.stream() as capture:
        for member in stream.members():
            if below:
                _take_member(stream, replace(member, path=below + member.path), writer, capture, progress)
            elif member.path in {b"backup_label", b"tablespace_map"}:
                found.attachments[member.path.decode()] = stream.read_all(1 << 20)
            elif member.path == b"RESTORE-INCOMPLETE":
                continue  # the break-glass script's mark of an unfinished restore: no part of the cluster
            elif member.path == b"backup_manifest":
                found.manifest = stream.read_all(_LIMIT_BYTES)
            elif member.path == CONTROL_PATH.encode():
                if _is_of_standby(found):
                    closing()  # before the content: its last bytes may stay in the program's buffer until the end
                raw = stream.read_all(1 << 20)
                found.control = parse_control(raw)
                _add(capture, member.path, member.mode, poisoned_copy(raw))
            elif member.kind is TarKind.LINK and (oid := oid_of(member.path)) is not None:
                if oid not in served:
                    raise CaptureError(f"the base backup has {os.fsdecode(member.path)} without its content")
                found.locations[oid] = os.fsdecode(member.target)
            else:
                _take_member(stream, member, writer, capture, progress)
        stream.drain()
    writer.read_bytes += capture.read_bytes


def _is_of_standby(found: _Found) -> bool:
    """Tell whether the backup's label, which comes first, names a standby."""
    label = found.attachments.get("backup_label")
    return label is not None and parse_backup_label(label).from_standby


def _take_member(
    stream: TarStream, member: TarMember, writer: SnapshotWriter, capture: StreamCapture, progress: ByteProgress
) -> None:
    if member.kind is TarKind.DIRECTORY:
        if member.path:
            writer.add_directory(member.path, member.mode)
    elif member.kind is TarKind.LINK:
        path = os.fsdecode(member.path)
        require_state_inside([LeftOut(path=path, reason=f"symbolic link to {os.fsdecode(member.target)}")])
        raise CaptureError(f"the base backup has a link {path} where a server sends none")
    else:
        source = SourceFile(
            path=member.path,
            absolute="",
            mode=member.mode,
            size=member.size,
            chunk_bytes=CHUNK_BYTES,
            identity=_NOBODY,
        )
        capture.file(source, stream.pieces())
        progress.advance(member.size)


def _add(capture: StreamCapture, path: bytes, mode: int, content: bytes) -> None:
    source = SourceFile(path=path, absolute="", mode=mode, size=len(content), chunk_bytes=CHUNK_BYTES, identity=_NOBODY)
    capture.file(source, iter([memoryview(content)]))


def _conclude(
    found: _Found,
    writer: SnapshotWriter,
    identity: SystemIdentity,
    *,
    started_at: datetime,
    clock: Clock,
    notices: Sequence[FileNotice],
) -> Captured:
    label_raw = found.attachments.get("backup_label")
    if label_raw is None or found.control is None or found.manifest is None:
        raise CaptureError("the base backup lacks backup_label, pg_control or its manifest")
    if found.control.system_id != identity.system_id:
        raise CaptureError("the base backup is of another cluster than the one that was asked")
    left_out = _not_sent(notices, writer)
    require_state_inside(left_out)
    label = parse_backup_label(label_raw)
    timeline, start, stop = _wal_range(found.manifest)
    if start != label.start:
        raise CaptureError(f"manifest ({start}) and backup_label ({label.start}) name different starts")
    if label.from_standby:
        stop = standby_end(found.control, start=start, timeline=timeline)
    lost = writer.recheck()
    if lost:
        raise CaptureError(f"packs of {len(lost)} files vanished from the store while the backup ran")
    return Captured(
        method="pg_basebackup",
        started_at=started_at,
        stopped_at=clock.now(),
        start_lsn=start,
        stop_lsn=stop,
        timeline=timeline,
        control=found.control,
        server_version=identity.server_version // 10000,
        attachments=found.attachments,
        bad_pages=[(os.fsencode(item.path), item.block) for item in notices if item.block is not None],
        notes=tuple(f"left out: {item.path} ({item.reason})" for item in left_out),
        from_standby=label.from_standby,
    )


def _not_sent(notices: Sequence[FileNotice], writer: SnapshotWriter) -> list[LeftOut]:
    """Return what the server named and did not send: it skips links and special files with a warning."""
    named = sorted({item.path for item in notices if item.block is None})
    return [
        LeftOut(path=path, reason="a link or special file, which the server does not send")
        for path in named
        if not writer.has_entry(os.fsencode(path))
    ]


def _wal_range(manifest: bytes) -> tuple[Timeline, Lsn, Lsn]:
    """Return timeline, start and end of the WAL a backup needs (documentation 77, backup manifest format)."""
    try:
        ranges = json.loads(manifest)["WAL-Ranges"]
        first, last = ranges[0], ranges[-1]
        return Timeline(int(last["Timeline"])), Lsn.parse(first["Start-LSN"]), Lsn.parse(last["End-LSN"])
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise CaptureError(f"the backup manifest cannot be read: {error}") from error


def _environment() -> Mapping[str, str]:
    """Pass on what libpq reads (passfile, service file, certificates) and nothing else of the caller's."""
    return processes.clean_environment({name: value for name, value in os.environ.items() if _PASSED_ON.match(name)})


def _failure(text: str, cause: CaptureError | None) -> CaptureError | PostgresError:
    lines = [line for line in text.splitlines() if "error:" in line or "FATAL" in line]
    last = lines[-1].removeprefix("pg_basebackup: ") if lines else (cause.message if cause else "no message")
    if "the standby was promoted during online backup" in text:
        return promoted()
    if "could not connect" in text or "connection to server" in text:
        return PostgresUnreachableError(f"pg_basebackup: {last}")
    return CaptureError(f"pg_basebackup failed: {last}")
