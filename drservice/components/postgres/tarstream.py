"""Reading the tar streams of a base backup, from the program or the server itself. Nothing is extracted here.

Source: POSIX ustar, with GNU's binary sizes above 8 GiB, as PostgreSQL's ``tarCreateHeader`` writes them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from drservice.errors import CaptureError

_BLOCK = 512
_PIECE_BYTES = 1 << 20


class TarKind(Enum):
    """What a member is."""

    FILE = "0"
    LINK = "2"
    DIRECTORY = "5"


@dataclass(frozen=True, slots=True, kw_only=True)
class TarMember:
    """A header of the stream."""

    path: bytes
    kind: TarKind
    mode: int
    size: int
    target: bytes


class ByteSource(Protocol):
    """Where the stream comes from."""

    def readinto(self, view: memoryview, /) -> int:
        """Fill ``view`` as far as there is something; 0 at the end."""
        ...

    def read(self, amount: int, /) -> bytes:
        """Return up to ``amount`` bytes; none at the end."""
        ...


class TarStream:
    """Walks members; the content of each must be read before the next header."""

    def __init__(self, source: ByteSource, *, is_terminated: bool = True) -> None:
        """``is_terminated``: blocks of zeros stand at the end (a server before 15 sends none)."""
        self._source = source
        self._is_terminated = is_terminated
        self._left = 0
        self._padding = 0
        self._buffer = memoryview(bytearray(_PIECE_BYTES))

    def members(self) -> Iterator[TarMember]:
        """Yield members until the end marker.

        Raises:
            CaptureError: the stream is cut off or damaged.
        """
        while True:
            self._skip()
            header = self._header()
            if header is None or not any(header):
                return
            yield self._parse(bytes(header))

    def pieces(self) -> Iterator[memoryview]:
        """Yield the present member's content in pieces of 1 MiB (the last shorter), each valid until the next.

        Raises:
            CaptureError: the stream is cut off.
        """
        while self._left:
            amount = min(self._left, _PIECE_BYTES)
            piece = self._fill(amount)
            self._left -= amount
            yield piece

    def read_all(self, limit_bytes: int) -> bytes:
        """Return the present member's content.

        Raises:
            CaptureError: it is longer than ``limit_bytes``, or cut off.
        """
        if self._left > limit_bytes:
            raise CaptureError(f"a member of the base backup has {self._left} bytes, which makes no sense")
        return b"".join(bytes(piece) for piece in self.pieces())

    def drain(self) -> None:
        """Read to the end of the stream, so that the writing program can end."""
        while self._source.read(_PIECE_BYTES):
            pass

    def _parse(self, header: bytes) -> TarMember:
        stored = int(header[148:156].rstrip(b"\0 ") or b"0", 8)
        if sum(header[:148]) + sum(header[156:]) + 8 * 32 != stored:
            raise CaptureError("the base backup's tar stream is damaged (a header does not add up)")
        prefix = header[345:500].rstrip(b"\0")
        name = header[:100].rstrip(b"\0")
        path = (prefix + b"/" + name if prefix else name).removeprefix(b"./").rstrip(b"/")
        letter = chr(header[156]) if header[156] else "0"
        try:
            kind = TarKind(letter)
        except ValueError as error:
            raise CaptureError(f"the base backup's tar stream has a member of unknown type {letter!r}") from error
        size = _number(header[124:136]) if kind is TarKind.FILE else 0
        self._left = size
        self._padding = -size % _BLOCK
        return TarMember(
            path=path, kind=kind, mode=_number(header[100:108]) & 0o777, size=size, target=header[157:257].rstrip(b"\0")
        )

    def _skip(self) -> None:
        for _ in self.pieces():
            pass
        if self._padding:
            self._exactly(self._padding)
            self._padding = 0

    def _header(self) -> memoryview | None:
        if self._is_terminated:
            return self._exactly(_BLOCK)
        first = self._source.read(1)
        if not first:
            return None
        self._buffer[:1] = first
        self._fill_from(1, _BLOCK)
        return self._buffer[:_BLOCK]

    def _exactly(self, length: int) -> memoryview:
        return self._fill(length)

    def _fill(self, length: int) -> memoryview:
        self._fill_from(0, length)
        return self._buffer[:length]

    def _fill_from(self, done: int, length: int) -> None:
        view = self._buffer[:length]
        while done < length:
            count = self._source.readinto(view[done:])
            if not count:
                raise CaptureError("the base backup's tar stream ended early")
            done += count


def _number(field: bytes) -> int:
    if field[0] & 0x80:
        return int.from_bytes(field[1:], "big")
    return int(field.strip(b"\0 ") or b"0", 8)
