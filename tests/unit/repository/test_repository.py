"""Creating and opening: nothing is overwritten, nobody unknown is believed, newer formats are refused."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from drservice.canonical import canonical_bytes
from drservice.clock import SystemClock
from drservice.errors import (
    BadSignatureError,
    FormatError,
    KeyProblemError,
    RepositoryExistsError,
    RepositoryMissingError,
    UnknownSignerError,
)
from drservice.model.ids import ServiceName
from drservice.objectstore.memory import MemoryStore
from drservice.repository import layout
from drservice.repository.breakglass import restore
from drservice.repository.hostkey import host_name, load_host_key, make_host_key
from drservice.repository.keys import Identities
from drservice.repository.repository import create_repository, open_repository
from tests.doubles.repositories import Site, flipped, new_host, trusted

FILE = layout.REPOSITORY_FILE


def rewritten(site: Site, change: Callable[[dict[str, Any]], None]) -> None:
    """Replace the repository file by another that the same host has signed."""
    document = json.loads(site.store.read(FILE))
    del document["signature"]
    change(document)
    value = site.host.private_key.sign(b"drservice repository v1\n" + canonical_bytes(document)).hex()
    document["signature"] = {"signer": site.host.fingerprint, "value": value}
    site.replace(FILE, lambda _: canonical_bytes(document))


def test_a_repository_is_created_with_its_way_out(site: Site) -> None:
    assert set(site.keys()) == {FILE, "restore.py", "RESTORE.md"}
    assert site.store.read("restore.py") == Path(restore.__file__).read_bytes()


def test_init_tells_the_hashes_of_what_it_stored() -> None:
    store, host = MemoryStore(), new_host()
    made = create_repository(store, signer=host, signers=[trusted(host)], clock=SystemClock())
    assert made.script_sha256 == hashlib.sha256(store.read("restore.py")).hexdigest()
    assert made.text_sha256 == hashlib.sha256(store.read("RESTORE.md")).hexdigest()
    assert json.loads(store.read(FILE))["repository"] == made.repository


def test_a_second_repository_is_never_made_over_the_first(site: Site) -> None:
    before = site.store.read(FILE)
    with pytest.raises(RepositoryExistsError):
        create_repository(site.store, signer=new_host(), signers=[], clock=site.clock)
    assert site.store.read(FILE) == before


def test_a_place_with_another_script_is_not_taken() -> None:
    store = MemoryStore()
    store.create("restore.py", b"something else")
    with pytest.raises(RepositoryExistsError, match="not empty"):
        create_repository(store, signer=new_host(), signers=[], clock=SystemClock())
    assert [info.key for info in store.list("")] == ["restore.py"]


def test_an_init_that_was_interrupted_can_be_repeated() -> None:
    store, host = MemoryStore(), new_host()
    create_repository(store, signer=host, signers=[], clock=SystemClock())
    store.delete(FILE)
    create_repository(store, signer=host, signers=[], clock=SystemClock())


def test_no_repository_is_told_apart_from_a_bad_one(tmp_path: Path) -> None:
    site = Site.create(tmp_path)
    site.store.delete(FILE)
    with pytest.raises(RepositoryMissingError):
        site.repository()


@pytest.mark.parametrize(
    "spoilt",
    [b"", b"{}", b"[]", b"no json", b'{"repository":"x"}', b"[" * 100_000],
    ids=["empty", "map", "list", "text", "odd", "deep"],
)
def test_a_repository_file_that_makes_no_sense_is_refused(site: Site, spoilt: bytes) -> None:
    site.replace(FILE, lambda _: spoilt)
    with pytest.raises(FormatError):
        site.repository()


@pytest.mark.parametrize("at", range(1, 700, 23))
def test_a_flipped_bit_in_the_repository_file_is_found(site: Site, at: int) -> None:
    site.replace(FILE, lambda data: flipped(at % len(data))(data))
    with pytest.raises((FormatError, BadSignatureError, UnknownSignerError)):
        site.repository()


@pytest.mark.parametrize(
    "change",
    [
        lambda document: document.update(format=2),
        lambda document: document.update(format="1"),
        lambda document: document["features"].update(read=["erasure-coding"]),
        lambda document: document["features"].update(write=["x"]),
        lambda document: document.pop("features"),
        lambda document: document.update(repository="not an id"),
        lambda document: document.update(signers={}),
        lambda document: document["signers"].append("x"),
        lambda document: document["signers"][0].pop("services"),
        lambda document: document["signers"][0].update(services="erp"),
        lambda document: document["signers"][0].update(services=[7]),
        lambda document: document["signers"][0].update(key="ed25519:abcd"),
        lambda document: document["signers"][0].update(key="rsa:" + "00" * 32),
    ],
)
def test_a_signed_repository_file_that_is_not_understood_is_refused(
    site: Site, change: Callable[[dict[str, Any]], None]
) -> None:
    rewritten(site, change)
    with pytest.raises(FormatError):
        site.repository()


def test_a_repository_made_by_nobody_we_know_is_refused(site: Site) -> None:
    stranger = new_host("stranger")
    with pytest.raises(UnknownSignerError, match=site.host.fingerprint):
        open_repository(
            site.store,
            open_store=site.open_store,
            signers=[trusted(stranger)],
            host_key=stranger,
            identities=Identities(),
            recipients=(),
            clock=site.clock,
        )


def test_signers_of_the_repository_file_are_believed_for_their_services(site: Site) -> None:
    other = new_host("db2")

    def add(document: dict[str, Any]) -> None:
        key = f"ed25519:{other.public_key.hex()}"
        document["signers"].append({"name": "db2", "key": key, "services": ["reporting"]})

    rewritten(site, add)
    trust = site.repository().trust
    message, signature = b"m", other.private_key.sign(b"m")
    trust.verify(
        signer=other.fingerprint, service=ServiceName("reporting"), signature=signature, message=message, what="it"
    )
    with pytest.raises(UnknownSignerError, match="may not write for erp"):
        trust.verify(
            signer=other.fingerprint, service=ServiceName("erp"), signature=signature, message=message, what="it"
        )


def test_a_host_added_later_is_believed_through_the_configuration(site: Site, tmp_path: Path) -> None:
    second = new_host("db2")
    site.write({"f": b"x"})
    repository = site.repository(host=second, signers=[trusted(second)])
    with repository.writer(site.scope, state_dir=tmp_path / "state2", workers=1, level=1) as writer:
        writer.add_bytes(b"f", 0o600, b"x")
        record = site.commit(writer)
    assert site.repository().snapshots(site.scope).records == ()
    listing = site.repository(signers=[trusted(second)]).snapshots(site.scope)
    assert [one.id for one in listing.records] == [record.id]


def test_the_host_that_made_the_repository_may_write_without_being_configured() -> None:
    store, host = MemoryStore(), new_host()
    create_repository(store, signer=host, signers=[], clock=SystemClock())
    [listed] = json.loads(store.read(FILE))["signers"]
    assert listed == {"name": host.host, "key": f"ed25519:{host.public_key.hex()}", "services": []}
    repository = open_repository(
        store,
        open_store=lambda: store,
        signers=[],
        host_key=host,
        identities=Identities(),
        recipients=(),
        clock=SystemClock(),
    )
    assert repository.host_key == host


def test_a_host_that_no_list_names_has_no_key_to_write_with(site: Site) -> None:
    second = new_host("db2")
    with pytest.raises(KeyProblemError, match=second.fingerprint) as caught:
        _ = site.repository(host=second).host_key
    assert second.signer_line in caught.value.hint
    assert site.repository(host=second, signers=[trusted(second)]).host_key == second


# --- the host's key -----------------------------------------------------------------------------------------


def test_a_host_key_is_made_once_and_closed_to_others(tmp_path: Path) -> None:
    assert load_host_key(tmp_path / "state") is None
    first = make_host_key(tmp_path / "state")
    assert make_host_key(tmp_path / "state").public_key == first.public_key
    assert (tmp_path / "state/signing.key").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["signing.key"]


def test_a_host_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    make_host_key(tmp_path)
    (tmp_path / "signing.key").chmod(0o640)
    with pytest.raises(KeyProblemError, match="open to others"):
        load_host_key(tmp_path)


def test_a_host_key_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "signing.key"
    other = X25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for content, problem in ((b"", "no usable"), (b"text", "no usable"), (other, "no Ed25519 key")):
        path.write_bytes(content)
        path.chmod(0o600)
        with pytest.raises(KeyProblemError, match=problem):
            load_host_key(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_host_key_that_cannot_be_read_says_who_may(tmp_path: Path) -> None:
    make_host_key(tmp_path)
    (tmp_path / "signing.key").chmod(0)
    with pytest.raises(KeyProblemError, match="Permission denied"):
        load_host_key(tmp_path)


def test_a_signing_key_is_never_pickled() -> None:
    with pytest.raises(TypeError, match="not pickled"):
        new_host().__reduce__()


def test_the_name_of_a_host_fits_into_headers() -> None:
    assert 1 <= len(host_name()) <= 63
    assert host_name() == host_name().lower()
