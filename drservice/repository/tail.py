"""WAL that is not a whole segment yet, in pieces (docs/format.md, section 13).

A piece is one PUT and nothing else: no listing, and no look at what was stored, because ``create`` is all or nothing
and every store has checked the body's checksum before it answered. Whatever became of it later, a reader finds out.
Pieces carry the writer's run in their names, so a writer that was killed and came back is never in its own way.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice

from drservice import telemetry
from drservice.canonical import Json
from drservice.clock import Clock, from_iso, to_iso
from drservice.errors import (
    DamagedObjectError,
    DrError,
    FormatError,
    KeyProblemError,
    MissingObjectError,
    NoIdentityError,
    ObjectExistsError,
    SegmentConflictError,
    WalGapError,
    WrongIdentityError,
)
from drservice.model.ids import KeyId, SystemId, make_ulid
from drservice.model.tail import Assembly, StoredPiece, TailEnd, TailPiece, describe_end
from drservice.model.wal import Lsn, Timeline, segment_begin, segment_name
from drservice.objectstore.interface import ObjectStore
from drservice.repository import layout
from drservice.repository.envelope import Envelope, HostKey, Trust, read_object, require_signer, write_envelope
from drservice.repository.keys import DataKey, Keyring
from drservice.repository.records import PackedFrame, Scope, packed_frames, seal_body, sealed_pieces

_UNUSABLE = (FormatError, DamagedObjectError, KeyProblemError, MissingObjectError)
"""What one piece may be while others are good."""

_READ_AHEAD = 16
_TRIED = 20
"""So many pieces are read at most to learn the size of a segment."""
_ZERO = Lsn(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class TailFacts:
    """The public header of a piece."""

    piece: TailPiece
    system_id: SystemId
    segment_bytes: int
    server_time: datetime
    """The server's clock when it sent the last byte."""
    plain_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuilt:
    """A segment put together from pieces."""

    data: bytearray
    """Of the full length; what lies behind ``end`` is zero."""
    end: Lsn
    """Every byte before it is as the server sent it."""
    is_whole: bool
    last_server_time: datetime | None
    """The server's clock when it sent the last byte that is here."""
    pieces: tuple[TailPiece, ...]
    """What it was made from."""
    unusable: Mapping[str, DrError]
    """Pieces that are damaged or not to be believed, by key, whether others stand in for them or not."""
    problem: DrError | None
    """Why it ends where it does although more was stored; ``None`` if nothing more was. A ``SegmentConflictError``
    means that two histories lie under one name."""


