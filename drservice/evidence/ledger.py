"""The ledger: signed records as create-only objects ``ledger/<n>``, numbered without a gap.

``ObjectStore.create`` at the next number is the append; who loses the race takes the number behind. Nobody needs the
log key for it. The holder of the log key signs checkpoints over the Merkle tree of all records, and refuses when the
ledger is shorter than, or differs from, what was signed or anchored before.

A record that cannot be written is kept aside on the host and appended before the next one, once.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from drservice.clock import Clock, to_iso
from drservice.errors import (
    BadSignatureError,
    CheckpointError,
    DamagedObjectError,
    DrError,
    LedgerError,
    LedgerGapError,
    LedgerMissingError,
    LedgerRollbackError,
    LogKeyError,
    MissingObjectError,
    ObjectExistsError,
    ObjectStoreError,
    StatementError,
    UnknownSignerError,
)
from drservice.evidence.anchoring import (
    Anchor,
    AnchorPlace,
    SignedCheckpoint,
    last_anchor,
    oldest_valid_checkpoint,
    require_growth,
    verified_checkpoint,
    write_anchor,
)
from drservice.evidence.leafcache import Leaf, LeafCache
from drservice.evidence.listing import PREFIX, EntryListing, entry_key
from drservice.evidence.merkle import MerkleTree, leaf_hash
from drservice.evidence.notes import Checkpoint, sign_note
from drservice.evidence.pending import Pending, PendingFolder
from drservice.evidence.policy import LedgerPolicy
from drservice.evidence.remembered import RememberedNote
from drservice.evidence.signing import Signer
from drservice.evidence.statements import (
    Occasion,
    SignedStatement,
    Statement,
    Subject,
    decode_statement,
    keep_aside_mark,
    make_statement,
    sign_statement,
)
from drservice.evidence.times import TIME_EXTENSION, Dated, KnownEnd, dated, require_ended, require_time, signed_at
from drservice.model.evidence import EvidenceKind, KeyAction, KeyRole
from drservice.objectstore.interface import ObjectInfo, ObjectStore
from drservice.objectstore.locks import host_lock
from drservice.processes import make_folder

CHECKPOINT_PREFIX = "ledger/checkpoint/"

_NUMBER = re.compile("[0-9]{12}")
_LOCK_PATIENCE_SECONDS = 60.0
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_UNBELIEVABLE = (StatementError, UnknownSignerError, BadSignatureError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Where a statement stands: its number and the SHA-256 of its bytes (hex)."""

    number: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Unless:
    """What makes an append superfluous: an entry from ``since`` on in which the same event stands."""

    since: int
    stands_in: Callable[[Statement], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A record that was read: its number and the statement, signed by a known key."""

    number: int
    signed: SignedStatement
    signers: tuple[str, ...]
    """Fingerprints of the known keys that signed it."""


def artefact_key(sha256: str) -> str:
    """Return the key of an artefact."""
    return f"{PREFIX}artefact/{sha256[:2]}/{sha256}"


def _microseconds(info: ObjectInfo) -> int:
    return (info.modified_at - _EPOCH) // _MICROSECOND


class Ledger:
    """The ledger of one repository, as one host sees it.

    Args:
        store: where it is.
        origin: its name on checkpoints (``model.evidence.ledger_origin``).
        policy: whose signatures are believed.
        state_dir: where this host keeps its cache and records kept aside.
        clock: tells when checkpoints are signed.
        executor: signs records; ``None`` where nothing is appended.
        log: signs checkpoints; ``None`` on every host but one.
        anchors: where checkpoints are copied to.
    """

    def __init__(
        self,
        store: ObjectStore,
        *,
        origin: str,
        policy: LedgerPolicy,
        state_dir: Path,
        clock: Clock,
        executor: Signer | None = None,
        log: Signer | None = None,
        anchors: Sequence[AnchorPlace] = (),
    ) -> None:
        self.origin = origin
        self.policy = policy
        self.anchors = tuple(anchors)
        self._store = store
        self._clock = clock
        self._executor = executor
        self._log = log
        self._folder = state_dir / "evidence"
        self._short = hashlib.sha256(origin.encode("utf-8")).hexdigest()[:16]
        self._cache = LeafCache(self.memory("leaves"))
        self._own_checkpoint = RememberedNote(self.memory("checkpoint"))
        self._listing = EntryListing(store, self._cache)
        self._pending = PendingFolder(self._folder / "pending")
        self._end = KnownEnd()

    # --- appending --------------------------------------------------------------------------------------

    def begin(self, occasion: Occasion) -> Record:
        """Write entry 0, which names the log key; a ledger that this log key began already is fine.

        Raises:
            LogKeyError: there is no log key here, or the ledger was begun with another one.
            LedgerClockError: this host's clock is ahead of the store's.
        """
        log = self._require_log()
        public = f"ed25519:{log.public_key.hex()}"
        statement = make_statement(
            EvidenceKind.KEY,
            occasion=occasion,
            subject=[Subject(f"key/{log.fingerprint}", hashlib.sha256(log.public_key).hexdigest())],
            fields={
                "action": KeyAction.ADDED.value,
                "key": {"name": "log", "role": KeyRole.LOG.value, "public": public},
                "services": [],
                "previous": None,
            },
        )
        signers = [log] if self._executor is None else [self._executor, log]
        raw = sign_statement(statement, signers)
        with self._lock():
            if self._listing.tail() == 0:
                require_time(occasion.recorded_at, (), store_time=self._store.server_time(), what="entry 0")
            if self._create(0, raw):
                return self._seen(0, raw, statement.identity)
        first = self.entry(0)
        if first.signed.statement.predicate.get("key") != {"name": "log", "role": KeyRole.LOG.value, "public": public}:
            raise LogKeyError("this ledger was begun with another log key", hint="Use the log key of the ledger.")
        return Record(number=0, sha256=first.signed.sha256)

    def append(self, statement: Statement, *, signers: Sequence[Signer] = (), unless: Unless | None = None) -> Record:
        """Append a statement at the next number, behind what waits on this host; durable on return.

        The same statement again returns where it stands. A crash leaves it appended or not.

        Args:
            statement: what is recorded.
            signers: who signs instead of the executor (an approver; old and new key of a rotation).
            unless: what makes it superfluous; where that stands is returned then. Whoever appends looks at every entry
                in front of his own, also at one that came between his look and his writing, so any number of hosts may
                try to put the same event on record and one does.

        Raises:
            LedgerMissingError, LedgerGapError, LedgerRollbackError: the ledger is not what it should be.
            StatementError: it breaks the schema of its kind, or is too large.
            LedgerClockError: by its date it would look forged where it is to stand: a clock is wrong.
            ObjectStoreError: the store does not take it; :meth:`keep_aside` is for these two cases.
        """
        raw = sign_statement(statement, signers or [self._require_executor()])
        with self._lock():
            self._flush()
            return self._append(raw, statement, unless)

    def keep_aside(self, statement: Statement) -> Path:
        """Sign a statement and keep it on this host until the ledger can be written again.

        It is marked: a reader sees that its time was not witnessed by the ledger.

        Raises:
            StatementError: a record of this kind is never late.
            LedgerError: this host's disk does not take it either.
        """
        raw = sign_statement(keep_aside_mark(statement), [self._require_executor()])
        self._cache.refresh()
        known = self._cache.doubtful_from(statement.identity)
        return self._pending.keep(raw, known_size=self._cache.highest + 1 if known is None else known)

    def flush_pending(self) -> tuple[Record, ...]:
        """Append what was kept aside, in its order; each exactly once, whatever was interrupted before.

        Raises:
            As :meth:`append`; what is not yet in the ledger stays kept.
        """
        with self._lock():
            return self._flush()

    def pending(self) -> tuple[SignedStatement, ...]:
        """Return what waits on this host."""
        return tuple(decode_statement(each.raw, str(each.path)) for each in self._pending.all())

    def store_artefact(self, data: bytes) -> str:
        """Store what is too large for a record; return its hex SHA-256. The same again is fine."""
        sha256 = hashlib.sha256(data).hexdigest()
        try:
            self._store.create(artefact_key(sha256), data)
        except ObjectExistsError:
            self.artefact(sha256)
        return sha256

    # --- reading ----------------------------------------------------------------------------------------

    def memory(self, what: str) -> Path:
        """Return where this host keeps something about this ledger, which may be lost at the price of time."""
        return self._folder / f"{self._short}.{what}"

    def size(self) -> int:
        """Return how many entries the store holds.

        Raises:
            LedgerGapError: a number is missing.
            LedgerRollbackError: an entry that this host has seen is gone.
        """
        self._cache.refresh()
        return self._listing.tail()

    def raw(self, number: int) -> bytes:
        """Return the exact bytes of an entry: the oldest version that can be believed."""
        return self.entry(number).signed.raw

    def raw_of_leaf(self, number: int, leaf: bytes) -> bytes:
        """Return the bytes of an entry by the leaf hash it had when it was verified; nothing else is verified anew.

        Raises:
            LedgerGapError: there is none of this number with this hash (any more).
        """
        for raw in self._store.read_versions(entry_key(number)):
            if leaf_hash(raw) == leaf:
                return raw
        raise LedgerGapError(f"entry {number} is gone, or is not the one that was verified before")

    def entry(self, number: int) -> Entry:
        """Return an entry: the oldest version that is a statement signed by a known key.

        Raises:
            LedgerGapError: there is none of this number.
            StatementError, UnknownSignerError, BadSignatureError: no version can be believed.
        """
        problem: DrError | None = None
        for raw in self._store.read_versions(entry_key(number)):
            try:
                signed = decode_statement(raw, f"entry {number}")
                return Entry(number=number, signed=signed, signers=signed.verify(self.policy.record_keys()))
            except _UNBELIEVABLE as error:
                problem = problem or type(error)(f"entry {number}: {error.message}", hint=error.hint)
        raise problem or LedgerGapError(f"entry {number} is missing in the ledger")

    def entries(self, begin: int = 0, end: int | None = None) -> Iterator[Entry]:
        """Yield entries in order, each verified.

        Raises:
            As :meth:`entry` and :meth:`size`.
        """
        for number in range(begin, self.size() if end is None else end):
            yield self.entry(number)

    def artefact(self, sha256: str) -> bytes:
        """Return an artefact.

        Raises:
            MissingObjectError: it is not there.
            DamagedObjectError: no version has this hash.
        """
        found = False
        for data in self._store.read_versions(artefact_key(sha256)):
            if hashlib.sha256(data).hexdigest() == sha256:
                return data
            found = True
        if found:
            raise DamagedObjectError(f"the artefact {sha256} was changed: its hash is another")
        raise MissingObjectError(f"the artefact {sha256} is not in the ledger")

    def tree(self) -> MerkleTree:
        """Return the Merkle tree over all entries; those this host has not read, or that changed since, are read.

        Size and time in the listing tell which; each entry is read once as a rule.

        Raises:
            LedgerRollbackError: an entry is not the one this host has seen before.
            As :meth:`entry` and :meth:`size`.
        """
        self._cache.refresh()
        listed = self._listing.all()
        for number, info in enumerate(listed):
            known = self._cache.get(number)
            if known is None or (known.stored_bytes, known.modified_us) != (info.stored_bytes, _microseconds(info)):
                self._ingest(number, known, info)
        return MerkleTree(self._cache.leaf(number) for number in range(len(listed)))

    # --- checkpoints and anchors ------------------------------------------------------------------------

    def checkpoint(self) -> SignedCheckpoint:
        """Sign a checkpoint over everything that is in the ledger, and store it; the same size again is the same one.

        Raises:
            LogKeyError: the log key is not here, or its policy does not let it sign this size.
            LedgerClockError: by its date it would contradict what it holds: a clock is wrong.
            LedgerRollbackError: the ledger is smaller than the last checkpoint or anchor, or has another beginning.
            CheckpointError, AnchorError: the last checkpoint or anchor cannot be believed. Nothing is signed.
        """
        log = self._require_log()
        with self._lock():
            self._flush()
            tree = self.tree()
            if len(tree) == 0:
                raise LedgerMissingError("there is nothing to sign: the ledger has no entry")
            known = self._require_growth(tree)
            if known is not None and known.checkpoint.size == len(tree):
                signed = known
            else:
                if log.verifier not in self.policy.verifiers(len(tree)):
                    raise LogKeyError(f"the log key {log.fingerprint} may not sign a checkpoint of size {len(tree)}")
                now = self._clock.now()
                self._require_time(now, len(tree), what=f"the checkpoint of size {len(tree)}")
                extension = TIME_EXTENSION + to_iso(now)
                text = Checkpoint(origin=self.origin, size=len(tree), root=tree.root(), extensions=(extension,)).text
                signed = verified_checkpoint(sign_note(text, [log]), origin=self.origin, policy=self.policy)
                self._own_checkpoint.keep(signed.note)
            return self._publish(signed)

    def latest_checkpoint(self) -> SignedCheckpoint | None:
        """Return the stored checkpoint of the greatest size, ``None`` if the store answered that there is none.

        Raises:
            CheckpointError: it cannot be believed.
        """
        keys = self._checkpoint_keys()
        return self._stored_checkpoint(keys[-1]) if keys else None

    def checkpoints(self) -> tuple[SignedCheckpoint, ...]:
        """Return every stored checkpoint, smallest first.

        Raises:
            CheckpointError: one cannot be believed.
        """
        return tuple(self._stored_checkpoint(key) for key in self._checkpoint_keys())

    def anchor(self) -> tuple[Anchor, ...]:
        """Copy the newest checkpoint to every anchor place; it needs no log key.

        Raises:
            LedgerMissingError: no checkpoint was signed yet.
            LedgerRollbackError: the ledger is not the continuation of an earlier anchor.
            AnchorError, ObjectStoreError: a place cannot be read or written.
        """
        signed = self.latest_checkpoint()
        if signed is None:
            raise LedgerMissingError("there is no checkpoint to anchor", hint="Sign one on the host with the log key.")
        tree = self.tree()
        require_growth(tree, signed.checkpoint, what="the newest checkpoint")
        self._require_anchored(tree)
        return tuple(write_anchor(place, signed, policy=self.policy) for place in self.anchors)

    def last_anchors(self) -> tuple[tuple[str, Anchor | None], ...]:
        """Return the newest anchor of every place, by the place's name.

        Raises:
            AnchorError, ObjectStoreError: it cannot be told.
        """
        return tuple((place.name, last_anchor(place, origin=self.origin, policy=self.policy)) for place in self.anchors)

    # --- how ----------------------------------------------------------------------------------------------

    @contextmanager
    def _lock(self) -> Iterator[None]:
        try:
            make_folder(self._folder)
        except OSError as error:
            raise LedgerError(f"cannot use {self._folder}: {error.strerror}") from error
        path = self._folder / "lock"
        with host_lock(path, clock=self._clock, patience_seconds=_LOCK_PATIENCE_SECONDS):
            self._cache.refresh()
            yield

    def _require_executor(self) -> Signer:
        if self._executor is None:
            raise LogKeyError("this host has no key to sign records with", hint="Run `drservice init` on this host.")
        return self._executor

    def _require_log(self) -> Signer:
        if self._log is None:
            raise LogKeyError("this host does not hold the log key")
        return self._log

    def _append(self, raw: bytes, statement: Statement, unless: Unless | None = None) -> Record:
        identity = statement.identity
        tail = self._listing.tail()
        if tail == 0:
            raise LedgerMissingError("the ledger was not begun: it has no entry 0")
        doubtful = self._cache.doubtful_from(identity)
        if doubtful is not None:
            self._ingest_readable(doubtful, tail)
        known = self._cache.number_of(identity)
        if known is not None:
            return Record(number=known, sha256=hashlib.sha256(self.raw(known)).hexdigest())
        number, looked_at = tail, unless.since if unless is not None else tail
        while True:
            there = None if unless is None else self._first_of(unless, looked_at, number)
            if there is not None:
                return there
            looked_at = number
            if not statement.is_kept_aside:
                self._require_time(statement.recorded_at, number, what=f"this {statement.kind.value}")
                require_ended(statement)
            try:
                if self._create(number, raw):
                    self._end.add(number, dated(number, statement))
                    return self._seen(number, raw, identity)
            except ObjectStoreError:
                self._cache.doubt(identity, number)  # it may still become visible, here or further on
                raise
            number += 1

    def _first_of(self, unless: Unless, begin: int, end: int) -> Record | None:
        """Return the first entry that makes an append superfluous; what cannot be believed does not."""
        for number in range(begin, end):
            try:
                signed = self.entry(number).signed
            except _UNBELIEVABLE:
                continue
            if unless.stands_in(signed.statement):
                return Record(number=number, sha256=signed.sha256)
        return None

    def _require_time(self, at: datetime, tail: int, *, what: str) -> None:
        signed, latest = self.latest_checkpoint(), self._end.latest_of(tail, at, self._dated)
        time = None if signed is None else signed_at(signed.checkpoint)
        earlier = [] if latest is None else [latest]
        if signed is not None and time is not None:
            earlier.append(Dated(what=f"the checkpoint of size {signed.checkpoint.size}", at=time))
        require_time(at, earlier, store_time=self._store.server_time(), what=what)

    def _dated(self, number: int) -> tuple[Dated | None, datetime]:
        """Return what an entry says of its time, if that counts, and when the store took it."""
        stored_at = self._store.stat(entry_key(number)).modified_at
        try:
            return dated(number, self.entry(number).signed.statement), stored_at
        except _UNBELIEVABLE:
            return None, stored_at  # no writer's; whoever signs a checkpoint stops at it

    def _create(self, number: int, raw: bytes) -> bool:
        """Return whether ``raw`` stands at ``number`` now; ``False`` if somebody else's record does."""
        key = entry_key(number)
        try:
            self._store.create(key, raw)
        except ObjectExistsError:
            # A repeated request may find what the first one, whose reply was lost, has stored.
            return next(iter(self._store.read_versions(key)), None) == raw
        return True

    def _seen(self, number: int, raw: bytes, identity: bytes) -> Record:
        self._cache.add(number, Leaf(leaf_hash(raw), identity, len(raw)))
        return Record(number=number, sha256=hashlib.sha256(raw).hexdigest())

    def _flush(self) -> tuple[Record, ...]:
        waiting = self._pending.all()
        if not waiting:
            return ()
        self._ingest_readable(min(each.known_size for each in waiting), self._listing.tail())
        return tuple(self._flush_one(each) for each in waiting)

    def _flush_one(self, pending: Pending) -> Record:
        statement = decode_statement(pending.raw, str(pending.path)).statement
        record = self._append(pending.raw, statement)
        self._pending.remove(pending)
        return record

    def _ingest(self, number: int, known: Leaf | None, info: ObjectInfo | None) -> None:
        signed = self.entry(number).signed
        leaf = leaf_hash(signed.raw)
        if known is not None and known.leaf != leaf:
            raise LedgerRollbackError(f"entry {number} is not the one this host has seen before: it was replaced")
        stored_bytes, modified_us = (len(signed.raw), 0) if info is None else (info.stored_bytes, _microseconds(info))
        self._cache.add(number, Leaf(leaf, signed.statement.identity, stored_bytes, modified_us))

    def _ingest_readable(self, begin: int, end: int) -> None:
        """Learn the identities of entries; what cannot be believed is nothing this host has written."""
        for number in range(begin, end):
            if number not in self._cache:
                try:
                    self._ingest(number, None, None)
                except _UNBELIEVABLE:
                    continue

    def _checkpoint_keys(self) -> list[str]:
        return [
            info.key
            for info in self._store.list(CHECKPOINT_PREFIX)
            if _NUMBER.fullmatch(info.key.removeprefix(CHECKPOINT_PREFIX))
        ]

    def _stored_checkpoint(self, key: str) -> SignedCheckpoint:
        signed = oldest_valid_checkpoint(self._store, key, origin=self.origin, policy=self.policy)
        if signed.checkpoint.size != int(key.rpartition("/")[2]):
            raise CheckpointError(f"{key} holds a checkpoint of size {signed.checkpoint.size}: it was moved")
        return signed

    def _require_growth(self, tree: MerkleTree) -> SignedCheckpoint | None:
        """Return the newest checkpoint known, after comparing the tree with every one that binds the signer."""
        stored, remembered = self.latest_checkpoint(), self._remembered()
        for signed, what in ((stored, "the newest stored checkpoint"), (remembered, "the last one signed here")):
            if signed is not None:
                require_growth(tree, signed.checkpoint, what=what)
        self._require_anchored(tree)
        return max((each for each in (stored, remembered) if each), key=lambda each: each.checkpoint.size, default=None)

    def _require_anchored(self, tree: MerkleTree) -> None:
        for name, anchor in self.last_anchors():
            if anchor is not None:
                require_growth(tree, anchor.signed.checkpoint, what=f"the anchor in {name}")

    def _remembered(self) -> SignedCheckpoint | None:
        note = self._own_checkpoint.read()
        return None if note is None else verified_checkpoint(note, origin=self.origin, policy=self.policy)

    def _publish(self, signed: SignedCheckpoint) -> SignedCheckpoint:
        key = f"{CHECKPOINT_PREFIX}{signed.checkpoint.size:012d}"
        try:
            self._store.create(key, signed.note)
        except ObjectExistsError:
            known = self._stored_checkpoint(key)
            if known.checkpoint.root != signed.checkpoint.root:
                raise LedgerRollbackError(f"{key} has another root: the ledger has two histories") from None
            return known
        return signed
