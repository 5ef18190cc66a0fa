"""The shape of a snapshot below a folder: its folders, links and files at their size, before any content is written.

In an empty folder everything is made. In one that holds something, :func:`survey` first says, without changing
anything, what stays, what is in the way and what has no place, and :class:`Shaping` then brings it into shape. The
folder may have been filled by a hostile account that goes on while this runs: every step opens a folder relative to the
one above it and through no link, nothing is opened blockingly, and what is no plain file with one name of the right
owner is never written into but replaced by a new file.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from drservice.errors import RecoveryError
from drservice.processes import Account, files_as
from drservice.repository.descent import Folders
from drservice.repository.nodes import Entry, EntryKind
from drservice.repository.target import write_error

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_OWNER_ALL = 0o700
_OWNER_FILE = 0o600
_COUNTED_DEPTH = 64
"""What lies deeper below something that goes is removed like the rest, but not counted as space that comes free."""
_REMOVED_PREFIX = ".drservice-removed-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """How the content of a folder differs from a snapshot in shape."""

    kept: frozenset[bytes] = frozenset()
    """Folders, links, and files that are filled in place; the content of these is not looked at yet."""
    replaced: tuple[bytes, ...] = ()
    """In the way: another kind, a link that leads elsewhere, a file with several names or of another owner."""
    unwanted: tuple[bytes, ...] = ()
    """Not in the snapshot."""
    kept_bytes: int = 0
    """Size of the kept files, as far as the snapshot needs it; that their holes are holes there is taken for likely."""
    freed_bytes: int = 0
    """Space that comes free before anything is written."""


EMPTY = Survey()


def owner_of(account: Account | None) -> int:
    """Return the user that owns what is made for an account."""
    return os.geteuid() if account is None else account.uid


def is_plain(facts: os.stat_result, owner: int) -> bool:
    """Tell whether a file may be written in place: nobody else's, and nobody else has a name for it."""
    return stat.S_ISREG(facts.st_mode) and facts.st_nlink == 1 and facts.st_uid == owner


def open_plain(folder: int, name: bytes, flags: int, *, owner: int) -> int:
    """Open a file of an open folder that was found or made plain before.

    Raises:
        OSError: it is not there, or a link now, or (``EBUSY``) something that must not be written into.
    """
    descriptor = os.open(name, flags | _FILE, dir_fd=folder)
    if not is_plain(os.fstat(descriptor), owner):
        os.close(descriptor)
        raise OSError(errno.EBUSY, "it was exchanged for something else meanwhile")
    return descriptor


# --- looking ------------------------------------------------------------------------------------------------


def survey(root: int, wanted: Mapping[bytes, Entry], *, owner: int, left_alone: frozenset[bytes]) -> Survey:
    """Compare what lies below an open folder with a snapshot, by kind, owner and number of names; changes nothing.

    Sizes and times are no reason to keep content: see ``placing``.

    Raises:
        RecoveryError: it cannot be looked at, or a file system is mounted on something that would have to go.
    """
    folders = Folders(root)
    device = os.fstat(root).st_dev
    kept: set[bytes] = set()
    replaced: list[bytes] = []
    unwanted: list[bytes] = []
    kept_bytes = freed_bytes = 0
    try:
        for path, facts, target in _content(folders, b"", wanted, owner):
            if path in left_alone:
                continue
            entry = wanted.get(path)
            if entry is not None and _stays(entry, facts, target, owner):
                kept.add(path)
                if entry.kind is EntryKind.FILE:
                    kept_bytes += min(facts.st_size, entry.size)
                continue
            (unwanted if entry is None else replaced).append(path)
            freed_bytes += _freed(folders, path, facts, device)
    finally:
        folders.close()
    return Survey(
        kept=frozenset(kept),
        replaced=tuple(sorted(replaced)),
        unwanted=tuple(sorted(unwanted)),
        kept_bytes=kept_bytes,
        freed_bytes=freed_bytes,
    )


def _content(
    folders: Folders, top: bytes, wanted: Mapping[bytes, Entry], owner: int
) -> Iterator[tuple[bytes, os.stat_result, bytes]]:
    """Yield everything in folders that stay: path, facts of the name itself, where a link leads."""
    waiting = [top]
    while waiting:
        folder = waiting.pop()
        for path, facts, target in _listing(folders, folder):
            yield path, facts, target
            entry = wanted.get(path)
            if entry is not None and entry.kind is EntryKind.DIRECTORY and _stays(entry, facts, target, owner):
                waiting.append(path)


