"""Data keys are wrapped again for new recipients, and every identity is tried by itself."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import pyrage
import pytest

from drservice.cli.keys import _rewrapped_lines
from drservice.credentials import Secret
from drservice.errors import NoIdentityError, StoreUnreachableError
from drservice.model.estate import PostgresSettings, Service
from drservice.model.ids import ComponentName, ServiceName, SystemId, make_ulid
from drservice.model.wal import WalFileName
from drservice.operations.keys import Rewrapped, check_identities, list_keys, rewrap_keys
from drservice.operations.progress import SilentProgress
from drservice.repository import layout
from drservice.repository.envelope import write_envelope
from drservice.repository.keys import DataKey, Identities, make_data_key, make_identity, wrap
from drservice.repository.repository import Repository
from tests.doubles.repositories import SYSTEM_ID, Site
from tests.doubles.stores import Fault, FaultyStore

ERP = ServiceName("erp")
NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site.create(tmp_path)


def service(tmp_path: Path) -> Service:
    database = PostgresSettings(name=ComponentName("database"), dsn="dbname=x", data_directory=tmp_path)
    return Service(name=ERP, components={database.name: database})


def fill(site: Site, count: int = 3) -> list[DataKey]:
    keys = [make_data_key(site.clock.now()) for _ in range(count)]
    repository = site.repository()
    for key in keys:
        repository.keyring.publish(
            key, service=ERP, recipients=[site.recipient], signer=site.host, now=site.clock.now()
        )
    return keys


def writing_for(site: Site, *recipients: str, identities: Identities | None = None) -> Repository:
    repository = site.repository(identities=identities)
    repository._recipients = (site.recipient, *recipients)
    return repository


def rewrap(repository: Repository, site: Site, tmp_path: Path, *, dry_run: bool = False) -> tuple[int, int, int]:
    done = rewrap_keys(repository, service(tmp_path), clock=site.clock, progress=SilentProgress(), dry_run=dry_run)
    return done.keys, len(done.wrapped), len(done.unopened)


def test_every_key_gets_one_more_wrapping_and_a_second_run_has_nothing_to_do(site: Site, tmp_path: Path) -> None:
    keys = fill(site)
    secret, newcomer = make_identity()
    (tmp_path / "new").write_text(secret)
    before = {name: site.store.read(name) for name in site.keys("keys/")}
    assert rewrap(writing_for(site, newcomer), site, tmp_path, dry_run=True) == (3, 3, 0)
    assert set(site.keys("keys/")) == set(before), "a dry run writes nothing"
    assert rewrap(writing_for(site, newcomer), site, tmp_path) == (3, 3, 0)
    assert len(site.keys("keys/")) == 6
    assert {name: site.store.read(name) for name in before} == before, "what was there stays as it was"
    assert rewrap(writing_for(site, newcomer), site, tmp_path) == (3, 0, 0)
    assert len(site.keys("keys/")) == 6
    reader = site.repository(identities=Identities.load([f"file:{tmp_path / 'new'}"]))
    assert [reader.keyring.secrets(key.id, service=ERP) for key in keys] == [(key.secret,) for key in keys]
    assert {item.host for item in list_keys(reader, ERP)} == {site.host.host}


def test_a_run_that_was_cut_off_is_just_run_again(site: Site, tmp_path: Path) -> None:
    fill(site)
    newcomer = make_identity()[1]

    fault = Fault(at=2, operations={"create"})
    with FaultyStore(site.store, fault) as failing, pytest.raises(StoreUnreachableError):
        rewrap(writing_for(replace(site, store=failing, open_store=lambda: failing), newcomer), site, tmp_path)
    assert len(site.keys("keys/")) == 4
    assert rewrap(writing_for(site, newcomer), site, tmp_path) == (3, 2, 0)


def test_keys_that_cannot_be_opened_are_counted_and_the_others_wrapped(site: Site, tmp_path: Path) -> None:
    fill(site, 2)
    stranger = make_identity()[1]
    lost = make_data_key(site.clock.now())
    site.repository().keyring.publish(lost, service=ERP, recipients=[stranger], signer=site.host, now=site.clock.now())
    done = rewrap_keys(
        writing_for(site, make_identity()[1]),
        service(tmp_path),
        clock=site.clock,
        progress=SilentProgress(),
        dry_run=False,
    )
    assert (done.keys, len(done.wrapped)) == (3, 2)
    assert [key for key, _ in done.unopened] == [lost.id]


def test_without_an_identity_nothing_is_wrapped(site: Site, tmp_path: Path) -> None:
    fill(site, 1)
    with pytest.raises(NoIdentityError):
        rewrap(writing_for(site, make_identity()[1], identities=Identities()), site, tmp_path)
    assert len(site.keys("keys/")) == 1


def test_each_identity_is_tried_by_itself_and_a_failing_one_is_named(site: Site, tmp_path: Path) -> None:
    (key,) = fill(site, 1)
    other, other_recipient = make_identity()
    (tmp_path / "two").write_text(f"{site.secret_identity}\n{other}\n")
    references = [f"file:{tmp_path / 'away'}", f"file:{tmp_path / 'two'}"]
    checks = check_identities(site.repository(identities=Identities(references)), service(tmp_path))
    assert [(item.identity, item.recipient, item.opened) for item in checks] == [
        (references[0], None, False),
        (references[1], site.recipient, True),
        (references[1], other_recipient, False),
    ]
    assert "cannot read the secret file" in checks[0].detail
    assert {item.key_id for item in checks} == {key.id}


@pytest.mark.parametrize(
    ("mode", "passphrase", "exposed"), [(0o644, "", True), (0o640, "", False), (0o644, "pw", False)]
)
def test_an_identity_that_everybody_may_read_is_told(
    site: Site, tmp_path: Path, mode: int, passphrase: str, *, exposed: bool
) -> None:
    fill(site, 1)
    path = tmp_path / "identity"
    content = site.secret_identity.encode()
    path.write_bytes(pyrage.passphrase.encrypt(content, passphrase) if passphrase else content)
    path.chmod(mode)
    identities = Identities([f"file:{path}"], passphrase=lambda _: Secret(passphrase))
    (check,) = check_identities(site.repository(identities=identities), service(tmp_path))
    assert (check.opened, check.exposed) == (True, exposed)


def test_what_to_do_about_an_identity_that_cannot_be_used_is_told(site: Site, tmp_path: Path) -> None:
    fill(site, 1)
    (tmp_path / "public").write_text(site.recipient)
    identities = Identities([f"file:{tmp_path / 'public'}"])
    (check,) = check_identities(site.repository(identities=identities), service(tmp_path))
    assert (check.opened, "That is the public half" in check.detail) == (False, True)


def test_without_a_data_key_nothing_is_proved(site: Site, tmp_path: Path) -> None:
    (check,) = check_identities(site.repository(), service(tmp_path))
    assert not check.opened
    assert "no data key yet" in check.detail


# --- wrappings that lie ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Lied:
    """A snapshot and a WAL file of the day, and keys whose wrappings can be set."""

    site: Site
    keys: tuple[DataKey, ...]

    def plant(self, key: DataKey, secret: bytes, *recipients: str, says: tuple[str, ...], early: bool = False) -> str:
        """Store a wrapping of ``secret`` for recipients whose header says it is the key's and for ``says``."""
        ulid = make_ulid(datetime(2020, 1, 1, tzinfo=UTC) if early else self.site.clock.now(), os.urandom(10))
        place = layout.data_key_key(ERP, key.id, ulid)
        pieces = write_envelope(
            signer=self.site.host,
            repository=self.site.repository().id,
            key=place,
            kind="key",
            fields={"key_id": key.id, "service": ERP, "recipients": list(says)},
            body=[wrap(secret, recipients)],
            now=self.site.clock.now(),
        )
        self.site.store.create(place, pieces)
        return place

    def rewrap(self, tmp_path: Path, newcomer: str) -> Rewrapped:
        return rewrap_keys(
            writing_for(self.site, newcomer),
            service(tmp_path),
            clock=self.site.clock,
            progress=SilentProgress(),
            dry_run=False,
        )

    def read_by(self, identities: Identities) -> None:
        """Open what was sealed with every key."""
        repository = self.site.repository(identities=identities)
        (record,) = repository.snapshots(self.site.scope).records
        assert list(repository.reader(self.site.scope, record.id).entries())
        assert repository.wal(self.site.scope).fetch(WAL, system_id=SystemId(SYSTEM_ID)) == bytes(1 << 20)


