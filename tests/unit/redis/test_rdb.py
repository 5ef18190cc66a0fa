"""An RDB file counts if it is whole and its sum is right."""

from __future__ import annotations

import io
import os

import pytest

from drservice.components.redis import crc64 as module
from drservice.components.redis.crc64 import BLOCK_BYTES, crc64
from drservice.components.redis.rdb import check_rdb
from drservice.errors import RedisDumpError

WORDS = b"REDIS0011" + b"\xfa\x05hello\x05world" + b"\xff"


def sealed(content: bytes) -> bytes:
    return content + crc64([content]).to_bytes(8, "little")


def test_the_sum_is_that_of_redis() -> None:
    assert crc64([b"123456789"]) == 0xE9C6D914C4B8D9CA  # of crc64.c
    assert crc64([b"12345", memoryview(b"6789")]) == crc64([b"123456789"])


def test_the_sum_of_a_large_block_is_that_of_its_bytes_one_by_one() -> None:
    content = os.urandom(4096) * (BLOCK_BYTES // 4096) + b"and some more"
    value = 0
    for byte in content[-100_000:]:
        value = module._TABLE[(value ^ byte) & 0xFF] ^ (value >> 8)
    start = crc64([content[:-100_000]])
    assert crc64([content]) == crc64([content[-100_000:]], start)
    assert crc64([content[-100_000:]]) == value


def test_a_whole_file_says_what_it_is() -> None:
    facts = check_rdb(io.BytesIO(sealed(WORDS)))
    assert (facts.version, facts.size, facts.has_sum) == (11, len(WORDS) + 8, True)
    assert not check_rdb(io.BytesIO(WORDS + bytes(8))).has_sum


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "does not begin"),
        (b"-ERR no\r\n" + bytes(20), "does not begin"),
        (b"REDIS0004" + bytes(20), "version 4"),
        (b"REDIS0011", "ends after 9 bytes"),
        (sealed(WORDS)[:-1], "mark of its end"),
        (sealed(WORDS)[:-9] + sealed(WORDS)[-8:], "mark of its end"),
        (sealed(WORDS).replace(b"world", b"World"), "has the sum"),
        (sealed(WORDS)[:-8] + b"\1" * 8, "has the sum"),
    ],
)
def test_a_file_that_is_cut_or_changed_is_refused(content: bytes, text: str) -> None:
    with pytest.raises(RedisDumpError, match=text):
        check_rdb(io.BytesIO(content))