def _listing(folders: Folders, folder: bytes) -> list[tuple[bytes, os.stat_result, bytes]]:
    prefix = folder + b"/" if folder else b""
    found: list[tuple[bytes, os.stat_result, bytes]] = []
    try:
        descriptor = folders.at(folder)
        for name in _names(descriptor):
            with suppress(FileNotFoundError):
                facts = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                target = os.readlink(name, dir_fd=descriptor) if stat.S_ISLNK(facts.st_mode) else b""
                found.append((prefix + name, facts, target))
    except OSError as error:
        where = (folder or b".").decode("utf-8", "backslashreplace")
        raise RecoveryError(f"cannot look into {where} of the target: {error.strerror}") from error
    return found


def _names(folder: int) -> list[bytes]:
    """Return the names in an open folder."""
    with os.scandir(folder) as entries:
        return [os.fsencode(entry.name) for entry in entries]


def _stays(entry: Entry, facts: os.stat_result, target: bytes, owner: int) -> bool:
    match entry.kind:
        case EntryKind.DIRECTORY:
            own = stat.S_ISDIR(facts.st_mode) and facts.st_uid == owner
            return own and facts.st_mode & _OWNER_ALL == _OWNER_ALL
        case EntryKind.LINK:
            return stat.S_ISLNK(facts.st_mode) and target == entry.target
        case EntryKind.FILE:
            return is_plain(facts, owner) and facts.st_mode & _OWNER_FILE == _OWNER_FILE


def _occupied(facts: os.stat_result) -> int:
    return facts.st_blocks * 512


def _freed(folders: Folders, path: bytes, facts: os.stat_result, device: int) -> int:
    """Return what comes free when ``path`` is removed; what cannot be looked at counts as nothing.

    Raises:
        RecoveryError: a file system is mounted there.
    """
    if not stat.S_ISDIR(facts.st_mode):
        return _occupied(facts) if facts.st_nlink == 1 else 0
    total = 0
    waiting = [(path, facts)]
    while waiting:
        folder, about = waiting.pop()
        if about.st_dev != device:
            name = folder.decode("utf-8", "backslashreplace")
            raise RecoveryError(
                f"a file system is mounted at {name}, which is not in the snapshot",
                hint="Unmount it, or restore elsewhere; nothing was written.",
            )
        with suppress(RecoveryError):
            for inner, inside, _ in _listing(folders, folder):
                if stat.S_ISDIR(inside.st_mode) and inner.count(b"/") < path.count(b"/") + _COUNTED_DEPTH:
                    waiting.append((inner, inside))
                elif inside.st_nlink == 1:
                    total += _occupied(inside)
    return total


# --- changing -----------------------------------------------------------------------------------------------


class Shaping:
    """Makes folders, links, and files at their size, in the order of their paths; what is kept gets size and mode.

    Step by step, so that files are filled while later ones are made. What goes is removed at the beginning.
    """

    def __init__(self, root: int, entries: Iterable[Entry], found: Survey, *, account: Account | None) -> None:
        """Remove what is unwanted or in the way.

        Raises:
            RecoveryError: naming what cannot be removed.
        """
        self._root, self._found, self._account = root, found, account
        self._owner = owner_of(account)
        self._waiting = iter(entries)
        self._late: list[tuple[bytes, int]] = []
        self._folders = Folders(root)
        with files_as(account):
            for path in (*found.unwanted, *found.replaced):
                _remove(self._folders, path)

    def until(self, last: bytes | None) -> None:
        """Make what was not made yet, up to the path ``last`` and with it (``None``: everything).

        Raises:
            RecoveryError: naming what cannot be made.
        """
        with files_as(self._account):
            for entry in self._waiting:
                try:
                    _make(self._folders, entry, keep=entry.path in self._found.kept, owner=self._owner)
                except OSError as error:
                    raise write_error(entry.path, error) from error
                if entry.kind is not EntryKind.LINK and entry.mode & 0o777 != _writable(entry):
                    self._late.append((entry.path, entry.mode & 0o777))
                if entry.path == last:
                    return

    def set_late_modes(self) -> None:
        """Set the modes with which its owner could not have written, what lies in a folder before the folder.

        Raises:
            RecoveryError: naming what cannot be changed.
        """
        with files_as(self._account):
            _set_modes(self._root, reversed(self._late))

    def close(self) -> None:
        """Close folders."""
        self._folders.close()


