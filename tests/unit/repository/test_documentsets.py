"""Document sets: signed, sealed, only added; each name is the SHA-1 of its content, a bad set costs only itself."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from drservice.errors import DamagedObjectError, NoIdentityError, ObjectExistsError, UnknownSignerError
from drservice.model.documents import DocumentPart, DocumentPosition, StoredSet, nearest_sets
from drservice.model.ids import SystemId
from drservice.model.wal import Lsn, Timeline
from drservice.objectstore.interface import Body
from drservice.objectstore.memory import MemoryStore
from drservice.repository import documentsets
from drservice.repository.documentsets import DocumentSets, cut
from drservice.repository.envelope import Trust
from drservice.repository.keys import DataKey, Identities
from tests.doubles.clock import ManualClock
from tests.doubles.repositories import SYSTEM_ID, Site, new_host, noise, trusted
from tests.doubles.stores import SlowStore

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def named(content: bytes) -> tuple[str, bytes]:
    digest = hashlib.sha1(content, usedforsecurity=False).hexdigest()
    return f"{digest[:2]}/{digest}", content


def at(seconds: int) -> DocumentPosition:
    return DocumentPosition(
        system_id=SystemId(SYSTEM_ID),
        timeline=Timeline(1),
        lsn=Lsn(1000 + seconds),
        server_time=NOON + timedelta(seconds=seconds),
    )


class Writer:
    """A run that stores sets."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.sets: DocumentSets = site.repository().document_sets(site.scope)
        self.key: DataKey = site.repository().day_keys(site.scope.service).today()
        self.last: StoredSet | None = None

    def put(
        self, *contents: bytes, seconds: int = 0, parts: Sequence[DocumentPart] = (), missing: Sequence[str] = ()
    ) -> StoredSet:
        self.last = self.sets.put(
            [named(content) for content in contents],
            position=at(seconds),
            missing=missing,
            corrupt=(),
            whole=True,
            previous=self.last.id if self.last else None,
            key=self.key,
            parts=parts,
        )
        return self.last


@pytest.fixture
def writer(site: Site) -> Writer:
    return Writer(site)


def contents(sets: DocumentSets, stored: StoredSet) -> dict[str, bytes]:
    return {part.name: part.data for part in sets.read(stored, {entry.name for entry in sets.index(stored).entries})}


def test_what_was_put_is_listed_and_read_by_another_process(site: Site, writer: Writer) -> None:
    lost = named(b"gone")[0]
    first = writer.put(b"one", noise(3 << 20), b"", missing=[lost])
    second = writer.put(b"two", seconds=2)
    sets = site.repository().document_sets(site.scope)
    listed = sets.listing()
    assert [item.id for item in listed.sets] == [first.id, second.id]
    assert listed.unreadable == {}
    assert (listed.sets[0].documents, listed.sets[0].plain_bytes, listed.sets[0].is_whole) == (3, 3 + (3 << 20), True)
    assert (listed.sets[1].position, listed.sets[1].previous) == (at(2), first.id)
    assert contents(sets, listed.sets[0]) == dict(map(named, (b"one", noise(3 << 20), b"")))
    assert sets.index(listed.sets[0]).missing == (lost,)
    assert {name: item.id for name, item in sets.names(listed.sets).items()} == {
        **{named(content)[0]: first.id for content in (b"one", noise(3 << 20), b"")},
        named(b"two")[0]: second.id,
    }


def test_only_what_is_wanted_is_yielded(writer: Writer) -> None:
    stored = writer.put(b"one", b"two", b"three")
    name, content = named(b"two")
    assert [(part.name, part.data) for part in writer.sets.read(stored, {name})] == [(name, content)]


