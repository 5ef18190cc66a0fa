"""Opening an S3 bucket finds out by experiment what it can do."""

from __future__ import annotations

import json
import uuid
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from drservice.errors import ObjectExistsError, ObjectStoreError, StoreDeniedError, StoreUnreachableError
from drservice.model.storing import LockMode, LockSettings, StoreSettings
from drservice.objectstore import probing
from drservice.objectstore.interface import CreateMode
from drservice.objectstore.opening import PROBE_MAX_AGE, open_store, open_store_readonly
from drservice.objectstore.retrying import RetryBudget, RetryingStore
from drservice.objectstore.s3 import S3Store
from drservice.objectstore.s3client import Answer, S3Client
from tests.doubles.s3server import MotoBehaviour, MotoBuckets, free_port, moto_server, rclone_server


def bucket_name() -> str:
    return f"b-{uuid.uuid4().hex}"


@pytest.mark.parametrize(
    ("behaviour", "buckets", "expected"),
    [
        (MotoBehaviour.CONDITIONAL, MotoBuckets.PLAIN, CreateMode.CONDITIONAL),
        (MotoBehaviour.CONDITIONAL, MotoBuckets.VERSIONED, CreateMode.CONDITIONAL),
        (MotoBehaviour.IGNORES_CONDITIONS, MotoBuckets.PLAIN, CreateMode.SINGLE_WRITER),
        (MotoBehaviour.IGNORES_CONDITIONS, MotoBuckets.VERSIONED, CreateMode.FIRST_VERSION_WINS),
        (MotoBehaviour.REFUSES_CONDITIONS, MotoBuckets.PLAIN, CreateMode.SINGLE_WRITER),
        (MotoBehaviour.CHECKS_EARLY, MotoBuckets.PLAIN, CreateMode.SINGLE_WRITER),
        (MotoBehaviour.CHECKS_EARLY, MotoBuckets.VERSIONED, CreateMode.FIRST_VERSION_WINS),
        (MotoBehaviour.ORDERS_BY_BEGINNING, MotoBuckets.VERSIONED, CreateMode.SINGLE_WRITER),
    ],
    ids=lambda value: value.name.lower(),
)
def test_the_probe_finds_what_the_store_really_does(
    tmp_path: Path, behaviour: MotoBehaviour, buckets: MotoBuckets, expected: CreateMode
) -> None:
    with moto_server(behaviour, buckets) as server, server.credentials():
        store = open_store(server.url_for(bucket_name(), "p"), lock_dir=tmp_path)
        assert store.capabilities.create_mode is expected
        assert store.capabilities.versioned is (buckets is MotoBuckets.VERSIONED)
        assert store.capabilities.writable
        weak = expected is not CreateMode.CONDITIONAL
        assert len(store.capabilities.warnings) == 1 + weak  # and one for http
        assert list(store.list("")) == []  # probe objects are gone
        store.close()


def test_where_the_first_version_wins_a_name_that_is_its_writers_own_takes_one_put_that_must_become_a_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, asked, call = "s/erp/database/tail/7/00000001/piece", [], S3Client.call

    def noting(client: S3Client, operation: str, action: str, **arguments: object) -> Answer:
        asked.append(operation)
        answer = call(client, operation, action, **arguments)
        if is_suspended and operation == "put_object":
            answer.pop("VersionId")  # as a bucket answers whose versions were switched off
        return answer

    is_suspended = False
    with moto_server(MotoBehaviour.IGNORES_CONDITIONS, MotoBuckets.VERSIONED) as server, server.credentials():
        store = open_store(server.url_for(bucket_name(), "p"), lock_dir=tmp_path)
        assert store.capabilities.create_mode is CreateMode.FIRST_VERSION_WINS
        monkeypatch.setattr(S3Client, "call", noting)
        store.create(key, b"piece")
        assert asked == ["put_object"]
        assert store.read(key) == b"piece"
        is_suspended = True
        with pytest.raises(ObjectStoreError, match="without a version"):
            store.create(key, b"piece")
        store.close()


def test_the_slow_writer_alone_unmasks_a_store_that_checks_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probing, "_RACES", 0)  # a race may be won by luck; this must not depend on it
    with moto_server(MotoBehaviour.CHECKS_EARLY, MotoBuckets.PLAIN) as server, server.credentials():
        store = open_store(server.url_for(bucket_name(), "p"), lock_dir=tmp_path)
        assert store.capabilities.create_mode is CreateMode.SINGLE_WRITER
        store.close()


def test_rclone_is_a_single_writer_store(tmp_path: Path) -> None:
    with rclone_server(tmp_path / "buckets") as server, server.credentials():
        store = open_store(server.url_for(bucket_name()), lock_dir=tmp_path / "locks")
        assert store.capabilities.create_mode is CreateMode.SINGLE_WRITER
        assert "only one host" in store.capabilities.warnings[0]
        store.close()


