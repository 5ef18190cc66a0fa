"""The chapters from which completeness can be judged: restores, obligations, services, backups, keys. Pure."""

from __future__ import annotations

from drservice.evidence.report import (
    BackupTally,
    KeySpan,
    Obligation,
    ObligationState,
    Report,
    ServicePosture,
)
from drservice.evidence.reportdrills import documents_text, verdict_cell
from drservice.evidence.reportentries import Gravity, RestoreEntry, RestoreOutcome, RetentionEntry
from drservice.evidence.reporttext import format_count, format_instant, format_ms
from drservice.evidence.reportview import (
    Cell,
    Section,
    Style,
    Table,
    Tone,
    code,
    columns,
    moment,
    number,
    status,
    text,
)

_RESTORES = {RestoreOutcome.RESTORED: Tone.GOOD, RestoreOutcome.PARTIAL: Tone.WARN, RestoreOutcome.FAILED: Tone.BAD}
_STATES = {
    ObligationState.ANSWERED: Tone.GOOD,
    ObligationState.LATE: Tone.WARN,
    ObligationState.OPEN: Tone.QUIET,
    ObligationState.MISSED: Tone.BAD,
}


def restore_section(report: Report) -> Section:
    """Return the restores that somebody needed."""
    promised = {posture.facts.name: posture.facts.promise.rto_ms for posture in report.posture}
    table = Table(
        title="Restores in the period",
        columns=columns(
            ("Outcome", 3, Style.STATUS),
            ("Service", 3),
            ("Recorded (UTC)", 4),
            ("Target reached (UTC)", 4),
            ("RTO", 3, Style.NUMBER),
            ("Promised", 3, Style.NUMBER),
            ("Documents", 5),
            ("Entry", 2, Style.NUMBER),
        ),
        rows=tuple(_restore_row(restore, promised.get(restore.stamp.service or "")) for restore in report.restores),
        empty="There was no restore in the period beside the drills.",
    )
    return Section(
        name="restores", title="Restores", intro="Restores that somebody needed, drills apart.", tables=(table,)
    )


def _restore_row(restore: RestoreEntry, promised: int | None) -> tuple[Cell, ...]:
    target = restore.restoration.target
    return (
        status(restore.outcome.value, _RESTORES[restore.outcome]),
        text(restore.stamp.service or "-"),
        moment(format_instant(restore.stamp.recorded_at)),
        moment(format_instant(target.reached_time) if target else "-"),
        number(format_ms(restore.restoration.rto_ms)),
        number(format_ms(promised)),
        text(documents_text(restore.restoration.documents)),
        number(str(restore.stamp.number)),
    )


def population_section(report: Report) -> Section:
    """Return everything there is, so that what is missing can be seen."""
    return Section(
        name="populations",
        title="Populations",
        intro="All obligations, services and backups in the scope, and all entries of the ledger, to sample from.",
        tables=(
            _obligations(report),
            _services(report),
            _backups(report),
            _findings(report),
            _approvals(report),
            _probes(report),
            _not_done(report),
            _retention(report),
            _access(report),
            _kinds(report),
        ),
    )


def _obligations(report: Report) -> Table:
    return Table(
        title=f"Obligations ({len(report.obligations)})",
        columns=columns(
            ("State", 3, Style.STATUS),
            ("Service", 3),
            ("Plan", 4),
            ("Recorded (UTC)", 4),
            ("Due (UTC)", 4),
            ("Came out", 4, Style.STATUS),
            ("Entry", 2, Style.NUMBER),
            ("Answer", 2, Style.NUMBER),
        ),
        rows=tuple(_obligation_row(obligation) for obligation in report.obligations),
        empty="Nothing was promised to be tested.",
    )


def _obligation_row(obligation: Obligation) -> tuple[Cell, ...]:
    entry = obligation.entry
    plan = f"{entry.plan} ({entry.mutation})" if entry.mutation else entry.plan
    later = f"({obligation.answered_after})" if obligation.answered_after is not None else "-"
    return (
        status(obligation.state.value, _STATES[obligation.state]),
        text(entry.stamp.service or "-"),
        text(plan),
        moment(format_instant(entry.stamp.recorded_at)),
        moment(format_instant(entry.due_at) if entry.due_at else "at once"),
        verdict_cell(obligation.verdict) if obligation.verdict else status("no outcome", Tone.QUIET),
        number(str(entry.stamp.number)),
        number(str(obligation.answer.stamp.number) if obligation.answer else later),
    )


def _services(report: Report) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for posture in report.posture:
        rows.extend(_component_rows(posture))
    return Table(
        title=f"Services and components ({len(report.posture)} services)",
        columns=columns(("Protection", 4, Style.STATUS), ("Service", 4), ("Component", 4), ("Kind", 4), ("Note", 7)),
        rows=tuple(rows),
        empty="No service is in the scope of this report.",
    )


