"""Which files need not be read again (docs/format.md and the rule book of unchanged files, trap T15)."""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path

from blake3 import blake3

from drservice.repository.nodes import Entry, EntryKind, FileIdentity

SETTLED_NS = 2_000_000_000
REREAD_DAYS = 30
DAY_NS = 86_400 * 10**9
_LOCAL_FILE_SYSTEMS = frozenset(
    {"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay", "f2fs", "jfs", "reiserfs", "bcachefs"}
)
_MOUNTS = Path("/proc/self/mountinfo")


class ChangeRule(Enum):
    """How a file is judged unchanged."""

    IDENTITY = "identity"
    """By device, inode, size and both times (local file systems only)."""

    READ_ALL = "read-all"
    """Every file is read: network file systems, clock trouble, another timeline or server."""

    NAMED = "named"
    """By size and modification time, for documents whose name is the hash of their content (any file system)."""


def is_unchanged(listed: FileIdentity, size: int, previous: Entry) -> bool:
    """Tell whether a file may be taken as unchanged without reading it.

    Same device, inode, size and both times, and those times lie at least two seconds before the earlier read began
    and not in the future: a write in the same clock tick as the read would else go unseen.
    """
    known = previous.identity
    if known is None or previous.kind is not EntryKind.FILE or previous.size != size:
        return False
    same = (known.device, known.inode, known.modified_ns, known.changed_ns) == (
        listed.device,
        listed.inode,
        listed.modified_ns,
        listed.changed_ns,
    )
    newest = max(known.modified_ns, known.changed_ns)
    return same and newest + SETTLED_NS <= known.read_began_ns and newest <= listed.read_began_ns


def is_due_for_reading(path: bytes, read_began_ns: int, now_ns: int) -> bool:
    """Tell whether an unchanged file's turn to be re-read has come (each file once in 30 days)."""
    slot = reading_slot(path)
    last_day, today = read_began_ns // DAY_NS, now_ns // DAY_NS
    return any(day % REREAD_DAYS == slot for day in range(last_day + 1, min(today, last_day + REREAD_DAYS) + 1))


def reading_slot(path: bytes) -> int:
    """Return the day, of every 30, on which a file is read although it looks unchanged."""
    return int.from_bytes(blake3(path).digest()[:4], "big") % REREAD_DAYS


def rule_for(folder: Path) -> ChangeRule:
    """Return how files below ``folder`` may be judged: by identity only on file systems known to be local.

    A network file system may cache times and re-use inodes on another machine's word; so may anything unknown.
    """
    return ChangeRule.IDENTITY if file_system_of(folder) in _LOCAL_FILE_SYSTEMS else ChangeRule.READ_ALL


def file_system_of(folder: Path) -> str:
    """Return the type of the file system a folder lies on, ``unknown`` if the kernel does not tell."""
    path = os.path.realpath(folder)
    best, kind = "", "unknown"
    for line in _MOUNTS.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        fields = line.split(" ")
        # proc(5): ... root mount-point options [optional ...] - type source super-options
        mount = fields[4].encode("utf-8", "surrogateescape").decode("unicode_escape", "surrogateescape")
        inside = path == mount or path.startswith(mount.rstrip("/") + "/")
        if inside and len(mount) >= len(best) and "-" in fields:
            best, kind = mount, fields[fields.index("-") + 1]
    return kind
