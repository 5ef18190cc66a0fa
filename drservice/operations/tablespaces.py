"""Extra tablespaces of a restore: what the WAL does to them while it is replayed, and where they lie afterwards.

CREATE TABLESPACE is replayed with production's path, which is not there: recovery ends, naming it (trap T10). The path
is then provided inside the environment, as a link that leads to a folder of this restore, and the server goes on from
its last restartpoint. Nothing is looked for in the WAL ahead: the server names what it needs, in every version, and
the WAL of most restores creates no tablespace. When the target is reached, each such link is exchanged for the folder.

``data`` is writable from inside and therefore hostile: it is entered through no link and with the rights of the server
account, and a link in ``pg_tblspc`` that leads anywhere but to a folder of this restore fails the proof.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from drservice.components.postgres.layout import TABLESPACES
from drservice.components.postgres.recovery import Options, RecoveryLog
from drservice.components.postgres.server import PostgresPrograms
from drservice.components.postgres.tablespaces import MAP_NAME, Moved, choose_folders, oid_of, parse_map
from drservice.environments.interface import Environment
from drservice.errors import DrError, ProofError, RecoveryError, ReplayError
from drservice.processes import Account, files_as
from drservice.repository.descent import open_below
from drservice.repository.reader import SnapshotReader
from drservice.repository.skeleton import remove_tree

_AREA = "pg_tblspc.drservice"
"""Folder of the data directory in which new tablespaces lie until the target is reached."""
_MOST_PROVIDED = 256
_NEEDED = re.compile(r'WAL redo at [0-9A-F]+/[0-9A-F]+ for Tablespace/CREATE: (\d{1,10}) "(.*?)"$', re.MULTILINE)
_ABSENT = re.compile(r'FATAL:  directory "(/.*?)" does not exist$', re.MULTILINE)
"""All that a server says with ``log_error_verbosity = terse``: the OID is not known."""
_UNEXPECTED = re.compile(r'PANIC:  unexpected directory entry "(\d{1,10})" found in pg_tblspc/?')
_IN_PLACE_SETTING = "allow_in_place_tablespaces"
_FIRST_MINORS = {13: 8, 14: 5}
"""Of the versions that got in-place tablespaces with an update."""
_RENAME_EXCHANGE = 2
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoredTablespace:
    """Where a tablespace lies after a restore."""

    oid: int
    location: str
    """Where production had it; empty for one in place."""
    path: Path
    in_place: bool
    """Whether it lies in the data directory itself."""


def choose(reader: SnapshotReader, asked: Mapping[str, Path], *, target: Path | None) -> tuple[Moved, ...]:
    """Decide which tablespaces of a snapshot go into folders of their own; writes nothing.

    Raises:
        UsageError, TargetDirectoryError: as :func:`choose_folders`.
        DamagedObjectError, MissingObjectError: the snapshot cannot be read.
    """
    if not asked:
        return ()
    found = {oid for entry in reader.entries() if (oid := oid_of(entry.path)) is not None}
    return choose_folders(asked, oids=sorted(found), locations=_locations(reader), target=target)


def _locations(reader: SnapshotReader) -> dict[int, str]:
    return parse_map(reader.secret.attachments.get(MAP_NAME, b""))


@dataclass(slots=True, kw_only=True)
class Tablespaces:
    """Follows the tablespaces of one restore from placing to proof."""

    environment: Environment
    account: Account | None
    """Whose rights are used in the data directory."""
    moved: tuple[Moved, ...]
    locations: dict[int, str]
    _provided: dict[str, Moved | str] = field(default_factory=dict)
    """Production's path -> what stands for it: one of ``moved``, or a folder in ``_AREA``."""
    _let_in_place: set[str] = field(default_factory=set)

    @classmethod
    def of(
        cls, reader: SnapshotReader, environment: Environment, moved: tuple[Moved, ...], account: Account | None
    ) -> Tablespaces:
        """Follow those of a snapshot that was placed; the folders of ``moved`` are made visible inside.

        Raises:
            EnvironmentFailedError: one of them cannot be visible inside under its own path.
        """
        if moved:
            environment.share([item.folder for item in moved], links={})
        return cls(environment=environment, account=account, moved=moved, locations=_locations(reader))

    def options(self, programs: PostgresPrograms) -> Options:
        """Return what a server needs that starts now.

        Recovery refuses folders in the place of links since version 15, because they may stem from CREATE DATABASE
        replayed without its tablespace; here they are wanted.
        """
        if not allows_in_place(programs):
            return ()
        with self._inside() as (_, spaces):
            found = any(stat.S_ISDIR(_facts(spaces, name).st_mode) for name in _oids(spaces))
        return ((_IN_PLACE_SETTING, "on"),) if found else ()

    def replay(self, start: Callable[[], None], wait: Callable[[], RecoveryLog]) -> RecoveryLog:
        """Start the server and wait for the target, again and again as long as it lacks nothing but a location.

        Raises:
            ReplayError: it ended for another reason, or a location cannot be provided.
        """
        while True:
            start()
            try:
                return wait()
            except ReplayError as error:
                if not self._provide(self.environment.server_log(), error):
                    raise

    def _provide(self, log: str, problem: ReplayError) -> bool:
        """Provide what the server ended for; ``False`` if it did not end for a location that is not there yet."""
        tail = log[max(0, log.rfind("starting PostgreSQL")) :]
        in_place = _UNEXPECTED.search(tail)
        if in_place is not None and in_place[1] not in self._let_in_place:
            self._let_in_place.add(in_place[1])
            return True  # created in place by the WAL: the next start allows it
        needed, absent = _NEEDED.search(tail), _ABSENT.search(tail)
        if needed is None and absent is None:
            return False
        oid, location = (int(needed[1]), needed[2]) if needed else (None, absent[1] if absent else "")
        if location in self._provided or not location.startswith("/") or len(self._provided) >= _MOST_PROVIDED:
            return False
        try:
            self._make(oid, location)
        except DrError as error:
            raise ReplayError(
                f"{problem.message}: the WAL creates a tablespace at {location}, and {error.message}",
                hint="Restore to an instant before that, or with an identical path free for it.",
            ) from error
        return True

    def _make(self, oid: int | None, location: str) -> None:
        own = next((item for item in self.moved if oid == item.oid or location == item.location), None)
        if own is not None:
            self.environment.share([], links={location: str(own.folder)})
            self._provided[location] = own
            return
        name = str(oid) if oid is not None else f"new-{len(self._provided)}"
        self.environment.share([], links={location: f"/env/data/{_AREA}/{name}"})
        with self._inside() as (root, spaces):
            with suppress(FileExistsError):
                os.mkdir(_AREA, 0o700, dir_fd=root)
            with open_below(root, _AREA.encode()) as area:
                self._set_aside(name, location, spaces, area)
        self._provided[location] = name

    def _set_aside(self, name: str, location: str, spaces: int, area: int) -> None:
        """Make the folder of a tablespace, or take the one in ``pg_tblspc``, in whose place recovery makes a link."""
        with suppress(FileNotFoundError):
            if stat.S_ISDIR(_facts(spaces, name).st_mode):
                os.rename(name, name, src_dir_fd=spaces, dst_dir_fd=area)
                os.symlink(location, name, dir_fd=spaces)
                return
        os.mkdir(name, 0o700, dir_fd=area)

    def settle(self, programs: PostgresPrograms, *, kept: bool) -> tuple[RestoredTablespace, ...]:
        """Put every tablespace where it stays, also under a running server, and return where.

        Args:
            programs: of the recovered server.
            kept: the data directory outlives the environment: whoever recovers a copy of it must find it allowed to
                have tablespaces in place.

        Raises:
            ProofError: a link leads to a place that is none of this restore.
            RecoveryError: the data directory cannot be changed.
        """
        with self._inside() as (root, spaces):
            found = [self._settled(name, root, spaces) for name in _oids(spaces)]
            with suppress(FileNotFoundError):
                remove_tree(root, _AREA.encode())
            if kept and allows_in_place(programs) and any(item.in_place for item in found):
                _allow_in_place(root)
        return tuple(sorted(found, key=lambda item: item.oid))

    def _settled(self, name: str, root: int, spaces: int) -> RestoredTablespace:
        oid = int(name)
        inside = self.environment.data / TABLESPACES / name
        if stat.S_ISDIR(_facts(spaces, name).st_mode):
            return RestoredTablespace(oid=oid, location=self.locations.get(oid, ""), path=inside, in_place=True)
        try:
            target = os.readlink(name, dir_fd=spaces)
        except OSError as error:
            raise ProofError(f"{TABLESPACES}/{name} is neither a link nor a folder") from error
        provided = self._provided.get(target)
        if isinstance(provided, str):
            with open_below(root, _AREA.encode()) as area:
                _exchange(spaces, name, area, provided)
            return RestoredTablespace(oid=oid, location=target, path=inside, in_place=True)
        own = provided or next((item for item in self.moved if target == str(item.folder)), None)
        if own is None:
            raise ProofError(
                f"the recovered server has {TABLESPACES}/{name} lead to {target}, which is no place of this restore",
                hint="Do not start it: it would write there.",
            )
        if target != str(own.folder):
            fresh = f"drservice.{name}"
            os.symlink(own.folder, fresh, dir_fd=spaces)
            os.rename(fresh, name, src_dir_fd=spaces, dst_dir_fd=spaces)
        location = own.location or (target if provided is not None else "")
        return RestoredTablespace(oid=oid, location=location, path=own.folder, in_place=False)

    @contextmanager
    def _inside(self) -> Iterator[tuple[int, int]]:
        """Open the data directory and its ``pg_tblspc``, with the server account's rights."""
        data = self.environment.data
        try:
            root = os.open(data, _FOLDER)  # the way there may be closed to the account
            try:
                with files_as(self.account), open_below(root, TABLESPACES.encode()) as spaces:
                    yield root, spaces
            finally:
                os.close(root)
        except OSError as error:
            raise RecoveryError(f"the tablespaces of {data} cannot be put in order: {error}") from error


