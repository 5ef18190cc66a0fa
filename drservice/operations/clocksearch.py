"""Where an instant lies in the WAL by the server's own clock, before any WAL is read.

A receiver notes what the clock said while a segment was written. That narrows a search to a segment or two and proves
nothing: a clock may have been set, or lie. Whoever looks there goes on with the whole search if nothing is found.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from drservice.model.wal import Timeline, segment_number
from drservice.operations.inventory import Archived

_LOOKED_AT = 2
"""An instant at the very end of a segment is followed by the next one's first commit."""


def candidates(instant: datetime, names: Sequence[str], archived: Archived) -> tuple[str, ...]:
    """Return the segments in which the first commit after an instant should lie; none if the clock does not tell.

    Args:
        instant: the instant.
        names: segments in the order they are replayed in.
        archived: the archive they are in.

    Raises:
        ObjectStoreError: the store did not answer as it should.
    """
    low, high = 0, len(names)
    while low < high:
        middle = (low + high) // 2
        end = _ended_at(names[middle], archived)
        if end is None:
            return ()
        if end > instant:
            high = middle
        else:
            low = middle + 1
    return tuple(names[low : low + _LOOKED_AT])


def _ended_at(name: str, archived: Archived) -> datetime | None:
    """Return what the server's clock said when a segment's last byte was written; ``None`` if nobody noted it."""
    if (streamed := archived.streamed.get(name)) is not None:
        return streamed.server_time
    source = archived.source
    pairs = source.clocks.read(
        system_id=source.system_id,
        timeline=Timeline(int(name[:8], 16)),
        segment=segment_number(name, source.segment_bytes),
        segment_bytes=source.segment_bytes,
    )
    return pairs[-1].server_time if pairs else None
