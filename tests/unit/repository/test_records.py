"""Records cannot be swapped, moved, cut off or read under another name; sealed bodies neither."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drservice.errors import DamagedObjectError, FormatError
from drservice.model.ids import ComponentName, RepositoryId, ServiceName
from drservice.repository.records import (
    CODEC_RAW,
    CODEC_ZSTD,
    FRAME_BYTES,
    Compressor,
    RecordKey,
    Scope,
    decompress,
    derive_record_key,
    open_body,
    open_record,
    record_aad,
    record_nonce,
    seal_body,
)
from tests.doubles.repositories import noise

SCOPE = Scope(
    repository=RepositoryId("01ARZ3NDEKTSV4RRFFQ69G5FAV"), service=ServiceName("erp"), component=ComponentName("db")
)
SECRET = bytes(range(32))
HEAD = 64


def unsealed(body: bytes, *, secret: bytes = SECRET, scope: Scope = SCOPE, context: str = "wal/x") -> bytes:
    return b"".join(open_body(secret, body, scope=scope, context=context, where="the body"))


def sealed(plain: bytes) -> bytes:
    return b"".join(seal_body(SECRET, plain, scope=SCOPE, context="wal/x"))


def record_key() -> RecordKey:
    return derive_record_key(SECRET, salt=bytes(32), purpose="pack", scope=SCOPE, context="data")


RECORD: dict[str, Any] = {
    "kind": b"d",
    "ordinal": 3,
    "plain_length": 5,
    "codec": CODEC_RAW,
    "chunk_id": b"c" * 32,
}


@pytest.mark.parametrize(
    "change",
    [{"kind": b"n"}, {"ordinal": 4}, {"plain_length": 6}, {"codec": CODEC_ZSTD}, {"chunk_id": b"d" * 32}],
    ids=lambda change: next(iter(change)),
)
def test_a_record_opens_only_as_exactly_what_it_was_stored_as(change: dict[str, Any]) -> None:
    key = record_key()
    stored = key.cipher.encrypt(record_nonce(3), b"plain", record_aad(b"d", 3, 5, CODEC_RAW, b"c" * 32))
    assert bytes(open_record(key, stored, **RECORD, where=lambda: "it")) == b"plain"
    with pytest.raises(DamagedObjectError, match="record 3 of pack ab does not authenticate"):
        open_record(key, stored, **{**RECORD, **change}, where=lambda: "record 3 of pack ab")


@pytest.mark.parametrize(
    "other",
    [
        Scope(repository=RepositoryId("01ARZ3NDEKTSV4RRFFQ69G5FAW"), service=SCOPE.service, component=SCOPE.component),
        Scope(repository=SCOPE.repository, service=ServiceName("hr"), component=SCOPE.component),
        Scope(repository=SCOPE.repository, service=SCOPE.service, component=ComponentName("docs")),
    ],
    ids=["repository", "service", "component"],
)
def test_a_body_cannot_be_taken_to_another_place(other: Scope) -> None:
    body = sealed(b"secret")
    assert unsealed(body) == b"secret"
    with pytest.raises(DamagedObjectError, match="not the one this body was sealed with"):
        unsealed(body, scope=other)


def test_a_body_opens_only_with_its_key_and_context() -> None:
    body = sealed(b"secret")
    with pytest.raises(DamagedObjectError, match="not the one"):
        unsealed(body, secret=bytes(32))
    with pytest.raises(DamagedObjectError, match="not the one"):
        unsealed(body, context="wal/y")


def test_an_empty_body_has_no_frames() -> None:
    assert len(sealed(b"")) == HEAD
    assert unsealed(sealed(b"")) == b""


@pytest.mark.parametrize("size", [1, FRAME_BYTES - 1, FRAME_BYTES, FRAME_BYTES + 1, 3 * FRAME_BYTES])
def test_bodies_of_all_sizes_come_back(size: int) -> None:
    plain = noise(size)
    assert unsealed(sealed(plain)) == plain


@settings(max_examples=60)
@given(st.integers(0, 200), st.integers(0, 7))
def test_a_flipped_bit_anywhere_in_a_body_is_found(at: int, bit: int) -> None:
    body = bytearray(sealed(noise(127)))
    assert len(body) > 200
    body[at] ^= 1 << bit
    with pytest.raises((DamagedObjectError, FormatError)):
        unsealed(bytes(body))


@settings(max_examples=60)
@given(st.integers(0, 215))
def test_a_body_that_is_cut_off_inside_a_frame_is_refused(length: int) -> None:
    body = sealed(noise(127))
    assert len(body) == 216
    if length == HEAD:
        return  # a whole frame less is what the envelope's length and hash are for
    with pytest.raises((DamagedObjectError, FormatError)):
        unsealed(body[:length])


def test_frames_cannot_change_places_or_be_left_out() -> None:
    plain = noise(FRAME_BYTES) + noise(FRAME_BYTES, 1)
    body = sealed(plain)
    frame = (len(body) - HEAD) // 2
    first, second = body[HEAD : HEAD + frame], body[HEAD + frame :]
    for wrong in (second + first, second, first + first):
        with pytest.raises(DamagedObjectError, match="does not authenticate"):
            unsealed(body[:HEAD] + wrong)


@pytest.mark.parametrize(("plain", "stored"), [(0, 16), (FRAME_BYTES + 1, 16), (5, 15), (5, 1 << 31)])
def test_a_frame_of_an_impossible_length_is_refused_before_it_is_opened(plain: int, stored: int) -> None:
    body = sealed(b"")
    with pytest.raises(FormatError, match="impossible length"):
        unsealed(body + struct.pack(">BII", 0, plain, stored) + bytes(64))


def test_a_decompressor_gets_no_more_room_than_was_promised() -> None:
    _, bomb = Compressor(19).compress(bytes(64 << 20))
    assert len(bomb) < 10_000
    with pytest.raises(FormatError, match="another length"):
        decompress(CODEC_ZSTD, bomb, 1000)


def test_a_record_with_bytes_behind_its_frame_or_an_unknown_codec_is_refused() -> None:
    _, packed = Compressor(1).compress(bytes(1000))
    assert bytes(decompress(CODEC_ZSTD, packed, 1000)) == bytes(1000)
    with pytest.raises(FormatError, match="another length"):
        decompress(CODEC_ZSTD, bytes(packed) + b"x", 1000)
    with pytest.raises(FormatError, match="another length"):
        decompress(CODEC_ZSTD, bytes(packed)[:-1], 1000)
    with pytest.raises(FormatError, match="does not decompress"):
        decompress(CODEC_ZSTD, b"no zstd at all", 1000)
    with pytest.raises(FormatError, match="unknown codec 7"):
        decompress(7, b"", 0)
    with pytest.raises(FormatError, match="3 bytes instead of 4"):
        decompress(CODEC_RAW, b"abc", 4)


def test_what_does_not_compress_is_stored_raw() -> None:
    assert Compressor(1).compress(noise(4096))[0] == CODEC_RAW
    assert Compressor(1).compress(bytes(4096))[0] == CODEC_ZSTD


def test_large_pieces_are_sampled_all_over_before_they_are_compressed() -> None:
    half = 512 << 10
    assert Compressor(1).compress(noise(2 * half))[0] == CODEC_RAW
    assert Compressor(1).compress(bytes(half) + noise(half))[0] == CODEC_ZSTD
    assert Compressor(1).compress(noise(half) + b"text" * (half // 4))[0] == CODEC_ZSTD
    assert Compressor(1).compress(memoryview(noise(2 * half)))[0] == CODEC_RAW


def test_two_bodies_of_one_plain_text_share_nothing_that_can_be_seen() -> None:
    first, second = sealed(b"same"), sealed(b"same")
    assert first[:64] != second[:64]
    assert first[-20:] != second[-20:]
