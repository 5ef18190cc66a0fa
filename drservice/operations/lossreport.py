"""The loss report: what a recovery of Odoo lost, and what has to be decided before anybody works with it again.

It is made while the recovered server runs and before anything is changed in it: the queues are those of the recovered
instant. What production had behind that instant is known from the newest recovery point there, if there is one. Nothing
here can fail a restore: what cannot be told is one of the report's problems.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from drservice import telemetry
from drservice.canonical import Json
from drservice.clock import Clock, to_iso
from drservice.components.odoo.gathering import (
    COUNTED,
    JOURNALS,
    NO_GAP,
    Numbered,
    TableCount,
    count_name,
    count_rows,
    decode_numbers,
    odoo_key,
)
from drservice.components.odoo.numbering import compare_numbers
from drservice.components.odoo.schema import OdooSchema, pinned, read_schema
from drservice.components.odoo.waiting import read_jobs, read_outside, read_queues
from drservice.components.postgres.asking import Asking, asking
from drservice.components.postgres.baseline import SEQUENCES, decode_sequences, watermark_key
from drservice.components.postgres.recovery import TargetAction
from drservice.environments.interface import Environment
from drservice.errors import DrError, FormatError
from drservice.model.checks import Baseline
from drservice.model.ids import EnvironmentId, is_ulid
from drservice.model.losses import KnownBehind, LossReport, LostWindow, TableLoss
from drservice.model.recovery import TargetKind
from drservice.model.wal import WalFileName
from drservice.operations.pointbaselines import read_baseline, stands_on_path
from drservice.operations.replay import Reached
from drservice.operations.restorerequest import Planned, RestoreContext, RestoreRequest
from drservice.operations.streamstate import read_state
from drservice.processes import create_private, make_folder

_QUESTION_SECONDS = 10.0
_BUDGET_SECONDS = 30.0
_KEPT = 50
_WITHOUT = frozenset({"extract", "mutation"})
"""Purposes of restores that nobody works with afterwards."""
_Value = TypeVar("_Value")


def report_losses(
    context: RestoreContext, request: RestoreRequest, planned: Planned, reached: Reached, environment: Environment
) -> tuple[LossReport, ...]:
    """Return what was lost, of each database that Odoo's documents follow; none for a server that was shut down."""
    followed = [
        item.database
        for item in request.service.filestores()
        if item.follows == request.component.name
        and item.database is not None
        and request.database in {None, item.database}
    ]
    if not followed or request.purpose in _WITHOUT or request.action is TargetAction.SHUTDOWN:
        return ()
    context.progress.step("report what was lost")
    known, problems = _known_behind(context, request, planned, reached)
    window = _window(context, request, planned, reached, known)
    head = LossReport(
        component=request.component.name,
        database="",
        reached=reached.lsn,
        is_lossy=known is not None or not planned.resolved.plan.target.is_latest,
        window=window,
        known=None if known is None else known.named,
        problems=problems,
    )
    reports = []
    for database in dict.fromkeys(followed):
        report = _ask(replace(head, database=database), known, environment, context.clock)
        if report is not None:
            reports.append(report)
    return tuple(reports)


# --- what is known of production behind the recovered position ------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Behind:
    named: KnownBehind
    baseline: Baseline


def _known_behind(
    context: RestoreContext, request: RestoreRequest, planned: Planned, reached: Reached
) -> tuple[_Behind | None, tuple[str, ...]]:
    """Return the newest point of this history whose baseline lies behind the recovered position."""
    service, component = request.service.name, request.component.name
    try:
        points = context.repository.points(service).listing().points
        for point in reversed(points):
            if not stands_on_path(point, planned.resolved.plan):
                continue
            baseline = read_baseline(context.repository, service, point, component, context.progress)
            if baseline is None:
                continue
            if baseline.lsn <= reached.lsn:
                break
            named = KnownBehind(point=point.id, measured_at=baseline.measured_at, lsn=baseline.lsn)
            return _Behind(named=named, baseline=baseline), ()
    except DrError as error:
        return None, (f"recovery points behind the target cannot be read: {error.message}",)
    return None, ()


