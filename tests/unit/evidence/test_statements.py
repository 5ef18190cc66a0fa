"""Statements: what is signed follows its schema, and what does not is refused by us and by the verifier alike."""

from __future__ import annotations

import base64
from collections.abc import Callable
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils

from drservice.canonical import Json, canonical_bytes, parse_canonical
from drservice.errors import BadSignatureError, ExitStatus, RecordTooLargeError, StatementError, UnknownSignerError
from drservice.evidence.statements import (
    ENVELOPE_LIMIT_BYTES,
    PAYLOAD_TYPE,
    Statement,
    Subject,
    decode_statement,
    keep_aside_mark,
    make_statement,
    pre_authentication,
    schema,
    sign_payload,
    sign_statement,
)
from drservice.evidence.verification import _PREDICATES
from drservice.model.evidence import EvidenceKind, target_from_seed
from tests.doubles import evidence as made
from tests.faults.tampering import approval, finding, key_entry, payload_edits

STATEMENTS = {
    EvidenceKind.BACKUP: made.backup(made.START, 1),
    EvidenceKind.RESTORE: made.restore(made.START, 2),
    EvidenceKind.OBLIGATION: made.obligation(made.START, 3, seed=bytes(32), window=(made.START, made.START)),
    EvidenceKind.DRILL: made.drill(made.START, 3, entry=2),
    EvidenceKind.APPROVAL: approval(made.START, 1, made.SHA),
    EvidenceKind.PROBE: made.probe(made.START, 4),
    EvidenceKind.FINDING: finding(made.START, "opened"),
    EvidenceKind.KEY: key_entry(made.START, "added", "x", "executor", made.HOST),
    EvidenceKind.MISSED: made.missed(made.START, 5),
    EvidenceKind.FAILURE: made.failure(made.START, 6),
    EvidenceKind.RETENTION: made.retention(made.START, 7),
    EvidenceKind.ACCESS: made.access(made.START, 8, day="2026-02-28", previous=made.digest_of("2026-02-27")),
}


NEVER_LATE = {
    EvidenceKind.OBLIGATION,
    EvidenceKind.APPROVAL,
    EvidenceKind.KEY,
    # These wait in the catalogue instead.
    EvidenceKind.MISSED,
    EvidenceKind.FAILURE,
    EvidenceKind.ACCESS,
}


def changed(raw: bytes, fields: dict[str, Json]) -> bytes:
    envelope = parse_canonical(raw)
    assert isinstance(envelope, dict)
    return canonical_bytes({**envelope, **fields})


