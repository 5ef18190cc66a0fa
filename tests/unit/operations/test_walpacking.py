"""What was compressed for the pieces of a segment is used again for the whole, whatever it was cut into."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drservice.model.ids import ComponentName, RepositoryId, ServiceName
from drservice.operations.walpacking import Packing
from drservice.repository import records
from drservice.repository.breakglass import restore as alone
from drservice.repository.records import CODEC_RAW, FRAME_BYTES, PackedFrame, Scope, open_body, sealed_pieces

SEGMENT = 16 << 20
SCOPE = Scope(
    repository=RepositoryId("01ARZ3NDEKTSV4RRFFQ69G5FAV"), service=ServiceName("erp"), component=ComponentName("db")
)
SECRET = bytes(range(32))
LINES = (b"".join(b"insert into orders values (%d, now());\n" % number for number in range(5_000)) * 90)[:SEGMENT]
NOISE = random.Random(7).randbytes(SEGMENT)


@pytest.fixture
def compressed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The plain bytes of each call of the compressor, as they come."""
    seen: list[int] = []
    compress = records.Compressor.compress

    def counting(self: records.Compressor, plain: memoryview) -> tuple[int, bytes | bytearray | memoryview]:
        seen.append(len(plain))
        return compress(self, plain)

    monkeypatch.setattr(records.Compressor, "compress", counting)
    return seen


def opened(frames: list[PackedFrame]) -> bytes:
    """Seal the frames, and open that with our reader and with the one that works without us."""
    size = sum(frame.plain_bytes for frame in frames)
    body = b"".join(sealed_pieces(SECRET, frames, plain_bytes=size, scope=SCOPE, context="wal/x"))
    plain = b"".join(open_body(SECRET, body, scope=SCOPE, context="wal/x", where="the body"))
    repository = cast("alone.Repository", SimpleNamespace(id=SCOPE.repository))
    assert alone.Component(repository, SCOPE.service, SCOPE.component).unseal(SECRET, "wal/x", body) == plain
    return plain


def test_no_byte_is_compressed_twice(compressed: list[int]) -> None:
    packing, plain = Packing(), memoryview(LINES)
    for begin in range(0, SEGMENT, 4 << 20):
        piece = packing.piece(begin, plain[begin : begin + (4 << 20)])
        assert opened(list(piece)) == LINES[begin : begin + (4 << 20)]
    assert sum(compressed) == SEGMENT
    assert opened(list(packing.whole(plain))) == LINES
    assert sum(compressed) == SEGMENT, "of the whole none again"


def test_a_piece_that_is_tried_again_is_not_compressed_again(compressed: list[int]) -> None:
    packing, plain = Packing(), memoryview(LINES)
    first = packing.piece(0, plain[: 2 << 20])
    assert packing.piece(0, plain[: 2 << 20]) == first
    assert sum(compressed) == 2 << 20
    longer = packing.piece(0, plain[: 3 << 20])
    assert opened(list(longer)) == LINES[: 3 << 20], "one of another length is another piece"


def test_small_pieces_are_compressed_anew_together(compressed: list[int]) -> None:
    packing, plain = Packing(), memoryview(LINES)
    for begin in range(0, 1 << 20, 8 << 10):
        packing.piece(begin, plain[begin : begin + (8 << 10)])
    compressed.clear()
    frames = list(packing.whole(plain))
    assert (compressed, len(frames)) == ([FRAME_BYTES] * 16, 16)
    assert opened(frames) == LINES


def test_what_is_kept_has_a_bound_and_what_does_not_compress_is_kept_without_a_copy() -> None:
    generator = random.Random(3)
    halves = b"".join(generator.randbytes(64) + bytes(64) for _ in range(SEGMENT // 128))
    for content, most in ((halves, 4 << 20), (NOISE, 0)):
        packing, plain = Packing(), memoryview(content)
        for begin in range(0, SEGMENT, 4 << 20):
            packing.piece(begin, plain[begin : begin + (4 << 20)])
        kept = [frame for frames in packing._stretches.values() for frame in frames]
        assert kept, "some of it"
        assert sum(len(frame.content) for frame in kept if frame.codec != CODEC_RAW) <= most
        assert all(frame.content.obj is content for frame in kept if isinstance(frame.content, memoryview))
        assert opened(list(packing.whole(plain))) == content


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 6 << 20), st.booleans()), max_size=12), st.sampled_from([LINES, NOISE]))
def test_whatever_pieces_there_were_the_whole_is_the_segment(cuts: list[tuple[int, bool]], content: bytes) -> None:
    packing, plain, at = Packing(), memoryview(content), 0
    for size, was_stored_before in cuts:
        end = min(at + size, SEGMENT)
        if not was_stored_before and end > at:
            packing.piece(at, plain[at:end])
        at = end
    assert opened(list(packing.whole(plain))) == content
