"""The words for one drill: what was asked, what was reached, step by step, and what was not tested. Pure."""

from __future__ import annotations

from drservice.evidence.report import Drill, DrillVerdict
from drservice.evidence.reportentries import (
    Check,
    CheckOutcome,
    Documents,
    Gravity,
    ObligationEntry,
    Promise,
    Restoration,
)
from drservice.evidence.reporttext import count_of, format_count, format_instant, format_ms, neutralise
from drservice.evidence.reportview import (
    SCALE,
    Cell,
    DrillCard,
    Fact,
    Phase,
    Style,
    Table,
    Tone,
    code,
    columns,
    fact,
    number,
    share_of,
    status,
    text,
)

_TONES = {
    DrillVerdict.PASSED: Tone.GOOD,
    DrillVerdict.FAILED: Tone.BAD,
    DrillVerdict.ABORTED: Tone.BAD,
    DrillVerdict.DETECTED: Tone.GOOD,
    DrillVerdict.UNDETECTED: Tone.BAD,
}
_MUTATED = {DrillVerdict.DETECTED, DrillVerdict.UNDETECTED}
_PHASES = ("plan", "fetch", "place", "start", "replay", "check")
_PHASE_WORDS = {
    "plan": "plan: choose snapshot and WAL, prove the target",
    "fetch": "fetch: read, authenticate and decrypt",
    "place": "place: write the files, make them durable",
    "start": "start: isolation self-test, start the server",
    "replay": "replay: WAL up to the target",
    "check": "check: question what was recovered",
}


def verdict_cell(verdict: DrillVerdict) -> Cell:
    """Return the status of a drill."""
    return status(verdict.value, _TONES[verdict])


def documents_text(documents: Documents | None) -> str:
    """Return what became of the documents."""
    if documents is None:
        return "none in this service, or not counted"
    said = f"{documents.missing:,} of {documents.expected:,} missing, {documents.corrupt:,} corrupt"
    if documents.missing_in_production:
        said += f"; {documents.missing_in_production:,} were missing in production already"
    return said + (f"; {documents.extra:,} more than the database knows" if documents.extra else "")


def drill_card(drill: Drill) -> DrillCard:
    """Return everything about one drill."""
    entry = drill.entry
    plan = drill.obligation.plan if drill.obligation else "no plan"
    return DrillCard(
        entry=entry.stamp.number,
        title=neutralise(f"Drill of {entry.stamp.service or 'the repository'} ({plan})", limit=120),
        verdict=verdict_cell(drill.verdict),
        subtitle=f"entry {entry.stamp.number}, recorded {format_instant(entry.stamp.recorded_at)}"
        f" on {neutralise(entry.stamp.host, limit=80)}",
        notes=_notes(drill),
        facts=(*_target_facts(drill), *_result_facts(drill), *_source_facts(entry.restoration, drill)),
        phases=_phases(entry.restoration),
        tables=_tables(drill),
    )


def _notes(drill: Drill) -> tuple[Fact, ...]:
    entry = drill.entry
    found = []
    if drill.verdict in _MUTATED:
        purpose = f"damage was built in on purpose ({entry.mutation}): this drill must fail"
        ending = ", and did" if drill.verdict is DrillVerdict.DETECTED else ", but passed: the damage was not noticed"
        found.append(fact("Mutation", purpose + ending))
    found.extend(fact("Contradiction", objection) for objection in drill.objections)
    found.extend(fact("Reason", reason) for reason in entry.reasons)
    if entry.restoration.error is not None:
        found.append(fact("Error", f"{entry.restoration.error.code}: {entry.restoration.error.message}"))
    afterwards = (
        "after the damage was found" if drill.verdict is DrillVerdict.DETECTED else "although promised beforehand"
    )
    found.extend(fact("Not run", f"{name}, {afterwards}") for name in drill.checks_not_run)
    found.extend(fact("Not tested", said) for said in entry.not_tested)
    return tuple(found)


def _target_facts(drill: Drill) -> tuple[Fact, ...]:
    entry, target = drill.entry, drill.entry.restoration.target
    facts = [fact("Promised beforehand", _promised(drill.obligation))]
    if target is not None:
        place = " ".join(
            part for part in (target.reached_lsn, f"timeline {target.timeline}" if target.timeline else None) if part
        )
        reached = format_instant(target.reached_time, exact=True)
        facts.append(fact("Target asked for", f"{target.requested or '-'} ({target.kind or 'kind not known'})"))
        facts.append(fact("Target reached", f"{reached}{', ' + place if place else ''}"))
    facts.append(fact("Target accuracy", f"{format_ms(entry.target_accuracy_ms)} between asked for and reached"))
    return (*facts, *_seed_facts(drill))


def _promised(obligation: ObligationEntry | None) -> str:
    if obligation is None:
        return "nothing: no obligation precedes this drill"
    due = f"; due {format_instant(obligation.due_at)}" if obligation.due_at else ""
    named = ", ".join(
        name if gravity is Gravity.CRITICAL else f"{name} (warning)" for name, gravity in obligation.checks
    )
    checks = f"; checks {named}" if named else "; no checks named"
    documents = "no document missing" if obligation.counts_documents else "documents do not count"
    return (
        f"entry {obligation.stamp.number}: RPO {format_ms(obligation.promised.rpo_ms)}, "
        f"RTO {format_ms(obligation.promised.rto_ms)}, {documents}{checks}{due}"
    )