def test_the_published_dsse_signature_is_over_our_pre_authentication_encoding() -> None:
    """The example of DSSE's protocol.md: ECDSA over "hello world"."""
    key = ec.EllipticCurvePublicNumbers(
        46950820868899156662930047687818585632848591499744589407958293238635476079160,
        5640078356564379163099075877009565129882514886557779369047442380624545832820,
        ec.SECP256R1(),
    ).public_key()
    raw = base64.b64decode("A3JqsQGtVsJ2O2xqrI5IcnXip5GToJ3F+FnZ+O88SjtR6rDAajabZKciJTfUiHqJPcIAriEGAHTVeCUjW2JIZA==")
    signature = utils.encode_dss_signature(int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big"))
    message = pre_authentication("http://example.com/HelloWorld", b"hello world")
    assert message == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    key.verify(signature, message, ec.ECDSA(hashes.SHA256()))


@pytest.mark.parametrize("kind", EvidenceKind)
def test_a_statement_of_every_kind_is_read_as_it_was_signed(kind: EvidenceKind) -> None:
    raw = sign_statement(STATEMENTS[kind], [made.HOST])
    signed = decode_statement(raw)
    assert signed.statement == STATEMENTS[kind]
    assert signed.verify({made.HOST.fingerprint: made.HOST.public_key}) == (made.HOST.fingerprint,)
    assert signed.statement.recorded_at == made.START
    assert schema(kind)["$id"] == f"urn:drservice:evidence:{kind.value}:v1"


@pytest.mark.parametrize("kind", EvidenceKind)
def test_schema_and_verifier_agree_about_every_edit(kind: EvidenceKind) -> None:
    """Two descriptions, written apart: JSON Schema here, the verifier's own there."""
    refused = 0
    for what, payload in payload_edits(sign_statement(STATEMENTS[kind], [made.HOST])):
        value = parse_canonical(payload)
        if not what.startswith((".predicate.", ".predicate:")):
            continue
        if what == ".predicate: field removed":
            continue
        assert isinstance(value, dict)
        accepted = _PREDICATES[kind.value](value["predicate"]) is None
        try:
            decode_statement(sign_payload(payload, PAYLOAD_TYPE, [made.HOST]))
        except StatementError:
            refused += 1
            assert not accepted, what
        else:
            assert accepted, what
    assert refused > 10


@pytest.mark.parametrize("kind", EvidenceKind)
def test_only_what_happened_can_be_kept_aside(kind: EvidenceKind) -> None:
    if kind in NEVER_LATE:
        with pytest.raises(StatementError, match="kept_aside"):
            keep_aside_mark(STATEMENTS[kind])
    else:
        marked = keep_aside_mark(STATEMENTS[kind])
        assert marked.is_kept_aside
        assert marked.identity == STATEMENTS[kind].identity


def test_a_signature_by_a_stranger_or_over_other_bytes_is_refused() -> None:
    signed = decode_statement(sign_statement(made.probe(made.START), [made.STRANGER]))
    with pytest.raises(UnknownSignerError, match=made.STRANGER.fingerprint):
        signed.verify({made.HOST.fingerprint: made.HOST.public_key})
    with pytest.raises(BadSignatureError):
        signed.verify({made.STRANGER.fingerprint: made.HOST.public_key})


def test_a_statement_that_is_too_large_is_not_signed() -> None:
    results: list[Json] = [{"name": "x", "passed": True, "detail": "y" * 8000}] * 7
    fields: dict[str, Json] = {"probe": "p", "outcome": "passed", "results": results}
    large = make_statement(EvidenceKind.PROBE, occasion=made.occasion(made.START), subject=[], fields=fields)
    with pytest.raises(RecordTooLargeError, match=str(ENVELOPE_LIMIT_BYTES)) as caught:
        sign_statement(large, [made.HOST])
    assert caught.value.exit_status is ExitStatus.FAILED, "nothing that is stored is wrong"
    assert "Nothing that was backed up or restored is lost" in caught.value.hint


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[:-1],
        lambda raw: raw.replace(b":", b": ", 1),
        lambda raw: raw.replace(b"in-toto+json", b"in-toto+xml"),
        lambda raw: changed(raw, {"more": 1}),
        lambda raw: changed(raw, {"signatures": []}),
        lambda raw: changed(raw, {"payload": "e30"}),
        lambda _: b"\x00" * 70_000,
        lambda _: b"[]",
    ],
)
def test_bytes_that_are_no_record_are_refused(damage: Callable[[bytes], bytes]) -> None:
    with pytest.raises(StatementError):
        decode_statement(damage(sign_statement(made.probe(made.START), [made.HOST])))


def test_a_time_that_does_not_exist_and_a_trailing_newline_are_refused() -> None:
    plain = made.probe(made.START)
    for change in ({"recorded_at": "2026-02-30T00:00:00.000000Z"}, {"service": "erp\n"}, {"host": "Db1"}):
        other = Statement(kind=plain.kind, subject=(), predicate={**plain.predicate, **change})
        with pytest.raises(StatementError):
            sign_statement(other, [made.HOST])
        assert _PREDICATES["probe"](other.predicate) is not None


def test_artefacts_are_the_subjects_under_their_prefix() -> None:
    statement = made.drill(made.START, 1, entry=1, artefacts=[Subject("artefact/log", made.SHA)])
    assert [each.name for each in statement.artefacts()] == ["artefact/log"]


def test_a_seed_chooses_the_same_instant_for_everybody_and_every_instant_can_be_chosen() -> None:
    begin, end = made.START, made.START + timedelta(microseconds=2)
    chosen = {target_from_seed(bytes([number]) * 32, begin, end) for number in range(64)}
    assert chosen == {begin, begin + timedelta(microseconds=1), end}
    for seed, window in ((b"short", (begin, end)), (bytes(32), (end, begin))):
        with pytest.raises(ValueError, match=r"seed|window"):
            target_from_seed(seed, *window)
