"""Looking at an RDB file: that it is one, that it is whole, and that it has the sum it ends with."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from drservice.errors import RedisDumpError

_MAGIC = re.compile(rb"REDIS([0-9]{4})")
_MAGIC_BYTES = 9
_SUM_BYTES = 8
_FIRST_WITH_SUM = 5
_END = 0xFF
_PIECE_BYTES = 16 << 20
"""A multiple of what is summed at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RdbFacts:
    """What an RDB file says about itself."""

    version: int
    size: int
    has_sum: bool
    """Whether it ends with a sum that was compared; a server with ``rdbchecksum no`` writes none."""


def check_rdb(file: BinaryIO) -> RdbFacts:
    """Read a whole file and compare it with its sum.

    Raises:
        RedisDumpError: it is no RDB file, it is cut, or the sum is another.
    """
    size = file.seek(0, 2)
    file.seek(0)
    magic = _MAGIC.fullmatch(file.read(_MAGIC_BYTES))
    if magic is None:
        raise RedisDumpError("what Redis sent does not begin as an RDB file does")
    version = int(magic[1])
    if version < _FIRST_WITH_SUM:
        raise RedisDumpError(f"the RDB file has version {version}, which ends without a sum", hint="Use Redis 2.6 on.")
    if size < _MAGIC_BYTES + 1 + _SUM_BYTES:
        raise RedisDumpError(f"the RDB file ends after {size} bytes")
    file.seek(size - _SUM_BYTES - 1)
    tail = file.read(_SUM_BYTES + 1)
    expected = int.from_bytes(tail[1:], "little")
    if tail[0] != _END:
        raise RedisDumpError("the RDB file does not end with the mark of its end: it is cut")
    if expected:
        from drservice.components.redis.crc64 import crc64  # noqa: PLC0415 - numpy: only a host with a Redis needs it

        file.seek(0)
        found = crc64(_blocks(file, size - _SUM_BYTES))
        if found != expected:
            raise RedisDumpError(f"the RDB file has the sum {found:016x}, and it ends with {expected:016x}")
    return RdbFacts(version=version, size=size, has_sum=expected != 0)


def _blocks(file: BinaryIO, length: int) -> Iterator[bytes]:
    while length:
        block = file.read(min(_PIECE_BYTES, length))
        if not block:
            raise RedisDumpError("the RDB file became shorter while it was read")
        length -= len(block)
        yield block
