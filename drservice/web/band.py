"""The band of reachable instants: stretches and gaps of a service's clusters as numbers for a drawing and its table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise

from drservice.catalogue.reading import PointInfo, WindowInfo

WIDTH = 1000
_NARROWEST = 2.0
"""A stretch of a second in a month is still seen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """Instants that can be reached, one after the other, and where they are drawn."""

    begin: datetime
    end: datetime
    x: float
    width: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Instants between two stretches that cannot be reached."""

    begin: datetime
    end: datetime
    x: float
    width: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A recovery point on the band."""

    point: PointInfo
    x: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """The whole drawing, from the oldest reachable instant to now."""

    begin: datetime
    end: datetime
    stretches: tuple[Stretch, ...]
    gaps: tuple[Gap, ...]
    marks: tuple[Mark, ...]

    @property
    def ticks(self) -> tuple[datetime, ...]:
        """Return the instants at the beginning and after each quarter but the last, which is now."""
        quarter = (self.end - self.begin) / 4
        return tuple(self.begin + quarter * number for number in range(4))

    def holds(self, instant: datetime) -> bool:
        """Tell whether an instant can be reached."""
        return any(item.begin <= instant <= item.end for item in self.stretches)


def band_of(
    clusters: Sequence[str], windows: Sequence[WindowInfo], points: Sequence[PointInfo], now: datetime
) -> Band | None:
    """Lay out the instants that *every* cluster can be brought to; ``None`` if there are none."""
    common: list[tuple[datetime, datetime]] | None = None
    for cluster in clusters:
        own = _merged(
            [(w.from_time, w.to_time) for w in windows if w.component == cluster and w.from_time and w.to_time]
        )
        common = own if common is None else _both(common, own)
    if not common:
        return None
    begin, end = common[0][0], max(now, common[-1][1])
    length = max(end - begin, timedelta(seconds=1))

    def place(instant: datetime) -> float:
        return round((instant - begin) / length * WIDTH, 1)

    stretches = tuple(
        Stretch(begin=first, end=last, x=place(first), width=max(_NARROWEST, round(place(last) - place(first), 1)))
        for first, last in common
    )
    holes = [(earlier[1], later[0]) for earlier, later in pairwise(common)]
    gaps = tuple(
        Gap(begin=first, end=last, x=place(first), width=max(_NARROWEST, round(place(last) - place(first), 1)))
        for first, last in holes
    )
    marks = tuple(Mark(point=point, x=place(point.created_at)) for point in points if begin <= point.created_at <= end)
    return Band(begin=begin, end=end, stretches=stretches, gaps=gaps, marks=marks)


def _merged(ranges: Sequence[tuple[datetime, datetime]]) -> list[tuple[datetime, datetime]]:
    merged: list[tuple[datetime, datetime]] = []
    for begin, end in sorted(item for item in ranges if item[0] <= item[1]):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((begin, end))
    return merged


def _both(
    one: Sequence[tuple[datetime, datetime]], other: Sequence[tuple[datetime, datetime]]
) -> list[tuple[datetime, datetime]]:
    return _merged(
        [(max(a[0], b[0]), min(a[1], b[1])) for a in one for b in other if max(a[0], b[0]) <= min(a[1], b[1])]
    )