def _set_modes(root: int, modes: Iterable[tuple[bytes, int]]) -> None:
    folders = Folders(root)
    try:
        for path, mode in modes:
            folder, _, name = path.rpartition(b"/")
            try:
                descriptor = os.open(name, os.O_RDONLY | _FILE, dir_fd=folders.at(folder))
                try:
                    os.fchmod(descriptor, mode)
                finally:
                    os.close(descriptor)
            except OSError as error:
                raise write_error(path, error) from error
    finally:
        folders.close()


def _writable(entry: Entry) -> int:
    return entry.mode & 0o777 | (_OWNER_ALL if entry.kind is EntryKind.DIRECTORY else _OWNER_FILE)


def _make(folders: Folders, entry: Entry, *, keep: bool, owner: int) -> None:
    folder, _, name = entry.path.rpartition(b"/")
    inside = folders.at(folder)
    if entry.kind is EntryKind.LINK:
        if not keep:
            os.symlink(entry.target, name, dir_fd=inside)
    elif entry.kind is EntryKind.DIRECTORY:
        if not keep:
            os.mkdir(name, _OWNER_ALL, dir_fd=inside)
        os.fchmod(folders.at(entry.path), _writable(entry))
    else:
        flags = os.O_WRONLY if keep else os.O_WRONLY | os.O_CREAT | os.O_EXCL
        descriptor = _open_new(inside, name) if not keep else open_plain(inside, name, flags, owner=owner)
        try:
            os.fchmod(descriptor, _writable(entry))
            if os.fstat(descriptor).st_size != entry.size:
                os.ftruncate(descriptor, entry.size)
        finally:
            os.close(descriptor)


def _open_new(folder: int, name: bytes) -> int:
    return os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FILE, _OWNER_FILE, dir_fd=folder)


def _remove(folders: Folders, path: bytes) -> None:
    folder, _, name = path.rpartition(b"/")
    try:
        inside = folders.at(folder)
        try:
            os.unlink(name, dir_fd=inside)
        except FileNotFoundError:
            return
        except IsADirectoryError:
            remove_tree(inside, name)
    except OSError as error:
        raise RecoveryError(
            f"cannot remove {path.decode('utf-8', 'backslashreplace')} from the target: {error.strerror}"
        ) from error


def remove_tree(parent: int, name: bytes) -> None:
    """Remove a folder and everything in it, however deep, through no link and with two descriptors.

    Folders inside are moved up beside it and emptied there. What a kill leaves beside it has a name that no snapshot
    has.

    Raises:
        OSError: something cannot be removed, or somebody goes on adding to it.
    """
    waiting = [name]
    while waiting:
        current = waiting.pop()
        inside = _enter(parent, current)
        try:
            for inner in _names(inside):
                try:
                    os.unlink(inner, dir_fd=inside)
                except IsADirectoryError:
                    os.close(_enter(inside, inner))  # who may not write into it may not move it
                    moved = (_REMOVED_PREFIX + secrets.token_hex(8)).encode()
                    os.rename(inner, moved, src_dir_fd=inside, dst_dir_fd=parent)
                    waiting.append(moved)
        finally:
            os.close(inside)
        os.rmdir(current, dir_fd=parent)


def _enter(parent: int, name: bytes) -> int:
    """Open a folder in order to empty it, whatever its mode."""
    facts = os.stat(name, dir_fd=parent, follow_symlinks=False)
    if stat.S_ISDIR(facts.st_mode) and facts.st_mode & _OWNER_ALL != _OWNER_ALL:
        handle = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            # A descriptor without rights takes no fchmod(2); its name in /proc leads to the very folder it is of.
            Path(f"/proc/self/fd/{handle}").chmod(_OWNER_ALL)
        finally:
            os.close(handle)
    return os.open(name, _FOLDER, dir_fd=parent)
