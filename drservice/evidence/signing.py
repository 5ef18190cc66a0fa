"""The keys of evidence: who signs records, checkpoints and approvals, and the files two of them are kept in.

The log key and approver keys are PEM files in ``state_dir``, readable by their owner only and never overwritten. The
executor key is the host's signing key, which the repository keeps.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from drservice.errors import LogKeyError
from drservice.evidence.notes import NoteVerifier
from drservice.evidence.statements import fingerprint
from drservice.processes import create_private, make_folder

LOG_KEY_FILE = "log.key"


@dataclass(frozen=True, slots=True)
class Signer:
    """A private key and the name it signs with."""

    name: str
    private_key: Ed25519PrivateKey

    @property
    def public_key(self) -> bytes:
        """The 32 public bytes."""
        return self.private_key.public_key().public_bytes_raw()

    @property
    def fingerprint(self) -> str:
        """The short name of the key."""
        return fingerprint(self.public_key)

    @property
    def verifier(self) -> NoteVerifier:
        """What verifies the notes this signs."""
        return NoteVerifier(name=self.name, public_key=self.public_key)

    def sign(self, message: bytes) -> bytes:
        """Return the 64-byte signature of ``message``."""
        return self.private_key.sign(message)

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a signing key is not pickled")


def load_log_key(state_dir: Path, name: str) -> Signer | None:
    """Load the log key of this host, ``None`` if it has none.

    Args:
        state_dir: where it is kept.
        name: the name its signatures carry; the origin of the ledger.

    Raises:
        LogKeyError: it is there and unusable, or open to others.
    """
    return load_key(state_dir / LOG_KEY_FILE, name)


def make_log_key(state_dir: Path, name: str) -> Signer:
    """Make and store the log key of this host; return the one that is there then."""
    return make_key(state_dir / LOG_KEY_FILE, name)


def load_key(path: Path, name: str) -> Signer | None:
    """Load an Ed25519 key from a PEM file, ``None`` if there is no such file.

    Raises:
        LogKeyError: it is unusable, or open to others than its owner.
    """
    try:
        facts = path.stat()
        raw = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise LogKeyError(f"cannot read the key {path}: {error.strerror}") from error
    if facts.st_mode & 0o077:
        raise LogKeyError(f"the key {path} is open to others", hint=f"Run: chmod 600 {path}")
    try:
        key = load_pem_private_key(raw, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise LogKeyError(f"{path} is no usable key: {error}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise LogKeyError(f"{path} is no Ed25519 key")
    return Signer(name, key)


def make_key(path: Path, name: str) -> Signer:
    """Make and store an Ed25519 key (0600, never overwritten); return the one that is there then.

    Raises:
        LogKeyError: it cannot be written, or what is there cannot be used.
    """
    known = load_key(path, name)
    if known is not None:
        return known
    pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        make_folder(path.parent)
        with os.fdopen(create_private(temporary), "wb") as stream:
            stream.write(pem)
            stream.flush()
            os.fsync(stream.fileno())
        try:
            path.hardlink_to(temporary)
        except FileExistsError:
            pass  # another process of this host was faster; its key is the key
        finally:
            temporary.unlink()
        _sync(path.parent)
    except OSError as error:
        raise LogKeyError(f"cannot store the key {path}: {error.strerror}") from error
    made = load_key(path, name)
    if made is None:
        raise LogKeyError(f"the key {path} vanished while it was made")
    return made


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
