"""Extra tablespaces (trap T10): what a snapshot knows about them and where a restore puts them.

A snapshot keeps the content of each below ``pg_tblspc/OID``, wherever it lay. A restore leaves it there, inside the
restored folder (PostgreSQL calls that *in place*), unless it is told another folder: nothing of a restore ever lies
where production has its tablespaces. The paths in ``tablespace_map`` are for people to name tablespaces by;
PostgreSQL, which would make links of them, never sees them.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from drservice.components.postgres.connection import Session
from drservice.components.postgres.controlfile import ControlFile
from drservice.components.postgres.layout import TABLESPACES
from drservice.errors import FormatError, TargetDirectoryError, UsageError
from drservice.repository.nodes import Entry, EntryKind
from drservice.repository.reader import SnapshotReader
from drservice.repository.target import require_space

MAP_NAME = "tablespace_map"
_MAP_LINE = re.compile(rb"(\d{1,10}) (.+)\Z", re.DOTALL)
_ESCAPED = re.compile(rb"\\([\n\r\\])")
_LINE = re.compile(rb"((?:\\[\n\r\\]|[^\n])*)\n")
_PATH = re.compile(rb"pg_tblspc/(\d+)(?:/|\Z)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """A tablespace that a restore puts into a folder of its own."""

    oid: int
    location: str
    """Where production has it; empty for one in place."""
    folder: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedTablespace:
    """An extra tablespace as the server lists it."""

    oid: int
    name: str
    location: str
    """Empty, or relative, for one in place."""
    size_bytes: int | None
    """``None``: this role may not see it."""

    def __str__(self) -> str:
        """Return it for people."""
        place = f"at {self.location}" if self.location.startswith("/") else "in place"
        size = f"{self.size_bytes:,} bytes" if self.size_bytes is not None else "this role may not see its size"
        return f"{self.name} ({self.oid}) {place}, {size}"


def named_tablespaces(session: Session) -> list[NamedTablespace]:
    """Ask a server for its extra tablespaces and their sizes; the server looks at each of their files for that.

    Raises:
        PostgresError, PostgresUnreachableError: as :meth:`Session.rows`.
    """
    rows = session.rows(
        "select oid, spcname, pg_tablespace_location(oid), case when has_tablespace_privilege(oid, 'create')"
        " or pg_has_role('pg_read_all_stats', 'usage') then pg_tablespace_size(oid) end"
        " from pg_tablespace where spcname not in ('pg_default', 'pg_global') order by oid"
    )
    return [
        NamedTablespace(oid=int(oid), name=name, location=place, size_bytes=None if size is None else int(size))
        for oid, name, place, size in rows
    ]


def version_directory(control: ControlFile, major: int) -> str:
    """Return the name of the folder that a server keeps in each of its tablespaces."""
    return f"PG_{major}_{control.catalog_version}"


def parse_map(content: bytes) -> dict[int, str]:
    """Return which tablespaces ``tablespace_map`` names, and where they lay; those in place are left out.

    Raises:
        FormatError: a line is none.
    """
    found: dict[int, str] = {}
    position = 0
    for line in _LINE.finditer(content):
        match = _MAP_LINE.match(line[1])
        if match is None or line.start() != position:
            break
        position = line.end()
        if match[2].startswith(b"/"):  # 16 and later name those in place, too
            found[int(match[1])] = os.fsdecode(_ESCAPED.sub(rb"\1", match[2]))
    if position != len(content):
        raise FormatError("tablespace_map cannot be read")
    return found


def write_map(locations: Mapping[int, str]) -> bytes:
    """Return what :func:`parse_map` reads."""
    return b"".join(
        b"%d %s\n" % (oid, re.sub(rb"([\n\r\\])", rb"\\\1", os.fsencode(place)))
        for oid, place in sorted(locations.items())
    )


def oid_of(path: bytes) -> int | None:
    """Tell to which extra tablespace a path of a snapshot belongs."""
    match = _PATH.match(path)
    return int(match[1]) if match else None


def choose_folders(
    asked: Mapping[str, Path], *, oids: Sequence[int], locations: Mapping[int, str], target: Path | None
) -> tuple[Moved, ...]:
    """Decide which tablespaces go into folders of their own; look at the folders, change nothing.

    Args:
        asked: location or OID of a tablespace, and where it is to lie.
        oids: those of the snapshot.
        locations: where production has them.
        target: the restored folder; ``None`` = inside the environment.

    Raises:
        UsageError: a tablespace that the snapshot does not have, one named twice, a path that is not absolute.
        TargetDirectoryError: a folder is not new or empty, or two lie in each other.
    """
    moved: dict[int, Moved] = {}
    for old, folder in asked.items():
        oid = _named(old, oids, locations)
        if oid in moved:
            raise UsageError(f"tablespace {oid} is given two places: {moved[oid].folder} and {folder}")
        if not folder.is_absolute() or ".." in folder.parts:
            raise UsageError(f"{folder} is no absolute path", hint="--tablespace OLD=NEW needs one behind the =.")
        moved[oid] = Moved(oid=oid, location=locations.get(oid, ""), folder=folder)
    places = [("the restored folder", target)] if target is not None else []
    for item in moved.values():
        _require_new(item.folder)
        for name, other in places:
            if _overlap(item.folder, other):
                raise TargetDirectoryError(
                    f"{item.folder} and {name} ({other}) lie in each other",
                    hint="Give each tablespace a folder of its own outside the restored one; without --tablespace"
                    " it lies inside.",
                )
        places.append((f"the place of tablespace {item.oid}", item.folder))
    return tuple(moved.values())


def _named(old: str, oids: Sequence[int], locations: Mapping[int, str]) -> int:
    for oid in oids:
        if old == str(oid) or (old.startswith("/") and old.rstrip("/") == locations.get(oid)):
            return oid
    known = ", ".join(f"{oid} ({locations.get(oid, 'in place')})" for oid in oids)
    raise UsageError(
        f"the snapshot has no tablespace {old}",
        hint=f"It has {known or 'none'}. One that is created later lies in the restored folder.",
    )


def _require_new(folder: Path) -> None:
    try:
        facts = folder.lstat()
        if not stat.S_ISDIR(facts.st_mode):
            raise TargetDirectoryError(f"{folder} is no directory")
        first = next(folder.iterdir(), None)
    except FileNotFoundError:
        return
    except OSError as error:
        raise TargetDirectoryError(f"cannot look at {folder}: {error.strerror}") from error
    if first is not None:
        raise TargetDirectoryError(
            f"{folder} is not empty (it holds {first.name})", hint="Give each tablespace a new or empty folder."
        )


def _overlap(one: Path, other: Path) -> bool:
    first, second = Path(os.path.realpath(one)), Path(os.path.realpath(other))
    return first.is_relative_to(second) or second.is_relative_to(first)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutsideOf:
    """Sees a snapshot's entries without the content of moved tablespaces: a link stands for each."""

    moved: tuple[Moved, ...]

    def __call__(self, entries: Iterator[Entry]) -> Iterator[Entry]:
        """Yield the entries that belong into the restored folder."""
        folders = {item.oid: item.folder for item in self.moved}
        for entry in entries:
            oid = oid_of(entry.path)
            if oid is None or oid not in folders:
                yield entry
            elif entry.path == _root_of(oid):
                yield Entry(path=entry.path, kind=EntryKind.LINK, mode=0o777, target=os.fsencode(folders[oid]))