WAL = WalFileName.parse("000000010000000000000007")


@pytest.fixture
def lied(site: Site) -> Lied:
    site.write({"f": b"content"})
    record = site.capture()
    day = site.repository().day_keys(ERP).today()
    system_id = SystemId(SYSTEM_ID)
    site.repository().wal(site.scope).put(WAL, bytes(1 << 20), system_id=system_id, last_write=NOW, key=day)
    [sealed] = site.repository().keyring.secrets(record.sealed_key_id, service=ERP)
    return Lied(site=site, keys=(DataKey(id=record.sealed_key_id, secret=sealed), day))


@pytest.mark.parametrize("when", ["before", "behind"])
@pytest.mark.parametrize("held", ["another key", "nothing for it"])
def test_a_wrapping_that_lies_counts_for_nobody_and_only_the_right_key_is_handed_on(
    lied: Lied, tmp_path: Path, held: str, when: str
) -> None:
    secret, newcomer = make_identity()
    (tmp_path / "new").write_text(secret)
    says = (lied.site.recipient, newcomer)
    early = when == "before"
    lies = {
        lied.plant(key, bytes(32), *says, says=says, early=early)
        if held == "another key"
        else lied.plant(key, key.secret, make_identity()[1], says=says, early=early)
        for key in lied.keys
    }
    done = lied.rewrap(tmp_path, newcomer)
    assert set(done.wrapped) == {key.id for key in lied.keys}, "what the headers say is not enough"
    assert ({item.object_key for item in done.false}, done.unopened) == (lies, ())
    assert {item.host for item in done.false} == {lied.site.host.host}
    lines = list(_rewrapped_lines(done, dry_run=False))
    assert "2 data keys; 2 wrapped, 0 name every recipient already" in lines[0]
    assert [line.split(":")[0] for line in lines if "signed by" in line] == ["  FALSE", "  FALSE"]
    lied.read_by(Identities.load([f"file:{tmp_path / 'new'}"]))
    again = lied.rewrap(tmp_path, newcomer)
    assert (again.wrapped, len(again.false)) == ((), 2)


