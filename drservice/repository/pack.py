"""Packs: the objects that data and tree nodes are stored in (docs/format.md, section 5).

A :class:`PackSink` fills one pack while those before are being uploaded, of which there are so many at most: memory is
theirs and one more. A pack is named by the SHA-256 of its bytes and is acknowledged only when the store has it durably.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from drservice.errors import DamagedObjectError, FormatError, ObjectExistsError, WrongDataKeyError
from drservice.model.ids import KeyId, is_ulid
from drservice.objectstore.interface import ObjectStore
from drservice.objectstore.pipelining import Pipeline
from drservice.repository import layout
from drservice.repository.records import (
    CODEC_ZSTD,
    NO_CHUNK,
    TAG_BYTES,
    Compressor,
    RecordKey,
    Scope,
    derive_record_key,
    open_record,
    record_aad,
    record_nonce,
)

MAGIC = b"DRSPACK1"
END_MAGIC = b"DRSPEND1"
HEADER = struct.Struct(">8s26sc5s32s32s")
TRAILER = struct.Struct(">III8s")
TABLE_ROW = struct.Struct(">32sIIIB")
DATA_KIND = b"d"
NODE_KIND = b"n"
DATA_PACK_BYTES = 32 << 20
NODE_PACK_BYTES = 4 << 20
_FIRST_BYTES = 1 << 20
"""A buffer begins small: the packs of a run without changes are tiny. What outgrows it gets all room at once, because
growing in steps leaves holes in the heap (measured: 20 MB more per worker).
"""
_SLACK_BYTES = 1 << 20
_PADDING = bytes(5)
_MAX_RECORDS = 1 << 20
_FULL_RECORDS = 1 << 15
"""A pack of tiny records is full as well: what refers to it waits in memory until it has a name."""
_UPLOADS = {DATA_KIND: 2, NODE_KIND: 4}
"""Packs under way at once to a distant store: with as many workers as usual 4 to 8 per pool, within their memory."""
_DISTANT_PACK_BYTES = 14 << 20
"""Two on their way, one that is filled and the store's library (45 MB) have room in 150 MB; of the usual size they have
not, and one alone on its way takes half as long again (measured on loopback).
"""
_KIND_NAMES = {DATA_KIND: ("data", "packs"), NODE_KIND: ("nodes", "nodes")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a record is: the pack's token and the record's position in it."""

    token: int
    ordinal: int
    offset: int
    stored_length: int
    plain_length: int
    codec: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedPack:
    """A pack that the store has acknowledged."""

    token: int
    name: bytes
    stored_bytes: int
    table: bytes
    """Per record: chunk id, offset, stored length, plain length, codec."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackTarget:
    """Where packs of one kind go and how they are encrypted."""

    scope: Scope
    kind: bytes
    key_id: KeyId
    data_key: bytes
    level: int
    pack_bytes: int


class _OpenPack:
    """A pack being filled. Records are encrypted straight into its buffer, which an earlier pack may have used."""

    def __init__(self, target: PackTarget, token: int, compressor: Compressor, buffer: bytearray) -> None:
        salt = os.urandom(32)
        key = derive_record_key(
            target.data_key, salt=salt, purpose="pack", scope=target.scope, context=_KIND_NAMES[target.kind][0]
        )
        self.token = token
        self.records = 0
        self._kind = target.kind
        self._room = target.pack_bytes + _SLACK_BYTES
        self._key = key
        self._compressor = compressor
        self.buffer = buffer
        HEADER.pack_into(buffer, 0, MAGIC, target.key_id.encode(), target.kind, _PADDING, salt, key.commitment)
        self._end = HEADER.size
        self._table = bytearray()

    def __len__(self) -> int:
        return self._end

    def add(self, chunk_id: bytes, plain: bytes | bytearray | memoryview) -> Place:
        codec, packed = self._compressor.compress(plain)
        offset = self._end
        stored = self._append(self._kind, packed, plain_length=len(plain), codec=codec, chunk_id=chunk_id)
        self._table += TABLE_ROW.pack(chunk_id, offset, stored, len(plain), codec)
        place = Place(
            token=self.token,
            ordinal=self.records,
            offset=offset,
            stored_length=stored,
            plain_length=len(plain),
            codec=codec,
        )
        self.records += 1
        return place

    def _append(
        self, kind: bytes, packed: bytes | bytearray | memoryview, *, plain_length: int, codec: int, chunk_id: bytes
    ) -> int:
        aad = record_aad(kind, self.records, plain_length, codec, chunk_id)
        stored = len(packed) + TAG_BYTES
        self._make_room(stored)
        with memoryview(self.buffer) as view, view[self._end : self._end + stored] as place:
            self._key.cipher.encrypt_into(record_nonce(self.records), packed, aad, place)
        self._end += stored
        return stored

    def _make_room(self, amount: int) -> None:
        lacking = self._end + amount - len(self.buffer)
        if lacking > 0:
            # Not ``+=``: what is added would lie in memory once more, and below 32 MiB the heap keeps that room.
            grown = bytearray(max(self._end + amount, self._room))
            grown[: self._end] = memoryview(self.buffer)[: self._end]
            self.buffer = grown

    def finish(self) -> tuple[memoryview, bytes]:
        """Append footer and trailer; return the whole object and the record table."""
        table = bytes(self._table)
        packed = self._compressor.compress_always(table)
        stored = self._append(b"f", packed, plain_length=len(table), codec=CODEC_ZSTD, chunk_id=NO_CHUNK)
        self._make_room(TRAILER.size)
        TRAILER.pack_into(self.buffer, self._end, stored, len(table), self.records, END_MAGIC)
        self._end += TRAILER.size
        return memoryview(self.buffer)[: self._end], table


class PackSink:
    """Packs records and uploads full packs in the background, a few at once.

    A crash leaves at worst packs nobody refers to; nothing partial is ever visible.
    """

    def __init__(self, store: ObjectStore, target: PackTarget, on_closed: Callable[[ClosedPack], None]) -> None:
        self._store = store
        distant = store.capabilities.distant
        self._target = replace(target, pack_bytes=min(target.pack_bytes, _DISTANT_PACK_BYTES)) if distant else target
        self._compressor = Compressor(target.level)
        self._uploads = Pipeline(width=_UPLOADS[target.kind] if distant else 1, on_done=on_closed, name="pack-upload")
        self._next_token = 0
        self._pack: _OpenPack | None = None
        self._spare: list[bytearray] = []
        """Buffers of packs that are stored: fresh memory costs more than encrypting into it."""

    def add(self, chunk_id: bytes, plain: bytes | bytearray | memoryview) -> Place:
        """Store ``plain`` (its BLAKE3 is ``chunk_id``) in the open pack; a full one is sent off.

        Raises:
            ObjectStoreError: an earlier pack could not be stored.
        """
        if self._pack is None:
            buffer = self._spare.pop() if self._spare else bytearray(_FIRST_BYTES)
            self._pack = _OpenPack(self._target, self._next_token, self._compressor, buffer)
            self._next_token += 1
        place = self._pack.add(chunk_id, plain)
        if len(self._pack) >= self._target.pack_bytes or self._pack.records >= _FULL_RECORDS:
            self._send()
        return place

    def flush(self) -> None:
        """Store what is left; on return every pack is acknowledged."""
        if self._pack is not None and self._pack.records:
            self._send()
        self._uploads.flush()

    def close(self) -> None:
        """Stop uploading; an open pack is dropped."""
        self._pack = None
        self._uploads.close()

    def _send(self) -> None:
        pack, self._pack = self._pack, None
        assert pack is not None
        self._uploads.add(lambda: self._upload(pack))

    def _upload(self, pack: _OpenPack) -> ClosedPack:
        body, table = pack.finish()
        name = hashlib.sha256(body).hexdigest()
        key = layout.pack_key(
            self._target.scope.service, self._target.scope.component, _KIND_NAMES[self._target.kind][1], name
        )
        try:
            self._store.create(key, body)
        except ObjectExistsError:
            # The salt is random, so it can only be this very pack whose acknowledgement was lost on the way.
            if hashlib.sha256(self._store.read(key)).hexdigest() != name:
                raise DamagedObjectError(f"{key} exists with other bytes than its name says") from None
        closed = ClosedPack(token=pack.token, name=bytes.fromhex(name), stored_bytes=len(body), table=table)
        body.release()
        self._spare.append(pack.buffer)
        return closed


@dataclass(frozen=True, slots=True, kw_only=True)
class PackHead:
    """The readable part of a pack's first 104 bytes."""

    key_id: KeyId
    kind: bytes
    salt: bytes
    commitment: bytes


