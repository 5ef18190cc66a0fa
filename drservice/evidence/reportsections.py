"""The words of a report, chapter by chapter. Pure: a :class:`Report` in, a :class:`View` out.

Order is what a reader is owed first: the state of each service, then everything that is not as promised, then what was
not tested, and only then the drills in full and the populations from which completeness can be judged.
"""

from __future__ import annotations

from drservice.clock import to_iso
from drservice.evidence.report import (
    BackedUp,
    CoverageCell,
    Drill,
    DrillVerdict,
    Keeping,
    LedgerFacts,
    Measured,
    Report,
    ServicePosture,
    Standing,
    Verified,
)
from drservice.evidence.reportdrills import documents_text, drill_card, verdict_cell
from drservice.evidence.reportentries import Gravity, Target
from drservice.evidence.reportpopulations import keys_section, population_section, restore_section
from drservice.evidence.reporttext import count_of, format_count, format_day, format_instant, format_ms, neutralise
from drservice.evidence.reportview import (
    Bar,
    Cell,
    Fact,
    Section,
    ServiceCard,
    Style,
    Table,
    Tone,
    View,
    columns,
    entries,
    fact,
    moment,
    number,
    share_of,
    status,
    text,
)

DETAILED_DRILLS = 100
"""Drills shown in full: those that did not end as they should first, then the newest. The table has all of them."""

_STANDINGS = {
    Standing.PROVED: status("proved", Tone.GOOD),
    Standing.ATTENTION: status("attention", Tone.WARN),
    Standing.NOT_PROVED: status("not proved", Tone.WARN),
    Standing.BREACHED: status("breached", Tone.BAD),
}
_KEEPINGS = {
    Keeping.KEPT: status("kept", Tone.GOOD),
    Keeping.BREACHED: status("breached", Tone.BAD),
    Keeping.NOT_MEASURED: status("not measured", Tone.WARN),
    Keeping.NOT_PROMISED: status("nothing promised", Tone.QUIET),
}
_BACKED_UP = {
    BackedUp.COMPLETE: Tone.GOOD,
    BackedUp.DEGRADED: Tone.WARN,
    BackedUp.PARTIAL: Tone.WARN,
    BackedUp.FAILED: Tone.BAD,
    BackedUp.NEVER: Tone.BAD,
}
_VERIFIED = {
    Verified.IN_PERIOD: Tone.GOOD,
    Verified.BEFORE: Tone.WARN,
    Verified.FAILED: Tone.BAD,
    Verified.NEVER: Tone.WARN,
}
_AS_IT_SHOULD = {DrillVerdict.PASSED, DrillVerdict.DETECTED}


def view_of(report: Report) -> View:
    """Return the report in words, ready to be set."""
    subject = f"Service {report.only_service}" if report.only_service else "All services"
    return View(
        title="Recovery evidence",
        subject=neutralise(subject, limit=120),
        period=f"{format_instant(report.period.begin)} to {format_instant(report.period.end)}",
        as_of=format_instant(report.period.end),
        as_of_iso=to_iso(report.period.end),
        repository=neutralise(report.ledger.repository, limit=120),
        origin=neutralise(report.ledger.origin, limit=120),
        tree_size=format_count(report.ledger.tree_size),
        root_hash=neutralise(report.ledger.root_hash, limit=120),
        anchor=_anchor(report.ledger),
        headline=_headline(report),
        summary=_summary(report),
        counts=_counts(report),
        services=tuple(_card(posture) for posture in report.posture),
        sections=(
            _exceptions(report),
            _gaps(report),
            _posture_section(report),
            _coverage(report),
            _drills(report),
            restore_section(report),
            population_section(report),
            keys_section(report),
            _verify(report),
            _words(),
        ),
    )


# --- first page ---------------------------------------------------------------------------------------------


def _anchor(ledger: LedgerFacts) -> Cell:
    newest = max(ledger.anchors, key=lambda anchor: anchor.tree_size, default=None)
    if newest is None:
        return status("not anchored outside the repository", Tone.WARN)
    waiting = ledger.tree_size - newest.tree_size
    at = f", {format_instant(newest.anchored_at)}" if newest.anchored_at else ""
    rest = f"; {count_of(waiting, 'entry', 'entries')} newer" if waiting > 0 else ""
    return status(f"{newest.name}: {newest.tree_size:,} entries{at}{rest}", Tone.GOOD if waiting <= 0 else Tone.QUIET)


