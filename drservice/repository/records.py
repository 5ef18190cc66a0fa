"""Records: compressed, then encrypted pieces of data, and bodies sealed from them.

docs/format.md, sections 3 and 5. The same rules hold for chunks in packs (kind ``d``), tree nodes (``n``), pack
footers (``f``) and frames of sealed bodies (``s``): a record cannot be swapped, moved, cut off or read under another
name, and a decompressor never gets more room than the authenticated length.
"""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from drservice.errors import DamagedObjectError, FormatError, WrongDataKeyError
from drservice.model.ids import ComponentName, RepositoryId, ServiceName
from drservice.repository.zstdframe import decompress_frame

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

CODEC_RAW = 0
CODEC_ZSTD = 1
CODEC_ZERO = 255
TAG_BYTES = 16
SALT_BYTES = 32
COMMITMENT_BYTES = 32
NO_CHUNK = bytes(32)
FRAME_BYTES = 1 << 20
_FRAME_HEAD = struct.Struct(">BII")
_AAD_PREFIX = b"drservice record v1"
_AAD_NUMBERS = struct.Struct(">BIIB")
_WORTH_COMPRESSING = 0.97
_PROBED_BYTES = 128 << 10
_SAMPLES = 8
_SAMPLE_BYTES = 1 << 10
_WORTH_TRYING = 0.99
_MAX_WINDOW_LOG = 27
_PAGES: Mapping[int, int] = {
    zstd.CompressionParameter.compression_level: 1,
    zstd.CompressionParameter.min_match: 5,
    zstd.CompressionParameter.hash_log: 12,
}
"""Level 1 for up to 128 KiB, where zstd itself looks for matches of 6 bytes. Index tuples of integers repeat 5: in a
cluster of 2 GB primary keys become a third smaller, heaps stay as they are, at the same speed. WAL becomes 5 % smaller,
a tenth faster: its table of 4,096 places stays in the processor's first cache.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """Whose data it is: part of every derived key, so nothing can be taken from one service to another."""

    repository: RepositoryId
    service: ServiceName
    component: ComponentName


@dataclass(frozen=True, slots=True)
class PackedFrame:
    """Up to 1 MiB as it goes into a frame, before it is encrypted: what costs most is done, for whatever body it is."""

    codec: int
    plain_bytes: int
    content: bytes | bytearray | memoryview
    """Compressed, or the plain bytes themselves, without a copy."""


@dataclass(frozen=True, slots=True)
class RecordKey:
    """A derived AES-256-GCM key and the commitment that proves which key it is."""

    cipher: AESGCM
    commitment: bytes


def derive_record_key(data_key: bytes, *, salt: bytes, purpose: str, scope: Scope, context: str) -> RecordKey:
    """Derive the key of one pack or sealed body (HKDF-SHA256, RFC 5869).

    Args:
        data_key: 32 bytes.
        salt: 32 random bytes, stored beside the data.
        purpose: ``pack`` or ``sealed``.
        scope: whose data it is.
        context: the last part of the info string.
    """
    info = f"drservice {purpose} v1|{scope.repository}|{scope.service}|{scope.component}|{context}"
    material = HKDF(algorithm=hashes.SHA256(), length=64, salt=salt, info=info.encode()).derive(data_key)
    return RecordKey(cipher=AESGCM(material[:32]), commitment=material[32:])


def record_aad(kind: bytes, ordinal: int, plain_length: int, codec: int, chunk_id: bytes) -> bytes:
    """Return the additional data that binds a record to its place and shape."""
    return _AAD_PREFIX + _AAD_NUMBERS.pack(kind[0], ordinal, plain_length, codec) + chunk_id


def record_nonce(ordinal: int) -> bytes:
    """Return the 12-byte nonce of record ``ordinal``; a derived key is never used for another pack."""
    return ordinal.to_bytes(12, "big")


class Compressor:
    """A reusable zstd compressor that says when compressing is not worth it."""

    def __init__(self, level: int, *, pages: bool = False) -> None:
        """Make a compressor; ``pages``: long pieces are PostgreSQL's as well."""
        self._small = zstd.ZstdCompressor(options=_PAGES) if level == 1 else zstd.ZstdCompressor(level)
        self._compressor = zstd.ZstdCompressor(level) if level == 1 and not pages else self._small

    def compress(self, plain: bytes | bytearray | memoryview) -> tuple[int, bytes | bytearray | memoryview]:
        """Return (codec, bytes to store); raw when zstd saves less than 3 %."""
        if len(plain) >= _PROBED_BYTES and not self._promises(plain):
            return CODEC_RAW, plain
        compressor = self._compressor if len(plain) > _PROBED_BYTES else self._small
        packed = compressor.compress(plain, compressor.FLUSH_FRAME)
        if len(packed) >= len(plain) * _WORTH_COMPRESSING:
            return CODEC_RAW, plain
        return CODEC_ZSTD, packed

    def _promises(self, plain: bytes | bytearray | memoryview) -> bool:
        """Tell by small samples whether a large piece is worth compressing: most in a filestore is not."""
        sample = b"".join(plain[at : at + _SAMPLE_BYTES] for at in range(0, len(plain), len(plain) // _SAMPLES))
        return len(self._compressor.compress(sample, self._compressor.FLUSH_FRAME)) < len(sample) * _WORTH_TRYING

    def compress_always(self, plain: bytes) -> bytes:
        """Return ``plain`` as a zstd frame, whatever it saves."""
        packed: bytes = self._compressor.compress(plain, self._compressor.FLUSH_FRAME)
        return packed


def decompress(codec: int, stored: bytes | bytearray | memoryview, plain_length: int) -> bytes | memoryview:
    """Undo :class:`Compressor` with exactly ``plain_length`` bytes of room.

    Raises:
        FormatError: unknown codec, or the data is not that long.
    """
    if codec == CODEC_RAW:
        if len(stored) != plain_length:
            raise FormatError(f"a raw record has {len(stored)} bytes instead of {plain_length}")
        return memoryview(stored)
    if codec != CODEC_ZSTD:
        raise FormatError(f"unknown codec {codec}")
    whole = decompress_frame(bytes(stored), plain_length)
    if whole is not None:
        return whole
    decompressor = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _MAX_WINDOW_LOG})
    try:
        plain: bytes = decompressor.decompress(stored, max_length=plain_length + 1)
    except zstd.ZstdError as error:
        raise FormatError(f"a record does not decompress: {error}") from error
    if len(plain) != plain_length or not decompressor.eof or decompressor.unused_data:
        raise FormatError(f"a record decompresses to another length than the {plain_length} bytes it promises")
    return plain


