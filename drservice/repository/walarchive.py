"""The WAL archive of a component: whole files under their own names, signed, encrypted, created once.

A push succeeds only when the very bytes are durable in the store: PostgreSQL may recycle the only other copy. What
exists already is compared by the signed hash of its plain bytes, so a host that cannot read can still tell same from
different.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import TypeVar

from drservice import telemetry
from drservice.canonical import Json
from drservice.clock import Clock, from_iso, to_iso
from drservice.errors import (
    DamagedObjectError,
    DrError,
    FormatError,
    KeyProblemError,
    MissingObjectError,
    ObjectExistsError,
    ObjectNotFoundError,
    SegmentAbsentError,
    SegmentConflictError,
)
from drservice.model.ids import KeyId, SystemId, make_ulid
from drservice.model.retentionwal import StoredWal
from drservice.model.wal import Timeline, WalFileKind, WalFileName
from drservice.objectstore.interface import CreateMode, ObjectStore
from drservice.repository import layout
from drservice.repository.envelope import (
    HEAD_READ_BYTES,
    Envelope,
    HostKey,
    Trust,
    header_extent,
    read_envelope,
    read_object,
    require_signer,
    write_envelope,
)
from drservice.repository.keys import DataKey, Keyring, make_data_key, wrap
from drservice.repository.records import PackedFrame, Scope, open_body, packed_frames, sealed_bound, sealed_pieces
from drservice.repository.spool import Spools

Taken = TypeVar("Taken")
_UNUSABLE = (FormatError, DamagedObjectError, KeyProblemError, MissingObjectError)
"""What one copy of a file may be while another one is good."""

_REPAIRED = ".r"
_STEM = 24
"""What a segment, its label, its partial file and repaired copies of them begin with; by key they lie side by side."""


class PutOutcome(Enum):
    """How a push ended well."""

    STORED = "stored"
    ALREADY_THERE = "already there"


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchivedFile:
    """A WAL file as a listing shows it."""

    name: str
    timeline: Timeline
    key: str
    stored_bytes: int
    modified_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class WalFacts:
    """The public header of an archived WAL file."""

    name: str
    system_id: SystemId
    timeline: Timeline
    plain_bytes: int
    plain_sha256: str
    last_write: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedWal:
    """A WAL file as it is stored: what it was made from is not needed any more, however often storing it is tried."""

    name: WalFileName
    system_id: SystemId
    last_write: datetime
    plain_bytes: int
    plain_sha256: str
    data_key: DataKey
    has_own_key: bool
    """Nobody else's: its wrapping goes into the header."""
    body: Sequence[bytes | memoryview]


