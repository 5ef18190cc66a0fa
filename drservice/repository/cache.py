"""The writing host's memory of its last snapshot: what makes the next one incremental.

One SQLite file per component below ``state_dir/cache``. It holds plain metadata (paths, chunk ids, places), never
file content, and may be deleted at the price of a full upload. A run reads the old file and stages a new one beside
it, which replaces the old one only after the snapshot is committed; where all is as it was, there is no new one, and
the sums beside the file say which snapshot it is of by now. A file whose BLAKE3 is not the one it was published with
counts as absent: a rotten place in it would end up in a snapshot that cannot be restored.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import quote

import msgpack
from blake3 import blake3

from drservice.errors import CaptureError
from drservice.model.ids import KeyId
from drservice.processes import create_private, make_folder
from drservice.repository.chunktable import ChunkTable, live_bytes
from drservice.repository.marks import make_folder_mark
from drservice.repository.nodes import NodeRef, decode_leaf

_SCHEMA = """
create table meta (name text primary key, value text not null) without rowid;
create table entries (path blob primary key, body blob not null, mark blob) without rowid;
create table folders (path blob primary key, mark blob not null) without rowid;
create table regions (first blob primary key, node blob not null, files integer not null, source integer not null,
  usage blob) without rowid;
create table nodes (id blob primary key, ref blob, leaf blob, usage blob) without rowid;
create table packs (name blob primary key, kind text not null, key_id text not null, stored integer not null)
  without rowid;
