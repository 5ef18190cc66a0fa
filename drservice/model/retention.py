"""Which snapshots and recovery points may go, each with its reason: pure rules over what a store told.

Everything is judged by the store's clock, because a host's can be wrong or lie: a slot of the calendar (a day, a week)
belongs to the snapshot that reached the store first in it, so nothing that arrives later, whatever instant it claims,
takes the place of an earlier one of the same worth. What claims an impossible instant takes no slot, is never the
newest, and freezes the plan until a person has looked. A point stays whole: whatever keeps one of its snapshots keeps
all of them. Slots are days, ISO weeks, months and years in UTC.
"""

from __future__ import annotations

import calendar
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum

from drservice.clock import to_iso
from drservice.model.ids import ComponentName, SnapshotId
from drservice.model.retentionanomalies import anomalies_of, misdated
from drservice.model.retentionstock import Contents, StoredPoint, StoredSnapshot

_PERIOD = re.compile(r"([0-9]{1,5})(h|d|w|mo|y)")
_FIRST_INSTANT = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Period:
    """A span of the calendar: ``36h``, ``14d``, ``12w``, ``24mo`` or ``7y``."""

    amount: int
    unit: str

    @classmethod
    def parse(cls, text: str) -> Period:
        """Read a period.

        Raises:
            ValueError: it is none, or of no length.
        """
        match = _PERIOD.fullmatch(text)
        if match is None or int(match[1]) == 0:
            raise ValueError(f"{text!r} is no period such as 36h, 14d, 12w, 24mo or 7y")
        return cls(int(match[1]), match[2])

    def __str__(self) -> str:
        return f"{self.amount}{self.unit}"

    def before(self, instant: datetime) -> datetime:
        """Return the instant this long before another; a day a month does not have becomes its last."""
        spans = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}
        if self.unit in spans:
            seconds = (spans[self.unit] * self.amount).total_seconds()
            return max(_FIRST_INSTANT, instant - timedelta(seconds=min(seconds, instant.timestamp())))
        months = instant.year * 12 + instant.month - 1 - self.amount * (12 if self.unit == "y" else 1)
        year, month = divmod(months, 12)
        if year < _FIRST_INSTANT.year:
            return _FIRST_INSTANT
        day = min(instant.day, calendar.monthrange(year, month + 1)[1])
        return instant.replace(year=year, month=month + 1, day=day)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionPolicy:
    """How long snapshots are kept; without any period nothing ever expires."""

    within: Period | None = None
    """Every snapshot this young stays."""
    daily: Period | None = None
    """One a day for this long, and so on."""
    weekly: Period | None = None
    monthly: Period | None = None
    yearly: Period | None = None

    @property
    def is_set(self) -> bool:
        """Whether anything may expire at all."""
        return any((self.within, self.daily, self.weekly, self.monthly, self.yearly))


class Kept(Enum):
    """Why something stays."""

    NO_POLICY = "no policy"
    UNREADABLE = "beside something unreadable"
    SUSPECT = "suspect"
    WITHIN = "within"
    DAILY = "daily"
    WEEKLY = "weekly"
    MONTHLY = "monthly"
    YEARLY = "yearly"
    VERIFIED = "last verified"
    NEWEST = "newest"
    HOLD = "hold"
    POINT = "recovery point"
    DOCUMENTS = "documents"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What becomes of one snapshot or point: it stays because of ``kept``, or expires (``None``)."""

    kept: Kept | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionPlan:
    """What stays and what goes, oldest first by the store's clock."""

    now: datetime
    snapshots: tuple[tuple[StoredSnapshot, Verdict], ...]
    points: tuple[tuple[StoredPoint, Verdict], ...]
    anomalies: tuple[str, ...]
    accepted: bool
    """Whether a person has looked at the anomalies."""

    @property
    def is_frozen(self) -> bool:
        """Whether nothing may be deleted until a person has looked."""
        return bool(self.anomalies) and not self.accepted

    @property
    def expired_points(self) -> tuple[StoredPoint, ...]:
        """The points that may go."""
        return tuple(point for point, verdict in self.points if verdict.kept is None)

    @property
    def expired(self) -> tuple[StoredSnapshot, ...]:
        """The snapshots that may go."""
        return tuple(snapshot for snapshot, verdict in self.snapshots if verdict.kept is None)

    @property
    def remaining(self) -> tuple[StoredSnapshot, ...]:
        """The snapshots that stay."""
        return tuple(snapshot for snapshot, verdict in self.snapshots if verdict.kept is not None)


