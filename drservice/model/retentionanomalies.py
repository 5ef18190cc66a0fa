"""What a person has to look at before anything is deleted: impossible dates, and jumps of number or size. Pure.

Retention is what somebody with a backup host's key would bend: to push good snapshots out with worthless ones, or to
wait until the good ones have expired by themselves behind encrypted ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from statistics import median

from drservice.clock import to_iso
from drservice.model.ids import ComponentName
from drservice.model.retentionstock import Contents, StoredSnapshot

AHEAD = timedelta(hours=1)
"""A snapshot cannot end after the store received it; so far a host's clock may be fast."""
BEHIND = timedelta(hours=24)
"""A snapshot is stored within 12 hours of its end, or is void; so far a host's clock may be slow beside that."""
LOOKED_BACK = timedelta(days=30)
"""A jump that is older has been lived with."""
MANY = 100
"""So many snapshots of one component on one day are no anomaly, however few there were before."""
MANY_TIMES = 4
_BIG = 64 << 20
"""Smaller components jump for no reason."""
_SHRUNK = 0.5
_GROWN = 4
_USUAL_CHANGE = 0.1
_JUMP_OF_CHANGE = 0.5
_BEFORE_A_JUMP = 3
_USUAL_OF = 30
"""What is usual is told by so many snapshots before."""


def misdated(snapshot: StoredSnapshot) -> str | None:
    """Say what is impossible about a snapshot's dates, ``None`` if nothing is."""
    if snapshot.void:
        return f"it is void: stored at {to_iso(snapshot.stored_at)}, long after its packs were checked"
    if snapshot.stopped_at > snapshot.stored_at + AHEAD:
        return f"it claims to end at {to_iso(snapshot.stopped_at)}, after it was stored ({to_iso(snapshot.stored_at)})"
    if snapshot.stopped_at < snapshot.stored_at - BEHIND:
        return f"it claims to end at {to_iso(snapshot.stopped_at)}, and was stored at {to_iso(snapshot.stored_at)}"
    return None


def anomalies_of(contents: Contents, *, now: datetime) -> tuple[str, ...]:
    """Return what is unusual, in words; while there is anything, nothing is deleted unless a person says so."""
    found: list[str] = []
    for component in sorted({item.component for item in contents.snapshots}):
        own = sorted(
            (item for item in contents.snapshots if item.component == component), key=lambda item: item.stored_at
        )
        found.extend(_dates(component, own))
        found.extend(_numbers(component, own, now))
        found.extend(_sizes(component, [item for item in own if misdated(item) is None], now))
    return tuple(found)


def _dates(component: ComponentName, own: Sequence[StoredSnapshot]) -> Iterator[str]:
    suspects = [(item, reason) for item in own if (reason := misdated(item)) is not None]
    if suspects:
        item, reason = suspects[0]
        more = f" (and {len(suspects) - 1} more of {component})" if len(suspects) > 1 else ""
        yield f"snapshot {item.id} of {component}: {reason}{more}"


def _numbers(component: ComponentName, own: Sequence[StoredSnapshot], now: datetime) -> Iterator[str]:
    days = Counter(item.stored_at.date() for item in own)
    for day, count in sorted(days.items()):
        others = [number for other, number in days.items() if other != day]
        usual = median(others) if others else 0
        if day >= (now - LOOKED_BACK).date() and count > max(MANY, MANY_TIMES * usual):
            yield f"{count} snapshots of {component} were stored on {day.isoformat()}, usually {usual:g} a day"


def _sizes(component: ComponentName, own: Sequence[StoredSnapshot], now: datetime) -> Iterator[str]:
    for number, item in enumerate(own):
        before = own[max(0, number - _USUAL_OF) : number]
        if not before or item.stored_at < now - LOOKED_BACK:
            continue
        last = before[-1].source_bytes
        if max(last, item.source_bytes) >= _BIG and not last * _SHRUNK <= item.source_bytes <= max(_BIG, last * _GROWN):
            yield f"snapshot {item.id} of {component} has {item.source_bytes} bytes, the one before it {last}"
        changes = [_change(other) for other in before]
        if (
            item.source_bytes >= _BIG
            and len(before) >= _BEFORE_A_JUMP
            and median(changes) <= _USUAL_CHANGE
            and _change(item) > _JUMP_OF_CHANGE
        ):
            yield (
                f"snapshot {item.id} of {component} brought {_change(item):.0%} of its size anew, usually"
                f" {median(changes):.0%}: everything may have been encrypted, or the host lost its cache"
            )


def _change(item: StoredSnapshot) -> float:
    return item.stored_bytes / item.source_bytes if item.source_bytes else 0.0
