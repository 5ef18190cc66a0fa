"""Whose signatures a ledger believes, and since when."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from drservice.evidence.notes import NoteVerifier
from drservice.evidence.statements import fingerprint
from drservice.model.ids import ServiceName


@dataclass(frozen=True, slots=True, kw_only=True)
class LogKey:
    """A log key and the sizes of checkpoints it may sign (both included; ``None`` is open)."""

    name: str
    public_key: bytes
    from_size: int = 0
    to_size: int | None = None

    def covers(self, size: int) -> bool:
        """Tell whether the key may sign a checkpoint of this size."""
        return self.from_size <= size and (self.to_size is None or size <= self.to_size)

    @property
    def verifier(self) -> NoteVerifier:
        """What verifies its notes."""
        return NoteVerifier(name=self.name, public_key=self.public_key)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordKey:
    """A key of an executor or an approver: its services (empty = all) and entries (both included)."""

    name: str
    public_key: bytes
    services: tuple[ServiceName, ...] = ()
    from_entry: int = 0
    to_entry: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerPolicy:
    """The keys that a ledger's reader believes."""

    log_keys: tuple[LogKey, ...] = ()
    executors: tuple[RecordKey, ...] = ()
    approvers: tuple[RecordKey, ...] = ()

    def record_keys(self) -> Mapping[str, bytes]:
        """Return every key that may sign an entry, by fingerprint; log keys sign entries about themselves."""
        keys = [each.public_key for each in (*self.executors, *self.approvers)]
        keys.extend(each.public_key for each in self.log_keys)
        return {fingerprint(key): key for key in keys}

    def verifiers(self, size: int) -> tuple[NoteVerifier, ...]:
        """Return the log keys that may sign a checkpoint of this size."""
        return tuple(key.verifier for key in self.log_keys if key.covers(size))


@dataclass(frozen=True, slots=True, kw_only=True)
class AnchorExpectation:
    """A place that must hold a copy of a checkpoint, not older than ``max_age_ms`` when the newest one was signed."""

    name: str
    max_age_ms: int | None = None
