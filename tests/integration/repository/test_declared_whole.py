"""A backup is declared only when its WAL is whole in the store: an object of the right name proves nothing."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from drservice.clock import SystemClock
from drservice.errors import DamagedObjectError, WalTimeoutError
from drservice.model.estate import PostgresSettings, WalSettings
from drservice.model.ids import ComponentName, SystemId
from drservice.model.wal import Lsn, Timeline, WalFileName
from drservice.objectstore.interface import ObjectStore
from drservice.operations.backup import BackupContext, _wait_for_wal
from drservice.operations.progress import SilentProgress
from drservice.repository.keys import Identities
from tests.doubles.repositories import SYSTEM_ID, Site, flipped, new_host, noise, trusted
from tests.doubles.stores import RecordingStore

MIB = 1 << 20
SEGMENTS = [f"0000000100000000{number:08X}" for number in (2, 3)]
KEY = f"s/erp/database/wal/{SYSTEM_ID}/00000001/{SEGMENTS[1]}"
CAPTURED: Any = SimpleNamespace(
    control=SimpleNamespace(system_id=SYSTEM_ID, wal_segment_bytes=MIB),
    timeline=Timeline(1),
    start_lsn=Lsn(2 * MIB + 40),
    stop_lsn=Lsn(3 * MIB + 300),
    from_standby=False,
)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site.create(tmp_path)


def wait(site: Site, store: ObjectStore | None = None) -> None:
    """Wait as a backup does on a host that cannot read what it wrote."""
    component = PostgresSettings(
        name=ComponentName("database"),
        dsn=f"host={site.base} connect_timeout=1",  # nobody listens there
        wal=WalSettings(archive_wait=timedelta(seconds=0)),
    )
    context = BackupContext(
        repository=site.repository(store=store, identities=Identities()),
        state_dir=site.state_dir,
        clock=SystemClock(),
        progress=SilentProgress(),
    )
    _wait_for_wal(context, component, site.scope, CAPTURED)


def test_whole_segments_are_read_once_each(site: Site) -> None:
    for name in SEGMENTS:
        site.put_wal(name, noise(MIB))
    store = RecordingStore(site.store)
    wait(site, store)
    assert sum(1 for name, key in store.calls if name == "read_versions" and "/wal/" in key) == 2


@pytest.mark.parametrize("size", [0, MIB - 1, MIB + 1, 16 * MIB])
def test_a_segment_of_another_size_is_not_the_segment(site: Site, size: int) -> None:
    site.put_wal(SEGMENTS[0], noise(MIB))
    site.put_wal(SEGMENTS[1], bytes(size))
    with pytest.raises(WalTimeoutError, match=f"{SEGMENTS[1]}.* {size} bytes instead of {MIB}"):
        wait(site)


@pytest.mark.parametrize(("at", "reason"), [(50, "header|signature"), (-1, "hash|SHA|changed|damaged")])
def test_a_damaged_segment_is_named_with_what_is_wrong_and_its_repaired_copy_will_do(
    site: Site, at: int, reason: str
) -> None:
    for name in SEGMENTS:
        site.put_wal(name, noise(MIB))
    site.replace(KEY, flipped(at))
    with pytest.raises(WalTimeoutError, match=f"{SEGMENTS[1]} did not reach the store whole.*({reason})"):
        wait(site)
    with pytest.raises(DamagedObjectError):
        site.put_wal(SEGMENTS[1], noise(MIB))
    wait(site)


def test_the_segment_of_a_signer_that_is_not_believed_will_not_do(site: Site) -> None:
    site.put_wal(SEGMENTS[0], noise(MIB))
    stranger = new_host("stranger")
    theirs = site.repository(host=stranger, signers=[trusted(stranger)]).wal(site.scope)
    theirs.put(WalFileName.parse(SEGMENTS[1]), noise(MIB), system_id=SYSTEM_ID, last_write=site.clock.now())
    with pytest.raises(WalTimeoutError, match=stranger.fingerprint):
        wait(site)


def test_the_segment_of_another_cluster_is_not_there(site: Site) -> None:
    site.put_wal(SEGMENTS[0], noise(MIB))
    archive = site.repository().wal(site.scope)
    archive.put(WalFileName.parse(SEGMENTS[1]), noise(MIB), system_id=SystemId("1"), last_write=site.clock.now())
    with pytest.raises(WalTimeoutError, match=f"{SEGMENTS[1]}.*not there"):
        wait(site)
