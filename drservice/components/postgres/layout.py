"""What belongs into a copy of a data directory, and the listing of a live one (traps T8, T9, T10).

The rules are those of ``pg_basebackup`` (``basebackup.c``) narrowed to the places where PostgreSQL puts the
files in question: a name is never skipped by its base name elsewhere. Links are never followed. A listing of
a live cluster survives files that vanish while it is made; whether a relation is unlogged is decided after
the whole listing, because its ``_init`` fork may come later than its data.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from drservice.components.postgres.controlfile import CONTROL_PATH
from drservice.errors import CaptureError, UnsupportedClusterError

EMPTIED_DIRECTORIES = frozenset(
    {
        "pg_wal",
        "pg_replslot",
        "pg_dynshmem",
        "pg_notify",
        "pg_serial",
        "pg_snapshots",
        "pg_stat_tmp",
        "pg_subtrans",
    }
)
"""Copied as empty directories: PostgreSQL rebuilds their content, or it must not travel."""

KEPT_INSIDE_EMPTIED = frozenset({"pg_wal/archive_status", "pg_wal/summaries"})
"""Directories that a server expects below an emptied one."""

_STATE = frozenset(
    {
        "PG_VERSION",
        "base",
        "global",
        "pg_commit_ts",
        "pg_logical",
        "pg_multixact",
        "pg_stat",
        "pg_tblspc",
        "pg_twophase",
        "pg_xact",
    }
)
"""Where a cluster's own state lies: what is not a plain file or folder there is not copied, and nothing replaces it."""
_NAMED = 3

_ROOT_SKIPPED = frozenset(
    {
        "postgresql.auto.conf.tmp",
        "current_logfiles.tmp",
        "backup_label",
        "backup_label.old",
        "tablespace_map",
        "tablespace_map.old",
        "backup_manifest",
        "RESTORE-INCOMPLETE",
        "postmaster.pid",
        "postmaster.opts",
        "promote",
        "logrotate",
    }
)
TABLESPACES = "pg_tblspc"
"""Where a data directory keeps its extra tablespaces: links, or folders for those in place."""

_DATABASE = re.compile(r"(?:base/(?P<db>\d+)|global|pg_tblspc/(?P<ts>\d+)/PG_[^/]+/(?P<tdb>\d+))\Z")
_TEMPORARY_PLACE = re.compile(r"(?:base|pg_tblspc/\d+/PG_[^/]+)\Z")
_RELATION = re.compile(r"(?P<node>\d+)(?:_(?P<fork>fsm|vm|init))?(?:\.(?P<segment>[1-9]\d*))?\Z")
_TEMPORARY_RELATION = re.compile(r"t\d+_\d+(?:_(?:fsm|vm|init))?(?:\.\d+)?\Z")
_TABLESPACE_LINK = re.compile(r"pg_tblspc/(\d+)\Z")


class FileRule(Enum):
    """What to do with an entry."""

    COPY = "copy"
    COPY_LAST = "copy last"
    """``pg_control``: read until whole, stored and restored after everything else."""
    SKIP = "skip"
    """Leave it out, and a directory with all below it."""
    EMPTY_DIRECTORY = "empty directory"
    """Keep the directory, leave out what is in it."""


class Fork(Enum):
    """Which of a relation's forks a file holds."""

    MAIN = "main"
    FREE_SPACE = "fsm"
    VISIBILITY = "vm"
    INIT = "init"


@dataclass(frozen=True, slots=True, kw_only=True)
class RelationPart:
    """A segment file of a relation. Every fork is made of checksummed pages."""

    tablespace: int | None
    """OID of an extra tablespace; ``None`` for ``base`` and ``global``."""
    database: int
    """OID; 0 for shared relations in ``global``."""
    file_node: int
    fork: Fork
    segment: int

    def first_block(self, relation_segment_blocks: int) -> int:
        """Return the number, within the fork, of the file's first block."""
        return self.segment * relation_segment_blocks


