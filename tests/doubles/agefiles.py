"""Files as ``age -p`` writes them (age-encryption.org/v1, scrypt), with a work factor that costs nothing.

``age`` itself and the library choose a factor that takes about a second for each file; the format allows any.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

_LOG_N = 4


def protected(content: bytes, passphrase: str, *, armored: bool = False) -> bytes:
    """Return ``content`` (less than 64 KiB) encrypted with a passphrase."""
    file_key, salt, nonce = os.urandom(16), os.urandom(16), os.urandom(16)
    label = b"age-encryption.org/v1/scrypt" + salt
    wrapping = hashlib.scrypt(passphrase.encode(), salt=label, n=1 << _LOG_N, r=8, p=1, dklen=32)
    body = ChaCha20Poly1305(wrapping).encrypt(bytes(12), file_key, None)
    header = b"age-encryption.org/v1\n-> scrypt %s %d\n%s\n---" % (_plain(salt), _LOG_N, _plain(body))
    mac = hmac.digest(_derived(file_key, b"", b"header"), header, "sha256")
    sealed = ChaCha20Poly1305(_derived(file_key, nonce, b"payload")).encrypt(bytes(11) + b"\x01", content, None)
    made = header + b" " + _plain(mac) + b"\n" + nonce + sealed
    if not armored:
        return made
    encoded = base64.b64encode(made)
    lines = [encoded[at : at + 64] for at in range(0, len(encoded), 64)]
    frame = b"-----%s AGE ENCRYPTED FILE-----"
    return b"\n".join([frame % b"BEGIN", *lines, frame % b"END", b""])


def _plain(raw: bytes) -> bytes:
    return base64.b64encode(raw).rstrip(b"=")


def _derived(key: bytes, salt: bytes, info: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=salt, info=info).derive(key)
