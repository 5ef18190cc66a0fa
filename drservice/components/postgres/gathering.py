"""Collecting the configuration files of a server that lie outside its data directory (trap T11).

They begin at ``config_file``, ``hba_file`` and ``ident_file`` and go on with whatever these include; files inside the
data directory are read for that, but not taken: the snapshot has them. Read from the disk where the node is on the
server's host, with the rights of the data directory's owner and no more; else through the server, which needs rights of
its own (:func:`grants_for_reading`). What cannot be read is named with its reason and never stops a backup.

Not taken: private keys and certificates (``ssl_key_file`` and the like) outside the data directory. Whoever restores
gets them from where secrets are kept.
"""

from __future__ import annotations

import os
import posixpath
import stat
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from drservice import processes
from drservice.components.postgres.configuration import (
    LARGEST_FILE_BYTES,
    LARGEST_TOTAL_BYTES,
    MOST_FILES,
    Configuration,
    ConfigurationFile,
    is_plain_path,
)
from drservice.components.postgres.connection import Session
from drservice.components.postgres.includes import ConfigurationKind, includes_of
from drservice.errors import PostgresError, PostgresUnreachableError

_ROOTS: Mapping[str, ConfigurationKind] = {
    "config_file": ConfigurationKind.SETTINGS,
    "hba_file": ConfigurationKind.RULES,
    "ident_file": ConfigurationKind.RULES,
}
_SECRETS = ("ssl_key_file", "ssl_cert_file", "ssl_ca_file", "ssl_crl_file", "ssl_crl_dir")
_BESIDE = ("environment", "pg_ctl.conf", "start.conf")
"""What Debian's postgresql-common keeps beside ``postgresql.conf``."""
_SETTINGS = (
    "select name, setting from pg_settings where name in ('config_file', 'hba_file', 'ident_file', 'data_directory',"
    " 'ssl', 'ssl_key_file', 'ssl_cert_file', 'ssl_ca_file', 'ssl_crl_file', 'ssl_crl_dir')"
)


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file as it was read."""

    content: bytes
    mode: int


class ConfigurationSource(Protocol):
    """Where a server's files are read. An :class:`OSError` or a :class:`PostgresError` says why one cannot be."""

    def resolve(self, path: str) -> str:
        """Return an absolute path as it is, links followed as far as they can be."""
        ...

    def read(self, path: str) -> FoundFile | None:
        """Return a file (one byte more than the largest that is taken will do), ``None`` if there is none."""
        ...

    def names(self, folder: str) -> list[str]:
        """Return what a folder holds."""
        ...


@dataclass(frozen=True, slots=True)
class DiskFiles:
    """The files of this host, read with the rights of the server's user."""

    account: processes.Account | None

    def resolve(self, path: str) -> str:
        """Return the path without links."""
        with processes.files_as(self.account):
            return os.path.realpath(path)

    def read(self, path: str) -> FoundFile | None:
        """Return a regular file; nothing else is waited for."""
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        with processes.files_as(self.account):
            try:
                descriptor = os.open(path, flags)
            except FileNotFoundError:
                return None
            with os.fdopen(descriptor, "rb") as stream:
                status = os.fstat(stream.fileno())
                if not stat.S_ISREG(status.st_mode):
                    raise OSError(0, "it is no regular file", path)
                return FoundFile(stream.read(LARGEST_FILE_BYTES + 1), stat.S_IMODE(status.st_mode) & 0o777)

    def names(self, folder: str) -> list[str]:
        """List a folder."""
        with processes.files_as(self.account):
            return [path.name for path in Path(folder).iterdir()]


@dataclass(frozen=True, slots=True)
class ServerFiles:
    """The files of the server's host, read by the server."""

    session: Session

    def resolve(self, path: str) -> str:
        """Return the path as it is written: the server does not tell links."""
        return posixpath.normpath(path)

    def read(self, path: str) -> FoundFile | None:
        """Return a file. The server does not tell its mode."""
        found = self.session.row("select pg_read_binary_file(%s, 0, %s, true)", (path, LARGEST_FILE_BYTES + 1))[0]
        return None if found is None else FoundFile(bytes(found), 0o600)

    def names(self, folder: str) -> list[str]:
        """List a folder."""
        return [str(name) for (name,) in self.session.rows("select pg_ls_dir(%s, false, false)", (folder,))]


def grants_for_reading(role: str) -> tuple[str, ...]:
    """Return what lets a role read configuration through the server. Such a role can read all that the server can."""
    return (
        f"GRANT pg_read_all_settings, pg_read_server_files TO {role};",
        f"GRANT EXECUTE ON FUNCTION pg_read_binary_file(text, bigint, bigint, boolean) TO {role};",
        f"GRANT EXECUTE ON FUNCTION pg_ls_dir(text, boolean, boolean) TO {role};",
    )


