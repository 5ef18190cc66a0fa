"""The main job on a real gateway with Object Lock: unversioned, versioned and locking buckets."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import psycopg
import pytest
from botocore.exceptions import ClientError

from drservice.errors import StoreDeniedError
from drservice.model.storing import LockMode, LockSettings, StoreSettings
from drservice.objectstore.conformance import try_store
from drservice.objectstore.interface import CreateMode
from drservice.objectstore.opening import open_store
from tests.ceph.cluster import HOST, Buckets, Ceph
from tests.doubles.cluster import Cluster, ClusterMaker
from tests.doubles.estate import TempEstate, wait_for
from tests.doubles.repositories import Site, noise

LOCK = LockSettings(mode=LockMode.COMPLIANCE, days=1)
HOST_RIGHTS = (
    "s3:PutObject",
    "s3:GetObject",
    "s3:GetObjectVersion",
    "s3:ListBucket",
    "s3:ListBucketVersions",
    "s3:GetBucketVersioning",
    "s3:GetBucketObjectLockConfiguration",
    "s3:PutObjectRetention",
    "s3:GetObjectRetention",
)
"""What docs/how-to/s3.md gives a backup host."""


@pytest.fixture
def cluster(template_cache: Path) -> Iterator[Cluster]:
    maker = ClusterMaker(cache=template_cache)
    yield maker.make()
    maker.close()


def new_bucket() -> str:
    return f"b-{uuid.uuid4().hex}"


def allow(ceph: Ceph, bucket: str, *rights: str, but: str | None = None) -> None:
    """Let the backup host's account do this in a bucket; ``but`` is denied even to the owner of an object."""
    who = {
        "Principal": {"AWS": ["arn:aws:iam:::user/host"]},
        "Resource": [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"],
    }
    statements = [{"Effect": "Allow", "Action": list(rights), **who}]
    if but is not None:
        statements.append({"Effect": "Deny", "Action": [but], **who})
    policy = {"Version": "2012-10-17", "Statement": statements}
    ceph.client().put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy))


def lock_end(client: Any, named: dict[str, str]) -> datetime | None:
    """Return until when a version is locked, ``None`` if it is not."""
    try:
        answer = client.get_object_retention(**named)
    except ClientError as error:
        if error.response["Error"]["Code"] in {"NoSuchObjectLockConfiguration", "ObjectLockConfigurationNotFoundError"}:
            return None
        raise
    until: datetime = answer["Retention"]["RetainUntilDate"]
    return until


def unlocked_versions(ceph: Ceph, bucket: str) -> list[str]:
    """Return the keys of versions that nothing keeps from being deleted: no lock, or one that ends within a day."""
    client: Any = ceph.client(HOST)  # objects belong to who wrote them
    found: list[str] = []
    for page in client.get_paginator("list_object_versions").paginate(Bucket=bucket):
        for version in page.get("Versions", ()):
            named = {"Bucket": bucket, "Key": version["Key"], "VersionId": version["VersionId"]}
            until = lock_end(client, named)
            if until is None or until < datetime.now(UTC) + timedelta(days=1) - timedelta(minutes=10):
                found.append(version["Key"])
    return found


@pytest.mark.parametrize(
    ("buckets", "mode"),
    [
        (Buckets.PLAIN, CreateMode.CONDITIONAL),
        (Buckets.VERSIONED, CreateMode.FIRST_VERSION_WINS),
        (Buckets.LOCKING, CreateMode.FIRST_VERSION_WINS),
    ],
)
def test_the_probe_finds_what_the_gateway_can_do(
    ceph: Ceph, tmp_path: Path, buckets: Buckets, mode: CreateMode
) -> None:
    server = ceph.server(buckets)
    with server.credentials():
        store = open_store(server.url_for(new_bucket(), "p"), lock_dir=tmp_path)
        assert store.capabilities.create_mode is mode
        assert store.capabilities.versioned is (buckets is not Buckets.PLAIN)
        store.close()


@pytest.mark.parametrize("mode", LockMode)
def test_everything_that_a_locking_bucket_must_refuse_is_refused(ceph: Ceph, tmp_path: Path, mode: LockMode) -> None:
    server = ceph.server(Buckets.LOCKING)
    settings = StoreSettings(lock=LockSettings(mode=mode, days=1))
    with server.credentials():
        tried = try_store(server.url_for(new_bucket(), "p"), lock_dir=tmp_path, settings=settings)
    assert len(tried) == (8 if mode is LockMode.COMPLIANCE else 6)
    assert [item for item in tried if not item.passed] == []


@pytest.mark.parametrize("buckets", [Buckets.PLAIN, Buckets.VERSIONED])
def test_a_bucket_without_locks_opens_for_reading_when_locks_are_configured(
    ceph: Ceph, tmp_path: Path, buckets: Buckets
) -> None:
    server = ceph.server(buckets)
    bucket = new_bucket()
    with server.credentials():
        store = open_store(server.url_for(bucket, "p"), lock_dir=tmp_path, settings=StoreSettings(lock=LOCK))
        assert not store.capabilities.writable
        with pytest.raises(StoreDeniedError) as caught:
            store.create("k", b"unlocked")
        assert "Object Lock" in caught.value.hint
        assert list(store.list("k")) == []
        store.close()