_SLOTS: tuple[tuple[Kept, str, Callable[[datetime], tuple[int, ...]]], ...] = (
    (Kept.DAILY, "day", lambda at: (at.year, at.month, at.day)),
    (Kept.WEEKLY, "week", lambda at: tuple(at.isocalendar())[:2]),
    (Kept.MONTHLY, "month", lambda at: (at.year, at.month)),
    (Kept.YEARLY, "year", lambda at: (at.year,)),
)


def plan_retention(
    contents: Contents, *, policy: RetentionPolicy, now: datetime, accepted: bool = False
) -> RetentionPlan:
    """Judge everything a service has.

    Args:
        contents: what the store, the ledger and the holds say.
        policy: how long things are kept.
        now: by the store's clock.
        accepted: a person looked at the anomalies: nothing is frozen, and what is misdated expires once it is older
            than ``within``.
    """
    judge = _Judge(contents, policy, now, accepted=accepted)
    direct = {snapshot.key: judge.directly(snapshot) for snapshot in contents.snapshots}
    points = [(point, judge.point(point, direct)) for point in contents.points]
    needed = {
        member: point.id for point, verdict in reversed(points) if verdict.kept is not None for member in point.members
    }
    snapshots: list[tuple[StoredSnapshot, Verdict]] = []
    for snapshot in contents.snapshots:
        verdict = direct[snapshot.key]
        if verdict is None and snapshot.key in needed:
            verdict = Verdict(kept=Kept.POINT, reason=f"recovery point {needed[snapshot.key]} needs it")
        snapshots.append((snapshot, verdict or judge.expired(snapshot)))
    return RetentionPlan(
        now=now,
        snapshots=tuple(sorted(snapshots, key=lambda item: (item[0].stored_at, item[0].id))),
        points=tuple(sorted(points, key=lambda item: (item[0].stored_at, item[0].id))),
        anomalies=anomalies_of(contents, now=now),
        accepted=accepted,
    )


