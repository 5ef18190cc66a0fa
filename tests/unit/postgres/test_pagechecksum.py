"""Page checksums against a plain reading of the algorithm."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drservice.components.postgres import pagechecksum

SEEDS = [int(seed) for seed in pagechecksum._SEEDS]


def reference(page: bytes, block: int) -> int:
    """One page, one word at a time, as checksum_impl.h is written."""
    words = list(struct.unpack(f"<{len(page) // 4}I", page[:8] + b"\0\0" + page[10:]))
    sums = list(SEEDS)
    for row in range(0, len(words), 32):
        for lane in range(32):
            mixed = sums[lane] ^ words[row + lane]
            sums[lane] = ((mixed * 16777619) & 0xFFFFFFFF) ^ (mixed >> 17)
    for _ in range(2):
        sums = [((value * 16777619) & 0xFFFFFFFF) ^ (value >> 17) for value in sums]
    folded = 0
    for value in sums:
        folded ^= value
    return (folded ^ (block & 0xFFFFFFFF)) % 65535 + 1


def sealed(content: bytes, block: int) -> bytes:
    """Give a page a nonzero pd_upper and the checksum of its place."""
    page = bytearray(content)
    page[14:16] = b"\x10\x20"
    page[8:10] = struct.pack("<H", reference(bytes(page), block))
    return bytes(page)


@settings(max_examples=15, deadline=None)
@given(
    block_bytes=st.sampled_from([1 << 10, 1 << 12, 1 << 13, 1 << 15]),
    first=st.integers(0, (1 << 32) - 10),
    seed=st.integers(0, 1 << 32),
    pages=st.integers(1, 4),
    flip=st.integers(0, (1 << 15) * 8 - 1),
)
def test_any_page_of_any_size_agrees_with_the_plain_algorithm(
    block_bytes: int, first: int, seed: int, pages: int, flip: int
) -> None:
    random = np.random.default_rng(seed)
    good = [sealed(random.bytes(block_bytes), first + index) for index in range(pages)]
    check = pagechecksum.verify_pages(b"".join(good), first_block=first, block_bytes=block_bytes)
    assert (check.bad_blocks, check.pages, check.trailing_bytes) == ((), pages, 0)
    victim, bit = flip % pages, flip % (block_bytes * 8)
    damaged = bytearray(b"".join(good))
    damaged[victim * block_bytes + bit // 8] ^= 1 << (bit % 8)
    page = bytes(damaged[victim * block_bytes : (victim + 1) * block_bytes])
    stored = struct.unpack_from("<H", page, 8)[0]
    expected = () if reference(page, first + victim) == stored else (first + victim,)
    check = pagechecksum.verify_pages(damaged, first_block=first, block_bytes=block_bytes)
    assert check.bad_blocks == expected


def test_batches_larger_than_the_cache_report_absolute_blocks() -> None:
    random = np.random.default_rng(5)
    base = 131072 * 3
    page = random.bytes(8192)
    pages = [sealed(page, base + index) for index in range(300)]
    pages[17] = pages[18]  # a page in the wrong place
    pages[299] = bytes(8191) + b"\1"
    pages[200] = bytes(8192)
    check = pagechecksum.verify_pages(b"".join(pages), first_block=base, block_bytes=8192)
    assert check.bad_blocks == (base + 17, base + 299)


def test_part_of_a_page_at_the_end_is_counted_and_not_judged() -> None:
    page = sealed(bytes(8192), 0)
    check = pagechecksum.verify_pages(page + page[:100], first_block=0, block_bytes=8192)
    assert (check.pages, check.bad_blocks, check.trailing_bytes) == (1, (), 100)
    check = pagechecksum.verify_pages(memoryview(b""), first_block=0, block_bytes=8192)
    assert (check.pages, check.trailing_bytes) == (0, 0)


@pytest.mark.parametrize("size", [0, 512, 8191, 65536])
def test_impossible_page_sizes_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match="no page size"):
        pagechecksum.verify_pages(bytes(8192), first_block=0, block_bytes=size)
