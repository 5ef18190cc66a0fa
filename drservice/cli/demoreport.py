"""What was wrong with what the demo saw, and how it is told. Pure: values in, lines or a document out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from drservice.cli.demofacts import (
    BackupFacts,
    ConsistentFacts,
    DocumentFacts,
    DocumentLossFacts,
    DrillFacts,
    Facts,
    HostLossFacts,
    NeutralFacts,
)
from drservice.cli.demoweekreport import week_document, week_picture, week_problems, week_rows
from drservice.cli.formatting import format_bytes, format_seconds, format_table
from drservice.cli.oracle import Moment, picture
from drservice.cli.output import Colour, Line, Span
from drservice.clock import to_iso

_PICTURE_COLUMNS = 58
_SHOWN = 5
_PHASES = {
    "documents": "the documents of that instant are in the repository",
    "wal": "the last WAL reaches the repository",
    "plan": "plan, and prove that the target exists",
    "fetch": "fetch and decrypt files and documents",
    "place": "make them durable",
    "start": "isolation self-test, start the server",
    "replay": "replay WAL up to the target",
    "check": "prove the target, compare orders and documents",
}


def problems_of(facts: Facts) -> tuple[str, ...]:
    """Return everything that is not as it must be; empty only if the recovery is proven."""
    found: list[str] = []
    seen = facts.comparison
    if seen.lost:
        found.append(f"{len(seen.lost)} acknowledged orders are lost: {_some(seen.lost)}")
    if seen.unwanted:
        found.append(f"{len(seen.unwanted)} orders are there that must not be: {_some(seen.unwanted)}")
    if seen.acknowledged == 0 or seen.after_target == 0:
        found.append("no order was entered before the target, or none after it: this run proves nothing")
    if not facts.history_is_the_same:
        found.append("rows that were there from the beginning have changed or are missing")
    if not facts.mistake_is_real:
        found.append("production still has the table: there was nothing to recover from")
    if not facts.host_cannot_read:
        found.append("the production host can read what it wrote, although it has no identity")
    if facts.reached is None or facts.reached > facts.target:
        found.append(f"the last transaction replayed is of {facts.reached}, not before the target")
    first = facts.week.first_stored_bytes if facts.week is not None else facts.backups[0].stored_bytes
    if facts.backups[-1].stored_bytes >= first:
        found.append("the last backup re-used nothing of the first")
    if facts.week is not None:
        found += week_problems(facts.week)
    return (
        *found,
        *_document_problems(facts.documents),
        *_host_loss_problems(facts.host_loss),
        *_proof_problems(facts),
    )


def _document_problems(documents: DocumentFacts) -> Iterator[str]:
    seen = documents.comparison
    if seen.lost:
        yield f"{len(seen.lost)} acknowledged documents are missing or not as they were: {_some(seen.lost)}"
    if seen.unwanted:
        yield f"{len(seen.unwanted)} documents are there that must not be: {_some(seen.unwanted)}"
    if seen.acknowledged == 0 or seen.after_target == 0:
        yield "no document was filed before the target, or none after it: this run proves nothing about documents"
    if documents.missing or documents.corrupt:
        yield f"the restore counts {documents.missing} documents missing and {documents.corrupt} corrupt"
    if documents.expected != documents.rows:
        yield f"the restore looked for {documents.expected} documents, {documents.rows} rows refer to one"


def _host_loss_problems(loss: HostLossFacts) -> Iterator[str]:
    documents, clone = loss.documents, loss.clone
    if loss.unwanted:
        yield f"{len(loss.unwanted)} orders outlived the machine that must not be: {_some(loss.unwanted)}"
    if loss.entered == 0 or documents.filed == 0:
        yield "no order was entered before the machine died, or no document filed: its loss proves nothing"
    if documents.unwanted:
        yield f"{len(documents.unwanted)} documents outlived the machine that must not be: {_some(documents.unwanted)}"
    if documents.told_missing != len(documents.dangling) or documents.told_corrupt:
        yield (
            f"the restore counts {documents.told_missing} documents missing and {documents.told_corrupt} corrupt,"
            f" {len(documents.dangling)} rows have none"
        )
    if documents.behind_seconds is None:
        yield "nobody had looked at all documents before the machine died"
    yield from _consistent_problems(loss.consistent)
    if clone is not None and not clone.is_same:
        edits = "" if clone.has_edits else ", without what was edited"
        yield f"the clone of the configuration was at {clone.commit}, and is at {clone.recovered}{edits}"


def _consistent_problems(copy: ConsistentFacts) -> Iterator[str]:
    if copy.dangling:
        yield f"{len(copy.dangling)} rows of the consistent copy are without their document: {_some(copy.dangling)}"
    if copy.told_missing != len(copy.dangling):
        yield (
            f"the restore to consistent counts {copy.told_missing} documents missing, {len(copy.dangling)} rows have"
            " none"
        )
    if copy.unwanted:
        yield f"the consistent copy has what must not be: {_some(copy.unwanted)}"


def _proof_problems(facts: Facts) -> Iterator[str]:
    drill, evidence = facts.drill, facts.evidence
    if not drill.passed:
        yield f"the drill did not pass: {'; '.join(drill.reasons) or 'it does not say why'}"
    yield from _neutral_problems(drill)
    if not drill.destroyed:
        yield "what the drill recovered was not destroyed"
    if not facts.mutation.detected:
        yield f"the drill that had to fail ({facts.mutation.mutation}) noticed nothing: the checks are unproven"
    if not evidence.verified:
        yield f"the bundle does not verify: {evidence.told or 'its verifier said nothing'}"
    if evidence.anchored < evidence.records:
        yield f"{evidence.records - evidence.anchored} of {evidence.records} records are not anchored"
    if evidence.report_bytes == 0:
        yield "the bundle has an empty report.pdf"


def _neutral_problems(drill: DrillFacts) -> Iterator[str]:
    """Tell what of a copy of Odoo was not made harmless; the plant has something of each kind."""
    if not drill.odoo_checks:
        yield "nothing was asked of what Odoo itself relies on"
    neutral = drill.neutral
    if neutral is None:
        yield "the drill's copy was not neutralized: it could have sent mail"
        return
    done = {
        "the script of no module was run": len(neutral.scripts),
        "no queued mail was held": neutral.mails_held,
        "no mail server was switched off": neutral.mail_servers_off,
        "no scheduled action was switched off": neutral.scheduled_actions_off,
        "nobody asked whether something still reaches out": neutral.questions,
    }
    for words, count in done.items():
        if not count:
            yield f"the drill's copy was not neutralized: {words}"
    if not neutral.production_is_as_it_was:
        yield "neutralizing the drill's copy has changed production"


def document(
    facts: Facts, problems: Sequence[str], *, seconds: float, kept: str | None, evidence: str | None
) -> dict[str, object]:
    """Return the JSON document; ``kept``: the folder, if it was left.

    ``rpo_seconds`` is the most committed work that the loss of the machine would have cost at any look;
    ``commits_lost`` counts orders acknowledged up to the target that the recovered database lacks,
    ``documents_missing`` documents acknowledged up to the target that are not there with their content. ``host_loss``
    has what the loss of the whole machine cost; its ``effective_rpo_seconds`` is the larger of orders and documents.
    ``evidence``: where the bundle and its report were kept, if they were.
    """
    seen = facts.comparison
    return {
        "state": "failed" if problems else "breached" if facts.breached() else "passed",
        "problems": list(problems),
        "commits_acknowledged": seen.acknowledged,
        "commits_recovered": seen.recovered,
        "commits_lost": len(seen.lost),
        "commits_after_target": seen.after_target,
        "commits_unwanted": len(seen.unwanted),
        "commits_in_flight": seen.in_flight,
        "rpo_seconds": round(facts.worst.seconds, 3),
        "rpo_promised_seconds": facts.rpo_promised_seconds,
        "rpo_looks": len(facts.exposures),
        "rto_seconds": round(facts.rto_seconds, 3),
        "rto_promised_seconds": facts.rto_promised_seconds,
        "phases": {name: round(value, 3) for name, value in facts.phases.items()},
        "host_loss": _host_loss_document(facts.host_loss),
        **_proof_document(facts, evidence),
        **week_document(facts.week),
        "repository_bytes": facts.repository_bytes,
        "source_bytes": facts.backups[-1].source_bytes,
        "snapshots": [_snapshot_document(item) for item in facts.backups],
        "target": to_iso(facts.target),
        "dropped_at": to_iso(facts.dropped_at),
        "decided_at": to_iso(facts.decided_at),
        "reached_time": to_iso(facts.reached) if facts.reached else None,
        "restored_snapshot": facts.used_snapshot,
        "isolation_probes": facts.probes,
        "history_rows": facts.history_rows,
        "folder": kept,
        "environment": {"id": facts.environment, "dsn": facts.dsn, "documents": facts.documents.root} if kept else None,
        "seconds": round(seconds, 3),
    }


def _host_loss_document(loss: HostLossFacts) -> dict[str, object]:
    documents, copy, clone = loss.documents, loss.consistent, loss.clone
    return {
        "commits_acknowledged": loss.acknowledged,
        "commits_lost": len(loss.lost),
        "commits_unwanted": len(loss.unwanted),
        "lost_seconds": round(loss.lost_seconds, 3),
        "lost_promised_seconds": HostLossFacts.PROMISED_SECONDS,
        "documents_acknowledged": documents.acknowledged,
        "documents_lost": len(documents.lost),
        "documents_unwanted": len(documents.unwanted),
        "documents_lost_seconds": round(documents.lost_seconds, 3),
        "documents_promised_seconds": DocumentLossFacts.PROMISED_SECONDS,
        "documents_behind_seconds": None if documents.behind_seconds is None else round(documents.behind_seconds, 3),
        "rows_without_document": len(documents.dangling),
        "effective_rpo_seconds": round(loss.effective_rpo_seconds, 3),
        "consistent": {
            "commits_lost": copy.orders_lost,
            "documents_lost": copy.documents_lost,
            "lost_seconds": round(copy.lost_seconds, 3),
            "lost_promised_seconds": ConsistentFacts.PROMISED_SECONDS,
            "rows_without_document": len(copy.dangling),
            "unwanted": len(copy.unwanted),
            "recovered_seconds": round(copy.seconds, 3),
        },
        "clone": None
        if clone is None
        else {"commit": clone.commit, "recovered": clone.recovered, "edits_recovered": clone.has_edits},
        "died_at": to_iso(loss.died_at),
        "recovered_seconds": round(loss.seconds, 3),
    }


def _neutral_document(neutral: NeutralFacts | None) -> dict[str, object] | None:
    if neutral is None:
        return None
    return {
        "scripts": list(neutral.scripts),
        "mails_held": neutral.mails_held,
        "mail_servers_off": neutral.mail_servers_off,
        "scheduled_actions_off": neutral.scheduled_actions_off,
        "questions": neutral.questions,
        "production_is_as_it_was": neutral.production_is_as_it_was,
    }


def _proof_document(facts: Facts, evidence: str | None) -> dict[str, object]:
    documents, drill, mutation = facts.documents, facts.drill, facts.mutation
    return {
        "documents_expected": documents.comparison.acknowledged,
        "documents_missing": len(documents.comparison.lost),
        "documents_after_target": documents.comparison.after_target,
        "documents_unwanted": len(documents.comparison.unwanted),
        "documents_rpo_seconds": round(documents.worst.seconds, 3),
        "documents_rpo_promised_seconds": documents.rpo_promised_seconds,
        "drill_verdict": "passed" if drill.passed else "failed",
        "drill": {
            "record": drill.record,
            "target": {"kind": drill.kind, "requested": drill.target},
            "reasons": list(drill.reasons),
            "checks": drill.checks,
            "checks_passed": drill.checks_passed,
            "odoo_checks": drill.odoo_checks,
            "neutralized": _neutral_document(drill.neutral),
            "not_tested": list(drill.not_tested),
            "rto_seconds": drill.rto_ms / 1000 if drill.rto_ms is not None else None,
            "rpo_seconds": drill.rpo_ms / 1000 if drill.rpo_ms is not None else None,
            "seconds": round(drill.seconds, 3),
        },
        "mutation": {
            "record": mutation.record,
            "mutation": mutation.mutation,
            "detected": mutation.detected,
            "noticed": list(mutation.noticed),
            "seconds": round(mutation.seconds, 3),
        },
        "evidence_verified": facts.evidence.verified,
        "evidence_records": facts.evidence.records,
        "evidence_anchored": facts.evidence.anchored,
        "evidence_folder": evidence,
    }


def _snapshot_document(item: BackupFacts) -> dict[str, object]:
    return {
        "point": item.point,
        "snapshot": item.snapshot,
        "started_at": to_iso(item.started_at),
        "stopped_at": to_iso(item.stopped_at),
        "source_bytes": item.source_bytes,
        "read_bytes": item.read_bytes,
        "stored_bytes": item.stored_bytes,
        "seconds": round(item.seconds, 3),
    }


def report(facts: Facts, problems: Sequence[str], *, blocks: bool, seconds: float) -> list[Line]:
    """Return the end of the story: picture, what was promised and what was measured, verdict."""
    lines: list[Line] = []
    if facts.week is not None:
        lines += ["", (Span("The week", Colour.STRONG),), *week_picture(facts.week)]
    title = "What happened, to scale" if facts.week is None else "Today, to scale"
    lines += ["", (Span(title, Colour.STRONG),), *_picture(facts, blocks=blocks)]
    lines += ["", (Span("Promised and measured", Colour.STRONG),), *(f"   {row}" for row in _table(facts)), ""]
    lines += [(Span(f"   PROBLEM: {text}", Colour.BAD),) for text in problems]
    if problems:
        verdict = Span("FAILED", Colour.BAD)
    elif facts.breached():
        verdict = Span("BREACHED: recovered, but not within the promise", Colour.WARNING)
    else:
        verdict = Span("PASSED", Colour.GOOD)
    return [*lines, (verdict, f" in {format_seconds(seconds)}")]


def _picture(facts: Facts, *, blocks: bool) -> list[Line]:
    moments = [
        *(
            Moment(mark=str(n), at=b.stopped_at, text=f"recovery point {n}")
            for n, b in enumerate(facts.backups, start=1)
        ),
        Moment(mark="T", at=facts.target, text="the target: one second before the mistake"),
        Moment(mark="X", at=facts.dropped_at, text="DROP TABLE mrp_production"),
        Moment(mark="D", at=facts.decided_at, text="decision to restore"),
    ]
    acknowledged = [(order.number, order.acknowledged) for order in facts.orders if order.acknowledged is not None]
    rows = picture(
        moments=moments,
        entered=[at for _, at in acknowledged],
        recovered=[at for number, at in acknowledged if number in facts.found],
        used=(facts.used_from, facts.target),
        width=_PICTURE_COLUMNS,
        blocks=blocks,
    )
    legend = [f"   {m.mark}  {m.at:%H:%M:%S}.{m.at.microsecond // 1000:03d}  {m.text}" for m in moments]
    return [*(f"   {row}" for row in rows), *legend]


def _table(facts: Facts) -> list[str]:
    seen, worst, documents = facts.comparison, facts.worst, facts.documents
    filed = documents.comparison
    rows = [
        *(week_rows(facts.week) if facts.week is not None else ()),
        (f"orders lost, of {seen.acknowledged} acknowledged up to the target", "0", str(len(seen.lost))),
        (f"orders there, of {seen.after_target} begun after the target", "0", str(len(seen.unwanted))),
        (f"documents missing, of {filed.acknowledged} acknowledged", "0", str(len(filed.lost))),
        (f"documents there, of {filed.after_target} filed after the target", "0", str(len(filed.unwanted))),
        (
            f"RPO: {worst.count} orders at risk, the worst of {len(facts.exposures)} looks",
            format_seconds(facts.rpo_promised_seconds),
            format_seconds(worst.seconds),
        ),
        (
            f"RPO of documents: {documents.worst.count} at risk, the worst of {len(documents.exposures)} looks",
            format_seconds(documents.rpo_promised_seconds),
            format_seconds(documents.worst.seconds),
        ),
        (
            "RTO: decision to checks passed",
            format_seconds(facts.rto_promised_seconds),
            format_seconds(facts.rto_seconds),
        ),
        *((f"     {_PHASES.get(name, name)}", "", format_seconds(value)) for name, value in facts.phases.items()),
        *_host_loss_rows(facts.host_loss),
        *_proof_rows(facts),
        ("database, documents, configuration", "", format_bytes(facts.backups[-1].source_bytes)),
        (f"repository: {_points(facts)} recovery points and the WAL", "", format_bytes(facts.repository_bytes)),
    ]
    return format_table(("", "PROMISED", "MEASURED"), rows)


def _host_loss_rows(loss: HostLossFacts) -> list[tuple[str, str, str]]:
    documents, copy, clone = loss.documents, loss.consistent, loss.clone
    rows = [
        (
            f"machine lost: {len(loss.lost)} of {loss.acknowledged} orders gone, the oldest was",
            format_seconds(HostLossFacts.PROMISED_SECONDS),
            format_seconds(loss.lost_seconds),
        ),
        (
            f"     {len(documents.lost)} of {documents.acknowledged} documents gone, the oldest was",
            format_seconds(DocumentLossFacts.PROMISED_SECONDS),
            format_seconds(documents.lost_seconds),
        ),
        ("     effective RPO: the larger of both", "", format_seconds(loss.effective_rpo_seconds)),
        ("     rows without their document, each named", str(documents.told_missing), str(len(documents.dangling))),
        (
            f"     consistent: {copy.orders_lost} orders, {copy.documents_lost} documents gone, the oldest",
            format_seconds(ConsistentFacts.PROMISED_SECONDS),
            format_seconds(copy.lost_seconds),
        ),
        ("     consistent: rows without their document", "0", str(len(copy.dangling))),
    ]
    if clone is not None:
        commit = (clone.recovered or "gone")[:8]
        rows.append(("     clone of the configuration, with its edits", clone.commit[:8], commit))
    return [*rows, ("     until another server answered", "", format_seconds(loss.seconds))]


def _points(facts: Facts) -> int:
    return len(facts.backups) + (len(facts.week.nights) if facts.week is not None else 0)


def _proof_rows(facts: Facts) -> list[tuple[str, str, str]]:
    drill, mutation, evidence = facts.drill, facts.mutation, facts.evidence
    held = not tuple(_neutral_problems(drill))
    mails = drill.neutral.mails_held if drill.neutral is not None else 0
    return [
        (
            f"drill: {drill.checks_passed} of {drill.checks} checks passed ({format_seconds(drill.seconds)})",
            "passed",
            "passed" if drill.passed else "FAILED",
        ),
        (f"     its copy neutralized, {mails} mails held", "held", "held" if held else "NOT HELD"),
        (
            f"damage on purpose: {mutation.mutation} ({format_seconds(mutation.seconds)})",
            "noticed",
            "noticed" if mutation.detected else "NOT NOTICED",
        ),
        (
            f"evidence: {evidence.records} signed records, {evidence.anchored} anchored",
            "verified",
            "verified" if evidence.verified else "NOT VERIFIED",
        ),
    ]


def _some(numbers: Sequence[str]) -> str:
    more = len(numbers) - _SHOWN
    return ", ".join(numbers[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
