"""Chunk tables: rows that no writer makes are refused by name."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drservice.errors import FormatError
from drservice.repository.chunktable import ROW, ChunkRow, ChunkTable, TableBuilder, live_bytes
from drservice.repository.records import CODEC_RAW, CODEC_ZERO, CODEC_ZSTD

PACK = b"p" * 32
GOOD = ChunkRow(b"c" * 32, 0, 0, 104, 40, 100, CODEC_ZSTD)
ZERO = ChunkRow(bytes(32), 0, 0, 0, 0, 100, CODEC_ZERO)


def table(*rows: ChunkRow, packs: int = 1) -> ChunkTable:
    return ChunkTable([PACK] * packs, b"".join(ROW.pack(*row) for row in rows))


def test_a_row_has_53_bytes() -> None:
    assert ROW.size == 53
    assert len(table(GOOD, ZERO)) == 2
    assert list(table(GOOD, ZERO)) == [GOOD, ZERO]
    assert table(GOOD, ZERO).row(1) == ZERO
    assert table(GOOD, ZERO).plain_bytes() == 200


def test_tables_as_writers_make_them_pass() -> None:
    table().validate(chunk_bytes=100, what="f")
    table(GOOD, ZERO, GOOD).validate(chunk_bytes=100, what="f")
    table(GOOD, GOOD._replace(plain_length=1, codec=CODEC_RAW)).validate(chunk_bytes=100, what="f")


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([GOOD._replace(plain_length=101)], "impossible length"),
        ([GOOD._replace(plain_length=0)], "impossible length"),
        ([GOOD._replace(plain_length=99), GOOD], "impossible length"),
        ([GOOD._replace(pack_index=1)], "refers to nothing"),
        ([GOOD._replace(codec=2)], "refers to nothing"),
        ([GOOD._replace(stored_length=15)], "shorter than its tag"),
        ([ZERO._replace(chunk_id=b"x" * 32)], "all zero and yet"),
        ([ZERO._replace(pack_index=1)], "all zero and yet"),
        ([ZERO._replace(ordinal=1)], "all zero and yet"),
        ([ZERO._replace(offset=1)], "all zero and yet"),
        ([ZERO._replace(stored_length=1)], "all zero and yet"),
    ],
)
def test_a_row_that_no_writer_makes_is_refused_with_the_file(rows: list[ChunkRow], problem: str) -> None:
    with pytest.raises(FormatError, match=f"base/1: .*{problem}"):
        table(*rows).validate(chunk_bytes=100, what="base/1")


def test_a_table_that_is_cut_off_is_refused() -> None:
    with pytest.raises(FormatError, match="cut off"):
        ChunkTable([PACK], ROW.pack(*GOOD)[:-1]).validate(chunk_bytes=100, what="f")


def test_packs_are_named_once_and_rows_count_into_them() -> None:
    builder = TableBuilder()
    builder.add(b"a" * 32, PACK, 0, (104, 40, 100, 1))
    builder.add(b"b" * 32, 7, 0, (104, 40, 100, 1))
    builder.add_zero(100)
    builder.add(b"c" * 32, PACK, 1, (144, 50, 10, 0))
    made = ChunkTable([PACK, b"q" * 32], builder.rows())
    assert builder.packs == [PACK, 7]
    assert [row.pack_index for row in made] == [0, 1, 0, 0]
    assert live_bytes(made) == {PACK: 90, b"q" * 32: 40}


@settings(max_examples=60)
@given(st.binary(max_size=300), st.integers(1, 1 << 20))
def test_no_bytes_make_validation_fail_in_another_way(rows: bytes, chunk_bytes: int) -> None:
    made = ChunkTable([PACK], rows)
    try:
        made.validate(chunk_bytes=chunk_bytes, what="f")
    except FormatError:
        return
    assert len(rows) % ROW.size == 0
    assert all(0 < row.plain_length <= chunk_bytes for row in made)
