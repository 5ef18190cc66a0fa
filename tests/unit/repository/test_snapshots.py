"""Snapshot objects: what counts, what is void, and that nothing unreadable is passed over in silence."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgpack
import pytest

from drservice.canonical import canonical_bytes
from drservice.clock import to_iso
from drservice.errors import (
    BadSignatureError,
    DamagedObjectError,
    DrError,
    FormatError,
    MissingObjectError,
    NoIdentityError,
    UnknownSignerError,
    WrongIdentityError,
)
from drservice.model.ids import SnapshotId
from drservice.model.snapshot import SnapshotRecord
from drservice.objectstore.memory import MemoryStore
from drservice.repository import layout
from drservice.repository.envelope import HostKey, header_extent, write_envelope
from drservice.repository.keys import Identities, make_identity
from drservice.repository.records import seal_body
from tests.doubles.clock import ManualClock
from tests.doubles.repositories import Site, flipped, new_host, noise, trusted
from tests.doubles.stores import RecordingStore

FOLDER = "s/erp/database/snapshots/"
Header = dict[str, Any]


@pytest.fixture
def record(site: Site) -> SnapshotRecord:
    site.write({"f": noise(1000), "g": b"text" * 1000})
    return site.capture()


def key_of(record: SnapshotRecord) -> str:
    return layout.snapshot_key(record.service, record.component, record.id)


def rewrite(
    site: Site,
    record: SnapshotRecord,
    *,
    header: Callable[[Header], None] = lambda _: None,
    table: Callable[[Header], None] = lambda _: None,
    body: Callable[[bytes], bytes] = lambda data: data,
    signer: HostKey | None = None,
    key: str | None = None,
) -> None:
    """Replace a snapshot object by one with other content, signed by the same host or another."""
    data = site.store.read(key_of(record))
    extent = header_extent(data, "it")
    fields = json.loads(data[8 : extent - 64])
    header(fields)
    [length] = struct.unpack(">I", data[extent : extent + 4])
    public = json.loads(data[extent + 4 : extent + 4 + length])
    table(public)
    raw = canonical_bytes(public)
    content = body(struct.pack(">I", len(raw)) + raw + data[extent + 4 + length :])
    for name in ("type", "repository", "key", "signer", "host", "created_at", "body_bytes", "body_sha256"):
        fields.pop(name, None)
    where = key or key_of(record)
    pieces = write_envelope(
        signer=signer or site.host,
        repository=site.repository().id,
        key=where,
        kind="snapshot",
        fields=fields,
        body=[content],
        now=site.clock.now(),
    )
    site.store.delete(where)
    site.store.create(where, b"".join(pieces))


def problem(site: Site) -> DrError:
    """Return why the one snapshot is not readable."""
    listing = site.repository().snapshots(site.scope)
    assert listing.records == ()
    [error] = listing.unreadable.values()
    return error


def test_the_record_of_a_listing_is_the_record_of_the_commit(site: Site, record: SnapshotRecord) -> None:
    listing = site.repository().snapshots(site.scope)
    assert listing.records == (record,)
    assert listing.unreadable == {}
    assert site.repository().open_snapshot(site.scope, record.id).record == record


def test_listing_needs_no_identity_and_reads_heads_only(site: Site, record: SnapshotRecord) -> None:
    store = RecordingStore(site.store)
    listing = site.repository(store=store, identities=Identities()).snapshots(site.scope)
    assert listing.records == (record,)
    assert store.count("read") == 1


def test_the_pack_table_names_every_pack_with_its_size_and_what_is_alive_in_it(
    site: Site, record: SnapshotRecord
) -> None:
    packs = site.repository().open_snapshot(site.scope, record.id).packs
    sizes = site.sizes("s/erp/database/")
    for kind, uses in (("packs", packs.data), ("nodes", packs.nodes)):
        keys = {layout.pack_key(record.service, record.component, kind, use.name): use for use in uses}
        assert {key: use.stored_bytes for key, use in keys.items()} == {
            key: size for key, size in sizes.items() if f"/{kind}/" in key
        }
        assert all(0 < use.live_bytes <= use.stored_bytes for use in uses)
        assert all(use.key_id in record.key_ids for use in uses)


def test_live_bytes_shrink_when_chunks_are_replaced(site: Site, record: SnapshotRecord) -> None:
    before = site.repository().open_snapshot(site.scope, record.id).packs.data[0]
    site.write({"f": noise(1000, 5)})
    after = site.repository().open_snapshot(site.scope, site.capture().id).packs.data
    [same] = [use for use in after if use.name == before.name]
    assert 0 < same.live_bytes < before.live_bytes


@pytest.mark.parametrize(("late", "void"), [(timedelta(hours=12), False), (timedelta(hours=12, seconds=1), True)])
def test_a_snapshot_committed_12_hours_after_its_last_check_is_void(
    tmp_path: Path, late: timedelta, *, void: bool
) -> None:
    clock = ManualClock()
    site = Site.create(tmp_path, store=MemoryStore(clock=clock))
    site.write({"f": b"x"})
    record = site.capture()
    stored = site.store.stat(key_of(record)).modified_at

    def earlier(header: Header) -> None:
        header["checked_at"] = to_iso(stored - late)

    rewrite(site, record, header=earlier)
    listing = site.repository().snapshots(site.scope)
    assert (listing.records == ()) is void
    if void:
        assert "void" in problem(site).message
        assert [found.id for found in listing.void] == [record.id], "it can still be asked for by name"


def test_an_unreadable_snapshot_is_listed_and_not_skipped(site: Site, record: SnapshotRecord) -> None:
    second = site.capture()
    site.replace(key_of(record), flipped(60))
    listing = site.repository().snapshots(site.scope)
    assert [one.id for one in listing.records] == [second.id]
    assert list(listing.unreadable) == [key_of(record)]


def test_foreign_objects_beside_snapshots_are_not_ours(site: Site, record: SnapshotRecord) -> None:
    site.store.create(FOLDER + "README", b"hello")
    listing = site.repository().snapshots(site.scope)
    assert (listing.records, listing.unreadable) == ((record,), {})


def test_the_snapshots_of_another_signer_are_refused(site: Site, record: SnapshotRecord) -> None:
    stranger = new_host("stranger")
    rewrite(site, record, signer=stranger)
    assert isinstance(problem(site), UnknownSignerError)
    listing = site.repository(signers=[trusted(stranger, "erp")]).snapshots(site.scope)
    assert len(listing.records) == 1
    listing = site.repository(signers=[trusted(stranger, "reporting")]).snapshots(site.scope)
    assert listing.records == ()


def test_a_snapshot_moved_to_another_name_is_refused(site: Site, record: SnapshotRecord) -> None:
    data = site.store.read(key_of(record))
    site.store.create(FOLDER + "01ARZ3NDEKTSV4RRFFQ69G5FAV", data)
    listing = site.repository().snapshots(site.scope)
    [error] = listing.unreadable.values()
    assert isinstance(error, DamagedObjectError)
    assert "moved here" in error.message


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", "01ARZ3NDEKTSV4RRFFQ69G5FAV"),
        ("service", "reporting"),
        ("component", "other"),
        ("state", "perfect"),
        ("started_at", "yesterday"),
        ("checked_at", "2026-01-01T00:00:00"),
        ("key_ids", "x"),
        ("key_ids", []),
        ("sealed_key_id", "01ARZ3NDEKTSV4RRFFQ69G5FAV"),
        ("source_bytes", -1),
        ("files", "many"),
        ("postgres", None),
    ],
)
def test_a_signed_header_that_makes_no_sense_is_refused(
    site: Site, record: SnapshotRecord, field: str, value: object
) -> None:
    rewrite(site, record, header=lambda header: header.update({field: value}))
    assert isinstance(problem(site), FormatError)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("system_id", 7345678901234567890),
        ("system_id", "12x"),
        ("start_lsn", "nowhere"),
        ("stop_lsn", 7),
        ("timeline", 0),
        ("timeline", True),
        ("segment_bytes", 0),
        ("block_bytes", "8192"),
        ("bad_pages", -1),
    ],
)
def test_signed_facts_that_make_no_sense_are_refused(
    site: Site, record: SnapshotRecord, field: str, value: object
) -> None:
    rewrite(site, record, header=lambda header: header["postgres"].update({field: value}))
    assert isinstance(problem(site), FormatError)


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table.update(packs=None),
        lambda table: table.pop("node_packs"),
        lambda table: table["packs"].append(table["packs"][0]),
        lambda table: table["packs"][0].__setitem__(0, "xyz"),
        lambda table: table["packs"][0].__setitem__(1, "12"),
        lambda table: table["packs"][0].__setitem__(2, 1 << 40),
        lambda table: table["packs"][0].__setitem__(2, -1),
        lambda table: table["packs"][0].__setitem__(3, 9),
        lambda table: table["packs"][0].__setitem__(3, -1),
        lambda table: table["packs"][0].append(1),
    ],
)
def test_a_pack_table_that_makes_no_sense_is_refused(
    site: Site, record: SnapshotRecord, change: Callable[[Header], None]
) -> None:
    rewrite(site, record, table=change)
    with pytest.raises(FormatError, match="pack table"):
        site.repository().open_snapshot(site.scope, record.id)


@pytest.mark.parametrize("body", [b"", b"\0\0", b"\xff\xff\xff\xff", b"\0\0\0\2{}", b"\0\0\0\2[]", b"\0\0\0\3{ }"])
def test_a_body_that_makes_no_sense_is_refused(site: Site, record: SnapshotRecord, body: bytes) -> None:
    rewrite(site, record, body=lambda _: body)
    with pytest.raises(FormatError):
        site.repository().open_snapshot(site.scope, record.id)


@pytest.mark.parametrize("at", [-1, -30, -200])
def test_a_flipped_bit_in_the_sealed_part_is_found(site: Site, record: SnapshotRecord, at: int) -> None:
    site.replace(key_of(record), flipped(at))
    with pytest.raises(DamagedObjectError, match="SHA-256 differs"):
        site.repository().open_snapshot(site.scope, record.id)


@pytest.mark.parametrize("at", [0, 5, 30, 300, 900])
def test_a_flipped_bit_in_the_head_is_found(site: Site, record: SnapshotRecord, at: int) -> None:
    site.replace(key_of(record), flipped(at))
    assert isinstance(problem(site), (FormatError, UnknownSignerError, BadSignatureError, DamagedObjectError))


@pytest.mark.parametrize("lost", [1, 100, 1000])
def test_a_snapshot_that_is_cut_off_is_listed_as_unreadable(site: Site, record: SnapshotRecord, lost: int) -> None:
    site.replace(key_of(record), lambda data: data[:-lost])
    assert key_of(record) in problem(site).message


def secret(site: Site, record: SnapshotRecord, fields: object) -> None:
    """Replace the sealed part by another that the run's own key has sealed."""
    [data_key] = site.repository().keyring.secrets(record.sealed_key_id, service=record.service)
    plain = msgpack.packb(fields)
    sealed = b"".join(seal_body(data_key, plain, scope=site.scope, context=f"snapshot/{record.id}"))

    def exchange(body: bytes) -> bytes:
        [length] = struct.unpack(">I", body[:4])
        return body[: 4 + length] + sealed

    rewrite(site, record, body=exchange)


