"""Statements and their signed envelopes: in-toto Statement v1 inside DSSE, one JSON Schema for each kind.

A record is the exact bytes of an envelope. Whatever is signed was checked against its schema first; whatever is read
must be spelled the one canonical way, so that two readers cannot understand it differently.
"""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import resources
from typing import TYPE_CHECKING, Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from drservice.canonical import Json, canonical_bytes, parse_canonical
from drservice.clock import from_iso, to_iso
from drservice.errors import BadSignatureError, RecordTooLargeError, StatementError, UnknownSignerError
from drservice.model.evidence import EvidenceKind
from drservice.model.ids import RepositoryId, RunId, ServiceName

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
ENVELOPE_LIMIT_BYTES = 65_535
"""The whole envelope; what is larger (logs, reports) is an artefact, named by its hash."""
ARTEFACT_PREFIX = "artefact/"
"""Subjects under this name are stored beside the ledger, by their SHA-256."""
KEPT_ASIDE = "kept_aside"

_PREDICATE_TYPE = re.compile(r"urn:drservice:evidence:([a-z]+):v1")
_KINDS = {kind.value: kind for kind in EvidenceKind}
_SIGNATURE_BYTES = 64
_SIGNATURES_LIMIT = 8
_KEYID = re.compile("[0-9a-f]{16}")


class Signing(Protocol):
    """What signs statements (``signing.Signer``)."""

    @property
    def fingerprint(self) -> str:
        """The short name of the key."""
        ...

    def sign(self, message: bytes) -> bytes:
        """Return the 64-byte signature of ``message``."""
        ...


