"""Signed envelopes around every object that is not named by its own hash (docs/format.md, section 3).

age proves who can read, not who wrote: a signature says which host wrote an object, the header's own key keeps it
from being moved, and the body's hash keeps it whole.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from drservice.canonical import Json, canonical_bytes, parse_canonical
from drservice.clock import to_iso
from drservice.errors import (
    BadSignatureError,
    DamagedObjectError,
    FormatError,
    KeyProblemError,
    UnknownSignerError,
)
from drservice.model.ids import RepositoryId, ServiceName
from drservice.repository import layout

if TYPE_CHECKING:  # the settings take a worker process a quarter of its start
    from drservice.model.estate import SignerSettings

MAGIC = b"DRS1"
_CONTEXT = b"drservice envelope v1\n"
_HEAD = struct.Struct(">4sI")
_SIGNATURE_BYTES = 64
_MAX_HEADER_BYTES = 1 << 20
HEAD_READ_BYTES = 16 << 10
"""How much of an object a reader fetches to see its header (headers are far smaller as a rule)."""


def fingerprint(public_key: bytes) -> str:
    """Return the short name of an Ed25519 public key: 16 hex digits of its SHA-256."""
    return hashlib.sha256(public_key).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class HostKey:
    """The signing key of this host and the name it signs with."""

    host: str
    private_key: Ed25519PrivateKey
    unlisted: bool = False
    """Neither the configuration nor the repository file names it: what it signs, no other host would believe."""

    def require_listed(self) -> None:
        """Return if others believe what this key signs.

        Raises:
            KeyProblemError: they do not; the hint has the line to add.
        """
        if self.unlisted:
            raise KeyProblemError(
                f"the signing key of this host ({self.host}, {self.fingerprint}) is not among the repository's signers:"
                " no other host would believe what it writes",
                hint=f"Add to repository.signers in the configuration of every host: {self.signer_line}",
            )

    @property
    def signer_line(self) -> str:
        """The line of ``repository.signers`` that makes others believe this key."""
        return f'{self.host}: {{key: "ed25519:{self.public_key.hex()}"}}'

    @property
    def public_key(self) -> bytes:
        """The 32 public bytes."""
        return self.private_key.public_key().public_bytes_raw()

    @property
    def fingerprint(self) -> str:
        """The short name of the key."""
        return fingerprint(self.public_key)

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a signing key is not pickled")


def require_signer(signer: HostKey | None) -> HostKey:
    """Return the signing key of a host that has one.

    Raises:
        KeyProblemError: it has none and so cannot write.
    """
    if signer is None:
        raise KeyProblemError(
            "this host has no signing key and cannot archive",
            hint="`drservice init` makes it; then add the line it prints to repository.signers.",
        )
    return signer


class Trust:
    """The keys whose objects are believed, each for its services."""

    def __init__(self, signers: Iterable[SignerSettings]) -> None:
        self._signers: dict[str, list[SignerSettings]] = {}
        for signer in signers:
            self._signers.setdefault(fingerprint(signer.public_key), []).append(signer)

    @property
    def signers(self) -> tuple[SignerSettings, ...]:
        """Everybody who is believed; a key appears once for each list that names it."""
        return tuple(signer for known in self._signers.values() for signer in known)

    def verify(self, *, signer: str, service: ServiceName | None, signature: bytes, message: bytes, what: str) -> None:
        """Return if a trusted key for ``service`` made ``signature`` over ``message``.

        Raises:
            UnknownSignerError: nobody trusted has this fingerprint, or not for this service.
            BadSignatureError: the signature does not match.
        """
        known = self._signers.get(signer)
        if not known:
            raise UnknownSignerError(f"{what} is signed by {signer or 'nobody'}, which is not a trusted signer")
        if service is not None and not any(not s.services or service in s.services for s in known):
            raise UnknownSignerError(f"{what} is signed by {known[0].name} ({signer}), who may not write for {service}")
        try:
            Ed25519PublicKey.from_public_bytes(known[0].public_key).verify(signature, message)
        except InvalidSignature as error:
            raise BadSignatureError(f"the signature of {what} by {known[0].name} does not match its content") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """A verified header and where its body begins. The body is checked by :meth:`check_body`."""

    header: Mapping[str, Json]
    header_sha256: str
    body_offset: int

    def check_body(self, body: bytes | memoryview) -> bytes | memoryview:
        """Return ``body`` if length and SHA-256 are those of the header.

        Raises:
            DamagedObjectError: they are not.
        """
        key = self.text("key")
        if len(body) != self.number("body_bytes"):
            raise DamagedObjectError(f"{key} is cut off: its body has {len(body)} of {self.number('body_bytes')} bytes")
        if hashlib.sha256(body).hexdigest() != self.text("body_sha256"):
            raise DamagedObjectError(f"the body of {key} was changed: its SHA-256 differs from the signed one")
        return body

    def text(self, name: str) -> str:
        """Return a text field of the header.

        Raises:
            FormatError: absent or no text.
        """
        value = self.header.get(name)
        if not isinstance(value, str):
            raise FormatError(f"the header of {self.header.get('key')} lacks the text field {name}")
        return value

    def number(self, name: str) -> int:
        """Return an integer field of the header (never negative).

        Raises:
            FormatError: absent or no such number.
        """
        value = self.header.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise FormatError(f"the header of {self.header.get('key')} lacks the number {name}")
        return value


def write_envelope(
    *,
    signer: HostKey,
    repository: RepositoryId,
    key: str,
    kind: str,
    fields: Mapping[str, Json],
    body: Sequence[bytes | memoryview],
    now: datetime,
) -> list[bytes | memoryview]:
    """Sign an object and return its pieces in order, ready for ``ObjectStore.create``.

    Raises:
        KeyProblemError: nobody else would believe the signature.
    """
    signer.require_listed()
    digest = hashlib.sha256()
    length = 0
    for piece in body:
        digest.update(piece)
        length += len(piece)
    header = canonical_bytes(
        {
            **fields,
            "type": kind,
            "repository": repository,
            "key": key,
            "signer": signer.fingerprint,
            "host": signer.host,
            "created_at": to_iso(now),
            "body_bytes": length,
            "body_sha256": digest.hexdigest(),
        }
    )
    signature = signer.private_key.sign(_CONTEXT + header)
    return [_HEAD.pack(MAGIC, len(header)) + header + signature, *body]


def header_extent(head: bytes, what: str) -> int:
    """Return how many bytes of an object lie before its body, from its first 8 bytes.

    Raises:
        FormatError: it is no envelope.
    """
    if len(head) < _HEAD.size:
        raise FormatError(f"{what} is too short to be an object of this repository")
    magic, length = _HEAD.unpack_from(head)
    if magic != MAGIC or not 2 <= length <= _MAX_HEADER_BYTES:
        raise FormatError(f"{what} is no object of this repository (bad magic or header length)")
    return int(_HEAD.size + length + _SIGNATURE_BYTES)


def header_sha256(head: bytes, what: str) -> str:
    """Return the SHA-256 of an envelope's header: its name in chains.

    Raises:
        FormatError: it is no envelope.
    """
    return hashlib.sha256(head[_HEAD.size : header_extent(head, what) - _SIGNATURE_BYTES]).hexdigest()


def read_envelope(
    head: bytes | memoryview,
    *,
    trust: Trust,
    repository: RepositoryId,
    key: str,
    kind: str,
    stored_at: str | None = None,
) -> Envelope:
    """Check shape, signer, signature and place of an object, in this order.

    Args:
        head: at least the bytes before the body.
        trust: who is believed.
        repository: the id it must carry.
        key: the key it must name.
        kind: the type it must have.
        stored_at: the key it was read from, for messages, if that may differ.

    Raises:
        FormatError, UnknownSignerError, BadSignatureError, DamagedObjectError.
    """
    what = stored_at or key
    view = bytes(head)
    extent = header_extent(view, what)
    if len(view) < extent:
        raise DamagedObjectError(f"{what} is cut off inside its header")
    raw = view[_HEAD.size : extent - _SIGNATURE_BYTES]
    header = _parse(raw, what)
    signer = header.get("signer")
    trust.verify(
        signer=signer if isinstance(signer, str) else "",
        service=layout.service_of(key),
        signature=view[extent - _SIGNATURE_BYTES : extent],
        message=_CONTEXT + raw,
        what=what,
    )
    if header.get("repository") != repository:
        raise DamagedObjectError(f"{what} belongs to another repository ({header.get('repository')})")
    if header.get("type") != kind or header.get("key") != key:
        raise DamagedObjectError(
            f"{what} was written as {header.get('type')} under {header.get('key')}: it was moved here"
        )
    return Envelope(header=header, header_sha256=header_sha256(view, what), body_offset=extent)


def read_object(
    read_versions: Callable[[], Iterable[bytes]],
    *,
    trust: Trust,
    repository: RepositoryId,
    key: str,
    kind: str,
) -> tuple[Envelope, bytes | memoryview]:
    """Return the oldest version of an object that passes every check, with its body.

    Overwritten or marked as deleted on a versioned store, the first valid version is still the truth.

    Raises:
        MissingObjectError is the caller's to raise for no version at all (``DamagedObjectError`` here).
        The error of the first version, if none passes.
    """
    first_problem: FormatError | KeyProblemError | DamagedObjectError | None = None
    for data in read_versions():
        try:
            envelope = read_envelope(data, trust=trust, repository=repository, key=key, kind=kind)
            body = envelope.check_body(memoryview(data)[envelope.body_offset :])
        except (FormatError, KeyProblemError, DamagedObjectError) as error:
            first_problem = first_problem or error
        else:
            return envelope, body
    raise first_problem or DamagedObjectError(f"{key} has no readable version")


def _parse(raw: bytes, what: str) -> Mapping[str, Json]:
    try:
        header = parse_canonical(raw)
    except ValueError as error:
        raise FormatError(f"the header of {what} is unreadable: {error}") from error
    if not isinstance(header, dict):
        raise FormatError(f"the header of {what} is not an object")
    return header
