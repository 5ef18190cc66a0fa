"""Handing a server's configuration to whoever restores: a folder beside the data, and nothing a server reads.

The files lie below ``configuration/`` in the restored folder under the paths they had, with a text that says what came
from where. Recovery never looks at them, so no setting of the origin can undo the isolation it runs in; they are put
there after the recovered server was proven.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from drservice.components.postgres.configuration import ATTACHMENT, Configuration, decode_configuration
from drservice.errors import RecoveryError
from drservice.processes import Account, files_as
from drservice.repository.reader import SnapshotReader

FOLDER = "configuration"
ORIGIN_NAME = "ORIGIN.txt"


def configuration_of(reader: SnapshotReader) -> Configuration | None:
    """Return the configuration a snapshot has, ``None`` if all of it lay in the data directory or was not asked for.

    Raises:
        FormatError: it cannot be read.
    """
    raw = reader.secret.attachments.get(ATTACHMENT)
    what = f"the configuration of snapshot {reader.record.id}"
    return None if raw is None else decode_configuration(raw, what)


def supply_configuration(configuration: Configuration, target: Path, *, snapshot: str, account: Account | None) -> Path:
    """Write a configuration into ``target`` and return the new folder.

    The folder belonged to a server that may be hostile: nothing that is there is followed or written over; where the
    name is taken, the snapshot's id is added.

    Raises:
        RecoveryError: it cannot be written.
    """
    try:
        with _folder(target) as root, files_as(account):
            name = _make(root, FOLDER, f"{FOLDER}-{snapshot}")
            with _folder(name, below=root) as folder:
                for item in configuration.files:
                    _write_below(folder, item.path.lstrip("/"), item.content)
                _write(folder, ORIGIN_NAME, describe_origin(configuration).encode())
                os.fsync(folder)
            os.fsync(root)
    except OSError as error:
        raise RecoveryError(
            f"cannot write the configuration of the origin into {target}: {error.strerror}",
            hint="The cluster itself is restored and proven; its configuration is still in the snapshot.",
        ) from error
    return target / name


def describe_origin(configuration: Configuration) -> str:
    """Return the text that says what came from where."""
    lines = [
        "Configuration of the server this cluster was backed up from.",
        "",
        "These files lay outside its data directory and are here under the paths they had. PostgreSQL does not read",
        "them here, and the recovery did not use them. Look through them before you put them back: they name programs,",
        "hosts and passwords of the origin.",
        "",
        f"data_directory was {_shown(configuration.data_directory or 'not told')}",
        "",
    ]
    lines += [f"{_shown(item.path)}  (mode {item.mode:04o}, {_shown(item.role)})" for item in configuration.files]
    if configuration.missing:
        lines += ["", "NOT HERE, although they belong to it:"]
        lines += [f"{_shown(path)}  ({_shown(reason)})" for path, reason in configuration.missing]
    if configuration.left_out:
        lines += ["", "Not taken on purpose:"]
        lines += [f"{_shown(path)}  ({_shown(reason)})" for path, reason in configuration.left_out]
    return "\n".join(lines) + "\n"


def _shown(text: str) -> str:
    """Return a text of the origin without anything that could move a terminal's cursor or begin a line."""
    return "".join(letter if letter.isprintable() else f"\\x{ord(letter):02x}" for letter in text)


def _make(root: int, name: str, otherwise: str) -> str:
    try:
        os.mkdir(name, 0o700, dir_fd=root)
    except FileExistsError:
        os.mkdir(otherwise, 0o700, dir_fd=root)
        return otherwise
    return name


def _write_below(root: int, path: str, content: bytes) -> None:
    *folders, name = path.split("/")
    with ExitStack() as stack:
        inside = root
        for step in folders:
            with suppress(FileExistsError):
                os.mkdir(step, 0o700, dir_fd=inside)
            inside = stack.enter_context(_folder(step, below=inside))
        _write(inside, name, content)
        os.fsync(inside)


def _write(folder: int, name: str, content: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(name, flags, 0o600, dir_fd=folder), "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


@contextmanager
def _folder(path: str | Path, *, below: int | None = None) -> Iterator[int]:
    nofollow = 0 if below is None else os.O_NOFOLLOW
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | nofollow, dir_fd=below)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
