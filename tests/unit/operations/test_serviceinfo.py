"""How old the newest look at documents is: only what saw all of them counts, and no clock that ran ahead."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from drservice.model.documents import DocumentPosition, StoredSet
from drservice.model.ids import KeyId, SystemId
from drservice.model.snapshot import SnapshotRecord, SnapshotState
from drservice.model.wal import Lsn, Timeline
from drservice.operations import serviceinfo
from tests.doubles.filestores import Filestore
from tests.doubles.repositories import Site


def test_a_partial_pass_is_no_look_at_all_documents(tmp_path: Path) -> None:
    filestore = Filestore(site=Site.create(tmp_path))
    filestore.add(b"an invoice")
    whole, _ = filestore.capture()
    later = replace(whole.documents, walk_began_at=whole.documents.walk_began_at + timedelta(hours=1))
    partial = replace(whole, state=SnapshotState.PARTIAL, facts=later)
    now = later.walk_began_at + timedelta(seconds=5)

    def age(*records: SnapshotRecord) -> float | None:
        return serviceinfo._age(serviceinfo._looks(filestore.settings, records), now, None, None)

    assert age(partial) is None
    assert age(whole, partial) == 3605


def test_a_set_is_as_old_as_the_store_has_it_whatever_the_servers_clock_said(tmp_path: Path) -> None:
    now = Site.create(tmp_path).clock.now()
    ahead = StoredSet(
        id="S",
        key="s",
        position=DocumentPosition(
            system_id=SystemId("7"), timeline=Timeline(1), lsn=Lsn(1), server_time=now + timedelta(days=300)
        ),
        documents=0,
        plain_bytes=0,
        key_id=KeyId("K"),
        previous=None,
        is_whole=True,
        stored_bytes=1,
        stored_at=now - timedelta(days=2),
    )
    assert serviceinfo._age([], now, ahead, None) == 2 * 86400
