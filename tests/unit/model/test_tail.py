"""Segments from pieces: the contiguous prefix, exactly, whoever wrote the pieces and whatever became of them."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drservice.model.tail import Assembly, StoredPiece, TailEnd, TailPiece, by_segment, covered_until, describe_end
from drservice.model.wal import Lsn, Timeline

SIZE = 4096
BEGIN = Lsn(3 * SIZE)
WRITERS = ("01ARZ3NDEKTSV4RRFFQ69G5FAV", "01ARZ3NDEKTSV4RRFFQ69G5FAW")
WAL = random.Random(7).randbytes(SIZE)


def piece(start: int, end: int, writer: int = 0) -> TailPiece:
    return TailPiece(timeline=Timeline(1), start=BEGIN + start, end=BEGIN + end, writer=WRITERS[writer])


def assembled(pieces: list[tuple[TailPiece, bytes | None]]) -> Assembly:
    made = Assembly.of(BEGIN, SIZE)
    for one, plain in sorted(pieces, key=lambda item: item[0].name):
        made.add(one, plain)
    made.conclude()
    return made


def whole(*spans: tuple[int, int, int]) -> list[tuple[TailPiece, bytes | None]]:
    return [(piece(*span), WAL[span[0] : span[1]]) for span in spans]


def test_the_name_of_a_piece_sorts_by_position_and_comes_back() -> None:
    one = piece(0, 100)
    assert one.name == f"{BEGIN.value:016X}-{BEGIN.value + 100:016X}-{WRITERS[0]}"
    assert TailPiece.parse(one.name, Timeline(1)) == one
    assert piece(0, 100).name < piece(0, 200).name < piece(99, 100).name


@pytest.mark.parametrize("name", ["", "x", "0" * 16, f"{0:016X}-{0:016X}-{WRITERS[0]}", f"{0:016X}-{5:016X}-nobody"])
def test_what_is_no_piece_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"piece|holds nothing"):
        TailPiece.parse(name, Timeline(1))


def test_a_piece_that_crosses_a_boundary_belongs_to_no_segment() -> None:
    crossing = piece(SIZE - 1, SIZE + 1)
    with pytest.raises(ValueError, match="crosses"):
        crossing.segment(SIZE)
    assert piece(SIZE - 1, SIZE).segment(SIZE) == 3
    stored = [
        StoredPiece(piece=one, key=one.name, stored_bytes=1, modified_at=datetime(2026, 1, 1, tzinfo=UTC))
        for one in (piece(0, 5), crossing, piece(SIZE, SIZE + 1))
    ]
    assert [(number, [item.piece for item in items]) for number, items in by_segment(stored, SIZE)] == [
        (3, [piece(0, 5)]),
        (4, [piece(SIZE, SIZE + 1)]),
    ]


def test_pieces_that_follow_each_other_give_the_prefix_and_zeros_behind_it() -> None:
    made = assembled(whole((0, 100, 0), (100, 250, 0)))
    assert (made.end, made.why, bytes(made.data)) == (
        BEGIN + 250,
        TailEnd.NOTHING_BEHIND,
        WAL[:250] + bytes(SIZE - 250),
    )
    assert describe_end("X", made) == f"X is stored up to {BEGIN + 250}"
    assert not made.is_whole
    assert assembled(whole((0, SIZE, 0))).is_whole


def test_a_missing_piece_ends_it_and_is_named() -> None:
    made = assembled(whole((0, 100, 0), (150, 250, 0)))
    assert (made.end, made.why) == (BEGIN + 100, TailEnd.MISSING)
    assert f"from {BEGIN + 100} to {BEGIN + 150} is missing" in describe_end("X", made)


def test_nothing_at_the_begin_is_nothing_at_all() -> None:
    made = assembled(whole((1, 100, 0)))
    assert (made.end, made.why, bytes(made.data)) == (BEGIN, TailEnd.MISSING, bytes(SIZE))


def test_a_piece_that_cannot_be_used_ends_it_unless_another_holds_the_same() -> None:
    broken: list[tuple[TailPiece, bytes | None]] = [(piece(100, 200), None)]
    made = assembled(whole((0, 100, 0), (200, 250, 0)) + broken)
    assert (made.end, made.why, made.culprit) == (BEGIN + 100, TailEnd.UNUSABLE, piece(100, 200))
    at_the_end = assembled(whole((0, 100, 0)) + broken)
    assert (at_the_end.end, at_the_end.why) == (BEGIN + 100, TailEnd.UNUSABLE)
    saved = assembled(whole((0, 100, 0), (50, 220, 1), (200, 250, 0)) + broken)
    assert (saved.end, saved.why) == (BEGIN + 250, TailEnd.NOTHING_BEHIND)


def test_two_different_bytes_end_it_before_the_first_of_them() -> None:
    other = bytearray(WAL[50:150])
    other[20] ^= 1
    made = assembled([*whole((0, 100, 0), (100, 250, 0)), (piece(50, 150, 1), bytes(other))])
    assert (made.end, made.why, made.culprit) == (BEGIN + 70, TailEnd.CONFLICT, piece(50, 150, 1))
    assert made.data == WAL[:70] + bytes(SIZE - 70)
    assert "two histories" in describe_end("X", made)


def test_pieces_out_of_order_or_of_another_length_are_refused() -> None:
    made = Assembly.of(BEGIN, SIZE)
    made.add(piece(100, 200), bytes(100))
    for wrong, plain in ((piece(0, 10), bytes(10)), (piece(100, 200), bytes(99)), (piece(100, SIZE + 1), None)):
        with pytest.raises(ValueError, match=r"out of order|bytes"):
            made.add(wrong, plain)


def test_names_alone_tell_how_far_pieces_follow_each_other() -> None:
    assert covered_until(BEGIN, [piece(0, 10), piece(5, 30, 1), piece(30, 40), piece(41, 50)]) == BEGIN + 40
    assert covered_until(BEGIN, [piece(1, 10)]) == BEGIN


@st.composite
def cuts(draw: st.DrawFn) -> list[tuple[int, int, int]]:
    """Two writers, each killed and come back, cut the same WAL at places of their own."""
    found = []
    for writer in (0, 1):
        places = sorted(draw(st.sets(st.integers(0, SIZE), max_size=8)))
        if writer == 0:
            places = [0, *(place for place in places if place)]
        found += [(start, end, writer) for start, end in pairwise(places)]
    return found


@settings(max_examples=60, deadline=None)
@given(cuts(), st.sets(st.integers(0, 15), max_size=3), st.sets(st.integers(0, 15), max_size=2), st.data())
def test_any_cut_with_anything_missing_gives_exactly_the_prefix(
    spans: list[tuple[int, int, int]], missing: set[int], spoilt: set[int], data: st.DataObject
) -> None:
    kept = [span for number, span in enumerate(spans) if number not in missing]
    good = [span for number, span in enumerate(kept) if number not in spoilt]
    liars = data.draw(st.sets(st.sampled_from(good), max_size=2)) if good else set()
    lies = {span: data.draw(st.integers(span[0], span[1] - 1)) for span in sorted(liars)}
    pieces: list[tuple[TailPiece, bytes | None]] = []
    for number, span in enumerate(kept):
        plain = bytearray(WAL[span[0] : span[1]])
        if span in lies:
            plain[lies[span] - span[0]] ^= 1 + number
        pieces.append((piece(*span), bytes(plain) if span in good else None))
    made = assembled(pieces)
    said: list[set[int]] = [set() for _ in range(SIZE)]
    for one, known in pieces:
        for at, byte in enumerate(known or b"", one.start.value - BEGIN.value):
            said[at].add(byte)
    covered = next((at for at in range(SIZE) if not said[at]), SIZE)
    expected = next((at for at in range(covered) if len(said[at]) > 1), covered)
    assert made.end.value - BEGIN.value == expected
    assert made.data[:expected] == bytes(min(said[at]) for at in range(expected))
    assert made.data[expected:] == bytes(SIZE - expected)
    assert (made.why is TailEnd.CONFLICT) == (expected < covered)
