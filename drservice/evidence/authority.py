"""Who may sign which entry: the verifier's eighth step, for whoever reads the ledger itself.

A signature by a known key says who wrote an entry; whether that key may write it depends on its role, its services, its
range of entries, and on the key entries before it. An entry that its signer may not write is nobody's evidence.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from drservice.errors import UnknownSignerError
from drservice.evidence.ledger import Entry
from drservice.evidence.policy import LedgerPolicy
from drservice.evidence.statements import fingerprint
from drservice.model.evidence import EvidenceKind, KeyAction, KeyRole
from drservice.model.ids import ServiceName


@dataclass(frozen=True, slots=True, kw_only=True)
class _Grant:
    role: KeyRole
    name: str
    services: tuple[ServiceName, ...]
    begin: int
    end: int | None

    def covers(self, number: int) -> bool:
        return self.begin <= number and (self.end is None or number <= self.end)


class Authority:
    """Judges entries in their order.

    Args:
        policy: whose keys are believed, and for what.
        ended: keys that entries before the first one judged have rotated out or revoked, with the entry.
    """

    def __init__(self, policy: LedgerPolicy, *, ended: Mapping[str, int] | None = None) -> None:
        self._grants: dict[str, list[_Grant]] = {}
        for public_key, grant in _grants(policy):
            self._grants.setdefault(fingerprint(public_key), []).append(grant)
        self._ended = dict(ended or {})
        self._knows_log_keys = bool(policy.log_keys)
        """A host that lists none believes entry 0 by the host key beside the log key."""

    @property
    def ended(self) -> Mapping[str, int]:
        """The keys that the entries so far have ended."""
        return self._ended

    def judge(self, entry: Entry) -> None:
        """Return if one of an entry's signers may sign it, and note which keys it ends.

        Raises:
            UnknownSignerError: none of them may; the reason of the first is told.
        """
        kind = entry.signed.statement.kind
        if kind is EvidenceKind.KEY:
            self._judge_key(entry)
        else:
            self._require(entry, KeyRole.APPROVER if kind is EvidenceKind.APPROVAL else KeyRole.EXECUTOR)

    def _require(self, entry: Entry, *roles: KeyRole) -> None:
        reasons = [self._refusal(entry, signer, roles) for signer in entry.signers]
        if None not in reasons:
            raise UnknownSignerError(
                f"entry {entry.number} ({entry.signed.statement.kind.value}) is signed by {entry.signers[0]},"
                f" {reasons[0]}"
            )

    def _refusal(self, entry: Entry, signer: str, roles: tuple[KeyRole, ...]) -> str | None:
        service = entry.signed.statement.service
        grants = [grant for grant in self._grants.get(signer, ()) if grant.role in roles]
        if not grants:
            return f"whose role does not sign {entry.signed.statement.kind.value} entries"
        if self._ended.get(signer, entry.number) < entry.number:
            return f"which entry {self._ended[signer]} revoked"
        covering = [grant for grant in grants if grant.covers(entry.number)]
        if not covering:
            return "which may not sign an entry of this number"
        if service is not None and not any(not grant.services or service in grant.services for grant in covering):
            return f"who may not write for {service}"
        return None

    def _judge_key(self, entry: Entry) -> None:
        predicate, number = entry.signed.statement.predicate, entry.number
        key, action, previous = predicate["key"], predicate["action"], predicate["previous"]
        assert isinstance(key, Mapping), "the schema was checked"
        public = bytes.fromhex(str(key["public"]).partition(":")[2])
        name = fingerprint(public)
        subject = {each.name: each.sha256 for each in entry.signed.statement.subject}
        if subject != {f"key/{name}": hashlib.sha256(public).hexdigest()}:
            raise UnknownSignerError(f"entry {number} is not about the key it shows ({name})")
        if number == 0 and self._knows_log_keys:
            if (action, key["role"], name in entry.signers) != (KeyAction.ADDED.value, KeyRole.LOG.value, True):
                raise UnknownSignerError("entry 0 does not name the log key that signs it")
            return
        if action == KeyAction.ROTATED.value:
            if previous not in entry.signers or name not in entry.signers:
                raise UnknownSignerError(f"entry {number} rotates a key and is not signed by the old and the new one")
            if self._ended.get(str(previous), number) < number:
                raise UnknownSignerError(f"entry {number} rotates {previous}, which was revoked before")
            self._ended.setdefault(str(previous), number)
            return
        unrestricted = [signer for signer in entry.signers if self._is_unrestricted(signer)]
        if not unrestricted:
            raise UnknownSignerError(
                f"entry {number} is about a key and is signed by {entry.signers[0]}, a limited one"
            )
        self._require(entry, KeyRole.EXECUTOR, KeyRole.LOG)
        if action == KeyAction.REVOKED.value:
            self._ended.setdefault(name, number)

    def _is_unrestricted(self, signer: str) -> bool:
        return any(
            grant.role is KeyRole.LOG or (grant.role is KeyRole.EXECUTOR and not grant.services)
            for grant in self._grants.get(signer, ())
        )


def _grants(policy: LedgerPolicy) -> Iterator[tuple[bytes, _Grant]]:
    for log in policy.log_keys:
        yield (
            log.public_key,
            _Grant(role=KeyRole.LOG, name=log.name, services=(), begin=log.from_size, end=log.to_size),
        )
    for role, keys in ((KeyRole.EXECUTOR, policy.executors), (KeyRole.APPROVER, policy.approvers)):
        for key in keys:
            yield (
                key.public_key,
                _Grant(role=role, name=key.name, services=key.services, begin=key.from_entry, end=key.to_entry),
            )