def _headline(report: Report) -> Cell:
    standings = [posture.standing for posture in report.posture]
    if not standings:
        return status("no service is in the scope of this report", Tone.WARN)
    proved = standings.count(Standing.PROVED)
    whole = count_of(len(standings), "service")
    breached = standings.count(Standing.BREACHED)
    shaky = standings.count(Standing.ATTENTION)
    if breached:
        return status(f"{breached} of {whole} breached", Tone.BAD)
    if proved + shaky < len(standings):
        return status(f"{len(standings) - proved - shaky} of {whole} not proved recoverable", Tone.WARN)
    if shaky:
        return status(f"{whole} proved recoverable as promised, {shaky} with exceptions", Tone.WARN)
    return status(f"{whole} proved recoverable as promised", Tone.GOOD)


def _summary(report: Report) -> str:
    real = [drill for drill in report.drills if drill.verdict not in {DrillVerdict.DETECTED, DrillVerdict.UNDETECTED}]
    passed = sum(drill.verdict is DrillVerdict.PASSED for drill in real)
    detected = sum(drill.verdict is DrillVerdict.DETECTED for drill in report.drills)
    mutations = len(report.drills) - len(real)
    sentence = f"{passed} of {count_of(len(real), 'drill')} in the period passed"
    if mutations:
        sentence += f"; {detected} of {count_of(mutations, 'drill')} with damage built in on purpose found it"
    return f"{sentence}."


def _counts(report: Report) -> tuple[Fact, ...]:
    critical = sum(deviation.gravity is Gravity.CRITICAL for deviation in report.deviations)
    unverified = sum(posture.verified is not Verified.IN_PERIOD for posture in report.posture)
    return (
        fact("services", number(str(len(report.posture)))),
        fact("not verified in the period", number(str(unverified))),
        fact("drills", number(str(len(report.drills)))),
        fact("critical exceptions", number(str(critical))),
        fact("warnings", number(str(len(report.deviations) - critical))),
        fact("not tested", number(str(len(report.gaps)))),
    )


def _card(posture: ServicePosture) -> ServiceCard:
    facts = posture.facts
    about = [f"tier {facts.tier}" if facts.tier is not None else "", f"owner {facts.owner}" if facts.owner else ""]
    if not posture.is_declared:
        about.append("in the ledger, but not in the configuration")
    return ServiceCard(
        name=neutralise(facts.name, limit=80),
        about=neutralise(", ".join(part for part in about if part), limit=160),
        standing=_STANDINGS[posture.standing],
        sentence=neutralise(_sentence(posture)),
        bars=(_bar("RPO", posture.rpo), _bar("RTO", posture.rto)),
        facts=_card_facts(posture),
    )


def _sentence(posture: ServicePosture) -> str:
    drill = posture.last_passed
    if drill is None:
        return "No drill has passed: nobody has shown that this service comes back."
    restoration, documents = drill.restoration, drill.restoration.documents
    target = restoration.target
    reached = format_instant(target.reached_time) if target and target.reached_time else _position(target)
    parts = [f"{format_ms(drill.rpo_ms)} of committed work was lost" if drill.rpo_ms is not None else ""]
    if documents is not None:
        parts.append(f"{documents.missing:,} of {documents.expected:,} documents were missing")
    if restoration.rto_ms is not None:
        promised = drill.promised.rto_ms
        against = f" against a promise of {format_ms(promised)}" if promised is not None else ""
        parts.append(f"it took {format_ms(restoration.rto_ms)}{against}")
    said = ", ".join(part for part in parts if part) or "nothing was measured"
    place = f" (entry {drill.stamp.number})"
    return f"On {format_instant(drill.stamp.recorded_at)} it was recovered to {reached} in isolation: {said}{place}."


def _position(target: Target | None) -> str:
    """Return where a recovery ended whose last transaction has no time."""
    if target is None:
        return "a position that is not recorded"
    return " at ".join(part for part in (target.requested or "its target", target.reached_lsn) if part)


def _bar(name: str, measured: Measured) -> Bar:
    whole = max(measured.promised_ms or 0, measured.worst_ms or 0) * 11 // 10
    return Bar(
        name=name,
        promised=format_ms(measured.promised_ms),
        last=format_ms(measured.last_ms),
        worst=format_ms(measured.worst_ms),
        samples=count_of(measured.samples, "drill"),
        status=_KEEPINGS[measured.keeping],
        promised_at=share_of(measured.promised_ms, whole),
        last_to=share_of(measured.last_ms, whole),
        worst_to=share_of(measured.worst_ms, whole),
    )


