"""Packs: acknowledged only when stored, two in memory at most, every byte of them authenticated."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from blake3 import blake3

from drservice.errors import DamagedObjectError, DrError, FormatError, ObjectExistsError, StoreUnreachableError
from drservice.model.ids import ComponentName, KeyId, RepositoryId, ServiceName
from drservice.objectstore.interface import Body, Capabilities, ObjectStore
from drservice.objectstore.memory import MemoryStore
from drservice.repository.pack import (
    DATA_KIND,
    HEADER,
    NODE_KIND,
    ClosedPack,
    PackSink,
    PackTarget,
    pack_record_key,
    read_head,
    read_table,
)
from drservice.repository.records import Scope, open_record
from tests.doubles.repositories import flipped, noise
from tests.doubles.stores import Fault, FaultyStore, RecordingStore, When

SCOPE = Scope(
    repository=RepositoryId("01ARZ3NDEKTSV4RRFFQ69G5FAV"), service=ServiceName("erp"), component=ComponentName("db")
)
SECRET = bytes(range(32))


@dataclass
class Packing:
    store: ObjectStore
    pack_bytes: int = 1 << 20
    kind: bytes = DATA_KIND
    closed: list[ClosedPack] = field(default_factory=list)

    def __post_init__(self) -> None:
        target = PackTarget(
            scope=SCOPE,
            kind=self.kind,
            key_id=KeyId("01ARZ3NDEKTSV4RRFFQ69G5FAK"),
            data_key=SECRET,
            level=1,
            pack_bytes=self.pack_bytes,
        )
        self.sink = PackSink(self.store, target, self.closed.append)

    def add(self, plain: bytes) -> None:
        self.sink.add(blake3(plain).digest(), plain)


def one_pack(*plains: bytes, kind: bytes = DATA_KIND) -> bytes:
    packing = Packing(MemoryStore(), kind=kind)
    for plain in plains:
        packing.add(plain)
    packing.sink.flush()
    packing.sink.close()
    [info] = packing.store.list("")
    return packing.store.read(info.key)


def opened(data: bytes, *, scope: Scope = SCOPE, secret: bytes = SECRET) -> list[bytes]:
    """Read every record of a pack through its table."""
    key = pack_record_key(read_head(data, "it"), secret, scope, "it")
    return [
        bytes(
            open_record(
                key,
                data[offset : offset + stored],
                kind=data[34:35],
                ordinal=number,
                plain_length=plain,
                codec=codec,
                chunk_id=chunk,
                where=lambda: "it",
            )
        )
        for number, (chunk, offset, stored, plain, codec) in enumerate(read_table(data, key, "it"))
    ]


@pytest.mark.parametrize("kind", [DATA_KIND, NODE_KIND])
def test_what_went_in_comes_out_in_order(kind: bytes) -> None:
    plains = [b"text" * 1000, noise(5000), b"", b"x"]
    data = one_pack(*plains, kind=kind)
    assert opened(data) == plains
    assert data[:8] == b"DRSPACK1"
    assert data[35:40] == bytes(5)
    assert data[-8:] == b"DRSPEND1"


def test_a_pack_is_named_by_its_hash_and_lies_where_the_format_says() -> None:
    packing = Packing(MemoryStore())
    packing.add(b"x")
    packing.sink.flush()
    packing.sink.close()
    [closed] = packing.closed
    [info] = packing.store.list("")
    name = hashlib.sha256(packing.store.read(info.key)).hexdigest()
    assert info.key == f"s/erp/db/packs/{name[:2]}/{name}"
    assert (closed.name.hex(), closed.stored_bytes) == (name, info.stored_bytes)


def test_a_full_pack_is_sent_off_and_the_next_begins() -> None:
    packing = Packing(MemoryStore(), pack_bytes=100_000)
    for number in range(10):
        packing.add(noise(30_000, number))
    packing.sink.flush()
    packing.sink.close()
    assert [pack.token for pack in packing.closed] == [0, 1, 2]
    assert len(list(packing.store.list(""))) == 3


def test_a_buffer_that_is_used_again_leaves_nothing_of_the_pack_before_it() -> None:
    packing = Packing(MemoryStore(), pack_bytes=100_000)
    plains = [[noise(3 << 20, 1)], [noise(120_000, 2)], [noise(110_000, 3)], [b"the last is short"]]
    for [plain] in plains:  # the first needs more room than a buffer has
        packing.add(plain)
        packing.sink.flush()
    packing.sink.close()
    names = [pack.name.hex() for pack in packing.closed]
    stored = [packing.store.read(f"s/erp/db/packs/{name[:2]}/{name}") for name in names]
    assert [hashlib.sha256(data).hexdigest() for data in stored] == names
    assert [opened(data) for data in stored] == plains
    assert len(packing.sink._spare) <= 2, "memory is two packs at most"


def test_a_pack_takes_memory_as_it_grows_and_not_before() -> None:
    packing = Packing(MemoryStore(), pack_bytes=32 << 20)
    packing.add(b"pg_control is all that changed")
    assert packing.sink._pack is not None
    assert len(packing.sink._pack.buffer) == 1 << 20
    plains = [b"pg_control is all that changed", noise(3 << 20, 1), noise(12 << 20, 2)]
    for plain in plains[1:]:
        packing.add(plain)
    packing.sink.flush()
    packing.sink.close()
    name = packing.closed[0].name.hex()
    assert opened(packing.store.read(f"s/erp/db/packs/{name[:2]}/{name}")) == plains


class DistantStore(MemoryStore):
    """A store that is far away, as a bucket is."""

    @property
    def capabilities(self) -> Capabilities:
        return replace(super().capabilities, distant=True)


def test_packs_for_a_distant_store_are_so_small_that_three_have_room_in_a_worker() -> None:
    packing = Packing(DistantStore(), pack_bytes=32 << 20)
    for seed in range(16):
        packing.add(noise(1 << 20, seed))
    assert packing.sink._pack is not None
    assert packing.sink._pack.records == 2, "the first pack was full with 14"
    packing.sink.flush()
    packing.sink.close()
    assert len(packing.closed) == 2
    assert 3 * packing.closed[0].stored_bytes < (150 - 45 - 50) << 20


def test_a_pack_of_tiny_records_is_full_before_its_bytes_are() -> None:
    packing = Packing(MemoryStore(), pack_bytes=32 << 20)
    for number in range((1 << 15) + 1):
        packing.add(b"%d" % number)
    packing.sink.flush()
    packing.sink.close()
    assert [len(pack.table) // 45 for pack in packing.closed] == [1 << 15, 1]


def test_a_flush_without_records_stores_nothing() -> None:
    packing = Packing(MemoryStore())
    packing.sink.flush()
    packing.sink.close()
    assert list(packing.store.list("")) == []


@pytest.mark.parametrize("when", list(When))
def test_a_failed_upload_surfaces_and_the_pack_is_not_acknowledged(when: When) -> None:
    with FaultyStore(MemoryStore(), Fault(at=1, operations={"create"}, when=when)) as store:
        packing = Packing(store, pack_bytes=100)
        packing.add(noise(200))
        with pytest.raises(StoreUnreachableError, match="injected"):
            packing.sink.flush()
        packing.sink.close()
        assert packing.closed == []


def test_a_failed_upload_surfaces_with_the_next_full_pack_at_the_latest() -> None:
    with FaultyStore(MemoryStore(), Fault(at=2, operations={"create"})) as store:
        packing = Packing(store, pack_bytes=100)
        with pytest.raises(StoreUnreachableError):  # noqa: PT012 - which of the calls fails depends on the uploader
            for number in range(4):
                packing.add(noise(200, number))
        packing.sink.close()
        assert [pack.token for pack in packing.closed] == [0]


class LostReply(RecordingStore):
    """Stores an object and says that it exists already, as a retry after a lost reply sees it."""

    spoil = False

    def create(self, key: str, body: Body) -> None:
        super().create(key, body)
        if self.spoil:
            data = self._inner.read(key)
            self._inner.delete(key)
            self._inner.create(key, data[:-1] + b"?")
        raise ObjectExistsError(key)


def test_a_lost_acknowledgement_is_settled_by_reading_the_pack_back() -> None:
    packing = Packing(LostReply(MemoryStore()))
    packing.add(b"x")
    packing.sink.flush()
    packing.sink.close()
    assert len(packing.closed) == 1


def test_another_object_under_the_packs_name_is_never_taken_for_it() -> None:
    store = LostReply(MemoryStore())
    store.spoil = True
    packing = Packing(store)
    packing.add(b"x")
    with pytest.raises(DamagedObjectError, match="exists with other bytes"):
        packing.sink.flush()
    packing.sink.close()
    assert packing.closed == []


def test_closing_drops_the_open_pack() -> None:
    packing = Packing(MemoryStore())
    packing.add(b"x")
    packing.sink.close()
    assert list(packing.store.list("")) == []


@pytest.mark.parametrize("at", [0, 7, 34, 36, 39, 41, 73, -1, -9, -13, -17, -20, -21, -40])
def test_a_flipped_bit_in_head_footer_or_trailer_is_found(at: int) -> None:
    with pytest.raises(DrError, match="it"):
        opened(flipped(at)(one_pack(b"text" * 100, noise(100))))


def test_a_flipped_bit_in_a_record_is_found() -> None:
    with pytest.raises(DamagedObjectError, match="does not authenticate"):
        opened(flipped(HEADER.size + 3)(one_pack(noise(100))))


def test_a_key_id_that_is_none_is_refused() -> None:
    with pytest.raises(FormatError, match="it is no pack"):
        read_head(one_pack(b"x").replace(b"01ARZ3N", b"01ARZ3U"), "it")


def test_another_data_key_is_told_by_the_commitment() -> None:
    with pytest.raises(DamagedObjectError, match="not written with data key"):
        opened(one_pack(b"x"), secret=bytes(32))


def test_a_pack_of_another_component_does_not_open() -> None:
    other = Scope(repository=SCOPE.repository, service=SCOPE.service, component=ComponentName("docs"))
    with pytest.raises(DamagedObjectError, match="for this component"):
        opened(one_pack(b"x"), scope=other)


@pytest.mark.parametrize("length", [0, 50, 104, 120, -1])
def test_a_pack_that_is_cut_off_is_refused(length: int) -> None:
    with pytest.raises(FormatError, match="it"):
        opened(one_pack(b"x" * 100)[:length])


def test_bytes_between_records_and_footer_are_refused() -> None:
    data = one_pack(b"x" * 100)
    stored = struct.unpack(">I", data[-20:-16])[0]
    begin = len(data) - 20 - stored
    with pytest.raises(FormatError, match="does not describe it"):
        opened(data[:begin] + b"stray" + data[begin:])


def test_an_impossible_count_is_refused_before_any_memory_is_taken() -> None:
    data = one_pack(b"x")
    spoilt = data[:-20] + struct.pack(">III", 60, 0xFFFFFFFF, 0xFFFFFFFF) + data[-8:]
    with pytest.raises(FormatError, match="no valid end"):
        opened(spoilt)


def test_a_pack_never_repeats(tmp_path: Path) -> None:
    assert tmp_path.exists()
    assert one_pack(b"same") != one_pack(b"same")