def test_a_look_at_the_index_reads_little_of_a_big_set(site: Site, writer: Writer) -> None:
    stored = writer.put(noise(4 << 20))
    read: list[int] = []
    original = site.store.read

    def counting(key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        data = original(key, offset=offset, length=length)
        read.append(len(data) if "/documents/" in key else 0)
        return data

    site.store.read = counting  # type: ignore[method-assign]  # counts what a reader asks for
    assert len(writer.sets.index(stored).entries) == 1
    assert sum(read) < 64 << 10


def test_a_big_document_is_cut_and_its_parts_fit_together(writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documentsets, "PART_BYTES", 1000)
    name, data = named(noise(2500))
    ranges = [cut(name, len(data), offset) for offset in (0, 1000, 2000)]
    parts = [DocumentPart(name=name, size=len(data), offset=r.start, data=data[r.start : r.stop]) for r in ranges]
    first = writer.put(b"small", parts=parts[:1])
    assert name not in writer.sets.names([first])
    second = writer.put(parts=parts[1:])
    assert writer.sets.names([first, second])[name] == first
    found = [part for item in (second, first) for part in writer.sets.read(item, {name})]
    assert b"".join(part.data for part in sorted(found, key=lambda part: part.offset)) == data
    with pytest.raises(ValueError, match="not cut"):
        writer.put(parts=[DocumentPart(name=name, size=2500, offset=0, data=data[:999])])


@pytest.mark.parametrize("name", ["../etc/passwd", "ab/0123", "00/" + "f" * 40, "s3://bucket/key", "ab/" + "A" * 40])
def test_no_name_leads_out_of_a_filestore(writer: Writer, name: str) -> None:
    with pytest.raises(ValueError, match="is no name"):
        writer.sets.put(
            [(name, b"x")], position=at(0), missing=(), corrupt=(), whole=True, previous=None, key=writer.key
        )


def test_content_that_is_not_its_name_is_not_stored(site: Site, writer: Writer) -> None:
    with pytest.raises(ValueError, match="other content"):
        writer.sets.put(
            [(named(b"right")[0], b"wrong")],
            position=at(0),
            missing=(),
            corrupt=(),
            whole=True,
            previous=None,
            key=writer.key,
        )
    assert site.repository().document_sets(site.scope).listing().sets == ()


def test_a_set_holds_no_more_than_its_limit(writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documentsets, "MAX_SET_BYTES", 10)
    with pytest.raises(ValueError, match="more than a set holds"):
        writer.put(b"12345", b"678901")


def test_a_damaged_set_costs_only_itself(site: Site, writer: Writer) -> None:
    bad, good = writer.put(noise(5000)), writer.put(b"good", seconds=1)
    site.store.delete(bad.key)
    site.store.create(bad.key, b"DRS1 nonsense")
    listed = writer.sets.listing()
    assert [item.id for item in listed.sets] == [good.id]
    assert list(listed.unreadable) == [bad.key]


def test_changed_content_is_refused_by_the_reader(site: Site, writer: Writer) -> None:
    stored = writer.put(noise(5000))
    data = site.store.read(stored.key)
    site.store.delete(stored.key)
    site.store.create(stored.key, data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(DamagedObjectError):
        contents(writer.sets, stored)


def test_a_set_of_another_place_is_refused(site: Site, writer: Writer) -> None:
    stored = writer.put(b"one")
    moved = stored.key[:-1] + ("0" if stored.key[-1] != "0" else "1")
    site.store.create(moved, site.store.read(stored.key))
    listed = writer.sets.listing()
    assert [item.id for item in listed.sets] == [stored.id]
    assert list(listed.unreadable) == [moved]


def test_a_signer_who_is_not_trusted_is_not_believed(site: Site, writer: Writer) -> None:
    stored = writer.put(b"one")
    sets = DocumentSets(
        site.store,
        scope=site.scope,
        trust=Trust([trusted(new_host("another"))]),
        keyring=site.repository().keyring,
        signer=None,
        clock=site.clock,
    )
    listed = sets.listing()
    assert listed.sets == ()
    assert isinstance(listed.unreadable[stored.key], UnknownSignerError)
    with pytest.raises(UnknownSignerError):
        contents(sets, stored)


def test_without_an_identity_headers_can_be_read_and_contents_cannot(site: Site, writer: Writer) -> None:
    writer.put(b"one")
    sets = site.repository(identities=Identities()).document_sets(site.scope)
    [stored] = sets.listing().sets
    with pytest.raises(NoIdentityError):
        sets.index(stored)


def test_a_lost_answer_is_no_second_set_and_a_foreign_object_stays(
    site: Site, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = site.store.create
    answers = ["foreign", "lost"]

    def create(key: str, body: Body) -> None:
        if "/documents/" not in key or not answers:
            original(key, body)
        elif answers.pop(0) == "foreign":
            original(key, b"somebody else's")
            raise ObjectExistsError(key)
        else:
            original(key, body)
            raise ObjectExistsError(key)

    monkeypatch.setattr(site.store, "create", create)
    stored = writer.put(b"one")
    listed = writer.sets.listing()
    assert [item.id for item in listed.sets] == [stored.id]
    assert len(listed.unreadable) == 1
    assert contents(writer.sets, stored) == dict([named(b"one")])


def test_sets_are_asked_nearest_first(writer: Writer) -> None:
    made = [writer.put(b"%d" % second, seconds=second) for second in (0, 10, 20)]
    assert [item.id for item in nearest_sets(made, NOON + timedelta(seconds=11))] == [
        made[1].id,
        made[2].id,
        made[0].id,
    ]
    assert [item.id for item in nearest_sets(made, None)] == [item.id for item in reversed(made)]


def test_the_newest_set_is_the_one_that_the_store_received_last(tmp_path: Path) -> None:
    """The writer's clock was a year ahead for a moment, and so was the server's."""
    stores, writers = ManualClock(NOON), ManualClock(NOON)
    site = replace(Site.create(tmp_path, store=MemoryStore(clock=stores)), clock=writers)
    writer = Writer(site)
    writers.jump(365 * 86400)
    ahead = writer.put(b"one", seconds=365 * 86400)
    writers.jump(-365 * 86400)
    stores.pass_seconds(61)
    later = writer.put(b"two", seconds=60)
    assert ahead.id > later.id
    newest = writer.sets.newest()
    assert newest is not None
    assert (newest.id, newest.looked_at) == (later.id, NOON + timedelta(seconds=60))
    assert {item.id: item.looked_at for item in writer.sets.listing().sets}[ahead.id] == NOON


def test_sets_from_before_an_instant_are_left_out_unread(tmp_path: Path) -> None:
    stores = ManualClock(NOON)
    site = Site.create(tmp_path, store=MemoryStore(clock=stores))
    Writer(site).put(b"one")
    stores.pass_seconds(60)
    new = Writer(site).put(b"two", seconds=60)
    reads: list[str] = []
    store = SlowStore(site.store, wait=reads.append)
    listing = site.repository(store=store).document_sets(site.scope).listing(since=NOON + timedelta(seconds=30))
    assert [item.id for item in listing.sets] == [new.id]
    assert reads.count("read") == 1
