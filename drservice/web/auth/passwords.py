"""Passwords of local accounts: argon2id, with the parameters of RFC 9106's second choice (64 MiB, three passes)."""

from __future__ import annotations

import threading
import unicodedata

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from argon2.profiles import RFC_9106_LOW_MEMORY

from drservice.errors import AccountError

SHORTEST = 12
LONGEST_BYTES = 1024
_AT_ONCE = threading.BoundedSemaphore(4)
"""Each verification takes 64 MiB: strangers decide how many are asked for, this how many run."""


class Passwords:
    """Hashes and compares passwords."""

    def __init__(self, hasher: PasswordHasher | None = None) -> None:
        self._hasher = hasher or PasswordHasher.from_parameters(RFC_9106_LOW_MEMORY)
        self._nobodys = self._hasher.hash("nobody's password")

    def hash(self, password: str) -> str:
        """Return what is kept of a password.

        Raises:
            AccountError: it is too short or too long to be one.
        """
        text = _prepared(password)
        if len(text) < SHORTEST or len(text.encode()) > LONGEST_BYTES:
            raise AccountError(
                f"a password has at least {SHORTEST} characters", hint="A few words in a row are easy to keep in mind."
            )
        return self._hasher.hash(text)

    def matches(self, password_hash: str | None, password: str) -> bool:
        """Compare; without a hash (an unknown account) take as long and say no."""
        text = _prepared(password)
        if len(text.encode()) > LONGEST_BYTES:
            return False
        with _AT_ONCE:
            try:
                right = self._hasher.verify(password_hash or self._nobodys, text)
            except (VerificationError, InvalidHashError):
                return False
        return right and password_hash is not None


def _prepared(password: str) -> str:
    """Return one spelling of what keyboards write in several (NIST SP 800-63B, 5.1.1.2)."""
    return unicodedata.normalize("NFKC", password).encode("utf-8", "replace").decode()