def _card_facts(posture: ServicePosture) -> tuple[Fact, ...]:
    backup, passed = posture.last_backup, posture.last_passed
    backed_up = posture.backed_up.value
    if backup is not None:
        backed_up += (
            f", last {format_instant(backup.ended_at or backup.stamp.recorded_at)} (entry {backup.stamp.number})"
        )
    verified = posture.verified.value
    if passed is not None:
        verified += f", last {format_instant(passed.stamp.recorded_at)} (entry {passed.stamp.number})"
    facts = [
        fact("Backed up", status(backed_up, _BACKED_UP[posture.backed_up])),
        fact("Verified", status(verified, _VERIFIED[posture.verified])),
    ]
    if passed is not None and passed.restoration.documents is not None:
        documents = passed.restoration.documents
        tone = Tone.BAD if documents.missing or documents.corrupt else Tone.GOOD
        facts.append(fact("Documents", status(documents_text(documents), tone)))
    owed = (
        f"{posture.overdue} overdue, {posture.open_obligations} open; {count_of(posture.open_findings, 'finding')} open"
    )
    tone = Tone.BAD if posture.overdue else Tone.WARN if posture.open_findings else Tone.GOOD
    facts.append(fact("Obligations", status(owed, tone)))
    if posture.unprotected:
        names = ", ".join(component.name for component in posture.unprotected)
        facts.append(fact("Not protected", status(names, Tone.WARN)))
    return tuple(facts)


def _posture_section(report: Report) -> Section:
    rows = []
    for posture in report.posture:
        for name, measured in (("RPO", posture.rpo), ("RTO", posture.rto)):
            rows.append(
                (
                    text(posture.facts.name),
                    text(name),
                    number(format_ms(measured.promised_ms)),
                    number(format_ms(measured.last_ms)),
                    number(format_ms(measured.worst_ms)),
                    number(str(measured.samples)),
                    _KEEPINGS[measured.keeping],
                )
            )
    table = Table(
        title="Promised and measured",
        columns=columns(
            ("Service", 4),
            ("Objective", 3),
            ("Promised", 3, Style.NUMBER),
            ("Last", 3, Style.NUMBER),
            ("Worst in the period", 3, Style.NUMBER),
            ("Drills", 2, Style.NUMBER),
            ("Promise", 4, Style.STATUS),
        ),
        rows=tuple(rows),
        empty="No service is in the scope of this report.",
    )
    intro = (
        "The numbers behind the bars. RPO is committed work that a recovery lost; RTO runs from the "
        "decision to restore to the last check passed. Both come from drills that were meant to succeed, not "
        "from the age of a backup."
    )
    return Section(name="measured", title="Promised and measured", intro=intro, tables=(table,))


# --- exceptions and gaps ------------------------------------------------------------------------------------


def _exceptions(report: Report) -> Section:
    rows = tuple(
        (
            status(deviation.gravity.value, Tone.BAD if deviation.gravity is Gravity.CRITICAL else Tone.WARN),
            text(deviation.service or "-"),
            text(deviation.kind.value),
            text(deviation.text),
            moment(format_day(deviation.at) if deviation.at else "-"),
            entries(deviation.entries),
        )
        for deviation in report.deviations
    )
    table = Table(
        title="Exceptions",
        columns=columns(
            ("Weight", 3, Style.STATUS),
            ("Service", 3),
            ("What", 3),
            ("Detail", 8),
            ("Day", 3),
            ("Entry", 2, Style.NUMBER),
        ),
        rows=rows,
        empty="No exception in the period.",
    )
    intro = "Everything in the period that is not as promised, the gravest first. Nothing is left out of this list."
    return Section(name="exceptions", title="Exceptions", intro=intro, tables=(table,))


def _gaps(report: Report) -> Section:
    table = Table(
        title="Not tested",
        columns=columns(("Why", 3), ("What", 4), ("Detail", 8), ("Entry", 3, Style.NUMBER)),
        rows=tuple(
            (text(gap.kind.value), text(gap.subject), text(gap.text), entries(gap.entries)) for gap in report.gaps
        ),
        empty="Nothing.",
    )
    intro = "What this report does not show. Whatever is listed here is not proved, however good the rest looks."
    return Section(name="not-tested", title="What was not tested", intro=intro, tables=(table,))


def _coverage(report: Report) -> Section:
    names = [posture.facts.name for posture in report.posture]
    rows = tuple(
        (
            text(row.scenario.name),
            text("must fail" if row.scenario.is_mutation else "must pass"),
            *(_coverage_cell(cell) for cell in row.cells),
        )
        for row in report.coverage
    )
    wide = tuple((neutralise(name, limit=40), 4, Style.STATUS) for name in names)
    table = Table(
        title="Scenarios and services",
        columns=columns(("Scenario", 5), ("Drill", 3), *wide),
        rows=rows,
        empty="No scenario is declared.",
    )
    intro = (
        "Each drill plan and each kind of built-in damage, beside each service: how often in the period, how it ended."
    )
    return Section(name="coverage", title="Coverage", intro=intro, tables=(table,))


def _coverage_cell(cell: CoverageCell | None) -> Cell:
    if cell is None:
        return text("does not apply")
    if cell.last is None or cell.verdict is None:
        return status("never", Tone.WARN)
    if cell.runs == 0:
        return status(f"not since {format_day(cell.last.stamp.recorded_at)}", Tone.WARN)
    word = "detected" if cell.verdict is DrillVerdict.DETECTED else cell.verdict.value
    return status(f"{cell.runs}, last {word}", Tone.GOOD if cell.verdict in _AS_IT_SHOULD else Tone.BAD)


