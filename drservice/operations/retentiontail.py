"""What a receiver stored and nothing needs any more: pieces and clocks of segments that expire with the WAL.

Pieces of segments that are archived whole say nothing more either. They are not deleted here: that is the collector's,
which marks only in this version (``prune``). Of segments that are not whole, pieces are the only copy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from drservice.model.ids import SystemId
from drservice.model.retentionstock import StoredSnapshot
from drservice.model.retentionwal import StoredWal
from drservice.model.tail import StoredPiece, by_segment
from drservice.model.wal import Lsn, WalFileName, segment_begin, segment_name
from drservice.repository.clocks import ClockArchive
from drservice.repository.records import Scope
from drservice.repository.repository import Repository
from drservice.repository.tail import TailArchive

_NAMING_BYTES = 16 << 20
"""Of a cluster without a snapshot the size of a segment is not known here, and all of its WAL stays or goes."""


def covered_pieces(repository: Repository, scope: Scope) -> list[StoredPiece]:
    """Return the pieces whose segments are archived whole, of all clusters; never one of a segment that is not.

    Raises:
        ObjectStoreError: a listing is not complete.
        FormatError, DamagedObjectError, KeyProblemError: no piece tells the size of its cluster's segments.
    """
    tail, archive = repository.tail(scope), repository.wal(scope)
    found: list[StoredPiece] = []
    for system_id in tail.system_ids():
        # Pieces first: a segment that becomes whole between the two listings covers those of it that were listed.
        pieces = [(timeline, tail.pieces(system_id, timeline)) for timeline in tail.timelines(system_id)]
        size = tail.segment_bytes(system_id)
        if size is None:
            continue
        whole = {file.name for file in archive.listing(system_id)}
        for timeline, stored in pieces:
            for number, own in by_segment(stored, size):
                if segment_name(timeline, number, size) in whole:
                    found += own
    return found


def streamed_objects(
    tail: TailArchive, clocks: ClockArchive, system_id: SystemId, snapshots: Sequence[StoredSnapshot]
) -> Iterator[StoredWal]:
    """Yield pieces and clocks of one cluster, under the names of their segments, as far as they may expire.

    Listed are pieces up to where the oldest snapshot begins, not the many behind it.

    Raises:
        ObjectStoreError: a listing is not complete.
    """
    starts = [item.wal for item in snapshots if item.wal is not None and item.wal.system_id == system_id]
    size = max((start.segment_bytes for start in starts), default=_NAMING_BYTES)
    needed: Lsn | None = segment_begin(min(start.segment for start in starts), size) if starts else None
    for timeline in tail.timelines(system_id):
        for stored in tail.pieces(system_id, timeline, end=needed):
            name = segment_name(timeline, stored.piece.start.segment_number(size), size)
            yield StoredWal(
                key=stored.key,
                name=WalFileName.parse(name),
                stored_at=stored.modified_at,
                stored_bytes=stored.stored_bytes,
            )
    yield from clocks.objects(system_id)