def allows_in_place(programs: PostgresPrograms) -> bool:
    """Tell whether a server knows tablespaces in place as such (others take any folder)."""
    return programs.minor >= _FIRST_MINORS.get(programs.major, 0)


def _oids(spaces: int) -> list[str]:
    return sorted(name for name in os.listdir(spaces) if name.isascii() and name.isdigit() and len(name) <= 10)


def _facts(folder: int, name: str) -> os.stat_result:
    return os.stat(name, dir_fd=folder, follow_symlinks=False)


def _exchange(folder: int, name: str, other_folder: int, other_name: str) -> None:
    """Exchange two names at once: a server that works there finds its files at every moment."""
    libc = ctypes.CDLL(None, use_errno=True)
    one, two = os.fsencode(name), os.fsencode(other_name)
    if libc.renameat2(folder, one, other_folder, two, _RENAME_EXCHANGE) == 0:
        return
    code = ctypes.get_errno()
    if code not in {errno.EINVAL, errno.ENOSYS}:
        raise OSError(code, os.strerror(code), name)
    os.unlink(name, dir_fd=folder)  # a file system that cannot exchange
    os.rename(other_name, name, src_dir_fd=other_folder, dst_dir_fd=folder)


def _allow_in_place(root: int) -> None:
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open("postgresql.auto.conf", flags, 0o600, dir_fd=root)
    with os.fdopen(descriptor, "wb") as stream:
        facts = os.fstat(stream.fileno())
        if not stat.S_ISREG(facts.st_mode) or facts.st_nlink != 1:
            raise OSError(errno.EBUSY, "postgresql.auto.conf was exchanged for something else")
        stream.write(f"\n{_IN_PLACE_SETTING} = 'on'\n".encode())
        stream.flush()
        os.fsync(stream.fileno())