def read_head(head: bytes | memoryview, what: str) -> PackHead:
    """Parse a pack's header.

    Raises:
        FormatError: it is none.
    """
    if len(head) < HEADER.size:
        raise FormatError(f"{what} is too short to be a pack")
    magic, key_id, kind, padding, salt, commitment = HEADER.unpack_from(head)
    name = key_id.decode("ascii", "replace")
    if magic != MAGIC or kind not in _KIND_NAMES or padding != _PADDING or not is_ulid(name):
        raise FormatError(f"{what} is no pack (bad magic)")
    return PackHead(key_id=KeyId(name), kind=kind, salt=salt, commitment=commitment)


def pack_record_key(head: PackHead, data_key: bytes, scope: Scope, what: str) -> RecordKey:
    """Derive a pack's key and check its commitment.

    Raises:
        WrongDataKeyError: the data key is not the one the pack was written with.
    """
    key = derive_record_key(data_key, salt=head.salt, purpose="pack", scope=scope, context=_KIND_NAMES[head.kind][0])
    if key.commitment != head.commitment:
        raise WrongDataKeyError(f"{what} was not written with data key {head.key_id} for this component")
    return key


def read_table(body: bytes | memoryview, key: RecordKey, what: str) -> Sequence[tuple[bytes, int, int, int, int]]:
    """Return the record table of a whole pack: (chunk id, offset, stored length, plain length, codec).

    Raises:
        FormatError, DamagedObjectError.
    """
    view = memoryview(body)
    if len(view) < HEADER.size + TRAILER.size:
        raise FormatError(f"{what} is too short to be a pack")
    stored, plain, count, magic = TRAILER.unpack_from(view, len(view) - TRAILER.size)
    begin = len(view) - TRAILER.size - stored
    if magic != END_MAGIC or begin < HEADER.size or count > _MAX_RECORDS or plain != count * TABLE_ROW.size:
        raise FormatError(f"{what} has no valid end: it was cut off or damaged")
    table = open_record(
        key,
        view[begin : begin + stored],
        kind=b"f",
        ordinal=count,
        plain_length=plain,
        codec=CODEC_ZSTD,
        chunk_id=NO_CHUNK,
        where=lambda: f"the table of {what}",
    )
    rows = list(TABLE_ROW.iter_unpack(table))
    position = HEADER.size
    for row in rows:
        if row[1] != position or row[2] < TAG_BYTES:
            raise FormatError(f"the table of {what} does not describe it")
        position += row[2]
    if position != begin:
        raise FormatError(f"the table of {what} does not describe it")
    return rows
