"""History: runs and their events that are too old to be looked at. What is to be remembered longer is in the ledger.

What is not over stays, and so does the newest run of each schedule that brought a result, however old: schedules are
judged by it. Passes over documents come every few seconds or minutes, and go when their events do.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

from sqlalchemy import CursorResult, TextClause, delete, text
from sqlalchemy.orm import Session

from drservice.catalogue.tables import Environment
from drservice.catalogue.timetables import catalogue_now
from drservice.model.estate import HistorySettings
from drservice.model.ids import make_ulid
from drservice.model.runs import RunKind, RunState

_OVER = [state.value for state in RunState if state.is_over]


@dataclass(frozen=True, slots=True, kw_only=True)
class Forgotten:
    """What was removed."""

    runs: int
    events: int


def forget(session: Session, history: HistorySettings, *, limit: int) -> Forgotten:
    """Remove what is older than ``history`` keeps, oldest first, at most ``limit`` of each.

    Environments that should be gone for as long as steps are kept, go too: their host will not come back to tell.
    """
    ended = catalogue_now(session) - history.events
    session.execute(delete(Environment).where(Environment.expires_at < ended))
    passes = RunKind.DOCUMENTS.value
    events = _remove(session, _EVENTS, history.events, limit)
    runs = _remove(session, _PASSES, history.events, limit, kind=passes)
    runs += _remove(session, _RUNS, history.runs, limit, kind=passes)
    return Forgotten(runs=runs, events=events)


def _remove(session: Session, statement: TextClause, age: timedelta, limit: int, **values: str) -> int:
    before = catalogue_now(session) - age
    # Ids tell when a run was asked for, so that what is old is found by the primary key, from its beginning.
    asked = {"floor": make_ulid(before, bytes(10)), "before": before, "over": _OVER, "limit": limit, **values}
    return cast("CursorResult[Any]", session.execute(statement, asked)).rowcount


_EVENTS = text(
    """
    DELETE FROM run_event USING (
        SELECT event.run, event.number FROM run_event AS event JOIN run ON run.id = event.run
        WHERE event.run < :floor AND run.ended_at < :before AND run.state = ANY (:over)
        ORDER BY event.run, event.number LIMIT :limit
    ) AS old
    WHERE run_event.run = old.run AND run_event.number = old.number
    """
)
_OLD_RUNS = """
    DELETE FROM run WHERE id IN (
        SELECT id FROM run AS old
        WHERE kind {0} :kind AND id < :floor AND ended_at < :before AND state = ANY (:over)
          AND (state NOT IN ('succeeded', 'partial') OR EXISTS (
                SELECT FROM run AS newer
                WHERE newer.service = old.service AND newer.kind = old.kind AND newer.plan = old.plan
                  AND newer.state IN ('succeeded', 'partial') AND newer.state = old.state
                  AND newer.ended_at > old.ended_at))
        ORDER BY id LIMIT :limit
    )"""
_RUNS = text(_OLD_RUNS.format("<>"))
_PASSES = text(_OLD_RUNS.format("="))