class TailArchive:
    """The pieces of WAL of one component. Reading their bytes needs an identity; everything else does not.

    Args:
        store: where they lie.
        scope: of the component.
        trust: who is believed.
        keyring: opens keys.
        signer: of this host; ``None``: it cannot write.
        clock: of this host.
    """

    def __init__(
        self,
        store: ObjectStore,
        *,
        scope: Scope,
        trust: Trust,
        keyring: Keyring,
        signer: HostKey | None,
        clock: Clock,
    ) -> None:
        self._store = store
        self._scope = scope
        self._trust = trust
        self._keyring = keyring
        self._signer = signer
        self._clock = clock
        self._writer = make_ulid(clock.now(), os.urandom(10))

    # --- writing --------------------------------------------------------------------------------------------

    def put(
        self,
        data: bytes | memoryview,
        *,
        system_id: SystemId,
        timeline: Timeline,
        start: Lsn,
        server_time: datetime,
        segment_bytes: int,
        key: DataKey,
        frames: Sequence[PackedFrame] | None = None,
    ) -> TailPiece:
        """Store a piece; durable and verified on return. One request, unless its name is taken.

        Args:
            data: its bytes, within one segment; not kept.
            system_id: its cluster.
            timeline: its timeline.
            start: position of its first byte.
            server_time: the server's clock when it sent the last byte.
            segment_bytes: size of the cluster's segments.
            key: sealed with this one, whose wrapping is stored already.
            frames: of ``data``, where it is compressed already.

        Raises:
            SegmentConflictError: this run stored other bytes under this name, on a store that tells; elsewhere a piece
                is one request, and the name is its writer's own.
            ValueError: no bytes, or bytes of two segments.
            KeyProblemError: this host cannot write.
            ObjectStoreError: not stored, or not known to be stored.
        """
        piece = TailPiece(timeline=timeline, start=start, end=start + len(data), writer=self._writer)
        piece.segment(segment_bytes)
        facts = TailFacts(
            piece=piece,
            system_id=system_id,
            segment_bytes=segment_bytes,
            server_time=server_time,
            plain_sha256=hashlib.sha256(data).hexdigest(),
        )
        packed = packed_frames(data) if frames is None else frames
        context = _context(facts)
        body = list(sealed_pieces(key.secret, packed, plain_bytes=len(data), scope=self._scope, context=context))
        try:
            self._create(facts, body, key)
        except ObjectExistsError:
            return self._compare(facts, data, key)
        return piece

    def _create(self, facts: TailFacts, body: Sequence[bytes], data_key: DataKey) -> None:
        object_key = self.key_of(facts.system_id, facts.piece)
        fields: dict[str, Json] = {
            "system_id": facts.system_id,
            "timeline": int(facts.piece.timeline),
            "start_lsn": str(facts.piece.start),
            "end_lsn": str(facts.piece.end),
            "writer": facts.piece.writer,
            "segment_bytes": facts.segment_bytes,
            "server_time": to_iso(facts.server_time),
            "plain_sha256": facts.plain_sha256,
            "key_id": data_key.id,
        }
        pieces = write_envelope(
            signer=require_signer(self._signer),
            repository=self._scope.repository,
            key=object_key,
            kind="tail",
            fields=fields,
            body=body,
            now=self._clock.now(),
        )
        self._store.create(object_key, pieces)

    def _compare(self, facts: TailFacts, data: bytes | memoryview, data_key: DataKey) -> TailPiece:
        """Return the piece if the very bytes are there; beside one that cannot be used it is stored once more."""
        try:
            known, _, _ = self._read(facts.system_id, facts.piece)
        except _UNUSABLE as error:
            telemetry.warning("stored piece of wal unusable", piece=facts.piece.name, problem=error.message)
            writer = make_ulid(self._clock.now(), os.urandom(10))
            beside = replace(facts, piece=replace(facts.piece, writer=writer))
            body = seal_body(data_key.secret, data, scope=self._scope, context=_context(beside))
            self._create(beside, body, data_key)
            return beside.piece
        if known.plain_sha256 != facts.plain_sha256:
            raise SegmentConflictError(
                f"WAL from {facts.piece.start} to {facts.piece.end} is stored with other content"
            )
        return facts.piece

    # --- reading --------------------------------------------------------------------------------------------

    def pieces(
        self,
        system_id: SystemId,
        timeline: Timeline,
        *,
        begin: Lsn = _ZERO,
        end: Lsn | None = None,
    ) -> list[StoredPiece]:
        """Return the pieces of one timeline that begin in ``[begin, end)``, by position. Complete or raises.

        Costs what lies in that stretch, not what lies before it: give ``begin``.
        """
        prefix = layout.tail_prefix(self._scope.service, self._scope.component, system_id, timeline)
        found: list[StoredPiece] = []
        for info in self._store.list(prefix, start_after=f"{prefix}{begin.value:016X}"):
            try:
                piece = TailPiece.parse(info.key.removeprefix(prefix), timeline)
            except ValueError:
                continue  # foreign objects beside ours are not ours to judge
            if end is not None and piece.start >= end:
                break
            found.append(
                StoredPiece(piece=piece, key=info.key, stored_bytes=info.stored_bytes, modified_at=info.modified_at)
            )
        return found

    def segment_bytes(self, system_id: SystemId) -> int | None:
        """Return the size of a cluster's segments, as its pieces tell it; ``None`` if there are none.

        Raises:
            FormatError, DamagedObjectError, KeyProblemError: the first piece of no timeline can be believed.
            ObjectStoreError: the store did not answer as it should.
        """
        problem: DrError | None = None
        for timeline in reversed(self.timelines(system_id)):
            prefix = layout.tail_prefix(self._scope.service, self._scope.component, system_id, timeline)
            for info in islice(self._store.list(prefix), _TRIED):
                try:
                    return self._read(system_id, TailPiece.parse(info.key.removeprefix(prefix), timeline))[
                        0
                    ].segment_bytes
                except ValueError:
                    continue  # foreign objects beside ours are not ours to judge
                except _UNUSABLE as error:
                    problem = problem or error
        if problem is not None:
            raise problem
        return None

    def system_ids(self) -> list[SystemId]:
        """Return the clusters that have pieces here."""
        prefix = layout.tail_prefix(self._scope.service, self._scope.component)
        return [SystemId(name) for name in self._folders(prefix)]

    def timelines(self, system_id: SystemId) -> list[Timeline]:
        """Return the timelines that have pieces of a cluster."""
        found = []
        for name in self._folders(layout.tail_prefix(self._scope.service, self._scope.component, system_id)):
            try:
                timeline = Timeline(int(name, 16))
            except ValueError:
                continue
            if name == f"{timeline:08X}":
                found.append(timeline)
        return found

    def _folders(self, prefix: str) -> Iterator[str]:
        after = ""
        while (info := next(self._store.list(prefix, start_after=after), None)) is not None:
            name = info.key[len(prefix) :].split("/", 1)[0]
            yield name
            after = f"{prefix}{name}/~"  # behind every key of this one

    def facts(self, stored: StoredPiece, *, system_id: SystemId) -> TailFacts:
        """Return the signed header of a piece (no identity needed); its body is checked against it.

        Raises:
            FormatError, DamagedObjectError, KeyProblemError, ObjectStoreError: it has none that can be believed.
        """
        return self._read(system_id, stored.piece)[0]

    def check(self, stored: StoredPiece, *, system_id: SystemId) -> TailFacts:
        """Read a piece as a whole and check signature and hashes; with an identity also its plain bytes.

        Raises:
            FormatError, DamagedObjectError, KeyProblemError, MissingObjectError, ObjectStoreError: it is not whole.
        """
        facts, envelope, body = self._read(system_id, stored.piece)
        if self._keyring.identities.configured:
            self._open(facts, envelope, body)
        elif not self._keyring.recipients_of(key_id := KeyId(envelope.text("key_id")), service=self._scope.service):
            raise MissingObjectError(f"data key {key_id} of {stored.key} is not in the repository")
        return facts

    def rebuild(self, system_id: SystemId, timeline: Timeline, segment: int, segment_bytes: int) -> Rebuilt:
        """Put a segment together from its pieces: as far as they follow each other and agree.

        Pieces are read side by side where the store is far away; no more are held than are read ahead.

        Raises:
            NoIdentityError, WrongIdentityError: they cannot be opened here.
            ObjectStoreError: the store did not answer as it should.
        """
        begin = segment_begin(segment, segment_bytes)
        assembly = Assembly.of(begin, segment_bytes)
        unusable: dict[str, DrError] = {}
        times: dict[str, datetime] = {}
        stored = self.pieces(system_id, timeline, begin=begin, end=begin + segment_bytes)
        fitting = [item for item in stored if item.piece.end <= begin + segment_bytes]  # others are no writer's of ours
        for item, got in self._read_all(system_id, fitting):
            if assembly.why is not None and item.piece.start >= assembly.end:
                break  # nothing that follows says anything about what is there
            try:
                facts, envelope, body = got.result()
                if facts.segment_bytes != segment_bytes:
                    raise DamagedObjectError(f"{item.key} is of a cluster with segments of {facts.segment_bytes} bytes")
                plain = self._open(facts, envelope, body)
            except (NoIdentityError, WrongIdentityError):
                raise
            except _UNUSABLE as error:
                unusable[item.key] = error
                assembly.add(item.piece, None)
            else:
                times[item.piece.name] = facts.server_time
                assembly.add(item.piece, plain)
        assembly.conclude()
        return Rebuilt(
            data=assembly.data,
            end=assembly.end,
            is_whole=assembly.is_whole,
            last_server_time=max((times[piece.name] for piece in assembly.used), default=None),
            pieces=tuple(assembly.used),
            unusable=unusable,
            problem=self._problem(system_id, segment_name(timeline, segment, segment_bytes), assembly, unusable),
        )

    def _problem(
        self, system_id: SystemId, name: str, assembly: Assembly, unusable: Mapping[str, DrError]
    ) -> DrError | None:
        text = describe_end(name, assembly)
        match assembly.why:
            case TailEnd.CONFLICT:
                return SegmentConflictError(text)
            case TailEnd.MISSING:
                return WalGapError(text)
            case TailEnd.UNUSABLE:
                assert assembly.culprit is not None, "blamed with a piece"
                cause = unusable[self.key_of(system_id, assembly.culprit)]
                return DamagedObjectError(f"{text}: {cause.message}")
            case _:
                return None

    def _read_all(
        self, system_id: SystemId, stored: Iterable[StoredPiece]
    ) -> Iterator[tuple[StoredPiece, Future[tuple[TailFacts, Envelope, bytes | memoryview]]]]:
        """Yield the pieces in order, each with what reading it came to."""
        width = _READ_AHEAD if self._store.capabilities.distant else 2
        waiting: deque[tuple[StoredPiece, Future[tuple[TailFacts, Envelope, bytes | memoryview]]]] = deque()
        with ThreadPoolExecutor(max_workers=width, thread_name_prefix="tail") as threads:
            try:
                for item in stored:
                    waiting.append((item, threads.submit(self._read, system_id, item.piece)))
                    if len(waiting) >= width:
                        yield waiting.popleft()
                while waiting:
                    yield waiting.popleft()
            finally:
                for _, future in waiting:
                    future.cancel()

    def _read(self, system_id: SystemId, piece: TailPiece) -> tuple[TailFacts, Envelope, bytes | memoryview]:
        key = self.key_of(system_id, piece)
        envelope, body = read_object(
            lambda: self._store.read_versions(key),
            trust=self._trust,
            repository=self._scope.repository,
            key=key,
            kind="tail",
        )
        facts = _facts(envelope)
        if facts.piece != piece or facts.system_id != system_id:
            raise DamagedObjectError(f"{key} holds {facts.piece.name} of {facts.system_id}")
        return facts, envelope, body

    def _open(self, facts: TailFacts, envelope: Envelope, body: bytes | memoryview) -> bytes:
        where = f"piece {facts.piece.name}"
        key_id = KeyId(envelope.text("key_id"))
        pieces = self._keyring.open_body(key_id, body, scope=self._scope, context=_context(facts), where=where)
        plain = b"".join(pieces)
        if len(plain) != facts.piece.end.value - facts.piece.start.value:
            raise DamagedObjectError(f"{where} has {len(plain)} bytes")
        if hashlib.sha256(plain).hexdigest() != facts.plain_sha256:
            raise DamagedObjectError(f"{where} does not have the bytes that were received")
        return plain

    def key_of(self, system_id: SystemId, piece: TailPiece) -> str:
        """Return the key of a piece."""
        return layout.tail_key(self._scope.service, self._scope.component, system_id, piece.timeline, piece.name)


def _context(facts: TailFacts) -> str:
    return f"tail/{facts.system_id}/{facts.piece.timeline:08X}/{facts.piece.name}"


def _facts(envelope: Envelope) -> TailFacts:
    try:
        piece = TailPiece(
            timeline=Timeline(envelope.number("timeline")),
            start=Lsn.parse(envelope.text("start_lsn")),
            end=Lsn.parse(envelope.text("end_lsn")),
            writer=envelope.text("writer"),
        )
        facts = TailFacts(
            piece=piece,
            system_id=SystemId(envelope.text("system_id")),
            segment_bytes=envelope.number("segment_bytes"),
            server_time=from_iso(envelope.text("server_time")),
            plain_sha256=envelope.text("plain_sha256"),
        )
        piece.segment(facts.segment_bytes)
    except (ValueError, ZeroDivisionError) as error:
        raise FormatError(f"{envelope.text('key')} has an unreadable header: {error}") from error
    return facts