@dataclass(frozen=True, slots=True, kw_only=True)
class FileStat:
    """What identifies a file's state (document of the format: unchanged files)."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileStat:
        """Take the fields of a stat result."""
        return cls(
            device=status.st_dev,
            inode=status.st_ino,
            size=status.st_size,
            mtime_ns=status.st_mtime_ns,
            ctime_ns=status.st_ctime_ns,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedFile:
    """A regular file to copy, at most ``identity.size`` bytes of it (growth is replayed from WAL, T9)."""

    path: str
    """Relative, ``/``-separated, bytes that are no UTF-8 as surrogate escapes."""
    rule: FileRule
    mode: int
    identity: FileStat
    relation: RelationPart | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedDirectory:
    """A directory to make, with its permission bits."""

    path: str
    mode: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedTablespace:
    """An extra tablespace. Its content is listed below ``pg_tblspc/OID``, wherever it lies."""

    oid: int
    target: str
    """Where the link points, or the relative path of an in-place one (``pg_tblspc/OID``)."""
    in_place: bool

    @property
    def path(self) -> str:
        """Its place in a data directory."""
        return f"{TABLESPACES}/{self.oid}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """An entry that is not copied, and why."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterListing:
    """A data directory as it was walked; every tuple is sorted by path."""

    files: tuple[ListedFile, ...]
    """``pg_control`` is last."""
    directories: tuple[ListedDirectory, ...]
    """Without the data directory itself; parents before children."""
    tablespaces: tuple[ListedTablespace, ...]
    skipped: tuple[LeftOut, ...]
    """What PostgreSQL rebuilds or must not find in a copy."""
    refused: tuple[LeftOut, ...]
    """Links, sockets, pipes and devices beside the cluster's own state: shown to people."""

    @property
    def total_bytes(self) -> int:
        """The size of all files to copy."""
        return sum(entry.identity.size for entry in self.files)

    def bytes_of(self, tablespace: ListedTablespace) -> int:
        """Return the size of a tablespace's files."""
        below = f"{tablespace.path}/"
        return sum(entry.identity.size for entry in self.files if entry.path.startswith(below))


@dataclass(slots=True, kw_only=True)
class _Walk:
    version_directory: str
    files: list[ListedFile] = field(default_factory=list)
    directories: list[ListedDirectory] = field(default_factory=list)
    tablespaces: list[ListedTablespace] = field(default_factory=list)
    skipped: list[LeftOut] = field(default_factory=list)
    refused: list[LeftOut] = field(default_factory=list)


def classify(path: str, *, is_directory: bool) -> FileRule:
    """Tell what to do with one entry of a data directory, from its place alone.

    Unlogged relations are not decided here; see :func:`unlogged_parts`.

    Args:
        path: relative to the data directory, ``/``-separated.
        is_directory: whether it is a directory (for an emptied one also a link to a directory).
    """
    parent, _, name = path.rpartition("/")
    if is_directory:
        if path in EMPTIED_DIRECTORIES or path in KEPT_INSIDE_EMPTIED:
            return FileRule.EMPTY_DIRECTORY
        if parent.split("/")[0] in EMPTIED_DIRECTORIES:
            return FileRule.SKIP
        if name.startswith("pgsql_tmp") and _TEMPORARY_PLACE.match(parent):
            return FileRule.SKIP
        return FileRule.COPY
    if path == CONTROL_PATH:
        return FileRule.COPY_LAST
    skipped = (
        (not parent and (name in _ROOT_SKIPPED or name.endswith(".signal")))
        or parent.split("/")[0] in EMPTIED_DIRECTORIES
        or (_TEMPORARY_PLACE.match(parent) is not None and name.startswith("pgsql_tmp"))
        or (
            _DATABASE.match(parent) is not None
            and (name.startswith("pg_internal.init") or _TEMPORARY_RELATION.match(name) is not None)
        )
    )
    return FileRule.SKIP if skipped else FileRule.COPY


def relation_part(path: str) -> RelationPart | None:
    """Tell which relation a file belongs to; ``None`` for everything that is not made of pages (T14).

    ``pg_control``, ``pg_filenode.map``, ``PG_VERSION`` and the transaction logs carry no page checksums.
    """
    parent, _, name = path.rpartition("/")
    place = _DATABASE.match(parent)
    match = _RELATION.match(name)
    if place is None or match is None:
        return None
    database = place["db"] or place["tdb"] or "0"
    return RelationPart(
        tablespace=int(place["ts"]) if place["ts"] else None,
        database=int(database),
        file_node=int(match["node"]),
        fork=Fork(match["fork"] or "main"),
        segment=int(match["segment"] or 0),
    )


def unlogged_parts(files: list[ListedFile]) -> set[str]:
    """Return the paths of unlogged relations' data: every fork but ``init`` where an ``init`` fork exists.

    PostgreSQL resets these relations from ``_init`` after recovery, so their data is never used.
    """
    unlogged = {
        _relation_key(entry.relation)
        for entry in files
        if entry.relation is not None and entry.relation.fork is Fork.INIT
    }
    return {
        entry.path
        for entry in files
        if entry.relation is not None
        and entry.relation.fork is not Fork.INIT
        and _relation_key(entry.relation) in unlogged
    }


