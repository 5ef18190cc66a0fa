"""What the server's clock said, segment by segment (docs/format.md, section 14).

It narrows a search and proves nothing; who believes it checks what it leads to. It is public: positions and times, as
in the header of each piece of WAL.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from drservice import telemetry
from drservice.canonical import Json, canonical_bytes, parse_canonical
from drservice.clock import Clock, from_iso, to_iso
from drservice.errors import DamagedObjectError, FormatError, KeyProblemError, ObjectExistsError
from drservice.model.ids import SystemId
from drservice.model.retentionwal import StoredWal
from drservice.model.tail import ClockPair
from drservice.model.wal import Lsn, Timeline, WalFileName, segment_begin, segment_name
from drservice.objectstore.interface import ObjectStore
from drservice.repository import layout
from drservice.repository.envelope import Envelope, HostKey, Trust, read_object, require_signer, write_envelope
from drservice.repository.records import Scope

MAX_PAIRS = 4096
"""So many has a segment at most; a busy second needs four."""


class ClockArchive:
    """The clock of one component's server. It needs no identity, for writing no key.

    Args:
        store: where it lies.
        scope: of the component.
        trust: who is believed.
        signer: of this host; ``None``: it cannot write.
        clock: of this host.
    """

    def __init__(self, store: ObjectStore, *, scope: Scope, trust: Trust, signer: HostKey | None, clock: Clock) -> None:
        self._store = store
        self._scope = scope
        self._trust = trust
        self._signer = signer
        self._clock = clock

    def put(
        self, *, system_id: SystemId, timeline: Timeline, segment: int, segment_bytes: int, pairs: Sequence[ClockPair]
    ) -> None:
        """Store what the clock said during a segment. What another writer stored first stays: it serves as well.

        Raises:
            ValueError: no pairs, too many, out of order, or of another segment.
            KeyProblemError: this host cannot write.
            ObjectStoreError: not stored, or not known to be stored.
        """
        begin = segment_begin(segment, segment_bytes)
        if not pairs or not all(begin <= pair.lsn <= begin + segment_bytes for pair in pairs):
            raise ValueError(f"there are no pairs for segment {segment}, or some of another one")
        _require_order(pairs)
        name = segment_name(timeline, segment, segment_bytes)
        key = self._key(system_id, timeline, name)
        fields: dict[str, Json] = {"system_id": system_id, "timeline": int(timeline), "name": name}
        content: Json = [[to_iso(pair.server_time), str(pair.lsn)] for pair in pairs]
        envelope = write_envelope(
            signer=require_signer(self._signer),
            repository=self._scope.repository,
            key=key,
            kind="clock",
            fields=fields,
            body=[canonical_bytes(content)],
            now=self._clock.now(),
        )
        try:
            self._store.create(key, envelope)
        except ObjectExistsError:
            telemetry.info("another receiver has stored the clock of a segment", segment=name)

    def read(
        self, *, system_id: SystemId, timeline: Timeline, segment: int, segment_bytes: int
    ) -> tuple[ClockPair, ...]:
        """Return the pairs of a segment, by position; none if nobody stored any, or what was stored is unusable.

        Raises:
            ObjectStoreError: the store did not answer as it should.
        """
        name = segment_name(timeline, segment, segment_bytes)
        key = self._key(system_id, timeline, name)
        versions = list(self._store.read_versions(key))
        if not versions:
            return ()
        try:
            envelope, body = read_object(
                lambda: versions, trust=self._trust, repository=self._scope.repository, key=key, kind="clock"
            )
            _require_place(envelope, system_id, name)
            pairs = _decode_pairs(body, key)
        except (FormatError, DamagedObjectError, KeyProblemError) as error:
            telemetry.warning("stored clock of a segment unusable", segment=name, problem=error.message)
            return ()
        begin = segment_begin(segment, segment_bytes)
        return tuple(pair for pair in pairs if begin <= pair.lsn <= begin + segment_bytes)

    def objects(self, system_id: SystemId) -> Iterator[StoredWal]:
        """Yield what is stored of one cluster, under the names of the segments, by key. Complete or raises."""
        for info in self._store.list(layout.clock_prefix(self._scope.service, self._scope.component, system_id)):
            try:
                name = WalFileName.parse(info.key.rsplit("/", 1)[-1])
            except ValueError:
                continue  # foreign objects beside ours are not ours to judge
            yield StoredWal(key=info.key, name=name, stored_at=info.modified_at, stored_bytes=info.stored_bytes)

    def _key(self, system_id: SystemId, timeline: Timeline, name: str) -> str:
        return layout.clock_key(self._scope.service, self._scope.component, system_id, timeline, name)


def _require_order(pairs: Sequence[ClockPair]) -> None:
    if len(pairs) > MAX_PAIRS or any(one.lsn >= other.lsn for one, other in pairwise(pairs)):
        raise ValueError(f"a clock has at most {MAX_PAIRS} pairs, in the order of their positions, each of them once")


def _require_place(envelope: Envelope, system_id: SystemId, name: str) -> None:
    if envelope.text("system_id") != system_id or envelope.text("name") != name:
        raise DamagedObjectError(f"{envelope.text('key')} is of another segment")


def _decode_pairs(body: bytes | memoryview, key: str) -> tuple[ClockPair, ...]:
    try:
        rows: Any = parse_canonical(body)  # another type fails below
        pairs = tuple(ClockPair(server_time=from_iso(time), lsn=Lsn.parse(lsn)) for time, lsn in rows)
        _require_order(pairs)
    except (ValueError, TypeError, AttributeError) as error:
        raise FormatError(f"the content of {key} is unreadable: {error}") from error
    return pairs