ROOT = [b"n" * 32, b"p" * 32, 0, 0, 16, 1, 1]


@pytest.mark.parametrize(
    "fields",
    [
        [],
        {"root": ROOT},
        {"root": None, "attachments": {}, "bad_pages": []},
        {"root": ROOT, "attachments": {"a": "text"}, "bad_pages": []},
        {"root": ROOT, "attachments": {1: b""}, "bad_pages": []},
        {"root": ROOT, "attachments": {}, "bad_pages": [7]},
        {"root": ROOT, "attachments": {}, "bad_pages": [["text", 7]]},
        {"root": ROOT, "attachments": {}, "bad_pages": [[b"path", "7"]]},
    ],
)
def test_a_sealed_part_that_makes_no_sense_is_refused(site: Site, record: SnapshotRecord, fields: object) -> None:
    secret(site, record, fields)
    with pytest.raises(FormatError):
        site.repository().reader(site.scope, record.id)


def test_a_snapshot_that_is_not_there_is_missing_by_name(site: Site, record: SnapshotRecord) -> None:
    with pytest.raises(MissingObjectError, match="01ARZ3NDEKTSV4RRFFQ69G5FAV"):
        site.repository().open_snapshot(site.scope, SnapshotId("01ARZ3NDEKTSV4RRFFQ69G5FAV"))
    assert record


