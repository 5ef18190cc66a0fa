"""The host's own signing key: the one thing in ``state_dir`` that cannot be made again."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from drservice.errors import KeyProblemError
from drservice.processes import create_private, make_folder
from drservice.repository.envelope import HostKey

_FILE = "signing.key"


def host_name() -> str:
    """Return this machine's short name, fit for object headers."""
    short = re.sub(r"[^a-z0-9_-]", "-", socket.gethostname().split(".")[0].lower()).strip("-_")
    return short[:63] or "host"


def load_host_key(state_dir: Path) -> HostKey | None:
    """Load the signing key of this host, ``None`` if none was made yet.

    Raises:
        KeyProblemError: it is there and unusable, or readable by others.
    """
    path = state_dir / _FILE
    try:
        facts = path.stat()
        raw = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise KeyProblemError(
            f"cannot read the signing key {path}: {error.strerror}",
            hint="Run as the user that owns state_dir (archive_command runs as PostgreSQL's user).",
        ) from error
    if facts.st_mode & 0o077:
        raise KeyProblemError(f"the signing key {path} is open to others", hint=f"Run: chmod 600 {path}")
    try:
        key = load_pem_private_key(raw, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise KeyProblemError(f"{path} is no usable signing key: {error}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyProblemError(f"{path} is no Ed25519 key")
    return HostKey(host=host_name(), private_key=key)


def make_host_key(state_dir: Path) -> HostKey:
    """Make and store the signing key of this host (0600, never overwritten); return the one that is there then."""
    known = load_host_key(state_dir)
    if known is not None:
        return known
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    make_folder(state_dir)
    temporary = state_dir / f"{_FILE}.{os.getpid()}"
    descriptor = create_private(temporary)
    try:
        os.write(descriptor, pem)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    try:
        (state_dir / _FILE).hardlink_to(temporary)
    except FileExistsError:
        pass  # another process of this host was faster; its key is the key
    finally:
        temporary.unlink()
    made = load_host_key(state_dir)
    if made is None:
        raise KeyProblemError(f"the signing key in {state_dir} vanished while it was made")
    return made