def require_state_inside(left_out: Iterable[LeftOut]) -> None:
    """Refuse a cluster of whose own state something would be missing in a copy.

    Raises:
        UnsupportedClusterError: a link or special file lies where PostgreSQL keeps its state.
    """
    lost = sorted((item for item in left_out if item.path.partition("/")[0] in _STATE), key=lambda item: item.path)
    if lost:
        named = ", ".join(f"{item.path} ({item.reason})" for item in lost[:_NAMED])
        more = f" and {len(lost) - _NAMED} more" if len(lost) > _NAMED else ""
        raise UnsupportedClusterError(
            f"{len(lost)} of the cluster's own files or folders would be missing in a snapshot: {named}{more}",
            hint="Links are not followed inside a data directory. Stop the server and move what a link leads to into"
            " its place, or remove what is none of PostgreSQL's; another disk is for tablespaces (CREATE TABLESPACE).",
        )


def list_cluster(data_directory: Path, *, version_directory: str) -> ClusterListing:
    """List what a copy of a (live) data directory and its tablespaces consists of.

    Files that vanish while the listing is made are as if they had never been; files made later are replayed
    from WAL. Nothing is opened.

    Args:
        data_directory: the server's.
        version_directory: the server's own folder in each tablespace (``PG_15_202209061``); servers of other versions
            may have theirs beside it.

    Raises:
        OSError: the directory cannot be read (permissions, not a directory); never for a vanished file.
        UnsupportedClusterError: a tablespace's link does not lead straight to a folder of the server's, or the
            cluster's own state lies behind other links.
        CaptureError: a tablespace's folder lacks the server's own.
    """
    walk = _Walk(version_directory=version_directory)
    root = os.fspath(data_directory)
    with os.scandir(root) as entries:
        for entry in sorted(entries, key=lambda each: each.name):
            _visit(entry, entry.name, walk)
    owner = data_directory.stat().st_uid
    for tablespace in walk.tablespaces:
        if not tablespace.in_place:
            _visit_location(data_directory, tablespace, owner, walk)
    require_state_inside(walk.refused)
    _leave_out_locations(data_directory, walk)
    data = unlogged_parts(walk.files)
    walk.skipped.extend(LeftOut(path=path, reason="unlogged relation") for path in data)
    kept = [entry for entry in walk.files if entry.path not in data]
    kept.sort(key=lambda entry: (entry.rule is FileRule.COPY_LAST, entry.path))
    return ClusterListing(
        files=tuple(kept),
        directories=tuple(sorted(walk.directories, key=lambda entry: entry.path)),
        tablespaces=tuple(sorted(walk.tablespaces, key=lambda entry: entry.oid)),
        skipped=tuple(sorted(walk.skipped, key=lambda entry: entry.path)),
        refused=tuple(sorted(walk.refused, key=lambda entry: entry.path)),
    )


def _visit(entry: os.DirEntry[str], path: str, walk: _Walk) -> None:
    try:
        status = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return
    if stat.S_ISLNK(status.st_mode):
        _visit_link(entry, path, walk)
    elif stat.S_ISDIR(status.st_mode):
        _visit_directory(entry, path, stat.S_IMODE(status.st_mode), walk)
    elif stat.S_ISREG(status.st_mode):
        rule = classify(path, is_directory=False)
        if rule is FileRule.SKIP:
            walk.skipped.append(LeftOut(path=path, reason="not part of a copy"))
            return
        walk.files.append(
            ListedFile(
                path=path,
                rule=rule,
                mode=stat.S_IMODE(status.st_mode),
                identity=FileStat.of(status),
                relation=relation_part(path),
            )
        )
    else:
        walk.refused.append(LeftOut(path=path, reason=_special_kind(status.st_mode)))


def _visit_directory(entry: os.DirEntry[str], path: str, mode: int, walk: _Walk) -> None:
    rule = classify(path, is_directory=True)
    if rule is FileRule.SKIP:
        walk.skipped.append(LeftOut(path=path, reason="not part of a copy"))
        return
    walk.directories.append(ListedDirectory(path=path, mode=mode))
    tablespace = _TABLESPACE_LINK.match(path)
    if tablespace is not None:
        walk.tablespaces.append(ListedTablespace(oid=int(tablespace[1]), target=path, in_place=True))
    for child in _children(entry.path):
        below = f"{path}/{child.name}"
        if tablespace is not None and child.name != walk.version_directory:
            continue
        if rule is not FileRule.EMPTY_DIRECTORY or below in KEPT_INSIDE_EMPTIED:
            _visit(child, below, walk)