def open_record(
    key: RecordKey,
    stored: bytes | bytearray | memoryview,
    *,
    kind: bytes,
    ordinal: int,
    plain_length: int,
    codec: int,
    chunk_id: bytes,
    where: Callable[[], str],
) -> bytes | memoryview:
    """Decrypt and decompress one record.

    Args:
        key: of the pack or body.
        stored: ciphertext with tag.
        kind: one of ``d``, ``n``, ``f``, ``s``.
        ordinal: its number.
        plain_length: bytes it decompresses to.
        codec: how it is compressed.
        chunk_id: BLAKE3 of the plain bytes, or 32 zero bytes.
        where: names the place for an error message.

    Raises:
        DamagedObjectError: the bytes are not what was written at this place.
    """
    try:
        packed = key.cipher.decrypt(
            record_nonce(ordinal), stored, record_aad(kind, ordinal, plain_length, codec, chunk_id)
        )
    except InvalidTag as error:
        raise DamagedObjectError(f"{where()} does not authenticate: it was damaged or exchanged") from error
    return decompress(codec, packed, plain_length)


def packed_frames(plain: bytes | bytearray | memoryview, *, level: int = 1) -> Iterator[PackedFrame]:
    """Yield a body frame by frame, compressed where that is worth it."""
    compressor = Compressor(level, pages=True)  # the only long bodies are WAL's
    view = memoryview(plain)
    for begin in range(0, len(view), FRAME_BYTES):
        piece = view[begin : begin + FRAME_BYTES]
        codec, content = compressor.compress(piece)
        yield PackedFrame(codec, len(piece), content)


