"""A store behind a certificate of a private authority: verified, or refused with what to do."""

from __future__ import annotations

import base64
import hashlib
import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from drservice.clock import SystemClock
from drservice.errors import ConfigurationError, ObjectStoreError, StoreUnreachableError
from drservice.model.storing import NO_SETTINGS, StoreSettings
from drservice.objectstore.bodies import md5_of
from drservice.objectstore.opening import open_s3, open_store_readonly
from drservice.objectstore.retrying import RetryBudget
from drservice.objectstore.s3 import S3Store
from tests.doubles.s3server import REGION, S3Server, rclone_server

BUDGET = RetryBudget(total_seconds=3, first_wait_seconds=0.01, longest_wait_seconds=0.05)


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate authority of the test's own."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def make(cls, name: str) -> Authority:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        usage = x509.KeyUsage(
            digital_signature=True, content_commitment=False, key_encipherment=False, data_encipherment=False,
            key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
        )  # fmt: skip
        certificate = (
            _builder(subject, subject, key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .sign(key, hashes.SHA256())
        )
        return cls(key, certificate)

    def write(self, path: Path) -> Path:
        path.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))
        return path

    def issue(self, folder: Path) -> tuple[Path, Path]:
        """Write certificate and key of a server on 127.0.0.1."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "store")])
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        certificate = _builder(subject, self.certificate.subject, key).add_extension(names, critical=False)
        signed = certificate.sign(self.key, hashes.SHA256())
        paths = folder / "store.pem", folder / "store.key"
        paths[0].write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        paths[1].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return paths


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
    )


@dataclass(frozen=True, slots=True)
class Place:
    """A server with TLS, and the files with the right authority and with another one."""

    server: S3Server
    right: Path
    wrong: Path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("tls")
    ours = Authority.make("our authority")
    buckets = folder / "buckets"
    (buckets / "bucket/p").mkdir(parents=True)
    (buckets / "bucket/p/k").write_bytes(b"body")
    right = ours.write(folder / "right.pem")
    wrong = Authority.make("another authority").write(folder / "wrong.pem")
    with rclone_server(buckets, tls=ours.issue(folder)) as server, server.credentials():
        yield Place(server, right, wrong)


def read(place: Place, tmp_path: Path, settings: StoreSettings = NO_SETTINGS, options: str = "") -> bytes:
    url = f"s3://bucket/p?region={REGION}&endpoint={place.server.endpoint}{options}"
    store = open_store_readonly(url, lock_dir=tmp_path, settings=settings, budget=BUDGET)
    try:
        assert not any("http" in warning for warning in store.capabilities.warnings)
        return store.read("k")
    finally:
        store.close()


def test_a_private_authority_is_named_in_the_settings_or_in_the_address(place: Place, tmp_path: Path) -> None:
    assert read(place, tmp_path, StoreSettings(ca_file=place.right)) == b"body"
    assert read(place, tmp_path, options=f"&ca={place.right}") == b"body"


@pytest.mark.parametrize("named", ["none", "wrong"])
def test_a_certificate_that_nobody_vouches_for_is_refused_with_the_remedy(
    place: Place, tmp_path: Path, named: str
) -> None:
    settings = StoreSettings(ca_file=place.wrong) if named == "wrong" else NO_SETTINGS
    with pytest.raises(ObjectStoreError, match=r"(?i)certificate") as caught:
        read(place, tmp_path, settings)
    assert not isinstance(caught.value, StoreUnreachableError), "waiting does not mend it"
    assert "`ca` in repository.store" in caught.value.hint


def test_a_file_of_certificates_that_is_not_there_is_a_mistake_of_the_configuration(
    place: Place, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match="no file"):
        read(place, tmp_path, StoreSettings(ca_file=tmp_path / "absent.pem"))


def test_a_file_that_holds_no_certificates_is_told(place: Place, tmp_path: Path) -> None:
    (tmp_path / "empty.pem").write_text("nothing")
    with pytest.raises(ConfigurationError, match="no certificates"):
        read(place, tmp_path, StoreSettings(ca_file=tmp_path / "empty.pem"))


def _hash_of(request: Any) -> str:
    value = request.headers["X-Amz-Content-SHA256"]
    return value.decode() if isinstance(value, bytes) else str(value)


@pytest.mark.parametrize("is_hashed", [True, False])
def test_a_body_with_an_md5_or_behind_tls_is_not_hashed_once_more_to_be_signed(
    place: Place, tmp_path: Path, *, is_hashed: bool
) -> None:
    url = f"s3://bucket/p?region={REGION}&endpoint={place.server.endpoint}"
    store = open_s3(url, lock_dir=tmp_path, settings=StoreSettings(ca_file=place.right), clock=SystemClock())
    assert store is not None
    inner = store.inner
    assert isinstance(inner, S3Store)
    signed: list[str] = []
    events = inner.client._client.meta.events
    events.register("before-send.s3.*", lambda request, **_: signed.append(_hash_of(request)))
    more = {"ContentMD5": base64.b64encode(md5_of(b"body")).decode()} if is_hashed else {}
    inner.client.call("put_object", "put", Key="p/x", Body=b"body", **more)
    inner.client.call("head_object", "ask", Key="p/x")
    assert signed == ["UNSIGNED-PAYLOAD", hashlib.sha256(b"").hexdigest()]
    store.close()