class _Judge:
    """The rules over one service's contents."""

    def __init__(self, contents: Contents, policy: RetentionPolicy, now: datetime, *, accepted: bool) -> None:
        self._contents, self._policy, self._now, self._accepted = contents, policy, now, accepted
        self._regular = [item for item in contents.snapshots if not item.void and misdated(item) is None]
        self._in_points = {member for point in contents.points for member in point.members}
        self._slots = {kept: self._choose(key) for kept, _, key in _SLOTS}
        self._newest = self._newest_of(contents.snapshots)
        self._unreadable_components = {component for component, _ in contents.unreadable}

    def _choose(
        self, slot_of: Callable[[datetime], tuple[int, ...]]
    ) -> Mapping[tuple[ComponentName, tuple[int, ...]], StoredSnapshot]:
        """Return who stands for each slot of each component, whatever its age: so a choice never changes with time."""
        chosen: dict[tuple[ComponentName, tuple[int, ...]], StoredSnapshot] = {}
        for snapshot in sorted(self._regular, key=self._rank):
            chosen.setdefault((snapshot.component, slot_of(snapshot.stored_at)), snapshot)
        return chosen

    def _rank(self, item: StoredSnapshot) -> tuple[bool, int, bool, datetime, SnapshotId]:
        proved = item.id in self._contents.verified
        return (not proved, item.damage, item.key not in self._in_points, item.stored_at, item.id)

    def _newest_of(self, snapshots: Sequence[StoredSnapshot]) -> Mapping[tuple[ComponentName, SnapshotId], str]:
        """Return the newest of each component, and the newest undamaged one; a suspect only where there is no other."""
        found: dict[tuple[ComponentName, SnapshotId], str] = {}
        for component in {item.component for item in snapshots}:
            own = [item for item in self._regular if item.component == component]
            own = own or [item for item in snapshots if item.component == component]
            for what, among in (
                ("the newest undamaged one", [item for item in own if not item.damage]),
                ("the newest", own),
            ):
                if among:
                    found[max(among, key=lambda item: (item.stored_at, item.id)).key] = what
        return found

    def directly(self, snapshot: StoredSnapshot) -> Verdict | None:
        """Return why a snapshot stays for its own sake, ``None`` if it does not."""
        if not self._policy.is_set:
            return Verdict(kept=Kept.NO_POLICY, reason="no retention is configured")
        if self._contents.unreadable_points or snapshot.component in self._unreadable_components:
            what = next(iter(self._contents.unreadable_points), f"a snapshot of {snapshot.component}")
            return Verdict(kept=Kept.UNREADABLE, reason=f"{what} cannot be read and may need it")
        suspicion = misdated(snapshot)
        if suspicion is not None and not self._accepted:
            return Verdict(kept=Kept.SUSPECT, reason=suspicion)
        return self._by_policy(snapshot) or self._by_protection(snapshot)

    def _by_policy(self, snapshot: StoredSnapshot) -> Verdict | None:
        policy = self._policy
        if policy.within is not None and snapshot.stored_at >= policy.within.before(self._now):
            return Verdict(kept=Kept.WITHIN, reason=f"stored within {policy.within}")
        for kept, word, key in _SLOTS:
            period = self._period(kept)
            if period is None or snapshot.stored_at < period.before(self._now):
                continue
            if self._slots[kept].get((snapshot.component, key(snapshot.stored_at))) is snapshot:
                return Verdict(kept=kept, reason=f"stands for its {word}, for {period}")
        return None

    def _by_protection(self, snapshot: StoredSnapshot) -> Verdict | None:
        if snapshot.id in self._contents.last_verified:
            return Verdict(kept=Kept.VERIFIED, reason="recovery was last proved with it")
        if snapshot.key in self._newest:
            return Verdict(kept=Kept.NEWEST, reason=f"{self._newest[snapshot.key]} of {snapshot.component}")
        for hold in self._contents.holds:
            if hold.keeps(snapshot.component, snapshot.stored_at, now=self._now):
                return Verdict(kept=Kept.HOLD, reason=hold.describe())
        return None

    def _period(self, kept: Kept) -> Period | None:
        policy = self._policy
        return {
            Kept.DAILY: policy.daily,
            Kept.WEEKLY: policy.weekly,
            Kept.MONTHLY: policy.monthly,
            Kept.YEARLY: policy.yearly,
        }[kept]

    def point(self, point: StoredPoint, direct: Mapping[tuple[ComponentName, SnapshotId], Verdict | None]) -> Verdict:
        """Return what becomes of a point: it stays with the first of its snapshots that does."""
        if not self._policy.is_set:
            return Verdict(kept=Kept.NO_POLICY, reason="no retention is configured")
        for member in point.members:
            if member in self._contents.unreadable:
                return Verdict(kept=Kept.UNREADABLE, reason=f"its snapshot of {member[0]} cannot be read")
            verdict = direct.get(member)
            if verdict is not None:
                return Verdict(kept=verdict.kept, reason=f"its snapshot of {member[0]} stays: {verdict.reason}")
        if self._contents.unreadable_points:
            return Verdict(kept=Kept.UNREADABLE, reason="another recovery point cannot be read")
        return Verdict(kept=None, reason="none of its snapshots is kept")

    def expired(self, snapshot: StoredSnapshot) -> Verdict:
        """Say why a snapshot may go."""
        for kept, word, key in _SLOTS:
            period = self._period(kept)
            if period is None or snapshot.stored_at < period.before(self._now):
                continue
            chosen = self._slots[kept].get((snapshot.component, key(snapshot.stored_at)))
            if chosen is not None:
                return Verdict(kept=None, reason=f"{chosen.id} stands for its {word}")
        return Verdict(kept=None, reason=f"stored at {to_iso(snapshot.stored_at)}, older than every period")