@dataclass(frozen=True, slots=True, kw_only=True)
class InsideOf:
    """Sees what belongs into the folder of one tablespace."""

    oid: int

    @property
    def prefix(self) -> bytes:
        """What its paths begin with in the snapshot."""
        return _root_of(self.oid) + b"/"

    def __call__(self, entries: Iterator[Entry]) -> Iterator[Entry]:
        """Yield its entries as seen from its folder."""
        prefix = self.prefix
        for entry in entries:
            if entry.path.startswith(prefix):
                yield replace(entry, path=entry.path[len(prefix) :])


def require_room(reader: SnapshotReader, target: Path | None, moved: Sequence[Moved]) -> None:
    """Refuse to begin what cannot end, on each file system that is written to.

    Args:
        reader: the snapshot.
        target: the restored folder; ``None``: its own room is looked at elsewhere.
        moved: tablespaces with folders of their own.

    Raises:
        RecoveryError: with the bytes that are free and needed.
    """
    folders = {item.oid: item.folder for item in moved}
    sizes: dict[Path, int] = dict.fromkeys(folders.values(), 0)
    for entry in reader.entries():
        oid = oid_of(entry.path)
        place = folders.get(oid, target) if oid is not None else target
        if place is not None:
            sizes[place] = sizes.get(place, 0) + entry.size
    needed: dict[int, tuple[Path, int]] = {}
    for folder, size in sizes.items():
        there = next(path for path in (folder, *folder.parents) if path.exists())
        device = there.stat().st_dev
        needed[device] = (there, needed.get(device, (there, 0))[1] + size)
    for there, size in needed.values():
        require_space(there, size)


def _root_of(oid: int) -> bytes:
    return b"%s/%d" % (TABLESPACES.encode(), oid)