@dataclass(frozen=True, slots=True)
class Subject:
    """What a statement is about, by name and SHA-256 (hex)."""

    name: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Occasion:
    """What every predicate says first: where, by whom and when it was recorded."""

    repository: RepositoryId
    service: ServiceName | None
    host: str
    run: RunId | None
    recorded_at: datetime
    tool_version: str

    def fields(self) -> dict[str, Json]:
        """Return the common fields of a predicate."""
        return {
            "repository": self.repository,
            "service": self.service,
            "host": self.host,
            "run": self.run,
            "recorded_at": to_iso(self.recorded_at),
            "tool": {"name": "drservice", "version": self.tool_version},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """A statement of a known kind; ``predicate`` has the fields of the kind's schema."""

    kind: EvidenceKind
    subject: tuple[Subject, ...]
    predicate: Mapping[str, Json]

    @property
    def recorded_at(self) -> datetime:
        """When the writer recorded it, by the writer's clock."""
        return from_iso(str(self.predicate["recorded_at"]))

    @property
    def service(self) -> ServiceName | None:
        """The service it is about, ``None`` for the whole repository."""
        service = self.predicate["service"]
        return None if service is None else ServiceName(str(service))

    @property
    def is_kept_aside(self) -> bool:
        """Tell whether it could not be written when it was recorded."""
        return KEPT_ASIDE in self.predicate

    @property
    def identity(self) -> bytes:
        """The SHA-256 that stays the same when the statement is kept aside: one event, one identity."""
        plain = {name: value for name, value in self.predicate.items() if name != KEPT_ASIDE}
        return hashlib.sha256(Statement(kind=self.kind, subject=self.subject, predicate=plain).payload()).digest()

    def payload(self) -> bytes:
        """Return the canonical bytes that are signed."""
        return canonical_bytes(
            {
                "_type": STATEMENT_TYPE,
                "subject": [{"name": each.name, "digest": {"sha256": each.sha256}} for each in self.subject],
                "predicateType": f"urn:drservice:evidence:{self.kind.value}:v1",
                "predicate": self.predicate,
            }
        )

    def artefacts(self) -> Iterator[Subject]:
        """Yield the subjects that are stored beside the ledger."""
        return (each for each in self.subject if each.name.startswith(ARTEFACT_PREFIX))


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedStatement:
    """A decoded envelope. Its signatures are as good as nothing until :meth:`verify`."""

    raw: bytes
    payload: bytes
    statement: Statement
    signatures: tuple[tuple[str, bytes], ...]
    """(fingerprint, signature) of each signer."""

    @property
    def sha256(self) -> str:
        """The hex SHA-256 of the envelope's bytes: the record's name for approvals."""
        return hashlib.sha256(self.raw).hexdigest()

    def verify(self, keys: Mapping[str, bytes]) -> tuple[str, ...]:
        """Return the fingerprints of those of ``keys`` (fingerprint to public key) that have signed: at least one.

        Raises:
            UnknownSignerError: none of them has.
            BadSignatureError: a signature said to be by one of them does not match.
        """
        return verify_signatures(self.payload, self.signatures, keys)


def make_statement(
    kind: EvidenceKind, *, occasion: Occasion, subject: Iterable[Subject], fields: Mapping[str, Json]
) -> Statement:
    """Build a statement and check it against the schema of its kind.

    Raises:
        StatementError: a field is missing, too many or of another type, or it is too large.
    """
    statement = Statement(kind=kind, subject=tuple(subject), predicate={**occasion.fields(), **fields})
    check_statement(statement)
    return statement


def keep_aside_mark(statement: Statement) -> Statement:
    """Return the statement with the mark that it could not be written when it was recorded.

    Raises:
        StatementError: a record of this kind is never written late (an obligation has to come before its drill).
    """
    marked = Statement(
        kind=statement.kind, subject=statement.subject, predicate={**statement.predicate, KEPT_ASIDE: True}
    )
    check_statement(marked)
    return marked


def check_statement(statement: Statement) -> None:
    """Return if the statement follows the schema of its kind.

    Raises:
        StatementError: it does not; the first difference is named with its place.
    """
    try:
        value = json.loads(statement.payload())
    except TypeError as error:
        raise StatementError(f"a {statement.kind.value} statement holds what JSON cannot: {error}") from error
    _require_schema(statement.kind, value)


def pre_authentication(payload_type: str, payload: bytes) -> bytes:
    """Return the bytes that DSSE signs (https://github.com/secure-systems-lab/dsse, protocol.md)."""
    kind = payload_type.encode("utf-8")
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def sign_statement(statement: Statement, signers: Sequence[Signing]) -> bytes:
    """Check a statement, sign it, and return the envelope's canonical bytes.

    Raises:
        StatementError: it breaks its schema.
        RecordTooLargeError: the envelope is larger than 65,535 bytes.
    """
    check_statement(statement)
    return sign_payload(statement.payload(), PAYLOAD_TYPE, signers)


def sign_payload(payload: bytes, payload_type: str, signers: Sequence[Signing]) -> bytes:
    """Return the envelope around any payload.

    Raises:
        StatementError: nobody signs.
        RecordTooLargeError: it is larger than 65,535 bytes.
    """
    if not 1 <= len(signers) <= _SIGNATURES_LIMIT:
        raise StatementError(f"an envelope has 1 to {_SIGNATURES_LIMIT} signatures, not {len(signers)}")
    message = pre_authentication(payload_type, payload)
    envelope = canonical_bytes(
        {
            "payload": _encoded(payload),
            "payloadType": payload_type,
            "signatures": [{"keyid": each.fingerprint, "sig": _encoded(each.sign(message))} for each in signers],
        }
    )
    if len(envelope) > ENVELOPE_LIMIT_BYTES:
        raise RecordTooLargeError(
            f"the signed statement has {len(envelope)} bytes; {ENVELOPE_LIMIT_BYTES} is the most a record may have"
        )
    return envelope


def decode_statement(raw: bytes, what: str = "the record") -> SignedStatement:
    """Read an envelope with a statement inside, strictly.

    Raises:
        StatementError: too large, not canonical, another payload type, an unknown kind, or it breaks its schema.
    """
    payload, signatures = decode_envelope(raw, PAYLOAD_TYPE, what)
    value = _parsed(payload, f"the statement in {what}")
    kind = _kind_of(value, what)
    try:
        _require_schema(kind, value)
    except StatementError as error:
        raise StatementError(f"{what}: {error.message}") from error
    assert isinstance(value, dict)
    # The schema was checked: these are there.
    subject = tuple(Subject(each["name"], each["digest"]["sha256"]) for each in value["subject"])
    statement = Statement(kind=kind, subject=subject, predicate=value["predicate"])
    return SignedStatement(raw=raw, payload=payload, statement=statement, signatures=signatures)


def decode_envelope(raw: bytes, payload_type: str, what: str) -> tuple[bytes, tuple[tuple[str, bytes], ...]]:
    """Return payload and signatures of an envelope; nothing is verified.

    Raises:
        StatementError: it is no envelope of this payload type.
    """
    if len(raw) > ENVELOPE_LIMIT_BYTES:
        raise StatementError(f"{what} has {len(raw)} bytes; {ENVELOPE_LIMIT_BYTES} is the most a record may have")
    envelope = _parsed(raw, what)
    if not isinstance(envelope, dict) or set(envelope) != {"payload", "payloadType", "signatures"}:
        raise StatementError(f"{what} is no DSSE envelope")
    if envelope["payloadType"] != payload_type:
        raise StatementError(f"{what} holds {str(envelope['payloadType'])[:200]!r}, not {payload_type}")
    payload = _decoded(envelope["payload"])
    entries = envelope["signatures"]
    if payload is None or not isinstance(entries, list) or not 1 <= len(entries) <= _SIGNATURES_LIMIT:
        raise StatementError(f"{what} is no DSSE envelope: its payload or its signatures cannot be read")
    return payload, tuple(_signature(entry, what) for entry in entries)


def verify_signatures(
    payload: bytes,
    signatures: Iterable[tuple[str, bytes]],
    keys: Mapping[str, bytes],
    *,
    payload_type: str = PAYLOAD_TYPE,
) -> tuple[str, ...]:
    """Return the fingerprints of those of ``keys`` that have signed ``payload``: at least one.

    Raises:
        UnknownSignerError: none of them has.
        BadSignatureError: a signature said to be by one of them does not match.
    """
    message = pre_authentication(payload_type, payload)
    given = tuple(signatures)
    verified = []
    for keyid, signature in given:
        public_key = keys.get(keyid)
        if public_key is None:
            continue
        try:
            Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
        except InvalidSignature as error:
            raise BadSignatureError(f"the signature by {keyid} does not match the statement") from error
        verified.append(keyid)
    if not verified:
        raise UnknownSignerError(f"the statement is signed by {', '.join(keyid for keyid, _ in given)}: no known key")
    return tuple(verified)


def fingerprint(public_key: bytes) -> str:
    """Return the short name of an Ed25519 public key: 16 hex digits of its SHA-256."""
    return hashlib.sha256(public_key).hexdigest()[:16]


def schema(kind: EvidenceKind) -> Mapping[str, Json]:
    """Return the published JSON Schema of a kind of statement."""
    text = resources.files("drservice.evidence").joinpath(f"schemas/{kind.value}.json").read_text(encoding="utf-8")
    loaded: Mapping[str, Json] = json.loads(text)
    return loaded


def load_schema_check(kind: EvidenceKind) -> None:
    """Load what statements of a kind are checked with, so that the first one does not wait for it."""
    _validator(kind)


def _require_schema(kind: EvidenceKind, value: Json) -> None:
    from jsonschema.exceptions import best_match  # noqa: PLC0415 - 60 ms that only evidence pays

    worst = best_match(_validator(kind).iter_errors(value))
    if worst is not None:
        raise StatementError(f"a {kind.value} statement is wrong at {worst.json_path}: {worst.message[:300]}")


@functools.cache
def _validator(kind: EvidenceKind) -> Validator:
    from jsonschema import Draft202012Validator, FormatChecker, ValidationError, validators  # noqa: PLC0415 - see above

    def pattern(_: Validator, rule: str, text: object, __: object) -> Iterator[ValidationError]:
        # Python's $ also matches before a last newline, which ECMA 262 (and so JSON Schema) does not know.
        if isinstance(text, str) and re.search(rule.replace("$", r"\Z"), text) is None:
            yield ValidationError(f"{text[:200]!r} does not match {rule!r}")

    strict = validators.extend(Draft202012Validator, {"pattern": pattern})
    formats = FormatChecker(formats=())
    # The pattern has the form; this asks whether there is such a day. What is no text, "type" refuses.
    formats.checks("date-time", raises=ValueError)(lambda text: not isinstance(text, str) or bool(from_iso(text)))
    made: Validator = strict(schema(kind), format_checker=formats)
    return made


def _kind_of(value: Json, what: str) -> EvidenceKind:
    found = value.get("predicateType") if isinstance(value, dict) else None
    match = _PREDICATE_TYPE.fullmatch(found) if isinstance(found, str) else None
    kind = _KINDS.get(match[1]) if match else None
    if kind is None:
        raise StatementError(f"{what} is a statement of unknown kind {str(found)[:200]!r}")
    return kind


def _parsed(raw: bytes, what: str) -> Json:
    try:
        return parse_canonical(raw)
    except ValueError as error:
        raise StatementError(f"{what} cannot be read: {error}") from error


def _signature(entry: Json, what: str) -> tuple[str, bytes]:
    if not isinstance(entry, dict) or set(entry) != {"keyid", "sig"}:
        raise StatementError(f"{what} is no DSSE envelope: a signature has other fields")
    keyid, signature = entry["keyid"], _decoded(entry["sig"])
    if not isinstance(keyid, str) or not _KEYID.fullmatch(keyid) or signature is None:
        raise StatementError(f"{what} is no DSSE envelope: a signature cannot be read")
    if len(signature) != _SIGNATURE_BYTES:
        raise StatementError(f"{what} is no DSSE envelope: a signature has {len(signature)} bytes")
    return keyid, signature


def _encoded(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")


def _decoded(text: Json) -> bytes | None:
    """Return what padded standard base64 encodes, if ``text`` is its one spelling."""
    if not isinstance(text, str):
        return None
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return raw if _encoded(raw) == text else None
