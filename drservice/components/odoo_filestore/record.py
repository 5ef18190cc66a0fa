"""What a snapshot knows of production's own damage and of the folder, in its sealed part.

A restore must tell production's damage from ours.

An attachment of the snapshot (docs/format.md, section 7), a msgpack map: names may be any bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgpack

from drservice.errors import FormatError
from drservice.repository.nodes import unpack_map
from drservice.repository.reader import SnapshotReader

ATTACHMENT = "documents"
LISTED_NAMES = 10_000
"""So many names of each harmless sort are kept; the header has the full count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentRecord:
    """What was wrong in production when the snapshot was taken; names are paths in the snapshot."""

    missing: tuple[bytes, ...] = ()
    """Documents that rows referred to and that were not there."""
    corrupt: tuple[bytes, ...] = ()
    """Documents that were there with another content than their name says."""
    foreign: tuple[bytes, ...] = ()
    vanished: tuple[bytes, ...] = ()
    unreadable: tuple[tuple[bytes, str], ...] = ()
    """With the reason."""
    left_out: tuple[tuple[bytes, str], ...] = ()
    """With what it is."""
    root_mode: int | None = None
    """Permission bits of the folder itself, which has no entry; ``None`` in snapshots that did not record them."""


def encode_record(record: DocumentRecord) -> bytes:
    """Return the attachment's bytes."""
    packed: bytes = msgpack.packb(
        {
            "v": 1,
            "missing": list(record.missing),
            "corrupt": list(record.corrupt),
            "foreign": list(record.foreign[:LISTED_NAMES]),
            "vanished": list(record.vanished[:LISTED_NAMES]),
            "unreadable": [list(item) for item in record.unreadable[:LISTED_NAMES]],
            "left_out": [list(item) for item in record.left_out[:LISTED_NAMES]],
            **({"root_mode": record.root_mode} if record.root_mode is not None else {}),
        }
    )
    return packed


def document_record(reader: SnapshotReader) -> DocumentRecord:
    """Return what a snapshot knows of production's damage.

    Raises:
        FormatError: it is no snapshot of files, or its record is unreadable.
    """
    raw = reader.secret.attachments.get(ATTACHMENT)
    what = f"the record of documents of snapshot {reader.record.id}"
    if raw is None:
        raise FormatError(f"{what} is not there")
    fields = unpack_map(raw, what)
    if fields.get("v") != 1:
        raise FormatError(f"{what} has version {fields.get('v')!r}; this program reads version 1")
    return DocumentRecord(
        missing=_names(fields.get("missing"), what),
        corrupt=_names(fields.get("corrupt"), what),
        foreign=_names(fields.get("foreign"), what),
        vanished=_names(fields.get("vanished"), what),
        unreadable=_reasons(fields.get("unreadable"), what),
        left_out=_reasons(fields.get("left_out"), what),
        root_mode=_mode(fields.get("root_mode"), what),
    )


def _names(items: object, what: str) -> tuple[bytes, ...]:
    if not isinstance(items, list) or not all(isinstance(item, bytes) for item in items):
        raise FormatError(f"{what} has an unreadable list")
    return tuple(items)


def _mode(value: object, what: str) -> int | None:
    if value is not None and (type(value) is not int or not 0 <= value <= 0o777):
        raise FormatError(f"{what} has an unreadable mode")
    return value


def _reasons(items: object, what: str) -> tuple[tuple[bytes, str], ...]:
    found: list[tuple[bytes, str]] = []
    for item in items if isinstance(items, Sequence) else (None,):
        match item:
            case [bytes(name), str(reason)]:
                found.append((name, reason))
            case _:
                raise FormatError(f"{what} has an unreadable list")
    return tuple(found)
