"""A create on the weakest stores, those without conditions: what it asks, what it sends, and what it notices."""

from __future__ import annotations

import gc
import shutil
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from drservice.errors import ObjectExistsError, ObjectStoreError
from drservice.objectstore.bodies import buffers_of
from drservice.objectstore.interface import Body, CreateMode, ObjectStore
from drservice.objectstore.opening import open_store
from drservice.objectstore.s3client import Answer, S3Client
from tests.doubles.s3server import S3Server, rclone_server

_BUCKET = "alone"
_PIECE = "s/erp/database/tail/7/00000001/0000000001000000-0000000001000005-01JD0000000000000000000000"
_BIG = bytes(range(256)) * (12 << 10)


@dataclass(slots=True)
class Asked:
    """What the store is asked, from the first call on; ``behind_put`` comes in between once."""

    calls: list[str] = field(default_factory=list)
    hashed: list[bool] = field(default_factory=list)
    behind_put: Callable[[], None] | None = None

    def take(self) -> tuple[list[str], list[bool]]:
        """Return the calls since the last time, and which of their PUTs had an MD5."""
        taken = self.calls, self.hashed
        self.calls, self.hashed = [], []
        return taken


@pytest.fixture(params=[True, False], ids=["tells md5", "tells no md5"])
def tells_md5(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "buckets"


@pytest.fixture
def server(folder: Path, *, tells_md5: bool) -> Iterator[S3Server]:
    with rclone_server(folder, tells_md5=tells_md5) as server, server.credentials():
        yield server


@pytest.fixture
def store(server: S3Server, tmp_path: Path) -> Iterator[ObjectStore]:
    store = open_store(server.url_for(_BUCKET), lock_dir=tmp_path / "locks")
    assert store.capabilities.create_mode is CreateMode.SINGLE_WRITER
    yield store
    store.close()


@pytest.fixture
def asked(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Asked:
    assert store
    asked, call = Asked(), S3Client.call

    def noting(client: S3Client, operation: str, action: str, **arguments: object) -> Answer:
        asked.calls.append(operation)
        answer = call(client, operation, action, **arguments)
        if operation == "put_object":
            asked.hashed.append("ContentMD5" in arguments)
            come_between, asked.behind_put = asked.behind_put, None
            if come_between is not None:
                come_between()
        return answer

    monkeypatch.setattr(S3Client, "call", noting)
    return asked


def test_a_store_that_tells_the_md5_of_what_it_holds_is_asked_for_it_and_any_other_is_read(
    store: ObjectStore, asked: Asked, *, tells_md5: bool
) -> None:
    store.create("s/erp/database/first", b"body")
    first, hashed = asked.take()
    looks = ["head_object"] if tells_md5 else ["head_object", "get_object"]
    assert (first, hashed) == (["head_object", "put_object", *looks], [True]), "each is paid for each object"
    bodies: list[Body] = [b"body", [b"in ", b"pieces"], memoryview(_BIG), [_BIG, b"x"]]
    for number, body in enumerate(bodies):
        store.create(f"s/erp/database/{number}", body)
        look = "head_object" if tells_md5 else "get_object"
        assert asked.take() == (["head_object", "put_object", look], [tells_md5])
        assert store.read(f"s/erp/database/{number}") == b"".join(buffers_of(body))
        asked.take()


def test_a_name_that_is_its_writers_own_takes_one_put_that_the_store_checks_and_may_be_put_again(
    store: ObjectStore, asked: Asked
) -> None:
    """Pieces of WAL: nobody else can have the name, so there is nobody to look for before or afterwards."""
    store.create("s/erp/database/first", b"body")
    asked.take()
    bodies: list[Body] = [b"piece", [b"pie", memoryview(b"ce")]]
    for body in bodies:
        store.create(_PIECE, body)
        assert asked.take() == (["put_object"], [True]), "without an MD5 nobody would tell that it arrived as it was"
    assert store.read(_PIECE) == b"piece"
    with pytest.raises(ObjectExistsError):
        store.create("s/erp/database/first", b"body")


class Watched(bytearray):
    """A buffer that can be referred to weakly."""


@pytest.mark.parametrize("size", [1 << 20, 3 << 20], ids=["sent at once", "sent in pieces"])
def test_a_body_that_is_stored_is_not_in_memory_until_python_looks_for_cycles(store: ObjectStore, size: int) -> None:
    gc.collect()
    gc.disable()  # a command looks once in 50,000 objects: dozens of bodies later
    try:
        for key in ("s/erp/database/first", "s/erp/database/second"):
            body = Watched(size)
            stored = weakref.ref(body)
            store.create(key, [b"head", memoryview(body)])
            del body
            assert stored() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("before", [0, 1], ids=["at the first object", "later"])
def test_what_another_host_puts_in_between_is_noticed_although_it_is_of_the_same_size(
    store: ObjectStore, asked: Asked, server: S3Server, tmp_path: Path, before: int
) -> None:
    other = open_store(server.url_for(_BUCKET), lock_dir=tmp_path / "other host")
    for number in range(before):
        store.create(f"s/erp/database/{number}", b"body")
    key = "s/erp/database/x"

    def overwrite() -> None:
        other.delete(key)
        other.create(key, b"BODY")

    asked.behind_put = overwrite
    with pytest.raises(ObjectExistsError, match="another host writes here"):
        store.create(key, b"body")
    assert store.read(key) == b"BODY"
    store.create("s/erp/database/y", b"body")
    other.close()


def test_a_bucket_that_is_gone_is_told_by_the_put(store: ObjectStore, folder: Path) -> None:
    shutil.rmtree(folder / _BUCKET)
    time.sleep(0.3)  # the server looks again a moment later
    with pytest.raises(ObjectStoreError, match="NoSuchBucket") as caught:
        store.create("s/erp/database/y", b"body")
    assert "makes no buckets" in caught.value.hint
