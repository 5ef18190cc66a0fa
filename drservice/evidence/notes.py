"""Signed notes, checkpoints and proofs as text (C2SP ``signed-note``, ``tlog-checkpoint`` and ``tlog-proof``).

A note is text that ends with a newline, an empty line, and one line per signature: an em dash, the key's name, and
base64 of a 4-byte key hash and the signature. A checkpoint is a note whose text names a log (its *origin*), a size and
a root. Signatures by keys that a reader does not know are passed over; one by a known key that does not match is an
error.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from drservice.errors import CheckpointError
from drservice.evidence.merkle import HASH_BYTES

_ED25519 = b"\x01"
"""The algorithm byte of Ed25519 in key hashes and verifier keys (C2SP signed-note)."""
_SIGNATURE_LINE = re.compile("— ([^ +]+) ([A-Za-z0-9+/]+={0,2})")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,18}")
_NOTE_LIMIT = 1 << 20
_SIGNATURE_LIMIT = 100
_PROOF_HEAD = "c2sp.org/tlog-proof@v1"


class NoteSigner(Protocol):
    """What signs notes: a name and an Ed25519 key (``signing.Signer``)."""

    @property
    def name(self) -> str:
        """The name on the signature's line."""
        ...

    @property
    def public_key(self) -> bytes:
        """The 32 public bytes."""
        ...

    def sign(self, message: bytes) -> bytes:
        """Return the 64-byte signature of ``message``."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class NoteVerifier:
    """A key whose signatures on notes are believed, and the name it signs with."""

    name: str
    public_key: bytes

    @property
    def key_hash(self) -> bytes:
        """The 4 bytes that say which key made a signature; an aid for finding it, no proof."""
        return key_hash(self.name, self.public_key)

    @property
    def vkey(self) -> str:
        """The key as one word, for a policy or a witness: ``name+hash+base64``."""
        encoded = base64.b64encode(_ED25519 + self.public_key).decode("ascii")
        return f"{self.name}+{self.key_hash.hex()}+{encoded}"


@dataclass(frozen=True, slots=True, kw_only=True)
class NoteSignature:
    """One signature line."""

    name: str
    key_hash: bytes
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What a log says of itself: so many entries, with this root. ``extensions`` are further lines of the note."""

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The text that is signed."""
        encoded = base64.b64encode(self.root).decode("ascii")
        return "".join(f"{line}\n" for line in (self.origin, str(self.size), encoded, *self.extensions))


def key_hash(name: str, public_key: bytes) -> bytes:
    """Return the key hash of an Ed25519 key under a name."""
    return hashlib.sha256(name.encode("utf-8") + b"\n" + _ED25519 + public_key).digest()[:4]


def parse_vkey(text: str) -> NoteVerifier:
    """Read a verifier key.

    Raises:
        CheckpointError: it is none, its hash does not fit, or it is no Ed25519 key.
    """
    name, _, rest = text.partition("+")
    given, _, encoded = rest.partition("+")
    raw = _decoded(encoded)
    if not is_key_name(name) or raw is None or len(raw) != 33 or raw[:1] != _ED25519:
        raise CheckpointError(f"{text[:200]!r} is no Ed25519 verifier key")
    found = NoteVerifier(name=name, public_key=raw[1:])
    if found.key_hash.hex() != given:
        raise CheckpointError(f"the hash in the verifier key of {name} is not that of its key")
    return found


def is_key_name(text: str) -> bool:
    """Tell whether a key may have this name: not empty, no space, no plus sign."""
    return bool(text) and "+" not in text and not any(letter.isspace() for letter in text)


def sign_note(text: str, signers: Iterable[NoteSigner]) -> bytes:
    """Return the signed note over ``text``.

    Raises:
        ValueError: the text or a name cannot be written as a note.
    """
    _require_text(text)
    lines = []
    for signer in signers:
        if not is_key_name(signer.name):
            raise ValueError(f"{signer.name!r} cannot be the name of a key")
        raw = key_hash(signer.name, signer.public_key) + signer.sign(text.encode("utf-8"))
        lines.append(f"— {signer.name} {base64.b64encode(raw).decode('ascii')}\n")
    if not lines:
        raise ValueError("a note needs a signature")
    return (text + "\n" + "".join(lines)).encode("utf-8")


def split_note(note: bytes) -> tuple[str, tuple[NoteSignature, ...]]:
    """Return text and signatures of a note; nothing is verified.

    Raises:
        CheckpointError: it is no note.
    """
    try:
        whole = note.decode("utf-8") if len(note) <= _NOTE_LIMIT else ""
        text, found, block = whole.rpartition("\n\n")
        text += "\n"
        _require_text(text)
    except ValueError as error:
        raise CheckpointError(f"not a signed note: {error}") from error
    lines = block.split("\n")
    if not found or lines.pop() != "" or not 1 <= len(lines) <= _SIGNATURE_LIMIT:
        raise CheckpointError("not a signed note: its signatures do not follow an empty line")
    signatures = []
    for line in lines:
        match = _SIGNATURE_LINE.fullmatch(line)
        raw = _decoded(match[2]) if match else None
        if match is None or raw is None or len(raw) < 5:
            raise CheckpointError("not a signed note: a line among its signatures is none")
        signatures.append(NoteSignature(name=match[1], key_hash=raw[:4], signature=raw[4:]))
    return text, tuple(signatures)


def open_note(note: bytes, verifiers: Iterable[NoteVerifier]) -> tuple[str, tuple[NoteVerifier, ...]]:
    """Return the text of a note and which of ``verifiers`` have signed it (at least one).

    Raises:
        CheckpointError: no note, a signature by one of them does not match, or none of them has signed.
    """
    text, signatures = split_note(note)
    known = {(verifier.name, verifier.key_hash): verifier for verifier in verifiers}
    signed: list[NoteVerifier] = []
    for signature in signatures:
        verifier = known.get((signature.name, signature.key_hash))
        if verifier is None or verifier in signed:
            continue
        try:
            Ed25519PublicKey.from_public_bytes(verifier.public_key).verify(signature.signature, text.encode("utf-8"))
        except InvalidSignature as error:
            raise CheckpointError(f"the signature of {verifier.name} does not match the note") from error
        signed.append(verifier)
    if not signed:
        names = ", ".join(f"{signature.name}+{signature.key_hash.hex()}" for signature in signatures)
        raise CheckpointError(f"the note is signed by {names[:400]} only: not by a known key")
    return text, tuple(signed)


def parse_checkpoint(text: str) -> Checkpoint:
    """Read the text of a checkpoint.

    Raises:
        CheckpointError: it is none.
    """
    lines = text.split("\n")
    if len(lines) < 4 or lines.pop() != "" or "" in lines:
        raise CheckpointError("not a checkpoint: origin, size and root are expected, each on its line")
    origin, size, encoded, *extensions = lines
    root = _decoded(encoded)
    if _NUMBER.fullmatch(size) is None or root is None or len(root) != HASH_BYTES:
        raise CheckpointError(f"the checkpoint of {origin[:200]} has no size or no root")
    return Checkpoint(origin=origin, size=int(size), root=root, extensions=tuple(extensions))


def write_proof(*, index: int, proof: Sequence[bytes], checkpoint: bytes) -> str:
    """Return an inclusion proof with its checkpoint as text (C2SP tlog-proof)."""
    lines = [_PROOF_HEAD, f"index {index}", *(base64.b64encode(step).decode("ascii") for step in proof), ""]
    return "\n".join(lines) + "\n" + checkpoint.decode("utf-8")


def read_proof(text: str) -> tuple[int, tuple[bytes, ...], bytes]:
    """Return index, audit path and the signed checkpoint of a written proof; nothing is verified.

    Raises:
        CheckpointError: it is none.
    """
    head, found, note = text.partition("\n\n")
    first, *lines = head.split("\n")
    if lines and lines[0].startswith("extra "):
        lines.pop(0)  # opaque data of the application: nothing of ours
    word, _, number = lines.pop(0).partition(" ") if lines else ("", "", "")
    steps = [_decoded(line) for line in lines]
    if first != _PROOF_HEAD or not found or word != "index" or _NUMBER.fullmatch(number) is None or len(steps) > 63:
        raise CheckpointError("not a proof: its first lines are not those of tlog-proof@v1")
    path = tuple(step for step in steps if step is not None and len(step) == HASH_BYTES)
    if len(path) != len(steps):
        raise CheckpointError("not a proof: a line of it is no hash")
    return int(number), path, note.encode("utf-8")


def _require_text(text: str) -> None:
    if not text.endswith("\n") or any(ord(letter) < 0x20 and letter != "\n" for letter in text):
        raise ValueError("the text of a note ends with a newline and has no control characters")


def _decoded(text: str) -> bytes | None:
    """Return what padded standard base64 encodes, if ``text`` is its one spelling."""
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return raw if base64.b64encode(raw).decode("ascii") == text else None
