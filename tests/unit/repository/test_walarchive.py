"""The WAL archive: exit 0 only when the very bytes are durable; what exists is compared, never overwritten."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from drservice.errors import (
    BadSignatureError,
    DamagedObjectError,
    DrError,
    MissingObjectError,
    NoIdentityError,
    ObjectExistsError,
    SegmentAbsentError,
    SegmentConflictError,
    StoreUnreachableError,
    UnknownSignerError,
)
from drservice.model.ids import SystemId
from drservice.model.wal import WalFileName
from drservice.objectstore.interface import Body
from drservice.objectstore.memory import MemoryStore
from drservice.repository.keys import Identities
from drservice.repository.records import FRAME_BYTES, packed_frames
from drservice.repository.walarchive import ArchivedFile, PutOutcome, WalArchive
from tests.doubles.repositories import SYSTEM_ID, Site, flipped, new_host, noise, trusted
from tests.doubles.stores import Fault, FaultyStore, RecordingStore, When, truncating_store

NAME = "000000010000000000000003"
KEY = f"s/erp/database/wal/{SYSTEM_ID}/00000001/{NAME}"
SEGMENT = noise(1 << 20) + bytes(1 << 20)


def listed(site: Site) -> list[ArchivedFile]:
    return list(site.repository().wal(site.scope).listing(SYSTEM_ID))


@pytest.mark.parametrize("name", [NAME, f"{NAME}.partial", f"{NAME}.00000028.backup", "00000002.history"])
def test_a_file_comes_back_byte_for_byte_under_its_own_name(site: Site, name: str) -> None:
    assert site.put_wal(name, SEGMENT) is PutOutcome.STORED
    assert site.fetch_wal(name) == SEGMENT
    assert site.keys("s/") == [f"s/erp/database/wal/{SYSTEM_ID}/{name[:8]}/{name}"]


@pytest.mark.parametrize("data", [b"", b"x", bytes(3 << 20)])
def test_files_of_any_size_come_back(site: Site, data: bytes) -> None:
    site.put_wal(NAME, data)
    assert site.fetch_wal(NAME) == data


@pytest.mark.parametrize("plain", [SEGMENT[:-1], SEGMENT + b"x", b""], ids=["less", "more", "nothing"])
def test_frames_that_do_not_hold_the_file_are_not_sealed(site: Site, plain: bytes) -> None:
    archive = site.repository().wal(site.scope)
    with pytest.raises(ValueError, match=f"{NAME} hold {len(plain)} bytes instead of {len(SEGMENT)}"):
        archive.seal(
            WalFileName.parse(NAME),
            SEGMENT,
            system_id=SYSTEM_ID,
            last_write=site.clock.now(),
            frames=packed_frames(plain),
        )


def test_a_push_makes_one_object_and_leaves_no_key_objects(site: Site) -> None:
    store = RecordingStore(site.store)
    site.put_wal(NAME, SEGMENT, store=store)
    assert [call for call in store.calls if call[0] == "create"] == [("create", KEY)]
    assert store.count("list") == 0


def test_the_same_bytes_again_are_fine_and_need_no_identity(site: Site) -> None:
    site.put_wal(NAME, SEGMENT)
    blind = site.repository(identities=Identities()).wal(site.scope)
    outcome = blind.put(WalFileName.parse(NAME), SEGMENT, system_id=SYSTEM_ID, last_write=site.clock.now())
    assert outcome is PutOutcome.ALREADY_THERE
    assert site.keys("s/") == [KEY]


def test_other_bytes_under_the_same_name_are_a_conflict_and_change_nothing(site: Site) -> None:
    site.put_wal(NAME, SEGMENT)
    before = site.store.read(KEY)
    with pytest.raises(SegmentConflictError, match=NAME):
        site.put_wal(NAME, SEGMENT[:-1] + b"x")
    assert site.store.read(KEY) == before
    assert site.keys("s/") == [KEY]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "flipped head": flipped(50),
    "flipped body": flipped(-1),
    "cut off": lambda data: data[:-1],
    "empty": lambda _: b"",
    "foreign": lambda _: b"something else" * 100,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_object_is_never_success_and_the_segment_is_stored_beside_it(site: Site, damage: str) -> None:
    site.put_wal(NAME, SEGMENT)
    site.replace(KEY, DAMAGE[damage])
    with pytest.raises((DamagedObjectError, DrError)):
        site.fetch_wal(NAME)
    with pytest.raises(DamagedObjectError, match="cannot be used") as caught:
        site.put_wal(NAME, SEGMENT)
    plain, beside = site.keys("s/")
    assert plain == KEY
    assert beside.startswith(f"{KEY}.r")
    assert beside in caught.value.hint
    assert site.fetch_wal(NAME) == SEGMENT
    assert site.put_wal(NAME, SEGMENT) is PutOutcome.ALREADY_THERE, "the next attempt succeeds"
    with pytest.raises(SegmentConflictError):
        site.put_wal(NAME, b"other")


def test_a_damaged_repaired_copy_gets_another_one(site: Site) -> None:
    site.put_wal(NAME, SEGMENT)
    for _ in range(2):
        site.replace(site.keys("s/")[-1], flipped(-1))
        with pytest.raises(DamagedObjectError):
            site.put_wal(NAME, SEGMENT)
    assert len(site.keys("s/")) == 3
    assert site.fetch_wal(NAME) == SEGMENT


def test_the_plain_name_comes_before_repaired_copies(site: Site) -> None:
    site.put_wal(NAME, SEGMENT)
    good = site.store.read(KEY)
    site.replace(KEY, flipped(-1))
    with pytest.raises(DamagedObjectError):
        site.put_wal(NAME, SEGMENT)
    site.replace(KEY, lambda _: good)
    store = RecordingStore(site.store)
    assert site.fetch_wal(NAME, store=store) == SEGMENT
    assert [key for name, key in store.calls if name == "read_versions" and "/wal/" in key] == [KEY]


def test_a_copy_that_turns_out_wrong_behind_its_last_piece_is_given_up_for_the_next(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    seal = WalArchive.seal
    with monkeypatch.context() as patch:
        patch.setattr(WalArchive, "seal", lambda *args, **more: replace(seal(*args, **more), plain_sha256="0" * 64))
        site.put_wal(NAME, SEGMENT)
    archive, taken = site.repository().wal(site.scope), list[int]()

    def take(pieces: Iterator[bytes | memoryview]) -> bytes:
        whole = bytearray()
        for piece in pieces:
            assert len(piece) <= FRAME_BYTES
            whole += piece
            taken.append(len(whole))
        return bytes(whole)

    with pytest.raises(DamagedObjectError, match="does not have the bytes that were pushed"):
        archive.fetch_into(take, WalFileName.parse(NAME), system_id=SYSTEM_ID)
    assert taken == [1 << 20, 2 << 20], "all of it was given, and none of it returned"
    lying = site.store.read(KEY)
    site.replace(KEY, flipped(-1))
    with pytest.raises(DamagedObjectError, match="cannot be used"):
        site.put_wal(NAME, SEGMENT)
    site.replace(KEY, lambda _: lying)
    taken.clear()
    assert archive.fetch_into(take, WalFileName.parse(NAME), system_id=SYSTEM_ID) == SEGMENT
    assert taken == [1 << 20, 2 << 20, 1 << 20, 2 << 20]


def test_repaired_copies_count_once_in_a_listing(site: Site) -> None:
    site.put_wal(NAME, SEGMENT)
    site.put_wal("000000010000000000000004", SEGMENT)
    site.replace(KEY, flipped(-1))
    with pytest.raises(DamagedObjectError):
        site.put_wal(NAME, SEGMENT)
    assert [file.name for file in listed(site)] == [NAME, "000000010000000000000004"]


def test_repaired_copies_count_once_whatever_lies_between_by_key(site: Site) -> None:
    names = [NAME, f"{NAME}.00000028.backup", f"{NAME}.partial"]
    for name in names:
        site.put_wal(name, SEGMENT)
    for name in names:
        site.replace(f"{KEY.removesuffix(NAME)}{name}", flipped(-1))
        with pytest.raises(DamagedObjectError):
            site.put_wal(name, SEGMENT)
    assert len(site.keys("s/")) == 6
    assert [file.name for file in listed(site)] == names
    assert [file.key.rsplit("/", 1)[-1] for file in listed(site)] == names


def test_whole_is_a_good_signature_a_whole_body_and_the_right_length_without_an_identity(site: Site) -> None:
    blind = site.repository(identities=Identities()).wal(site.scope)
    name = WalFileName.parse(NAME)
    with pytest.raises(SegmentAbsentError):
        blind.require_whole(name, system_id=SYSTEM_ID, plain_bytes=len(SEGMENT))
    site.put_wal(NAME, SEGMENT)
    facts = blind.require_whole(name, system_id=SYSTEM_ID, plain_bytes=len(SEGMENT))
    assert (facts.name, facts.system_id) == (NAME, SYSTEM_ID)
    with pytest.raises(DamagedObjectError, match=f"{len(SEGMENT)} bytes instead of 5"):
        blind.require_whole(name, system_id=SYSTEM_ID, plain_bytes=5)
    with pytest.raises(SegmentAbsentError):
        blind.require_whole(name, system_id=SystemId("1"), plain_bytes=len(SEGMENT))


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_is_not_whole_until_a_repaired_copy_is_there(site: Site, damage: str) -> None:
    archive, name = site.repository().wal(site.scope), WalFileName.parse(NAME)
    site.put_wal(NAME, SEGMENT)
    site.replace(KEY, DAMAGE[damage])
    with pytest.raises((DamagedObjectError, DrError)) as caught:
        archive.require_whole(name, system_id=SYSTEM_ID, plain_bytes=len(SEGMENT))
    assert not isinstance(caught.value, SegmentAbsentError)
    with pytest.raises(DamagedObjectError):
        site.put_wal(NAME, SEGMENT)
    assert archive.require_whole(name, system_id=SYSTEM_ID, plain_bytes=len(SEGMENT)).name == NAME


def test_the_object_of_an_unknown_signer_is_not_ours(site: Site) -> None:
    stranger = new_host("stranger")
    theirs = site.repository(host=stranger, signers=[trusted(stranger)]).wal(site.scope)
    theirs.put(WalFileName.parse(NAME), SEGMENT, system_id=SYSTEM_ID, last_write=site.clock.now())
    with pytest.raises(UnknownSignerError, match=stranger.fingerprint):
        site.fetch_wal(NAME)
    with pytest.raises(DamagedObjectError, match="cannot be used"):
        site.put_wal(NAME, SEGMENT)
    assert site.fetch_wal(NAME) == SEGMENT


@pytest.mark.parametrize(
    "other",
    [
        f"s/erp/database/wal/{SYSTEM_ID}/00000001/000000010000000000000009",
        f"s/erp/database/wal/{SYSTEM_ID}/00000002/000000020000000000000003",
        f"s/erp/database/wal/1111111111111111111/00000001/{NAME}",
        f"s/erp/other/wal/{SYSTEM_ID}/00000001/{NAME}",
        f"s/hr/database/wal/{SYSTEM_ID}/00000001/{NAME}",
    ],
)
def test_an_object_moved_to_another_name_is_refused(site: Site, other: str) -> None:
    site.put_wal(NAME, SEGMENT)
    site.store.create(other, site.store.read(KEY))
    parts = other.split("/")
    scope = site.repository().scope(parts[1], parts[2])  # type: ignore[arg-type]  # plain text will do
    with pytest.raises(DamagedObjectError, match="moved here"):
        site.repository().wal(scope).fetch(WalFileName.parse(parts[-1]), system_id=SystemId(parts[4]))


def test_no_file_is_told_apart_from_a_bad_file(site: Site) -> None:
    with pytest.raises(SegmentAbsentError, match=NAME):
        site.fetch_wal(NAME)
    fault = Fault(at=2, operations={"list", "read_versions"})
    with FaultyStore(site.store, fault) as store, pytest.raises(StoreUnreachableError):
        site.fetch_wal(NAME, store=store)


@pytest.mark.parametrize("when", list(When))
@pytest.mark.parametrize("operation", ["create", "stat"])
def test_a_push_that_is_not_known_to_be_stored_fails_and_can_be_repeated(
    site: Site, operation: str, when: When
) -> None:
    fault = Fault(at=1, operations={operation}, when=when)
    with FaultyStore(site.store, fault) as store, pytest.raises(StoreUnreachableError):
        site.put_wal(NAME, SEGMENT, store=store)
    assert site.put_wal(NAME, SEGMENT) in {PutOutcome.STORED, PutOutcome.ALREADY_THERE}
    assert site.fetch_wal(NAME) == SEGMENT
    assert site.keys("s/") == [KEY]


class ShortStore(RecordingStore):
    """Stores less than it was given and says that all is well."""

    def create(self, key: str, body: Body) -> None:
        super().create(key, body)
        if "/wal/" in key:
            data = self._inner.read(key)
            self._inner.delete(key)
            self._inner.create(key, data[:-5])


def test_a_store_that_kept_less_than_it_got_is_noticed_at_once(site: Site) -> None:
    with pytest.raises(DamagedObjectError, match=r"was stored with \d+ of \d+ bytes"):
        site.put_wal(NAME, SEGMENT, store=ShortStore(site.store))


def test_a_segment_that_reads_back_short_is_not_taken_for_whole(site: Site) -> None:
    site.put_wal(NAME, SEGMENT)
    store = truncating_store(site.store, chooses=lambda key: "/wal/" in key)
    with pytest.raises(DamagedObjectError, match="cut off"):
        site.fetch_wal(NAME, store=store)
    assert store.damaged


def test_reading_needs_an_identity_and_the_header_does_not(site: Site) -> None:
    site.put_wal(NAME, SEGMENT)
    blind = site.repository(identities=Identities()).wal(site.scope)
    with pytest.raises(NoIdentityError):
        blind.fetch(WalFileName.parse(NAME), system_id=SYSTEM_ID)
    [file] = blind.listing(SYSTEM_ID)
    facts = blind.facts(file)
    assert facts == blind.check(file)
    assert (facts.name, facts.plain_bytes, facts.timeline) == (NAME, len(SEGMENT), 1)
    assert facts.plain_sha256 == hashlib.sha256(SEGMENT).hexdigest()


def test_a_header_that_was_changed_is_found_without_an_identity(site: Site) -> None:
    site.put_wal(NAME, SEGMENT)
    data = site.store.read(KEY)
    site.replace(KEY, lambda _: data.replace(b'"timeline":1', b'"timeline":2'))
    with pytest.raises(BadSignatureError):
        site.repository(identities=Identities()).wal(site.scope).facts(listed(site)[0])


def test_clusters_with_wal_are_listed_without_reading_all_of_it(site: Site) -> None:
    archive = site.repository().wal(site.scope)
    for system_id in ("111", "22", "7345678901234567890"):
        for number in range(3):
            name = WalFileName.parse(f"0000000100000000{number:08X}")
            archive.put(name, b"x", system_id=SystemId(system_id), last_write=site.clock.now())
    store = RecordingStore(site.store)
    assert site.repository(store=store).wal(site.scope).system_ids() == ["111", "22", "7345678901234567890"]
    assert store.count("list") == 4


def test_existence_is_asked_for_one_name(site: Site) -> None:
    archive = site.repository().wal(site.scope)
    assert not archive.exists(WalFileName.parse(NAME), system_id=SYSTEM_ID)
    site.put_wal(NAME, b"x")
    assert archive.exists(WalFileName.parse(NAME), system_id=SYSTEM_ID)
    assert not archive.exists(WalFileName.parse(NAME), system_id=SystemId("1"))


def test_foreign_objects_beside_wal_are_not_ours(site: Site) -> None:
    site.put_wal(NAME, b"x")
    site.store.create(f"s/erp/database/wal/{SYSTEM_ID}/00000001/README", b"hello")
    assert [file.name for file in listed(site)] == [NAME]


def test_on_a_versioned_store_the_first_valid_version_is_the_segment(tmp_path: Path) -> None:
    store = MemoryStore(versioned=True)
    site = Site.create(tmp_path, store=store)
    site.put_wal(NAME, SEGMENT)
    store.plant_version(KEY, b"ransom")
    store.plant_version(KEY, None)
    assert site.fetch_wal(NAME) == SEGMENT


def test_two_pushes_at_once_agree(site: Site) -> None:
    class Race(RecordingStore):
        def create(self, key: str, body: Body) -> None:
            if "/wal/" in key:
                site.put_wal(NAME, SEGMENT)
            super().create(key, body)

    assert site.put_wal(NAME, SEGMENT, store=Race(site.store)) is PutOutcome.ALREADY_THERE
    with pytest.raises(ObjectExistsError):
        site.store.create(KEY, b"")


# --- sealed with the key of a day -------------------------------------------------------------------------------


def put_with_day_key(site: Site, data: bytes = SEGMENT) -> PutOutcome:
    repository = site.repository()
    key = repository.day_keys(site.scope.service).today()
    return repository.wal(site.scope).put(
        WalFileName.parse(NAME), data, system_id=SYSTEM_ID, last_write=site.clock.now(), key=key
    )


def test_a_file_sealed_with_a_days_key_is_read_by_whoever_opens_the_key(site: Site) -> None:
    assert put_with_day_key(site) is PutOutcome.STORED
    assert site.fetch_wal(NAME) == SEGMENT
    assert put_with_day_key(site) is PutOutcome.ALREADY_THERE


def test_a_file_whose_days_key_is_gone_is_never_success_and_is_stored_again_beside_it(site: Site) -> None:
    put_with_day_key(site)
    [key] = site.keys("keys/")
    site.store.delete(key)
    host_without_identity = site.repository(identities=Identities())
    archive = host_without_identity.wal(site.scope)
    with pytest.raises(MissingObjectError, match="data key"):
        archive.require_whole(WalFileName.parse(NAME), system_id=SYSTEM_ID, plain_bytes=len(SEGMENT))
    [archived] = archive.listing(SYSTEM_ID)
    with pytest.raises(MissingObjectError, match="data key"):
        archive.check(archived)
    with pytest.raises(DamagedObjectError, match="cannot be used"):
        site.put_wal(NAME, SEGMENT)
    assert site.fetch_wal(NAME) == SEGMENT
    assert site.put_wal(NAME, SEGMENT) is PutOutcome.ALREADY_THERE


# --- partial segments -------------------------------------------------------------------------------------------


def put_partial(site: Site, data: bytes) -> PutOutcome:
    archive = site.repository().wal(site.scope)
    name = WalFileName.parse(f"{NAME}.partial")
    return archive.put_partial(name, data, system_id=SYSTEM_ID, last_write=site.clock.now())


def test_of_a_partial_segment_the_one_that_was_written_furthest_is_read(site: Site) -> None:
    written = [SEGMENT[: 1 << 10].ljust(len(SEGMENT), b"\0"), SEGMENT]
    assert [put_partial(site, data) for data in written] == [PutOutcome.STORED, PutOutcome.STORED]
    assert put_partial(site, SEGMENT) is PutOutcome.ALREADY_THERE
    assert site.fetch_wal(f"{NAME}.partial") == SEGMENT
    first, second = site.keys("s/")
    assert (first, second.startswith(f"{KEY}.partial.r")) == (f"{KEY}.partial", True)
    assert [item.name for item in listed(site)] == [f"{NAME}.partial"]


def test_a_damaged_newer_partial_segment_leaves_the_older_one(site: Site) -> None:
    put_partial(site, SEGMENT)
    put_partial(site, noise(1 << 20))
    newer = site.keys("s/")[1]
    site.store.delete(newer)
    site.store.create(newer, [b"no envelope"])
    assert site.fetch_wal(f"{NAME}.partial") == SEGMENT
    assert put_partial(site, noise(1 << 20)) is PutOutcome.STORED
    assert site.fetch_wal(f"{NAME}.partial") == noise(1 << 20)