"""
_FORMAT = "4"
_READABLE = frozenset({"3", _FORMAT})
"""Version 2 remembered files with damaged pages as unchanged; version 3 knows no marks of folders."""
_PIECE_BYTES = 1 << 20
_TUNING = "pragma page_size = 16384; pragma cache_size = -16384;"
"""Measured: taking over 40,000 entries is a tenth faster than with SQLite's pages of 4 KiB and cache of 2 MB (then with
one of 32 MB, of which a backup of a million documents must do without half)."""


@dataclass(frozen=True, slots=True)
class Region:
    """An ``entries`` node of a tree: what begins at ``first``, and what its files use."""

    first: bytes
    node: bytes
    files: int
    source_bytes: int
    usage: Mapping[bytes, int] | None
    """Stored bytes by data pack; ``None`` where large files have leaves, which are counted one by one."""
    pack: bytes = b""
    """Where the last snapshot has the node; ``b""`` for a node of this run."""


class SnapshotCache:
    """The cache of the last committed snapshot, open for reading."""

    def __init__(self, path: Path, *, total: str = "", meta: Mapping[str, str] | None = None) -> None:
        self.path = path
        self.total = total
        """The file's BLAKE3."""
        self._db = sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True, check_same_thread=False)
        self._meta = meta

    @classmethod
    def open(cls, path: Path, *, identity: Mapping[str, str]) -> SnapshotCache | None:
        """Open the cache if it exists, is whole and was made for the same repository and component."""
        if not path.exists():
            return None
        total = _sum_of(path)
        published = _published_sums(path)
        if total not in published:
            return None
        try:
            cache = cls(path, total=total, meta=published[total])
            meta = cache.meta()
        except sqlite3.DatabaseError:
            # Only a cache: the snapshot becomes a full upload, and the file is replaced at its end.
            return None
        if meta.get("format") not in _READABLE or any(meta.get(name) != value for name, value in identity.items()):
            cache.close()
            return None
        return cache

    def meta(self) -> dict[str, str]:
        """Return the facts the snapshot was stored with: the newest of those that left the file as it was."""
        if self._meta is None:
            self._meta = dict(self._db.execute("select name, value from meta"))
        return dict(self._meta)

    @property
    def knows_folders(self) -> bool:
        """Whether it may hold marks of folders."""
        return self.meta().get("format") == _FORMAT

    def folder_mark(self, folder: bytes) -> bytes | None:
        """Return the mark of a folder, if one says all that those of its files say."""
        if not self.knows_folders:
            return None
        row = self._db.execute("select mark from folders where path = ?", (folder,)).fetchone()
        return row[0] if row else None

    @cached_property
    def entries(self) -> int:
        """How many entries it holds."""
        (amount,) = self._db.execute("select count(*) from entries").fetchone()
        return int(amount)

    def count_regions(self) -> int:
        """Return how many nodes of entries it holds."""
        (amount,) = self._db.execute("select count(*) from regions").fetchone()
        return int(amount)

    def entry(self, path: bytes) -> bytes | None:
        """Return the encoded entry of a path."""
        row = self._db.execute("select body from entries where path = ?", (path,)).fetchone()
        return row[0] if row else None

    def unmarked_entry(self, path: bytes) -> bytes | None:
        """Return the encoded entry of a path if it has no mark: a folder, a link."""
        row = self._db.execute("select body from entries where path = ? and mark is null", (path,)).fetchone()
        return row[0] if row else None

    def marks(self, folder: bytes) -> dict[bytes, bytes | None]:
        """Return path -> mark (see :mod:`marks`) of all that lies below a folder (``b""`` for the whole tree)."""
        if not folder:
            return dict(self._db.execute("select path, mark from entries"))
        span = (folder + b"/", folder + b"0")  # "0" is the byte behind "/"
        return dict(self._db.execute("select path, mark from entries where path > ? and path < ?", span))

    def mark(self, path: bytes) -> bytes | None:
        """Return the mark of one path."""
        row = self._db.execute("select mark from entries where path = ?", (path,)).fetchone()
        return row[0] if row else None

    def regions(self) -> Iterator[Region]:
        """Yield the nodes that hold the tree's entries, in order."""
        rows = self._db.execute(
            "select first, node, files, source, regions.usage, ref from regions join nodes on nodes.id = node"
            " where ref is not null order by first"
        )
        for first, node, files, source, usage, ref in rows:
            place = NodeRef.from_list(msgpack.unpackb(ref), "a cached node")
            known = None if usage is None else dict(msgpack.unpackb(usage))
            yield Region(first, node, files, source, known, place.pack)

    def leaf(self, node_id: bytes) -> ChunkTable | None:
        """Return the chunk table of a leaf."""
        row = self._db.execute("select leaf from nodes where id = ?", (node_id,)).fetchone()
        return decode_leaf(row[0], "a cached leaf") if row and row[0] is not None else None

    def node(self, node_id: bytes) -> NodeRef | None:
        """Return where a node is stored."""
        row = self._db.execute("select ref from nodes where id = ?", (node_id,)).fetchone()
        return NodeRef.from_list(msgpack.unpackb(row[0]), "a cached node") if row and row[0] is not None else None

    def usage(self, node_id: bytes) -> dict[bytes, int] | None:
        """Return the stored bytes a leaf uses of each pack."""
        row = self._db.execute("select usage from nodes where id = ?", (node_id,)).fetchone()
        return dict(msgpack.unpackb(row[0])) if row and row[0] is not None else None

    def packs(self) -> Iterator[tuple[bytes, str, KeyId, int]]:
        """Yield (name, kind, key id, stored bytes) of every pack the snapshot uses."""
        return iter(self._db.execute("select name, kind, key_id, stored from packs"))

    def close(self) -> None:
        """Release the file."""
        self._db.close()


