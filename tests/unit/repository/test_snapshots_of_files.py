"""Headers of snapshots of files: what is written is what is read, and what contradicts itself is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from drservice.errors import FormatError
from drservice.model.snapshot import SnapshotRecord
from drservice.repository.verify import Depth, verify_component
from tests.doubles.filestores import Filestore
from tests.doubles.repositories import Site
from tests.unit.repository.test_snapshots import rewrite


@pytest.fixture
def filestore(site: Site) -> Filestore:
    return Filestore(site=site)


@pytest.fixture
def committed(filestore: Filestore) -> SnapshotRecord:
    filestore.fill(5)
    return filestore.capture(referred={"ab/" + "ab" * 20: 1})[0]


def test_the_record_of_a_listing_is_the_record_of_the_commit(filestore: Filestore, committed: SnapshotRecord) -> None:
    listing = filestore.site.repository().snapshots(filestore.scope)
    assert listing.records == (committed,)
    assert listing.records[0].documents.missing == 1


def test_nobody_asked_is_not_nothing_referred_to(filestore: Filestore) -> None:
    unasked, _ = filestore.capture()
    asked, _ = filestore.capture(referred={})
    records = filestore.site.repository().snapshots(filestore.scope).records
    assert [record.documents.referred for record in records] == [None, 0]
    assert (unasked.documents.referred, asked.documents.referred) == (None, 0)


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header.update(kind="unheard-of"),
        lambda header: header.update(kind="postgres"),
        lambda header: header.pop("documents"),
        lambda header: header.update(postgres={"system_id": "1"}),
        lambda header: header["documents"].update(missing=-1),
        lambda header: header["documents"].update(corrupt="0"),
        lambda header: header["documents"].update(unreadable=True),
        lambda header: header["documents"].update(referred="all"),
        lambda header: header["documents"].update(walk_began_at="yesterday"),
        lambda header: header["documents"].pop("foreign"),
        lambda header: header.update(state="complete"),
        lambda header: header.update(state="partial"),
    ],
)
def test_a_signed_header_that_makes_no_sense_is_refused(
    filestore: Filestore, committed: SnapshotRecord, change: Callable[[dict[str, Any]], Any]
) -> None:
    rewrite(filestore.site, committed, header=lambda header: change(header) and None)
    [error] = filestore.site.repository().snapshots(filestore.scope).unreadable.values()
    assert isinstance(error, FormatError)


def test_verify_reads_documents_as_it_reads_clusters(filestore: Filestore, committed: SnapshotRecord) -> None:
    verified = verify_component(
        filestore.site.repository(),
        filestore.scope,
        depth=Depth.DATA,
        percent=100,
        chosen=lambda _key, _percent: True,
        advance=lambda _bytes: None,
    )
    assert verified.findings == []
    assert verified.snapshots == [committed]
    assert verified.packs_checked >= 2


def test_verify_names_the_damaged_pack_of_documents(filestore: Filestore, committed: SnapshotRecord) -> None:
    (pack,) = filestore.packs()
    filestore.site.replace(pack, lambda data: data[:-1] + bytes([data[-1] ^ 1]))
    verified = verify_component(
        filestore.site.repository(),
        filestore.scope,
        depth=Depth.DATA,
        percent=100,
        chosen=lambda _key, _percent: True,
        advance=lambda _bytes: None,
    )
    assert verified.damaged_packs() == [pack]
    assert verified.spoilt() == {committed.id}
