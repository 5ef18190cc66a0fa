"""What every object store promises (drservice/objectstore/interface.py), claim by claim."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from drservice.errors import (
    DamagedObjectError,
    InvalidKeyError,
    ObjectExistsError,
    ObjectNotFoundError,
)
from drservice.objectstore.interface import Body, ObjectStore
from tests.contract.conftest import Subject

EVIL_KEYS = (
    "",
    "/",
    "/etc/passwd",
    "a//b",
    "a/",
    "../a",
    "a/../b",
    "a/..",
    ".",
    "./a",
    "a/./b",
    ".hidden",
    "a/.tmp-1",
    "a..b",
    "a b",
    "a\nb",
    "a\0b",
    "a\\b",
    "a%2fb",
    "a?b",
    "a#b",
    "ä",
    "a/\u202eb",
    "\ud800",
    "x" * 201,
    "/".join(["x" * 100] * 8),
)


def keys_of(store: ObjectStore, prefix: str = "", *, start_after: str = "") -> list[str]:
    return [info.key for info in store.list(prefix, start_after=start_after)]


def test_the_store_works_in_the_expected_mode(subject: Subject) -> None:
    assert subject.store.capabilities.create_mode is subject.mode
    assert subject.store.capabilities.writable


def test_what_was_created_is_read_listed_and_measured(subject: Subject) -> None:
    before = subject.store.server_time()
    subject.store.create("s/erp/db/packs/ab/abcdef", b"some bytes")
    assert subject.store.read("s/erp/db/packs/ab/abcdef") == b"some bytes"
    info = subject.store.stat("s/erp/db/packs/ab/abcdef")
    assert (info.key, info.stored_bytes) == ("s/erp/db/packs/ab/abcdef", 10)
    assert info.modified_at.utcoffset() == timedelta(0)
    assert before - timedelta(seconds=2) <= info.modified_at <= before + timedelta(seconds=60)
    assert list(subject.store.list("s/")) == [info]
    assert list(subject.store.read_versions("s/erp/db/packs/ab/abcdef")) == [b"some bytes"]


BODIES: tuple[tuple[Body, bytes], ...] = (
    (b"", b""),
    ([], b""),
    ([b"", bytearray(), memoryview(b"")], b""),
    (bytearray(b"mutable"), b"mutable"),
    (memoryview(b"0123456789")[2:5], b"234"),
    ([b"one,", bytearray(b"two,"), memoryview(b"--three--")[2:7], b""], b"one,two,three"),
    ([b"%06d" % number for number in range(3000)], b"".join(b"%06d" % n for n in range(3000))),
    (memoryview(bytes(range(8))).cast("I"), bytes(range(8))),
)


def test_bodies_of_every_shape_are_stored_as_their_bytes(subject: Subject) -> None:
    for number, (body, expected) in enumerate(BODIES):
        subject.store.create(f"k/{number}", body)
        assert subject.store.read(f"k/{number}") == expected
        assert subject.store.stat(f"k/{number}").stored_bytes == len(expected)


def test_a_body_larger_than_any_buffer_comes_back_whole(subject: Subject) -> None:
    body = b"".join(number.to_bytes(8, "big") for number in range(400_000))
    subject.store.create("big", [body[:1_000_001], body[1_000_001:]])
    assert subject.store.read("big") == body
    assert subject.store.read("big", offset=1_000_000, length=2) == body[1_000_000:1_000_002]


def test_a_taken_key_is_refused_and_keeps_its_bytes(subject: Subject) -> None:
    subject.store.create("k", b"first")
    for body in (b"second, longer", b"first", b""):
        with pytest.raises(ObjectExistsError):
            subject.store.create("k", body)
    with pytest.raises(ObjectExistsError):
        subject.reopen().create("k", b"from another writer")
    assert subject.store.read("k") == b"first"
    assert next(iter(subject.store.read_versions("k"))) == b"first"


def test_of_many_concurrent_creators_exactly_one_wins(subject: Subject) -> None:
    stores = [subject.store, subject.reopen()]
    writers = 6
    for round_number in range(3):
        key = f"race/{round_number}"
        start = threading.Barrier(writers)

        def write(number: int, key: str = key, start: threading.Barrier = start) -> bytes | None:
            body = b"writer %d" % number
            start.wait(20)
            try:
                stores[number % 2].create(key, body)
            except ObjectExistsError:
                return None
            return body

        with ThreadPoolExecutor(writers) as pool:
            winners = [body for body in pool.map(write, range(writers)) if body is not None]
        assert len(winners) == 1
        assert subject.store.read(key) == winners[0]
        assert next(iter(subject.store.read_versions(key))) == winners[0]


def test_ranges_are_exact(subject: Subject) -> None:
    subject.store.create("k", b"0123456789")
    for offset, length, expected in (
        (0, None, b"0123456789"),
        (3, None, b"3456789"),
        (10, None, b""),
        (0, 10, b"0123456789"),
        (9, 1, b"9"),
        (2, 3, b"234"),
        (0, 0, b""),
        (10, 0, b""),
    ):
        assert subject.store.read("k", offset=offset, length=length) == expected


def test_a_range_beyond_the_end_is_damage_never_a_short_answer(subject: Subject) -> None:
    subject.store.create("k", b"0123456789")
    for offset, length in ((0, 11), (9, 2), (10, 1), (11, None), (11, 0), (500, 5)):
        with pytest.raises(DamagedObjectError):
            subject.store.read("k", offset=offset, length=length)


def test_ranges_of_an_empty_object(subject: Subject) -> None:
    subject.store.create("empty", b"")
    assert subject.store.read("empty") == b""
    assert subject.store.read("empty", offset=0, length=0) == b""
    with pytest.raises(DamagedObjectError):
        subject.store.read("empty", offset=0, length=1)


def test_a_negative_range_is_a_programming_error(subject: Subject) -> None:
    subject.store.create("k", b"0123456789")
    with pytest.raises(ValueError, match="range"):
        subject.store.read("k", offset=-1)
    with pytest.raises(ValueError, match="range"):
        subject.store.read("k", length=-1)


def test_an_absent_object_is_not_found_in_every_way(subject: Subject) -> None:
    subject.store.create("folder/k", b"x")
    for key in ("absent", "folder", "folder/absent", "folder/k-not", "no/such/folder"):
        for ask in (
            subject.store.read,
            subject.store.stat,
            lambda key: subject.store.read(key, offset=2, length=3),
            lambda key: subject.store.read(key, length=0),
        ):
            with pytest.raises(ObjectNotFoundError):
                ask(key)
        assert list(subject.store.read_versions(key)) == []
    assert keys_of(subject.store, "absent/") == []


def test_an_evil_key_is_refused_everywhere(subject: Subject) -> None:
    for key in EVIL_KEYS:
        attempts: tuple[Callable[[str], object], ...] = (
            lambda key: subject.store.create(key, b"x"),
            subject.store.read,
            subject.store.stat,
            subject.store.delete,
            lambda key: list(subject.store.read_versions(key)),
        )
        for attempt in attempts:
            with pytest.raises(InvalidKeyError):
                attempt(key)
    assert keys_of(subject.store, "") == []


def test_an_evil_prefix_is_refused(subject: Subject) -> None:
    for prefix in ("/", "../", "a//", "a/../b", ".", "a b", "ä"):
        with pytest.raises(InvalidKeyError):
            list(subject.store.list(prefix))


def test_a_listing_is_ordered_by_the_code_points_of_whole_keys(subject: Subject) -> None:
    keys = ["a/b", "a-b", "a.b", "a/b-c", "a-/x", "a/b.c", "aa", "A", "a0", "a_", "a.d/e", "a/c/d", "Z/z"]
    for key in keys:
        subject.store.create(key, b"x")
    assert keys_of(subject.store) == sorted(keys)
    assert keys_of(subject.store, "a/") == ["a/b", "a/b-c", "a/b.c", "a/c/d"]
    assert keys_of(subject.store, "a/b") == ["a/b", "a/b-c", "a/b.c"]
    assert keys_of(subject.store, "a-") == ["a-/x", "a-b"]
    assert keys_of(subject.store, "a/c/") == ["a/c/d"]
    assert keys_of(subject.store, "q") == []


def test_start_after_takes_up_a_listing_anywhere(subject: Subject) -> None:
    keys = sorted(["a/b", "a-b", "a/b-c", "a/c/d", "a/c/e", "b", "c/d/e/f"])
    for key in keys:
        subject.store.create(key, b"x")
    for start in [*keys, "a", "a/", "a/c", "a/c/", "a/c/dd", "b/", "zz", "A"]:
        assert keys_of(subject.store, start_after=start) == [key for key in keys if key > start]
    assert keys_of(subject.store, "a/", start_after="a/b") == ["a/b-c", "a/c/d", "a/c/e"]
    assert keys_of(subject.store, "a/c/", start_after="a/b") == ["a/c/d", "a/c/e"]
    assert keys_of(subject.store, "a/", start_after="b") == []


def test_more_keys_than_a_page_holds_are_listed_completely(subject: Subject) -> None:
    expected = sorted(f"p/{number % 7}/{number:05d}" for number in range(2103))
    for key in expected:
        subject.plant(key, b"x")
    subject.plant("p/foreign name~last", b"not ours")  # no key can have this name
    subject.plant("q/~last", b"not ours")
    assert keys_of(subject.store, "p/") == expected
    assert keys_of(subject.store, "p/", start_after=expected[1500]) == expected[1501:]
    assert keys_of(subject.store, "p/3/") == [key for key in expected if key.startswith("p/3/")]


def test_what_is_created_again_behind_a_deletion_is_what_is_read(subject: Subject) -> None:
    for body in (b"first", b"second", b"third"):
        subject.store.create("k", body)
        assert subject.store.read("k") == body
        assert subject.store.read("k", offset=1, length=3) == body[1:4]
        subject.store.delete("k")
        with pytest.raises(ObjectNotFoundError):
            subject.store.read("k")


def test_delete_removes_one_object_and_forgives_absence(subject: Subject) -> None:
    subject.store.create("a/1", b"x")
    subject.store.create("a/12", b"y")
    subject.store.delete("a/1")
    subject.store.delete("a/1")
    subject.store.delete("no/such/thing")
    assert keys_of(subject.store) == ["a/12"]
    assert list(subject.store.read_versions("a/1")) == []
    subject.store.create("a/1", b"again")
    assert subject.store.read("a/1") == b"again"


def test_the_store_tells_its_time(subject: Subject) -> None:
    first = subject.store.server_time()
    assert abs(first - datetime.now(UTC)) < timedelta(seconds=5)
    time.sleep(1.1)
    assert subject.store.server_time() > first
    assert keys_of(subject.store) == []


def test_the_description_shows_no_secret(subject: Subject) -> None:
    assert subject.store.description
    assert "AKIA" not in subject.store.description