class StagedCache:
    """The cache of a snapshot that is being written."""

    def __init__(self, final: Path, *, old: SnapshotCache | None) -> None:
        self._final = final
        self._path = final.with_suffix(".staged")
        self._old = old
        self._made: sqlite3.Connection | None = None
        self._carried: list[Region] = []
        self._kept: dict[bytes, int] = {}
        self._same: set[bytes] = set()
        self._noted: set[bytes] = set()
        self._places: dict[bytes, NodeRef] = {}
        self._packs: list[tuple[bytes, str, KeyId, int]] = []
        make_folder(final.parent)
        self._remove()

    @property
    def _db(self) -> sqlite3.Connection:
        """The staged file. It is made when first it is to hold, or show, what the old one might not."""
        if self._made is None:
            # Nothing here must survive a crash before publish(), which makes the file durable as a whole.
            with self._translation():
                made = self._made = private_database(self._path)
                made.executescript(_TUNING)
                if self._old is not None:
                    source = f"file:{quote(os.fsencode(self._old.path))}?mode=ro&immutable=1"
                    made.execute("attach database ? as old", (source,))
                made.executescript("pragma journal_mode = off; pragma synchronous = off; begin;" + _SCHEMA)
            self.carry(list(self._same))
            for folder in self._kept:
                self._copy_folder(folder)
            for place in self._places.values():
                self.put_place(place)
        return self._made

    def put_entry(self, path: bytes, body: bytes) -> None:
        """Stage an entry; a later one for the same path replaces it."""
        if self._made is None and self._old is not None and self._old.unmarked_entry(path) == body:
            self._same.add(path)
            return
        self._write("insert or replace into entries values (?, ?, null)", (path, body))

    def put_entries(self, rows: Sequence[tuple[bytes, bytes, bytes]]) -> None:
        """Stage many entries with their marks: (path, body, mark)."""
        if rows:
            with self._translation():
                self._db.executemany("insert or replace into entries values (?, ?, ?)", rows)

    def carry_folder(self, folder: bytes, files: int, *, without: Sequence[bytes] = ()) -> None:
        """Take over what lies below a folder as it was in the old cache.

        Args:
            folder: which one; not the root.
            files: how many entries that are.
            without: their paths that are not taken over.
        """
        if self._made is None and not without:
            self._kept[folder] = files
            return
        self._copy_folder(folder)
        if without:
            with self._translation():
                self._db.executemany("delete from entries where path = ?", ((path,) for path in without))

    def _copy_folder(self, folder: bytes) -> None:
        self._write(
            "insert or replace into entries select path, body, mark from old.entries where path > ? and path < ?",
            (folder + b"/", folder + b"0"),
        )
        if self._old is not None and self._old.knows_folders:
            self._write("insert or replace into folders select * from old.folders where path = ?", (folder,))

    def note_folder(self, folder: bytes) -> None:
        """Let a folder have a mark of its own at the end, if one can say what those of its files say."""
        self._noted.add(folder)

    def carry(self, paths: Sequence[bytes]) -> None:
        """Take over single paths as they were in the old cache."""
        if not paths:
            return
        with self._translation():
            self._db.executemany(
                "insert or replace into entries select path, body, mark from old.entries where path = ?",
                ((path,) for path in paths),
            )

    def changed_paths(self) -> list[bytes]:
        """Return, in order, the paths that are new, gone or other than in the old cache (all of them without one)."""
        if self._old is None:
            return [path for (path,) in self._db.execute("select path from entries order by path")]
        if self._is_as_it_was():
            return []
        rows = self._db.execute(
            "select path, o.path is null from entries left join old.entries as o using (path)"
            " where o.body is not entries.body"
        )
        changed, added = [], 0
        for path, is_new in rows:
            changed.append(path)
            added += is_new
        if self._count("entries") - added < self._count("old.entries"):
            gone = "select path from old.entries as o where not exists (select 1 from main.entries where path = o.path)"
            changed += [path for (path,) in self._db.execute(gone)]
        return sorted(changed)

    def _is_as_it_was(self) -> bool:
        """Tell whether all entries are taken over from the old cache, and no others are here."""
        kept = len(self._same) + sum(self._kept.values())
        return self._made is None and self._old is not None and self._old.entries == kept

    def _count(self, table: str) -> int:
        (amount,) = self._db.execute(f"select count(*) from {table}").fetchone()  # noqa: S608  # names of this module
        return int(amount)

    def old_regions(self) -> Iterator[Region]:
        """Yield the nodes of the last snapshot that hold entries, in order."""
        return self._old.regions() if self._old is not None else iter(())

    def carry_region(self, region: Region) -> None:
        """Take over a node that holds entries, with its place, as it was in the old cache."""
        self._carried.append(region)  # until the end the old cache tells its place

    def put_region(self, region: Region) -> None:
        """Record a node of the new tree that holds entries."""
        usage = None if region.usage is None else msgpack.packb(list(region.usage.items()))
        self._write(
            "insert or replace into regions values (?, ?, ?, ?, ?)",
            (region.first, region.node, region.files, region.source_bytes, usage),
        )

    def drop_entry(self, path: bytes) -> None:
        """Forget an entry (the file vanished)."""
        self._write("delete from entries where path = ?", (path,))

    def entries(self, begin: bytes = b"", end: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        """Yield (path, body) in order of path, from ``begin`` up to but not ``end``."""
        if end is None:
            return iter(self._db.execute("select path, body from entries where path >= ? order by path", (begin,)))
        span = (begin, end)
        return iter(self._db.execute("select path, body from entries where path >= ? and path < ? order by path", span))

    def put_leaf(self, node_id: bytes, body: bytes, table: ChunkTable) -> None:
        """Stage a leaf whose place is not known yet."""
        usage = msgpack.packb(list(live_bytes(table).items()))
        self._write(
            "insert into nodes values (?, null, ?, ?)"
            " on conflict (id) do update set leaf = excluded.leaf, usage = excluded.usage",
            (node_id, body, usage),
        )

    def put_place(self, ref: NodeRef) -> None:
        """Record where a node is stored."""
        if self._made is None:
            self._places[ref.node_id] = ref
            return
        packed = msgpack.packb(ref.to_list())
        self._write(
            "insert into nodes values (?, ?, null, null) on conflict (id) do update set ref = excluded.ref",
            (ref.node_id, packed),
        )

    def keep_leaf(self, node_id: bytes) -> dict[bytes, int] | None:
        """Carry a leaf over from the old cache; return its use of packs, ``None`` if nobody knows it."""
        row = self._db.execute("select usage from nodes where id = ? and leaf is not null", (node_id,)).fetchone()
        if row is None and self._old is not None:
            old = self._old._db.execute(  # noqa: SLF001  # the two classes share one file format
                "select id, ref, leaf, usage from nodes where id = ? and leaf is not null", (node_id,)
            ).fetchone()
            if old is not None:
                self._write("insert or replace into nodes values (?, ?, ?, ?)", old)
                row = (old[3],)
        return dict(msgpack.unpackb(row[0])) if row and row[0] is not None else None

    def node(self, node_id: bytes) -> NodeRef | None:
        """Return where a node is stored, from this run or the last snapshot."""
        if self._made is None:
            if node_id in self._places:
                return self._places[node_id]
        else:
            row = self._made.execute("select ref from nodes where id = ?", (node_id,)).fetchone()
            if row and row[0] is not None:
                return NodeRef.from_list(msgpack.unpackb(row[0]), "a staged node")
        return self._old.node(node_id) if self._old is not None else None

    def put_pack(self, name: bytes, kind: str, key_id: KeyId, stored_bytes: int) -> None:
        """Record a pack the snapshot uses."""
        self._packs.append((name, kind, key_id, stored_bytes))

    def publish(self, meta: Mapping[str, str]) -> None:
        """Replace the old cache, durably, or say that it is of this snapshot now; call it after the commit."""
        meta = {**meta, "format": _FORMAT}
        with self._translation():
            if self._old is not None and self._old.knows_folders and self._is_what_it_was(self._old):
                _publish_sums(self._final, {self._old.total: meta})
                return
            self._fill(meta)
            self._db.execute("commit")
            self._db.close()  # detaches the old one too
            descriptor = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            # Both sums count while the file is exchanged, so a crash in between costs nothing.
            _publish_sums(self._final, {_sum_of(self._path): None, **_newest(_published_sums(self._final))})
            self._path.replace(self._final)

    def _is_what_it_was(self, old: SnapshotCache) -> bool:
        """Tell whether the new file would be the old one but for the facts of the snapshot."""
        return (
            self._is_as_it_was()
            and len(self._carried) == old.count_regions()
            and all(old.node(ref.node_id) == ref for ref in self._places.values())
            and set(self._packs) == set(old.packs())
        )

    def _fill(self, meta: Mapping[str, str]) -> None:
        """Write what is known at the end only."""
        self._db.executemany("insert or replace into meta values (?, ?)", meta.items())
        self._db.executemany("insert or replace into packs values (?, ?, ?, ?)", self._packs)
        self._mark_folders()
        if self._carried:
            self._db.executemany(
                "insert or replace into nodes select * from old.nodes where id = ?",
                [(region.node,) for region in self._carried],
            )
            self._db.executemany(
                "insert or replace into regions select * from old.regions where first = ?",
                [(region.first,) for region in self._carried],
            )

    def _mark_folders(self) -> None:
        for folder in self._noted:
            begin = len(folder) + 1
            span = (folder + b"/", folder + b"0")
            rows = self._db.execute("select path, mark from entries where path > ? and path < ?", span)
            mark = make_folder_mark({path[begin:]: mark for path, mark in rows})
            self._db.execute("delete from folders where path = ?", (folder,))  # what was copied is of other files
            if mark is not None:
                self._db.execute("insert into folders values (?, ?)", (folder, mark))

    def discard(self) -> None:
        """Throw the staged file away."""
        if self._made is not None:
            self._made.close()
        self._remove()

    def _write(self, statement: str, values: Sequence[object]) -> None:
        with self._translation():
            self._db.execute(statement, values)

    @contextmanager
    def _translation(self) -> Iterator[None]:
        """Say in words that this host's disk is full or broken: the store has nothing to do with it."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise CaptureError(
                f"cannot write {self._path}: {error}",
                hint="Free space below state_dir and run the backup again; what was uploaded is re-used, and a snapshot"
                " that `drservice info` shows is whole.",
            ) from error

    def _remove(self) -> None:
        with suppress(FileNotFoundError):
            self._path.unlink()


def private_database(path: Path) -> sqlite3.Connection:
    """Make a new SQLite file, of this user or of the folder's owner, and open it; whatever stood there is unlinked.

    Raises:
        OSError, sqlite3.Error: it cannot be made.
        CaptureError: somebody exchanged it between making and opening.
    """
    descriptor = create_private(path)
    try:
        uri = f"file:{quote(os.fsencode(path))}"
        database = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
        # SQLite opens by name and follows links: nothing is written before it is known to be the file just made.
        if not os.path.samestat(os.fstat(descriptor), path.lstat()):
            database.close()
            raise CaptureError(f"{path} was exchanged while it was made", hint="Look who else writes below state_dir.")
    finally:
        os.close(descriptor)
    return database


def _sum_of(path: Path) -> str:
    """Return the BLAKE3 of a file, read piece by piece: mapped, all of it would count as this process's memory."""
    total = blake3(max_threads=blake3.AUTO)
    piece = memoryview(bytearray(_PIECE_BYTES))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(piece):
            total.update(piece[:count])
    return total.hexdigest()


def sums_path(cache: Path) -> Path:
    """Return the file that says what a cache must be like; it is replaced by every run that ends well."""
    return cache.with_suffix(".sums")


def _published_sums(cache: Path) -> dict[str, dict[str, str] | None]:
    """Return the sums that a cache may have, the newest first, with what replaces its facts (``None``: nothing)."""
    try:
        lines = sums_path(cache).read_text(encoding="ascii").splitlines()
        return {total: _facts(said) for total, _, said in (line.partition(" ") for line in lines)}
    except (FileNotFoundError, ValueError):
        return {}  # without its sum the cache is not used


def _facts(said: str) -> dict[str, str] | None:
    """Read the facts behind a sum.

    Raises:
        ValueError: they are none.
    """
    if not said:
        return None
    facts = json.loads(said)
    if not isinstance(facts, dict) or not all(isinstance(value, str) for value in facts.values()):
        raise ValueError("no facts of a snapshot")
    return facts


def _newest(sums: Mapping[str, Mapping[str, str] | None]) -> dict[str, Mapping[str, str] | None]:
    return dict(list(sums.items())[:1])


def _publish_sums(cache: Path, sums: Mapping[str, Mapping[str, str] | None]) -> None:
    lines = [total if facts is None else f"{total} {json.dumps(dict(facts))}" for total, facts in sums.items()]
    temporary = cache.with_suffix(".sums.staged")
    with os.fdopen(create_private(temporary), "w", encoding="ascii") as stream:
        stream.write("\n".join(lines))
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(sums_path(cache))
