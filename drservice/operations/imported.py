"""Where a recovered copy comes from, if its snapshot was imported: what it lacks counts from the dump on."""

from __future__ import annotations

from collections.abc import Mapping

from drservice.canonical import parse_canonical
from drservice.errors import FormatError
from drservice.model.origin import IMPORTED, ORIGIN_ATTACHMENT, Origin
from drservice.model.snapshot import SnapshotRecord
from drservice.repository.records import Scope
from drservice.repository.repository import Repository


def origin_of(repository: Repository, scope: Scope, record: SnapshotRecord) -> Origin | None:
    """Return the origin of an imported snapshot of a cluster (needs an identity); ``None`` for any other.

    Raises:
        FormatError: it does not tell its origin, or not in a way this program knows.
        NoIdentityError, WrongIdentityError, DamagedObjectError, ObjectStoreError: it cannot be read.
    """
    if record.method != IMPORTED:
        return None
    raw = repository.reader(scope, record.id).secret.attachments.get(ORIGIN_ATTACHMENT)
    try:
        fields = parse_canonical(raw) if raw is not None else None
        if not isinstance(fields, Mapping):
            raise FormatError(f"snapshot {record.id} does not tell what it was imported from")
        return Origin.from_json(fields)
    except ValueError as error:
        raise FormatError(f"snapshot {record.id} has an unreadable origin: {error}") from error