def test_content_needs_the_right_identity(site: Site, record: SnapshotRecord, tmp_path: Path) -> None:
    with pytest.raises(NoIdentityError):
        site.repository(identities=Identities()).reader(site.scope, record.id)
    (tmp_path / "wrong").write_text(make_identity()[0])
    with pytest.raises(WrongIdentityError):
        site.repository(identities=Identities.load([f"file:{tmp_path / 'wrong'}"])).reader(site.scope, record.id)


def test_on_a_versioned_store_overwriting_and_deleting_hide_nothing(tmp_path: Path) -> None:
    store = MemoryStore(versioned=True)
    site = Site.create(tmp_path, store=store)
    site.write({"f": b"x"})
    record = site.capture()
    store.plant_version(key_of(record), b"ransom")
    store.plant_version(key_of(record), None)
    listing = site.repository().snapshots(site.scope)
    assert (listing.records, listing.unreadable) == ((record,), {})
    assert site.restore(record.id, tmp_path / "out") == {"f": b"x"}


def test_a_pack_that_the_snapshot_does_not_list_is_not_read(site: Site, record: SnapshotRecord, tmp_path: Path) -> None:
    rewrite(site, record, table=lambda table: table.update(packs=[]))
    with pytest.raises(DamagedObjectError, match="which the snapshot does not list"):
        site.restore(record.id, tmp_path / "out")
