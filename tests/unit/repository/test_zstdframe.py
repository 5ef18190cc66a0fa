"""One whole frame of the promised length, or nothing: what else there is, Python's module judges."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from drservice.errors import FormatError
from drservice.repository import zstdframe
from drservice.repository.records import CODEC_ZSTD, decompress
from drservice.repository.zstdframe import decompress_frame
from tests.doubles.repositories import noise

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PLAIN = noise(1000) + bytes(63_000) + noise(1536)
FRAME = zstd.compress(PLAIN, 1)
SKIPPABLE = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"skip"


@pytest.fixture
def without_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zstdframe, "_contexts", lambda: None)


@pytest.mark.parametrize("size", [1, 100, 32 << 10, 64 << 10, (128 << 10) + 1, 1 << 20])
def test_a_whole_frame_is_decompressed_by_the_library_itself(size: int) -> None:
    plain = noise(size // 2) + bytes(size - size // 2)
    whole = decompress_frame(zstd.compress(plain, 1), size)
    assert whole is not None, "the slow way is taken: the library that the module loaded is not reached"
    assert whole == plain
    assert whole.readonly


@pytest.mark.parametrize(
    ("stored", "length"),
    [
        (FRAME, len(PLAIN) - 1),
        (FRAME, len(PLAIN) + 1),
        (FRAME, 0),
        (FRAME[:-1], len(PLAIN)),
        (FRAME + b"x", len(PLAIN)),
        (FRAME + FRAME, 2 * len(PLAIN)),
        (FRAME + SKIPPABLE, len(PLAIN)),
        (SKIPPABLE + FRAME, len(PLAIN)),
        (b"", 1),
        (b"\x28\xb5\x2f\xfd", 1),
        (FRAME[:4] + b"\xff" * (len(FRAME) - 4), len(PLAIN)),
    ],
)
def test_anything_else_is_left_to_the_module(stored: bytes, length: int) -> None:
    assert decompress_frame(stored, length) is None


def test_records_are_read_the_same_without_the_library(without_library: None) -> None:
    del without_library
    assert decompress_frame(FRAME, len(PLAIN)) is None
    assert decompress(CODEC_ZSTD, FRAME, len(PLAIN)) == PLAIN
    with pytest.raises(FormatError, match="another length"):
        decompress(CODEC_ZSTD, FRAME + b"x", len(PLAIN))


def test_a_library_without_these_functions_is_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zstdframe, "_MODULE", "_socket")
    assert zstdframe._load() is None
    monkeypatch.setattr(zstdframe, "_MODULE", "no_such_module")
    assert zstdframe._load() is None


def test_threads_decompress_side_by_side_and_give_back_what_they_took(monkeypatch: pytest.MonkeyPatch) -> None:
    library = zstdframe._load()
    assert library is not None
    made: list[int] = []
    freed: list[int] = []
    create, free = library.create, library.free

    def counted() -> int:
        made.append(create())
        return made[-1]

    def noted(pointer: int) -> None:
        freed.append(pointer)
        free(pointer)

    object.__setattr__(library, "create", counted)
    object.__setattr__(library, "free", noted)
    contexts = zstdframe._Contexts(library)
    monkeypatch.setattr(zstdframe, "_contexts", lambda: (library, contexts))
    together = threading.Barrier(3)

    def work() -> bool:
        together.wait(10)
        return all(bytes(decompress_frame(FRAME, len(PLAIN)) or b"") == PLAIN for _ in range(20))

    with ThreadPoolExecutor(3) as pool:  # whose end joins its threads
        assert all(future.result() for future in [pool.submit(work) for _ in range(3)])
    assert len(set(made)) == 4
    assert sorted(freed) == sorted(made[1:]), "threads that ended keep nothing"
