"""Every object that is not named by its hash: who wrote it, where it belongs, that nothing in it was changed."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from drservice.canonical import canonical_bytes
from drservice.errors import (
    BadSignatureError,
    DamagedObjectError,
    DrError,
    FormatError,
    UnknownSignerError,
)
from drservice.model.ids import RepositoryId
from drservice.repository.envelope import (
    HostKey,
    Trust,
    fingerprint,
    header_extent,
    read_envelope,
    read_object,
    write_envelope,
)
from tests.doubles.repositories import new_host, trusted

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ID = RepositoryId("01ARZ3NDEKTSV4RRFFQ69G5FAV")
KEY = "s/erp/database/snapshots/01ARZ3NDEKTSV4RRFFQ69G5FAX"
HOST = new_host()
BODY = b"the body"


def made(**changes: Any) -> bytes:
    arguments: dict[str, Any] = {
        "signer": HOST,
        "repository": ID,
        "key": KEY,
        "kind": "snapshot",
        "fields": {"id": "x"},
        "body": [BODY[:3], BODY[3:]],
        "now": NOW,
        **changes,
    }
    return b"".join(write_envelope(**arguments))


def read(data: bytes, trust: Trust | None = None, key: str = KEY) -> bytes:
    envelope = read_envelope(data, trust=trust or Trust([trusted(HOST)]), repository=ID, key=key, kind="snapshot")
    return bytes(envelope.check_body(data[envelope.body_offset :]))


def resigned(change: Callable[[dict[str, Any]], None], host: HostKey = HOST) -> bytes:
    """Return the object with another header that a trusted host has signed."""
    data = made()
    extent = header_extent(data, "it")
    header = json.loads(data[8 : extent - 64])
    change(header)
    raw = canonical_bytes(header)
    signature = host.private_key.sign(b"drservice envelope v1\n" + raw)
    return b"DRS1" + struct.pack(">I", len(raw)) + raw + signature + data[extent:]


FIELDS = [
    "type",
    "repository",
    "key",
    "signer",
    "host",
    "created_at",
    "body_bytes",
    "body_sha256",
    "id",
]


def test_the_fields_of_a_header_are_these() -> None:
    data = made()
    assert sorted(json.loads(data[8 : header_extent(data, "it") - 64])) == sorted(FIELDS)
    assert read(data) == BODY


@pytest.mark.parametrize("field", FIELDS)
def test_a_header_field_that_was_changed_breaks_the_signature(field: str) -> None:
    data = made()
    extent = header_extent(data, "it")
    header = json.loads(data[8 : extent - 64])
    value = header[field]
    header[field] = value + 1 if isinstance(value, int) else value[:-1] + ("0" if value[-1] != "0" else "1")
    raw = canonical_bytes(header)
    changed = b"DRS1" + struct.pack(">I", len(raw)) + raw + data[extent - 64 :]
    expected = UnknownSignerError if field == "signer" else BadSignatureError
    with pytest.raises(expected, match=KEY):
        read(changed)


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("repository", "01ARZ3NDEKTSV4RRFFQ69G5FAW", "belongs to another repository"),
        ("type", "wal", "written as wal"),
        ("key", KEY[:-1] + "Y", "it was moved here"),
        ("body_bytes", 7, "cut off: its body has 8 of 7 bytes"),
        ("body_sha256", "00" * 32, "SHA-256 differs"),
        ("signer", "0" * 16, "not a trusted signer"),
    ],
)
def test_even_a_signed_header_must_fit_its_object(field: str, value: object, problem: str) -> None:
    def change(header: dict[str, Any]) -> None:
        header[field] = value

    with pytest.raises(DrError, match=problem):
        read(resigned(change))


@pytest.mark.parametrize("field", ["type", "repository", "key", "signer", "body_bytes", "body_sha256"])
def test_a_header_without_a_field_is_refused(field: str) -> None:
    def change(header: dict[str, Any]) -> None:
        del header[field]

    with pytest.raises(DrError):
        read(resigned(change))


@pytest.mark.parametrize("value", [-1, True, "8", None])
def test_a_number_is_a_number(value: object) -> None:
    def change(header: dict[str, Any]) -> None:
        header["body_bytes"] = value

    with pytest.raises(FormatError, match="body_bytes"):
        read(resigned(change))


@pytest.mark.parametrize("at", range(0, 700, 7))
def test_a_flipped_bit_anywhere_is_found(at: int) -> None:
    data = bytearray(made())
    data[at % len(data)] ^= 1
    with pytest.raises(DrError):
        read(bytes(data))


@pytest.mark.parametrize("length", [0, 7, 8, 50, 300, -9, -1])
def test_an_object_that_is_cut_off_is_refused(length: int) -> None:
    with pytest.raises((FormatError, DamagedObjectError), match=KEY):
        read(made()[:length])


def test_bytes_behind_the_body_are_refused() -> None:
    with pytest.raises(DamagedObjectError, match="9 of 8 bytes"):
        read(made() + b"x")


def test_an_unknown_signer_is_refused_and_named() -> None:
    stranger = new_host("stranger")
    with pytest.raises(UnknownSignerError, match=stranger.fingerprint):
        read(made(signer=stranger))
    with pytest.raises(UnknownSignerError, match="nobody"):
        read(resigned(lambda header: header.update(signer=7)))


def test_a_signer_is_believed_for_its_services_only() -> None:
    assert read(made(), Trust([trusted(HOST, "erp")])) == BODY
    with pytest.raises(UnknownSignerError, match=r"db1 .* may not write for erp"):
        read(made(), Trust([trusted(HOST, "reporting")]))
    hold = made(key="hold/x")
    assert read(hold, Trust([trusted(HOST, "reporting")]), key="hold/x") == BODY


def test_a_signer_named_twice_has_the_services_of_both() -> None:
    assert read(made(), Trust([trusted(HOST, "reporting"), trusted(HOST, "erp")])) == BODY


def test_a_key_that_pretends_to_be_another_is_refused() -> None:
    liar = HostKey("db1", Ed25519PrivateKey.generate())

    def as_ours(header: dict[str, Any]) -> None:
        header["signer"] = HOST.fingerprint

    with pytest.raises(BadSignatureError, match="does not match its content"):
        read(resigned(as_ours, host=liar))


@pytest.mark.parametrize(
    "raw",
    [
        b"[" * 100_000,
        b"{" + b'"a":' * 10,
        b"[1]",
        b'{"signer": "x"}',
        b'{"signer":"x","signer":"y"}',
        b'{"a":1.5}',
        b"\xff\xfe",
        b'"text"',
    ],
    ids=["deep", "half", "list", "spaces", "twice", "float", "bytes", "text"],
)
def test_hostile_headers_are_refused_before_anything_is_believed(raw: bytes) -> None:
    signature = HOST.private_key.sign(b"drservice envelope v1\n" + raw)
    with pytest.raises((FormatError, UnknownSignerError)):
        read(b"DRS1" + struct.pack(">I", len(raw)) + raw + signature + BODY)


@pytest.mark.parametrize("head", [b"", b"DRS1", b"DRS2\0\0\0\2{}", b"DRS1\0\0\0\1{", b"DRS1\xff\xff\xff\xff"])
def test_what_is_no_envelope_is_refused(head: bytes) -> None:
    with pytest.raises(FormatError, match=r"no object of this repository|too short"):
        header_extent(head, "it")


def test_the_oldest_version_that_passes_is_the_object() -> None:
    good, later = made(), made(fields={"id": "later"})
    stranger = made(signer=new_host("stranger"))
    cut = good[:-1]
    trust = Trust([trusted(HOST)])
    for versions in ([good, later], [stranger, cut, good, later]):
        envelope, body = read_object(lambda v=versions: v, trust=trust, repository=ID, key=KEY, kind="snapshot")  # type: ignore[misc]  # bound per loop
        assert envelope.text("id") == "x"
        assert body == BODY


def test_if_no_version_passes_the_first_problem_is_told() -> None:
    bad = [made(signer=new_host("stranger")), made()[:-1]]
    trust = Trust([trusted(HOST)])
    with pytest.raises(UnknownSignerError):
        read_object(lambda: bad, trust=trust, repository=ID, key=KEY, kind="snapshot")
    with pytest.raises(DamagedObjectError, match="no readable version"):
        read_object(list, trust=trust, repository=ID, key=KEY, kind="snapshot")


def test_fingerprints_are_what_the_format_says() -> None:
    assert fingerprint(bytes(32)) == "66687aadf862bd77"
