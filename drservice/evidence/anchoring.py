"""Anchors: copies of checkpoints in a second store, which whoever can set back the first cannot set back too.

An anchor is the note itself under ``anchor/<hash of the origin>/<size>``. "There is no anchor" is said only after a
complete listing; one that cannot be read or believed is an error.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from datetime import datetime, timedelta

from drservice.errors import AnchorError, CheckpointError, LedgerRollbackError, ObjectExistsError
from drservice.evidence.merkle import MerkleTree
from drservice.evidence.notes import Checkpoint, open_note, parse_checkpoint, split_note
from drservice.evidence.policy import LedgerPolicy
from drservice.objectstore.interface import ObjectStore

_SIZE = re.compile("[0-9]{12}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedCheckpoint:
    """A checkpoint and the note that carries it, verified."""

    checkpoint: Checkpoint
    note: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """A checkpoint as a second store holds it."""

    place: str
    signed: SignedCheckpoint
    anchored_at: datetime
    """By the second store's clock."""

    def age(self, now: datetime) -> timedelta:
        """Return how old the anchor is."""
        return now - self.anchored_at


@dataclass(frozen=True, slots=True)
class AnchorPlace:
    """A second store and the name it goes by in policies and bundles."""

    name: str
    store: ObjectStore


def anchor_prefix(origin: str) -> str:
    """Return the prefix of all anchors of a ledger."""
    return f"anchor/{hashlib.sha256(origin.encode('utf-8')).hexdigest()}/"


def verified_checkpoint(note: bytes, *, origin: str, policy: LedgerPolicy) -> SignedCheckpoint:
    """Return the checkpoint in a note that a log key of the policy has signed for its size.

    Raises:
        CheckpointError: no checkpoint of this ledger, or not signed by such a key.
    """
    text, _ = split_note(note)
    checkpoint = parse_checkpoint(text)
    if checkpoint.origin != origin:
        raise CheckpointError(f"the checkpoint is of {checkpoint.origin[:200]!r}, not of {origin}")
    open_note(note, policy.verifiers(checkpoint.size))
    return SignedCheckpoint(checkpoint=checkpoint, note=note)


def oldest_valid_checkpoint(store: ObjectStore, key: str, *, origin: str, policy: LedgerPolicy) -> SignedCheckpoint:
    """Return the oldest version of a stored checkpoint that can be believed.

    Raises:
        CheckpointError: there is none; the problem of the oldest version.
    """
    problem: CheckpointError | None = None
    for note in store.read_versions(key):
        try:
            return verified_checkpoint(note, origin=origin, policy=policy)
        except CheckpointError as error:
            problem = problem or CheckpointError(f"{key} in {store.description}: {error.message}")
    raise problem or CheckpointError(f"{key} in {store.description} has no readable version")


def write_anchor(place: AnchorPlace, signed: SignedCheckpoint, *, policy: LedgerPolicy) -> Anchor:
    """Copy a checkpoint into a second store; the same size again is fine if it has the same root.

    Raises:
        LedgerRollbackError: another root is anchored for this size: the ledger has two histories.
        AnchorError: what is there cannot be believed.
        ObjectStoreError: the store does not take it.
    """
    origin, size = signed.checkpoint.origin, signed.checkpoint.size
    key = f"{anchor_prefix(origin)}{size:012d}"
    try:
        place.store.create(key, signed.note)
    except ObjectExistsError:
        known = _read(place, key, origin=origin, policy=policy)
        if known.signed.checkpoint.root != signed.checkpoint.root:
            raise LedgerRollbackError(
                f"the ledger has two histories: {place.name} holds another root for size {size}"
            ) from None
        return known
    return _read(place, key, origin=origin, policy=policy)


def anchors(place: AnchorPlace, *, origin: str, policy: LedgerPolicy) -> tuple[Anchor, ...]:
    """Return every anchor of a ledger, smallest first; none only if the store answered that there is none.

    Raises:
        AnchorError: one cannot be believed.
        ObjectStoreError: no answer, or no right to read.
    """
    return tuple(_read(place, key, origin=origin, policy=policy) for key in _keys(place, origin))


def last_anchor(place: AnchorPlace, *, origin: str, policy: LedgerPolicy) -> Anchor | None:
    """Return the anchor of the greatest size, ``None`` if the store answered that there is none.

    Raises:
        AnchorError: it cannot be believed.
        ObjectStoreError: no answer, or no right to read.
    """
    keys = _keys(place, origin)
    return _read(place, keys[-1], origin=origin, policy=policy) if keys else None


def require_growth(tree: MerkleTree, earlier: Checkpoint, *, what: str) -> None:
    """Return if the tree only adds to an earlier checkpoint.

    Raises:
        LedgerRollbackError: it is smaller, or has another beginning.
    """
    if earlier.size > len(tree):
        raise LedgerRollbackError(f"the ledger has {len(tree)} entries; {what} says that it had {earlier.size}")
    if tree.root(earlier.size) != earlier.root:
        raise LedgerRollbackError(f"the first {earlier.size} entries of the ledger are not those of {what}")


def _keys(place: AnchorPlace, origin: str) -> list[str]:
    prefix = anchor_prefix(origin)
    return [info.key for info in place.store.list(prefix) if _SIZE.fullmatch(info.key.removeprefix(prefix))]


def _read(place: AnchorPlace, key: str, *, origin: str, policy: LedgerPolicy) -> Anchor:
    try:
        signed = oldest_valid_checkpoint(place.store, key, origin=origin, policy=policy)
    except CheckpointError as error:
        raise AnchorError(f"the anchor in {place.name} cannot be believed: {error.message}") from error
    if signed.checkpoint.size != int(key.rpartition("/")[2]):
        raise AnchorError(f"the anchor {key} in {place.name} is of size {signed.checkpoint.size}: it was moved")
    return Anchor(place=place.name, signed=signed, anchored_at=place.store.stat(key).modified_at)