class WalArchive:
    """The WAL of one component. Reading bodies needs an identity; everything else does not."""

    def __init__(
        self,
        store: ObjectStore,
        *,
        scope: Scope,
        trust: Trust,
        keyring: Keyring,
        signer: HostKey | None,
        recipients: tuple[str, ...],
        clock: Clock,
    ) -> None:
        self._store = store
        self._scope = scope
        self._trust = trust
        self._keyring = keyring
        self._signer = signer
        self._recipients = recipients
        self._clock = clock
        self._stored_keys: set[KeyId] = set()
        """Seen in the repository: objects never change, so each is looked for once."""

    # --- writing --------------------------------------------------------------------------------------------

    def put(
        self,
        name: WalFileName,
        data: bytes | memoryview,
        *,
        system_id: SystemId,
        last_write: datetime,
        key: DataKey | None = None,
        spools: Spools | None = None,
    ) -> PutOutcome:
        """Store a WAL file that was checked to be what its name says; durable and verified on return.

        Nothing is listed unless the name is taken.

        Args:
            name: the file's.
            data: its bytes; not kept.
            system_id: its cluster.
            last_write: when it was written last.
            key: sealed with this one, whose wrapping is stored already; ``None`` = with one of its own in its header.
            spools: where the sealed bytes wait while they are sent; ``None`` = in memory.

        Raises:
            SegmentConflictError: other bytes are archived under this name; nothing was overwritten.
            DamagedObjectError: what is archived is damaged; the file was stored beside it, the next call succeeds.
            ObjectStoreError: not stored, or not known to be stored.
        """
        return self.put_sealed(
            self.seal(name, data, system_id=system_id, last_write=last_write, key=key, spools=spools)
        )

    def seal(
        self,
        name: WalFileName,
        data: bytes | memoryview,
        *,
        system_id: SystemId,
        last_write: datetime,
        key: DataKey | None = None,
        spools: Spools | None = None,
        frames: Iterable[PackedFrame] | None = None,
    ) -> SealedWal:
        """Return a WAL file as it is stored, with nothing of ``data`` in it.

        Args:
            name: as for :meth:`put`.
            data: as there.
            system_id: as there.
            last_write: as there.
            key: as there.
            spools: as there; not with ``frames``.
            frames: of ``data``, where it is compressed already.

        Raises:
            KeyProblemError: this host cannot archive.
        """
        require_signer(self._signer)
        # One key per object, wrapped in its own header: a one-shot push leaves no key objects behind.
        data_key = make_data_key(self._clock.now()) if key is None else key
        return SealedWal(
            name=name,
            system_id=system_id,
            last_write=last_write,
            plain_bytes=len(data),
            plain_sha256=hashlib.sha256(data).hexdigest(),
            data_key=data_key,
            has_own_key=key is None,
            body=self._sealed(data, frames, data_key, context=_context(system_id, name), spools=spools),
        )

    def put_sealed(self, sealed: SealedWal) -> PutOutcome:
        """Store what :meth:`seal` returned; as :meth:`put`, and may be called again with the same."""
        object_key = self._key(sealed.system_id, sealed.name.timeline, sealed.name.name)
        try:
            self._create(object_key, sealed)
        except ObjectExistsError:
            return self._compare(object_key, sealed)
        return PutOutcome.STORED

    def put_partial(
        self,
        name: WalFileName,
        data: bytes | memoryview,
        *,
        system_id: SystemId,
        last_write: datetime,
        spools: Spools | None = None,
    ) -> PutOutcome:
        """Store the last segment of a timeline as far as it is written, under its ``.partial`` name.

        One that was stored before and is not the same was written less far; the new one stands beside it and is read
        instead. Nothing is overwritten.

        Raises:
            ObjectStoreError, DamagedObjectError: not stored, or not known to be stored.
        """
        digest = hashlib.sha256(data).hexdigest()
        key = self._key(system_id, name.timeline, name.name)
        known = sorted(self._candidates(key), reverse=True)
        if known:
            try:
                if self._read(known[0], name)[0].text("plain_sha256") == digest:
                    return PutOutcome.ALREADY_THERE
            except _UNUSABLE as error:
                telemetry.warning("archived partial segment unusable", key=known[0], problem=error.message)
            key = f"{key}{_REPAIRED}{make_ulid(self._clock.now(), os.urandom(10))}"
        self._create(key, self.seal(name, data, system_id=system_id, last_write=last_write, spools=spools))
        return PutOutcome.STORED

    def _create(self, object_key: str, sealed: SealedWal) -> None:
        fields: dict[str, Json] = {
            "name": sealed.name.name,
            "system_id": sealed.system_id,
            "timeline": int(sealed.name.timeline),
            "plain_bytes": sealed.plain_bytes,
            "plain_sha256": sealed.plain_sha256,
            "last_write": to_iso(sealed.last_write),
        }
        if sealed.has_own_key:
            fields["wrapped_key"] = base64.b64encode(wrap(sealed.data_key.secret, self._recipients)).decode()
        else:
            fields["key_id"] = sealed.data_key.id
        pieces = write_envelope(
            signer=require_signer(self._signer),
            repository=self._scope.repository,
            key=object_key,
            kind="wal",
            fields=fields,
            body=sealed.body,
            now=self._clock.now(),
        )
        self._store.create(object_key, pieces)
        if self._store.capabilities.create_mode is CreateMode.SINGLE_WRITER:
            return  # such a create has made sure that what is stored is what was sent
        expected = sum(len(piece) for piece in pieces)
        stored = self._store.stat(object_key).stored_bytes
        if stored != expected:
            raise DamagedObjectError(f"{object_key} was stored with {stored} of {expected} bytes")

    def _sealed(
        self,
        data: bytes | memoryview,
        frames: Iterable[PackedFrame] | None,
        data_key: DataKey,
        *,
        context: str,
        spools: Spools | None,
    ) -> Sequence[bytes | memoryview]:
        packed = packed_frames(data) if frames is None else frames
        pieces = sealed_pieces(data_key.secret, packed, plain_bytes=len(data), scope=self._scope, context=context)
        if spools is None:
            return list(pieces)
        target, end = spools.make(sealed_bound(len(data))), 0
        for piece in pieces:
            target[end : end + len(piece)] = piece
            end += len(piece)
        return [target[:end]]

    def _compare(self, object_key: str, sealed: SealedWal) -> PutOutcome:
        name = sealed.name
        problem: DrError | None = None
        for candidate in self._candidates(object_key):
            try:
                envelope, _ = self._read(candidate, name)
                self._require_key(envelope)
            except _UNUSABLE as error:
                problem = problem or error
                continue
            if envelope.text("plain_sha256") == sealed.plain_sha256:
                return PutOutcome.ALREADY_THERE
            raise SegmentConflictError(f"{name.name} is archived already, with other content")
        beside = f"{object_key}{_REPAIRED}{make_ulid(self._clock.now(), os.urandom(10))}"
        self._create(beside, sealed)
        raise DamagedObjectError(
            f"what is archived as {name.name} cannot be used ({problem})",
            hint=f"The segment was stored beside it as {beside}; the next attempt succeeds. Run `drservice verify`.",
        )

    # --- reading --------------------------------------------------------------------------------------------

    def fetch(self, name: WalFileName, *, system_id: SystemId) -> bytes:
        """Return the plain bytes of an archived file, every hash checked.

        Raises:
            SegmentAbsentError: the store answered that there is none under this name.
            DamagedObjectError, FormatError, MissingObjectError, UnknownSignerError, BadSignatureError: it is there and
                unusable.
            NoIdentityError, WrongIdentityError: it cannot be opened here.
            ObjectStoreError: the store did not answer as it should.
        """
        return self.fetch_into(b"".join, name, system_id=system_id)

    def fetch_into(
        self, take: Callable[[Iterator[bytes | memoryview]], Taken], name: WalFileName, *, system_id: SystemId
    ) -> Taken:
        """Return what ``take`` makes of the plain pieces of an archived file, at most 1 MiB each, in order.

        What the whole must be is known, and checked, behind the last piece: if it is not, the iterator raises there.
        ``take`` lets that pass and keeps nothing of what it got; with another copy of the file it is called again.

        Raises:
            As :meth:`fetch`, and what ``take`` raises by itself.
        """
        key = self._key(system_id, name.timeline, name.name)
        problem: DrError | None = None
        for candidate in self._ordered(key, name):
            try:
                envelope, body = self._read(candidate, name)
                return take(self._open(envelope, body, name, system_id))
            except _UNUSABLE as error:
                problem = problem or error
        raise problem or SegmentAbsentError(f"{name.name} is not in the archive")

    def facts(self, archived: ArchivedFile) -> WalFacts:
        """Return the signed header of a file that a listing showed (no identity needed), a repaired copy's if need be.

        Raises:
            FormatError, DamagedObjectError, KeyProblemError, ObjectStoreError: no copy has a good one.
        """
        return self._first_good(archived, lambda key: self._head_facts(key, archived))

    def check(self, archived: ArchivedFile) -> WalFacts:
        """Read a file as a whole and check signature and hashes; with an identity also its plain bytes.

        Raises:
            FormatError, DamagedObjectError, KeyProblemError, ObjectStoreError: no copy is whole.
        """
        return self._first_good(archived, lambda key: self._whole_facts(key, archived))

    def require_whole(self, name: WalFileName, *, system_id: SystemId, plain_bytes: int) -> WalFacts:
        """Make sure that a file is archived whole: a signature that is believed, the body it signs, the right length.

        Needs no identity and opens nothing; reads the object once.

        Raises:
            SegmentAbsentError: the store answered that there is none under this name.
            FormatError, DamagedObjectError, MissingObjectError, KeyProblemError: it is there, and no copy is whole.
            ObjectStoreError: the store did not answer as it should.
        """
        problem: DrError | None = None
        for candidate in self._candidates(self._key(system_id, name.timeline, name.name)):
            try:
                envelope, _ = self._read(candidate, name)
                self._require_key(envelope)
                facts = _facts(envelope)
            except _UNUSABLE as error:
                problem = problem or error
                continue
            if facts.plain_bytes == plain_bytes:
                return facts
            cut = f"{name.name} was archived with {facts.plain_bytes} bytes instead of {plain_bytes}"
            problem = problem or DamagedObjectError(cut)
        raise problem or SegmentAbsentError(f"{name.name} is not in the archive")

    def carries_key(self, archived: ArchivedFile) -> bool:
        """Tell whether a file that a listing showed was sealed with a key of its own, which travels in its header.

        One small read, also on a versioned store: it is for counting, and what cannot be believed counts as its own.

        Raises:
            ObjectStoreError: the store did not answer.
        """
        try:
            envelope = self._read_head(archived.key, archived.stored_bytes)
        except (*_UNUSABLE, ObjectNotFoundError):
            return True
        return "key_id" not in envelope.header

    def _first_good(self, archived: ArchivedFile, read: Callable[[str], WalFacts]) -> WalFacts:
        problem: DrError | None = None
        for key in self._candidates(archived.key.split(_REPAIRED, maxsplit=1)[0]):
            try:
                return read(key)
            except _UNUSABLE as error:
                problem = problem or error
        raise problem or DamagedObjectError(f"{archived.key} vanished while it was looked at")

    def _head_facts(self, key: str, archived: ArchivedFile) -> WalFacts:
        if self._store.capabilities.versioned:
            return self._whole_facts(key, archived)  # the oldest valid version is the object, so all are read
        size = archived.stored_bytes if key == archived.key else self._store.stat(key).stored_bytes
        return _facts(self._read_head(key, size))

    def _read_head(self, key: str, stored_bytes: int) -> Envelope:
        head = self._store.read(key, length=min(stored_bytes, HEAD_READ_BYTES))
        extent = header_extent(head, key)
        if extent > len(head):
            head = self._store.read(key, length=extent)
        return read_envelope(head, trust=self._trust, repository=self._scope.repository, key=key, kind="wal")

    def _whole_facts(self, key: str, archived: ArchivedFile) -> WalFacts:
        name = WalFileName.parse(archived.name)
        envelope, body = self._read(key, name)
        facts = _facts(envelope)
        if self._keyring.identities.configured:
            for _ in self._open(envelope, body, name, facts.system_id):
                pass  # behind the last piece everything was checked
        else:
            self._require_key(envelope)
        return facts

    def _require_key(self, envelope: Envelope) -> None:
        """Check that a key which lies elsewhere is stored: without it nobody opens the file, however whole it is."""
        if "key_id" not in envelope.header:
            return
        key_id = KeyId(envelope.text("key_id"))
        if key_id in self._stored_keys:
            return
        if not self._keyring.recipients_of(key_id, service=self._scope.service):
            raise MissingObjectError(f"data key {key_id} of {envelope.text('key')} is not in the repository")
        self._stored_keys.add(key_id)

    def listing(self, system_id: SystemId, *, after: WalFileName | None = None) -> Iterator[ArchivedFile]:
        """Yield every archived file of one cluster, by key. Complete or raises; repaired copies count once.

        Args:
            system_id: of the cluster.
            after: only what comes behind this name: later files of its timeline, and all of later timelines.
        """
        stem, seen = "", set[str]()
        begin = "" if after is None else f"{self._key(system_id, after.timeline, after.name)}~"
        prefix = layout.wal_prefix(self._scope.service, self._scope.component, system_id)
        for info in self._store.list(prefix, start_after=begin):
            name = info.key.rsplit("/", 1)[-1].split(_REPAIRED, 1)[0]
            try:
                parsed = WalFileName.parse(name)
            except ValueError:
                continue  # foreign objects beside ours are not ours to judge
            if name[:_STEM] != stem:
                stem, seen = name[:_STEM], set()
            if name in seen:
                continue
            seen.add(name)
            yield ArchivedFile(
                name=name,
                timeline=parsed.timeline,
                key=info.key,
                stored_bytes=info.stored_bytes,
                modified_at=info.modified_at,
            )

    def objects(self, system_id: SystemId) -> Iterator[StoredWal]:
        """Yield every object of one cluster's archive, repaired copies too, by key. Complete or raises."""
        for info in self._store.list(layout.wal_prefix(self._scope.service, self._scope.component, system_id)):
            try:
                name = WalFileName.parse(info.key.rsplit("/", 1)[-1].split(_REPAIRED, 1)[0])
            except ValueError:
                continue  # foreign objects beside ours are not ours to judge
            yield StoredWal(key=info.key, name=name, stored_at=info.modified_at, stored_bytes=info.stored_bytes)

    def system_ids(self) -> list[SystemId]:
        """Return the clusters that have WAL here."""
        prefix = layout.wal_prefix(self._scope.service, self._scope.component)
        found: list[SystemId] = []
        after = ""
        while True:
            info = next(self._store.list(prefix, start_after=after), None)
            if info is None:
                return found
            system_id = info.key[len(prefix) :].split("/", 1)[0]
            found.append(SystemId(system_id))
            after = f"{prefix}{system_id}/~"  # behind every key of this cluster

    def exists(self, name: WalFileName, *, system_id: SystemId) -> bool:
        """Tell whether a file of this name is archived (damaged or not)."""
        return self._is_there(self._key(system_id, name.timeline, name.name))

    def _candidates(self, key: str) -> Iterator[str]:
        """Yield the key itself, then repaired copies, as far as they exist.

        The object is asked for by name first: a listing behind a cache may lag, and a lagging one must not make a
        segment that is there look absent.
        """
        if self._is_there(key):
            yield key
        for info in self._store.list(key):
            if info.key[len(key) :].startswith(_REPAIRED):
                yield info.key

    def _ordered(self, key: str, name: WalFileName) -> Iterable[str]:
        """Return the copies in the order they are read in: of a partial segment the last one was written furthest."""
        if name.kind is not WalFileKind.PARTIAL:
            return self._candidates(key)
        return sorted(self._candidates(key), reverse=True)  # the plain name is the shortest, then by ULID

    def _is_there(self, key: str) -> bool:
        try:
            self._store.stat(key)
        except ObjectNotFoundError:
            return False
        return True

    def _read(self, key: str, name: WalFileName) -> tuple[Envelope, bytes | memoryview]:
        envelope, body = read_object(
            lambda: self._store.read_versions(key),
            trust=self._trust,
            repository=self._scope.repository,
            key=key,
            kind="wal",
        )
        facts = _facts(envelope)
        plain_key = key.split(_REPAIRED, maxsplit=1)[0]
        if facts.name != name.name or self._key(facts.system_id, facts.timeline, facts.name) != plain_key:
            raise DamagedObjectError(f"{key} holds {facts.name} of {facts.system_id}, timeline {facts.timeline}")
        return envelope, body

    def _open(
        self, envelope: Envelope, body: bytes | memoryview, name: WalFileName, system_id: SystemId
    ) -> Iterator[bytes | memoryview]:
        what, context = f"WAL file {name.name}", _context(system_id, name)
        if "key_id" in envelope.header:
            key_id = KeyId(envelope.text("key_id"))
            pieces = self._keyring.open_body(key_id, body, scope=self._scope, context=context, where=what)
        else:
            secret = self._keyring.unwrap_inline(envelope.text("wrapped_key"), what)
            pieces = open_body(secret, body, scope=self._scope, context=context, where=what)
        digest, length = hashlib.sha256(), 0
        for piece in pieces:
            digest.update(piece)
            length += len(piece)
            yield piece
        if length != envelope.number("plain_bytes"):
            raise DamagedObjectError(f"{what} has {length} bytes instead of {envelope.number('plain_bytes')}")
        if digest.hexdigest() != envelope.text("plain_sha256"):
            raise DamagedObjectError(f"{what} does not have the bytes that were pushed")

    def _key(self, system_id: SystemId, timeline: Timeline, name: str) -> str:
        return layout.wal_key(self._scope.service, self._scope.component, system_id, timeline, name)


def _context(system_id: SystemId, name: WalFileName) -> str:
    return f"wal/{system_id}/{name.timeline:08X}/{name.name}"


def _facts(envelope: Envelope) -> WalFacts:
    try:
        return WalFacts(
            name=envelope.text("name"),
            system_id=SystemId(envelope.text("system_id")),
            timeline=Timeline(envelope.number("timeline")),
            plain_bytes=envelope.number("plain_bytes"),
            plain_sha256=envelope.text("plain_sha256"),
            last_write=from_iso(envelope.text("last_write")),
        )
    except ValueError as error:
        raise FormatError(f"{envelope.text('key')} has an unreadable header: {error}") from error


def write_time(path: Path) -> datetime:
    """Return when a file was last written, in UTC."""
    return datetime.fromtimestamp(path.stat().st_mtime, tz=UTC)
