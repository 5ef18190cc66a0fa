"""Keeping a data directory from being started before its recovery is proven: no server starts without ``pg_control``.

A copy beside production is nobody's: it is enough that a failure takes the file out. Production's own directory is
watched by a service manager that starts a server again and again, also while another one recovers it in a sandbox,
where neither sees the other's processes or shared memory. So there ``pg_control`` stays outside of the directory until
the proof: in its place stands a symbolic link that leads somewhere only inside the sandbox (PostgreSQL opens the file
by its name and writes it in place, in every version from 13 to 18). Putting the file in the link's place is the one
step that makes the directory a cluster again.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from drservice.components.postgres.controlfile import CONTROL_FILE_BYTES, ClusterState, ControlFile, parse_control
from drservice.components.postgres.existing import UNPROVEN
from drservice.errors import ProofError, RecoveryError
from drservice.model.wal import Timeline
from drservice.processes import Account

CONTROL_NAME = "pg_control"
_NEW = "pg_control.drservice"
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def is_cluster(directory: Path) -> bool:
    """Tell whether ``pg_control`` is in place: not set aside, and no link that stands for it."""
    try:
        return stat.S_ISREG((directory / "global" / CONTROL_NAME).lstat().st_mode)
    except OSError:
        return False


def withhold_control(directory: Path) -> None:
    """Take ``pg_control`` out of a copy that was not proven: no server starts without it.

    A failure after the promotion leaves a directory that was shut down cleanly and would start like a good one.
    """
    try:
        folder = os.open(directory / "global", _FOLDER_FLAGS)
    except OSError:
        return  # nothing was placed that could start
    try:
        with suppress(FileNotFoundError):
            os.rename(CONTROL_NAME, UNPROVEN, src_dir_fd=folder, dst_dir_fd=folder)
        os.fsync(folder)
    finally:
        os.close(folder)


def veil_control(directory: Path, inside: str) -> None:
    """Put a link to ``inside``, a path that exists in the sandbox only, where ``pg_control`` belongs.

    Raises:
        RecoveryError: it cannot be made.
    """
    with _global(directory) as folder:
        with suppress(FileNotFoundError):
            os.unlink(_NEW, dir_fd=folder)
        os.symlink(inside, _NEW, dir_fd=folder)
        os.rename(_NEW, CONTROL_NAME, src_dir_fd=folder, dst_dir_fd=folder)
        os.fsync(folder)


def unveil_control(directory: Path) -> None:
    """Remove the link of :func:`veil_control`, if it stands there: what was to be proved was not."""
    try:
        folder = os.open(directory / "global", _FOLDER_FLAGS)
    except OSError:
        return  # then there is none
    try:
        with suppress(FileNotFoundError):
            if stat.S_ISLNK(os.stat(CONTROL_NAME, dir_fd=folder, follow_symlinks=False).st_mode):
                os.unlink(CONTROL_NAME, dir_fd=folder)
        os.fsync(folder)
    finally:
        os.close(folder)


def take_control(path: Path, *, timeline: Timeline) -> bytes:
    """Read the ``pg_control`` of a server that was shut down after its proof; it was written inside and is hostile.

    Raises:
        ProofError: it is not that of a cluster that was shut down cleanly on this timeline.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as stream:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ProofError(f"{path} is no regular file")
            raw = stream.read(CONTROL_FILE_BYTES + 1)
    except OSError as error:
        raise ProofError(f"the recovered cluster's pg_control cannot be read: {error.strerror}") from error
    control = parse_control(raw)
    _require_clean(control, timeline)
    return raw


def _require_clean(control: ControlFile, timeline: Timeline) -> None:
    if control.state is not ClusterState.SHUT_DOWN or control.timeline != timeline:
        raise ProofError(
            f"the recovered server did not shut down cleanly on timeline {timeline}: pg_control says"
            f" {control.state.name} on timeline {control.timeline}"
        )


def place_control(directory: Path, raw: bytes, *, account: Account | None) -> None:
    """Put ``pg_control`` in place, whole or not at all: from now on the directory is a cluster that starts.

    Raises:
        RecoveryError: it cannot be written.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with _global(directory) as folder:
        with suppress(FileNotFoundError):
            os.unlink(_NEW, dir_fd=folder)
        with os.fdopen(os.open(_NEW, flags, 0o600, dir_fd=folder), "wb") as stream:
            if account is not None:
                os.fchown(stream.fileno(), account.uid, account.gid)
            stream.write(raw)
            stream.flush()
            os.fsync(stream.fileno())
        os.rename(_NEW, CONTROL_NAME, src_dir_fd=folder, dst_dir_fd=folder)
        with suppress(FileNotFoundError):
            os.unlink(UNPROVEN, dir_fd=folder)
        os.fsync(folder)


@contextmanager
def _global(directory: Path) -> Iterator[int]:
    """Open the folder ``global`` without following links, and translate what the system refuses."""
    try:
        folder = os.open(directory / "global", _FOLDER_FLAGS)
        try:
            yield folder
        finally:
            os.close(folder)
    except OSError as error:
        raise RecoveryError(f"pg_control cannot be placed in {directory}: {error.strerror}") from error
