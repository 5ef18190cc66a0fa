"""The run journal: what a killed backup had already uploaded, so that the next one re-uses it.

Each worker appends one frame per acknowledged pack to a file of its own. A torn last frame is ignored by its CRC. The
journal is only an aid: losing it costs uploads, never data.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from drservice.errors import CaptureError
from drservice.model.ids import KeyId
from drservice.processes import create_private, make_folder
from drservice.repository.cache import private_database
from drservice.repository.chunktable import ChunkRow
from drservice.repository.pack import TABLE_ROW, ClosedPack

_FRAME = struct.Struct(">4sII")
_FACTS = struct.Struct(">32s26sQ")
_MAGIC = b"DRJ1"
_MAX_PAYLOAD_BYTES = 64 << 20
"""The table of a pack is far smaller; a longer frame is damage, and is not read into memory."""
_SCHEMA = """
create table chunks (id blob primary key, pack blob not null, ordinal integer not null, start integer not null,
  stored integer not null, plain integer not null, codec integer not null) without rowid;
create table packs (name blob primary key, key_id text not null, stored integer not null) without rowid;
"""


class JournalWriter:
    """Appends acknowledged packs to one file."""

    def __init__(self, path: Path, key_id: KeyId) -> None:
        self._key_id = key_id
        self._path = path
        self._descriptor = create_private(path)

    def append(self, pack: ClosedPack) -> None:
        """Record one pack.

        Raises:
            CaptureError: this host's disk does not take it.
        """
        payload = _FACTS.pack(pack.name, self._key_id.encode(), pack.stored_bytes) + pack.table
        frame = memoryview(_FRAME.pack(_MAGIC, zlib.crc32(payload), len(payload)) + payload)
        try:
            while frame:
                frame = frame[os.write(self._descriptor, frame) :]
        except OSError as error:
            raise CaptureError(
                f"cannot write {self._path}: {error.strerror}",
                hint="Free space below state_dir and run the backup again; what was uploaded is re-used.",
            ) from error

    def close(self) -> None:
        """Release the file."""
        os.close(self._descriptor)


class ResumeIndex:
    """Chunks of an interrupted run, looked up by id. Read-only and shared by all workers."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True, check_same_thread=False)

    def find(self, chunk_id: bytes) -> tuple[bytes, ChunkRow] | None:
        """Return (pack name, row) of a chunk that is stored already."""
        row = self._db.execute(
            "select pack, ordinal, start, stored, plain, codec from chunks where id = ?", (chunk_id,)
        ).fetchone()
        if row is None:
            return None
        return row[0], ChunkRow(chunk_id, 0, *row[1:])

    def packs(self) -> Iterator[tuple[bytes, KeyId, int]]:
        """Yield (name, key id, stored bytes) of the packs of the interrupted run."""
        return iter(self._db.execute("select name, key_id, stored from packs"))

    def close(self) -> None:
        """Release the file."""
        self._db.close()


class JournalFolder:
    """The journals of one component below ``state_dir/journal``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._index_path = folder / "resume.sqlite"

    def begin(self) -> Path | None:
        """Make ready for a run: index what an interrupted one left and return the index, or ``None``.

        The old journals stay until :meth:`clear`, so that a second interruption loses nothing either.
        """
        make_folder(self.folder, mode=0o700)
        journals = sorted(path for path in self.folder.glob("*.journal") if not path.is_symlink())
        self._index_path.unlink(missing_ok=True)
        if not journals:
            return None
        database = private_database(self._index_path)
        try:
            database.executescript("pragma journal_mode = off; pragma synchronous = off; begin;" + _SCHEMA)
            for path in journals:
                for name, key_id, stored, table in _frames(path):
                    database.execute("insert or ignore into packs values (?, ?, ?)", (name, key_id, stored))
                    database.executemany(
                        "insert or ignore into chunks values (?, ?, ?, ?, ?, ?, ?)",
                        [
                            (chunk, name, ordinal, start, length, plain, codec)
                            for ordinal, (chunk, start, length, plain, codec) in enumerate(TABLE_ROW.iter_unpack(table))
                        ],
                    )
            database.execute("commit")
        finally:
            database.close()
        return self._index_path

    def writer(self, name: str, key_id: KeyId) -> JournalWriter:
        """Open the journal of one worker."""
        return JournalWriter(self.folder / f"{name}.journal", key_id)

    def clear(self) -> None:
        """Forget everything: the run is committed."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _frames(path: Path) -> Iterator[tuple[bytes, str, int, bytes]]:
    """Yield the whole frames of a journal, one in memory at a time, up to the first that is torn or damaged."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        return
    with os.fdopen(descriptor, "rb") as stream:
        while len(head := stream.read(_FRAME.size)) == _FRAME.size:
            magic, checksum, length = _FRAME.unpack(head)
            if magic != _MAGIC or not _FACTS.size <= length <= _MAX_PAYLOAD_BYTES:
                return
            payload = stream.read(length)
            if len(payload) != length or zlib.crc32(payload) != checksum:
                return
            name, key_id, stored = _FACTS.unpack_from(payload)
            yield name, key_id.decode(), stored, payload[_FACTS.size :]