# --- drills -------------------------------------------------------------------------------------------------


def _drills(report: Report) -> Section:
    table = Table(
        title="All drills in the period",
        columns=columns(
            ("Verdict", 4, Style.STATUS),
            ("Service", 3),
            ("Plan", 4),
            ("Recorded (UTC)", 5),
            ("RPO", 3, Style.NUMBER),
            ("RTO", 3, Style.NUMBER),
            ("Checks", 3, Style.NUMBER),
            ("Entry", 2, Style.NUMBER),
        ),
        rows=tuple(_drill_row(drill) for drill in report.drills),
        empty="There was no drill in the period.",
    )
    chosen = detailed(report.drills)
    intro = (
        "Each drill restores into an environment that can reach nothing, questions what came back, and is destroyed."
    )
    if len(chosen) < len(report.drills):
        intro += (
            f" All {len(report.drills)} are in the table; {len(chosen)} follow in full: those that did not end as they "
            "should, then the newest. The entries of the others are in the bundle."
        )
    return Section(
        name="drills",
        title="Drills",
        intro=intro,
        tables=(table,),
        drills=tuple(drill_card(drill) for drill in chosen),
    )


def detailed(drills: tuple[Drill, ...]) -> tuple[Drill, ...]:
    """Return the drills to show in full, in the order of the ledger."""
    ranked = sorted(
        drills, key=lambda drill: (drill.verdict in _AS_IT_SHOULD and not drill.objections, -drill.entry.stamp.number)
    )
    return tuple(sorted(ranked[:DETAILED_DRILLS], key=lambda drill: drill.entry.stamp.number))


def _drill_row(drill: Drill) -> tuple[Cell, ...]:
    entry = drill.entry
    asked = [check for check in entry.checks if not check.is_not_applicable]
    passed = sum(check.state.value == "passed" for check in asked)
    plan = drill.obligation.plan if drill.obligation else "-"
    return (
        verdict_cell(drill.verdict),
        text(entry.stamp.service or "-"),
        text(f"{plan} ({entry.mutation})" if entry.mutation else plan),
        moment(format_instant(entry.stamp.recorded_at)),
        number(format_ms(entry.rpo_ms)),
        number(format_ms(entry.restoration.rto_ms)),
        number(f"{passed} of {len(asked)}"),
        number(str(entry.stamp.number)),
    )


# --- last pages ---------------------------------------------------------------------------------------------


def _verify(report: Report) -> Section:
    commands = (
        ("With Python and the package cryptography alone, without any trust in drservice", "python3 verify.py ."),
        ("With drservice, against keys that you hold yourself", "drservice evidence verify BUNDLE --policy FILE"),
        ("That these files are those that manifest.json lists", "sha256sum report.html report.pdf"),
    )
    intro = (
        "This report is a reading aid; the entries are the evidence. In the unpacked bundle, the first command "
        f"recomputes the root hash of all {report.ledger.tree_size:,} entries, checks every signature "
        "and every anchor, and names the first thing wrong. Take the policy, which "
        "names the keys to believe, from somewhere else than this bundle."
    )
    return Section(name="verify", title="How to verify", intro=intro, commands=commands)


_WORDS = (
    ("proved", "A drill passed in the period, every promise was kept and measured, and there is no exception."),
    ("attention", "Proved, and there are exceptions."),
    ("not proved", "No drill passed in the period, or a promised objective was not measured."),
    ("breached", "The last drill or backup failed, nothing is backed up, a promise is broken, or entries contradict."),
    ("backed up", "Snapshots exist. Says nothing about whether they can be recovered."),
    ("verified", "The service was recovered and questioned in a drill that passed."),
    ("must fail, and did", "Damage was built in on purpose, and the drill noticed it."),
    ("unverified", "A check that could not be run. It counts as failed."),
    (
        "seed",
        (
            "A random target is the beginning of its window plus so many microseconds: the first 8 bytes (big-endian) "
            "of the SHA-256 of 'drservice target v1', a newline and the seed, modulo one more than the microseconds of "
            "the window. The SHA-256 of the seed was recorded before the drill: the target was not chosen afterwards."
        ),
    ),
    ("escapes", "Characters that would hide, or that the typeface lacks, are written as \\xNN or \\uNNNN."),
)


def _words() -> Section:
    table = Table(
        title="Words",
        columns=columns(("Word", 2), ("Meaning", 8)),
        rows=tuple((text(word), text(meaning)) for word, meaning in _WORDS),
        empty="",
    )
    intro = "All times are UTC. Everything is judged as of the end of the period."
    return Section(name="words", title="How to read this report", intro=intro, tables=(table,))