def test_a_bucket_of_another_owner_is_refused_by_the_gateway_or_by_its_access_list(ceph: Ceph, tmp_path: Path) -> None:
    """18.2.7 passes over the header that names the owner, 20.2.4 refuses."""
    server = ceph.server(Buckets.PLAIN)
    url = server.url_for(new_bucket(), "p")
    with server.credentials():
        open_store(url, lock_dir=tmp_path / "right", settings=StoreSettings(bucket_owner="owner")).close()
        with pytest.raises(StoreDeniedError, match=r"belongs to owner, not to stranger|does not belong to stranger"):
            open_store(url, lock_dir=tmp_path / "wrong", settings=StoreSettings(bucket_owner="stranger"))


def test_a_host_with_the_rights_of_the_how_to_locks_what_it_writes_and_extends_what_it_uses_again(
    ceph: Ceph, tmp_path: Path
) -> None:
    server = ceph.server(Buckets.LOCKING, HOST)
    bucket = new_bucket()
    url = server.url_for(bucket, "p")
    allow(ceph, bucket, *HOST_RIGHTS)
    with server.credentials():
        store = open_store(url, lock_dir=tmp_path / "run", settings=StoreSettings(lock=LOCK))
        site = Site.create(tmp_path / "site", store=store)
        site.write({"base/1": noise(200_000, 1)})
        site.capture()
        longer = StoreSettings(lock=LockSettings(mode=LockMode.COMPLIANCE, days=20))
        site.store = open_store(url, lock_dir=tmp_path / "run", settings=longer)
        site.write({"base/2": noise(200_000, 2)})
        record = site.capture(store=site.store)
        packs = [use.name for use in site.repository(store=site.store).open_snapshot(site.scope, record.id).packs.data]
        assert len(packs) == 2
        client: Any = ceph.client(HOST)
        for name in packs:
            key = f"p/s/erp/database/packs/{name[:2]}/{name}"
            until = client.get_object_retention(Bucket=bucket, Key=key)["Retention"]["RetainUntilDate"]
            assert until >= datetime.now(UTC) + timedelta(days=20) - timedelta(minutes=10)
        with pytest.raises(StoreDeniedError):
            store.delete(f"s/erp/database/packs/{packs[0][:2]}/{packs[0]}")
        assert site.restore(record.id, tmp_path / "out", store=site.store)["base/2"] == noise(200_000, 2)
    assert {key.split("/")[1] for key in unlocked_versions(ceph, bucket)} <= {"hold", "probe"}


def test_a_host_that_may_not_extend_locks_says_so_before_it_commits(ceph: Ceph, tmp_path: Path) -> None:
    server = ceph.server(Buckets.LOCKING, HOST)
    bucket = new_bucket()
    url = server.url_for(bucket, "p")
    allow(ceph, bucket, *HOST_RIGHTS)
    with server.credentials():
        site = Site.create(
            tmp_path / "site", store=open_store(url, lock_dir=tmp_path / "run", settings=StoreSettings(lock=LOCK))
        )
        site.write({"base/1": noise(200_000, 1)})
        site.capture()
        allow(ceph, bucket, *HOST_RIGHTS, but="s3:PutObjectRetention")
        longer = StoreSettings(lock=LockSettings(mode=LockMode.COMPLIANCE, days=20))
        site.write({"base/2": noise(200_000, 2)})
        with pytest.raises(StoreDeniedError) as caught:
            site.capture(store=open_store(url, lock_dir=tmp_path / "run", settings=longer))
        assert "PutObjectRetention" in caught.value.hint
        assert len(site.repository().snapshots(site.scope).records) == 1


@pytest.mark.parametrize("buckets", Buckets)
def test_backup_archiving_and_restore_by_the_command_line(ceph: Ceph, cluster: Cluster, buckets: Buckets) -> None:
    bucket = new_bucket()
    account = HOST if buckets is Buckets.LOCKING else None
    server = ceph.server(buckets, account) if account else ceph.server(buckets)
    url = server.url_for(bucket, "prod")
    if account:
        allow(ceph, bucket, *HOST_RIGHTS)
    with mock.patch.dict("os.environ", server.environment):
        estate = TempEstate.over(cluster, url=url, variables=server.environment)
        if buckets is Buckets.LOCKING:
            estate.repository_settings = {"lock": {"mode": "compliance", "days": 1}}
            estate.write_configuration(estate.config)
        estate.archive_with_the_program()
        cluster.start()
        estate.initialise()
        with psycopg.connect(cluster.dsn(), autocommit=True) as session:
            session.execute("create table orders as select generate_series(1, 100) as id")
            first = estate.json("backup", "erp")
            session.execute("insert into orders values (101)")
            second = estate.json("backup", "erp")
            session.execute("insert into orders values (102)")
        segment = cluster.switch_wal()
        done_file = cluster.data / "pg_wal" / "archive_status" / f"{segment}.done"
        wait_for(done_file.exists, f"{segment} to be archived; log:\n{cluster.log_text()[-2000:]}")
        assert first["snapshots"][0]["stored_bytes"] > second["snapshots"][0]["stored_bytes"]
        done = estate.json("restore", "erp", "--to", "latest", "--start")
        try:
            with psycopg.connect(done["environment"]["dsn"]) as session:
                found = session.execute("select count(*), max(id) from orders").fetchone()
        finally:
            estate.close()
        assert found == (102, 102)
        assert estate.json("verify", "erp")
        lines = json.loads(estate.run("check", "erp", "--json").stdout)["checks"]
        proof = [item for item in lines if item["name"] == "store refuses what it must"]
        assert [item["state"] for item in proof] == ["ok"], proof
    if buckets is Buckets.LOCKING:
        assert {key.split("/")[1] for key in unlocked_versions(ceph, bucket)} <= {"hold", "probe"}
