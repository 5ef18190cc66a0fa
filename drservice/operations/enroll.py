"""Keys of the ledger: beginning it with a log key, and putting further keys on record."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from drservice.errors import UsageError
from drservice.evidence.ledger import Record
from drservice.evidence.statements import Subject, fingerprint
from drservice.model.evidence import EvidenceKind, KeyAction, KeyRole
from drservice.model.ids import ServiceName, is_name
from drservice.operations.evidence import Evidence


def begin_ledger(evidence: Evidence) -> Record:
    """Write record 0, which names the log key of this host; a ledger begun with the same key already is fine.

    Raises:
        LogKeyError: there is no log key here, or the ledger was begun with another one.
    """
    return evidence.ledger.begin(evidence.occasion(None, None))


def enroll_key(
    evidence: Evidence, *, name: str, public_key: bytes, role: KeyRole, services: Sequence[ServiceName]
) -> Record:
    """Put on record that a key is used from now on. Trust comes from configuration and policy, not from this record.

    Raises:
        UsageError: the name is none.
        LedgerError, ObjectStoreError: it is not on record.
    """
    if not is_name(name):
        raise UsageError(f"{name!r} is no name for a host", hint="Use a-z, 0-9, - and _.")
    return evidence.require(
        EvidenceKind.KEY,
        service=None,
        run=None,
        subject=[Subject(f"key/{fingerprint(public_key)}", hashlib.sha256(public_key).hexdigest())],
        fields={
            "action": KeyAction.ADDED.value,
            "key": {"name": name, "role": role.value, "public": f"ed25519:{public_key.hex()}"},
            "services": list(services),
            "previous": None,
        },
    )