def _component_rows(posture: ServicePosture) -> list[tuple[Cell, ...]]:
    name = text(posture.facts.name)
    if not posture.facts.components:
        note = "no component is declared" if posture.is_declared else "not in the configuration"
        return [(status("not known", Tone.WARN), name, text("-"), text("-"), text(note))]
    return [
        (
            status("backed up", Tone.GOOD) if component.is_protected else status("not protected", Tone.WARN),
            name,
            text(component.name),
            text(component.kind),
            text(component.note or "-"),
        )
        for component in posture.facts.components
    ]


def _backups(report: Report) -> Table:
    return Table(
        title="Backups in the period",
        columns=columns(
            ("Service", 4),
            ("All", 2, Style.NUMBER),
            ("Complete", 3, Style.NUMBER),
            ("Degraded", 3, Style.NUMBER),
            ("Partial", 2, Style.NUMBER),
            ("Failed", 2, Style.NUMBER),
            ("Last recovery point (UTC)", 5),
            ("Longest time without a new one", 4, Style.NUMBER),
        ),
        rows=tuple(_backup_row(tally) for tally in report.backups),
        empty="No service is in the scope of this report.",
    )


def _backup_row(tally: BackupTally) -> tuple[Cell, ...]:
    return (
        text(tally.service),
        *(
            number(format_count(count))
            for count in (tally.total, tally.complete, tally.degraded, tally.partial, tally.failed)
        ),
        moment(format_instant(tally.last_at)),
        number(format_ms(tally.longest_gap_ms)),
    )


def _findings(report: Report) -> Table:
    return Table(
        title=f"Findings ({len(report.findings)})",
        columns=columns(
            ("State", 3, Style.STATUS),
            ("Service", 3),
            ("Check", 4),
            ("Owner", 4),
            ("Due (UTC)", 4),
            ("Detail", 7),
            ("Entry", 2, Style.NUMBER),
        ),
        rows=tuple(
            (
                status("open", Tone.BAD if entry.gravity is Gravity.CRITICAL else Tone.WARN)
                if entry.is_open
                else status("closed", Tone.GOOD),
                text(entry.stamp.service or "-"),
                text(entry.check),
                text(entry.owner or "-"),
                moment(format_instant(entry.due_at)),
                text(entry.detail),
                number(str(entry.stamp.number)),
            )
            for entry in report.findings
        ),
        empty="No finding was open in the period.",
    )


def _approvals(report: Report) -> Table:
    return Table(
        title="Approvals in the period",
        columns=columns(
            ("Decision", 3, Style.STATUS),
            ("Approver", 4),
            ("About entry", 3, Style.NUMBER),
            ("Recorded (UTC)", 4),
            ("Comment", 7),
            ("Entry", 2, Style.NUMBER),
        ),
        rows=tuple(
            (
                status(entry.decision, Tone.GOOD if entry.decision == "approved" else Tone.WARN),
                text(entry.approver),
                number(str(entry.entry)),
                moment(format_instant(entry.stamp.recorded_at)),
                text(entry.comment or "-"),
                number(str(entry.stamp.number)),
            )
            for entry in report.approvals
        ),
        empty="Nothing was approved or rejected in the period.",
    )


def _probes(report: Report) -> Table:
    return Table(
        title="Probes in the period",
        columns=columns(
            ("Outcome", 3, Style.STATUS),
            ("Probe", 5),
            ("Recorded (UTC)", 4),
            ("Results", 7),
            ("Entry", 2, Style.NUMBER),
        ),
        rows=tuple(
            (
                status("passed", Tone.GOOD) if entry.is_passed else status("failed", Tone.BAD),
                text(entry.probe),
                moment(format_instant(entry.stamp.recorded_at)),
                text(", ".join(f"{result.name}: {'yes' if result.is_good else 'NO'}" for result in entry.results)),
                number(str(entry.stamp.number)),
            )
            for entry in report.probes
        ),
        empty="No probe was recorded in the period.",
    )