def _window(
    context: RestoreContext, request: RestoreRequest, planned: Planned, reached: Reached, known: _Behind | None
) -> LostWindow:
    """Return the lost time: up to when production was last heard of, by whoever heard of it last."""
    plan = planned.resolved.plan
    begin = reached.time or plan.snapshot.stopped_at
    if plan.target.kind is TargetKind.TIME and plan.target.time is not None:
        begin = max(begin, plan.target.time)  # in between nothing was committed
    heard: list[tuple[datetime, str]] = []
    if known is not None:
        heard.append((known.named.measured_at, f"recovery point {known.named.point}"))
    timelines = {span.timeline for span in plan.reach.path}
    stored = [
        at for name, at in planned.archived.inventory.stored_at.items() if WalFileName.parse(name).timeline in timelines
    ]
    if stored:
        heard.append((max(stored), "the newest WAL in the repository, by the store's clock"))
    with suppress(DrError, OSError):  # a receiver that cannot be read has not been heard of
        state = read_state(context.state_dir, request.service.name, request.component.name)
        if state is not None and state.server_time is not None:
            heard.append((state.server_time, "the WAL receiver of this host"))
    later = [item for item in heard if item[0] > begin]
    if not later:
        return LostWindow(begin=begin, end=None, heard_by=None)
    end, heard_by = max(later)
    return LostWindow(begin=begin, end=end, heard_by=heard_by)


# --- what the copy says ---------------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class _Asker:
    """Asks one question after the other; what fails is a problem, and what comes too late is not asked."""

    source: Asking
    clock: Clock
    deadline: float
    problems: list[str] = field(default_factory=list)

    def ask(self, what: str, question: Callable[[], _Value]) -> _Value | None:
        """Return the answer; ``None`` if there is none, which is a problem then."""
        left = self.deadline - self.clock.monotonic()
        if left <= 0:
            self.problems.append(f"{what}: not asked, the report took {_BUDGET_SECONDS:.0f} s already")
            return None
        try:
            with self.source.hurried(min(_QUESTION_SECONDS, left)):
                return question()
        except (DrError, ValueError) as error:
            self.problems.append(f"{what}: {error.message if isinstance(error, DrError) else error}")
            return None


def _ask(head: LossReport, known: _Behind | None, environment: Environment, clock: Clock) -> LossReport | None:
    """Return the report of one database; ``None`` if it is none of Odoo's."""
    try:
        with _open(environment, head.database) as source:
            schema = read_schema(source)
            if not schema.is_odoo:
                return None
            asker = _Asker(source=source, clock=clock, deadline=clock.monotonic() + _BUDGET_SECONDS)
            return _filled(head, known, asker, schema)
    except DrError as error:
        telemetry.warning("loss report not made", database=head.database, problem=error.message)
        return replace(head, problems=(*head.problems, f"the database cannot be asked: {error.message}"))


@contextmanager
def _open(environment: Environment, database: str) -> Iterator[Asking]:
    environment.require_own_socket()
    with (
        asking(
            environment.dsn, seconds=_QUESTION_SECONDS, database=database, application_name="drservice loss"
        ) as source,
        pinned(source),
    ):
        yield source


