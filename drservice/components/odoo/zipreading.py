"""Reading the zip of a backup of Odoo's without believing anything it says: ``manifest.json``, ``dump.sql``, documents.

Members are read where the directory at the end says, in the order of the file, and none may overlap another: what is
unpacked is never more than what the directory tells, and that can be compared with the free room before. Whatever a
name leads to, nothing is written by it here. Memory does not grow with the number of members.

Layout: PKWARE's APPNOTE.TXT 6.3, sections 4.3 and 4.5.3 (zip64). Odoo's layout: ``dump_db`` of ``odoo/service/db.py``.
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Self

from drservice.components.odoo_filestore.names import CHECKLIST, is_document
from drservice.errors import ImportRefusedError

_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64 = struct.Struct("<4sLQL")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_EXTRA = struct.Struct("<2H")
_LONGEST_COMMENT = 0xFFFF
_IN_64 = 0xFFFFFFFF
_SHORT_IN_64 = 0xFFFF
_ENCRYPTED = 1 << 0 | 1 << 6 | 1 << 13
_SIZES_FOLLOW = 1 << 3
_UNIX = 3
_STORED, _DEFLATED = 0, 8
_LONGEST_NAME = 1024
_PIECE_BYTES = 1 << 20
_MANIFEST_BYTES = 8 << 20
_FILESTORE = "filestore/"
_SHOWN = 10
_LONGEST_SHOWN = 100


class Part(Enum):
    """What a member is in a backup of Odoo's."""

    MANIFEST = "manifest.json"
    DUMP = "dump.sql"
    DOCUMENT = "document"
    IGNORED = "ignored"
    """A folder, or the list of files that Odoo's garbage collection looks at."""
    FOREIGN = "foreign"
    """A file that no backup of Odoo's holds; it is not imported."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One member as the directory tells it."""

    name: str
    part: Part
    offset: int
    """Of its local header."""
    stored_bytes: int
    size: int
    crc: int
    method: int

    @property
    def document(self) -> str:
        """A document's name within the filestore: ``xx/<sha1>``."""
        return self.name.removeprefix(_FILESTORE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """What a zip says it holds."""

    manifest: Member
    dump: Member
    documents: int
    documents_bytes: int
    foreign: tuple[str, ...]
    """The first few of them, as text that can be shown."""
    foreign_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Directory:
    begin: int
    end: int
    entries: int


class OdooZipFile:
    """An open zip; use it as a context manager. Every failure to read it as expected is an error, never an end."""

    def __init__(self, path: Path) -> None:
        """Open the file.

        Raises:
            ImportRefusedError: there is none, or it is no zip, or of several parts.
        """
        self.path = path
        self._window_at, self._window = 0, b""
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise ImportRefusedError(f"cannot open {path}: {error.strerror}", hint="Name the zip itself.") from error
        try:
            self._facts = os.fstat(self._descriptor)
            self._directory = self._find_directory()
        except BaseException:
            os.close(self._descriptor)
            raise

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        os.close(self._descriptor)

    @property
    def size(self) -> int:
        """Of the whole file, when it was opened."""
        return self._facts.st_size

    def sha256(self, heard: Callable[[int], None]) -> str:
        """Read the whole file and return its SHA-256 (hex)."""
        digest = hashlib.sha256()
        at = 0
        while at < self.size:
            piece = self._read(at, min(_PIECE_BYTES, self.size - at))
            digest.update(piece)
            at += len(piece)
            heard(len(piece))
        return digest.hexdigest()

    def require_unchanged(self) -> None:
        """Refuse a file that somebody wrote to since it was opened.

        Raises:
            ImportRefusedError: it has another size or time by now.
        """
        now = os.fstat(self._descriptor)
        before = self._facts
        if (now.st_size, now.st_mtime_ns, now.st_ctime_ns) != (before.st_size, before.st_mtime_ns, before.st_ctime_ns):
            raise ImportRefusedError(
                f"{self.path} was changed while it was read", hint="Wait until it is written, then import it."
            )

    def inventory(self) -> Inventory:
        """Look through the whole directory.

        Raises:
            ImportRefusedError: it is none of a backup of Odoo's, or holds what must not be unpacked.
        """
        known: dict[Part, Member] = {}
        foreign: list[str] = []
        documents = documents_bytes = foreign_count = 0
        for member in self.members():
            if member.part in {Part.MANIFEST, Part.DUMP}:
                if member.part in known:
                    raise self._refused(f"it has {member.name} twice")
                known[member.part] = member
            elif member.part is Part.DOCUMENT:
                documents += 1
                documents_bytes += member.size
            elif member.part is Part.FOREIGN:
                foreign_count += 1
                if len(foreign) < _SHOWN:
                    foreign.append(_shown(member.name))
        for part in (Part.MANIFEST, Part.DUMP):
            if part not in known:
                raise self._refused(f"it has no {part.value}: this is no backup of Odoo's with its documents")
        return Inventory(
            manifest=known[Part.MANIFEST],
            dump=known[Part.DUMP],
            documents=documents,
            documents_bytes=documents_bytes,
            foreign=tuple(foreign),
            foreign_count=foreign_count,
        )

    def members(self) -> Iterator[Member]:
        """Yield every member in the order of the file, each checked as far as the directory tells.

        Raises:
            ImportRefusedError: a name leads elsewhere, or members overlap, are encrypted, links, or told wrongly.
        """
        directory, at, free_from, count = self._directory, self._directory.begin, 0, 0
        while at < directory.end:
            member, at = self._entry(at)
            _, end = self._extent(member)
            if member.offset < free_from:
                raise self._refused(f"its members overlap or are out of order at {_shown(member.name)}")
            free_from = end
            count += 1
            yield member
        if count != directory.entries:
            raise self._refused(f"its directory has {count} members where {directory.entries} were told")

    def read(self, member: Member) -> Iterator[bytes]:
        """Yield the content of a member in pieces, at most as long as it was told to be.

        Raises:
            ImportRefusedError: it is longer, shorter or other than was told; found out at its end at the latest.
        """
        begin, end = self._extent(member)
        crc = total = 0
        for piece in self._stored(begin, end) if member.method == _STORED else self._inflated(member, begin, end):
            total += len(piece)
            if total > member.size:
                raise self._refused(f"{_shown(member.name)} is longer than it says")
            crc = zlib.crc32(piece, crc)
            yield piece
        if total != member.size or crc != member.crc:
            raise self._refused(f"{_shown(member.name)} is damaged: {total} of {member.size} bytes, or others")

    def manifest(self, member: Member) -> bytes:
        """Return the content of the manifest.

        Raises:
            ImportRefusedError: it is damaged, or too long to be one.
        """
        if member.size > _MANIFEST_BYTES:
            raise self._refused(f"{member.name} is too long to be one")
        return b"".join(self.read(member))

    def _stored(self, begin: int, end: int) -> Iterator[bytes]:
        while begin < end:
            piece = self._read(begin, min(_PIECE_BYTES, end - begin))
            begin += len(piece)
            yield piece

    def _inflated(self, member: Member, begin: int, end: int) -> Iterator[bytes]:
        inflating = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            for piece in self._stored(begin, end):
                if inflating.eof:
                    raise self._refused(f"{_shown(member.name)} is damaged: something follows its content")
                pending = piece
                while pending and not inflating.eof:
                    yield inflating.decompress(pending, _PIECE_BYTES)
                    pending = inflating.unconsumed_tail
            while not inflating.eof:
                rest = inflating.decompress(inflating.unconsumed_tail, _PIECE_BYTES)
                if not rest:
                    break
                yield rest
        except zlib.error as error:
            raise self._refused(f"{_shown(member.name)} is damaged: {error}") from error
        if not inflating.eof or inflating.unused_data:
            raise self._refused(f"{_shown(member.name)} is damaged: its content does not end where it says")

    def _entry(self, at: int) -> tuple[Member, int]:
        """Read one entry of the directory; return it and where the next one begins."""
        fields = _ENTRY.unpack(self._within(at, _ENTRY.size))
        magic, made_by, _, flags, method, _, _, crc, stored, size = fields[:10]
        name_length, extra_length, comment_length, disk, _, mode, offset = fields[10:]
        if magic != b"PK\x01\x02":
            raise self._refused("its directory is damaged")
        at += _ENTRY.size
        if not 0 < name_length <= _LONGEST_NAME:
            raise self._refused("a name in it is empty or too long")
        raw = self._within(at, name_length)
        name = _text(raw)
        if flags & _ENCRYPTED:
            raise self._refused(f"{_shown(name)} is encrypted", hint="Unpack it and pack it again without a password.")
        if method not in {_STORED, _DEFLATED}:
            raise self._refused(f"{_shown(name)} is packed by method {method}", hint="Pack it with deflate, as Odoo.")
        kind = stat.S_IFMT(mode >> 16) if made_by >> 8 == _UNIX else 0
        if kind not in {0, stat.S_IFREG, stat.S_IFDIR}:
            raise self._refused(f"{_shown(name)} is a link or a device")
        at += name_length
        size, stored, offset = self._in_64(self._within(at, extra_length), (size, stored, offset), name)
        if disk not in {0, _SHORT_IN_64}:
            raise self._refused("it has several parts")
        part = self._part(name)
        if kind == stat.S_IFDIR and part is not Part.IGNORED:
            raise self._refused(f"{_shown(name)} is a folder where a file belongs")
        member = Member(name=name, part=part, offset=offset, stored_bytes=stored, size=size, crc=crc, method=method)
        return member, at + extra_length + comment_length

    def _in_64(self, extra: bytes, told: tuple[int, int, int], name: str) -> tuple[int, int, int]:
        """Return size, stored size and offset, those that have 64 bits from the field for them (4.5.3)."""
        if _IN_64 not in told:
            return told
        at = 0
        while at + _EXTRA.size <= len(extra):
            tag, length = _EXTRA.unpack_from(extra, at)
            at += _EXTRA.size
            if tag == 1:
                wanted = [number for number, value in enumerate(told) if value == _IN_64]
                if length < 8 * len(wanted) or at + length > len(extra):
                    break
                found = list(told)
                for number, value in zip(wanted, struct.unpack_from(f"<{len(wanted)}Q", extra, at), strict=True):
                    found[number] = value
                return found[0], found[1], found[2]
            at += length
        raise self._refused(f"the size of {_shown(name)} is not told")

    def _extent(self, member: Member) -> tuple[int, int]:
        """Return where a member's content begins and ends; its own header has to agree with the directory."""
        begin = self._directory.begin
        if member.offset + _LOCAL.size > begin:
            raise self._refused(f"{_shown(member.name)} lies outside")
        fields = _LOCAL.unpack(self._read(member.offset, _LOCAL.size))
        magic, _, flags, method, _, _, _, stored, size, name_length, extra_length = fields
        at = member.offset + _LOCAL.size
        if magic != b"PK\x03\x04" or method != member.method or flags & _ENCRYPTED:
            raise self._refused(f"the header of {_shown(member.name)} says something else than the directory")
        if name_length > _LONGEST_NAME or at + name_length + extra_length + member.stored_bytes > begin:
            raise self._refused(f"{_shown(member.name)} lies outside")
        told = (stored, size)
        if not flags & _SIZES_FOLLOW and _IN_64 not in told and told != (member.stored_bytes, member.size):
            raise self._refused(f"{_shown(member.name)} has two sizes")
        if _text(self._read(at, name_length)) != member.name:
            raise self._refused(f"{_shown(member.name)} has two names")
        at += name_length + extra_length
        return at, at + member.stored_bytes

    def _part(self, name: str) -> Part:
        """Tell what a member is, and refuse a name that would lead anywhere else if somebody unpacked it."""
        parts = name.removesuffix("/").split("/")
        if name.startswith("/") or "\\" in name or ":" in parts[0] or {"", ".", ".."} & set(parts) or "\0" in name:
            raise self._refused(f"the name {_shown(name)} leads elsewhere")
        if name in {Part.MANIFEST.value, Part.DUMP.value}:
            return Part(name)
        if name.endswith("/") or name.startswith(f"{_FILESTORE}{CHECKLIST}/"):
            return Part.IGNORED
        if name.startswith(_FILESTORE) and is_document(name.removeprefix(_FILESTORE)):
            return Part.DOCUMENT
        return Part.FOREIGN

    def _find_directory(self) -> _Directory:
        if not stat.S_ISREG(self._facts.st_mode):
            raise ImportRefusedError(f"{self.path} is no file", hint="Name the zip itself.")
        tail_at = max(0, self.size - _LONGEST_COMMENT - _END.size)
        tail = self._read(tail_at, self.size - tail_at)
        at = len(tail)
        while (at := tail.rfind(b"PK\x05\x06", 0, at)) >= 0:
            if at + _END.size <= len(tail):
                fields = _END.unpack_from(tail, at)
                if at + _END.size + fields[7] == len(tail):
                    return self._directory_of(tail_at + at, fields)
        raise self._refused("it has no directory at its end: it is no zip, or cut")

    def _directory_of(self, end_at: int, fields: tuple[bytes, int, int, int, int, int, int, int]) -> _Directory:
        _, disk, begin_disk, here, entries, length, offset, _ = fields
        locator_at = end_at - _LOCATOR64.size
        if locator_at >= 0:
            magic, disk64, at64, _ = _LOCATOR64.unpack(self._read(locator_at, _LOCATOR64.size))
            if magic == b"PK\x06\x07":
                if disk64 or at64 + _END64.size > locator_at:
                    raise self._refused("its directory is damaged")
                end64 = _END64.unpack(self._read(at64, _END64.size))
                if end64[0] != b"PK\x06\x06" or at64 + 12 + end64[1] != locator_at:
                    raise self._refused("its directory is damaged")
                disk, begin_disk, here, entries, length, offset = end64[4:]
                end_at = at64
        if disk or begin_disk or here != entries:
            raise self._refused("it has several parts")
        if offset + length != end_at:
            raise self._refused("its directory is not where it says: it is cut, or something stands before it")
        return _Directory(begin=offset, end=end_at, entries=entries)

    def _within(self, at: int, length: int) -> bytes:
        """Read from the directory, and not beyond it."""
        if at + length > self._directory.end:
            raise self._refused("its directory is damaged")
        begin = at - self._window_at
        if begin < 0 or begin + length > len(self._window):
            self._window_at, begin = at, 0
            self._window = self._read(at, min(max(length, _PIECE_BYTES), self._directory.end - at))
        return self._window[begin : begin + length]

    def _read(self, at: int, length: int) -> bytes:
        try:
            found = os.pread(self._descriptor, length, at)
        except OSError as error:
            raise ImportRefusedError(
                f"{self.path} cannot be read: {error.strerror}", hint="Copy it to a disk that can be read."
            ) from error
        if len(found) != length:
            raise self._refused("it became shorter while it was read")
        return found

    def _refused(self, what: str, *, hint: str | None = None) -> ImportRefusedError:
        return ImportRefusedError(f"{self.path.name} is not imported: {what}", hint=hint)


def _text(raw: bytes) -> str:
    """Return a name as text that is the same for the same bytes; documents' names are ASCII."""
    return raw.decode("utf-8", "surrogateescape")


def _shown(name: str) -> str:
    """Return a name as people can see it on any terminal."""
    return ascii(name if len(name) <= _LONGEST_SHOWN else f"{name[:_LONGEST_SHOWN]}...")
