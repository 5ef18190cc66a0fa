"""The rules for keys, the same on every store.

A key becomes a path on a file system and a URL on the wire, and it may have been read from an object that an
attacker wrote. So the rules are narrow and checked at every door: no way up, no absolute path, no hidden
name, nothing that needs quoting anywhere.
"""

from __future__ import annotations

import re

from drservice.errors import InvalidKeyError

KEY_LIMIT = 768
"""S3 ends at 1,024 bytes (Amazon S3 User Guide, "Naming Amazon S3 objects"); the rest is for a prefix."""

PART_LIMIT = 200
"""File systems end at 255 bytes for one name."""

_PART = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*\Z")


def is_part(name: str) -> bool:
    """Tell whether ``name`` may stand between two slashes of a key.

    A leading dot is refused: hidden names belong to temporary files.
    """
    return len(name) <= PART_LIMIT and ".." not in name and _PART.match(name) is not None


def is_key(text: str) -> bool:
    """Tell whether ``text`` can be a key; a name that cannot was not written by this program."""
    return len(text) <= KEY_LIMIT and all(is_part(part) for part in text.split("/"))


def split_key(key: str) -> tuple[str, ...]:
    """Return the parts of a key.

    Raises:
        InvalidKeyError: if the key breaks a rule.
    """
    if not is_key(key):
        raise InvalidKeyError(f"{_printable(key)} cannot be the key of an object")
    return tuple(key.split("/"))


def split_prefix(prefix: str) -> tuple[tuple[str, ...], str]:
    """Return the whole parts of a listing's prefix and the beginning of the next part (may be empty).

    Raises:
        InvalidKeyError: if no key could begin like this.
    """
    *folders, beginning = prefix.split("/")
    if (
        len(prefix) > KEY_LIMIT
        or not all(is_part(part) for part in folders)
        or not (beginning == "" or is_part(beginning))
    ):
        raise InvalidKeyError(f"no key begins with {_printable(prefix)}")
    return tuple(folders), beginning


def _printable(text: str) -> str:
    """Show a hostile name without its control characters and its length."""
    shown = ascii(text)
    return shown if len(shown) <= 120 else f"{shown[:120]}... ({len(text)} characters)"
