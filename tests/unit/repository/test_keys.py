"""Data keys: any wrapping that opens counts; without an identity nothing can be read."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pyrage
import pytest

from drservice.canonical import Json
from drservice.errors import (
    ConfigurationError,
    DrError,
    FormatError,
    KeyProblemError,
    MissingObjectError,
    NoIdentityError,
    UnknownSignerError,
    WrongDataKeyError,
    WrongIdentityError,
)
from drservice.model.ids import KeyId, ServiceName, SystemId
from drservice.model.snapshot import SnapshotRecord
from drservice.model.wal import Lsn, Timeline, WalFileName
from drservice.repository import layout
from drservice.repository.envelope import HostKey, Trust, write_envelope
from drservice.repository.keys import DataKey, Identities, Keyring, make_data_key, make_identity, wrap
from drservice.repository.reader import PackOpener, load_pack
from drservice.repository.repository import Repository
from drservice.repository.verify import Depth, check_pack, verify_component
from tests.doubles.repositories import SYSTEM_ID, Site, flipped, new_host
from tests.doubles.stores import RecordingStore

ERP = ServiceName("erp")


@pytest.fixture
def key(site: Site) -> DataKey:
    return make_data_key(site.clock.now())


def publish(site: Site, key: DataKey, *recipients: str) -> str:
    before = set(site.keys("keys/"))
    site.repository().keyring.publish(
        key, service=ERP, recipients=recipients or (site.recipient,), signer=site.host, now=site.clock.now()
    )
    [made] = set(site.keys("keys/")) - before
    return made


def plant(site: Site, key: DataKey, body: bytes, number: int, *, signer: HostKey | None = None, **fields: Json) -> str:
    """Store a wrapping with another content, as a trusted host or a given one could."""
    place = f"keys/erp/{key.id}/{number:026d}.age"
    pieces = write_envelope(
        signer=signer or site.host,
        repository=site.repository().id,
        key=place,
        kind="key",
        fields={"key_id": key.id, "service": "erp", "recipients": [], **fields},
        body=[body],
        now=site.clock.now(),
    )
    site.store.create(place, pieces)
    return place


def test_a_published_key_opens_with_the_identity_and_only_with_it(site: Site, key: DataKey, tmp_path: Path) -> None:
    publish(site, key)
    assert site.repository().keyring.secrets(key.id, service=ERP) == (key.secret,)
    with pytest.raises(NoIdentityError, match=str(key.id)):
        site.repository(identities=Identities()).keyring.secrets(key.id, service=ERP)
    (tmp_path / "other").write_text(make_identity()[0])
    other = Identities.load([f"file:{tmp_path / 'other'}"])
    with pytest.raises(WrongIdentityError, match="none of the 1 identities"):
        site.repository(identities=other).keyring.secrets(key.id, service=ERP)


def test_a_key_without_any_wrapping_is_missing_by_name(site: Site, key: DataKey) -> None:
    assert not site.repository().keyring.exists(key.id, service=ERP)
    with pytest.raises(MissingObjectError, match=str(key.id)):
        site.repository().keyring.secrets(key.id, service=ERP)


def test_of_two_wrappings_any_that_opens_counts(site: Site, key: DataKey) -> None:
    stranger = make_identity()[1]
    publish(site, key, stranger)
    with pytest.raises(WrongIdentityError):
        site.repository().keyring.secrets(key.id, service=ERP)
    publish(site, key)
    assert site.repository().keyring.secrets(key.id, service=ERP) == (key.secret,)


def test_two_recipients_can_each_open_a_key(site: Site, key: DataKey, tmp_path: Path) -> None:
    secret, escrow = make_identity()
    publish(site, key, site.recipient, escrow)
    (tmp_path / "escrow").write_text(f"# created by hand\n\n{secret}\n")
    assert site.repository().keyring.secrets(key.id, service=ERP) == (key.secret,)
    reader = site.repository(identities=Identities.load([f"file:{tmp_path / 'escrow'}"]))
    assert reader.keyring.secrets(key.id, service=ERP) == (key.secret,)


@pytest.mark.parametrize("spoil", ["flipped", "cut", "stranger", "not a key", "another key"])
def test_a_wrapping_that_is_damaged_or_planted_does_not_hide_a_good_one(site: Site, key: DataKey, spoil: str) -> None:
    good = wrap(key.secret, [site.recipient])
    if spoil == "flipped":
        site.replace(plant(site, key, good, 0), flipped(-1))
    elif spoil == "cut":
        site.replace(plant(site, key, good, 0), lambda data: data[:-1])
    elif spoil == "stranger":
        plant(site, key, good, 0, signer=new_host("stranger"))
    elif spoil == "not a key":
        plant(site, key, wrap(b"short", [site.recipient]), 0)
    else:
        plant(site, key, wrap(bytes(32), [site.recipient]), 0, key_id="01ARZ3NDEKTSV4RRFFQ69G5FAV")
    with pytest.raises(DrError):
        site.repository().keyring.secrets(key.id, service=ERP)
    plant(site, key, good, 1)
    assert site.repository().keyring.secrets(key.id, service=ERP) == (key.secret,)


def test_the_recipients_of_a_key_are_those_of_all_its_good_wrappings(site: Site, key: DataKey) -> None:
    keyring = site.repository().keyring
    assert keyring.recipients_of(key.id, service=ERP) == frozenset()
    other, third = make_identity()[1], make_identity()[1]
    publish(site, key, site.recipient, other)
    publish(site, key, third)
    assert keyring.recipients_of(key.id, service=ERP) == {site.recipient, other, third}
    assert site.repository(identities=Identities()).keyring.recipients_of(key.id, service=ERP) >= {third}


def test_the_recipients_of_many_keys_are_one_listing_and_one_read_for_each_wrapping(site: Site) -> None:
    keys = [make_data_key(site.clock.now() + timedelta(days=day)) for day in range(5)]
    others = [make_identity()[1] for _ in keys]
    for key, other in zip(keys, others, strict=True):
        publish(site, key, site.recipient)
        publish(site, key, other)
    store = RecordingStore(site.store)
    keyring = site.repository(store=store).keyring
    wanted = {keys[1].id, keys[3].id, make_data_key(site.clock.now()).id}
    for reads in (4, 0):
        store.calls.clear()
        known = keyring.recipients_of_each(wanted, service=ERP)
        assert all(known[keys[number].id] == {site.recipient, others[number]} for number in (1, 3))
        assert sorted(map(bool, known.values())) == [False, True, True], "a key that is not stored is for nobody"
        assert Counter(operation for operation, _ in store.calls) == Counter(list=1, read_versions=reads)
    assert keyring.recipients_of_each((), service=ERP) == {}


@pytest.mark.parametrize("spoil", ["flipped", "stranger", "another key", "no list"])
def test_a_wrapping_that_cannot_be_believed_promises_nothing(site: Site, key: DataKey, spoil: str) -> None:
    good = wrap(key.secret, [site.recipient])
    if spoil == "flipped":
        site.replace(publish(site, key), flipped(-1))
    elif spoil == "stranger":
        plant(site, key, good, 0, signer=new_host("stranger"), recipients=[site.recipient])
    elif spoil == "another key":
        plant(site, key, good, 0, key_id="01ARZ3NDEKTSV4RRFFQ69G5FAV", recipients=[site.recipient])
    else:
        plant(site, key, good, 0, recipients=site.recipient)
    assert site.repository().keyring.recipients_of(key.id, service=ERP) == frozenset()
    publish(site, key)
    assert site.repository().keyring.recipients_of(key.id, service=ERP) == {site.recipient}


# --- a wrapping that lies ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Sealed:
    """A snapshot with its packs, and a WAL file sealed with a key of the day; every wrapping taken away."""

    site: Site
    secrets: dict[KeyId, bytes]
    record: SnapshotRecord

    def plant(self, *, false: Sequence[int], right: Sequence[int]) -> Repository:
        """Store false and right wrappings of every key under these numbers, and return a repository to read with."""
        for key_id, secret in self.secrets.items():
            key = DataKey(id=key_id, secret=secret)
            for number in right:
                plant(self.site, key, wrap(secret, [self.site.recipient]), number, recipients=[self.site.recipient])
            for number in false:
                lie = wrap(bytes([number]) * 32, [self.site.recipient])
                plant(self.site, key, lie, number, recipients=[self.site.recipient])
        return self.site.repository()

    def read(self, repository: Repository, what: str) -> object:
        """Return what is found where a data key is needed for it."""
        scope, store, keyring = self.site.scope, repository.store, repository.keyring
        opened = repository.open_snapshot(scope, self.record.id)
        text = opened.packs.data[0].name
        name, key = bytes.fromhex(text), layout.pack_key(scope.service, scope.component, "packs", text)
        found: object
        match what:
            case "snapshot":
                found = opened.secret(keyring, scope).root
            case "pack":
                found = load_pack(store, name, kind="packs", scope=scope, keyring=keyring).key.commitment
            case "range":
                found = PackOpener(store, scope=scope, keyring=keyring).record_key(name).commitment
            case "range in a worker":
                worker = Keyring(store, repository.id, Trust(()), Identities())
                worker.adopt(repository.secrets(scope, opened))
                found = PackOpener(store, scope=scope, keyring=worker).record_key(name).commitment
            case "pack verified":
                found = check_pack(store, key, text, kind="packs", scope=scope, keyring=keyring)
            case "WAL":
                found = repository.wal(scope).fetch(WAL, system_id=SystemId(SYSTEM_ID))
            case _:
                rebuilt = repository.tail(scope).rebuild(SystemId(SYSTEM_ID), Timeline(1), 8, SEGMENT)
                for problem in rebuilt.unusable.values():
                    raise problem
                found = (bytes(rebuilt.data[:5]), rebuilt.end, rebuilt.problem)
        return found


WAL = WalFileName.parse("000000010000000000000007")
SEGMENT = 1 << 20
SEALED = ["snapshot", "pack", "range", "range in a worker", "pack verified", "WAL", "tail"]


@pytest.fixture
def sealed(site: Site) -> Sealed:
    site.write({"f": b"content"})
    record = site.capture()
    day = site.repository().day_keys(ERP).today()
    site.repository().wal(site.scope).put(
        WAL, bytes(SEGMENT), system_id=SystemId(SYSTEM_ID), last_write=site.clock.now(), key=day
    )
    site.repository().tail(site.scope).put(
        b"piece",
        system_id=SystemId(SYSTEM_ID),
        timeline=Timeline(1),
        start=Lsn(8 * SEGMENT),
        server_time=site.clock.now(),
        segment_bytes=SEGMENT,
        key=day,
    )
    secrets = {key_id: site.repository().keyring.secrets(key_id, service=ERP)[0] for key_id in record.key_ids}
    for key in site.keys("keys/"):
        site.store.delete(key)
    return Sealed(site=site, secrets={**secrets, day.id: day.secret}, record=record)


@pytest.mark.parametrize("what", SEALED)
@pytest.mark.parametrize(
    ("false", "right"), [([1], [2]), ([2], [1]), ([1, 3, 4], [2, 5])], ids=["before", "after", "around"]
)
def test_a_wrapping_that_holds_a_false_key_stops_no_reader_of(
    sealed: Sealed, what: str, false: list[int], right: list[int]
) -> None:
    honest = sealed.plant(false=[], right=right)
    expected = sealed.read(honest, what)
    lied_to = sealed.plant(false=false, right=[])
    assert sealed.read(lied_to, what) == expected
    assert sealed.read(lied_to, what) == expected, "and again, with what is remembered"


@pytest.mark.parametrize("what", SEALED)
def test_where_every_wrapping_holds_a_false_key_the_error_says_so(sealed: Sealed, what: str) -> None:
    repository = sealed.plant(false=[1, 2], right=[])
    with pytest.raises(WrongDataKeyError, match="what they hold is false") as caught:
        sealed.read(repository, what)
    assert any(str(key_id) in caught.value.message for key_id in sealed.secrets)
    assert "wrapping" in caught.value.hint


def test_a_right_wrapping_for_others_is_told_where_the_one_for_here_is_false(sealed: Sealed) -> None:
    for key_id, secret in sealed.secrets.items():
        plant(sealed.site, DataKey(id=key_id, secret=secret), wrap(secret, [make_identity()[1]]), 2)
    repository = sealed.plant(false=[1], right=[])
    with pytest.raises(WrongDataKeyError, match="not opened: none of the 1 identities"):
        sealed.read(repository, "snapshot")


def test_verify_names_a_data_key_whose_wrappings_differ_and_calls_no_snapshot_spoilt(sealed: Sealed) -> None:
    repository = sealed.plant(false=[1], right=[2])
    for depth in Depth:
        done = verify_component(
            repository,
            sealed.site.scope,
            depth=depth,
            percent=100,
            chosen=lambda _key, _percent: True,
            advance=lambda _bytes: None,
        )
        assert {finding.key.split("/")[2] for finding in done.findings} == set(sealed.record.key_ids)
        assert {finding.code for finding in done.findings} == {WrongDataKeyError.code}
        assert all(f"{1:026d}.age by {sealed.site.host.host}" in finding.problem for finding in done.findings)
        assert done.spoilt() == set()


def test_the_first_problem_is_told_if_nothing_opens(site: Site, key: DataKey) -> None:
    site.replace(publish(site, key), flipped(20))
    with pytest.raises((FormatError, UnknownSignerError, KeyProblemError)):
        site.repository().keyring.secrets(key.id, service=ERP)


def test_a_key_travels_in_an_object_of_its_own(site: Site, key: DataKey) -> None:
    keyring = site.repository().keyring
    encoded = base64.b64encode(wrap(key.secret, [site.recipient])).decode()
    assert keyring.unwrap_inline(encoded, "it") == key.secret
    with pytest.raises(FormatError, match="unreadable wrapped key"):
        keyring.unwrap_inline("not base64!", "it")


def test_keys_are_never_wrapped_for_nobody(site: Site, key: DataKey) -> None:
    with pytest.raises(ConfigurationError, match="no recipients"):
        wrap(key.secret, [])
    with pytest.raises(ConfigurationError, match="no age recipient"):
        wrap(key.secret, ["age1nonsense"])
    assert site.keys("keys/") == []


def test_an_identity_file_with_anything_else_in_it_is_refused(tmp_path: Path) -> None:
    for content in ("", "# only a comment\n", "AGE-SECRET-KEY-1NONSENSE"):
        (tmp_path / "identity").write_text(content)
        with pytest.raises(KeyProblemError, match="age identity"):
            Identities.load([f"file:{tmp_path / 'identity'}"])


def test_a_wrapping_is_an_ordinary_age_file(site: Site, key: DataKey) -> None:
    identity = pyrage.x25519.Identity.from_str(site.secret_identity)
    assert pyrage.decrypt(wrap(key.secret, [site.recipient]), [identity]) == key.secret


def test_a_host_without_an_identity_writes_and_cannot_read_what_it_wrote(site: Site) -> None:
    site.write({"f": b"content"})
    record = site.capture()
    blind = site.repository(identities=Identities())
    with pytest.raises(NoIdentityError):
        blind.reader(site.scope, record.id)
    assert len(blind.snapshots(site.scope).records) == 1


def test_a_key_id_is_never_shown_with_its_secret(key: DataKey) -> None:
    assert key.secret.hex() not in repr(key)