def _filled(head: LossReport, known: _Behind | None, asker: _Asker, schema: OdooSchema) -> LossReport:
    source, now = asker.source, to_iso(asker.clock.now())
    queues = asker.ask("what waits to be sent", lambda: tuple(read_queues(source, schema)))
    jobs = asker.ask("scheduled actions", lambda: read_jobs(source, schema, now=now))
    effects = asker.ask("mailboxes and payment providers", lambda: tuple(read_outside(source, schema)))
    answers = _Answers(known=known, database=head.database, problems=asker.problems)
    numbers = asker.ask(
        "document numbers",
        lambda: compare_numbers(
            source,
            schema,
            journals=answers.numbers(JOURNALS),
            no_gap=answers.numbers(NO_GAP),
            sequences=answers.sequences(),
        ),
    )
    if known is not None and not answers.are_odoos:
        asker.problems.append(f"rows and document numbers in production: recovery point {known.named.point} has none")
    tables = _tables(answers, asker, schema) if answers.are_odoos else ()
    return replace(
        head,
        tables=tables,
        numbers=numbers[0] if numbers is not None else (),
        other_sequences=numbers[1] if numbers is not None else 0,
        queues=queues or (),
        overdue_count=jobs.count if jobs is not None else 0,
        overdue=jobs.overdue if jobs is not None else (),
        effects=effects or (),
        problems=(*head.problems, *asker.problems),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answers:
    """What production had answered behind the recovered position."""

    known: _Behind | None
    database: str
    problems: list[str]

    def text(self, key: str, what: str) -> str | None:
        if self.known is None:
            return None
        answer = self.known.baseline.value(key)
        if answer.value is None:
            self.problems.append(f"{what} in production: {answer.problem}")
        return answer.value

    @property
    def are_odoos(self) -> bool:
        """Whether Odoo's tables were counted at all; the points of an earlier version have watermarks only."""
        if self.known is None:
            return False
        baseline, beginning = self.known.baseline, f"odoo:{self.database}"
        return any(key.startswith(beginning) for key in (*baseline.values, *baseline.problems))

    def numbers(self, name: str) -> list[Numbered]:
        if not self.are_odoos:
            return []
        text = self.text(odoo_key(self.database, name), name)
        return decode_numbers(text) if text is not None else []

    def sequences(self) -> Mapping[str, int]:
        text = self.text(watermark_key(self.database, SEQUENCES), SEQUENCES)
        return decode_sequences(text) if text is not None else {}


def _tables(answers: _Answers, asker: _Asker, schema: OdooSchema) -> tuple[TableLoss, ...]:
    found = []
    for table in COUNTED:
        if not schema.has(table):
            continue
        text = answers.text(odoo_key(answers.database, count_name(table)), table)
        if text is None:
            continue
        there = asker.ask(table, lambda text=text: TableCount.decode(text))  # type: ignore[misc]  # mypy infers no type for a lambda's default
        here = asker.ask(table, lambda table=table: count_rows(asker.source, schema, table))  # type: ignore[misc]  # as above
        if there is None or here is None:
            continue
        states = {
            state: (here.rows.get(state, 0), there.rows.get(state, 0))
            for state in {**there.rows, **here.rows}
            if state and here.rows.get(state, 0) != there.rows.get(state, 0)
        }
        if states or here.total != there.total:
            found.append(
                TableLoss(table=table, here=here.total, there=there.total, states=states, newest_there=there.written)
            )
    return tuple(found)


# --- seen again -----------------------------------------------------------------------------------------------


def _folder(state_dir: Path) -> Path:
    return state_dir / "losses"


def keep_report(state_dir: Path, environment: EnvironmentId, document: Mapping[str, Json]) -> None:
    """Keep the reports of a recovery on this host, so that they can be seen again when its output is gone.

    Raises:
        OSError: they cannot be written.
    """
    folder = _folder(state_dir)
    make_folder(folder, mode=0o700)
    temporary = folder / f".{environment}.new"
    with os.fdopen(create_private(temporary), "w", encoding="utf-8") as stream:
        json.dump(document, stream)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(folder / f"{environment}.json")
    for old in kept_reports(state_dir)[:-_KEPT]:
        (folder / f"{old}.json").unlink(missing_ok=True)


def kept_reports(state_dir: Path) -> list[EnvironmentId]:
    """Return whose reports are kept on this host, the oldest first."""
    with suppress(FileNotFoundError):
        return sorted(EnvironmentId(path.stem) for path in _folder(state_dir).iterdir() if is_ulid(path.stem))
    return []


def read_report(state_dir: Path, environment: EnvironmentId) -> dict[str, Json]:
    """Return what :func:`keep_report` kept.

    Raises:
        FileNotFoundError: there is none.
        FormatError: it is something else.
    """
    path = _folder(state_dir) / f"{environment}.json"
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise FormatError(f"{path} cannot be read: {error}", hint="It is a copy for reading: remove it.") from error
    if not isinstance(value, dict):
        raise FormatError(f"{path} holds no loss report", hint="It is a copy for reading: remove it.")
    return value


def reports_of(document: Mapping[str, Json]) -> list[Mapping[str, Json]]:
    """Return the reports of a kept document, one for each database.

    Raises:
        KeyError, ValueError: it has none.
    """
    reports = document["losses"]
    if isinstance(reports, str) or not isinstance(reports, Sequence):
        raise ValueError("there is no list of reports")  # noqa: TRY004 - one kind of error for the reader's caller
    found = []
    for report in reports:
        if not isinstance(report, Mapping):
            raise ValueError("a report is an object")  # noqa: TRY004 - one kind of error for the reader's caller
        found.append(report)
    return found