def _seed_facts(drill: Drill) -> tuple[Fact, ...]:
    obligation = drill.obligation
    if obligation is None or obligation.target_kind != "random":
        return ()
    window = f"{format_instant(obligation.target_from)} to {format_instant(obligation.target_to)}"
    chosen = format_instant(drill.chosen_by_seed, exact=True)
    return (
        fact("Seed", code(drill.entry.seed)),
        fact("Its SHA-256, published before", code(obligation.seed_commitment)),
        fact("What the seed chooses", f"{chosen}, out of {window} (worked out anew for this report)"),
    )


def _result_facts(drill: Drill) -> tuple[Fact, ...]:
    entry = drill.entry
    promised = drill.obligation.promised if drill.obligation else entry.promised
    if drill.verdict in _MUTATED:
        promised = Promise()  # nothing is promised of a drill that must fail
    after = "destroyed" if entry.is_destroyed else "kept on purpose" if entry.is_kept else "NOT destroyed"
    environment = f"{entry.restoration.environment}; {after}" if entry.restoration.environment else "none was made"
    return (
        fact("RPO: committed work lost", _against(entry.rpo_ms, promised.rpo_ms)),
        fact("RTO: decision to checks passed", _against(entry.restoration.rto_ms, promised.rto_ms)),
        fact("Documents", documents_text(entry.restoration.documents)),
        fact("Environment", environment),
    )


def _against(measured: int | None, promised: int | None) -> Cell:
    said = "not measured" if measured is None else format_ms(measured)
    if promised is None:
        return text(f"{said} (nothing promised)")
    if measured is None:
        return status(f"{said}, promised {format_ms(promised)}", Tone.WARN)
    return status(f"{said}, promised {format_ms(promised)}", Tone.GOOD if measured <= promised else Tone.BAD)


def _source_facts(restoration: Restoration, drill: Drill) -> tuple[Fact, ...]:
    facts = []
    if restoration.point:
        facts.append(fact("Recovery point", code(restoration.point)))
    facts.extend(
        fact(f"Snapshot of {neutralise(c, limit=60)}", code(snapshot)) for c, snapshot in restoration.snapshots
    )
    if drill.entry.challenge_nonce:
        lsn = f" at {drill.entry.challenge_lsn}" if drill.entry.challenge_lsn else ""
        facts.append(fact("Challenge", code(drill.entry.challenge_nonce + lsn)))
    facts.append(fact("Signed by", code(", ".join(drill.entry.stamp.signers) or None)))
    return tuple(facts)


def _phases(restoration: Restoration) -> tuple[Phase, ...]:
    times = dict(restoration.phases_ms)
    named = [*(name for name in _PHASES if name in times), *(name for name in times if name not in _PHASES)]
    whole = sum(times[name] or 0 for name in named)
    phases, begin = [], 0
    for name in named:
        length = max(0, share_of(times[name], whole))
        length = min(length, SCALE - begin)
        word = _PHASE_WORDS.get(name, neutralise(name, limit=40))
        phases.append(Phase(name=word, time=format_ms(times[name]), begin=begin, length=length))
        begin += length
    return tuple(phases)


def _tables(drill: Drill) -> tuple[Table, ...]:
    checks = Table(
        title="Checks",
        columns=columns(
            ("State", 3, Style.STATUS), ("Check", 5), ("Owner", 3), ("Time", 2, Style.NUMBER), ("What it found", 8)
        ),
        rows=tuple(
            (
                status(_check_word(check), _check_tone(check)),
                text(check.name),
                text(check.owner or "-"),
                number(format_ms(check.duration_ms)),
                text(check.detail),
            )
            for check in drill.entry.checks
        ),
        empty="No check was run.",
    )
    probes = drill.entry.restoration.isolation
    good = sum(probe.is_good for probe in probes)
    isolation = Table(
        title=f"Isolation: {format_count(good)} of {count_of(len(probes), 'probe')} found the way out closed",
        columns=columns(("State", 3, Style.STATUS), ("Probe", 4), ("What it found", 10)),
        rows=tuple(
            (
                status("isolated", Tone.GOOD) if probe.is_good else status("NOT isolated", Tone.BAD),
                text(probe.name),
                text(probe.detail),
            )
            for probe in probes
        ),
        empty="Isolation was not tested in this drill.",
    )
    return (checks, isolation)


def _check_word(check: Check) -> str:
    if check.is_not_applicable:
        return "not applicable"
    is_plain = check.state is CheckOutcome.PASSED or check.gravity is Gravity.CRITICAL
    return check.state.value if is_plain else f"{check.state.value} (warning)"


def _check_tone(check: Check) -> Tone:
    if check.state is CheckOutcome.PASSED:
        return Tone.GOOD
    return Tone.BAD if check.gravity is Gravity.CRITICAL and not check.is_not_applicable else Tone.WARN
