"""Bodies of objects: one buffer or several, never joined for the sake of writing them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator

from drservice.objectstore.interface import Body


def buffers_of(body: Body) -> tuple[memoryview, ...]:
    """Return the body as views of bytes, in order, without copying and without the empty ones."""
    parts = (body,) if isinstance(body, (bytes, bytearray, memoryview)) else body
    views = (memoryview(part).cast("B") for part in parts)
    return tuple(view for view in views if view.nbytes)


def size_of(body: Body) -> int:
    """Return the number of bytes a body has."""
    return sum(view.nbytes for view in buffers_of(body))


def same_bytes(body: Body, data: bytes) -> bool:
    """Tell whether ``data`` is exactly what ``body`` holds, without joining it."""
    if size_of(body) != len(data):
        return False
    rest = memoryview(data)
    for view in buffers_of(body):
        if rest[: view.nbytes] != view:
            return False
        rest = rest[view.nbytes :]
    return True


def same_pieces(body: Body, pieces: Iterable[bytes]) -> bool:
    """Tell whether pieces, one after the other, are exactly what ``body`` holds; only one is in memory at a time."""
    expected = BodyReader(body)
    return all(expected.read(len(piece)) == piece for piece in pieces) and not expected.read(1)


def md5_of(body: Body) -> bytes:
    """Return the MD5 digest of a body, for the ``Content-MD5`` header (transport only, not security)."""
    digest = hashlib.md5(usedforsecurity=False)
    for view in buffers_of(body):
        digest.update(view)
    return digest.digest()


class BodyReader:
    """A body as a seekable file, for libraries that want one; holds views, no copy of the whole."""

    def __init__(self, body: Body) -> None:
        self._buffers = buffers_of(body)
        self._size = sum(view.nbytes for view in self._buffers)
        self._position = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[bytes]:
        while block := self.read(1 << 20):
            yield block

    def read(self, size: int | None = -1) -> bytes:
        """Return up to ``size`` bytes from the present position, or all that is left."""
        wanted = self._size - self._position
        if size is not None and size >= 0:
            wanted = min(wanted, size)
        pieces = []
        skip = self._position
        for view in self._buffers:
            if wanted <= 0:
                break
            if skip >= view.nbytes:
                skip -= view.nbytes
                continue
            piece = view[skip : skip + wanted]
            pieces.append(piece)
            wanted -= piece.nbytes
            self._position += piece.nbytes
            skip = 0
        return b"".join(pieces)

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move as :meth:`io.IOBase.seek` does; positions stay inside the body."""
        base = (0, self._position, self._size)[whence]
        self._position = max(0, min(self._size, base + offset))
        return self._position

    def tell(self) -> int:
        """Return the present position."""
        return self._position


class PausingBody:
    """A body that stops half-way while it is sent, until ``pause`` returns: a slow writer, for probing.

    It reads freely until :meth:`arm` is called, because a library reads a body first to sum it up.
    """

    def __init__(self, content: bytes, *, pause: Callable[[], None]) -> None:
        self.content = content
        self._reader = BodyReader(content)
        self._pause = pause
        self._is_armed = False

    def __len__(self) -> int:
        return len(self._reader)

    def arm(self) -> None:
        """Pause once, at the middle of what is read from now on."""
        self._is_armed = True

    def read(self, size: int | None = -1) -> bytes:
        """Return up to ``size`` bytes; when armed, at most up to the middle, then pause, then the rest."""
        half = len(self.content) // 2
        if not self._is_armed:
            return self._reader.read(size)
        left = half - self._reader.tell()
        if left > 0:
            return self._reader.read(left if size is None or size < 0 else min(size, left))
        self._is_armed = False
        self._pause()
        return self._reader.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move as :meth:`io.IOBase.seek` does."""
        return self._reader.seek(offset, whence)

    def tell(self) -> int:
        """Return the present position."""
        return self._reader.tell()
