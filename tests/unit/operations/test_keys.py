"""Data keys are wrapped again for new recipients, and every identity is tried by itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from drservice.errors import NoIdentityError, StoreUnreachableError
from drservice.model.estate import PostgresSettings, Service
from drservice.model.ids import ComponentName, ServiceName
from drservice.operations.keys import check_identities, list_keys, rewrap_keys
from drservice.operations.progress import SilentProgress
from drservice.repository.keys import DataKey, Identities, make_data_key, make_identity
from drservice.repository.repository import Repository
from tests.doubles.repositories import Site
from tests.doubles.stores import Fault, FaultyStore

ERP = ServiceName("erp")


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
    checks = check_identities(site.repository(identities=Identities(references)), ERP)
    assert [(item.identity, item.recipient, item.opened) for item in checks] == [
        (references[0], None, False),
        (references[1], site.recipient, True),
        (references[1], other_recipient, False),
    ]
    assert "cannot read the secret file" in checks[0].detail
    assert {item.key_id for item in checks} == {key.id}


def test_without_a_data_key_nothing_is_proved(site: Site) -> None:
    (check,) = check_identities(site.repository(), ERP)
    assert not check.opened
    assert "no data key yet" in check.detail