def gather_configuration(session: Session, *, data_directory: Path | None) -> Configuration:
    """Return what of a server's configuration lies outside its data directory.

    Args:
        session: to the server.
        data_directory: the server's, if it is on this host. It is believed only if the server names the same folder:
            in a container ``/etc/postgresql`` is another one than here.

    Raises:
        PostgresUnreachableError: the connection broke.
    """
    settings = {str(name): str(value) for name, value in session.rows(_SETTINGS)}
    server_directory = settings.get("data_directory")
    if server_directory is None:
        reason = "the role may not see where they are: GRANT pg_read_all_settings"
        return Configuration(data_directory="", missing=((", ".join(_ROOTS), reason),))
    source: ConfigurationSource = ServerFiles(session)
    if data_directory is not None and os.path.realpath(data_directory) == os.path.realpath(server_directory):
        source = DiskFiles(processes.server_account(data_directory))
    walk = _Walk(source=source, data_directory=server_directory)
    for name, kind in _ROOTS.items():
        if settings.get(name):
            walk.want(_Wanted(path=settings[name], role=name, kind=kind))
    walk.want_beside(settings.get("config_file"))
    walk.run()
    return Configuration(
        data_directory=server_directory,
        files=tuple(sorted(walk.files, key=lambda item: os.fsencode(item.path))),
        missing=tuple(walk.missing),
        left_out=walk.secrets(settings),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    path: str
    role: str
    kind: ConfigurationKind
    is_folder: bool = False
    is_optional: bool = False


@dataclass(slots=True, kw_only=True)
class _Walk:
    """Follows includes breadth first, each file once."""

    source: ConfigurationSource
    data_directory: str
    files: list[ConfigurationFile] = field(default_factory=list)
    missing: list[tuple[str, str]] = field(default_factory=list)
    _queue: deque[_Wanted] = field(default_factory=deque)
    _seen: set[str] = field(default_factory=set)
    _bytes: int = 0

    def want(self, wanted: _Wanted) -> None:
        if wanted.path not in self._seen:
            self._seen.add(wanted.path)
            self._queue.append(wanted)

    def want_beside(self, config_file: str | None) -> None:
        if config_file and not self._is_inside(config_file):
            for name in _BESIDE:
                path = posixpath.join(posixpath.dirname(config_file), name)
                self.want(_Wanted(path=path, role="beside config_file", kind=ConfigurationKind.OTHER, is_optional=True))

    def run(self) -> None:
        while self._queue:
            wanted = self._queue.popleft()
            try:
                problem = self._look(wanted)
            except PostgresUnreachableError:
                raise
            except PostgresError as error:
                problem = error.message
            except OSError as error:
                problem = error.strerror or str(error)
            if problem is not None and not self._is_inside(wanted.path):
                self.missing.append((wanted.path, problem))

    def secrets(self, settings: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
        if settings.get("ssl") != "on":
            return ()
        absolute = [(settings.get(name, ""), name) for name in _SECRETS if settings.get(name, "").startswith("/")]
        reason = "keys and certificates outside the data directory are not taken"
        return tuple((path, f"{name}: {reason}") for path, name in absolute if not self._is_inside(path))

    def _look(self, wanted: _Wanted) -> str | None:
        if not wanted.is_folder:
            return self._take(wanted)
        for name in sorted(self.source.names(wanted.path), key=os.fsencode):
            if name.endswith(".conf") and not name.startswith("."):
                path = posixpath.join(wanted.path, name)
                self.want(_Wanted(path=path, role=wanted.role, kind=wanted.kind, is_optional=True))
        return None

    def _take(self, wanted: _Wanted) -> str | None:
        """Read a file and want what it names; return why it is not kept although it should be."""
        found = self.source.read(wanted.path)
        if found is None:
            return None if wanted.is_optional else "it is not there"
        if len(found.content) > LARGEST_FILE_BYTES or self._bytes + len(found.content) > LARGEST_TOTAL_BYTES:
            return f"more than {LARGEST_FILE_BYTES >> 20} MiB, or {LARGEST_TOTAL_BYTES >> 20} MiB in all, are not taken"
        if len(self._seen) > MOST_FILES:
            return f"more than {MOST_FILES} files are not taken"
        for include in includes_of(wanted.kind, found.content):
            path = posixpath.normpath(posixpath.join(posixpath.dirname(wanted.path), include.path))
            role = f"included by {wanted.path}"
            self.want(
                _Wanted(
                    path=path,
                    role=role,
                    kind=include.kind,
                    is_folder=include.is_folder,
                    is_optional=include.is_optional,
                )
            )
        if self._is_inside(wanted.path):
            return None
        path = posixpath.normpath(wanted.path)
        if not is_plain_path(path):
            return "its name is no absolute path"
        self._bytes += len(found.content)
        self.files.append(ConfigurationFile(path=path, role=wanted.role, mode=found.mode, content=found.content))
        return None

    def _is_inside(self, path: str) -> bool:
        inside, resolved = self.source.resolve(self.data_directory), self.source.resolve(path)
        return resolved == inside or resolved.startswith(f"{inside}/")
