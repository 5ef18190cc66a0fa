"""Where an instant lies in the WAL by the server's own clock, before any WAL is read.

A receiver notes what the clock said while a segment was written; of segments that fill within moments, in some of them.
That narrows a search to a few segments and proves nothing: a clock may have been set, or lie. Whoever looks there goes
on with the whole search if nothing is found.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from drservice.model.wal import Timeline, segment_number
from drservice.operations.inventory import Archived

CLOCKS_APART = 4
"""Of so many segments in a row one has a clock at least, however fast they fill, if a receiver streamed them."""
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
    low, high, last = 0, len(names), len(names)  # it is in [low, last]; what a clock may tell more of is in [low, high)
    is_told = False
    while low < high:
        middle = (low + high) // 2
        found = next(
            (
                (index, end)
                for index in range(middle, min(high, middle + CLOCKS_APART))
                if (end := _ended_at(names[index], archived)) is not None
            ),
            None,
        )
        if found is None:
            if high - middle >= CLOCKS_APART:
                return ()
            high = middle
            continue
        is_told = True
        index, end = found
        if end > instant:
            high, last = middle, index
        else:
            low = index + 1
    return tuple(names[low : last + _LOOKED_AT]) if is_told else ()


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