def test_a_probe_is_remembered_and_a_spoilt_memory_is_not_believed(tmp_path: Path) -> None:
    with moto_server(MotoBehaviour.IGNORES_CONDITIONS, MotoBuckets.PLAIN) as server, server.credentials():
        url = server.url_for(bucket_name(), "p")

        def mode(probe_max_age: timedelta = PROBE_MAX_AGE) -> CreateMode:
            store = open_store(url, lock_dir=tmp_path, probe_max_age=probe_max_age)
            store.close()
            return store.capabilities.create_mode

        assert mode() is CreateMode.SINGLE_WRITER
        (memory,) = tmp_path.glob("probe-*.json")
        truth = memory.read_text()
        memory.write_text(json.dumps({**json.loads(truth), "create_mode": "conditional"}))
        assert mode() is CreateMode.CONDITIONAL, "the memory is not used"
        assert mode(probe_max_age=timedelta(0)) is CreateMode.SINGLE_WRITER
        for spoilt in ("", "{", "[]", json.dumps({**json.loads(truth), "url": "s3://other"})):
            memory.write_text(spoilt)
            assert mode() is CreateMode.SINGLE_WRITER
            assert json.loads(memory.read_text())["create_mode"] == "single-writer"


def test_opening_for_reading_writes_nothing_and_reads_the_first_version(tmp_path: Path) -> None:
    with moto_server(MotoBehaviour.CONDITIONAL, MotoBuckets.VERSIONED) as server, server.credentials():
        bucket = bucket_name()
        url = server.url_for(bucket, "p")
        server.plant(bucket, "p/k", b"first")
        server.plant(bucket, "p/k", b"an attacker's")
        store = open_store_readonly(url, lock_dir=tmp_path)
        assert [info.key for info in store.list("")] == ["k"]
        assert store.read("k") == b"first"
        assert list(store.read_versions("k")) == [b"first", b"an attacker's"]
        assert store.stat("k").stored_bytes == 5
        with pytest.raises(StoreDeniedError):
            store.create("z", b"")
        with pytest.raises(StoreDeniedError):
            store.delete("k")
        store.close()
        assert list(tmp_path.iterdir()) == []


def test_a_delete_marker_hides_nothing(tmp_path: Path) -> None:
    with moto_server(MotoBehaviour.CONDITIONAL, MotoBuckets.VERSIONED) as server, server.credentials():
        bucket = bucket_name()
        store = open_store(server.url_for(bucket, "p"), lock_dir=tmp_path)
        store.create("k", b"body")
        assert isinstance(store, RetryingStore)
        assert isinstance(store._inner, S3Store)
        raw: Any = store._inner.client._client  # the attacker has the same credentials
        raw.delete_object(Bucket=bucket, Key="p/k")
        assert raw.list_objects_v2(Bucket=bucket, Prefix="p/k")["KeyCount"] == 0
        assert store.read("k") == b"body"
        assert [info.key for info in store.list("")] == ["k"]
        assert store.stat("k").stored_bytes == 4
        assert list(store.read_versions("k")) == [b"body"]
        store.close()


def test_a_missing_bucket_is_an_error_not_an_absent_object(tmp_path: Path) -> None:
    with moto_server(MotoBehaviour.CONDITIONAL, MotoBuckets.PLAIN) as server, server.credentials():
        url = server.url_for(bucket_name()).replace("s3://b-", "s3://absent-")
        with pytest.raises(ObjectStoreError, match="no bucket") as caught:
            open_store(url, lock_dir=tmp_path)
        assert type(caught.value) is ObjectStoreError


def test_a_wrong_secret_is_denied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with rclone_server(tmp_path / "buckets") as server, server.credentials():
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x" * 40)
        with pytest.raises(StoreDeniedError) as caught:
            open_store(server.url_for(bucket_name()), lock_dir=tmp_path)
        assert "x" * 40 not in str(caught.value)


def test_nobody_listening_is_unreachable_after_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7TESTING")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x" * 40)
    url = f"s3://bucket/p?endpoint=http://127.0.0.1:{free_port()}"
    with pytest.raises(StoreUnreachableError, match="attempts"):
        open_store(url, lock_dir=tmp_path, budget=RetryBudget(total_seconds=1))


def test_the_newer_checksums_work_too(tmp_path: Path) -> None:
    with moto_server(MotoBehaviour.CONDITIONAL, MotoBuckets.PLAIN) as server, server.credentials():
        url = server.url_for(bucket_name(), "p", checksum="when_supported")
        store = open_store(url, lock_dir=tmp_path)
        store.create("k", [b"abc", b"def"])
        assert store.read("k") == b"abcdef"
        with pytest.raises(ObjectExistsError):
            store.create("k", b"")
        store.close()


def test_a_store_that_does_not_tell_who_owns_a_bucket_is_refused_when_an_owner_is_expected(tmp_path: Path) -> None:
    with rclone_server(tmp_path / "buckets") as server, server.credentials():
        url = server.url_for(bucket_name(), "p")
        with pytest.raises(StoreDeniedError, match="does not tell who owns the bucket"):
            open_store(url, lock_dir=tmp_path, settings=StoreSettings(bucket_owner="anybody"))
        store = open_store(
            url,
            lock_dir=tmp_path,
            settings=StoreSettings(lock=LockSettings(mode=LockMode.COMPLIANCE, days=3)),
        )
        assert store.capabilities.lock is None
        with pytest.raises(StoreDeniedError) as caught:
            store.create("k", b"unlocked")
        assert "the bucket has none" in caught.value.hint
        store.close()