def _visit_link(entry: os.DirEntry[str], path: str, walk: _Walk) -> None:
    try:
        target = os.fspath(Path(entry.path).readlink())
    except FileNotFoundError:
        return
    tablespace = _TABLESPACE_LINK.match(path)
    if tablespace is not None:
        walk.tablespaces.append(ListedTablespace(oid=int(tablespace[1]), target=target, in_place=False))
    elif path in EMPTIED_DIRECTORIES:
        # Administrators move pg_wal and pg_stat_tmp to other disks; a copy has plain directories.
        walk.directories.append(ListedDirectory(path=path, mode=0o700))
        for kept in sorted(KEPT_INSIDE_EMPTIED):
            if kept.startswith(f"{path}/") and Path(entry.path, kept[len(path) + 1 :]).is_dir():
                walk.directories.append(ListedDirectory(path=kept, mode=0o700))
    elif any(classify(path, is_directory=is_directory) is FileRule.SKIP for is_directory in (True, False)):
        walk.skipped.append(LeftOut(path=path, reason="not part of a copy"))  # a pgsql_tmp on another disk, say
    else:
        walk.refused.append(LeftOut(path=path, reason=f"symbolic link to {target}"))


def _visit_location(data_directory: Path, tablespace: ListedTablespace, owner: int, walk: _Walk) -> None:
    """List what lies in a tablespace outside of ``pg_tblspc``."""
    own: list[os.DirEntry[str]] = []
    with suppress(FileNotFoundError):
        facts = require_location(tablespace, owner)
        with os.scandir(tablespace.target) as entries:
            own = [entry for entry in entries if entry.name == walk.version_directory]
    if not own:
        if not os.path.lexists(data_directory / tablespace.path):
            return  # dropped while the listing was made
        raise CaptureError(
            f"tablespace {tablespace.oid} at {tablespace.target} has no {walk.version_directory}",
            hint="Is its file system mounted on this host, under the path that the server knows?",
        )
    walk.directories.append(ListedDirectory(path=tablespace.path, mode=stat.S_IMODE(facts.st_mode)))
    for entry in own:
        _visit(entry, f"{tablespace.path}/{entry.name}", walk)


def require_location(tablespace: ListedTablespace, owner: int) -> os.stat_result:
    """Refuse a link in ``pg_tblspc`` that does not lead straight to a folder of the server's user.

    Whoever reads a cluster as root reads where its server's user points him: a link to a link, or to somebody else's
    folder, is not what CREATE TABLESPACE makes.

    Raises:
        UnsupportedClusterError: saying what is there instead.
        OSError: it cannot be looked at.
    """
    if not os.path.isabs(tablespace.target):  # noqa: PTH117 - text from a link
        raise UnsupportedClusterError(
            f"{tablespace.path} is a relative link, to {tablespace.target}",
            hint="PostgreSQL makes absolute ones; pg_basebackup cannot follow it either.",
        )
    facts = os.lstat(tablespace.target)
    if stat.S_ISLNK(facts.st_mode):
        raise UnsupportedClusterError(
            f"{tablespace.path} is a link to {tablespace.target}, which is a link itself",
            hint="Stop the server and let the link in pg_tblspc lead straight to the folder.",
        )
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != owner:
        raise UnsupportedClusterError(
            f"{tablespace.path} leads to {tablespace.target}, which is no folder of the data directory's owner",
            hint="A tablespace belongs to the user the server runs as; nothing else is read through it.",
        )
    return facts


def _leave_out_locations(data_directory: Path, walk: _Walk) -> None:
    """Leave out what was listed as part of the data directory and is the location of a tablespace inside of it."""
    root = os.path.realpath(data_directory)
    inside = tuple(
        os.path.relpath(place, root) + "/"
        for place in (os.path.realpath(item.target) for item in walk.tablespaces if not item.in_place)
        if place.startswith(f"{root}/")
    )
    if inside:
        walk.files = [item for item in walk.files if not item.path.startswith(inside)]
        walk.directories = [item for item in walk.directories if not item.path.startswith(inside)]


def _children(path: str) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            found = sorted(entries, key=lambda each: each.name)
    except FileNotFoundError:  # a dropped database
        return
    yield from found


def _relation_key(part: RelationPart) -> tuple[int | None, int, int]:
    return (part.tablespace, part.database, part.file_node)


def _special_kind(mode: int) -> str:
    for test, name in (
        (stat.S_ISFIFO, "named pipe"),
        (stat.S_ISSOCK, "socket"),
        (stat.S_ISBLK, "block device"),
        (stat.S_ISCHR, "character device"),
    ):
        if test(mode):
            return name
    return "unknown kind of file"
