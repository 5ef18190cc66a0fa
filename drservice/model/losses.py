"""What a recovery lost and what is left to do about it: the loss report of one Odoo database. Pure values.

It is made right after the recovery, before anything of Odoo runs. It counts and proposes; nobody's data is changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum

from drservice.canonical import Json
from drservice.clock import to_iso
from drservice.model.ids import ComponentName, PointId
from drservice.model.wal import Lsn


@dataclass(frozen=True, slots=True, kw_only=True)
class LostWindow:
    """The time whose commits are not in the copy."""

    begin: datetime
    """What was committed up to here is there."""
    end: datetime | None
    """When production was last heard of; it may have gone on. ``None`` = the repository knows of nothing later."""
    heard_by: str | None
    """How production was heard of then."""

    @property
    def seconds(self) -> float | None:
        """How long it is at least."""
        return None if self.end is None else max(0.0, (self.end - self.begin).total_seconds())


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownBehind:
    """The newest recovery point behind the recovered position: what production had then is known."""

    point: PointId
    measured_at: datetime
    lsn: Lsn


@dataclass(frozen=True, slots=True, kw_only=True)
class TableLoss:
    """Rows that production had and the copy has not."""

    table: str
    here: int
    there: int
    states: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """By state, where they differ: how many here and how many there were."""
    newest_there: str | None = None
    """When production had written the newest one."""


class NumberKind(Enum):
    """How Odoo makes the next number of a document."""

    JOURNAL = "journal"
    """The highest that is there, and one more."""
    NO_GAP = "no-gap"
    """A row of ``ir_sequence``."""
    SEQUENCE = "sequence"
    """A sequence of PostgreSQL."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberAtRisk:
    """Numbers that the copy would give out again."""

    kind: NumberKind
    name: str
    here: int
    """The last one that the copy knows of."""
    there: int | None
    """The last one that production is known to have given out; ``None`` = not known of a later one."""
    proposed: int
    """The next one to use. Documents outside may have later ones still: look at the newest before it is set."""
    sql: str | None
    """What sets it; ``None`` = it is set in Odoo, with the first document."""

    @property
    def is_certain(self) -> bool:
        """Whether production is known to have given out numbers that the copy would give out again."""
        return self.there is not None and self.there > self.here


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """Rows that leave the house when Odoo runs."""

    table: str
    what: str
    count: int
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Overdue:
    """A scheduled action that runs as soon as Odoo starts."""

    id: int
    name: str
    due_at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """Something outside went on, and the copy does not know."""

    subject: str
    effect: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LossReport:
    """What the recovery of one Odoo database lost."""

    component: ComponentName
    database: str
    reached: Lsn
    is_lossy: bool
    """Whether anything that production had committed is known to be missing, or was left out on purpose."""
    window: LostWindow
    known: KnownBehind | None
    tables: tuple[TableLoss, ...] = ()
    numbers: tuple[NumberAtRisk, ...] = ()
    """Those at certain risk first."""
    other_sequences: int = 0
    """Sequences behind production's that number nothing but rows."""
    queues: tuple[Waiting, ...] = ()
    overdue_count: int = 0
    overdue: tuple[Overdue, ...] = ()
    effects: tuple[Effect, ...] = ()
    problems: tuple[str, ...] = ()
    """What could not be told, with the reason."""

    @property
    def rows_lost(self) -> int:
        """How many rows of the counted tables are known to be missing."""
        return sum(max(0, item.there - item.here) for item in self.tables)

    @property
    def certain_numbers(self) -> tuple[NumberAtRisk, ...]:
        """Numbers that would certainly be given out twice."""
        return tuple(item for item in self.numbers if item.is_certain)

    def as_json(self) -> dict[str, Json]:
        """Return the report as the JSON contract spells it."""
        window, known = self.window, self.known
        return {
            "component": self.component,
            "database": self.database,
            "reached_lsn": str(self.reached),
            "lossy": self.is_lossy,
            "window": {
                "from": to_iso(window.begin),
                "to": to_iso(window.end) if window.end is not None else None,
                "heard_by": window.heard_by,
                "seconds": None if window.seconds is None else int(window.seconds),
            },
            "known_behind": (
                {"point": known.point, "measured_at": to_iso(known.measured_at), "lsn": str(known.lsn)}
                if known is not None
                else None
            ),
            "rows_lost": self.rows_lost,
            "tables": [
                {
                    "table": item.table,
                    "here": item.here,
                    "in_production": item.there,
                    "states": {
                        state: {"here": here, "in_production": there} for state, (here, there) in item.states.items()
                    },
                    "newest_in_production": item.newest_there,
                }
                for item in self.tables
            ],
            "numbers": [
                {
                    "kind": item.kind.value,
                    "name": item.name,
                    "last_here": item.here,
                    "last_in_production": item.there,
                    "certain": item.is_certain,
                    "proposed_next": item.proposed,
                    "sql": item.sql,
                }
                for item in self.numbers
            ],
            "other_sequences_behind": self.other_sequences,
            "queues": [
                {"table": item.table, "what": item.what, "count": item.count, "ids": list(item.ids)}
                for item in self.queues
            ],
            "overdue_actions": {
                "count": self.overdue_count,
                "first": [{"id": item.id, "name": item.name, "due_at": item.due_at} for item in self.overdue],
            },
            "outside": [{"subject": item.subject, "effect": item.effect} for item in self.effects],
            "problems": list(self.problems),
        }