def _not_done(report: Report) -> Table:
    """Return slots that nobody was there for and runs without a result, in the order of the ledger."""
    rows = [
        (
            entry.stamp.number,
            (
                status("caught up", Tone.WARN) if entry.caught_up_by else status("missed", Tone.BAD),
                text(entry.stamp.service or "-"),
                text(f"{entry.kind} {entry.plan or ''}".rstrip()),
                number(format_count(len(entry.slots))),
                moment(format_instant(entry.slots[-1])),
                text(entry.reason),
                number(str(entry.stamp.number)),
            ),
        )
        for entry in report.missed
    ]
    rows += [
        (
            entry.stamp.number,
            (
                status(entry.outcome, Tone.BAD if entry.outcome == "failed" else Tone.WARN),
                text(entry.stamp.service or "-"),
                text(f"{entry.kind} {entry.plan or ''}".rstrip()),
                number("1"),
                moment(format_instant(entry.scheduled_for)),
                text(f"{entry.error.code} {entry.error.message}" if entry.error else "-"),
                number(str(entry.stamp.number)),
            ),
        )
        for entry in report.failures
    ]
    return Table(
        title="Slots missed and runs without a result in the period",
        columns=columns(
            ("What", 3, Style.STATUS),
            ("Service", 3),
            ("Run", 4),
            ("Slots", 2, Style.NUMBER),
            ("Last slot (UTC)", 4),
            ("Why", 7),
            ("Entry", 2, Style.NUMBER),
        ),
        rows=tuple(row for _, row in sorted(rows, key=lambda item: item[0])),
        empty="No slot was missed and no scheduled run ended without a result.",
    )


def _retention(report: Report) -> Table:
    return Table(
        title="Retention in the period",
        columns=columns(
            ("Outcome", 3, Style.STATUS),
            ("Service", 3),
            ("Action", 3),
            ("Recorded (UTC)", 4),
            ("Points gone", 2, Style.NUMBER),
            ("Snapshots gone", 2, Style.NUMBER),
            ("Kept", 6),
            ("Entry", 2, Style.NUMBER),
        ),
        rows=tuple(
            (
                status(entry.outcome, Tone.GOOD if entry.outcome in {"applied", "marked"} else Tone.WARN),
                text(entry.stamp.service or "-"),
                text(entry.action),
                moment(format_instant(entry.stamp.recorded_at)),
                *(number(format_count(dict(entry.removed).get(name) or 0)) for name in ("points", "snapshots")),
                text(_kept(entry)),
                number(str(entry.stamp.number)),
            )
            for entry in report.retention
        ),
        empty="Nothing was let go in the period.",
    )


def _kept(entry: RetentionEntry) -> str:
    return ", ".join(f"{count} {why}" for why, count in entry.kept) or "-"


def _access(report: Report) -> Table:
    return Table(
        title="Days of the access log in the period",
        columns=columns(
            ("Day", 3),
            ("Lines", 2, Style.NUMBER),
            ("Succeeded", 2, Style.NUMBER),
            ("Refused", 2, Style.NUMBER),
            ("Failed", 2, Style.NUMBER),
            ("Sign-ins refused", 2, Style.NUMBER),
            ("Late", 2, Style.NUMBER),
            ("SHA-256", 8, Style.CODE),
            ("Entry", 2, Style.NUMBER),
        ),
        rows=tuple(
            (
                text(f"{entry.day} (a log begins)" if entry.is_first else entry.day),
                *(
                    number(format_count(count))
                    for count in (
                        entry.lines,
                        entry.succeeded,
                        entry.refused,
                        entry.failed,
                        entry.sign_ins_refused,
                        entry.late,
                    )
                ),
                code(entry.sha256),
                number(str(entry.stamp.number)),
            )
            for entry in report.access
        ),
        empty="No access log was put on record in the period.",
    )


def _kinds(report: Report) -> Table:
    return Table(
        title=f"Entries of the ledger ({report.ledger.tree_size:,}, of all services)",
        columns=columns(("Kind", 6), ("In the ledger", 3, Style.NUMBER), ("In the period", 3, Style.NUMBER)),
        rows=tuple(
            (text(kind), number(format_count(total)), number(format_count(inside)))
            for kind, total, inside in report.populations
        ),
        empty="The ledger is empty.",
    )


def keys_section(report: Report) -> Section:
    """Return the keys that the ledger names, and for which entries."""
    table = Table(
        title="Keys",
        columns=columns(("Name", 3), ("Role", 3), ("Entries", 3), ("Services", 4), ("Public key", 8, Style.CODE)),
        rows=tuple(_key_row(span) for span in report.keys),
        empty="The ledger names no key.",
    )
    intro = (
        "The keys as the ledger itself names them. A key counts for what it signed only if your own policy names it; "
        "a ledger cannot vouch for its own keys."
    )
    return Section(name="keys", title="Keys", intro=intro, tables=(table,))


def _key_row(span: KeySpan) -> tuple[Cell, ...]:
    entry = span.entry
    until = f"to {span.ended_by}" if span.ended_by is not None else "on"
    return (
        text(entry.name),
        text(entry.role),
        text(f"from {entry.stamp.number} {until}"),
        text(", ".join(entry.services) or "all"),
        code(entry.public),
    )