def seal_body(
    data_key: bytes, plain: bytes | bytearray | memoryview, *, scope: Scope, context: str, level: int = 1
) -> list[bytes]:
    """Encrypt a body (docs/format.md, section 3) and return its pieces in order."""
    frames = packed_frames(plain, level=level)
    return list(sealed_pieces(data_key, frames, plain_bytes=len(plain), scope=scope, context=context))


def sealed_bound(plain_bytes: int) -> int:
    """Return how many bytes a sealed body has at most."""
    frames = -(-plain_bytes // FRAME_BYTES)
    return SALT_BYTES + COMMITMENT_BYTES + plain_bytes + frames * (_FRAME_HEAD.size + TAG_BYTES)


def sealed_pieces(
    data_key: bytes, frames: Iterable[PackedFrame], *, plain_bytes: int, scope: Scope, context: str
) -> Iterator[bytes]:
    """Yield a sealed body of these frames in pieces, a frame at a time, for bodies that no memory should hold.

    Raises:
        ValueError: behind the last piece: the frames do not hold ``plain_bytes``; what was yielded is not to be stored.
    """
    salt = os.urandom(SALT_BYTES)
    key = derive_record_key(data_key, salt=salt, purpose="sealed", scope=scope, context=context)
    yield salt
    yield key.commitment
    held = 0
    for ordinal, frame in enumerate(frames):
        held += frame.plain_bytes
        aad = record_aad(b"s", ordinal, frame.plain_bytes, frame.codec, NO_CHUNK)
        cipher = key.cipher.encrypt(record_nonce(ordinal), frame.content, aad)
        yield _FRAME_HEAD.pack(frame.codec, frame.plain_bytes, len(cipher))
        yield cipher
    if held != plain_bytes:
        raise ValueError(f"the frames of {context} hold {held} bytes instead of {plain_bytes}")


def open_body(
    data_key: bytes, body: bytes | memoryview, *, scope: Scope, context: str, where: str
) -> Iterator[bytes | memoryview]:
    """Return the plain pieces of a sealed body, in order, at most 1 MiB each; the key is checked at once.

    Raises:
        WrongDataKeyError: another key; nothing was decrypted.
        DamagedObjectError: changed bytes.
        FormatError: the shape is wrong.
    """
    view = memoryview(body)
    if len(view) < SALT_BYTES + COMMITMENT_BYTES:
        raise FormatError(f"{where}: the sealed body is too short")
    key = derive_record_key(data_key, salt=bytes(view[:SALT_BYTES]), purpose="sealed", scope=scope, context=context)
    if bytes(view[SALT_BYTES : SALT_BYTES + COMMITMENT_BYTES]) != key.commitment:
        raise WrongDataKeyError(f"{where}: the data key is not the one this body was sealed with")
    return _open_frames(key, view, where)


def _open_frames(key: RecordKey, view: memoryview, where: str) -> Iterator[bytes | memoryview]:
    position = SALT_BYTES + COMMITMENT_BYTES
    ordinal = 0
    while position < len(view):
        if len(view) - position < _FRAME_HEAD.size:
            raise FormatError(f"{where}: the sealed body ends inside a frame")
        codec, plain_length, stored_length = _FRAME_HEAD.unpack_from(view, position)
        position += _FRAME_HEAD.size
        if not 0 < plain_length <= FRAME_BYTES or not TAG_BYTES <= stored_length <= len(view) - position:
            raise FormatError(f"{where}: frame {ordinal} has an impossible length")
        yield open_record(
            key,
            view[position : position + stored_length],
            kind=b"s",
            ordinal=ordinal,
            plain_length=plain_length,
            codec=codec,
            chunk_id=NO_CHUNK,
            where=lambda: where,
        )
        position += stored_length
        ordinal += 1