def test_a_false_key_alone_is_never_handed_on(lied: Lied, tmp_path: Path) -> None:
    for place in lied.site.keys("keys/"):
        lied.site.store.delete(place)
    for key in lied.keys:
        lied.plant(key, bytes(32), lied.site.recipient, says=(lied.site.recipient,))
    before = lied.site.keys("keys/")
    done = lied.rewrap(tmp_path, make_identity()[1])
    assert {key for key, _ in done.unopened} == {key.id for key in lied.keys}
    assert all("false" in reason or "not the one" in reason for _, reason in done.unopened)
    assert lied.site.keys("keys/") == before
    (check,) = check_identities(lied.site.repository(), service(tmp_path))
    assert (check.opened, "hold a false key" in check.detail) == (False, True)


def test_of_two_keys_that_nothing_was_sealed_with_none_is_handed_on(site: Site, tmp_path: Path) -> None:
    (key,) = fill(site, 1)
    Lied(site=site, keys=(key,)).plant(key, bytes(32), site.recipient, says=(site.recipient,))
    done = Lied(site=site, keys=(key,)).rewrap(tmp_path, make_identity()[1])
    [(unopened, reason)] = done.unopened
    assert (unopened, "2 different keys" in reason, done.wrapped) == (key.id, True, ())


def test_an_identity_that_opens_a_right_wrapping_beside_a_false_one_is_told_of_it(lied: Lied, tmp_path: Path) -> None:
    for key in lied.keys:
        lied.plant(key, bytes(32), lied.site.recipient, says=(), early=True)
    (check,) = check_identities(lied.site.repository(), service(tmp_path))
    assert (check.opened, check.detail) == (True, "opens it; beside it 1 wrapping(s) hold a false key")
