"""Where an imported snapshot comes from: somebody else's dump, and so no later than the newest row in it.

A dump has no position in any WAL and does not say when it was begun. The newest time that its own rows bear is the
latest instant that it is known to show; nobody knows what was committed after it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from drservice.canonical import Json
from drservice.clock import from_iso, to_iso
from drservice.model.snapshot import SnapshotRecord

IMPORTED = "odoo-zip"
"""The ``method`` of a cluster's snapshot that was imported from a zip of Odoo's."""
ORIGIN_ATTACHMENT = "origin"
"""The attachment of such a snapshot that holds its origin as canonical JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """The zip that a recovery point was imported from."""

    file: str
    """Its name, without its folder."""
    sha256: str
    """Of the whole zip."""
    database: str
    """What its manifest calls the database."""
    version: str
    """Odoo's, as the manifest has it."""
    rows_until: datetime
    """The newest time that a row bears: the dump was made then or later."""

    def as_json(self) -> dict[str, Json]:
        """Return the fields as they are written."""
        return {
            "kind": IMPORTED,
            "file": self.file,
            "sha256": self.sha256,
            "database": self.database,
            "version": self.version,
            "rows_until": to_iso(self.rows_until),
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Json]) -> Origin:
        """Read the fields.

        Raises:
            ValueError: it is none that this program knows.
        """
        if fields.get("kind") != IMPORTED:
            raise ValueError(f"unknown origin {fields.get('kind')!r}")
        texts = {name: fields.get(name) for name in ("file", "sha256", "database", "version", "rows_until")}
        if not all(isinstance(value, str) for value in texts.values()):
            raise ValueError("an origin lacks a field")
        known = {name: str(value) for name, value in texts.items()}
        return cls(**{**known, "rows_until": from_iso(known["rows_until"])})  # type: ignore[arg-type]  # all but one are texts

    def loss_seconds(self, instant: datetime) -> float:
        """Return the most that a recovery of it lacks of what was committed up to an instant."""
        return max(0.0, (instant - self.rows_until).total_seconds())


def own_snapshots(records: Iterable[SnapshotRecord]) -> tuple[SnapshotRecord, ...]:
    """Return the snapshots that were captured from a cluster of the service's, without what was imported."""
    return tuple(record for record in records if record.method != IMPORTED)
