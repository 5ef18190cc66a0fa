"""What a server says about its files while it sends a base backup, read without knowing its language.

Damaged pages, and links or special files that it does not send, are told by warnings alone (``sendFile`` and
``sendDir`` in ``basebackup.c``), in the language of ``lc_messages``, which only a superuser can choose for a session.
Paths and numbers stand in every language as they are, and in this order. Nothing tells of links in ``pg_tblspc`` that
are no tablespaces: the program has the server leave that folder out, and so does the server when it starts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_PATH = re.compile(r"(?:(?<![\w/.])\./|(?<![\w/.])(?=pg_tblspc/\d))([0-9A-Za-z_.+/-]*[0-9A-Za-z_+/-])")
"""As the server writes it; one with other letters is cut off at the first of them."""
_BAD_PAGE = re.compile(r"\D+?(\d+)(?![0-9A-Za-z]).*?" + r"(?<![0-9A-Za-z])([0-9A-F]{1,4})(?![0-9A-Za-z]).*?" * 2)
"""Behind the path: block, checksum as calculated, checksum as expected."""
_ENGLISH_BAD_PAGE = "checksum verification failed in file "
_PAGE_BYTES = frozenset(str(1 << power) for power in range(10, 16))


@dataclass(frozen=True, slots=True, kw_only=True)
class FileNotice:
    """A file of the data directory that a message names."""

    path: str
    block: int | None
    """The damaged one, counted within the file; ``None``: the message is about something else."""


def read_notice(text: str, *, locations: Mapping[str, int] | None = None) -> FileNotice | None:
    """Return what a message says about a file of the cluster, ``None`` if it names none.

    Args:
        text: one message.
        locations: where extra tablespaces lie, and the OID of each: their files are named by where they are.
    """
    for place, oid in sorted((locations or {}).items(), key=lambda item: -len(item[0])):
        text = text.replace(f"{place}/", f"pg_tblspc/{oid}/", 1)
    match = _PATH.search(text)
    if match is None:
        return None
    return FileNotice(path=match[1].rstrip("/"), block=_damaged_block(text, text[match.end() :]))


def _damaged_block(text: str, behind: str) -> int | None:
    numbers = _BAD_PAGE.match(behind)
    if numbers is None:
        return None
    # "... block %u: read buffer size %d and page size %d differ" has three numbers, too, and names no damage.
    is_about_size = numbers[2].isdigit() and numbers[3] in _PAGE_BYTES
    return int(numbers[1]) if not is_about_size or _ENGLISH_BAD_PAGE in text else None
